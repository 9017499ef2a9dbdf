//! Content of regular files: written extents, holes, truncation.

use std::collections::BTreeMap;
use std::ops::Range;

use super::extents::{self, Delta};
use super::working_set::both;
use super::{
    CHUNK_SIZE, Chunk, Extent, FILE_SIZE_MAX, Inode, Key, Kind, Outcome, Stop, Want, WorkingSet,
    WrittenExtent, mode, quota,
};
use crate::clock::Time;
use crate::id::{BlockId, Ino};
use crate::{Error, Result};

/// Whose content changes, and what comes with it.
#[derive(Clone, Copy)]
pub(super) struct Changing {
    pub(super) ino: Ino,
    clear_privileges: bool,
    time: Time,
}

impl Changing {
    pub(super) fn new(ino: Ino, clear_privileges: bool, time: Time) -> Self {
        Self { ino, clear_privileges, time }
    }

    /// Puts an inode whose content has changed.
    pub(super) fn finish(self, set: &mut WorkingSet, mut inode: Inode) {
        content_changed(&mut inode);
        self.finish_unchanged(set, inode);
    }

    /// Puts an inode that was written to although its content is the same.
    fn finish_unchanged(self, set: &mut WorkingSet, mut inode: Inode) {
        if self.clear_privileges {
            inode.mode = mode::without_privileges(&inode, None);
        }
        inode.mtime = self.time;
        inode.ctime = self.time;
        set.put_inode(inode);
    }
}

/// Maps what was written into the file. A file without links can be written to, as one that is held open must be.
///
/// That the volume has the blocks, and that they are as long as the extents say, is for the caller to check: it is
/// known from the blocks' records.
///
/// # Errors
/// `Invalid` for an extent that cannot be, and for what is no regular file; `IsADirectory`; `TooLarge` beyond 2^63-1
/// bytes (write(2): EFBIG); `NotFound`; `QuotaExceeded` if more is allocated than before and than allowed.
pub(super) fn write(
    set: &mut WorkingSet,
    extents: &[WrittenExtent],
    size: u64,
    changing: Changing,
) -> Outcome<()> {
    let (pieces, end) = split(extents)?;
    check_size(size)?;
    let (mut inode, _) = both(set.inode(changing.ino).and_then(require_file), set.usage())?;
    let chunks = load_chunks(set, &inode, pieces.keys().copied())?;
    let mut sum = Sum::default();
    for ((number, pieces), mut chunk) in pieces.into_iter().zip(chunks) {
        for piece in pieces {
            let delta = extents::overlay(&mut chunk.0, piece);
            sum.count(set, &delta);
        }
        set.put_chunk(inode.ino, number, chunk);
    }
    sum.settle(set, &mut inode)?;
    inode.size = inode.size.max(size).max(end);
    changing.finish(set, inode);
    Ok(())
}

/// Makes a hole of a range as far as it lies in the file, and makes the file at least `size` long: what the modes of
/// fallocate(2) come to where space is promised by a quota alone.
///
/// # Errors
/// `TooLarge`; `Invalid` for what is no regular file; `IsADirectory`; `NotFound`.
pub(super) fn punch_hole(
    set: &mut WorkingSet,
    (offset, length): (u64, u64),
    size: u64,
    changing: Changing,
) -> Outcome<()> {
    check_size(size)?;
    let end = offset.checked_add(length).filter(|end| *end <= FILE_SIZE_MAX);
    let end = end.ok_or_else(|| Error::too_large(format!("{length} bytes at {offset}")))?;
    let (mut inode, _) = both(set.inode(changing.ino).and_then(require_file), set.usage())?;
    let end = end.min(inode.size);
    let mut changed = size > inode.size;
    if offset < end && inode.allocated > 0 {
        let numbers = offset / CHUNK_SIZE..end.div_ceil(CHUNK_SIZE);
        let keys = set.range(&Want::Chunks { ino: inode.ino, from: numbers.start, to: numbers.end })?;
        let mut sum = Sum::default();
        for key in keys {
            let Key::Chunk(ino, number) = key else { continue };
            let mut chunk = set.chunk(ino, number)?;
            let delta = extents::punch(&mut chunk.0, part_of(number, offset..end)?);
            if !delta.removed.is_empty() {
                changed = true;
                sum.count(set, &delta);
                set.put_chunk(ino, number, chunk);
            }
        }
        sum.settle(set, &mut inode)?;
    }
    inode.size = inode.size.max(size);
    if changed {
        changing.finish(set, inode)
    } else {
        changing.finish_unchanged(set, inode)
    }
    Ok(())
}

