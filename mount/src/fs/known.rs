//! Which inodes the kernel knows: it counts how often it was told of each, and says when it forgets. Between the two it may
//! not know an inode all the same, for it takes an answer in some time after it was given.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tandemfs::id::Ino;
use tandemfs::tree::Inode;

/// How long may be waited in all, in milliseconds, for the kernel to take in what it has been told.
pub const KERNEL_PATIENCE: u32 = 50;

/// What the kernel knows, by inode.
#[derive(Debug, Default)]
pub struct Known(Mutex<HashMap<Ino, Entry>>);

#[derive(Debug, Default)]
struct Entry {
    /// How often it was told of it.
    count: u64,
    /// It is held for as long as it is known.
    held: bool,
    /// A directory that was removed here: some process's working directory, perhaps.
    removed: Option<Box<Inode>>,
}

impl Known {
    /// The kernel is being told of an inode, which is perhaps to be held for as long as it is known. Answers whether that begins now.
    pub fn add(&self, ino: Ino, hold: bool) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = known.entry(ino).or_default();
        entry.count += 1;
        hold && !std::mem::replace(&mut entry.held, hold)
    }

    /// The kernel has forgotten so many of the times. Answers whether the inode was held and is not any longer.
    pub fn forget(&self, ino: Ino, times: u64) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = known.get_mut(&ino) else { return false };
        entry.count = entry.count.saturating_sub(times);
        entry.count == 0 && known.remove(&ino).is_some_and(|entry| entry.held)
    }

    /// A directory was removed, having been so.
    pub fn remove(&self, before: Inode) {
        if let Some(entry) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&before.ino) {
            entry.removed = Some(Box::new(Inode { nlink: 0, ..before }));
        }
    }

    /// A directory that was removed, if it is known still.
    pub fn removed(&self, ino: Ino) -> Option<Inode> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&ino)?.removed.as_deref().cloned()
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&ino)
    }

    /// All of them.
    pub fn all(&self) -> Vec<Ino> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }
}
