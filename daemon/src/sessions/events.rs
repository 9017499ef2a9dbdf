//! A session's stream of events, and their acknowledgements.

use futures::stream::{self, Stream};
use std::sync::Arc;
use tandemfs::Result;
use tandemfs::api::fs::{Ack, Event};
use tandemfs::id::SessionId;
use tokio::time::{Instant, sleep_until};

use super::Sessions;
use super::session::{Next, Session};
use crate::accounts::Caller;

impl Sessions {
    /// A stream of what the session has to know.
    ///
    /// # Errors
    /// As [`Sessions::resume`].
    pub async fn events(
        &self,
        caller: &Caller,
        id: SessionId,
    ) -> Result<impl Stream<Item = Event> + Send + use<>> {
        let (session, _) = self.find(caller, id).await?;
        Ok(stream(session))
    }

    /// Takes an acknowledgement.
    ///
    /// # Errors
    /// As [`Sessions::resume`]; `Invalid` for an event that there was not.
    pub async fn acknowledge(&self, caller: &Caller, id: SessionId, ack: &Ack) -> Result<()> {
        let session = self.session(caller, id)?;
        let volume = self.volumes.volume(session.record().volume).await?;
        volume.orphans().hold(id, &ack.held);
        self.audience.check_ended(session.record().volume, id);
        session.acknowledge(ack)?;
        self.touch(&session)
    }
}

/// All events that were not acknowledged yet, then each as it comes, and a heartbeat at the start and whenever a third of the
/// lease has passed. Ends with the session, or when a younger stream takes its place.
fn stream(session: Arc<Session>) -> impl Stream<Item = Event> + Send + use<> {
    let (number, given) = session.begin_stream();
    let place = Place { session, number, given, heartbeat: Instant::now() };
    stream::unfold(place, |mut place| async move { place.next().await.map(|event| (event, place)) })
}

struct Place {
    session: Arc<Session>,
    number: u64,
    given: u64,
    heartbeat: Instant,
}

impl Place {
    async fn next(&mut self) -> Option<Event> {
        let mut changes = self.session.watch();
        loop {
            changes.mark_unchanged();
            match self.session.next(self.number, self.given) {
                Next::End => return None,
                Next::Event(event) => {
                    self.given = event.number();
                    return Some(event);
                }
                Next::Wait if self.heartbeat <= Instant::now() => {
                    self.heartbeat = Instant::now() + self.session.lease / 3;
                    return Some(Event::Heartbeat { number: self.given });
                }
                Next::Wait => {}
            }
            tokio::select! {
                biased;
                _ = changes.changed() => {}
                () = sleep_until(self.heartbeat) => {}
            }
        }
    }
}
