//! Requests of the kernel that wait for the daemon and have pages of a file locked: those that a read is to fill, or the last one of
//! a write.
//!
//! Dropping pages waits for locked ones. Another mount may wait for the drop, and the request for that mount; so nobody may wait for
//! these pages. A locked page need not be dropped either: nothing is in it before the request is answered. A read that was under way
//! when its pages were to be dropped is done again before it is answered.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tandemfs::id::Ino;

/// What the kernel locks.
const PAGE: u64 = 4096;

/// Requests of the kernel that are under way.
#[derive(Debug, Default)]
pub(super) struct Suspended(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    files: HashMap<Ino, Vec<Entry>>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    pages: Pages,
    /// Its pages were to be dropped since it began.
    overtaken: bool,
}

/// Pages that a request may have locked, as a range of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pages {
    /// Which.
    pub(super) bytes: Range<u64>,
    /// All of them are locked, so that nothing is in them.
    pub(super) locked: bool,
}

impl Pages {
    /// Those that a read is to fill. One past the page cache has locked none.
    pub(super) fn of_read(bytes: Range<u64>, is_direct: bool) -> Self {
        let bytes = bytes.start / PAGE * PAGE..bytes.end.div_ceil(PAGE).saturating_mul(PAGE);
        Self { bytes, locked: !is_direct }
    }

    /// The last one of a write: it is locked unless all of it was known before.
    pub(super) fn of_write(end: u64) -> Self {
        let start = end.saturating_sub(1) / PAGE * PAGE;
        Self { bytes: start..start.saturating_add(PAGE), locked: false }
    }
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Request<'a> {
    suspended: &'a Suspended,
    ino: Ino,
    number: u64,
}

impl Suspended {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins.
    pub(super) fn begin(&self, ino: Ino, pages: Pages) -> Request<'_> {
        let mut inner = self.inner();
        inner.next += 1;
        let number = inner.next;
        inner.files.entry(ino).or_default().push(Entry { number, pages, overtaken: false });
        Request { suspended: self, ino, number }
    }

    /// Whether there are any about a file.
    pub(super) fn has(&self, ino: Ino) -> bool {
        self.inner().files.contains_key(&ino)
    }

    /// Pages of a file are to be dropped. Answers those that nobody may wait for, sorted; they may overlap.
    pub(super) fn overtake(&self, ino: Ino) -> Vec<Pages> {
        let mut inner = self.inner();
        let entries = inner.files.get_mut(&ino).into_iter().flatten();
        let mut pages: Vec<Pages> = entries
            .map(|entry| {
                entry.overtaken = true;
                entry.pages.clone()
            })
            .collect();
        pages.sort_by_key(|pages| pages.bytes.start);
        pages
    }
}

impl Request<'_> {
    /// Whether it may be answered; `false` says that what it has found may be out of date by now. If it may, its pages
    /// count again: who drops them waits for the answer.
    pub(super) fn finish(&self) -> bool {
        let mut inner = self.suspended.inner();
        let Some(entries) = inner.files.get_mut(&self.ino) else { return true };
        let Some(at) = entries.iter().position(|entry| entry.number == self.number) else { return true };
        if std::mem::take(&mut entries[at].overtaken) {
            return false;
        }
        self.remove(&mut inner);
        true
    }

    fn remove(&self, inner: &mut Inner) {
        if let Some(entries) = inner.files.get_mut(&self.ino) {
            entries.retain(|entry| entry.number != self.number);
            if entries.is_empty() {
                inner.files.remove(&self.ino);
            }
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.remove(&mut self.suspended.inner());
    }
}

/// What of ranges (offset and length; a length of 0 means to the end) lies between pages that are left out.
pub(super) fn without(ranges: &[(u64, u64)], left_out: &[Pages]) -> Vec<(u64, u64)> {
    let mut rest = Vec::new();
    for &(start, length) in ranges {
        let end = if length == 0 { u64::MAX } else { start.saturating_add(length) };
        let mut at = start;
        for pages in left_out {
            if pages.bytes.start > at && at < end {
                rest.push((at, pages.bytes.start.min(end) - at));
            }
            at = at.max(pages.bytes.end);
        }
        if at < end {
            rest.push((at, if length == 0 { 0 } else { end - at }));
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: Ino = Ino(5);

    fn pages(bytes: Range<u64>) -> Pages {
        Pages { bytes, locked: true }
    }

    #[test]
    fn a_request_that_is_overtaken_is_to_be_done_again() {
        let suspended = Suspended::default();
        let request = suspended.begin(INO, Pages::of_read(5000..9000, false));
        let other = suspended.begin(INO, Pages::of_read(0..10, false));
        assert_eq!(suspended.overtake(INO), [pages(0..4096), pages(4096..12_288)]);
        assert!(!request.finish());
        assert!(request.finish());
        assert_eq!(suspended.overtake(INO), [pages(0..4096)], "the pages of one that is answered count");
        assert!(!other.finish());
        drop(other);
        assert!(!suspended.has(INO));
    }

    #[test]
    fn a_write_has_its_last_page_locked() {
        assert_eq!(Pages::of_write(4096).bytes, 0..4096);
        assert_eq!(Pages::of_write(4097).bytes, 4096..8192);
    }

    #[test]
    fn what_is_not_left_out_is_dropped() {
        let all = [(0, 0)];
        assert_eq!(without(&all, &[]), all);
        assert_eq!(without(&all, &[pages(0..4096)]), [(4096, 0)]);
        let left_out = [pages(4096..8192), pages(4096..12_288), pages(20_480..24_576)];
        assert_eq!(without(&all, &left_out), [(0, 4096), (12_288, 8192), (24_576, 0)]);
        assert_eq!(without(&[(0, 8192), (16_384, 4096)], &left_out), [(0, 4096), (16_384, 4096)]);
        assert!(without(&[(20_480, 4096)], &left_out).is_empty());
    }
}
