//! What was written to a file and is not part of it yet: buffers that grow, blocks on their way, blocks that are uploaded.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tandemfs::api::fs::BATCH_INLINE_MAX;
use tandemfs::clock::Time;
use tandemfs::id::{BlockId, Ino, SessionId};
use tandemfs::tree::{CHUNK_SIZE, Inode, Mutation, WrittenExtent};
use tandemfs::{Error, Result};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;

use super::batches::Coming;
use super::buffer::{Buffer, Part, Piece, Source};
use super::lease::log::Block;

/// The most extents in one `Write` mutation.
const EXTENTS_MAX: usize = 1024;

/// Data that is not part of its file yet.
#[derive(Clone, Copy, Debug)]
pub struct Unsent {
    pub(super) end: u64,
    pub(super) time: Option<Time>,
}

impl Unsent {
    /// Shows an inode as it is with it.
    pub fn show(&self, inode: &mut Inode) {
        inode.size = inode.size.max(self.end);
        if let Some(time) = self.time {
            (inode.mtime, inode.ctime) = (time, time);
        }
    }
}

/// The dirty data of one file.
pub struct FileData {
    /// The file.
    pub ino: Ino,
    pub(super) state: Mutex<State>,
    /// Held while data becomes part of the file, so that writes stay in order.
    pub(super) commit: tokio::sync::Mutex<()>,
    pub(super) uploaded: Notify,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) users: usize,
    pub(super) buffers: BTreeMap<u64, Dirty>,
    pub(super) staged: VecDeque<Staged>,
    pub(super) number: u64,
    pub(super) time: Option<Time>,
    pub(super) since: Option<Instant>,
    pub(super) clear_privileges: bool,
    /// Some of it was written under locks of this session, so it is committed in it or not at all.
    pub(super) only: Option<SessionId>,
    /// Of the first that is dirty: what it builds on.
    pub(super) base: Option<Base>,
    /// What was made part of the file last, if it is short.
    pub(super) tail: Option<Tail>,
    pub(super) failures: u64,
    pub(super) failure: Option<Error>,
}

/// What is dirty was written while the file was delegated to a session, and builds on a content ([`Inode::content`]) if that was known.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Base {
    pub(super) session: SessionId,
    pub(super) content: Option<u64>,
}

/// A short piece that is part of the file. What is appended to it takes its place together with it, so that a file that grows in small
/// steps does not consist of as many pieces.
pub(super) struct Tail {
    chunk: u64,
    /// Where it begins in the chunk.
    start: u32,
    data: Bytes,
    /// In which session, and what the content of the file was with it.
    base: Base,
}

impl Tail {
    /// The longest, in bytes.
    const MAX: usize = 4096;

    /// Of what was staged last, and has made the content what it is.
    pub(super) fn of(staged: &Staged, base: Base) -> Option<Self> {
        let data = staged.data.clone().filter(|data| data.len() < Self::MAX)?;
        let [part] = staged.parts.as_slice() else { return None };
        Some(Self { chunk: staged.chunk, start: part.start, data, base })
    }

    /// Lays it before what was written right behind it, if all that is no longer than one may be.
    pub(super) fn join(&self, chunk: u64, buffer: &mut Buffer) {
        let is_next = chunk == self.chunk && buffer.start() == self.start + self.data.len() as u32;
        if is_next && self.data.len() + buffer.bytes() <= Self::MAX {
            buffer.write(self.start, &self.data);
        }
    }

    /// Whether it is what the file has there now.
    pub(super) fn is_of(&self, base: Base) -> bool {
        self.base.content.is_some() && self.base == base
    }
}

#[derive(Default)]
pub(super) struct Dirty {
    pub(super) buffer: Buffer,
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// A block that is not part of the file yet: on its way to the nodes, there, or to come with the commit or right before it.
pub(super) struct Staged {
    pub(super) number: u64,
    pub(super) chunk: u64,
    pub(super) parts: Vec<Part>,
    /// Until it is uploaded, or committed with its data.
    pub(super) data: Option<Bytes>,
    /// Once it can be committed.
    pub(super) block: Option<BlockId>,
    pub(super) permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl Staged {
    pub(super) fn end(&self) -> u64 {
        self.chunk * CHUNK_SIZE + self.parts.last().map_or(0, |part| u64::from(part.start + part.length))
    }
}

impl State {
    pub(super) fn is_dirty(&self) -> bool {
        !self.buffers.is_empty() || !self.staged.is_empty()
    }

    /// Where the last byte that is not part of the file yet ends.
    pub(super) fn end(&self) -> u64 {
        let buffers = self.buffers.last_key_value();
        let buffered = buffers.map_or(0, |(chunk, dirty)| chunk * CHUNK_SIZE + u64::from(dirty.buffer.end()));
        self.staged.iter().map(Staged::end).fold(buffered, u64::max)
    }

