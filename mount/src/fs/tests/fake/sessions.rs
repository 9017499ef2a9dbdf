//! Sessions, and the events that wait to be acknowledged by them.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use futures::StreamExt;
use tandemfs::api::fs::{Ack, BatchReply, Event, OpenSession, ResumeSession, SessionGrant};
use tandemfs::id::{Ino, SessionId, VolumeId, VolumeKey};
use tandemfs::tree::Usage;
use tandemfs::{Error, Result};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Daemon, LEASE_MS};
use crate::fs::remote::Events;

#[derive(Default)]
pub(super) struct Session {
    pub(super) number: u64,
    pub(super) acked: u64,
    pub(super) held: HashSet<Ino>,
    pub(super) recalled: BTreeSet<Ino>,
    pub(super) volume_recalled: bool,
    pub(super) unacked: VecDeque<Event>,
    pub(super) stream: Option<mpsc::UnboundedSender<Result<Event>>>,
    pub(super) answers: HashMap<u64, Result<BatchReply>>,
}

pub(super) fn lease_end() -> Instant {
    Instant::now() + Duration::from_millis(LEASE_MS)
}

impl Session {
    pub(super) fn push(&mut self, event: impl FnOnce(u64) -> Event) -> u64 {
        self.number += 1;
        let event = event(self.number);
        self.unacked.push_back(event.clone());
        if let Some(stream) = &self.stream {
            let _gone = stream.send(Ok(event));
        }
        self.number
    }
}

impl Daemon {
    pub(super) fn session<T>(&self, id: SessionId, work: impl FnOnce(&mut Session) -> T) -> Result<T> {
        let mut state = self.state.lock().unwrap();
        state.sessions.get_mut(&id).map(work).ok_or_else(|| Error::session_ended(id.to_string()))
    }

    pub(super) fn open(&self, open: &OpenSession) -> SessionGrant {
        let mut state = self.state.lock().unwrap();
        let session = SessionId(state.next_session);
        state.next_session += 1;
        state.sessions.insert(session, Session::default());
        SessionGrant {
            session,
            volume: VolumeId(1),
            key: VolumeKey([7; 32]),
            read_only: open.read_only,
            run: state.run,
            version: state.version,
            lease_ms: LEASE_MS,
            inline_bytes: state.inline_bytes,
            short_circuit: None,
            local: None,
            usage: Usage::default(),
        }
    }

    pub(super) fn resume(&self, session: SessionId, resume: &ResumeSession) -> Result<SessionGrant> {
        let mut state = self.state.lock().unwrap();
        let (run, version, inline_bytes) = (state.run, state.version, state.inline_bytes);
        let own =
            state.sessions.get_mut(&session).ok_or_else(|| Error::session_ended(session.to_string()))?;
        own.held.extend(&resume.held);
        if state.unresumed.remove(&session) {
            for ino in &resume.delegations {
                state.delegations.entry(*ino).or_insert(session);
            }
            if resume.volume {
                state.lease.get_or_insert(session);
            }
            self.acknowledged.notify_waiters();
        }
        Ok(SessionGrant {
            session,
            volume: VolumeId(1),
            key: VolumeKey([7; 32]),
            read_only: false,
            run,
            version,
            lease_ms: LEASE_MS,
            inline_bytes,
            short_circuit: None,
            local: None,
            usage: Usage::default(),
        })
    }

    pub(super) fn close(&self, session: SessionId) {
        let held = {
            let mut state = self.state.lock().unwrap();
            state.unclaimed.remove(&session);
            state.unresumed.remove(&session);
            state.delegations.retain(|_, theirs| *theirs != session);
            state.lease.take_if(|holder| *holder == session);
            state.locks.release(|(theirs, _)| theirs == session);
            state.sessions.remove(&session).map(|session| session.held).unwrap_or_default()
        };
        self.reap(&held.into_iter().collect::<Vec<_>>());
        self.acknowledged.notify_waiters();
        self.locks_changed.notify_waiters();
    }

    pub(super) fn stream(&self, session: SessionId) -> Result<Events> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.session(session, |session| {
            for event in &session.unacked {
                let _sent = sender.send(Ok(event.clone()));
            }
            session.stream = Some(sender);
        })?;
        let stream = futures::stream::unfold(receiver, |mut receiver| async {
            let event = receiver.recv().await?;
            Some((event, receiver))
        });
        Ok(stream.boxed())
    }

    pub(super) fn acknowledge(&self, session: SessionId, ack: &Ack) -> Result<()> {
        self.session(session, |session| {
            session.acked = session.acked.max(ack.number);
            session.held.extend(&ack.held);
            let acked = session.acked;
            session.unacked.retain(|event| match event {
                Event::Changed { number, .. }
                | Event::Delegated { number, .. }
                | Event::DropAll { number, .. }
                | Event::Recall { number, .. } => *number > acked,
                _ => false,
            });
        })?;
        self.acknowledged.notify_waiters();
        Ok(())
    }

    /// Waits until sessions have acknowledged events.
    pub(super) async fn told(&self, waits: &[(SessionId, u64)]) {
        loop {
            let acknowledged = self.acknowledged.notified();
            tokio::pin!(acknowledged);
            acknowledged.as_mut().enable();
            let done = {
                let state = self.state.lock().unwrap();
                waits
                    .iter()
                    .all(|(id, number)| state.sessions.get(id).is_none_or(|other| other.acked >= *number))
            };
            if done {
                return;
            }
            acknowledged.await;
        }
    }
}
