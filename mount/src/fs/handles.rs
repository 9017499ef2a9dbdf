//! Open files and directories by the numbers that the kernel is given for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tandemfs::id::Ino;
use tandemfs::{Error, Result};

use super::file_data::FileData;
use super::read::Pattern;

/// An open file.
pub struct OpenFile {
    /// What is open.
    pub ino: Ino,
    /// open(2)'s flags.
    pub flags: i32,
    /// What was written and is not part of the file yet.
    pub data: Arc<FileData>,
    /// How it is read.
    pub pattern: Pattern,
    /// How many sessions had been lost when it was opened.
    pub(super) losses: u64,
    seen: Mutex<u64>,
}

impl OpenFile {
    /// A handle on a file, opened after so many losses of a session.
    pub fn new(ino: Ino, flags: i32, data: Arc<FileData>, losses: u64) -> Self {
        let seen = Mutex::new(data.failures());
        Self { ino, flags, data, pattern: Pattern::default(), losses, seen }
    }

    fn seen(&self) -> MutexGuard<'_, u64> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports a failure of writing once.
    ///
    /// # Errors
    /// The failure.
    pub fn report(&self) -> Result<()> {
        self.data.failure_after(&mut self.seen())
    }

    /// Shows a failure of writing that has not been reported.
    ///
    /// # Errors
    /// The failure.
    pub fn failure(&self) -> Result<()> {
        self.data.failure_after(&mut self.seen().clone())
    }
}

/// Things that are open, by number.
#[derive(Debug)]
pub struct Handles<T> {
    open: Mutex<HashMap<u64, Arc<T>>>,
    next: AtomicU64,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { open: Mutex::default(), next: AtomicU64::new(1) }
    }
}

impl<T> Handles<T> {
    /// Gives a number to something.
    pub fn add(&self, thing: T) -> u64 {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(handle, Arc::new(thing));
        handle
    }

    /// What a number stands for.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn get(&self, handle: u64) -> Result<Arc<T>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&handle).cloned().ok_or_else(|| Error::invalid("no such handle"))
    }

    /// Takes a number back.
    pub fn remove(&self, handle: u64) -> Option<Arc<T>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle)
    }
}
