//! The model: a tree of nodes with their bytes, in the most obvious way, written from the man pages and knowing nothing of
//! records, extents or counts. What can be counted is counted when it is asked for.

use std::collections::{BTreeMap, BTreeSet};

use super::store::byte_of;
use crate::clock::Time;
use crate::id::Ino;
use crate::name::Name;
use crate::tree::{
    Credentials, Kind, Mutation, NewNode, RenameMode, SetAttributes, WrittenExtent, XattrMode,
};

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const E2BIG: i32 = 7;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;
const EFBIG: i32 = 27;
const ERANGE: i32 = 34;
const ENAMETOOLONG: i32 = 36;
const ENOTEMPTY: i32 = 39;
const ENODATA: i32 = 61;
const EOPNOTSUPP: i32 = 95;
const EDQUOT: i32 = 122;

const FOUR_MIB: u64 = 4 * 1024 * 1024;
const LARGEST: u64 = 9_223_372_036_854_775_807;

type Done = Result<(), i32>;

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: u32,
    pub(super) target: Option<Vec<u8>>,
    pub(super) children: BTreeMap<Name, Ino>,
    pub(super) size: u64,
    /// What was written, byte by byte.
    pub(super) bytes: BTreeMap<u64, u8>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) times: [Time; 4],
    pub(super) content: u64,
    pub(super) sha256: Option<Vec<u8>>,
}

const ATIME: usize = 0;
const MTIME: usize = 1;
const CTIME: usize = 2;

#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) nodes: BTreeMap<Ino, Node>,
    pub(super) quota_bytes: u64,
    pub(super) quota_inodes: u64,
}

fn need(condition: bool, errno: i32) -> Done {
    if condition { Ok(()) } else { Err(errno) }
}

fn check_time(time: &Time) -> Done {
    need(time.nanos < 1_000_000_000, EINVAL)
}

impl Model {
    pub(super) fn new(quota_bytes: u64, quota_inodes: u64) -> Self {
        let root = Node::new(Kind::Directory, 0o755, 0, 0, super::store::at(0));
        Self { nodes: [(Ino::ROOT, root)].into(), quota_bytes, quota_inodes }
    }

    /// All names, in order.
    pub(super) fn entries(&self) -> Vec<(Ino, Name, Ino)> {
        let of = |(parent, node): (&Ino, &Node)| -> Vec<(Ino, Name, Ino)> {
            node.children.iter().map(|(name, child)| (*parent, name.clone(), *child)).collect()
        };
        self.nodes.iter().flat_map(of).collect()
    }

    pub(super) fn nlink(&self, ino: Ino) -> u32 {
        let names = self.entries().iter().filter(|(_, _, child)| *child == ino).count() as u32;
        if self.nodes[&ino].kind != Kind::Directory {
            return names;
        }
        if names == 0 && ino != Ino::ROOT {
            return 0;
        }
        let children = self.nodes[&ino].children.values();
        2 + children.filter(|child| self.nodes[child].kind == Kind::Directory).count() as u32
    }

    /// Every path that leads to an inode.
    pub(super) fn paths(&self, ino: Ino) -> BTreeSet<Vec<Name>> {
        if ino == Ino::ROOT {
            return [vec![]].into();
        }
        let mut paths = BTreeSet::new();
        for (parent, name, _) in self.entries().into_iter().filter(|(_, _, child)| *child == ino) {
            for mut path in self.paths(parent) {
                path.push(name.clone());
                paths.insert(path);
            }
        }
        paths
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.nodes.values().map(|node| node.bytes.len() as u64).sum()
    }

    fn node(&self, ino: Ino) -> Result<&Node, i32> {
        self.nodes.get(&ino).ok_or(ENOENT)
    }

    fn edit(&mut self, ino: Ino) -> &mut Node {
        self.nodes.get_mut(&ino).unwrap()
    }

    fn directory(&self, ino: Ino) -> Result<&Node, i32> {
        let node = self.node(ino)?;
        need(node.kind == Kind::Directory, ENOTDIR)?;
        need(self.nlink(ino) > 0, ENOENT)?;
        Ok(node)
    }

