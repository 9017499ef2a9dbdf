//! Volumes over stores in memory.

mod changes;
mod collecting;
mod files;
pub(crate) mod fsck;
mod inline;
mod shares;
pub(crate) mod world;
