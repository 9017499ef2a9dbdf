//! Segments: the files that blocks are appended to.
//!
//! A frame is a header, which is the length of the data (4 bytes, little endian), the block's id and the first [`SUM`] bytes of the block id of
//! those two under the volume's key, and then the data, which its own id checks. The first header that is not right, or whose data is not all
//! there, ends a segment.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tandemfs::api::fs::BLOCK_SIZE_MAX;
use tandemfs::id::{BlockId, VolumeKey};

/// Bytes of a header's checksum.
const SUM: usize = 8;
/// Bytes of the length and of the id.
const NAMED: usize = 4 + 32;
/// Bytes before the data.
const HEADER: usize = NAMED + SUM;
/// The longest frame, in bytes.
pub(super) const FRAME_MAX: u64 = (HEADER + BLOCK_SIZE_MAX) as u64;

/// Where the data of a block lies in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) id: BlockId,
    pub(super) offset: u32,
    pub(super) length: u32,
}

/// The file of a segment.
pub(super) fn path(directory: &Path, number: u32) -> PathBuf {
    directory.join(name(number))
}

fn name(number: u32) -> String {
    format!("{number:08x}.segment")
}

/// Which segment has a file of this name.
pub(super) fn number_of(file_name: &OsStr) -> Option<u32> {
    let number = u32::from_str_radix(file_name.to_str()?.strip_suffix(".segment")?, 16).ok()?;
    (*file_name == *name(number)).then_some(number)
}

/// How many bytes the frame of a block of `length` bytes has; `None` if there is no such block.
pub(super) fn frame_length(length: usize) -> Option<u64> {
    (1..=BLOCK_SIZE_MAX).contains(&length).then_some((HEADER + length) as u64)
}

fn header(key: &VolumeKey, id: &BlockId, length: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[4..NAMED].copy_from_slice(&id.0);
    let sum = BlockId::of(key, &header[..NAMED]);
    header[NAMED..].copy_from_slice(&sum.0[..SUM]);
    header
}

/// Writes the frame of a block at an offset, the end of the segment.
///
/// # Errors
/// The system's; the segment may then have a part of the frame.
pub(super) fn write(file: &File, key: &VolumeKey, at: u64, id: BlockId, data: &[u8]) -> io::Result<Frame> {
    let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
    let length = u32::try_from(data.len()).map_err(|_| too_large())?;
    let offset = u32::try_from(at + HEADER as u64).map_err(|_| too_large())?;
    file.write_all_at(&header(key, &id, length), at)?;
    file.write_all_at(data, u64::from(offset))?;
    Ok(Frame { id, offset, length })
}

/// The whole frames of a segment of `length` bytes, `most` at most, and where they end. What cannot be read is not there.
pub(super) fn scan(file: &File, key: &VolumeKey, length: u64, most: usize) -> (Vec<Frame>, u64) {
    let mut frames = Vec::new();
    let mut at = 0;
    while frames.len() < most
        && let Some((frame, end)) = next(file, key, at)
        && end <= length
    {
        frames.push(frame);
        at = end;
    }
    (frames, at)
}

/// The frame at an offset, and where it ends.
fn next(file: &File, key: &VolumeKey, at: u64) -> Option<(Frame, u64)> {
    let mut read = [0; HEADER];
    file.read_exact_at(&mut read, at).ok()?;
    let length = u32::from_le_bytes(*read.first_chunk()?);
    let id = BlockId(*read.get(4..)?.first_chunk()?);
    let end = at + frame_length(usize::try_from(length).ok()?)?;
    let offset = u32::try_from(at + HEADER as u64).ok()?;
    (read == header(key, &id, length)).then_some((Frame { id, offset, length }, end))
}
