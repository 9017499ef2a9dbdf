//! Open files and directories: open, read, write, flush, fsync, release, fallocate, lseek.

use std::sync::Arc;

use bytes::Bytes;

use tandemfs::id::Ino;
use tandemfs::tree::{CHUNK_SIZE, CLONE_MAX, Credentials, FILE_SIZE_MAX, Mutation};
use tandemfs::{Error, ErrorKind, Result};

use super::ahead::SMALL;
use super::commits::Reach;
use super::data::How;
use super::directory::OpenDirectory;
use super::handles::OpenFile;
use super::read::chunks;
use super::suspended::Pages;
use super::{Fs, Set};

/// A read that others overtake so often is answered all the same.
const OVERTAKEN_MAX: usize = 8;
/// Chunks that are looked at for the end of a piece of data: 256 GiB.
const SEEK_CHUNKS_MAX: usize = if cfg!(test) { 64 } else { 1 << 16 };

/// Whether what is written through a descriptor that was opened with these flags of open(2) goes round the kernel's pages. Appends
/// do: the kernel cuts a write in two behind a page that it has not cached, and another mount's append would get between them.
pub fn is_direct(flags: i32) -> bool {
    flags & libc::O_APPEND != 0
}

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// How many bytes.
    pub bytes: u32,
    /// An append that landed elsewhere than the kernel thought: its pages of the file are wrong.
    pub moved: bool,
}

impl Fs {
    pub(super) fn open_handle(&self, ino: Ino, flags: i32) -> u64 {
        self.session.opens.add(ino);
        let data = self.data.enter(ino);
        self.files.add(OpenFile::new(ino, flags, data, self.session.locks.losses()))
    }

    /// Whether an inode that has been added to those that are open can be used: a name led to it when the kernel
    /// looked, but its last link may have gone since, and with it the inode, if nobody said that we hold it.
    ///
    /// # Errors
    /// `Stale`: the kernel is to look again. Those of the daemon.
    pub(super) async fn admit(&self, ino: Ino) -> Result<()> {
        self.session.opens.settled(ino).await;
        let is_there = self.inode(ino).await?.nlink > 0;
        let removed = self.session.known.removed(ino);
        if is_there || self.session.opens.is_orphan(ino) || removed.is_some_and(|inode| inode.is_directory())
        {
            Ok(())
        } else {
            Err(self.gone(ino))
        }
    }

    /// open.
    ///
    /// # Errors
    /// `Stale` for what has just been removed, those of the daemon.
    pub async fn open_file(&self, by: Credentials, ino: Ino, flags: i32) -> Result<u64> {
        self.session.ready().await?;
        if flags & libc::O_ACCMODE != libc::O_RDONLY {
            self.writable()?;
        }
        let handle = self.open_handle(ino, flags);
        let mut opened = self.admit(ino).await;
        if opened.is_ok() && flags & libc::O_TRUNC != 0 {
            let truncate = Set { size: Some(0), ..Set::default() };
            opened = self.setattr(by, ino, truncate).await.map(drop);
        }
        if let Err(error) = opened {
            self.release(handle).await;
            return Err(error);
        }
        // The kernel tells of no read that its own pages answer, so that whoever can read counts as if he did.
        if flags & libc::O_ACCMODE != libc::O_WRONLY && self.note_read(ino, flags) {
            self.accesses.refresh(ino);
        }
        Ok(handle)
    }

    /// Whether the kernel need not say when descriptors of a handle are closed that a thread has just opened.
    pub fn is_quiet(&self, handle: u64, thread: u32) -> bool {
        let only_reads = |file: &OpenFile| file.flags & (libc::O_ACCMODE | libc::O_TRUNC) == libc::O_RDONLY;
        let file = self.files.get(handle).ok().filter(|file| only_reads(file));
        file.is_some_and(|file| self.quiet.add(file.ino, handle, thread))
    }

