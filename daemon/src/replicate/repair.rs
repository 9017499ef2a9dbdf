//! Bringing one block to the copies that it is to have, and one object on a node to what the records say.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use tandemfs::block::{self, HEADER_MAX, Header};
use tandemfs::error::ErrorKind;
use tandemfs::id::{BlockId, NodeId, VolumeId};
use tandemfs::{Error, Result};
use tokio::sync::mpsc;

use super::spread::{Spread, verified};
use super::{Node, Nodes, Replicator, finished, placement};
use crate::blocks::BlockStore;
use crate::meta::keys;
use crate::meta::record::{Block, Place};
use crate::metrics::COUNTERS;
use crate::segments::SegmentStore;

/// Objects that are listed at once.
pub(crate) const LIST: usize = 256;

/// Which of a block's copies are read and checked before anything is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// None but those that are copied from.
    None,
    /// The one on a node.
    Node(NodeId),
    /// All.
    All,
}

/// What was done for a block or an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mended {
    /// Copies that were made.
    pub(crate) copied: u64,
    /// Bytes of data in them.
    pub(crate) bytes: u64,
    /// Copies that were missing or damaged.
    pub(crate) bad: u64,
    /// Bytes that were read to check copies.
    pub(crate) checked: u64,
    /// Copies and orphans that were removed.
    pub(crate) removed: u64,
    /// Copies of which it is not known whether they are good, because their node gave an error.
    pub(crate) unsure: u64,
}

/// What is known of the copies of a block.
#[derive(Debug, Default)]
struct Copies {
    /// Good, as far as was checked.
    good: BTreeSet<NodeId>,
    /// Those of the good ones that were checked.
    checked: BTreeSet<NodeId>,
    /// Missing or damaged.
    bad: BTreeSet<NodeId>,
    /// On a node that gives errors for it.
    unsure: BTreeSet<NodeId>,
    /// A checked object.
    source: Option<Bytes>,
    bytes: u64,
}

impl Copies {
    /// Reads a copy and takes note of what it is.
    async fn check(&mut self, nodes: &Nodes, node: &Node, id: &BlockId) {
        match verified(nodes, node, id).await {
            Ok(object) => {
                self.bytes += object.len() as u64;
                self.good.insert(node.id());
                self.checked.insert(node.id());
                self.source = Some(object);
                return;
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {
                self.bad.insert(node.id())
            }
            // A node that has gone meanwhile is not asked again, and keeps its place in the record.
            Err(_) if !node.is_reachable() => false,
            Err(_) => self.unsure.insert(node.id()),
        };
        self.good.remove(&node.id());
    }
}

impl Replicator {
    /// Brings a block to its wanted copies: copies that `check` names are read, missing and damaged ones are made again in their place or
    /// elsewhere from a checked copy and read back, and copies too many are removed. A `joining` node counts as a healthy one.
    pub(crate) async fn mend(
        self: &Arc<Self>,
        volume: VolumeId,
        id: BlockId,
        check: Check,
        joining: Option<NodeId>,
    ) -> Result<Mended> {
        let this = self.clone();
        let task = tokio::spawn(async move {
            let _lock = this.locks.lock(&id).await;
            match this.record(volume, &id).await? {
                Some(block) if !block.deleting && block.place == Place::Object => {
                    this.mend_locked(volume, id, &block, check, joining).await
                }
                _ => Ok(Mended::default()),
            }
        });
        let result = finished(task).await;
        match &result {
            Ok(mended) => {
                COUNTERS.bad_copies.inc_by(mended.bad);
                COUNTERS.copies_made.inc_by(mended.copied);
            }
            Err(_) => drop(COUNTERS.heal_failures.inc()),
        }
        result
    }

