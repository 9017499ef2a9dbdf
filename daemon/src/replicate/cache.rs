//! A small cache of `Block` records.
//!
//! Two generations: what is used moves to the young one, and when that is full the old one is dropped. It needs no clock and no
//! randomness, so a simulation sees the same hits each time.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tandemfs::id::{BlockId, VolumeId};

use crate::meta::record::Block;

/// Records in one generation.
const GENERATION: usize = 32 << 10;
/// Counters of changes; a block's is chosen by its id.
const COUNTERS: usize = 256;

type Name = (VolumeId, BlockId);

#[derive(Debug)]
struct Inner {
    young: BTreeMap<Name, Block>,
    old: BTreeMap<Name, Block>,
    changes: [u64; COUNTERS],
}

/// The cache.
#[derive(Debug)]
pub(super) struct Cache(Mutex<Inner>);

/// When a reader began: what it read is not kept if the block may have changed since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Began(u64);

impl Cache {
    /// An empty cache.
    pub(super) fn new() -> Self {
        Self(Mutex::new(Inner { young: BTreeMap::new(), old: BTreeMap::new(), changes: [0; COUNTERS] }))
    }

    /// The record, or from when on a record that is read now may be kept.
    pub(super) fn get(&self, volume: VolumeId, id: &BlockId) -> Result<Block, Began> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = inner.young.get(&(volume, *id)) {
            return Ok(block.clone());
        }
        match inner.old.remove(&(volume, *id)) {
            Some(block) => {
                inner.insert((volume, *id), block.clone());
                Ok(block)
            }
            None => Err(Began(inner.changes[usize::from(id.0[0])])),
        }
    }

    /// Keeps a record that was read after `began`.
    pub(super) fn fill(&self, began: Began, volume: VolumeId, id: &BlockId, block: &Block) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.changes[usize::from(id.0[0])] == began.0 {
            inner.insert((volume, *id), block.clone());
        }
    }

    /// A record has changed.
    pub(super) fn change(&self, volume: VolumeId, id: &BlockId, block: Option<&Block>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.changes[usize::from(id.0[0])] += 1;
        inner.old.remove(&(volume, *id));
        match block {
            Some(block) => inner.insert((volume, *id), block.clone()),
            None => {
                inner.young.remove(&(volume, *id));
            }
        }
    }
}

impl Inner {
    fn insert(&mut self, name: Name, block: Block) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name, block);
    }
}

#[cfg(test)]
mod tests {
    use super::{Cache, GENERATION};
    use crate::meta::record::Block;
    use tandemfs::id::{BlockId, VolumeId};

    fn block(size: u32) -> Block {
        Block { size, ..Block::default() }
    }

    #[test]
    fn what_was_read_before_a_change_is_not_kept() {
        let (cache, volume, id) = (Cache::new(), VolumeId(1), BlockId([1; 32]));
        let began = cache.get(volume, &id).unwrap_err();
        cache.change(volume, &id, Some(&block(2)));
        cache.change(volume, &id, None);
        cache.fill(began, volume, &id, &block(1));
        let began = cache.get(volume, &id).unwrap_err();
        cache.fill(began, volume, &id, &block(3));
        assert_eq!(cache.get(volume, &id).unwrap(), block(3));
    }

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let cache = Cache::new();
        let name = |number: u32| BlockId(*blake3::hash(&number.to_be_bytes()).as_bytes());
        for number in 0..(3 * GENERATION as u32) {
            cache.change(VolumeId(1), &name(number), Some(&block(number)));
            assert_eq!(cache.get(VolumeId(1), &name(0)).unwrap(), block(0));
        }
        let inner = cache.0.lock().unwrap();
        assert!(inner.young.len() + inner.old.len() <= 2 * GENERATION);
    }
}
