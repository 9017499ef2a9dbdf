//! Blocks that were read, on the local disk: what was read once need not be asked for again, also after an unmount.
//!
//! A block never changes and its id is a hash of its content under the volume's key, so nothing that is read here has to be believed: what
//! its id does not fit is not there. Nothing is synced, and every failure of the disk says "not cached" (`docs/decisions/0016-block-cache.md`).
//!
//! The blocks lie in segments, files that are only appended to; the oldest is removed whole when there is no room. A block that is read while
//! it is among the oldest is appended once more.

mod directories;
mod index;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tandemfs::api::fs::BLOCK_SIZE_MAX;
use tandemfs::id::{BlockId, VolumeKey};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use crate::tasks;
use index::{Index, Place, Shape};
use writer::Writer;

/// A disk that is slower than this is read around: the daemon is asked.
const READ_TIMEOUT: Duration = Duration::from_millis(500);
/// Reads of the disk at once.
const READS_MAX: usize = 8;
/// Blocks that wait to be written.
const QUEUE: usize = 1024;
/// The index may take this part of the mount's memory.
const INDEX_SHARE: usize = 32;
/// And what waits to be written this one, or the longest block.
const QUEUE_SHARE: usize = 8;
/// How long an unmount waits until what was put in is written.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// A cache of blocks on the local disk.
pub(in crate::fs) struct BlockCache {
    shared: Arc<Shared>,
    reads: Arc<Semaphore>,
    queue_bytes: usize,
    writer: Mutex<Option<(SyncSender<Order>, JoinHandle<()>)>>,
}

/// What is known to the thread that writes as well.
struct Shared {
    directory: PathBuf,
    index: Mutex<Index>,
    /// What waits to be written.
    queued_bytes: AtomicUsize,
    /// Reads that the disk has not answered in time and not yet.
    late: AtomicUsize,
    is_closing: AtomicBool,
    has_warned: AtomicBool,
}

/// For the thread that writes.
enum Order {
    Put(BlockId, Bytes),
    /// It is dropped when everything before it is done.
    #[cfg(test)]
    Tell(SyncSender<()>),
}

impl BlockCache {
    /// The cache of a volume in a directory, of at most so many bytes, for a mount with so much memory. What lies there is looked
    /// at in the background; until then, and if another mount uses it, nothing is found. `None` if there is to be none: then what
    /// is left of one is removed.
    pub(in crate::fs) fn start(
        directory: &Path,
        key: &VolumeKey,
        bytes: u64,
        memory: usize,
    ) -> Option<Arc<Self>> {
        let Some(shape) = Shape::of(bytes, memory / INDEX_SHARE) else {
            let (directory, key) = (directory.to_owned(), key.clone());
            in_background(move || {
                if let Err(error) = directories::discard(&directory, &key) {
                    log::info!("removing what is cached in {}: {error}", directory.display());
                }
            });
            return None;
        };
        Self::with_shape(directory, key, shape, memory)
    }

    fn with_shape(directory: &Path, key: &VolumeKey, shape: Shape, memory: usize) -> Option<Arc<Self>> {
        let shared = Arc::new(Shared {
            directory: directories::of_volume(directory, key),
            index: Mutex::new(Index::new(shape)),
            queued_bytes: AtomicUsize::new(0),
            late: AtomicUsize::new(0),
            is_closing: AtomicBool::new(false),
            has_warned: AtomicBool::new(false),
        });
        let (sender, orders) = sync_channel(QUEUE);
        let (own, key) = (Arc::clone(&shared), key.clone());
        let thread = in_background(move || match Writer::new(Arc::clone(&own), key, shape) {
            Ok(Some(writer)) => writer.run(&orders),
            Ok(None) => log::info!("{}: another mount uses it", own.directory.display()),
            Err(error) => own.warn(&format_args!("nothing is cached on disk: {error}")),
        })?;
        Some(Arc::new(Self {
            shared,
            reads: Arc::new(Semaphore::new(READS_MAX)),
            queue_bytes: (memory / QUEUE_SHARE).max(BLOCK_SIZE_MAX),
            writer: Mutex::new(Some((sender, thread))),
        }))
    }

