//! Asks the nodes whether they are there, stores what calls have found out about them, and repairs those that have come back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tandemfs::Result;
use tandemfs::api::admin::JobKind;
use tandemfs::api::files::NodeState;
use tandemfs::id::NodeId;
use tokio::time::Instant;

use super::Inner;
use super::worker::{Next, Worker};
use crate::replicate::FailedBy;
use crate::watch;

/// A node that has failed is believed to be back when it has answered so often in a row.
const ANSWERS: u32 = 2;
/// Between two repairs of a node that keeps failing lies at least so much, and twice as much after each further one.
const BACKOFF: Duration = Duration::from_secs(10);
/// The longest such wait.
const BACKOFF_MAX: Duration = Duration::from_secs(3600);

/// The worker.
#[derive(Debug)]
pub(super) struct Prober {
    pub(super) inner: Arc<Inner>,
    pub(super) interval: Duration,
    pub(super) changes: watch::Receiver<u64>,
    pub(super) returning: BTreeMap<NodeId, Returning>,
}

/// A node that failed and may come back.
#[derive(Debug)]
pub(super) struct Returning {
    answers: u32,
    not_before: Instant,
    backoff: Duration,
}

#[async_trait]
impl Worker for Prober {
    fn name(&self) -> &'static str {
        "probe"
    }

    async fn step(&mut self) -> Result<Next> {
        let replicator = self.inner.replicator.clone();
        let nodes = replicator.registry();
        nodes.save_changed().await?;
        // The engine may have failed when a repair was to be begun or given up.
        let repairing: Vec<_> =
            nodes.all().filter(|node| node.state() == NodeState::Repairing).map(|node| node.id()).collect();
        for id in repairing {
            if self.inner.running(JobKind::RepairNode, Some(id)).is_none() {
                self.inner.repair_node(id).await?;
            }
        }
        let asked: Vec<_> = nodes
            .all()
            .filter(|node| match node.record().state {
                NodeState::Healthy | NodeState::Repairing | NodeState::Draining => true,
                NodeState::Failed => node.record().failed_by == Some(FailedBy::Probe),
                NodeState::Retired => false,
            })
            .cloned()
            .collect();
        let answers = futures::future::join_all(asked.iter().map(|node| nodes.probe(node))).await;
        for (node, answer) in asked.iter().zip(answers) {
            if node.state() == NodeState::Failed {
                self.failed(node.id(), answer.is_ok()).await?;
            } else if node.is_healthy() && self.returning.get(&node.id()).is_some_and(Returning::is_over) {
                self.returning.remove(&node.id());
            }
        }
        nodes.save_changed().await?;
        Ok(Next::Wait(self.interval))
    }

    async fn wait(&mut self, time: Duration) {
        // What a call has found out about a node is stored at once, and asked after only at the next turn.
        let until = Instant::now() + time;
        while let Ok(Ok(())) = tokio::time::timeout_at(until, self.changes.changed()).await {
            if let Err(error) = self.inner.replicator.registry().save_changed().await {
                log::warn!("the state of a node was not stored: {error:?}");
                break;
            }
        }
        tokio::time::sleep_until(until).await;
    }
}

impl Prober {
    async fn failed(&mut self, id: NodeId, answers: bool) -> Result<()> {
        let now = Instant::now();
        let returning =
            self.returning.entry(id).or_insert(Returning { answers: 0, not_before: now, backoff: BACKOFF });
        returning.answers = if answers { returning.answers + 1 } else { 0 };
        if returning.answers >= ANSWERS && now >= returning.not_before {
            returning.answers = 0;
            returning.not_before = now + returning.backoff;
            returning.backoff = (returning.backoff * 2).min(BACKOFF_MAX);
            log::info!("node {id} answers again and is being repaired");
            self.inner.repair_node(id).await?;
        }
        Ok(())
    }
}

impl Returning {
    /// Whether the node has been well for so long that it starts anew.
    fn is_over(&self) -> bool {
        Instant::now() >= self.not_before + self.backoff
    }
}
