//! The session with the daemon: requests that are tried until they are answered, the stream of events, the lease.
//!
//! While the daemon is away, requests wait and are sent again, a batch under the same number, so that it is applied
//! once. After `offline_timeout` they fail with `TimedOut`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tandemfs::api::fs::{
    Ack, Batch, BatchReply, OpenSession, READ_WANTS_MAX, Read, ReadReply, SESSION_SLOTS, SessionGrant,
};
use tandemfs::id::{Ino, SessionId};
use tandemfs::tree::{Key, Mutation, NewNode, Record, Want};
use tandemfs::{Error, ErrorKind, Result};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::cache::Cache;
use super::check;
use super::delegations::{Created, Delegations, Writer};
use super::events::interval;
use super::guests::Guests;
use super::kernel::Kernel;
use super::known::Known;
use super::locks::Locks;
use super::opens::Opens;
use super::remote::Remote;
use super::suspended::Suspended;

/// The shortest and the longest pause before a request is sent again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// A daemon that is there and says "not now" is asked for so long; one that is away, for `offline_timeout`.
const PATIENCE: Duration = Duration::from_secs(15);
/// A longer lease is not believed in.
const LEASE_MAX: Duration = Duration::from_secs(3600);
/// How long the daemon may take to take up a session at the start.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A session and what it needs. Shared by all calls.
pub struct Session {
    pub(super) remote: Arc<dyn Remote>,
    pub(super) cache: Arc<Cache>,
    pub(super) opens: Arc<Opens>,
    pub(super) guests: Guests,
    pub(super) kernel: OnceLock<Arc<dyn Kernel>>,
    /// Inodes that the kernel knows, for when it has to forget all of them.
    pub(super) known: Arc<Known>,
    pub(super) locks: Locks,
    pub(super) delegations: Delegations,
    /// Where what is recalled is committed.
    pub(super) writer: OnceLock<Writer>,
    pub(super) suspended: Suspended,
    open: OpenSession,
    pub(super) offline_timeout: Duration,
    state: Mutex<State>,
    slot_free: Notify,
    numbers: tokio::sync::Mutex<Numbers>,
    /// Counts what happens to the state, for those who wait for it.
    pub(super) changed: watch::Sender<u64>,
    /// The session whose events are followed, and the last one that was carried out.
    carried_out: watch::Sender<(SessionId, u64)>,
}

pub(super) struct State {
    pub(super) grant: SessionGrant,
    /// Until when what is cached may be used.
    pub(super) lease_until: Instant,
    /// The last sign of life of the daemon.
    pub(super) heard: Instant,
    /// Nobody listens where the daemon was, so nobody can change anything.
    pub(super) refused: bool,
    /// The daemon does not know the session any more.
    pub(super) ended: bool,
    /// Why the daemon lets us in no more: the credentials do not count any longer.
    denied: Option<Error>,
    pub(super) closed: bool,
    sequence: u64,
    outstanding: BTreeSet<u64>,
}

/// Numbers for new inodes, which belong to the session that asked for them.
#[derive(Default)]
struct Numbers {
    session: Option<SessionId>,
    next: u64,
    end: u64,
}

/// The tries of one request.
struct Tries {
    start: Instant,
    /// When the daemon first said that it cannot do it now.
    declined: Option<Instant>,
    /// How long to wait before the next.
    pause: Duration,
}

impl Tries {
    fn begin() -> Self {
        Self { start: Instant::now(), declined: None, pause: PAUSE.0 }
    }

    /// Waits before the next.
    async fn rest(&mut self, seconds: Option<u64>) {
        sleep(seconds.map_or(self.pause, Duration::from_secs).min(PAUSE.1)).await;
        self.pause = (self.pause * 2).min(PAUSE.1);
    }
}

/// A batch's number; gives it back when it is dropped.
struct Slot<'a> {
    session: &'a Session,
    id: SessionId,
    run: u64,
    sequence: u64,
}

impl State {
    fn allowed(&self) -> Result<()> {
        self.denied.as_ref().map_or(Ok(()), |error| Err(error.duplicate()))
    }

