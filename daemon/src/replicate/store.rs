//! Writing a block: durable on every chosen node before anybody is answered.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use tandemfs::block::Draft;
use tandemfs::id::{BlockId, NodeId, VolumeId};
use tandemfs::{Error, Result};

use super::spread::Spread;
use super::{ASK_WRITE, Replicator, finished};
use crate::meta::record::{Block, Place};
use crate::meta::{self, keys};

impl Replicator {
    /// Stores a block: when it returns, the block is on stable storage of all chosen nodes and its record is committed, with a row in
    /// the garbage index, since nothing refers to it yet. A block that is there already gets the copies that it lacks, and its grace
    /// period begins anew.
    ///
    /// # Errors
    /// `TooLarge`; `NoSpace` when the nodes are full; `Unavailable` when fewer than the least number of copies can be made; `Invalid` when
    /// other data has that id; those of the engine.
    pub async fn put(self: &Arc<Self>, volume: VolumeId, id: BlockId, data: Draft) -> Result<()> {
        let this = self.clone();
        let task = tokio::spawn(async move {
            let _permit = this.writes.clone().acquire_owned().await;
            let size = u32::try_from(data.data().len()).map_err(|_| Error::too_large("a block"))?;
            let object = data.encode(volume, &id);
            let _lock = this.locks.lock(&id).await;
            this.put_locked(volume, id, size, object).await
        });
        finished(task).await
    }

    async fn put_locked(&self, volume: VolumeId, id: BlockId, size: u32, object: Bytes) -> Result<()> {
        let mut stored = self.record(volume, &id).await?;
        if let Some(block) = stored.take_if(|block| block.deleting && block.place != Place::Object) {
            // Its removal was cut short, and what is stored now lies elsewhere.
            self.bury(volume, id, block, Vec::new()).await?;
        }
        let old = stored.as_ref().filter(|block| !block.deleting);
        if old.is_some_and(|block| block.size != size) {
            return Err(Error::invalid(format!("block {id} has other data")));
        }
        if let Some(old) = old.filter(|block| block.place != Place::Object) {
            let stored_ms = self.now_ms().max(old.stored_ms);
            let row = meta::put(keys::garbage(stored_ms, volume, &id), &())?;
            return self
                .change((volume, &id), Some(old), Some(&Block { stored_ms, ..old.clone() }), vec![row])
                .await;
        }
        let recorded = old.map_or(&[][..], |block| &block.replicas);
        let good = self.present(recorded, &id, object.len() as u64).await;
        let damaged: Vec<NodeId> = recorded.iter().copied().filter(|node| !good.contains(node)).collect();
        let spread = Spread {
            nodes: &self.nodes,
            id,
            object,
            wanted: self.replicas,
            first: &damaged,
            joining: None,
            verify: false,
            last_resort: true,
        };
        let result = spread.run(good).await;
        if result.good.len() < self.min_replicas {
            let what = format!("{} of {} copies of a block", result.good.len(), self.min_replicas);
            return Err(if result.no_space {
                Error::no_space(what)
            } else {
                Error::unavailable(what).retry_after(1)
            });
        }
        // What a node that is gone has of it counts again when it comes back and has been checked.
        let away = recorded.iter().copied().filter(|node| !self.nodes.is_reachable(*node));
        let replicas: BTreeSet<NodeId> = result.good.iter().copied().chain(away).collect();
        let stored_ms = self.now_ms().max(old.map_or(0, |block| block.stored_ms));
        let replicas = replicas.into_iter().collect();
        let new = Block { size, replicas, stored_ms, ..old.cloned().unwrap_or_default() };
        let row = meta::put(keys::garbage(stored_ms, volume, &id), &())?;
        self.change((volume, &id), stored.as_ref(), Some(&new), vec![row]).await
    }

    /// Those of `recorded` that can be reached and have an object of the right length.
    async fn present(&self, recorded: &[NodeId], id: &BlockId, length: u64) -> BTreeSet<NodeId> {
        let has = async |node: NodeId| {
            let head = self.nodes.head(self.nodes.get(node).ok()?, id);
            let found = tokio::time::timeout(ASK_WRITE, head).await.ok()?.ok()??;
            (found.size == length).then_some(node)
        };
        futures::future::join_all(recorded.iter().map(|node| has(*node)))
            .await
            .into_iter()
            .flatten()
            .collect()
    }
}
