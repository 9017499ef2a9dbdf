//! The mount's part: sessions, events, batches, reads, blocks. In the compact encoding, but for the events.

use std::fs::File;
use std::ops::Range;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use tokio::time::timeout;

use super::transport::Call;
use super::{ByteStream, Client, ShortCircuit};
use crate::api::fs::{
    Ack, BLOCK_SIZE_MAX, Batch, BatchReply, DelegationReply, DelegationRequest, Event, InodeRange,
    OpenSession, Read, ReadBlocks, ReadBlocksReply, ReadReply, ResumeSession, SessionGrant,
};
use crate::api::locks::{LockReply, LockRequest};
use crate::id::{BlockId, SessionId};
use crate::{Error, Result, short_circuit};

/// How long is waited for an object before the daemon is asked for the block itself.
const SHORT_CIRCUIT_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest line of the event stream.
const EVENT_MAX: usize = 16 << 20;

fn path<'a>(session: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    ["fs", "v1", "sessions", session].into_iter().chain(rest.iter().copied()).collect()
}

/// Each method's errors are the daemon's, or `Unavailable` when it could not be asked.
#[expect(clippy::missing_errors_doc, reason = "said once, above")]
impl Client {
    /// Opens a session.
    pub async fn open_session(&self, request: &OpenSession) -> Result<SessionGrant> {
        let call = Call::post(&["fs", "v1", "sessions"]).compact().body(request)?;
        self.transport.value(call).await.inspect(|grant| self.take_short_way(grant))
    }

    /// Takes a session up again; `SessionEnded` when it was fenced.
    pub async fn resume_session(&self, session: SessionId, request: &ResumeSession) -> Result<SessionGrant> {
        let session = session.to_string();
        let call = Call::post(&path(&session, &["resume"])).compact().body(request)?;
        self.transport.value(call).await.inspect(|grant| self.take_short_way(grant))
    }

    fn take_short_way(&self, grant: &SessionGrant) {
        self.transport.use_socket(grant.local.as_ref());
    }

    /// Ends a session.
    pub async fn close_session(&self, session: SessionId) -> Result<()> {
        self.transport.done(Call::delete(&path(&session.to_string(), &[])).compact()).await
    }

    /// Has the daemon commit a batch.
    pub async fn batch(&self, session: SessionId, batch: &Batch) -> Result<BatchReply> {
        let session = session.to_string();
        self.transport.value(Call::post(&path(&session, &["batches"])).compact().body(batch)?).await
    }

    /// Reads records.
    pub async fn read(&self, session: SessionId, read: &Read) -> Result<ReadReply> {
        let session = session.to_string();
        self.transport.value(Call::post(&path(&session, &["reads"])).compact().body(read)?).await
    }

    /// The last event that there was for a session when it was last answered.
    pub fn last_event(&self, session: SessionId) -> u64 {
        let (of, number) = self.transport.last_event();
        if of == session.0 { number } else { 0 }
    }

    /// Whether the daemon is on this machine, and requests take its socket there.
    pub fn is_local(&self) -> bool {
        self.transport.is_local()
    }

    /// Gets inode numbers to give away.
    pub async fn inodes(&self, session: SessionId) -> Result<InodeRange> {
        self.transport.value(Call::post(&path(&session.to_string(), &["inodes"])).compact()).await
    }

    /// Acknowledges events and renews the lease.
    pub async fn ack(&self, session: SessionId, ack: &Ack) -> Result<()> {
        let session = session.to_string();
        self.transport.done(Call::post(&path(&session, &["acks"])).compact().body(ack)?).await
    }

    /// Asks about locks, sets or releases them. A wait may take some seconds.
    pub async fn lock(&self, session: SessionId, request: &LockRequest) -> Result<LockReply> {
        let session = session.to_string();
        self.transport.value(Call::post(&path(&session, &["locks"])).compact().body(request)?).await
    }

    /// Takes or returns delegations. Taking one may have to wait for another session.
    pub async fn delegation(
        &self,
        session: SessionId,
        request: &DelegationRequest,
    ) -> Result<DelegationReply> {
        let session = session.to_string();
        self.transport.value(Call::post(&path(&session, &["delegations"])).compact().body(request)?).await
    }

