//! Packs: small blocks leave the metadata together, as one large block. Each keeps its id and its record, which says where in the pack its
//! bytes lie.

use std::sync::Arc;

use bytes::Bytes;
use tandemfs::block::Draft;
use tandemfs::id::{BlockId, VolumeId, VolumeKey};
use tandemfs::{Error, Result};

use super::{Replicator, finished};
use crate::meta::record::{Block, Place};
use crate::meta::{self, keys};

impl Replicator {
    /// Moves blocks with these bytes from the metadata into a pack, and says how many: those that somebody works on, or that are not in
    /// the metadata any more, are left out, and one alone stays where it is. The pack is on the nodes before a record names it.
    ///
    /// # Errors
    /// As [`Replicator::put`]; nothing has changed then.
    pub(crate) async fn pack(
        self: &Arc<Self>,
        volume: VolumeId,
        key: VolumeKey,
        blocks: Vec<(BlockId, Bytes)>,
    ) -> Result<usize> {
        let this = Arc::clone(self);
        finished(tokio::spawn(async move { this.pack_locked(volume, &key, blocks).await })).await
    }

    async fn pack_locked(
        self: &Arc<Self>,
        volume: VolumeId,
        key: &VolumeKey,
        blocks: Vec<(BlockId, Bytes)>,
    ) -> Result<usize> {
        let mut data = Draft::default();
        let mut members = Vec::new();
        let mut held = Vec::new();
        for (id, bytes) in blocks {
            let Some(lock) = self.locks.try_lock(&id) else { continue };
            let Some(old) = self.record(volume, &id).await? else { continue };
            if old.place == Place::Inline && !old.deleting && old.size as usize == bytes.len() {
                members.push((id, old, data.data().len() as u32));
                held.push(lock);
                data.push(&bytes)?;
            }
        }
        if members.len() < 2 {
            return Ok(0);
        }
        let pack = BlockId::of(key, data.data());
        self.put(volume, pack, data).await?;
        let _lock = self.locks.lock(&pack).await;
        let old = self.record(volume, &pack).await?.filter(|block| !block.deleting);
        // Somebody may have stored the same bytes as a small block before.
        let Some(old) = old.filter(|block| block.place == Place::Object) else { return Ok(0) };
        let count = members.len();
        let new = Block { members: old.members.saturating_add(count as u32), ..old.clone() };
        let mut changes = vec![(pack, Some(old), Some(new))];
        let mut removals = Vec::new();
        for (id, old, offset) in members {
            let place = Place::Pack { block: pack, offset };
            let new = Block { place, ..old.clone() };
            removals.push(meta::remove(keys::inline(volume, &id)));
            changes.push((id, Some(old), Some(new)));
        }
        self.change_all(volume, &changes, removals).await?;
        drop(held);
        Ok(count)
    }

    /// What has to change so that a block that is removed lies in its pack no more: the pack's record, and a row in the index of garbage for
    /// one that is empty. The caller holds the pack's lock.
    pub(super) async fn leave(&self, volume: VolumeId, pack: &BlockId) -> Result<Option<(Block, Block)>> {
        let Some(old) = self.record(volume, pack).await? else { return Ok(None) };
        let members = old.members.checked_sub(1);
        let members = members.ok_or_else(|| Error::corrupt(format!("pack {pack} has no members")))?;
        let new = Block { members, ..old.clone() };
        Ok(Some((old, new)))
    }
}
