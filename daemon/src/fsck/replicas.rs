//! Copies of blocks against nodes. What has no object of its own names no nodes, and is checked with the references.

use std::collections::BTreeMap;
use std::sync::Arc;
use tandemfs::api::files::NodeState;
use tandemfs::clock::Time;
use tandemfs::id::{BlockId, NodeId, VolumeId};
use tandemfs::{Error, ErrorKind, Result};

use super::finding::{Finding, Mend, Place};
use super::references::Known;
use super::scan::Cursor;
use crate::blocks::BlockStore;
use crate::meta::record::{self, Block};
use crate::meta::{self, Key, MetaStore, Write, keys};
use crate::replicate::{NodeRecord, inspect, is_about_copy};

/// Objects that are listed at once, and rows that are written at once.
const PAGE: usize = 4096;

/// The nodes that are looked at: those that have not failed, for what others have is not known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stores {
    stores: BTreeMap<NodeId, Arc<dyn BlockStore>>,
    /// Every byte is read.
    data: bool,
}

impl Stores {
    /// Those of `all` that the stored records do not say to have failed.
    ///
    /// # Errors
    /// Those of the engine.
    pub(crate) async fn new(
        store: &dyn MetaStore,
        mut all: BTreeMap<NodeId, Arc<dyn BlockStore>>,
        data: bool,
    ) -> Result<Self> {
        let (from, to) = keys::all_nodes();
        let mut rows = Cursor::new(store, from, to);
        while let Some((key, value)) = rows.next().await? {
            // A damaged row is told of elsewhere.
            if let Ok(node) = record::decode::<NodeRecord>(&key, &value)
                && !matches!(node.state, NodeState::Healthy | NodeState::Draining)
            {
                all.remove(&node.id);
            }
        }
        Ok(Self { stores: all, data })
    }

    /// Some of them.
    pub(crate) fn only(&self, keep: impl Fn(NodeId) -> bool) -> Self {
        let mut some = self.clone();
        some.stores.retain(|node, _| keep(*node));
        some
    }

    /// How many they are.
    pub(crate) fn count(&self) -> usize {
        self.stores.len()
    }

    /// Checks the copies of a block that has a record, and writes down where they are to be.
    ///
    /// # Errors
    /// Those of encoding.
    pub(crate) async fn check(
        &self,
        (volume, id): (VolumeId, BlockId),
        known: &Known,
        placed: Option<&mut Placed<'_>>,
    ) -> Result<Vec<Finding>> {
        let Some(block) = &known.block else { return Ok(Vec::new()) };
        if let Some(placed) = placed {
            placed.note(&block.replicas, &id).await?;
        }
        if block.deleting {
            return Ok(Vec::new());
        }
        let mut good = block.replicas.clone();
        let mut wrong = Vec::new();
        let mut has_sound = false;
        for node in &block.replicas {
            let Some(store) = self.stores.get(node) else { continue };
            let seen = match inspect(store.as_ref(), volume, &id, self.data).await {
                Ok(size) if size != block.size => Err(Error::corrupt("object: wrong length")),
                seen => seen,
            };
            match seen {
                Ok(_) => has_sound = true,
                Err(error) if is_about_copy(&error) => {
                    good.retain(|other| other != node);
                    wrong.push(match error.kind() {
                        ErrorKind::NotFound => format!("the copy on node {node} is missing"),
                        _ => format!("the copy on node {node} is damaged: {}", error.subject()),
                    });
                }
                // Nobody knows what is there.
                Err(error) => wrong.push(format!("the copy on node {node} cannot be read: {error}")),
            }
        }
        if wrong.is_empty() {
            return Ok(Vec::new());
        }
        let what = if good.is_empty() { "has no good copy: " } else { "lacks copies: " };
        let finding =
            Finding::new(Place::Block(volume, id, known.file()), format!("{what}{}", wrong.join(", ")));
        // What is not recorded is made again when the daemon runs, and what it leaves behind is removed. So a damaged copy stays recorded while
        // none is known to be sound: those on nodes that were not looked at may be worse.
        if !has_sound || good == block.replicas {
            return Ok(vec![finding]);
        }
        let write = meta::put(keys::block(volume, &id), &Block { replicas: good, ..block.clone() })?;
        Ok(vec![finding.mended_by(Mend::Copies(vec![write]))])
    }

    /// The record of a block that has none, from what the nodes have of it.
    ///
    /// # Errors
    /// Those of encoding.
    pub(crate) async fn adopt(&self, volume: VolumeId, id: BlockId, now: Time) -> Result<Option<Write>> {
        let mut found: Option<Block> = None;
        for (node, store) in &self.stores {
            let Ok(size) = inspect(store.as_ref(), volume, &id, true).await else { continue };
            let stored_ms = u64::try_from(now.as_millis()).unwrap_or(0);
            let new = || Block { size, stored_ms, ..Block::default() };
            let block = found.get_or_insert_with(new);
            if block.size == size {
                block.replicas.push(*node);
            }
        }
        found.map(|block| meta::put(keys::block(volume, &id), &block)).transpose()
    }

    /// How many objects each node has that no record places there.
    ///
    /// # Errors
    /// Those of the scratch store and of the nodes.
    pub(crate) async fn strays(&self, placed: Placed<'_>) -> Result<BTreeMap<NodeId, u64>> {
        let placed = placed.finish().await?;
        let mut strays = BTreeMap::new();
        for (node, store) in &self.stores {
            let prefix = placed.prefix(*node);
            let mut rows = Cursor::new(placed.scratch, prefix.clone(), keys::end_of(&prefix));
            let mut after: Option<BlockId> = None;
            loop {
                let page = store.list(after.as_ref(), PAGE).await?;
                let Some(last) = page.last() else { break };
                after = Some(last.id);
                for object in page {
                    let of = [prefix.as_slice(), &object.id.0].concat();
                    while rows.peek().await?.is_some_and(|(key, _)| *key < of) {
                        rows.next().await?;
                    }
                    if rows.next_of(&of).await?.is_none() {
                        *strays.entry(*node).or_default() += 1;
                    }
                }
            }
        }
        Ok(strays)
    }
}

/// What the records place on nodes, in a scratch store.
#[derive(Debug)]
pub(crate) struct Placed<'a> {
    scratch: &'a dyn MetaStore,
    round: u8,
    writes: Vec<Write>,
}

impl<'a> Placed<'a> {
    /// Nothing. No two that use a scratch store have the same round.
    pub(crate) fn new(scratch: &'a dyn MetaStore, round: u8) -> Self {
        Self { scratch, round, writes: Vec::new() }
    }

    fn prefix(&self, node: NodeId) -> Key {
        [&[self.round, b'n'][..], &node.0.to_be_bytes()].concat()
    }

    async fn note(&mut self, nodes: &[NodeId], id: &BlockId) -> Result<()> {
        for node in nodes {
            let key = [self.prefix(*node).as_slice(), &id.0].concat();
            self.writes.push(Write { key, value: Some(Vec::new()) });
        }
        if self.writes.len() < PAGE {
            return Ok(());
        }
        self.scratch.commit(Vec::new(), std::mem::take(&mut self.writes)).await
    }

    async fn finish(mut self) -> Result<Self> {
        self.scratch.commit(Vec::new(), std::mem::take(&mut self.writes)).await?;
        Ok(self)
    }
}
