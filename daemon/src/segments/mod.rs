//! Places that keep segments, beside objects: files that grow at their end. The journal is written in them.

#[cfg(test)]
mod contract;
pub mod disk;
#[cfg(test)]
pub(crate) mod faulty;
pub mod memory;

use async_trait::async_trait;
use bytes::Bytes;
use std::fmt::Debug;
use std::ops::Range;
use tandemfs::Result;

/// The most that one call may append or read, in bytes.
pub const PIECE_MAX: usize = 96 << 20;

/// A segment as a listing tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its number; none is used twice.
    pub number: u64,
    /// Its bytes, with what a failed append may have left at its end.
    pub size: u64,
}

/// A store of segments. It does not look into them.
#[async_trait]
pub trait SegmentStore: Send + Sync + Debug {
    /// Writes at the end of a segment; at 0 it is made. When it returns, the bytes are on stable storage. If it fails, or its caller
    /// goes away, any part of them may be there, now or later.
    ///
    /// # Errors
    /// `Stale` when the segment is not `at` bytes long, `AlreadyExists` when one that is to be made is there; `NoSpace`; `Unavailable`.
    async fn append(&self, number: u64, at: u64, bytes: Bytes) -> Result<()>;

    /// The bytes of a segment in `range`, cut at its end.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable`.
    async fn read(&self, number: u64, range: Range<u64>) -> Result<Bytes>;

    /// All segments in the order of their numbers.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn list(&self) -> Result<Vec<Segment>>;

    /// Removes a segment; nothing happens if it is not there. When it returns, it does not come back.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn delete(&self, number: u64) -> Result<()>;
}
