//! The one way to change a tree: a batch becomes one commit.

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tandemfs::api::fs::BatchReply;
use tandemfs::block::Draft;
use tandemfs::id::{BlockId, Ino, SessionId};
use tandemfs::tree::{self, Key, Mutation, Outcome, Record, WorkingSet};
use tandemfs::{Error, Result};
use tokio::sync::MutexGuard;

use super::delegations::{RECALLS_MAX, busy};
use super::volume::{Moment, State, Volume};
use crate::meta::record::References;
use crate::meta::{self, Write, keys};
use crate::replicate::Inline;

/// At most so many chunks of orphans are reaped in one commit: 1 GiB of files.
pub(super) const REAP_CHUNKS: u32 = 256;
/// At most so many orphans are reaped in one commit by the daemon itself, each with at least one chunk.
pub(super) const REAP_INODES: usize = 256;

/// Finds out, on the state that the batch will change, what to do.
pub(super) type Plan<'a> = Box<dyn FnMut(&mut WorkingSet) -> Outcome<Vec<Mutation>> + Send + 'a>;

/// A change of a volume.
pub(crate) struct Change<'a> {
    /// Whose it is; `None`: the daemon's own, for the endpoints for people and for workers.
    pub(crate) author: Option<SessionId>,
    /// Under which sequence number of the author's the answer is kept.
    pub(crate) sequence: Option<u64>,
    /// What to do.
    pub(crate) mutations: Mutations<'a>,
    /// Inodes that the author holds open.
    pub(crate) held: Vec<Ino>,
    /// Files that it creates and that are delegated to the author.
    pub(crate) delegates: Vec<Ino>,
    /// Blocks that come with it, which it may name.
    pub(crate) blocks: BTreeMap<BlockId, Bytes>,
    /// Others are told but not waited for: nothing that they could be asked about has changed.
    pub(crate) quiet: bool,
    /// The answer names no records.
    pub(crate) brief: bool,
}

/// What a change does.
pub(crate) enum Mutations<'a> {
    /// These.
    Fixed(Vec<Mutation>),
    /// What a plan says.
    Planned(Plan<'a>),
}

impl<'a> Change<'a> {
    /// A change by the daemon itself.
    pub(super) fn own(mutations: Vec<Mutation>) -> Self {
        let mutations = Mutations::Fixed(mutations);
        Self {
            author: None,
            sequence: None,
            mutations,
            held: Vec::new(),
            delegates: Vec::new(),
            blocks: BTreeMap::new(),
            quiet: false,
            brief: false,
        }
    }

    /// Whether it takes away what nobody sees any more, which needs nobody's leave.
    fn is_unseen(&self) -> bool {
        match &self.mutations {
            Mutations::Fixed(mutations) => {
                self.author.is_none()
                    && mutations.iter().all(|mutation| matches!(mutation, Mutation::Reap { .. }))
            }
            Mutations::Planned(_) => false,
        }
    }

    /// A change by the daemon itself, decided on what is there.
    pub(super) fn planned(plan: impl FnMut(&mut WorkingSet) -> Outcome<Vec<Mutation>> + Send + 'a) -> Self {
        Self { mutations: Mutations::Planned(Box::new(plan)), ..Self::own(Vec::new()) }
    }
}

/// A change that was submitted.
pub(super) struct Submitted {
    ticket: meta::Ticket,
    inline: Option<Inline>,
    moment: Moment,
    author: Option<SessionId>,
    reply: BatchReply,
    /// What others are told.
    keys: Vec<Key>,
    /// Inodes that have lost their last link and live on for now.
    orphans: Vec<Ino>,
    /// Those of them that wait for nobody but need more commits to be reaped.
    unfinished: Vec<Ino>,
    /// Orphans that are reaped with this.
    reaped: Vec<Ino>,
    quiet: bool,
}

