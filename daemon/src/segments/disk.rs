//! Segments as files in a directory, beside a node's objects: `journal/<number, 20 digits>`, and `journal/node`, which says whose they are.

use async_trait::async_trait;
use bytes::Bytes;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tandemfs::config::{remove_drafts, write_secret};
use tandemfs::id::NodeId;
use tandemfs::{Error, Result};
use tokio::sync::Semaphore;

use super::{PIECE_MAX, Segment, SegmentStore};
use crate::blocks::disk::{failure, make_directories, sync_directory};
use crate::metrics::COUNTERS;

/// The segments of a node on a local directory. Whoever opens it has locked the node.
#[derive(Clone, Debug)]
pub struct DiskSegments(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    /// The one that was appended to last, with its number and length.
    open: Mutex<Option<(u64, u64, File)>>,
    /// A sync has failed, so nobody knows what is on the disk: it takes no change until it is opened anew.
    failed: AtomicBool,
    /// One change at a time. Those that wait for a disk that hangs take no threads, and do not happen if nobody waits for them any more.
    changes: Arc<Semaphore>,
}

/// The file that says which node's directory it is.
const OWNER: &str = "node";

impl DiskSegments {
    /// Opens the segments of a node, or makes the place for them. Blocks; called once at start.
    ///
    /// # Errors
    /// `Invalid` when it is another node's directory; `Unavailable`, `NoSpace` and `Forbidden` as the system says.
    pub fn open(node: impl AsRef<Path>, id: NodeId) -> Result<Self> {
        let directory = node.as_ref().join("journal");
        make_directories(&directory).map_err(|error| failure(error, &directory))?;
        remove_drafts(&directory.join(OWNER))?;
        match Self::owner(node.as_ref())? {
            Some(owner) if owner == id => {}
            Some(owner) => {
                let what =
                    format!("{} is the directory of node {owner}, not of node {id}", node.as_ref().display());
                return Err(Error::invalid(what));
            }
            None => write_secret(&directory.join(OWNER), format!("{id}\n").as_bytes())?,
        }
        sync_directory(&directory).map_err(|error| failure(error, &directory))?;
        Ok(Self(Arc::new(Inner {
            directory,
            open: Mutex::default(),
            failed: AtomicBool::new(false),
            changes: Arc::new(Semaphore::new(1)),
        })))
    }

    /// Whether there is any segment.
    ///
    /// # Errors
    /// `Unavailable` and `Forbidden` as the system says.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.0.list()?.is_empty())
    }

    /// Which node's directory it is; `None` if it does not say.
    ///
    /// # Errors
    /// `Corrupt`; `Unavailable` and `Forbidden` as the system says.
    pub fn owner(node: &Path) -> Result<Option<NodeId>> {
        let path = node.join("journal").join(OWNER);
        match fs::read_to_string(&path) {
            Ok(text) => match text.trim().parse() {
                Ok(id) => Ok(Some(id)),
                Err(_) => Err(Error::corrupt(path.display().to_string())),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failure(error, &path)),
        }
    }

    /// Runs one call where it may block, to its end, also when the caller does not wait for it any more.
    async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.0.clone();
        let done = tokio::task::spawn_blocking(move || call(&inner)).await;
        done.unwrap_or_else(|error| Err(Error::internal("a call of a disk node did not end").because(error)))
    }

    /// The same for a call that changes something.
    async fn change(&self, call: impl FnOnce(&Inner) -> Result<()> + Send + 'static) -> Result<()> {
        let permit = self.0.changes.clone().acquire_owned().await;
        self.run(move |inner| {
            let _permit = permit;
            call(inner)
        })
        .await
    }
}

impl Inner {
    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:020}"))
    }

    fn check(&self) -> Result<()> {
        if self.failed.load(Ordering::SeqCst) {
            let path = self.directory.display();
            return Err(Error::unavailable(format!(
                "{path}: its disk failed to sync; it takes no changes until a restart"
            )));
        }
        Ok(())
    }

    /// A sync that failed may have thrown away what it did not write, so it is never tried again.
    fn synced(&self, result: io::Result<()>, path: &Path) -> Result<()> {
        result.map_err(|error| {
            // A directory that is gone was not synced at all.
            if !matches!(
                error.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::NotFound
            ) {
                self.failed.store(true, Ordering::SeqCst);
                log::error!("{}: sync failed, the node takes no more changes: {error}", path.display());
                COUNTERS.sync_failures.inc();
            }
            failure(error, path)
        })
    }

    fn append(&self, number: u64, at: u64, bytes: &[u8]) -> Result<()> {
        self.check()?;
        let path = self.path(number);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (length, file) = match open.take() {
            Some((of, length, file)) if of == number && at > 0 && is_at(&file, &path) => (length, file),
            _ => {
                let mut options = OpenOptions::new();
                options.write(true).create_new(at == 0).mode(0o600);
                let file = options.open(&path).map_err(|error| match error.kind() {
                    ErrorKind::AlreadyExists => Error::already_exists(format!("segment {number}")),
                    ErrorKind::NotFound if at > 0 => Error::stale(format!("segment {number} is gone")),
                    _ => failure(error, &path),
                })?;
                let length = file.metadata().map_err(|error| failure(error, &path))?.len();
                (length, file)
            }
        };
        if length != at {
            return Err(Error::stale(format!("segment {number} has {length} bytes, not {at}")));
        }
        file.write_all_at(bytes, at).map_err(|error| failure(error, &path))?;
        self.synced(file.sync_data(), &path)?;
        if at == 0 {
            self.synced(sync_directory(&self.directory), &self.directory)?;
        }
        *open = Some((number, at + bytes.len() as u64, file));
        Ok(())
    }

    fn read(&self, number: u64, range: Range<u64>) -> Result<Bytes> {
        let path = self.path(number);
        let mut file = File::open(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::not_found(format!("segment {number}")),
            _ => failure(error, &path),
        })?;
        let mut read = || {
            let length = range.end.saturating_sub(range.start).min(PIECE_MAX as u64);
            let there = file.metadata()?.len().saturating_sub(range.start);
            let mut bytes = Vec::with_capacity(usize::try_from(length.min(there)).unwrap_or(0));
            file.seek(SeekFrom::Start(range.start))?;
            (&mut file).take(length).read_to_end(&mut bytes)?;
            Ok(Bytes::from(bytes))
        };
        read().map_err(|error| failure(error, &path))
    }

    fn list(&self) -> Result<Vec<Segment>> {
        let entries = fs::read_dir(&self.directory).map_err(|error| failure(error, &self.directory))?;
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| failure(error, &self.directory))?;
            // What is not named like a segment is not ours.
            let name = entry.file_name();
            let Some(number) =
                name.to_str().filter(|name| name.len() == 20).and_then(|name| name.parse().ok())
            else {
                continue;
            };
            match entry.metadata() {
                Ok(metadata) => found.push(Segment { number, size: metadata.len() }),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(failure(error, &entry.path())),
            }
        }
        found.sort_unstable_by_key(|segment| segment.number);
        Ok(found)
    }

    fn delete(&self, number: u64) -> Result<()> {
        self.check()?;
        let path = self.path(number);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.as_ref().is_some_and(|(of, _, _)| *of == number) {
            *open = None;
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failure(error, &path)),
            _ => {}
        }
        // Also if it was gone: whoever removed it may not have synced that yet.
        self.synced(sync_directory(&self.directory), &self.directory)
    }
}

