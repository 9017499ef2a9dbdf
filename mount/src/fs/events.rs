//! Follows what others change, and takes the session up again whenever the connection or the daemon was gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use tandemfs::api::fs::{Ack, Event, ResumeSession, SessionGrant};
use tandemfs::id::Ino;
use tandemfs::tree::{CHUNK_SIZE, Key};
use tandemfs::{Error, ErrorKind, Result};
use tokio::time::{Instant, sleep_until, timeout};

use super::dropping::What;
use super::remote::Events;
use super::session::{Session, lease};

/// So many events are carried out before they are acknowledged together.
const EVENTS_MAX: usize = 64;
/// The longest pause before the daemon is asked again.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// The pause before a daemon that lets us in no more is asked again.
const DENIED_PAUSE: Duration = Duration::from_secs(5);

/// Whether an error means that the credentials do not count any more, which waiting does not mend.
fn is_denial(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unauthenticated | ErrorKind::Forbidden | ErrorKind::DefaultPassword | ErrorKind::NotFound
    )
}

/// What a run of events asks for.
#[derive(Default)]
struct Work {
    number: u64,
    held: Vec<Ino>,
    /// By inode: the changed chunks; none means that its attributes have changed.
    inodes: BTreeMap<Ino, Vec<u64>>,
    /// Files that are delegated to others, and since which version.
    delegated: BTreeSet<Ino>,
    version: u64,
    /// Files that others wait for.
    recalled: Vec<Ino>,
    /// Others wait for the volume.
    volume_recalled: bool,
    /// Names have come, gone or changed what they lead to.
    names: bool,
    all: bool,
}

