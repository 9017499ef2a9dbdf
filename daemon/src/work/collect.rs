//! Removes blocks that nothing has named for the grace period.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tandemfs::Result;
use tandemfs::clock::Clock;

use super::Inner;
use super::job::Task;
use super::worker::{Next, Worker};
use crate::fsck::Report;
use crate::meta::Key;
use crate::replicate::Sum;
use crate::volumes::{Collected, Compacted, Live, Volumes};

/// Blocks that are looked at in one step.
const STEP: usize = 256;

/// Who knows the trees: which blocks are garbage, and whether all fits together.
#[async_trait]
pub trait Garbage: Send + Sync + std::fmt::Debug {
    /// Looks at up to `limit` rows of the garbage index, from `from` on, that are not younger than a time in milliseconds since
    /// 1970, and removes those blocks that were neither stored nor named since then.
    ///
    /// # Errors
    /// Those of the engine and of the nodes.
    async fn collect(&self, from: Option<Key>, older_than_ms: u64, limit: usize) -> Result<Collected>;

    /// The same, but nothing is removed.
    ///
    /// # Errors
    /// Those of the engine.
    async fn preview(&self, from: Option<Key>, older_than_ms: u64, limit: usize) -> Result<Collected>;

    /// Packs of which less than half is in use, and the bytes in them that are not.
    fn half_dead(&self) -> Sum;

    /// Packs small blocks, rewrites packs of which less than half is in use, and tells what it has done so far.
    ///
    /// # Errors
    /// Those of the engine and of the nodes.
    async fn compact(&self, tell: &(dyn Fn(Compacted) + Send + Sync)) -> Result<Compacted>;

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

    async fn preview(&self, from: Option<Key>, older_than_ms: u64, limit: usize) -> Result<Collected> {
        Self::preview(self, from, older_than_ms, limit).await
    }

    fn half_dead(&self) -> Sum {
        Self::half_dead(self)
    }

    async fn compact(&self, tell: &(dyn Fn(Compacted) + Send + Sync)) -> Result<Compacted> {
        Self::compact(self, tell).await
    }

    async fn fsck(&self, live: Live<'_>) -> Result<Report> {
        Self::fsck(self, live).await
    }
}

/// What is older than this, in milliseconds since 1970, has been garbage for the grace period.
fn older_than(clock: &dyn Clock, grace: Duration) -> u64 {
    let now = u64::try_from(clock.now().as_millis()).unwrap_or(0);
    now.saturating_sub(u64::try_from(grace.as_millis()).unwrap_or(u64::MAX))
}

/// The job: all of the index, once.
pub(super) async fn run(inner: &Inner, task: &Task, dry_run: bool) -> Result<()> {
    task.forget_progress(0);
    let mut from = None;
    loop {
        let older_than = older_than(inner.clock.as_ref(), inner.grace);
        let step = if dry_run {
            inner.garbage.preview(from, older_than, STEP).await?
        } else {
            inner.garbage.collect(from, older_than, STEP).await?
        };
        task.collected(&step);
        from = step.next;
        if from.is_none() {
            break;
        }
    }
    if dry_run {
        task.would_win(inner.garbage.half_dead());
    }
    Ok(())
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
        let older_than = older_than(self.clock.as_ref(), self.grace);
        self.from = self.garbage.collect(from, older_than, STEP).await?.next;
        Ok(if self.from.is_some() { Next::Again } else { Next::Wait(self.interval) })
    }
}
