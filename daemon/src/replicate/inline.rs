//! Blocks whose few bytes come with the commit that names them. They lie in the metadata, and so in the journal on the nodes, until they
//! are packed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tandemfs::id::{BlockId, NodeId, VolumeId};
use tandemfs::{Error, Result};

use super::locks::Lock;
use super::{Replicator, finished};
use crate::meta::record::{Block, Place};
use crate::meta::{self, Write, keys};

/// Blocks that a commit of the caller's stores. Dropping it says that nothing was committed.
#[derive(Debug)]
pub(crate) struct Inline {
    replicator: Arc<Replicator>,
    volume: VolumeId,
    blocks: Vec<Coming>,
}

#[derive(Debug)]
struct Coming {
    id: BlockId,
    old: Option<Block>,
    new: Block,
    _lock: Lock,
}

impl Replicator {
    /// The largest block that lies in the metadata, in bytes: none where its engine has fewer copies than a block would have.
    pub(crate) fn inline_bytes(&self) -> usize {
        if self.meta.copies().len() >= self.replicas { self.inline_bytes } else { 0 }
    }

    /// The nodes that the metadata, and what lies in it, is being written to.
    pub(super) fn inline_nodes(&self) -> Vec<NodeId> {
        self.meta.copies()
    }

    /// What a commit has to write so that these blocks are there with it; those that are there already need nothing. To be called under the
    /// volume's lock; nobody else stores or removes these blocks until [`Inline::committed`].
    ///
    /// # Errors
    /// Those of the engine.
    pub(crate) async fn inline(
        self: &Arc<Self>,
        volume: VolumeId,
        blocks: &BTreeMap<BlockId, Bytes>,
    ) -> Result<(Inline, Vec<Write>)> {
        let mut coming = Vec::new();
        let mut writes = Vec::new();
        let ids: Vec<BlockId> = blocks.keys().copied().collect();
        let known = self.blocks(volume, &ids).await?;
        let missing = blocks.iter().zip(known).filter(|(_, known)| known.is_none());
        // In the order of the ids, so that two never wait for each other.
        for ((id, data), _) in missing {
            let mut lock = self.locks.lock(id).await;
            let mut old = self.record(volume, id).await?;
            if let Some(block) = old.take_if(|block| block.deleting && block.place != Place::Object) {
                // Its removal was cut short, and what comes now lies elsewhere.
                let (this, id) = (Arc::clone(self), *id);
                let removal = tokio::spawn(async move {
                    this.bury(volume, id, block, Vec::new()).await?;
                    Ok(lock)
                });
                lock = finished(removal).await?;
            }
            if old.as_ref().is_some_and(|block| !block.deleting) {
                continue;
            }
            let size = u32::try_from(data.len()).map_err(|_| Error::too_large("a block"))?;
            let new = Block { size, place: Place::Inline, stored_ms: self.now_ms(), ..Block::default() };
            writes.push(meta::put(keys::inline(volume, id), serde_bytes::Bytes::new(data))?);
            writes.push(meta::put(keys::block(volume, id), &new)?);
            coming.push(Coming { id: *id, old, new, _lock: lock });
        }
        Ok((Inline { replicator: Arc::clone(self), volume, blocks: coming }, writes))
    }

    /// Bytes of a block that lies in the metadata.
    pub(super) async fn read_inline(
        &self,
        volume: VolumeId,
        id: &BlockId,
        range: &Range<u32>,
    ) -> Result<Bytes> {
        let data: Option<serde_bytes::ByteBuf> = self.meta.get(&keys::inline(volume, id)).await?;
        let missing = || Error::corrupt(format!("block {id}: its bytes are not in the metadata"));
        let data = Bytes::from(data.ok_or_else(missing)?.into_vec());
        let (from, to) = (range.start as usize, range.end as usize);
        if to > data.len() {
            return Err(missing());
        }
        Ok(data.slice(from..to))
    }
}

impl Inline {
    /// Those that the commit stores, and when.
    pub(crate) fn coming(&self) -> impl Iterator<Item = (&BlockId, u64)> {
        self.blocks.iter().map(|coming| (&coming.id, coming.new.stored_ms))
    }

    /// The commit is on stable storage.
    pub(crate) fn committed(self) {
        let Self { replicator, volume, blocks } = self;
        for Coming { id, old, new, _lock } in blocks {
            replicator.census().change(old.as_ref(), Some(&new));
            replicator.cache.change(volume, &id, Some(&new));
        }
    }
}
