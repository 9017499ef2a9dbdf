//! Removes blocks that nothing has named for the grace period.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tandemfs::Result;
use tandemfs::clock::Clock;

use super::worker::{Next, Worker};
use crate::fsck::Report;
use crate::meta::Key;
use crate::volumes::{Collected, Live, Volumes};

/// Blocks that are looked at in one step.
pub(super) const STEP: usize = 256;

/// Who knows the trees: which blocks are garbage, and whether all fits together.
#[async_trait]
pub trait Garbage: Send + Sync + std::fmt::Debug {
    /// Looks at up to `limit` rows of the garbage index, from `from` on, that are not younger than a time in milliseconds since
    /// 1970, and removes those blocks that were neither stored nor named since then.
    ///
    /// # Errors
    /// Those of the engine and of the nodes.
    async fn collect(&self, from: Option<Key>, older_than_ms: u64, limit: usize) -> Result<Collected>;

    /// Checks trees, counts and copies, while they are in use.
    ///
    /// # Errors
    /// Those of the engine and of the scratch store.
    async fn fsck(&self, live: Live<'_>) -> Result<Report>;
}

#[async_trait]
impl Garbage for Volumes {
    async fn collect(&self, from: Option<Key>, older_than_ms: u64, limit: usize) -> Result<Collected> {
        Self::collect(self, from, older_than_ms, limit).await
    }

    async fn fsck(&self, live: Live<'_>) -> Result<Report> {
        Self::fsck(self, live).await
    }
}

/// One step from `from` on, with the grace period counted back from now.
pub(super) async fn step(
    garbage: &dyn Garbage,
    from: Option<Key>,
    clock: &dyn Clock,
    grace: Duration,
) -> Result<Collected> {
    let now = u64::try_from(clock.now().as_millis()).unwrap_or(0);
    let grace = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    garbage.collect(from, now.saturating_sub(grace), STEP).await
}

/// The worker.
#[derive(Debug)]
pub(super) struct Collector {
    pub(super) garbage: Arc<dyn Garbage>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) grace: Duration,
    pub(super) interval: Duration,
    /// Where in the index it goes on.
    pub(super) from: Option<Key>,
}

#[async_trait]
impl Worker for Collector {
    fn name(&self) -> &'static str {
        "collect"
    }

    async fn step(&mut self) -> Result<Next> {
        // After an error it begins anew.
        let from = self.from.take();
        self.from = step(self.garbage.as_ref(), from, self.clock.as_ref(), self.grace).await?.next;
        Ok(if self.from.is_some() { Next::Again } else { Next::Wait(self.interval) })
    }
}
