//! Room for what waits.

use std::sync::Arc;

use tandemfs::{Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// Room for so many bytes.
pub(super) struct Room {
    free: Arc<Semaphore>,
    all: usize,
}

impl Room {
    pub(super) fn new(all: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(all)), all }
    }

    /// Waits for room for so many bytes, in the order of arrival. What is larger than all of it takes all of it.
    ///
    /// # Errors
    /// `TimedOut`.
    pub(super) async fn take(&self, bytes: usize, give_up: Instant) -> Result<OwnedSemaphorePermit> {
        let away = || Error::timed_out("the daemon is away");
        let bytes = bytes.min(self.all) as u32;
        let room = timeout_at(give_up, Arc::clone(&self.free).acquire_many_owned(bytes));
        room.await.map_err(|_| away())?.map_err(|_| away())
    }
}