impl Volume {
    /// Commits a change, tells other sessions, and waits for them. Goes on to the end when the caller goes away.
    ///
    /// # Errors
    /// Those of the rules; `NotFound` about `block`; `Invalid` for a block that its id does not fit to; those of storing one; `Unavailable`
    /// when the engine failed; nothing has changed then.
    pub(crate) async fn commit(self: &Arc<Self>, mut change: Change<'_>) -> Result<BatchReply> {
        for (id, data) in &change.blocks {
            self.check_data(id, data)?;
        }
        let most = self.shared.replicator.inline_bytes();
        let (objects, inline): (Vec<_>, Vec<_>) =
            std::mem::take(&mut change.blocks).into_iter().partition(|(_, data)| data.len() > most);
        change.blocks = inline.into_iter().collect();
        for (id, data) in objects {
            self.shared.replicator.put(self.id, id, Draft::of(&data)?).await?;
        }
        let submitted = self.submit(change).await?;
        self.finish(submitted).await
    }

    /// Completes what was submitted, also when the caller goes away.
    pub(super) async fn finish(self: &Arc<Self>, submitted: Submitted) -> Result<BatchReply> {
        let volume = Arc::clone(self);
        let rest = tokio::spawn(async move { volume.complete(submitted).await });
        rest.await.unwrap_or_else(|error| Err(Error::internal("a commit was cut short").because(error)))
    }

    /// Takes the lock and finds out what the change does. Files that are delegated to others are recalled before anything is
    /// concluded from them, a refusal as well.
    async fn plan(
        &self,
        change: &mut Change<'_>,
    ) -> Result<(MutexGuard<'_, State>, WorkingSet, Vec<Mutation>)> {
        let mut fixed = None;
        let is_unseen = change.is_unseen();
        if !is_unseen {
            self.returned_by_before(change.author).await;
        }
        for _ in 0..RECALLS_MAX {
            let state = self.lock_live().await?;
            let mut set = WorkingSet::new();
            let planned = match &mut change.mutations {
                Mutations::Fixed(mutations) => {
                    // Once, for it lets go of what is reaped.
                    Ok(fixed
                        .take()
                        .unwrap_or_else(|| self.without_held(change.author, std::mem::take(mutations))))
                }
                Mutations::Planned(plan) => self.run(&state, &mut set, |set| plan(set)).await,
            };
            let planned = match planned {
                Ok(mutations) => {
                    let applied = self.apply(&state, &mut set, &mutations, &change.blocks).await;
                    if matches!(change.mutations, Mutations::Fixed(_)) {
                        fixed = Some(mutations);
                        applied.map(|()| Vec::new())
                    } else {
                        applied.map(|()| mutations)
                    }
                }
                Err(error) => Err(error),
            };
            let in_the_way = self.in_the_way(change.author, set.loaded().iter());
            match (in_the_way.filter(|_| !is_unseen), planned) {
                (None, Ok(planned)) => return Ok((state, set, fixed.unwrap_or(planned))),
                (None, Err(error)) if error.kind().is_retryable() => return Err(error),
                (None, Err(error)) => {
                    // A refusal shows what others have changed, as a read does.
                    let (moment, version) = (self.moment(&state), state.version);
                    drop(state);
                    if self.durable(moment).await {
                        self.settled(change.author, version, set.loaded().keys()).await;
                        return Err(error);
                    }
                }
                (Some(in_the_way), _) => {
                    drop(state);
                    self.recall(in_the_way).await;
                }
            }
        }
        Err(busy())
    }

    async fn apply(
        &self,
        state: &State,
        set: &mut WorkingSet,
        mutations: &[Mutation],
        blocks: &BTreeMap<BlockId, Bytes>,
    ) -> Result<()> {
        self.check_blocks(mutations, blocks).await?;
        self.preload(state, set, mutations).await?;
        for mutation in mutations {
            self.run(state, set, |set| tree::apply(set, mutation)).await?;
        }
        Ok(())
    }

