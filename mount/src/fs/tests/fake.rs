//! A daemon in memory: a map of records, the rules of the tree, sessions with events that wait to be acknowledged.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use tandemfs::api::files::Storage;
use tandemfs::api::fs::{
    Ack, Answer, Batch, BatchReply, DelegationReply, DelegationRequest, Event, InodeRange, OpenSession, Read,
    ReadReply, ResumeSession, SessionGrant,
};
use tandemfs::api::locks::{HeldLock, LockOutcome, LockReply, LockRequest};
use tandemfs::clock::Time;
use tandemfs::id::{BlockId, Ino, SessionId, VolumeId, VolumeKey};
use tandemfs::locks::{LockTable, Refusal};
use tandemfs::tree::{self, Key, Mutation, Record, Stop, Usage, Want, WorkingSet};
use tandemfs::{Error, Result};
use tokio::sync::{Notify, mpsc};

use crate::fs::kernel::Kernel;
use crate::fs::remote::{Events, Remote};

/// How many entries a page of a directory has, few enough to need several.
const PAGE: usize = 7;
pub(crate) const LEASE_MS: u64 = 10_000;

#[derive(Default)]
pub(crate) struct Daemon {
    state: Mutex<State>,
    acknowledged: Notify,
    locks_changed: Notify,
    /// Counts requests; each of so many loses its answer.
    pub(crate) lose_every: AtomicU64,
    count: AtomicU64,
    /// Nobody listens.
    pub(crate) down: AtomicBool,
    /// The credentials do not count any more.
    pub(crate) denies: AtomicBool,
    /// Blocks come too often.
    pub(crate) limits: AtomicBool,
    /// How often they did.
    pub(crate) refused: AtomicU64,
    /// Blocks are refused.
    pub(crate) full: AtomicBool,
    /// So many blocks get lost on the way: they are not answered, until their sender gives up.
    pub(crate) swallow_blocks: AtomicU64,
    /// Reads wait here after they have been answered.
    pub(crate) hold_reads: AtomicBool,
    pub(crate) reads_held: AtomicU64,
    pub(crate) release_reads: Notify,
    /// Batches wait here before they are applied.
    pub(crate) hold_batches: AtomicBool,
    pub(crate) release_batches: Notify,
    /// What is asked about locks is done, but not answered before the release.
    pub(crate) hold_lock_answers: AtomicBool,
    pub(crate) release_lock_answers: Notify,
    pub(crate) batches: AtomicU64,
    pub(crate) reads: AtomicU64,
    /// Files that were taken, and that were returned.
    pub(crate) takes: AtomicU64,
    pub(crate) returns: AtomicU64,
    /// Requests that wait for locks, and those that say that a wait was given up.
    pub(crate) lock_waits: AtomicU64,
    pub(crate) leaves: AtomicU64,
}

struct State {
    records: BTreeMap<Key, Record>,
    blocks: HashMap<BlockId, Bytes>,
    version: u64,
    run: u64,
    sessions: BTreeMap<SessionId, Session>,
    locks: LockTable<(SessionId, u64)>,
    delegations: BTreeMap<Ino, SessionId>,
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

#[derive(Default)]
struct Session {
    number: u64,
    acked: u64,
    held: HashSet<Ino>,
    recalled: BTreeSet<Ino>,
    unacked: VecDeque<Event>,
    stream: Option<mpsc::UnboundedSender<Result<Event>>>,
    answers: HashMap<u64, Result<BatchReply>>,
}

fn lease_end() -> tokio::time::Instant {
    tokio::time::Instant::now() + std::time::Duration::from_millis(LEASE_MS)
}

/// Waits for a lock until it is dropped.
struct Place<'a> {
    daemon: &'a Daemon,
    owner: (SessionId, u64),
    place: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.daemon.state.lock().unwrap().locks.leave(self.owner, self.place);
    }
}

