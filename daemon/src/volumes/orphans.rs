//! Inodes without links: who holds them open, and when they may be reaped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tandemfs::id::{Ino, SessionId, VolumeId};
use tokio::sync::Notify;

/// The orphans of one volume.
#[derive(Debug)]
pub(crate) struct Orphans {
    volume: VolumeId,
    inner: Mutex<Inner>,
    due: Arc<Due>,
}

#[derive(Debug, Default)]
struct Inner {
    orphans: BTreeMap<Ino, Orphan>,
    /// Files that are being read here, by how many readers, with links or without.
    readers: BTreeMap<Ino, usize>,
}

/// One inode without links.
#[derive(Debug, Default)]
struct Orphan {
    holders: BTreeSet<SessionId>,
    /// Every session has said whether it holds it.
    settled: bool,
}

/// Orphans that are to be reaped, of all volumes.
#[derive(Debug, Default)]
pub(super) struct Due {
    orphans: Mutex<BTreeSet<(VolumeId, Ino)>>,
    added: Notify,
}

impl Due {
    pub(super) fn add(&self, volume: VolumeId, ino: Ino) {
        locked(&self.orphans).insert((volume, ino));
        self.added.notify_one();
    }

    /// The next ones of one volume, at most so many; waits for them.
    pub(super) async fn next(&self, at_most: usize) -> (VolumeId, Vec<Ino>) {
        loop {
            if let Some(next) = self.take(at_most) {
                return next;
            }
            self.added.notified().await;
        }
    }

    fn take(&self, at_most: usize) -> Option<(VolumeId, Vec<Ino>)> {
        let mut orphans = locked(&self.orphans);
        let (volume, first) = orphans.pop_first()?;
        let mut inos = vec![first];
        while let Some(&(of, ino)) = orphans.first()
            && of == volume
            && inos.len() < at_most
        {
            orphans.pop_first();
            inos.push(ino);
        }
        Some((volume, inos))
    }
}

impl Orphans {
    pub(super) fn new(volume: VolumeId, due: Arc<Due>) -> Self {
        Self { volume, inner: Mutex::default(), due }
    }

    /// Takes up an orphan of an earlier run, or one that was not reaped after all: nobody has said yet whether he holds it.
    pub(super) fn recovered(&self, ino: Ino) {
        locked(&self.inner).orphans.entry(ino).or_default();
    }

    /// Takes up an inode that has just lost its last link.
    pub(super) fn begin(&self, ino: Ino, holder: Option<SessionId>) {
        let mut inner = locked(&self.inner);
        let orphan = inner.orphans.entry(ino).or_default();
        orphan.holders.extend(holder);
        orphan.settled = false;
    }

    /// A session says that it holds these.
    pub(crate) fn hold(&self, session: SessionId, inos: &[Ino]) {
        let mut inner = locked(&self.inner);
        for ino in inos {
            if let Some(orphan) = inner.orphans.get_mut(ino) {
                orphan.holders.insert(session);
            }
        }
    }

    /// Every session has had its say about an orphan.
    pub(super) fn settle(&self, ino: Ino) {
        let mut inner = locked(&self.inner);
        if let Some(orphan) = inner.orphans.get_mut(&ino) {
            orphan.settled = true;
        }
        self.check(&mut inner, ino);
    }

    /// As [`Orphans::settle`], for all that there are.
    pub(super) fn settle_all(&self) {
        let mut inner = locked(&self.inner);
        let all: Vec<Ino> = inner.orphans.keys().copied().collect();
        for ino in all {
            if let Some(orphan) = inner.orphans.get_mut(&ino) {
                orphan.settled = true;
            }
            self.check(&mut inner, ino);
        }
    }

    /// A session lets go of an inode; whether it may be reaped at once.
    pub(super) fn let_go(&self, session: SessionId, ino: Ino) -> bool {
        let mut inner = locked(&self.inner);
        let Some(orphan) = inner.orphans.get_mut(&ino) else {
            return false;
        };
        orphan.holders.remove(&session);
        orphan.settled && orphan.holders.is_empty() && !inner.readers.contains_key(&ino)
    }

    /// A session has ended.
    pub(crate) fn let_go_of_all(&self, session: SessionId) {
        let mut inner = locked(&self.inner);
        let held: Vec<Ino> = inner
            .orphans
            .iter_mut()
            .filter_map(|(ino, orphan)| orphan.holders.remove(&session).then_some(*ino))
            .collect();
        for ino in held {
            self.check(&mut inner, ino);
        }
    }

    /// Whether somebody here reads a file.
    pub(super) fn is_read(&self, ino: Ino) -> bool {
        locked(&self.inner).readers.contains_key(&ino)
    }

    /// Whether somebody here reads any file.
    pub(super) fn are_read(&self) -> bool {
        !locked(&self.inner).readers.is_empty()
    }

    /// Keeps a file's data from being reaped until the guard is dropped.
    pub(super) fn read(self: &Arc<Self>, ino: Ino) -> Reader {
        *locked(&self.inner).readers.entry(ino).or_default() += 1;
        Reader { orphans: Arc::clone(self), ino }
    }

    /// Whether an orphan is still to be reaped: nobody has taken hold of it since it was found to be due.
    pub(super) fn is_due(&self, ino: Ino) -> bool {
        let inner = locked(&self.inner);
        let free = inner.orphans.get(&ino).is_none_or(|orphan| orphan.settled && orphan.holders.is_empty());
        free && !inner.readers.contains_key(&ino)
    }

    /// An orphan is gone.
    pub(super) fn reaped(&self, ino: Ino) {
        locked(&self.inner).orphans.remove(&ino);
    }

    fn check(&self, inner: &mut Inner, ino: Ino) {
        let free = inner.orphans.get(&ino).is_some_and(|orphan| orphan.settled && orphan.holders.is_empty());
        if free && !inner.readers.contains_key(&ino) {
            self.due.add(self.volume, ino);
        }
    }
}

/// See [`Orphans::read`].
#[derive(Debug)]
pub(super) struct Reader {
    orphans: Arc<Orphans>,
    ino: Ino,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut inner = locked(&self.orphans.inner);
        if let Some(count) = inner.readers.get_mut(&self.ino) {
            *count -= 1;
            if *count == 0 {
                inner.readers.remove(&self.ino);
                self.orphans.check(&mut inner, self.ino);
            }
        }
    }
}

/// A lock whose holder never leaves it in a bad state, so that a panic elsewhere is no reason to stop.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