    /// The bytes of memory that the index of a mount's cache may take.
    pub(in crate::fs) fn index_bytes(memory: usize) -> usize {
        memory / INDEX_SHARE
    }

    /// A block, if it is there and right; `key` is the volume's. Never waits long.
    pub(in crate::fs) async fn get(&self, key: &VolumeKey, id: BlockId) -> Option<Bytes> {
        let place = self.shared.index().place(&id)?;
        if self.shared.late.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let until = Instant::now() + READ_TIMEOUT;
        let permit = timeout_at(until, Arc::clone(&self.reads).acquire_owned()).await.ok()?.ok()?;
        // Here, and not there: the allocator keeps memory that was freed for each thread that has asked for it.
        let data = Vec::with_capacity(usize::try_from(place.length).ok()?);
        let (shared, key) = (Arc::clone(&self.shared), key.clone());
        let mut read = Box::pin(tasks::block(move || {
            let _permit = permit;
            shared.read(&key, id, place, data)
        }));
        let Ok(read) = timeout_at(until, &mut read).await else {
            self.shared.warn(&"the disk does not answer in time");
            let shared = Arc::clone(&self.shared);
            shared.late.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let _late = read.await;
                shared.late.fetch_sub(1, Ordering::Relaxed);
            });
            return None;
        };
        let data = read??;
        if self.shared.index().is_old(place.segment) {
            self.put(id, data.clone());
        }
        Some(data)
    }

    /// Puts a block in, in the background, or not at all while too much waits. `id` is known to be right.
    pub(in crate::fs) fn put(&self, id: BlockId, data: Bytes) {
        if !self.shared.index().wants(&id) {
            return;
        }
        let length = data.len();
        let queued = &self.shared.queued_bytes;
        if queued.fetch_add(length, Ordering::Relaxed) + length > self.queue_bytes
            || !self.order(Order::Put(id, data))
        {
            queued.fetch_sub(length, Ordering::Relaxed);
        }
    }

    fn order(&self, order: Order) -> bool {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.as_ref().is_some_and(|(orders, _)| orders.try_send(order).is_ok())
    }

    /// Writes what was put in and gives the cache up, for the next mount. A disk that does not answer is not waited for long.
    pub(in crate::fs) async fn close(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((orders, thread)) = writer else { return };
        self.shared.is_closing.store(true, Ordering::Relaxed);
        drop(orders);
        let ended = tokio::task::spawn_blocking(move || thread.join());
        if timeout(CLOSE_PATIENCE, ended).await.is_err() {
            log::info!("{}: the disk is slow, some of it is not kept", self.shared.directory.display());
        }
    }

    /// Waits until everything is done that was begun.
    #[cfg(test)]
    pub(in crate::fs) fn settle(&self) {
        let (done, wait) = sync_channel(0);
        while !self.order(Order::Tell(done.clone())) {
            let writer = self.writer.lock().unwrap();
            if writer.as_ref().is_none_or(|(_, thread)| thread.is_finished()) {
                return;
            }
        }
        drop(done);
        let _done = wait.recv();
    }
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a block. What is not right is forgotten.
    fn read(&self, key: &VolumeKey, id: BlockId, place: Place, mut data: Vec<u8>) -> Option<Bytes> {
        let read = File::open(segment::path(&self.directory, place.segment)).and_then(|mut file| {
            file.seek(SeekFrom::Start(place.offset.into()))?;
            file.take(place.length.into()).read_to_end(&mut data)
        });
        match read {
            Ok(_) if BlockId::of(key, &data) == id => return Some(data.into()),
            Ok(_) => self.warn(&format_args!("block {id} is damaged")),
            // Dropped meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => self.warn(&format_args!("block {id} cannot be read: {error}")),
        }
        self.index().remove(&id, place);
        None
    }

    /// Says once that something is wrong; more of it is said to who asks.
    fn warn(&self, what: &dyn Display) {
        let level =
            if self.has_warned.swap(true, Ordering::Relaxed) { log::Level::Info } else { log::Level::Warn };
        log::log!(level, "{}: {what}", self.directory.display());
    }
}

/// Runs something in a thread of its own; `None` if the system has none.
fn in_background(work: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name("block-cache".into()).spawn(work);
    thread.map_err(|error| log::warn!("nothing is cached on disk: {error}")).ok()
}
