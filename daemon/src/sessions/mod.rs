//! Mounts' sessions: who may change what, batches once for each sequence number, and events that are acknowledged before
//! somebody else's change is.
//!
//! A session gives a sign of life with every request. One that is silent for its lease is fenced: nobody waits for it any
//! more, and it has to open a new one. Sessions are stored, so they outlive the daemon; what they remember of the run before is
//! dropped by their first event.

pub(crate) mod audience;
#[cfg(test)]
mod delegation_tests;
mod delegations;
mod events;
#[cfg(test)]
mod lock_tests;
mod locks;
mod session;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tandemfs::api::fs::{
    Ack, BATCH_MUTATIONS_MAX, Batch, BatchReply, DELEGATIONS_MAX, DelegationReply, DelegationRequest,
    InodeRange, OpenSession, Read, ReadReply, ResumeSession, SESSION_SLOTS, SessionGrant,
};
use tandemfs::api::locks::{LockOutcome, LockReply, LockRequest};
use tandemfs::api::volumes::Access;
use tandemfs::block::Draft;
use tandemfs::clock::Clock;
use tandemfs::id::{BlockId, Ino, SessionId, UserId};
use tandemfs::tree::{Key, Mutation, Record};
use tandemfs::{Error, Result};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use self::audience::Audience;
use self::session::{Answered, Begun, Session};
use crate::accounts::Caller;
use crate::meta::{self, Meta, Write, keys, record};
use crate::metrics::COUNTERS;
use crate::settings::Settings;
use crate::volumes::{Change, Mutations, Volume, Volumes};
use crate::watch;

/// Inode numbers that are granted at once.
const INODES: u64 = 4096;
/// The longest name of a client, in bytes.
const CLIENT_MAX: usize = 256;
/// Sessions of one user.
const SESSIONS_MAX: usize = 64;
/// How long files are kept from others after a start, so that mounts can say what was delegated to them. Those that live come back
/// within a second.
const CLAIM_MAX: Duration = Duration::from_secs(5);
/// How many sessions are read at once when the daemon starts.
const PAGE: usize = 1000;

