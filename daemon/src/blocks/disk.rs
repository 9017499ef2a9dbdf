//! Objects as files in a directory: `blocks/<2 digits>/<62 digits>`, written aside, synced, renamed, directory synced.

use async_trait::async_trait;
use bytes::Bytes;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tandemfs::id::BlockId;
use tandemfs::{Error, Result, block};
use tokio::sync::Semaphore;

use super::{BlockStore, Object, Room, cut, direct};

use crate::metrics::COUNTERS;

/// Puts that are under way at once, those included that nobody waits for any more: a disk that hangs takes no more threads and memory.
const PUTS: usize = 32;

/// A node on a local directory. One process at a time has it open.
#[derive(Clone, Debug)]
pub struct DiskStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    blocks: PathBuf,
    staging: PathBuf,
    /// Locked for as long as this lives; the system lets go of it however the process ends.
    _lock: File,
    next_name: AtomicU64,
    /// The directories that are there and whose names in `blocks` are on stable storage.
    fans: Mutex<[bool; 256]>,
    /// A sync has failed, so nobody knows what is on the disk: it takes no change until it is opened anew.
    failed: AtomicBool,
    /// Bytes that objects leave free on the file system.
    reserve: u64,
    puts: Arc<Semaphore>,
}

impl DiskStore {
    /// Opens the node in `directory`, or makes it there. Blocks; called once at start.
    ///
    /// # Errors
    /// `Busy` when another process has it open; `Unavailable`, `NoSpace` and `Forbidden` as the system says.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self> {
        Self::open_with_reserve(directory, 0)
    }

    /// The same, but objects leave so many bytes of the file system free: for the metadata, if that lies there too, so that files can be
    /// deleted on a full disk.
    ///
    /// # Errors
    /// Those of [`DiskStore::open`].
    pub fn open_with_reserve(directory: impl AsRef<Path>, reserve: u64) -> Result<Self> {
        let directory = directory.as_ref();
        let inner = Inner::open(directory, reserve).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => Error::busy(format!("{}: another daemon uses it", directory.display())),
            _ => failure(error, directory),
        })?;
        Ok(Self(Arc::new(inner)))
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
}

/// What an error of the system means.
pub(crate) fn failure(error: io::Error, path: &Path) -> Error {
    let subject = format!("{}: {error}", path.display());
    match Error::from(error) {
        // To a caller of the store these say that the object is not there or that it may not see it.
        other if matches!(other.errno(), libc::ENOENT | libc::EACCES) => {
            Error::unavailable(subject).because(other)
        }
        other => Error::new(other.kind(), subject).because(other),
    }
}

