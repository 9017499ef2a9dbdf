//! Mounts' sessions: who may change what, batches once for each sequence number, and events that are acknowledged before
//! somebody else's change is.
//!
//! A session gives a sign of life with every request. One that is silent for its lease is fenced: nobody waits for it any
//! more, and it has to open a new one. Sessions are stored, so they outlive the daemon; what they remember of the run before is
//! dropped by their first event.

mod activity;
pub(crate) mod audience;
mod batches;
#[cfg(test)]
mod beside_tests;
mod blocks;
#[cfg(test)]
mod delegation_tests;
mod delegations;
mod ending;
mod events;
#[cfg(test)]
mod lock_tests;
mod locks;
mod opening;
mod session;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tandemfs::api::fs::{InodeRange, LocalSocket, Read, ReadReply};
use tandemfs::api::volumes::Access;
use tandemfs::clock::Clock;
use tandemfs::id::{Ino, SessionId};
use tandemfs::{Error, Result};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use self::activity::Use;
use self::audience::Audience;
use self::session::Session;
use crate::accounts::Caller;
use crate::meta::{self, Meta, keys, record};
use crate::settings::Settings;
use crate::volumes::{Volume, Volumes, key_after};

/// Inode numbers that are granted at once.
const INODES: u64 = 4096;
/// How many sessions are read at once when the daemon starts.
const PAGE: usize = 1000;

/// All sessions.
#[derive(Debug)]
pub struct Sessions {
    meta: Meta,
    volumes: Arc<Volumes>,
    audience: Arc<Audience>,
    clock: Arc<dyn Clock>,
    lease: Duration,
    inline_bytes: u32,
    short_circuit: OnceLock<String>,
    local: OnceLock<LocalSocket>,
    /// Requests that wait for locks: they must leave room for those that unlock.
    lock_waits: Semaphore,
    worker: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Sessions {
    /// Takes up the sessions of the run before.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn open(
        meta: Meta,
        volumes: Arc<Volumes>,
        settings: &Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>> {
        let lease = Duration::from_millis(settings.lease_ms);
        let audience = Arc::clone(volumes.audience());
        let prefix = b"s".to_vec();
        let (mut from, end) = (prefix.clone(), keys::end_of(&prefix));
        loop {
            let page: Vec<(meta::Key, record::Session)> = meta.scan(&from, &end, PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            from = key_after(last);
            for (_, record) in page {
                let volume = record.volume;
                audience.locks(volume).expect(record.id);
                if !record.read_only {
                    audience.delegations(volume).expect(record.id);
                }
                let session = Session::recovered(record, lease, meta.run(), 1);
                audience.add(volume, Arc::new(session));
            }
        }
        let sessions = Arc::new(Self {
            meta,
            volumes,
            audience,
            clock,
            lease,
            inline_bytes: settings.inline_bytes,
            short_circuit: OnceLock::new(),
            local: OnceLock::new(),
            lock_waits: Semaphore::new((settings.max_requests / 2).min(Semaphore::MAX_PERMITS)),
            worker: std::sync::Mutex::default(),
        });
        let worker = tokio::spawn(ending::watch_over(Arc::downgrade(&sessions), lease));
        *sessions.worker.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(worker);
        Ok(sessions)
    }

    /// From now on sessions are told of a socket for short-circuit reads.
    pub(crate) fn offer_short_circuit(&self, name: String) {
        // There is one in a daemon's life.
        let _second = self.short_circuit.set(name);
    }

    /// From now on sessions are told of a socket for requests.
    pub(crate) fn offer_local(&self, socket: LocalSocket) {
        // As above.
        let _second = self.local.set(socket);
    }

    /// Stops watching over the sessions; they stay stored for the next run.
    pub fn stop(&self) {
        if let Some(worker) = self.worker.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            worker.abort();
        }
    }

    /// The last event that there is for a session, if that has not ended. Everything that has been answered so far shows no
    /// more than what comes with it.
    pub fn last_event(&self, id: SessionId) -> Option<u64> {
        self.audience.get(id).map(|session| session.last())
    }

    /// All sessions, for admins.
    pub fn list(&self) -> Vec<record::Session> {
        self.audience.all().iter().map(|session| session.record()).collect()
    }

    /// Answers wants.
    ///
    /// # Errors
    /// As [`Sessions::resume`].
    pub async fn read(&self, caller: &Caller, id: SessionId, read: &Read) -> Result<ReadReply> {
        let (_, volume) = self.find_for(Use::Look, caller, id).await?;
        volume.read(Some(id), &read.wants).await
    }

    /// Grants inode numbers.
    ///
    /// # Errors
    /// As [`Sessions::resume`]; `ReadOnly`.
    pub async fn inodes(&self, caller: &Caller, id: SessionId) -> Result<InodeRange> {
        let (session, volume) = self.find(caller, id).await?;
        self.writable(caller, &session)?;
        let range = volume.take_inos(INODES).await?;
        let (first, count) = (Ino(range.start), range.end - range.start);
        let record = session.with_inodes(first, count);
        self.meta.commit(Vec::new(), vec![meta::put(keys::session(id), &record)?]).await?;
        Ok(InodeRange { first, count })
    }

    /// The caller's session, and its volume. Every request for one is a sign of life.
    async fn find(&self, caller: &Caller, id: SessionId) -> Result<(Arc<Session>, Arc<Volume>)> {
        let session = self.session(caller, id)?;
        self.touch(&session)?;
        let volume = self.volumes.volume(session.record().volume).await?;
        Ok((session, volume))
    }

    /// As [`Sessions::find`], for what shows or changes something of the volume.
    async fn find_for(
        &self,
        what: Use,
        caller: &Caller,
        id: SessionId,
    ) -> Result<(Arc<Session>, Arc<Volume>)> {
        let (session, volume) = self.find(caller, id).await?;
        self.audience.delegations(session.record().volume).used(id, what);
        Ok((session, volume))
    }

    /// A session is no permission: what its user may do is looked up for each request.
    fn session(&self, caller: &Caller, id: SessionId) -> Result<Arc<Session>> {
        let ended = || Error::session_ended(format!("session {id}"));
        let session = self.audience.get(id).ok_or_else(ended)?;
        let record = session.record();
        if record.user != caller.user {
            return Err(Error::not_found("session"));
        }
        if self.volumes.access(caller, record.volume).is_none() {
            self.audience.end(&session);
            return Err(ended());
        }
        Ok(session)
    }

    fn writable(&self, caller: &Caller, session: &Session) -> Result<()> {
        let record = session.record();
        if record.read_only || self.volumes.access(caller, record.volume) != Some(Access::Write) {
            return Err(Error::read_only("the session is for reading only"));
        }
        Ok(())
    }

    fn touch(&self, session: &Session) -> Result<()> {
        session.touch().inspect_err(|_| self.audience.end(session))
    }
}
