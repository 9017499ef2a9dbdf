//! Reads everything that each node holds from time to time, so that damage is found while there is another copy.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tandemfs::api::admin::{JobKind, JobState};
use tandemfs::clock::Time;
use tandemfs::id::NodeId;
use tandemfs::{Error, Result};

use super::Inner;
use super::walk::Walk;
use super::worker::{Next, Worker};

/// How often it is looked whether some node's turn has come.
const INTERVAL: Duration = Duration::from_secs(60);

/// The worker.
#[derive(Debug)]
pub(super) struct Scrubber {
    pub(super) inner: Arc<Inner>,
    /// How often each node's turn comes.
    pub(super) every: Duration,
    /// When the daemon started: a node that was never scrubbed waits from then on.
    pub(super) started: Time,
}

#[async_trait]
impl Worker for Scrubber {
    fn name(&self) -> &'static str {
        "scrub"
    }

    async fn step(&mut self) -> Result<Next> {
        let now = self.inner.clock.now().as_millis();
        let every = i64::try_from(self.every.as_millis()).unwrap_or(i64::MAX);
        let nodes = self.inner.replicator.registry();
        let due = nodes
            .all()
            .find(|node| node.is_healthy() && now.saturating_sub(self.last(node.id()).as_millis()) >= every);
        let Some(node) = due.map(|node| node.id()) else { return Ok(Next::Wait(INTERVAL)) };
        let job = self.inner.scrub(Some(node)).await?;
        let task = self.inner.task(job)?;
        task.ended().await;
        match task.job() {
            job if job.state == JobState::Failed => Err(Error::unavailable(job.error.unwrap_or_default())),
            _ => Ok(Next::Again),
        }
    }
}

impl Scrubber {
    /// When a node's last scrub began.
    fn last(&self, node: NodeId) -> Time {
        let scrubs = self
            .inner
            .list()
            .into_iter()
            .filter(|job| job.kind == JobKind::Scrub && job.node_id == Some(node));
        let begun = scrubs.filter(|job| job.state != JobState::Failed).filter_map(|job| {
            let started: jiff::Timestamp = job.started.parse().ok()?;
            Some(Time::from_millis(started.as_millisecond()))
        });
        begun.max().map_or(self.started, |last| last.max(self.started))
    }
}

/// The walk that reads and mends everything on a node.
pub(super) fn scrub(node: NodeId, bytes_per_s: u64) -> Walk {
    Walk { node: Some(node), joining: false, bytes_per_s: Some(bytes_per_s) }
}