    /// The daemon has taken the session up.
    pub(super) fn taken_up(&mut self, grant: SessionGrant, sent: Instant) {
        self.lease_until = sent + lease(&grant);
        self.heard = sent;
        self.grant = grant;
        (self.refused, self.ended, self.denied) = (false, false, None);
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut state = self.session.state();
        if state.grant.session == self.id {
            state.outstanding.remove(&self.sequence);
        }
        drop(state);
        self.session.slot_free.notify_waiters();
    }
}

impl Session {
    /// Opens a session. Its events are followed from [`Session::follow`] on.
    ///
    /// # Errors
    /// Those of the daemon; it is not asked again here, so that a wrong address is known at once.
    pub async fn open(
        remote: Arc<dyn Remote>,
        open: OpenSession,
        offline_timeout: Duration,
        cache_bytes: usize,
    ) -> Result<Arc<Self>> {
        let sent = Instant::now();
        let grant = timeout(START_TIMEOUT, remote.open_session(&open))
            .await
            .map_err(|_| Error::timed_out("the daemon does not answer"))??;
        let lease_until = sent + lease(&grant);
        let carried_out = watch::Sender::new((grant.session, 0));
        Ok(Arc::new(Self {
            remote,
            cache: Arc::new(Cache::new(cache_bytes)),
            opens: Arc::default(),
            guests: Guests::default(),
            kernel: OnceLock::new(),
            known: Arc::default(),
            locks: Locks::new(&grant),
            delegations: Delegations::new(&grant),
            writer: OnceLock::new(),
            suspended: Suspended::default(),
            open,
            offline_timeout,
            state: Mutex::new(State {
                grant,
                lease_until,
                heard: sent,
                refused: false,
                ended: false,
                denied: None,
                closed: false,
                sequence: 0,
                outstanding: BTreeSet::new(),
            }),
            slot_free: Notify::new(),
            numbers: tokio::sync::Mutex::default(),
            changed: watch::channel(0).0,
            carried_out,
        }))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the daemon granted last.
    pub fn grant(&self) -> SessionGrant {
        self.state().grant.clone()
    }

    /// Whether the daemon takes no changes.
    pub fn is_read_only(&self) -> bool {
        self.state().grant.read_only
    }

    pub(super) fn id(&self) -> SessionId {
        self.state().grant.session
    }

    /// Which content a file has, as far as is known ([`Inode::content`](tandemfs::tree::Inode::content)).
    pub(super) fn content(&self, ino: Ino) -> Option<u64> {
        self.cache.inode(ino).flatten().map(|inode| inode.content)
    }

    pub(super) fn notify(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// A new session instead of one that has ended.
    pub(super) async fn reopen(&self) -> Result<()> {
        let sent = Instant::now();
        let grant = self.remote.open_session(&self.open).await?;
        self.forget_all().await;
        self.locks.lose(&grant);
        self.delegations.lose(&grant);
        {
            let mut state = self.state();
            self.note_carried_out(grant.session, 0);
            state.taken_up(grant, sent);
            state.sequence = 0;
            state.outstanding.clear();
        }
        self.slot_free.notify_waiters();
        self.notify();
        Ok(())
    }

    /// Drops everything that is cached, here and in the kernel.
    pub(super) async fn forget_all(&self) {
        self.cache.reset();
        self.forget_in_kernel().await;
    }

    /// Has the kernel drop a file's pages, in a thread that may wait for it.
    pub fn drop_pages(&self, ino: Ino) {
        if let Some(kernel) = self.kernel.get().cloned() {
            tokio::task::spawn_blocking(move || kernel.drop_pages(ino, 0, 0));
        }
    }

    /// The daemon has answered a request that was sent at a time.
    fn heard(&self, sent: Instant) {
        let mut state = self.state();
        state.heard = state.heard.max(sent);
        if state.refused {
            state.refused = false;
            drop(state);
            self.notify();
        }
    }

    /// A request failed in a way that says something about the connection.
    pub(super) fn missed(&self, error: &Error) {
        let refused = self.remote.is_refused(error);
        let mut state = self.state();
        if state.refused != refused {
            state.refused = refused;
            drop(state);
            self.notify();
        }
    }

    /// The session `id` has ended: nothing that is cached counts until there is a new one.
    pub(super) fn ended(&self, id: SessionId) {
        let mut state = self.state();
        if state.grant.session == id && !state.ended {
            state.ended = true;
            state.refused = false;
            state.lease_until = Instant::now();
            drop(state);
            self.notify();
        }
    }

    /// The daemon lets us in no more: what was cached with its leave is dropped, and calls fail until it lets us in again.
    pub(super) async fn deny(&self, error: &Error) {
        // A volume that we may not know of any more is no file that is missing.
        let error = match error.kind() {
            ErrorKind::NotFound => &Error::forbidden(error.subject()),
            _ => error,
        };
        let known = {
            let mut state = self.state();
            state.refused = false;
            state.lease_until = Instant::now();
            state.denied.replace(error.duplicate()).is_some()
        };
        if !known {
            self.notify();
            self.slot_free.notify_waiters();
            self.forget_all().await;
        }
    }

    /// Whether the daemon lets us in, as far as is known.
    ///
    /// # Errors
    /// What it said when it did not.
    pub fn allowed(&self) -> Result<()> {
        self.state().allowed()
    }

    /// Waits until what is cached may be used: the lease lives, or nobody is there who could change anything.
    ///
    /// # Errors
    /// `TimedOut` after `offline_timeout`; as [`Session::allowed`].
    pub async fn ready(&self) -> Result<()> {
        let valid = |state: &State| !state.ended && (state.refused || Instant::now() < state.lease_until);
        {
            let state = self.state();
            state.allowed()?;
            if valid(&state) {
                return Ok(());
            }
        }
        let give_up = Instant::now() + self.offline_timeout;
        let mut changes = self.changed.subscribe();
        loop {
            {
                let state = self.state();
                state.allowed()?;
                if valid(&state) {
                    return Ok(());
                }
            }
            if timeout_at(give_up, changes.changed()).await.is_err() {
                return Err(Error::timed_out("the daemon is away"));
            }
        }
    }

    /// Waits until there is another session than `id`.
    async fn renewed(&self, id: SessionId, give_up: Instant) -> Result<()> {
        let mut changes = self.changed.subscribe();
        loop {
            {
                let state = self.state();
                if state.closed {
                    return Err(Error::session_ended("unmounted"));
                }
                if state.grant.session != id && Instant::now() < give_up {
                    return Ok(());
                }
                state.allowed()?;
            }
            if timeout_at(give_up, changes.changed()).await.is_err() {
                return Err(Error::timed_out("the daemon is away"));
            }
        }
    }

    /// Sends a request until it is answered. `call` is given the session to use.
    ///
    /// # Errors
    /// Those of the daemon that sending again does not mend; `TimedOut`.
    pub(super) async fn until_answered<'a, T>(
        &'a self,
        call: impl Fn(SessionId) -> BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        let mut tries = Tries::begin();
        loop {
            let (sent, id) = (Instant::now(), self.id());
            match call(id).await {
                Ok(answer) => {
                    self.heard(sent);
                    return Ok(answer);
                }
                Err(error) if error.kind() == ErrorKind::SessionEnded => {
                    self.ended(id);
                    self.renewed(id, tries.start + self.offline_timeout).await?;
                    // Sessions that end at once must not keep it busy for ever.
                    tries.rest(None).await;
                }
                Err(error) => self.try_again(error, &mut tries).await?,
            }
        }
    }

    /// Waits before the next try, or gives the error back if there is none.
    async fn try_again(&self, error: Error, tries: &mut Tries) -> Result<()> {
        if !error.kind().is_retryable() {
            return Err(error);
        }
        self.missed(&error);
        let now = Instant::now();
        let heard = self.state().heard;
        if tries.declined.is_some_and(|declined| heard > declined + PATIENCE) {
            // It answers others of our requests, so it is not away: it cannot do this one.
            return Err(error);
        }
        if now >= tries.start + self.offline_timeout {
            return Err(Error::timed_out("the daemon is away").because(error));
        }
        log::debug!("trying again: {error}");
        // Who asks too often has to wait its turn, and no answer says nothing.
        if error.kind() == ErrorKind::Unavailable {
            tries.declined.get_or_insert(now);
        }
        tries.rest(error.retry_after_s()).await;
        Ok(())
    }

    /// Reads records, through to the daemon; caches them.
    ///
    /// # Errors
    /// As `Session::until_answered`.
    pub async fn read(&self, wants: Vec<Want>) -> Result<ReadReply> {
        debug_assert!(wants.len() <= READ_WANTS_MAX);
        let read = &Read { wants };
        let request = self.cache.begin();
        let reply = self.ask(read).await?;
        let records = reply.answers.iter().flat_map(|answer| answer.records.iter().cloned());
        request.accept(reply.version, records);
        Ok(reply)
    }

    /// Reads records, through to the daemon, once what was told before is carried out.
    ///
    /// # Errors
    /// As `Session::until_answered`.
    pub(super) async fn ask(&self, read: &Read) -> Result<ReadReply> {
        let reply = self.until_answered(|id| Box::pin(async move { self.remote.read(id, read).await })).await;
        self.caught_up().await;
        let reply = reply?;
        check::answers(&read.wants, &reply.answers)?;
        Ok(reply)
    }

    /// Waits until the events are carried out that there were when the daemon last answered. An answer shows what others have
    /// changed by then; whoever goes on from it must not find what it has replaced in a cache, here or in the kernel.
    pub(super) async fn caught_up(&self) {
        let id = self.id();
        let number = self.remote.last_event(id);
        let mut carried_out = self.carried_out.subscribe();
        let is_so = |carried_out: &(SessionId, u64)| carried_out.0 != id || carried_out.1 >= number;
        // When it takes longer than that the session has ended.
        let _ended = timeout(interval(&self.grant()).min(PATIENCE), carried_out.wait_for(is_so)).await;
    }

    /// Notes that events of a session are carried out up to one; 0 for a session that begins.
    pub(super) fn note_carried_out(&self, session: SessionId, number: u64) {
        self.carried_out.send_modify(|last| *last = (session, number).max(*last));
    }

    /// Commits mutations as one batch and caches what they wrote.
    ///
    /// # Errors
    /// Those of the rules; `Stale` when the session ended and nobody can say whether the batch was applied;
    /// `SessionEnded` when the session ended before a [`Mutation::Create`], whose inode number is not ours any more.
    pub async fn commit(&self, mutations: Vec<Mutation>, victim: Option<Ino>) -> Result<BatchReply> {
        self.commit_in(None, mutations, victim).await
    }

    /// The same, but if `only` is given, in that session or not at all: what was written under a lock counts while the lock is held.
    ///
    /// # Errors
    /// As [`Session::commit`]; `Stale` when the session has ended.
    pub(super) async fn commit_in(
        &self,
        only: Option<SessionId>,
        mutations: Vec<Mutation>,
        victim: Option<Ino>,
    ) -> Result<BatchReply> {
        let again = mutations.iter().all(|mutation| {
            matches!(
                mutation,
                Mutation::Write { .. }
                    | Mutation::PunchHole { .. }
                    | Mutation::SetAttributes { .. }
                    | Mutation::Accessed { .. }
                    | Mutation::Reap { .. }
            )
        });
        let creates = mutations.iter().any(|mutation| matches!(mutation, Mutation::Create { .. }));
        let removes = mutations.iter().any(|mutation| {
            matches!(
                mutation,
                Mutation::Unlink { .. } | Mutation::RemoveDirectory { .. } | Mutation::Rename { .. }
            )
        });
        let delegates: Vec<Ino> = mutations
            .iter()
            .filter_map(|mutation| match mutation {
                Mutation::Create { ino, node: NewNode::File, .. } => Some(*ino),
                _ => None,
            })
            .collect();
        let mut tries = Tries::begin();
        let mut uncertain = false;
        let _removal = victim.map(|ino| self.opens.removing(ino));
        let mut batch = Batch { sequence: 0, mutations, held: Vec::new(), delegates };
        'session: loop {
            let slot = self.slot(tries.start + self.offline_timeout).await?;
            if only.is_some_and(|only| only != slot.id) {
                return Err(Error::stale("the lock under which this was done was lost with the session"));
            }
            batch.sequence = slot.sequence;
            batch.held = if removes { self.opens.held(victim) } else { Vec::new() };
            let request = self.cache.begin();
            let created: Vec<_> = batch
                .delegates
                .iter()
                .filter_map(|ino| self.delegations.creating(*ino, slot.id, slot.run))
                .collect();
            loop {
                let sent = Instant::now();
                match self.remote.batch(slot.id, &batch).await {
                    Ok(reply) => {
                        self.heard(sent);
                        self.caught_up().await;
                        check::batch(&reply)?;
                        for (key, record) in &reply.records {
                            match (key, record) {
                                (Key::Inode(ino), Some(Record::Inode(inode)))
                                    if inode.nlink == 0 && batch.held.contains(ino) =>
                                {
                                    self.opens.orphaned(*ino);
                                }
                                (Key::Inode(ino), None) => self.delegations.gone(*ino),
                                _ => (),
                            }
                        }
                        created.iter().for_each(Created::given);
                        request.accept_change(reply.version, reply.records.iter().cloned());
                        return Ok(reply);
                    }
                    Err(error) if error.kind() == ErrorKind::SessionEnded => {
                        self.ended(slot.id);
                        if uncertain && !again {
                            return Err(Error::stale("the session ended while a change was under way"));
                        }
                        self.renewed(slot.id, tries.start + self.offline_timeout).await?;
                        tries.rest(None).await;
                        if creates {
                            return Err(error);
                        }
                        continue 'session;
                    }
                    Err(error) => {
                        uncertain |= error.kind().is_retryable();
                        self.caught_up().await;
                        self.try_again(error, &mut tries).await?;
                    }
                }
            }
        }
    }

