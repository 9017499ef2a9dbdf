//! Looks after the journal: tells it which nodes can be used, and has it make its copies whole.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tandemfs::Result;
use tandemfs::api::files::NodeState;

use super::worker::{Next, Worker};
use crate::journal::Journal;
use crate::replicate::{FailedBy, NodeRecord, Replicator};
use crate::watch;

/// How often it is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// The worker.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) journal: Journal,
    pub(super) replicator: Arc<Replicator>,
    pub(super) changes: watch::Receiver<u64>,
    pub(super) round: u64,
}

#[async_trait]
impl Worker for Keeper {
    fn name(&self) -> &'static str {
        "journal"
    }

    async fn step(&mut self) -> Result<Next> {
        // Of other failures it learns by itself.
        let is_shut = |node: &NodeRecord| match node.state {
            NodeState::Failed => node.failed_by == Some(FailedBy::Admin),
            state => state == NodeState::Retired,
        };
        let records = self.replicator.registry().all().map(|node| node.record());
        self.journal.shut(records.filter(is_shut).map(|record| record.id).collect::<BTreeSet<_>>());
        self.round += 1;
        self.journal.tend(self.round).await?;
        Ok(Next::Wait(INTERVAL))
    }

    async fn wait(&mut self, time: Duration) {
        // It ends early when the state of a node changes. The sender lives as long as the replicator.
        let _ = tokio::time::timeout(time, self.changes.changed()).await;
    }
}