    /// Stores a block; it is durable when this returns.
    pub async fn put_block(&self, session: SessionId, id: &BlockId, data: Bytes) -> Result<()> {
        let (session, id) = (session.to_string(), id.to_string());
        self.transport.done(Call::put(&path(&session, &["blocks", &id])).compact().bytes(data)).await
    }

    /// A part of a block: exactly as many bytes as were asked for.
    pub async fn get_block(&self, session: SessionId, id: &BlockId, range: Range<u32>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let (session, id) = (session.to_string(), id.to_string());
        let call = Call::get(&path(&session, &["blocks", &id]))
            .compact()
            .range(range.start.into(), Some(u64::from(range.end) - 1));
        let data = self.transport.bytes(call, BLOCK_SIZE_MAX).await?;
        if data.len() as u64 != u64::from(range.end - range.start) {
            return Err(Error::corrupt(format!(
                "block {id}: {} bytes instead of those at {range:?}",
                data.len()
            )));
        }
        Ok(data)
    }

    /// A whole block.
    pub async fn get_whole_block(&self, session: SessionId, id: &BlockId) -> Result<Bytes> {
        let (session, id) = (session.to_string(), id.to_string());
        self.transport.bytes(Call::get(&path(&session, &["blocks", &id])).compact(), BLOCK_SIZE_MAX).await
    }

    /// Small blocks, those of them that can be had.
    pub async fn get_blocks(&self, session: SessionId, wanted: &ReadBlocks) -> Result<ReadBlocksReply> {
        let session = session.to_string();
        self.transport.value(Call::post(&path(&session, &["blocks"])).compact().body(wanted)?).await
    }

    /// A block's object as an open file, unchecked; `None` where the daemon, for whatever reason, cannot be asked for that or does not
    /// give it. `socket` is [`SessionGrant::short_circuit`].
    pub async fn open_block(&self, socket: &str, session: SessionId, id: &BlockId) -> Option<File> {
        let mut held = self.short_circuit.lock().await;
        let open = async {
            let mut connection =
                match held.take().filter(|held| held.socket == socket && held.session == session) {
                    Some(held) => held.connection,
                    None => {
                        let token = self.transport.token(None).await.ok()??;
                        short_circuit::Client::connect(socket, session, &token).await.ok()?
                    }
                };
            let file = connection.open(id).await.ok()?;
            *held = Some(ShortCircuit { socket: socket.to_owned(), session, connection });
            file
        };
        timeout(SHORT_CIRCUIT_TIMEOUT, open).await.ok().flatten()
    }

    /// What happens to a session. The stream ends with an error, or when the daemon closes it.
    pub async fn events(
        &self,
        session: SessionId,
    ) -> Result<impl Stream<Item = Result<Event>> + Send + Unpin + use<>> {
        let (_, pieces) = self.transport.stream(Call::get(&path(&session.to_string(), &["events"]))).await?;
        Ok(events_of(pieces))
    }
}

/// Cuts a stream of bytes into lines, each an event; empty lines count nothing.
fn events_of(pieces: ByteStream) -> impl Stream<Item = Result<Event>> + Send + Unpin {
    let state = Some((pieces, BytesMut::new()));
    Box::pin(futures::stream::unfold(state, |state| async {
        let (mut pieces, mut buffer) = state?;
        let mut searched = 0;
        loop {
            if let Some(end) = buffer[searched..].iter().position(|&byte| byte == b'\n') {
                let line = buffer.split_to(searched + end + 1);
                searched = 0;
                let line = line.trim_ascii();
                if line.is_empty() {
                    continue;
                }
                return Some(match serde_json::from_slice(line) {
                    Ok(event) => (Ok(event), Some((pieces, buffer))),
                    Err(error) => {
                        (Err(Error::internal(format!("an event that makes no sense: {error}"))), None)
                    }
                });
            }
            searched = buffer.len();
            match pieces.next().await {
                Some(Ok(piece)) if buffer.len() + piece.len() <= EVENT_MAX => {
                    buffer.extend_from_slice(&piece)
                }
                Some(Ok(_)) => return Some((Err(Error::too_large("an event")), None)),
                Some(Err(error)) => return Some((Err(error), None)),
                None if buffer.is_empty() => return None,
                None => return Some((Err(Error::unavailable("an event was cut off")), None)),
            }
        }
    }))
}