    async fn mend_locked(
        &self,
        volume: VolumeId,
        id: BlockId,
        block: &Block,
        check: Check,
        joining: Option<NodeId>,
    ) -> Result<Mended> {
        let counts = |node: &NodeId| {
            self.nodes.is_healthy(*node) || (joining == Some(*node) && self.nodes.is_reachable(*node))
        };
        let mut copies = Copies::default();
        for node in self.reachable(&block.replicas) {
            let node = &*node;
            if check == Check::All || check == Check::Node(node.id()) {
                copies.check(&self.nodes, node, &id).await;
            } else {
                copies.good.insert(node.id());
            }
        }
        let mut mended = Mended::default();
        if copies.good.iter().filter(|node| counts(node)).count() < self.replicas {
            self.adopt(&id, block, &mut copies, joining).await;
        }
        if copies.good.iter().filter(|node| counts(node)).count() < self.replicas {
            self.find_source(&id, &mut copies).await;
            self.copy(&id, block, &mut copies, &mut mended, joining).await;
        }
        let surplus = self.surplus(&id, &mut copies, joining).await;
        for node in &surplus {
            copies.good.remove(node);
        }
        // A node that is gone keeps its place until it comes back; so does one of which nothing is known while it may be needed.
        let enough = copies.good.iter().filter(|node| counts(node)).count() >= self.replicas;
        let kept =
            |node: &&NodeId| !self.nodes.is_reachable(**node) || (!enough && copies.unsure.contains(node));
        let replicas: BTreeSet<NodeId> =
            copies.good.iter().chain(block.replicas.iter().filter(kept)).copied().collect();
        let new = Block { replicas: replicas.into_iter().collect(), ..block.clone() };
        if new != *block {
            self.change((volume, &id), Some(block), Some(&new), Vec::new()).await?;
        }
        // The last copy is left where it is even when it is damaged: somebody may want to save what can be saved.
        let dropped = copies.bad.iter().filter(|node| !copies.good.is_empty() && !copies.good.contains(node));
        for node in &self.reachable(surplus.iter().chain(dropped)) {
            // An object that stays behind is an orphan, which a scrub removes.
            mended.removed += u64::from(self.nodes.delete(node, &id).await.is_ok());
        }
        mended.bad += copies.bad.len() as u64;
        mended.unsure = copies.unsure.difference(&copies.good).count() as u64;
        mended.checked = copies.bytes;
        Ok(mended)
    }

    fn reachable<'a>(&self, ids: impl IntoIterator<Item = &'a NodeId>) -> Vec<Arc<Node>> {
        ids.into_iter()
            .filter_map(|id| self.nodes.get(*id).ok())
            .filter(|node| node.is_reachable())
            .cloned()
            .collect()
    }

    /// Looks for good copies on nodes that the record does not name.
    async fn adopt(&self, id: &BlockId, block: &Block, copies: &mut Copies, joining: Option<NodeId>) {
        let others = self.nodes.all().filter(|node| !block.replicas.contains(&node.id()));
        let others: Vec<_> =
            others.filter(|node| node.is_healthy() || joining == Some(node.id())).cloned().collect();
        for node in &others {
            if let Ok(Some(_)) = self.nodes.head(node, id).await {
                copies.check(&self.nodes, node, id).await;
                // It was nobody's copy, so nothing is missing if it is not good.
                copies.bad.remove(&node.id());
                copies.unsure.remove(&node.id());
            }
        }
    }

    /// Reads copies until one is good.
    async fn find_source(&self, id: &BlockId, copies: &mut Copies) {
        let unchecked: Vec<NodeId> = copies.good.difference(&copies.checked).copied().collect();
        for node in &self.reachable(&unchecked) {
            if copies.source.is_some() {
                return;
            }
            copies.check(&self.nodes, node, id).await;
        }
    }

    async fn copy(
        &self,
        id: &BlockId,
        block: &Block,
        copies: &mut Copies,
        mended: &mut Mended,
        joining: Option<NodeId>,
    ) {
        let Some(object) = copies.source.take() else { return };
        let counted = copies
            .good
            .iter()
            .filter(|node| self.nodes.is_healthy(**node) || joining == Some(**node))
            .copied()
            .collect();
        let first: Vec<NodeId> = copies.bad.union(&copies.unsure).copied().collect();
        let spread = Spread {
            nodes: &self.nodes,
            id: *id,
            object,
            wanted: self.replicas,
            first: &first,
            joining,
            verify: true,
            last_resort: false,
        };
        let result = spread.run(counted).await;
        mended.copied = result.written.len() as u64;
        mended.bytes = mended.copied * u64::from(block.size);
        copies.checked.extend(&result.written);
        copies.good.extend(&result.written);
    }

    /// The copies too many: those on the nodes that the block belongs on the least. None, as long as not all that would stay are checked.
    async fn surplus(&self, id: &BlockId, copies: &mut Copies, joining: Option<NodeId>) -> Vec<NodeId> {
        let counted = |copies: &Copies| -> Vec<placement::Candidate> {
            let of = self
                .reachable(&copies.good)
                .into_iter()
                .filter(|node| node.is_healthy() || joining == Some(node.id()));
            of.map(|node| node.candidate()).collect()
        };
        let candidates = counted(copies);
        if candidates.len() <= self.replicas {
            return Vec::new();
        }
        let keep = placement::choose(id, &candidates, &[], self.replicas);
        let unchecked: Vec<NodeId> =
            keep.iter().filter(|node| !copies.checked.contains(node)).copied().collect();
        for node in &self.reachable(&unchecked) {
            copies.check(&self.nodes, node, id).await;
        }
        if keep.len() < self.replicas || !keep.iter().all(|node| copies.checked.contains(node)) {
            return Vec::new();
        }
        candidates.into_iter().map(|candidate| candidate.id).filter(|node| !keep.contains(node)).collect()
    }

