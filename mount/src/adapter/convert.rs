//! Between the types of the kernel and ours.

use std::time::SystemTime;

use fuser::{Errno, FileAttr, FileType, INodeNo, RenameFlags, Request, TimeOrNow};
use tandemfs::api::locks::LockKind;
use tandemfs::clock::Time;
use tandemfs::id::Ino;
use tandemfs::tree::{Credentials, Kind, NewNode, RenameMode};
use tandemfs::{Error, ErrorKind};

use crate::fs::{SetTime, Stat};

/// Inode numbers: the kernel calls the root of a mount 1 (FUSE_ROOT_ID), which is another inode of the volume when a
/// part of it is mounted. The two change places; the volume's own root lies outside then and is never told of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    root: Ino,
}

impl Numbers {
    /// For a mount of what lies below `root`.
    pub(super) fn new(root: Ino) -> Self {
        Self { root }
    }

    pub(super) fn of_kernel(self, number: INodeNo) -> Ino {
        self.swap(Ino(number.0))
    }

    pub(super) fn to_kernel(self, ino: Ino) -> INodeNo {
        INodeNo(self.swap(ino).0)
    }

    fn swap(self, ino: Ino) -> Ino {
        match ino {
            Ino::ROOT => self.root,
            ino if ino == self.root => Ino::ROOT,
            ino => ino,
        }
    }

    pub(super) fn attributes(self, stat: &Stat) -> FileAttr {
        let inode = &stat.inode;
        FileAttr {
            ino: self.to_kernel(inode.ino),
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
}

/// Attributes of which only the number and the type count.
pub(super) fn bare(ino: INodeNo, kind: FileType) -> FileAttr {
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

pub(super) fn errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::Corrupt | ErrorKind::Internal => log::error!("{error}"),
        _ => log::debug!("{error}"),
    }
    Errno::from_i32(error.errno())
}

pub(super) fn file_type(kind: Kind) -> FileType {
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

pub(super) fn credentials(request: &Request) -> Credentials {
    Credentials { uid: request.uid(), gid: request.gid() }
}

/// What mknod(2) is to make; `None` for what is no type of a file.
pub(super) fn new_node(mode: u32, rdev: u32) -> Option<NewNode> {
    Some(match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => NewNode::File,
        libc::S_IFIFO => NewNode::Fifo,
        libc::S_IFSOCK => NewNode::Socket,
        libc::S_IFCHR => NewNode::CharDevice(rdev),
        libc::S_IFBLK => NewNode::BlockDevice(rdev),
        _ => return None,
    })
}

/// Whom a lock of fcntl(2) keeps out; `None` for what is no lock.
pub(super) fn lock_kind(kind: i32) -> Option<LockKind> {
    match kind {
        libc::F_RDLCK => Some(LockKind::Read),
        libc::F_WRLCK => Some(LockKind::Write),
        _ => None,
    }
}

pub(super) fn lock_type(kind: LockKind) -> i32 {
    match kind {
        LockKind::Read => libc::F_RDLCK,
        LockKind::Write => libc::F_WRLCK,
    }
}

/// What renameat2(2) is to do; `None` for what we do not know.
pub(super) fn rename_mode(flags: RenameFlags) -> Option<RenameMode> {
    if flags.is_empty() {
        Some(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Some(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Some(RenameMode::Exchange)
    } else {
        None
    }
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::SpecificTime(time) => SetTime::At(sent_time(time)),
        TimeOrNow::Now => SetTime::Now,
    }
}

/// The time that the kernel sent. fuser 0.18 subtracts the nanoseconds of a time before 1970 that it should add
/// (a `timespec` counts them forward from its seconds): -1.5 s, sent as (-2, 500 million), arrives as -2.5 s.
pub(super) fn sent_time(arrived: SystemTime) -> Time {
    match SystemTime::UNIX_EPOCH.duration_since(arrived) {
        Ok(before) => Time {
            seconds: i64::try_from(before.as_secs()).map_or(i64::MIN, |seconds| -seconds),
            nanos: before.subsec_nanos(),
        },
        Err(_) => Time::from_system(arrived),
    }
}