    /// The part under the lock. What was submitted must be completed.
    async fn submit(&self, mut change: Change<'_>) -> Result<Submitted> {
        self.shared.meta.ready().await?;
        let (mut state, mut set, mutations) = self.plan(&mut change).await?;
        let orphaned = orphaned(&set);
        let lonely = !self.shared.audience.has_others(self.id, change.author);
        let (mut orphans, mut doomed) = (Vec::new(), Vec::new());
        for ino in orphaned {
            let held = change.author.is_some() && change.held.contains(&ino);
            if held || !lonely || self.orphans.is_read(ino) {
                orphans.push(ino);
            } else {
                let reap = Mutation::Reap { ino, chunks: REAP_CHUNKS };
                self.run(&state, &mut set, |set| tree::apply(set, &reap)).await?;
                doomed.push(ino);
            }
        }

        let reaped = mutations.iter().filter_map(|mutation| match mutation {
            Mutation::Reap { ino, .. } => Some(*ino),
            _ => None,
        });
        let unfinished: Vec<Ino> =
            reaped.chain(doomed).filter(|ino| matches!(set.get(&Key::Orphan(*ino)), Ok(Some(_)))).collect();
        let noted = self.tally().as_ref().map(|tally| tally.weigh(set.loaded(), set.changed()));
        let changes = set.into_changes();
        let (references, mut writes) = self.count_references(&state, &changes.references).await?;
        let inline = if change.blocks.is_empty() {
            None
        } else {
            let (inline, stores) = self.shared.replicator.inline(self.id, &change.blocks).await?;
            writes.extend(stores);
            let is_used =
                |id| references.get(id).is_some_and(|of| of.is_some_and(|of: References| of.count > 0));
            for (id, stored_ms) in inline.coming().filter(|(id, _)| !is_used(*id)) {
                writes.push(meta::put(keys::garbage(stored_ms, self.id, id), &())?);
            }
            Some(inline)
        };
        for (key, record) in &changes.records {
            let stored = keys::tree(self.id, key);
            writes.push(match record {
                Some(record) => meta::put(stored, record)?,
                None => meta::remove(stored),
            });
        }
        let records = told(&mutations, &changes.records);
        let delegations = self.shared.audience.delegations(self.id);
        // Of a file that is delegated to the author the others know nothing since they were told so; nor of anything, if all of the volume is.
        let has_all = change.author.is_some_and(|author| delegations.has_all(author));
        let is_known = |key: &Key| match key {
            _ if has_all => false,
            Key::Inode(ino) | Key::Chunk(ino, _) => {
                change.author.is_none_or(|author| !delegations.has(author, *ino))
            }
            _ => true,
        };
        let cut = mutations.iter().filter_map(cut);
        let keys = records.iter().map(|(key, _)| key.clone()).chain(cut).filter(is_known).collect();
        let mut reply = BatchReply { version: state.version + 1, records };
        if change.brief {
            reply.records.clear();
        }
        if let (Some(author), Some(sequence)) = (change.author, change.sequence) {
            writes.push(kept_reply(author, sequence, &reply)?);
        }

        // A session that ended meanwhile changes nothing any more, whatever it has begun.
        if let Some(author) = change.author
            && self.shared.audience.get(author).is_none()
        {
            return Err(Error::session_ended(format!("session {author}")));
        }
        if let Some(author) = change.author
            && change.delegates.len() > delegations.room(author)
        {
            return Err(Error::too_many_requests("too many files are delegated to the session"));
        }
        let ticket = self.shared.meta.submit(state.generation, writes)?;
        self.scattered.note(&changes.records);
        // From here to the end nothing waits, so nobody sees a part of it.
        state.submitted(&self.shared.cache, &changes.records, &references);
        if let (Some(tally), Some(noted)) = (self.tally().as_mut(), noted) {
            tally.add(noted);
        }
        for ino in &orphans {
            let holder = change.author.filter(|_| change.held.contains(ino));
            self.orphans.begin(*ino, holder);
        }
        let mut reaped = Vec::new();
        for (key, record) in &changes.records {
            match (key, record) {
                (Key::Orphan(ino), None) => {
                    self.orphans.reaped(*ino);
                    reaped.push(*ino);
                }
                (Key::Inode(ino), None) => delegations.gone(*ino),
                _ => (),
            }
        }
        for ino in change.delegates {
            if let Some(author) = change.author {
                // There is room, as was seen above.
                let _room = delegations.add(author, ino);
            }
        }
        for ino in &unfinished {
            self.orphans.begin(*ino, None);
        }
        let moment = self.moment(&state);
        Ok(Submitted {
            ticket,
            inline,
            moment,
            author: change.author,
            reply,
            keys,
            orphans,
            unfinished,
            reaped,
            quiet: change.quiet,
        })
    }