impl Inner {
    fn open(directory: &Path, reserve: u64) -> io::Result<Self> {
        make_directories(directory)?;
        let lock_path = directory.join(".lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(lock_path)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::from(ErrorKind::WouldBlock),
            TryLockError::Error(error) => error,
        })?;
        let (blocks, staging) = (directory.join("blocks"), directory.join("staging"));
        for path in [&blocks, &staging] {
            make_directory(path)?;
        }
        // What lies in the staging directory was never acknowledged.
        for entry in fs::read_dir(&staging)? {
            fs::remove_file(entry?.path())?;
        }
        sync_directory(directory)?;
        make_fans(&blocks)?;
        sync_directory(&blocks)?;
        Ok(Self {
            blocks,
            staging,
            _lock: lock,
            next_name: AtomicU64::new(0),
            fans: Mutex::new([true; 256]),
            failed: AtomicBool::new(false),
            reserve,
            puts: Arc::new(Semaphore::new(PUTS)),
        })
    }

    fn path(&self, id: &BlockId) -> PathBuf {
        let name = id.to_string();
        let (fan, rest) = name.split_at(2);
        self.blocks.join(fan).join(rest)
    }

    fn fan(&self, first: u8) -> PathBuf {
        self.blocks.join(format!("{first:02x}"))
    }

    fn check(&self) -> Result<()> {
        if self.failed.load(Ordering::SeqCst) {
            let path = self.blocks.display();
            return Err(Error::unavailable(format!(
                "{path}: its disk failed to sync; it takes no changes until a restart"
            )));
        }
        Ok(())
    }

    /// A sync that failed may have thrown away what it did not write, so it is never tried again.
    fn synced(&self, result: io::Result<()>, path: &Path) -> Result<()> {
        result.map_err(|error| {
            self.failed.store(true, Ordering::SeqCst);
            log::error!("{}: sync failed, the node takes no more changes: {error}", path.display());
            COUNTERS.sync_failures.inc();
            failure(error, path)
        })
    }

    fn fans(&self) -> MutexGuard<'_, [bool; 256]> {
        self.fans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees that the directory for ids that begin with `first` is there and stays there.
    fn make_fan(&self, first: u8) -> Result<()> {
        // Held meanwhile, so that nobody else takes a directory for lasting before it is.
        let mut fans = self.fans();
        if !fans[usize::from(first)] {
            let path = self.fan(first);
            make_directory(&path).map_err(|error| failure(error, &path))?;
            self.synced(sync_directory(&self.blocks), &self.blocks)?;
            fans[usize::from(first)] = true;
        }
        Ok(())
    }

    fn put(&self, id: &BlockId, object: &[u8]) -> Result<()> {
        self.check()?;
        if object.len() > block::OBJECT_MAX {
            return Err(Error::too_large(format!("an object of {} bytes", object.len())));
        }
        if self.reserve > 0 && self.room()?.free_bytes < object.len() as u64 {
            return Err(Error::no_space(format!("{}: only the reserve is left", self.blocks.display())));
        }
        self.make_fan(id.0[0])?;
        let temporary = self.staging.join(self.next_name.fetch_add(1, Ordering::Relaxed).to_string());
        let stored = self.stage(&temporary, object).and_then(|()| {
            fs::rename(&temporary, self.path(id)).map_err(|error| failure(error, &self.path(id)))
        });
        if let Err(error) = stored {
            // It may never have been made; what is left is removed at the next start.
            let _ = fs::remove_file(&temporary);
            // Somebody may have removed the directory by hand: look again next time.
            self.fans()[usize::from(id.0[0])] = false;
            return Err(error);
        }
        let fan = self.fan(id.0[0]);
        self.synced(sync_directory(&fan), &fan)
    }

    fn stage(&self, temporary: &Path, object: &[u8]) -> Result<()> {
        let file = direct::write_new(temporary, object).map_err(|error| failure(error, temporary))?;
        match file.sync_data() {
            // Some file systems find out only now that they are full. The file is given up, nothing else is in doubt.
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                Err(failure(error, temporary))
            }
            result => self.synced(result, temporary),
        }
    }

    /// What a missing file means: a node whose directory is gone (a disk that is not mounted) must not look like one
    /// that has no objects.
    fn missing<T>(&self, error: io::Error, path: &Path, otherwise: impl FnOnce() -> Result<T>) -> Result<T> {
        if error.kind() != ErrorKind::NotFound {
            return Err(failure(error, path));
        }
        fs::metadata(&self.blocks).map_err(|error| failure(error, &self.blocks))?;
        otherwise()
    }

    fn file(&self, id: &BlockId) -> Result<File> {
        let path = self.path(id);
        File::open(&path)
            .or_else(|error| self.missing(error, &path, || Err(Error::not_found(format!("object {id}")))))
    }

    fn get(&self, id: &BlockId, range: Option<Range<u64>>) -> Result<Bytes> {
        let mut file = self.file(id)?;
        let read = |file: &mut File| {
            let (from, to) = cut(range, file.metadata()?.len());
            // More than an object's length is nothing that `put` wrote; enough is read to see that.
            let length = (to - from).min(block::OBJECT_MAX as u64 + 1);
            let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
            file.seek(SeekFrom::Start(from))?;
            file.take(length).read_to_end(&mut bytes)?;
            Ok(Bytes::from(bytes))
        };
        read(&mut file).map_err(|error| failure(error, &self.path(id)))
    }

    fn head(&self, id: &BlockId) -> Result<Option<Object>> {
        let path = self.path(id);
        match fs::symlink_metadata(&path) {
            Ok(metadata) => Ok(Some(Object { id: *id, size: metadata.len() })),
            Err(error) => self.missing(error, &path, || Ok(None)),
        }
    }

    fn list(&self, after: Option<&BlockId>, limit: usize) -> Result<Vec<Object>> {
        let mut found = Vec::new();
        for first in after.map_or(0, |after| after.0[0])..=u8::MAX {
            let mut ids = self.ids_in(first)?;
            ids.retain(|id| after.is_none_or(|after| id > after));
            ids.sort_unstable();
            for id in ids {
                if found.len() >= limit {
                    return Ok(found);
                }
                // One that is gone since has been deleted meanwhile.
                found.extend(self.head(&id)?);
            }
        }
        Ok(found)
    }

    fn ids_in(&self, first: u8) -> Result<Vec<BlockId>> {
        let path = self.fan(first);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) => return self.missing(error, &path, || Ok(Vec::new())),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(|error| failure(error, &path))?.file_name();
            // What is not named like an object is not ours.
            let name = format!("{first:02x}{}", name.to_string_lossy());
            ids.extend(name.parse::<BlockId>().ok().filter(|id| id.to_string() == name));
        }
        Ok(ids)
    }

    fn delete(&self, id: &BlockId) -> Result<()> {
        self.check()?;
        let path = self.path(id);
        if let Err(error) = fs::remove_file(&path) {
            self.missing(error, &path, || Ok(()))?;
        }
        // Also if it was gone: whoever removed it may not have synced that yet.
        let fan = self.fan(id.0[0]);
        match sync_directory(&fan) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => self.synced(result, &fan),
        }
    }

    fn room(&self) -> Result<Room> {
        let room = rustix::fs::statvfs(&self.blocks).map_err(|error| failure(error.into(), &self.blocks))?;
        Ok(Room {
            total_bytes: room.f_blocks.saturating_mul(room.f_frsize),
            free_bytes: room.f_bavail.saturating_mul(room.f_frsize).saturating_sub(self.reserve),
        })
    }
}