/// All sessions.
#[derive(Debug)]
pub struct Sessions {
    meta: Meta,
    volumes: Arc<Volumes>,
    audience: Arc<Audience>,
    clock: Arc<dyn Clock>,
    lease: Duration,
    short_circuit: OnceLock<String>,
    /// Requests that wait for locks: they must leave room for those that unlock.
    lock_waits: Semaphore,
    worker: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Sessions {
    /// Takes up the sessions of the run before.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn open(
        meta: Meta,
        volumes: Arc<Volumes>,
        settings: &Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>> {
        let lease = Duration::from_millis(settings.lease_ms);
        let audience = Arc::clone(volumes.audience());
        let prefix = b"s".to_vec();
        let (mut from, end) = (prefix.clone(), keys::end_of(&prefix));
        loop {
            let page: Vec<(meta::Key, record::Session)> = meta.scan(&from, &end, PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            from = crate::volumes::key_after(last);
            for (_, record) in page {
                let volume = record.volume;
                audience.locks(volume).expect(record.id);
                if !record.read_only {
                    audience.delegations(volume).expect(record.id);
                }
                let session = Session::recovered(record, lease, meta.run(), 1);
                audience.add(volume, Arc::new(session));
            }
        }
        let sessions = Arc::new(Self {
            meta,
            volumes,
            audience,
            clock,
            lease,
            short_circuit: OnceLock::new(),
            lock_waits: Semaphore::new((settings.max_requests / 2).min(Semaphore::MAX_PERMITS)),
            worker: std::sync::Mutex::default(),
        });
        let worker = tokio::spawn(watch_over(Arc::downgrade(&sessions), lease));
        *sessions.worker.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(worker);
        Ok(sessions)
    }

    /// From now on sessions are told of a socket for short-circuit reads.
    /// The last event that there is for a session, if that has not ended. Everything that has been answered so far shows no
    /// more than what comes with it.
    pub fn last_event(&self, id: SessionId) -> Option<u64> {
        self.audience.get(id).map(|session| session.last())
    }

    pub(crate) fn offer_short_circuit(&self, name: String) {
        // There is one in a daemon's life.
        let _second = self.short_circuit.set(name);
    }

    /// Stops watching over the sessions; they stay stored for the next run.
    pub fn stop(&self) {
        if let Some(worker) = self.worker.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            worker.abort();
        }
    }

    /// Opens a session on the caller's home volume, or on a shared one that is granted; one that is granted for reading is opened for
    /// reading only.
    ///
    /// # Errors
    /// `NotFound` for a volume that the caller may not know of; `TooManyRequests` with too many sessions.
    pub async fn start(&self, caller: &Caller, open: OpenSession) -> Result<SessionGrant> {
        let id = match &open.volume {
            Some(name) => self.volumes.shared_id(caller, name)?,
            None => caller.home,
        };
        if open.client.len() > CLIENT_MAX {
            return Err(Error::invalid(format!("the client's name is longer than {CLIENT_MAX} bytes")));
        }
        let of_user =
            self.audience.all().iter().filter(|session| session.record().user == caller.user).count();
        if of_user >= SESSIONS_MAX {
            return Err(Error::too_many_requests(format!("{SESSIONS_MAX} sessions are open")));
        }
        let volume = self.volumes.volume(id).await?;
        let record = record::Session {
            id: SessionId(self.meta.next_numbers("session", 1).await?),
            user: caller.user,
            volume: id,
            read_only: open.read_only || self.volumes.access(caller, id) != Some(Access::Write),
            client: open.client,
            opened: self.clock.now(),
            inodes: Vec::new(),
        };
        self.meta.commit(Vec::new(), vec![meta::put(keys::session(record.id), &record)?]).await?;
        let session = Arc::new(Session::opened(record, self.lease));
        self.audience.add(id, Arc::clone(&session));
        self.grant(&session, &volume).await
    }

    /// Takes a session up again.
    ///
    /// # Errors
    /// `SessionEnded` when it was fenced; `NotFound` for somebody else's.
    pub async fn resume(
        &self,
        caller: &Caller,
        id: SessionId,
        resume: &ResumeSession,
    ) -> Result<SessionGrant> {
        let (session, volume) = self.find(caller, id).await?;
        volume.orphans().hold(id, &resume.held);
        self.audience.check_ended(session.record().volume, id);
        let of = session.record().volume;
        if !self.audience.delegations(of).claim(id, &resume.delegations) {
            log::warn!("session {id} says too late which files were delegated to it: fenced");
            self.audience.end(&session);
            return Err(Error::session_ended(format!("session {id}")));
        }
        self.audience.free(of, &session);
        self.grant(&session, &volume).await
    }

    async fn grant(&self, session: &Session, volume: &Volume) -> Result<SessionGrant> {
        let read = volume.read(Some(session.id), &[tandemfs::tree::Want::Record(Key::Usage)]).await?;
        let usage = match read.answers.into_iter().next().and_then(|mut answer| answer.records.pop()) {
            Some((_, Some(Record::Usage(usage)))) => usage,
            _ => tandemfs::tree::Usage::default(),
        };
        let record = session.record();
        Ok(SessionGrant {
            session: record.id,
            volume: record.volume,
            key: volume.key().clone(),
            read_only: record.read_only,
            run: self.meta.run(),
            version: read.version,
            lease_ms: u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX),
            usage,
            short_circuit: self.short_circuit.get().cloned(),
        })
    }

    /// Ends a session in good order.
    ///
    /// # Errors
    /// As [`Sessions::resume`].
    pub async fn close(&self, caller: &Caller, id: SessionId) -> Result<()> {
        let (session, _) = self.find(caller, id).await?;
        self.audience.end(&session);
        self.clear_ended().await;
        Ok(())
    }

    /// Ends all sessions of a user who was disabled or deleted.
    pub fn end_user(&self, user: UserId) {
        for session in self.audience.all() {
            if session.record().user == user {
                self.audience.end(&session);
            }
        }
    }

    /// All sessions, for admins.
    pub fn list(&self) -> Vec<record::Session> {
        self.audience.all().iter().map(|session| session.record()).collect()
    }

    /// A stream of what the session has to know.
    ///
    /// # Errors
    /// As [`Sessions::resume`].
    pub async fn events(
        &self,
        caller: &Caller,
        id: SessionId,
    ) -> Result<impl futures::Stream<Item = tandemfs::api::fs::Event> + Send + use<>> {
        let (session, _) = self.find(caller, id).await?;
        Ok(events::stream(session))
    }

    /// Takes an acknowledgement.
    ///
    /// # Errors
    /// As [`Sessions::resume`]; `Invalid` for an event that there was not.
    pub async fn acknowledge(&self, caller: &Caller, id: SessionId, ack: &Ack) -> Result<()> {
        let session = self.session(caller, id)?;
        let volume = self.volumes.volume(session.record().volume).await?;
        volume.orphans().hold(id, &ack.held);
        self.audience.check_ended(session.record().volume, id);
        session.acknowledge(ack)?;
        self.touch(&session)
    }

