//! The calls of the kernel, in fuser's order: each is unpacked and handed to [`crate::fs`].

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tandemfs::ErrorKind;
use tandemfs::api::locks::Lock;
use tandemfs::tree::{NewNode, XattrMode};

use super::convert::{
    bare, credentials, errno, file_type, lock_kind, lock_type, new_node, rename_mode, set_time,
};
use super::{Adapter, NOW, signals};
use crate::fs::data::How;
use crate::fs::files::is_direct;
use crate::fs::names::Mode;
use crate::fs::space::UNIT;
use crate::fs::{Set, Stat};

/// The largest write of the kernel.
const WRITE_MAX: u32 = 1 << 20;
/// Entries of a directory that are looked at for one answer; more than fit into the kernel's buffer.
const ENTRIES: usize = 4096;

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.epochs.learn(config.kernel_abi());
        for capability in [
            InitFlags::FUSE_POSIX_LOCKS,
            InitFlags::FUSE_FLOCK_LOCKS,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            // The kernel heeds access control lists, and leaves the umask to us: a default list takes its place.
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
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
        let (fs, parent, name) = self.at(parent, name);
        self.entry(reply, async move { fs.lookup(parent, &name).await });
    }

    fn forget(&self, _: &Request, ino: INodeNo, times: u64) {
        self.fs.forget(self.numbers.of_kernel(ino), times);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let (fs, ino) = self.on(ino);
        self.attributes(reply, async move { fs.getattr(ino).await });
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
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let ((fs, ino), by) = (self.on(ino), credentials(request));
        let set = Set { mode, uid, gid, size, atime: atime.map(set_time), mtime: mtime.map(set_time) };
        self.attributes(reply, async move {
            if let Some(handle) = handle {
                fs.usable(handle.0)?;
            }
            // The kernel takes these in whatever it was told meanwhile, so it is to ask before it uses them.
            fs.setattr(by, ino, set).await.map(|stat| Stat { keep: false, ..stat })
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let (fs, ino) = self.on(ino);
        self.data(reply, async move { fs.readlink(ino).await });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(node) = new_node(mode, rdev) else { return reply.error(Errno::EINVAL) };
        let ((fs, parent, name), by) = (self.at(parent, name), credentials(request));
        self.entry(reply, async move { fs.make(by, parent, &name, node, Mode { mode, umask }).await });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let ((fs, parent, name), by) = (self.at(parent, name), credentials(request));
        self.entry(reply, async move {
            fs.make(by, parent, &name, NewNode::Directory, Mode { mode, umask }).await
        });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let ((fs, parent, name), by) = (self.at(parent, name), credentials(request));
        let node = NewNode::Symlink(target.as_os_str().as_bytes().to_vec());
        self.entry(reply, async move { fs.make(by, parent, &name, node, Mode::from(0o777)).await });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let ((fs, parent, name), by) = (self.at(parent, name), credentials(request));
        self.empty(reply, async move { fs.remove(by, parent, &name, false).await });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let ((fs, parent, name), by) = (self.at(parent, name), credentials(request));
        self.empty(reply, async move { fs.remove(by, parent, &name, true).await });
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
        let Some(mode) = rename_mode(flags) else { return reply.error(Errno::EINVAL) };
        let ((fs, parent, name), by) = (self.at(parent, name), credentials(request));
        let (_, new_parent, new_name) = self.at(new_parent, new_name);
        self.empty(reply, async move { fs.rename(by, (parent, &name), (new_parent, &new_name), mode).await });
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let ((fs, parent, name), (_, ino)) = (self.at(parent, name), self.on(ino));
        self.entry(reply, async move { fs.link(ino, parent, &name).await });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let ((fs, ino), by) = (self.on(ino), credentials(request));
        let flags = flags.0;
        let thread = request.pid();
        self.opened(reply, async move {
            let handle = fs.open_file(by, ino, flags).await?;
            let quiet =
                if fs.is_quiet(handle, thread) { FopenFlags::FOPEN_NOFLUSH } else { FopenFlags::empty() };
            Ok((handle, opened_with(flags) | quiet))
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let ((fs, parent, name), by) = (self.at(parent, name), credentials(request));
        let (names, numbers) = (self.names(), self.numbers);
        self.run(async move {
            match fs.create(by, parent, &name, Mode { mode, umask }, flags).await {
                Ok((stat, handle)) => {
                    let stat = fs.tell_created(stat);
                    let names = if stat.keep { names } else { NOW };
                    let (attributes, handle) = (numbers.attributes(&stat), FileHandle(handle));
                    reply.created(&names, &attributes, Generation(0), handle, opened_with(flags));
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
        let fs = self.fs();
        self.data(reply, async move { fs.read(handle.0, offset, size).await });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (fs, ino) = self.on(ino);
        let from_cache = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let how = How {
            from_cache,
            clear_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            // What the descriptor says now: fcntl(2) may have changed it.
            append: !from_cache && flags.0 & libc::O_APPEND != 0,
        };
        let _runtime = self.runtime.enter();
        match fs.write_at_once(handle.0, offset, data, how) {
            Some(Ok(written)) => return reply.written(written.bytes),
            Some(Err(error)) => return reply.error(errno(&error)),
            None => (),
        }
        let data = data.to_vec();
        self.run(async move {
            match fs.write(handle.0, offset, &data, how).await {
                Ok(written) => {
                    reply.written(written.bytes);
                    if written.moved {
                        fs.drop_pages(ino);
                    }
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, handle: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        let fs = self.fs();
        self.empty(reply, async move { fs.close(handle.0, owner.0).await });
    }

    fn release(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let (fs, number) = (self.fs(), request.unique().0);
        self.run(async move {
            fs.release_by(handle.0, number).await;
            reply.ok();
        });
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let fs = self.fs();
        self.empty(reply, async move {
            if data_only { fs.fdatasync(handle.0).await } else { fs.fsync(handle.0).await }
        });
    }

    fn opendir(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let ((fs, ino), flags) = (self.on(ino), flags.0);
        self.opened(reply, async move { Ok((fs.open_directory(ino, flags).await?, FopenFlags::empty())) });
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let (fs, numbers) = (self.fs(), self.numbers);
        self.run(async move {
            let listing = async {
                let directory = fs.directory(handle.0)?;
                fs.read_directory(&directory, offset, false, ENTRIES).await
            };
            match listing.await {
                Ok(entries) => {
                    for entry in entries {
                        let name = OsStr::from_bytes(&entry.name);
                        if reply.add(numbers.to_kernel(entry.ino), entry.next, file_type(entry.kind), name) {
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
        let (fs, names, numbers) = (self.fs(), self.names(), self.numbers);
        self.run(async move {
            let listing = async {
                let directory = fs.directory(handle.0)?;
                fs.read_directory(&directory, offset, true, ENTRIES).await
            };
            match listing.await {
                Ok(entries) => {
                    for entry in entries {
                        let name = OsStr::from_bytes(&entry.name);
                        let ino = numbers.to_kernel(entry.ino);
                        // `.` and `..` are not looked up by the kernel, so they need no attributes.
                        let (told, ttl, attributes) = match entry.stat {
                            Some((stat, fresh)) => {
                                let stat = fs.tell(stat);
                                let ttl = if fresh && stat.keep { names } else { NOW };
                                (true, ttl, numbers.attributes(&stat))
                            }
                            None => (false, NOW, bare(ino, file_type(entry.kind))),
                        };
                        if reply.add(ino, entry.next, name, &ttl, &attributes, Generation(0)) {
                            if told {
                                fs.forget(entry.ino, 1);
                            }
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        let fs = self.fs();
        self.run(async move {
            fs.release_directory(handle.0).await;
            reply.ok();
        });
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let (fs, ino) = self.on(ino);
        self.empty(reply, async move { fs.sync_directory(ino).await });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let fs = self.fs();
        self.run(async move {
            match fs.room().await {
                Ok(room) => {
                    let unit = UNIT as u32;
                    let (total, free) = (room.total, room.free);
                    reply.statfs(total, free, free, room.inodes, room.inodes_free, unit, 255, unit);
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn setxattr(
        &self,
        request: &Request,
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
        let ((fs, ino, name), value) = (self.at(ino, name), value.to_vec());
        let by = credentials(request);
        self.empty(reply, async move { fs.set_xattr(by, ino, &name, &value, mode).await });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (fs, ino, name) = self.at(ino, name);
        self.xattr(reply, size, async move { fs.get_xattr(ino, &name).await });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let ((fs, ino), by) = (self.on(ino), credentials(request));
        self.xattr(reply, size, async move { fs.list_xattrs(by, ino).await });
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, ino, name) = self.at(ino, name);
        self.empty(reply, async move { fs.remove_xattr(ino, &name).await });
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks (default_permissions).
        reply.ok();
    }

    fn getlk(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let Some(kind) = lock_kind(kind) else { return reply.error(Errno::EINVAL) };
        let (fs, lock) = (self.fs(), Lock { start, end, kind, pid });
        self.run(async move {
            match fs.test_lock(handle.0, owner.0, lock).await {
                Ok(Some(held)) => reply.locked(held.start, held.end, lock_type(held.kind), held.pid),
                Ok(None) => reply.locked(start, end, libc::F_UNLCK, 0),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn setlk(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        wait: bool,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs();
        if kind == libc::F_UNLCK {
            return self.locked(reply, wait, async move { fs.unlock(handle.0, owner.0, start, end).await });
        }
        let Some(kind) = lock_kind(kind) else { return reply.error(Errno::EINVAL) };
        let (lock, thread) = (Lock { start, end, kind, pid }, request.pid());
        fs.note_lock(handle.0, owner.0, pid, request.unique().0);
        self.locked(reply, wait, async move {
            let patience = async {
                if wait {
                    signals::pending(thread).await;
                }
            };
            fs.set_lock(handle.0, owner.0, lock, patience).await
        });
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
        let (fs, by) = (self.fs(), credentials(request));
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
        let fs = self.fs();
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
        request: &Request,
        _: INodeNo,
        from: FileHandle,
        from_offset: u64,
        _: INodeNo,
        into: FileHandle,
        offset: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (fs, by) = (self.fs(), credentials(request));
        self.run(async move {
            match fs.copy_range(by, (from.0, from_offset), (into.0, offset), length).await {
                Ok(copied) => reply.written(copied),
                Err(error) => reply.error(errno(&error)),
            }
        });
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

/// How the kernel is to treat a descriptor that was opened with these flags of open(2).
fn opened_with(flags: i32) -> FopenFlags {
    if is_direct(flags) { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::FOPEN_KEEP_CACHE }
}
