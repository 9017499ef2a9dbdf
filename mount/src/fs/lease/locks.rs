//! Locks under the lease: nobody else can ask for any, so they are granted here, by the same rules, and handed to the daemon before the
//! lease is returned.

use std::sync::Arc;

use tandemfs::api::locks::{HeldLock, LockOutcome, LockRequest};
use tandemfs::id::SessionId;
use tandemfs::locks::Refusal;
use tandemfs::{Error, Result};
use tokio::time::sleep;

use crate::fs::locks::{Inner, Locks, RECOVERING_PAUSE};
use crate::fs::session::Session;

/// A place in the queue of those who wait here; left when this is dropped.
pub(in crate::fs) struct Place<'a> {
    locks: &'a Locks,
    owner: u64,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.locks.inner().table.leave(self.owner, self.number);
        self.locks.changed();
    }
}

impl Inner {
    /// Tests, sets or releases a lock.
    fn decide(&mut self, request: &LockRequest) -> LockOutcome {
        let held = |(_, lock)| LockOutcome::Held { lock, own: true };
        let done = match *request {
            LockRequest::Test(HeldLock { ino, owner, lock }) => {
                return self.table.blocker(ino, owner, lock, None).map_or(LockOutcome::Done, held);
            }
            LockRequest::Set { wanted: HeldLock { ino, owner, lock }, place } => {
                // A place of the daemon's queue says nothing here.
                let place = place.filter(|place| self.table.waits(owner, *place));
                if let Some(blocker) = self.table.blocker(ino, owner, lock, place) {
                    return held(blocker);
                }
                self.table.set(ino, owner, lock)
            }
            LockRequest::Unlock { ino, owner, start, end } => self.table.unlock(ino, owner, start, end),
            _ => return LockOutcome::Recovering,
        };
        done.map_or_else(refused, |()| LockOutcome::Done)
    }
}

fn refused(refusal: Refusal) -> LockOutcome {
    match refusal {
        Refusal::Full => LockOutcome::Full,
        Refusal::Deadlock => LockOutcome::Deadlock,
    }
}

impl Session {
    /// Tests, sets or releases a lock under the lease, in the session that has it; `None`: the locks are not of that session.
    ///
    /// # Errors
    /// `Stale` when the session was lost meanwhile; as [`Session::ready`].
    pub(in crate::fs) async fn lock_here(
        &self,
        session: SessionId,
        request: &LockRequest,
        note: impl Fn(&mut Inner),
    ) -> Result<Option<LockOutcome>> {
        self.ready().await?;
        let outcome = {
            let mut inner = self.locks.inner();
            if inner.session != session {
                return Ok(None);
            }
            let outcome = inner.decide(request);
            if outcome == LockOutcome::Done {
                note(&mut inner);
                inner.is_ahead |= !matches!(request, LockRequest::Test(_));
            }
            outcome
        };
        self.locks.changed();
        // This process may have stood still while the lease passed, and with it the session.
        self.ready().await?;
        if self.locks.inner().session != session {
            return Err(Error::stale("the lock was lost with the session"));
        }
        Ok(Some(outcome))
    }

    /// Waits here until a lock may be set, in its turn among those who wait, from a place that was given before or the end. Answers the
    /// place, to be kept until the lock is set, or that the lease is gone.
    pub(in crate::fs) async fn wait_here<'a>(
        &'a self,
        wanted: HeldLock,
        place: Option<Place<'a>>,
    ) -> (LockOutcome, Option<Place<'a>>) {
        let HeldLock { ino, owner, lock } = wanted;
        let mut changes = self.locks.changes.subscribe();
        let entered = match place {
            Some(place) => Ok(place),
            None => self.locks.inner().table.wait(ino, owner, lock, None).map(|number| Place {
                locks: &self.locks,
                owner,
                number,
            }),
        };
        let place = match entered {
            Ok(place) => place,
            Err(refusal) => return (refused(refusal), None),
        };
        let number = place.number;
        loop {
            changes.mark_unchanged();
            {
                let inner = self.locks.inner();
                let is_left = !inner.table.waits(owner, number);
                if is_left || inner.table.blocker(ino, owner, lock, Some(number)).is_none() {
                    return (LockOutcome::Place(number), Some(place));
                }
            }
            tokio::select! {
                biased;
                () = self.lease.until(false) => return (LockOutcome::Recovering, None),
                _ = changes.changed() => {}
            }
        }
    }

    /// Tells the daemon which locks are held, if some were granted here.
    pub(super) async fn hand_over_locks(self: &Arc<Self>) {
        if !std::mem::take(&mut self.locks.inner().is_ahead) {
            return;
        }
        loop {
            let answer = self.until_answered(|id| {
                Box::pin(async move {
                    let request = LockRequest::Replace { locks: self.locks.held(id) };
                    self.remote.lock(id, &request).await
                })
            });
            match answer.await.map(|reply| reply.outcome) {
                Ok(LockOutcome::Done) => return,
                Ok(LockOutcome::Recovering) => sleep(RECOVERING_PAUSE).await,
                other => {
                    log::error!("the daemon does not take the locks over: {other:?}");
                    return self.locks.lose(&self.grant());
                }
            }
        }
    }
}
