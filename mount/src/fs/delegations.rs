//! Write delegations: which files this session may write to without telling of it at once, and returning them when others wait.
//! The rules that others rely on:
//!
//! - Bytes are laid into the buffers of a file only while it is delegated, which is looked at under the lock of the file's data.
//! - A delegation is struck off here before what was written is committed, and returned after that. So whatever was laid is committed.
//! - It counts in the run of the daemon that has given it; those that another run takes over are named when the session is resumed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tandemfs::api::fs::{DelegationReply, DelegationRequest, SessionGrant};
use tandemfs::id::{Ino, SessionId};
use tandemfs::{Error, ErrorKind, Result};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::commits::Reach;
use super::data::Data;
use super::lease;
use super::session::Session;

/// More of them than this, and those are returned that are not in use.
const DELEGATIONS_MAX: usize = if cfg!(test) { 16 } else { 4096 };
/// So many are kept then.
const DELEGATIONS_KEPT: usize = DELEGATIONS_MAX / 2;

/// The pause before a file is asked for again that was given in a session or a run that is over.
const AGAIN: Duration = Duration::from_millis(20);

/// The files that are delegated to this session.
pub(super) struct Delegations {
    inner: Mutex<Inner>,
    changed: Notify,
}

struct Inner {
    /// Whose they are, and in which run of the daemon.
    session: SessionId,
    /// Not known while the session is being resumed.
    run: Option<u64>,
    files: BTreeMap<Ino, State>,
    /// Of the last time that one was asked for.
    number: u64,
    /// Some are being returned because there are too many.
    reducing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The daemon is being asked, for the time with this number.
    Asked(u64),
    /// It was given. It is returned when it has no users, and has no more users once somebody waits for that.
    Held { number: u64, users: usize, wanted: bool },
    /// It is being returned. It is asked for again only after that, for the daemon could not tell the one from the other.
    Returning,
}

/// A delegation that is being asked for, or in use; see [`Session::delegated`].
pub(super) struct InUse<'a> {
    delegations: &'a Delegations,
    ino: Ino,
    number: u64,
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let mut inner = self.delegations.inner();
        match inner.files.get_mut(&self.ino) {
            Some(State::Held { number, users, .. }) if *number == self.number => *users -= 1,
            Some(State::Asked(number)) if *number == self.number => drop(inner.files.remove(&self.ino)),
            _ => return,
        }
        drop(inner);
        self.delegations.changed.notify_waiters();
    }
}

/// A file that may be written to until this is dropped; see [`Session::delegated`].
pub(super) enum Use<'a> {
    /// For it is delegated.
    File { _in_use: InUse<'a> },
    /// For the volume is.
    Volume { _in_use: lease::InUse<'a> },
}

/// Somebody waits for a delegation to have no users.
struct Wanted<'a> {
    delegations: &'a Delegations,
    ino: Ino,
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        if let Some(State::Held { wanted, .. }) = self.delegations.inner().files.get_mut(&self.ino) {
            *wanted = false;
        }
        self.delegations.changed.notify_waiters();
    }
}

/// A file that is being created, until it is dropped.
pub(super) struct Created<'a> {
    asked: InUse<'a>,
    session: SessionId,
    run: u64,
}

impl Created<'_> {
    /// It was created. It counts as delegated if the session and the run are still those of the batch's first try.
    pub(super) fn given(&self) {
        self.asked.delegations.given(&self.asked, self.session, self.run);
    }
}

impl Delegations {
    /// None yet.
    pub(super) fn new(grant: &SessionGrant) -> Self {
        let inner = Inner {
            session: grant.session,
            run: Some(grant.run),
            files: BTreeMap::new(),
            number: 0,
            reducing: false,
        };
        Self { inner: Mutex::new(inner), changed: Notify::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session to which a file is delegated.
    pub(super) fn session_of(&self, ino: Ino) -> Option<SessionId> {
        let inner = self.inner();
        let is_delegated = matches!(inner.files.get(&ino), Some(State::Held { .. }));
        is_delegated.then_some(inner.session)
    }

    /// Notes that a file is being asked for; `None` if it is already, or is delegated, or is being returned.
    fn ask(&self, ino: Ino) -> Option<InUse<'_>> {
        let mut inner = self.inner();
        if inner.files.contains_key(&ino) {
            return None;
        }
        inner.number += 1;
        let number = inner.number;
        inner.files.insert(ino, State::Asked(number));
        Some(InUse { delegations: self, ino, number })
    }

    /// Uses a file that is delegated, if nobody waits for its return.
    fn use_held(&self, ino: Ino) -> Option<InUse<'_>> {
        match self.inner().files.get_mut(&ino) {
            Some(State::Held { number, users, wanted: false }) => {
                *users += 1;
                Some(InUse { delegations: self, ino, number: *number })
            }
            _ => None,
        }
    }

