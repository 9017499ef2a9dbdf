//! How the lease is taken and returned.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt;
use tandemfs::api::fs::{DelegationReply, DelegationRequest};
use tandemfs::id::{Ino, SessionId};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{Lease, State};
use crate::fs::commits::Reach;
use crate::fs::data::Data;
use crate::fs::session::Session;

/// After it was returned or refused, it is not asked for again for so long: whoever wanted something may want more.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 5 } else { 250 });
/// How long changes that are under way are waited for; meanwhile no other begins.
const BUSY: Duration = Duration::from_millis(20);
/// It is looked at this often whether a session is there at all.
const LOOK: Duration = Duration::from_secs(5);
/// Files whose pages the kernel drops at the same time.
const DROPS_MAX: usize = 16;

/// What a recall finds.
enum Found {
    /// It was held, and is struck off.
    Held,
    /// It is not held here, whatever the daemon thinks.
    None,
    /// It is being returned.
    Returning,
}

impl Lease {
    /// The daemon is going to be asked.
    fn ask(&self) {
        self.inner().state = State::Asked;
    }

    /// The daemon has answered: it was given to a session, or not.
    fn answered(&self, given: Option<(SessionId, DelegationReply)>) {
        let mut inner = self.inner();
        let is_held =
            given.is_some_and(|(session, reply)| (session, Some(reply.run)) == (inner.session, inner.run));
        inner.state = if is_held { State::Held } else { State::None };
        inner.alone = given.is_some_and(|(_, reply)| reply.alone);
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Strikes it off, once it is not being asked for and nobody uses it.
    async fn recall(&self) -> Found {
        let mut recalled = None;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let mut inner = self.inner();
                match (inner.state, recalled) {
                    (State::None, _) => return Found::None,
                    (State::Asked, None) => {}
                    (State::Held, None) => {
                        inner.state = State::Recalled;
                        recalled = Some(inner.session);
                    }
                    (State::Recalled, None) => return Found::Returning,
                    (State::Recalled, Some(session)) if session == inner.session => {}
                    // That session is over.
                    (_, Some(_)) => return Found::Returning,
                }
                if recalled.is_some() && inner.users == 0 {
                    return Found::Held;
                }
            }
            changed.await;
        }
    }

    fn returned(&self) {
        let mut inner = self.inner();
        if inner.state == State::Recalled {
            inner.state = State::None;
        }
        inner.returned_at = Some(Instant::now());
        drop(inner);
        self.changed.notify_waiters();
    }
}

impl Session {
    /// Takes the lease whenever changes are made without it and nobody else seems to be there.
    pub(in crate::fs) async fn seek_lease(session: Weak<Self>) {
        let Some(lease) = session.upgrade().map(|session| Arc::clone(&session.lease)) else { return };
        if !lease.is_wanted {
            return;
        }
        lease.missed.notify_one();
        loop {
            let missed = timeout(LOOK, lease.missed.notified()).await.is_ok();
            let Some(session) = session.upgrade() else { return };
            if session.state().closed {
                return;
            }
            if missed {
                session.take_lease().await;
                drop(session);
                sleep(PAUSE).await;
            }
        }
    }

    /// Asks for the lease, if no change is under way.
    async fn take_lease(&self) {
        let returned_at = self.lease.inner().returned_at;
        if let Some(returned_at) = returned_at {
            sleep_until(returned_at + PAUSE).await;
        }
        // A change that takes longer waits for others.
        let Ok(_turn) = timeout(BUSY, self.lease.turn.write()).await else { return };
        if self.lease.here().is_some() || self.ready().await.is_err() {
            return;
        }
        self.lease.ask();
        let taken = self.until_answered(|id| {
            Box::pin(async move {
                self.remote.delegation(id, &DelegationRequest::TakeVolume).await.map(|reply| (id, reply))
            })
        });
        let taken = taken.await;
        // What others did before is to be seen here first.
        self.caught_up().await;
        match taken {
            Ok((id, reply)) if reply.done => {
                let sequence = self.state().sequence;
                self.queue.begin(id, sequence);
                self.lease.answered(Some((id, reply)));
            }
            refused => {
                self.lease.answered(None);
                if let Err(error) = refused {
                    log::debug!("asking for the lease: {error}");
                }
            }
        }
    }

    /// Others wait for the volume: sends all that was done and returns it.
    pub(in crate::fs) async fn return_lease(self: &Arc<Self>) {
        match self.lease.recall().await {
            Found::Returning => return,
            Found::Held => {
                if let Some(data) = self.writer.get().and_then(Weak::upgrade) {
                    data.send_all_files().await;
                }
            }
            Found::None => {}
        }
        // From here on nobody changes anything until it is returned.
        let _turn = self.lease.turn.write().await;
        // What was lost meanwhile is waited for no more the next time.
        while self.queue.drained().await.is_err() {}
        self.hand_over_locks().await;
        let returned = self.until_answered(|id| {
            Box::pin(async move { self.remote.delegation(id, &DelegationRequest::ReturnVolume).await })
        });
        if let Err(error) = returned.await {
            log::warn!("the volume is kept until the session ends: {error}");
        }
        self.lease.returned();
    }
}

impl Data {
    /// Commits what was written to all files, through mappings as well.
    async fn send_all_files(self: &Arc<Self>) {
        let inos: Vec<Ino> = self.files().keys().copied().collect();
        let sent = futures::stream::iter(inos).for_each_concurrent(DROPS_MAX, |ino| async move {
            self.session.drop_file(ino).await;
            if let Some(file) = self.get(ino).filter(|file| file.is_dirty())
                && let Err(error) = self.commit(&file, Reach::AllUploaded, None).await
            {
                log::error!("writing back inode {ino}: {error}");
            }
        });
        sent.await;
    }
}
