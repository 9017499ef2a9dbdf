//! The POSIX rules, written once: plain functions over a working set of records, one file per family of calls.
//!
//! The daemon runs them on records loaded from its engine, the mount may run the very same ones on its cache. A
//! rule takes the time and all numbers from its mutation, so that applying a mutation is deterministic.

pub mod mutation;
pub mod record;
pub mod working_set;

pub use mutation::{Credentials, Mutation, NewNode, RenameMode, SetAttributes, WrittenExtent, XattrMode};
pub use record::{
    CHUNK_SIZE, Chunk, Entry, Extent, FILE_SIZE_MAX, Inode, Key, Kind, LINK_MAX, Record, SYMLINK_MAX, Usage, Want,
    XATTR_SIZE_MAX, XATTR_TOTAL_MAX,
};
pub use working_set::{Changes, Outcome, Stop, WorkingSet};