    /// Commits a batch, once for its sequence number.
    ///
    /// # Errors
    /// As [`Sessions::resume`]; `ReadOnly`, but not for [`Mutation::Reap`] alone; `Stale` for a sequence number out of the window; those of the rules.
    pub async fn batch(&self, caller: &Caller, id: SessionId, batch: Batch) -> Result<BatchReply> {
        let (session, volume) = self.find(caller, id).await?;
        // Who may only read lets go of what it held open as well.
        if !batch.mutations.iter().all(|mutation| matches!(mutation, Mutation::Reap { .. })) {
            self.writable(caller, &session)?;
        }
        if batch.sequence == 0
            || batch.mutations.len() > BATCH_MUTATIONS_MAX
            || batch.held.len() > BATCH_MUTATIONS_MAX
            || batch.delegates.len() > BATCH_MUTATIONS_MAX
        {
            return Err(Error::invalid("sequence number 0, or too much in one batch"));
        }
        self.load_slots(&session).await?;
        let sequence = batch.sequence;
        let mut waiter = match session.begin(sequence)? {
            Begun::UnderWay(waiter) => waiter,
            Begun::Done => return self.answer_again(&session, sequence).await,
            Begun::New(answer) => {
                let waiter = answer.subscribe();
                // On its own, so that a client that goes away does not leave it half done.
                let audience = Arc::clone(&self.audience);
                tokio::spawn(run_batch(audience, session, volume, batch, answer));
                waiter
            }
        };
        let answer = waiter.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone());
        match answer.as_deref() {
            Some(Ok(reply)) => Ok(reply.clone()),
            Some(Err(error)) => Err(error.duplicate()),
            None => Err(Error::internal("a batch was cut short")),
        }
    }

    /// Gives the answer to a batch that was committed before. The daemon may have stopped between the commit and the others'
    /// acknowledgements, so what they have not carried out yet is waited for.
    async fn answer_again(&self, session: &Session, sequence: u64) -> Result<BatchReply> {
        let key = keys::reply(session.id, sequence % SESSION_SLOTS);
        let kept: Option<(u64, BatchReply)> = self.meta.get(&key).await?;
        let Some((_, reply)) = kept.filter(|(kept, _)| *kept == sequence) else {
            return Err(Error::stale(format!("the answer to batch {sequence} is not kept any more")));
        };
        self.audience.told_before(session.record().volume, session.id).acknowledged().await;
        Ok(reply)
    }

    /// After a restart: which answers are kept.
    async fn load_slots(&self, session: &Session) -> Result<()> {
        if !session.has_slots() {
            let sequences: Vec<_> = self.kept_replies(session.id).await?;
            session.load_slots(sequences.into_iter().map(|(_, sequence)| sequence));
        }
        Ok(())
    }

    async fn kept_replies(&self, id: SessionId) -> Result<Vec<(meta::Key, u64)>> {
        let (mut from, end) = (keys::reply(id, 0), keys::reply(id, SESSION_SLOTS));
        let mut kept = Vec::new();
        loop {
            // A few at a time: an answer may be large.
            let page: Vec<(meta::Key, (u64, BatchReply))> = self.meta.scan(&from, &end, 16).await?;
            let Some((last, _)) = page.last() else { return Ok(kept) };
            from = crate::volumes::key_after(last);
            kept.extend(page.into_iter().map(|(key, (sequence, _))| (key, sequence)));
        }
    }

    /// Answers wants.
    ///
    /// # Errors
    /// As [`Sessions::resume`].
    pub async fn read(&self, caller: &Caller, id: SessionId, read: &Read) -> Result<ReadReply> {
        let (_, volume) = self.find(caller, id).await?;
        volume.read(Some(id), &read.wants).await
    }

    /// Grants inode numbers.
    ///
    /// # Errors
    /// As [`Sessions::resume`]; `ReadOnly`.
    pub async fn inodes(&self, caller: &Caller, id: SessionId) -> Result<InodeRange> {
        let (session, volume) = self.find(caller, id).await?;
        self.writable(caller, &session)?;
        let range = volume.take_inos(INODES).await?;
        let (first, count) = (Ino(range.start), range.end - range.start);
        let record = session.with_inodes(first, count);
        self.meta.commit(Vec::new(), vec![meta::put(keys::session(id), &record)?]).await?;
        Ok(InodeRange { first, count })
    }

    /// Takes or returns delegations.
    ///
    /// # Errors
    /// As [`Sessions::resume`]; `ReadOnly`; `NotFound` for what is no file; `TooManyRequests` with too many; `Invalid` for too many at once.
    pub async fn delegation(
        &self,
        caller: &Caller,
        id: SessionId,
        request: &DelegationRequest,
    ) -> Result<DelegationReply> {
        let (session, volume) = self.find(caller, id).await?;
        match request {
            DelegationRequest::Take(ino) => {
                self.writable(caller, &session)?;
                volume.delegate(id, *ino).await?;
            }
            DelegationRequest::Return(files) if files.len() > DELEGATIONS_MAX => {
                return Err(Error::invalid(format!("more than {DELEGATIONS_MAX} files")));
            }
            DelegationRequest::Return(files) => {
                session.returned(files);
                self.audience.delegations(session.record().volume).give_back(id, files);
            }
        }
        Ok(DelegationReply { run: self.meta.run() })
    }

    /// Tests, sets, waits for, or releases locks.
    ///
    /// # Errors
    /// As [`Sessions::resume`]; `Invalid` for a range that is none; `Stale` for a claim that was meant for another run.
    pub async fn lock(&self, caller: &Caller, id: SessionId, request: LockRequest) -> Result<LockReply> {
        let session = self.session(caller, id)?;
        self.touch(&session)?;
        let run = self.meta.run();
        let _wait = match &request {
            LockRequest::Wait { .. } => match self.lock_waits.try_acquire() {
                Ok(permit) => Some(permit),
                Err(_) => return Ok(LockReply { run, outcome: LockOutcome::Full }),
            },
            _ => None,
        };
        let locks = self.audience.locks(session.record().volume);
        let outcome = locks.carry_out(run, id, request).await?;
        if self.audience.get(id).is_none() {
            // It has ended meanwhile, perhaps before this was granted.
            self.audience.free(session.record().volume, &session);
            return Err(Error::session_ended(format!("session {id}")));
        }
        Ok(LockReply { run, outcome })
    }

    /// Stores a block; it is durable on every chosen node when this returns.
    ///
    /// # Errors
    /// As [`Sessions::resume`]; `ReadOnly`; `Invalid` when the id is not that of the data.
    pub async fn put_block(&self, caller: &Caller, id: SessionId, block: BlockId, data: Draft) -> Result<()> {
        let (session, volume) = self.find(caller, id).await?;
        self.writable(caller, &session)?;
        volume.put_block(block, data).await
    }

    /// How many bytes a block has.
    ///
    /// # Errors
    /// As [`Sessions::resume`]; `NotFound` about `block`.
    pub async fn block_size(&self, caller: &Caller, id: SessionId, block: BlockId) -> Result<u32> {
        let (_, volume) = self.find(caller, id).await?;
        volume.block_size(block).await
    }

    /// The object of a block that the volume has, as an open file, unchecked; `None` where that cannot be had or there is no such block.
    ///
    /// # Errors
    /// As [`Sessions::resume`].
    pub async fn block_file(&self, caller: &Caller, id: SessionId, block: BlockId) -> Result<Option<File>> {
        let (_, volume) = self.find(caller, id).await?;
        match volume.block_file(block).await {
            Err(error) if error.kind() == tandemfs::ErrorKind::NotFound => Ok(None),
            result => result,
        }
    }

    /// Reads a block that the volume has.
    ///
    /// # Errors
    /// As [`Sessions::resume`]; `NotFound` about `block`; `OutOfRange`; `Unavailable`.
    pub async fn get_block(
        &self,
        caller: &Caller,
        id: SessionId,
        block: BlockId,
        range: Range<u32>,
    ) -> Result<Bytes> {
        let (_, volume) = self.find(caller, id).await?;
        volume.get_block(block, range).await
    }

    /// The caller's session, and its volume. Every request for one is a sign of life.
    async fn find(&self, caller: &Caller, id: SessionId) -> Result<(Arc<Session>, Arc<Volume>)> {
        let session = self.session(caller, id)?;
        self.touch(&session)?;
        let volume = self.volumes.volume(session.record().volume).await?;
        Ok((session, volume))
    }

    /// A session is no permission: what its user may do is looked up for each request.
    fn session(&self, caller: &Caller, id: SessionId) -> Result<Arc<Session>> {
        let ended = || Error::session_ended(format!("session {id}"));
        let session = self.audience.get(id).ok_or_else(ended)?;
        let record = session.record();
        if record.user != caller.user {
            return Err(Error::not_found("session"));
        }
        if self.volumes.access(caller, record.volume).is_none() {
            self.audience.end(&session);
            return Err(ended());
        }
        Ok(session)
    }

    fn writable(&self, caller: &Caller, session: &Session) -> Result<()> {
        let record = session.record();
        if record.read_only || self.volumes.access(caller, record.volume) != Some(Access::Write) {
            return Err(Error::read_only("the session is for reading only"));
        }
        Ok(())
    }

    fn touch(&self, session: &Session) -> Result<()> {
        session.touch().inspect_err(|_| self.audience.end(session))
    }

    /// Takes the records of ended sessions away, then lets go of what they held. In this order: a session that could be taken up
    /// again after a restart must find what it holds.
    async fn clear_ended(&self) {
        for (volume, id) in self.audience.ended() {
            if let Err(error) = self.forget(id).await {
                log::warn!("clearing session {id} away: {error}");
                continue;
            }
            // From here on nothing waits but what may as well be done twice, so a caller who goes away leaves nothing half done.
            match self.volumes.volume(volume).await {
                Ok(volume) => {
                    self.audience.cleared(id);
                    volume.orphans().let_go_of_all(id);
                }
                Err(error) if error.kind() == tandemfs::ErrorKind::NotFound => self.audience.cleared(id),
                Err(error) => log::debug!("session {id} ended on volume {volume}: {error}"),
            }
        }
    }

    async fn forget(&self, id: SessionId) -> Result<()> {
        let replies = self.kept_replies(id).await?;
        let mut writes: Vec<Write> = replies.into_iter().map(|(key, _)| meta::remove(key)).collect();
        writes.push(meta::remove(keys::session(id)));
        self.meta.commit(Vec::new(), writes).await
    }
}