    fn file(&self, ino: Ino) -> Result<&Node, i32> {
        let node = self.node(ino)?;
        need(node.kind != Kind::Directory, EISDIR)?;
        need(node.kind == Kind::File, EINVAL)?;
        Ok(node)
    }

    fn child(&self, parent: Ino, name: &Name) -> Result<Ino, i32> {
        self.directory(parent)?.children.get(name).copied().ok_or(ENOENT)
    }

    fn is_directory(&self, ino: Ino) -> bool {
        self.nodes[&ino].kind == Kind::Directory
    }

    fn check_sticky(&self, directory: Ino, child: Ino, by: Credentials) -> Done {
        let (directory, child) = (&self.nodes[&directory], &self.nodes[&child]);
        let owners = [0, directory.uid, child.uid];
        need(directory.mode & 0o1000 == 0 || owners.contains(&by.uid), EPERM)
    }

    fn touch_directory(&mut self, ino: Ino, time: Time) {
        let node = self.edit(ino);
        node.times[MTIME] = time;
        node.times[CTIME] = time;
    }

    /// Whether `below` is `above` or reached from it.
    fn reaches(&self, above: Ino, below: Ino) -> bool {
        above == below || self.nodes[&above].children.values().any(|child| self.reaches(*child, below))
    }

    pub(super) fn apply(&mut self, mutation: &Mutation) -> Done {
        match mutation {
            Mutation::Create { parent, name, ino, node, mode, by, time } => {
                check_time(time)?;
                self.create((*parent, name), *ino, node, *mode, *by, *time)
            }
            Mutation::Link { ino, parent, name, time } => {
                check_time(time)?;
                let kind = self.node(*ino)?.kind;
                need(!self.directory(*parent)?.children.contains_key(name), EEXIST)?;
                need(kind != Kind::Directory, EPERM)?;
                need(self.nlink(*ino) > 0, ENOENT)?;
                self.edit(*parent).children.insert(name.clone(), *ino);
                self.touch_directory(*parent, *time);
                self.edit(*ino).times[CTIME] = *time;
                Ok(())
            }
            Mutation::Unlink { parent, name, by, time } => {
                check_time(time)?;
                let ino = self.child(*parent, name)?;
                self.check_sticky(*parent, ino, *by)?;
                need(!self.is_directory(ino), EISDIR)?;
                self.remove(*parent, name, *time);
                Ok(())
            }
            Mutation::RemoveDirectory { parent, name, by, time } => {
                check_time(time)?;
                let ino = self.child(*parent, name)?;
                self.check_sticky(*parent, ino, *by)?;
                need(self.is_directory(ino), ENOTDIR)?;
                need(self.nodes[&ino].children.is_empty(), ENOTEMPTY)?;
                self.remove(*parent, name, *time);
                Ok(())
            }
            Mutation::Rename { parent, name, new_parent, new_name, mode, by, time } => {
                check_time(time)?;
                self.rename((*parent, name), (*new_parent, new_name), *mode, *by, *time)
            }
            Mutation::SetAttributes { ino, set, by, time } => {
                check_time(time)?;
                self.set_attributes(*ino, set, *by, *time)
            }
            Mutation::Write { ino, extents, size, clear_privileges, time } => {
                check_time(time)?;
                self.write(*ino, extents, *size, *clear_privileges, *time)
            }
            Mutation::PunchHole { ino, offset, length, size, clear_privileges, time } => {
                check_time(time)?;
                self.punch_hole(*ino, (*offset, *length), *size, *clear_privileges, *time)
            }
            Mutation::CloneRange { ino, offset, from, from_offset, length, clear_privileges, time } => {
                check_time(time)?;
                let places = ((*from, *from_offset), (*ino, *offset));
                self.clone_range(places, *length, *clear_privileges, *time)
            }
            Mutation::SetXattr { ino, name, value, mode, time, .. } => {
                check_time(time)?;
                check_attribute(name)?;
                need(value.len() <= 65536, E2BIG)?;
                self.may_have_attribute(*ino, name)?;
                let is_there = self.nodes[ino].xattrs.contains_key(name);
                need(!(is_there && *mode == XattrMode::Create), EEXIST)?;
                need(is_there || *mode != XattrMode::Replace, ENODATA)?;
                self.edit(*ino).xattrs.insert(name.clone(), value.clone());
                self.edit(*ino).times[CTIME] = *time;
                Ok(())
            }
            Mutation::RemoveXattr { ino, name, time } => {
                check_time(time)?;
                check_attribute(name)?;
                self.may_have_attribute(*ino, name)?;
                self.edit(*ino).xattrs.remove(name).ok_or(ENODATA)?;
                self.edit(*ino).times[CTIME] = *time;
                Ok(())
            }
            Mutation::Reap { ino, chunks } => {
                if self.nodes.contains_key(ino) && self.nlink(*ino) == 0 {
                    self.reap(*ino, *chunks as usize);
                }
                Ok(())
            }
            Mutation::SetDigest { ino, content, sha256 } => {
                need(sha256.len() == 32, EINVAL)?;
                if self.file(*ino)?.content == *content {
                    self.edit(*ino).sha256 = Some(sha256.clone());
                }
                Ok(())
            }
            // It moves content that is the same afterwards.
            Mutation::Join { .. } => Ok(()),
            Mutation::Accessed { ino, after, time } => {
                check_time(time)?;
                check_time(after)?;
                if let Some(node) = self.nodes.get_mut(ino)
                    && node.times[ATIME] >= *after
                {
                    node.times[ATIME] = node.times[ATIME].max(*time);
                }
                Ok(())
            }
        }
    }

