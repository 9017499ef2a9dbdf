//! Nodes, jobs and the system, for admins.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::files::{BlockCounts, NodeCounts, NodeState};
use crate::id::{JobId, NodeId, SessionId, VolumeId};

/// A storage node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its number.
    #[schema(value_type = u32)]
    pub node_id: NodeId,
    /// `disk`, `memory`; later `remote`, `bucket`.
    pub kind: String,
    /// Where it is: a directory.
    pub location: String,
    /// Two copies of a block are never in one zone while zones allow it.
    pub zone: String,
    /// Its share of the blocks, beside those of others.
    pub weight: u32,
    /// Its state.
    pub state: NodeState,
    /// Blocks that it holds, by the records.
    pub blocks: u64,
    /// Bytes of data in them.
    pub bytes: u64,
    /// Bytes that its file system has in all; null where it cannot say.
    pub capacity_bytes: Option<u64>,
    /// Bytes that are free there.
    pub free_bytes: Option<u64>,
    /// When it last answered.
    pub last_seen: Option<String>,
    /// Copies that the records place on it and that are to be made again.
    pub missing_replicas: u64,
}

/// All nodes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NodeList {
    /// In the order of their numbers.
    pub nodes: Vec<Node>,
}

/// How a node is made to fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailMode {
    /// It does not answer any more.
    #[default]
    Offline,
    /// Its data is gone too.
    Wipe,
    /// Bits of its data are flipped.
    Corrupt,
}

/// `POST /admin/system/fail-node/<node_id>`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailNode {
    /// `offline` if not given.
    #[serde(default)]
    pub mode: FailMode,
}

/// Whether to wait for a job.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, IntoParams, ToSchema)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// true: answer when it is done; false: answer 202 with the job at once. true if not given.
    pub wait: Option<bool>,
}

/// What a repair did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Repaired {
    /// The node.
    #[schema(value_type = u32)]
    pub node_id: NodeId,
    /// Its state now.
    pub state: NodeState,
    /// Copies that were made.
    pub blocks_copied: u64,
    /// Bytes of data in them.
    pub bytes_copied: u64,
    /// How long it took.
    pub seconds: f64,
}

/// What a job is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Bring a node back to what the records say that it holds.
    RepairNode,
    /// Make missing copies wherever they are missing.
    Heal,
    /// Read everything that a node holds and check it.
    Scrub,
    /// Remove blocks that nothing names.
    Collect,
    /// Check whether trees, counts and copies fit together.
    Fsck,
    /// Pack small blocks, rewrite packs of which less than half is in use, and files that lie in very many pieces.
    Compact,
}

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// At work.
    Running,
    /// Ended well.
    Done,
    /// Ended badly.
    Failed,
    /// An admin ended it.
    Cancelled,
}

/// A background job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Its number.
    #[schema(value_type = u64)]
    pub job_id: JobId,
    /// What it is about.
    pub kind: JobKind,
    /// The node that it is about, if one.
    #[schema(value_type = Option<u32>)]
    pub node_id: Option<NodeId>,
    /// How it stands.
    pub state: JobState,
    /// When it began.
    pub started: String,
    /// When it ended.
    pub ended: Option<String>,
    /// Blocks looked at.
    pub blocks_done: u64,
    /// Blocks to look at in all, as far as known.
    pub blocks_total: u64,
    /// Copies that were made.
    pub blocks_copied: u64,
    /// Bytes of data in them.
    pub bytes_copied: u64,
    /// Copies that were found to be missing or damaged.
    pub blocks_bad: u64,
    /// Why it failed.
    pub error: Option<String>,
    /// A check mends counts, links and copies.
    #[serde(default)]
    pub repair: bool,
    /// Faults that a check has mended.
    #[serde(default)]
    pub faults_mended: u64,
    /// Faults that it has found and left.
    #[serde(default)]
    pub faults_left: u64,
    /// The first of them in words, at most 100, those that are left before the others, then what else should be known.
    #[serde(default)]
    pub faults: Vec<String>,
    /// A collection removes nothing and only says what it would remove.
    #[serde(default)]
    pub dry_run: bool,
    /// Blocks that a collection has removed or would remove.
    #[serde(default)]
    pub blocks_removed: u64,
    /// Bytes of data in them. Those of a block in a pack are free when the pack is.
    #[serde(default)]
    pub bytes_removed: u64,
    /// Small blocks that compaction has put into packs.
    #[serde(default)]
    pub blocks_packed: u64,
    /// Packs of which less than half is in use: those that compaction has emptied or, from a collection, would empty.
    #[serde(default)]
    pub packs: u64,
    /// Bytes of data that a collection frees after that, once the grace period is over; or would free.
    #[serde(default)]
    pub bytes_won: u64,
    /// Parts of files, of at most 4 MiB, that lay in very many pieces and that compaction has made one block.
    #[serde(default)]
    pub parts_joined: u64,
}

/// The newest jobs.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobList {
    /// Newest first, at most 1000.
    pub jobs: Vec<Job>,
}

/// `POST /v1/jobs`: starts a job in the background, answered with 202 and the [`Job`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StartJob {
    /// What it is about.
    pub kind: JobKind,
    /// The node that it is about: needed for a repair, all nodes are scrubbed without it, else not to be given.
    #[schema(value_type = Option<u32>)]
    #[serde(default)]
    pub node_id: Option<NodeId>,
    /// For a check: mend counts, links and copies.
    #[serde(default)]
    pub repair: bool,
    /// For a collection: remove nothing, and say what would be removed.
    #[serde(default)]
    pub dry_run: bool,
}

impl StartJob {
    /// A job that is about all nodes, and changes what such a job changes.
    pub fn of(kind: JobKind) -> Self {
        Self { kind, node_id: None, repair: false, dry_run: false }
    }
}

/// A mount's session, as admins see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// Its number.
    #[schema(value_type = u64)]
    pub session_id: SessionId,
    /// Whose it is.
    pub username: String,
    /// The volume that it is on.
    #[schema(value_type = u64)]
    pub volume_id: VolumeId,
    /// What the client said of itself: host and mount point.
    pub client: String,
    /// It takes no changes.
    pub read_only: bool,
    /// When it was opened.
    pub opened: String,
}

/// `GET /v1/sessions`, for admins.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SessionList {
    /// By number.
    pub sessions: Vec<Session>,
}

/// `GET /admin/system`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct System {
    /// The settings in force, without secrets.
    pub configuration: serde_json::Value,
    /// Volumes, sessions, and what all volumes use together.
    pub totals: Totals,
    /// The nodes.
    pub nodes: NodeCounts,
    /// The blocks.
    pub blocks: BlockCounts,
    /// Jobs that are at work.
    pub jobs: Vec<Job>,
    /// Room on the healthy nodes.
    pub capacity: Capacity,
}

/// Counts of things.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Totals {
    /// Users.
    pub users: u64,
    /// Volumes.
    pub volumes: u64,
    /// Sessions of mounts.
    pub sessions: u64,
    /// Inodes of all volumes.
    pub inodes: u64,
    /// Bytes of files of all volumes.
    pub bytes: u64,
}

/// Room on the healthy nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Capacity {
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that are free.
    pub free_bytes: u64,
}
