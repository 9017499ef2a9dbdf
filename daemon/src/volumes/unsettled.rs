//! Changes that are on stable storage, while some sessions may still show what they have replaced. Who is shown such a change waits
//! for them: else he could tell somebody, who then is shown what was before.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tandemfs::id::SessionId;
use tandemfs::tree::Key;

use super::volume::Volume;
use crate::sessions::audience::{Telling, Told};

/// Those of one volume.
#[derive(Debug, Default)]
pub(super) struct Unsettled(Mutex<BTreeMap<u64, Arc<Change>>>);

#[derive(Debug)]
struct Change {
    keys: HashSet<Key>,
    telling: Telling,
}

/// One of them, until it is dropped.
pub(super) struct Entry<'a> {
    of: &'a Unsettled,
    version: u64,
}

impl Unsettled {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Change>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The change of some keys to a version, of which sessions have been told. To be called before it is shown to anybody.
    pub(super) fn begin(&self, version: u64, keys: &[Key], told: &Told<'_>) -> Entry<'_> {
        if let Some(telling) = told.telling() {
            // How much is used changes all the time, and nobody relies on it.
            let keys = keys.iter().filter(|key| **key != Key::Usage).cloned().collect();
            let change = Change { keys, telling };
            self.lock().insert(version, Arc::new(change));
        }
        Entry { of: self, version }
    }

    /// Those that a state of some version may show by these keys.
    fn shown<'a>(&self, version: u64, keys: impl Iterator<Item = &'a Key>) -> Vec<Arc<Change>> {
        let mut changes: Vec<_> =
            self.lock().range(..=version).map(|(_, change)| Arc::clone(change)).collect();
        if !changes.is_empty() {
            let keys: HashSet<&Key> = keys.collect();
            changes.retain(|change| change.keys.iter().any(|key| keys.contains(key)));
        }
        changes
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.of.lock().remove(&self.version);
    }
}

impl Volume {
    /// Waits until nobody but `author`, who drops it first himself, can be shown what was before a state of some version, as far as
    /// these keys show it. Of what was changed when the daemon stopped is not known who was told, so everybody waits until all sessions of
    /// that run have dropped everything.
    pub(super) async fn settled<'a>(
        &self,
        author: Option<SessionId>,
        version: u64,
        keys: impl Iterator<Item = &'a Key>,
    ) {
        self.shared.audience.dropped_by_others(self.id, author).await;
        for change in self.unsettled.shown(version, keys) {
            self.shared.audience.acknowledged_by_others(&change.telling, author).await;
        }
    }
}
