//! Objects in memory, for tests and simulation.

use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tandemfs::id::BlockId;
use tandemfs::{Error, Result, block};

use super::{BlockStore, Object, Room, cut};

/// Objects in a map. Clones share it: a "crashed" node finds in it what had been stored. A call that returned is done, one
/// that was dropped before is not.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    objects: Arc<Mutex<BTreeMap<BlockId, Bytes>>>,
    capacity: Option<u64>,
}

impl MemoryStore {
    /// An empty one without a limit.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty one that holds so many bytes.
    pub fn with_capacity(bytes: u64) -> Self {
        Self { capacity: Some(bytes), ..Self::default() }
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<BlockId, Bytes>> {
        // Nothing can panic between two changes of the map, so it is whole even then.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn used(objects: &BTreeMap<BlockId, Bytes>) -> u64 {
    objects.values().map(|object| object.len() as u64).sum()
}

#[async_trait]
impl BlockStore for MemoryStore {
    async fn put(&self, id: &BlockId, object: Bytes) -> Result<()> {
        if object.len() > block::OBJECT_MAX {
            return Err(Error::too_large(format!("an object of {} bytes", object.len())));
        }
        let mut objects = self.objects();
        if let Some(capacity) = self.capacity
            && used(&objects) + object.len() as u64 > capacity
        {
            return Err(Error::no_space("memory node"));
        }
        // A copy, as a disk makes one: it keeps no larger buffer alive.
        objects.insert(*id, Bytes::copy_from_slice(&object));
        Ok(())
    }

    async fn get(&self, id: &BlockId, range: Option<Range<u64>>) -> Result<Bytes> {
        let object =
            self.objects().get(id).cloned().ok_or_else(|| Error::not_found(format!("object {id}")))?;
        let (from, to) = cut(range, object.len() as u64);
        Ok(object.slice(from as usize..to as usize))
    }

    async fn head(&self, id: &BlockId) -> Result<Option<Object>> {
        Ok(self.objects().get(id).map(|object| Object { id: *id, size: object.len() as u64 }))
    }

    async fn list(&self, after: Option<&BlockId>, limit: usize) -> Result<Vec<Object>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let objects = self.objects();
        let found = objects.range::<BlockId, _>((from, Bound::Unbounded)).take(limit);
        Ok(found.map(|(id, object)| Object { id: *id, size: object.len() as u64 }).collect())
    }

    async fn delete(&self, id: &BlockId) -> Result<()> {
        self.objects().remove(id);
        Ok(())
    }

    async fn room(&self) -> Result<Option<Room>> {
        let used = used(&self.objects());
        Ok(self.capacity.map(|total| Room { total_bytes: total, free_bytes: total.saturating_sub(used) }))
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockStore, Bytes, MemoryStore};
    use crate::blocks::contract;
    use tandemfs::ErrorKind;

    #[tokio::test]
    async fn keeps_the_contract() {
        contract::all(&MemoryStore::new()).await;
    }

    #[tokio::test]
    async fn says_when_it_is_full() {
        let store = MemoryStore::with_capacity(1_500);
        store.put(&contract::id(1), Bytes::from(vec![1; 1_000])).await.unwrap();
        let error = store.put(&contract::id(2), Bytes::from(vec![2; 1_000])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(store.room().await.unwrap().unwrap().free_bytes, 500);
        store.delete(&contract::id(1)).await.unwrap();
        store.put(&contract::id(2), Bytes::from(vec![2; 1_000])).await.unwrap();
    }
}
