//! Making things: open(2) with O_CREAT, mkdir(2), mknod(2), symlink(2).

use super::working_set::both;
use super::{
    Credentials, Inode, Key, Kind, NewNode, Outcome, SYMLINK_MAX, WorkingSet, directory, mode, quota, xattr,
};
use crate::clock::Time;
use crate::id::Ino;
use crate::name::Name;
use crate::{Error, Result};

/// The permission bits of every symbolic link: they mean nothing (symlink(7)).
const SYMLINK_MODE: u32 = 0o777;

/// The root directory of a new volume.
pub fn new_root(time: Time, uid: u32, gid: u32) -> Inode {
    Inode { name: None, ..blank(Ino::ROOT, Kind::Directory, 0o755, (uid, gid), Ino::ROOT, time) }
}

/// What [`create`] makes, and where.
pub(super) struct New<'a> {
    pub(super) parent: Ino,
    pub(super) name: &'a Name,
    pub(super) ino: Ino,
    pub(super) node: &'a NewNode,
    pub(super) mode: u32,
}

/// Makes an inode with one name.
///
/// A driver that knows the number to be fresh may say so beforehand, by loading that there is no such inode.
///
/// # Errors
/// `Invalid` for a mode, a symbolic link's target or a number that cannot be; `NotFound`, `NotADirectory` about the
/// parent; `AlreadyExists`; `QuotaExceeded`.
pub(super) fn create(set: &mut WorkingSet, new: &New<'_>, by: Credentials, time: Time) -> Outcome<()> {
    mode::check(new.mode)?;
    check_owner(by)?;
    let target = check_target(new.node)?;
    let ((parent, entry), (same_number, _)) = both(
        both(set.directory(new.parent), set.entry(new.parent, new.name)),
        both(set.get(&Key::Inode(new.ino)), set.usage()),
    )?;
    if entry.is_some() {
        return Err(Error::already_exists(new.name.to_lossy()).into());
    }
    if new.ino.0 == 0 || same_number.is_some() {
        return Err(Error::invalid(format!("inode number {} is not free", new.ino)).into());
    }
    let (kind, rdev) = kind_of(new.node);
    let parent = &parent.clone();
    let (gid, mode) = mode::inherit(parent, kind == Kind::Directory, new.mode, by);
    let mode = if kind == Kind::Symlink { SYMLINK_MODE } else { mode };
    let mut inode = Inode {
        name: Some(new.name.clone()),
        rdev,
        size: target.map_or(0, |target| target.len() as u64),
        target: target.map(<[u8]>::to_vec),
        ..blank(new.ino, kind, mode, (by.uid, gid), new.parent, time)
    };
    xattr::inherit(set, parent, &mut inode)?;
    quota::take_inode(set)?;
    directory::add_entry(set, new.parent, new.name, &inode, time)?;
    set.put_inode(inode);
    Ok(())
}

/// Refuses the number -1, with which chown(2) says "as it is".
fn check_owner(by: Credentials) -> Result<()> {
    if by.uid == u32::MAX || by.gid == u32::MAX {
        return Err(Error::invalid("user or group -1"));
    }
    Ok(())
}

/// A symbolic link's target; symlink(2): ENOENT for an empty one, ENAMETOOLONG.
fn check_target(node: &NewNode) -> Result<Option<&[u8]>> {
    let NewNode::Symlink(target) = node else { return Ok(None) };
    match target.len() {
        0 => Err(Error::not_found("a symbolic link to nothing")),
        length if length > SYMLINK_MAX => Err(Error::name_too_long("the target of a symbolic link")),
        _ if target.contains(&0) => Err(Error::invalid("NUL in the target of a symbolic link")),
        _ => Ok(Some(target)),
    }
}

fn kind_of(node: &NewNode) -> (Kind, u32) {
    match *node {
        NewNode::File => (Kind::File, 0),
        NewNode::Directory => (Kind::Directory, 0),
        NewNode::Symlink(_) => (Kind::Symlink, 0),
        NewNode::Fifo => (Kind::Fifo, 0),
        NewNode::Socket => (Kind::Socket, 0),
        NewNode::CharDevice(rdev) => (Kind::CharDevice, rdev),
        NewNode::BlockDevice(rdev) => (Kind::BlockDevice, rdev),
    }
}

fn blank(ino: Ino, kind: Kind, mode: u32, (uid, gid): (u32, u32), parent: Ino, time: Time) -> Inode {
    Inode {
        ino,
        kind,
        mode,
        uid,
        gid,
        nlink: if kind == Kind::Directory { 2 } else { 1 },
        size: 0,
        allocated: 0,
        rdev: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        parent,
        name: None,
        entries: 0,
        target: None,
        xattr_bytes: 0,
        content: 0,
        sha256: None,
    }
}
