//! The one shape of a background worker: a name, a status, one unit of work, and a wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tandemfs::Result;
use tokio_util::sync::CancellationToken;

/// After an error a worker waits so long, and twice as long after each further one.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest such wait.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What a worker wants after a unit of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// To go on at once.
    Again,
    /// To wait so long, or until something happens.
    Wait(Duration),
}

/// A background worker.
#[async_trait]
pub(super) trait Worker: Send {
    /// What it is called in logs and status.
    fn name(&self) -> &'static str;

    /// One unit of work. It may be dropped at any point when the daemon stops.
    async fn step(&mut self) -> Result<Next>;

    /// Returns early when there is something to do before the time has passed.
    async fn wait(&mut self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

/// How a worker stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Units of work that were done.
    pub steps: u64,
    /// Units of work that failed.
    pub failures: u64,
    /// The newest failure, until a unit of work has been done again.
    pub error: Option<String>,
}

/// How the workers stand, by their names.
#[derive(Clone, Debug, Default)]
pub(super) struct Statuses(Arc<Mutex<BTreeMap<&'static str, Status>>>);

impl Statuses {
    /// All of them.
    pub(super) fn all(&self) -> BTreeMap<&'static str, Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, name: &'static str, result: &Result<Next>) {
        let mut statuses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let status = statuses.entry(name).or_default();
        status.steps += u64::from(result.is_ok());
        status.failures += u64::from(result.is_err());
        status.error = result.as_ref().err().map(ToString::to_string);
    }
}

/// Lets a worker work until it is told to stop.
pub(super) async fn run(mut worker: impl Worker, statuses: Statuses, stop: CancellationToken) {
    let mut pause = PAUSE;
    let work = async {
        loop {
            let result = worker.step().await;
            statuses.note(worker.name(), &result);
            match result {
                Ok(Next::Again) => {
                    pause = PAUSE;
                    // Work that is always ready must not keep others from theirs.
                    tokio::task::yield_now().await;
                }
                Ok(Next::Wait(time)) => {
                    pause = PAUSE;
                    worker.wait(time).await;
                }
                Err(error) => {
                    log::warn!("{}: {error:?}", worker.name());
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = work => {}
    }
}