    /// Submits records that no rule decides about, under the lock.
    pub(super) fn submit_records(
        &self,
        state: &mut State,
        writes: Vec<Write>,
        records: BTreeMap<Key, Option<Record>>,
    ) -> Result<Submitted> {
        let ticket = self.shared.meta.submit(state.generation, writes)?;
        state.submitted(&self.shared.cache, &records, &BTreeMap::new());
        Ok(Submitted {
            ticket,
            inline: None,
            moment: self.moment(state),
            author: None,
            keys: records.keys().cloned().collect(),
            reply: BatchReply { version: state.version, records: records.into_iter().collect() },
            orphans: Vec::new(),
            unfinished: Vec::new(),
            reaped: Vec::new(),
            quiet: false,
        })
    }

    /// The part after the lock: waits for stable storage, then for the other sessions.
    async fn complete(&self, submitted: Submitted) -> Result<BatchReply> {
        let Submitted { ticket, inline, moment, author, reply, keys, orphans, unfinished, reaped, quiet } =
            submitted;
        let committed = ticket.await;
        // Others may wait for these blocks with the volume's lock held.
        match inline {
            Some(inline) if committed.is_ok() => inline.committed(),
            other => drop(other),
        }
        if let Err(error) = committed {
            // Drops what builds on it, and wakes who waits for it.
            drop(self.lock().await);
            self.look_again_at(orphans.iter().chain(&unfinished).chain(&reaped)).await;
            return Err(error);
        }
        let told = self.shared.audience.tell(self.id, author, reply.version, &keys, &orphans);
        self.note_held(&told);
        let _unsettled = (!quiet).then(|| self.unsettled.begin(reply.version, &keys, &told));
        // After that: whoever sees the change has been told of it first.
        self.made_durable(moment);
        // A session may end while its last batch is under way.
        if let Some(author) = author {
            self.shared.audience.check_ended(self.id, author);
        }
        if !quiet {
            told.acknowledged().await;
            // The answer shows what it was built on as well.
            let _known = self.durable(moment).await;
            let keys = reply.records.iter().map(|(key, _)| key);
            self.settled(author, reply.version.saturating_sub(1), keys).await;
        }
        for ino in orphans.into_iter().chain(unfinished) {
            self.orphans.settle(ino);
        }
        Ok(reply)
    }

    /// What a commit would have made orphans or reaped, and failed: they are what the engine says.
    async fn look_again_at(&self, inos: impl Iterator<Item = &Ino>) {
        for ino in inos {
            let state = self.lock().await;
            match self.record(&state, &Key::Orphan(*ino)).await {
                Ok(None) => self.orphans.reaped(*ino),
                _ => {
                    self.orphans.recovered(*ino);
                    self.orphans.settle(*ino);
                }
            }
        }
    }

    /// A client reaps what it lets go of; that does not touch what others hold.
    fn without_held(&self, author: Option<SessionId>, mutations: Vec<Mutation>) -> Vec<Mutation> {
        let Some(author) = author else { return mutations };
        let keep = |mutation: Mutation| match mutation {
            Mutation::Reap { ino, .. } => {
                self.orphans.let_go(author, ino).then_some(Mutation::Reap { ino, chunks: REAP_CHUNKS })
            }
            other => Some(other),
        };
        mutations.into_iter().filter_map(keep).collect()
    }

