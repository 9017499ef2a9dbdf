//! Locks across mounts: the daemon grants them, this notes what it has granted, to claim it again from a daemon that was started
//! anew, to give it up with the last handle, and to know what a lost session took with it.

use std::collections::{BTreeMap, HashMap};
use std::future::ready;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tandemfs::api::fs::SessionGrant;
use tandemfs::api::locks::{HeldLock, Lock, LockKind, LockOutcome, LockReply, LockRequest, OFFSET_MAX};
use tandemfs::id::{Ino, SessionId};
use tandemfs::locks::LockTable;
use tandemfs::{Error, Result};
use tokio::time::{Instant, sleep, timeout};

use super::Fs;
use super::events::interval;
use super::handles::OpenFile;
use super::session::Session;

/// A daemon that does not know yet who holds what is asked again after this.
const RECOVERING_PAUSE: Duration = Duration::from_millis(100);
/// The pause before another wait when the one before was in vain.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);
/// How long who gives up a wait tells the daemon so; it finds out by itself when the request is gone.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Owners are told apart by so many numbers when their changes are put in order.
const STRIPES: usize = 16;

/// What came of asking for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// It is as was asked for.
    Granted,
    /// Another holds one that stands against it.
    Held,
    /// Waiting for it would never end.
    Deadlock,
    /// There are too many.
    Full,
}

/// What the programs on this mount hold.
pub struct Locks {
    inner: Mutex<Inner>,
    /// Held while an owner's locks are changed, so that they are noted in the order in which the daemon has changed them.
    orders: [tokio::sync::Mutex<()>; STRIPES],
}

struct Inner {
    /// Whose locks these are, and in which run of the daemon.
    session: SessionId,
    run: u64,
    table: LockTable<u64>,
    /// What each owner has asked for.
    asked: BTreeMap<u64, Asking>,
    /// The handle that each owner has used last: with it go its locks. All owners are here that may hold something.
    handles: BTreeMap<(Ino, u64), u64>,
    /// Counts lost sessions.
    losses: u64,
    /// Files whose locks were lost while they were open, and with which loss.
    lost: HashMap<Ino, u64>,
}

