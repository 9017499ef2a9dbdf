//! Permission bits beyond reading, writing and executing: what sets and clears them (inode(7)).

use super::{Credentials, Inode};
use crate::{Error, Result};

/// Set-user-ID.
pub(super) const SET_UID: u32 = 0o4000;
/// Set-group-ID.
pub(super) const SET_GID: u32 = 0o2000;
/// Of a directory: only owners remove entries.
pub(super) const STICKY: u32 = 0o1000;
/// The group may execute.
const GROUP_EXECUTE: u32 = 0o010;
/// All bits that `chmod` knows.
const ALL: u32 = 0o7777;

/// Refuses bits that `chmod` does not know.
pub(super) fn check(mode: u32) -> Result<()> {
    if mode & !ALL != 0 {
        return Err(Error::invalid(format!("mode {mode:o}")));
    }
    Ok(())
}

/// Whether somebody counts as a member of a group. Only the first group is known here; the kernel of a mount
/// has looked at the others already.
pub(super) fn is_member(by: Credentials, gid: u32) -> bool {
    by.uid == 0 || by.gid == gid
}

/// The group and mode of something new in a directory: in a set-group-ID directory it has the directory's group,
/// and a directory the bit as well (mkdir(2), open(2)). What a group may execute does not get the bit by somebody
/// outside of that group, as Linux has it (`mode_strip_sgid`).
pub(super) fn inherit(parent: &Inode, is_directory: bool, mode: u32, by: Credentials) -> (u32, u32) {
    if parent.mode & SET_GID == 0 {
        return (by.gid, mode);
    }
    let runs_as_group = mode & (SET_GID | GROUP_EXECUTE) == SET_GID | GROUP_EXECUTE;
    let mode = match is_directory {
        true => mode | SET_GID,
        false if runs_as_group && !is_member(by, parent.gid) => mode & !SET_GID,
        false => mode,
    };
    (parent.gid, mode)
}

/// A mode without what a write, truncation or change of owner takes away: set-user-ID always, set-group-ID where the
/// group may execute. Without that it once marked files for mandatory locks, and only somebody outside
/// of the group (`by`, where it is known) loses it (`setattr_should_drop_sgid` in Linux).
pub(super) fn without_privileges(inode: &Inode, by: Option<Credentials>) -> u32 {
    let outsider = by.is_some_and(|by| !is_member(by, inode.gid));
    if inode.mode & GROUP_EXECUTE != 0 || outsider {
        inode.mode & !(SET_UID | SET_GID)
    } else {
        inode.mode & !SET_UID
    }
}

/// Whether somebody may remove or rename an entry of a directory: in a sticky one only the owner of the
/// directory, the owner of what the entry leads to, and root (unlink(2), rename(2): EPERM).
pub(super) fn check_sticky(directory: &Inode, child: &Inode, by: Credentials) -> Result<()> {
    if directory.mode & STICKY != 0 && by.uid != 0 && by.uid != child.uid && by.uid != directory.uid {
        return Err(Error::not_permitted(format!("directory {} is sticky", directory.ino)));
    }
    Ok(())
}
