//! Blocks of a volume: stored under the id that their bytes have, read by those who have the volume.

use bytes::Bytes;
use std::fs::File;
use std::ops::Range;
use tandemfs::api::fs::{BLOCK_SIZE_MAX, BLOCKS_BYTES_MAX, BLOCKS_MAX};
use tandemfs::block::Draft;
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
    pub(crate) async fn put_block(&self, id: BlockId, data: Draft) -> Result<()> {
        self.check_data(&id, data.data())?;
        self.shared.replicator.put(self.id, id, data).await
    }

    /// Checks that bytes are the block of an id.
    ///
    /// # Errors
    /// `Invalid`.
    pub(super) fn check_data(&self, id: &BlockId, data: &[u8]) -> Result<()> {
        if data.is_empty() || data.len() > BLOCK_SIZE_MAX {
            return Err(Error::invalid(format!("a block has 1 to {BLOCK_SIZE_MAX} bytes")));
        }
        if BlockId::of(&self.key, data) != *id {
            return Err(Error::invalid("the block's id is not that of its bytes"));
        }
        Ok(())
    }

    /// How many bytes a block has.
    ///
    /// # Errors
    /// `NotFound` when the volume has no such block, whoever else may have it; `Unavailable`.
    pub(crate) async fn block_size(&self, id: BlockId) -> Result<u32> {
        let record = self.shared.replicator.blocks(self.id, &[id]).await?.pop().flatten();
        record.map(|block| block.size).ok_or_else(|| Error::not_found("block"))
    }

    /// The object of a block as an open file, unchecked, where that can be had.
    ///
    /// # Errors
    /// As [`Volume::block_size`].
    pub(crate) async fn block_file(&self, id: BlockId) -> Result<Option<File>> {
        self.shared.replicator.file(self.id, id).await
    }

    /// Bytes of a block.
    ///
    /// # Errors
    /// As [`Volume::block_size`]; `OutOfRange`; `Corrupt` when no copy is good.
    pub(crate) async fn get_block(&self, id: BlockId, range: Range<u32>) -> Result<Bytes> {
        let size = self.block_size(id).await?;
        if range.is_empty() || range.end > size {
            return Err(Error::out_of_range(format!("the block has {size} bytes")));
        }
        self.shared.replicator.get(self.id, id, range).await
    }

    /// Small blocks: those of them that can be had, the first ones up to [`BLOCKS_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// `Invalid` for more than [`BLOCKS_MAX`]; `Unavailable`.
    pub(crate) async fn get_blocks(&self, ids: &[BlockId]) -> Result<Vec<(BlockId, Bytes)>> {
        if ids.len() > BLOCKS_MAX {
            return Err(Error::invalid(format!("more than {BLOCKS_MAX} blocks")));
        }
        self.shared.replicator.get_many(self.id, ids, BLOCKS_BYTES_MAX).await
    }
}