    /// The next number for a batch, when the one that lies [`SESSION_SLOTS`] before it has been answered.
    async fn slot(&self, give_up: Instant) -> Result<Slot<'_>> {
        loop {
            let mut freed = std::pin::pin!(self.slot_free.notified());
            freed.as_mut().enable();
            {
                let mut state = self.state();
                state.allowed()?;
                let next = state.sequence + 1;
                let room = state.outstanding.first().is_none_or(|oldest| next < oldest + SESSION_SLOTS);
                if room && !state.ended {
                    state.sequence = next;
                    state.outstanding.insert(next);
                    let (id, run) = (state.grant.session, state.grant.run);
                    return Ok(Slot { session: self, id, run, sequence: next });
                }
            }
            if timeout_at(give_up, freed).await.is_err() {
                return Err(Error::timed_out("the daemon is away"));
            }
        }
    }

    /// A number for a new inode.
    ///
    /// # Errors
    /// As `Session::until_answered`.
    pub async fn new_ino(&self) -> Result<Ino> {
        let mut numbers = self.numbers.lock().await;
        if numbers.next >= numbers.end || numbers.session != Some(self.id()) {
            let (session, range) = self
                .until_answered(|id| {
                    Box::pin(async move { self.remote.inodes(id).await.map(|range| (id, range)) })
                })
                .await?;
            check::numbers(range)?;
            let next = range.first.0;
            *numbers = Numbers { session: Some(session), next, end: next.saturating_add(range.count) };
        }
        let ino = Ino(numbers.next);
        numbers.next += 1;
        Ok(ino)
    }

    /// Acknowledges events and so renews the lease.
    pub(super) async fn acknowledge(&self, ack: &Ack) -> Result<()> {
        let (sent, id) = (Instant::now(), self.id());
        self.remote.ack(id, ack).await?;
        {
            let mut state = self.state();
            if state.grant.session == id {
                state.lease_until = state.lease_until.max(sent + lease(&state.grant));
            }
        }
        self.heard(sent);
        self.notify();
        Ok(())
    }
}

/// How long what is cached may be used after a sign of life.
pub(super) fn lease(grant: &SessionGrant) -> Duration {
    Duration::from_millis(grant.lease_ms).min(LEASE_MAX)
}