/// Makes a directory and those above it that are missing, each one synced in the one above.
pub(crate) fn make_directories(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !path.is_dir() {
        if !parent.is_dir() {
            make_directories(parent)?;
        }
        make_directory(path)?;
        sync_directory(parent)?;
    }
    Ok(())
}

fn make_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result,
    }
}

/// Makes the directories for all first bytes of ids, and syncs each: a run before this one may have ended between a change and its sync,
/// and what this one sees must last. Several at a time, because disks merge syncs that come together.
fn make_fans(blocks: &Path) -> io::Result<()> {
    let all: Vec<u8> = (0..=u8::MAX).collect();
    let make = &|some: &[u8]| {
        some.iter().try_for_each(|first| {
            let path = blocks.join(format!("{first:02x}"));
            make_directory(&path)?;
            sync_directory(&path)
        })
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = all.chunks(16).map(|some| scope.spawn(move || make(some))).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread has crashed")))
        })
    })
}

pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[async_trait]
impl BlockStore for DiskStore {
    async fn put(&self, id: &BlockId, object: Bytes) -> Result<()> {
        let id = *id;
        let permit = self.0.puts.clone().acquire_owned().await;
        self.run(move |inner| {
            let _permit = permit;
            inner.put(&id, &object)
        })
        .await
    }

    async fn get(&self, id: &BlockId, range: Option<Range<u64>>) -> Result<Bytes> {
        let id = *id;
        self.run(move |inner| inner.get(&id, range)).await
    }

    async fn head(&self, id: &BlockId) -> Result<Option<Object>> {
        let id = *id;
        self.run(move |inner| inner.head(&id)).await
    }

