//! Requests to the daemon that are sent until they are answered, and what is read from it.

use std::time::Duration;

use futures::future::BoxFuture;
use tandemfs::api::fs::{READ_WANTS_MAX, Read, ReadReply};
use tandemfs::id::SessionId;
use tandemfs::tree::Want;
use tandemfs::{Error, ErrorKind, Result};
use tokio::time::{Instant, sleep, timeout};

use super::check;
use super::events::interval;
use super::session::Session;

/// The shortest and the longest pause before a request is sent again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// A daemon that is there and says "not now" is asked for so long; one that is away, for `offline_timeout`.
const PATIENCE: Duration = Duration::from_secs(15);

/// The tries of one request.
pub(super) struct Tries {
    pub(super) start: Instant,
    /// When the daemon first said that it cannot do it now.
    pub(super) declined: Option<Instant>,
    /// How long to wait before the next.
    pub(super) pause: Duration,
}

impl Tries {
    pub(super) fn begin() -> Self {
        Self { start: Instant::now(), declined: None, pause: PAUSE.0 }
    }

    /// Waits before the next.
    pub(super) async fn rest(&mut self, seconds: Option<u64>) {
        sleep(seconds.map_or(self.pause, Duration::from_secs).min(PAUSE.1)).await;
        self.pause = (self.pause * 2).min(PAUSE.1);
    }
}

impl Session {
    /// Sends a request until it is answered. `call` is given the session to use.
    ///
    /// # Errors
    /// Those of the daemon that sending again does not mend; `TimedOut`.
    pub(super) async fn until_answered<'a, T>(
        &'a self,
        call: impl Fn(SessionId) -> BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        let mut tries = Tries::begin();
        loop {
            let (sent, id) = (Instant::now(), self.id());
            match call(id).await {
                Ok(answer) => {
                    self.heard(sent);
                    return Ok(answer);
                }
                Err(error) if error.kind() == ErrorKind::SessionEnded => {
                    self.ended(id);
                    self.renewed(id, tries.start + self.offline_timeout).await?;
                    // Sessions that end at once must not keep it busy for ever.
                    tries.rest(None).await;
                }
                Err(error) => self.try_again(error, &mut tries).await?,
            }
        }
    }

    /// Waits before the next try, or gives the error back if there is none.
    pub(super) async fn try_again(&self, error: Error, tries: &mut Tries) -> Result<()> {
        if !error.kind().is_retryable() {
            return Err(error);
        }
        self.missed(&error);
        let now = Instant::now();
        let heard = self.state().heard;
        if tries.declined.is_some_and(|declined| heard > declined + PATIENCE) {
            // It answers others of our requests, so it is not away: it cannot do this one.
            return Err(error);
        }
        if now >= tries.start + self.offline_timeout {
            return Err(Error::timed_out("the daemon is away").because(error));
        }
        log::debug!("trying again: {error}");
        // Who asks too often has to wait its turn, and no answer says nothing.
        if error.kind() == ErrorKind::Unavailable {
            tries.declined.get_or_insert(now);
        }
        tries.rest(error.retry_after_s()).await;
        Ok(())
    }

    /// Reads records, through to the daemon; caches them.
    ///
    /// # Errors
    /// As `Session::until_answered`.
    pub async fn read(&self, wants: Vec<Want>) -> Result<ReadReply> {
        debug_assert!(wants.len() <= READ_WANTS_MAX);
        let read = &Read { wants };
        let request = self.cache.begin();
        let reply = self.ask(read).await?;
        let records = reply.answers.iter().flat_map(|answer| answer.records.iter().cloned());
        request.accept(reply.version, records);
        Ok(reply)
    }

    /// Reads records, through to the daemon, once what was told before is carried out.
    ///
    /// # Errors
    /// As `Session::until_answered`.
    pub(super) async fn ask(&self, read: &Read) -> Result<ReadReply> {
        let reply = self.until_answered(|id| Box::pin(async move { self.remote.read(id, read).await })).await;
        self.caught_up().await;
        let mut reply = reply?;
        check::answers(&read.wants, &reply.answers)?;
        self.cache.lay_over(reply.version, &read.wants, &mut reply.answers);
        Ok(reply)
    }

    /// Waits until the events are carried out that there were when the daemon last answered. An answer shows what others have
    /// changed by then; whoever goes on from it must not find what it has replaced in a cache, here or in the kernel.
    pub(super) async fn caught_up(&self) {
        let id = self.id();
        let number = self.remote.last_event(id);
        let mut carried_out = self.carried_out.subscribe();
        let is_so = |carried_out: &(SessionId, u64)| carried_out.0 != id || carried_out.1 >= number;
        // When it takes longer than that the session has ended.
        let _ended = timeout(interval(&self.grant()).min(PATIENCE), carried_out.wait_for(is_so)).await;
    }

    /// Notes that events of a session are carried out up to one; 0 for a session that begins.
    pub(super) fn note_carried_out(&self, session: SessionId, number: u64) {
        self.carried_out.send_modify(|last| *last = (session, number).max(*last));
    }
}
