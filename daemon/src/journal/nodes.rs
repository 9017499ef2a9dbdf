//! The nodes as the journal sees them: which are in use, and which are left out for a while because a call failed.

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tandemfs::id::NodeId;
use tandemfs::{Error, Result};
use tokio::time::Instant;

use crate::segments::SegmentStore;

/// A node that does not answer a write within this time is left out: how long it may hold up a commit.
pub(super) const STALL: Duration = Duration::from_millis(750);
/// Where another node can take its place, one is left out that takes so many times as long as the fastest.
const SLOWER: u32 = 8;
/// It is waited for so long at least.
const SLOWER_MIN: Duration = Duration::from_millis(150);
/// For how long, at first, and at most: twice as long each time.
const OUT: Duration = Duration::from_secs(2);
const OUT_MAX: Duration = Duration::from_secs(60);

/// A node as the journal is given it.
#[derive(Clone, Debug)]
pub struct JournalNode {
    /// Its number.
    pub id: NodeId,
    /// Two copies of a segment are never in one zone while zones allow it.
    pub zone: String,
    /// Its segments.
    pub store: Arc<dyn SegmentStore>,
}

/// All nodes.
#[derive(Debug)]
pub(super) struct Nodes {
    all: BTreeMap<NodeId, JournalNode>,
    state: Mutex<State>,
}

/// What has become of an append.
#[derive(Debug, Default)]
pub(super) struct Appended {
    /// The nodes that have it on stable storage.
    pub(super) done: Vec<NodeId>,
    /// Why one of the others has not.
    pub(super) error: Option<Error>,
    /// How long the first of them took.
    fastest: Option<Duration>,
}

impl Appended {
    /// How long it is worth waiting for another node.
    fn patience(&self) -> Duration {
        self.fastest.map_or(STALL, |fastest| (fastest * SLOWER).clamp(SLOWER_MIN, STALL))
    }
}

#[derive(Debug, Default)]
struct State {
    /// Those that failed: until when, and for how long they were left out.
    out: BTreeMap<NodeId, (Instant, Duration)>,
    /// Those that an admin has failed: they are left alone, as if they were gone.
    shut: BTreeSet<NodeId>,
}

