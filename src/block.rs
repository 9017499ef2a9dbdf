//! The object format: a block as a node stores it. `docs/format.md` has the layout.
//!
//! An object can be checked by who has no key of the volume, and a part of it can be read and checked alone.

mod draft;

use bytes::Bytes;
use std::ops::Range;
use twox_hash::XxHash3_128;

use crate::id::{BlockId, VolumeId};
use crate::{Error, Result};

pub use draft::Draft;

/// The most data that a block has.
pub const DATA_MAX: usize = 4 << 20;
/// How many stored bytes each checksum of the table covers; the last one may cover fewer.
pub const PIECE: usize = 4 << 10;
/// What disks want addresses, offsets and lengths to be multiples of, to write without copying (open(2), `O_DIRECT`).
pub const ALIGN: usize = 4096;
/// From so much data on, zeros fill the header and the data up to multiples of [`ALIGN`].
pub const ALIGNED_MIN: usize = 1 << 20;
/// The length of the longest header: who reads so much from the beginning of an object has all of its header.
pub const HEADER_MAX: usize = (FIXED + DATA_MAX / PIECE * CHECK + CHECK).next_multiple_of(ALIGN);
/// The length of the longest object.
pub const OBJECT_MAX: usize = HEADER_MAX + DATA_MAX;

const MAGIC: [u8; 8] = *b"TANDEMBK";
const VERSION: u16 = 4;
const CODEC_NONE: u8 = 0;
const CIPHER_NONE: u8 = 0;
const KEY_NONE: u32 = 0;
/// The length of the header up to the table.
const FIXED: usize = 64;
/// The length of a checksum.
const CHECK: usize = 16;

/// Finds damage, at the speed of memory; who wants to find forgery hashes the whole block (`docs/decisions/0002-checksums.md`).
fn check(bytes: &[u8]) -> [u8; CHECK] {
    XxHash3_128::oneshot(bytes).to_be_bytes()
}

fn corrupt(what: &str) -> Error {
    Error::corrupt(format!("object: {what}"))
}

/// Makes the object of a block.
///
/// # Errors
/// `TooLarge` for more than [`DATA_MAX`] bytes; `Unavailable` without memory.
pub fn encode(volume: VolumeId, id: &BlockId, data: &[u8]) -> Result<Bytes> {
    Draft::of(data).map(|draft| draft.encode(volume, id))
}

/// The header of the object of a block of at most [`DATA_MAX`] bytes, with what fills it up.
fn header(volume: VolumeId, id: &BlockId, data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u32).to_be_bytes();
    let mut header = Vec::with_capacity(header_len(data.len()));
    header.extend(MAGIC);
    header.extend(VERSION.to_be_bytes());
    header.extend([CODEC_NONE, CIPHER_NONE]);
    header.extend(KEY_NONE.to_be_bytes());
    header.extend(volume.0.to_be_bytes());
    header.extend(id.0);
    header.extend(length); // of the data
    header.extend(length); // as stored
    debug_assert_eq!(header.len(), FIXED, "the layout of the header");
    for piece in data.chunks(PIECE) {
        header.extend(check(piece));
    }
    header.extend(check(&header));
    header.resize(header_len(data.len()), 0);
    header
}

/// Checks a whole object and gives its data without copying it.
///
/// # Errors
/// `Corrupt` unless it is, bit by bit, an object of the block `id`.
pub fn decode(id: &BlockId, object: Bytes) -> Result<Bytes> {
    let header = Header::parse(&object)?;
    if header.id() != *id {
        return Err(corrupt("it is another block's"));
    }
    let all = 0..header.data_len();
    if object.len() as u64 != header.object_len() {
        return Err(corrupt("wrong length"));
    }
    let end = header.len() + header.data_len() as usize;
    check_filling(&object[end..])?;
    header.cut(all, object.slice(header.len()..end))
}

