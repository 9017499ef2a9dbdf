//! Writing an object to as many nodes as are wanted, whichever of them fail meanwhile.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tandemfs::api::files::NodeState;
use tandemfs::error::ErrorKind;
use tandemfs::id::{BlockId, NodeId};
use tandemfs::{Error, Result, block};
use tokio::time::Instant;

use super::placement::{self, Candidate};
use super::{HEDGE_WRITE, HEDGE_WRITE_MIN, HEDGE_WRITE_TIMES, Node, Nodes};

use crate::metrics::COUNTERS;

/// What is to be written, and how often.
pub(super) struct Spread<'a> {
    pub(super) nodes: &'a Nodes,
    pub(super) id: BlockId,
    pub(super) object: Bytes,
    /// Copies that there are to be.
    pub(super) wanted: usize,
    /// Nodes to write to before others, such as those whose copy is damaged.
    pub(super) first: &'a [NodeId],
    /// A node under repair that counts like a healthy one.
    pub(super) joining: Option<NodeId>,
    /// Whether to read back and check what was written.
    pub(super) verify: bool,
    /// Whether nodes under repair are used when there are not enough others.
    pub(super) last_resort: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Spreaded {
    /// Nodes that have a copy: those that had one before, and those that were written.
    pub(super) good: BTreeSet<NodeId>,
    /// Those that were written.
    pub(super) written: BTreeSet<NodeId>,
    /// Whether a node had no room.
    pub(super) no_space: bool,
}

impl Spread<'_> {
    /// Writes until as many nodes as are wanted have a copy, or no node is left to try. A node that fails is replaced by another at
    /// once, one that is slow after a while, which is shorter when another one was fast; a copy that comes into being on a node that was given up is an orphan, which a scrub removes.
    pub(super) async fn run(self, good: BTreeSet<NodeId>) -> Spreaded {
        let mut result = Spreaded { good, ..Spreaded::default() };
        let mut tried = result.good.clone();
        let mut under_way: BTreeSet<NodeId> = BTreeSet::new();
        let mut calls = FuturesUnordered::new();
        let began = Instant::now();
        let (mut spare, mut hedge) = (0, began + HEDGE_WRITE);
        loop {
            // A node may have failed since it was written.
            result.good.retain(|id| self.nodes.is_reachable(*id));
            while result.good.len() + under_way.len() < self.wanted + spare {
                let Some(node) = self.next(&tried, result.good.union(&under_way)) else { break };
                tried.insert(node.id());
                under_way.insert(node.id());
                calls.push(async {
                    let began = Instant::now();
                    (node.id(), self.copy(node).await, began.elapsed())
                });
            }
            if result.good.len() >= self.wanted {
                return result;
            }
            tokio::select! {
                biased;
                done = calls.next() => match done {
                    None => return result,
                    Some((id, outcome, took)) => {
                        under_way.remove(&id);
                        match outcome {
                            Ok(()) => {
                                result.good.insert(id);
                                result.written.insert(id);
                                hedge = hedge.min(began + (took * HEDGE_WRITE_TIMES).max(HEDGE_WRITE_MIN));
                            }
                            Err(error) => {
                                result.no_space |= error.kind() == ErrorKind::NoSpace;
                                log::warn!("block {:?} was not written to node {id}: {error:?}", self.id);
                                COUNTERS.write_faults.get_or_create(&id.into()).inc();
                            }
                        }
                    }
                },
                () = tokio::time::sleep_until(hedge), if spare == 0 => spare = under_way.len(),
            }
        }
    }

    /// The best node that has not been tried.
    fn next<'n>(&self, tried: &BTreeSet<NodeId>, have: impl Iterator<Item = &'n NodeId>) -> Option<&Node> {
        let usable =
            |node: &Node| node.is_healthy() || (Some(node.id()) == self.joining && node.is_reachable());
        let free = |node: &Node| !tried.contains(&node.id());
        let first = self.first.iter().filter_map(|id| self.nodes.get(*id).ok());
        if let Some(node) = first.into_iter().find(|node| usable(node) && free(node)) {
            return Some(node);
        }
        let zones: Vec<String> =
            have.filter_map(|id| Some(self.nodes.get(*id).ok()?.record().zone)).collect();
        let zones: Vec<&str> = zones.iter().map(String::as_str).collect();
        let best = |of: &dyn Fn(&Node) -> bool| {
            let candidates: Vec<Candidate> =
                self.nodes.all().filter(|node| free(node) && of(node)).map(|node| node.candidate()).collect();
            let chosen = placement::choose(&self.id, &candidates, &zones, 1);
            chosen.first().and_then(|id| self.nodes.get(*id).ok()).map(|node| &**node)
        };
        best(&usable).or_else(|| {
            let repairing = |node: &Node| node.state() == NodeState::Repairing && node.is_reachable();
            self.last_resort.then(|| best(&repairing)).flatten()
        })
    }

    async fn copy(&self, node: &Node) -> Result<()> {
        self.nodes.put(node, &self.id, self.object.clone()).await?;
        if self.verify && self.nodes.read(node, &self.id, None).await? != self.object {
            return Err(Error::corrupt(format!("what node {} gives back", node.id())));
        }
        Ok(())
    }
}

/// Reads a whole object and checks every byte of it.
pub(super) async fn verified(nodes: &Nodes, node: &Node, id: &BlockId) -> Result<Bytes> {
    let object = nodes.read(node, id, None).await?;
    block::decode(id, object.clone())?;
    Ok(object)
}
