//! The directories of caches: one for each volume, which one mount at a time uses.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tandemfs::id::{BlockId, VolumeKey};

use super::segment::number_of;
use crate::fs::lease::log::lock;

/// The file that a mount locks that uses a cache; it was written when that began.
const LOCK: &str = "lock";
/// Caches that are looked at in one directory.
const CACHES_MAX: usize = 4096;

/// The directory of a volume's cache.
pub(super) fn of_volume(directory: &Path, key: &VolumeKey) -> PathBuf {
    directory.join("blocks").join(BlockId::of(key, b"the directory of its blocks").to_string())
}

/// Makes the directory of a cache and takes it, for as long as the file lives; `None`: another mount has it.
///
/// # Errors
/// The system's.
pub(super) fn take(directory: &Path) -> io::Result<Option<File>> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let path = directory.join(LOCK);
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
    if !lock(&file, &path)? {
        return Ok(None);
    }
    // For people, and for `sweep`, which goes by the time.
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(Some(file))
}

/// Removes the cache of a volume, unless a mount uses it.
///
/// # Errors
/// The system's.
pub(super) fn discard(directory: &Path, key: &VolumeKey) -> io::Result<()> {
    match Unused::find(&of_volume(directory, key)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(unused) => unused.map_or(Ok(()), |unused| unused.remove()),
    }
}

/// Of the caches that no mount uses beside this one, keeps those that were used last, up to so many bytes together.
///
/// # Errors
/// The system's.
pub(super) fn sweep(own: &Path, bytes: u64) -> io::Result<()> {
    let Some(all) = own.parent() else { return Ok(()) };
    let mut found = Vec::new();
    for entry in fs::read_dir(all)?.take(CACHES_MAX) {
        let entry = entry?;
        // A cache that cannot be looked at is none of ours.
        if entry.file_type()?.is_dir()
            && entry.path() != own
            && let Ok(Some(unused)) = Unused::find(&entry.path())
        {
            found.push(unused);
        }
    }
    found.sort_by_key(|unused| std::cmp::Reverse(unused.used));
    let mut total = 0_u64;
    for unused in found {
        total = total.saturating_add(unused.bytes);
        if total > bytes {
            let directory = unused.directory.clone();
            if let Err(error) = unused.remove() {
                log::info!("removing {}: {error}", directory.display());
            }
        }
    }
    Ok(())
}

/// The segments in a directory, in no order: numbers, and lengths in bytes.
///
/// # Errors
/// The system's.
pub(super) fn segments(directory: &Path) -> io::Result<Vec<(u32, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if let Some(number) = number_of(&entry.file_name())
            && entry.file_type()?.is_file()
        {
            found.push((number, entry.metadata()?.len()));
        }
    }
    Ok(found)
}

/// A cache that no mount uses; none takes it as long as this lives.
struct Unused {
    directory: PathBuf,
    used: SystemTime,
    bytes: u64,
    _lock: File,
}

impl Unused {
    fn find(directory: &Path) -> io::Result<Option<Self>> {
        let path = directory.join(LOCK);
        let file = OpenOptions::new().write(true).open(&path)?;
        if !lock(&file, &path)? {
            return Ok(None);
        }
        let used = file.metadata()?.modified()?;
        let bytes = segments(directory)?.iter().map(|(_, length)| length).sum();
        Ok(Some(Self { directory: directory.to_owned(), used, bytes, _lock: file }))
    }

    /// Removes what is a cache's, and nothing else that may lie there.
    fn remove(self) -> io::Result<()> {
        for (number, _) in segments(&self.directory)? {
            fs::remove_file(super::segment::path(&self.directory, number))?;
        }
        fs::remove_file(self.directory.join(LOCK))?;
        match fs::remove_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            other => other,
        }
    }
}
