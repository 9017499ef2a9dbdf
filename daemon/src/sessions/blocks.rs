//! Blocks of file data that mounts store and read.

use bytes::Bytes;
use std::fs::File;
use std::ops::Range;
use tandemfs::api::fs::{InlineBlock, ReadBlocks, ReadBlocksReply};
use tandemfs::block::Draft;
use tandemfs::id::{BlockId, SessionId};
use tandemfs::{ErrorKind, Result};

use super::Sessions;
use super::activity::Use;
use crate::accounts::Caller;

impl Sessions {
    /// Stores a block; it is durable on every chosen node when this returns.
    ///
    /// # Errors
    /// As [`Sessions::resume`]; `ReadOnly`; `Invalid` when the id is not that of the data.
    pub async fn put_block(&self, caller: &Caller, id: SessionId, block: BlockId, data: Draft) -> Result<()> {
        let (session, volume) = self.find_for(Use::Look, caller, id).await?;
        self.writable(caller, &session)?;
        volume.put_block(block, data).await
    }

    /// How many bytes a block has.
    ///
    /// # Errors
    /// As [`Sessions::resume`]; `NotFound` about `block`.
    pub async fn block_size(&self, caller: &Caller, id: SessionId, block: BlockId) -> Result<u32> {
        let (_, volume) = self.find_for(Use::Look, caller, id).await?;
        volume.block_size(block).await
    }

    /// The object of a block that the volume has, as an open file, unchecked; `None` where that cannot be had or there is no such block.
    ///
    /// # Errors
    /// As [`Sessions::resume`].
    pub async fn block_file(&self, caller: &Caller, id: SessionId, block: BlockId) -> Result<Option<File>> {
        let (_, volume) = self.find_for(Use::Look, caller, id).await?;
        match volume.block_file(block).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            result => result,
        }
    }

    /// Reads a block that the volume has.
    ///
    /// # Errors
    /// As [`Sessions::resume`]; `NotFound` about `block`; `OutOfRange`; `Unavailable`.
    pub async fn get_block(
        &self,
        caller: &Caller,
        id: SessionId,
        block: BlockId,
        range: Range<u32>,
    ) -> Result<Bytes> {
        let (_, volume) = self.find_for(Use::Look, caller, id).await?;
        volume.get_block(block, range).await
    }

    /// Reads small blocks that the volume has, those of them that can be had.
    ///
    /// # Errors
    /// As [`Sessions::resume`]; `Invalid` for too many; `Unavailable`.
    pub async fn get_blocks(
        &self,
        caller: &Caller,
        id: SessionId,
        wanted: &ReadBlocks,
    ) -> Result<ReadBlocksReply> {
        let (_, volume) = self.find_for(Use::Look, caller, id).await?;
        let found = volume.get_blocks(&wanted.ids).await?;
        let blocks = found.into_iter().map(|(id, data)| InlineBlock { id, data: data.into() });
        Ok(ReadBlocksReply { blocks: blocks.collect() })
    }
}
