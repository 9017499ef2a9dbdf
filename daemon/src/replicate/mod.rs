//! Several nodes as one place for blocks: where copies go, writes and reads over them, exact counts, repair.
//!
//! Nothing else in the daemon uses a `BlockStore`. Every change of a block, its record or its objects happens under the block's
//! lock, in a task of its own, so that a caller who goes away leaves nothing half done.

mod cache;
mod census;
mod guard;
mod inline;
mod inspect;
mod locks;
mod nodes;
mod pack;
pub mod placement;
mod read;
mod read_many;
mod repair;
mod spread;
mod store;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tandemfs::api::admin::{self, FailMode};
use tandemfs::api::files::{BlockCounts, NodeCounts, NodeState, Replica};
use tandemfs::clock::Clock;
use tandemfs::id::{BlockId, NodeId, VolumeId};
use tandemfs::{Error, Result};
use tokio::sync::{Semaphore, mpsc};

use crate::blocks::{BlockStore, Room};
use crate::meta::record::{Block, Place};
use crate::meta::{self, Meta, Write, keys};
use crate::settings::Settings;

pub use census::{Census, Sum};
pub use guard::BlockGuard;
pub(crate) use inline::Inline;
pub(crate) use inspect::{inspect, is_about_copy};
pub use nodes::{FailedBy, NodeRecord, NodeSetup};
pub(crate) use nodes::{Node, Nodes};
pub use pack::Packed;
pub(crate) use pack::{Load, Moving, waste};
pub(crate) use repair::{Check, LIST, Mended};

/// Records that are read at once when all are walked.
pub(crate) const PAGE: usize = 256;
/// Writes of blocks that are under way at once; each takes up to twice the size of a block in memory.
const WRITES: usize = 16;
/// Blocks that wait to be healed because a read found something bad.
const HURT: usize = 1024;
/// A read is also tried on another node after so long.
const HEDGE_READ: Duration = Duration::from_millis(100);
/// A write is also tried on another node after so long.
const HEDGE_WRITE: Duration = Duration::from_secs(1);
/// Or after so many times as long as another copy has taken,
const HEDGE_WRITE_TIMES: u32 = 4;
/// but not before this.
const HEDGE_WRITE_MIN: Duration = Duration::from_millis(150);
/// A node that has not said within this time whether it has a copy is written to as if it had none.
const ASK_WRITE: Duration = Duration::from_millis(500);
/// After a commit that failed it is looked so often at what is stored now.
const LOOKS: usize = 10;
/// How long it is waited between two such looks.
const LOOK: Duration = Duration::from_millis(200);
/// An admin's question for a node's room takes no longer.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);

/// The nodes as one place for blocks.
#[derive(Debug)]
pub struct Replicator {
    meta: Meta,
    clock: Arc<dyn Clock>,
    replicas: usize,
    min_replicas: usize,
    inline_bytes: usize,
    heal_delay: Duration,
    nodes: Nodes,
    locks: locks::Locks,
    cache: cache::Cache,
    census: Mutex<Census>,
    hurt: mpsc::Sender<(VolumeId, BlockId)>,
    writes: Arc<Semaphore>,
}

