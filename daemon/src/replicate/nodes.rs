//! The nodes: their stored records, their states, and every call to their stores.
//!
//! A node that has failed is treated as if it were gone: no call reaches its store until a repair begins. A state is switched in
//! memory at once and is persisted before anybody is answered about it.

use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tandemfs::api::files::{NodeCounts, NodeState};
use tandemfs::clock::{Clock, Time};
use tandemfs::error::ErrorKind;
use tandemfs::id::{BlockId, NodeId};
use tandemfs::{Error, Result};

use super::placement::Candidate;
use crate::blocks::{BlockStore, Object, Room};
use crate::meta::{self, Meta, keys};
use crate::metrics::COUNTERS;
use crate::segments::SegmentStore;
use crate::watch;

/// A node that fails so many calls in a row is marked as failed.
const MISSES: u32 = 3;

/// A node as the daemon is given it.
#[derive(Clone, Debug)]
pub struct NodeSetup {
    /// Its number.
    pub id: NodeId,
    /// `disk`, `memory`.
    pub kind: String,
    /// Where it is, for people.
    pub location: String,
    /// Two copies of a block are never in one zone while zones allow it.
    pub zone: String,
    /// Its share of the blocks, beside those of others.
    pub weight: u32,
    /// Its objects.
    pub store: Arc<dyn BlockStore>,
    /// Its segments.
    pub segments: Arc<dyn SegmentStore>,
}

/// Who found that a node has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailedBy {
    /// An admin said so; it stays so until an admin repairs it.
    Admin,
    /// Its calls failed; it is repaired by itself when it answers again.
    Probe,
}

/// A node as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its number.
    pub id: NodeId,
    /// `disk`, `memory`.
    pub kind: String,
    /// Where it is, for people.
    pub location: String,
    /// Its zone.
    pub zone: String,
    /// Its weight.
    pub weight: u32,
    /// Its state.
    pub state: NodeState,
    /// Who found that it has failed; kept while it is being repaired.
    pub failed_by: Option<FailedBy>,
    /// When it came into its state.
    pub since: Time,
    /// Goes up with each change of its state, so that work that was begun in an earlier one is found to be out of date.
    pub term: u64,
}

/// A node: its record, its store, and how its last calls went.
#[derive(Debug)]
pub(crate) struct Node {
    id: NodeId,
    record: Mutex<NodeRecord>,
    /// A node that the settings do not name any more has none.
    store: Option<Arc<dyn BlockStore>>,
    segments: Option<Arc<dyn SegmentStore>>,
    unsaved: AtomicBool,
    misses: AtomicU32,
    in_flight: AtomicU32,
    last_seen_ms: AtomicI64,
}

/// All nodes, in the order of their numbers.
#[derive(Debug)]
pub(crate) struct Nodes {
    meta: Meta,
    clock: Arc<dyn Clock>,
    nodes: BTreeMap<NodeId, Arc<Node>>,
    timeout: Duration,
    /// One change of state at a time is persisted.
    saving: tokio::sync::Mutex<()>,
    changed: watch::Sender<u64>,
}

/// Counts a call under way for as long as it lives.
struct InFlight<'a>(&'a AtomicU32);

impl<'a> InFlight<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Node {
    /// Its number.
    pub(crate) fn id(&self) -> NodeId {
        self.id
    }

    /// Its record.
    pub(crate) fn record(&self) -> NodeRecord {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its state.
    pub(crate) fn state(&self) -> NodeState {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).state
    }

    /// Whether its copies count.
    pub(crate) fn is_healthy(&self) -> bool {
        self.state() == NodeState::Healthy
    }

    /// Whether calls may reach it.
    pub(crate) fn is_reachable(&self) -> bool {
        matches!(self.state(), NodeState::Healthy | NodeState::Repairing | NodeState::Draining)
            && self.store.is_some()
    }

    /// When it last answered.
    pub(crate) fn last_seen(&self) -> Option<Time> {
        match self.last_seen_ms.load(Ordering::Relaxed) {
            i64::MIN => None,
            millis => Some(Time::from_millis(millis)),
        }
    }

    /// Calls that failed since the last that did not, and calls under way: the lower, the better a choice it is for a read.
    pub(crate) fn load(&self) -> (u32, u32) {
        (self.misses.load(Ordering::Relaxed), self.in_flight.load(Ordering::Relaxed))
    }

    /// As a candidate for placement.
    pub(crate) fn candidate(&self) -> Candidate {
        let record = self.record();
        Candidate { id: record.id, zone: record.zone, weight: record.weight }
    }

    fn gone(&self) -> Error {
        Error::unavailable(format!("node {}", self.id))
    }
}

