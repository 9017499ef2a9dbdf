//! Between the kernel and [`crate::fs`]: unpack, call, reply. With `main.rs` the only place that names fuser.

use std::ffi::OsStr;
use std::fs::File;
use std::future::Future;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags,
    PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, Session, TimeOrNow, Version, WriteFlags,
};
use tandemfs::clock::Time;
use tandemfs::id::Ino;
use tandemfs::tree::{Credentials, Kind, NewNode, RenameMode, XattrMode};
use tandemfs::{Error, ErrorKind, Result};
use tokio::runtime::Handle;

use crate::fs::files::WriteFlags as How;
use crate::fs::kernel::Kernel;
use crate::fs::space::UNIT;
use crate::fs::{Fs, Set, SetTime, Stat};

/// What is valid until the kernel is told otherwise.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// What is valid for this call only.
const NOW: Duration = Duration::ZERO;
/// The largest write of the kernel.
const WRITE_MAX: u32 = 1 << 20;
/// From this version of the protocol on names can be dropped without a lock (Linux 6.16).
const EPOCHS: Version = Version(7, 44);
/// FUSE_NOTIFY_INC_EPOCH of linux/fuse.h.
const NOTIFY_INC_EPOCH: i32 = 8;
/// Entries of a directory that are looked at for one answer; more than fit into the kernel's buffer.
const ENTRIES: usize = 4096;

/// Whether the kernel has epochs, which is known from the first message on.
pub type Epochs = Arc<AtomicBool>;

/// The file system as fuser wants it.
#[derive(Clone)]
pub struct Adapter {
    fs: Arc<Fs>,
    runtime: Handle,
    epochs: Epochs,
}

impl Adapter {
    /// Answers the kernel's calls with `fs`, on a runtime.
    pub fn new(fs: Arc<Fs>, runtime: Handle) -> Self {
        Self { fs, runtime, epochs: Epochs::default() }
    }

    /// The kernel's side of a session, for what has to be dropped from its caches.
    ///
    /// # Errors
    /// The system's.
    pub fn kernel(&self, session: &Session<Self>) -> io::Result<Arc<dyn Kernel>> {
        let device = session.as_fd().try_clone_to_owned()?;
        Ok(Arc::new(FuseKernel { notifier: session.notifier(), device, epochs: Arc::clone(&self.epochs) }))
    }

    /// How long the kernel may keep a name.
    fn names(&self) -> Duration {
        if self.epochs.load(Ordering::Relaxed) { FOREVER } else { NOW }
    }