    pub(super) fn settle(&mut self) {
        if !self.is_dirty() {
            self.since = None;
            self.time = None;
            self.clear_privileges = false;
            self.only = None;
            self.base = None;
        }
    }

    pub(super) fn fail(&mut self, error: &Error) {
        self.failures += 1;
        self.failure = Some(error.duplicate());
        self.settle();
    }
}

impl FileData {
    pub(super) fn new(ino: Ino) -> Self {
        Self { ino, state: Mutex::default(), commit: tokio::sync::Mutex::new(()), uploaded: Notify::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something was written that is not part of the file yet.
    pub fn is_dirty(&self) -> bool {
        self.lock().is_dirty()
    }

    /// How many failures there have been, for [`FileData::failure_after`].
    pub fn failures(&self) -> u64 {
        self.lock().failures
    }

    /// What went wrong since a handle was last told; each handle is told once.
    ///
    /// # Errors
    /// The last failure.
    pub fn failure_after(&self, seen: &mut u64) -> Result<()> {
        let state = self.lock();
        if state.failures > *seen
            && let Some(error) = &state.failure
        {
            *seen = state.failures;
            return Err(error.duplicate());
        }
        Ok(())
    }

    /// What there is of dirty data now, if there is any.
    pub fn dirty(&self) -> Option<Unsent> {
        let state = self.lock();
        state.is_dirty().then(|| Unsent { end: state.end(), time: state.time })
    }

    /// Where the dirty data ends; 0 without any.
    pub fn end(&self) -> u64 {
        self.lock().end()
    }

    /// The dirty pieces of a range, the oldest first.
    pub fn pieces(&self, start: u64, end: u64) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if start >= end {
            return pieces;
        }
        let state = self.lock();
        for staged in &state.staged {
            let base = staged.chunk * CHUNK_SIZE;
            if base >= end || base + CHUNK_SIZE <= start {
                continue;
            }
            for part in &staged.parts {
                let (from, to) = (base + u64::from(part.start), base + u64::from(part.start + part.length));
                let at = part.block_offset as usize;
                let source = match (&staged.data, staged.block) {
                    (Some(data), _) => Source::Memory(data.slice(at..at + part.length as usize)),
                    (None, Some(block)) => Source::Block(block, part.block_offset),
                    (None, None) => continue,
                };
                pieces.push(Piece { start: from, end: to, source });
            }
        }
        for (chunk, dirty) in state.buffers.range(start / CHUNK_SIZE..=end.saturating_sub(1) / CHUNK_SIZE) {
            let base = chunk * CHUNK_SIZE;
            let from = start.saturating_sub(base).min(CHUNK_SIZE) as u32;
            let to = end.saturating_sub(base).min(CHUNK_SIZE) as u32;
            pieces.extend(dirty.buffer.pieces(from, to).into_iter().map(|(at, data)| {
                let start = base + u64::from(at);
                Piece { start, end: start + data.len() as u64, source: Source::Memory(data) }
            }));
        }
        pieces
    }
}

/// What of the uploaded data is to become part of the file next.
pub(super) struct Next {
    /// So many staged blocks.
    pub(super) count: usize,
    /// The mutation that does it.
    pub(super) write: Mutation,
    /// What it names and is not stored.
    pub(super) coming: Coming,
    /// Nothing is staged behind it.
    pub(super) last: bool,
}

/// Blocks of up to `inline_max` bytes are sent with it.
pub(super) fn next_write(file: &FileData, inline_max: usize) -> Option<Next> {
    let state = file.lock();
    let mut extents: Vec<WrittenExtent> = Vec::new();
    let mut coming = Coming::default();
    let (mut count, mut end, mut bytes) = (0, 0, 0);
    for staged in &state.staged {
        let Some(block) = staged.block else { break };
        if !extents.is_empty() && extents.len() + staged.parts.len() > EXTENTS_MAX {
            break;
        }
        if let Some(data) = staged.data.clone() {
            let is_large = data.len() > inline_max;
            bytes += if is_large { 0 } else { data.len() };
            if bytes > BATCH_INLINE_MAX && !extents.is_empty() {
                break;
            }
            let blocks = if is_large { &mut coming.large } else { &mut coming.blocks };
            blocks.push(Block { id: block, data });
            coming.memory.extend(staged.permit.clone());
        }
        let base = staged.chunk * CHUNK_SIZE;
        extents.extend(staged.parts.iter().map(|part| WrittenExtent {
            offset: base + u64::from(part.start),
            length: u64::from(part.length),
            block,
            block_offset: part.block_offset,
        }));
        end = staged.end().max(end);
        count += 1;
    }
    if extents.is_empty() {
        return None;
    }
    let (clear_privileges, time) = (state.clear_privileges, state.time.unwrap_or_default());
    let write = Mutation::Write { ino: file.ino, extents, size: end, clear_privileges, time };
    Some(Next { count, write, coming, last: count == state.staged.len() })
}