    /// A file will be delegated with the batch that creates it, which is sent in a session and a run of the daemon.
    pub(super) fn creating(&self, ino: Ino, session: SessionId, run: u64) -> Option<Created<'_>> {
        self.ask(ino).map(|asked| Created { asked, session, run })
    }

    /// A file was given by a session, in a run of the daemon. Answers whether both count still.
    fn given(&self, asked: &InUse<'_>, session: SessionId, run: u64) -> bool {
        let mut inner = self.inner();
        let counts = (session, Some(run)) == (inner.session, inner.run);
        if counts {
            let held = State::Held { number: asked.number, users: 1, wanted: false };
            inner.files.insert(asked.ino, held);
        }
        counts
    }

    /// Strikes a file off once it is neither being asked for nor in use; it is to be returned. `false` says that it is being returned already.
    async fn begin_return(&self, ino: Ino) -> bool {
        // Dropped without the lock.
        let mut waits = None;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let mut inner = self.inner();
                match inner.files.get_mut(&ino) {
                    None | Some(State::Held { users: 0, .. }) => {
                        inner.files.insert(ino, State::Returning);
                        return true;
                    }
                    Some(State::Returning) => return false,
                    Some(State::Held { wanted, .. }) => {
                        *wanted = true;
                        waits.get_or_insert_with(|| Wanted { delegations: self, ino });
                    }
                    Some(State::Asked(_)) => (),
                }
            }
            changed.await;
        }
    }

    /// Files have been returned.
    fn returned(&self, inos: &[Ino]) {
        let mut inner = self.inner();
        for ino in inos {
            if inner.files.get(ino) == Some(&State::Returning) {
                inner.files.remove(ino);
            }
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// A file is gone, and with it its delegation.
    pub(super) fn gone(&self, ino: Ino) {
        let mut inner = self.inner();
        if matches!(inner.files.get(&ino), Some(State::Held { users: 0, .. })) {
            inner.files.remove(&ino);
        }
    }

    /// What a daemon that was started anew is to be told. What was asked for before, and is answered after this, does not count.
    pub(super) fn to_claim(&self) -> Vec<Ino> {
        let mut inner = self.inner();
        inner.run = None;
        let is_claimed = |state: &State| !matches!(state, State::Asked(_));
        inner.files.iter().filter(|(_, state)| is_claimed(state)).map(|(ino, _)| *ino).collect()
    }

    /// The session was resumed.
    pub(super) fn resumed(&self, run: u64) {
        self.inner().run = Some(run);
    }

    /// There is another session, to which nothing is delegated.
    pub(super) fn lose(&self, grant: &SessionGrant) {
        let mut inner = self.inner();
        (inner.session, inner.run) = (grant.session, Some(grant.run));
        inner.files.retain(|_, state| matches!(state, State::Asked(_)));
        drop(inner);
        self.changed.notify_waiters();
    }

    /// When there are too many: all that may be returned.
    fn superfluous(&self) -> Vec<Ino> {
        let inner = self.inner();
        if inner.files.len() <= DELEGATIONS_MAX {
            return Vec::new();
        }
        let is_idle = |state: &State| matches!(state, State::Held { users: 0, .. });
        inner.files.iter().filter(|(_, state)| is_idle(state)).map(|(ino, _)| *ino).collect()
    }

    /// Whether nobody is returning superfluous ones. If so, the caller is from then on, until [`Delegations::reduced`].
    fn reduce(&self) -> bool {
        !std::mem::replace(&mut self.inner().reducing, true)
    }

    fn reduced(&self) {
        self.inner().reducing = false;
    }
}

impl Session {
    /// The session to which a file is delegated, by itself or with the volume.
    pub(super) fn delegated_to(&self, ino: Ino) -> Option<SessionId> {
        self.lease.session().or_else(|| self.delegations.session_of(ino))
    }

    /// Has a file delegated to this session until what is answered is dropped, or the session ends; and from then on until somebody
    /// else asks. Who holds one must not wait for another.
    ///
    /// # Errors
    /// `Stale` for a file that is gone; those of the daemon.
    pub(super) async fn delegated(&self, ino: Ino) -> Result<Use<'_>> {
        let give_up = Instant::now() + self.offline_timeout;
        loop {
            let mut changed = std::pin::pin!(self.delegations.changed.notified());
            changed.as_mut().enable();
            if let Some(in_use) = self.lease.use_held() {
                return Ok(Use::Volume { _in_use: in_use });
            }
            if let Some(in_use) = self.delegations.use_held(ino) {
                return Ok(Use::File { _in_use: in_use });
            }
            let Some(in_use) = self.delegations.ask(ino) else {
                changed.await;
                continue;
            };
            if self.lease.here().is_some() {
                // The volume is being returned, and the daemon may not know of the file yet.
                self.committed(ino).await?;
            }
            let take = &DelegationRequest::Take(ino);
            let asked = self.until_answered(|id| {
                Box::pin(async move { self.remote.delegation(id, take).await.map(|reply| (id, reply)) })
            });
            let answer = asked.await;
            self.caught_up().await;
            match answer {
                Ok((id, DelegationReply { run, .. })) if self.delegations.given(&in_use, id, run) => {
                    return Ok(Use::File { _in_use: in_use });
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    return Err(Error::stale(format!("inode {ino}")).because(error));
                }
                Err(error) => return Err(error),
                // It comes from a session or a run that is over.
                Ok(_) if Instant::now() >= give_up => {
                    return Err(Error::timed_out("the daemon was started anew too often"));
                }
                Ok(_) => {
                    drop(in_use);
                    sleep(AGAIN).await;
                }
            }
        }
    }

    /// Returns files that others wait for, once what was written to them is committed.
    pub(super) async fn recalled(&self, inos: Vec<Ino>) {
        match self.writer.get().and_then(Weak::upgrade) {
            Some(data) => data.return_files(inos).await,
            // Nobody writes any more.
            None => self.return_delegations(&inos).await,
        }
    }

    async fn return_delegations(&self, inos: &[Ino]) {
        let request = &DelegationRequest::Return(inos.to_vec());
        let returned =
            self.until_answered(|id| Box::pin(async move { self.remote.delegation(id, request).await }));
        if let Err(error) = returned.await {
            log::warn!("delegations are kept until the session ends: {error}");
        }
    }
}