impl Default for State {
    fn default() -> Self {
        let root = Record::Inode(Box::new(tree::new_root(Time::default(), 0, 0)));
        let records =
            BTreeMap::from([(Key::Inode(Ino::ROOT), root), (Key::Usage, Record::Usage(Usage::default()))]);
        Self {
            records,
            blocks: HashMap::new(),
            version: 1,
            run: 1,
            sessions: BTreeMap::new(),
            locks: LockTable::default(),
            delegations: BTreeMap::new(),
            unclaimed: HashSet::new(),
            asked: Vec::new(),
            unresumed: HashSet::new(),
            loses_claims: false,
            next_session: 1,
            next_ino: 2,
        }
    }
}

impl State {
    fn range(&self, want: &Want) -> Vec<(Key, Option<Record>)> {
        let covered = self.records.iter().filter(|(key, _)| want.covers(key));
        covered.map(|(key, record)| (key.clone(), Some(record.clone()))).collect()
    }

    fn lookup(&self, parent: Ino, name: &tandemfs::name::Name) -> Vec<(Key, Option<Record>)> {
        let key = Key::Entry(parent, name.clone());
        let entry = self.records.get(&key).cloned();
        let inode = match &entry {
            Some(Record::Entry(entry)) => {
                Some((Key::Inode(entry.ino), self.records.get(&Key::Inode(entry.ino)).cloned()))
            }
            _ => None,
        };
        std::iter::once((key, entry)).chain(inode).collect()
    }

    fn answer(&self, want: &Want) -> Answer {
        let (records, complete) = match want {
            Want::Record(key) => (vec![(key.clone(), self.records.get(key).cloned())], true),
            Want::Lookup { parent, name } => (self.lookup(*parent, name), true),
            Want::Directory { ino, after, .. } => {
                let after = after.as_ref();
                let mut entries = self.records.iter().filter_map(|(key, record)| match (key, record) {
                    (Key::Entry(parent, name), Record::Entry(_))
                        if parent == ino && after.is_none_or(|after| name > after) =>
                    {
                        Some(name.clone())
                    }
                    _ => None,
                });
                let page: Vec<_> = entries.by_ref().take(PAGE).collect();
                (page.iter().flat_map(|name| self.lookup(*ino, name)).collect(), entries.next().is_none())
            }
            range => (self.range(range), true),
        };
        Answer { records, complete }
    }

    fn blocker(&self, id: SessionId, wanted: &HeldLock) -> Option<LockOutcome> {
        let blocker = self.locks.blocker(wanted.ino, (id, wanted.owner), wanted.lock, None);
        blocker.map(|((session, _), lock)| LockOutcome::Held { lock, own: session == id })
    }

    /// What comes of all but waiting, for which this gives the place.
    fn lock_outcome(&mut self, id: SessionId, request: &LockRequest) -> LockOutcome {
        if let LockRequest::Claim { locks, asked, .. } = request {
            self.unclaimed.remove(&id);
            if self.loses_claims || locks.iter().any(|held| self.blocker(id, held).is_some()) {
                return LockOutcome::Lost;
            }
            for held in locks {
                self.locks.set(held.ino, (id, held.owner), held.lock).unwrap();
            }
            self.asked.extend(asked.iter().map(|held| (id, *held)));
            return LockOutcome::Done;
        }
        if !self.unclaimed.is_empty() {
            return LockOutcome::Recovering;
        }
        for (id, held) in std::mem::take(&mut self.asked) {
            if self.blocker(id, &held).is_none() {
                self.locks.set(held.ino, (id, held.owner), held.lock).unwrap();
            }
        }
        match request {
            LockRequest::Test(wanted) => self.blocker(id, wanted).unwrap_or(LockOutcome::Done),
            LockRequest::Set { wanted, .. } => self.blocker(id, wanted).unwrap_or_else(|| {
                self.locks.set(wanted.ino, (id, wanted.owner), wanted.lock).unwrap();
                LockOutcome::Done
            }),
            LockRequest::Wait { wanted, .. } => {
                match self.locks.wait(wanted.ino, (id, wanted.owner), wanted.lock, None) {
                    Ok(place) => LockOutcome::Place(place),
                    Err(Refusal::Deadlock) => LockOutcome::Deadlock,
                    Err(Refusal::Full) => LockOutcome::Full,
                }
            }
            LockRequest::Leave(wanted) => {
                self.locks.give_up(wanted.ino, (id, wanted.owner), wanted.lock);
                LockOutcome::Done
            }
            LockRequest::Unlock { ino, owner, start, end } => {
                self.locks.unlock(*ino, (id, *owner), *start, *end).unwrap();
                LockOutcome::Done
            }
            LockRequest::Claim { .. } => unreachable!(),
        }
    }

