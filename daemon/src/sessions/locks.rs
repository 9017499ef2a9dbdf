//! The locks of one volume's sessions. They live in memory: after a restart the sessions of the run before claim theirs, and until
//! each of them has, or has ended, nobody is granted anything.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tandemfs::api::locks::{HeldLock, LockOutcome, LockReply, LockRequest, OFFSET_MAX};
use tandemfs::id::SessionId;
use tandemfs::locks::{LockTable, Refusal};
use tandemfs::{Error, Result};
use tokio::time::{Instant, sleep, sleep_until};

use super::Sessions;
use crate::accounts::Caller;
use crate::watch;

/// The longest wait before the client has to ask again.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// A place whose turn has come is kept so long for its owner to come and take the lock.
const TURN: Duration = Duration::from_secs(2);

/// An owner: a session, and a number within it.
type Owner = (SessionId, u64);

#[derive(Debug)]
pub(crate) struct Locks {
    inner: Mutex<Inner>,
    /// Goes up when something that stood in somebody's way may be gone.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    table: LockTable<Owner>,
    /// Sessions of the run before that have not claimed their locks yet.
    unclaimed: BTreeSet<SessionId>,
    /// Those that did not claim in time: others may have had their locks since.
    late: BTreeSet<SessionId>,
    /// What sessions had asked for in the run before, and were perhaps granted.
    asked: Vec<(SessionId, HeldLock)>,
}

/// A place in the queue; left when this is dropped.
struct Place {
    locks: Arc<Locks>,
    owner: Owner,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.locks.inner().table.leave(self.owner, self.number);
        self.locks.changed();
    }
}