impl Nodes {
    /// Loads the stored records and adds nodes that are new.
    pub(crate) async fn open(
        meta: Meta,
        setups: Vec<NodeSetup>,
        timeout: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let (from, to) = keys::all_nodes();
        let stored: Vec<(meta::Key, NodeRecord)> = meta.scan(&from, &to, usize::from(u16::MAX)).await?;
        let mut records: BTreeMap<NodeId, NodeRecord> =
            stored.into_iter().map(|(_, node)| (node.id, node)).collect();
        let mut stores = BTreeMap::new();
        let mut writes = Vec::new();
        for setup in setups {
            let new = NodeRecord {
                id: setup.id,
                kind: setup.kind,
                location: setup.location,
                zone: setup.zone,
                weight: setup.weight,
                state: NodeState::Healthy,
                failed_by: None,
                since: clock.now(),
                term: 0,
            };
            let record = match records.get(&setup.id) {
                Some(old) => NodeRecord {
                    state: old.state,
                    failed_by: old.failed_by,
                    since: old.since,
                    term: old.term,
                    ..new
                },
                None => new,
            };
            if records.get(&setup.id) != Some(&record) {
                writes.push(meta::put(keys::node(setup.id), &record)?);
            }
            records.insert(setup.id, record);
            if stores.insert(setup.id, (setup.store, setup.segments)).is_some() {
                return Err(Error::invalid(format!("node {} is there twice", setup.id)));
            }
        }
        if !writes.is_empty() {
            meta.commit(Vec::new(), writes).await?;
        }
        let node = |mut record: NodeRecord| {
            let (store, segments) = stores.get(&record.id).cloned().unzip();
            if store.is_none() && record.state != NodeState::Retired {
                record.state = NodeState::Failed;
            }
            Node {
                id: record.id,
                record: Mutex::new(record),
                store,
                segments,
                unsaved: AtomicBool::new(false),
                misses: AtomicU32::new(0),
                in_flight: AtomicU32::new(0),
                last_seen_ms: AtomicI64::new(i64::MIN),
            }
        };
        let nodes = records.into_iter().map(|(id, record)| (id, Arc::new(node(record)))).collect();
        Ok(Self {
            meta,
            clock,
            nodes,
            timeout,
            saving: tokio::sync::Mutex::default(),
            changed: watch::Sender::new(0),
        })
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// One of them.
    pub(crate) fn get(&self, id: NodeId) -> Result<&Arc<Node>> {
        self.nodes.get(&id).ok_or_else(|| Error::not_found(format!("node {id}")))
    }

    /// Whether a node's copies count.
    pub(crate) fn is_healthy(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.is_healthy())
    }