impl Replicator {
    /// Loads the nodes' records and counts the blocks.
    ///
    /// # Errors
    /// `Invalid` for settings that cannot be; those of the engine.
    pub async fn open(
        meta: Meta,
        nodes: Vec<NodeSetup>,
        settings: &Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>> {
        let (replicas, min_replicas) = (settings.replicas as usize, settings.min_replicas as usize);
        if replicas == 0 || min_replicas == 0 || min_replicas > replicas {
            return Err(Error::invalid(format!("{min_replicas} of {replicas} replicas")));
        }
        let timeout = Duration::from_millis(settings.node_timeout_ms.max(1));
        let nodes = Nodes::open(meta.clone(), nodes, timeout, clock.clone()).await?;
        let (hurt, hurt_queue) = mpsc::channel(HURT);
        let replicator = Arc::new(Self {
            meta,
            clock,
            replicas,
            min_replicas,
            inline_bytes: settings.inline_bytes as usize,
            heal_delay: Duration::from_secs(settings.heal_delay_s),
            nodes,
            locks: locks::Locks::default(),
            cache: cache::Cache::new(),
            census: Mutex::default(),
            hurt,
            writes: Arc::new(Semaphore::new(WRITES)),
        });
        let mut after = None;
        loop {
            let page = replicator.page(after.as_ref()).await?;
            let mut census = replicator.census();
            for (_, _, block) in &page {
                census.change(None, Some(block));
            }
            match page.last() {
                Some((volume, id, _)) if page.len() == PAGE => after = Some((*volume, *id)),
                _ => break,
            }
        }
        tokio::spawn(repair::heal_hurt(Arc::downgrade(&replicator), hurt_queue));
        Ok(replicator)
    }

    /// The records of blocks; `None` where there is none or the block is being deleted.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn blocks(&self, volume: VolumeId, ids: &[BlockId]) -> Result<Vec<Option<Block>>> {
        let mut found = Vec::with_capacity(ids.len());
        let mut missing = Vec::new();
        for (at, id) in ids.iter().enumerate() {
            match self.cache.get(volume, id) {
                Ok(block) => found.push(Some(block)),
                Err(began) => {
                    found.push(None);
                    missing.push((at, id, began));
                }
            }
        }
        let keys: Vec<_> = missing.iter().map(|(_, id, _)| keys::block(volume, id)).collect();
        let read = self.meta.get_many::<Block>(&keys).await?;
        for ((at, id, began), block) in missing.into_iter().zip(read) {
            if let (Some(block), Some(slot)) = (block, found.get_mut(at)) {
                self.cache.fill(began, volume, id, &block);
                *slot = Some(block);
            }
        }
        Ok(found.into_iter().map(|block| block.filter(|block| !block.deleting)).collect())
    }