impl Default for Locks {
    fn default() -> Self {
        Self { inner: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl Sessions {
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
        let volume = session.record().volume;
        // Whoever has the volume to itself grants locks by itself.
        let delegations = self.audience.delegations(volume);
        let _locking = delegations.locking(id);
        if delegations.volume().is_some_and(|holder| holder != id)
            && let Some(in_the_way) = self.audience.in_the_way(volume, Some(id), &BTreeSet::new())
        {
            self.audience.recall(in_the_way).await;
        }
        let locks = self.audience.locks(volume);
        let outcome = locks.carry_out(run, id, request).await?;
        if self.audience.get(id).is_none() {
            // It has ended meanwhile, perhaps before this was granted.
            self.audience.free(volume, &session);
            return Err(Error::session_ended(format!("session {id}")));
        }
        Ok(LockReply { run, outcome })
    }
}

impl Locks {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// A session of the run before may hold locks.
    pub(super) fn expect(&self, session: SessionId) {
        self.inner().unclaimed.insert(session);
    }

    /// Whoever has not claimed until now has lost what it held.
    pub(super) fn expect_no_more(&self) {
        let mut inner = self.inner();
        let late = std::mem::take(&mut inner.unclaimed);
        inner.late.extend(late);
        inner.take_asked();
        drop(inner);
        self.changed();
    }

    /// Whether any session but one holds locks.
    pub(crate) fn has_others(&self, but: SessionId) -> bool {
        self.inner().table.locks().any(|(_, (session, _), _)| session != but)
    }

    /// A session has ended.
    pub(super) fn release(&self, session: SessionId) {
        let mut inner = self.inner();
        inner.unclaimed.remove(&session);
        inner.late.remove(&session);
        inner.table.release(|(theirs, _)| theirs == session);
        inner.asked.retain(|(theirs, _)| *theirs != session);
        inner.take_asked();
        drop(inner);
        self.changed();
    }

    /// Does what a session asks for.
    ///
    /// # Errors
    /// `Invalid` for a range that is none; `Stale` for a claim that was meant for another run.
    pub(super) async fn carry_out(
        self: &Arc<Self>,
        run: u64,
        session: SessionId,
        request: LockRequest,
    ) -> Result<LockOutcome> {
        let is_known = {
            let unclaimed = &self.inner().unclaimed;
            match &request {
                LockRequest::Claim { .. } => true,
                LockRequest::Unlock { .. } | LockRequest::Leave(_) | LockRequest::Replace { .. } => {
                    !unclaimed.contains(&session)
                }
                _ => unclaimed.is_empty(),
            }
        };
        if !is_known {
            return Ok(LockOutcome::Recovering);
        }
        match request {
            LockRequest::Test(wanted) => {
                check(wanted.lock.start, wanted.lock.end)?;
                Ok(self.inner().blocker(session, wanted, None).unwrap_or(LockOutcome::Done))
            }
            LockRequest::Set { wanted, place } => self.set(session, wanted, place),
            LockRequest::Wait { wanted, place } => self.wait(session, wanted, place).await,
            LockRequest::Leave(wanted) => {
                self.inner().table.give_up(wanted.ino, (session, wanted.owner), wanted.lock);
                self.changed();
                Ok(LockOutcome::Done)
            }
            LockRequest::Unlock { ino, owner, start, end } => {
                check(start, end)?;
                let done = self.inner().table.unlock(ino, (session, owner), start, end);
                self.changed();
                Ok(outcome(done))
            }
            LockRequest::Replace { locks } => self.replace(session, &locks),
            LockRequest::Claim { run: meant, .. } if meant != run => {
                Err(Error::stale("the daemon was started anew in the meantime"))
            }
            LockRequest::Claim { locks, asked, .. } => self.claim(session, &locks, asked),
        }
    }

    /// Takes all of the locks that a session of the run before has held, or none. What it had only asked for is taken when all have
    /// claimed, where nothing stands against it: others may have been refused because of it.
    fn claim(&self, session: SessionId, locks: &[HeldLock], asked: Vec<HeldLock>) -> Result<LockOutcome> {
        check_all(locks.iter().chain(&asked))?;
        let mut inner = self.inner();
        let is_awaited = inner.unclaimed.remove(&session);
        let kept = locks.is_empty() || (!inner.late.contains(&session) && inner.take(session, locks));
        if is_awaited && kept {
            inner.asked.extend(asked.into_iter().map(|held| (session, held)));
        }
        inner.take_asked();
        drop(inner);
        self.changed();
        Ok(if kept { LockOutcome::Done } else { LockOutcome::Lost })
    }

    /// Takes all of the locks that a session has granted by itself, or none.
    fn replace(&self, session: SessionId, locks: &[HeldLock]) -> Result<LockOutcome> {
        check_all(locks)?;
        let mut inner = self.inner();
        inner.table.release(|(theirs, _)| theirs == session);
        let taken = inner.take(session, locks);
        drop(inner);
        self.changed();
        Ok(if taken { LockOutcome::Done } else { LockOutcome::Lost })
    }

    fn set(&self, session: SessionId, wanted: HeldLock, place: Option<u64>) -> Result<LockOutcome> {
        check(wanted.lock.start, wanted.lock.end)?;
        let owner = (session, wanted.owner);
        let mut inner = self.inner();
        let refused = inner.blocker(session, wanted, place);
        if let Some(refused) = refused {
            return Ok(refused);
        }
        let done = inner.table.set(wanted.ino, owner, wanted.lock);
        if let Some(place) = place {
            inner.table.leave(owner, place);
        }
        drop(inner);
        // It may have been set in the place of one that kept more out.
        self.changed();
        Ok(outcome(done))
    }

    /// Waits until a lock may be set. The place is kept while this waits, and for a [`TURN`] when its turn has come; a client
    /// that goes away leaves it at once.
    async fn wait(
        self: &Arc<Self>,
        session: SessionId,
        wanted: HeldLock,
        place: Option<u64>,
    ) -> Result<LockOutcome> {
        check(wanted.lock.start, wanted.lock.end)?;
        let deadline = Instant::now() + WAIT_MAX;
        let owner = (session, wanted.owner);
        let number = match self.inner().table.wait(wanted.ino, owner, wanted.lock, place) {
            Ok(number) => number,
            Err(refusal) => return Ok(outcome(Err(refusal))),
        };
        let place = Place { locks: Arc::clone(self), owner, number };
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            if !self.inner().table.waits(owner, number) {
                // It was left meanwhile.
                return Ok(LockOutcome::Place(number));
            }
            if self.inner().blocker(session, wanted, Some(number)).is_none() {
                tokio::spawn(async move {
                    sleep(TURN).await;
                    drop(place);
                });
                return Ok(LockOutcome::Place(number));
            }
            tokio::select! {
                biased;
                _ = changes.changed() => {}
                () = sleep_until(deadline) => return Ok(LockOutcome::Place(number)),
            }
        }
    }
}

impl Inner {
    fn blocker(&self, session: SessionId, wanted: HeldLock, place: Option<u64>) -> Option<LockOutcome> {
        let ((holder, _), mut lock) =
            self.table.blocker(wanted.ino, (session, wanted.owner), wanted.lock, place)?;
        let own = holder == session;
        if !own {
            // The number of a process on another machine says nothing.
            lock.pid = 0;
        }
        Some(LockOutcome::Held { lock, own })
    }

    fn take(&mut self, session: SessionId, locks: &[HeldLock]) -> bool {
        let taken = locks.iter().all(|held| {
            self.blocker(session, *held, None).is_none()
                && self.table.set(held.ino, (session, held.owner), held.lock).is_ok()
        });
        if !taken {
            self.table.release(|(theirs, _)| theirs == session);
        }
        taken
    }

    /// Once nobody is waited for: takes what was perhaps granted.
    fn take_asked(&mut self) {
        if !self.unclaimed.is_empty() {
            return;
        }
        for (session, held) in std::mem::take(&mut self.asked) {
            if self.blocker(session, held, None).is_none() {
                // Without room it is not held; whoever asked asks again.
                let _done = self.table.set(held.ino, (session, held.owner), held.lock);
            }
        }
    }
}

fn check_all<'a>(locks: impl IntoIterator<Item = &'a HeldLock>) -> Result<()> {
    locks.into_iter().try_for_each(|held| check(held.lock.start, held.lock.end))
}

fn check(start: u64, end: u64) -> Result<()> {
    if start > end || end > OFFSET_MAX {
        return Err(Error::invalid("a range of bytes that ends before it begins, or too far out"));
    }
    Ok(())
}

fn outcome(result: Result<(), Refusal>) -> LockOutcome {
    match result {
        Ok(()) => LockOutcome::Done,
        Err(Refusal::Full) => LockOutcome::Full,
        Err(Refusal::Deadlock) => LockOutcome::Deadlock,
    }
}
