//! The files of the audit log: a line of JSON for each entry, each file named by the number of its first one.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tandemfs::api::audit::AuditEntry;
use tandemfs::{Error, Result};

/// The longest line that is taken for one. Those that are written are far shorter.
const LINE_BYTES_MAX: usize = 64 << 10;
const SUFFIX: &str = ".jsonl";

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes after which another file is begun.
    pub(super) file_bytes: u64,
    /// Files that are kept, the one in use included.
    pub(super) files: usize,
    /// Entries that the metadata has as well.
    pub(super) rows: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { file_bytes: 4 << 20, files: 32, rows: 65_536 }
    }
}

/// Where the chain begins and ends, as the metadata remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// The number of the oldest entry that is kept.
    pub(super) first: u64,
    /// The number of the last entry; 0 before any.
    pub(super) number: u64,
    /// The hash of its line.
    pub(super) hash: String,
}

/// The hash of a line, as the next one carries it.
pub(super) fn hash(line: &[u8]) -> String {
    hex::encode(Sha256::digest(line))
}

/// What the first line carries.
pub(super) fn no_hash() -> String {
    "0".repeat(64)
}

/// The open log.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    limits: Limits,
    head: Head,
    /// The file in use and its length.
    last: Option<(File, u64)>,
}

impl Files {
    /// Takes up the log that is in a directory. A line that a power cut left unfinished was never answered for, and is removed.
    /// Where the files end before the `head` that the metadata remembers, numbers go on from there, so the gap stays to be seen.
    pub(super) fn open(directory: PathBuf, head: Option<Head>, limits: Limits) -> Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let mut files = Self {
            directory,
            limits,
            head: head.unwrap_or(Head { first: 1, number: 0, hash: no_hash() }),
            last: None,
        };
        let Some((_, path)) = list(&files.directory)?.pop() else { return Ok(files) };
        let (mut bytes, mut end) = (0, None);
        for line in lines(&path)? {
            let line = line?;
            bytes += line.len() as u64 + 1;
            end = Some((serde_json::from_slice::<AuditEntry>(&line).map(|entry| entry.number), hash(&line)));
        }
        let file = OpenOptions::new().append(true).open(&path)?;
        if file.metadata()?.len() > bytes {
            log::warn!("{}: an unfinished line is removed", path.display());
            file.set_len(bytes)?;
            file.sync_all()?;
        }
        if let Some((Ok(number), hash)) = end
            && number > files.head.number
        {
            (files.head.number, files.head.hash) = (number, hash);
        }
        files.last = Some((file, bytes));
        Ok(files)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    pub(super) fn head(&self) -> Head {
        self.head.clone()
    }

    /// Adds an entry under the next number, durably. Returns its line.
    pub(super) fn append(&mut self, mut entry: AuditEntry) -> Result<String> {
        entry.number = self.head.number + 1;
        entry.previous.clone_from(&self.head.hash);
        let line = serde_json::to_string(&entry)
            .map_err(|error| Error::internal("an audit entry").because(error))?;
        self.write(entry.number, &line, true)?;
        Ok(line)
    }

    /// Adds a line that is the entry `number`; with `sync` durably.
    pub(super) fn write(&mut self, number: u64, line: &str, sync: bool) -> Result<()> {
        if self.last.as_ref().is_none_or(|(_, bytes)| *bytes >= self.limits.file_bytes) {
            self.begin(number)?;
        }
        let (file, bytes) = self.last.as_mut().ok_or_else(|| Error::internal("no audit file"))?;
        let written = file.write_all(format!("{line}\n").as_bytes());
        if let Err(error) = written.and_then(|()| if sync { file.sync_data() } else { Ok(()) }) {
            // What is left of the line must not stand before the next one.
            file.set_len(*bytes)?;
            return Err(error.into());
        }
        *bytes += line.len() as u64 + 1;
        self.head.number = number;
        self.head.hash = hash(line.as_bytes());
        Ok(())
    }

    /// Gives the directory another name, under which there may be an empty one, when all is on stable storage.
    pub(super) fn rename(self, to: &Path) -> Result<()> {
        if let Some((file, _)) = &self.last {
            file.sync_data()?;
        }
        std::fs::rename(&self.directory, to)?;
        if let Some(parent) = to.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    }

    /// Begins another file, and removes the oldest if there are too many.
    fn begin(&mut self, number: u64) -> Result<()> {
        let path = self.directory.join(format!("{number:020}{SUFFIX}"));
        if let Some((file, _)) = &self.last {
            file.sync_data()?;
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let bytes = file.metadata()?.len();
        let mut kept = list(&self.directory)?;
        while kept.len() > self.limits.files {
            let (_, oldest) = kept.remove(0);
            std::fs::remove_file(oldest)?;
            self.head.first = kept.first().map_or(number, |(first, _)| *first);
        }
        File::open(&self.directory)?.sync_all()?;
        self.last = Some((file, bytes));
        Ok(())
    }
}

/// The files in the order of their entries, with the number of the first one of each.
pub(super) fn list(directory: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SUFFIX));
        if let Some(number) = name.and_then(|name| name.parse().ok()) {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files)
}

/// The finished lines of a file, without their ends.
pub(super) fn lines(path: &Path) -> Result<impl Iterator<Item = Result<Vec<u8>>> + use<>> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut failed = false;
    Ok(std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let mut line = Vec::new();
        match std::io::Read::take(&mut reader, LINE_BYTES_MAX as u64).read_until(b'\n', &mut line) {
            Ok(_) if line.pop() == Some(b'\n') => Some(Ok(line)),
            Ok(_) => None,
            Err(error) => {
                failed = true;
                Some(Err(error.into()))
            }
        }
    }))
}

/// Removes a directory with all that is in it, if there is one.
pub(super) fn remove(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Up to `limit` lines with numbers above `after`, the oldest first. Those that make no sense are left out.
pub(super) fn read_after(directory: &Path, after: u64, limit: usize) -> Result<Vec<(u64, String)>> {
    let all = list(directory)?;
    let mut found = Vec::new();
    // The last one that begins at or before the first line that is wanted, and those behind it.
    let first = all.iter().rposition(|(first, _)| *first <= after + 1).unwrap_or(0);
    for (_, path) in all.get(first..).unwrap_or_default() {
        for line in lines(path)? {
            let line = line?;
            let Ok(entry) = serde_json::from_slice::<AuditEntry>(&line) else { continue };
            if entry.number > after && found.len() < limit {
                found.extend(String::from_utf8(line).ok().map(|line| (entry.number, line)));
            }
        }
        if found.len() == limit {
            break;
        }
    }
    Ok(found)
}

/// Up to `limit` entries with numbers below `before`, the newest first. Lines that make no sense are left out.
pub(super) fn read_before(directory: &Path, before: u64, limit: usize) -> Result<Vec<AuditEntry>> {
    let mut found = Vec::new();
    for (_, path) in list(directory)?.into_iter().rev().filter(|(first, _)| *first < before) {
        let lines = match lines(&path) {
            Ok(lines) => lines,
            // Removed meanwhile, since there were too many.
            Err(error) if error.kind() == tandemfs::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        let mut entries = Vec::new();
        for line in lines {
            entries.extend(
                serde_json::from_slice::<AuditEntry>(&line?).ok().filter(|entry| entry.number < before),
            );
        }
        found.extend(entries.into_iter().rev().take(limit - found.len()));
        if found.len() == limit {
            break;
        }
    }
    Ok(found)
}
