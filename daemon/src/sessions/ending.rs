//! How sessions end: in good order, with their user, or by being silent. What is stored of one that has ended is cleared away.

use std::sync::{Arc, Weak};
use std::time::Duration;
use tandemfs::id::{SessionId, UserId};
use tandemfs::{ErrorKind, Result};
use tokio::time::{Instant, sleep};

use super::Sessions;
use crate::accounts::Caller;
use crate::meta::{self, Write, keys};
use crate::metrics::COUNTERS;

/// How long files are kept from others after a start, so that mounts can say what was delegated to them. Those that live come back
/// within a second.
const CLAIM_MAX: Duration = Duration::from_secs(5);

impl Sessions {
    /// Ends a session in good order.
    ///
    /// # Errors
    /// As [`Sessions::resume`].
    pub async fn close(&self, caller: &Caller, id: SessionId) -> Result<()> {
        let (session, _) = self.find(caller, id).await?;
        self.audience.end(&session);
        self.clear_ended().await;
        Ok(())
    }

    /// Ends all sessions of a user who was disabled or deleted.
    pub fn end_user(&self, user: UserId) {
        for session in self.audience.all() {
            if session.record().user == user {
                self.audience.end(&session);
            }
        }
    }

    /// Takes the records of ended sessions away, then lets go of what they held. In this order: a session that could be taken up
    /// again after a restart must find what it holds.
    async fn clear_ended(&self) {
        for (volume, id) in self.audience.ended() {
            if let Err(error) = self.forget(id).await {
                log::warn!("clearing session {id} away: {error}");
                continue;
            }
            // From here on nothing waits but what may as well be done twice, so a caller who goes away leaves nothing half done.
            match self.volumes.volume(volume).await {
                Ok(volume) => {
                    self.audience.cleared(id);
                    volume.orphans().let_go_of_all(id);
                }
                Err(error) if error.kind() == ErrorKind::NotFound => self.audience.cleared(id),
                Err(error) => log::debug!("session {id} ended on volume {volume}: {error}"),
            }
        }
    }

    async fn forget(&self, id: SessionId) -> Result<()> {
        let replies = self.kept_replies(id).await?;
        let mut writes: Vec<Write> = replies.into_iter().map(|(key, _)| meta::remove(key)).collect();
        writes.push(meta::remove(keys::session(id)));
        self.meta.commit(Vec::new(), writes).await
    }
}

/// Fences sessions that are silent for too long, clears ended ones away, and says when those of the run before have had
/// their time to say what they hold.
pub(super) async fn watch_over(sessions: Weak<Sessions>, lease: Duration) {
    let recovered_until = Instant::now() + lease + lease / 4;
    let mut recovered = false;
    let claimed_until = Instant::now() + CLAIM_MAX.min(lease + lease / 4);
    let mut claimed = false;
    let tick = (lease / 4).clamp(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        let Some(strong) = sessions.upgrade() else { return };
        let now = Instant::now();
        for session in strong.audience.all() {
            if session.deadline() <= now && !strong.audience.waits_for_return(&session) {
                log::warn!("session {} was silent for its lease: fenced", session.id);
                COUNTERS.sessions_fenced.inc();
                strong.audience.end(&session);
            }
        }
        strong.clear_ended().await;
        if !claimed && now >= claimed_until {
            claimed = true;
            for delegations in strong.audience.all_delegations() {
                delegations.expect_no_more();
            }
        }
        if !recovered && now >= recovered_until {
            for locks in strong.audience.all_locks() {
                locks.expect_no_more();
            }
            match strong.volumes.settle_recovered().await {
                Ok(()) => recovered = true,
                Err(error) => log::warn!("looking for orphans of the run before: {error}"),
            }
        }
        if strong.audience.has_volumes_delegated() && !strong.volumes.has_room_for_queues().await {
            strong.audience.recall_volumes();
        }
        let audience = Arc::clone(&strong.audience);
        drop(strong);
        tokio::select! {
            biased;
            () = audience.some_ended() => {}
            () = sleep(tick) => {}
        }
    }
}
