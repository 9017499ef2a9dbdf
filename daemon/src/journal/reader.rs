//! Reading one segment, entry by entry, from whichever copy is good there.

use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tandemfs::id::NodeId;
use tandemfs::{Result, codec};

use super::format::{Chain, Entry, Header, MAGIC, PREFIX, open, payload_length};
use crate::segments::SegmentStore;

/// What is read at once, if an entry is not longer.
const PIECE: u64 = 1 << 20;
/// Where the header is read, a segment without entries is no longer.
const HEADER_MAX: u64 = 4096;
/// How long a node may take to read a piece.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// A copy of a segment.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    /// Where it lies.
    pub(super) node: NodeId,
    /// The node's segments.
    pub(super) store: Arc<dyn SegmentStore>,
}

/// A place in a segment, in the middle of reading it.
#[derive(Debug)]
pub(super) struct Reader {
    number: u64,
    /// The one that was good last is the first.
    copies: Vec<Piece>,
    at: u64,
    chain: Chain,
}

/// A copy, and what of it is in memory.
#[derive(Debug)]
struct Piece {
    copy: Copy,
    from: u64,
    bytes: Bytes,
}

impl Piece {
    /// `length` bytes from `at`; fewer at the end, none if they cannot be read.
    async fn get(&mut self, number: u64, at: u64, length: usize) -> Bytes {
        let whole = |piece: &Self| {
            let skip = usize::try_from(at.checked_sub(piece.from)?).ok()?;
            let to = skip.checked_add(length)?;
            (to <= piece.bytes.len()).then(|| piece.bytes.slice(skip..to))
        };
        if let Some(bytes) = whole(self) {
            return bytes;
        }
        let to = at.saturating_add(PIECE.max(length as u64));
        let read = tokio::time::timeout(PATIENCE, self.copy.store.read(number, at..to)).await;
        match read {
            Ok(Ok(bytes)) => (self.from, self.bytes) = (at, bytes),
            Ok(Err(error)) => {
                log::warn!("segment {number} on node {}: {error:?}", self.copy.node);
                return Bytes::new();
            }
            Err(_) => {
                log::warn!("segment {number} on node {}: no answer", self.copy.node);
                return Bytes::new();
            }
        }
        whole(self).unwrap_or_else(|| self.bytes.clone())
    }

    /// The frame at `at`, its payload, and the chain after it.
    async fn frame(&mut self, number: u64, at: u64, before: Chain) -> Option<(Bytes, Bytes, Chain)> {
        let length = payload_length(&self.get(number, at, PREFIX).await)? + PREFIX;
        let frame = self.get(number, at, length).await;
        if frame.len() != length {
            return None;
        }
        let (payload, chain) = open(before, &frame)?;
        Some((frame, payload, chain))
    }
}

/// What a copy of a segment says of itself; `None` if that is damaged or not all there.
///
/// # Errors
/// Those of the store.
pub(super) async fn header(store: &dyn SegmentStore, number: u64) -> Result<Option<Header>> {
    let bytes = store.read(number, 0..HEADER_MAX).await?;
    Ok(parse(number, &bytes).map(|(header, _)| header))
}

/// The header at the beginning of a segment, and how long the beginning is.
fn parse(number: u64, bytes: &Bytes) -> Option<(Header, u64)> {
    let rest = bytes.strip_prefix(&MAGIC)?;
    let to = MAGIC.len() + PREFIX + payload_length(rest)?;
    if to > bytes.len() {
        return None;
    }
    let (payload, _) = open(Chain::default(), &bytes.slice(MAGIC.len()..to))?;
    let header: Header = codec::decode(&payload).ok()?;
    (header.number == number).then_some((header, to as u64))
}

impl Reader {
    /// Begins with the first entry of the segment that has this header.
    ///
    /// # Errors
    /// Those of the format.
    pub(super) fn new(header: &Header, copies: Vec<Copy>) -> Result<Self> {
        let begin = super::format::begin(header)?;
        let copies = copies.into_iter().map(|copy| Piece { copy, from: 0, bytes: Bytes::new() }).collect();
        Ok(Self { number: header.number, copies, at: begin.len() as u64, chain: header.after.chain })
    }

    /// The next entry; `None` where no copy has one.
    pub(super) async fn next(&mut self) -> Option<Entry> {
        Some(self.next_frame().await?.1)
    }

    /// The next entry with its frame as it is stored.
    pub(super) async fn next_frame(&mut self) -> Option<(Bytes, Entry)> {
        for at in 0..self.copies.len() {
            let Some((frame, payload, chain)) =
                self.copies.get_mut(at)?.frame(self.number, self.at, self.chain).await
            else {
                continue;
            };
            let Ok(entry) = codec::decode(&payload) else {
                log::error!("segment {}: an entry of an unknown kind at byte {}", self.number, self.at);
                return None;
            };
            self.at += frame.len() as u64;
            self.chain = chain;
            self.copies.swap(0, at);
            return Some((frame, entry));
        }
        None
    }

    /// How many bytes have been read.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The chain after the last entry that was read.
    pub(super) fn chain(&self) -> Chain {
        self.chain
    }
}
