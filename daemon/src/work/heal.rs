//! Makes missing copies by itself: of blocks that were written while nodes were away, and of what was on a node that has been away
//! for too long.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tandemfs::{Error, Result};

use super::walk::Walk;
use super::worker::{Next, Worker};
use crate::meta::Meta;
use crate::replicate::Replicator;
use crate::watch;

/// How often the counts are looked at; that costs next to nothing.
const INTERVAL: Duration = Duration::from_secs(1);

/// The worker.
#[derive(Debug)]
pub(super) struct Healer {
    pub(super) meta: Meta,
    pub(super) replicator: Arc<Replicator>,
    pub(super) changes: watch::Receiver<u64>,
}

#[async_trait]
impl Worker for Healer {
    fn name(&self) -> &'static str {
        "heal"
    }

    async fn step(&mut self) -> Result<Next> {
        if !self.replicator.has_due() {
            return Ok(Next::Wait(INTERVAL));
        }
        let healed = heal().run(&self.replicator, &self.meta, None).await?;
        log::info!("healed: {} copies made", healed.copied);
        if healed.copied == 0 && self.replicator.has_due() {
            return Err(Error::unavailable("missing copies cannot be made now"));
        }
        Ok(Next::Again)
    }

    async fn wait(&mut self, time: Duration) {
        // It ends early when the state of a node changes. The sender lives as long as the replicator.
        let _ = tokio::time::timeout(time, self.changes.changed()).await;
    }
}

/// The walk that makes missing copies wherever they are missing.
pub(super) fn heal() -> Walk {
    Walk { node: None, joining: false, bytes_per_s: None }
}
