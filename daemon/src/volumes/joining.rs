//! Files that lie in very many pieces, since they were written in small steps: their parts become one block each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use tandemfs::id::{BlockId, Ino};
use tandemfs::tree::{Key, Mutation, Record, is_piece, seams};
use tandemfs::{Error, Result};

use super::commit::Change;
use super::compaction::is_about_one;
use super::orphans::locked;
use super::volume::Volume;
use super::{Volumes, key_after, records};
use crate::meta::keys;

/// So many pieces of a part that begin where another ends are very many. An overwrite makes two of them, so a part of 4 MiB that is written in
/// steps of 4 KiB is rewritten after every quarter of a MiB at most: sixteen times as much as was written.
pub(super) const SEAMS_MANY: usize = 128;
/// So many parts are remembered as being scattered; more are found by their next change.
const NOTED_MAX: usize = 1024;
/// Parts that are looked at together.
const PAGE: usize = 64;

/// Parts of files that have come to lie in very many pieces.
#[derive(Debug, Default)]
pub(super) struct Scattered(Mutex<BTreeSet<(Ino, u64)>>);

impl Scattered {
    /// Looks at records that have changed.
    pub(super) fn note(&self, records: &BTreeMap<Key, Option<Record>>) {
        for (key, record) in records {
            if let (Key::Chunk(ino, number), Some(Record::Chunk(chunk))) = (key, record)
                && seams(chunk) >= SEAMS_MANY
            {
                let mut noted = locked(&self.0);
                if noted.len() < NOTED_MAX {
                    noted.insert((*ino, *number));
                }
            }
        }
    }

    fn take(&self) -> BTreeSet<(Ino, u64)> {
        std::mem::take(&mut *locked(&self.0))
    }
}

impl Volumes {
    /// Joins what has come to lie in very many pieces since the last time, and says how many parts of files that were.
    ///
    /// # Errors
    /// Those of the engine; `NoSpace`.
    pub async fn join_noted(&self) -> Result<u64> {
        let volumes: Vec<Arc<Volume>> = locked(&self.open).values().cloned().collect();
        let mut joined = 0;
        for volume in volumes.into_iter().filter(|volume| !volume.is_kept()) {
            for (ino, number) in volume.scattered.take() {
                joined += u64::from(volume.try_join(ino, number, SEAMS_MANY).await?);
            }
        }
        Ok(joined)
    }

    /// Joins all parts of files in which at least so many pieces begin where another ends, and tells every now and then how many parts it
    /// were.
    ///
    /// # Errors
    /// As [`Volumes::join_noted`].
    pub async fn join(&self, many: usize, tell: &(dyn Fn(u64) + Send + Sync)) -> Result<u64> {
        let mut joined = 0;
        for record in records(&self.shared.meta).await? {
            let Some(volume) = self.compactable(record.id).await?.filter(|volume| !volume.is_kept()) else {
                continue;
            };
            let (mut from, end) = keys::all_chunks(record.id);
            loop {
                let page: Vec<(Vec<u8>, Record)> = self.shared.meta.scan(&from, &end, PAGE).await?;
                for (key, record) in &page {
                    let place = keys::chunk_of(key);
                    let (ino, number) =
                        place.ok_or_else(|| Error::corrupt(format!("metadata key {}", hex::encode(key))))?;
                    if matches!(record, Record::Chunk(chunk) if seams(chunk) >= many) {
                        joined += u64::from(volume.try_join(ino, number, many).await?);
                    }
                }
                tell(joined);
                match page.last() {
                    Some((last, _)) if page.len() == PAGE => from = key_after(last),
                    _ => break,
                }
            }
        }
        Ok(joined)
    }
}

impl Volume {
    /// Whether it is kept as it is for a session that is silent and may come back, which a change would end.
    fn is_kept(&self) -> bool {
        self.shared.audience.is_kept(self.id)
    }

    /// Joins a part of a file, unless it cannot be read or nothing of it is left meanwhile.
    async fn try_join(self: &Arc<Self>, ino: Ino, number: u64, many: usize) -> Result<bool> {
        match self.join(ino, number, many).await {
            Err(error) if is_about_one(error.kind()) => {
                log::debug!("part {number} of inode {ino} of volume {} is not joined: {error}", self.id);
                Ok(false)
            }
            result => result,
        }
    }

    /// Puts the pieces of a part of a file into one block, and names that instead of the many, where they are still as they were then.
    async fn join(self: &Arc<Self>, ino: Ino, number: u64, many: usize) -> Result<bool> {
        let record = {
            let state = self.lock_live().await?;
            self.record(&state, &Key::Chunk(ino, number)).await?
        };
        let Some(Record::Chunk(chunk)) =
            record.filter(|record| matches!(record, Record::Chunk(chunk) if seams(chunk) >= many))
        else {
            return Ok(false);
        };
        let mut data = Vec::new();
        for extent in chunk.0.iter().filter(|extent| is_piece(extent)) {
            let range = extent.offset..extent.offset.saturating_add(extent.length);
            data.extend_from_slice(&self.get_block(extent.block, range).await?);
        }
        let block = BlockId::of(&self.key, &data);
        let join = Mutation::Join { ino, number, extents: chunk.0, block };
        let blocks = BTreeMap::from([(block, data.into())]);
        // Nobody sees a difference, and what is cached of the many blocks is right until the end of their grace period.
        self.commit(Change { quiet: true, blocks, ..Change::own(vec![join]) }).await?;
        Ok(true)
    }
}
