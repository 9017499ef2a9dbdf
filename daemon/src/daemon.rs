//! The parts of a daemon, put together.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tandemfs::clock::{Clock, SystemClock};
use tandemfs::id::{NodeId, UserId, VolumeId};
use tandemfs::{Error, ErrorKind, Result};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::accounts::{Accounts, Homes, Rules};
use crate::audit::{self, Audit};
use crate::blocks::disk::DiskStore;
use crate::journal::{self, Journal, JournalNode};
use crate::meta::sqlite::SqliteStore;
use crate::meta::{Meta, MetaStore, Write};
use crate::options::{FirstPassword, Options};
use crate::replicate::{NodeSetup, Replicator};
use crate::seal::{Passphrases, SealedStore};
use crate::segments::disk::DiskSegments;
use crate::sessions::Sessions;
use crate::settings::Settings;
use crate::volumes::Volumes;
use crate::work::Jobs;

/// A snapshot of the metadata is made when the journal has grown by so much since the last one.
const SNAPSHOT_BYTES: u64 = 64 << 20;

/// What a daemon runs on: everything that touches the world outside.
#[derive(Debug)]
pub struct Parts {
    /// The engine that keeps the metadata.
    pub meta: Arc<dyn MetaStore>,
    /// The nodes that keep the data.
    pub nodes: Vec<NodeSetup>,
    /// Tells the time of day.
    pub clock: Arc<dyn Clock>,
    /// The password that the first admin gets at the first start, if one was given.
    pub first_password: Option<FirstPassword>,
    /// Keeps the data directory to this daemon; nothing where there is none.
    pub lock: Option<File>,
}

impl Parts {
    /// SQLite and disk nodes in the data directory, which they take for this daemon alone.
    ///
    /// # Errors
    /// `Busy` when another daemon has the directory; whatever keeps a store from opening.
    pub fn from_options(options: &Options) -> Result<Self> {
        let settings = &options.settings;
        let lock = take(&settings.data)?;
        let mut nodes = Vec::new();
        let mut has_journal = false;
        for number in 1..=settings.nodes {
            let (node, is_empty) = open_node(settings, number)?;
            has_journal |= !is_empty;
            nodes.push(node);
        }
        let meta = Arc::new(open_engine(&settings.data, has_journal)?);
        Ok(Self {
            meta,
            nodes,
            clock: Arc::new(SystemClock),
            first_password: options.first_password.clone(),
            lock: Some(lock),
        })
    }
}

/// The directory of a node, numbered from 1.
pub(crate) fn node_directory(settings: &Settings, number: u32) -> PathBuf {
    settings.data.join("nodes").join(number.to_string())
}

/// A disk node, made if it is not there, and whether it has nothing of the journal.
pub(crate) fn open_node(settings: &Settings, number: u32) -> Result<(NodeSetup, bool)> {
    let directory = node_directory(settings, number);
    let store = DiskStore::open_with_reserve(&directory, settings.node_reserve_bytes)?;
    let segments = DiskSegments::open(&directory, NodeId(number))?;
    let is_empty = segments.is_empty()?;
    let node = NodeSetup {
        id: NodeId(number),
        kind: "disk".to_owned(),
        location: directory.display().to_string(),
        zone: number.to_string(),
        weight: 1,
        store: Arc::new(store),
        segments: Arc::new(segments),
    };
    Ok((node, is_empty))
}

/// Makes the data directory, for its owner only, and locks it.
pub(crate) fn take(directory: &Path) -> Result<File> {
    let explain = |error: std::io::Error| {
        let error = Error::from(error);
        Error::new(error.kind(), format!("{}: {}", directory.display(), error.subject()))
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(explain)?;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)).map_err(explain)?;
    let mut open = OpenOptions::new();
    open.write(true).create(true).truncate(false).mode(0o600);
    let lock = open.open(directory.join("lock")).map_err(explain)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            Err(Error::busy(format!("{}: another daemon runs on this data directory", directory.display())))
        }
        Err(TryLockError::Error(error)) => Err(explain(error)),
    }
}

