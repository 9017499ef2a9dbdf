//! statfs: what the volume may still take.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tandemfs::Result;
use tandemfs::api::files::Storage;
use tokio::time::{Instant, timeout};

use super::Fs;

/// The unit in which space is given, in bytes.
pub const UNIT: u64 = 4096;
/// An answer of the daemon counts for so long.
const KEPT: Duration = Duration::from_secs(1);
/// How long the daemon may take; `df` should not hang.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Inodes where no quota limits them.
const INODES: u64 = 1 << 32;

/// The last answer of the daemon.
#[derive(Debug, Default)]
pub struct Space(Mutex<Option<(Instant, Storage)>>);

/// What statfs tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Units in all.
    pub total: u64,
    /// Units that are free.
    pub free: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}

impl Fs {
    /// statfs. The quota is the size; without one, what is used and what the nodes have room for.
    ///
    /// # Errors
    /// Those of the daemon.
    pub async fn room(&self) -> Result<Room> {
        let volume = self.options.volume.as_deref();
        // What was done here counts.
        let _late = timeout(TIMEOUT, self.session.all_committed()).await;
        let last = self.space.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let storage = match last {
            Some((at, storage)) if at.elapsed() < KEPT => storage,
            last => match (timeout(TIMEOUT, self.session.remote.storage(volume)).await, last) {
                (Ok(Ok(storage)), _) => {
                    let kept = Some((Instant::now(), storage.clone()));
                    *self.space.0.lock().unwrap_or_else(PoisonError::into_inner) = kept;
                    storage
                }
                (_, Some((_, storage))) => storage,
                (Ok(Err(error)), None) => return Err(error),
                (Err(_), None) => return Err(tandemfs::Error::timed_out("the daemon is away")),
            },
        };
        let total = storage.quota_bytes.unwrap_or(storage.used_bytes.saturating_add(storage.available_bytes));
        let inodes = storage.quota_files.unwrap_or(INODES);
        Ok(Room {
            total: total / UNIT,
            free: storage.available_bytes.min(total) / UNIT,
            inodes,
            inodes_free: inodes.saturating_sub(storage.files),
        })
    }
}