    /// read. The kernel asks for atime again afterwards.
    ///
    /// # Errors
    /// `Stale` for a file that is gone, those of the daemon.
    pub async fn read(&self, handle: u64, offset: u64, size: u32) -> Result<Bytes> {
        let file = self.files.get(handle)?;
        let bytes = offset..offset.saturating_add(u64::from(size));
        let is_direct = file.flags & libc::O_DIRECT != 0 || is_direct(file.flags);
        let pages = Pages::of_read(bytes, is_direct);
        // Before anything waits: a session that is lost comes back only when the kernel has dropped its pages.
        let request = self.session.suspended.begin(file.ino, pages);
        self.session.ready().await?;
        self.check_lost(&file)?;
        for _ in 0..OVERTAKEN_MAX {
            self.session.known.give_pages(file.ino);
            let data = self.read_once(&file, offset, size).await?;
            // Again, for it may have been told to drop them meanwhile.
            self.session.known.give_pages(file.ino);
            if request.finish() {
                return Ok(data);
            }
        }
        // What was found was true while this was under way. The kernel keeps it until it is told to drop it, which it is being told.
        self.session.drop_pages(file.ino);
        self.read_once(&file, offset, size).await
    }

    async fn read_once(&self, file: &OpenFile, offset: u64, size: u32) -> Result<Bytes> {
        // The dirty pieces first: what becomes part of the file after this is then in what is read after this.
        let wanted = offset.saturating_add(u64::from(size));
        let dirty = file.data.pieces(offset, wanted);
        let end = file.data.end();
        let inode = self.inode(file.ino).await?;
        let length = inode.size.max(end);
        if offset == 0 && length <= SMALL {
            self.ahead.came_to(&inode);
            self.ahead.settled(file.ino).await;
        }
        let range = offset..wanted.min(length);
        let data = if range.is_empty() {
            Bytes::new()
        } else {
            self.reader.read(file.ino, range, &dirty, &file.pattern).await?
        };
        self.note_read(file.ino, file.flags);
        Ok(data)
    }

    /// write.
    ///
    /// # Errors
    /// A failure of an earlier write, `TooLarge`, those of the daemon with O_SYNC.
    pub async fn write(&self, handle: u64, offset: u64, data: &[u8], how: How) -> Result<Written> {
        if let Some(written) = self.write_at_once(handle, offset, data, how) {
            return written;
        }
        let file = self.usable(handle)?;
        self.writable()?;
        if !how.from_cache {
            self.session.allowed()?;
            file.report()?;
        }
        // Then the kernel has locked no pages for this.
        let is_direct = is_direct(file.flags);
        let _request = (!how.from_cache && !is_direct && !data.is_empty()).then(|| {
            self.session.suspended.begin(file.ino, Pages::of_write(offset.saturating_add(data.len() as u64)))
        });
        let at = loop {
            let _in_use = match how.from_cache {
                true => None,
                false => Some(self.session.delegated(file.ino).await?),
            };
            if !how.from_cache {
                // Else the session may be over, and others be shown the file; or have had the lock under which this is written.
                self.session.ready().await?;
                self.check_lost(&file)?;
            }
            let at = if how.append { self.end(&file).await? } else { offset };
            if self.data.write(&file.data, at, data, how).await? {
                break at;
            }
        };
        // Again, for it may have been told to drop them while this waited.
        self.session.known.give_pages(file.ino);
        if self.options.sync || file.flags & libc::O_DSYNC != 0 {
            self.commit(&file).await?;
        }
        let moved = at != offset;
        if moved && is_direct {
            self.session.drop_file(file.ino).await;
        }
        Ok(Written { bytes: data.len() as u32, moved: moved && !is_direct })
    }

    /// Where a file ends that is delegated to this session.
    async fn end(&self, file: &OpenFile) -> Result<u64> {
        // In this order: what becomes part of the file after the first is seen in the second.
        let end = file.data.end();
        Ok(self.inode(file.ino).await?.size.max(end))
    }

