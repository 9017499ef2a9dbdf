//! What a check notes of changes while it adds a volume up page by page, so that its sum is exact although changes go on.

use std::collections::{BTreeMap, BTreeSet};
use tandemfs::id::{BlockId, Ino};
use tandemfs::tree::{Key, Record};

/// Blocks that are noted; with more of them nothing is known of any.
const TOUCHED_MAX: usize = 1 << 17;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Inodes up to this one have been added up: what changes of them is added here.
    pub(super) passed: u64,
    sum: Sum,
    /// Blocks that a chunk names or named which was changed.
    touched: BTreeSet<BlockId>,
    is_full: bool,
}

/// Bytes of extents, and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) bytes: i64,
    pub(super) inodes: i64,
}

impl Sum {
    /// Counts an inode, or takes it out.
    pub(super) fn count(&mut self, ino: Ino, record: Option<&Record>, by: i64) {
        if let Some(Record::Inode(inode)) = record {
            self.bytes += by * i64::try_from(inode.allocated).unwrap_or(i64::MAX);
            self.inodes += by * i64::from(ino != Ino::ROOT);
        }
    }
}

/// What is to be noted of a change.
#[derive(Debug, Default)]
pub(super) struct Noted {
    sum: Sum,
    touched: Vec<BlockId>,
}

impl Tally {
    /// What a change means for the sums, from the records before and after it.
    pub(super) fn weigh(
        &self,
        before: &BTreeMap<Key, Option<Record>>,
        after: &BTreeMap<Key, Option<Record>>,
    ) -> Noted {
        let mut noted = Noted::default();
        for (key, after) in after {
            let before = before.get(key).and_then(Option::as_ref);
            match key {
                Key::Inode(ino) if ino.0 <= self.passed => {
                    noted.sum.count(*ino, before, -1);
                    noted.sum.count(*ino, after.as_ref(), 1);
                }
                Key::Chunk(..) => {
                    for record in before.into_iter().chain(after) {
                        let Record::Chunk(chunk) = record else { continue };
                        noted.touched.extend(chunk.0.iter().map(|extent| extent.block));
                    }
                }
                _ => {}
            }
        }
        noted
    }

    /// Notes a change.
    pub(super) fn add(&mut self, noted: Noted) {
        self.sum.bytes += noted.sum.bytes;
        self.sum.inodes += noted.sum.inodes;
        self.touched.extend(noted.touched);
        if self.touched.len() > TOUCHED_MAX {
            self.touched.clear();
            self.is_full = true;
        }
    }

    /// What has changed of the inodes that have been added up.
    pub(super) fn sum(&self) -> Sum {
        self.sum
    }

    /// Whether the extents that name a block may have changed.
    pub(super) fn has_touched(&self, id: &BlockId) -> bool {
        self.is_full || self.touched.contains(id)
    }
}

#[cfg(test)]
mod tests {
    use super::{Sum, Tally};
    use std::collections::BTreeMap;
    use tandemfs::clock::Time;
    use tandemfs::id::{BlockId, Ino};
    use tandemfs::tree::{Chunk, Extent, Inode, Key, Record, new_root};

    fn inode(ino: u64, allocated: u64) -> (Key, Option<Record>) {
        let inode = Inode { ino: Ino(ino), allocated, ..new_root(Time::default(), 0, 0) };
        (Key::Inode(Ino(ino)), Some(Record::Inode(Box::new(inode))))
    }

    fn chunk(block: u8) -> (Key, Option<Record>) {
        let extent = Extent { start: 0, length: 1, block: BlockId([block; 32]), offset: 0 };
        (Key::Chunk(Ino(9), 0), Some(Record::Chunk(Chunk(vec![extent]))))
    }

    #[test]
    fn what_was_passed_is_followed_and_the_rest_comes_by_itself() {
        let mut tally = Tally { passed: 5, ..Tally::default() };
        let before = BTreeMap::from([inode(1, 1), inode(4, 10), inode(9, 100), chunk(1)]);
        let gone = (Key::Inode(Ino(3)), None);
        let after = BTreeMap::from([inode(1, 2), inode(2, 7), gone, inode(4, 30), inode(9, 1), chunk(2)]);
        let noted = tally.weigh(&before, &after);
        assert_eq!(tally.sum(), Sum::default(), "nothing is noted before it has happened");
        tally.add(noted);
        assert_eq!(tally.sum(), Sum { bytes: 1 + 7 + 20, inodes: 1 });
        let touched = [1, 2, 3].map(|block| tally.has_touched(&BlockId([block; 32])));
        assert_eq!(touched, [true, true, false]);
    }
}