/// The metadata database. One that is damaged is put aside if the nodes have a journal, from which it is built anew; without one it is all
/// that there is, and the daemon must not begin with nothing.
fn open_engine(data: &Path, has_journal: bool) -> Result<SqliteStore> {
    let path = data.join("meta.db");
    match SqliteStore::open(&path) {
        Err(error) if error.kind() == ErrorKind::Corrupt && has_journal => {
            log::error!("{}: {error}", path.display());
            put_aside(data)?;
            SqliteStore::open(&path)
        }
        result => result,
    }
}

/// Gives the metadata database another name.
pub(crate) fn put_aside(data: &Path) -> Result<()> {
    let path = data.join("meta.db");
    let aside = (1..).map(|number| data.join(format!("meta.db.damaged-{number}")));
    let aside =
        aside.into_iter().find(|aside| !aside.exists()).unwrap_or_else(|| data.join("meta.db.damaged"));
    log::error!("{} is damaged; it is kept as {}", path.display(), aside.display());
    std::fs::rename(&path, &aside)?;
    for suffix in ["-wal", "-shm"] {
        let mut beside = path.clone().into_os_string();
        beside.push(suffix);
        let mut aside = aside.clone().into_os_string();
        aside.push(suffix);
        match std::fs::rename(&beside, &aside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// The nodes as the journal sees them.
pub(crate) fn journal_nodes(nodes: &[NodeSetup]) -> Vec<JournalNode> {
    let node =
        |node: &NodeSetup| JournalNode { id: node.id, zone: node.zone.clone(), store: node.segments.clone() };
    nodes.iter().map(node).collect()
}

/// The journal of an engine, on the nodes.
pub(crate) async fn open_journal(
    engine: Arc<dyn MetaStore>,
    nodes: &[NodeSetup],
    settings: &Settings,
    clock: Arc<dyn Clock>,
) -> Result<Journal> {
    let rules = journal::Rules {
        copies: settings.replicas as usize,
        min_copies: settings.min_replicas as usize,
        snapshot_bytes: SNAPSHOT_BYTES,
        keep_ms: i64::try_from(settings.restore_window_s).unwrap_or(i64::MAX).saturating_mul(1000),
        new_journal: rand::random(),
    };
    Journal::open(engine, journal_nodes(nodes), rules, clock).await
}

/// A daemon at work. Handlers reach everything through it.
pub struct Daemon {
    /// The settings in force.
    pub settings: Settings,
    /// Tells the time of day.
    pub clock: Arc<dyn Clock>,
    /// The metadata.
    pub meta: Meta,
    /// What of it lies on the nodes.
    pub journal: Journal,
    /// The nodes as one place for blocks.
    pub replicator: Arc<Replicator>,
    /// The trees.
    pub volumes: Arc<Volumes>,
    /// The mounts' sessions.
    pub sessions: Arc<Sessions>,
    /// Users, passwords and tokens.
    pub accounts: Arc<Accounts>,
    /// Who did what.
    pub audit: Arc<Audit>,
    /// The background work.
    pub jobs: Arc<Jobs>,
    /// Cancelled when the daemon stops: whatever streams without an end watches it.
    pub stopping: CancellationToken,
    /// When it started.
    pub started: Instant,
    _lock: Option<File>,
}

/// What every handler is given.
pub type App = Arc<Daemon>;

impl Daemon {
    /// Puts the parts together and starts the background work.
    ///
    /// # Errors
    /// Whatever keeps a part from starting.
    pub async fn start(settings: Settings, parts: Parts) -> Result<App> {
        settings.check()?;
        let Parts { meta, nodes, clock, first_password, lock } = parts;
        let journal = open_journal(meta, &nodes, &settings, clock.clone()).await?;
        let sealed = SealedStore::open(Arc::new(journal.clone()), &Passphrases::read(&settings)?).await?;
        let meta = Meta::open(Arc::new(sealed)).await?;
        let replicator = Replicator::open(meta.clone(), nodes, &settings, clock.clone()).await?;
        let volumes = Volumes::open(meta.clone(), replicator.clone(), &settings, clock.clone()).await?;
        let sessions = Sessions::open(meta.clone(), volumes.clone(), &settings, clock.clone()).await?;
        let rules = Rules {
            token_ttl_s: settings.token_ttl_s,
            max_logins: settings.max_logins,
            quota_bytes: settings.quota_bytes,
            quota_files: settings.quota_files,
            keep_key_file: settings.seal_key_file.is_none(),
        };
        let homes = Arc::new(UserHomes { volumes: volumes.clone(), sessions: sessions.clone() });
        let audit = Arc::new(Audit::open(&settings.data.join("audit"), meta.clone(), clock.clone()).await?);
        audit.note(audit::DAEMON, "start", env!("CARGO_PKG_VERSION"), None, "ok").await;
        let key_file = settings.data.join("jwt.key");
        let first_password = first_password.as_ref().map(|FirstPassword(password)| password.as_str());
        let accounts = Accounts::open(
            meta.clone(),
            audit.clone(),
            homes,
            clock.clone(),
            rules,
            &key_file,
            first_password,
        )
        .await?;
        let jobs =
            Jobs::start(meta.clone(), replicator.clone(), volumes.clone(), &settings, clock.clone()).await?;
        jobs.tend(journal.clone());
        jobs.pack(volumes.clone());
        Ok(Arc::new(Self {
            settings,
            clock,
            meta,
            journal,
            replicator,
            volumes,
            sessions,
            accounts: Arc::new(accounts),
            audit,
            jobs,
            stopping: CancellationToken::new(),
            started: Instant::now(),
            _lock: lock,
        }))
    }

    /// Stops the background work and waits for what is being committed.
    pub async fn stop(&self) {
        self.stopping.cancel();
        self.jobs.stop().await;
        self.sessions.stop();
        self.volumes.stop();
        self.audit.note(audit::DAEMON, "stop", "", None, "ok").await;
        self.meta.close().await;
    }

    /// What an admin should know.
    ///
    /// # Errors
    /// Those of the metadata.
    pub async fn warnings(&self) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        if self.accounts.has_default_password().await? {
            warnings
                .push("the user admin still has the password that every installation begins with".to_owned());
        }
        if self.audit.is_failing() {
            warnings.push("the audit log cannot be written".to_owned());
        }
        if self.settings.insecure && self.settings.tls_cert.is_none() {
            warnings.push("passwords and data cross the network in plain HTTP".to_owned());
        }
        Ok(warnings)
    }
}

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daemon").finish_non_exhaustive()
    }
}

/// Users' home volumes.
#[derive(Debug)]
struct UserHomes {
    volumes: Arc<Volumes>,
    sessions: Arc<Sessions>,
}

#[async_trait]
impl Homes for UserHomes {
    async fn new_home(
        &self,
        owner: UserId,
        quota_bytes: Option<u64>,
        quota_files: Option<u64>,
    ) -> Result<(VolumeId, Vec<Write>)> {
        self.volumes.new_home(owner, quota_bytes, quota_files).await
    }

    async fn quota(&self, home: VolumeId) -> Result<(Option<u64>, Option<u64>)> {
        let usage = self.volumes.usage(home).await?;
        Ok((usage.quota_bytes, usage.quota_inodes))
    }

    async fn set_quota(&self, home: VolumeId, bytes: Option<u64>, files: Option<u64>) -> Result<()> {
        self.volumes.set_quota(home, bytes, files).await
    }

    async fn remove(&self, home: VolumeId) -> Result<()> {
        self.volumes.remove(home).await
    }

    async fn end_sessions(&self, user: UserId) {
        self.sessions.end_user(user);
    }

    async fn revoke_grants(&self, user: UserId) -> Result<()> {
        self.volumes.revoke_all(user).await
    }
}
