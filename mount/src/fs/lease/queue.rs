//! Changes that were made here and are to be sent, in order; who waits until they are committed; the blocks that they name.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tandemfs::api::fs::BATCH_INLINE_MAX;
use tandemfs::id::{BlockId, SessionId};
use tandemfs::tree::{CHUNK_SIZE, Key, Mutation};
use tandemfs::{Error, Result};
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::batch::fitting;
use super::blocks::Blocks;
use super::log::{Block, Log, Queued};
use super::room::Room;
use crate::fs::batches::Coming;

/// Bytes of changes, and of what is sent with them, that may wait to be sent; who wants to make more waits.
const ROOM: usize = 8 << 20;
/// Bytes of blocks that are stored before, likewise. Together they are to be clearly less than a log may be long.
const LARGE_ROOM: usize = 16 << 20;
/// Of the memory for what is being written each of them has at most this part.
const SHARE: usize = 4;
/// Bytes that a mutation counts, beside its data: it, and the records that it has changed.
const MUTATION_BYTES: usize = 1024;
/// So many mutations, or bytes of data, are worth a batch of their own.
const MANY: usize = 256;
const MUCH: usize = BATCH_INLINE_MAX / 2;
/// What nobody waits for is sent after so long.
const AGE: Duration = Duration::from_millis(50);
/// Nodes that are full are asked again for so long: space may be on its way back.
pub(super) const FULL_PATIENCE: Duration = Duration::from_secs(15);

/// The queue of one mount.
pub(in crate::fs) struct Queue {
    inner: Mutex<Inner>,
    /// Held while a change is made, so that changes are sent in the order in which they were made.
    pub(super) order: tokio::sync::Mutex<()>,
    room: Room,
    large_room: Room,
    /// There is more to send, or somebody waits.
    more: Notify,
    /// What changes that wait name.
    pub(super) blocks: Blocks,
    progress: watch::Sender<Progress>,
}

/// How far it was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    /// The number of the last change that is committed, or lost.
    done: u64,
    /// The number of the last change that was lost.
    lost: u64,
}

struct Inner {
    session: SessionId,
    waiting: VecDeque<Change>,
    /// Bytes of data and mutations that wait.
    bytes: usize,
    mutations: usize,
    /// The number of the last change.
    number: u64,
    /// The number of the last change that somebody waits for.
    urgent: u64,
    log: Option<Log>,
    closed: bool,
}

/// A change that was made here.
pub(super) struct Change {
    pub(super) queued: Queued,
    /// The records that it has changed.
    pub(super) keys: Vec<Key>,
    pub(super) since: Instant,
    /// What it takes of the queue's room, and of the memory for what is being written.
    pub(super) _room: Vec<OwnedSemaphorePermit>,
    pub(super) memory: Vec<Arc<OwnedSemaphorePermit>>,
}

impl Queued {
    /// Bytes of data that are sent with it.
    pub(super) fn small_bytes(&self) -> usize {
        bytes(&self.blocks)
    }
}

fn bytes(blocks: &[Block]) -> usize {
    blocks.iter().map(|block| block.data.len()).sum()
}

