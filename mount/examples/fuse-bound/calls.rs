//! The calls of the kernel, in fuser's order. Those that are missing are answered with ENOSYS, after which the kernel does without them.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};

use crate::Bound;
use crate::table::{Content, Directory, now};

const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// The largest write of the kernel.
const WRITE_MAX: u32 = 1 << 20;
/// Blocks of 4 KiB that statfs(2) is told of: 1 TiB.
const BLOCKS: u64 = 1 << 28;

fn entry(reply: ReplyEntry, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attr) => reply.entry(&FOREVER, &attr, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Bound {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
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
            // A kernel that lacks one does without it.
            let _lacking = config.add_capabilities(capability);
        }
        if self.passthrough.is_some() {
            let without = |_| io::Error::from(io::ErrorKind::Unsupported);
            config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).map_err(without)?;
            config.set_max_stack_depth(1).map_err(|_| io::Error::from(io::ErrorKind::Unsupported))?;
        }
        let _nearest = config.set_max_write(WRITE_MAX);
        let _nearest = config.set_max_background(64);
        Ok(())
    }

    /// The next mount's kernel knows nothing yet.
    fn destroy(&mut self) {
        let mut table = self.write();
        table.inodes.retain(|_, inode| inode.attr.nlink > 0);
        table.inodes.values_mut().for_each(|inode| inode.lookups = 0);
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut table = self.write();
        entry(reply, table.find(parent, name).and_then(|ino| table.tell(ino)));
    }

    fn forget(&self, _: &Request, ino: INodeNo, times: u64) {
        self.write().forget(ino.0, times);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.write().get(ino) {
            Ok(inode) => {
                inode.measure();
                reply.attr(&FOREVER, &inode.attr);
            }
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let time = |time| match time {
            TimeOrNow::SpecificTime(time) => time,
            TimeOrNow::Now => now(),
        };
        let mut table = self.write();
        let inode = match table.get(ino) {
            Ok(inode) => inode,
            Err(error) => return reply.error(error),
        };
        if let Some(Err(error)) = size.map(|size| inode.resize(size)) {
            return reply.error(error);
        }
        let attr = &mut inode.attr;
        attr.perm = mode.map_or(attr.perm, |mode| (mode & 0o7777) as u16);
        attr.uid = uid.unwrap_or(attr.uid);
        attr.gid = gid.unwrap_or(attr.gid);
        attr.atime = atime.map_or(attr.atime, time);
        attr.mtime = mtime.map_or(attr.mtime, time);
        attr.ctime = now();
        reply.attr(&FOREVER, attr);
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.read().inodes.get(&ino.0).map(|inode| &inode.content) {
            Some(Content::Symlink(target)) => reply.data(target),
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let mut table = self.write();
        let (kind, content) = match mode & libc::S_IFMT {
            libc::S_IFREG | 0 => (FileType::RegularFile, self.blank(&table)),
            libc::S_IFIFO => (FileType::NamedPipe, Ok(Content::Special)),
            libc::S_IFSOCK => (FileType::Socket, Ok(Content::Special)),
            _ => return reply.error(Errno::EPERM),
        };
        let content = match content {
            Ok(content) => content,
            Err(error) => return reply.error(error.into()),
        };
        entry(reply, table.make(request, (parent, name), kind, mode, content));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let content = Content::Directory(Directory::default());
        entry(reply, self.write().make(request, (parent, name), FileType::Directory, mode, content));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let content = Content::Symlink(target.as_os_str().as_bytes().to_vec());
        entry(reply, self.write().make(request, (parent, name), FileType::Symlink, 0o777, content));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.write().remove(parent, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.write().remove(parent, name));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut table = self.write();
        if flags == RenameFlags::RENAME_NOREPLACE && table.find(new_parent, new_name).is_ok() {
            return reply.error(Errno::EEXIST);
        }
        if !(flags.is_empty() || flags == RenameFlags::RENAME_NOREPLACE) {
            return reply.error(Errno::EINVAL);
        }
        empty(reply, table.rename((parent, name), (new_parent, new_name)));
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut table = self.write();
        let linked = table.enter(parent, name, ino.0).and_then(|()| {
            let attr = &mut table.get(ino)?.attr;
            attr.nlink += 1;
            attr.ctime = now();
            table.tell(ino.0)
        });
        entry(reply, linked);
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let mut table = self.write();
        if flags.0 & libc::O_TRUNC != 0
            && let Err(error) = table.get(ino).and_then(|inode| inode.resize(0))
        {
            return reply.error(error);
        }
        match table.get(ino).and_then(|inode| self.pass(inode, |file| reply.open_backing(file))) {
            Ok(Some(backing)) => reply.opened_passthrough(FileHandle(0), FopenFlags::empty(), &backing),
            Ok(None) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let mut table = self.write();
        let made = self.blank(&table).map_err(Errno::from).and_then(|content| {
            let attr = table.make(request, (parent, name), FileType::RegularFile, mode, content)?;
            Ok((attr, self.pass(table.get(attr.ino)?, |file| reply.open_backing(file))?))
        });
        let (generation, handle) = (Generation(0), FileHandle(0));
        match made {
            Ok((attr, Some(backing))) => {
                reply.created_passthrough(&FOREVER, &attr, generation, handle, FopenFlags::empty(), &backing);
            }
            Ok((attr, None)) => {
                reply.created(&FOREVER, &attr, generation, handle, FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.read().inodes.get(&ino.0).map(|inode| &inode.content) {
            Some(Content::File(data)) => {
                let begin = data.len().min(offset as usize);
                let end = data.len().min(begin + size as usize);
                reply.data(&data[begin..end]);
            }
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        new: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut table = self.write();
        let Some(inode) = table.inodes.get_mut(&ino.0) else { return reply.error(Errno::ENOENT) };
        let Content::File(data) = &mut inode.content else { return reply.error(Errno::EINVAL) };
        let (begin, end) = (offset as usize, offset as usize + new.len());
        if begin == data.len() {
            data.extend_from_slice(new);
        } else {
            data.resize(data.len().max(end), 0);
            data[begin..end].copy_from_slice(new);
        }
        inode.sized();
        reply.written(new.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        if let Some(passthrough) = &self.passthrough {
            passthrough.closed(ino);
        }
        reply.ok();
    }

    /// What is in memory has nothing to sync.
    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.read().inodes.get(&ino.0).map(|inode| &inode.content) {
            Some(Content::Backed(backed)) => empty(reply, backed.sync().map_err(Errno::from)),
            _ => reply.ok(),
        }
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let table = self.read();
        match table.list(ino, offset) {
            Ok(mut entries) => {
                entries.any(|(next, inode, name)| reply.add(inode.attr.ino, next, inode.attr.kind, name));
                reply.ok();
            }
            Err(error) => reply.error(error),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let mut told = Vec::new();
        let mut table = self.write();
        match table.list(ino, offset) {
            Ok(entries) => {
                for (next, inode, name) in entries {
                    let attr = &inode.attr;
                    if reply.add(attr.ino, next, name, &FOREVER, attr, Generation(0)) {
                        break;
                    }
                    // `.` and `..` are not looked up by the kernel.
                    if next > 2 {
                        told.push(attr.ino.0);
                    }
                }
            }
            Err(error) => return reply.error(error),
        }
        // Before the answer: the kernel may forget them as soon as it has it.
        for ino in told {
            let _known = table.tell(ino);
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCKS, 4096, 255, 4096);
    }
}