    /// Reaping says that the author holds an orphan no more; it is done when nobody else does.
    fn without_held(&mut self, author: SessionId, mutations: &[Mutation]) -> Vec<Mutation> {
        let mut kept = Vec::new();
        for mutation in mutations {
            if let Mutation::Reap { ino, .. } = mutation {
                if let Some(session) = self.sessions.get_mut(&author) {
                    session.held.remove(ino);
                }
                if self.sessions.values().any(|session| session.held.contains(ino)) {
                    continue;
                }
            }
            kept.push(mutation.clone());
        }
        kept
    }

    fn try_out(&self, mutations: &[Mutation]) -> (WorkingSet, Result<()>) {
        let mut set = WorkingSet::new();
        for mutation in mutations {
            loop {
                match tree::apply(&mut set, mutation) {
                    Ok(()) => break,
                    Err(Stop::Refused(error)) => return (set, Err(error)),
                    Err(Stop::Missing(wants)) => {
                        for want in wants {
                            for (key, record) in self.answer(&want).records {
                                set.load(key, record);
                            }
                            if matches!(want, Want::Chunks { .. } | Want::Xattrs(_) | Want::Links(_)) {
                                set.load_range(want);
                            }
                        }
                    }
                }
            }
        }
        (set, Ok(()))
    }

    /// Whether all of some records may be shown to a session. If not, those who have the files are told.
    fn may_see<'a>(
        &mut self,
        id: SessionId,
        records: impl Iterator<Item = (&'a Key, &'a Option<Record>)>,
    ) -> bool {
        let files: BTreeSet<Ino> = records
            .filter_map(|(key, record)| match (key, record) {
                (Key::Inode(ino), Some(Record::Inode(inode))) if inode.is_file() => Some(*ino),
                (Key::Chunk(ino, _), _) => Some(*ino),
                _ => None,
            })
            .collect();
        let mut free = files.is_empty() || self.unresumed.iter().all(|other| *other == id);
        for ino in files {
            let Some(other) = self.delegations.get(&ino).filter(|other| **other != id) else { continue };
            free = false;
            if let Some(session) = self.sessions.get_mut(other)
                && session.recalled.insert(ino)
            {
                session.push(|number| Event::Recall { number, inos: vec![ino] });
            }
        }
        free
    }

    fn apply(&mut self, mutations: &[Mutation]) -> Result<Vec<(Key, Option<Record>)>> {
        let (set, result) = self.try_out(mutations);
        result?;
        let changes = set.into_changes();
        for (key, record) in &changes.records {
            match record {
                Some(record) => drop(self.records.insert(key.clone(), record.clone())),
                None => drop(self.records.remove(key)),
            }
        }
        self.version += 1;
        Ok(changes.records.into_iter().collect())
    }
}

impl Session {
    fn push(&mut self, event: impl FnOnce(u64) -> Event) -> u64 {
        self.number += 1;
        let event = event(self.number);
        self.unacked.push_back(event.clone());
        if let Some(stream) = &self.stream {
            let _gone = stream.send(Ok(event));
        }
        self.number
    }
}

impl Daemon {
    /// What is stored under a key.
    pub(crate) fn record(&self, key: &Key) -> Option<Record> {
        self.state.lock().unwrap().records.get(key).cloned()
    }

