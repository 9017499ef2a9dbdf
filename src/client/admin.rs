//! Nodes, jobs and the system, for admins.

use super::Client;
use super::transport::Call;
use crate::Result;
use crate::api::admin::{FailNode, Job, JobKind, JobList, Node, NodeList, SessionList, StartJob, System};
use crate::api::audit::{AuditCheck, AuditPage};
use crate::id::{JobId, NodeId};

/// Each method's errors are the daemon's, or `Unavailable` when it could not be asked.
#[expect(clippy::missing_errors_doc, reason = "said once, above")]
impl Client {
    /// Configuration, totals, jobs, capacity.
    pub async fn system(&self) -> Result<System> {
        self.transport.value(Call::get(&["admin", "system"])).await
    }

    /// The nodes.
    pub async fn nodes(&self) -> Result<NodeList> {
        self.transport.value(Call::get(&["admin", "system", "nodes"])).await
    }

    /// Makes a node fail.
    pub async fn fail_node(&self, node: NodeId, fail: &FailNode) -> Result<Node> {
        self.transport
            .value(Call::post(&["admin", "system", "fail-node", &node.to_string()]).body(fail)?)
            .await
    }

    /// Starts the repair of a node. The job says how it goes: it may take longer than a request.
    pub async fn repair_node(&self, node: NodeId) -> Result<Job> {
        let call =
            Call::post(&["admin", "system", "repair-node", &node.to_string()]).query("wait", Some(false));
        self.transport.value(call).await
    }

    /// The newest jobs.
    pub async fn jobs(&self) -> Result<JobList> {
        self.transport.value(Call::get(&["v1", "jobs"])).await
    }

    /// A job.
    pub async fn job(&self, job: JobId) -> Result<Job> {
        self.transport.value(Call::get(&["v1", "jobs", &job.to_string()])).await
    }

    /// Reads and checks what a node holds, or all nodes hold, in the background.
    pub async fn scrub(&self, node_id: Option<NodeId>) -> Result<Job> {
        self.start_job(&StartJob { node_id, ..StartJob::of(JobKind::Scrub) }).await
    }

    /// Removes blocks that nothing names, in the background; or finds out what would be removed.
    pub async fn collect(&self, dry_run: bool) -> Result<Job> {
        self.start_job(&StartJob { dry_run, ..StartJob::of(JobKind::Collect) }).await
    }

    /// Packs small blocks and rewrites what is scattered, in the background.
    pub async fn compact(&self) -> Result<Job> {
        self.start_job(&StartJob::of(JobKind::Compact)).await
    }

    /// Checks whether trees, counts and copies fit together, in the background.
    pub async fn fsck(&self, repair: bool) -> Result<Job> {
        self.start_job(&StartJob { repair, ..StartJob::of(JobKind::Fsck) }).await
    }

    async fn start_job(&self, job: &StartJob) -> Result<Job> {
        self.transport.value(Call::post(&["v1", "jobs"]).body(job)?).await
    }

    /// Ends a job.
    pub async fn cancel_job(&self, job: JobId) -> Result<Job> {
        self.transport.value(Call::post(&["v1", "jobs", &job.to_string(), "cancel"])).await
    }

    /// A page of the audit log, the newest entry first.
    pub async fn audit(&self, limit: u32, cursor: Option<&str>) -> Result<AuditPage> {
        let call = Call::get(&["v1", "audit"]).query("limit", Some(limit)).query("cursor", cursor);
        self.transport.value(call).await
    }

    /// Checks the whole chain of the audit log.
    pub async fn verify_audit(&self) -> Result<AuditCheck> {
        self.transport.value(Call::get(&["v1", "audit", "verify"])).await
    }

    /// The sessions of mounts.
    pub async fn sessions(&self) -> Result<SessionList> {
        self.transport.value(Call::get(&["v1", "sessions"])).await
    }
}
