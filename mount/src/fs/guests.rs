//! Files that a name has led to a moment ago, held so that the kernel can open them although another mount replaces them all the time.
//!
//! The kernel looks a name up and then asks for what it has found. When that has been replaced in between, the answer is `Stale`, the
//! kernel looks once more, and if it meets the same again the program has an ESTALE where a local file system would have opened the
//! one or the other. So whatever is looked up soon after a `Stale` is treated as if it were open, for a moment.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tandemfs::id::Ino;
use tandemfs::tree::Mutation;
use tokio::time::{Instant, sleep};

use super::commits::Reach;
use super::session::Session;

/// So long after an answer that says `Stale` the kernel has looked again; and so long what it was told of is held. Some seconds, for between
/// the two the daemon may have waited for another session's lease.
const MOMENT: Duration = Duration::from_secs(5);
/// Chunks of an orphan that are taken away by one mutation.
const REAP_CHUNKS: u32 = 1024;
/// So many mutations take any file away; what does not go is left to the daemon.
const REAPS_MAX: usize = if cfg!(test) { 32 } else { 4096 };

/// When files are to be held that names lead to.
#[derive(Debug, Default)]
pub(super) struct Guests {
    /// Milliseconds after the first `Stale` until which that is so; 0 before it.
    until: AtomicU64,
    first: OnceLock<Instant>,
}

impl Guests {
    /// The kernel is told that an inode is gone.
    pub(super) fn missed(&self) {
        let first = *self.first.get_or_init(Instant::now);
        let until = first.elapsed() + MOMENT;
        self.until.store(until.as_millis() as u64, Ordering::Relaxed);
    }

    /// Whether what names lead to is to be held.
    pub(super) fn are_held(&self) -> bool {
        self.first
            .get()
            .is_some_and(|first| first.elapsed().as_millis() < u128::from(self.until.load(Ordering::Relaxed)))
    }
}

impl Session {
    /// Holds an inode for a moment.
    pub(super) fn hold(self: &Arc<Self>, ino: Ino) {
        self.opens.add(ino);
        let session = Arc::clone(self);
        tokio::spawn(async move {
            sleep(MOMENT).await;
            session.let_go(ino).await;
        });
    }

    /// A hold or a handle is gone. If it was the last one of an orphan, the inode goes as well.
    pub(super) async fn let_go(&self, ino: Ino) {
        let Some(orphan) = self.opens.remove(ino) else { return };
        self.locks.forget_loss(ino);
        if !orphan {
            return;
        }
        let held_elsewhere = self.reap(ino).await;
        let Some(data) = self.writer.get().and_then(Weak::upgrade) else { return };
        if held_elsewhere && let Some(file) = data.get(ino).filter(|file| file.is_dirty()) {
            // Whoever has it open there reads what was written here. When it is gone meanwhile nobody does.
            let _gone = data.commit(&file, Reach::All, None).await;
        }
        data.discard(ino).await;
    }

    /// Takes an orphan away that is held here no more. Answers whether another mount holds it.
    async fn reap(&self, ino: Ino) -> bool {
        let reap = Mutation::Reap { ino, chunks: REAP_CHUNKS };
        for _ in 0..REAPS_MAX {
            match self.commit(vec![reap.clone()], None).await {
                // It goes with the last of its chunks.
                Ok(reply) if super::written(&reply, ino).is_some() => (),
                Ok(reply) => return reply.records.is_empty(),
                Err(error) => {
                    // The daemon reaps it with the session.
                    log::warn!("reaping inode {ino}: {error}");
                    return false;
                }
            }
        }
        false
    }
}
