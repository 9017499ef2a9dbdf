//! The files: inodes, what is in them, and what names them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::time::SystemTime;

use fuser::{Errno, FileAttr, FileType, INodeNo, Request};
use tandemfs::clock::{Clock, SystemClock};

use crate::passthrough::Backed;

pub(crate) fn now() -> SystemTime {
    SystemClock.now().to_system()
}

/// All files, by inode number.
pub(crate) struct Table {
    pub(crate) inodes: HashMap<u64, Inode>,
    next: u64,
}

pub(crate) struct Inode {
    pub(crate) attr: FileAttr,
    pub(crate) content: Content,
    /// How often the kernel was told of it and has not yet forgotten it: it may be unlinked and in use.
    pub(crate) lookups: u64,
}

pub(crate) enum Content {
    File(Vec<u8>),
    /// Of a file that the kernel reads and writes by itself.
    Backed(Backed),
    Directory(Directory),
    Symlink(Vec<u8>),
    Special,
}

/// Names, and their order: each has a position for good, so that a listing goes on while names come and go.
#[derive(Default)]
pub(crate) struct Directory {
    parent: u64,
    positions: HashMap<OsString, u64>,
    entries: BTreeMap<u64, (OsString, u64)>,
    last: u64,
}

impl Directory {
    pub(crate) fn get(&self, name: &OsStr) -> Option<u64> {
        self.positions.get(name).and_then(|position| self.entries.get(position)).map(|(_, ino)| *ino)
    }

    pub(crate) fn insert(&mut self, name: &OsStr, ino: u64) {
        // `.` and `..` come before all of them.
        self.last = self.last.max(2) + 1;
        self.positions.insert(name.to_owned(), self.last);
        self.entries.insert(self.last, (name.to_owned(), ino));
    }

    pub(crate) fn remove(&mut self, name: &OsStr) -> Option<u64> {
        self.positions.remove(name).and_then(|position| self.entries.remove(&position)).map(|(_, ino)| ino)
    }
}

impl Inode {
    pub(crate) fn directory(&mut self) -> Result<&mut Directory, Errno> {
        match &mut self.content {
            Content::Directory(directory) => Ok(directory),
            _ => Err(Errno::ENOTDIR),
        }
    }

    pub(crate) fn resize(&mut self, size: u64) -> Result<(), Errno> {
        match &mut self.content {
            Content::File(data) => data.resize(size as usize, 0),
            Content::Backed(backed) => backed.resize(size)?,
            _ => return Err(Errno::EINVAL),
        }
        self.sized();
        Ok(())
    }

    /// Brings the size up to date with what was written, by the kernel itself perhaps.
    pub(crate) fn measure(&mut self) {
        self.attr.size = match &self.content {
            Content::File(data) => data.len() as u64,
            Content::Backed(backed) => backed.size().unwrap_or(self.attr.size),
            _ => return,
        };
        self.attr.blocks = self.attr.size.div_ceil(512);
    }

    /// Brings size and times up to date with what was written.
    pub(crate) fn sized(&mut self) {
        self.measure();
        self.attr.mtime = now();
        self.attr.ctime = self.attr.mtime;
    }
}

impl Table {
    pub(crate) fn new() -> Self {
        let mut table = Self { inodes: HashMap::new(), next: INodeNo::ROOT.0 };
        table.add(FileType::Directory, 0o755, (0, 0), Content::Directory(Directory::default()));
        table
    }

