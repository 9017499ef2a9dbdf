//! Repair of a node: everything that the records place on it is checked, what is missing or damaged is copied, what nobody needs is
//! removed; then the node is healthy again.

use std::sync::Arc;

use tandemfs::Result;
use tandemfs::api::files::NodeState;
use tandemfs::id::NodeId;

use super::job::Task;
use super::walk::Walk;
use crate::meta::Meta;
use crate::replicate::{FailedBy, NodeRecord, Replicator};

/// Takes a failed node back, to be repaired. A healthy one stays healthy: it is checked and mended in service.
///
/// # Errors
/// `NotFound`; `Busy` for a node that is being emptied or is retired; those of the engine.
pub(super) async fn begin(replicator: &Replicator, id: NodeId) -> Result<()> {
    let nodes = replicator.registry();
    let node = nodes.get(id)?;
    let record = node.record();
    if matches!(record.state, NodeState::Healthy | NodeState::Repairing) {
        return Ok(());
    }
    let may = |now: &NodeRecord| now.state == NodeState::Failed;
    nodes.set_state(node, may, NodeState::Repairing, record.failed_by).await
}

/// The repair itself.
///
/// # Errors
/// `Unavailable` when the node fails or keeps giving errors; those of the engine.
pub(super) async fn run(replicator: &Arc<Replicator>, meta: &Meta, task: &Task, id: NodeId) -> Result<()> {
    let nodes = replicator.registry();
    let node = nodes.get(id)?;
    let term = node.record().term;
    nodes.probe(node).await?;
    let joining = node.state() == NodeState::Repairing;
    Walk { node: Some(id), joining, bytes_per_s: None }.run(replicator, meta, Some(task)).await?;
    if joining {
        let may = |now: &NodeRecord| now.state == NodeState::Repairing && now.term == term;
        nodes.set_state(node, may, NodeState::Healthy, None).await?;
    }
    Ok(())
}

/// Puts a node whose repair has not succeeded back to where it was.
pub(super) async fn give_up(replicator: &Replicator, id: NodeId) {
    let nodes = replicator.registry();
    let Ok(node) = nodes.get(id) else { return };
    let failed_by = node.record().failed_by.or(Some(FailedBy::Admin));
    let may = |now: &NodeRecord| now.state == NodeState::Repairing;
    if node.state() == NodeState::Repairing
        && let Err(error) = nodes.set_state(node, may, NodeState::Failed, failed_by).await
    {
        log::warn!("node {id} stays in repair: {error:?}");
    }
}