impl Data {
    /// Commits what was written to some files and returns them.
    pub(super) async fn return_files(self: Arc<Self>, inos: Vec<Ino>) {
        let (used, unused): (Vec<Ino>, Vec<Ino>) = inos.into_iter().partition(|ino| self.get(*ino).is_some());
        let unused = self.return_together(unused);
        let used =
            used.into_iter().map(|ino| self.return_together(vec![ino])).collect::<FuturesUnordered<_>>();
        tokio::join!(unused, used.collect::<()>());
    }

    async fn return_together(self: &Arc<Self>, inos: Vec<Ino>) {
        let delegations = &self.session.delegations;
        let mut returning = Vec::new();
        for ino in inos {
            let file = self.get(ino);
            if file.is_some() {
                // What was written through a mapping comes here as well, while the file is still delegated.
                self.session.drop_file(ino).await;
            }
            if !delegations.begin_return(ino).await {
                continue;
            }
            returning.push(ino);
            if let Some(file) = self.get(ino).filter(|file| file.is_dirty())
                && let Err(error) = self.commit(&file, Reach::AllUploaded, None).await
            {
                log::error!("writing back inode {ino}: {error}");
            }
        }
        if !returning.is_empty() {
            self.session.return_delegations(&returning).await;
            delegations.returned(&returning);
        }
    }

    /// Returns those that are not in use when there are too many.
    pub(super) fn return_superfluous(self: &Arc<Self>) {
        let mut superfluous = self.superfluous();
        if superfluous.is_empty() || !self.session.delegations.reduce() {
            return;
        }
        let data = Arc::clone(self);
        tokio::spawn(async move {
            // More may come than are returned meanwhile.
            while !superfluous.is_empty() {
                Arc::clone(&data).return_files(superfluous).await;
                superfluous = data.superfluous();
            }
            data.session.delegations.reduced();
        });
    }

    fn superfluous(&self) -> Vec<Ino> {
        let mut superfluous = self.session.delegations.superfluous();
        superfluous.retain(|ino| self.get(*ino).is_none());
        superfluous.truncate(DELEGATIONS_MAX - DELEGATIONS_KEPT);
        superfluous
    }
}

/// Where recalls are carried out.
pub(super) type Writer = Weak<Data>;
