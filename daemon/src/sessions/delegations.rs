//! The files of one volume that are delegated to sessions, which may have written to them what nobody has been told of yet. They live
//! in memory: after a restart the sessions of the run before say which they have, and until each of them has, or has ended, no other
//! session is shown a file or may change one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tandemfs::api::fs::{DELEGATIONS_MAX, DelegationReply, DelegationRequest};
use tandemfs::id::{Ino, SessionId};
use tandemfs::{Error, Result};

use super::Sessions;
use crate::accounts::Caller;
use crate::watch;

#[derive(Debug)]
pub(crate) struct Delegations {
    inner: Mutex<Inner>,
    /// Goes up when somebody may go on who has waited.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    files: BTreeMap<Ino, SessionId>,
    counts: BTreeMap<SessionId, usize>,
    /// Sessions of the run before that have not said yet what they have.
    unclaimed: BTreeSet<SessionId>,
    /// Those that have not said so in time: others may have seen their files since.
    late: BTreeSet<SessionId>,
}

impl Default for Delegations {
    fn default() -> Self {
        Self { inner: Mutex::default(), changes: watch::Sender::new(0) }
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
        match request {
            DelegationRequest::Take(ino) => {
                self.writable(caller, &session)?;
                volume.delegate(id, *ino).await?;
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
        Ok(DelegationReply { run: self.meta.run() })
    }
}

impl Delegations {
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

    /// A session says which files it has; one of the run before is believed. `false`: it says so too late, and has lost them.
    pub(super) fn claim(&self, session: SessionId, files: &[Ino]) -> bool {
        let mut inner = self.inner();
        if inner.unclaimed.remove(&session) {
            for ino in files.iter().take(DELEGATIONS_MAX) {
                if !inner.files.contains_key(ino) {
                    inner.add(*ino, session);
                }
            }
        }
        let is_late = inner.late.remove(&session);
        drop(inner);
        self.changed();
        !is_late || files.is_empty()
    }

    /// Which of some files are delegated to others than `author`, and to whom.
    pub(super) fn of_others(
        &self,
        author: Option<SessionId>,
        files: &BTreeSet<Ino>,
    ) -> BTreeMap<SessionId, Vec<Ino>> {
        let inner = self.inner();
        let mut others: BTreeMap<SessionId, Vec<Ino>> = BTreeMap::new();
        if !inner.files.is_empty() {
            for ino in files {
                if let Some(session) = inner.files.get(ino).filter(|session| Some(**session) != author) {
                    others.entry(*session).or_default().push(*ino);
                }
            }
        }
        others
    }

    /// Whether any of some files is delegated to a session.
    pub(crate) fn has_any(&self, session: SessionId, files: &[Ino]) -> bool {
        let inner = self.inner();
        files.iter().any(|ino| inner.files.get(ino) == Some(&session))
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
        *self.inner() = Inner::default();
        self.changed();
    }

    /// A session has ended.
    pub(super) fn release(&self, session: SessionId) {
        let mut inner = self.inner();
        inner.unclaimed.remove(&session);
        inner.late.remove(&session);
        if inner.counts.remove(&session).is_some() {
            inner.files.retain(|_, theirs| *theirs != session);
        }
        drop(inner);
        self.changed();
    }
}

impl Inner {
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
