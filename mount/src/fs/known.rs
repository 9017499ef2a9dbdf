//! Which inodes the kernel knows: it counts how often it was told of each, and says when it forgets. Between the two it may
//! not know an inode all the same, for it takes an answer in some time after it was given.
//!
//! And what it may have cached of each. What it cannot have it is not told to drop, for it throws away the answer to a getattr
//! that was under way meanwhile; the read that has asked goes on with the size from before (`fuse_change_attributes`).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tandemfs::id::Ino;
use tandemfs::tree::Inode;
use tokio::time::Instant;

use super::dropping::What;

/// How long may be waited in all, in milliseconds, for the kernel to take in what it has been told.
pub const KERNEL_PATIENCE: u32 = 50;
/// So long after it was answered the process that has asked for attributes may not have come to use them.
const SETTLING: Duration = Duration::from_millis(2);

/// What the kernel knows, by inode.
#[derive(Debug, Default)]
pub struct Known(Mutex<HashMap<Ino, Entry>>);

#[derive(Debug, Default)]
struct Entry {
    /// How often it was told of it.
    count: u64,
    /// It is held for as long as it is known.
    held: bool,
    /// As what it is shown when it is gone: a directory that was removed here, and is perhaps some process's working directory; a file
    /// that was created in a session that is over.
    removed: Option<Box<Inode>>,
    cached: Cached,
}

/// What the kernel may have of an inode. Noted before it is answered, and struck off before it is told to drop it.
#[derive(Debug, Default)]
struct Cached {
    /// Attributes, or access control lists, which it drops with them.
    attributes: bool,
    /// When a getattr was last answered.
    answered: Option<Instant>,
    pages: bool,
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, HashMap<Ino, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel is being told of an inode and its attributes. Perhaps it is to be held for as long as it is known: answers whether
    /// that begins now.
    pub fn add(&self, ino: Ino, hold: bool) -> bool {
        let mut known = self.lock();
        let entry = known.entry(ino).or_default();
        entry.count += 1;
        entry.cached.attributes = true;
        hold && !std::mem::replace(&mut entry.held, hold)
    }

    /// The kernel has forgotten so many of the times. Answers whether the inode was held and is not any longer.
    pub fn forget(&self, ino: Ino, times: u64) -> bool {
        let mut known = self.lock();
        let Some(entry) = known.get_mut(&ino) else { return false };
        entry.count = entry.count.saturating_sub(times);
        entry.count == 0 && known.remove(&ino).is_some_and(|entry| entry.held)
    }

    /// What was so is gone, or may be.
    pub fn remove(&self, before: Inode) {
        if let Some(entry) = self.lock().get_mut(&before.ino) {
            entry.removed = Some(Box::new(Inode { nlink: 0, ..before }));
        }
    }

    /// As what an inode is shown that is gone, if that is known.
    pub fn removed(&self, ino: Ino) -> Option<Inode> {
        self.lock().get(&ino)?.removed.as_deref().cloned()
    }

    /// A getattr is being answered. What has become wrong before this must not be kept.
    pub fn give_attributes(&self, ino: Ino) {
        if let Some(entry) = self.lock().get_mut(&ino) {
            entry.cached.attributes = true;
            entry.cached.answered = Some(Instant::now());
        }
    }

    /// An access control list is about to be read.
    pub fn give_list(&self, ino: Ino) {
        if let Some(entry) = self.lock().get_mut(&ino) {
            entry.cached.attributes = true;
        }
    }

    /// Pages are about to be read or written, or their request is about to be answered.
    pub fn give_pages(&self, ino: Ino) {
        if let Some(entry) = self.lock().get_mut(&ino) {
            entry.cached.pages = true;
        }
    }

    /// Strikes off what the kernel is to drop of an inode. Answers what it has to be told, and when it can be; `None`: it has nothing
    /// of that.
    pub(super) fn take(&self, ino: Ino, what: What) -> Option<(What, Instant)> {
        let mut known = self.lock();
        let cached = &mut known.get_mut(&ino)?.cached;
        let attributes = std::mem::take(&mut cached.attributes);
        let what = match what {
            What::Pages(_) if cached.pages => {
                cached.pages = !what.is_all();
                what
            }
            _ if attributes => What::Attributes,
            _ => return None,
        };
        let now = Instant::now();
        Some((what, cached.answered.map_or(now, |answered| answered + SETTLING)))
    }

    /// Drops something that the kernel has of an inode, with a call that answers whether the kernel knows it. One that it
    /// has been told of and does not know is on its way to it (or on its way out): that is waited for, as long as
    /// there is `patience`, which counts milliseconds. Blocks.
    pub fn drop_in_kernel(&self, ino: Ino, patience: &mut u32, drop: impl Fn() -> bool) {
        while !drop() && self.contains(ino) && *patience > 0 {
            *patience -= 1;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn contains(&self, ino: Ino) -> bool {
        self.lock().contains_key(&ino)
    }

    /// All of them.
    pub fn all(&self) -> Vec<Ino> {
        self.lock().keys().copied().collect()
    }
}