    pub(crate) fn keys(&self) -> Vec<Key> {
        self.state.lock().unwrap().records.keys().cloned().collect()
    }

    pub(crate) fn blocks(&self) -> usize {
        self.state.lock().unwrap().blocks.len()
    }

    pub(crate) fn sessions(&self) -> usize {
        self.state.lock().unwrap().sessions.len()
    }

    /// Forgets all sessions, as a daemon does that has fenced them.
    pub(crate) fn fence_all(&self) {
        let mut state = self.state.lock().unwrap();
        state.sessions.clear();
        state.locks = LockTable::default();
        state.delegations.clear();
        drop(state);
        self.locks_changed.notify_waiters();
        self.acknowledged.notify_waiters();
    }

    /// Another run: streams end, versions start again.
    pub(crate) fn restart(&self) {
        let mut state = self.state.lock().unwrap();
        state.run += 1;
        state.version = 1;
        state.locks = LockTable::default();
        state.unclaimed = state.sessions.keys().copied().collect();
        state.unresumed = state.unclaimed.clone();
        state.delegations.clear();
        for session in state.sessions.values_mut() {
            session.stream = None;
            session.unacked.clear();
            session.recalled.clear();
            session.acked = session.number;
        }
    }

    /// From now on claims of locks come too late.
    pub(crate) fn lose_claims(&self) {
        self.state.lock().unwrap().loses_claims = true;
    }

    fn up(&self) -> Result<()> {
        if self.down.load(Ordering::SeqCst) {
            return Err(Error::unavailable("refused"));
        }
        if self.denies.load(Ordering::SeqCst) { Err(Error::unauthenticated("token")) } else { Ok(()) }
    }

    /// Ends the token of all: their streams of events are cut, and nothing of theirs is answered.
    pub(crate) fn deny(&self) {
        self.denies.store(true, Ordering::SeqCst);
        for session in self.state.lock().unwrap().sessions.values_mut() {
            session.stream = None;
        }
    }

    /// Loses an answer now and then.
    fn lossy<T>(&self, answer: Result<T>) -> Result<T> {
        let every = self.lose_every.load(Ordering::SeqCst);
        let count = self.count.fetch_add(1, Ordering::SeqCst);
        if every > 0 && count.is_multiple_of(every) { Err(Error::unavailable("lost")) } else { answer }
    }

    fn session<T>(&self, id: SessionId, work: impl FnOnce(&mut Session) -> T) -> Result<T> {
        let mut state = self.state.lock().unwrap();
        state.sessions.get_mut(&id).map(work).ok_or_else(|| Error::session_ended(id.to_string()))
    }

    /// Commits on behalf of a session, and tells the others.
    async fn commit(&self, id: SessionId, batch: &Batch) -> Result<BatchReply> {
        let end = lease_end();
        let (reply, waits) = loop {
            let acknowledged = self.acknowledged.notified();
            tokio::pin!(acknowledged);
            acknowledged.as_mut().enable();
            if !self.may_change(id, batch) {
                self.returned(id, end, acknowledged).await;
                continue;
            }
            let mut state = self.state.lock().unwrap();
            let session = state.sessions.get_mut(&id).ok_or_else(|| Error::session_ended(id.to_string()))?;
            if let Some(answer) = session.answers.get(&batch.sequence) {
                return match answer {
                    Ok(reply) => Ok(reply.clone()),
                    Err(error) => Err(error.duplicate()),
                };
            }
            let mutations = state.without_held(id, &batch.mutations);
            let applied = state.apply(&mutations);
            let records = match applied {
                Ok(records) => records,
                Err(error) => {
                    let answer = Err(error.duplicate());
                    drop(state.sessions.get_mut(&id).unwrap().answers.insert(batch.sequence, answer));
                    return Err(error);
                }
            };
            let version = state.version;
            let orphans: Vec<Ino> = records
                .iter()
                .filter_map(|(key, record)| match (key, record) {
                    (Key::Orphan(ino), Some(_)) => Some(*ino),
                    _ => None,
                })
                .collect();
            let reply = BatchReply { version, records };
            let keys: Vec<Key> = reply.records.iter().map(|(key, _)| key.clone()).collect();
            let mut waits = Vec::new();
            for (other, session) in &mut state.sessions {
                if *other == id {
                    session.answers.insert(batch.sequence, Ok(reply.clone()));
                    session.held.extend(orphans.iter().filter(|ino| batch.held.contains(ino)));
                    continue;
                }
                let (keys, orphans) = (keys.clone(), orphans.clone());
                let number = session.push(|number| Event::Changed { number, version, keys, orphans });
                waits.push((*other, number));
            }
            for ino in &batch.delegates {
                state.delegations.insert(*ino, id);
            }
            break (reply, (waits, orphans));
        };
        let (waits, orphans) = waits;
        self.told(&waits).await;
        self.reap(&orphans);
        Ok(reply)
    }

