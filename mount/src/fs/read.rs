//! Reading: what a range of a file is made of, the blocks that it needs, and reading ahead of a sequential reader.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::future::try_join_all;
use tandemfs::id::Ino;
use tandemfs::tree::{CHUNK_SIZE, Chunk, Key, Record, Want};
use tandemfs::{Error, ErrorKind, Result};

use super::blocks::Blocks;
use super::buffer::{Layers, Piece, Source};
use super::session::Session;

/// Chunk records that are asked for at once.
const CHUNKS_AHEAD: u64 = 64;
/// A read of so many bytes is one of several with which the kernel reads ahead of a program that goes on.
const LARGE: u64 = 128 << 10;
/// How far the offset of such a read may be off, and that of others.
const SLACK: u64 = CHUNK_SIZE;
const SMALL_SLACK: u64 = 64 << 10;
/// Chunks that are read ahead of a sequential reader.
const READ_AHEAD: u64 = 2;

/// Reads files of a session.
pub struct Reader {
    session: Arc<Session>,
    blocks: Arc<Blocks>,
}

/// How a handle reads.
#[derive(Debug, Default)]
pub struct Pattern(Mutex<Expected>);

#[derive(Debug, Default)]
struct Expected {
    /// Where somebody has begun to go on.
    begin: u64,
    next: u64,
    ahead: u64,
}

impl Pattern {
    /// Notes a read. Answers whether more of its blocks will be wanted, and the chunks that are to be read ahead.
    fn note(&self, start: u64, end: u64) -> (bool, Range<u64>) {
        let mut expected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_large = end - start >= LARGE;
        if start.abs_diff(expected.next) > if is_large { SLACK } else { SMALL_SLACK } {
            *expected = Expected { begin: start, next: end, ahead: 0 };
            return (false, 0..0);
        }
        expected.next = expected.next.max(end);
        let chunk = start / CHUNK_SIZE;
        // So little says nothing: many files are no longer, and many records.
        let read = end.saturating_sub(expected.begin);
        let until = if read > CHUNK_SIZE / 2 { chunk + 1 + READ_AHEAD } else { 0 };
        let from = expected.ahead.max(chunk + 1);
        expected.ahead = expected.ahead.max(until);
        (expected.begin == 0 || is_large || read > SMALL_SLACK, from..until.max(from))
    }
}

impl Reader {
    /// For a session, and where it finds blocks.
    pub(super) fn new(session: Arc<Session>, blocks: Arc<Blocks>) -> Arc<Self> {
        Arc::new(Self { session, blocks })
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
                    self.blocks.get(*block, *offset..until, whole).await.map(Some)
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

    async fn read_ahead(self: Arc<Self>, ino: Ino, numbers: Range<u64>) {
        let Ok(chunks) = self.chunks(ino, numbers).await else { return };
        let blocks = chunks.iter().flat_map(|(_, chunk)| chunk.0.iter().map(|extent| extent.block)).take(16);
        // A failure will show when the block is read.
        let _failed = try_join_all(blocks.map(|block| self.blocks.whole(block, false))).await;
    }
}

/// The numbers of the chunks that a range touches.
pub fn chunks(range: &Range<u64>) -> Range<u64> {
    range.start / CHUNK_SIZE..range.end.div_ceil(CHUNK_SIZE)
}

#[cfg(test)]
mod tests {
    use super::{LARGE, Pattern};
    use tandemfs::tree::CHUNK_SIZE;

    #[test]
    fn who_goes_on_wants_more_and_who_jumps_does_not() {
        let pattern = Pattern::default();
        assert_eq!(pattern.note(0, 4096), (true, 1..1));
        assert_eq!(pattern.note(4096, 20_000), (true, 1..1));
        let far = 5 * CHUNK_SIZE;
        assert!(!pattern.note(far, far + 4096).0, "a jump");
        assert!(!pattern.note(far + 4096, far + 8192).0, "a long record");
        // The kernel reads ahead with large requests, in any order.
        assert_eq!(pattern.note(far + LARGE, far + 2 * LARGE), (true, 6..6));
        assert_eq!(pattern.note(far + 8192, far + LARGE + 8192), (true, 6..6));
        assert_eq!(pattern.note(far + 2 * LARGE, far + CHUNK_SIZE), (true, 6..8));
        assert_eq!(pattern.note(far + CHUNK_SIZE, far + CHUNK_SIZE + LARGE), (true, 8..9));
        assert!(!pattern.note(0, LARGE).0);
        let scattered = (1..2000u64).map(|number| number * 7919 % 100_000 * 4096);
        let alike = scattered.filter(|at| pattern.note(*at, at + 4096).0).count();
        assert!(alike < 20, "{alike}");
    }
}
