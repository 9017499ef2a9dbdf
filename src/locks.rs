//! The rules of locks on ranges of files (fcntl(2), "Advisory record locking"), as plain functions over a table: who holds what, who
//! waits for what. Used by the daemon for a volume, and by the mount for what it holds itself. No I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::locks::{Lock, LockKind};
use crate::id::Ino;

/// Locks in one table.
pub const LOCKS_MAX: usize = 16_384;
/// Owners that wait in one table.
pub const WAITS_MAX: usize = 512;
/// Owners that the search for a deadlock looks at; a longer chain is taken for none.
const DEADLOCK_STEPS_MAX: usize = 256;

/// All locks of some files. `O` tells owners apart: an owner's own locks never stand against each other.
#[derive(Clone, Debug)]
pub struct LockTable<O> {
    /// Those of one owner neither overlap nor touch, unless their kinds differ.
    files: BTreeMap<Ino, Vec<(O, Lock)>>,
    count: usize,
    /// Who waits, by place.
    queue: BTreeMap<u64, Waiter<O>>,
    last_place: u64,
}

#[derive(Clone, Copy, Debug)]
struct Waiter<O> {
    ino: Ino,
    owner: O,
    lock: Lock,
}

/// Why the table takes no more (ENOLCK), or nobody is to wait (EDEADLK).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// [`LOCKS_MAX`] or [`WAITS_MAX`] is reached.
    Full,
    /// The wait would never end.
    Deadlock,
}

impl<O> Default for LockTable<O> {
    fn default() -> Self {
        Self { files: BTreeMap::new(), count: 0, queue: BTreeMap::new(), last_place: 0 }
    }
}

/// Whether two locks of different owners stand against each other.
fn conflict(one: &Lock, other: &Lock) -> bool {
    one.start <= other.end
        && other.start <= one.end
        && (one.kind == LockKind::Write || other.kind == LockKind::Write)
}

impl<O: Copy + Ord> LockTable<O> {
    /// The locks of others that stand against one.
    fn conflicts(&self, ino: Ino, owner: O, lock: Lock) -> impl Iterator<Item = (O, Lock)> {
        let held = self.files.get(&ino).into_iter().flatten().copied();
        held.filter(move |(other, held)| *other != owner && conflict(held, &lock))
    }

    /// What stands against setting a lock: one that is held, or else one that somebody who has waited longer could set now. `place` is
    /// where the owner waits; without one it stands behind all others.
    pub fn blocker(&self, ino: Ino, owner: O, lock: Lock, place: Option<u64>) -> Option<(O, Lock)> {
        let first = |waiter: &Waiter<O>| {
            waiter.ino == ino
                && waiter.owner != owner
                && conflict(&waiter.lock, &lock)
                && self.conflicts(ino, waiter.owner, waiter.lock).next().is_none()
        };
        self.conflicts(ino, owner, lock).next().or_else(|| {
            let before = self.queue.range(..place.unwrap_or(u64::MAX)).map(|(_, waiter)| waiter);
            before.into_iter().find(|waiter| first(waiter)).map(|waiter| (waiter.owner, waiter.lock))
        })
    }

    /// Sets a lock in the place of what its owner has in its range. What stands against it is not looked at.
    ///
    /// # Errors
    /// `Full`; nothing has changed then.
    pub fn set(&mut self, ino: Ino, owner: O, lock: Lock) -> Result<(), Refusal> {
        self.replace(ino, owner, (lock.start, lock.end), Some(lock))
    }

    /// What an owner has in a lock's range keeps out no more than that lock does.
    ///
    /// # Errors
    /// `Full` when that would leave more locks than there may be.
    pub fn weaken(&mut self, ino: Ino, owner: O, to: Lock) -> Result<(), Refusal> {
        let held: Vec<_> = self.files.get(&ino).into_iter().flatten().copied().collect();
        let theirs = held.into_iter().filter(|(other, held)| *other == owner && conflict(held, &to));
        for (_, held) in theirs.filter(|_| to.kind == LockKind::Read) {
            let (start, end) = (held.start.max(to.start), held.end.min(to.end));
            self.set(ino, owner, Lock { start, end, ..to })?;
        }
        Ok(())
    }

    /// Takes away what an owner has in `start..=end`.
    ///
    /// # Errors
    /// `Full` when that would leave more locks than there may be; nothing has changed then.
    pub fn unlock(&mut self, ino: Ino, owner: O, start: u64, end: u64) -> Result<(), Refusal> {
        self.replace(ino, owner, (start, end), None)
    }

