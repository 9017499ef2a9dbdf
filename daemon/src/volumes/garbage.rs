//! Which blocks are garbage: those that nothing refers to, and that were neither stored nor used for a grace period.
//!
//! Each store of a block and each fall of its count to nothing leave a row with that time in the index of garbage. A row is looked
//! at when it is old enough. Then either the block is garbage, or something younger has happened to it, which has left a row
//! of its own, so this one can go.

use tandemfs::id::{BlockId, VolumeId};
use tandemfs::{Error, ErrorKind, Result};

use super::Volumes;
use crate::meta::record::{Block, References};
use crate::meta::{self, Key, keys};

/// What one step of the collector did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Rows that were looked at.
    pub looked_at: u64,
    /// Blocks that were deleted.
    pub blocks: u64,
    /// Bytes of data in them.
    pub bytes: u64,
    /// Where to go on; `None` at the end of the index.
    pub next: Option<Key>,
}

/// A row of the index of garbage.
struct Row {
    key: Key,
    since_ms: u64,
    volume: VolumeId,
    block: BlockId,
}

impl Row {
    fn parse(key: Key) -> Result<Self> {
        let corrupt = || Error::corrupt(format!("garbage row {}", hex::encode(&key)));
        let (since_ms, rest) = key.get(1..).and_then(<[u8]>::split_first_chunk::<8>).ok_or_else(corrupt)?;
        let (volume, block) = rest.split_first_chunk::<8>().ok_or_else(corrupt)?;
        let block = BlockId(block.try_into().map_err(|_| corrupt())?);
        let since_ms = u64::from_be_bytes(*since_ms);
        Ok(Self { since_ms, volume: VolumeId(u64::from_be_bytes(*volume)), block, key })
    }
}

impl Volumes {
    /// Looks at `limit` rows of the index, from `from` on, that are not younger than `older_than_ms`, and deletes what is
    /// garbage. What cannot be deleted now is left for later.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn collect(&self, from: Option<Key>, older_than_ms: u64, limit: usize) -> Result<Collected> {
        self.walk(from, older_than_ms, limit, false).await
    }

    /// The same, but nothing is changed: it says what would be deleted.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn preview(&self, from: Option<Key>, older_than_ms: u64, limit: usize) -> Result<Collected> {
        self.walk(from, older_than_ms, limit, true).await
    }

    async fn walk(
        &self,
        from: Option<Key>,
        older_than_ms: u64,
        limit: usize,
        dry_run: bool,
    ) -> Result<Collected> {
        let first = from.unwrap_or_else(|| b"g".to_vec());
        let end = keys::garbage(older_than_ms.saturating_add(1), VolumeId(0), &BlockId([0; 32]));
        if first >= end {
            return Ok(Collected::default());
        }
        let rows: Vec<(Key, ())> = self.shared.meta.scan(&first, &end, limit).await?;
        let mut collected = Collected::default();
        if rows.len() == limit {
            collected.next = rows.last().map(|(key, ())| super::key_after(key));
        }
        for (key, ()) in rows {
            collected.looked_at += 1;
            let row = Row::parse(key)?;
            let found = if dry_run {
                self.would_delete(&row, older_than_ms).await
            } else {
                self.look_at(&row, older_than_ms).await
            };
            match found {
                Ok(Some(bytes)) => {
                    collected.blocks += 1;
                    collected.bytes += u64::from(bytes);
                }
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    log::debug!("block {} of volume {} stays for now: {error}", row.block, row.volume);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(collected)
    }

    /// The bytes of a block that is garbage, without a lock: what is decided is decided by [`Volumes::look_at`].
    async fn would_delete(&self, row: &Row, older_than_ms: u64) -> Result<Option<u32>> {
        let meta = &self.shared.meta;
        let block: Option<Block> = meta.get(&keys::block(row.volume, &row.block)).await?;
        let Some(block) = block else { return Ok(None) };
        let references: Option<References> = meta.get(&keys::references(row.volume, &row.block)).await?;
        let is_removed = self.is_gone(row.volume).await?;
        let references = references.filter(|_| !is_removed).unwrap_or_default();
        let youngest_ms = references.unused_since_ms.max(block.stored_ms);
        let is_garbage =
            block.deleting || (references.count == 0 && block.members == 0 && youngest_ms <= older_than_ms);
        // A block may have several rows and counts once, with its youngest.
        Ok((is_garbage && row.since_ms == youngest_ms).then_some(block.size))
    }

    /// Whether a volume has been taken away, and with it every reference.
    async fn is_gone(&self, volume: VolumeId) -> Result<bool> {
        match self.even_removed(volume).await {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Deletes a block if it is garbage; its bytes.
    async fn look_at(&self, row: &Row, older_than_ms: u64) -> Result<Option<u32>> {
        let meta = &self.shared.meta;
        let forget = async || meta.commit(Vec::new(), vec![meta::remove(row.key.clone())]).await;
        // The order of locks is always this: the volume's, then the block's.
        let volume = match self.even_removed(row.volume).await {
            Ok(volume) => Some(volume),
            // The volume has been taken away, and with it every reference.
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let state = match &volume {
            Some(volume) => Some(volume.lock().await),
            None => None,
        };
        let Some(guard) = self.shared.replicator.try_lock_block(row.volume, row.block) else {
            return Ok(None);
        };
        let references = match (&volume, &state) {
            (Some(volume), Some(state)) => volume.references(state, &[row.block]).await?.pop().flatten(),
            _ => None,
        };
        let references = references.unwrap_or_default();
        let Some(block) = guard.record().await? else {
            forget().await?;
            return Ok(None);
        };
        let youngest_ms = references.unused_since_ms.max(block.stored_ms);
        if !block.deleting && (references.count > 0 || block.members > 0) {
            forget().await?;
            return Ok(None);
        }
        if !block.deleting && youngest_ms > older_than_ms {
            // The younger row may be gone already: it is looked at before this one's time where the clock was set back.
            let younger = meta::put(keys::garbage(youngest_ms, row.volume, &row.block), &())?;
            meta.commit(Vec::new(), vec![meta::remove(row.key.clone()), younger]).await?;
            return Ok(None);
        }
        let guard = guard.mark_deleting().await?;
        drop(state);
        let also =
            vec![meta::remove(row.key.clone()), meta::remove(keys::references(row.volume, &row.block))];
        guard.delete_objects(also).await?;
        Ok(Some(block.size))
    }
}