impl Session {
    /// Follows the events until [`Session::close`]. To be run in a task of its own.
    pub async fn follow(self: Arc<Self>) {
        let watchdog = tokio::spawn(Arc::clone(&self).watch_lease());
        let mut pause = Duration::from_millis(10);
        let mut first = true;
        // An outage is worth one line, not one for each try.
        let mut away = false;
        while !self.state().closed {
            let connected = if first { Ok(()) } else { self.take_up().await };
            first = false;
            let result = match connected {
                Ok(()) => {
                    away = false;
                    self.listen(&mut pause).await
                }
                Err(error) => Err(error),
            };
            if self.state().closed {
                break;
            }
            if let Err(error) = result {
                let level = if away { log::Level::Debug } else { log::Level::Warn };
                log::log!(level, "the connection to the daemon is gone: {error}");
                away = true;
                if error.kind() == ErrorKind::SessionEnded {
                    self.ended(self.id());
                } else if is_denial(&error) {
                    self.deny(&error).await;
                    pause = DENIED_PAUSE;
                } else {
                    self.missed(&error);
                }
            }
            self.rest(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        watchdog.abort();
    }

    /// Waits, but not beyond the end of the mount.
    async fn rest(&self, pause: Duration) {
        let mut changes = self.changed.subscribe();
        let closed = async { while !self.state().closed && changes.changed().await.is_ok() {} };
        let _either = timeout(pause, closed).await;
    }

    /// Resumes the session, or opens another one if it has ended.
    async fn take_up(&self) -> Result<()> {
        if self.state().ended {
            return self.reopen().await;
        }
        let before = self.grant();
        let sent = Instant::now();
        let resume = ResumeSession {
            held: self.opens.orphans(),
            delegations: self.delegations.to_claim(),
            volume: self.lease.to_claim(),
        };
        let answer = timeout(interval(&before), self.remote.resume_session(before.session, &resume))
            .await
            .map_err(|_| Error::timed_out("resuming the session"))?;
        match answer {
            Ok(grant) => {
                if grant.run != before.run {
                    log::info!("the daemon was started anew; dropping what is cached");
                    self.forget_all().await;
                    self.claim_locks(&grant).await?;
                }
                self.delegations.resumed(grant.run);
                self.lease.resumed(grant.run);
                self.state().taken_up(grant, sent);
                self.notify();
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::SessionEnded => {
                log::warn!("the session has ended; opening another one");
                self.ended(before.session);
                self.reopen().await
            }
            Err(error) => Err(error),
        }
    }

    /// Carries out events until the stream ends.
    async fn listen(self: &Arc<Self>, pause: &mut Duration) -> Result<()> {
        let grant = self.grant();
        let interval = interval(&grant);
        let mut events = timeout(interval, self.remote.events(grant.session))
            .await
            .map_err(|_| Error::timed_out("following events"))??;
        let mut number = 0;
        let mut changes = self.changed.subscribe();
        let mut renew = Instant::now() + interval / 3;
        loop {
            tokio::select! {
                biased;
                event = events.next() => {
                    let event = event.ok_or_else(|| Error::unavailable("the stream of events ended"))??;
                    let work = self.gather(event, &mut events)?;
                    number = work.number.max(number);
                    let ack = Ack { number, held: work.held.clone() };
                    let volume_recalled = work.volume_recalled;
                    let recalled = self.carry_out(work).await;
                    self.note_carried_out(grant.session, number);
                    let acknowledged = self.acknowledge_in(interval, &ack).await;
                    if !recalled.is_empty() {
                        // After that, for it may take long; and in any case, for it is not told again.
                        let session = Arc::clone(self);
                        tokio::spawn(async move { session.recalled(recalled).await });
                    }
                    if volume_recalled {
                        let session = Arc::clone(self);
                        tokio::spawn(async move { session.return_lease().await });
                    }
                    acknowledged?;
                    *pause = Duration::from_millis(10);
                    renew = Instant::now() + interval / 3;
                }
                () = sleep_until(renew) => {
                    self.acknowledge_in(interval, &Ack { number, held: Vec::new() }).await?;
                    renew = Instant::now() + interval / 3;
                }
                _ = changes.changed() => {
                    let state = self.state();
                    if state.closed {
                        return Ok(());
                    }
                    if state.ended {
                        return Err(Error::session_ended("session"));
                    }
                }
            }
        }
    }

    async fn acknowledge_in(&self, interval: Duration, ack: &Ack) -> Result<()> {
        timeout(interval / 2, self.acknowledge(ack))
            .await
            .map_err(|_| Error::timed_out("acknowledging events"))?
    }

    /// Takes an event and those that have come in behind it, and drops what they name from the cache.
    fn gather(&self, first: Event, events: &mut Events) -> Result<Work> {
        let mut work = Work::default();
        self.take_in(first, &mut work);
        for _ in 1..EVENTS_MAX {
            match events.next().now_or_never() {
                Some(Some(event)) => self.take_in(event?, &mut work),
                _ => break,
            }
        }
        if !work.delegated.is_empty() {
            self.cache.drop_files(work.version, &work.delegated);
        }
        Ok(work)
    }

    fn take_in(&self, event: Event, work: &mut Work) {
        match event {
            Event::Heartbeat { number } => work.number = work.number.max(number),
            Event::DropAll { number, .. } => {
                self.cache.reset();
                work.number = work.number.max(number);
                work.all = true;
            }
            Event::Delegated { number, version, ino } => {
                work.number = work.number.max(number);
                work.version = work.version.max(version);
                work.delegated.insert(ino);
            }
            Event::Recall { number, inos, volume } => {
                work.number = work.number.max(number);
                work.recalled.extend(inos);
                work.volume_recalled |= volume;
            }
            Event::Changed { number, version, keys, orphans } => {
                self.cache.drop_keys(version, &keys);
                work.number = work.number.max(number);
                for key in keys {
                    match key {
                        Key::Inode(ino) => drop(work.inodes.entry(ino).or_default()),
                        Key::Chunk(ino, chunk) => work.inodes.entry(ino).or_default().push(chunk),
                        Key::Entry(..) => work.names = true,
                        _ => (),
                    }
                }
                work.held.extend(orphans.into_iter().filter(|ino| self.opens.orphaned(*ino)));
            }
        }
    }

    /// Has the kernel drop what was changed. Answers what is to be returned afterwards.
    async fn carry_out(&self, work: Work) -> Vec<Ino> {
        if work.all {
            self.forget_in_kernel().await;
            return work.recalled;
        }
        let mut inodes = work.inodes;
        inodes.retain(|ino, _| !work.delegated.contains(ino));
        let changed = inodes.into_iter().map(|(ino, chunks)| match chunks.into_iter().min() {
            None => (ino, What::Attributes),
            // To the end, for the file may be shorter now, and there may be pages of holes.
            Some(first) => (ino, What::Pages(vec![(first.saturating_mul(CHUNK_SIZE), 0)])),
        });
        let delegated = work.delegated.into_iter().map(|ino| (ino, What::all()));
        // With a name the kernel lets go of an inode that nobody has open, and of its pages, so only where it must.
        self.drop_in_kernel(changed.chain(delegated).collect(), work.names).await;
        work.recalled
    }

    /// When the lease passes in a network that is silent, the kernel must ask again as well.
    async fn watch_lease(self: Arc<Self>) {
        let mut changes = self.changed.subscribe();
        loop {
            let (until, refused) = {
                let state = self.state();
                (state.lease_until, state.refused)
            };
            if Instant::now() < until {
                sleep_until(until).await;
                continue;
            }
            if !refused {
                log::warn!("the lease has passed without a sign of the daemon");
                self.forget_in_kernel().await;
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Ends the session. What is dirty must have been committed before.
    pub async fn close(&self) {
        let (id, ended) = {
            let mut state = self.state();
            state.closed = true;
            (state.grant.session, state.ended)
        };
        self.notify();
        let is_done = self.queue.close();
        if is_done
            && !ended
            && let Ok(Err(error)) = timeout(Duration::from_secs(5), self.remote.close_session(id)).await
        {
            log::warn!("closing the session: {error}");
        }
    }
}

/// How long a request may take that the lease depends on.
pub(super) fn interval(grant: &SessionGrant) -> Duration {
    lease(grant).max(Duration::from_secs(1))
}
