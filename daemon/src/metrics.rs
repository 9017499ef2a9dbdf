//! Counts of what went wrong and of what was done about it, in the text form of Prometheus (OpenMetrics 1.0).
//!
//! One process is one daemon, so the counters are the process's own: who counts needs nothing but a line. What can be asked for
//! when somebody looks is not counted here, but written by [`Gauges`].

use std::sync::LazyLock;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tandemfs::id::NodeId;
use tandemfs::{Error, Result};

/// The media type of what [`render`] writes.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The counters of this process.
pub static COUNTERS: LazyLock<Counters> = LazyLock::new(Counters::default);

/// Of which node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfNode {
    node: u32,
}

impl From<NodeId> for OfNode {
    fn from(node: NodeId) -> Self {
        Self { node: node.0 }
    }
}

/// With which outcome: `ok`, or the code of an error.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WithResult {
    /// The outcome.
    pub result: &'static str,
}

/// With which status.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WithStatus {
    /// The HTTP status.
    pub status: u16,
}

macro_rules! metrics {
    ($(#[$doc:meta])* $name:ident { $( $field:ident: $kind:ty = $wire:literal, $help:literal; )* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name { $( #[doc = $help] pub $field: $kind, )* }

        impl $name {
            fn register(&self, registry: &mut Registry) {
                $( registry.register($wire, $help, self.$field.clone()); )*
            }
        }
    };
}

metrics! {
    /// What has happened since the daemon started.
    Counters {
        requests: Family<WithStatus, Counter> = "requests", "Requests that were answered, by status";
        panics: Counter = "panics", "Requests whose handler panicked";
        logins: Family<WithResult, Counter> = "logins", "Logins, by what came of them";
        audit_failures: Counter = "audit_failures", "Entries of the audit log that could not be written";
        read_faults: Family<OfNode, Counter> = "read_faults", "Copies that a read found damaged or missing, by node";
        unreachable_reads: Family<OfNode, Counter> = "unreachable_reads", "Copies that a read could not reach, by node";
        short_circuits: Counter = "short_circuits", "Objects that were handed to clients on this machine as open files";
        write_faults: Family<OfNode, Counter> = "write_faults", "Copies that could not be written, by node";
        bad_copies: Counter = "bad_copies", "Copies that healing, repairs and scrubs found damaged or missing";
        copies_made: Counter = "copies_made", "Copies that were made anew";
        heal_failures: Counter = "heal_failures", "Blocks whose healing or repair has failed";
        node_failures: Family<OfNode, Counter> = "node_failures", "How often a node was taken out of service because of errors";
        sync_failures: Counter = "sync_failures", "Syncs of a node's disk that have failed; the node takes no more changes";
        commits: Counter = "commits", "Commits of metadata to the journal, each with all the changes that waited for it";
        commit_append_us: Counter = "commit_append_microseconds", "Time that commits took to be on stable storage on the nodes";
        commit_apply_us: Counter = "commit_apply_microseconds", "Time that commits took to be written to the engine afterwards";
        commit_failures: Counter = "commit_failures", "Commits of metadata that have failed";
        sessions_fenced: Counter = "sessions_fenced", "Sessions of mounts that were silent for their lease";
        jobs_failed: Counter = "jobs_failed", "Background jobs that have failed";
    }
}

metrics! {
    /// How things stand.
    Gauges {
        blocks: Gauge = "blocks", "Blocks";
        under_replicated: Gauge = "blocks_under_replicated", "Blocks with fewer copies on healthy nodes than wanted";
        lost: Gauge = "blocks_lost", "Blocks without any copy on a healthy node";
        nodes: Gauge = "nodes", "Nodes";
        nodes_healthy: Gauge = "nodes_healthy", "Nodes that store and give blocks";
        nodes_failed: Gauge = "nodes_failed", "Nodes that are gone";
        node_bytes: Family<OfNode, Gauge> = "node_bytes", "Bytes of data that a node holds";
        node_missing: Family<OfNode, Gauge> = "node_missing_replicas", "Copies that a node should have and lacks";
        capacity: Gauge = "capacity_bytes", "Bytes that the nodes can hold";
        free: Gauge = "free_bytes", "Bytes that the nodes have left";
        sessions: Gauge = "sessions", "Sessions of mounts";
        jobs: Gauge = "jobs_running", "Background jobs at work";
        last_scrub: Gauge = "last_scrub_timestamp_seconds", "When the last scrub ended, in seconds since 1970; 0 before any";
        last_scrub_bad: Gauge = "last_scrub_bad_copies", "Copies that the last scrub found damaged or missing";
        uptime: Gauge = "uptime_seconds", "Seconds since the daemon started";
    }
}

/// A count as a gauge takes it.
pub fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Everything as text.
///
/// # Errors
/// `Internal`.
pub fn render(gauges: &Gauges) -> Result<String> {
    let mut registry = Registry::with_prefix("tandemfs");
    COUNTERS.register(&mut registry);
    gauges.register(&mut registry);
    let mut text = String::new();
    text::encode(&mut text, &registry).map_err(|error| Error::internal("writing metrics").because(error))?;
    Ok(text)
}
