//! Names of inodes: link(2), and the way back from an inode to its names.
//!
//! An inode knows its first link (`parent`, `name`); each further one has a record under [`Key::Link`].

use super::working_set::both;
use super::{Inode, Key, LINK_MAX, Outcome, Record, Want, WorkingSet, directory};
use crate::Error;
use crate::clock::Time;
use crate::id::Ino;
use crate::name::Name;

/// Gives an inode another name.
///
/// # Errors
/// As link(2): `NotFound` also for an inode that has no name any more, `AlreadyExists`, `NotPermitted` for a directory,
/// `TooManyLinks`, `NotADirectory` about the parent.
pub(super) fn link(set: &mut WorkingSet, ino: Ino, parent: Ino, name: &Name, time: Time) -> Outcome<()> {
    let (mut inode, (_, entry)) = both(set.inode(ino), both(set.directory(parent), set.entry(parent, name)))?;
    if entry.is_some() {
        return Err(Error::already_exists(name.to_lossy()).into());
    }
    if inode.is_directory() {
        return Err(Error::not_permitted("a second name for a directory").into());
    }
    if inode.nlink == 0 {
        return Err(Error::not_found(format!("removed inode {ino}")).into());
    }
    if inode.nlink >= LINK_MAX {
        return Err(Error::too_many_links(format!("inode {ino}")).into());
    }
    inode.nlink += 1;
    inode.ctime = time;
    directory::add_entry(set, parent, name, &inode, time)?;
    set.put(Key::Link(ino, parent, name.clone()), Some(Record::Present));
    set.put_inode(inode);
    Ok(())
}

/// Takes a name away from an inode. Without any it becomes an orphan, and a directory is removed.
///
/// # Errors
/// `Corrupt` if the inode's links are not as its count says.
pub(super) fn drop_link(
    set: &mut WorkingSet,
    mut inode: Inode,
    parent: Ino,
    name: &Name,
    time: Time,
) -> Outcome<()> {
    let ino = inode.ino;
    inode.nlink = match inode.nlink {
        _ if inode.is_directory() => 0,
        0 => return Err(Error::corrupt(format!("inode {ino} has a name and no links")).into()),
        more => more - 1,
    };
    inode.ctime = time;
    if !is_first(&inode, parent, name) {
        set.put(Key::Link(ino, parent, name.clone()), None);
    } else if inode.nlink == 0 {
        inode.name = None;
    } else {
        promote(set, &mut inode)?;
    }
    if inode.nlink == 0 {
        set.put(Key::Orphan(ino), Some(Record::Present));
    }
    directory::remove_entry(set, parent, name, &inode, time)?;
    set.put_inode(inode);
    Ok(())
}

/// Makes another link the first one.
fn promote(set: &mut WorkingSet, inode: &mut Inode) -> Outcome<()> {
    let Some(key) = set.first(&Want::Links(inode.ino))? else {
        return Err(Error::corrupt(format!("a link of inode {} is not recorded", inode.ino)).into());
    };
    if let Key::Link(_, parent, name) = &key {
        inode.parent = *parent;
        inode.name = Some(name.clone());
    }
    set.put(key, None);
    Ok(())
}

/// Records that one of an inode's names is another one now. The directories' entries are the caller's.
pub(super) fn move_link(
    set: &mut WorkingSet,
    mut inode: Inode,
    (parent, name): (Ino, &Name),
    (new_parent, new_name): (Ino, &Name),
    time: Time,
) {
    if is_first(&inode, parent, name) {
        inode.parent = new_parent;
        inode.name = Some(new_name.clone());
    } else {
        set.put(Key::Link(inode.ino, parent, name.clone()), None);
        set.put(Key::Link(inode.ino, new_parent, new_name.clone()), Some(Record::Present));
    }
    inode.ctime = time;
    set.put_inode(inode);
}

fn is_first(inode: &Inode, parent: Ino, name: &Name) -> bool {
    inode.parent == parent && inode.name.as_ref() == Some(name)
}
