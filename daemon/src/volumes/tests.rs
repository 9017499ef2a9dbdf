//! Volumes over stores in memory.

mod changes;
mod collecting;
mod files;
mod inline;
mod shares;
pub(crate) mod world;
