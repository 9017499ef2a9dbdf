//! The blocks of changes that wait: they can be read here, and those that do not come with their change are stored before it is sent.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tandemfs::Result;
use tandemfs::id::BlockId;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::log::{Block, Queued};

/// Blocks that are named by changes that wait.
#[derive(Default)]
pub(super) struct Blocks {
    inner: Mutex<Inner>,
    /// There is more to be stored.
    more: Notify,
    /// Some were stored, or refused.
    settled: Notify,
}

#[derive(Default)]
struct Inner {
    held: HashMap<BlockId, Held>,
    /// Those that nobody stores yet, in the order of their changes.
    to_store: VecDeque<BlockId>,
    /// Since when no node has room.
    full_since: Option<Instant>,
    closed: bool,
}

struct Held {
    data: Bytes,
    /// Changes that name it.
    users: usize,
    /// Whether its change can be sent, once that is known.
    stored: Option<Result<()>>,
}

impl Blocks {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change waits.
    pub(super) fn add(&self, change: &Queued) {
        let mut inner = self.inner();
        for block in &change.blocks {
            inner.hold(block, Some(Ok(()))).users += 1;
        }
        for block in &change.large {
            let held = inner.hold(block, None);
            held.users += 1;
            // What was refused for another change is tried again.
            if held.users == 1 || held.stored.take_if(|stored| stored.is_err()).is_some() {
                inner.to_store.push_back(block.id);
            }
        }
        drop(inner);
        if !change.large.is_empty() {
            self.more.notify_one();
        }
    }

    /// A change does not wait any more.
    pub(super) fn let_go(&self, change: &Queued) {
        let mut inner = self.inner();
        for block in change.blocks.iter().chain(&change.large) {
            if let Some(held) = inner.held.get_mut(&block.id) {
                held.users -= 1;
                if held.users == 0 {
                    inner.held.remove(&block.id);
                }
            }
        }
    }

    /// The bytes of a block.
    pub(super) fn get(&self, id: &BlockId) -> Option<Bytes> {
        self.inner().held.get(id).map(|held| held.data.clone())
    }

    /// Waits for a block that is to be stored; `None` when no more will come.
    pub(super) async fn next(&self) -> Option<Block> {
        loop {
            let mut more = std::pin::pin!(self.more.notified());
            more.as_mut().enable();
            {
                let mut inner = self.inner();
                if inner.closed {
                    return None;
                }
                if let Some(block) = inner.next() {
                    return Some(block);
                }
            }
            more.await;
        }
    }

    /// Whether a change waits for a block to be stored.
    pub(super) fn is_wanted(&self, id: &BlockId) -> bool {
        let inner = self.inner();
        !inner.closed && inner.held.get(id).is_some_and(|held| held.stored.is_none())
    }

    /// A block is stored, or was refused.
    pub(super) fn settle(&self, id: &BlockId, stored: Result<()>) {
        if let Some(held) = self.inner().held.get_mut(id) {
            held.stored = Some(stored);
        }
        self.settled.notify_waiters();
    }

    /// Whether what a change names is stored, or why not; `None` while that is not known.
    pub(super) fn stored(&self, change: &Queued) -> Option<Result<()>> {
        if change.large.is_empty() {
            return Some(Ok(()));
        }
        let inner = self.inner();
        let mut all = Some(Ok(()));
        for held in change.large.iter().filter_map(|block| inner.held.get(&block.id)) {
            match &held.stored {
                Some(Ok(())) => {}
                Some(Err(error)) => return Some(Err(error.duplicate())),
                None => all = None,
            }
        }
        all
    }

    /// Waits until what a change names is stored.
    ///
    /// # Errors
    /// Why some of it was refused.
    pub(super) async fn all_stored(&self, change: &Queued) -> Result<()> {
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            settled.as_mut().enable();
            match self.stored(change) {
                Some(stored) => return stored,
                None => settled.await,
            }
        }
    }

    /// No node has room for a block. Answers for how long that has been so for all.
    pub(super) fn found_full(&self) -> Duration {
        self.inner().full_since.get_or_insert_with(Instant::now).elapsed()
    }

    /// A node has had room.
    pub(super) fn found_room(&self) {
        self.inner().full_since = None;
    }

    /// Nothing is stored any more.
    pub(super) fn close(&self) {
        self.inner().closed = true;
        self.more.notify_one();
    }
}

impl Inner {
    fn hold(&mut self, block: &Block, stored: Option<Result<()>>) -> &mut Held {
        let new = || Held { data: block.data.clone(), users: 0, stored };
        self.held.entry(block.id).or_insert_with(new)
    }

    fn next(&mut self) -> Option<Block> {
        while let Some(id) = self.to_store.pop_front() {
            if let Some(Held { data, stored: None, .. }) = self.held.get(&id) {
                return Some(Block { id, data: data.clone() });
            }
        }
        None
    }
}
