//! Changes by the rules of the tree, on what is known here; what is not known is asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use tandemfs::api::fs::BatchReply;
use tandemfs::id::{Ino, SessionId};
use tandemfs::tree::{self, CHUNK_SIZE, Inode, Key, Mutation, Outcome, Record, Stop, Want, WorkingSet};
use tandemfs::{Error, ErrorKind, Result};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::log::Queued;
use super::pending::owned;
use super::queue::Change;
use crate::fs::batches::{Coming, Outgoing};
use crate::fs::cache::Known;
use crate::fs::session::Session;

/// How often a rule may ask for more.
const LOADS_MAX: usize = 4096;
/// Chunks that the daemon takes away with the last link to a file, in the same commit.
const REAPED_AT_ONCE: u64 = 256;

impl Session {
    /// Makes a change here and puts it into the queue, under the lease.
    ///
    /// # Errors
    /// Those of the rules, and of the daemon for what has to be asked; `SessionEnded`, and it was not made; `TimedOut` while the daemon is away.
    pub(in crate::fs) async fn commit_here(
        &self,
        id: SessionId,
        outgoing: &mut Outgoing,
    ) -> Result<BatchReply> {
        self.ready().await?;
        let give_up = Instant::now() + self.offline_timeout;
        let reply = self.queue_change(id, outgoing, give_up).await?;
        if !self.queue.is_logged() {
            // As without the lease: it would be lost with this process.
            self.queue.committed(self.queue.last(), give_up).await?;
        }
        Ok(reply)
    }

    async fn queue_change(
        &self,
        id: SessionId,
        outgoing: &mut Outgoing,
        give_up: Instant,
    ) -> Result<BatchReply> {
        let room = self.queue.room(&outgoing.mutations, &outgoing.coming, give_up).await?;
        let _removal = outgoing.victim.map(|ino| self.opens.removing(ino));
        let order = self.queue.order.lock().await;
        let held = if outgoing.removes() { self.opens.held(outgoing.victim) } else { Vec::new() };
        let set = match self.apply(&outgoing.mutations, &held).await {
            // What the daemon takes away by itself is not counted here: it may be less by now.
            Err(error) if error.kind() == ErrorKind::QuotaExceeded => {
                drop(order);
                self.all_committed().await?;
                self.cache.drop_keys(0, &[Key::Usage]);
                let _order = self.queue.order.lock().await;
                let set = self.apply(&outgoing.mutations, &held).await?;
                return self.enter_change(id, outgoing, held, room, set);
            }
            other => other?,
        };
        self.enter_change(id, outgoing, held, room, set)
    }

    fn enter_change(
        &self,
        id: SessionId,
        outgoing: &mut Outgoing,
        held: Vec<Ino>,
        room: Vec<OwnedSemaphorePermit>,
        set: WorkingSet,
    ) -> Result<BatchReply> {
        let records: BTreeMap<Key, Known> =
            set.into_changes().records.into_iter().map(|(key, record)| (key, record.map(Arc::new))).collect();
        let number = self.queue.next_number();
        let Coming { blocks, large, memory } = std::mem::take(&mut outgoing.coming);
        let mutations = std::mem::take(&mut outgoing.mutations);
        let change = Change {
            queued: Queued { number, mutations, blocks, large, held: held.clone() },
            keys: records.keys().cloned().collect(),
            since: Instant::now(),
            _room: room,
            memory,
        };
        if let Some(Change { queued, memory, .. }) = self.queue.add(id, change) {
            outgoing.mutations = queued.mutations;
            outgoing.coming = Coming { blocks: queued.blocks, large: queued.large, memory };
            return Err(Error::session_ended(format!("session {id}")));
        }
        self.cache.change(number, &records);
        for (key, record) in &records {
            match (key, record.as_deref()) {
                (Key::Inode(ino), Some(Record::Inode(inode))) if inode.nlink == 0 && held.contains(ino) => {
                    self.opens.orphaned(*ino);
                }
                (Key::Inode(ino), None) => self.delegations.gone(*ino),
                _ => {}
            }
        }
        let told = records.iter().filter(|(key, _)| !matches!(key, Key::Orphan(_)));
        Ok(BatchReply { version: 0, records: told.map(|(key, known)| (key.clone(), owned(known))).collect() })
    }

