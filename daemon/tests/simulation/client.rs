//! A simulated mount: one writer of one directory, who also reads all others', through the API that mounts use.
//!
//! It outlives the daemon. Its session is taken up again after a crash, or it vanishes and comes back as another; what it
//! had under way is then in doubt, and must be found done or not done.

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tandemfs::api::fs::{
    Batch, BatchReply, InlineBlock, OpenSession, Read, ReadReply, ResumeSession, SessionGrant,
};
use tandemfs::id::{BlockId, Ino, SessionId, VolumeKey};
use tandemfs::name::Name;
use tandemfs::tree::{Key, Kind, Mutation, Record, Want};
use tandemfs::{Error, ErrorKind, Result};
use tokio::time::Instant;

use crate::cache::Cache;
use crate::daemon::Parts;
use crate::history::Tree;
use crate::random::Random;
use crate::trace::{note, violate};
use crate::world::World;

/// Within this time every call ends while a quorum is healthy (faults.md S2).
pub const PATIENCE: Duration = Duration::from_secs(100);

/// A client.
#[derive(Debug)]
pub struct Client {
    /// Its number.
    pub number: usize,
    state: Mutex<State>,
}

/// What a client knows.
#[derive(Debug)]
pub struct State {
    pub random: Random,
    /// Its directory.
    pub directory: Ino,
    pub session: Option<Session>,
    /// A batch without an answer yet.
    pub pending: Option<Batch>,
    /// In which run of the daemon it was sent first: versions of different runs cannot be compared.
    pending_since: u64,
    pub cache: Cache,
    /// The newest state that it was shown: in which session, of which version, and the last event by then.
    pub shown: Option<(SessionId, u64, u64)>,
    /// Files that it holds open, with what is in those that nobody can change any more.
    pub held: BTreeMap<Ino, Option<Arc<Vec<u8>>>>,
    /// Files that are delegated to it, and since when; and those that it has asked for.
    pub delegated: BTreeMap<Ino, Instant>,
    pub asked: BTreeSet<Ino>,
    /// The same for all of the volume.
    pub volume: Option<Instant>,
    pub asked_all: bool,
    /// Does nothing, and answers no event, until then.
    pub stalled: Option<Instant>,
    /// What was left of the lease when the daemon died.
    lease_left: Option<Duration>,
}

/// A session as its client knows it.
#[derive(Clone, Debug)]
pub struct Session {
    pub id: SessionId,
    pub key: VolumeKey,
    pub run: u64,
    pub lease: Duration,
    pub sequence: u64,
    pub inodes: std::ops::Range<u64>,
    /// The daemon that runs now knows of it.
    pub is_attached: bool,
}

/// What became of a call.
pub enum Called<T> {
    /// An answer.
    Answered(T),
    /// A definite refusal.
    Refused(Error),
    /// It may have happened or not; another try may tell.
    InDoubt,
    /// The session is no more.
    Ended,
}

impl Client {
    /// A client that has not yet been anywhere.
    pub fn new(number: usize, random: Random) -> Self {
        let state = State {
            random,
            directory: Ino(0),
            session: None,
            pending: None,
            pending_since: 0,
            cache: Cache::default(),
            shown: None,
            held: BTreeMap::new(),
            delegated: BTreeMap::new(),
            asked: BTreeSet::new(),
            volume: None,
            asked_all: false,
            stalled: None,
            lease_left: None,
        };
        Self { number, state: Mutex::new(state) }
    }

    /// What it knows. Never kept over an `await`.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The daemon has died; the client has not.
    pub fn daemon_died(&self, now: Instant) {
        let mut state = self.state();
        state.lease_left = state.cache.lease.and_then(|until| until.checked_duration_since(now));
        state.cache.forget_requests();
        state.stalled = None;
        if let Some(session) = &mut state.session {
            session.is_attached = false;
        }
    }

    /// Another daemon runs.
    pub fn daemon_started(&self, now: Instant) {
        let mut state = self.state();
        state.cache.lease = state.lease_left.take().map(|left| now + left);
    }

    /// Relies on nothing any more.
    pub fn let_loose(&self) {
        let mut state = self.state();
        state.cache.drop_all();
        state.delegated.clear();
        state.volume = None;
    }

