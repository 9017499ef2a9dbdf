//! The files of one volume that are delegated to sessions, which may have written to them what nobody has been told of yet, or the whole
//! volume, in which one session may have done anything. They live in memory: after a restart the sessions of the run before say what they
//! have, and until each of them has, or has ended, no other session is shown anything or may change it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tandemfs::api::fs::{DELEGATIONS_MAX, DelegationReply, DelegationRequest};
use tandemfs::id::{Ino, SessionId};
use tandemfs::{Error, Result};
use tokio::time::Instant;

use super::Sessions;
use super::activity::{Activity, Use};
use crate::accounts::Caller;
use crate::watch;

#[derive(Debug)]
pub(crate) struct Delegations {
    inner: Mutex<Inner>,
    /// Goes up when somebody may go on who has waited.
    changes: watch::Sender<u64>,
}

/// What is delegated to a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delegated {
    pub(crate) files: Vec<Ino>,
    pub(crate) volume: bool,
}

#[derive(Debug)]
struct Inner {
    activity: Activity,
    /// Requests about locks that are under way, by session.
    locking: BTreeMap<SessionId, usize>,
    /// The session that has all of the volume.
    volume: Option<SessionId>,
    /// Nobody else knows anything of it since.
    dropped: bool,
    files: BTreeMap<Ino, SessionId>,
    counts: BTreeMap<SessionId, usize>,
    /// Sessions of the run before that have not said yet what they have.
    unclaimed: BTreeSet<SessionId>,
    /// Those that have not said so in time: others may have seen their files since.
    late: BTreeSet<SessionId>,
}

/// A request about locks that is under way.
pub(super) struct Locking<'a> {
    of: &'a Delegations,
    session: SessionId,
}

impl Drop for Locking<'_> {
    fn drop(&mut self) {
        let mut inner = self.of.inner();
        if let Some(count) = inner.locking.get_mut(&self.session) {
            *count -= 1;
            if *count == 0 {
                inner.locking.remove(&self.session);
            }
        }
    }
}

impl Sessions {
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
        let (mut done, mut alone) = (true, false);
        match request {
            DelegationRequest::Take(ino) => {
                self.writable(caller, &session)?;
                self.audience.delegations(session.record().volume).used(id, Use::Look);
                volume.delegate(id, *ino).await?;
            }
            DelegationRequest::TakeVolume => {
                self.writable(caller, &session)?;
                let given = volume.delegate_all(id).await?;
                (done, alone) = (given.is_some(), given.is_some_and(|given| given.alone));
            }
            DelegationRequest::ReturnVolume => {
                // In this order: as below.
                self.audience.delegations(session.record().volume).give_back_volume(id);
                session.returned_volume();
            }
            DelegationRequest::Return(files) if files.len() > DELEGATIONS_MAX => {
                return Err(Error::invalid(format!("more than {DELEGATIONS_MAX} files")));
            }
            DelegationRequest::Return(files) => {
                // In this order: a recall in between would come too late to be carried out.
                self.audience.delegations(session.record().volume).give_back(id, files);
                session.returned(files);
            }
        }
        Ok(DelegationReply { run: self.meta.run(), done, alone })
    }
}