    /// Where the copies of blocks are, and how those nodes are: none of a block that there is not. Those of one that lies in the metadata are
    /// the journal's.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn copies(&self, volume: VolumeId, ids: &[BlockId]) -> Result<Vec<Vec<Replica>>> {
        let blocks = self.blocks(volume, ids).await?;
        let packs = blocks.iter().flatten().filter_map(|block| match block.place {
            Place::Pack { block, .. } => Some(block),
            _ => None,
        });
        let packs: Vec<BlockId> = packs.collect::<BTreeSet<_>>().into_iter().collect();
        let packed: BTreeMap<_, _> = packs.iter().copied().zip(self.blocks(volume, &packs).await?).collect();
        let state = |id| self.nodes.get(id).map_or(NodeState::Failed, |node| node.state());
        let nodes = |block: Block| match block.place {
            Place::Object => block.replicas,
            Place::Inline => self.inline_nodes(),
            Place::Pack { block, .. } => {
                packed.get(&block).cloned().flatten().map_or_else(Vec::new, |pack| pack.replicas)
            }
        };
        let copies = |block: Option<Block>| {
            let nodes = block.map_or_else(Vec::new, nodes);
            nodes.into_iter().map(|id| Replica { node_id: id, state: state(id) }).collect()
        };
        Ok(blocks.into_iter().map(copies).collect())
    }

    /// How many copies each block is to have.
    pub fn wanted(&self) -> usize {
        self.replicas
    }

    /// How many blocks there are, and how many have too few copies.
    pub fn counts(&self) -> BlockCounts {
        self.census().counts(self.replicas, |id| self.nodes.is_healthy(id))
    }

    /// How many nodes there are.
    pub fn node_counts(&self) -> NodeCounts {
        self.nodes.counts()
    }

    /// The nodes as admins see them.
    pub async fn nodes(&self) -> Vec<admin::Node> {
        futures::future::join_all(self.nodes.all().map(|node| self.describe(node))).await
    }

    /// Room on the healthy nodes.
    pub async fn room(&self) -> Room {
        let rooms = futures::future::join_all(
            self.nodes.all().filter(|node| node.is_healthy()).map(|node| self.room_on(node)),
        );
        rooms.await.into_iter().flatten().fold(Room::default(), |sum, room| Room {
            total_bytes: sum.total_bytes.saturating_add(room.total_bytes),
            free_bytes: sum.free_bytes.saturating_add(room.free_bytes),
        })
    }

    /// Whether so many bytes can be stored on as many healthy nodes as a block needs, or on all where there are fewer.
    pub async fn has_room(&self, bytes: u64) -> bool {
        let asked = self.nodes.all().filter(|node| node.is_healthy()).map(async |node| {
            let room = tokio::time::timeout(ROOM_TIMEOUT, self.nodes.room(node)).await;
            // Who does not know has room.
            matches!(room, Ok(Ok(room)) if room.is_none_or(|room| room.free_bytes >= bytes))
        });
        let answers = futures::future::join_all(asked).await;
        let with_room = answers.iter().filter(|has_room| **has_room).count();
        with_room > 0 && with_room >= self.replicas.min(answers.len())
    }

    /// Makes a node fail: it is treated as if it were gone until it is repaired.
    ///
    /// # Errors
    /// `NotFound`; `Busy` for a retired node; those of the engine and, for a mode that damages objects, of the node.
    pub async fn fail_node(self: &Arc<Self>, id: NodeId, mode: FailMode) -> Result<admin::Node> {
        let node = self.nodes.get(id)?.clone();
        let this = self.clone();
        let task = tokio::spawn(async move {
            let may = |record: &NodeRecord| record.state != NodeState::Retired;
            this.nodes.set_state(&node, may, NodeState::Failed, Some(FailedBy::Admin)).await?;
            let store = Nodes::store(&node);
            match mode {
                FailMode::Offline => {}
                FailMode::Wipe => {
                    repair::wipe(store?.as_ref()).await?;
                    repair::wipe_segments(Nodes::segments(&node)?.as_ref()).await?;
                }
                FailMode::Corrupt => repair::corrupt(store?.as_ref()).await?,
            }
            Ok(this.describe(&node).await)
        });
        finished(task).await
    }

    /// A block's lock if nobody holds it, for the collector.
    pub fn try_lock_block(self: &Arc<Self>, volume: VolumeId, id: BlockId) -> Option<BlockGuard> {
        Some(BlockGuard::new(self.clone(), volume, id, self.locks.try_lock(&id)?))
    }

    async fn describe(&self, node: &Node) -> admin::Node {
        let record = node.record();
        let room = self.room_on(node).await;
        let (sum, missing) = {
            let census = self.census();
            let short = |nodes: &[NodeId]| {
                nodes.contains(&record.id)
                    && nodes.iter().filter(|id| self.nodes.is_healthy(**id)).count() < self.replicas
            };
            (census.on(record.id), if node.is_healthy() { 0 } else { census.sum(short).blocks })
        };
        admin::Node {
            node_id: record.id,
            kind: record.kind,
            location: record.location,
            zone: record.zone,
            weight: record.weight,
            state: record.state,
            blocks: sum.blocks,
            bytes: sum.bytes,
            capacity_bytes: room.map(|room| room.total_bytes),
            free_bytes: room.map(|room| room.free_bytes),
            last_seen: node.last_seen().map(|time| time.to_rfc3339()),
            missing_replicas: missing,
        }
    }

    async fn room_on(&self, node: &Node) -> Option<Room> {
        tokio::time::timeout(ROOM_TIMEOUT, self.nodes.room(node)).await.ok()?.ok()?
    }

    /// The nodes themselves, for the workers.
    pub(crate) fn registry(&self) -> &Nodes {
        &self.nodes
    }

    /// The stores of the nodes that can be reached, for a check.
    pub(crate) fn stores(&self) -> BTreeMap<NodeId, Arc<dyn BlockStore>> {
        let reachable = self.nodes.all().filter(|node| node.is_reachable());
        reachable.filter_map(|node| Some((node.id(), Nodes::store(node).ok()?.clone()))).collect()
    }

    /// Whether blocks with this set of copies can and should get further ones now: some are missing, there is one to copy, there is
    /// another node to copy to, and no node that has a copy is expected to come back soon.
    pub(crate) fn is_due(&self, replicas: &[NodeId]) -> bool {
        let healthy = replicas.iter().filter(|id| self.nodes.is_healthy(**id)).count();
        let possible =
            self.nodes.all().filter(|node| node.is_healthy() && node.candidate().weight > 0).count();
        let expected = replicas.iter().filter(|id| self.is_expected(**id)).count();
        healthy > 0 && healthy < self.replicas.min(possible) && healthy + expected < self.replicas
    }

    /// Whether blocks with this set of copies have fewer healthy ones than wanted, or more.
    pub(crate) fn is_short(&self, replicas: &[NodeId]) -> bool {
        replicas.iter().filter(|id| self.nodes.is_healthy(**id)).count() != self.replicas
    }

    /// Whether a node that is not healthy may be so again before its copies are to be made on others.
    fn is_expected(&self, id: NodeId) -> bool {
        let Ok(node) = self.nodes.get(id) else { return false };
        let record = node.record();
        let away_ms = self.clock.now().as_millis().saturating_sub(record.since.as_millis());
        match record.state {
            NodeState::Repairing => true,
            NodeState::Failed => u128::try_from(away_ms).unwrap_or(0) < self.heal_delay.as_millis(),
            _ => false,
        }
    }

    /// Whether any block [is due](Self::is_due).
    pub(crate) fn has_due(&self) -> bool {
        self.census().sum(|nodes| self.is_due(nodes)).blocks > 0
    }

    /// A page of records in the order of their keys.
    pub(crate) async fn page(
        &self,
        after: Option<&(VolumeId, BlockId)>,
    ) -> Result<Vec<(VolumeId, BlockId, Block)>> {
        let (mut from, to) = keys::all_blocks();
        if let Some((volume, id)) = after {
            from = keys::block(*volume, id);
            from.push(0); // the next possible key
        }
        let page = self.meta.scan::<Block>(&from, &to, PAGE).await?;
        let name = |key: &[u8]| {
            keys::block_of(key).ok_or_else(|| Error::corrupt(format!("metadata key {}", hex::encode(key))))
        };
        page.into_iter().map(|(key, block)| name(&key).map(|(volume, id)| (volume, id, block))).collect()
    }

    pub(crate) fn census(&self) -> std::sync::MutexGuard<'_, Census> {
        self.census.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.now().as_millis()).unwrap_or(0)
    }

    /// Commits a change of a block's record, with `writes` that belong to it. The caller holds the block's lock and cannot be
    /// cancelled.
    async fn change(
        &self,
        (volume, id): (VolumeId, &BlockId),
        old: Option<&Block>,
        new: Option<&Block>,
        writes: Vec<Write>,
    ) -> Result<()> {
        self.change_all(volume, &[(*id, old.cloned(), new.cloned())], writes).await
    }

    /// The same of several blocks' records, each before and after, in one commit.
    async fn change_all(
        &self,
        volume: VolumeId,
        changes: &[(BlockId, Option<Block>, Option<Block>)],
        mut writes: Vec<Write>,
    ) -> Result<()> {
        for (id, _, new) in changes {
            let key = keys::block(volume, id);
            writes.push(match new {
                Some(block) => meta::put(key, block)?,
                None => meta::remove(key),
            });
        }
        let result = self.meta.commit(Vec::new(), writes).await;
        for (id, old, new) in changes {
            if result.is_ok() {
                self.census().change(old.as_ref(), new.as_ref());
                self.cache.change(volume, id, new.as_ref());
                continue;
            }
            // It may have happened all the same, and only the answer was lost.
            self.cache.change(volume, id, None);
            for _ in 0..LOOKS {
                if let Ok(now) = self.record(volume, id).await {
                    self.census().change(old.as_ref(), now.as_ref());
                    break;
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        result
    }

    /// The stored record. The caller holds the block's lock.
    async fn record(&self, volume: VolumeId, id: &BlockId) -> Result<Option<Block>> {
        self.meta.get(&keys::block(volume, id)).await
    }

    /// The metadata.
    #[cfg(test)]
    pub(crate) fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Counts all records anew, to be compared with the counts that are kept.
    #[cfg(test)]
    pub(crate) async fn recount(&self) -> (Census, BTreeMap<(VolumeId, BlockId), Block>) {
        let (from, to) = keys::all_blocks();
        let mut census = Census::default();
        let mut blocks = BTreeMap::new();
        for (key, block) in self.meta.scan::<Block>(&from, &to, 1_000_000).await.unwrap() {
            census.change(None, Some(&block));
            blocks.insert(keys::block_of(&key).unwrap(), block);
        }
        (census, blocks)
    }
}

/// Waits for a task that nobody cancels.
async fn finished<T>(task: tokio::task::JoinHandle<Result<T>>) -> Result<T> {
    task.await.unwrap_or_else(|error| Err(Error::internal("a task of the replicator").because(error)))
}
