//! The daemon over HTTP, as the file system sees it.

use std::fs::File;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use tandemfs::api::files::Storage;
use tandemfs::api::fs::{
    Ack, Batch, BatchReply, DelegationReply, DelegationRequest, InodeRange, OpenSession, Read, ReadBlocks,
    ReadBlocksReply, ReadReply, ResumeSession, SessionGrant,
};
use tandemfs::api::locks::{LockReply, LockRequest};
use tandemfs::client::{Client, is_refused};
use tandemfs::id::{BlockId, SessionId};
use tandemfs::{Error, Result};

use crate::fs::remote::{Events, Remote};

#[async_trait]
impl Remote for Client {
    async fn open_session(&self, open: &OpenSession) -> Result<SessionGrant> {
        self.open_session(open).await
    }

    async fn resume_session(&self, session: SessionId, resume: &ResumeSession) -> Result<SessionGrant> {
        self.resume_session(session, resume).await
    }

    async fn close_session(&self, session: SessionId) -> Result<()> {
        self.close_session(session).await
    }

    async fn events(&self, session: SessionId) -> Result<Events> {
        Ok(self.events(session).await?.boxed())
    }

    async fn ack(&self, session: SessionId, ack: &Ack) -> Result<()> {
        self.ack(session, ack).await
    }

    async fn batch(&self, session: SessionId, batch: &Batch) -> Result<BatchReply> {
        self.batch(session, batch).await
    }

    async fn read(&self, session: SessionId, read: &Read) -> Result<ReadReply> {
        self.read(session, read).await
    }

    fn last_event(&self, session: SessionId) -> u64 {
        self.last_event(session)
    }

    async fn inodes(&self, session: SessionId) -> Result<InodeRange> {
        self.inodes(session).await
    }

    async fn delegation(&self, session: SessionId, request: &DelegationRequest) -> Result<DelegationReply> {
        self.delegation(session, request).await
    }

    async fn lock(&self, session: SessionId, request: &LockRequest) -> Result<LockReply> {
        self.lock(session, request).await
    }

    async fn put_block(&self, session: SessionId, block: BlockId, data: Bytes) -> Result<()> {
        self.put_block(session, &block, data).await
    }

    async fn get_block(
        &self,
        session: SessionId,
        block: BlockId,
        range: Option<Range<u32>>,
    ) -> Result<Bytes> {
        match range {
            Some(range) => self.get_block(session, &block, range).await,
            None => self.get_whole_block(session, &block).await,
        }
    }

    async fn get_blocks(&self, session: SessionId, wanted: &ReadBlocks) -> Result<ReadBlocksReply> {
        self.get_blocks(session, wanted).await
    }

    async fn open_block(&self, socket: &str, session: SessionId, block: BlockId) -> Option<File> {
        self.open_block(socket, session, &block).await
    }

    fn is_local(&self) -> bool {
        self.is_local()
    }

    async fn storage(&self, volume: Option<&str>) -> Result<Storage> {
        match volume {
            Some(name) => Ok(self.volume(name).await?.storage),
            None => self.storage().await,
        }
    }

    fn is_refused(&self, error: &Error) -> bool {
        is_refused(error)
    }
}