    /// Waits until sessions have acknowledged events.
    async fn told(&self, waits: &[(SessionId, u64)]) {
        loop {
            let acknowledged = self.acknowledged.notified();
            tokio::pin!(acknowledged);
            acknowledged.as_mut().enable();
            let done = {
                let state = self.state.lock().unwrap();
                waits
                    .iter()
                    .all(|(id, number)| state.sessions.get(id).is_none_or(|other| other.acked >= *number))
            };
            if done {
                return;
            }
            acknowledged.await;
        }
    }

    fn may_change(&self, id: SessionId, batch: &Batch) -> bool {
        let mut state = self.state.lock().unwrap();
        if state.sessions.get(&id).is_none_or(|session| session.answers.contains_key(&batch.sequence)) {
            return true;
        }
        let (set, _) = state.try_out(&batch.mutations);
        state.may_see(id, set.loaded().iter())
    }

    /// Waits until others may have returned their files; who has not by the end of its lease has lost them.
    async fn returned(
        &self,
        id: SessionId,
        end: tokio::time::Instant,
        acknowledged: impl Future<Output = ()>,
    ) {
        if tokio::time::timeout_at(end, acknowledged).await.is_err() {
            self.state.lock().unwrap().delegations.retain(|_, theirs| *theirs == id);
        }
    }

    /// Files that are delegated, and to whom.
    pub(crate) fn delegations(&self) -> Vec<(Ino, SessionId)> {
        self.state.lock().unwrap().delegations.iter().map(|(ino, session)| (*ino, *session)).collect()
    }

    /// All locks: the owner's number and the lock.
    pub(crate) fn locks(&self) -> Vec<(u64, tandemfs::api::locks::Lock)> {
        let state = self.state.lock().unwrap();
        state.locks.locks().map(|(_, (_, owner), lock)| (owner, lock)).collect()
    }