impl Locks {
    /// None yet.
    pub(super) fn new(grant: &SessionGrant) -> Self {
        let inner = Inner {
            session: grant.session,
            run: grant.run,
            table: LockTable::default(),
            asked: BTreeMap::new(),
            handles: BTreeMap::new(),
            losses: 0,
            lost: HashMap::new(),
        };
        Self { inner: Mutex::new(inner), orders: Default::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session under whose locks a file is; what is written now belongs to it alone.
    pub(super) fn session_of(&self, ino: Ino) -> Option<SessionId> {
        let inner = self.inner();
        inner.table.is_locked(ino).then_some(inner.session)
    }

    /// How many sessions have been lost so far, for a new handle.
    pub(super) fn losses(&self) -> u64 {
        self.inner().losses
    }

    /// Whether locks on a file were lost since a handle was opened.
    fn is_lost(&self, file: &OpenFile) -> bool {
        self.inner().lost.get(&file.ino).is_some_and(|loss| *loss > file.losses)
    }

    /// The last handle of a file is gone.
    pub(super) fn forget_loss(&self, ino: Ino) {
        self.inner().lost.remove(&ino);
    }

    /// The session is gone, and with it all that it held; there is another one.
    pub(super) fn lose(&self, grant: &SessionGrant) {
        let mut inner = self.inner();
        inner.losses += 1;
        let (losses, table) = (inner.losses, std::mem::take(&mut inner.table));
        for (ino, _, _) in table.locks() {
            if inner.lost.insert(ino, losses) != Some(losses) {
                log::error!(
                    "the locks on inode {ino} are lost with the session; what has it open must open it anew"
                );
            }
        }
        inner.handles.clear();
        (inner.session, inner.run) = (grant.session, grant.run);
    }

    /// The daemon was started anew: what is to be claimed of it. What is being given up is not: the run before may have given it to
    /// others, who claim it too.
    fn to_claim(&self, grant: &SessionGrant) -> LockRequest {
        let mut inner = self.inner();
        (inner.session, inner.run) = (grant.session, grant.run);
        let mut table = inner.table.clone();
        let mut asked = Vec::new();
        for (owner, Asking { request, .. }) in inner.asked.iter().filter(|(_, asking)| asking.unanswered > 0)
        {
            // It leaves no more than the daemon had room for.
            match request {
                LockRequest::Unlock { ino, start, end, .. } => {
                    let _done = table.unlock(*ino, *owner, *start, *end);
                }
                LockRequest::Set { wanted, .. } => {
                    let _done = table.weaken(wanted.ino, *owner, wanted.lock);
                    asked.push(*wanted);
                }
                _ => {}
            }
        }
        let locks = table.locks().map(|(ino, owner, lock)| HeldLock { ino, owner, lock }).collect();
        LockRequest::Claim { run: grant.run, locks, asked }
    }

    /// An owner asks for a change, until the guard goes.
    fn ask(&self, owner: u64, request: &LockRequest) -> Asked<'_> {
        self.inner().asked.insert(owner, Asking { request: request.clone(), unanswered: 0 });
        Asked { locks: self, owner }
    }

    fn send(&self, owner: Option<u64>) {
        let mut inner = self.inner();
        if let Some(asking) = owner.and_then(|owner| inner.asked.get_mut(&owner)) {
            asking.unanswered += 1;
        }
    }

    /// The last time that it was sent it was not done: the daemon does not know yet who holds what.
    fn put_off(&self, owner: Option<u64>) {
        let mut inner = self.inner();
        if let Some(asking) = owner.and_then(|owner| inner.asked.get_mut(&owner)) {
            asking.unanswered = asking.unanswered.saturating_sub(1);
        }
    }

    /// Owners whose last handle of a file this is.
    fn owners(&self, ino: Ino, handle: u64) -> Vec<u64> {
        let inner = self.inner();
        let of_file = inner.handles.range((ino, 0)..=(ino, u64::MAX));
        of_file.filter(|(_, last)| **last == handle).map(|((_, owner), _)| *owner).collect()
    }
}

/// A change that an owner has asked for.
struct Asking {
    request: LockRequest,
    /// How often it was sent without an answer: so it may be done, and others may have seen that.
    unanswered: u32,
}

/// An owner's change is under way.
struct Asked<'a> {
    locks: &'a Locks,
    owner: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.locks.inner().asked.remove(&self.owner);
    }
}

impl Session {
    /// Tells a daemon that was started anew which locks the session holds.
    ///
    /// # Errors
    /// Those of the daemon: the session is to be taken up again.
    pub(super) async fn claim_locks(&self, grant: &SessionGrant) -> Result<()> {
        let request = self.locks.to_claim(grant);
        let reply = timeout(interval(grant), self.remote.lock(grant.session, &request))
            .await
            .map_err(|_| Error::timed_out("claiming locks"))??;
        if reply.outcome != LockOutcome::Done {
            self.locks.lose(grant);
        }
        Ok(())
    }

    /// Asks until the daemon knows who holds what, perhaps for a change by an owner.
    async fn ask_for_lock(
        &self,
        owner: Option<u64>,
        request: &LockRequest,
    ) -> Result<(SessionId, LockReply)> {
        let give_up = Instant::now() + self.offline_timeout;
        loop {
            let (id, reply) = self
                .until_answered(|id| {
                    self.locks.send(owner);
                    Box::pin(async move { self.remote.lock(id, request).await.map(|reply| (id, reply)) })
                })
                .await?;
            if reply.outcome != LockOutcome::Recovering {
                return Ok((id, reply));
            }
            self.locks.put_off(owner);
            if Instant::now() >= give_up {
                return Err(Error::timed_out("the daemon does not know the locks of the run before"));
            }
            sleep(RECOVERING_PAUSE).await;
        }
    }

