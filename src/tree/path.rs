//! From a path to an inode and back.

use super::{Inode, Outcome, WorkingSet, directory};
use crate::Error;
use crate::id::Ino;
use crate::name::Name;

/// How deep directories may lie in each other before a walk upwards gives up. Nothing real is so deep; damaged records
/// could lead in a circle.
const DEPTH_MAX: usize = 1 << 20;

/// The inode at a path from the root. Symbolic links are not followed.
///
/// # Errors
/// `NotFound`; `NotADirectory` when the path goes on below something else, a symbolic link included.
pub fn resolve(set: &WorkingSet, path: &[Name]) -> Outcome<Inode> {
    let mut inode = set.inode_ref(Ino::ROOT)?;
    for name in path {
        if !inode.is_directory() {
            return Err(Error::not_a_directory(name.to_lossy()).into());
        }
        inode = set.inode_ref(directory::existing(set, inode.ino, name)?.ino)?;
    }
    Ok(inode.clone())
}

/// The path from the root to an inode, by its first link.
///
/// # Errors
/// `NotFound`, also for an inode without links and for one below a removed directory.
pub fn path_of(set: &WorkingSet, ino: Ino) -> Outcome<Vec<Name>> {
    let mut names = Vec::new();
    let mut at = ino;
    while at != Ino::ROOT {
        let inode = set.inode_ref(at)?;
        let Some(name) = &inode.name else {
            return Err(Error::not_found(format!("a name of inode {at}")).into());
        };
        if names.len() == DEPTH_MAX {
            return Err(too_deep(ino));
        }
        names.push(name.clone());
        at = inode.parent;
    }
    names.reverse();
    Ok(names)
}

/// Whether a directory is `ancestor` or lies somewhere below it.
///
/// # Errors
/// `Loop` if it lies absurdly deep.
pub(super) fn is_within(set: &WorkingSet, ino: Ino, ancestor: Ino) -> Outcome<bool> {
    let mut at = ino;
    for _ in 0..DEPTH_MAX {
        if at == ancestor {
            return Ok(true);
        }
        if at == Ino::ROOT {
            return Ok(false);
        }
        at = set.inode_ref(at)?.parent;
    }
    Err(too_deep(ino))
}

fn too_deep(ino: Ino) -> super::Stop {
    Error::symlink_loop(format!("the directories above inode {ino}")).into()
}
