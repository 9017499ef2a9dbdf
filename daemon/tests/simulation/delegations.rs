//! Delegations of a client: it takes files now and then, and returns them when others wait. While it has one, and its lease holds,
//! nobody else is shown the file or has it as well.

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
            Called::Answered(run) => self.taken(&session, ino, run),
            // Perhaps it was given.
            Called::InDoubt => self.give_back(session.id, vec![ino]).await,
            Called::Refused(_) | Called::Ended => {}
        }
    }

    fn taken(&self, session: &Session, ino: Ino, run: u64) {
        let counts = {
            let state = self.client.state();
            state.session.as_ref().is_some_and(|held| held.id == session.id && held.run == run)
        };
        if !counts {
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

    /// Others wait for files: they are returned, a little later.
    pub async fn recalled(self, session: SessionId, inos: Vec<Ino>) {
        let slow = self.client.state().random.below(200);
        tokio::time::sleep(Duration::from_millis(slow)).await;
        self.give_back(session, inos).await;
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