    /// A wait ends when the lock might be free, or after 10 s.
    async fn lock_outcome(&self, id: SessionId, request: &LockRequest) -> LockOutcome {
        match request {
            LockRequest::Wait { .. } => drop(self.lock_waits.fetch_add(1, Ordering::SeqCst)),
            LockRequest::Leave(_) => drop(self.leaves.fetch_add(1, Ordering::SeqCst)),
            _ => {}
        }
        let outcome = self.state.lock().unwrap().lock_outcome(id, request);
        let (LockRequest::Wait { wanted, .. }, LockOutcome::Place(place)) = (request, outcome) else {
            self.locks_changed.notify_waiters();
            return outcome;
        };
        let _place = Place { daemon: self, owner: (id, wanted.owner), place };
        let end = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let changed = self.locks_changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let left = !self.state.lock().unwrap().locks.waits((id, wanted.owner), place);
            let blocked = !left && self.state.lock().unwrap().blocker(id, wanted).is_some();
            if !blocked || tokio::time::timeout_at(end, changed).await.is_err() {
                return outcome;
            }
        }
    }

    async fn take(&self, id: SessionId, ino: Ino) -> Result<()> {
        self.takes.fetch_add(1, Ordering::SeqCst);
        let end = lease_end();
        let waits: Vec<_> = loop {
            let acknowledged = self.acknowledged.notified();
            tokio::pin!(acknowledged);
            acknowledged.as_mut().enable();
            {
                let mut state = self.state.lock().unwrap();
                let key = Key::Inode(ino);
                let record = state.records.get(&key).cloned();
                if record.is_none() {
                    return Err(Error::not_found("file"));
                }
                if state.may_see(id, std::iter::once((&key, &record))) {
                    state.version += 1;
                    state.delegations.insert(ino, id);
                    let version = state.version;
                    let others = state.sessions.iter_mut().filter(|(other, _)| **other != id);
                    break others
                        .map(|(other, session)| {
                            (*other, session.push(|number| Event::Delegated { number, version, ino }))
                        })
                        .collect();
                }
            }
            self.returned(id, end, acknowledged).await;
        };
        self.told(&waits).await;
        Ok(())
    }

    /// Takes away orphans that nobody holds.
    fn reap(&self, orphans: &[Ino]) {
        let mut state = self.state.lock().unwrap();
        for ino in orphans {
            let held = state.sessions.values().any(|session| session.held.contains(ino));
            while !held && state.records.contains_key(&Key::Orphan(*ino)) {
                state.apply(&[Mutation::Reap { ino: *ino, chunks: 16 }]).unwrap();
            }
        }
    }
}

#[async_trait]
impl Remote for Daemon {
    async fn open_session(&self, open: &OpenSession) -> Result<SessionGrant> {
        self.up()?;
        let mut state = self.state.lock().unwrap();
        let session = SessionId(state.next_session);
        state.next_session += 1;
        state.sessions.insert(session, Session::default());
        Ok(SessionGrant {
            session,
            volume: VolumeId(1),
            key: VolumeKey([7; 32]),
            read_only: open.read_only,
            run: state.run,
            version: state.version,
            lease_ms: LEASE_MS,
            short_circuit: None,
            usage: Usage::default(),
        })
    }

    async fn resume_session(&self, session: SessionId, resume: &ResumeSession) -> Result<SessionGrant> {
        self.up()?;
        let mut state = self.state.lock().unwrap();
        let (run, version) = (state.run, state.version);
        let own =
            state.sessions.get_mut(&session).ok_or_else(|| Error::session_ended(session.to_string()))?;
        own.held.extend(&resume.held);
        if state.unresumed.remove(&session) {
            for ino in &resume.delegations {
                state.delegations.entry(*ino).or_insert(session);
            }
            self.acknowledged.notify_waiters();
        }
        Ok(SessionGrant {
            session,
            volume: VolumeId(1),
            key: VolumeKey([7; 32]),
            read_only: false,
            run,
            version,
            lease_ms: LEASE_MS,
            short_circuit: None,
            usage: Usage::default(),
        })
    }

    async fn close_session(&self, session: SessionId) -> Result<()> {
        self.up()?;
        let held = {
            let mut state = self.state.lock().unwrap();
            state.unclaimed.remove(&session);
            state.unresumed.remove(&session);
            state.delegations.retain(|_, theirs| *theirs != session);
            state.locks.release(|(theirs, _)| theirs == session);
            state.sessions.remove(&session).map(|session| session.held).unwrap_or_default()
        };
        self.reap(&held.into_iter().collect::<Vec<_>>());
        self.acknowledged.notify_waiters();
        self.locks_changed.notify_waiters();
        Ok(())
    }

    async fn events(&self, session: SessionId) -> Result<Events> {
        self.up()?;
        let (sender, receiver) = mpsc::unbounded_channel();
        self.session(session, |session| {
            for event in &session.unacked {
                let _sent = sender.send(Ok(event.clone()));
            }
            session.stream = Some(sender);
        })?;
        let stream = futures::stream::unfold(receiver, |mut receiver| async {
            let event = receiver.recv().await?;
            Some((event, receiver))
        });
        Ok(stream.boxed())
    }