    async fn list(&self, after: Option<&BlockId>, limit: usize) -> Result<Vec<Object>> {
        let after = after.copied();
        self.run(move |inner| inner.list(after.as_ref(), limit)).await
    }

    async fn delete(&self, id: &BlockId) -> Result<()> {
        let id = *id;
        self.run(move |inner| inner.delete(&id)).await
    }

    async fn file(&self, id: &BlockId) -> Result<Option<File>> {
        let id = *id;
        self.run(move |inner| inner.file(&id).map(Some)).await
    }

    async fn room(&self) -> Result<Option<Room>> {
        self.run(|inner| inner.room().map(Some)).await
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockStore, Bytes, DiskStore, PUTS, Path, fs};
    use crate::blocks::contract::{self, id};
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::Ordering;
    use tandemfs::ErrorKind;

    #[tokio::test]
    async fn keeps_the_contract() {
        let directory = tempfile::tempdir().unwrap();
        contract::all(&DiskStore::open(directory.path()).unwrap()).await;
    }

    #[tokio::test]
    async fn finds_everything_after_it_was_opened_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("some/deep/node");
        let store = DiskStore::open(&path).unwrap();
        for number in 0..20 {
            store.put(&id(number), Bytes::from(vec![number as u8; 100])).await.unwrap();
        }
        store.delete(&id(3)).await.unwrap();
        let before = store.list(None, 100).await.unwrap();
        drop(store);
        // A put that never came to its end.
        fs::write(path.join("staging/7"), b"half").unwrap();
        let store = DiskStore::open(&path).unwrap();
        assert_eq!(fs::read_dir(path.join("staging")).unwrap().count(), 0);
        assert_eq!(store.list(None, 100).await.unwrap(), before);
        assert_eq!(store.get(&id(19), None).await.unwrap(), vec![19; 100]);
        store.put(&id(3), Bytes::from_static(b"again")).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_disk_that_hangs_takes_no_more_than_so_many_puts() {
        let directory = tempfile::tempdir().unwrap();
        let store = DiskStore::open(directory.path()).unwrap();
        let puts: Vec<_> = {
            let _hangs = store.0.fans();
            let put = |number| {
                let store = store.clone();
                tokio::spawn(async move { store.put(&id(number), Bytes::from_static(b"data")).await })
            };
            let puts: Vec<_> = (0..3 * PUTS as u64).map(put).collect();
            // Nobody waits for the first of them any more.
            std::thread::sleep(std::time::Duration::from_millis(300));
            puts.iter().take(PUTS).for_each(tokio::task::JoinHandle::abort);
            std::thread::sleep(std::time::Duration::from_millis(100));
            assert_eq!(store.0.puts.available_permits(), 0);
            assert_eq!(fs::read_dir(directory.path().join("staging")).unwrap().count(), 0);
            puts
        };
        for put in puts {
            let _ = put.await;
        }
        let _all_ended = store.0.puts.acquire_many(PUTS as u32).await.unwrap();
        assert!(store.list(None, 200).await.unwrap().len() >= 2 * PUTS);
    }

