//! Attributes: chmod(2), chown(2), truncate(2), utimensat(2).

use super::{
    Credentials, FILE_SIZE_MAX, Inode, Key, Kind, Outcome, Record, SetAttributes, WorkingSet, check_time,
    mode, write, xattr,
};
use crate::clock::Time;
use crate::id::Ino;
use crate::{Error, Result};

/// Changes attributes; an empty change changes nothing. Works on inodes without links, which may be held open.
///
/// Who may do it is decided by the kernel of the mount; what the change takes away is decided here, as Linux does:
/// - a change of owner or group clears set-user-ID and set-group-ID of everything but directories, also when root
///   does it (`chown_common`; chown(2) leaves that open);
/// - another size clears them unless root does it (`file_remove_privs`);
/// - a mode that is given along with either is taken as it is, for it says what the result shall be.
///
/// # Errors
/// `Invalid` for a mode, owner or time that cannot be, and for the size of what has none; `IsADirectory`; `TooLarge`
/// (EFBIG); `Unsupported` for the mode of a symbolic link (chmod(2), fchmodat(2)); `NotFound`.
pub(super) fn set_attributes(
    set: &mut WorkingSet,
    ino: Ino,
    change: &SetAttributes,
    by: Credentials,
    time: Time,
) -> Outcome<()> {
    check(change)?;
    let mut inode = set.inode(ino)?;
    if *change == SetAttributes::default() {
        return Ok(());
    }
    if inode.kind == Kind::Symlink && change.mode.is_some() {
        return Err(Error::unsupported("the mode of a symbolic link").into());
    }
    if let Some(size) = change.size {
        inode = resize(set, inode, size, by, time)?;
    }
    if change.uid.is_some() || change.gid.is_some() {
        if !inode.is_directory() {
            inode.mode = mode::without_privileges(&inode, Some(by));
        }
        inode.uid = change.uid.unwrap_or(inode.uid);
        inode.gid = change.gid.unwrap_or(inode.gid);
    }
    inode.mode = change.mode.unwrap_or(inode.mode);
    inode.atime = change.atime.unwrap_or(inode.atime);
    inode.mtime = change.mtime.unwrap_or(inode.mtime);
    inode.ctime = time;
    if change.mode.is_some() {
        xattr::follow_mode(set, &inode)?;
    }
    set.put_inode(inode);
    Ok(())
}

/// Moves the atime of what was read, if that is news and it is still there.
///
/// # Errors
/// `Invalid` for a time that cannot be.
pub(super) fn accessed(set: &mut WorkingSet, ino: Ino, after: Time, time: Time) -> Outcome<()> {
    check_time(after)?;
    let moved = match set.get(&Key::Inode(ino))? {
        Some(Record::Inode(inode)) if inode.is_moved_by_read(after, time) => {
            Inode { atime: time, ..inode.as_ref().clone() }
        }
        _ => return Ok(()),
    };
    set.put_inode(moved);
    Ok(())
}

fn check(change: &SetAttributes) -> Result<()> {
    change.mode.map_or(Ok(()), mode::check)?;
    change.atime.map_or(Ok(()), check_time)?;
    change.mtime.map_or(Ok(()), check_time)?;
    if change.uid == Some(u32::MAX) || change.gid == Some(u32::MAX) {
        return Err(Error::invalid("user or group -1"));
    }
    Ok(())
}

fn resize(set: &mut WorkingSet, inode: Inode, size: u64, by: Credentials, time: Time) -> Outcome<Inode> {
    let mut inode = write::require_file(inode)?;
    if size > FILE_SIZE_MAX {
        return Err(Error::too_large(format!("{size} bytes")).into());
    }
    write::truncate(set, &mut inode, size)?;
    if by.uid != 0 {
        inode.mode = mode::without_privileges(&inode, Some(by));
    }
    inode.mtime = time;
    Ok(inode)
}
