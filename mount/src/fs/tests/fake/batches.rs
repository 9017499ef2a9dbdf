//! Batches of changes: tried out, applied, and told to the other sessions.

use std::sync::atomic::Ordering;

use tandemfs::api::fs::{Batch, BatchReply, Event};
use tandemfs::id::{Ino, SessionId};
use tandemfs::tree::{self, Key, Mutation, Record, Stop, Want, WorkingSet};
use tandemfs::{Error, Result};

use super::sessions::lease_end;
use super::{Daemon, State};

impl State {
    /// Reaping says that the author holds an orphan no more; it is done when nobody else does.
    fn without_held(&mut self, author: SessionId, mutations: &[Mutation]) -> Vec<Mutation> {
        let mut kept = Vec::new();
        for mutation in mutations {
            if let Mutation::Reap { ino, .. } = mutation {
                if let Some(session) = self.sessions.get_mut(&author) {
                    session.held.remove(ino);
                }
                if self.sessions.values().any(|session| session.held.contains(ino)) {
                    continue;
                }
            }
            kept.push(mutation.clone());
        }
        kept
    }

    /// Whether all is stored that mutations name.
    fn has_blocks(&self, mutations: &[Mutation]) -> bool {
        mutations.iter().all(|mutation| match mutation {
            Mutation::Write { extents, .. } => {
                extents.iter().all(|extent| self.blocks.contains_key(&extent.block))
            }
            _ => true,
        })
    }

    pub(super) fn try_out(&self, mutations: &[Mutation]) -> (WorkingSet, Result<()>) {
        let mut set = WorkingSet::new();
        for mutation in mutations {
            loop {
                match tree::apply(&mut set, mutation) {
                    Ok(()) => break,
                    Err(Stop::Refused(error)) => return (set, Err(error)),
                    Err(Stop::Missing(wants)) => {
                        for want in wants {
                            for (key, record) in self.answer(&want).records {
                                set.load(key, record);
                            }
                            if matches!(want, Want::Chunks { .. } | Want::Xattrs(_) | Want::Links(_)) {
                                set.load_range(want);
                            }
                        }
                    }
                }
            }
        }
        (set, Ok(()))
    }

    fn apply(&mut self, mutations: &[Mutation]) -> Result<Vec<(Key, Option<Record>)>> {
        let (set, result) = self.try_out(mutations);
        result?;
        let changes = set.into_changes();
        for (key, record) in &changes.records {
            match record {
                Some(record) => drop(self.records.insert(key.clone(), record.clone())),
                None => drop(self.records.remove(key)),
            }
        }
        self.version += 1;
        Ok(changes.records.into_iter().collect())
    }
}

impl Daemon {
    /// Commits on behalf of a session, and tells the others.
    pub(super) async fn commit(&self, id: SessionId, batch: &Batch) -> Result<BatchReply> {
        for block in &batch.blocks {
            self.store(block.id, block.data.clone().into()).await?;
        }
        let end = lease_end();
        let (reply, waits) = loop {
            let acknowledged = self.acknowledged.notified();
            tokio::pin!(acknowledged);
            acknowledged.as_mut().enable();
            if !self.may_change(id, batch) {
                self.returned(id, end, acknowledged).await;
                continue;
            }
            let mut state = self.state.lock().unwrap();
            let session = state.sessions.get_mut(&id).ok_or_else(|| Error::session_ended(id.to_string()))?;
            if let Some(answer) = session.answers.get(&batch.sequence) {
                return match answer {
                    Ok(reply) => Ok(reply.clone()),
                    Err(error) => Err(error.duplicate()),
                };
            }
            if !state.has_blocks(&batch.mutations) {
                self.too_early.fetch_add(1, Ordering::SeqCst);
                return Err(Error::not_found("block"));
            }
            let mutations = state.without_held(id, &batch.mutations);
            let applied = state.apply(&mutations);
            let records = match applied {
                Ok(records) => records,
                Err(error) => {
                    let answer = Err(error.duplicate());
                    drop(state.sessions.get_mut(&id).unwrap().answers.insert(batch.sequence, answer));
                    return Err(error);
                }
            };
            let version = state.version;
            let orphans: Vec<Ino> = records
                .iter()
                .filter_map(|(key, record)| match (key, record) {
                    (Key::Orphan(ino), Some(_)) => Some(*ino),
                    _ => None,
                })
                .collect();
            let mut reply = BatchReply { version, records };
            let keys: Vec<Key> = reply.records.iter().map(|(key, _)| key.clone()).collect();
            if batch.brief {
                reply.records.clear();
            }
            let mut waits = Vec::new();
            for (other, session) in &mut state.sessions {
                if *other == id {
                    session.answers.insert(batch.sequence, Ok(reply.clone()));
                    session.held.extend(orphans.iter().filter(|ino| batch.held.contains(ino)));
                    continue;
                }
                let (keys, orphans) = (keys.clone(), orphans.clone());
                let number = session.push(|number| Event::Changed { number, version, keys, orphans });
                waits.push((*other, number));
            }
            for ino in &batch.delegates {
                state.delegations.insert(*ino, id);
            }
            break (reply, (waits, orphans));
        };
        let (waits, orphans) = waits;
        self.told(&waits).await;
        self.reap(&orphans);
        Ok(reply)
    }

    /// Takes away orphans that nobody holds.
    pub(super) fn reap(&self, orphans: &[Ino]) {
        let mut state = self.state.lock().unwrap();
        for ino in orphans {
            let held = state.sessions.values().any(|session| session.held.contains(ino));
            while !held && state.records.contains_key(&Key::Orphan(*ino)) {
                state.apply(&[Mutation::Reap { ino: *ino, chunks: 16 }]).unwrap();
            }
        }
    }
}
