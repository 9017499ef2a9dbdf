//! Blocks of data, and what keeps them from being stored.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tandemfs::id::{BlockId, VolumeKey};
use tandemfs::{Error, Result};
use tokio::time::sleep;

use super::Daemon;

impl Daemon {
    pub(super) async fn store(&self, block: BlockId, data: Bytes) -> Result<()> {
        if self.limits.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(Error::too_many_requests("blocks").retry_after(1));
        }
        if self.full.load(Ordering::SeqCst) {
            return Err(Error::no_space("nodes"));
        }
        if self.swallow_blocks.load(Ordering::SeqCst) > 0 {
            self.swallow_blocks.fetch_sub(1, Ordering::SeqCst);
            sleep(Duration::from_secs(60)).await;
            return Err(Error::timed_out("does not answer"));
        }
        assert_eq!(BlockId::of(&VolumeKey([7; 32]), &data), block);
        self.state.lock().unwrap().blocks.insert(block, data);
        Ok(())
    }

    pub(super) fn load(&self, block: BlockId, range: Option<Range<u32>>) -> Result<Bytes> {
        let data = self.state.lock().unwrap().blocks.get(&block).cloned();
        let data = data.ok_or_else(|| Error::not_found("block"))?;
        Ok(match range {
            Some(range) => data.slice(range.start as usize..range.end as usize),
            None => data,
        })
    }
}
