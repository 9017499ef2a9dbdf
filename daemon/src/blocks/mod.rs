//! Places that keep objects: a directory, memory, later another machine or a bucket.

#[cfg(test)]
mod contract;
mod direct;
pub mod disk;
pub mod faulty;
pub mod memory;

use async_trait::async_trait;
use bytes::Bytes;
use std::fmt::Debug;
use std::fs::File;
use std::ops::Range;
use tandemfs::Result;
use tandemfs::id::BlockId;

/// An object as a listing tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// The block that it holds.
    pub id: BlockId,
    /// Its bytes, header included.
    pub size: u64,
}

/// Room in a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that can still be written.
    pub free_bytes: u64,
}

/// A store of write-once objects, each the encoded form of one block (`tandemfs::block`). It does not look into them.
#[async_trait]
pub trait BlockStore: Send + Sync + Debug {
    /// Stores an object, in the place of one that is there. When it returns, the object is on stable storage under its name;
    /// if it fails, what was there before is still whole.
    ///
    /// # Errors
    /// `NoSpace`; `Unavailable`.
    async fn put(&self, id: &BlockId, object: Bytes) -> Result<()>;

    /// The object's bytes in `range`, cut at its end; all of them without a range.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable`.
    async fn get(&self, id: &BlockId, range: Option<Range<u64>>) -> Result<Bytes>;

    /// Whether it is there, and how long it is.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn head(&self, id: &BlockId) -> Result<Option<Object>>;

    /// The first `limit` objects after `after`, in the order of their ids.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn list(&self, after: Option<&BlockId>, limit: usize) -> Result<Vec<Object>>;

    /// Removes an object; nothing happens if it is not there. When it returns, it does not come back.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn delete(&self, id: &BlockId) -> Result<()>;

    /// The object as an open file of this machine; `None` where objects are no such files.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable`.
    async fn file(&self, _: &BlockId) -> Result<Option<File>> {
        Ok(None)
    }

    /// How much room there is; `None` where that cannot be said.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn room(&self) -> Result<Option<Room>>;
}

/// The part of an object of `size` bytes that `range` asks for: from, to.
fn cut(range: Option<Range<u64>>, size: u64) -> (u64, u64) {
    let range = range.unwrap_or(0..size);
    let to = range.end.min(size);
    (range.start.min(to), to)
}