    /// What mutations do to what is known here; and what the daemon does by itself with what they leave without links.
    async fn apply(&self, mutations: &[Mutation], held: &[Ino]) -> Result<WorkingSet> {
        let mut set = WorkingSet::new();
        // Whoever else has the volume mounted is asked first whether it is open there.
        let alone = self.lease.is_alone();
        for mutation in mutations {
            if let Mutation::Create { ino, .. } = mutation {
                // It is of a range that was granted to this session, which gives each number once.
                set.load(Key::Inode(*ino), None);
            }
            match mutation {
                Mutation::Reap { ino, .. } => self.run(&mut set, |set| reap(set, *ino, alone)).await?,
                _ => self.run(&mut set, |set| tree::apply(set, mutation)).await?,
            }
        }
        let orphans = set.changed().iter().filter_map(|(key, record)| match (key, record) {
            (Key::Orphan(ino), Some(_)) if !held.contains(ino) => Some(*ino),
            _ => None,
        });
        for ino in orphans.collect::<Vec<_>>() {
            self.run(&mut set, |set| reap(set, ino, alone)).await?;
        }
        Ok(set)
    }

    /// Runs a rule, loading what it misses.
    async fn run<T>(
        &self,
        set: &mut WorkingSet,
        mut rule: impl FnMut(&mut WorkingSet) -> Outcome<T>,
    ) -> Result<T> {
        for _ in 0..LOADS_MAX {
            let wants = match rule(set) {
                Ok(done) => return Ok(done),
                Err(Stop::Refused(error)) => return Err(error),
                Err(Stop::Missing(wants)) => wants,
            };
            let mut unknown = Vec::new();
            for want in wants {
                match self.cache.known(&want) {
                    Some(known) => {
                        known.iter().for_each(|(key, record)| set.load(key.clone(), owned(record)));
                        note_range(set, want);
                    }
                    None => unknown.push(want),
                }
            }
            if unknown.is_empty() {
                continue;
            }
            let reply = self.read(unknown.clone()).await?;
            for (want, answer) in unknown.into_iter().zip(reply.answers) {
                for (key, record) in answer.records {
                    set.load(key, record);
                }
                if !answer.complete {
                    return Err(Error::unsupported("more than one answer can tell"));
                }
                note_range(set, want);
            }
        }
        Err(Error::internal("a rule that asks for ever more"))
    }
}

fn note_range(set: &mut WorkingSet, want: Want) {
    if matches!(want, Want::Chunks { .. } | Want::Xattrs(_) | Want::Links(_)) {
        set.load_range(want);
    }
}

/// Takes an orphan away that is open nowhere. Its extents need not be looked at: all that is left of them is how much they were. A file that
/// the daemon takes away later, or in several steps, counts until it has told that it is gone.
fn reap(set: &mut WorkingSet, ino: Ino, alone: bool) -> Outcome<()> {
    set.attempt(|set| {
        let inode: Inode = match set.get(&Key::Inode(ino))? {
            Some(Record::Inode(inode)) if inode.nlink == 0 => inode.as_ref().clone(),
            _ => return Ok(()),
        };
        let mut usage = set.usage()?;
        if alone && inode.size.div_ceil(CHUNK_SIZE) <= REAPED_AT_ONCE {
            usage.bytes = usage.bytes.saturating_sub(inode.allocated);
            usage.inodes = usage.inodes.saturating_sub(1);
            set.put_usage(usage);
        }
        set.put(Key::Inode(ino), None);
        set.put(Key::Orphan(ino), None);
        Ok(())
    })
}