    fn create(
        &mut self,
        (parent, name): (Ino, &Name),
        ino: Ino,
        new: &NewNode,
        mode: u32,
        by: Credentials,
        time: Time,
    ) -> Done {
        need(mode < 0o10000, EINVAL)?;
        if let NewNode::Symlink(target) = new {
            need(!target.is_empty(), ENOENT)?;
            need(target.len() < 4096, ENAMETOOLONG)?;
        }
        let directory = self.directory(parent)?;
        need(!directory.children.contains_key(name), EEXIST)?;
        need(ino != Ino(0) && !self.nodes.contains_key(&ino), EINVAL)?;
        need(self.nodes.len() as u64 <= self.quota_inodes, EDQUOT)?;
        let kind = match new {
            NewNode::File => Kind::File,
            NewNode::Directory => Kind::Directory,
            NewNode::Symlink(_) => Kind::Symlink,
            NewNode::Fifo => Kind::Fifo,
            NewNode::Socket => Kind::Socket,
            NewNode::CharDevice(_) => Kind::CharDevice,
            NewNode::BlockDevice(_) => Kind::BlockDevice,
        };
        let mut node = Node::new(kind, mode, by.uid, by.gid, time);
        if directory.mode & 0o2000 != 0 {
            node.gid = directory.gid;
            if kind == Kind::Directory {
                node.mode |= 0o2000;
            } else if mode & 0o2010 == 0o2010 && by.uid != 0 && by.gid != directory.gid {
                node.mode &= !0o2000;
            }
        }
        if let NewNode::CharDevice(rdev) | NewNode::BlockDevice(rdev) = new {
            node.rdev = *rdev;
        }
        if let NewNode::Symlink(target) = new {
            node.mode = 0o777;
            node.size = target.len() as u64;
            node.target = Some(target.clone());
        }
        self.nodes.insert(ino, node);
        self.edit(parent).children.insert(name.clone(), ino);
        self.touch_directory(parent, time);
        Ok(())
    }

    fn remove(&mut self, parent: Ino, name: &Name, time: Time) {
        let ino = self.edit(parent).children.remove(name).unwrap();
        self.touch_directory(parent, time);
        self.edit(ino).times[CTIME] = time;
    }

