//! The thread that works on the disk: it looks what is there, then appends what is put in.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use bytes::Bytes;
use tandemfs::id::{BlockId, VolumeKey};
use tokio::time::Instant;

use super::index::Shape;
use super::{Order, Shared, directories, segment};

/// After a failure, as on a full disk, nothing is written for so long.
const PAUSE: Duration = Duration::from_secs(60);
/// Larger numbers than a segment can have come to: it was put there by somebody else.
const NUMBER_MAX: u32 = u32::MAX / 2;

pub(super) struct Writer {
    shared: Arc<Shared>,
    key: VolumeKey,
    shape: Shape,
    /// The newest segment.
    newest: Option<File>,
    /// The number of the one after it.
    next: u32,
    paused_until: Option<Instant>,
    /// The cache is ours as long as this is open.
    _lock: File,
}

impl Writer {
    /// Takes the directory; `None`: another mount has it.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn new(shared: Arc<Shared>, key: VolumeKey, shape: Shape) -> io::Result<Option<Self>> {
        let Some(lock) = directories::take(&shared.directory)? else { return Ok(None) };
        Ok(Some(Self { shared, key, shape, newest: None, next: 0, paused_until: None, _lock: lock }))
    }

    /// Works until the cache is closed and what was put in is written.
    pub(super) fn run(mut self, orders: &Receiver<Order>) {
        if let Err(error) = self.load() {
            // What could not be removed would be forgotten if more were written.
            self.shared.warn(&format_args!("nothing more is cached on disk: {error}"));
            return;
        }
        if self.is_closing() {
            return;
        }
        if let Err(error) = directories::sweep(&self.shared.directory, self.shape.bytes()) {
            log::info!("removing what other mounts have cached: {error}");
        }
        while let Ok(order) = orders.recv() {
            match order {
                Order::Put(id, data) => {
                    self.put(id, &data);
                    self.shared.queued_bytes.fetch_sub(data.len(), Ordering::Relaxed);
                }
                #[cfg(test)]
                Order::Tell(done) => drop(done),
            }
        }
    }

    fn is_closing(&self) -> bool {
        self.shared.is_closing.load(Ordering::Relaxed)
    }

    /// Takes up the segments that are there, from the newest on; what is beyond the bounds is removed.
    fn load(&mut self) -> io::Result<()> {
        let mut found = directories::segments(&self.shared.directory)?;
        found.sort_unstable_by(|one, other| other.cmp(one));
        let mut total = 0_u64;
        let mut kept = 0;
        for (number, length) in found {
            let path = segment::path(&self.shared.directory, number);
            let fits = kept < self.shape.segments
                && total.saturating_add(length) <= self.shape.bytes()
                && number <= NUMBER_MAX;
            let free = self.shared.index().free_entries();
            if !fits || free == 0 || !self.take_up(&path, number, length, free).unwrap_or(false) {
                fs::remove_file(&path)?;
                continue;
            }
            total += length;
            kept += 1;
            if self.is_closing() {
                return Ok(());
            }
        }
        self.next = self.shared.index().newest().map_or(0, |newest| newest + 1);
        Ok(())
    }

    /// Takes up a segment; `false` if there is nothing of use in it.
    fn take_up(&mut self, path: &Path, number: u32, length: u64, most: usize) -> io::Result<bool> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let (frames, end) = segment::scan(&file, &self.key, length, most);
        if frames.is_empty() {
            return Ok(false);
        }
        if end < length {
            file.set_len(end)?;
        }
        self.shared.index().add_oldest(number, end, &frames);
        self.newest.get_or_insert(file);
        Ok(true)
    }

    fn put(&mut self, id: BlockId, data: &Bytes) {
        if self.paused_until.is_some_and(|until| Instant::now() < until) || !self.shared.index().wants(&id) {
            return;
        }
        match self.append(id, data) {
            Ok(()) => self.paused_until = None,
            Err(error) => {
                self.shared.warn(&format_args!("nothing is cached on disk for a while: {error}"));
                self.paused_until = Some(Instant::now() + PAUSE);
            }
        }
    }

    fn append(&mut self, id: BlockId, data: &Bytes) -> io::Result<()> {
        let Some(bytes) = segment::frame_length(data.len()) else { return Ok(()) };
        if bytes > self.shape.segment_bytes {
            return Ok(());
        }
        self.make_room(false)?;
        let room = self.shared.index().room(bytes);
        if room.is_none() {
            self.make_room(true)?;
            self.begin()?;
        }
        let (at, Some(file)) = (room.unwrap_or(0), &self.newest) else { return Ok(()) };
        match segment::write(file, &self.key, at, id, data) {
            Ok(frame) => {
                self.shared.index().appended(frame, at + bytes);
                Ok(())
            }
            Err(error) => {
                // A part of it may be there.
                if file.set_len(at).is_err() {
                    self.shared.index().close_newest();
                }
                Err(error)
            }
        }
    }

    /// Drops the oldest segments until another block can be added, or another segment begun.
    fn make_room(&mut self, begin: bool) -> io::Result<()> {
        loop {
            let oldest = {
                let index = self.shared.index();
                if !index.is_full(begin) {
                    return Ok(());
                }
                index.oldest()
            };
            let Some(oldest) = oldest else { return Ok(()) };
            // First the file: what cannot be removed still counts.
            match fs::remove_file(segment::path(&self.shared.directory, oldest)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => self.shared.index().forget_oldest(),
            }
        }
    }

    fn begin(&mut self) -> io::Result<()> {
        let number = self.next;
        // Also if that fails: something may be there that is no segment.
        self.next = number.checked_add(1).ok_or_else(|| io::Error::other("no more numbers"))?;
        let path = segment::path(&self.shared.directory, number);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        self.shared.index().begin(number);
        self.newest = Some(file);
        Ok(())
    }
}