    #[tokio::test]
    async fn lets_one_process_in_and_nobody_look() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node");
        let store = DiskStore::open(&path).unwrap();
        assert_eq!(DiskStore::open(&path).unwrap_err().kind(), ErrorKind::Busy);
        store.put(&id(1), Bytes::from_static(b"secret")).await.unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for name in [".", "blocks", "blocks/01", "staging"] {
            assert_eq!(mode(&path.join(name)), 0o700, "{name}");
        }
        assert_eq!(mode(&path.join(".lock")), 0o600);
        assert_eq!(mode(&store.0.path(&id(1))), 0o600);
        assert_eq!(fs::read_dir(path.join("staging")).unwrap().count(), 0);
        let clone = store.clone();
        drop(store);
        assert_eq!(DiskStore::open(&path).unwrap_err().kind(), ErrorKind::Busy, "a clone still uses it");
        drop(clone);
        DiskStore::open(&path).unwrap();
    }

    #[tokio::test]
    async fn ignores_what_is_not_an_object() {
        let directory = tempfile::tempdir().unwrap();
        let store = DiskStore::open(directory.path()).unwrap();
        store.put(&id(1), Bytes::from_static(b"one")).await.unwrap();
        let fan = directory.path().join("blocks/01");
        let name = id(1).to_string();
        for strange in
            ["x", "lost+found", &name[3..], &name[2..].to_uppercase().replace('0', "A"), &format!("{name}0")]
        {
            fs::write(fan.join(strange), b"?").unwrap();
        }
        fs::write(directory.path().join("blocks/README"), b"?").unwrap();
        assert_eq!(store.list(None, 10).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn is_unavailable_and_not_empty_when_its_disk_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let store = DiskStore::open(directory.path()).unwrap();
        store.put(&id(1), Bytes::from_static(b"one")).await.unwrap();
        let (here, away) = (directory.path().join("blocks"), directory.path().join("unmounted"));
        fs::rename(&here, &away).unwrap();
        assert_eq!(store.get(&id(1), None).await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(store.head(&id(1)).await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(store.list(None, 10).await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(store.delete(&id(1)).await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(store.put(&id(1), Bytes::new()).await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(store.room().await.unwrap_err().kind(), ErrorKind::Unavailable);
        fs::rename(&away, &here).unwrap();
        store.put(&id(1), Bytes::from_static(b"back")).await.unwrap();
        fs::remove_dir_all(here.join("01")).unwrap();
        assert_eq!(store.put(&id(1), Bytes::new()).await.unwrap_err().kind(), ErrorKind::Unavailable);
        store.put(&id(1), Bytes::from_static(b"made anew")).await.unwrap();
    }

    #[tokio::test]
    async fn takes_no_change_after_a_failed_sync() {
        let directory = tempfile::tempdir().unwrap();
        let store = DiskStore::open(directory.path()).unwrap();
        store.put(&id(1), Bytes::from_static(b"one")).await.unwrap();
        let error = std::io::Error::from_raw_os_error(libc::EIO);
        let error = store.0.synced(Err(error), directory.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(store.0.failed.load(Ordering::SeqCst));
        assert_eq!(store.put(&id(2), Bytes::new()).await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(store.delete(&id(1)).await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(store.get(&id(1), None).await.unwrap(), &b"one"[..], "what is there can be read");
        drop(store);
        DiskStore::open(directory.path()).unwrap().put(&id(2), Bytes::new()).await.unwrap();
    }

    #[test]
    fn errors_of_the_system_keep_their_meaning() {
        for (number, kind) in [
            (libc::ENOSPC, ErrorKind::NoSpace),
            (libc::EDQUOT, ErrorKind::NoSpace),
            (libc::EIO, ErrorKind::Unavailable),
            (libc::EROFS, ErrorKind::Unavailable),
            (libc::ENOENT, ErrorKind::Unavailable),
            (libc::EACCES, ErrorKind::Unavailable),
            (libc::EMFILE, ErrorKind::Unavailable),
        ] {
            let error = super::failure(std::io::Error::from_raw_os_error(number), Path::new("/x"));
            assert_eq!(error.kind(), kind, "errno {number}");
        }
    }

    #[tokio::test]
    async fn a_put_that_fails_leaves_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let store = DiskStore::open(directory.path()).unwrap();
        store.put(&id(1), Bytes::from_static(b"old")).await.unwrap();
        // The next temporary file's name is taken.
        let next = store.0.next_name.load(Ordering::SeqCst);
        fs::write(directory.path().join(format!("staging/{next}")), b"").unwrap();
        assert!(store.put(&id(1), Bytes::from_static(b"new")).await.is_err());
        assert_eq!(store.get(&id(1), None).await.unwrap(), &b"old"[..]);
        store.put(&id(1), Bytes::from_static(b"new")).await.unwrap();
        assert_eq!(store.get(&id(1), None).await.unwrap(), &b"new"[..]);
        assert_eq!(fs::read_dir(directory.path().join("staging")).unwrap().count(), 0);
    }
}
