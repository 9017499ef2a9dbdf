//! The parts of a daemon, put together.

use std::fmt;
use std::sync::Arc;

use tandemfs::Result;
use tandemfs::clock::Clock;

use crate::accounts::Accounts;
use crate::meta::MetaStore;
use crate::settings::Settings;

/// What a daemon runs on: everything that touches the world outside.
#[derive(Debug)]
pub struct Parts {
    /// The engine that keeps the metadata.
    pub meta: Arc<dyn MetaStore>,
    /// Tells the time of day.
    pub clock: Arc<dyn Clock>,
}

/// A daemon at work. Handlers reach everything through it.
pub struct Daemon {
    /// The settings in force.
    pub settings: Settings,
    /// Tells the time of day.
    pub clock: Arc<dyn Clock>,
    /// Users, passwords and tokens.
    pub accounts: Arc<Accounts>,
}

/// What every handler is given.
pub type App = Arc<Daemon>;

impl Daemon {
    /// Puts the parts together and starts the background work.
    ///
    /// # Errors
    /// Whatever keeps a part from starting.
    pub async fn start(settings: Settings, parts: Parts) -> Result<App> {
        let accounts = Arc::new(Accounts::new());
        Ok(Arc::new(Self { settings, clock: parts.clock, accounts }))
    }
}

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daemon").finish_non_exhaustive()
    }
}