    fn last_event(&self, session: SessionId) -> u64 {
        self.state.lock().unwrap().sessions.get(&session).map_or(0, |session| session.number)
    }

    async fn ack(&self, session: SessionId, ack: &Ack) -> Result<()> {
        self.up()?;
        self.session(session, |session| {
            session.acked = session.acked.max(ack.number);
            session.held.extend(&ack.held);
            let acked = session.acked;
            session.unacked.retain(|event| match event {
                Event::Changed { number, .. }
                | Event::Delegated { number, .. }
                | Event::Recall { number, .. } => *number > acked,
                _ => false,
            });
        })?;
        self.acknowledged.notify_waiters();
        Ok(())
    }

    async fn batch(&self, session: SessionId, batch: &Batch) -> Result<BatchReply> {
        self.up()?;
        let release = self.release_batches.notified();
        self.batches.fetch_add(1, Ordering::SeqCst);
        if self.hold_batches.load(Ordering::SeqCst) {
            release.await;
        }
        let answer = self.commit(session, batch).await;
        self.lossy(answer)
    }

    async fn read(&self, session: SessionId, read: &Read) -> Result<ReadReply> {
        self.up()?;
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.session(session, |_| ())?;
        let end = lease_end();
        let reply = loop {
            let acknowledged = self.acknowledged.notified();
            tokio::pin!(acknowledged);
            acknowledged.as_mut().enable();
            {
                let mut state = self.state.lock().unwrap();
                let answers: Vec<Answer> = read.wants.iter().map(|want| state.answer(want)).collect();
                let chunks = read.wants.iter().filter_map(|want| match want {
                    Want::Chunks { ino, .. } => Some((Key::Chunk(*ino, 0), None)),
                    _ => None,
                });
                let chunks: Vec<_> = chunks.collect();
                let seen = answers.iter().flat_map(|answer| &answer.records).chain(&chunks);
                if state.may_see(session, seen.map(|(key, record)| (key, record))) {
                    break ReadReply { version: state.version, answers };
                }
            }
            self.returned(session, end, acknowledged).await;
        };
        if self.hold_reads.load(Ordering::SeqCst) {
            let release = self.release_reads.notified();
            self.reads_held.fetch_add(1, Ordering::SeqCst);
            release.await;
        }
        self.lossy(Ok(reply))
    }

    async fn inodes(&self, session: SessionId) -> Result<InodeRange> {
        self.up()?;
        self.session(session, |_| ())?;
        let mut state = self.state.lock().unwrap();
        let first = Ino(state.next_ino);
        state.next_ino += 5;
        Ok(InodeRange { first, count: 5 })
    }

    async fn delegation(&self, session: SessionId, request: &DelegationRequest) -> Result<DelegationReply> {
        self.up()?;
        self.session(session, |_| ())?;
        match request {
            DelegationRequest::Take(ino) => self.take(session, *ino).await?,
            DelegationRequest::Return(inos) => {
                self.returns.fetch_add(inos.len() as u64, Ordering::SeqCst);
                let mut state = self.state.lock().unwrap();
                for ino in inos {
                    if state.delegations.get(ino) == Some(&session) {
                        state.delegations.remove(ino);
                    }
                    if let Some(session) = state.sessions.get_mut(&session) {
                        session.recalled.remove(ino);
                    }
                }
                drop(state);
                self.acknowledged.notify_waiters();
            }
        }
        let run = self.state.lock().unwrap().run;
        self.lossy(Ok(DelegationReply { run }))
    }

