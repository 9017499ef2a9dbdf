//! One lock for each block that is being worked on.
//!
//! A block's id is unique among all volumes, since it is a hash under the volume's secret key, so a lock needs only the id. That
//! lets an object whose header is damaged, and does not tell its volume any more, be locked as well.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tandemfs::id::BlockId;
use tokio::sync::OwnedMutexGuard;

type Held = Arc<tokio::sync::Mutex<()>>;

/// The locks; only those that somebody holds or waits for take memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Locks(Arc<Mutex<BTreeMap<BlockId, Held>>>);

/// A held lock.
#[derive(Debug)]
pub(super) struct Lock {
    locks: Locks,
    id: BlockId,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Locks {
    /// Waits for a block's lock.
    pub(super) async fn lock(&self, id: &BlockId) -> Lock {
        // Made before the wait, so that a waiter that is dropped cleans up as well.
        let mut lock = Lock { locks: self.clone(), id: *id, guard: None };
        let held = self.entry(id);
        lock.guard = Some(held.lock_owned().await);
        lock
    }

    /// A block's lock if it is free.
    pub(super) fn try_lock(&self, id: &BlockId) -> Option<Lock> {
        let guard = self.entry(id).try_lock_owned().ok()?;
        Some(Lock { locks: self.clone(), id: *id, guard: Some(guard) })
    }

    fn entry(&self, id: &BlockId) -> Held {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(*id).or_default().clone()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.guard = None;
        let mut locks = self.locks.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One count is the map's own: nobody else holds it or waits for it, and nobody can come while the map is locked.
        if locks.get(&self.id).is_some_and(|held| Arc::strong_count(held) == 1) {
            locks.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Locks;
    use std::time::Duration;
    use tandemfs::id::BlockId;

    #[tokio::test(start_paused = true)]
    async fn a_lock_excludes_and_leaves_nothing_behind() {
        let locks = Locks::default();
        let id = BlockId([7; 32]);
        let first = locks.lock(&id).await;
        assert!(locks.try_lock(&id).is_none());
        assert!(locks.try_lock(&BlockId([8; 32])).is_some());
        let waiting = locks.lock(&id);
        assert!(tokio::time::timeout(Duration::from_secs(1), waiting).await.is_err());
        drop(first);
        assert!(locks.try_lock(&id).is_some());
        assert!(locks.0.lock().unwrap().is_empty());
    }
}
