//! The kernel of a mount's machine: it only notes what it is told.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tandemfs::id::Ino;

use crate::fs::kernel::Kernel;

/// Notes what the kernel was told.
#[derive(Default)]
pub(crate) struct FakeKernel {
    pub(crate) attributes: Mutex<Vec<Ino>>,
    pub(crate) pages: Mutex<Vec<Ino>>,
    pub(crate) names: AtomicU64,
    /// These it has not taken in yet.
    pub(crate) unknown: Mutex<HashSet<Ino>>,
    /// How often it did not know an inode.
    pub(crate) misses: AtomicU64,
    /// Pages of a file, as bytes, that a request under way has locked: dropping them waits.
    pub(crate) locked: Mutex<Option<(Ino, Range<u64>)>>,
}

impl FakeKernel {
    fn note(&self, dropped: &Mutex<Vec<Ino>>, ino: Ino) -> bool {
        if self.unknown.lock().unwrap().contains(&ino) {
            self.misses.fetch_add(1, Ordering::SeqCst);
            return false;
        }
        dropped.lock().unwrap().push(ino);
        true
    }
}

impl Kernel for Arc<FakeKernel> {
    fn drop_attributes(&self, ino: Ino) -> bool {
        self.note(&self.attributes, ino)
    }

    fn drop_pages(&self, ino: Ino, offset: u64, length: u64) -> bool {
        let end = if length == 0 { u64::MAX } else { offset + length };
        // Not for ever, so that a test that fails ends.
        for _ in 0..5000 {
            let is_locked = self
                .locked
                .lock()
                .unwrap()
                .as_ref()
                .is_some_and(|(of, pages)| *of == ino && pages.start < end && offset < pages.end);
            if !is_locked {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        self.note(&self.pages, ino)
    }

    fn drop_names(&self) {
        self.names.fetch_add(1, Ordering::SeqCst);
    }
}