    /// Whether calls may reach a node.
    pub(crate) fn is_reachable(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.is_reachable())
    }

    /// How many there are in which states.
    pub(crate) fn counts(&self) -> NodeCounts {
        let mut counts = NodeCounts::default();
        for node in self.all() {
            let state = node.state();
            counts.total += u32::from(state != NodeState::Retired);
            counts.healthy += u32::from(state == NodeState::Healthy);
            counts.failed += u32::from(state == NodeState::Failed);
        }
        counts
    }

    /// Stores an object. A failure for another reason than room or time takes the node out at once: what a failed sync
    /// has left on the disk is not known (faults.md R6).
    pub(crate) async fn put(&self, node: &Node, id: &BlockId, object: Bytes) -> Result<()> {
        let result = self.call(node, |store| async move { store.put(id, object).await }).await;
        if let Err(error) = &result
            && !matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::TimedOut)
            && self.all().any(|other| other.id != node.id && other.is_healthy())
        {
            self.suspect(node, error);
        }
        result
    }

    /// An object's bytes.
    pub(crate) async fn read(&self, node: &Node, id: &BlockId, range: Option<Range<u64>>) -> Result<Bytes> {
        self.call(node, |store| async move { store.get(id, range).await }).await
    }

    /// An object as an open file.
    pub(crate) async fn file(&self, node: &Node, id: &BlockId) -> Result<Option<File>> {
        self.call(node, |store| async move { store.file(id).await }).await
    }

    /// Whether an object is there, and how long it is.
    pub(crate) async fn head(&self, node: &Node, id: &BlockId) -> Result<Option<Object>> {
        self.call(node, |store| async move { store.head(id).await }).await
    }

    /// A page of a node's objects.
    pub(crate) async fn list(
        &self,
        node: &Node,
        after: Option<&BlockId>,
        limit: usize,
    ) -> Result<Vec<Object>> {
        self.call(node, |store| async move { store.list(after, limit).await }).await
    }

    /// Removes an object.
    pub(crate) async fn delete(&self, node: &Node, id: &BlockId) -> Result<()> {
        self.call(node, |store| async move { store.delete(id).await }).await
    }

    /// How much room a node has.
    pub(crate) async fn room(&self, node: &Node) -> Result<Option<Room>> {
        self.call(node, |store| async move { store.room().await }).await
    }

    /// Asks a node whether it is there, also one that has been found to have failed.
    pub(crate) async fn probe(&self, node: &Node) -> Result<()> {
        let store = node.store.as_ref().ok_or_else(|| node.gone())?;
        self.bounded(node, async {
            store.room().await?;
            store.head(&BlockId([0; 32])).await
        })
        .await?;
        Ok(())
    }

    /// The store behind a node, for what an admin does to it on purpose.
    pub(crate) fn store(node: &Node) -> Result<&Arc<dyn BlockStore>> {
        node.store.as_ref().ok_or_else(|| node.gone())
    }

    /// The segments of a node, for the same.
    pub(crate) fn segments(node: &Node) -> Result<&Arc<dyn SegmentStore>> {
        node.segments.as_ref().ok_or_else(|| node.gone())
    }

    async fn call<'a, T, F>(&self, node: &'a Node, call: impl FnOnce(&'a dyn BlockStore) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        match &node.store {
            Some(store) if node.is_reachable() => self.bounded(node, call(store.as_ref())).await,
            _ => Err(node.gone()),
        }
    }

    /// Waits for a call no longer than the settings say, and takes note of how it went.
    async fn bounded<T>(&self, node: &Node, call: impl Future<Output = Result<T>>) -> Result<T> {
        let _in_flight = InFlight::new(&node.in_flight);
        let result = tokio::time::timeout(self.timeout, call)
            .await
            .unwrap_or_else(|_| Err(Error::timed_out(format!("node {} did not answer", node.id))));
        match &result {
            // These are answers too: the node is there.
            Err(error)
                if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NoSpace | ErrorKind::Corrupt) =>
            {
                if node.misses.fetch_add(1, Ordering::Relaxed) + 1 >= MISSES {
                    self.suspect(node, error);
                }
            }
            _ => {
                node.misses.store(0, Ordering::Relaxed);
                node.last_seen_ms.store(self.clock.now().as_millis(), Ordering::Relaxed);
            }
        }
        result
    }

    /// Takes a node out of service because of an error.
    fn suspect(&self, node: &Node, error: &Error) {
        let mut record = node.record.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(record.state, NodeState::Healthy | NodeState::Repairing) {
            return;
        }
        log::warn!("node {} has failed: {error:?}", node.id);
        COUNTERS.node_failures.get_or_create(&node.id.into()).inc();
        record.state = NodeState::Failed;
        record.failed_by = Some(FailedBy::Probe);
        record.since = self.clock.now();
        record.term += 1;
        drop(record);
        node.unsaved.store(true, Ordering::SeqCst);
        self.changed.send_modify(|times| *times += 1);
    }

    /// Changes a node's state if it `may` be, and persists it. `Busy` if it may not.
    pub(crate) async fn set_state(
        &self,
        node: &Node,
        may: impl Fn(&NodeRecord) -> bool,
        state: NodeState,
        failed_by: Option<FailedBy>,
    ) -> Result<()> {
        let _saving = self.saving.lock().await;
        let before = {
            let mut record = node.record.lock().unwrap_or_else(PoisonError::into_inner);
            if !may(&record) {
                return Err(Error::busy(format!("node {} is {:?}", node.id, record.state)));
            }
            let before = record.clone();
            if record.state != state {
                record.since = self.clock.now();
            }
            record.term += 1;
            record.state = state;
            record.failed_by = failed_by;
            before
        };
        node.misses.store(0, Ordering::Relaxed);
        let saved = self.save(node).await;
        if saved.is_err() {
            *node.record.lock().unwrap_or_else(PoisonError::into_inner) = before;
        }
        self.changed.send_modify(|times| *times += 1);
        saved
    }

    /// Persists states that calls have changed.
    pub(crate) async fn save_changed(&self) -> Result<()> {
        let _saving = self.saving.lock().await;
        for node in self.all() {
            if node.unsaved.swap(false, Ordering::SeqCst)
                && let Err(error) = self.save(node).await
            {
                node.unsaved.store(true, Ordering::SeqCst);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn save(&self, node: &Node) -> Result<()> {
        self.meta.commit(Vec::new(), vec![meta::put(keys::node(node.id), &node.record())?]).await
    }

    /// Tells of every change of a state.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