/// The length of the object of a block with so many bytes.
pub fn object_len(data: u32) -> u64 {
    let data = data as usize;
    let stored = if data < ALIGNED_MIN { data } else { data.next_multiple_of(ALIGN) };
    (header_len(data) + stored) as u64
}

/// The header of an object, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    volume: VolumeId,
    id: BlockId,
    length: u32,
    table: Vec<[u8; CHECK]>,
}

impl Header {
    /// Reads a header from the beginning of an object; [`HEADER_MAX`] bytes are enough, and more are not looked at.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn parse(object: &[u8]) -> Result<Self> {
        let mut rest = object;
        if take(&mut rest)? != MAGIC {
            return Err(corrupt("it does not begin like one"));
        }
        if u16::from_be_bytes(take(&mut rest)?) != VERSION {
            return Err(corrupt("unknown version"));
        }
        if take(&mut rest)? != [CODEC_NONE, CIPHER_NONE] || u32::from_be_bytes(take(&mut rest)?) != KEY_NONE {
            return Err(corrupt("unknown codec, cipher or key"));
        }
        let volume = VolumeId(u64::from_be_bytes(take(&mut rest)?));
        let id = BlockId(take(&mut rest)?);
        let length = u32::from_be_bytes(take(&mut rest)?);
        let stored = u32::from_be_bytes(take(&mut rest)?);
        let data = length as usize;
        if length != stored || data > DATA_MAX {
            return Err(corrupt("impossible lengths"));
        }
        let header = object.get(..header_len(data)).ok_or_else(|| corrupt("its header is cut off"))?;
        let (header, filling) = header.split_at(bare_header_len(data));
        check_filling(filling)?;
        let (checked, sum) = header.split_at(header.len() - CHECK);
        if check(checked) != sum {
            return Err(corrupt("wrong checksum of the header"));
        }
        let (table, _) = checked.get(FIXED..).unwrap_or_default().as_chunks();
        Ok(Self { volume, id, length, table: table.to_vec() })
    }

    /// The volume of the block.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// The block.
    pub fn id(&self) -> BlockId {
        self.id
    }

    /// Bytes of data.
    pub fn data_len(&self) -> u32 {
        self.length
    }

    /// The length of this header.
    #[expect(clippy::len_without_is_empty, reason = "a header is never empty")]
    pub fn len(&self) -> usize {
        header_len(self.length as usize)
    }

    /// The length of the whole object.
    pub fn object_len(&self) -> u64 {
        object_len(self.length)
    }

    /// What must be read of the object to have a checked `range` of the data: whole pieces.
    pub fn stored_range(&self, range: Range<u32>) -> Range<u64> {
        let pieces = self.pieces(&range);
        let begin = self.len() as u64;
        begin + pieces.start as u64..begin + pieces.end as u64
    }

    /// Checks the bytes of [`Header::stored_range`] and cuts the `range` out of them, without copying.
    ///
    /// # Errors
    /// `OutOfRange` for a range that the data does not have; `Corrupt`.
    pub fn cut(&self, range: Range<u32>, pieces: Bytes) -> Result<Bytes> {
        if range.start > range.end || range.end > self.length {
            return Err(Error::out_of_range(format!("{range:?} of a block of {} bytes", self.length)));
        }
        let whole = self.pieces(&range);
        if pieces.len() != whole.len() {
            return Err(corrupt("wrong length"));
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let sums = self.table.get(whole.start / PIECE..).unwrap_or_default();
        for (piece, sum) in pieces.chunks(PIECE).zip(sums) {
            if check(piece) != *sum {
                return Err(corrupt("wrong checksum of the data"));
            }
        }
        Ok(pieces.slice(range.start as usize - whole.start..range.end as usize - whole.start))
    }

    /// The pieces that hold a range of the data, cut at its end.
    fn pieces(&self, range: &Range<u32>) -> Range<usize> {
        let data = self.length as usize;
        let end = (range.end as usize).min(data);
        let start = (range.start as usize).min(end);
        let first = start / PIECE * PIECE;
        first..if start == end { first } else { end.next_multiple_of(PIECE).min(data) }
    }
}