    /// write, if that can be done without waiting and without a copy of the data; `None` asks for [`Fs::write`].
    pub fn write_at_once(&self, handle: u64, offset: u64, data: &[u8], how: How) -> Option<Result<Written>> {
        let file = self.usable(handle).ok()?;
        self.session.known.give_pages(file.ino);
        let waits = self.options.sync || file.flags & libc::O_DSYNC != 0;
        if waits || how.append || how.from_cache || !self.session.is_ready() {
            return None;
        }
        let check = || {
            self.writable()?;
            self.session.allowed()?;
            file.report()
        };
        let written = check().and_then(|()| self.data.try_write(&file.data, offset, data, how));
        match written {
            Ok(true) => Some(Ok(Written { bytes: data.len() as u32, moved: false })),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// Sends what was written to the file, when a descriptor is closed. An orphan is not worth it. A failure is told and remains to be told:
    /// the descriptor may be a copy that a child process was born with, and fsync on another one must not say that all is well.
    ///
    /// # Errors
    /// A failure of writing that fsync or write has not told.
    pub async fn flush(&self, handle: u64) -> Result<()> {
        let file = self.files.get(handle)?;
        let sent =
            if self.session.opens.is_orphan(file.ino) { Ok(()) } else { self.send(&file, Reach::All).await };
        file.failure().and(sent)
    }

    /// fdatasync: all that was written to the file is durable afterwards.
    ///
    /// # Errors
    /// A failure of writing, once.
    pub async fn fdatasync(&self, handle: u64) -> Result<()> {
        let file = self.usable(handle)?;
        self.commit(&file).await
    }

    /// fsync: the same, and the time when it was read.
    ///
    /// # Errors
    /// As [`Fs::fdatasync`].
    pub async fn fsync(&self, handle: u64) -> Result<()> {
        self.fdatasync(handle).await?;
        self.accesses.send(self.files.get(handle)?.ino).await;
        Ok(())
    }

    pub(super) async fn commit(&self, file: &OpenFile) -> Result<()> {
        let mut sent = self.send(file, Reach::AllUploaded).await;
        if sent.is_ok() {
            sent = self.session.committed(file.ino).await;
        }
        // A failure is noted with the file; this handle has now been told of it.
        file.report().and(sent)
    }

    async fn send(&self, file: &OpenFile, reach: Reach) -> Result<()> {
        if file.data.is_dirty() {
            self.data.commit(&file.data, reach, None).await?;
        }
        Ok(())
    }

    /// release: the last descriptor of a handle is gone.
    pub async fn release(&self, handle: u64) {
        self.release_by(handle, u64::MAX).await;
    }

    /// The same, by a request of the kernel.
    pub async fn release_by(&self, handle: u64, request: u64) {
        let Some(file) = self.files.remove(handle) else { return };
        let orphan = self.session.opens.is_orphan(file.ino);
        if !orphan
            && file.data.is_dirty()
            && let Err(error) = self.data.commit(&file.data, Reach::All, None).await
        {
            log::error!("data of inode {} is lost: {error}", file.ino);
        }
        self.release_locks_of(file.ino, handle, self.quiet.remove(file.ino, handle, request)).await;
        self.session.let_go(file.ino).await;
        self.data.leave(&file.data);
    }

    /// opendir.
    ///
    /// # Errors
    /// `Stale` for what has just been removed, those of the daemon.
    pub async fn open_directory(&self, ino: Ino, flags: i32) -> Result<u64> {
        self.session.ready().await?;
        self.session.opens.add(ino);
        let handle = self.directories.add(OpenDirectory::new(ino, flags, self.session.cache.watch(ino)));
        if let Err(error) = self.admit(ino).await {
            self.release_directory(handle).await;
            return Err(error);
        }
        Ok(handle)
    }

    /// fsync of a directory: all of its names are durable afterwards.
    ///
    /// # Errors
    /// `Stale` when some were lost with the session; `TimedOut`.
    pub async fn sync_directory(&self, ino: Ino) -> Result<()> {
        self.session.committed(ino).await
    }

    /// The directory behind a handle.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn directory(&self, handle: u64) -> Result<Arc<OpenDirectory>> {
        self.directories.get(handle)
    }

    /// releasedir.
    pub async fn release_directory(&self, handle: u64) {
        let Some(directory) = self.directories.remove(handle) else { return };
        self.end_listing(&directory).await;
        self.session.let_go(directory.ino).await;
    }

    /// fallocate. Space is only promised by a quota, so allocating means that the file is at least so long, and zeros are
    /// a hole.
    ///
    /// # Errors
    /// `Unsupported` for modes that move data or unshare it, `TooLarge`, those of the daemon.
    pub async fn allocate(
        &self,
        by: Credentials,
        handle: u64,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Result<()> {
        let file = self.usable(handle)?;
        self.writable()?;
        let hole = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => 0,
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE => length,
            _ => return Err(Error::unsupported("this mode of fallocate")),
        };
        let end = offset.checked_add(length).filter(|end| *end <= FILE_SIZE_MAX);
        let end = end.ok_or_else(|| Error::too_large("the file would be longer than a file can be"))?;
        let punch = Mutation::PunchHole {
            ino: file.ino,
            offset,
            length: hole,
            size: if mode & libc::FALLOC_FL_KEEP_SIZE == 0 { end } else { 0 },
            clear_privileges: self.options.ids.acting(by).uid != 0,
            time: self.clock.now(),
        };
        self.data.commit(&file.data, Reach::All, Some(punch)).await.map(drop)
    }

    /// copy_file_range: the target names the source's blocks, no data is moved. Answers how many bytes; there may be more.
    ///
    /// # Errors
    /// `Unsupported` when the source is being cut: the kernel then copies by reading and writing. Those of the rules and
    /// of the daemon.
    pub async fn copy_range(
        &self,
        by: Credentials,
        (from, from_offset): (u64, u64),
        (into, offset): (u64, u64),
        length: u64,
    ) -> Result<u32> {
        let (source, target) = (self.usable(from)?, self.usable(into)?);
        self.writable()?;
        if source.data.is_dirty() {
            self.data.commit(&source.data, Reach::All, None).await?;
        }
        let left = self.inode(source.ino).await?.size.saturating_sub(from_offset);
        let length = length.min(CLONE_MAX).min(left);
        if length == 0 {
            return Ok(0);
        }
        let clone = Mutation::CloneRange {
            ino: target.ino,
            offset,
            from: source.ino,
            from_offset,
            length,
            clear_privileges: self.options.ids.acting(by).uid != 0,
            time: self.clock.now(),
        };
        match self.data.commit(&target.data, Reach::All, Some(clone)).await {
            Ok(_) => Ok(length as u32),
            Err(error) if error.kind() == ErrorKind::OutOfRange => {
                Err(Error::unsupported("the source is being cut").because(error))
            }
            Err(error) => Err(error),
        }
    }

    /// lseek with SEEK_DATA or SEEK_HOLE; the end of a file is a hole.
    ///
    /// # Errors
    /// `OutOfRange` past the end (ENXIO), those of the daemon.
    pub async fn seek(&self, handle: u64, offset: u64, hole: bool) -> Result<u64> {
        let file = self.files.get(handle)?;
        self.session.ready().await?;
        if file.data.is_dirty() {
            self.data.commit(&file.data, Reach::All, None).await?;
        }
        let size = self.inode(file.ino).await?.size;
        if offset >= size {
            return Err(Error::out_of_range("past the end"));
        }
        let mut at = offset;
        let mut numbers = chunks(&(offset..size));
        for _ in 0..SEEK_CHUNKS_MAX {
            let Some((number, chunk)) = self.reader.next_chunk(file.ino, numbers.clone()).await? else {
                return if hole { Ok(at) } else { Err(Error::out_of_range("no data after this")) };
            };
            let base = number * CHUNK_SIZE;
            for extent in chunk.0 {
                let (start, end) = (base + u64::from(extent.start), base + u64::from(extent.end()));
                if end <= at {
                    continue;
                }
                if !hole {
                    return Ok(start.max(at));
                }
                if start > at {
                    return Ok(at);
                }
                at = end;
            }
            if hole && at < base + CHUNK_SIZE {
                return Ok(at);
            }
            numbers.start = number + 1;
        }
        // So much data in one piece: lseek(2) allows to take what comes after it for data as well.
        if hole { Ok(size) } else { Err(Error::out_of_range("no data after this")) }
    }
}
