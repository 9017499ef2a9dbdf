//! Blocks that a mount reads: from memory, from its disk, from an object that the daemon hands over, or from the daemon.

use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use quick_cache::sync::{Cache as Lru, DefaultLifecycle, GuardResult, PlaceholderGuard};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use tandemfs::api::fs::{BLOCK_SIZE_MAX, BLOCKS_MAX, ReadBlocks};
use tandemfs::block::{self, OBJECT_MAX};
use tandemfs::id::BlockId;
use tandemfs::{Error, Result};
use tokio::time::timeout;

use super::block_cache::BlockCache;
use super::objects::{Objects, PATIENCE};
use super::session::Session;
use crate::tasks;

/// Reads blocks of a session.
pub(super) struct Blocks {
    session: Arc<Session>,
    memory: Lru<BlockId, Bytes, Weigh>,
    on_disk: Option<Arc<BlockCache>>,
    objects: Arc<Objects>,
}

#[derive(Clone)]
struct Weigh;

/// A block that is being read. Whoever else wants it waits until it is there, or this is dropped.
pub(super) struct Claimed<'a> {
    id: BlockId,
    guard: PlaceholderGuard<'a, BlockId, Bytes, Weigh, DefaultHashBuilder, DefaultLifecycle<BlockId, Bytes>>,
}

impl Weighter<BlockId, Bytes> for Weigh {
    fn weight(&self, _: &BlockId, data: &Bytes) -> u64 {
        data.len() as u64 + 64
    }
}

impl Blocks {
    /// For a session, with a cache of so many bytes in memory, and one on disk.
    pub(super) fn new(session: Arc<Session>, bytes: usize, on_disk: Option<Arc<BlockCache>>) -> Arc<Self> {
        let bytes = bytes.max(2 * BLOCK_SIZE_MAX);
        let options = OptionsBuilder::new()
            .estimated_items_capacity((bytes / 65_536).max(16))
            .weight_capacity(bytes as u64)
            .shards(1)
            .build();
        let memory = match options {
            Ok(options) => {
                Lru::with_options(options, Weigh, DefaultHashBuilder::default(), DefaultLifecycle::default())
            }
            Err(_) => Lru::with_weighter(16, bytes as u64, Weigh),
        };
        let objects = Arc::new(Objects::new(Arc::clone(&session)));
        tokio::spawn(Objects::close(Arc::downgrade(&objects)));
        Arc::new(Self { session, memory, on_disk, objects })
    }

    /// Bytes of a block. `whole`: more of it will be wanted.
    ///
    /// # Errors
    /// `NotFound` for a block that has been cleared away; `Corrupt`; those of the daemon.
    pub(super) async fn get(&self, id: BlockId, range: Range<u32>, whole: bool) -> Result<Bytes> {
        let wanted = range.start as usize..range.end as usize;
        // As far as can be told by what is wanted of it.
        let is_small = range.end <= self.session.grant().inline_bytes;
        let cached = match self.session.queue.block(&id) {
            Some(data) => Some(data),
            None if whole || is_small => Some(self.whole(id, is_small).await?),
            None => self.memory.get(&id),
        };
        if let Some(data) = cached {
            if wanted.end > data.len() {
                return Err(Error::corrupt(format!("block {id} is shorter than its extents say")));
            }
            return Ok(data.slice(wanted));
        }
        if let Some(data) = self.objects.read(id, range.clone()).await {
            return Ok(data);
        }
        let session = &self.session;
        let data = session
            .until_answered(|session_id| {
                let range = range.clone();
                Box::pin(async move { session.remote.get_block(session_id, id, Some(range)).await })
            })
            .await?;
        if data.len() != wanted.len() {
            return Err(Error::corrupt(format!("another length of block {id} than was asked for")));
        }
        Ok(data)
    }

    /// The cache on disk, unless blocks come from this machine anyway.
    fn on_disk(&self) -> Option<&Arc<BlockCache>> {
        self.on_disk.as_ref().filter(|_| !self.session.remote.is_local())
    }

