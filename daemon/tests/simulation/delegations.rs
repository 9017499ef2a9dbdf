//! Delegations of a client: it takes files now and then, or the whole volume, and returns them when others wait. While it has one, and its
//! lease holds, nobody else is shown the file or has it as well; nor anything, while it has the volume.

use std::time::Duration;
use tandemfs::api::fs::DelegationRequest;
use tandemfs::id::{Ino, SessionId};
use tandemfs::tree::{Key, Record};
use tokio::time::Instant;

use crate::client::{Called, Mount, PATIENCE, Session};
use crate::trace::{note, violate};

impl Mount {
    /// Has a file delegated to the client.
    pub async fn take(&self, ino: Ino) {
        let Some(session) = self.session().await else { return };
        {
            let mut state = self.client.state();
            if state.delegated.contains_key(&ino) || !state.asked.insert(ino) {
                return;
            }
        }
        let take = self.parts.delegation(session.id, DelegationRequest::Take(ino));
        let called = self.answer(&session, "take", take).await;
        self.client.state().asked.remove(&ino);
        match called {
            Called::Answered(reply) => self.taken(&session, ino, reply.run),
            // Perhaps it was given.
            Called::InDoubt => self.give_back(session.id, vec![ino]).await,
            Called::Refused(_) | Called::Ended => {}
        }
    }

    /// Has the volume delegated to the client, if it is alone.
    pub async fn take_all(&self) {
        let Some(session) = self.session().await else { return };
        {
            let mut state = self.client.state();
            if state.volume.is_some() || std::mem::replace(&mut state.asked_all, true) {
                return;
            }
        }
        let take = self.parts.delegation(session.id, DelegationRequest::TakeVolume);
        let called = self.answer(&session, "take all", take).await;
        self.client.state().asked_all = false;
        match called {
            Called::Answered(reply) if reply.done && self.counts(&session, reply.run) => {
                let number = self.client.number;
                if let Some((other, _)) = self.volume_holder() {
                    violate!(
                        self.world.trace,
                        "the volume is delegated to client {other} and to client {number}"
                    );
                }
                note!(self.world.trace, "the volume is delegated to client {number}");
                self.client.state().volume = Some(Instant::now());
            }
            // Perhaps it was given.
            Called::InDoubt => self.give_back_all(session.id).await,
            Called::Answered(_) | Called::Refused(_) | Called::Ended => {}
        }
    }

    /// Another client that has the volume and may rely on that, and since when.
    fn volume_holder(&self) -> Option<(usize, Instant)> {
        let others = self.world.clients.iter().filter(|other| other.number != self.client.number);
        others
            .filter_map(|other| {
                let state = other.state();
                let since = state.volume?;
                state.cache.is_live().then_some((other.number, since))
            })
            .next()
    }

    /// Whether what a run of the daemon has given to a session counts still.
    fn counts(&self, session: &Session, run: u64) -> bool {
        let state = self.client.state();
        state.session.as_ref().is_some_and(|held| held.id == session.id && held.run == run)
    }

    fn taken(&self, session: &Session, ino: Ino, run: u64) {
        if !self.counts(session, run) {
            return;
        }
        let number = self.client.number;
        if let Some(other) = self.holder(ino) {
            violate!(self.world.trace, "inode {ino} is delegated to client {other} and to client {number}");
        }
        note!(self.world.trace, "inode {ino} is delegated to client {number}");
        self.client.state().delegated.insert(ino, Instant::now());
    }

    /// Another client that has a file and may rely on that.
    fn holder(&self, ino: Ino) -> Option<usize> {
        self.holder_since(ino).map(|(other, _)| other)
    }

    fn holder_since(&self, ino: Ino) -> Option<(usize, Instant)> {
        let others = self.world.clients.iter().filter(|other| other.number != self.client.number);
        others
            .filter_map(|other| {
                let state = other.state();
                let since = *state.delegated.get(&ino)?;
                state.cache.is_live().then_some((other.number, since))
            })
            .next()
    }

    /// Others wait for files, or for the volume: they are returned, a little later.
    pub async fn recalled(self, session: SessionId, inos: Vec<Ino>, volume: bool) {
        let slow = self.client.state().random.below(200);
        tokio::time::sleep(Duration::from_millis(slow)).await;
        if volume {
            self.give_back_all(session).await;
        }
        if !inos.is_empty() {
            self.give_back(session, inos).await;
        }
    }

    /// Returns the volume; if it is being asked for, once that is answered.
    async fn give_back_all(&self, session: SessionId) {
        while self.client.state().asked_all {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        {
            // Nor is it asked for meanwhile.
            let mut state = self.client.state();
            (state.volume, state.asked_all) = (None, true);
        }
        let began = Instant::now();
        while began.elapsed() < PATIENCE && !self.world.trace.is_violated() {
            let back = self.parts.delegation(session, DelegationRequest::ReturnVolume);
            match self.call("return all", back).await {
                Called::InDoubt => self.breathe(20).await,
                _ => break,
            }
        }
        self.client.state().asked_all = false;
    }

    /// Returns files; those that are being asked for, once that is answered.
    async fn give_back(&self, session: SessionId, inos: Vec<Ino>) {
        while inos.iter().any(|ino| self.client.state().asked.contains(ino)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for ino in &inos {
            self.client.state().delegated.remove(ino);
        }
        let began = Instant::now();
        while began.elapsed() < PATIENCE && !self.world.trace.is_violated() {
            let request = DelegationRequest::Return(inos.clone());
            match self.call("return", self.parts.delegation(session, request)).await {
                Called::InDoubt => self.breathe(20).await,
                _ => return,
            }
        }
    }

    /// Records were shown that were asked for at a time: none may be of a file that another client has had since before that.
    pub fn may_be_shown(&self, asked: Instant, records: &[(Key, Option<Record>)]) {
        if let Some((other, since)) = self.volume_holder()
            && since < asked
        {
            let number = self.client.number;
            violate!(self.world.trace, "client {number} is shown what client {other} has, which is all");
        }
        for (key, record) in records {
            let ino = match (key, record) {
                (Key::Inode(ino), Some(_)) | (Key::Chunk(ino, _), _) => *ino,
                _ => continue,
            };
            if let Some((other, since)) = self.holder_since(ino)
                && since < asked
            {
                let number = self.client.number;
                violate!(self.world.trace, "client {number} is shown inode {ino}, which client {other} has");
            }
        }
    }
}
