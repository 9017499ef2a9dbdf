//! Changes that were made here and are to be sent, in order; who waits until they are committed; the small blocks that go with them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tandemfs::api::fs::{BATCH_INLINE_MAX, BATCH_MUTATIONS_MAX, Batch, InlineBlock};
use tandemfs::id::{BlockId, SessionId};
use tandemfs::tree::{Key, Mutation};
use tandemfs::{Error, Result};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::log::{Log, Queued};

/// Bytes of changes that may wait to be sent; who wants to make more waits.
const ROOM: usize = 8 << 20;
/// Bytes that a mutation counts, beside its data: it, and the records that it has changed.
const MUTATION_BYTES: usize = 1024;
/// So many mutations, or bytes of data, are worth a batch of their own.
const MANY: usize = 256;
const MUCH: usize = BATCH_INLINE_MAX / 2;
/// What nobody waits for is sent after so long.
const AGE: Duration = Duration::from_millis(50);

/// The queue of one mount.
pub(in crate::fs) struct Queue {
    inner: Mutex<Inner>,
    /// Held while a change is made, so that changes are sent in the order in which they were made.
    pub(super) order: tokio::sync::Mutex<()>,
    room: Arc<Semaphore>,
    /// There is more to send, or somebody waits.
    more: Notify,
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
    blocks: HashMap<BlockId, (Bytes, usize)>,
    log: Option<Log>,
    closed: bool,
}

/// A change that was made here.
pub(super) struct Change {
    pub(super) queued: Queued,
    /// The records that it has changed.
    pub(super) keys: Vec<Key>,
    pub(super) since: Instant,
    pub(super) _room: OwnedSemaphorePermit,
}

impl Queued {
    fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.data.len()).sum()
    }
}

impl Queue {
    /// What is in it survives the process if there is a log.
    pub(in crate::fs) fn new(session: SessionId, log: Option<Log>) -> Arc<Self> {
        let inner = Inner {
            session,
            waiting: VecDeque::new(),
            bytes: 0,
            mutations: 0,
            number: 0,
            urgent: 0,
            blocks: HashMap::new(),
            log,
            closed: false,
        };
        Arc::new(Self {
            inner: Mutex::new(inner),
            order: tokio::sync::Mutex::default(),
            room: Arc::new(Semaphore::new(ROOM)),
            more: Notify::new(),
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
        blocks: &[InlineBlock],
        give_up: Instant,
    ) -> Result<OwnedSemaphorePermit> {
        let data: usize = blocks.iter().map(|block| block.data.len()).sum();
        let bytes = (data + mutations.len() * MUTATION_BYTES).min(ROOM) as u32;
        if let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(bytes) {
            return Ok(room);
        }
        let away = || Error::timed_out("the daemon is away");
        let room = timeout_at(give_up, Arc::clone(&self.room).acquire_many_owned(bytes));
        room.await.map_err(|_| away())?.map_err(|_| away())
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
        inner.bytes += queued.bytes();
        for block in &queued.blocks {
            let data = || (Bytes::from(block.data.clone()), 0);
            inner.blocks.entry(block.id).or_insert_with(data).1 += 1;
        }
        inner.waiting.push_back(change);
        let is_first = inner.waiting.len() == 1;
        let is_due = inner.is_due();
        drop(inner);
        if is_first || is_due {
            self.more.notify_one();
        }
        None
    }

    /// The bytes of a block that is on its way.
    pub(in crate::fs) fn block(&self, id: &BlockId) -> Option<Bytes> {
        self.inner().blocks.get(id).map(|(data, _)| data.clone())
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
    pub(super) async fn next(&self) -> Option<(SessionId, Batch, Vec<Change>)> {
        loop {
            let mut more = std::pin::pin!(self.more.notified());
            more.as_mut().enable();
            let due = {
                let mut inner = self.inner();
                if inner.closed && inner.waiting.is_empty() {
                    return None;
                }
                if inner.is_due() {
                    return Some(inner.take());
                }
                inner.waiting.front().map(|first| first.since + AGE)
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
        for block in changes.iter().flat_map(|change| &change.queued.blocks) {
            inner.let_go(&block.id);
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
        is_done
    }
}

impl Inner {
    /// Whether what waits is to be sent now.
    fn is_due(&self) -> bool {
        self.waiting.front().is_some_and(|first| {
            first.queued.number <= self.urgent
                || self.closed
                || self.mutations >= MANY
                || self.bytes >= MUCH
                || first.since.elapsed() >= AGE
        })
    }

    /// What fits into one batch, from the first on.
    fn take(&mut self) -> (SessionId, Batch, Vec<Change>) {
        let (batch, count) = batch_of(self.waiting.iter().map(|change| &change.queued));
        let changes: Vec<Change> = self.waiting.drain(..count).collect();
        for Change { queued, .. } in &changes {
            self.bytes -= queued.bytes();
            self.mutations -= queued.mutations.len();
        }
        (self.session, batch, changes)
    }

    fn log_done(&mut self, last: u64) {
        let Some(log) = &mut self.log else { return };
        // Where some were taken and are not done, all that is to be kept is not known here.
        let next = self.waiting.front().map_or(self.number + 1, |change| change.queued.number);
        let waiting = (next == last + 1).then(|| self.waiting.iter().map(|change| &change.queued));
        log.done(last, waiting);
    }

    fn let_go(&mut self, id: &BlockId) {
        if let Some((_, count)) = self.blocks.get_mut(id) {
            *count -= 1;
            if *count == 0 {
                self.blocks.remove(id);
            }
        }
    }
}

/// Whether a change fits into a batch beside what is in it, with so many bytes of data.
fn has_room(batch: &Batch, bytes: usize, next: &Queued) -> bool {
    batch.mutations.len() + next.mutations.len() <= BATCH_MUTATIONS_MAX
        && batch.held.len() + next.held.len() <= BATCH_MUTATIONS_MAX
        && bytes + next.bytes() <= BATCH_INLINE_MAX
}

fn empty_batch() -> Batch {
    Batch {
        sequence: 0,
        mutations: Vec::new(),
        held: Vec::new(),
        delegates: Vec::new(),
        blocks: Vec::new(),
        brief: true,
    }
}

fn add_to(batch: &mut Batch, change: &Queued) {
    batch.mutations.extend(change.mutations.iter().cloned());
    batch
        .held
        .extend(change.held.iter().copied().filter(|ino| !batch.held.contains(ino)).collect::<Vec<_>>());
    batch.blocks.extend(change.blocks.iter().cloned());
}

/// A batch of as many changes as fit, at least one; and how many.
pub(super) fn batch_of<'a>(changes: impl IntoIterator<Item = &'a Queued>) -> (Batch, usize) {
    let (mut batch, mut bytes, mut count) = (empty_batch(), 0, 0);
    for change in changes {
        if count > 0 && !has_room(&batch, bytes, change) {
            break;
        }
        bytes += change.bytes();
        add_to(&mut batch, change);
        count += 1;
    }
    (batch, count)
}