fn header_len(data: usize) -> usize {
    if data < ALIGNED_MIN { bare_header_len(data) } else { bare_header_len(data).next_multiple_of(ALIGN) }
}

fn bare_header_len(data: usize) -> usize {
    FIXED + data.div_ceil(PIECE) * CHECK + CHECK
}

fn check_filling(filling: &[u8]) -> Result<()> {
    if filling.iter().any(|byte| *byte != 0) { Err(corrupt("its filling is no zeros")) } else { Ok(()) }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N]> {
    let (taken, left) = rest.split_first_chunk().ok_or_else(|| corrupt("its header is cut off"))?;
    *rest = left;
    Ok(*taken)
}

#[cfg(test)]
mod tests {
    use super::{
        ALIGN, ALIGNED_MIN, Bytes, DATA_MAX, HEADER_MAX, Header, OBJECT_MAX, PIECE, XxHash3_128, decode,
        encode,
    };
    use crate::ErrorKind;
    use crate::id::{BlockId, VolumeId};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    const VOLUME: VolumeId = VolumeId(7);
    const ID: BlockId = BlockId([0xab; 32]);

    fn data(length: usize) -> Vec<u8> {
        (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    /// Lengths around the borders of pieces, and of objects that are filled up.
    const LENGTHS: [usize; 13] = [
        0,
        1,
        100,
        PIECE - 1,
        PIECE,
        PIECE + 1,
        3 * PIECE,
        ALIGNED_MIN - 1,
        ALIGNED_MIN,
        ALIGNED_MIN + 1,
        DATA_MAX - ALIGN,
        DATA_MAX - 1,
        DATA_MAX,
    ];

    #[test]
    fn what_was_encoded_is_decoded() {
        for length in LENGTHS {
            let object = encode(VOLUME, &ID, &data(length)).unwrap();
            assert!(object.len() <= OBJECT_MAX);
            let is_aligned =
                object.len().is_multiple_of(ALIGN) && object.as_ptr().addr().is_multiple_of(ALIGN);
            assert!(is_aligned || length < ALIGNED_MIN);
            let header = Header::parse(&object[..object.len().min(HEADER_MAX)]).unwrap();
            assert_eq!((header.volume(), header.id(), header.data_len()), (VOLUME, ID, length as u32));
            assert_eq!(header.object_len(), object.len() as u64);
            assert_eq!(decode(&ID, object).unwrap(), data(length));
        }
        assert_eq!(encode(VOLUME, &ID, &vec![0; DATA_MAX + 1]).unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn the_layout_is_as_documented() {
        let object = encode(VolumeId(0x0102), &ID, b"hello").unwrap();
        assert_eq!(object.len(), 64 + 16 + 16 + 5);
        let begin = b"TANDEMBK\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x02";
        assert_eq!(object[..24], begin[..]);
        assert_eq!(object[24..56], ID.0);
        assert_eq!(object[56..64], [0, 0, 0, 5, 0, 0, 0, 5]);
        assert_eq!(object[64..80], XxHash3_128::oneshot(b"hello").to_be_bytes());
        assert_eq!(object[80..96], XxHash3_128::oneshot(&object[..80]).to_be_bytes());
        assert_eq!(&object[96..], b"hello");
    }

    #[test]
    fn every_part_can_be_read_alone() {
        let whole = data(3 * PIECE + 17);
        let object = encode(VOLUME, &ID, &whole).unwrap();
        let header = Header::parse(&object).unwrap();
        let borders =
            [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE, 3 * PIECE + 16, 3 * PIECE + 17];
        for from in borders {
            for to in borders.into_iter().filter(|to| *to >= from) {
                let range = from as u32..to as u32;
                let stored = header.stored_range(range.clone());
                assert!(
                    stored.end - stored.start <= (to - from + 2 * PIECE) as u64,
                    "reads little more than it must"
                );
                let pieces = object.slice(stored.start as usize..stored.end as usize);
                assert_eq!(header.cut(range.clone(), pieces.clone()).unwrap(), whole[from..to], "{range:?}");
                for at in (0..pieces.len()).step_by(PIECE / 3) {
                    let mut bad = pieces.to_vec();
                    bad[at] ^= 4;
                    assert_eq!(header.cut(range.clone(), bad.into()).unwrap_err().kind(), ErrorKind::Corrupt);
                }
                if let Some(short) = pieces.len().checked_sub(1) {
                    assert_eq!(
                        header.cut(range, pieces.slice(..short)).unwrap_err().kind(),
                        ErrorKind::Corrupt
                    );
                }
            }
        }
        let end = whole.len() as u32;
        assert_eq!(header.cut(end..end + 1, Bytes::new()).unwrap_err().kind(), ErrorKind::OutOfRange);
        #[expect(clippy::reversed_empty_ranges, reason = "must not panic")]
        let backwards = 5..3;
        assert_eq!(header.stored_range(backwards.clone()).count(), 0);
        assert_eq!(header.cut(backwards, Bytes::new()).unwrap_err().kind(), ErrorKind::OutOfRange);
        assert_eq!(header.stored_range(u32::MAX - 1..u32::MAX).count(), 0);
    }

    #[test]
    fn every_truncation_and_every_bit_is_noticed() {
        let object = encode(VOLUME, &ID, &data(300)).unwrap();
        for length in 0..object.len() {
            assert_eq!(
                decode(&ID, object.slice(..length)).unwrap_err().kind(),
                ErrorKind::Corrupt,
                "cut at {length}"
            );
        }
        for bit in 0..object.len() * 8 {
            let mut bad = object.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&ID, bad.into()).unwrap_err().kind(), ErrorKind::Corrupt, "bit {bit}");
        }
        let mut long = object.to_vec();
        long.push(0);
        assert_eq!(decode(&ID, long.into()).unwrap_err().kind(), ErrorKind::Corrupt);
        // The zeros that fill a large one up are checked as well.
        let large = encode(VOLUME, &ID, &data(ALIGNED_MIN + 1)).unwrap();
        for at in [ALIGN - 1, large.len() - 1] {
            let mut bad = large.to_vec();
            bad[at] = 1;
            assert_eq!(decode(&ID, bad.into()).unwrap_err().kind(), ErrorKind::Corrupt);
        }
        // Sound, but of another block: the files of two objects were swapped.
        assert_eq!(decode(&BlockId([1; 32]), object).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn swapped_pieces_are_noticed() {
        let object = encode(VOLUME, &ID, &data(2 * PIECE)).unwrap();
        let header = Header::parse(&object).unwrap().len();
        let (first, second) = object[header..].split_at(PIECE);
        assert_ne!(first, second);
        let swapped = [&object[..header], second, first].concat();
        assert_eq!(decode(&ID, swapped.into()).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    proptest! {
        #[test]
        fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2_000), like: bool) {
            let mut bytes = bytes;
            if like {
                // Past the first checks, so that the later ones see noise as well.
                let start = encode(VOLUME, &ID, b"x").unwrap();
                let known = bytes.len().min(56);
                bytes[..known].copy_from_slice(&start[..known]);
            }
            prop_assert!(Header::parse(&bytes).is_err());
            prop_assert!(decode(&ID, bytes.into()).is_err());
        }

        #[test]
        fn any_change_is_refused(length in 0..20_000_usize, at: proptest::sample::Index, to: u8) {
            let object = encode(VOLUME, &ID, &data(length)).unwrap();
            let mut changed = object.to_vec();
            let at = at.index(changed.len());
            changed[at] = to;
            let same = changed == object;
            prop_assert_eq!(decode(&ID, changed.into()).is_ok(), same);
        }
    }
}
