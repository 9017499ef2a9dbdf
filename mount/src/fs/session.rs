//! The session with the daemon: its state, the lease, and how it is taken up again.
//!
//! While the daemon is away, requests wait and are sent again, a batch under the same number, so that it is applied
//! once. After `offline_timeout` they fail with `TimedOut`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tandemfs::api::fs::{Ack, OpenSession, SessionGrant};
use tandemfs::id::{Ino, SessionId};
use tandemfs::{Error, ErrorKind, Result};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::Options;
use super::batches::Numbers;
use super::cache::Cache;
use super::delegations::{Delegations, Writer};
use super::guests::Guests;
use super::kernel::Kernel;
use super::known::Known;
use super::lease::log::Log;
use super::lease::replay::{Lost, replay};
use super::lease::{Lease, Queue};
use super::locks::Locks;
use super::opens::Opens;
use super::remote::Remote;
use super::suspended::Suspended;

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
    pub(super) lease: Arc<Lease>,
    /// What was done under the lease and is to be sent.
    pub(super) queue: Arc<Queue>,
    /// Where what is recalled is committed.
    pub(super) writer: OnceLock<Writer>,
    pub(super) suspended: Suspended,
    /// What was answered and could not be sent, here or by a mount before.
    pub(super) lost: watch::Sender<Vec<Lost>>,
    open: OpenSession,
    pub(super) offline_timeout: Duration,
    pub(super) state: Mutex<State>,
    pub(super) slot_free: Notify,
    pub(super) numbers: tokio::sync::Mutex<Numbers>,
    /// Counts what happens to the state, for those who wait for it.
    pub(super) changed: watch::Sender<u64>,
    /// The session whose events are followed, and the last one that was carried out.
    pub(super) carried_out: watch::Sender<(SessionId, u64)>,
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
    pub(super) denied: Option<Error>,
    pub(super) closed: bool,
    pub(super) sequence: u64,
    pub(super) outstanding: BTreeSet<u64>,
}

impl State {
    pub(super) fn allowed(&self) -> Result<()> {
        self.denied.as_ref().map_or(Ok(()), |error| Err(error.duplicate()))
    }

    fn is_ready(&self) -> bool {
        !self.ended && (self.refused || Instant::now() < self.lease_until)
    }

    /// The daemon has taken the session up.
    pub(super) fn taken_up(&mut self, grant: SessionGrant, sent: Instant) {
        self.lease_until = sent + lease(&grant);
        self.heard = sent;
        self.grant = grant;
        (self.refused, self.ended, self.denied) = (false, false, None);
    }
}

impl Session {
    /// Opens a session. Its events are followed from [`Session::follow`] on.
    ///
    /// # Errors
    /// Those of the daemon; it is not asked again here, so that a wrong address is known at once.
    pub async fn open(remote: Arc<dyn Remote>, options: &Options) -> Result<Arc<Self>> {
        let open = OpenSession {
            volume: options.volume.clone(),
            read_only: options.read_only,
            client: options.client.clone(),
        };
        let sent = Instant::now();
        let grant = timeout(START_TIMEOUT, remote.open_session(&open))
            .await
            .map_err(|_| Error::timed_out("the daemon does not answer"))??;
        let (mut grant, mut lost, mut log, mut lease_is_wanted) = (grant, Vec::new(), None, options.lease);
        if let Some(directory) = options.cache_directory.as_ref().filter(|_| !grant.read_only) {
            (grant, lost) = replay(&remote, &open, directory, grant).await?;
            log = lease_is_wanted.then(|| Log::create(directory, &grant.key)).transpose().unwrap_or_else(
                |error| {
                    log::warn!("changes wait for the daemon: {}: {error}", directory.display());
                    lease_is_wanted = false;
                    None
                },
            );
        }
        let lease_until = sent + lease(&grant);
        let carried_out = watch::Sender::new((grant.session, 0));
        Ok(Arc::new(Self {
            remote,
            cache: Arc::new(Cache::new(options.memory / 4)),
            opens: Arc::default(),
            guests: Guests::default(),
            kernel: OnceLock::new(),
            known: Arc::default(),
            locks: Locks::new(&grant),
            delegations: Delegations::new(&grant),
            lease: Arc::new(Lease::new(&grant, lease_is_wanted)),
            queue: Queue::new(grant.session, log, options.memory / 2),
            writer: OnceLock::new(),
            suspended: Suspended::default(),
            lost: watch::Sender::new(lost),
            open,
            offline_timeout: options.offline_timeout,
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
        self.lose_lease(&grant);
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
    pub(super) fn heard(&self, sent: Instant) {
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

    /// Whether what is cached may be used, and what is delegated: the lease lives, or nobody is there who could change anything.
    pub fn is_ready(&self) -> bool {
        self.state().is_ready()
    }

    /// Waits until [`Session::is_ready`].
    ///
    /// # Errors
    /// `TimedOut` after `offline_timeout`; as [`Session::allowed`].
    pub async fn ready(&self) -> Result<()> {
        {
            let state = self.state();
            state.allowed()?;
            if state.is_ready() {
                return Ok(());
            }
        }
        let give_up = Instant::now() + self.offline_timeout;
        let mut changes = self.changed.subscribe();
        loop {
            {
                let state = self.state();
                state.allowed()?;
                if state.is_ready() {
                    return Ok(());
                }
            }
            if timeout_at(give_up, changes.changed()).await.is_err() {
                return Err(Error::timed_out("the daemon is away"));
            }
        }
    }

    /// Waits until there is another session than `id`.
    pub(super) async fn renewed(&self, id: SessionId, give_up: Instant) -> Result<()> {
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
