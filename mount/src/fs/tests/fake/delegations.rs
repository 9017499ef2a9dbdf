//! Delegations: who has a file alone, and who waits for it.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use tandemfs::api::fs::{Batch, Event};
use tandemfs::id::{Ino, SessionId};
use tandemfs::tree::{Key, Record};
use tandemfs::{Error, Result};
use tokio::time::{Instant, timeout_at};

use super::sessions::lease_end;
use super::{Daemon, State};

impl State {
    /// Whether all of some records may be shown to a session. If not, those who have the files are told.
    pub(super) fn may_see<'a>(
        &mut self,
        id: SessionId,
        records: impl Iterator<Item = (&'a Key, &'a Option<Record>)>,
    ) -> bool {
        let files: BTreeSet<Ino> = records
            .filter_map(|(key, record)| match (key, record) {
                (Key::Inode(ino), Some(Record::Inode(inode))) if inode.is_file() => Some(*ino),
                (Key::Chunk(ino, _), _) => Some(*ino),
                _ => None,
            })
            .collect();
        let mut free = self.unresumed.iter().all(|other| *other == id);
        if let Some(other) = self.lease.filter(|other| *other != id) {
            free = false;
            if let Some(session) = self.sessions.get_mut(&other)
                && !std::mem::replace(&mut session.volume_recalled, true)
            {
                session.push(|number| Event::Recall { number, inos: Vec::new(), volume: true });
            }
        }
        for ino in files {
            let Some(other) = self.delegations.get(&ino).filter(|other| **other != id) else { continue };
            free = false;
            if let Some(session) = self.sessions.get_mut(other)
                && session.recalled.insert(ino)
            {
                session.push(|number| Event::Recall { number, inos: vec![ino], volume: false });
            }
        }
        free
    }
}

impl Daemon {
    pub(super) fn may_change(&self, id: SessionId, batch: &Batch) -> bool {
        let mut state = self.state.lock().unwrap();
        if state.sessions.get(&id).is_none_or(|session| session.answers.contains_key(&batch.sequence)) {
            return true;
        }
        let (set, _) = state.try_out(&batch.mutations);
        state.may_see(id, set.loaded().iter())
    }

    /// Waits until others may have returned their files; who has not by the end of its lease has lost them.
    pub(super) async fn returned(&self, id: SessionId, end: Instant, acknowledged: impl Future<Output = ()>) {
        if timeout_at(end, acknowledged).await.is_err() {
            let mut state = self.state.lock().unwrap();
            state.delegations.retain(|_, theirs| *theirs == id);
            state.lease.take_if(|holder| *holder != id);
        }
    }

    /// Delegates the volume to whoever is alone on it. Answers whether it has, and whether it is alone.
    pub(super) async fn take_volume(&self, id: SessionId) -> (bool, bool) {
        let (waits, is_alone): (Vec<_>, bool) = {
            let mut state = self.state.lock().unwrap();
            let is_alone = state.sessions.len() == 1;
            let is_free = state.lease.is_none_or(|holder| holder == id)
                && state.delegations.values().all(|other| *other == id);
            if !is_free || !is_alone && !self.lends.load(Ordering::SeqCst) {
                return (false, false);
            }
            if let Some(session) = state.sessions.get_mut(&id) {
                session.volume_recalled = false;
            }
            state.lease = Some(id);
            state.version += 1;
            let version = state.version;
            let others = state.sessions.iter_mut().filter(|(other, _)| **other != id);
            let told = others
                .map(|(other, session)| (*other, session.push(|number| Event::DropAll { number, version })));
            (told.collect(), is_alone)
        };
        self.told(&waits).await;
        (true, is_alone)
    }

    pub(super) fn give_back_volume(&self, id: SessionId) {
        let mut state = self.state.lock().unwrap();
        state.lease.take_if(|holder| *holder == id);
        if let Some(session) = state.sessions.get_mut(&id) {
            session.volume_recalled = false;
        }
        drop(state);
        self.acknowledged.notify_waiters();
    }

    pub(super) async fn take(&self, id: SessionId, ino: Ino) -> Result<()> {
        self.takes.fetch_add(1, Ordering::SeqCst);
        let end = lease_end();
        let waits: Vec<_> = loop {
            let acknowledged = self.acknowledged.notified();
            tokio::pin!(acknowledged);
            acknowledged.as_mut().enable();
            {
                let mut state = self.state.lock().unwrap();
                let key = Key::Inode(ino);
                let record = state.records.get(&key).cloned();
                if record.is_none() {
                    return Err(Error::not_found("file"));
                }
                if state.may_see(id, std::iter::once((&key, &record))) {
                    state.version += 1;
                    state.delegations.insert(ino, id);
                    let version = state.version;
                    let others = state.sessions.iter_mut().filter(|(other, _)| **other != id);
                    break others
                        .map(|(other, session)| {
                            (*other, session.push(|number| Event::Delegated { number, version, ino }))
                        })
                        .collect();
                }
            }
            self.returned(id, end, acknowledged).await;
        };
        self.told(&waits).await;
        Ok(())
    }

    pub(super) fn give_back(&self, session: SessionId, inos: &[Ino]) {
        self.returns.fetch_add(inos.len() as u64, Ordering::SeqCst);
        let mut state = self.state.lock().unwrap();
        for ino in inos {
            if state.delegations.get(ino) == Some(&session) {
                state.delegations.remove(ino);
            }
            if let Some(session) = state.sessions.get_mut(&session) {
                session.recalled.remove(ino);
            }
        }
        drop(state);
        self.acknowledged.notify_waiters();
    }
}