    /// Runs a call: what the caches can answer right here, all else in a task.
    fn run(&self, call: impl Future<Output = ()> + Send + 'static) {
        let mut call = Box::pin(call);
        let _runtime = self.runtime.enter();
        if call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.runtime.spawn(call);
        }
    }

    fn entry(&self, reply: ReplyEntry, call: impl Future<Output = Result<Stat>> + Send + 'static) {
        let (fs, names) = (Arc::clone(&self.fs), self.names());
        self.run(async move {
            match call.await {
                Ok(stat) => {
                    fs.remember(stat.inode.ino);
                    reply.entry_with_ttls(&keep(&stat), &names, &attributes(&stat), Generation(0));
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn empty(&self, reply: ReplyEmpty, call: impl Future<Output = Result<()>> + Send + 'static) {
        self.run(async move {
            match call.await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn xattr(
        &self,
        reply: ReplyXattr,
        size: u32,
        call: impl Future<Output = Result<Vec<u8>>> + Send + 'static,
    ) {
        self.run(async move {
            match call.await {
                Ok(value) if size == 0 => reply.size(value.len() as u32),
                Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
                Ok(value) => reply.data(&value),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }
}

/// Drops what the kernel has cached.
struct FuseKernel {
    notifier: Notifier,
    device: OwnedFd,
    epochs: Epochs,
}

impl FuseKernel {
    fn log(what: &str, result: io::Result<()>) {
        if let Err(error) = result {
            // After an unmount there is nobody left to tell.
            log::debug!("{what}: {error}");
        }
    }
}

impl Kernel for FuseKernel {
    fn drop_attributes(&self, ino: Ino) {
        Self::log("dropping attributes", self.notifier.inval_inode(INodeNo(ino.0), -1, 0));
    }

    fn drop_pages(&self, ino: Ino, offset: u64, length: u64) {
        let (offset, length) = (offset.min(i64::MAX as u64) as i64, length.min(i64::MAX as u64) as i64);
        Self::log("dropping pages", self.notifier.inval_inode(INodeNo(ino.0), offset, length));
    }

    fn drop_names(&self) {
        if !self.epochs.load(Ordering::Relaxed) {
            return;
        }
        // struct fuse_out_header: length, code of the notification, 0.
        let mut message = [0; 16];
        message[..4].copy_from_slice(&16_u32.to_ne_bytes());
        message[4..8].copy_from_slice(&NOTIFY_INC_EPOCH.to_ne_bytes());
        let written = self.device.try_clone().and_then(|device| File::from(device).write_all(&message));
        Self::log("dropping names", written);
    }
}

fn errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::Corrupt | ErrorKind::Internal => log::error!("{error}"),
        _ => log::debug!("{error}"),
    }
    Errno::from_i32(error.errno())
}

fn keep(stat: &Stat) -> Duration {
    if stat.keep { FOREVER } else { NOW }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

fn attributes(stat: &Stat) -> FileAttr {
    let inode = &stat.inode;
    FileAttr {
        ino: INodeNo(inode.ino.0),
        size: inode.size,
        blocks: inode.blocks_512(),
        atime: inode.atime.to_system(),
        mtime: inode.mtime.to_system(),
        ctime: inode.ctime.to_system(),
        crtime: inode.btime.to_system(),
        kind: file_type(inode.kind),
        perm: (inode.mode & 0o7777) as u16,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        blksize: 4096,
        flags: 0,
    }
}

fn by(request: &Request) -> Credentials {
    Credentials { uid: request.uid(), gid: request.gid() }
}

fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::SpecificTime(time) => SetTime::At(sent_time(time)),
        TimeOrNow::Now => SetTime::Now,
    }
}

/// The time that the kernel sent. fuser 0.18 subtracts the nanoseconds of a time before 1970 that it should add
/// (a `timespec` counts them forward from its seconds): -1.5 s, sent as (-2, 500 million), arrives as -2.5 s.
fn sent_time(arrived: SystemTime) -> Time {
    match SystemTime::UNIX_EPOCH.duration_since(arrived) {
        Ok(before) => Time {
            seconds: i64::try_from(before.as_secs()).map_or(i64::MIN, |seconds| -seconds),
            nanos: before.subsec_nanos(),
        },
        Err(_) => Time::from_system(arrived),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.epochs.store(config.kernel_abi() >= EPOCHS, Ordering::Relaxed);
        for capability in [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
        ] {
            if config.add_capabilities(capability).is_err() {
                log::debug!("the kernel lacks {capability:?}");
            }
        }
        // Each of these answers an error with the nearest value that would do, none of which is worth failing for.
        let _nearest = config.set_max_write(WRITE_MAX);
        let _nearest = config.set_max_background(64);
        Ok(())
    }

    fn destroy(&mut self) {
        if let Err(error) = self.runtime.block_on(self.fs.stop()) {
            log::error!("not everything could be written: {error}");
        }
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (fs, name) = (Arc::clone(&self.fs), name.as_bytes().to_vec());
        self.entry(reply, async move { fs.lookup(Ino(parent.0), &name).await });
    }

    fn forget(&self, _: &Request, ino: INodeNo, times: u64) {
        self.fs.forget(Ino(ino.0), times);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let fs = Arc::clone(&self.fs);
        self.run(async move {
            match fs.getattr(Ino(ino.0)).await {
                Ok(stat) => reply.attr(&keep(&stat), &attributes(&stat)),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (fs, by) = (Arc::clone(&self.fs), by(request));
        let set = Set { mode, uid, gid, size, atime: atime.map(set_time), mtime: mtime.map(set_time) };
        self.run(async move {
            match fs.setattr(by, Ino(ino.0), set).await {
                // The kernel takes these in whatever it was told meanwhile, so it is to ask before it uses them.
                Ok(stat) => reply.attr(&NOW, &attributes(&stat)),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let fs = Arc::clone(&self.fs);
        self.run(async move {
            match fs.readlink(Ino(ino.0)).await {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (fs, by, name) = (Arc::clone(&self.fs), by(request), name.as_bytes().to_vec());
        let node = match mode & libc::S_IFMT {
            libc::S_IFREG | 0 => NewNode::File,
            libc::S_IFIFO => NewNode::Fifo,
            libc::S_IFSOCK => NewNode::Socket,
            libc::S_IFCHR => NewNode::CharDevice(rdev),
            libc::S_IFBLK => NewNode::BlockDevice(rdev),
            _ => return reply.error(Errno::EINVAL),
        };
        self.entry(reply, async move { fs.make(by, Ino(parent.0), &name, node, mode).await });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let (fs, by, name) = (Arc::clone(&self.fs), by(request), name.as_bytes().to_vec());
        self.entry(reply, async move { fs.make(by, Ino(parent.0), &name, NewNode::Directory, mode).await });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (fs, by, name) = (Arc::clone(&self.fs), by(request), name.as_bytes().to_vec());
        let node = NewNode::Symlink(target.as_os_str().as_bytes().to_vec());
        self.entry(reply, async move { fs.make(by, Ino(parent.0), &name, node, 0o777).await });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, by, name) = (Arc::clone(&self.fs), by(request), name.as_bytes().to_vec());
        self.empty(reply, async move { fs.remove(by, Ino(parent.0), &name, false).await });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, by, name) = (Arc::clone(&self.fs), by(request), name.as_bytes().to_vec());
        self.empty(reply, async move { fs.remove(by, Ino(parent.0), &name, true).await });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return reply.error(Errno::EINVAL);
        };
        let (fs, by) = (Arc::clone(&self.fs), by(request));
        let (name, new_name) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        self.empty(reply, async move {
            fs.rename(by, (Ino(parent.0), &name), (Ino(new_parent.0), &new_name), mode).await
        });
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (fs, name) = (Arc::clone(&self.fs), name.as_bytes().to_vec());
        self.entry(reply, async move { fs.link(Ino(ino.0), Ino(parent.0), &name).await });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (fs, by) = (Arc::clone(&self.fs), by(request));
        self.run(async move {
            match fs.open_file(by, Ino(ino.0), flags.0).await {
                Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (fs, by, name) = (Arc::clone(&self.fs), by(request), name.as_bytes().to_vec());
        let names = self.names();
        self.run(async move {
            match fs.create(by, Ino(parent.0), &name, mode, flags).await {
                Ok((stat, handle)) => {
                    fs.remember(stat.inode.ino);
                    let handle = FileHandle(handle);
                    reply.created(
                        &names,
                        &attributes(&stat),
                        Generation(0),
                        handle,
                        FopenFlags::FOPEN_KEEP_CACHE,
                    );
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let fs = Arc::clone(&self.fs);
        self.run(async move {
            match fs.read(handle.0, offset, size).await {
                Ok(data) => reply.data(&data),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (fs, data) = (Arc::clone(&self.fs), data.to_vec());
        let how = How {
            from_cache: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            clear_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        self.run(async move {
            match fs.write(handle.0, offset, &data, how).await {
                Ok(written) => {
                    reply.written(written.bytes);
                    if written.moved {
                        fs.drop_pages(Ino(ino.0));
                    }
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, handle: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let fs = Arc::clone(&self.fs);
        self.empty(reply, async move { fs.flush(handle.0).await });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let fs = Arc::clone(&self.fs);
        self.run(async move {
            fs.release(handle.0).await;
            reply.ok();
        });
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let fs = Arc::clone(&self.fs);
        self.empty(reply, async move { fs.fsync(handle.0).await });
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let fs = Arc::clone(&self.fs);
        self.run(async move {
            match fs.open_directory(Ino(ino.0)).await {
                Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let fs = Arc::clone(&self.fs);
        self.run(async move {
            let listing = async {
                let directory = fs.directory(handle.0)?;
                fs.read_directory(&directory, offset, false, ENTRIES).await
            };
            match listing.await {
                Ok(entries) => {
                    for entry in entries {
                        let name = OsStr::from_bytes(&entry.name);
                        if reply.add(INodeNo(entry.ino.0), entry.next, file_type(entry.kind), name) {
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (fs, names) = (Arc::clone(&self.fs), self.names());
        self.run(async move {
            let listing = async {
                let directory = fs.directory(handle.0)?;
                fs.read_directory(&directory, offset, true, ENTRIES).await
            };
            match listing.await {
                Ok(entries) => {
                    for entry in entries {
                        let name = OsStr::from_bytes(&entry.name);
                        let ino = INodeNo(entry.ino.0);
                        // `.` and `..` are not looked up by the kernel, so they need no attributes.
                        let (ttl, attributes) = match &entry.stat {
                            Some((stat, true)) if stat.keep => (names, attributes(stat)),
                            Some((stat, _)) => (NOW, attributes(stat)),
                            None => (NOW, bare(ino, file_type(entry.kind))),
                        };
                        if reply.add(ino, entry.next, name, &ttl, &attributes, Generation(0)) {
                            break;
                        }
                        if entry.stat.is_some() {
                            fs.remember(entry.ino);
                        }
                    }
                    reply.ok();
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        let fs = Arc::clone(&self.fs);
        self.run(async move {
            fs.release_directory(handle.0).await;
            reply.ok();
        });
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        // Every change of names was durable when it was answered.
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let fs = Arc::clone(&self.fs);
        self.run(async move {
            match fs.room().await {
                Ok(room) => {
                    let unit = UNIT as u32;
                    reply.statfs(
                        room.total,
                        room.free,
                        room.free,
                        room.inodes,
                        room.inodes_free,
                        unit,
                        255,
                        unit,
                    );
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn setxattr(
        &self,
        _: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        let (fs, name, value) = (Arc::clone(&self.fs), name.as_bytes().to_vec(), value.to_vec());
        self.empty(reply, async move { fs.set_xattr(Ino(ino.0), &name, &value, mode).await });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (fs, name) = (Arc::clone(&self.fs), name.as_bytes().to_vec());
        self.xattr(reply, size, async move { fs.get_xattr(Ino(ino.0), &name).await });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let fs = Arc::clone(&self.fs);
        self.xattr(reply, size, async move { fs.list_xattrs(Ino(ino.0)).await });
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, name) = (Arc::clone(&self.fs), name.as_bytes().to_vec());
        self.empty(reply, async move { fs.remove_xattr(Ino(ino.0), &name).await });
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks (default_permissions).
        reply.ok();
    }

    fn fallocate(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (fs, by) = (Arc::clone(&self.fs), by(request));
        self.empty(reply, async move { fs.allocate(by, handle.0, offset, length, mode).await });
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let fs = Arc::clone(&self.fs);
        self.run(async move {
            match fs.seek(handle.0, offset, hole).await {
                Ok(offset) => reply.offset(offset as i64),
                Err(error) if error.kind() == ErrorKind::OutOfRange => reply.error(Errno::ENXIO),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel copies by reading and writing. ENOSYS would keep it from asking for as long as the mount lives.
        reply.error(Errno::EOPNOTSUPP);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        // Never: a regular file is always ready, which the kernel knows when it is told so once.
        reply.error(Errno::ENOSYS);
    }
}

/// Attributes of which only the number and the type count.
fn bare(ino: INodeNo, kind: FileType) -> FileAttr {
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind,
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

#[cfg(test)]
mod tests;