    fn replace(
        &mut self,
        ino: Ino,
        owner: O,
        (start, end): (u64, u64),
        mut new: Option<Lock>,
    ) -> Result<(), Refusal> {
        let before = self.files.get(&ino).map_or(&[][..], Vec::as_slice);
        let mut after = Vec::with_capacity(before.len() + 2);
        for &(other, held) in before {
            let meets = held.start <= end.saturating_add(1) && start <= held.end.saturating_add(1);
            if other != owner || !meets {
                after.push((other, held));
                continue;
            }
            if let Some(new) = new.as_mut().filter(|new| new.kind == held.kind) {
                (new.start, new.end) = (new.start.min(held.start), new.end.max(held.end));
                continue;
            }
            if held.start < start {
                after.push((owner, Lock { end: held.end.min(start - 1), ..held }));
            }
            if held.end > end {
                after.push((owner, Lock { start: held.start.max(end + 1), ..held }));
            }
        }
        after.extend(new.map(|lock| (owner, lock)));
        let count = self.count - before.len() + after.len();
        if count > LOCKS_MAX && after.len() > before.len() {
            return Err(Refusal::Full);
        }
        self.count = count;
        if after.is_empty() {
            self.files.remove(&ino);
        } else {
            self.files.insert(ino, after);
        }
        Ok(())
    }

    /// Takes away all that some owners hold or wait for.
    pub fn release(&mut self, is_theirs: impl Fn(O) -> bool) {
        self.files.retain(|_, locks| {
            locks.retain(|(owner, _)| !is_theirs(*owner));
            !locks.is_empty()
        });
        self.count = self.files.values().map(Vec::len).sum();
        self.queue.retain(|_, waiter| !is_theirs(waiter.owner));
    }

    /// All locks.
    pub fn locks(&self) -> impl Iterator<Item = (Ino, O, Lock)> {
        self.files.iter().flat_map(|(ino, locks)| locks.iter().map(|(owner, lock)| (*ino, *owner, *lock)))
    }

    /// Whether anybody holds a lock on a file.
    pub fn is_locked(&self, ino: Ino) -> bool {
        self.files.contains_key(&ino)
    }

    /// Puts an owner into the queue: where it was before, if `place` says so, or else at the end. Answers its place.
    ///
    /// # Errors
    /// `Deadlock` when a holder of what stands in its way waits for it, directly or by way of others; `Full`.
    pub fn wait(&mut self, ino: Ino, owner: O, lock: Lock, place: Option<u64>) -> Result<u64, Refusal> {
        if self.would_deadlock(ino, owner, lock) {
            return Err(Refusal::Deadlock);
        }
        if self.queue.len() >= WAITS_MAX {
            return Err(Refusal::Full);
        }
        let place = place.filter(|place| *place <= self.last_place && !self.queue.contains_key(place));
        let place = place.unwrap_or(self.last_place + 1);
        self.last_place = self.last_place.max(place);
        self.queue.insert(place, Waiter { ino, owner, lock });
        Ok(place)
    }

    /// Whether an owner has a place in the queue.
    pub fn waits(&self, owner: O, place: u64) -> bool {
        self.queue.get(&place).is_some_and(|waiter| waiter.owner == owner)
    }

    /// An owner waits for a lock no more.
    pub fn give_up(&mut self, ino: Ino, owner: O, lock: Lock) {
        self.queue.retain(|_, waiter| (waiter.ino, waiter.owner, waiter.lock) != (ino, owner, lock));
    }

    /// An owner waits no more.
    pub fn leave(&mut self, owner: O, place: u64) {
        if self.waits(owner, place) {
            self.queue.remove(&place);
        }
    }

    fn would_deadlock(&self, ino: Ino, owner: O, lock: Lock) -> bool {
        let mut seen = BTreeSet::new();
        let mut next: Vec<O> = self.conflicts(ino, owner, lock).map(|(holder, _)| holder).collect();
        while let Some(holder) = next.pop() {
            if holder == owner {
                return true;
            }
            if !seen.insert(holder) {
                continue;
            }
            if seen.len() > DEADLOCK_STEPS_MAX {
                return false;
            }
            for waiter in self.queue.values().filter(|waiter| waiter.owner == holder) {
                next.extend(self.conflicts(waiter.ino, holder, waiter.lock).map(|(other, _)| other));
            }
        }
        false
    }
}

#[cfg(test)]
mod tests;
