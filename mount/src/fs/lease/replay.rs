//! What a mount left behind that was killed is sent by the next one, in the session in which it was done. The daemon keeps such a session
//! for as long as nobody else uses the volume, so nothing has come in between; and a batch that it has is answered again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tandemfs::api::fs::{OpenSession, ResumeSession, SessionGrant};
use tandemfs::id::SessionId;
use tandemfs::{Error, ErrorKind, Result};
use tokio::time::{Instant, timeout};

use super::batch::{batch_of, fitting};
use super::log::{Block, Left, Orphaned, Queued, orphaned};
use crate::fs::data::UPLOADS_MAX;
use crate::fs::remote::Remote;
use crate::fs::requests::Tries;

/// How long a daemon may take that is away, for each request; and for a block, of which several are on their way.
const PATIENCE: Duration = Duration::from_secs(30);
const BLOCK_PATIENCE: Duration = Duration::from_secs(120);

/// What could not be sent.
pub(in crate::fs) struct Lost {
    pub(in crate::fs) changes: Vec<Queued>,
    /// Where it stays until it is seen to, if a mount before has left it.
    pub(in crate::fs) log: Option<Orphaned>,
}

/// Sends what was left in the cache directory for the volume of `grant`. If there is anything, the session is ended for that, and another is
/// opened. Answers it, and what could not be sent, for the volume has moved on: that stays there until it is removed.
///
/// # Errors
/// Those of the daemon, which does not answer or has no room; what is left stays there.
pub(in crate::fs) async fn replay(
    remote: &Arc<dyn Remote>,
    open: &OpenSession,
    directory: &Path,
    grant: SessionGrant,
) -> Result<(SessionGrant, Vec<Lost>)> {
    let logs = match orphaned(directory, &grant.key) {
        Ok(logs) if logs.is_empty() => return Ok((grant, Vec::new())),
        Ok(logs) => logs,
        Err(error) => {
            log::warn!("looking for what was left in {}: {error}", directory.display());
            return Ok((grant, Vec::new()));
        }
    };
    // A session that asks for anything would end the one that waits.
    remote.close_session(grant.session).await?;
    let mut lost = Vec::new();
    for mut log in logs {
        if let Some(left) = log.left.take() {
            let changes = send(remote.as_ref(), left).await?;
            if !changes.is_empty() {
                lost.push(Lost { changes, log: Some(log) });
                continue;
            }
        }
        log.remove();
    }
    Ok((remote.open_session(open).await?, lost))
}

/// Sends what is left. Answers what was not taken.
async fn send(remote: &dyn Remote, left: Left) -> Result<Vec<Queued>> {
    let Left { session, mut sequence, sent, mut changes } = left;
    let resume = ResumeSession { held: Vec::new(), delegations: Vec::new(), volume: true };
    let resumed = answered(PATIENCE, || remote.resume_session(session, &resume)).await;
    match resumed {
        Err(error) if matches!(error.kind(), ErrorKind::SessionEnded | ErrorKind::NotFound) => {
            return Ok(changes);
        }
        other => drop(other?),
    }
    let count = changes.len();
    let mut lost = Vec::new();
    // What was sent is sent again as it was.
    let mut is_again = sent.is_some();
    let mut most =
        sent.map_or(usize::MAX, |last| changes.iter().filter(|change| change.number <= last).count());
    while !changes.is_empty() {
        let taken = fitting(changes.iter().take(most));
        let mut batch = batch_of(&changes[..taken]);
        if !std::mem::take(&mut is_again) {
            sequence += 1;
        }
        batch.sequence = sequence;
        let sent = match store(remote, session, &changes[..taken]).await {
            Ok(()) => answered(PATIENCE, || remote.batch(session, &batch)).await.map(drop),
            refused => refused,
        };
        match sent {
            Ok(()) => {
                changes.drain(..taken);
                if most > 1 {
                    most = usize::MAX;
                }
            }
            Err(error) if error.kind() == ErrorKind::SessionEnded => {
                lost.append(&mut changes);
                return Ok(lost);
            }
            Err(error) if error.kind().is_retryable() || error.kind() == ErrorKind::NoSpace => {
                return Err(error);
            }
            // Which one is it?
            Err(_) if taken > 1 => most = 1,
            Err(error) => {
                log::error!("a change that a mount had left behind is refused: {error}");
                lost.extend(changes.drain(..1));
            }
        }
    }
    if count > lost.len() {
        log::warn!("sent {} changes that a mount had left behind", count - lost.len());
    }
    match answered(PATIENCE, || remote.close_session(session)).await {
        Err(error) if error.kind() != ErrorKind::SessionEnded => Err(error),
        _ => Ok(lost),
    }
}

/// Stores what changes name. It may be there already: storing it again changes nothing.
async fn store(remote: &dyn Remote, session: SessionId, changes: &[Queued]) -> Result<()> {
    let blocks: Vec<Block> = changes.iter().flat_map(|change| change.large.iter().cloned()).collect();
    let stored = blocks.into_iter().map(|block| async move {
        answered(BLOCK_PATIENCE, || remote.put_block(session, block.id, block.data.clone())).await
    });
    let stored: Vec<Result<()>> = futures::stream::iter(stored).buffered(UPLOADS_MAX).collect().await;
    stored.into_iter().collect()
}

/// Asks until there is an answer.
async fn answered<T, F: Future<Output = Result<T>>>(patience: Duration, ask: impl Fn() -> F) -> Result<T> {
    let patience = Instant::now() + patience;
    let mut tries = Tries::begin();
    loop {
        let left = patience.saturating_duration_since(Instant::now());
        let answer = timeout(left.max(Duration::from_secs(1)), ask()).await;
        let error = match answer {
            Ok(Err(error)) if error.kind().is_retryable() => error,
            Ok(other) => return other,
            Err(_) => return Err(Error::timed_out("the daemon does not answer")),
        };
        if Instant::now() >= patience {
            return Err(error);
        }
        tries.rest(error.retry_after_s()).await;
    }
}