/// Whether an open file is still what lies there: who has removed the file or replaced the node's directory must not be told that it is written.
fn is_at(file: &File, path: &Path) -> bool {
    let Ok((open, there)) = file.metadata().and_then(|open| Ok((open, fs::metadata(path)?))) else {
        return false;
    };
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}

#[async_trait]
impl SegmentStore for DiskSegments {
    async fn append(&self, number: u64, at: u64, bytes: Bytes) -> Result<()> {
        self.change(move |inner| inner.append(number, at, &bytes)).await
    }

    async fn read(&self, number: u64, range: Range<u64>) -> Result<Bytes> {
        self.run(move |inner| inner.read(number, range)).await
    }

    async fn list(&self) -> Result<Vec<Segment>> {
        self.run(Inner::list).await
    }

    async fn delete(&self, number: u64) -> Result<()> {
        self.change(move |inner| inner.delete(number)).await
    }
}

#[cfg(test)]
mod tests {
    use super::{Bytes, DiskSegments, NodeId, SegmentStore, fs};
    use crate::segments::contract;
    use std::os::unix::fs::PermissionsExt;
    use tandemfs::ErrorKind;

    #[tokio::test]
    async fn keeps_the_contract() {
        let directory = tempfile::tempdir().unwrap();
        contract::all(&DiskSegments::open(directory.path().join("a/node"), NodeId(1)).unwrap()).await;
    }

    #[tokio::test]
    async fn goes_on_after_it_was_opened_anew_and_notices_what_was_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let store = DiskSegments::open(directory.path(), NodeId(1)).unwrap();
        store.append(1, 0, Bytes::from_static(b"one")).await.unwrap();
        drop(store);
        let other = DiskSegments::open(directory.path(), NodeId(2));
        assert_eq!(other.unwrap_err().kind(), ErrorKind::Invalid);
        let store = DiskSegments::open(directory.path(), NodeId(1)).unwrap();
        store.append(1, 3, Bytes::from_static(b"two")).await.unwrap();
        let path = directory.path().join("journal").join(format!("{:020}", 1));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(store);
        fs::write(&path, b"onet").unwrap();
        fs::write(directory.path().join("journal/readme"), b"x").unwrap();
        let store = DiskSegments::open(directory.path(), NodeId(1)).unwrap();
        assert_eq!(store.list().await.unwrap().len(), 1);
        let late = store.append(1, 6, Bytes::from_static(b"three")).await;
        assert_eq!(late.unwrap_err().kind(), ErrorKind::Stale);
    }

    #[tokio::test]
    async fn a_directory_that_is_moved_away_and_back_takes_no_append_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let (path, away) = (directory.path().join("node"), directory.path().join("away"));
        let store = DiskSegments::open(&path, NodeId(1)).unwrap();
        store.append(1, 0, Bytes::from_static(b"one")).await.unwrap();
        let append = async |number, at| store.append(number, at, Bytes::from_static(b"two")).await;
        fs::rename(&path, &away).unwrap();
        assert_eq!(append(1, 3).await.unwrap_err().kind(), ErrorKind::Stale);
        assert_eq!(append(2, 0).await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(store.delete(1).await.unwrap_err().kind(), ErrorKind::Unavailable);
        fs::rename(&away, &path).unwrap();
        append(1, 3).await.unwrap();
        // An older one in its place.
        fs::write(directory.path().join("old"), b"on").unwrap();
        fs::rename(directory.path().join("old"), path.join("journal").join(format!("{:020}", 1))).unwrap();
        assert_eq!(append(1, 6).await.unwrap_err().kind(), ErrorKind::Stale);
        append(3, 0).await.unwrap();
    }
}