/// Carries a batch out and tells all who wait for it.
async fn run_batch(
    audience: Arc<Audience>,
    session: Arc<Session>,
    volume: Arc<Volume>,
    batch: Batch,
    answer: watch::Sender<Answered>,
) {
    let sequence = batch.sequence;
    let result = commit_batch(&session, &volume, batch).await;
    session.done(sequence, result.is_ok());
    audience.free(session.record().volume, &session);
    answer.send_replace(Some(Arc::new(result)));
}

async fn commit_batch(session: &Session, volume: &Arc<Volume>, batch: Batch) -> Result<BatchReply> {
    let mut created = BTreeSet::new();
    for mutation in &batch.mutations {
        if let Mutation::Create { ino, .. } = mutation {
            if !session.owns(*ino) {
                return Err(Error::invalid(format!("inode {ino} was not granted to the session")));
            }
            created.insert(*ino);
        }
    }
    if let Some(ino) = batch.delegates.iter().find(|ino| !created.contains(ino)) {
        return Err(Error::invalid(format!("inode {ino} is to be delegated and is not created")));
    }
    // Others see the time of a read some seconds later anyway, so no reader waits for a mount that does not answer.
    let quiet = batch.mutations.iter().all(|mutation| matches!(mutation, Mutation::Accessed { .. }));
    let change = Change {
        author: Some(session.id),
        sequence: Some(batch.sequence),
        mutations: Mutations::Fixed(batch.mutations),
        held: batch.held,
        delegates: batch.delegates,
        quiet,
    };
    volume.commit(change).await
}

