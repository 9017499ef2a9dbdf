//! Batches of mutations: numbered, sent again until they are answered, applied once.

use std::sync::Arc;

use tandemfs::api::fs::{Batch, BatchReply, INLINE_MAX, InlineBlock, SESSION_SLOTS};
use tandemfs::id::{Ino, SessionId};
use tandemfs::tree::{Key, Mutation, NewNode, Record};
use tandemfs::{Error, ErrorKind, Result};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::check;
use super::delegations::Created;
use super::lease::log::Block;
use super::requests::Tries;
use super::session::Session;

/// Numbers for new inodes, which belong to the session that asked for them.
#[derive(Default)]
pub(super) struct Numbers {
    pub(super) session: Option<SessionId>,
    pub(super) next: u64,
    pub(super) end: u64,
}

/// A batch's number; gives it back when it is dropped.
pub(super) struct Slot<'a> {
    session: &'a Session,
    pub(super) id: SessionId,
    run: u64,
    pub(super) sequence: u64,
}

/// Blocks that mutations name and that are on no node yet.
#[derive(Clone, Default)]
pub(super) struct Coming {
    /// Those that are sent with the mutations.
    pub(super) blocks: Vec<Block>,
    /// Those that are too large for that, and are stored before.
    pub(super) large: Vec<Block>,
    /// What they take of the memory for what is being written.
    pub(super) memory: Vec<Arc<OwnedSemaphorePermit>>,
}

/// What is to be committed as one.
pub(super) struct Outgoing {
    pub(super) mutations: Vec<Mutation>,
    pub(super) coming: Coming,
    /// What may lose its last link.
    pub(super) victim: Option<Ino>,
}

impl Outgoing {
    pub(super) fn creates(&self) -> bool {
        self.mutations.iter().any(|mutation| matches!(mutation, Mutation::Create { .. }))
    }

    pub(super) fn removes(&self) -> bool {
        self.mutations.iter().any(|mutation| {
            matches!(
                mutation,
                Mutation::Unlink { .. } | Mutation::RemoveDirectory { .. } | Mutation::Rename { .. }
            )
        })
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut state = self.session.state();
        if state.grant.session == self.id {
            state.outstanding.remove(&self.sequence);
        }
        drop(state);
        self.session.slot_free.notify_waiters();
    }
}

impl Session {
    /// Commits mutations as one batch and caches what they wrote.
    ///
    /// # Errors
    /// Those of the rules; `TimedOut` when nobody can say whether the batch was applied, also because the session has ended;
    /// `SessionEnded` when the session ended before a [`Mutation::Create`], whose inode number is not ours any more.
    pub async fn commit(&self, mutations: Vec<Mutation>, victim: Option<Ino>) -> Result<BatchReply> {
        self.commit_batch(None, mutations, Coming::default(), victim).await
    }

    /// The same, but if `only` is given, in that session or not at all: what was written under a lock counts while the lock is held.
    ///
    /// # Errors
    /// As [`Session::commit`]; `Stale` when the session has ended.
    pub(super) async fn commit_in(
        &self,
        only: Option<SessionId>,
        mutations: Vec<Mutation>,
    ) -> Result<BatchReply> {
        self.commit_batch(only, mutations, Coming::default(), None).await
    }

    /// The same, with blocks that the mutations name.
    ///
    /// # Errors
    /// As [`Session::commit_in`].
    pub(super) async fn commit_with(
        &self,
        only: Option<SessionId>,
        mutations: Vec<Mutation>,
        coming: Coming,
    ) -> Result<BatchReply> {
        self.commit_batch(only, mutations, coming, None).await
    }

    async fn commit_batch(
        &self,
        only: Option<SessionId>,
        mutations: Vec<Mutation>,
        coming: Coming,
        victim: Option<Ino>,
    ) -> Result<BatchReply> {
        let mut outgoing = Outgoing { mutations, coming, victim };
        loop {
            let (turn, here) = self.lease.enter().await;
            let Some(id) = here else {
                if outgoing.coming.large.is_empty() {
                    return self.commit_there(only, outgoing).await;
                }
                // The lease was returned since these were cut.
                drop(turn);
                self.store_at_once(std::mem::take(&mut outgoing.coming.large)).await?;
                continue;
            };
            if only.is_some_and(|only| only != id) {
                return Err(lock_lost());
            }
            match self.commit_here(id, &mut outgoing).await {
                // It was not done. In the next session it is, unless it was to be done in this one.
                Err(error) if error.kind() == ErrorKind::SessionEnded && !outgoing.creates() => {
                    if only.is_some() {
                        return Err(lock_lost());
                    }
                }
                done => return done,
            }
        }
    }

