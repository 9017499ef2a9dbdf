//! rename(2) and renameat2(2) with RENAME_NOREPLACE and RENAME_EXCHANGE.

use super::working_set::both;
use super::{Credentials, Inode, Outcome, RenameMode, WorkingSet, directory, link, mode, path};
use crate::Error;
use crate::clock::Time;
use crate::id::Ino;
use crate::name::Name;

/// A place in the tree: a directory and a name in it.
pub(super) type Place<'a> = (Ino, &'a Name);

/// Moves a name, over another one or in exchange for it.
///
/// # Errors
/// In the order in which Linux looks: `NotFound` and `NotADirectory` about the directories, `NotFound` about what is
/// moved or exchanged, `AlreadyExists` (NOREPLACE), `Invalid` into its own subtree, `NotEmpty` onto a directory that
/// it is in; nothing more if both names lead to the same inode; `NotPermitted` in sticky directories; `NotADirectory`
/// for a directory onto something else, `IsADirectory` the other way round, `NotEmpty`.
pub(super) fn rename(
    set: &mut WorkingSet,
    from: Place<'_>,
    to: Place<'_>,
    how: RenameMode,
    by: Credentials,
    time: Time,
) -> Outcome<()> {
    let ((parent, new_parent), (entry, target)) = both(
        both(set.directory(from.0), set.directory(to.0)),
        both(directory::existing(set, from.0, from.1), set.entry(to.0, to.1)),
    )?;
    match (how, target) {
        (RenameMode::NoReplace, Some(_)) => return Err(Error::already_exists(to.1.to_lossy()).into()),
        (RenameMode::Exchange, None) => return Err(Error::not_found(to.1.to_lossy()).into()),
        _ => {}
    }
    let (source, target) = both(set.inode(entry.ino), target.map(|entry| set.inode(entry.ino)).transpose())?;
    if from.0 != to.0 {
        check_subtrees(set, from.0, &source, to.0, target.as_ref(), how)?;
    }
    if target.as_ref().is_some_and(|target| target.ino == source.ino) {
        return Ok(());
    }
    mode::check_sticky(parent, &source, by)?;
    if let Some(target) = &target {
        mode::check_sticky(new_parent, target, by)?;
    }
    match (how, target) {
        (RenameMode::Exchange, Some(target)) => exchange(set, (from, source), (to, target), time),
        (_, target) => {
            if let Some(target) = target {
                check_replaceable(&source, &target, to.1)?;
                link::drop_link(set, target, to.0, to.1, time)?;
            }
            directory::remove_entry(set, from.0, from.1, &source, time)?;
            directory::add_entry(set, to.0, to.1, &source, time)?;
            link::move_link(set, source, from, to, time);
            Ok(())
        }
    }
}

/// Refuses to make a directory its own descendant.
fn check_subtrees(
    set: &WorkingSet,
    parent: Ino,
    source: &Inode,
    new_parent: Ino,
    target: Option<&Inode>,
    how: RenameMode,
) -> Outcome<()> {
    if source.is_directory() && path::is_within(set, new_parent, source.ino)? {
        return Err(Error::invalid("a directory cannot be moved into itself").into());
    }
    if let Some(target) = target.filter(|target| target.is_directory())
        && path::is_within(set, parent, target.ino)?
    {
        return Err(match how {
            RenameMode::Exchange => Error::invalid("a directory cannot be moved into itself"),
            _ => Error::not_empty(format!("inode {}", target.ino)),
        }
        .into());
    }
    Ok(())
}

fn check_replaceable(source: &Inode, target: &Inode, name: &Name) -> Outcome<()> {
    Err(match (source.is_directory(), target.is_directory()) {
        (true, false) => Error::not_a_directory(name.to_lossy()),
        (false, true) => Error::is_a_directory(name.to_lossy()),
        (true, true) if target.entries > 0 => Error::not_empty(name.to_lossy()),
        _ => return Ok(()),
    }
    .into())
}

fn exchange(
    set: &mut WorkingSet,
    (one_place, one): (Place<'_>, Inode),
    (other_place, other): (Place<'_>, Inode),
    time: Time,
) -> Outcome<()> {
    directory::remove_entry(set, one_place.0, one_place.1, &one, time)?;
    directory::remove_entry(set, other_place.0, other_place.1, &other, time)?;
    directory::add_entry(set, other_place.0, other_place.1, &one, time)?;
    directory::add_entry(set, one_place.0, one_place.1, &other, time)?;
    link::move_link(set, one, one_place, other_place, time);
    link::move_link(set, other, other_place, one_place, time);
    Ok(())
}