    /// The machine of the client is gone, and with it all that was not done.
    pub fn vanish(&self) {
        let mut state = self.state();
        state.session = None;
        state.cache = Cache::default();
        state.held.clear();
        state.delegated.clear();
        state.volume = None;
        state.pending = None;
    }
}

impl State {
    /// A sign of life was sent at `sent` and has been answered.
    pub fn renewed(&mut self, session: SessionId, sent: Instant) {
        if let Some(held) = self.session.as_ref().filter(|held| held.id == session) {
            let until = sent + held.lease;
            if self.cache.lease.is_none_or(|lease| lease < until) {
                self.cache.lease = Some(until);
            }
        }
    }

    /// The daemon says that the session is over.
    pub fn ended(&mut self, session: SessionId) {
        if self.session.as_ref().is_some_and(|held| held.id == session) {
            self.session = None;
            // Nobody else can ask what became of it: what is there tells.
            self.pending = None;
            self.cache.drop_all();
            self.cache.lease = None;
            self.held.clear();
            self.volume = None;
            self.delegated.clear();
        }
    }

    fn granted(&mut self, grant: &SessionGrant, sent: Instant) {
        let lease = Duration::from_millis(grant.lease_ms);
        let before = self.session.take().filter(|held| held.id == grant.session);
        if before.is_none() {
            self.volume = None;
            self.delegated.clear();
        }
        if before.as_ref().is_none_or(|held| held.run != grant.run) {
            self.cache.drop_all();
        }
        let (sequence, inodes) = before.map_or((1, 0..0), |held| (held.sequence, held.inodes));
        let session = Session {
            id: grant.session,
            key: grant.key.clone(),
            run: grant.run,
            lease,
            sequence,
            inodes,
            is_attached: true,
        };
        self.session = Some(session);
        self.cache.lease = Some(sent + lease);
    }
}

/// A client at work with a daemon.
#[derive(Clone)]
pub struct Mount {
    pub world: Arc<World>,
    pub client: Arc<Client>,
    pub parts: Arc<Parts>,
}

impl Mount {
    /// Makes a call. Sometimes nobody waits for the answer: the connection is cut at a random moment.
    pub async fn call<T>(&self, what: &str, call: impl Future<Output = Result<T>>) -> Called<T> {
        let number = self.client.number;
        let cut = {
            let mut state = self.client.state();
            state.random.chance(40).then(|| Duration::from_millis(state.random.below(12)))
        };
        let result = match tokio::time::timeout(cut.unwrap_or(PATIENCE), call).await {
            Ok(result) => result,
            Err(_) if cut.is_some() => {
                note!(self.world.trace, "client {number} {what}: cut off");
                return Called::InDoubt;
            }
            Err(_) => {
                violate!(self.world.trace, "client {number} {what}: no answer within {PATIENCE:?}");
                return Called::InDoubt;
            }
        };
        match result {
            Ok(answer) => Called::Answered(answer),
            Err(error) => {
                note!(self.world.trace, "client {number} {what}: {error:?}");
                match error.kind() {
                    ErrorKind::Unavailable | ErrorKind::TimedOut | ErrorKind::TooManyRequests => {
                        Called::InDoubt
                    }
                    ErrorKind::SessionEnded => Called::Ended,
                    ErrorKind::Internal | ErrorKind::Corrupt => {
                        violate!(self.world.trace, "client {number} {what}: {error:?}");
                        Called::InDoubt
                    }
                    _ => Called::Refused(error),
                }
            }
        }
    }

    /// The attached session; opens or resumes one if need be.
    pub async fn session(&self) -> Option<Session> {
        let held = self.client.state().session.clone();
        match held {
            Some(session) if session.is_attached => return Some(session),
            Some(session) => self.resume(&session).await,
            None => self.open().await,
        }
        let state = self.client.state();
        state.session.clone().filter(|session| session.is_attached)
    }

    async fn open(&self) {
        let sent = Instant::now();
        let name = format!("client {}", self.client.number);
        let open = OpenSession { volume: None, read_only: false, client: name };
        if let Called::Answered(grant) = self.call("open", self.parts.open(open)).await {
            note!(self.world.trace, "client {} has session {}", self.client.number, grant.session);
            self.client.state().granted(&grant, sent);
            tokio::spawn(crate::listener::listen(self.clone(), grant.session));
        }
    }