    /// The number of the inode that is made next.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    pub(crate) fn get(&mut self, ino: INodeNo) -> Result<&mut Inode, Errno> {
        self.inodes.get_mut(&ino.0).ok_or(Errno::ENOENT)
    }

    pub(crate) fn add(&mut self, kind: FileType, mode: u32, (uid, gid): (u32, u32), content: Content) -> u64 {
        let (ino, now) = (self.next, now());
        let attr = FileAttr {
            ino: INodeNo(ino),
            size: if let Content::Symlink(target) = &content { target.len() as u64 } else { 0 },
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind,
            perm: (mode & 0o7777) as u16,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid,
            gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        self.next += 1;
        self.inodes.insert(ino, Inode { attr, content, lookups: 0 });
        ino
    }

    /// What the kernel is told of an inode that it is going to remember.
    pub(crate) fn tell(&mut self, ino: u64) -> Result<FileAttr, Errno> {
        let inode = self.get(INodeNo(ino))?;
        inode.lookups += 1;
        inode.measure();
        Ok(inode.attr)
    }

    pub(crate) fn find(&mut self, parent: INodeNo, name: &OsStr) -> Result<u64, Errno> {
        self.get(parent)?.directory()?.get(name).ok_or(Errno::ENOENT)
    }

    pub(crate) fn enter(&mut self, parent: INodeNo, name: &OsStr, ino: u64) -> Result<(), Errno> {
        self.get(parent)?.directory()?.insert(name, ino);
        if let Ok(directory) = self.get(INodeNo(ino))?.directory() {
            directory.parent = parent.0;
            self.get(parent)?.attr.nlink += 1;
        }
        self.get(parent)?.sized();
        Ok(())
    }

    /// Takes a name away and leaves the inode that it named.
    pub(crate) fn leave(&mut self, parent: INodeNo, name: &OsStr) -> Result<u64, Errno> {
        let ino = self.get(parent)?.directory()?.remove(name).ok_or(Errno::ENOENT)?;
        if self.get(INodeNo(ino))?.attr.kind == FileType::Directory {
            self.get(parent)?.attr.nlink -= 1;
        }
        self.get(parent)?.sized();
        Ok(ino)
    }

    pub(crate) fn make(
        &mut self,
        request: &Request,
        (parent, name): (INodeNo, &OsStr),
        kind: FileType,
        mode: u32,
        content: Content,
    ) -> Result<FileAttr, Errno> {
        if self.find(parent, name).is_ok() {
            return Err(Errno::EEXIST);
        }
        let ino = self.add(kind, mode, (request.uid(), request.gid()), content);
        self.enter(parent, name, ino)?;
        self.tell(ino)
    }

    pub(crate) fn remove(&mut self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        let ino = self.find(parent, name)?;
        if let Content::Directory(directory) = &self.get(INodeNo(ino))?.content
            && !directory.entries.is_empty()
        {
            return Err(Errno::ENOTEMPTY);
        }
        self.leave(parent, name)?;
        let inode = self.get(INodeNo(ino))?;
        inode.attr.nlink -= if inode.attr.kind == FileType::Directory { 2 } else { 1 };
        inode.attr.ctime = now();
        self.forget(ino, 0);
        Ok(())
    }

    pub(crate) fn rename(&mut self, from: (INodeNo, &OsStr), to: (INodeNo, &OsStr)) -> Result<(), Errno> {
        let ino = self.find(from.0, from.1)?;
        match self.find(to.0, to.1) {
            // Two names of one file: rename(2) says that nothing is done.
            Ok(other) if other == ino => return Ok(()),
            Ok(_) => self.remove(to.0, to.1)?,
            Err(_) => (),
        }
        self.leave(from.0, from.1)?;
        self.enter(to.0, to.1, ino)
    }

    /// Drops an inode that has no name and that the kernel does not know any more.
    pub(crate) fn forget(&mut self, ino: u64, times: u64) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.lookups = inode.lookups.saturating_sub(times);
            if inode.lookups == 0 && inode.attr.nlink == 0 {
                self.inodes.remove(&ino);
            }
        }
    }

    /// What stands in a directory behind a position: position, number and name.
    pub(crate) fn list(
        &self,
        ino: INodeNo,
        offset: u64,
    ) -> Result<impl Iterator<Item = (u64, &Inode, &OsStr)> + '_, Errno> {
        let inode = self.inodes.get(&ino.0).ok_or(Errno::ENOENT)?;
        let Content::Directory(directory) = &inode.content else { return Err(Errno::ENOTDIR) };
        let dots =
            [(1, ino.0, OsStr::new(".")), (2, directory.parent.max(INodeNo::ROOT.0), OsStr::new(".."))];
        let names =
            directory.entries.range(offset + 1..).map(|(next, (name, ino))| (*next, *ino, name.as_os_str()));
        let all = dots.into_iter().filter(move |(next, ..)| *next > offset).chain(names);
        Ok(all.filter_map(|(next, ino, name)| Some((next, self.inodes.get(&ino)?, name))))
    }
}
