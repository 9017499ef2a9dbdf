//! Blocks of a volume: stored under the id that their bytes have, read by those who have the volume.

use bytes::Bytes;
use std::ops::Range;
use tandemfs::api::fs::BLOCK_SIZE_MAX;
use tandemfs::id::{BlockId, VolumeKey};
use tandemfs::{Error, Result};

use super::orphans::Orphans;
use super::volume::Volume;

impl Volume {
    /// The key of its block ids.
    pub(crate) fn key(&self) -> &VolumeKey {
        &self.key
    }

    /// Its orphans.
    pub(crate) fn orphans(&self) -> &Orphans {
        &self.orphans
    }

    /// Whether it is being removed.
    pub(super) async fn is_removed(&self) -> bool {
        self.lock().await.removed
    }

    /// Stores a block.
    ///
    /// # Errors
    /// `Invalid` when it is empty, too large, or not what its id says; `NoSpace`; `Unavailable`.
    pub(crate) async fn put_block(&self, id: BlockId, data: Bytes) -> Result<()> {
        if data.is_empty() || data.len() > BLOCK_SIZE_MAX {
            return Err(Error::invalid(format!("a block has 1 to {BLOCK_SIZE_MAX} bytes")));
        }
        if BlockId::of(&self.key, &data) != id {
            return Err(Error::invalid("the block's id is not that of its bytes"));
        }
        self.shared.replicator.put(self.id, id, data).await
    }

    /// Bytes of a block, which of its bytes they are, and how many it has.
    ///
    /// # Errors
    /// `NotFound` when the volume has no such block, whoever else may have it; `OutOfRange`; `Unavailable`.
    pub(crate) async fn get_block(
        &self,
        id: BlockId,
        range: Option<Range<u32>>,
    ) -> Result<(Bytes, Range<u32>, u32)> {
        let record = self.shared.replicator.blocks(self.id, &[id]).await?.pop().flatten();
        let size = record.ok_or_else(|| Error::not_found("block"))?.size;
        let range = range.unwrap_or(0..size);
        if range.is_empty() || range.start >= size {
            return Err(Error::out_of_range(format!("the block has {size} bytes")));
        }
        let range = range.start..range.end.min(size);
        let data = self.shared.replicator.get(self.id, id, range.clone()).await?;
        Ok((data, range, size))
    }
}