/// Names one block instead of the many of some pieces, where they are still as they were. Nothing else of the file changes.
///
/// # Errors
/// `Stale` when it would leave no fewer seams: the pieces are not there any more.
pub(super) fn join(
    set: &mut WorkingSet,
    (ino, number): (Ino, u64),
    pieces: &[Extent],
    block: BlockId,
) -> Outcome<()> {
    let before = set.chunk(ino, number)?;
    let (after, delta) = extents::joined(&before.0, pieces, block);
    let after = Chunk(after);
    if extents::seams(&after) >= extents::seams(&before) {
        return Err(Error::stale(format!("part {number} of inode {ino}")).into());
    }
    delta.removed.iter().for_each(|extent| set.refer(extent.block, -1));
    delta.added.iter().for_each(|extent| set.refer(extent.block, 1));
    set.put_chunk(ino, number, after);
    Ok(())
}

/// Refuses a size that no file can have.
fn check_size(size: u64) -> Result<()> {
    if size > FILE_SIZE_MAX {
        return Err(Error::too_large(format!("{size} bytes")));
    }
    Ok(())
}

/// The part of a chunk that a range of its file, which must reach into it, covers.
pub(super) fn part_of(number: u64, range: Range<u64>) -> Result<Range<u32>> {
    let base = number.saturating_mul(CHUNK_SIZE);
    let start = narrow(range.start.saturating_sub(base))?;
    Ok(start..narrow(range.end.saturating_sub(base).min(CHUNK_SIZE))?)
}

/// Refuses what is not a regular file.
///
/// # Errors
/// `IsADirectory`, `Invalid` for anything else.
pub(super) fn require_file(inode: Inode) -> Outcome<Inode> {
    match inode.kind {
        Kind::File => Ok(inode),
        Kind::Directory => Err(Error::is_a_directory(format!("inode {}", inode.ino)).into()),
        _ => Err(Error::invalid(format!("inode {} is not a regular file", inode.ino)).into()),
    }
}

/// The content is another one now: what was computed from it is forgotten.
fn content_changed(inode: &mut Inode) {
    inode.content = inode.content.wrapping_add(1);
    inode.sha256 = None;
}

/// Cuts extents at the borders of chunks, in the order in which they lie over each other; and where the last one ends.
pub(super) fn split(written: &[WrittenExtent]) -> Result<(BTreeMap<u64, Vec<Extent>>, u64)> {
    if written.is_empty() {
        return Err(Error::invalid("a write of nothing"));
    }
    let mut pieces: BTreeMap<u64, Vec<Extent>> = BTreeMap::new();
    let mut last = 0;
    for extent in written {
        let end = check(extent)?;
        last = last.max(end);
        let mut at = extent.offset;
        while at < end {
            let (number, start) = (at / CHUNK_SIZE, at % CHUNK_SIZE);
            let length = (CHUNK_SIZE - start).min(end - at);
            pieces.entry(number).or_default().push(Extent {
                start: narrow(start)?,
                length: narrow(length)?,
                block: extent.block,
                offset: narrow(u64::from(extent.block_offset) + (at - extent.offset))?,
            });
            at += length;
        }
    }
    Ok((pieces, last))
}

/// Where a written extent ends, if it can be at all. A block is at most as long as a chunk.
fn check(extent: &WrittenExtent) -> Result<u64> {
    if extent.length == 0 || u64::from(extent.block_offset).saturating_add(extent.length) > CHUNK_SIZE {
        return Err(Error::invalid(format!("{} bytes at {} of a block", extent.length, extent.block_offset)));
    }
    match extent.offset.checked_add(extent.length) {
        Some(end) if end <= FILE_SIZE_MAX => Ok(end),
        _ => Err(Error::too_large(format!("{} bytes at {}", extent.length, extent.offset))),
    }
}

