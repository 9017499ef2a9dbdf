//! Reference counts: what a batch names must be there, and what nothing names any more may be garbage.

use std::collections::BTreeMap;

use bytes::Bytes;
use tandemfs::id::BlockId;
use tandemfs::tree::{Mutation, is_piece};
use tandemfs::{Error, Result};

use super::volume::{State, Volume};
use crate::meta::record::References;
use crate::meta::{self, Write, keys};

impl Volume {
    /// Checks that the volume has every block that mutations name, or that it comes with them, and that the named bytes lie in it.
    ///
    /// # Errors
    /// `NotFound` about `block`, also for one that is being deleted: store it again. `Invalid` for bytes outside of it.
    pub(super) async fn check_blocks(
        &self,
        mutations: &[Mutation],
        coming: &BTreeMap<BlockId, Bytes>,
    ) -> Result<()> {
        let mut ends: BTreeMap<BlockId, u64> = BTreeMap::new();
        for mutation in mutations {
            let extents = match mutation {
                Mutation::Write { extents, .. } => extents,
                Mutation::Join { extents, block, .. } => {
                    let pieces = extents.iter().filter(|extent| is_piece(extent));
                    let end: u64 = pieces.map(|piece| u64::from(piece.length)).sum();
                    let last = ends.entry(*block).or_default();
                    *last = end.max(*last);
                    continue;
                }
                _ => continue,
            };
            for extent in extents {
                let end = u64::from(extent.block_offset)
                    .checked_add(extent.length)
                    .ok_or_else(|| Error::invalid("an extent is too long"))?;
                let last = ends.entry(extent.block).or_default();
                *last = end.max(*last);
            }
        }
        let beyond = || Error::invalid("an extent reaches beyond the end of its block");
        for (id, data) in coming {
            if ends.remove(id).is_some_and(|end| end > data.len() as u64) {
                return Err(beyond());
            }
        }
        if ends.is_empty() {
            return Ok(());
        }
        let ids: Vec<BlockId> = ends.keys().copied().collect();
        let blocks = self.shared.replicator.blocks(self.id, &ids).await?;
        for (block, end) in blocks.into_iter().zip(ends.values()) {
            match block {
                None => return Err(Error::not_found("block")),
                Some(block) if u64::from(block.size) < *end => {
                    return Err(beyond());
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// The new reference counts, and the garbage rows of the blocks whose count falls to nothing.
    pub(super) async fn count_references(
        &self,
        state: &State,
        changes: &BTreeMap<BlockId, i64>,
    ) -> Result<(BTreeMap<BlockId, Option<References>>, Vec<Write>)> {
        let now_ms = self.shared.now_ms();
        let blocks: Vec<BlockId> = changes.keys().copied().collect();
        let before = self.references(state, &blocks).await?;
        let mut counts = BTreeMap::new();
        let mut writes = Vec::new();
        for ((block, by), before) in changes.iter().zip(before) {
            let count = before.unwrap_or_default().count.checked_add_signed(*by).ok_or_else(|| {
                Error::corrupt(format!("block {block} of volume {} is referred to less than never", self.id))
            })?;
            let unused_since_ms = if count == 0 { now_ms } else { 0 };
            let after = References { count, unused_since_ms };
            let key = keys::references(self.id, block);
            writes.push(meta::put(key, &after)?);
            if count == 0 {
                writes.push(meta::put(keys::garbage(now_ms, self.id, block), &())?);
            }
            counts.insert(*block, Some(after));
        }
        Ok((counts, writes))
    }

    /// Reference counts as they stand.
    pub(super) async fn references(
        &self,
        state: &State,
        blocks: &[BlockId],
    ) -> Result<Vec<Option<References>>> {
        let mut counts: Vec<Option<References>> = vec![None; blocks.len()];
        let mut missing = Vec::new();
        for (place, block) in blocks.iter().enumerate() {
            match state.references(block) {
                Some(count) => counts[place] = count,
                None => missing.push(place),
            }
        }
        if missing.is_empty() {
            return Ok(counts);
        }
        let stored: Vec<_> = missing.iter().map(|place| keys::references(self.id, &blocks[*place])).collect();
        let loaded = self.shared.meta.get_many::<References>(&stored).await?;
        for (place, count) in missing.into_iter().zip(loaded) {
            counts[place] = count;
        }
        Ok(counts)
    }
}
