//! How the journal lies in its segments (docs/format.md): frames, each with a checksum over itself and the one before.
//!
//! A segment begins with [`MAGIC`] and a frame with its [`Header`]. The frames of entries are one chain over all segments: an entry that
//! is written again in another segment has the same bytes there, and what an earlier life has left behind fits nowhere.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tandemfs::id::NodeId;
use tandemfs::{Error, Result, codec};
use twox_hash::XxHash3_128;

use crate::meta::Write;
use crate::segments::PIECE_MAX;

/// What a segment begins with: a name and the version of the layout.
pub(super) const MAGIC: [u8; 10] = *b"TANDEMJR\x00\x01";
/// What stands before the payload of a frame: its length and the checksum.
pub(super) const PREFIX: usize = 4 + 16;
/// The longest payload.
pub(super) const PAYLOAD_MAX: usize = PIECE_MAX - PREFIX;

/// The checksum over a frame and all before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Chain(#[serde(with = "serde_bytes")] [u8; 16]);

/// A place in the journal: how many entries there are up to it, and their checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// The number of the last entry; the first is 1.
    pub(super) position: u64,
    /// The checksum over all of them.
    pub(super) chain: Chain,
}

/// What a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// Entries of the journal.
    Entries,
    /// All pairs of the engine.
    Snapshot,
}

/// A segment to which nothing more is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sealed {
    /// Its number.
    pub(super) number: u64,
    /// How many of its bytes count.
    pub(super) size: u64,
}

/// What a segment says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// Which journal it belongs to; drawn when that was begun.
    pub(super) journal: u64,
    /// The segment's number.
    pub(super) number: u64,
    /// What follows.
    pub(super) kind: Kind,
    /// After which entry it begins; what the segment before may have after that never happened.
    pub(super) after: Place,
    /// The segment before; none where the journal begins.
    pub(super) previous: Option<Sealed>,
    /// Snapshots that are whole and not to be removed yet.
    pub(super) snapshots: Vec<Sealed>,
    /// The nodes that it is written to. Others have nothing but the header, so that each node knows what there is.
    pub(super) copies: Vec<NodeId>,
    /// When it was begun, in milliseconds since 1970.
    pub(super) began_ms: i64,
}

/// What a frame holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Entry {
    /// Writes that were committed.
    Commit {
        /// Its number.
        position: u64,
        /// When, in milliseconds since 1970.
        time_ms: i64,
        /// In their order.
        writes: Vec<Write>,
    },
    /// The commit before this was answered with a failure: it did not happen.
    Cancel {
        /// Its number.
        position: u64,
    },
    /// A part of a snapshot.
    Pairs(Vec<Write>),
    /// A snapshot is whole.
    End {
        /// Up to here the journal must be read after the snapshot: so far it came while the snapshot was made.
        position: u64,
        /// How many pairs it has.
        pairs: u64,
    },
}

impl Entry {
    /// Its number, if it is one of the journal's.
    pub(super) fn position(&self) -> Option<u64> {
        match self {
            Self::Commit { position, .. } | Self::Cancel { position } => Some(*position),
            Self::Pairs(_) | Self::End { .. } => None,
        }
    }
}

/// A frame, and the chain after it.
///
/// # Errors
/// `TooLarge` for more than [`PAYLOAD_MAX`] bytes.
pub(super) fn frame<T: Serialize>(before: Chain, of: &T) -> Result<(Vec<u8>, Chain)> {
    let payload = codec::encode(of)?;
    if payload.len() > PAYLOAD_MAX {
        return Err(Error::too_large(format!("an entry of {} bytes", payload.len())));
    }
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let chain = check(before, length, &payload);
    let mut bytes = Vec::with_capacity(PREFIX + payload.len());
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&chain.0);
    bytes.extend_from_slice(&payload);
    Ok((bytes, chain))
}

/// How a segment begins, and the chain with which its entries go on.
///
/// # Errors
/// Those of [`frame`].
pub(super) fn begin(header: &Header) -> Result<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(frame(Chain::default(), header)?.0);
    Ok(bytes)
}

/// The length that a frame's payload says to have; `None` for one that cannot be.
pub(super) fn payload_length(prefix: &[u8]) -> Option<usize> {
    let length = usize::try_from(u32::from_be_bytes(*prefix.first_chunk()?)).ok()?;
    (length > 0 && length <= PAYLOAD_MAX).then_some(length)
}

/// The payload of a frame and the chain after it; `None` if it does not belong after `before`, or is damaged.
pub(super) fn open(before: Chain, frame: &Bytes) -> Option<(Bytes, Chain)> {
    let (length, rest) = frame.split_first_chunk::<4>()?;
    let (stored, payload) = rest.split_first_chunk::<16>()?;
    let chain = check(before, *length, payload);
    (chain.0 == *stored).then(|| (frame.slice(PREFIX..), chain))
}

fn check(before: Chain, length: [u8; 4], payload: &[u8]) -> Chain {
    let mut hasher = XxHash3_128::new();
    hasher.write(&before.0);
    hasher.write(&length);
    hasher.write(payload);
    Chain(hasher.finish_128().to_be_bytes())
}