/// A number below the size of a chunk or a block.
fn narrow(number: u64) -> Result<u32> {
    u32::try_from(number).map_err(|_| Error::internal(format!("{number} in a chunk")))
}

/// Whether a file can have a record of a chunk: nothing lies at or beyond its end, and what has nothing allocated has
/// none. Appending and writing new files need not load any for it.
fn may_have_chunk(inode: &Inode, number: u64) -> bool {
    inode.allocated > 0 && number.checked_mul(CHUNK_SIZE).is_some_and(|start| start < inode.size)
}

/// Several chunks of a file; all that are missing are asked for at once.
pub(super) fn load_chunks(
    set: &WorkingSet,
    inode: &Inode,
    numbers: impl Iterator<Item = u64>,
) -> Outcome<Vec<Chunk>> {
    let mut chunks = Vec::new();
    let mut missing = Vec::new();
    for number in numbers {
        if !may_have_chunk(inode, number) {
            chunks.push(Chunk::default());
            continue;
        }
        match set.chunk(inode.ino, number) {
            Ok(chunk) => chunks.push(chunk),
            Err(Stop::Missing(_)) => missing.push(Want::Record(Key::Chunk(inode.ino, number))),
            Err(stop) => return Err(stop),
        }
    }
    if missing.is_empty() { Ok(chunks) } else { Err(Stop::Missing(missing)) }
}

/// Adds up what happens to a file's extents.
#[derive(Default)]
pub(super) struct Sum {
    added: u64,
    removed: u64,
}

impl Sum {
    pub(super) fn count(&mut self, set: &mut WorkingSet, delta: &Delta) {
        for extent in &delta.added {
            set.refer(extent.block, 1);
        }
        for extent in &delta.removed {
            set.refer(extent.block, -1);
        }
        let (added, removed) = delta.bytes();
        self.added += added;
        self.removed += removed;
    }

    pub(super) fn settle(self, set: &mut WorkingSet, inode: &mut Inode) -> Outcome<()> {
        inode.allocated = (inode.allocated + self.added)
            .checked_sub(self.removed)
            .ok_or_else(|| Error::corrupt(format!("inode {} has more extents than counted", inode.ino)))?;
        quota::change_bytes(set, self.added, self.removed)
    }
}

/// Gives a regular file another size: cuts off what lies beyond, or adds a hole (truncate(2)). The times are the
/// caller's.
pub(super) fn truncate(set: &mut WorkingSet, inode: &mut Inode, size: u64) -> Outcome<()> {
    if size == inode.size {
        return Ok(());
    }
    if size < inode.size && inode.allocated > 0 {
        let keys = set.range(&chunks_from(inode, size / CHUNK_SIZE))?;
        cut_chunks(set, inode, &keys, size)?;
    }
    inode.size = size;
    content_changed(inode);
    Ok(())
}

/// Asks for all chunks of a file from one on.
pub(super) fn chunks_from(inode: &Inode, from: u64) -> Want {
    Want::Chunks { ino: inode.ino, from, to: inode.size.div_ceil(CHUNK_SIZE) }
}

/// Cuts chunks off at a size of the file.
pub(super) fn cut_chunks(set: &mut WorkingSet, inode: &mut Inode, keys: &[Key], size: u64) -> Outcome<()> {
    let mut sum = Sum::default();
    for key in keys {
        let Key::Chunk(ino, number) = *key else { continue };
        let mut chunk = set.chunk(ino, number)?;
        let keep = size.saturating_sub(number.saturating_mul(CHUNK_SIZE)).min(CHUNK_SIZE);
        let delta = extents::truncate(&mut chunk.0, narrow(keep)?);
        if !delta.removed.is_empty() {
            sum.count(set, &delta);
            set.put_chunk(ino, number, chunk);
        }
    }
    sum.settle(set, inode)
}
