//! Reading a block: checked, from the node that is the least busy, and from another one as soon as that is bad or slow.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tandemfs::block::{self, HEADER_MAX, Header};
use tandemfs::error::ErrorKind;
use tandemfs::id::{BlockId, NodeId, VolumeId};
use tandemfs::{Error, Result};
use tokio::time::Instant;

use super::placement;
use super::{HEDGE_READ, Node, Replicator};
use crate::meta::record::{Block, Place};
use crate::metrics::COUNTERS;

impl Replicator {
    /// The bytes of a block in `range`, checked. A copy that is bad, missing or slow is read around and healed.
    ///
    /// # Errors
    /// `NotFound` when there is no such block; `OutOfRange`; `Corrupt` when every copy is bad; `Unavailable` when a copy that may be good
    /// cannot be reached.
    pub async fn get(self: &Arc<Self>, volume: VolumeId, id: BlockId, range: Range<u32>) -> Result<Bytes> {
        let found = self.blocks(volume, &[id]).await?.pop().flatten();
        let block = found.ok_or_else(|| Error::not_found(format!("block {id}")))?;
        if range.start > range.end || range.end > block.size {
            return Err(Error::out_of_range(format!("{range:?} of a block of {} bytes", block.size)));
        }
        match self.get_placed(volume, &id, &block, &range).await {
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unavailable) => {
                // Its copies may have been moved or deleted meanwhile.
                let now = self.record(volume, &id).await?.filter(|block| !block.deleting);
                let now = now.ok_or_else(|| Error::not_found(format!("block {id}")))?;
                if now.replicas == block.replicas && now.place == block.place {
                    Err(error)
                } else {
                    self.get_placed(volume, &id, &now, &range).await
                }
            }
            result => result,
        }
    }

    /// The object of a block as an open file, for who reads it by itself and checks it; `None` where the best node to read from
    /// has none, and for a block without an object of its own. Who finds it bad reads with [`Replicator::get`], which reads around it and heals it.
    ///
    /// # Errors
    /// `NotFound` when there is no such block.
    pub async fn file(&self, volume: VolumeId, id: BlockId) -> Result<Option<File>> {
        let found = self.blocks(volume, &[id]).await?.pop().flatten();
        let block = found.ok_or_else(|| Error::not_found(format!("block {id}")))?;
        match self.order(&id, &block.replicas).first() {
            Some(node) => Ok(self.nodes.file(node, &id).await.unwrap_or(None)),
            None => Ok(None),
        }
    }

    /// Reads from where the bytes lie.
    async fn get_placed(
        &self,
        volume: VolumeId,
        id: &BlockId,
        block: &Block,
        range: &Range<u32>,
    ) -> Result<Bytes> {
        match block.place {
            Place::Object => self.get_from(volume, id, block, range).await,
            Place::Inline => self.read_inline(volume, id, range).await,
            Place::Pack { block: pack, offset } => {
                let record = self.blocks(volume, &[pack]).await?.pop().flatten();
                let within = range.start.saturating_add(offset)..range.end.saturating_add(offset);
                match record {
                    Some(record) if within.end <= record.size => {
                        self.get_from(volume, &pack, &record, &within).await
                    }
                    _ => Err(Error::corrupt(format!("block {id}: there is no such pack as {pack}"))),
                }
            }
        }
    }

    async fn get_from(
        &self,
        volume: VolumeId,
        id: &BlockId,
        block: &Block,
        range: &Range<u32>,
    ) -> Result<Bytes> {
        let mut order = self.order(id, &block.replicas).into_iter();
        // Copies that cannot be reached may be good.
        let mut unreachable = order.len() < block.replicas.len();
        let mut calls = FuturesUnordered::new();
        let mut bad = BTreeSet::new();
        let mut next = order.next();
        let result = loop {
            if let Some(node) = next.take() {
                calls.push(async move { (node.id(), self.read_on(node, id, block.size, range).await) });
            }
            if calls.is_empty() {
                break None;
            }
            let hedge = Instant::now() + HEDGE_READ;
            tokio::select! {
                biased;
                Some((node, outcome)) = calls.next() => match outcome {
                    Ok(data) => break Some(data),
                    Err(error) => {
                        match error.kind() {
                            ErrorKind::Corrupt | ErrorKind::NotFound => {
                                log::warn!("node {node} has no good copy of block {id}: {error:?}");
                                COUNTERS.read_faults.get_or_create(&node.into()).inc();
                                bad.insert(node);
                            }
                            _ => {
                                COUNTERS.unreachable_reads.get_or_create(&node.into()).inc();
                                unreachable = true;
                            }
                        }
                        next = order.next();
                    }
                },
                () = tokio::time::sleep_until(hedge), if order.len() > 0 => next = order.next(),
            }
        };
        if !bad.is_empty() {
            // When the queue is full, the next read or a scrub finds it again.
            let _ = self.hurt.try_send((volume, *id));
        }
        match result {
            Some(data) => Ok(data),
            None if unreachable => {
                Err(Error::unavailable(format!("block {id}: no copy can be reached")).retry_after(1))
            }
            None => Err(Error::corrupt(format!("block {id}: every copy is bad"))),
        }
    }

    /// The nodes to read from: healthy ones first, of those the ones that fail and work the least; otherwise as the block's hash says.
    fn order(&self, id: &BlockId, replicas: &[NodeId]) -> Vec<&Node> {
        let nodes: Vec<&Node> =
            replicas.iter().filter_map(|node| self.nodes.get(*node).ok()).map(|node| &**node).collect();
        let candidates: Vec<_> =
            nodes.iter().map(|node| placement::Candidate { weight: 1, ..node.candidate() }).collect();
        let rank = placement::choose(id, &candidates, &[], candidates.len());
        let mut order: Vec<&Node> = nodes.into_iter().filter(|node| node.is_reachable()).collect();
        order.sort_by_key(|node| {
            (!node.is_healthy(), node.load(), rank.iter().position(|id| *id == node.id()))
        });
        order
    }

    async fn read_on(&self, node: &Node, id: &BlockId, size: u32, range: &Range<u32>) -> Result<Bytes> {
        let is_whole = *range == (0..size);
        let first = if is_whole { block::object_len(size) } else { HEADER_MAX as u64 };
        let start = self.nodes.read(node, id, Some(0..first)).await?;
        let header = Header::parse(&start)?;
        if header.id() != *id {
            return Err(Error::corrupt(format!("node {} has another block in its place", node.id())));
        }
        let stored = header.stored_range(range.clone());
        let pieces = match (usize::try_from(stored.start), usize::try_from(stored.end)) {
            // A small block, or one that is wanted whole, came with its header.
            (Ok(from), Ok(to)) if to <= start.len() => start.slice(from..to),
            _ => self.nodes.read(node, id, Some(stored)).await?,
        };
        match header.cut(range.clone(), pieces) {
            // The record says that the block is longer than this object: it is not the block.
            Err(error) if error.kind() == ErrorKind::OutOfRange => Err(Error::corrupt(error.subject())),
            result => result,
        }
    }
}
