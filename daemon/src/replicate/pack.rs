//! Packs: small blocks leave the metadata together, as one large block. Each keeps its id and its record, which says where in the pack its
//! bytes lie. When less than half of a pack is in use any more, those that are left go into another one in the same way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tandemfs::block::Draft;
use tandemfs::id::{BlockId, VolumeId, VolumeKey};
use tandemfs::{Error, Result};

use super::table::{self, Row};
use super::{PAGE, Replicator, finished};
use crate::meta::record::{Block, Place};
use crate::meta::{self, Write, keys};

/// A small block that goes into a pack.
#[derive(Debug)]
pub(crate) struct Moving {
    pub(crate) id: BlockId,
    /// Where its bytes were found: in the metadata or in another pack.
    pub(crate) from: Place,
    pub(crate) data: Bytes,
}

/// What goes into one pack.
#[derive(Debug, Default)]
pub(crate) struct Load {
    blocks: Vec<Moving>,
    bytes: usize,
}

impl Load {
    /// Whether a block of so many bytes has room in it.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        table::fits(self.blocks.len() + 1, self.bytes + bytes)
    }

    /// Takes a block that has room.
    pub(crate) fn add(&mut self, block: Moving) {
        self.bytes += block.data.len();
        self.blocks.push(block);
    }
}

/// What came of packing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Blocks that were moved.
    pub blocks: u64,
    /// Bytes of the packs that were made.
    pub bytes: u64,
    /// Packs in which nothing lies any more.
    pub emptied: u64,
    /// Bytes of those.
    pub emptied_bytes: u64,
}

impl std::ops::AddAssign for Packed {
    fn add_assign(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.bytes += other.bytes;
        self.emptied += other.emptied;
        self.emptied_bytes += other.emptied_bytes;
    }
}

/// The bytes of a pack that nothing uses, where these are more than half of it.
pub(crate) fn waste(block: &Block) -> Option<u32> {
    // One without them was made before they were counted, and has no table.
    if block.deleting || block.member_bytes == 0 {
        return None;
    }
    let used = block.member_bytes.saturating_add(block.members.saturating_mul(table::ROW as u32));
    block.size.checked_sub(used).filter(|waste| *waste > block.size / 2)
}

impl Replicator {
    /// Moves blocks into a new pack, and says how many: those that somebody works on, or that do not lie where they were found any more, are
    /// left out, and one alone stays in the metadata. The pack is on the nodes before a record names it.
    ///
    /// # Errors
    /// As [`Replicator::put`]; nothing has changed then.
    pub(crate) async fn pack(
        self: &Arc<Self>,
        volume: VolumeId,
        key: VolumeKey,
        load: Load,
    ) -> Result<Packed> {
        let this = Arc::clone(self);
        finished(tokio::spawn(async move { this.pack_locked(volume, &key, load).await })).await
    }

    async fn pack_locked(self: &Arc<Self>, volume: VolumeId, key: &VolumeKey, load: Load) -> Result<Packed> {
        let mut data = Draft::default();
        let mut rows = Vec::new();
        let mut members = Vec::new();
        let mut held = Vec::new();
        for Moving { id, from, data: bytes } in load.blocks {
            let Some(lock) = self.locks.try_lock(&id) else { continue };
            let Some(old) = self.record(volume, &id).await? else { continue };
            if old.place == from && from != Place::Object && !old.deleting && old.size as usize == bytes.len()
            {
                rows.push(Row { id, offset: data.data().len() as u32, size: old.size });
                members.push(old);
                held.push(lock);
                data.push(&bytes)?;
            }
        }
        if members.is_empty() || (members.len() == 1 && members[0].place == Place::Inline) {
            return Ok(Packed::default());
        }
        data.push(&table::encode(&rows))?;
        let pack = BlockId::of(key, data.data());
        self.put(volume, pack, data).await?;
        let packs = members.iter().filter_map(|old| match old.place {
            Place::Pack { block, .. } => Some(block),
            _ => None,
        });
        let packs: BTreeSet<BlockId> = packs.chain([pack]).collect();
        // In the order of the ids, so that two never wait for each other.
        for id in &packs {
            held.push(self.locks.lock(id).await);
        }
        let mut before = BTreeMap::new();
        for id in packs {
            let record = self.record(volume, &id).await?;
            before
                .insert(id, record.ok_or_else(|| Error::corrupt(format!("there is no such pack as {id}")))?);
        }
        // It is as good as impossible that somebody has stored the same bytes as a small block before.
        let is_stored = |new: &Block| new.place == Place::Object && !new.deleting;
        let mut after = before.clone();
        let Some(new) = after.get_mut(&pack).filter(|new| is_stored(new)) else {
            return Ok(Packed::default());
        };
        let mut packed = Packed { bytes: u64::from(new.size), ..Packed::default() };
        for old in &members {
            new.members = new.members.saturating_add(1);
            new.member_bytes = new.member_bytes.saturating_add(old.size);
        }
        let mut changes = Vec::new();
        let mut writes = Vec::new();
        for (row, old) in rows.into_iter().zip(members) {
            match old.place {
                Place::Pack { block, .. } => {
                    if let Some(left) = after.get_mut(&block) {
                        writes.extend(self.leave(volume, &block, left, old.size)?);
                    }
                }
                _ => writes.push(meta::remove(keys::inline(volume, &row.id))),
            }
            let place = Place::Pack { block: pack, offset: row.offset };
            let new = Block { place, ..old.clone() };
            changes.push((row.id, Some(old), Some(new)));
            packed.blocks += 1;
        }
        for ((id, old), new) in before.into_iter().zip(after.into_values()) {
            if new.members == 0 {
                packed.emptied += 1;
                packed.emptied_bytes += u64::from(new.size);
            }
            changes.push((id, Some(old), Some(new)));
        }
        self.change_all(volume, &changes, writes).await?;
        drop(held);
        Ok(packed)
    }