    async fn lock(&self, session: SessionId, request: &LockRequest) -> Result<LockReply> {
        self.up()?;
        self.session(session, |_| ())?;
        if let LockRequest::Claim { run, .. } = request
            && *run != self.state.lock().unwrap().run
        {
            return Err(Error::stale("another run"));
        }
        let outcome = self.lock_outcome(session, request).await;
        self.session(session, |_| ())?;
        let run = self.state.lock().unwrap().run;
        let release = self.release_lock_answers.notified();
        if self.hold_lock_answers.load(Ordering::SeqCst) && !matches!(request, LockRequest::Claim { .. }) {
            release.await;
        }
        self.lossy(Ok(LockReply { run, outcome }))
    }

    async fn put_block(&self, session: SessionId, block: BlockId, data: Bytes) -> Result<()> {
        self.up()?;
        self.session(session, |_| ())?;
        if self.limits.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(Error::too_many_requests("blocks").retry_after(1));
        }
        if self.full.load(Ordering::SeqCst) {
            return Err(Error::no_space("nodes"));
        }
        if self.swallow_blocks.load(Ordering::SeqCst) > 0 {
            self.swallow_blocks.fetch_sub(1, Ordering::SeqCst);
            tokio::time::sleep(std::time::Duration::from_secs(60)).await;
            return Err(Error::timed_out("does not answer"));
        }
        assert_eq!(BlockId::of(&VolumeKey([7; 32]), &data), block);
        self.state.lock().unwrap().blocks.insert(block, data);
        self.lossy(Ok(()))
    }

    async fn get_block(
        &self,
        session: SessionId,
        block: BlockId,
        range: Option<Range<u32>>,
    ) -> Result<Bytes> {
        self.up()?;
        self.session(session, |_| ())?;
        let data = self.state.lock().unwrap().blocks.get(&block).cloned();
        let data = data.ok_or_else(|| Error::not_found("block"))?;
        self.lossy(Ok(match range {
            Some(range) => data.slice(range.start as usize..range.end as usize),
            None => data,
        }))
    }

    async fn storage(&self, _: Option<&str>) -> Result<Storage> {
        Ok(Storage {
            used_bytes: 4096,
            quota_bytes: None,
            available_bytes: 8192,
            files: 1,
            quota_files: Some(3),
        })
    }

    fn is_refused(&self, _: &Error) -> bool {
        self.down.load(Ordering::SeqCst)
    }
}

/// Notes what the kernel was told.
#[derive(Default)]
pub(crate) struct FakeKernel {
    pub(crate) attributes: Mutex<Vec<Ino>>,
    pub(crate) pages: Mutex<Vec<Ino>>,
    pub(crate) names: AtomicU64,
    /// These it has not taken in yet.
    pub(crate) unknown: Mutex<HashSet<Ino>>,
    /// How often it did not know an inode.
    pub(crate) misses: AtomicU64,
    /// Pages of a file, as bytes, that a request under way has locked: dropping them waits.
    pub(crate) locked: Mutex<Option<(Ino, Range<u64>)>>,
}

impl FakeKernel {
    fn note(&self, dropped: &Mutex<Vec<Ino>>, ino: Ino) -> bool {
        if self.unknown.lock().unwrap().contains(&ino) {
            self.misses.fetch_add(1, Ordering::SeqCst);
            return false;
        }
        dropped.lock().unwrap().push(ino);
        true
    }
}

impl Kernel for Arc<FakeKernel> {
    fn drop_attributes(&self, ino: Ino) -> bool {
        self.note(&self.attributes, ino)
    }

    fn drop_pages(&self, ino: Ino, offset: u64, length: u64) -> bool {
        let end = if length == 0 { u64::MAX } else { offset + length };
        // Not for ever, so that a test that fails ends.
        for _ in 0..5000 {
            let is_locked = self
                .locked
                .lock()
                .unwrap()
                .as_ref()
                .is_some_and(|(of, pages)| *of == ino && pages.start < end && offset < pages.end);
            if !is_locked {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        self.note(&self.pages, ino)
    }

    fn drop_names(&self) {
        self.names.fetch_add(1, Ordering::SeqCst);
    }
}
