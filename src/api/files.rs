//! Files, storage and status as people see them: the original thirteen endpoints.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::id::NodeId;

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct File {
    /// Opaque; the same for as long as the file lives.
    pub file_id: String,
    /// The last part of its path; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// Its path from the root of the home volume; bytes that are not UTF-8 are replaced.
    pub path: String,
    /// Base64 of the path's bytes, given only when they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_base64: Option<String>,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the content in hexadecimal digits; null while it has not been computed.
    pub sha256: Option<String>,
    /// When it was made: RFC 3339 in UTC with nanoseconds.
    pub created: String,
    /// When its content was last changed.
    pub modified: String,
    /// The least number of copies on healthy nodes that any block of it has; the wanted number for an empty file.
    pub replicas: u32,
}

/// A page of files, in the order of their paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FilePage {
    /// The files.
    pub files: Vec<File>,
    /// Give it as `cursor` to get the next page; null at the end.
    pub next_cursor: Option<String>,
}

/// Which files to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams, ToSchema)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListFiles {
    /// At most so many, 1 to 1000; 100 if not given.
    pub limit: Option<u32>,
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// Only files whose path begins so.
    pub prefix: Option<String>,
}

/// A file with the places of its blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileDetail {
    /// The file.
    #[serde(flatten)]
    pub file: File,
    /// Its blocks in the order of its content; at most 10,000 of them.
    pub blocks: Vec<FileBlock>,
    /// Whether there are more blocks than those.
    pub blocks_truncated: bool,
}

/// A part of a file, and where its block lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileBlock {
    /// Where in the file the part begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// The copies.
    pub replicas: Vec<Replica>,
}

/// One copy of a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Replica {
    /// The node.
    #[schema(value_type = u32)]
    pub node_id: NodeId,
    /// That node's state.
    pub state: NodeState,
}

/// The state of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Stores and gives blocks.
    Healthy,
    /// Is treated as if it were gone.
    Failed,
    /// Is being filled with what it lacks; takes new blocks, is not yet counted on.
    Repairing,
    /// Is being emptied.
    Draining,
    /// Has been emptied and is used no more.
    Retired,
}

/// What the caller uses and may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Storage {
    /// Bytes that files take.
    pub used_bytes: u64,
    /// The most; null for no limit.
    pub quota_bytes: Option<u64>,
    /// What is left: of the quota, or of the nodes' free space where that is less.
    pub available_bytes: u64,
    /// Files, directories and other inodes.
    pub files: u64,
    /// The most; null for no limit.
    pub quota_files: Option<u64>,
}

/// Whether all is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Every block has all its copies on healthy nodes.
    Healthy,
    /// A node is missing, or some block has fewer copies than wanted.
    Degraded,
}

/// `GET /status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// In one word.
    pub status: Health,
    /// The nodes.
    pub nodes: NodeCounts,
    /// How many copies each block is to have.
    pub replicas: u32,
    /// The blocks.
    pub blocks: BlockCounts,
    /// The metadata on the nodes.
    pub journal: JournalCounts,
    /// The last scrub of a node that came to its end; null before any.
    pub last_scrub: Option<LastScrub>,
    /// The daemon's version.
    pub version: String,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// What an admin should know, such as a default password in use; empty for others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// How the journal stands, which has the metadata on the nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JournalCounts {
    /// The number of the last commit.
    pub position: u64,
    /// Its segments, whole snapshots among them.
    pub segments: u64,
    /// Those that have fewer copies than they are to have.
    pub under_replicated: u64,
    /// Bytes of the segments, each counted once.
    pub bytes: u64,
    /// Whole snapshots of the metadata.
    pub snapshots: u64,
}

/// What the last scrub has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastScrub {
    /// When it ended.
    pub ended: String,
    /// Copies that were damaged or missing. They were made anew where there was a good copy left.
    pub bad_copies: u64,
}

/// How many nodes there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeCounts {
    /// All but the retired.
    pub total: u32,
    /// Those that store and give blocks.
    pub healthy: u32,
    /// Those that are gone.
    pub failed: u32,
}

/// How many blocks there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlockCounts {
    /// All.
    pub total: u64,
    /// Those with fewer copies on healthy nodes than wanted.
    pub under_replicated: u64,
    /// Those without any copy on a healthy node.
    pub lost: u64,
}
