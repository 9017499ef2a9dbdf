//! fsck: whether all that is stored fits together.
//!
//! The rules are plain functions over what was read or counted; they are the same for a daemon at work
//! (`volumes/fsck.rs`) and for a data directory that no daemon uses (`command.rs`). What they need is read in the order of keys, side by
//! side, or lies in a scratch store in between, so that memory stays bounded.
//!
//! | file | what |
//! | --- | --- |
//! | `row.rs` | a row by itself |
//! | `tree.rs` | the walk over a volume |
//! | `inode.rs`, `names.rs`, `extents.rs` | the rules of an inode, of a name, of a chunk |
//! | `references.rs` | blocks against the extents that name them |
//! | `replicas.rs` | blocks against what lies on the nodes |
//! | `journal.rs` | the engine against the journal |
//! | `round.rs` | all of them but the journal, again and again until nothing is left to mend |
//! | `finding.rs`, `desk.rs`, `report.rs` | what is found, mended, told |
//! | `scratch.rs` | a place for what is counted |
//! | `command.rs` | `tandemd fsck` |

pub mod command;
mod desk;
mod extents;
pub(crate) mod finding;
mod inode;
mod journal;
mod names;
pub(crate) mod references;
pub(crate) mod replicas;
pub(crate) mod report;
mod round;
pub(crate) mod row;
pub(crate) mod scan;
pub(crate) mod scratch;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod tree;

pub use report::Report;