impl Delegations {
    pub(super) fn new(quiet: Duration) -> Self {
        Self { inner: Mutex::new(Inner::new(Activity::new(quiet))), changes: watch::Sender::new(0) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Wakes whenever somebody may go on who has waited.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A session of the run before may have files.
    pub(super) fn expect(&self, session: SessionId) {
        self.inner().unclaimed.insert(session);
    }

    /// Whoever has not claimed until now has none any more.
    pub(super) fn expect_no_more(&self) {
        let mut inner = self.inner();
        let late = std::mem::take(&mut inner.unclaimed);
        inner.late.extend(late);
        drop(inner);
        self.changed();
    }

    /// Whether another session than `author` may have files that are not known yet.
    pub(super) fn expects_others(&self, author: SessionId) -> bool {
        self.inner().unclaimed.iter().any(|session| *session != author)
    }

    /// A session says what it has; one of the run before is believed. `false`: it says so too late, and has lost it.
    pub(super) fn claim(&self, session: SessionId, Delegated { files, volume }: &Delegated) -> bool {
        let mut inner = self.inner();
        if inner.unclaimed.remove(&session) {
            if *volume {
                // The others drop everything since it was another run.
                (inner.volume, inner.dropped) = (inner.volume.or(Some(session)), true);
            }
            for ino in files.iter().take(DELEGATIONS_MAX) {
                if !inner.files.contains_key(ino) {
                    inner.add(*ino, session);
                }
            }
        }
        let is_late = inner.late.remove(&session);
        drop(inner);
        self.changed();
        !is_late || files.is_empty() && !volume
    }

    /// What is delegated to others than `author`, and to whom: which of some files, and perhaps all of the volume.
    pub(super) fn of_others(
        &self,
        author: Option<SessionId>,
        files: &BTreeSet<Ino>,
    ) -> BTreeMap<SessionId, Delegated> {
        let inner = self.inner();
        let mut others: BTreeMap<SessionId, Delegated> = BTreeMap::new();
        if let Some(session) = inner.volume.filter(|session| Some(*session) != author) {
            others.entry(session).or_default().volume = true;
        }
        if !inner.files.is_empty() {
            for ino in files {
                if let Some(session) = inner.files.get(ino).filter(|session| Some(**session) != author) {
                    others.entry(*session).or_default().files.push(*ino);
                }
            }
        }
        others
    }

    /// Whether any of it is delegated to a session.
    pub(super) fn has_any(&self, session: SessionId, of: &Delegated) -> bool {
        let inner = self.inner();
        of.volume && inner.volume == Some(session)
            || of.files.iter().any(|ino| inner.files.get(ino) == Some(&session))
    }

    /// A session has asked for something of the volume.
    pub(super) fn used(&self, session: SessionId, what: Use) {
        self.inner().activity.used(session, what, Instant::now());
    }

    /// A session asks for something of its locks; until this is dropped nobody else is given the volume.
    pub(super) fn locking(&self, session: SessionId) -> Locking<'_> {
        let mut inner = self.inner();
        inner.activity.used(session, Use::Look, Instant::now());
        *inner.locking.entry(session).or_default() += 1;
        Locking { of: self, session }
    }

    /// The files that are delegated to others than a session, and to whom.
    pub(super) fn files_of_others(&self, but: SessionId) -> BTreeMap<SessionId, Delegated> {
        let mut others: BTreeMap<SessionId, Delegated> = BTreeMap::new();
        for (ino, session) in self.inner().files.iter().filter(|(_, session)| **session != but) {
            others.entry(*session).or_default().files.push(*ino);
        }
        others
    }

    /// Whether a session may have the volume although others have it mounted.
    pub(crate) fn lets_have(&self, session: SessionId) -> bool {
        let inner = self.inner();
        inner.volume == Some(session) || inner.lets_have(session)
    }

    /// All others have dropped what they had cached when the volume was given to a session.
    pub(crate) fn dropped(&self, session: SessionId) {
        let mut inner = self.inner();
        inner.dropped |= inner.volume == Some(session);
    }

    /// Whether a session has the volume, and nobody else knows anything of it.
    pub(crate) fn has_all(&self, session: SessionId) -> bool {
        let inner = self.inner();
        inner.volume == Some(session) && inner.dropped
    }

    /// Something has come up against giving the volume to a session.
    pub(crate) fn not_given(&self, session: SessionId) {
        self.inner().activity.not_given();
        self.give_back_volume(session);
    }

    /// The session that has the volume to itself.
    pub(super) fn volume(&self) -> Option<SessionId> {
        self.inner().volume
    }

    /// Whether a file is delegated to a session by itself.
    pub(crate) fn has(&self, session: SessionId, ino: Ino) -> bool {
        self.inner().files.get(&ino) == Some(&session)
    }

    /// Delegates the volume. `false`: others use it, or one of the run before may come back.
    pub(crate) fn add_volume(&self, session: SessionId, alone: bool) -> bool {
        let mut inner = self.inner();
        let is_held = inner.volume == Some(session);
        let is_free = (inner.volume.is_none() || is_held)
            && inner.unclaimed.iter().all(|other| *other == session)
            && inner.files.values().all(|other| *other == session)
            && (alone || is_held || inner.lets_have(session));
        if is_free {
            inner.volume = Some(session);
            inner.dropped = alone || is_held && inner.dropped;
            if !alone {
                inner.activity.given(Instant::now());
            }
        }
        is_free
    }

    /// A session returns the volume.
    pub(crate) fn give_back_volume(&self, session: SessionId) {
        let mut inner = self.inner();
        inner.volume.take_if(|holder| *holder == session);
        drop(inner);
        self.changed();
    }

    /// Delegates a file that is not delegated to another.
    ///
    /// # Errors
    /// `TooManyRequests` when the session has too many.
    pub(crate) fn add(&self, session: SessionId, ino: Ino) -> Result<()> {
        let mut inner = self.inner();
        if inner.counts.get(&session).is_some_and(|count| *count >= DELEGATIONS_MAX) {
            return Err(Error::too_many_requests(format!(
                "{DELEGATIONS_MAX} files are delegated to the session"
            )));
        }
        inner.remove(ino);
        inner.add(ino, session);
        Ok(())
    }

    /// How many more files may be delegated to a session.
    pub(crate) fn room(&self, session: SessionId) -> usize {
        DELEGATIONS_MAX - self.inner().counts.get(&session).copied().unwrap_or(0).min(DELEGATIONS_MAX)
    }

    /// A session returns files.
    pub(super) fn give_back(&self, session: SessionId, files: &[Ino]) {
        let mut inner = self.inner();
        for ino in files {
            if inner.files.get(ino) == Some(&session) {
                inner.remove(*ino);
            }
        }
        drop(inner);
        self.changed();
    }

    /// A file is gone.
    pub(crate) fn gone(&self, ino: Ino) {
        self.inner().remove(ino);
    }

    /// The volume is removed.
    pub(super) fn clear(&self) {
        let mut inner = self.inner();
        *inner = Inner::new(inner.activity.clone());
        drop(inner);
        self.changed();
    }

    /// A session has ended.
    pub(super) fn release(&self, session: SessionId) {
        let mut inner = self.inner();
        inner.unclaimed.remove(&session);
        inner.late.remove(&session);
        inner.activity.ended(session);
        inner.volume.take_if(|holder| *holder == session);
        if inner.counts.remove(&session).is_some() {
            inner.files.retain(|_, theirs| *theirs != session);
        }
        drop(inner);
        self.changed();
    }
}

impl Inner {
    fn new(activity: Activity) -> Self {
        Self {
            activity,
            locking: BTreeMap::new(),
            volume: None,
            dropped: false,
            files: BTreeMap::new(),
            counts: BTreeMap::new(),
            unclaimed: BTreeSet::new(),
            late: BTreeSet::new(),
        }
    }

    /// Whether a session may have the volume beside others, as far as what they ask for says.
    fn lets_have(&self, session: SessionId) -> bool {
        self.locking.keys().all(|other| *other == session) && self.activity.lets_have(session, Instant::now())
    }

    fn add(&mut self, ino: Ino, session: SessionId) {
        self.files.insert(ino, session);
        *self.counts.entry(session).or_default() += 1;
    }

    fn remove(&mut self, ino: Ino) {
        if let Some(session) = self.files.remove(&ino)
            && let Some(count) = self.counts.get_mut(&session)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&session);
            }
        }
    }
}
