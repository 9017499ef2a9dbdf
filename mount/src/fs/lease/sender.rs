//! Sends what was done here, one batch after the other, until each is answered or the session is over.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tandemfs::api::fs::{BatchReply, SessionGrant};
use tandemfs::id::{Ino, SessionId};
use tandemfs::tree::{Key, Mutation};
use tandemfs::{Error, ErrorKind, Result};
use tokio::time::{Instant, timeout};

use super::batch::batch_of;
use super::queue::{Change, FULL_PATIENCE};
use super::replay::Lost;
use crate::fs::check;
use crate::fs::requests::Tries;
use crate::fs::session::Session;

/// How often it is looked at whether the session is still the same.
const LOOK: Duration = Duration::from_secs(1);

impl Session {
    /// Sends until the session is closed.
    pub(in crate::fs) async fn send_queue(session: Weak<Self>) {
        let Some(queue) = session.upgrade().map(|session| Arc::clone(&session.queue)) else { return };
        while let Some((id, changes)) = queue.next().await {
            let Some(session) = session.upgrade() else { return };
            session.send_changes(id, changes).await;
        }
    }

    async fn send_changes(&self, id: SessionId, changes: Vec<Change>) {
        match self.deliver(id, &changes).await {
            Ok(reply) => self.were_committed(changes, reply.version),
            Err(error) if error.kind() == ErrorKind::SessionEnded => self.were_lost(changes, &error),
            Err(_) => self.send_one_by_one(id, changes).await,
        }
    }

    /// One of these was refused, and with it all. Finds out which, and forgets what is known here: it was built on that.
    async fn send_one_by_one(&self, id: SessionId, mut changes: Vec<Change>) {
        {
            let _order = self.queue.order.lock().await;
            while !changes.is_empty() {
                for change in changes {
                    match self.deliver(id, std::slice::from_ref(&change)).await {
                        Ok(reply) => self.were_committed(vec![change], reply.version),
                        Err(error) => self.were_lost(vec![change], &error),
                    }
                }
                changes = self.queue.take_all();
            }
            self.cache.lose_pending();
            self.cache.reset();
        }
        self.forget_in_kernel().await;
    }

    /// Sends changes as one batch, all that was taken up to the last of them, until it is answered.
    ///
    /// # Errors
    /// `SessionEnded`; a refusal, also of what they name.
    async fn deliver(&self, id: SessionId, changes: &[Change]) -> Result<BatchReply> {
        let over = || Error::session_ended(format!("session {id}"));
        for Change { queued, .. } in changes {
            while self.id() == id {
                if let Ok(stored) = timeout(LOOK, self.queue.blocks.all_stored(queued)).await {
                    stored?;
                    break;
                }
            }
        }
        let mut batch = batch_of(changes.iter().map(|change| &change.queued));
        let last = changes.last().map_or(0, |change| change.queued.number);
        let mut names_blocks = changes.iter().any(|change| !change.queued.large.is_empty());
        let begun = Instant::now();
        let mut tries = Tries::begin();
        let slot = loop {
            if self.id() != id {
                return Err(over());
            }
            match self.slot(Instant::now() + LOOK).await {
                Ok(slot) => break slot,
                Err(_) => tries.rest(None).await,
            }
        };
        if slot.id != id {
            return Err(over());
        }
        batch.sequence = slot.sequence;
        self.queue.sending(slot.sequence, last);
        loop {
            if self.id() != id {
                return Err(over());
            }
            let sent = Instant::now();
            let error = match self.remote.batch(id, &batch).await {
                Ok(reply) => {
                    self.heard(sent);
                    self.caught_up().await;
                    check::batch(&reply)?;
                    return Ok(reply);
                }
                Err(error) => error,
            };
            match error.kind() {
                ErrorKind::SessionEnded => {
                    self.ended(id);
                    return Err(error);
                }
                // It was stored so long ago that it counted as garbage, perhaps; once.
                ErrorKind::NotFound if std::mem::take(&mut names_blocks) => {
                    self.store_again(id, changes).await?;
                    continue;
                }
                ErrorKind::NoSpace if begun.elapsed() < FULL_PATIENCE => {}
                // Who is not let in for now may be later: the session says so if not.
                ErrorKind::Unauthenticated | ErrorKind::Forbidden => {}
                kind if kind.is_retryable() => self.missed(&error),
                _ => return Err(error),
            }
            log::debug!("sending what was done again: {error}");
            tries.rest(error.retry_after_s()).await;
        }
    }

    fn were_committed(&self, changes: Vec<Change>, version: u64) {
        let Some(last) = changes.last().map(|change| change.queued.number) else { return };
        let keys: Vec<Key> = changes.iter().flat_map(|change| change.keys.iter().cloned()).collect();
        self.cache.committed(last, version, keys);
        self.queue.done(&changes, false);
    }

    /// Says of changes that were lost so to whoever has the files open.
    pub(super) fn were_lost(&self, changes: Vec<Change>, why: &Error) {
        if changes.is_empty() {
            return;
        }
        log::error!("{} changes could not be sent: {why}", changes.len());
        let error = match why.kind() {
            ErrorKind::NoSpace => why.duplicate(),
            _ => Error::stale("what was done was lost with the session"),
        };
        if let Some(data) = self.writer.get().and_then(Weak::upgrade) {
            for ino in changes.iter().flat_map(|change| &change.queued.mutations).filter_map(file_of) {
                if let Some(file) = data.get(ino) {
                    file.lock().fail(&error);
                }
            }
        }
        self.queue.done(&changes, true);
        let changes = changes.into_iter().map(|change| change.queued).collect();
        self.lost.send_modify(|lost| lost.push(Lost { changes, log: None }));
    }

    /// There is another session: what was not sent in the one before is lost.
    pub(in crate::fs) fn lose_lease(&self, grant: &SessionGrant) {
        self.lease.lose(grant);
        self.cache.lose_pending();
        let lost = self.queue.lose(grant.session);
        self.were_lost(lost, &Error::session_ended("session"));
    }

    /// Waits until what was done to an inode is committed.
    ///
    /// # Errors
    /// `Stale` when it was lost; `TimedOut`.
    pub(in crate::fs) async fn committed(&self, ino: Ino) -> Result<()> {
        match self.cache.pending(&Key::Inode(ino)) {
            Some(number) => self.queue.committed(number, Instant::now() + self.offline_timeout).await,
            None => Ok(()),
        }
    }

    /// Waits until all is committed that was done until now.
    ///
    /// # Errors
    /// As [`Session::committed`].
    pub(in crate::fs) async fn all_committed(&self) -> Result<()> {
        self.queue.committed(self.queue.last(), Instant::now() + self.offline_timeout).await
    }
}

/// The file that a mutation makes or changes.
fn file_of(mutation: &Mutation) -> Option<Ino> {
    match mutation {
        Mutation::Create { ino, .. }
        | Mutation::Write { ino, .. }
        | Mutation::PunchHole { ino, .. }
        | Mutation::CloneRange { ino, .. }
        | Mutation::SetAttributes { ino, .. } => Some(*ino),
        _ => None,
    }
}
