//! Which inodes are open on this mount, and which of them have no links any more.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tandemfs::id::Ino;

/// So many open inodes are named with a batch that may take links away, beside the one that it is about.
const HELD_MAX: usize = 64;

/// Counts of open handles by inode.
#[derive(Debug, Default)]
pub struct Opens(Mutex<HashMap<Ino, Open>>);

#[derive(Debug, Default)]
struct Open {
    handles: usize,
    orphan: bool,
}

impl Opens {
    fn lock(&self) -> MutexGuard<'_, HashMap<Ino, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more handle.
    pub fn add(&self, ino: Ino) {
        self.lock().entry(ino).or_default().handles += 1;
    }

    /// One handle less. `Some` says that it was the last one, and whether the inode is an orphan.
    pub fn remove(&self, ino: Ino) -> Option<bool> {
        let mut opens = self.lock();
        let open = opens.get_mut(&ino)?;
        open.handles -= 1;
        if open.handles > 0 {
            return None;
        }
        opens.remove(&ino).map(|open| open.orphan)
    }

    /// Whether it is open.
    pub fn is_open(&self, ino: Ino) -> bool {
        self.lock().contains_key(&ino)
    }

    /// Whether it is open and has no links.
    pub fn is_orphan(&self, ino: Ino) -> bool {
        self.lock().get(&ino).is_some_and(|open| open.orphan)
    }

    /// It has lost its last link. Answers whether it is open.
    pub fn orphaned(&self, ino: Ino) -> bool {
        match self.lock().get_mut(&ino) {
            Some(open) => {
                open.orphan = true;
                true
            }
            None => false,
        }
    }

    /// All orphans that are open.
    pub fn orphans(&self) -> Vec<Ino> {
        self.lock().iter().filter(|(_, open)| open.orphan).map(|(ino, _)| *ino).collect()
    }

    /// What a batch should name as held when it may take the last link of `victim` away. Others are named as well
    /// while they are few, because another mount may have put one of them in the victim's place.
    pub fn held(&self, victim: Option<Ino>) -> Vec<Ino> {
        let opens = self.lock();
        if opens.len() <= HELD_MAX {
            return opens.keys().copied().collect();
        }
        victim.into_iter().filter(|ino| opens.contains_key(ino)).collect()
    }
}
