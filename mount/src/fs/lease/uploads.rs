//! Stores what does not come with the changes that name it: several blocks at once, ahead of the sender, in the order of the changes.

use std::sync::{Arc, Weak};

use futures::StreamExt;
use tandemfs::id::SessionId;
use tandemfs::{Error, ErrorKind, Result};
use tokio::time::Instant;

use super::log::Block;
use super::queue::{Change, FULL_PATIENCE};
use crate::fs::data::UPLOADS_MAX;
use crate::fs::requests::Tries;
use crate::fs::session::Session;

impl Session {
    /// Stores what changes wait for, until the session is closed.
    pub(in crate::fs) async fn store_queue(session: Weak<Self>) {
        let Some(queue) = session.upgrade().map(|session| Arc::clone(&session.queue)) else { return };
        let blocks = futures::stream::unfold(queue, |queue| async move {
            let block = queue.blocks.next().await?;
            Some((block, queue))
        });
        let store = |block: Block| {
            let session = session.clone();
            async move {
                let Some(session) = session.upgrade() else { return };
                let is_wanted = || session.queue.blocks.is_wanted(&block.id);
                if let Some(stored) = session.store(&block, is_wanted).await {
                    if let Err(error) = &stored {
                        log::error!("block {} is refused: {error}", block.id);
                    }
                    session.queue.settle(&block.id, stored);
                }
            }
        };
        blocks.for_each_concurrent(UPLOADS_MAX, store).await;
    }

    /// Stores a block, for as long as it is wanted, in whatever session there is. `None`: it is not any more.
    async fn store(&self, block: &Block, is_wanted: impl Fn() -> bool) -> Option<Result<()>> {
        let mut tries = Tries::begin();
        while is_wanted() {
            let (id, sent) = (self.id(), Instant::now());
            let error = match self.remote.put_block(id, block.id, block.data.clone()).await {
                Ok(()) => {
                    self.heard(sent);
                    self.queue.blocks.found_room();
                    return Some(Ok(()));
                }
                Err(error) => error,
            };
            match error.kind() {
                ErrorKind::SessionEnded => self.ended(id),
                ErrorKind::NoSpace if self.queue.blocks.found_full() < FULL_PATIENCE => {}
                // Who is not let in for now may be later: the session says so if not.
                ErrorKind::Unauthenticated | ErrorKind::Forbidden => {}
                kind if kind.is_retryable() => self.missed(&error),
                _ => return Some(Err(error)),
            }
            log::debug!("storing block {} again: {error}", block.id);
            tries.rest(error.retry_after_s()).await;
        }
        None
    }

    /// Stores all blocks that changes of a session name once more: the daemon has none of what nothing has named for too long.
    ///
    /// # Errors
    /// `SessionEnded`; a refusal.
    pub(super) async fn store_again(&self, id: SessionId, changes: &[Change]) -> Result<()> {
        let blocks: Vec<Block> =
            changes.iter().flat_map(|change| change.queued.large.iter().cloned()).collect();
        for block in blocks {
            let stored = self.store(&block, || self.id() == id).await;
            stored.unwrap_or_else(|| Err(Error::session_ended(format!("session {id}"))))?;
        }
        Ok(())
    }

    /// Stores blocks of changes that are not in the queue.
    ///
    /// # Errors
    /// As `Session::until_answered`.
    pub(in crate::fs) async fn store_at_once(&self, blocks: Vec<Block>) -> Result<()> {
        let stored = blocks.into_iter().map(|block| async move {
            let put = self.until_answered(|id| {
                let data = block.data.clone();
                Box::pin(async move { self.remote.put_block(id, block.id, data).await })
            });
            put.await
        });
        let stored: Vec<Result<()>> = futures::stream::iter(stored).buffered(UPLOADS_MAX).collect().await;
        if stored.iter().any(Result::is_ok) {
            self.queue.blocks.found_room();
        }
        stored.into_iter().collect()
    }
}
