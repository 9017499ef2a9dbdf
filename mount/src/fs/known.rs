//! Which inodes the kernel knows: it counts how often it was told of each, and says when it forgets.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tandemfs::id::Ino;

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

    /// All of them.
    pub fn all(&self) -> Vec<Ino> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }
}
