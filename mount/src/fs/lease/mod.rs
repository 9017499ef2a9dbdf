//! The lease: a session that nobody else on its volume disturbs has all of it delegated, and decides by itself. The rules of the tree run here, on
//! what is cached; what programs ask for is answered at once, and sent in the background, in order. When others want to see or change
//! anything, what was done is sent, and the volume is returned.
//!
//! | file | what |
//! | --- | --- |
//! | `apply.rs` | changes by the rules, here |
//! | `batch.rs` | which changes are sent together |
//! | `blocks.rs` | the data that changes name, until it is stored or sent |
//! | `locks.rs` | locks of programs, granted here |
//! | `log.rs` | what is to be sent, in a file |
//! | `pending.rs` | what was changed and is not committed yet |
//! | `queue.rs` | what is to be sent, and who waits for it |
//! | `replay.rs` | sends what a mount has left behind that was killed |
//! | `room.rs` | room for what waits |
//! | `sender.rs` | sends it |
//! | `tenure.rs` | how the lease is taken and returned |
//! | `uploads.rs` | stores the data that is not sent with the changes |
//!
//! The rules that others rely on:
//!
//! - Changes are applied one at a time, and sent in the order in which they were applied. So whatever the daemon has is a state that this
//!   mount was in.
//! - What a change names is stored before it is sent, or is sent with it.
//! - A change is applied here only while the lease is held, and all that was sent otherwise is answered before it is.
//! - The lease is struck off before what was done is sent to the end, and returned after that.

mod apply;
mod batch;
mod blocks;
pub(super) mod locks;
pub(super) mod log;
pub(super) mod pending;
mod queue;
pub(super) mod replay;
mod room;
mod sender;
mod tenure;
mod uploads;

use std::sync::{Mutex, MutexGuard, PoisonError};

use tandemfs::api::fs::SessionGrant;
use tandemfs::id::SessionId;
use tokio::sync::{Notify, RwLock, RwLockReadGuard};
use tokio::time::Instant;

pub(super) use queue::Queue;

/// Whether this session has the volume to itself.
pub(super) struct Lease {
    /// Whether it is to be sought at all.
    is_wanted: bool,
    inner: Mutex<Inner>,
    /// Shared by all changes; taken alone to turn from one way of making them to the other.
    pub(super) turn: RwLock<()>,
    /// A change was made without it.
    missed: Notify,
    changed: Notify,
}

struct Inner {
    /// Whose it is, and in which run of the daemon.
    session: SessionId,
    /// Not known while the session is being resumed.
    run: Option<u64>,
    state: State,
    /// When it was given nobody else had the volume mounted.
    alone: bool,
    /// What goes on that must be in one tenure.
    users: usize,
    /// When it was last returned.
    returned_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Changes are sent one by one.
    None,
    /// The daemon is being asked.
    Asked,
    /// Changes are made here.
    Held,
    /// Others wait for it. What is done is still done here, but no more is written to files on the strength of it.
    Recalled,
}

/// A use of the lease: it is not returned before this is dropped.
pub(super) struct InUse<'a>(&'a Lease);

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.0.inner().users -= 1;
        self.0.changed.notify_waiters();
    }
}

impl Lease {
    /// Not held.
    pub(super) fn new(grant: &SessionGrant, is_wanted: bool) -> Self {
        let inner = Inner {
            session: grant.session,
            run: Some(grant.run),
            state: State::None,
            alone: false,
            users: 0,
            returned_at: None,
        };
        Self {
            is_wanted: is_wanted && !grant.read_only,
            inner: Mutex::new(inner),
            turn: RwLock::new(()),
            missed: Notify::new(),
            changed: Notify::new(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of a change, and says in which session it is to be made here, if it is.
    pub(super) async fn enter(&self) -> (RwLockReadGuard<'_, ()>, Option<SessionId>) {
        let turn = self.turn.read().await;
        let here = self.here();
        if here.is_none() && self.is_wanted {
            self.missed.notify_one();
        }
        (turn, here)
    }

    /// The session in which changes are made here.
    pub(super) fn here(&self) -> Option<SessionId> {
        let inner = self.inner();
        matches!(inner.state, State::Held | State::Recalled).then_some(inner.session)
    }

    /// Whether nobody else had the volume mounted when it was given.
    pub(super) fn is_alone(&self) -> bool {
        self.inner().alone
    }

    /// Waits until it is held, or is not.
    pub(super) async fn until(&self, held: bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.here().is_some() == held {
                return;
            }
            changed.await;
        }
    }

    /// The session to which all files are delegated.
    pub(super) fn session(&self) -> Option<SessionId> {
        let inner = self.inner();
        (inner.state == State::Held).then_some(inner.session)
    }

    /// Uses it, if it is held.
    pub(super) fn use_held(&self) -> Option<InUse<'_>> {
        let mut inner = self.inner();
        (inner.state == State::Held).then(|| {
            inner.users += 1;
            InUse(self)
        })
    }

    /// Whether a daemon that was started anew is to be told of it. What was asked for before, and is answered after this, does not count.
    pub(super) fn to_claim(&self) -> bool {
        let mut inner = self.inner();
        inner.run = None;
        matches!(inner.state, State::Held | State::Recalled)
    }

    /// The session was resumed.
    pub(super) fn resumed(&self, run: u64) {
        self.inner().run = Some(run);
    }

    /// There is another session, which does not have it.
    pub(super) fn lose(&self, grant: &SessionGrant) {
        let mut inner = self.inner();
        (inner.session, inner.run) = (grant.session, Some(grant.run));
        if inner.state != State::Asked {
            inner.state = State::None;
        }
        drop(inner);
        self.changed.notify_waiters();
    }
}
