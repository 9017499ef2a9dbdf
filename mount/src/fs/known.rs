//! Which inodes the kernel knows: it counts how often it was told of each, and says when it forgets. Between the two it may
//! not know an inode all the same, for it takes an answer in some time after it was given.
//!
//! And what it may have cached of each. What it cannot have it is not told to drop, for it throws away the answer to a getattr
//! that was under way meanwhile; the read that has asked goes on with the size from before (`fuse_change_attributes`).

use std::collections::{BTreeMap, HashMap, VecDeque};
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

/// What the kernel knows. It may be millions of inodes, so there is little of each, in a map that grows in small steps.
#[derive(Debug, Default)]
pub struct Known(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    inodes: BTreeMap<Ino, Entry>,
    /// As what inodes are shown that are gone: directories that were removed here, and are perhaps some process's working directory; files
    /// that were created in a session that is over.
    removed: HashMap<Ino, Box<Inode>>,
    /// The getattrs that were answered lately, the oldest first.
    answered: VecDeque<(Instant, Ino)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// How often it was told of it.
    count: u32,
    /// It is held for as long as it is known.
    held: bool,
    /// What the kernel may have of it, noted before it is answered, and struck off before it is told to drop it: attributes, or access control
    /// lists, which it drops with them;
    attributes: bool,
    /// and pages.
    pages: bool,
}

impl Inner {
    /// Forgets the answers that have settled.
    fn settle(&mut self, now: Instant) {
        while self.answered.front().is_some_and(|(answered, _)| *answered + SETTLING <= now) {
            self.answered.pop_front();
        }
    }
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel is being told of an inode and its attributes. Perhaps it is to be held for as long as it is known: answers whether
    /// that begins now.
    pub fn add(&self, ino: Ino, hold: bool) -> bool {
        let mut known = self.lock();
        let entry = known.inodes.entry(ino).or_default();
        entry.count = entry.count.saturating_add(1);
        entry.attributes = true;
        hold && !std::mem::replace(&mut entry.held, hold)
    }

    /// The kernel has forgotten so many of the times. Answers whether the inode was held and is not any longer.
    pub fn forget(&self, ino: Ino, times: u64) -> bool {
        let mut known = self.lock();
        let Some(entry) = known.inodes.get_mut(&ino) else { return false };
        entry.count = entry.count.saturating_sub(u32::try_from(times).unwrap_or(u32::MAX));
        if entry.count > 0 {
            return false;
        }
        let was_held = entry.held;
        known.inodes.remove(&ino);
        known.removed.remove(&ino);
        was_held
    }

    /// What was so is gone, or may be.
    pub fn remove(&self, before: Inode) {
        let mut known = self.lock();
        if known.inodes.contains_key(&before.ino) {
            known.removed.insert(before.ino, Box::new(Inode { nlink: 0, ..before }));
        }
    }

    /// As what an inode is shown that is gone, if that is known.
    pub fn removed(&self, ino: Ino) -> Option<Inode> {
        self.lock().removed.get(&ino).map(|inode| inode.as_ref().clone())
    }

    /// A getattr is being answered. What has become wrong before this must not be kept.
    pub fn give_attributes(&self, ino: Ino) {
        let mut known = self.lock();
        if let Some(entry) = known.inodes.get_mut(&ino) {
            entry.attributes = true;
            let now = Instant::now();
            known.settle(now);
            known.answered.push_back((now, ino));
        }
    }

    /// An access control list is about to be read.
    pub fn give_list(&self, ino: Ino) {
        if let Some(entry) = self.lock().inodes.get_mut(&ino) {
            entry.attributes = true;
        }
    }

    /// Pages are about to be read or written, or their request is about to be answered.
    pub fn give_pages(&self, ino: Ino) {
        if let Some(entry) = self.lock().inodes.get_mut(&ino) {
            entry.pages = true;
        }
    }

    /// Strikes off what the kernel is to drop of an inode. Answers what it has to be told, and when it can be; `None`: it has nothing
    /// of that.
    pub(super) fn take(&self, ino: Ino, what: What) -> Option<(What, Instant)> {
        let mut known = self.lock();
        let cached = known.inodes.get_mut(&ino)?;
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
        known.settle(now);
        let answered = known.answered.iter().rfind(|(_, answered)| *answered == ino);
        Some((what, answered.map_or(now, |(answered, _)| *answered + SETTLING)))
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
        self.lock().inodes.contains_key(&ino)
    }

    /// All of them.
    pub fn all(&self) -> Vec<Ino> {
        self.lock().inodes.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, Known, SETTLING};
    use crate::fs::dropping::What;
    use tandemfs::id::Ino;
    use tokio::time::{Instant, advance};

    #[test]
    fn millions_of_inodes_take_little_memory() {
        assert!(size_of::<Entry>() <= 8);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_answered_lately_has_time_to_settle_and_is_forgotten_then() {
        let known = Known::default();
        for number in 1..1000 {
            known.add(Ino(number), false);
            known.give_attributes(Ino(number));
            advance(SETTLING / 10).await;
        }
        assert!(known.lock().answered.len() <= 12);
        let now = Instant::now();
        let when = |ino| known.take(Ino(ino), What::Attributes).map(|(_, when)| when);
        assert_eq!(when(1), Some(now));
        assert_eq!(when(1), None, "it has nothing any more");
        assert!(when(999).is_some_and(|when| when > now && when <= now + SETTLING));
        assert!(!known.forget(Ino(999), 1) && known.all().len() == 998);
    }
}
