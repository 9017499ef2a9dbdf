//! What mounts ask of the daemon: refused when it is down, now and then without an answer, or held up.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tandemfs::api::files::Storage;
use tandemfs::api::fs::{
    Ack, Batch, BatchReply, DelegationReply, DelegationRequest, InlineBlock, InodeRange, OpenSession, Read,
    ReadBlocks, ReadBlocksReply, ReadReply, ResumeSession, SessionGrant,
};
use tandemfs::api::locks::{LockReply, LockRequest};
use tandemfs::id::{BlockId, Ino, SessionId};
use tandemfs::{Error, Result};
use tokio::time::sleep;

use super::Daemon;
use crate::fs::remote::{Events, Remote};

impl Daemon {
    fn up(&self) -> Result<()> {
        if self.down.load(Ordering::SeqCst) {
            return Err(Error::unavailable("refused"));
        }
        if self.denies.load(Ordering::SeqCst) { Err(Error::unauthenticated("token")) } else { Ok(()) }
    }

    /// Loses an answer now and then.
    fn lossy<T>(&self, answer: Result<T>) -> Result<T> {
        let every = self.lose_every.load(Ordering::SeqCst);
        let count = self.count.fetch_add(1, Ordering::SeqCst);
        if every > 0 && count.is_multiple_of(every) { Err(Error::unavailable("lost")) } else { answer }
    }
}

#[async_trait]
impl Remote for Daemon {
    async fn open_session(&self, open: &OpenSession) -> Result<SessionGrant> {
        self.up()?;
        Ok(self.open(open))
    }

    async fn resume_session(&self, session: SessionId, resume: &ResumeSession) -> Result<SessionGrant> {
        self.up()?;
        self.resume(session, resume)
    }

    async fn close_session(&self, session: SessionId) -> Result<()> {
        self.up()?;
        self.close(session);
        Ok(())
    }

    async fn events(&self, session: SessionId) -> Result<Events> {
        self.up()?;
        self.stream(session)
    }

    fn last_event(&self, session: SessionId) -> u64 {
        self.state.lock().unwrap().sessions.get(&session).map_or(0, |session| session.number)
    }

    async fn ack(&self, session: SessionId, ack: &Ack) -> Result<()> {
        self.up()?;
        self.acknowledge(session, ack)
    }

    async fn batch(&self, session: SessionId, batch: &Batch) -> Result<BatchReply> {
        self.up()?;
        let release = self.release_batches.notified();
        self.batches.fetch_add(1, Ordering::SeqCst);
        if self.hold_batches.load(Ordering::SeqCst) {
            release.await;
        }
        let answer = self.commit(session, batch).await;
        self.lossy(answer)
    }

    async fn read(&self, session: SessionId, read: &Read) -> Result<ReadReply> {
        self.up()?;
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.session(session, |_| ())?;
        let reply = self.answers(session, read).await;
        if self.hold_reads.load(Ordering::SeqCst) {
            let release = self.release_reads.notified();
            self.reads_held.fetch_add(1, Ordering::SeqCst);
            release.await;
        }
        self.lossy(Ok(reply))
    }

    async fn inodes(&self, session: SessionId) -> Result<InodeRange> {
        self.up()?;
        self.session(session, |_| ())?;
        let mut state = self.state.lock().unwrap();
        let first = Ino(state.next_ino);
        state.next_ino += 5;
        Ok(InodeRange { first, count: 5 })
    }

    async fn delegation(&self, session: SessionId, request: &DelegationRequest) -> Result<DelegationReply> {
        self.up()?;
        self.session(session, |_| ())?;
        let (mut done, mut alone) = (true, false);
        match request {
            DelegationRequest::Take(ino) => self.take(session, *ino).await?,
            DelegationRequest::Return(inos) => self.give_back(session, inos),
            DelegationRequest::TakeVolume => (done, alone) = self.take_volume(session).await,
            DelegationRequest::ReturnVolume => self.give_back_volume(session),
        }
        let run = self.state.lock().unwrap().run;
        self.lossy(Ok(DelegationReply { run, done, alone }))
    }

    async fn lock(&self, session: SessionId, request: &LockRequest) -> Result<LockReply> {
        self.up()?;
        self.session(session, |_| ())?;
        if let LockRequest::Claim { run, .. } = request
            && *run != self.state.lock().unwrap().run
        {
            return Err(Error::stale("another run"));
        }
        let outcome = self.lock_outcome(session, request).await;
        self.session(session, |_| ())?;
        let run = self.state.lock().unwrap().run;
        let release = self.release_lock_answers.notified();
        if self.hold_lock_answers.load(Ordering::SeqCst) && !matches!(request, LockRequest::Claim { .. }) {
            release.await;
        }
        self.lossy(Ok(LockReply { run, outcome }))
    }

    async fn put_block(&self, session: SessionId, block: BlockId, data: Bytes) -> Result<()> {
        self.up()?;
        self.session(session, |_| ())?;
        let release = self.release_blocks.notified();
        if self.hold_blocks.load(Ordering::SeqCst) {
            release.await;
        }
        sleep(Duration::from_millis(self.slow_blocks.load(Ordering::SeqCst))).await;
        self.store(block, data).await?;
        self.stored.fetch_add(1, Ordering::SeqCst);
        self.lossy(Ok(()))
    }

    async fn get_block(
        &self,
        session: SessionId,
        block: BlockId,
        range: Option<Range<u32>>,
    ) -> Result<Bytes> {
        self.up()?;
        self.session(session, |_| ())?;
        self.block_reads.fetch_add(1, Ordering::SeqCst);
        let data = self.load(block, range)?;
        self.lossy(Ok(data))
    }

    async fn get_blocks(&self, session: SessionId, wanted: &ReadBlocks) -> Result<ReadBlocksReply> {
        self.up()?;
        self.session(session, |_| ())?;
        self.block_reads.fetch_add(1, Ordering::SeqCst);
        let found = wanted.ids.iter().filter_map(|id| Some((*id, self.load(*id, None).ok()?)));
        let blocks = found.map(|(id, data)| InlineBlock { id, data: data.into() }).collect();
        self.lossy(Ok(ReadBlocksReply { blocks }))
    }

    async fn storage(&self, _: Option<&str>) -> Result<Storage> {
        Ok(Storage {
            used_bytes: 4096,
            quota_bytes: None,
            available_bytes: 8192,
            files: 1,
            quota_files: Some(3),
        })
    }

    fn is_refused(&self, _: &Error) -> bool {
        self.down.load(Ordering::SeqCst)
    }
}