    /// Removes the record of a block that was marked and whose objects are gone, the garbage row of its last store, and what its place needs:
    /// its bytes in the metadata, or its part in a pack. The caller holds the block's lock and cannot be cancelled.
    pub(super) async fn bury(
        &self,
        volume: VolumeId,
        id: BlockId,
        block: Block,
        also: Vec<Write>,
    ) -> Result<()> {
        let mut writes = also;
        writes.push(meta::remove(keys::garbage(block.stored_ms, volume, &id)));
        let mut changes = Vec::new();
        let mut lock = None;
        match block.place {
            Place::Object => {}
            Place::Inline => writes.push(meta::remove(keys::inline(volume, &id))),
            Place::Pack { block: pack, .. } => {
                lock = Some(self.locks.lock(&pack).await);
                if let Some(old) = self.record(volume, &pack).await? {
                    let mut new = old.clone();
                    writes.extend(self.leave(volume, &pack, &mut new, block.size)?);
                    changes.push((pack, Some(old), Some(new)));
                }
            }
        }
        changes.push((id, Some(block), None));
        self.change_all(volume, &changes, writes).await?;
        drop(lock);
        Ok(())
    }

    /// A block of so many bytes lies in a pack no more. With the last one the pack becomes garbage, and its grace period begins: whoever
    /// has found the block there may still read it. The caller holds the pack's lock.
    ///
    /// # Errors
    /// `Corrupt` for a pack in which nothing lies.
    fn leave(&self, volume: VolumeId, id: &BlockId, pack: &mut Block, size: u32) -> Result<Option<Write>> {
        let members = pack.members.checked_sub(1);
        pack.members = members.ok_or_else(|| Error::corrupt(format!("pack {id} has no members")))?;
        pack.member_bytes = pack.member_bytes.saturating_sub(size);
        if pack.members > 0 {
            return Ok(None);
        }
        pack.stored_ms = self.now_ms().max(pack.stored_ms);
        Ok(Some(meta::put(keys::garbage(pack.stored_ms, volume, id), &())?))
    }

    /// The blocks that lie in a pack, with their bytes. What does not fit to its id is left out.
    ///
    /// # Errors
    /// As [`Replicator::get`]; `Corrupt` when the pack has no table.
    pub(crate) async fn unpack(
        self: &Arc<Self>,
        volume: VolumeId,
        key: &VolumeKey,
        pack: BlockId,
        size: u32,
    ) -> Result<Vec<Moving>> {
        let beyond = || Error::corrupt(format!("pack {pack}: its table is longer than itself"));
        let at = size.checked_sub(table::END as u32).ok_or_else(beyond)?;
        let length = table::rows_length(&self.get(volume, pack, at..size).await?)?;
        let start = at.checked_sub(length).ok_or_else(beyond)?;
        let rows = table::decode(&self.get(volume, pack, start..at).await?, start)?;
        let mut there: Vec<Row> = Vec::new();
        for some in rows.chunks(PAGE) {
            let keys: Vec<_> = some.iter().map(|row| keys::block(volume, &row.id)).collect();
            let records = self.meta.get_many::<Block>(&keys).await?;
            let lies_there = |row: &Row, block: &Block| {
                block.place == Place::Pack { block: pack, offset: row.offset }
                    && block.size == row.size
                    && !block.deleting
            };
            let found = some.iter().zip(records);
            there.extend(found.filter_map(|(row, block)| {
                block.is_some_and(|block| lies_there(row, &block)).then_some(row)
            }));
        }
        let from = there.iter().map(|row| row.offset).min().unwrap_or(0);
        let to = there.iter().map(|row| row.offset + row.size).max().unwrap_or(0);
        if from == to {
            return Ok(Vec::new());
        }
        let bytes = self.get(volume, pack, from..to).await?;
        let mut found = Vec::with_capacity(there.len());
        for Row { id, offset, size } in there {
            let within = (offset - from) as usize..(offset - from + size) as usize;
            // A copy, which does not keep the whole pack in memory.
            let data = Bytes::copy_from_slice(&bytes[within]);
            if BlockId::of(key, &data) == id {
                found.push(Moving { id, from: Place::Pack { block: pack, offset }, data });
            } else {
                log::warn!("block {id} has other bytes in pack {pack}");
            }
        }
        Ok(found)
    }
}
