//! Has small blocks leave the metadata for packs, once much lies there or after a while: what is soon gone again is never written to a node.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tandemfs::Result;
use tokio::time::Instant;

use super::worker::{Next, Worker};
use crate::volumes::Volumes;

/// How often it is looked at.
const INTERVAL: Duration = Duration::from_secs(5);
/// So many bytes in the metadata are much.
const MUCH: u64 = 16 << 20;
/// So long a while is.
const WHILE: Duration = Duration::from_secs(3600);

/// The worker.
#[derive(Debug)]
pub(super) struct Packer {
    pub(super) volumes: Arc<Volumes>,
    pub(super) last: Instant,
}

#[async_trait]
impl Worker for Packer {
    fn name(&self) -> &'static str {
        "pack"
    }

    async fn step(&mut self) -> Result<Next> {
        let bytes = self.volumes.inline_bytes();
        if bytes >= MUCH || (bytes > 0 && self.last.elapsed() >= WHILE) {
            let packed = self.volumes.pack().await?;
            log::debug!("{packed} blocks were packed");
            self.last = Instant::now();
        }
        Ok(Next::Wait(INTERVAL))
    }
}
