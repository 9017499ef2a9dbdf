//! Reading: what a range of a file is made of, the blocks that it needs, and reading ahead of a sequential reader.

use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use quick_cache::sync::{Cache as Lru, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use tandemfs::api::fs::BLOCK_SIZE_MAX;
use tandemfs::block::{self, OBJECT_MAX};
use tandemfs::id::{BlockId, Ino};
use tandemfs::tree::{CHUNK_SIZE, Chunk, Key, Record, Want};
use tandemfs::{Error, ErrorKind, Result};
use tokio::time::timeout;

use super::block_cache::BlockCache;
use super::buffer::{Layers, Piece, Source};
use super::session::Session;

/// Chunk records that are asked for at once.
const CHUNKS_AHEAD: u64 = 64;
/// How far the offset of a sequential reader may be off: the kernel reads ahead with several requests at once.
const SEQUENTIAL_SLACK: u64 = CHUNK_SIZE;
/// Chunks that are read ahead of a sequential reader.
const READ_AHEAD: u64 = 2;

/// A disk that is slower than this is read around: the daemon is asked, which knows other copies.
const SHORT_CIRCUIT_TIMEOUT: Duration = Duration::from_millis(500);

/// Reads files of a session.
pub struct Reader {
    session: Arc<Session>,
    blocks: Lru<BlockId, Bytes, Weigh>,
    on_disk: Option<Arc<BlockCache>>,
}

#[derive(Clone)]
struct Weigh;

impl Weighter<BlockId, Bytes> for Weigh {
    fn weight(&self, _: &BlockId, data: &Bytes) -> u64 {
        data.len() as u64 + 64
    }
}

/// How a handle reads.
#[derive(Debug, Default)]
pub struct Pattern(Mutex<Expected>);

#[derive(Debug, Default)]
struct Expected {
    next: u64,
    ahead: u64,
}

impl Pattern {
    /// Notes a read. Answers whether it goes on from the last one, and the chunks that are to be read ahead.
    fn note(&self, start: u64, end: u64) -> (bool, Range<u64>) {
        let mut expected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sequential = start.abs_diff(expected.next) <= SEQUENTIAL_SLACK;
        if !sequential {
            *expected = Expected { next: end, ahead: 0 };
            return (false, 0..0);
        }
        expected.next = expected.next.max(end);
        let chunk = start / CHUNK_SIZE;
        // The first chunk alone says little: many files are no longer.
        let until = if end > CHUNK_SIZE / 2 { chunk + 1 + READ_AHEAD } else { 0 };
        let from = expected.ahead.max(chunk + 1);
        expected.ahead = expected.ahead.max(until);
        (true, from..until.max(from))
    }
}

impl Reader {
    /// For a session, with a cache of so many bytes in memory, and one on disk.
    pub(super) fn new(session: Arc<Session>, bytes: usize, on_disk: Option<Arc<BlockCache>>) -> Arc<Self> {
        let bytes = bytes.max(2 * BLOCK_SIZE_MAX);
        let options = OptionsBuilder::new()
            .estimated_items_capacity((bytes / 65_536).max(16))
            .weight_capacity(bytes as u64)
            .shards(1)
            .build();
        let blocks = match options {
            Ok(options) => {
                Lru::with_options(options, Weigh, DefaultHashBuilder::default(), DefaultLifecycle::default())
            }
            Err(_) => Lru::with_weighter(16, bytes as u64, Weigh),
        };
        Arc::new(Self { session, blocks, on_disk })
    }

    /// Reads a range that lies within the file. `dirty` are pieces that lie over what is stored, the oldest first.
    ///
    /// # Errors
    /// Those of the daemon.
    pub async fn read(
        self: &Arc<Self>,
        ino: Ino,
        range: Range<u64>,
        dirty: &[Piece],
        pattern: &Pattern,
    ) -> Result<Bytes> {
        let (sequential, ahead) = pattern.note(range.start, range.end);
        let result = match self.try_read(ino, range.clone(), dirty, sequential).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // A block that was cleared away since its extent was cached: somebody has written over it.
                self.session.cache.drop_chunks(ino, chunks(&range));
                self.try_read(ino, range, dirty, sequential).await
            }
            other => other,
        };
        if !ahead.is_empty() && result.is_ok() {
            tokio::spawn(Arc::clone(self).read_ahead(ino, ahead));
        }
        result
    }

    async fn try_read(&self, ino: Ino, range: Range<u64>, dirty: &[Piece], whole: bool) -> Result<Bytes> {
        let mut layers = Layers::new(range.start, range.end);
        for (number, chunk) in self.chunks(ino, chunks(&range)).await? {
            let base = number * CHUNK_SIZE;
            for extent in chunk.0 {
                let start = base + u64::from(extent.start);
                let end = start + u64::from(extent.length);
                layers.lay(&Piece { start, end, source: Source::Block(extent.block, extent.offset) });
            }
        }
        for piece in dirty {
            layers.lay(piece);
        }
        let pieces: Vec<Piece> = layers.into_pieces().collect();
        let loads = pieces.iter().map(|piece| async move {
            match &piece.source {
                Source::Hole => Ok(None),
                Source::Memory(data) => Ok(Some(data.clone())),
                Source::Block(block, offset) => {
                    let length = (piece.end - piece.start) as u32;
                    let until = offset.checked_add(length).ok_or_else(|| Error::corrupt("an extent"))?;
                    self.block(*block, *offset..until, whole).await.map(Some)
                }
            }
        });
        let mut loaded = try_join_all(loads).await?;
        if let [Some(_)] = loaded[..] {
            // The usual case: all of it lies in one block, and is not copied.
            return Ok(loaded.pop().flatten().unwrap_or_default());
        }
        let mut data = vec![0; (range.end - range.start) as usize];
        for (piece, bytes) in pieces.iter().zip(loaded) {
            if let Some(bytes) = bytes {
                let at = (piece.start - range.start) as usize;
                data[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
        Ok(Bytes::from(data))
    }

    /// The chunks of a file, from the cache or the daemon; holes are left out.
    ///
    /// # Errors
    /// Those of the daemon.
    pub async fn chunks(&self, ino: Ino, numbers: Range<u64>) -> Result<Vec<(u64, Chunk)>> {
        let mut found = Vec::new();
        let mut number = numbers.start;
        while number < numbers.end {
            match self.session.cache.get(&Key::Chunk(ino, number)) {
                Some(known) => {
                    if let Some(Record::Chunk(chunk)) = known.as_deref() {
                        found.push((number, chunk.clone()));
                    }
                    number += 1;
                }
                None => {
                    let to = numbers.end.min(number + CHUNKS_AHEAD);
                    number = self.load_chunks(ino, number, to, &mut found).await?;
                }
            }
        }
        Ok(found)
    }

    /// Asks the daemon for chunks. Answers up to which one it told.
    async fn load_chunks(&self, ino: Ino, from: u64, to: u64, found: &mut Vec<(u64, Chunk)>) -> Result<u64> {
        let want = Want::Chunks { ino, from, to };
        let session = &self.session;
        let request = session.cache.begin();
        let read = &tandemfs::api::fs::Read { wants: vec![want] };
        let reply = session.ask(read).await?;
        let answer =
            reply.answers.into_iter().next().ok_or_else(|| Error::corrupt("an answer without records"))?;
        let mut next = from;
        let mut records = Vec::new();
        for (key, record) in answer.records {
            let (Key::Chunk(owner, number), Some(Record::Chunk(chunk))) = (&key, &record) else { continue };
            if *owner != ino || *number < next || *number >= to {
                return Err(Error::corrupt("chunks that are out of order"));
            }
            // What is left out is known to be a hole.
            records.extend((next..*number).map(|hole| (Key::Chunk(ino, hole), None)));
            next = number + 1;
            found.push((*number, chunk.clone()));
            records.push((key, record));
        }
        if answer.complete {
            records.extend((next..to).map(|hole| (Key::Chunk(ino, hole), None)));
            next = to;
        } else if next == from {
            return Err(Error::corrupt("an answer without records that is not complete"));
        }
        request.accept(reply.version, records);
        Ok(next)
    }

    /// The first chunk of a range that has data, or none. Asks once, however large the range is.
    ///
    /// # Errors
    /// Those of the daemon.
    pub async fn next_chunk(&self, ino: Ino, numbers: Range<u64>) -> Result<Option<(u64, Chunk)>> {
        for number in numbers.clone() {
            match self.session.cache.get(&Key::Chunk(ino, number)) {
                Some(known) => {
                    if let Some(Record::Chunk(chunk)) = known.as_deref() {
                        return Ok(Some((number, chunk.clone())));
                    }
                }
                None => {
                    let want = Want::Chunks { ino, from: number, to: numbers.end };
                    let reply = self.session.read(vec![want]).await?;
                    let mut records = reply.answers.into_iter().flat_map(|answer| answer.records);
                    return Ok(records.find_map(|(key, record)| match (key, record) {
                        (Key::Chunk(_, number), Some(Record::Chunk(chunk))) => Some((number, chunk)),
                        _ => None,
                    }));
                }
            }
        }
        Ok(None)
    }

    /// Bytes of a block. `whole`: more of it will be wanted.
    async fn block(&self, id: BlockId, range: Range<u32>, whole: bool) -> Result<Bytes> {
        let wanted = range.start as usize..range.end as usize;
        let cached = match self.session.queue.block(&id) {
            Some(data) => Some(data),
            None if whole => Some(self.whole_block(id).await?),
            None => self.blocks.get(&id),
        };
        if let Some(data) = cached {
            if wanted.end > data.len() {
                return Err(Error::corrupt(format!("block {id} is shorter than its extents say")));
            }
            return Ok(data.slice(wanted));
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

    async fn whole_block(&self, id: BlockId) -> Result<Bytes> {
        let session = &self.session;
        self.blocks
            .get_or_insert_async(&id, async {
                if let Some(data) = self.short_circuit(id).await {
                    return Ok(data);
                }
                // What is handed over lies on this machine already, and does not come here.
                if let Some(cache) = &self.on_disk
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
                if let Some(cache) = &self.on_disk {
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
        let read = tokio::task::spawn_blocking(move || {
            file.take(length).read_to_end(&mut object)?;
            block::decode(&id, object.into())
        });
        match timeout(SHORT_CIRCUIT_TIMEOUT, read).await.ok()?.ok()? {
            Ok(data) => Some(data),
            Err(error) => {
                log::warn!("block {id} is read from another copy: {error}");
                None
            }
        }
    }

    async fn read_ahead(self: Arc<Self>, ino: Ino, numbers: Range<u64>) {
        let Ok(chunks) = self.chunks(ino, numbers).await else { return };
        let blocks = chunks.iter().flat_map(|(_, chunk)| chunk.0.iter().map(|extent| extent.block)).take(16);
        // A failure will show when the block is read.
        let _failed = try_join_all(blocks.map(|block| self.whole_block(block))).await;
    }
}

/// The numbers of the chunks that a range touches.
pub fn chunks(range: &Range<u64>) -> Range<u64> {
    range.start / CHUNK_SIZE..range.end.div_ceil(CHUNK_SIZE)
}
