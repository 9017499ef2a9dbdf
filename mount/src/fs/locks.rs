//! Locks across mounts: the daemon grants them, or the lease, this notes what was granted, to claim it again from a daemon that was started
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
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::Fs;
use super::events::interval;
use super::handles::OpenFile;
use super::lease::locks::Place;
use super::session::Session;

/// A daemon that does not know yet who holds what is asked again after this.
pub(super) const RECOVERING_PAUSE: Duration = Duration::from_millis(100);
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
    /// Goes up when something that stood in the way of somebody who waits here may be gone.
    pub(super) changes: watch::Sender<u64>,
    /// Held while an owner's locks are changed, so that they are noted in the order in which the daemon has changed them.
    orders: [tokio::sync::Mutex<()>; STRIPES],
}

pub(super) struct Inner {
    /// Whose locks these are, and in which run of the daemon.
    pub(super) session: SessionId,
    run: u64,
    pub(super) table: LockTable<u64>,
    /// Some were granted or given up here, which the daemon has not been told.
    pub(super) is_ahead: bool,
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
            is_ahead: false,
            asked: BTreeMap::new(),
            handles: BTreeMap::new(),
            losses: 0,
            lost: HashMap::new(),
        };
        Self { inner: Mutex::new(inner), changes: watch::Sender::new(0), orders: Default::default() }
    }

    pub(super) fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// All that is held in a session.
    pub(super) fn held(&self, session: SessionId) -> Vec<HeldLock> {
        let inner = self.inner();
        let held = inner.table.locks().filter(|_| inner.session == session);
        held.map(|(ino, owner, lock)| HeldLock { ino, owner, lock }).collect()
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
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
        inner.is_ahead = false;
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
        // Until it is done: the lease is not taken or returned in between.
        let (_turn, here) = self.lease.enter().await;
        if let Some(session) = here
            && let Some(outcome) = self.lock_here(session, request, &note).await?
        {
            return Ok(outcome);
        }
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

    /// Waits until a lock may be set. Answers its place among those who wait; `Recovering`: it is to be asked for anew, elsewhere.
    async fn wait_for_lock<'a>(
        &'a self,
        wanted: HeldLock,
        place: Option<u64>,
        here: Option<Place<'a>>,
    ) -> Result<(LockOutcome, Option<Place<'a>>)> {
        if self.lease.here().is_some() {
            return Ok(self.wait_here(wanted, here).await);
        }
        let wait = LockRequest::Wait { wanted, place };
        let outcome = tokio::select! {
            biased;
            answer = self.ask_for_lock(None, &wait) => answer?.1.outcome,
            () = self.lease.until(true) => LockOutcome::Recovering,
        };
        Ok((outcome, None))
    }

    /// An owner waits for a lock no more, and its place must not keep anybody out who comes after this.
    async fn leave_lock(&self, wanted: HeldLock) {
        if self.lease.here().is_some() {
            self.locks.inner().table.give_up(wanted.ino, wanted.owner, wanted.lock);
            self.locks.changed();
        } else {
            let _in_time = timeout(LEAVE_TIMEOUT, self.ask_for_lock(None, &LockRequest::Leave(wanted))).await;
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
        let test = LockRequest::Test(HeldLock { ino, owner, lock });
        let (_turn, here) = self.session.lease.enter().await;
        let outcome = match here {
            Some(session) => self.session.lock_here(session, &test, |_| {}).await?,
            None => None,
        };
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => self.session.ask_for_lock(None, &test).await?.1.outcome,
        };
        Ok(match outcome {
            LockOutcome::Held { lock, own } => Some(Lock { pid: if own { lock.pid } else { 0 }, ..lock }),
            _ => None,
        })
    }

    /// A process is about to ask for a lock, by a request of the kernel: what it has open of the file may take the lock along.
    pub fn note_lock(&self, handle: u64, owner: u64, process: u32, request: u64) {
        if let Ok(file) = self.files.get(handle) {
            self.quiet.note_lock(file.ino, owner, process, request);
        }
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
        if lock.kind == LockKind::Read && self.session.lease.here().is_none() {
            // It may keep out fewer than the one before. Under the lease there is nobody who would not see what was written.
            self.commit(&file).await?;
        }
        let wanted = HeldLock { ino: file.ino, owner, lock };
        self.session.locks.inner().handles.insert((file.ino, owner), handle);
        let mut patience = pin!(patience);
        let (mut place, mut here) = (None, None);
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
            let has_patience = async {
                tokio::select! {
                    biased;
                    () = &mut patience => false,
                    () = ready(()) => true,
                }
            };
            if !has_patience.await {
                if place.is_some() {
                    self.session.leave_lock(wanted).await;
                }
                return Ok(Locked::Held);
            }
            let kept = here.take();
            let wait = async move {
                if place.is_some() {
                    // Its turn had come and was no turn: a daemon that says so all the time must not keep us busy.
                    sleep(REFUSED_PAUSE).await;
                }
                self.session.wait_for_lock(wanted, place, kept).await
            };
            let mut wait = pin!(wait);
            tokio::select! {
                biased;
                answer = &mut wait => match answer? {
                    (LockOutcome::Place(given), of_here) => (place, here) = (Some(given), of_here),
                    (LockOutcome::Recovering, _) => place = None,
                    (outcome, _) => return ended(outcome),
                },
                () = &mut patience => {
                    let left = async { tokio::join!(self.session.leave_lock(wanted), wait) };
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
        // Under the lease there is nobody who would not see it.
        let is_alone = self.session.lease.here().is_some();
        let written = if is_alone { Ok(()) } else { self.commit(&file).await };
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

    /// The last descriptor of a handle is gone, and with it the locks of flock(2) and OFD, and those of some processes.
    pub(super) async fn release_locks_of(&self, ino: Ino, handle: u64, processes: Vec<u64>) {
        for owner in self.session.locks.owners(ino, handle).into_iter().chain(processes) {
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