    /// Commits through to the daemon.
    async fn commit_there(&self, only: Option<SessionId>, outgoing: Outgoing) -> Result<BatchReply> {
        let (creates, removes) = (outgoing.creates(), outgoing.removes());
        let Outgoing { mutations, coming, victim } = outgoing;
        let blocks = coming.blocks.iter();
        let blocks = blocks.map(|block| InlineBlock { id: block.id, data: block.data.to_vec() }).collect();
        let again = mutations.iter().all(|mutation| {
            matches!(
                mutation,
                Mutation::Write { .. }
                    | Mutation::PunchHole { .. }
                    | Mutation::SetAttributes { .. }
                    | Mutation::Accessed { .. }
                    | Mutation::Reap { .. }
            )
        });
        let delegates: Vec<Ino> = mutations
            .iter()
            .filter_map(|mutation| match mutation {
                Mutation::Create { ino, node: NewNode::File, .. } => Some(*ino),
                _ => None,
            })
            .collect();
        let mut tries = Tries::begin();
        let mut uncertain = false;
        let _removal = victim.map(|ino| self.opens.removing(ino));
        let mut batch = Batch { sequence: 0, mutations, held: Vec::new(), delegates, blocks, brief: false };
        'session: loop {
            let slot = self.slot(tries.start + self.offline_timeout).await?;
            if only.is_some_and(|only| only != slot.id) {
                return Err(lock_lost());
            }
            batch.sequence = slot.sequence;
            batch.held = if removes { self.opens.held(victim) } else { Vec::new() };
            let request = self.cache.begin();
            let created: Vec<_> = batch
                .delegates
                .iter()
                .filter_map(|ino| self.delegations.creating(*ino, slot.id, slot.run))
                .collect();
            loop {
                let sent = Instant::now();
                match self.remote.batch(slot.id, &batch).await {
                    Ok(reply) => {
                        self.heard(sent);
                        self.caught_up().await;
                        check::batch(&reply)?;
                        for (key, record) in &reply.records {
                            match (key, record) {
                                (Key::Inode(ino), Some(Record::Inode(inode)))
                                    if inode.nlink == 0 && batch.held.contains(ino) =>
                                {
                                    self.opens.orphaned(*ino);
                                }
                                (Key::Inode(ino), None) => self.delegations.gone(*ino),
                                _ => (),
                            }
                        }
                        created.iter().for_each(Created::given);
                        request.accept_change(reply.version, reply.records.iter().cloned());
                        return Ok(reply);
                    }
                    Err(error) if error.kind() == ErrorKind::SessionEnded => {
                        self.ended(slot.id);
                        if uncertain && !again {
                            // Not `Stale`: the kernel would do the call again, and O_EXCL, say, would meet its own file.
                            return Err(Error::timed_out("the session ended while a change was under way"));
                        }
                        self.renewed(slot.id, tries.start + self.offline_timeout).await?;
                        tries.rest(None).await;
                        if creates {
                            return Err(error);
                        }
                        continue 'session;
                    }
                    Err(error) => {
                        if uncertain && !error.kind().is_retryable() {
                            log::info!("a batch that was sent more than once is refused: {error}");
                        }
                        uncertain |= error.kind().is_retryable();
                        self.caught_up().await;
                        self.try_again(error, &mut tries).await?;
                    }
                }
            }
        }
    }

    /// The most bytes of a block that is sent with the mutations that name it.
    pub(super) fn inline_max(&self) -> usize {
        // A daemon may say anything.
        (self.state().grant.inline_bytes as usize).min(INLINE_MAX)
    }

    /// The next number for a batch, when the one that lies [`SESSION_SLOTS`] before it has been answered.
    pub(super) async fn slot(&self, give_up: Instant) -> Result<Slot<'_>> {
        loop {
            let mut freed = std::pin::pin!(self.slot_free.notified());
            freed.as_mut().enable();
            {
                let mut state = self.state();
                state.allowed()?;
                let next = state.sequence + 1;
                let room = state.outstanding.first().is_none_or(|oldest| next < oldest + SESSION_SLOTS);
                if room && !state.ended {
                    state.sequence = next;
                    state.outstanding.insert(next);
                    let (id, run) = (state.grant.session, state.grant.run);
                    return Ok(Slot { session: self, id, run, sequence: next });
                }
            }
            if timeout_at(give_up, freed).await.is_err() {
                return Err(Error::timed_out("the daemon is away"));
            }
        }
    }

    /// A number for a new inode.
    ///
    /// # Errors
    /// As `Session::until_answered`.
    pub async fn new_ino(&self) -> Result<Ino> {
        let mut numbers = self.numbers.lock().await;
        if numbers.next >= numbers.end || numbers.session != Some(self.id()) {
            let (session, range) = self
                .until_answered(|id| {
                    Box::pin(async move { self.remote.inodes(id).await.map(|range| (id, range)) })
                })
                .await?;
            check::numbers(range)?;
            let next = range.first.0;
            *numbers = Numbers { session: Some(session), next, end: next.saturating_add(range.count) };
        }
        let ino = Ino(numbers.next);
        numbers.next += 1;
        Ok(ino)
    }
}

fn lock_lost() -> Error {
    Error::stale("the lock under which this was done was lost with the session")
}
