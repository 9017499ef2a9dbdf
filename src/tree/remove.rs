//! Removing names: unlink(2), rmdir(2).

use super::working_set::both;
use super::{Credentials, Inode, Outcome, WorkingSet, directory, link, mode};
use crate::Error;
use crate::clock::Time;
use crate::id::Ino;
use crate::name::Name;

/// Removes a name that does not lead to a directory.
///
/// # Errors
/// `NotFound`, `NotADirectory` about the parent; `NotPermitted` in a sticky directory; `IsADirectory` (Linux; POSIX
/// would have EPERM).
pub(super) fn unlink(
    set: &mut WorkingSet,
    parent: Ino,
    name: &Name,
    by: Credentials,
    time: Time,
) -> Outcome<()> {
    let inode = removable(set, parent, name, by)?;
    if inode.is_directory() {
        return Err(Error::is_a_directory(name.to_lossy()).into());
    }
    link::drop_link(set, inode, parent, name, time)
}

/// Removes an empty directory.
///
/// # Errors
/// `NotFound`, `NotADirectory`; `NotPermitted` in a sticky directory; `NotEmpty`.
pub(super) fn remove_directory(
    set: &mut WorkingSet,
    parent: Ino,
    name: &Name,
    by: Credentials,
    time: Time,
) -> Outcome<()> {
    let inode = removable(set, parent, name, by)?;
    if !inode.is_directory() {
        return Err(Error::not_a_directory(name.to_lossy()).into());
    }
    if inode.entries > 0 {
        return Err(Error::not_empty(name.to_lossy()).into());
    }
    link::drop_link(set, inode, parent, name, time)
}

/// The inode behind a name that may be removed, as far as the directory is concerned.
fn removable(set: &WorkingSet, parent: Ino, name: &Name, by: Credentials) -> Outcome<Inode> {
    let (directory, entry) = both(set.directory(parent), directory::existing(set, parent, name))?;
    let inode = set.inode(entry.ino)?;
    mode::check_sticky(directory, &inode, by)?;
    Ok(inode)
}
