//! Joins files that have come to lie in very many pieces, and rewrites packs of which less than half is in use, once much can be won or after a
//! while.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tandemfs::Result;
use tokio::time::Instant;

use super::worker::{Next, Worker};
use crate::volumes::Volumes;

/// How often it is looked at.
const INTERVAL: Duration = Duration::from_secs(5);
/// So many bytes that can be won are much,
const MUCH: u64 = 16 << 20;
/// but all records are looked through for them no more often than this,
const OFTEN: Duration = Duration::from_secs(60);
/// or only so often where there is little, or the last time nothing came of it.
const WHILE: Duration = Duration::from_secs(3600);

/// The worker.
#[derive(Debug)]
pub(super) struct Compactor {
    pub(super) volumes: Arc<Volumes>,
    pub(super) last: Instant,
    /// Whether something came of it the last time.
    pub(super) won: bool,
}

#[async_trait]
impl Worker for Compactor {
    fn name(&self) -> &'static str {
        "compact"
    }

    async fn step(&mut self) -> Result<Next> {
        let joined = self.volumes.join_noted().await?;
        if joined > 0 {
            log::debug!("{joined} parts of files were joined");
        }
        let bytes = self.volumes.half_dead().bytes;
        let pause = if bytes >= MUCH && self.won { OFTEN } else { WHILE };
        if bytes > 0 && self.last.elapsed() >= pause {
            self.last = Instant::now();
            self.won = false;
            let packed = self.volumes.compact_packs(&|_| ()).await?.packed;
            log::debug!("{} packs were emptied by moving {} blocks", packed.emptied, packed.blocks);
            self.won = packed.emptied > 0;
        }
        Ok(Next::Wait(INTERVAL))
    }
}
