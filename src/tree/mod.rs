//! The POSIX rules, written once: plain functions over a working set of records, one file per family of calls.
//!
//! The daemon runs them on records loaded from its engine, the mount may run the very same ones on its cache. A
//! rule takes the time and all numbers from its mutation, so that applying a mutation is deterministic.
//!
//! What always holds, before and after every mutation:
//! - a directory's `entries` (and `size`) and `nlink` (2 and its subdirectories) are as its entries say;
//! - an inode with links has its first one in `parent` and `name`, and each further one under [`Key::Link`];
//! - an inode without links has no name and is listed under [`Key::Orphan`];
//! - extents lie in order, without overlap and before the end of their file; `allocated` and [`Usage::bytes`] are their
//!   sums, and a block has as many references as there are extents that name it.

pub mod acl;
mod clone;
mod create;
mod described;
mod directory;
mod extents;
mod link;
mod mode;
pub mod mutation;
mod path;
mod quota;
mod ranges;
mod reap;
pub mod record;
mod remove;
mod rename;
mod setattr;
pub mod working_set;
mod write;
mod xattr;

#[cfg(test)]
mod tests;

pub use create::new_root;
pub use extents::{Piece, extents_in, is_piece, seams};
pub use mutation::{Credentials, Mutation, NewNode, RenameMode, SetAttributes, WrittenExtent, XattrMode};
pub use path::{path_of, resolve};
pub use record::{
    CHUNK_SIZE, CLONE_MAX, Chunk, Entry, Extent, FILE_SIZE_MAX, Inode, Key, Kind, LINK_MAX, Record,
    SYMLINK_MAX, Usage, Want, XATTR_SIZE_MAX, XATTR_TOTAL_MAX,
};
pub use working_set::{Changes, Outcome, Stop, WorkingSet};

use crate::clock::Time;
use crate::{Error, Result};

/// Applies one mutation, wholly or not at all.
///
/// # Errors
/// `Missing`: load what is asked for, and apply it again. `Refused`: what the rule of the mutation says.
pub fn apply(set: &mut WorkingSet, mutation: &Mutation) -> Outcome<()> {
    set.attempt(|set| run(set, mutation))
}

fn run(set: &mut WorkingSet, mutation: &Mutation) -> Outcome<()> {
    if let Some(time) = time_of(mutation) {
        check_time(time)?;
    }
    match mutation {
        Mutation::Create { parent, name, ino, node, mode, by, time } => {
            let new = create::New { parent: *parent, name, ino: *ino, node, mode: *mode };
            create::create(set, &new, *by, *time)
        }
        Mutation::Link { ino, parent, name, time } => link::link(set, *ino, *parent, name, *time),
        Mutation::Unlink { parent, name, by, time } => remove::unlink(set, *parent, name, *by, *time),
        Mutation::RemoveDirectory { parent, name, by, time } => {
            remove::remove_directory(set, *parent, name, *by, *time)
        }
        Mutation::Rename { parent, name, new_parent, new_name, mode, by, time } => {
            rename::rename(set, (*parent, name), (*new_parent, new_name), *mode, *by, *time)
        }
        Mutation::SetAttributes { ino, set: change, by, time } => {
            setattr::set_attributes(set, *ino, change, *by, *time)
        }
        Mutation::Write { ino, extents, size, clear_privileges, time } => {
            write::write(set, extents, *size, write::Changing::new(*ino, *clear_privileges, *time))
        }
        Mutation::PunchHole { ino, offset, length, size, clear_privileges, time } => {
            let (range, changing) =
                ((*offset, *length), write::Changing::new(*ino, *clear_privileges, *time));
            write::punch_hole(set, range, *size, changing)
        }
        Mutation::CloneRange { ino, offset, from, from_offset, length, clear_privileges, time } => {
            let changing = write::Changing::new(*ino, *clear_privileges, *time);
            clone::clone_range(set, (*from, *from_offset), *offset, *length, changing)
        }
        Mutation::SetXattr { ino, name, value, mode, by, time } => {
            xattr::set_xattr(set, *ino, (name, value), *mode, *by, *time)
        }
        Mutation::RemoveXattr { ino, name, time } => xattr::remove_xattr(set, *ino, name, *time),
        Mutation::Reap { ino, chunks } => reap::reap(set, *ino, *chunks),
        Mutation::SetDigest { ino, content, sha256 } => reap::set_digest(set, *ino, *content, sha256),
        Mutation::Accessed { ino, after, time } => setattr::accessed(set, *ino, *after, *time),
        Mutation::Join { ino, number, extents, block } => write::join(set, (*ino, *number), extents, *block),
    }
}

fn time_of(mutation: &Mutation) -> Option<Time> {
    match mutation {
        Mutation::Create { time, .. }
        | Mutation::Link { time, .. }
        | Mutation::Unlink { time, .. }
        | Mutation::RemoveDirectory { time, .. }
        | Mutation::Rename { time, .. }
        | Mutation::SetAttributes { time, .. }
        | Mutation::Write { time, .. }
        | Mutation::PunchHole { time, .. }
        | Mutation::CloneRange { time, .. }
        | Mutation::SetXattr { time, .. }
        | Mutation::RemoveXattr { time, .. }
        | Mutation::Accessed { time, .. } => Some(*time),
        Mutation::Reap { .. } | Mutation::SetDigest { .. } | Mutation::Join { .. } => None,
    }
}

/// Refuses a time with a second's worth of nanoseconds or more (utimensat(2)).
fn check_time(time: Time) -> Result<()> {
    if time.nanos >= 1_000_000_000 {
        return Err(Error::invalid(format!("{} nanoseconds", time.nanos)));
    }
    Ok(())
}
