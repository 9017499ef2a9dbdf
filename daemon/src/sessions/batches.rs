//! Batches of mutations: each is committed once for its sequence number, and answered as often as it is asked for.

use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;
use tandemfs::api::fs::{BATCH_MUTATIONS_MAX, Batch, BatchReply, INLINE_MAX, SESSION_SLOTS};
use tandemfs::id::SessionId;
use tandemfs::tree::Mutation;
use tandemfs::{Error, Result};

use super::Sessions;
use super::activity::Use;
use super::audience::Audience;
use super::session::{Answered, Begun, Session};
use crate::accounts::Caller;
use crate::meta::{self, keys};
use crate::volumes::{Change, Mutations, Volume, key_after};
use crate::watch;

impl Sessions {
    /// Commits a batch, once for its sequence number.
    ///
    /// # Errors
    /// As [`Sessions::resume`]; `ReadOnly`, but not for [`Mutation::Reap`] alone; `Stale` for a sequence number out of the window; those of the rules.
    pub async fn batch(&self, caller: &Caller, id: SessionId, batch: Batch) -> Result<BatchReply> {
        let (session, volume) = self.find_for(Use::Change, caller, id).await?;
        // Who may only read lets go of what it held open as well.
        if !batch.mutations.iter().all(|mutation| matches!(mutation, Mutation::Reap { .. })) {
            self.writable(caller, &session)?;
        }
        if batch.sequence == 0
            || batch.mutations.len() > BATCH_MUTATIONS_MAX
            || batch.held.len() > BATCH_MUTATIONS_MAX
            || batch.delegates.len() > BATCH_MUTATIONS_MAX
            || batch.blocks.len() > BATCH_MUTATIONS_MAX
            || batch.blocks.iter().any(|block| block.data.len() > INLINE_MAX)
        {
            return Err(Error::invalid("sequence number 0, or too much in one batch"));
        }
        if batch.mutations.iter().any(|mutation| matches!(mutation, Mutation::Join { .. })) {
            return Err(Error::invalid("the daemon alone joins the pieces of a file"));
        }
        self.load_slots(&session).await?;
        let sequence = batch.sequence;
        let mut waiter = match session.begin(sequence)? {
            Begun::UnderWay(waiter) => waiter,
            Begun::Done => return self.answer_again(&session, sequence).await,
            Begun::New(answer) => {
                let waiter = answer.subscribe();
                // On its own, so that a client that goes away does not leave it half done.
                let audience = Arc::clone(&self.audience);
                tokio::spawn(run_batch(audience, session, volume, batch, answer));
                waiter
            }
        };
        let answer = waiter.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone());
        match answer.as_deref() {
            Some(Ok(reply)) => Ok(reply.clone()),
            Some(Err(error)) => Err(error.duplicate()),
            None => Err(Error::internal("a batch was cut short")),
        }
    }

    /// Gives the answer to a batch that was committed before. The daemon may have stopped between the commit and the others'
    /// acknowledgements, so what they have not carried out yet is waited for.
    async fn answer_again(&self, session: &Session, sequence: u64) -> Result<BatchReply> {
        let key = keys::reply(session.id, sequence % SESSION_SLOTS);
        let kept: Option<(u64, BatchReply)> = self.meta.get(&key).await?;
        let Some((_, reply)) = kept.filter(|(kept, _)| *kept == sequence) else {
            return Err(Error::stale(format!("the answer to batch {sequence} is not kept any more")));
        };
        self.audience.told_before(session.record().volume, session.id).acknowledged().await;
        Ok(reply)
    }

    /// After a restart: which answers are kept.
    async fn load_slots(&self, session: &Session) -> Result<()> {
        if !session.has_slots() {
            let sequences: Vec<_> = self.kept_replies(session.id).await?;
            session.load_slots(sequences.into_iter().map(|(_, sequence)| sequence));
        }
        Ok(())
    }

    /// The keys of the answers that are kept, and their sequence numbers.
    pub(super) async fn kept_replies(&self, id: SessionId) -> Result<Vec<(meta::Key, u64)>> {
        let (mut from, end) = (keys::reply(id, 0), keys::reply(id, SESSION_SLOTS));
        let mut kept = Vec::new();
        loop {
            // A few at a time: an answer may be large.
            let page: Vec<(meta::Key, (u64, BatchReply))> = self.meta.scan(&from, &end, 16).await?;
            let Some((last, _)) = page.last() else { return Ok(kept) };
            from = key_after(last);
            kept.extend(page.into_iter().map(|(key, (sequence, _))| (key, sequence)));
        }
    }
}

/// Carries a batch out and tells all who wait for it.
async fn run_batch(
    audience: Arc<Audience>,
    session: Arc<Session>,
    volume: Arc<Volume>,
    batch: Batch,
    answer: watch::Sender<Answered>,
) {
    let sequence = batch.sequence;
    let result = commit_batch(&session, &volume, batch).await;
    session.done(sequence, result.is_ok());
    audience.free(session.record().volume, &session);
    answer.send_replace(Some(Arc::new(result)));
}

async fn commit_batch(session: &Session, volume: &Arc<Volume>, batch: Batch) -> Result<BatchReply> {
    let mut created = BTreeSet::new();
    for mutation in &batch.mutations {
        if let Mutation::Create { ino, .. } = mutation {
            if !session.owns(*ino) {
                return Err(Error::invalid(format!("inode {ino} was not granted to the session")));
            }
            created.insert(*ino);
        }
    }
    if let Some(ino) = batch.delegates.iter().find(|ino| !created.contains(ino)) {
        return Err(Error::invalid(format!("inode {ino} is to be delegated and is not created")));
    }
    // Others see the time of a read some seconds later anyway, so no reader waits for a mount that does not answer.
    let quiet = batch.mutations.iter().all(|mutation| matches!(mutation, Mutation::Accessed { .. }));
    let blocks = batch.blocks.into_iter().map(|block| (block.id, Bytes::from(block.data))).collect();
    let change = Change {
        author: Some(session.id),
        sequence: Some(batch.sequence),
        mutations: Mutations::Fixed(batch.mutations),
        held: batch.held,
        delegates: batch.delegates,
        blocks,
        quiet,
        brief: batch.brief,
    };
    volume.commit(change).await
}
