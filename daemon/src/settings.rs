//! The daemon's settings: a TOML file, then the environment (`TANDEM_*`), then the command line.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use tandemfs::api::fs::INLINE_MAX;
use tandemfs::{Error, Result};
use utoipa::ToSchema;

/// All settings, with their defaults. Unknown names in the file are refused.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where metadata, keys and the default nodes lie.
    #[schema(value_type = String)]
    pub data: PathBuf,
    /// Where to listen.
    #[schema(value_type = String)]
    pub listen: SocketAddr,
    /// How many disk nodes to start with under the data directory (`nodes/1`, `nodes/2`, …).
    pub nodes: u32,
    /// Copies of each block.
    pub replicas: u32,
    /// A write is acknowledged only with at least so many copies on stable storage.
    pub min_replicas: u32,
    /// The largest file that can be uploaded, in bytes.
    pub max_file_size: u64,
    /// Quota of a new user's home volume, in bytes; none for no limit.
    pub quota_bytes: Option<u64>,
    /// Quota of a new user's home volume, in inodes; none for no limit.
    pub quota_files: Option<u64>,
    /// How long a JWT is valid, in seconds; at most 900.
    pub token_ttl_s: u64,
    /// Without a sign of life for so long a session is fenced, in milliseconds.
    pub lease_ms: u64,
    /// A mount that makes changes has the volume to itself although others are mounted, when those have asked for nothing for so long, in
    /// milliseconds; longer where they come back soon.
    pub quiet_ms: u64,
    /// Nothing collects a block within so many seconds after it was last stored or named.
    pub grace_s: u64,
    /// For so many seconds back `tandemd restore --until` can bring back any moment: nothing collects a block, and no part of the journal is
    /// removed, that is needed for it.
    pub restore_window_s: u64,
    /// Blocks of at most so many bytes come with the commit that names them and lie in the metadata until they are packed; 0 for none.
    pub inline_bytes: u32,
    /// How often garbage is collected, in seconds.
    pub collect_interval_s: u64,
    /// How long a node may be failed before its copies are made anew on others, in seconds.
    pub heal_delay_s: u64,
    /// How often everything that a node holds is read and checked, in seconds; 0 for never.
    pub scrub_interval_s: u64,
    /// How fast that is read, in bytes per second.
    pub scrub_bytes_per_s: u64,
    /// How often nodes are probed, in milliseconds.
    pub probe_interval_ms: u64,
    /// A node that has not answered a call for so long counts as failing, in milliseconds.
    pub node_timeout_ms: u64,
    /// Bytes that disk nodes leave free on their file systems, so that metadata can still be written when they are full.
    pub node_reserve_bytes: u64,
    /// Bytes of decoded metadata records that are kept in memory.
    pub metadata_cache_bytes: u64,
    /// Requests that are worked on at once.
    pub max_requests: usize,
    /// Requests a second by one user; as many may come at once. 0 for no limit.
    pub max_user_requests_per_s: u32,
    /// Connections at once; never more than half of the file descriptors that the process may have.
    pub max_connections: usize,
    /// Connections at once from one IPv4 address or one IPv6 network of 64 bits.
    pub max_connections_per_address: usize,
    /// Seconds within which a request's headers must have come.
    pub header_timeout_s: u64,
    /// Seconds within which a body's next 16 KiB or its end must have come, and the next bytes of an answer be taken.
    pub idle_timeout_s: u64,
    /// Password hashes that are computed at once.
    pub max_logins: usize,
    /// TLS certificate chain, PEM. Needed for any address but loopback, unless `insecure`.
    #[schema(value_type = Option<String>)]
    pub tls_cert: Option<PathBuf>,
    /// TLS private key, PEM, mode 0600.
    #[schema(value_type = Option<String>)]
    pub tls_key: Option<PathBuf>,
    /// How often these files are looked at for a change, in seconds; SIGHUP has them read at once.
    pub tls_check_interval_s: u64,
    /// Plain HTTP on any address.
    pub insecure: bool,
    /// The first admin's password, read from this file at the first start.
    #[schema(value_type = Option<String>)]
    pub admin_password_file: Option<PathBuf>,
    /// A file with the passphrase, mode 0600, under which the secrets in the metadata are sealed; none: they are not.
    #[schema(value_type = Option<String>)]
    pub seal_key_file: Option<PathBuf>,
    /// The file with the passphrase before, to put another one in its place, or to have nothing sealed any more.
    #[schema(value_type = Option<String>)]
    pub seal_old_key_file: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data: PathBuf::from("tandem-data"),
            listen: SocketAddr::from(([127, 0, 0, 1], 5001)),
            nodes: 3,
            replicas: 2,
            min_replicas: 1,
            max_file_size: 1 << 40,
            quota_bytes: None,
            quota_files: None,
            token_ttl_s: 900,
            lease_ms: 15_000,
            quiet_ms: 1_000,
            grace_s: 600,
            restore_window_s: 0,
            inline_bytes: 32 << 10,
            collect_interval_s: 60,
            heal_delay_s: 600,
            scrub_interval_s: 7 * 86_400,
            scrub_bytes_per_s: 64 << 20,
            probe_interval_ms: 2_000,
            node_timeout_ms: 10_000,
            node_reserve_bytes: 64 << 20,
            metadata_cache_bytes: 64 << 20,
            max_requests: 2_048,
            max_user_requests_per_s: 20_000,
            max_connections: 8_192,
            max_connections_per_address: 4_096,
            header_timeout_s: 10,
            idle_timeout_s: 60,
            max_logins: 2,
            tls_cert: None,
            tls_key: None,
            tls_check_interval_s: 60,
            insecure: false,
            admin_password_file: None,
            seal_key_file: None,
            seal_old_key_file: None,
        }
    }
}

impl Settings {
    /// Refuses what makes no sense.
    ///
    /// # Errors
    /// `Invalid`, with the name of the setting.
    pub fn check(&self) -> Result<()> {
        let wrong = [
            (self.replicas < 1, "replicas: at least 1"),
            (self.inline_bytes as usize > INLINE_MAX, "inline_bytes: at most 32768"),
            (self.min_replicas < 1 || self.min_replicas > self.replicas, "min_replicas: from 1 to replicas"),
            (self.nodes < self.replicas, "nodes: at least as many as replicas"),
            (self.nodes > 1000, "nodes: at most 1000"),
            (!(1..=900).contains(&self.token_ttl_s), "token_ttl_s: 1 to 900"),
            (!(1..=64).contains(&self.max_logins), "max_logins: 1 to 64"),
            (self.max_requests < 1, "max_requests: at least 1"),
            (self.max_connections < 1, "max_connections: at least 1"),
            (self.max_connections_per_address < 1, "max_connections_per_address: at least 1"),
            (self.header_timeout_s < 1, "header_timeout_s: at least 1"),
            (self.idle_timeout_s < 1, "idle_timeout_s: at least 1"),
            (self.lease_ms < 1000, "lease_ms: at least 1000"),
            (self.node_timeout_ms < 1, "node_timeout_ms: at least 1"),
            (self.tls_check_interval_s < 1, "tls_check_interval_s: at least 1"),
            (
                self.seal_key_file.as_ref().is_some_and(|file| file.starts_with(&self.data)),
                "seal_key_file: not in the data directory, with which it would be stolen",
            ),
            (self.tls_cert.is_some() != self.tls_key.is_some(), "tls_cert and tls_key: give both"),
        ];
        match wrong.into_iter().find(|(wrong, _)| *wrong) {
            Some((_, what)) => Err(Error::invalid(what)),
            None => Ok(()),
        }
    }
}
