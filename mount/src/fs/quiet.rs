//! Descriptors whose closing the kernel does not announce (`FOPEN_NOFLUSH`), which saves who reads many small files every third message.
//!
//! When a descriptor is closed, what was written is sent, and the process's locks on the file go (fcntl(2)): so this is for descriptors that only
//! read, of files that nobody here has locked. If a process locks the file after that, its locks go when the last copy of such a descriptor is
//! gone, which the kernel does tell (docs/decisions/0018-quiet-closing.md).

use std::collections::{HashMap, HashSet};
use std::fs::read_to_string;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tandemfs::id::Ino;

/// So many files are remembered as locked; then all are forgotten.
const LOCKED_MAX: usize = 65_536;

/// Those that are open, and the files that are locked.
#[derive(Debug, Default)]
pub(super) struct Quiet(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    open: HashMap<Ino, Vec<Handle>>,
    locked: HashSet<Ino>,
}

#[derive(Debug)]
struct Handle {
    number: u64,
    /// That opened it.
    thread: u32,
    /// Whose locks go with it, and the request with which each has locked the file last.
    owners: Vec<(u64, u64)>,
}

impl Quiet {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread has opened a handle that only reads. Answers whether its closing need not be told.
    pub(super) fn add(&self, ino: Ino, number: u64, thread: u32) -> bool {
        let mut inner = self.lock();
        let is_quiet = !inner.locked.contains(&ino);
        if is_quiet {
            inner.open.entry(ino).or_default().push(Handle { number, thread, owners: Vec::new() });
        }
        is_quiet
    }

    /// An owner of locks, a process, is about to lock a file by a request of the kernel, which numbers them in their order: what it has open of it
    /// takes the locks along.
    pub(super) fn note_lock(&self, ino: Ino, owner: u64, process: u32, request: u64) {
        let mut inner = self.lock();
        if inner.locked.len() >= LOCKED_MAX {
            inner.locked.clear();
        }
        inner.locked.insert(ino);
        for handle in inner.open.get_mut(&ino).into_iter().flatten() {
            match handle.owners.iter_mut().find(|(other, _)| *other == owner) {
                Some((_, last)) => *last = request.max(*last),
                None if process_of(handle.thread) == Some(process) => handle.owners.push((owner, request)),
                None => {}
            }
        }
    }

    /// A handle is gone, by a request of the kernel. Answers whose locks on the file go with it: not those of who has locked it again since, for whom
    /// nothing may be given up any more.
    pub(super) fn remove(&self, ino: Ino, number: u64, request: u64) -> Vec<u64> {
        let mut inner = self.lock();
        let Some(handles) = inner.open.get_mut(&ino) else { return Vec::new() };
        let at = handles.iter().position(|handle| handle.number == number);
        let owners = at.map(|at| handles.swap_remove(at).owners).unwrap_or_default();
        if handles.is_empty() {
            inner.open.remove(&ino);
        }
        owners.into_iter().filter(|(_, last)| *last < request).map(|(owner, _)| owner).collect()
    }
}

/// The process of a thread, if that lives (proc(5)).
fn process_of(thread: u32) -> Option<u32> {
    let status = read_to_string(format!("/proc/{thread}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::Quiet;
    use tandemfs::id::Ino;

    const FILE: Ino = Ino(7);

    #[test]
    fn the_locks_of_a_process_go_with_what_it_has_opened_before() {
        let quiet = Quiet::default();
        let (process, thread) = (std::process::id(), rustix::thread::gettid().as_raw_nonzero().get() as u32);
        assert!(quiet.add(FILE, 1, thread) && quiet.add(FILE, 2, 1) && quiet.add(Ino(8), 3, thread));
        quiet.note_lock(FILE, 50, process, 10);
        quiet.note_lock(FILE, 50, process, 11);
        quiet.note_lock(FILE, 60, process + 1, 12);
        assert!(!quiet.add(FILE, 4, thread), "it is locked");
        assert_eq!(quiet.remove(FILE, 1, 13), [50]);
        assert!(quiet.remove(FILE, 2, 14).is_empty(), "of another process");
        assert!(quiet.remove(Ino(8), 3, 15).is_empty(), "of another file");
        assert!(quiet.remove(FILE, 4, 16).is_empty() && quiet.lock().open.is_empty());
    }

    #[test]
    fn a_lock_that_was_taken_after_the_last_descriptor_was_closed_stays() {
        let quiet = Quiet::default();
        let (process, thread) = (std::process::id(), rustix::thread::gettid().as_raw_nonzero().get() as u32);
        assert!(quiet.add(FILE, 1, thread));
        quiet.note_lock(FILE, 50, process, 10);
        // The kernel has sent the release before, and another thread has taken it up later.
        quiet.note_lock(FILE, 50, process, 12);
        assert!(quiet.remove(FILE, 1, 11).is_empty());
    }
}