    async fn resume(&self, session: &Session) {
        let sent = Instant::now();
        let held: Vec<Ino> = self.client.state().held.keys().copied().collect();
        let delegations = self.client.state().delegated.keys().copied().collect();
        let volume = self.client.state().volume.is_some();
        note!(self.world.trace, "client {} will resume {} with {held:?}", self.client.number, session.id);
        match self
            .call("resume", self.parts.resume(session.id, ResumeSession { held, delegations, volume }))
            .await
        {
            Called::Answered(grant) => {
                note!(self.world.trace, "client {} resumes session {}", self.client.number, grant.session);
                self.client.state().granted(&grant, sent);
                tokio::spawn(crate::listener::listen(self.clone(), grant.session));
            }
            Called::Ended | Called::Refused(_) => {
                note!(self.world.trace, "client {} has lost session {}", self.client.number, session.id);
                self.client.state().ended(session.id);
            }
            Called::InDoubt => {}
        }
    }

    /// Numbers for new inodes.
    pub async fn new_ino(&self, session: &Session) -> Option<Ino> {
        if session.inodes.is_empty() {
            let Called::Answered(range) = self.answer(session, "inodes", self.parts.inodes(session.id)).await
            else {
                return None;
            };
            let mut state = self.client.state();
            let held = state.session.as_mut().filter(|held| held.id == session.id)?;
            held.inodes = range.first.0..range.first.0 + range.count;
        }
        let mut state = self.client.state();
        let held = state.session.as_mut().filter(|held| held.id == session.id)?;
        held.inodes.next().map(Ino)
    }

    /// A call on a session: notices when that has ended.
    pub async fn answer<T>(
        &self,
        session: &Session,
        what: &str,
        call: impl Future<Output = Result<T>>,
    ) -> Called<T> {
        let called = self.call(what, call).await;
        if matches!(called, Called::Ended) {
            self.client.state().ended(session.id);
        }
        called
    }

    /// Reads records from the daemon, past the cache, and takes them into it.
    pub async fn read(&self, session: &Session, wants: Vec<Want>) -> Called<ReadReply> {
        let asked = Instant::now();
        let request = self.client.state().cache.begin();
        let called = self.answer(session, "read", self.parts.read(session.id, Read { wants })).await;
        if let Called::Answered((reply, _)) = &called {
            reply.answers.iter().for_each(|answer| self.may_be_shown(asked, &answer.records));
        }
        let mut state = self.client.state();
        let (called, last) = match called {
            Called::Answered((reply, last)) => (Called::Answered(reply), last),
            Called::Refused(error) => (Called::Refused(error), None),
            Called::Ended => (Called::Ended, None),
            Called::InDoubt => (Called::InDoubt, None),
        };
        match &called {
            Called::Answered(reply) => {
                let version = stamp(session, reply.version);
                if let Some(last) = last
                    && state.shown.is_none_or(|(_, shown, _)| shown <= version)
                {
                    state.shown = Some((session.id, version, last));
                }
                let records: Vec<_> =
                    reply.answers.iter().flat_map(|answer| answer.records.iter().cloned()).collect();
                state.cache.finish(request, stamp(session, reply.version), &records);
            }
            _ => state.cache.finish(request, 0, &[]),
        }
        called
    }

    /// One record, from the cache if that has it and may be used. The outer `None`: it could not be had.
    pub async fn record(&self, key: &Key) -> Option<Option<Record>> {
        if let Some(record) = self.client.state().cache.get(key) {
            return Some(record);
        }
        let session = self.session().await?;
        match self.read(&session, vec![Want::Record(key.clone())]).await {
            Called::Answered(reply) => {
                let record = reply.answers.first().and_then(|answer| answer.records.first());
                Some(record.and_then(|(_, record)| record.clone()))
            }
            _ => None,
        }
    }

