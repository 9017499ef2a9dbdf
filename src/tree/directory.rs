//! Entries of a directory, and what comes and goes with them in its inode.

use super::{Entry, Inode, Outcome, WorkingSet};
use crate::Error;
use crate::clock::Time;
use crate::id::Ino;
use crate::name::Name;

/// Puts a name into a directory: its counts and its times follow.
///
/// # Errors
/// `TooManyLinks` after four thousand million subdirectories. (LINK_MAX is not for directories, as in ext4.)
pub(super) fn add_entry(
    set: &mut WorkingSet,
    parent: Ino,
    name: &Name,
    child: &Inode,
    time: Time,
) -> Outcome<()> {
    let mut directory = set.inode(parent)?;
    directory.entries += 1;
    if child.is_directory() {
        directory.nlink =
            directory.nlink.checked_add(1).ok_or_else(|| Error::too_many_links(format!("inode {parent}")))?;
    }
    set.put_entry(parent, name.clone(), Some(Entry { ino: child.ino, kind: child.kind }));
    put_changed(set, directory, time);
    Ok(())
}

/// Takes a name out of a directory.
///
/// # Errors
/// `Corrupt` if the directory's counts cannot be right.
pub(super) fn remove_entry(
    set: &mut WorkingSet,
    parent: Ino,
    name: &Name,
    child: &Inode,
    time: Time,
) -> Outcome<()> {
    let mut directory = set.inode(parent)?;
    let wrong = || Error::corrupt(format!("the counts of directory {parent}"));
    directory.entries = directory.entries.checked_sub(1).ok_or_else(wrong)?;
    if child.is_directory() {
        directory.nlink = directory.nlink.checked_sub(1).ok_or_else(wrong)?;
    }
    set.put_entry(parent, name.clone(), None);
    put_changed(set, directory, time);
    Ok(())
}

fn put_changed(set: &mut WorkingSet, mut directory: Inode, time: Time) {
    directory.size = directory.entries;
    directory.mtime = time;
    directory.ctime = time;
    set.put_inode(directory);
}

/// The entry of a name.
///
/// # Errors
/// `NotFound`.
pub(super) fn existing(set: &WorkingSet, parent: Ino, name: &Name) -> Outcome<Entry> {
    set.entry(parent, name)?.ok_or_else(|| Error::not_found(name.to_lossy()).into())
}
