//! Locks of programs: held, waited for, and claimed after a restart.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tandemfs::api::locks::{HeldLock, LockOutcome, LockRequest};
use tandemfs::id::SessionId;
use tandemfs::locks::Refusal;
use tokio::time::{Instant, timeout_at};

use super::{Daemon, State};

/// Waits for a lock until it is dropped.
struct Place<'a> {
    daemon: &'a Daemon,
    owner: (SessionId, u64),
    place: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.daemon.state.lock().unwrap().locks.leave(self.owner, self.place);
    }
}

impl State {
    fn blocker(&self, id: SessionId, wanted: &HeldLock) -> Option<LockOutcome> {
        let blocker = self.locks.blocker(wanted.ino, (id, wanted.owner), wanted.lock, None);
        blocker.map(|((session, _), lock)| LockOutcome::Held { lock, own: session == id })
    }

    /// What comes of all but waiting, for which this gives the place.
    fn lock_outcome(&mut self, id: SessionId, request: &LockRequest) -> LockOutcome {
        if let LockRequest::Claim { locks, asked, .. } = request {
            self.unclaimed.remove(&id);
            if self.loses_claims || locks.iter().any(|held| self.blocker(id, held).is_some()) {
                return LockOutcome::Lost;
            }
            for held in locks {
                self.locks.set(held.ino, (id, held.owner), held.lock).unwrap();
            }
            self.asked.extend(asked.iter().map(|held| (id, *held)));
            return LockOutcome::Done;
        }
        if let LockRequest::Replace { locks } = request {
            self.locks.release(|(theirs, _)| theirs == id);
            for held in locks {
                self.locks.set(held.ino, (id, held.owner), held.lock).unwrap();
            }
            return LockOutcome::Done;
        }
        if !self.unclaimed.is_empty() {
            return LockOutcome::Recovering;
        }
        for (id, held) in std::mem::take(&mut self.asked) {
            if self.blocker(id, &held).is_none() {
                self.locks.set(held.ino, (id, held.owner), held.lock).unwrap();
            }
        }
        match request {
            LockRequest::Test(wanted) => self.blocker(id, wanted).unwrap_or(LockOutcome::Done),
            LockRequest::Set { wanted, .. } => self.blocker(id, wanted).unwrap_or_else(|| {
                self.locks.set(wanted.ino, (id, wanted.owner), wanted.lock).unwrap();
                LockOutcome::Done
            }),
            LockRequest::Wait { wanted, .. } => {
                match self.locks.wait(wanted.ino, (id, wanted.owner), wanted.lock, None) {
                    Ok(place) => LockOutcome::Place(place),
                    Err(Refusal::Deadlock) => LockOutcome::Deadlock,
                    Err(Refusal::Full) => LockOutcome::Full,
                }
            }
            LockRequest::Leave(wanted) => {
                self.locks.give_up(wanted.ino, (id, wanted.owner), wanted.lock);
                LockOutcome::Done
            }
            LockRequest::Unlock { ino, owner, start, end } => {
                self.locks.unlock(*ino, (id, *owner), *start, *end).unwrap();
                LockOutcome::Done
            }
            LockRequest::Claim { .. } | LockRequest::Replace { .. } => unreachable!(),
        }
    }
}

impl Daemon {
    /// A wait ends when the lock might be free, or after 10 s.
    pub(super) async fn lock_outcome(&self, id: SessionId, request: &LockRequest) -> LockOutcome {
        match request {
            LockRequest::Wait { .. } => drop(self.lock_waits.fetch_add(1, Ordering::SeqCst)),
            LockRequest::Leave(_) => drop(self.leaves.fetch_add(1, Ordering::SeqCst)),
            _ => {}
        }
        let outcome = self.state.lock().unwrap().lock_outcome(id, request);
        let (LockRequest::Wait { wanted, .. }, LockOutcome::Place(place)) = (request, outcome) else {
            self.locks_changed.notify_waiters();
            return outcome;
        };
        let _place = Place { daemon: self, owner: (id, wanted.owner), place };
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let changed = self.locks_changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let left = !self.state.lock().unwrap().locks.waits((id, wanted.owner), place);
            let blocked = !left && self.state.lock().unwrap().blocker(id, wanted).is_some();
            if !blocked || timeout_at(end, changed).await.is_err() {
                return outcome;
            }
        }
    }
}
