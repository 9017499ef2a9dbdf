//! Which inodes the kernel knows: it counts how often it was told of each, and says when it forgets. Between the two it may
//! not know an inode all the same, for it takes an answer in some time after it was given.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tandemfs::id::Ino;

/// How long may be waited in all, in milliseconds, for the kernel to take in what it has been told.
pub const KERNEL_PATIENCE: u32 = 50;

/// Counts of look-ups by inode.
#[derive(Debug, Default)]
pub struct Known(Mutex<HashMap<Ino, u64>>);

impl Known {
    /// The kernel is being told of an inode.
    pub fn add(&self, ino: Ino) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(ino).or_default() += 1;
    }

    /// The kernel has forgotten so many of the times.
    pub fn forget(&self, ino: Ino, times: u64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = known.get_mut(&ino) {
            *count = count.saturating_sub(times);
            if *count == 0 {
                known.remove(&ino);
            }
        }
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