    /// Changes what an owner holds, and notes it.
    async fn change_locks(
        &self,
        owner: u64,
        request: &LockRequest,
        note: impl Fn(&mut Inner),
    ) -> Result<LockOutcome> {
        let _order = self.locks.orders[(owner % STRIPES as u64) as usize].lock().await;
        let _asked = self.locks.ask(owner, request);
        let give_up = Instant::now() + self.offline_timeout;
        loop {
            let (id, reply) = self.ask_for_lock(Some(owner), request).await?;
            // The answer may have lain here, with this process stopped, while the lease passed, and with it the session.
            self.ready().await?;
            {
                let mut inner = self.locks.inner();
                if (id, reply.run) == (inner.session, inner.run) {
                    if reply.outcome == LockOutcome::Done {
                        note(&mut inner);
                    }
                    return Ok(reply.outcome);
                }
            }
            if reply.outcome == LockOutcome::Done
                && matches!(request, LockRequest::Set { .. })
                && id != self.locks.inner().session
            {
                // Others have been kept out by it, and have had it since.
                return Err(Error::stale("the lock was lost with the session"));
            }
            // It comes from a session or a run that is over, and counts for nothing.
            if Instant::now() >= give_up {
                return Err(Error::timed_out("the daemon was started anew too often"));
            }
            sleep(RECOVERING_PAUSE).await;
        }
    }

    /// Gives up all that an owner holds of a file.
    async fn release_locks(&self, ino: Ino, owner: u64) {
        if !self.locks.inner().handles.contains_key(&(ino, owner)) {
            return;
        }
        let all = LockRequest::Unlock { ino, owner, start: 0, end: OFFSET_MAX };
        let released = self.change_locks(owner, &all, |inner| {
            // It leaves none, so there is always room.
            let _done = inner.table.unlock(ino, owner, 0, OFFSET_MAX);
            inner.handles.remove(&(ino, owner));
        });
        if let Err(error) = released.await {
            log::warn!("the locks on inode {ino} are kept until the session ends: {error}");
        }
    }
}

impl Fs {
    /// Whether a handle may be used: not when locks on its file were lost since it was opened, for others may have changed since what
    /// they were to protect.
    ///
    /// # Errors
    /// `Stale`; `Invalid` for no handle.
    pub fn usable(&self, handle: u64) -> Result<Arc<OpenFile>> {
        let file = self.files.get(handle)?;
        self.check_lost(&file)?;
        Ok(file)
    }

    pub(super) fn check_lost(&self, file: &OpenFile) -> Result<()> {
        if self.session.locks.is_lost(file) {
            return Err(Error::stale(format!("a lock on inode {} was lost with the session", file.ino)));
        }
        Ok(())
    }

    /// getlk: a lock that stands against one, with the process that has asked for it, if that was on this mount.
    ///
    /// # Errors
    /// `Stale` after a loss; those of the daemon.
    pub async fn test_lock(&self, handle: u64, owner: u64, lock: Lock) -> Result<Option<Lock>> {
        let ino = self.usable(handle)?.ino;
        let (_, reply) =
            self.session.ask_for_lock(None, &LockRequest::Test(HeldLock { ino, owner, lock })).await?;
        Ok(match reply.outcome {
            LockOutcome::Held { lock, own } => Some(Lock { pid: if own { lock.pid } else { 0 }, ..lock }),
            _ => None,
        })
    }