    fn rename(
        &mut self,
        (parent, name): (Ino, &Name),
        (new_parent, new_name): (Ino, &Name),
        mode: RenameMode,
        by: Credentials,
        time: Time,
    ) -> Done {
        self.directory(parent)?;
        self.directory(new_parent)?;
        let source = self.child(parent, name)?;
        let target = self.child(new_parent, new_name).ok();
        need(target.is_none() || mode != RenameMode::NoReplace, EEXIST)?;
        need(target.is_some() || mode != RenameMode::Exchange, ENOENT)?;
        need(!self.reaches(source, new_parent), EINVAL)?;
        if let Some(target) = target {
            let errno = if mode == RenameMode::Exchange { EINVAL } else { ENOTEMPTY };
            need(!self.reaches(target, parent), errno)?;
            if target == source {
                return Ok(());
            }
        }
        self.check_sticky(parent, source, by)?;
        if let Some(target) = target {
            self.check_sticky(new_parent, target, by)?;
            if mode != RenameMode::Exchange {
                match (self.is_directory(source), self.is_directory(target)) {
                    (true, false) => return Err(ENOTDIR),
                    (false, true) => return Err(EISDIR),
                    (true, true) => need(self.nodes[&target].children.is_empty(), ENOTEMPTY)?,
                    (false, false) => {}
                }
            }
            self.edit(target).times[CTIME] = time;
        }
        self.edit(parent).children.remove(name);
        self.edit(new_parent).children.insert(new_name.clone(), source);
        if let (Some(target), RenameMode::Exchange) = (target, mode) {
            self.edit(parent).children.insert(name.clone(), target);
        }
        self.touch_directory(parent, time);
        self.touch_directory(new_parent, time);
        self.edit(source).times[CTIME] = time;
        Ok(())
    }

    fn set_attributes(&mut self, ino: Ino, set: &SetAttributes, by: Credentials, time: Time) -> Done {
        need(set.mode.is_none_or(|mode| mode < 0o10000), EINVAL)?;
        set.atime.iter().chain(&set.mtime).try_for_each(check_time)?;
        need(set.uid != Some(u32::MAX) && set.gid != Some(u32::MAX), EINVAL)?;
        let node = self.node(ino)?;
        need(node.kind != Kind::Symlink || set.mode.is_none(), EOPNOTSUPP)?;
        if let Some(size) = set.size {
            self.file(ino)?;
            need(size <= LARGEST, EFBIG)?;
        }
        if *set == SetAttributes::default() {
            return Ok(());
        }
        let node = self.edit(ino);
        node.times[CTIME] = time;
        let is_outsider = by.uid != 0 && by.gid != node.gid;
        let drops_sgid = node.mode & 0o010 != 0 || is_outsider;
        let cleared = node.mode & if drops_sgid { 0o1777 } else { 0o3777 };
        if let Some(size) = set.size {
            node.times[MTIME] = time;
            if size != node.size {
                node.content += 1;
                node.sha256 = None;
                node.size = size;
                node.bytes.retain(|at, _| *at < size);
            }
            if by.uid != 0 {
                node.mode = cleared;
            }
        }
        if (set.uid.is_some() || set.gid.is_some()) && node.kind != Kind::Directory {
            node.mode = cleared;
        }
        node.uid = set.uid.unwrap_or(node.uid);
        node.gid = set.gid.unwrap_or(node.gid);
        node.mode = set.mode.unwrap_or(node.mode);
        node.times[ATIME] = set.atime.unwrap_or(node.times[ATIME]);
        node.times[MTIME] = set.mtime.unwrap_or(node.times[MTIME]);
        Ok(())
    }

    fn write(&mut self, ino: Ino, extents: &[WrittenExtent], size: u64, clear: bool, time: Time) -> Done {
        need(!extents.is_empty(), EINVAL)?;
        for extent in extents {
            let in_block = u128::from(extent.block_offset) + u128::from(extent.length);
            need(extent.length > 0 && in_block <= u128::from(FOUR_MIB), EINVAL)?;
            need(u128::from(extent.offset) + u128::from(extent.length) <= u128::from(LARGEST), EFBIG)?;
        }
        need(size <= LARGEST, EFBIG)?;
        let mut node = self.file(ino)?.clone();
        for extent in extents {
            for i in 0..extent.length {
                let byte = byte_of(extent.block.0[0], u64::from(extent.block_offset) + i);
                node.bytes.insert(extent.offset + i, byte);
            }
            node.size = node.size.max(extent.offset + extent.length);
        }
        node.size = node.size.max(size);
        self.change_content(ino, node, true, clear, time)
    }

