//! Which ranges of records a working set knows whole.

use std::collections::{BTreeMap, BTreeSet};

use super::record::{Key, Want};
use crate::id::Ino;

/// Ranges in which what is not loaded does not exist.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    xattrs: BTreeSet<Ino>,
    links: BTreeSet<Ino>,
    /// From (file, first chunk) to one past the last chunk; without overlap, and ranges that touch are one.
    chunks: BTreeMap<(Ino, u64), u64>,
}

impl Ranges {
    /// Adds a range; what is none adds nothing.
    pub(super) fn insert(&mut self, want: &Want) {
        match *want {
            Want::Xattrs(ino) => drop(self.xattrs.insert(ino)),
            Want::Links(ino) => drop(self.links.insert(ino)),
            Want::Chunks { ino, from, to } if from < to => self.insert_chunks(ino, from, to),
            _ => {}
        }
    }

    fn insert_chunks(&mut self, ino: Ino, mut from: u64, mut to: u64) {
        while let Some((&(_, other_from), &other_to)) =
            self.chunks.range((ino, 0)..=(ino, to)).next_back().filter(|(_, other_to)| **other_to >= from)
        {
            self.chunks.remove(&(ino, other_from));
            from = from.min(other_from);
            to = to.max(other_to);
        }
        self.chunks.insert((ino, from), to);
    }

    /// Whether the record under `key` does not exist unless it is loaded.
    pub(super) fn covers(&self, key: &Key) -> bool {
        match key {
            Key::Xattr(ino, _) => self.xattrs.contains(ino),
            Key::Link(ino, _, _) => self.links.contains(ino),
            Key::Chunk(ino, number) => self.chunk_end(*ino, *number).is_some_and(|end| *number < end),
            _ => false,
        }
    }

    /// Whether all of `want` is known.
    pub(super) fn contains(&self, want: &Want) -> bool {
        match want {
            Want::Xattrs(ino) => self.xattrs.contains(ino),
            Want::Links(ino) => self.links.contains(ino),
            Want::Chunks { ino, from, to } => {
                from >= to || self.chunk_end(*ino, *from).is_some_and(|end| *to <= end)
            }
            _ => false,
        }
    }

    /// The end of the last range of a file that begins at or before a chunk.
    fn chunk_end(&self, ino: Ino, number: u64) -> Option<u64> {
        self.chunks.range((ino, 0)..=(ino, number)).next_back().map(|(_, end)| *end)
    }
}

#[cfg(test)]
mod tests {
    use super::Ranges;
    use crate::id::Ino;
    use crate::tree::{Key, Want};

    #[test]
    fn ranges_of_chunks_that_touch_are_one() {
        let mut ranges = Ranges::default();
        let chunks = |from, to| Want::Chunks { ino: Ino(5), from, to };
        ranges.insert(&chunks(10, 20));
        ranges.insert(&chunks(30, 40));
        ranges.insert(&chunks(7, 7));
        assert!(!ranges.contains(&chunks(15, 35)) && !ranges.contains(&chunks(9, 12)));
        assert!(ranges.covers(&Key::Chunk(Ino(5), 19)) && !ranges.covers(&Key::Chunk(Ino(5), 20)));
        ranges.insert(&chunks(20, 30));
        assert_eq!(ranges.chunks.len(), 1);
        assert!(ranges.contains(&chunks(10, 40)) && ranges.contains(&chunks(50, 50)));
        ranges.insert(&chunks(0, u64::MAX));
        assert_eq!(ranges.chunks.len(), 1);
        assert!(ranges.covers(&Key::Chunk(Ino(5), u64::MAX - 1)));
        assert!(!ranges.covers(&Key::Chunk(Ino(4), 15)) && !ranges.covers(&Key::Chunk(Ino(6), 15)));
    }

    #[test]
    fn only_ranges_are_kept() {
        let mut ranges = Ranges::default();
        ranges.insert(&Want::Xattrs(Ino(1)));
        ranges.insert(&Want::Record(Key::Usage));
        assert!(ranges.covers(&Key::Xattr(Ino(1), vec![1])) && !ranges.covers(&Key::Xattr(Ino(2), vec![1])));
        assert!(!ranges.covers(&Key::Usage) && !ranges.contains(&Want::Links(Ino(1))));
    }
}