    /// setlk: waits for the lock until `patience` ends.
    ///
    /// # Errors
    /// `Stale` after a loss; those of the daemon; a failure of writing what was written under a lock that it takes the place of.
    pub async fn set_lock(
        &self,
        handle: u64,
        owner: u64,
        lock: Lock,
        patience: impl Future<Output = ()>,
    ) -> Result<Locked> {
        let file = self.usable(handle)?;
        if lock.kind == LockKind::Read {
            // It may keep out fewer than the one before.
            self.commit(&file).await?;
        }
        let wanted = HeldLock { ino: file.ino, owner, lock };
        self.session.locks.inner().handles.insert((file.ino, owner), handle);
        let mut patience = pin!(patience);
        let mut place = None;
        loop {
            self.check_lost(&file)?;
            let set = LockRequest::Set { wanted, place };
            let note = |inner: &mut Inner| {
                inner.handles.insert((file.ino, owner), handle);
                // The daemon has had room for it, among those of others.
                let _done = inner.table.set(file.ino, owner, lock);
            };
            match self.session.change_locks(owner, &set, note).await? {
                LockOutcome::Held { .. } => {}
                outcome => return ended(outcome),
            }
            let leave = LockRequest::Leave(wanted);
            let has_patience = async {
                tokio::select! {
                    biased;
                    () = &mut patience => false,
                    () = ready(()) => true,
                }
            };
            if !has_patience.await {
                if place.is_some() {
                    let _in_time = timeout(LEAVE_TIMEOUT, self.session.ask_for_lock(None, &leave)).await;
                }
                return Ok(Locked::Held);
            }
            let wait = async move {
                if place.is_some() {
                    // Its turn had come and was no turn: a daemon that says so all the time must not keep us busy.
                    sleep(REFUSED_PAUSE).await;
                }
                self.session.ask_for_lock(None, &LockRequest::Wait { wanted, place }).await
            };
            let mut wait = pin!(wait);
            tokio::select! {
                biased;
                answer = &mut wait => match answer?.1.outcome {
                    LockOutcome::Place(given) => place = Some(given),
                    outcome => return ended(outcome),
                },
                () = &mut patience => {
                    // Its place must not keep anybody out who comes after this.
                    let left = async { tokio::join!(self.session.ask_for_lock(None, &leave), wait) };
                    let _in_time = timeout(LEAVE_TIMEOUT, left).await;
                    return Ok(Locked::Held);
                }
            }
        }
    }

    /// setlk with F_UNLCK: what was written under the lock is committed before another can have it.
    ///
    /// # Errors
    /// `Stale` after a loss; a failure of writing, in which case the lock is given up all the same; those of the daemon.
    pub async fn unlock(&self, handle: u64, owner: u64, start: u64, end: u64) -> Result<Locked> {
        let file = self.usable(handle)?;
        let ino = file.ino;
        let written = self.commit(&file).await;
        if self.session.locks.inner().handles.contains_key(&(ino, owner)) {
            let unlock = LockRequest::Unlock { ino, owner, start, end };
            let note = |inner: &mut Inner| {
                // The daemon has had room for what it leaves, among the locks of others.
                let _done = inner.table.unlock(ino, owner, start, end);
            };
            let outcome = self.session.change_locks(owner, &unlock, note).await?;
            if outcome != LockOutcome::Done {
                return ended(outcome);
            }
        }
        written.map(|()| Locked::Granted)
    }

    /// What close(2) does: all that was written is sent, and the process's locks on the file are given up (fcntl(2): with any descriptor
    /// of it).
    ///
    /// # Errors
    /// As [`Fs::flush`].
    pub async fn close(&self, handle: u64, owner: u64) -> Result<()> {
        let file = self.files.get(handle)?;
        let flushed = self.flush(handle).await;
        self.session.release_locks(file.ino, owner).await;
        self.check_lost(&file).and(flushed)
    }

    /// The last descriptor of a handle is gone, and with it the locks of flock(2) and OFD.
    pub(super) async fn release_locks_of(&self, ino: Ino, handle: u64) {
        for owner in self.session.locks.owners(ino, handle) {
            self.session.release_locks(ino, owner).await;
        }
    }
}

fn ended(outcome: LockOutcome) -> Result<Locked> {
    match outcome {
        LockOutcome::Done => Ok(Locked::Granted),
        LockOutcome::Full => Ok(Locked::Full),
        LockOutcome::Deadlock => Ok(Locked::Deadlock),
        other => Err(Error::internal(format!("the daemon answers {other:?} to what asks for a lock"))),
    }
}
