//! How sessions are opened, and taken up again.

use std::sync::Arc;
use tandemfs::api::fs::{OpenSession, ResumeSession, SessionGrant};
use tandemfs::api::volumes::Access;
use tandemfs::id::SessionId;
use tandemfs::{Error, Result};

use super::Sessions;
use super::delegations::Delegated;
use super::session::Session;
use crate::accounts::Caller;
use crate::meta::{self, keys, record};
use crate::volumes::Volume;

/// The longest name of a client, in bytes.
const CLIENT_MAX: usize = 256;
/// Sessions of one user.
const SESSIONS_MAX: usize = 64;

impl Sessions {
    /// Opens a session on the caller's home volume, or on a shared one that is granted; one that is granted for reading is opened for
    /// reading only.
    ///
    /// # Errors
    /// `NotFound` for a volume that the caller may not know of; `TooManyRequests` with too many sessions.
    pub async fn start(&self, caller: &Caller, open: OpenSession) -> Result<SessionGrant> {
        let id = match &open.volume {
            Some(name) => self.volumes.shared_id(caller, name)?,
            None => caller.home,
        };
        if open.client.len() > CLIENT_MAX {
            return Err(Error::invalid(format!("the client's name is longer than {CLIENT_MAX} bytes")));
        }
        let of_user =
            self.audience.all().iter().filter(|session| session.record().user == caller.user).count();
        if of_user >= SESSIONS_MAX {
            return Err(Error::too_many_requests(format!("{SESSIONS_MAX} sessions are open")));
        }
        let volume = self.volumes.volume(id).await?;
        let record = record::Session {
            id: SessionId(self.meta.next_numbers("session", 1).await?),
            user: caller.user,
            volume: id,
            read_only: open.read_only || self.volumes.access(caller, id) != Some(Access::Write),
            client: open.client,
            opened: self.clock.now(),
            inodes: Vec::new(),
        };
        self.meta.commit(Vec::new(), vec![meta::put(keys::session(record.id), &record)?]).await?;
        let session = Arc::new(Session::opened(record, self.lease));
        self.audience.add(id, Arc::clone(&session));
        self.grant(&session, &volume).await
    }

    /// Takes a session up again.
    ///
    /// # Errors
    /// `SessionEnded` when it was fenced; `NotFound` for somebody else's.
    pub async fn resume(
        &self,
        caller: &Caller,
        id: SessionId,
        resume: &ResumeSession,
    ) -> Result<SessionGrant> {
        let (session, volume) = self.find(caller, id).await?;
        volume.orphans().hold(id, &resume.held);
        self.audience.check_ended(session.record().volume, id);
        let of = session.record().volume;
        let claimed = Delegated { files: resume.delegations.clone(), volume: resume.volume };
        if !self.audience.delegations(of).claim(id, &claimed) {
            log::warn!("session {id} says too late what was delegated to it: fenced");
            self.audience.end(&session);
            return Err(Error::session_ended(format!("session {id}")));
        }
        self.audience.free(of, &session);
        self.grant(&session, &volume).await
    }

    async fn grant(&self, session: &Session, volume: &Volume) -> Result<SessionGrant> {
        let (version, usage) = volume.usage().await?;
        let record = session.record();
        Ok(SessionGrant {
            session: record.id,
            volume: record.volume,
            key: volume.key().clone(),
            read_only: record.read_only,
            run: self.meta.run(),
            version,
            lease_ms: u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX),
            usage,
            inline_bytes: self.inline_bytes,
            short_circuit: self.short_circuit.get().cloned(),
            local: self.local.get().cloned(),
        })
    }
}