    /// Looks at an object that a node has: one that no record places there is taken into its block's record where copies are missing, and
    /// removed otherwise.
    pub(crate) async fn sweep(
        self: &Arc<Self>,
        node: NodeId,
        id: BlockId,
        joining: Option<NodeId>,
    ) -> Result<Mended> {
        let node = self.nodes.get(node)?.clone();
        let start = match self.nodes.read(&node, &id, Some(0..HEADER_MAX as u64)).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Mended::default()),
            result => result?,
        };
        let header = Header::parse(&start).ok().filter(|header| header.id() == id);
        let volume = match header {
            Some(header) => Some(header.volume()),
            // A damaged header does not tell whose block it is.
            None => self.volume_of(&id).await?,
        };
        let mut mended = Mended::default();
        if let Some(volume) = volume {
            match self.blocks(volume, &[id]).await?.pop().flatten() {
                Some(block) if block.replicas.contains(&node.id()) => return Ok(mended),
                Some(_) => mended = self.mend(volume, id, Check::None, joining).await?,
                None => {}
            }
        }
        let this = self.clone();
        let task = tokio::spawn(async move {
            // Whoever is storing the block holds the lock.
            let _lock = this.locks.lock(&id).await;
            let volume = match volume {
                Some(volume) => Some(volume),
                // It may have been stored meanwhile.
                None => this.volume_of(&id).await?,
            };
            let block = match volume {
                Some(volume) => this.record(volume, &id).await?,
                None => None,
            };
            let needless = match &block {
                None => true,
                Some(block) => {
                    let is_good = |other: &NodeId| this.nodes.is_healthy(*other) || joining == Some(*other);
                    !block.deleting
                        && !block.replicas.contains(&node.id())
                        && (block.place != Place::Object || block.replicas.iter().any(is_good))
                }
            };
            if needless {
                this.nodes.delete(&node, &id).await?;
                mended.removed += 1;
            }
            Ok(mended)
        });
        finished(task).await
    }

    /// The volume that has a record of a block, found by asking each volume that has blocks.
    async fn volume_of(&self, id: &BlockId) -> Result<Option<VolumeId>> {
        let (mut from, to) = keys::all_blocks();
        while let Some((key, _)) = self.meta.scan_raw(&from, &to, 1).await?.pop() {
            let Some((volume, _)) = keys::block_of(&key) else {
                return Err(Error::corrupt(format!("metadata key {}", hex::encode(key))));
            };
            if self.record(volume, id).await?.is_some() {
                return Ok(Some(volume));
            }
            from = keys::block(volume, &BlockId([u8::MAX; 32]));
            from.push(0);
        }
        Ok(None)
    }
}

/// Heals blocks of which a read has found a bad copy, until the replicator is gone.
pub(super) async fn heal_hurt(replicator: Weak<Replicator>, mut queue: mpsc::Receiver<(VolumeId, BlockId)>) {
    while let Some((volume, id)) = queue.recv().await {
        let Some(replicator) = replicator.upgrade() else { return };
        match replicator.mend(volume, id, Check::All, None).await {
            Ok(mended) if mended.bad > 0 => log::info!("block {id}: {mended:?}"),
            Ok(_) => {}
            Err(error) => log::warn!("block {id} was not healed: {error:?}"),
        }
    }
}

/// Deletes all objects of a store.
pub(super) async fn wipe(store: &dyn BlockStore) -> Result<()> {
    loop {
        let page = store.list(None, LIST).await?;
        if page.is_empty() {
            return Ok(());
        }
        for object in page {
            store.delete(&object.id).await?;
        }
    }
}

/// Deletes all segments of a store.
pub(super) async fn wipe_segments(store: &dyn SegmentStore) -> Result<()> {
    for segment in store.list().await? {
        store.delete(segment.number).await?;
    }
    Ok(())
}

/// Flips bits in every object of a store.
pub(super) async fn corrupt(store: &dyn BlockStore) -> Result<()> {
    let mut after = None;
    loop {
        let page = store.list(after.as_ref(), LIST).await?;
        for object in &page {
            let whole = store.get(&object.id, None).await?;
            let mut damaged = whole.to_vec();
            let middle = damaged.len() / 2;
            if let Some(byte) = damaged.get_mut(middle) {
                *byte ^= 0x55;
            }
            // Where it is damaged already, another flip must not mend it.
            if block::decode(&object.id, Bytes::from(damaged.clone())).is_err() {
                store.put(&object.id, Bytes::from(damaged)).await?;
            }
        }
        match page.last() {
            Some(last) if page.len() == LIST => after = Some(last.id),
            _ => return Ok(()),
        }
    }
}
