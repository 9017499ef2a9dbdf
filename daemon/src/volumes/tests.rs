//! Volumes over stores in memory.

mod changes;
mod collecting;
mod files;
mod shares;
pub(crate) mod world;
