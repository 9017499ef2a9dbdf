//! An engine in memory, for tests and simulation.

use async_trait::async_trait;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tandemfs::{Error, Result};

use super::{Guard, Key, MetaStore, Value, Write};

/// Pairs in a map. Clones share it, so what one "daemon" left is there for the next.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<Mutex<BTreeMap<Key, Value>>>);

impl MemoryStore {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn pairs(&self) -> MutexGuard<'_, BTreeMap<Key, Value>> {
        // Nothing can panic between two changes of the map, so it is whole even then.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl MetaStore for MemoryStore {
    async fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Value>>> {
        let pairs = self.pairs();
        Ok(keys.iter().map(|key| pairs.get(key).cloned()).collect())
    }

    async fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        if from >= to {
            return Ok(Vec::new());
        }
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let pairs = self.pairs();
        let found = pairs.range::<[u8], _>(bounds).take(limit);
        Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    async fn commit(&self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<()> {
        let mut pairs = self.pairs();
        if let Some(guard) = guards.iter().find(|guard| pairs.get(&guard.key) != guard.value.as_ref()) {
            return Err(Error::stale(format!("metadata record {}", hex::encode(&guard.key))));
        }
        for Write { key, value } in writes {
            match value {
                Some(value) => drop(pairs.insert(key, value)),
                None => drop(pairs.remove(&key)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryStore;
    use crate::meta::contract;

    #[tokio::test]
    async fn keeps_the_contract() {
        contract::all(&MemoryStore::new()).await;
    }

    #[tokio::test]
    async fn commits_are_serializable() {
        contract::counts_concurrently(std::sync::Arc::new(MemoryStore::new())).await;
    }
}