    fn punch_hole(
        &mut self,
        ino: Ino,
        (offset, length): (u64, u64),
        size: u64,
        clear: bool,
        time: Time,
    ) -> Done {
        need(size <= LARGEST, EFBIG)?;
        let end = u128::from(offset) + u128::from(length);
        need(end <= u128::from(LARGEST), EFBIG)?;
        let mut node = self.file(ino)?.clone();
        let before = (node.bytes.len(), node.size);
        node.bytes.retain(|at, _| *at < offset || u128::from(*at) >= end);
        node.size = node.size.max(size);
        let changed = before != (node.bytes.len(), node.size);
        self.change_content(ino, node, changed, clear, time)
    }

    fn clone_range(
        &mut self,
        ((from, from_offset), (ino, offset)): ((Ino, u64), (Ino, u64)),
        length: u64,
        clear: bool,
        time: Time,
    ) -> Done {
        need((1..=256 << 20).contains(&length), EINVAL)?;
        let end = |offset: u64| u128::from(offset) + u128::from(length);
        need(end(offset) <= u128::from(LARGEST) && end(from_offset) <= u128::from(LARGEST), EFBIG)?;
        need(from != ino || offset.abs_diff(from_offset) >= length, EINVAL)?;
        let source = self.file(from)?;
        let mut node = self.file(ino)?.clone();
        need(from_offset + length <= source.size, ERANGE)?;
        node.bytes.retain(|at, _| *at < offset || *at >= offset + length);
        let cloned = source.bytes.range(from_offset..from_offset + length);
        node.bytes.extend(cloned.map(|(at, byte)| (at - from_offset + offset, *byte)));
        node.size = node.size.max(offset + length);
        self.change_content(ino, node, true, clear, time)
    }

    /// Puts a file that was written to in its place.
    fn change_content(&mut self, ino: Ino, mut node: Node, changed: bool, clear: bool, time: Time) -> Done {
        let before = self.nodes[&ino].bytes.len();
        let used = self.used_bytes() - before as u64 + node.bytes.len() as u64;
        need(node.bytes.len() <= before || used <= self.quota_bytes, EDQUOT)?;
        if clear {
            node.mode &= if node.mode & 0o010 != 0 { 0o1777 } else { 0o3777 };
        }
        if changed {
            node.content += 1;
            node.sha256 = None;
        }
        node.times[MTIME] = time;
        node.times[CTIME] = time;
        self.nodes.insert(ino, node);
        Ok(())
    }

    fn may_have_attribute(&self, ino: Ino, name: &[u8]) -> Done {
        let kind = self.node(ino)?.kind;
        need(kind == Kind::File || kind == Kind::Directory || !name.starts_with(b"user."), EPERM)
    }

    fn reap(&mut self, ino: Ino, at_most: usize) {
        let node = self.edit(ino);
        let chunks: BTreeSet<u64> = node.bytes.keys().map(|at| at / FOUR_MIB).collect();
        // It looks no further for more chunks than where it has found some.
        let end = node.size.div_ceil(FOUR_MIB);
        let mut window = at_most as u64;
        while window > 0 && window < end && chunks.range(end - window..).next().is_none() {
            window *= 2;
        }
        let found = chunks.range(end.saturating_sub(window)..);
        if let Some(first) = found.rev().take(at_most).last() {
            node.size = node.size.min(first * FOUR_MIB);
            node.bytes =
                node.bytes.split_off(&0).into_iter().filter(|(at, _)| at / FOUR_MIB < *first).collect();
        }
        if node.bytes.is_empty() {
            self.nodes.remove(&ino);
        }
    }
}

fn check_attribute(name: &[u8]) -> Done {
    need((1..=255).contains(&name.len()), ERANGE)?;
    need(!name.contains(&0), EINVAL)?;
    let kept = ["user.", "trusted.", "security."];
    need(!kept.iter().any(|namespace| namespace.as_bytes() == name), EINVAL)?;
    need(kept.iter().any(|namespace| name.starts_with(namespace.as_bytes())), EOPNOTSUPP)
}

impl Node {
    fn new(kind: Kind, mode: u32, uid: u32, gid: u32, time: Time) -> Self {
        Self {
            kind,
            mode,
            uid,
            gid,
            rdev: 0,
            target: None,
            children: BTreeMap::new(),
            size: 0,
            bytes: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            times: [time; 4],
            content: 0,
            sha256: None,
        }
    }
}