    /// Loads at once what the rules will most likely ask for.
    async fn preload(&self, state: &State, set: &mut WorkingSet, mutations: &[Mutation]) -> Result<()> {
        let mut wanted = BTreeSet::from([Key::Usage]);
        for mutation in mutations {
            match mutation {
                Mutation::Create { parent, name, ino, .. } => {
                    wanted.extend([Key::Inode(*parent), Key::Entry(*parent, name.clone()), Key::Inode(*ino)]);
                }
                Mutation::Link { ino, parent, name, .. } => {
                    wanted.extend([Key::Inode(*ino), Key::Inode(*parent), Key::Entry(*parent, name.clone())]);
                }
                Mutation::Unlink { parent, name, .. } | Mutation::RemoveDirectory { parent, name, .. } => {
                    wanted.extend([Key::Inode(*parent), Key::Entry(*parent, name.clone())]);
                }
                Mutation::Rename { parent, name, new_parent, new_name, .. } => {
                    wanted.extend([Key::Inode(*parent), Key::Entry(*parent, name.clone())]);
                    wanted.extend([Key::Inode(*new_parent), Key::Entry(*new_parent, new_name.clone())]);
                }
                Mutation::Write { ino, extents, .. } => {
                    wanted.insert(Key::Inode(*ino));
                    if let [extent] = extents.as_slice() {
                        wanted.insert(Key::Chunk(*ino, extent.offset / tree::CHUNK_SIZE));
                    }
                }
                Mutation::CloneRange { ino, from, .. } => {
                    wanted.extend([Key::Inode(*ino), Key::Inode(*from)]);
                }
                Mutation::SetAttributes { ino, .. }
                | Mutation::PunchHole { ino, .. }
                | Mutation::SetXattr { ino, .. }
                | Mutation::RemoveXattr { ino, .. }
                | Mutation::SetDigest { ino, .. }
                | Mutation::Accessed { ino, .. } => drop(wanted.insert(Key::Inode(*ino))),
                Mutation::Reap { ino, .. } => wanted.extend([Key::Inode(*ino), Key::Orphan(*ino)]),
                Mutation::Join { ino, number, .. } => drop(wanted.insert(Key::Chunk(*ino, *number))),
            }
        }
        wanted.retain(|key| set.get(key).is_err());
        let wanted: Vec<Key> = wanted.into_iter().collect();
        let records = self.records(state, &wanted).await?;
        for (key, record) in wanted.into_iter().zip(records) {
            set.load(key, record);
        }
        Ok(())
    }
}

/// The inodes that have become orphans in a working set.
fn orphaned(set: &WorkingSet) -> Vec<Ino> {
    let changed = set.changed().iter();
    changed
        .filter_map(|(key, record)| match (key, record) {
            (Key::Orphan(ino), Some(_)) => Some(*ino),
            _ => None,
        })
        .collect()
}

/// What the author and others are told: all but the extents of files that the batch did not write to, which are those of
/// orphans that it reaped.
fn told(mutations: &[Mutation], records: &BTreeMap<Key, Option<Record>>) -> Vec<(Key, Option<Record>)> {
    let written: BTreeSet<Ino> = mutations
        .iter()
        .filter_map(|mutation| match mutation {
            Mutation::Write { ino, .. }
            | Mutation::PunchHole { ino, .. }
            | Mutation::CloneRange { ino, .. }
            | Mutation::SetAttributes { ino, .. }
            | Mutation::Join { ino, .. } => Some(*ino),
            _ => None,
        })
        .collect();
    let is_told = |key: &Key| match key {
        Key::Chunk(ino, _) => written.contains(ino),
        Key::Orphan(_) => false,
        _ => true,
    };
    let told = records.iter().filter(|(key, _)| is_told(key));
    told.map(|(key, record)| (key.clone(), record.clone())).collect()
}

/// Where a file ends that is given a size. Others are told so although a hole behind the end is no chunk that has changed: the kernel
/// may have pages of it, and would go on reading them.
fn cut(mutation: &Mutation) -> Option<Key> {
    match mutation {
        Mutation::SetAttributes { ino, set, .. } => {
            set.size.map(|size| Key::Chunk(*ino, size / tree::CHUNK_SIZE))
        }
        _ => None,
    }
}

/// The write that keeps an answer.
fn kept_reply(author: SessionId, sequence: u64, reply: &BatchReply) -> Result<Write> {
    meta::put(keys::reply(author, sequence % tandemfs::api::fs::SESSION_SLOTS), &(sequence, reply))
}
