//! Files that are written past the page cache (`O_DIRECT`, open(2)).
//!
//! An object is written once, synced at once, and seldom read soon after: copying it into fresh pages costs more than writing it to a
//! fast disk (`docs/decisions/0001-direct-writes.md`).

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tandemfs::block::ALIGN;

/// Below this, the page cache is as fast.
const DIRECT_MIN: usize = 1 << 20;

/// Makes a file, readable by its owner only, and writes all of it. It is not synced yet.
///
/// # Errors
/// Those of open(2) and write(2); `AlreadyExists`.
pub(super) fn write_new(path: &Path, data: &[u8]) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    if data.len() < DIRECT_MIN {
        let mut file = options.open(path)?;
        file.write_all(data)?;
        return Ok(file);
    }
    match write_direct(&options, path, data) {
        // This file system has no direct writes.
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
            file.write_all(data)?;
            Ok(file)
        }
        result => result,
    }
}

/// Writes whole sectors, then cuts the file at its length. Only what does not fill a sector is copied, or all if it is not aligned.
fn write_direct(options: &OpenOptions, path: &Path, data: &[u8]) -> io::Result<File> {
    let mut file = options.clone().custom_flags(libc::O_DIRECT).open(path)?;
    let is_aligned = (data.as_ptr() as usize).is_multiple_of(ALIGN);
    let (whole, rest) = data.split_at(if is_aligned { data.len() / ALIGN * ALIGN } else { 0 });
    let rest = Aligned::new(rest);
    let written = file.write_vectored(&[IoSlice::new(whole), IoSlice::new(&rest)])?;
    if written < whole.len() + rest.len() {
        file.write_all(&Aligned::new(data.get(written..).unwrap_or_default()))?;
    }
    file.set_len(data.len() as u64)?;
    Ok(file)
}

/// A copy of some bytes that begins at an aligned address, with zeros up to an aligned length.
struct Aligned {
    buffer: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(data: &[u8]) -> Self {
        let mut buffer: Vec<u8> = Vec::with_capacity(data.len().next_multiple_of(ALIGN) + ALIGN);
        let start = buffer.as_ptr().align_offset(ALIGN).min(ALIGN);
        buffer.resize(start, 0);
        buffer.extend_from_slice(data);
        buffer.resize(start + data.len().next_multiple_of(ALIGN), 0);
        Self { buffer, start }
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::{ALIGN, Aligned, DIRECT_MIN, write_new};
    use std::fs;

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        for length in [0, 1, DIRECT_MIN - 1, DIRECT_MIN, DIRECT_MIN + 1, DIRECT_MIN + ALIGN, (4 << 20) + 1104]
        {
            let path = directory.path().join(length.to_string());
            let data: Vec<u8> =
                (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            write_new(&path, &data).unwrap().sync_data().unwrap();
            assert!(fs::read(&path).unwrap() == data, "{length}");
            assert_eq!(write_new(&path, &data).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
            fs::remove_file(&path).unwrap();
            // At an aligned address only the last sector is copied, at any other all.
            let copy = Aligned::new(&data);
            for (from, aligned) in [(0, true), (1, false)] {
                let part = &copy[from.min(length)..length];
                assert!(!aligned || (part.as_ptr() as usize).is_multiple_of(ALIGN));
                write_new(&path, part).unwrap().sync_data().unwrap();
                assert!(fs::read(&path).unwrap() == part, "{length}");
                fs::remove_file(&path).unwrap();
            }
        }
    }

    #[test]
    fn a_file_system_without_direct_writes_is_written_as_well() {
        // tmpfs had none before Linux 6.6.
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let data = vec![7; DIRECT_MIN + 5];
        write_new(&directory.path().join("x"), &data).unwrap();
        assert!(fs::read(directory.path().join("x")).unwrap() == data);
    }

    #[test]
    fn copies_are_aligned() {
        for length in [1, ALIGN, ALIGN + 1, 123_456] {
            let copy = Aligned::new(&vec![1; length]);
            assert_eq!((copy.as_ptr() as usize % ALIGN, copy.len() % ALIGN), (0, 0));
            assert!(
                copy[..length].iter().all(|byte| *byte == 1) && copy[length..].iter().all(|byte| *byte == 0)
            );
        }
    }
}