    /// Stores a block; `false` if it could not be.
    pub async fn put_block(&self, session: &Session, data: &Bytes) -> bool {
        let id = BlockId::of(&session.key, data);
        let began = Instant::now();
        while began.elapsed() < PATIENCE && !self.world.trace.is_violated() {
            let call = self.parts.put_block(session.id, id, data.clone());
            match self.answer(session, "put_block", call).await {
                Called::Answered(()) => {
                    self.world.block_is_durable(&id);
                    return true;
                }
                Called::Ended => return false,
                Called::Refused(error) => {
                    violate!(
                        self.world.trace,
                        "client {}: a block is refused: {error:?}",
                        self.client.number
                    );
                    return false;
                }
                Called::InDoubt => self.breathe(300).await,
            }
        }
        self.world.expect_service("a block cannot be stored");
        false
    }

    /// Bytes of a block. `None`: they could not be had, which is a violation only if `must`.
    pub async fn get_block(
        &self,
        session: &Session,
        id: BlockId,
        from: u32,
        to: u32,
    ) -> Option<Called<Bytes>> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE && !self.world.trace.is_violated() {
            match self.answer(session, "get_block", self.parts.get_block(session.id, id, from..to)).await {
                Called::InDoubt => self.breathe(300).await,
                other => return Some(other),
            }
        }
        self.world.expect_service("a block cannot be read");
        None
    }

    /// Sends the pending batch until it is known what became of it, or the session is gone.
    pub async fn send(&self, session: &Session) -> Called<BatchReply> {
        let began = Instant::now();
        let is_of_this_run = self.client.state().pending_since == session.run;
        let mut is_first = is_of_this_run;
        loop {
            let Some(batch) = self.client.state().pending.clone() else { return Called::Ended };
            let sequence = batch.sequence;
            let request = self.client.state().cache.begin();
            let called = self.answer(session, "batch", self.parts.batch(session.id, batch)).await;
            {
                let mut state = self.client.state();
                match &called {
                    Called::Answered(reply) if is_first => {
                        state.cache.finish(request, stamp(session, reply.version), &reply.records);
                    }
                    // An answer that is given again is as old as the first one, and others' changes may lie between.
                    Called::Answered(reply) => {
                        state.cache.finish(request, 0, &[]);
                        let keys: Vec<Key> = reply.records.iter().map(|(key, _)| key.clone()).collect();
                        state.cache.drop_keys(&keys);
                    }
                    _ => state.cache.finish(request, 0, &[]),
                }
            }
            match called {
                Called::Answered(reply) => {
                    if is_of_this_run {
                        self.world.nobody_holds_older(self.client.number, session, &reply);
                    }
                    self.twice(session, &reply).await;
                    return Called::Answered(reply);
                }
                Called::InDoubt => {}
                other => return other,
            }
            is_first = false;
            if began.elapsed() > PATIENCE {
                self.world.expect_service(&format!("batch {sequence} cannot be committed"));
            }
            if self.world.trace.is_violated() {
                return Called::Ended;
            }
            self.breathe(80).await;
        }
    }

    /// Sometimes asks the same again: the answer must be the same, and nothing must happen twice.
    async fn twice(&self, session: &Session, before: &BatchReply) {
        let again = {
            let mut state = self.client.state();
            let again = state.random.chance(100);
            state.pending.clone().filter(|_| again)
        };
        let Some(batch) = again else { return };
        let sequence = batch.sequence;
        match self.answer(session, "batch again", self.parts.batch(session.id, batch)).await {
            Called::Answered(reply) if reply != *before => {
                violate!(
                    self.world.trace,
                    "client {}: batch {sequence} was answered {before:?} and then {reply:?}",
                    self.client.number
                );
            }
            Called::Refused(error) => {
                violate!(
                    self.world.trace,
                    "client {}: batch {sequence} was answered, and then refused: {error:?}",
                    self.client.number
                );
            }
            _ => {}
        }
    }

    /// Lets some time pass.
    pub async fn breathe(&self, most: u64) {
        let time = self.client.state().random.between(1, most);
        tokio::time::sleep(Duration::from_millis(time)).await;
    }

    /// The content of a directory as the daemon gives it, past the cache. `None`: it could not be had.
    pub async fn look(&self, session: &Session, directory: Ino) -> Option<Tree> {
        let want = Want::Directory { ino: directory, after: None, limit: 1000 };
        let Called::Answered(reply) = self.read(session, vec![want]).await else { return None };
        let mut tree = Tree::default();
        for (key, record) in &reply.answers.first()?.records {
            if let (Key::Entry(parent, name), Some(Record::Entry(entry))) = (key, record)
                && *parent == directory
                && entry.kind == Kind::File
            {
                tree.names.insert(name.to_lossy(), entry.ino);
            }
        }
        let inos: Vec<Ino> = tree.names.values().copied().collect();
        for ino in inos {
            if !tree.files.contains_key(&ino) {
                let content = self.content(session, ino).await??;
                tree.files.insert(ino, Arc::new(content));
            }
        }
        Some(tree)
    }

    /// What is in a file, past the cache: the outer `None` if it could not be had, the inner one if there is no such file.
    pub async fn content(&self, session: &Session, ino: Ino) -> Option<Option<Vec<u8>>> {
        let wants = vec![Want::Record(Key::Inode(ino)), Want::Chunks { ino, from: 0, to: 1 }];
        let Called::Answered(reply) = self.read(session, wants).await else { return None };
        let record = |answer: usize| reply.answers.get(answer)?.records.first()?.1.clone();
        let (inode, chunk) = (record(0), record(1));
        if let (Some(Record::Inode(inode)), Some(Record::Chunk(chunk))) = (&inode, &chunk)
            && chunk.0.iter().any(|extent| u64::from(extent.end()) > inode.size)
        {
            violate!(
                self.world.trace,
                "client {}: {chunk:?} in a file of {} bytes",
                self.client.number,
                inode.size
            );
        }
        self.assemble(session, inode, chunk).await
    }

    /// The bytes of a file from its records.
    pub async fn assemble(
        &self,
        session: &Session,
        inode: Option<Record>,
        chunk: Option<Record>,
    ) -> Option<Option<Vec<u8>>> {
        let Some(Record::Inode(inode)) = inode else { return Some(None) };
        let mut content = vec![0; inode.size as usize];
        let extents = match chunk {
            Some(Record::Chunk(chunk)) => chunk.0,
            _ => Vec::new(),
        };
        for extent in extents {
            let (from, to) = (extent.offset, extent.offset + extent.length);
            match self.get_block(session, extent.block, from, to).await? {
                Called::Answered(bytes) => {
                    let place = content.get_mut(extent.start as usize..extent.end() as usize);
                    match place {
                        Some(place) if bytes.len() == place.len() => place.copy_from_slice(&bytes),
                        // Records of two moments, between which the file was cut off: they are not the same file's.
                        None => return None,
                        _ => {
                            violate!(
                                self.world.trace,
                                "client {}: {} bytes for {extent:?} of a file of {}",
                                self.client.number,
                                bytes.len(),
                                inode.size
                            );
                            return None;
                        }
                    }
                }
                // Collected since: the caller finds out whether the file was changed.
                Called::Refused(error) if error.kind() == ErrorKind::NotFound => return Some(None),
                Called::Refused(error) => {
                    violate!(self.world.trace, "client {}: reading a block: {error:?}", self.client.number);
                    return None;
                }
                Called::InDoubt | Called::Ended => return None,
            }
        }
        Some(Some(content))
    }

    /// Puts a batch together that will be sent as the next one of the session.
    pub fn prepare(
        &self,
        session: SessionId,
        mutations: Vec<Mutation>,
        held: Vec<Ino>,
        blocks: Vec<InlineBlock>,
    ) -> bool {
        let mut state = self.client.state();
        let Some(of) = state.session.as_mut().filter(|of| of.id == session) else { return false };
        let sequence = of.sequence;
        of.sequence += 1;
        let run = of.run;
        note!(
            self.world.trace,
            "client {} session {session} batch {sequence}: {mutations:?}",
            self.client.number
        );
        state.pending =
            Some(Batch { sequence, mutations, held, delegates: Vec::new(), blocks, brief: false });
        state.pending_since = run;
        true
    }
}

/// The order of versions over all runs.
pub fn stamp(session: &Session, version: u64) -> u64 {
    (session.run << 40) + version
}

/// A name of an entry.
pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}