    /// A whole block. `is_small`: it is not an object by itself.
    ///
    /// # Errors
    /// As [`Blocks::get`].
    pub(super) async fn whole(&self, id: BlockId, is_small: bool) -> Result<Bytes> {
        let session = &self.session;
        self.memory
            .get_or_insert_async(&id, async {
                if !is_small && let Some(data) = self.short_circuit(id).await {
                    return Ok(data);
                }
                if let Some(cache) = self.on_disk()
                    && let Some(data) = cache.get(&session.grant().key, id).await
                {
                    return Ok(data);
                }
                let data = session
                    .until_answered(|session_id| {
                        Box::pin(async move { session.remote.get_block(session_id, id, None).await })
                    })
                    .await?;
                if BlockId::of(&session.grant().key, &data) != id {
                    return Err(Error::corrupt(format!("block {id} is not what was asked for")));
                }
                if let Some(cache) = self.on_disk() {
                    cache.put(id, data.clone());
                }
                Ok(data)
            })
            .await
    }

    /// A block out of its object, where the daemon can hand that over as a file. If anything is wrong with it, the daemon is asked
    /// for the block, which finds another copy and mends this one.
    async fn short_circuit(&self, id: BlockId) -> Option<Bytes> {
        let session = &self.session;
        let socket = session.grant().short_circuit?;
        let file = session.remote.open_block(&socket, session.id(), id).await?;
        let length = file.metadata().ok()?.len().min(OBJECT_MAX as u64 + 1);
        // Here, and not there: the allocator keeps memory that was freed for each thread that has asked for it.
        let mut object = Vec::with_capacity(usize::try_from(length).ok()?);
        let read = tasks::block(move || {
            file.take(length).read_to_end(&mut object)?;
            block::decode(&id, object.into())
        });
        match timeout(PATIENCE, read).await.ok()?? {
            Ok(data) => Some(data),
            Err(error) => {
                log::warn!("block {id} is read from another copy: {error}");
                None
            }
        }
    }

    /// Takes it upon the caller to read blocks; left out is what is in memory, or on its way.
    pub(super) fn claim(&self, ids: &[BlockId]) -> Vec<Claimed<'_>> {
        let unknown = ids.iter().filter(|id| self.session.queue.block(id).is_none());
        let claimed =
            unknown.filter_map(|id| match self.memory.get_value_or_guard(id, Some(Duration::ZERO)) {
                GuardResult::Guard(guard) => Some(Claimed { id: *id, guard }),
                GuardResult::Value(_) | GuardResult::Timeout => None,
            });
        claimed.take(BLOCKS_MAX).collect()
    }

    /// Reads blocks that were claimed, with one request. What does not come is read by who wants it.
    pub(super) async fn fetch(&self, claimed: Vec<Claimed<'_>>) {
        let session = &self.session;
        let key = session.grant().key;
        let claimed = match self.on_disk() {
            Some(cache) => {
                let looks =
                    claimed.into_iter().map(async |claimed| match cache.get(&key, claimed.id).await {
                        Some(data) => {
                            let _lost = claimed.guard.insert(data);
                            None
                        }
                        None => Some(claimed),
                    });
                join_all(looks).await.into_iter().flatten().collect()
            }
            None => claimed,
        };
        if claimed.is_empty() {
            return;
        }
        let wanted = &ReadBlocks { ids: claimed.iter().map(|claimed| claimed.id).collect() };
        let reply = session
            .until_answered(|id| Box::pin(async move { session.remote.get_blocks(id, wanted).await }))
            .await;
        let Ok(reply) = reply else { return };
        let found = reply.blocks.into_iter().map(|block| (block.id, Bytes::from(block.data)));
        let mut found: HashMap<BlockId, Bytes> = found.collect();
        for Claimed { id, guard } in claimed {
            // Otherwise it is for who wants it to find out what is wrong.
            if let Some(data) = found.remove(&id).filter(|data| BlockId::of(&key, data) == id) {
                if let Some(cache) = self.on_disk() {
                    cache.put(id, data.clone());
                }
                let _lost = guard.insert(data);
            }
        }
    }
}
