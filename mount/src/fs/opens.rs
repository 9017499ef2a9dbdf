//! Which inodes are open on this mount, and which of them have no links any more.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tandemfs::id::Ino;
use tokio::sync::Notify;

/// So many open inodes are named with a batch that may take links away, beside the one that it is about.
const HELD_MAX: usize = 64;

/// Counts of open handles by inode.
#[derive(Debug, Default)]
pub struct Opens {
    inodes: Mutex<HashMap<Ino, Open>>,
    /// How many batches under way may take the last link of an inode away.
    removals: Mutex<HashMap<Ino, usize>>,
    removed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    handles: usize,
    orphan: bool,
}

/// A batch under way that may take the last link of an inode away; see [`Opens::removing`].
#[derive(Debug)]
pub struct Removal<'a> {
    opens: &'a Opens,
    ino: Ino,
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        let mut removals = self.opens.removals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = removals.get_mut(&self.ino) {
            *count -= 1;
            if *count == 0 {
                removals.remove(&self.ino);
            }
        }
        drop(removals);
        self.opens.removed.notify_waiters();
    }
}

impl Opens {
    fn lock(&self) -> MutexGuard<'_, HashMap<Ino, Open>> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch that may take the last link of `ino` away is going to be sent. To be called before [`Opens::held`].
    pub fn removing(&self, ino: Ino) -> Removal<'_> {
        *self.removals.lock().unwrap_or_else(PoisonError::into_inner).entry(ino).or_default() += 1;
        Removal { opens: self, ino }
    }

    /// Waits until no batch is under way that may take the last link of `ino` away. Who adds a handle and waits for this
    /// knows: such a batch has named the inode as held, or its outcome can be seen.
    pub async fn settled(&self, ino: Ino) {
        loop {
            let mut removed = std::pin::pin!(self.removed.notified());
            removed.as_mut().enable();
            if !self.removals.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&ino) {
                return;
            }
            removed.await;
        }
    }

    /// One more handle.
    pub fn add(&self, ino: Ino) {
        self.lock().entry(ino).or_default().handles += 1;
    }

    /// One handle less. `Some` says that it was the last one, and whether the inode is an orphan.
    pub fn remove(&self, ino: Ino) -> Option<bool> {
        let mut opens = self.lock();
        let open = opens.get_mut(&ino)?;
        open.handles -= 1;
        if open.handles > 0 {
            return None;
        }
        opens.remove(&ino).map(|open| open.orphan)
    }

    /// Whether it is open and has no links.
    pub fn is_orphan(&self, ino: Ino) -> bool {
        self.lock().get(&ino).is_some_and(|open| open.orphan)
    }

    /// It has lost its last link. Answers whether it is open.
    pub fn orphaned(&self, ino: Ino) -> bool {
        match self.lock().get_mut(&ino) {
            Some(open) => {
                open.orphan = true;
                true
            }
            None => false,
        }
    }

    /// All orphans that are open.
    pub fn orphans(&self) -> Vec<Ino> {
        self.lock().iter().filter(|(_, open)| open.orphan).map(|(ino, _)| *ino).collect()
    }

    /// What a batch should name as held when it may take the last link of `victim` away. Others are named as well
    /// while they are few, because another mount may have put one of them in the victim's place.
    pub fn held(&self, victim: Option<Ino>) -> Vec<Ino> {
        let opens = self.lock();
        if opens.len() <= HELD_MAX {
            return opens.keys().copied().collect();
        }
        victim.into_iter().filter(|ino| opens.contains_key(ino)).collect()
    }
}