/// Fences sessions that are silent for too long, clears ended ones away, and says when those of the run before have had
/// their time to say what they hold.
async fn watch_over(sessions: std::sync::Weak<Sessions>, lease: Duration) {
    let recovered_until = tokio::time::Instant::now() + lease + lease / 4;
    let mut recovered = false;
    let claimed_until = tokio::time::Instant::now() + CLAIM_MAX.min(lease + lease / 4);
    let mut claimed = false;
    let tick = (lease / 4).clamp(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        let Some(strong) = sessions.upgrade() else { return };
        let now = tokio::time::Instant::now();
        for session in strong.audience.all() {
            if session.deadline() <= now {
                log::warn!("session {} was silent for its lease: fenced", session.id);
                COUNTERS.sessions_fenced.inc();
                strong.audience.end(&session);
            }
        }
        strong.clear_ended().await;
        if !claimed && now >= claimed_until {
            claimed = true;
            for delegations in strong.audience.all_delegations() {
                delegations.expect_no_more();
            }
        }
        if !recovered && now >= recovered_until {
            for locks in strong.audience.all_locks() {
                locks.expect_no_more();
            }
            match strong.volumes.settle_recovered().await {
                Ok(()) => recovered = true,
                Err(error) => log::warn!("looking for orphans of the run before: {error}"),
            }
        }
        let audience = Arc::clone(&strong.audience);
        drop(strong);
        tokio::select! {
            biased;
            () = audience.some_ended() => {}
            () = tokio::time::sleep(tick) => {}
        }
    }
}