impl Queue {
    /// What is in it survives the process if there is a log. `memory`: bytes for all that is being written.
    pub(in crate::fs) fn new(session: SessionId, log: Option<Log>, memory: usize) -> Arc<Self> {
        // Of a block at least.
        let room = |most| Room::new((memory / SHARE).clamp(CHUNK_SIZE as usize, most));
        let inner = Inner {
            session,
            waiting: VecDeque::new(),
            bytes: 0,
            mutations: 0,
            number: 0,
            urgent: 0,
            log,
            closed: false,
        };
        Arc::new(Self {
            inner: Mutex::new(inner),
            order: tokio::sync::Mutex::default(),
            room: room(ROOM),
            large_room: room(LARGE_ROOM),
            more: Notify::new(),
            blocks: Blocks::default(),
            progress: watch::Sender::default(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes of a session begin, whose last batch had a sequence number.
    pub(super) fn begin(&self, session: SessionId, sequence: u64) {
        let mut inner = self.inner();
        inner.session = session;
        if let Some(log) = &mut inner.log {
            log.begin(session, sequence);
        }
    }

    /// Whether what was done survives the process.
    pub(super) fn is_logged(&self) -> bool {
        self.inner().log.as_ref().is_none_or(Log::is_whole)
    }

    /// All that was taken up to a change is about to be sent as one batch.
    pub(super) fn sending(&self, sequence: u64, last: u64) {
        if let Some(log) = &mut self.inner().log {
            log.sent(sequence, last);
        }
    }

    /// Waits until there is room for a change.
    ///
    /// # Errors
    /// `TimedOut`.
    pub(super) async fn room(
        &self,
        mutations: &[Mutation],
        coming: &Coming,
        give_up: Instant,
    ) -> Result<Vec<OwnedSemaphorePermit>> {
        let mut room = Vec::new();
        if !coming.large.is_empty() {
            room.push(self.large_room.take(bytes(&coming.large), give_up).await?);
        }
        let small = bytes(&coming.blocks) + mutations.len() * MUTATION_BYTES;
        room.push(self.room.take(small, give_up).await?);
        Ok(room)
    }

    /// The number for the next change. To be called, and used, in the order of the changes.
    pub(super) fn next_number(&self) -> u64 {
        self.inner().number + 1
    }

    /// Adds a change that was made in a session; gives it back when that is over: then it never was.
    pub(super) fn add(&self, session: SessionId, change: Change) -> Option<Change> {
        let mut inner = self.inner();
        if inner.session != session || inner.closed {
            return Some(change);
        }
        let queued = &change.queued;
        if let Some(log) = &mut inner.log {
            log.change(queued);
        }
        inner.number = queued.number;
        inner.mutations += queued.mutations.len();
        inner.bytes += all_bytes(queued);
        self.blocks.add(queued);
        inner.waiting.push_back(change);
        let is_first = inner.waiting.len() == 1;
        let is_due = inner.is_due(&self.blocks);
        drop(inner);
        if is_first || is_due {
            self.more.notify_one();
        }
        None
    }

    /// A block is stored, or was refused.
    pub(super) fn settle(&self, id: &BlockId, stored: Result<()>) {
        self.blocks.settle(id, stored);
        self.more.notify_one();
    }

    /// The bytes of a block that is on its way.
    pub(in crate::fs) fn block(&self, id: &BlockId) -> Option<Bytes> {
        self.blocks.get(id)
    }

    /// Waits until changes up to one are committed.
    ///
    /// # Errors
    /// `TimedOut`; `Stale` when one of them, or one after them, was lost with its session.
    pub(super) async fn committed(&self, number: u64, give_up: Instant) -> Result<()> {
        let mut progress = self.progress.subscribe();
        let lost = progress.borrow_and_update().lost;
        {
            let mut inner = self.inner();
            inner.urgent = inner.urgent.max(number);
        }
        self.more.notify_one();
        let waited = timeout_at(give_up, progress.wait_for(|progress| progress.done >= number)).await;
        match waited {
            Ok(Ok(progress)) if progress.lost == lost => Ok(()),
            Ok(_) => Err(Error::stale("what was done was lost with the session")),
            Err(_) => Err(Error::timed_out("the daemon is away")),
        }
    }

    /// The number of the last change.
    pub(super) fn last(&self) -> u64 {
        self.inner().number
    }

    /// Waits until all is committed that was done until now, however long that takes.
    ///
    /// # Errors
    /// As [`Queue::committed`], but not `TimedOut`.
    pub(super) async fn drained(&self) -> Result<()> {
        loop {
            let far = Instant::now() + Duration::from_secs(3600);
            match self.committed(self.last(), far).await {
                Err(error) if error.kind() == tandemfs::ErrorKind::TimedOut => {}
                other => return other,
            }
        }
    }

    /// All that waits, for when it is to be sent change by change.
    pub(super) fn take_all(&self) -> Vec<Change> {
        let mut inner = self.inner();
        (inner.bytes, inner.mutations) = (0, 0);
        inner.waiting.drain(..).collect()
    }

    /// Waits until there is something to send now; `None` when no more will come.
    pub(super) async fn next(&self) -> Option<(SessionId, Vec<Change>)> {
        loop {
            let mut more = std::pin::pin!(self.more.notified());
            more.as_mut().enable();
            let due = {
                let mut inner = self.inner();
                if inner.closed && inner.waiting.is_empty() {
                    return None;
                }
                if inner.is_due(&self.blocks) {
                    return Some(inner.take(&self.blocks));
                }
                // What names a block is sent once that is stored, of which this is told.
                let first = inner.waiting.front().filter(|first| self.blocks.stored(&first.queued).is_some());
                first.map(|first| first.since + AGE)
            };
            match due {
                Some(due) => tokio::select! {
                    biased;
                    () = more => {}
                    () = sleep_until(due) => {}
                },
                None => more.await,
            }
        }
    }

    /// Changes are committed, or lost; whoever waits for them goes on.
    pub(super) fn done(&self, changes: &[Change], lost: bool) {
        let mut inner = self.inner();
        for change in changes {
            self.blocks.let_go(&change.queued);
        }
        let Some(last) = changes.last().map(|change| change.queued.number) else { return };
        inner.log_done(last);
        drop(inner);
        self.progress.send_modify(|progress| {
            progress.done = progress.done.max(last);
            if lost {
                progress.lost = last;
            }
        });
    }

    /// The session is over: what was not sent never will be. Answers it.
    pub(super) fn lose(&self, next: SessionId) -> Vec<Change> {
        let mut inner = self.inner();
        inner.session = next;
        (inner.bytes, inner.mutations) = (0, 0);
        let lost: Vec<Change> = inner.waiting.drain(..).collect();
        drop(inner);
        self.done(&lost, true);
        lost
    }

    /// No more will come. Answers whether all is committed; if not, what waits is for the next mount.
    pub(in crate::fs) fn close(&self) -> bool {
        let mut inner = self.inner();
        inner.closed = true;
        let is_done = self.progress.borrow().done == inner.number;
        if is_done && let Some(log) = inner.log.take() {
            log.remove();
        }
        drop(inner);
        self.more.notify_one();
        self.blocks.close();
        is_done
    }
}

impl Inner {
    /// Whether what waits is to be sent now, and can be.
    fn is_due(&self, blocks: &Blocks) -> bool {
        self.waiting.front().is_some_and(|first| {
            blocks.stored(&first.queued).is_some()
                && (first.queued.number <= self.urgent
                    || self.closed
                    || self.mutations >= MANY
                    || self.bytes >= MUCH
                    || first.since.elapsed() >= AGE)
        })
    }

    /// What fits into one batch, from the first on: that, and what follows it up to a change that names something which is not stored.
    fn take(&mut self, blocks: &Blocks) -> (SessionId, Vec<Change>) {
        let ready = self.waiting.iter().map(|change| &change.queued).enumerate();
        let ready =
            ready.take_while(|(at, change)| *at == 0 || matches!(blocks.stored(change), Some(Ok(()))));
        let count = fitting(ready.map(|(_, change)| change));
        let changes: Vec<Change> = self.waiting.drain(..count).collect();
        for Change { queued, .. } in &changes {
            self.bytes -= all_bytes(queued);
            self.mutations -= queued.mutations.len();
        }
        (self.session, changes)
    }

    fn log_done(&mut self, last: u64) {
        let Some(log) = &mut self.log else { return };
        // Where some were taken and are not done, all that is to be kept is not known here.
        let next = self.waiting.front().map_or(self.number + 1, |change| change.queued.number);
        let waiting = (next == last + 1).then(|| self.waiting.iter().map(|change| &change.queued));
        log.done(last, waiting);
    }
}

fn all_bytes(change: &Queued) -> usize {
    bytes(&change.blocks) + bytes(&change.large)
}
