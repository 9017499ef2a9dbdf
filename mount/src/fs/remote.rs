//! What the mount needs of the daemon. Implemented by the HTTP client, and by an in-memory daemon in tests.

use std::fs::File;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tandemfs::api::files::Storage;
use tandemfs::api::fs::{
    Ack, Batch, BatchReply, DelegationReply, DelegationRequest, Event, InodeRange, OpenSession, Read,
    ReadBlocks, ReadBlocksReply, ReadReply, ResumeSession, SessionGrant,
};
use tandemfs::api::locks::{LockReply, LockRequest};
use tandemfs::id::{BlockId, SessionId};
use tandemfs::{Error, Result};

/// The events of a session, as they come.
pub type Events = BoxStream<'static, Result<Event>>;

/// The daemon as a session sees it: one method for each request of `tandemfs::api::fs`, none of which tries twice.
#[async_trait]
pub trait Remote: Send + Sync + 'static {
    /// Opens a session.
    async fn open_session(&self, open: &OpenSession) -> Result<SessionGrant>;
    /// Takes a session up again.
    async fn resume_session(&self, session: SessionId, resume: &ResumeSession) -> Result<SessionGrant>;
    /// Ends a session.
    async fn close_session(&self, session: SessionId) -> Result<()>;
    /// Follows what others change.
    async fn events(&self, session: SessionId) -> Result<Events>;
    /// Acknowledges events.
    async fn ack(&self, session: SessionId, ack: &Ack) -> Result<()>;
    /// Commits a batch of mutations.
    async fn batch(&self, session: SessionId, batch: &Batch) -> Result<BatchReply>;
    /// Reads records.
    async fn read(&self, session: SessionId, read: &Read) -> Result<ReadReply>;
    /// The last event that there was for a session when it was last answered. What was answered shows nothing that comes later.
    fn last_event(&self, session: SessionId) -> u64;
    /// Asks for inode numbers.
    async fn inodes(&self, session: SessionId) -> Result<InodeRange>;
    /// Takes or returns delegations.
    async fn delegation(&self, session: SessionId, request: &DelegationRequest) -> Result<DelegationReply>;
    /// Asks about locks, sets or releases them.
    async fn lock(&self, session: SessionId, request: &LockRequest) -> Result<LockReply>;
    /// Stores a block.
    async fn put_block(&self, session: SessionId, block: BlockId, data: Bytes) -> Result<()>;
    /// Reads a block, or a range of it.
    async fn get_block(&self, session: SessionId, block: BlockId, range: Option<Range<u32>>)
    -> Result<Bytes>;
    /// Reads small blocks, those of them that can be had.
    async fn get_blocks(&self, session: SessionId, wanted: &ReadBlocks) -> Result<ReadBlocksReply>;
    /// A block's object as an open file, unchecked, by the socket that the session was granted; `None` where that cannot be had.
    async fn open_block(&self, _socket: &str, _: SessionId, _: BlockId) -> Option<File> {
        None
    }
    /// Whether the daemon is on this machine for certain.
    fn is_local(&self) -> bool {
        false
    }
    /// What the user may still store, on a shared volume or the own one.
    async fn storage(&self, volume: Option<&str>) -> Result<Storage>;
    /// Whether an error says that nobody listens, as against a network that is silent.
    fn is_refused(&self, error: &Error) -> bool;
}
