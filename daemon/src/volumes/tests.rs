//! Volumes over stores in memory.

mod changes;
mod collecting;
mod compaction;
mod files;
pub(crate) mod fsck;
mod inline;
mod joining;
mod shares;
pub(crate) mod world;
