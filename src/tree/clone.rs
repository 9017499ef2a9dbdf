//! Cloning: copy_file_range(2) without moving data.

use super::extents::{self, extents_in};
use super::working_set::both;
use super::write::{self, Changing, Sum};
use super::{CHUNK_SIZE, CLONE_MAX, FILE_SIZE_MAX, Outcome, Piece, WorkingSet, WrittenExtent};
use crate::id::Ino;
use crate::{Error, Result};

/// Has a range of a file name the blocks of another range, of the same file or another one. Holes are cloned as holes.
///
/// # Errors
/// `Invalid` for more than [`CLONE_MAX`] bytes or none, for ranges of one file that overlap, and for what is no regular file;
/// `OutOfRange` for what lies beyond the end of the source; `IsADirectory`; `TooLarge`; `NotFound`; `QuotaExceeded`.
pub(super) fn clone_range(
    set: &mut WorkingSet,
    (from, from_offset): (Ino, u64),
    offset: u64,
    length: u64,
    changing: Changing,
) -> Outcome<()> {
    let (from_end, end) = check(from_offset, offset, length)?;
    if from == changing.ino && from_offset < end && offset < from_end {
        return Err(Error::invalid("a file is cloned over itself").into());
    }
    let inode = |ino| set.inode(ino).and_then(write::require_file);
    let ((source, mut inode), _) = both(both(inode(from), inode(changing.ino)), set.usage())?;
    if from_end > source.size {
        return Err(Error::out_of_range(format!("{from_end} of {} bytes", source.size)).into());
    }
    let numbers = from_offset / CHUNK_SIZE..from_end.div_ceil(CHUNK_SIZE);
    let covered = offset / CHUNK_SIZE..end.div_ceil(CHUNK_SIZE);
    let (sources, chunks) = both(
        write::load_chunks(set, &source, numbers.clone()),
        write::load_chunks(set, &inode, covered.clone()),
    )?;
    let mut cloned = Vec::new();
    for (number, chunk) in numbers.zip(&sources) {
        let part = write::part_of(number, from_offset..from_end)?;
        for piece in extents_in(chunk, part.start, part.end) {
            let Piece::Data(extent) = piece else { continue };
            let at = number * CHUNK_SIZE + u64::from(extent.start) - from_offset;
            cloned.push(WrittenExtent {
                offset: offset + at,
                length: u64::from(extent.length),
                block: extent.block,
                block_offset: extent.offset,
            });
        }
    }
    let mut pieces = if cloned.is_empty() { Default::default() } else { write::split(&cloned)?.0 };
    let mut sum = Sum::default();
    for (number, mut chunk) in covered.zip(chunks) {
        let hole = extents::punch(&mut chunk.0, write::part_of(number, offset..end)?);
        if hole.removed.is_empty() && !pieces.contains_key(&number) {
            continue;
        }
        sum.count(set, &hole);
        for piece in pieces.remove(&number).unwrap_or_default() {
            sum.count(set, &extents::overlay(&mut chunk.0, piece));
        }
        set.put_chunk(inode.ino, number, chunk);
    }
    sum.settle(set, &mut inode)?;
    inode.size = inode.size.max(end);
    changing.finish(set, inode);
    Ok(())
}

/// Where the two ranges end, if they can be at all.
fn check(from_offset: u64, offset: u64, length: u64) -> Result<(u64, u64)> {
    if length == 0 || length > CLONE_MAX {
        return Err(Error::invalid(format!("{length} bytes to clone")));
    }
    let end = |offset: u64| offset.checked_add(length).filter(|end| *end <= FILE_SIZE_MAX);
    match (end(from_offset), end(offset)) {
        (Some(from_end), Some(end)) => Ok((from_end, end)),
        _ => Err(Error::too_large(format!("{length} bytes at {from_offset} or {offset}"))),
    }
}
