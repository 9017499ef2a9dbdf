//! Requests that are under way, and the token that each came with, so that what streams is cut when its token is ended.
//!
//! A token that merely expires cuts nothing: what was begun in time may go on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tandemfs::id::UserId;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// With what a request was let in.
#[derive(Clone, Debug)]
pub(super) struct Pass {
    /// Whose token it is.
    pub(super) user: UserId,
    /// Names the token.
    pub(super) token: String,
    /// Names the key that has signed it, if it is a JWT.
    pub(super) key: Option<String>,
}

/// All requests that are under way.
#[derive(Debug, Default)]
pub(super) struct Visits(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// How many times tokens were ended.
    endings: u64,
    next: u64,
    visits: BTreeMap<u64, (Pass, CancellationToken)>,
}

/// A request under way, until it is dropped.
#[derive(Debug)]
pub struct Visit {
    visits: Arc<Visits>,
    number: u64,
    cut: CancellationToken,
}

impl Visits {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many times tokens were ended. To be asked before the token is looked at.
    pub(super) fn endings(&self) -> u64 {
        self.inner().endings
    }

    /// Lets a request in, unless tokens were ended since `endings` was asked for: perhaps the one at hand, so look again.
    pub(super) fn enter(self: &Arc<Self>, endings: u64, pass: Pass) -> Option<Visit> {
        let mut inner = self.inner();
        if inner.endings != endings {
            return None;
        }
        let number = inner.next;
        inner.next += 1;
        let cut = CancellationToken::new();
        inner.visits.insert(number, (pass, cut.clone()));
        drop(inner);
        Some(Visit { visits: Arc::clone(self), number, cut })
    }

    /// Cuts what came with the tokens that have just ended.
    pub(super) fn end(&self, ended: impl Fn(&Pass) -> bool) {
        let mut inner = self.inner();
        inner.endings += 1;
        for (_, cut) in inner.visits.values().filter(|(pass, _)| ended(pass)) {
            cut.cancel();
        }
    }
}

impl Visit {
    /// Whether its token has been ended.
    pub fn is_cut(&self) -> bool {
        self.cut.is_cancelled()
    }

    /// Waits until its token is ended.
    pub fn cut(&self) -> WaitForCancellationFutureOwned {
        self.cut.clone().cancelled_owned()
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.visits.inner().visits.remove(&self.number);
    }
}
