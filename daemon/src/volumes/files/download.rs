//! Downloads: a file's bytes as a stream, with a little read ahead, holes as zeros.

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tandemfs::id::BlockId;
use tandemfs::tree::{CHUNK_SIZE, Chunk, Inode, Key, Record, Want};
use tandemfs::{Error, Result};

use super::super::volume::Volume;
use super::{CHUNKS_PAGE, Volumes, chunks_of, etag};
use crate::accounts::Caller;

/// What all downloads together keep in memory, roughly.
const MEMORY: usize = 64 << 20;
/// The pieces that a download reads, between these bounds, so that a thousand of them fit into the memory.
const PIECE_MAX: usize = 1 << 20;
const PIECE_MIN: usize = 64 << 10;
/// Pieces that are read ahead.
const READ_AHEAD: usize = 4;

static ZEROS: [u8; PIECE_MIN] = [0; PIECE_MIN];

/// A file that is to be downloaded.
#[derive(Debug)]
pub struct Download {
    /// The inode as it was found.
    pub inode: Inode,
    /// The strong tag of the content.
    pub etag: String,
    volume: Arc<Volume>,
}

/// A piece of a file that is to be read.
enum Piece {
    Hole(usize),
    Data(BlockId, Range<u32>),
}

/// Counts a download for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counter))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Volumes {
    /// Finds a file to download.
    ///
    /// # Errors
    /// `NotFound` for everything that is not a file of the caller's.
    pub async fn download(&self, caller: &Caller, id: &str) -> Result<Download> {
        let (volume, ino) = self.find(caller, id).await?;
        let inode = volume.file(ino).await?;
        Ok(Download { etag: etag(&inode), inode, volume })
    }

    /// The bytes of a download. The first of them have been read when this returns, so that what cannot be read at all is an
    /// error and not a broken body; a failure after that ends the stream with an error.
    ///
    /// # Errors
    /// `Unavailable`, `Corrupt`, or `Stale` when the file has changed since it was found.
    pub async fn read(
        &self,
        download: &Download,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        let mut pieces = self.pieces(&download.volume, &download.inode, range);
        match pieces.next().await {
            Some(Ok(first)) => Ok(stream::once(async { Ok(first) }).chain(pieces).boxed()),
            Some(Err(error)) => Err(error),
            None => Ok(stream::empty().boxed()),
        }
    }

    /// A file's bytes. Ends with an error, never early, when one cannot be read or the file has changed.
    pub(super) fn pieces(
        &self,
        volume: &Arc<Volume>,
        inode: &Inode,
        range: Range<u64>,
    ) -> BoxStream<'static, Result<Bytes>> {
        let counted = Counted::new(&self.downloads);
        let each = MEMORY / counted.0.load(Ordering::Relaxed).max(1);
        let size = (each / (READ_AHEAD + 1)).clamp(PIECE_MIN, PIECE_MAX);
        let ahead = (each / size).saturating_sub(1).clamp(1, READ_AHEAD);
        let reading = Reading {
            volume: Arc::clone(volume),
            // The file's data stays for as long as it is read, also when the file is deleted.
            reader: volume.orphans.read(inode.ino),
            counted,
            inode: inode.clone(),
            at: range.start.min(inode.size),
            end: range.end.min(inode.size),
            piece: size,
            pieces: VecDeque::new(),
        };
        let volume = Arc::clone(volume);
        let pieces = stream::unfold(Some(reading), |reading: Option<Reading>| async move {
            let mut reading = reading?;
            match reading.next().await {
                Ok(Some(piece)) => Some((Ok(piece), Some(reading))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        pieces
            .map(move |piece| {
                let volume = Arc::clone(&volume);
                async move {
                    match piece? {
                        Piece::Hole(length) => Ok(Bytes::from_static(&ZEROS[..length])),
                        Piece::Data(block, range) => {
                            volume.shared.replicator.get(volume.id, block, range).await
                        }
                    }
                }
            })
            .buffered(ahead)
            .boxed()
    }
}

/// A walk over the pieces of a file.
struct Reading {
    volume: Arc<Volume>,
    #[expect(dead_code, reason = "held for its drop")]
    reader: super::super::orphans::Reader,
    #[expect(dead_code, reason = "held for its drop")]
    counted: Counted,
    inode: Inode,
    at: u64,
    end: u64,
    piece: usize,
    /// Pieces up to `at` that were not given yet.
    pieces: VecDeque<Piece>,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Piece>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Ok(Some(piece));
            }
            if self.at >= self.end {
                return Ok(None);
            }
            self.load().await?;
        }
    }

    /// Cuts the next chunks into pieces.
    async fn load(&mut self) -> Result<()> {
        let (ino, content) = (self.inode.ino, self.inode.content);
        let first = self.at / CHUNK_SIZE;
        let last = (self.end.div_ceil(CHUNK_SIZE)).min(first + CHUNKS_PAGE as u64);
        let wants = [Want::Record(Key::Inode(ino)), Want::Chunks { ino, from: first, to: last }];
        let records =
            self.volume.read(None, &wants).await?.answers.into_iter().flat_map(|answer| answer.records);
        let mut records = records.collect::<Vec<_>>();
        match records.first() {
            Some((_, Some(Record::Inode(inode)))) if inode.content == content => {}
            _ => return Err(Error::stale("the file has changed while it was read")),
        }
        let mut chunks: BTreeMap<u64, Chunk> = chunks_of(records.split_off(1)).collect();
        for number in first..last {
            let begin = number * CHUNK_SIZE;
            let from = self.at.saturating_sub(begin);
            let to = (self.end - begin).min(CHUNK_SIZE);
            let chunk = chunks.remove(&number).unwrap_or_default();
            self.cut(&chunk, from, to);
            self.at = begin + to;
        }
        Ok(())
    }

    /// Cuts `from..to` of a chunk.
    fn cut(&mut self, chunk: &Chunk, from: u64, to: u64) {
        let mut at = from;
        for extent in &chunk.0 {
            let (start, end) = (u64::from(extent.start).max(at), u64::from(extent.end()).min(to));
            if start >= end {
                continue;
            }
            self.hole(start - at);
            let offset = extent.offset + (start as u32 - extent.start);
            let mut done = 0;
            let length = (end - start) as u32;
            while done < length {
                let some = (length - done).min(self.piece as u32);
                self.pieces.push_back(Piece::Data(extent.block, offset + done..offset + done + some));
                done += some;
            }
            at = end;
        }
        self.hole(to.saturating_sub(at));
    }

    fn hole(&mut self, length: u64) {
        let mut left = length;
        while left > 0 {
            let some = left.min(ZEROS.len() as u64);
            self.pieces.push_back(Piece::Hole(some as usize));
            left -= some;
        }
    }
}
