//! Files that are written past the page cache (`O_DIRECT`, open(2)).
//!
//! An object is written once, synced at once, and seldom read soon after: copying it into fresh pages costs more than writing it to a
//! fast disk (`docs/decisions/0001-direct-writes.md`).

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tandemfs::block::{ALIGN, ALIGNED_MIN, OBJECT_MAX};
use tandemfs::pages::Pages;

/// Makes a file, readable by its owner only, and writes all of it. It is not synced yet.
///
/// # Errors
/// Those of open(2) and write(2); `AlreadyExists`.
pub(super) fn write_new(path: &Path, data: &[u8]) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    // Below that, the page cache is as fast.
    if (ALIGNED_MIN..=OBJECT_MAX).contains(&data.len()) && data.len().is_multiple_of(ALIGN) {
        match write_direct(&options, path, data) {
            // This file system has no direct writes.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                options.create_new(false).create(true).truncate(true);
            }
            result => return result,
        }
    }
    let mut file = options.open(path)?;
    file.write_all(data)?;
    Ok(file)
}

fn write_direct(options: &OpenOptions, path: &Path, data: &[u8]) -> io::Result<File> {
    let mut file = options.clone().custom_flags(libc::O_DIRECT).open(path)?;
    if data.as_ptr().addr().is_multiple_of(ALIGN) {
        file.write_all(data)?;
    } else {
        // What was read from another node lies anywhere.
        let mut pages = Pages::take().map_err(io::Error::other)?;
        pages[..data.len()].copy_from_slice(data);
        file.write_all(&pages[..data.len()])?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::{ALIGN, ALIGNED_MIN, OBJECT_MAX, write_new};
    use std::fs;

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let lengths = [0, 1, ALIGNED_MIN - 1, ALIGNED_MIN, ALIGNED_MIN + 1, ALIGNED_MIN + ALIGN, OBJECT_MAX];
        for length in lengths {
            let path = directory.path().join(length.to_string());
            let data: Vec<u8> =
                (0..=length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            // At any address.
            for part in [&data[..length], &data[1..]] {
                write_new(&path, part).unwrap().sync_data().unwrap();
                assert!(fs::read(&path).unwrap() == part, "{length}");
                assert_eq!(write_new(&path, part).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
                fs::remove_file(&path).unwrap();
            }
        }
    }

    #[test]
    fn a_file_system_without_direct_writes_is_written_as_well() {
        // tmpfs had none before Linux 6.6.
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let data = vec![7; ALIGNED_MIN];
        write_new(&directory.path().join("x"), &data).unwrap();
        assert!(fs::read(directory.path().join("x")).unwrap() == data);
    }
}