impl Nodes {
    /// All are in use.
    pub(super) fn new(nodes: Vec<JournalNode>) -> Self {
        Self { all: nodes.into_iter().map(|node| (node.id, node)).collect(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, whatever their state.
    pub(super) fn all(&self) -> impl Iterator<Item = &JournalNode> {
        self.all.values()
    }

    /// One of them.
    pub(super) fn get(&self, id: NodeId) -> Option<&JournalNode> {
        self.all.get(&id)
    }

    /// Says which nodes are to be left alone.
    pub(super) fn shut(&self, nodes: BTreeSet<NodeId>) {
        self.state().shut = nodes;
    }

    /// Those that are in use.
    pub(super) fn in_use(&self) -> Vec<&JournalNode> {
        let state = self.state();
        self.all()
            .filter(|node| !state.shut.contains(&node.id) && !state.out.contains_key(&node.id))
            .collect()
    }

    /// Nodes for a new segment: `count` of those in use, in different zones as far as there are some; beginning with another one
    /// for each number. If there are fewer than `least`, all are asked: those that failed a moment ago, and those that are shut, for
    /// otherwise nobody could ever be told that they are repaired.
    ///
    /// # Errors
    /// `Unavailable` if there are fewer than `least` all the same.
    pub(super) fn choose(&self, number: u64, count: usize, least: usize) -> Result<Vec<&JournalNode>> {
        let mut nodes = self.in_use();
        if nodes.len() < least {
            nodes = self.all().collect();
        }
        if nodes.len() < least {
            let what =
                format!("{} of the nodes can be written to, and the journal needs {least}", nodes.len());
            return Err(Error::unavailable(what).retry_after(1));
        }
        let first = usize::try_from(number % nodes.len().max(1) as u64).unwrap_or(0);
        nodes.rotate_left(first);
        let mut chosen: Vec<&JournalNode> = Vec::new();
        for apart in [true, false] {
            for node in &nodes {
                let is_new = !chosen.iter().any(|of| of.id == node.id || apart && of.zone == node.zone);
                if is_new && chosen.len() < count {
                    chosen.push(node);
                }
            }
        }
        Ok(chosen)
    }

    /// Appends the same to several nodes. Those that fail are left out for a while, and so are those that are slow: far slower than the
    /// fastest if other nodes can take their places, slower than [`STALL`] if not. They may have it all the same, now or later.
    pub(super) async fn append(&self, nodes: &[NodeId], number: u64, at: u64, bytes: &Bytes) -> Appended {
        let began = Instant::now();
        let spare = self.in_use().iter().filter(|node| !nodes.contains(&node.id)).count();
        let append = async |id: NodeId| {
            let node = self.get(id).ok_or_else(|| Error::not_found(format!("node {id}")));
            let result = match node {
                Ok(node) => node.store.append(number, at, bytes.clone()).await,
                Err(error) => Err(error),
            };
            (id, result)
        };
        let mut calls: FuturesUnordered<_> = nodes.iter().map(|id| append(*id)).collect();
        let mut under_way: BTreeSet<NodeId> = nodes.iter().copied().collect();
        let mut appended = Appended::default();
        while !under_way.is_empty() {
            let can_be_replaced = nodes.len() - appended.done.len() <= spare;
            let patience = if can_be_replaced { appended.patience() } else { STALL };
            tokio::select! {
                biased;
                Some((id, result)) = calls.next() => {
                    under_way.remove(&id);
                    match result {
                        Ok(()) => {
                            appended.fastest.get_or_insert(began.elapsed());
                            appended.done.push(id);
                        }
                        Err(error) => {
                            self.leave_out(id, &error);
                            appended.error = Some(error);
                        }
                    }
                }
                () = tokio::time::sleep_until(began + patience) => break,
            }
        }
        for id in under_way {
            let error = Error::timed_out(format!("node {id} has not written within {:?}", began.elapsed()));
            self.leave_out(id, &error);
            appended.error = Some(error);
        }
        appended
    }

    /// Makes the same segment on further nodes, as it has been made on others. Those that fail or are far slower are left out for a while.
    pub(super) async fn tell(&self, nodes: &[NodeId], number: u64, bytes: &Bytes, made: &Appended) {
        let tell = async |node: &JournalNode| {
            let append = node.store.append(number, 0, bytes.clone());
            self.bounded(node, made.patience(), append).await
        };
        join_all(nodes.iter().filter_map(|id| self.get(*id)).map(tell)).await;
    }

    /// Waits for a call no longer than so long; if it fails, the node is left out for a while.
    pub(super) async fn bounded<T>(
        &self,
        node: &JournalNode,
        patience: Duration,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let result = tokio::time::timeout(patience, call)
            .await
            .unwrap_or_else(|_| Err(Error::timed_out(format!("node {} did not answer", node.id))));
        if let Err(error) = &result {
            self.leave_out(node.id, error);
        }
        result
    }

    fn leave_out(&self, id: NodeId, error: &Error) {
        log::warn!("the journal leaves node {id} out for a while: {error:?}");
        let mut state = self.state();
        let for_how_long = state.out.get(&id).map_or(OUT, |(_, last)| (*last * 2).min(OUT_MAX));
        state.out.insert(id, (Instant::now() + for_how_long, for_how_long));
    }

    /// Asks nodes that were left out whether they are back.
    pub(super) async fn look_again(&self) {
        let due: Vec<NodeId> = {
            let now = Instant::now();
            self.state().out.iter().filter(|(_, (until, _))| *until <= now).map(|(id, _)| *id).collect()
        };
        for node in due.into_iter().filter_map(|id| self.get(id)) {
            if self.bounded(node, STALL, node.store.list()).await.is_ok() {
                log::info!("the journal uses node {} again", node.id);
                self.state().out.remove(&node.id);
            }
        }
    }
}
