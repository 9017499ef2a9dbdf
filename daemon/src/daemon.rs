//! The parts of a daemon, put together.

use std::fmt;
use std::sync::Arc;

use tandemfs::Result;
use tandemfs::clock::Clock;
use tokio_util::sync::CancellationToken;

use crate::accounts::{Accounts, Homes, Rules};
use crate::meta::{Meta, MetaStore};
use crate::settings::Settings;

/// What a daemon runs on: everything that touches the world outside.
#[derive(Debug)]
pub struct Parts {
    /// The engine that keeps the metadata.
    pub meta: Arc<dyn MetaStore>,
    /// Makes and removes users' home volumes.
    pub homes: Arc<dyn Homes>,
    /// Tells the time of day.
    pub clock: Arc<dyn Clock>,
}

/// A daemon at work. Handlers reach everything through it.
pub struct Daemon {
    /// The settings in force.
    pub settings: Settings,
    /// Tells the time of day.
    pub clock: Arc<dyn Clock>,
    /// The metadata.
    pub meta: Meta,
    /// Users, passwords and tokens.
    pub accounts: Arc<Accounts>,
    /// Cancelled when the daemon stops: whatever streams without an end watches it.
    pub stopping: CancellationToken,
}

/// What every handler is given.
pub type App = Arc<Daemon>;

impl Daemon {
    /// Puts the parts together and starts the background work.
    ///
    /// # Errors
    /// Whatever keeps a part from starting.
    pub async fn start(settings: Settings, parts: Parts) -> Result<App> {
        let Parts { meta, homes, clock } = parts;
        let meta = Meta::open(meta).await?;
        let rules = Rules {
            token_ttl_s: settings.token_ttl_s,
            max_logins: settings.max_logins,
            quota_bytes: settings.quota_bytes,
            quota_files: settings.quota_files,
        };
        let key_file = settings.data.join("jwt.key");
        let accounts = Accounts::open(meta.clone(), homes, Arc::clone(&clock), rules, &key_file, None).await?;
        Ok(Arc::new(Self { settings, clock, meta, accounts: Arc::new(accounts), stopping: CancellationToken::new() }))
    }
}

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daemon").finish_non_exhaustive()
    }
}
