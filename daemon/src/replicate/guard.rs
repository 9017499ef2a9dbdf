//! A block that nobody else can store, repair or delete: what the collector holds while it decides and deletes.

use std::sync::Arc;

use tandemfs::id::{BlockId, VolumeId};
use tandemfs::{Error, Result};

use super::locks::Lock;
use super::{Replicator, finished};
use crate::meta::Write;
use crate::meta::record::Block;

/// A held lock of a block.
#[derive(Debug)]
pub struct BlockGuard {
    replicator: Arc<Replicator>,
    volume: VolumeId,
    id: BlockId,
    lock: Lock,
}

impl BlockGuard {
    pub(super) fn new(replicator: Arc<Replicator>, volume: VolumeId, id: BlockId, lock: Lock) -> Self {
        Self { replicator, volume, id, lock }
    }

    /// The stored record, also of a block that is being deleted.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn record(&self) -> Result<Option<Block>> {
        self.replicator.record(self.volume, &self.id).await
    }

    /// Marks the block as being deleted: from when this returns nobody finds it. To be called while the volume's lock is held, which
    /// may be let go of afterwards.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn mark_deleting(self) -> Result<Self> {
        let task = tokio::spawn(async move {
            if let Some(old) = self.record().await?.filter(|block| !block.deleting) {
                let new = Block { deleting: true, ..old.clone() };
                self.replicator.change((self.volume, &self.id), Some(&old), Some(&new), Vec::new()).await?;
            }
            Ok(self)
        });
        finished(task).await
    }

    /// Deletes the objects of a block that was marked, then its record and the garbage row of its last store, together with the
    /// writes in `also`. What lies on a node that has failed is removed when that node is repaired.
    ///
    /// # Errors
    /// `Internal` for a block that was not marked; `Unavailable` when a node does not delete: nothing is forgotten then, and
    /// the same can be done again. Those of the engine.
    pub async fn delete_objects(self, also: Vec<Write>) -> Result<()> {
        let task = tokio::spawn(async move {
            let Some(block) = self.record().await? else {
                return self.replicator.meta.commit(Vec::new(), also).await;
            };
            if !block.deleting {
                return Err(Error::internal("a block that is not marked is not deleted"));
            }
            let nodes = self.replicator.registry();
            for id in &block.replicas {
                if let Ok(node) = nodes.get(*id)
                    && node.is_reachable()
                {
                    nodes.delete(node, &self.id).await?;
                }
            }
            self.replicator.bury(self.volume, self.id, block, also).await?;
            drop(self.lock);
            Ok(())
        });
        finished(task).await
    }
}
