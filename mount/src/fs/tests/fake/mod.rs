//! A daemon in memory: a map of records, the rules of the tree, sessions with events that wait to be acknowledged.
//! Here is what tests set, look at and do to it; what mounts ask of it is in [`remote`].

mod batches;
mod blocks;
mod delegations;
mod kernel;
mod locks;
mod reads;
mod remote;
mod sessions;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use tandemfs::api::fs::INLINE_MAX;
use tandemfs::api::locks::{HeldLock, Lock};
use tandemfs::clock::Time;
use tandemfs::id::{BlockId, Ino, SessionId};
use tandemfs::locks::LockTable;
use tandemfs::tree::{self, Key, Record, Usage};
use tokio::sync::Notify;

pub(super) use kernel::FakeKernel;
use sessions::Session;

pub(super) const LEASE_MS: u64 = 10_000;

#[derive(Default)]
pub(crate) struct Daemon {
    state: Mutex<State>,
    acknowledged: Notify,
    locks_changed: Notify,
    /// Counts requests; each of so many loses its answer.
    pub(super) lose_every: AtomicU64,
    count: AtomicU64,
    /// Nobody listens.
    pub(super) down: AtomicBool,
    /// The credentials do not count any more.
    pub(super) denies: AtomicBool,
    /// The volume is delegated to whoever asks; others drop all that they know then.
    pub(super) lends: AtomicBool,
    /// Blocks come too often.
    pub(super) limits: AtomicBool,
    /// How often they did.
    pub(super) refused: AtomicU64,
    /// Blocks are refused.
    pub(super) full: AtomicBool,
    /// Blocks wait here before they are stored.
    pub(super) hold_blocks: AtomicBool,
    pub(super) release_blocks: Notify,
    /// How long it takes to store one, in ms.
    pub(super) slow_blocks: AtomicU64,
    /// How often one was stored.
    pub(super) stored: AtomicU64,
    /// Batches that were refused because they named blocks that were not there.
    pub(super) too_early: AtomicU64,
    /// So many blocks get lost on the way: they are not answered, until their sender gives up.
    pub(super) swallow_blocks: AtomicU64,
    /// Reads wait here after they have been answered.
    pub(super) hold_reads: AtomicBool,
    pub(super) reads_held: AtomicU64,
    pub(super) release_reads: Notify,
    /// Batches wait here before they are applied.
    pub(super) hold_batches: AtomicBool,
    pub(super) release_batches: Notify,
    /// What is asked about locks is done, but not answered before the release.
    pub(super) hold_lock_answers: AtomicBool,
    pub(super) release_lock_answers: Notify,
    pub(super) batches: AtomicU64,
    pub(super) reads: AtomicU64,
    /// Requests for blocks: for one, a part of one, or many.
    pub(super) block_reads: AtomicU64,
    /// Files that were taken, and that were returned.
    pub(super) takes: AtomicU64,
    pub(super) returns: AtomicU64,
    /// Requests that wait for locks, and those that say that a wait was given up.
    pub(super) lock_waits: AtomicU64,
    pub(super) leaves: AtomicU64,
}

struct State {
    records: BTreeMap<Key, Record>,
    blocks: HashMap<BlockId, Bytes>,
    inline_bytes: u32,
    version: u64,
    run: u64,
    sessions: BTreeMap<SessionId, Session>,
    locks: LockTable<(SessionId, u64)>,
    delegations: BTreeMap<Ino, SessionId>,
    /// Who has all of the volume.
    lease: Option<SessionId>,
    /// Sessions of the run before that have not claimed their locks.
    unclaimed: HashSet<SessionId>,
    asked: Vec<(SessionId, HeldLock)>,
    /// Sessions of the run before that were not resumed.
    unresumed: HashSet<SessionId>,
    /// Claims come too late.
    loses_claims: bool,
    next_session: u64,
    next_ino: u64,
}

impl Default for State {
    fn default() -> Self {
        let root = Record::Inode(Box::new(tree::new_root(Time::default(), 0, 0)));
        let records =
            BTreeMap::from([(Key::Inode(Ino::ROOT), root), (Key::Usage, Record::Usage(Usage::default()))]);
        Self {
            records,
            blocks: HashMap::new(),
            inline_bytes: INLINE_MAX as u32,
            version: 1,
            run: 1,
            sessions: BTreeMap::new(),
            locks: LockTable::default(),
            delegations: BTreeMap::new(),
            lease: None,
            unclaimed: HashSet::new(),
            asked: Vec::new(),
            unresumed: HashSet::new(),
            loses_claims: false,
            next_session: 1,
            next_ino: 2,
        }
    }
}

impl Daemon {
    /// What is stored under a key.
    pub(super) fn record(&self, key: &Key) -> Option<Record> {
        self.state.lock().unwrap().records.get(key).cloned()
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        self.state.lock().unwrap().records.keys().cloned().collect()
    }

    pub(super) fn blocks(&self) -> usize {
        self.state.lock().unwrap().blocks.len()
    }

    /// Up to which size blocks are to come with batches.
    pub(super) fn set_inline_bytes(&self, bytes: u32) {
        self.state.lock().unwrap().inline_bytes = bytes;
    }

    /// Collects all blocks, as if the nodes had lost them.
    pub(super) fn lose_blocks(&self) {
        self.state.lock().unwrap().blocks.clear();
    }

    pub(crate) fn sessions(&self) -> usize {
        self.state.lock().unwrap().sessions.len()
    }

    /// Files that are delegated, and to whom.
    pub(super) fn delegations(&self) -> Vec<(Ino, SessionId)> {
        self.state.lock().unwrap().delegations.iter().map(|(ino, session)| (*ino, *session)).collect()
    }

    /// Who has all of the volume.
    pub(super) fn lease(&self) -> Option<SessionId> {
        self.state.lock().unwrap().lease
    }

    /// All locks: the owner's number and the lock.
    pub(super) fn locks(&self) -> Vec<(u64, Lock)> {
        let state = self.state.lock().unwrap();
        state.locks.locks().map(|(_, (_, owner), lock)| (owner, lock)).collect()
    }

    /// Forgets all sessions, as a daemon does that has fenced them.
    pub(super) fn fence_all(&self) {
        let mut state = self.state.lock().unwrap();
        state.sessions.clear();
        state.locks = LockTable::default();
        state.delegations.clear();
        state.lease = None;
        drop(state);
        self.locks_changed.notify_waiters();
        self.acknowledged.notify_waiters();
    }

    /// Another run: streams end, versions start again.
    pub(super) fn restart(&self) {
        let mut state = self.state.lock().unwrap();
        state.run += 1;
        state.version = 1;
        state.locks = LockTable::default();
        state.unclaimed = state.sessions.keys().copied().collect();
        state.unresumed = state.unclaimed.clone();
        state.delegations.clear();
        state.lease = None;
        for session in state.sessions.values_mut() {
            session.stream = None;
            session.unacked.clear();
            session.recalled.clear();
            session.volume_recalled = false;
            session.acked = session.number;
        }
    }

    /// From now on claims of locks come too late.
    pub(super) fn lose_claims(&self) {
        self.state.lock().unwrap().loses_claims = true;
    }

    /// Ends the token of all: their streams of events are cut, and nothing of theirs is answered.
    pub(super) fn deny(&self) {
        self.denies.store(true, Ordering::SeqCst);
        for session in self.state.lock().unwrap().sessions.values_mut() {
            session.stream = None;
        }
    }
}
