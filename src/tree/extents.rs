//! Extents of one chunk: cutting, laying one over others, reading. Pure functions, no records.

use std::ops::Range;

use super::{Chunk, Extent};
use crate::id::BlockId;

/// A piece of a chunk as a reader finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of a block, already cut to what was asked for.
    Data(Extent),
    /// Nothing was ever written here: zeros.
    Hole {
        /// Where in the chunk it begins.
        start: u32,
        /// How many bytes.
        length: u32,
    },
}

impl Piece {
    /// Where in the chunk it begins.
    pub fn start(&self) -> u32 {
        match self {
            Self::Data(extent) => extent.start,
            Self::Hole { start, .. } => *start,
        }
    }

    /// How many bytes it has; never 0.
    pub fn length(&self) -> u32 {
        match self {
            Self::Data(extent) => extent.length,
            Self::Hole { length, .. } => *length,
        }
    }
}

/// The pieces of data and holes that make up the bytes `from..to` of a chunk, in order and without gaps.
pub fn extents_in(chunk: &Chunk, from: u32, to: u32) -> impl Iterator<Item = Piece> {
    let mut at = from;
    let mut next = first_after(&chunk.0, from);
    std::iter::from_fn(move || {
        if at >= to {
            return None;
        }
        let piece = match chunk.0.get(next) {
            Some(extent) if extent.start <= at => {
                next += 1;
                Piece::Data(cut(extent, at..to))
            }
            Some(extent) => Piece::Hole { start: at, length: extent.start.min(to) - at },
            None => Piece::Hole { start: at, length: to - at },
        };
        at += piece.length();
        Some(piece)
    })
}

/// An extent of so many bytes is not joined with others: a file that is appended to would be copied again and again.
const PIECE_MAX: u32 = 256 << 10;

/// Whether an extent is one to join.
pub fn is_piece(extent: &Extent) -> bool {
    extent.length < PIECE_MAX
}

/// How many pieces of a chunk begin where another ends: so many extents fewer there are when they are joined.
pub fn seams(chunk: &Chunk) -> usize {
    let is_seam =
        |pair: &&[Extent]| pair[0].end() == pair[1].start && is_piece(&pair[0]) && is_piece(&pair[1]);
    chunk.0.windows(2).filter(is_seam).count()
}

/// The extents of a chunk when what is left in it of some pieces that it had lies in one block, in which the data of all those pieces lie one behind
/// another; and what that did to its references.
pub(super) fn joined(extents: &[Extent], pieces: &[Extent], block: BlockId) -> (Vec<Extent>, Delta) {
    let places: Vec<(Extent, u32)> = pieces
        .iter()
        .filter(|piece| is_piece(piece))
        .scan(0, |offset: &mut u32, piece| {
            let place = (*piece, *offset);
            *offset = offset.checked_add(piece.length)?;
            Some(place)
        })
        .collect();
    let mut joined: Vec<Extent> = Vec::new();
    let mut delta = Delta::default();
    // So that an extent that names the block already stays one of its own, with its own reference.
    let mut is_after_joined = false;
    for extent in extents {
        let after = places.partition_point(|(piece, _)| piece.start <= extent.start);
        let place =
            after.checked_sub(1).map(|last| places[last]).filter(|(piece, _)| is_part_of(extent, piece));
        let new = match place {
            Some((piece, offset)) => {
                Extent { block, offset: offset + (extent.start - piece.start), ..*extent }
            }
            None => *extent,
        };
        let goes_on = is_after_joined && place.is_some();
        match joined.last_mut().filter(|previous| goes_on && self::goes_on(previous, &new)) {
            Some(previous) => previous.length += new.length,
            None => {
                joined.push(new);
                delta.added.extend(place.map(|_| new));
            }
        }
        delta.removed.extend(place.map(|_| *extent));
        is_after_joined = place.is_some();
    }
    (joined, delta)
}

/// Whether an extent is a piece, or what is left of it where it was.
fn is_part_of(extent: &Extent, piece: &Extent) -> bool {
    extent.end() <= piece.end() && cut(piece, extent.start..extent.end()) == *extent
}

/// What a change did to a chunk's extents.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Delta {
    /// Extents that were not there before. Each is a reference to its block.
    pub(super) added: Vec<Extent>,
    /// Extents that are not there any more.
    pub(super) removed: Vec<Extent>,
}

impl Delta {
    /// Bytes that came and bytes that went.
    pub(super) fn bytes(&self) -> (u64, u64) {
        let sum = |extents: &[Extent]| extents.iter().map(|extent| u64::from(extent.length)).sum();
        (sum(&self.added), sum(&self.removed))
    }
}

/// Lays an extent over those of a chunk: what it covers is cut off or away, and it grows together with neighbours
/// that go on in the same block.
pub(super) fn overlay(extents: &mut Vec<Extent>, new: Extent) -> Delta {
    let first = first_after(extents, new.start);
    let last = first + extents[first..].partition_point(|extent| extent.start < new.end());
    let head = extents[first..last].first().filter(|extent| extent.start < new.start);
    let tail = extents[first..last].last().filter(|extent| extent.end() > new.end());
    let pieces = [
        head.map(|extent| cut(extent, 0..new.start)),
        Some(new),
        tail.map(|extent| cut(extent, new.end()..u32::MAX)),
    ];
    // With one neighbour on each side, so that they can grow together.
    let window = first.saturating_sub(1)..(last + 1).min(extents.len());
    let mut added: Vec<Extent> = Vec::with_capacity(5);
    let before = extents[window.start..first].iter().copied();
    let after = extents[last..window.end].iter().copied();
    for extent in before.chain(pieces.into_iter().flatten()).chain(after) {
        match added.last_mut() {
            Some(previous) if goes_on(previous, &extent) => previous.length += extent.length,
            _ => added.push(extent),
        }
    }
    let removed = extents.splice(window, added.iter().copied()).collect();
    Delta { added, removed }
}

/// Cuts off what lies at `length` and beyond.
pub(super) fn truncate(extents: &mut Vec<Extent>, length: u32) -> Delta {
    punch(extents, length..u32::MAX)
}

/// Makes a hole of a range that is not empty.
pub(super) fn punch(extents: &mut Vec<Extent>, range: Range<u32>) -> Delta {
    let first = first_after(extents, range.start);
    let last = first + extents[first..].partition_point(|extent| extent.start < range.end);
    let covered = &extents[first..last];
    let head = covered.first().filter(|extent| extent.start < range.start);
    let tail = covered.last().filter(|extent| extent.end() > range.end);
    let kept =
        [head.map(|extent| cut(extent, 0..range.start)), tail.map(|extent| cut(extent, range.end..u32::MAX))];
    let added: Vec<Extent> = kept.into_iter().flatten().collect();
    let removed = extents.splice(first..last, added.iter().copied()).collect();
    Delta { added, removed }
}

/// The number of the first extent that does not end at or before a place.
fn first_after(extents: &[Extent], place: u32) -> usize {
    extents.partition_point(|extent| extent.end() <= place)
}

/// The part of an extent that lies in a range, which it must reach into.
fn cut(extent: &Extent, range: Range<u32>) -> Extent {
    let start = extent.start.max(range.start);
    Extent {
        start,
        length: extent.end().min(range.end) - start,
        block: extent.block,
        offset: extent.offset + (start - extent.start),
    }
}

/// Whether `next` continues `extent`, in the file and in the block.
fn goes_on(extent: &Extent, next: &Extent) -> bool {
    extent.block == next.block
        && extent.end() == next.start
        && extent.offset.checked_add(extent.length) == Some(next.offset)
}

#[cfg(test)]
mod tests {
    use super::{Delta, PIECE_MAX, Piece, extents_in, joined, overlay, punch, seams, truncate};
    use crate::id::BlockId;
    use crate::tree::{Chunk, Extent};
    use proptest::collection::vec;
    use proptest::prelude::{Strategy, any};
    use proptest::{prop_assert, prop_assert_eq, proptest};

    const LENGTH: u32 = 64;

    fn extent(start: u32, length: u32, block: u8, offset: u32) -> Extent {
        Extent { start, length, block: BlockId([block; 32]), offset }
    }

    #[test]
    fn splitting_makes_two_and_writing_back_makes_one_again() {
        let mut extents = vec![extent(0, 30, 1, 100)];
        let delta = overlay(&mut extents, extent(10, 5, 2, 0));
        assert_eq!(extents, [extent(0, 10, 1, 100), extent(10, 5, 2, 0), extent(15, 15, 1, 115)]);
        assert_eq!((delta.added.len(), delta.removed.len(), delta.bytes()), (3, 1, (30, 30)));
        let delta = overlay(&mut extents, extent(10, 5, 1, 110));
        assert_eq!(extents, [extent(0, 30, 1, 100)]);
        assert_eq!((delta.added.len(), delta.removed.len()), (1, 3));
    }

    #[test]
    fn neighbours_of_the_same_block_grow_together_only_where_it_goes_on() {
        let mut extents = vec![extent(0, 10, 1, 0)];
        overlay(&mut extents, extent(10, 10, 1, 10));
        overlay(&mut extents, extent(20, 10, 1, 0));
        overlay(&mut extents, extent(31, 10, 1, 11));
        assert_eq!(extents, [extent(0, 20, 1, 0), extent(20, 10, 1, 0), extent(31, 10, 1, 11)]);
    }

    #[test]
    fn truncating_cuts_and_drops() {
        let mut extents = vec![extent(0, 10, 1, 0), extent(20, 10, 2, 5), extent(40, 1, 3, 0)];
        let delta = truncate(&mut extents, 25);
        assert_eq!(extents, [extent(0, 10, 1, 0), extent(20, 5, 2, 5)]);
        assert_eq!(delta.bytes(), (5, 11));
        assert_eq!(truncate(&mut extents, 25).bytes(), (0, 0));
        assert_eq!(truncate(&mut extents, 0).removed.len(), 2);
        assert!(extents.is_empty());
    }

    #[test]
    fn a_hole_in_the_middle_of_an_extent_makes_two() {
        let mut extents = vec![extent(0, 30, 1, 100), extent(30, 5, 2, 0)];
        let delta = punch(&mut extents, 10..20);
        assert_eq!(extents, [extent(0, 10, 1, 100), extent(20, 10, 1, 120), extent(30, 5, 2, 0)]);
        assert_eq!((delta.added.len(), delta.removed.len(), delta.bytes()), (2, 1, (20, 30)));
        assert_eq!(punch(&mut extents, 12..18).bytes(), (0, 0));
        assert_eq!(punch(&mut extents, 5..40).removed.len(), 3);
        assert_eq!(extents, [extent(0, 5, 1, 100)]);
    }

    #[test]
    fn reading_finds_holes_around_and_between() {
        let chunk = Chunk(vec![extent(10, 10, 1, 0), extent(20, 5, 2, 7)]);
        let pieces: Vec<Piece> = extents_in(&chunk, 5, 23).collect();
        assert_eq!(
            pieces,
            [
                Piece::Hole { start: 5, length: 5 },
                Piece::Data(extent(10, 10, 1, 0)),
                Piece::Data(extent(20, 3, 2, 7)),
            ]
        );
        let pieces: Vec<Piece> = extents_in(&chunk, 24, 30).collect();
        assert_eq!(pieces, [Piece::Data(extent(24, 1, 2, 11)), Piece::Hole { start: 25, length: 5 }]);
        assert_eq!(extents_in(&chunk, 9, 9).count(), 0);
        assert_eq!(extents_in(&Chunk::default(), 0, 8).count(), 1);
    }

    #[test]
    fn joining_keeps_holes_and_closes_seams() {
        let chunk = Chunk(vec![
            extent(5, 10, 1, 3),
            extent(15, 5, 2, 0),
            extent(30, 1, 1, 0),
            extent(31, 1, 3, 0),
            extent(32, 1, 1, 0),
        ]);
        assert_eq!(seams(&chunk), 3);
        let (after, delta) = joined(&chunk.0, &chunk.0, BlockId([9; 32]));
        assert_eq!(after, [extent(5, 15, 9, 0), extent(30, 3, 9, 15)]);
        assert_eq!((delta.added.len(), delta.removed.len()), (2, 5));
        assert_eq!(seams(&Chunk(after)), 0);
    }

    #[test]
    fn what_is_large_is_not_joined() {
        let large = extent(10, PIECE_MAX, 7, 4);
        let end = large.end();
        let chunk = Chunk(vec![
            extent(0, 5, 1, 0),
            extent(5, 5, 2, 9),
            large,
            extent(end, 1, 3, 0),
            extent(end + 1, 2, 4, 0),
        ]);
        assert_eq!(seams(&chunk), 2);
        let (after, delta) = joined(&chunk.0, &chunk.0, BlockId([9; 32]));
        assert_eq!(after, [extent(0, 10, 9, 0), large, extent(end, 3, 9, 10)]);
        assert_eq!((delta.added.len(), delta.removed.len()), (2, 4));
        assert_eq!(seams(&Chunk(after)), 0);
    }

    #[test]
    fn joining_moves_what_is_left_of_the_pieces() {
        let pieces = [extent(0, 10, 1, 0), extent(10, 10, 2, 5), extent(20, 10, 1, 0), extent(40, 9, 3, 0)];
        // Written since: one over a seam, one in a hole, one that is as long as what was there, one that moved a piece's bytes.
        let now = [
            extent(0, 8, 1, 0),
            extent(8, 4, 7, 0),
            extent(12, 8, 2, 7),
            extent(20, 10, 1, 0),
            extent(30, 2, 7, 0),
            extent(40, 9, 3, 1),
        ];
        let (after, delta) = joined(&now, &pieces, BlockId([9; 32]));
        let (left, right) = (extent(0, 8, 9, 0), extent(12, 18, 9, 12));
        assert_eq!(after, [left, extent(8, 4, 7, 0), right, extent(30, 2, 7, 0), extent(40, 9, 3, 1)]);
        assert_eq!(
            delta,
            Delta { added: vec![left, extent(12, 8, 9, 12)], removed: vec![now[0], now[2], now[3]] }
        );
    }

    /// What a byte of a chunk is: `None` in a hole, else block and offset.
    type Byte = Option<(u8, u32)>;

    fn bytes_of(extents: &[Extent], from: u32, to: u32) -> Vec<Byte> {
        let chunk = Chunk(extents.to_vec());
        extents_in(&chunk, from, to)
            .flat_map(|piece| match piece {
                Piece::Hole { length, .. } => vec![None; length as usize],
                Piece::Data(data) => {
                    (0..data.length).map(|i| Some((data.block.0[0], data.offset + i))).collect()
                }
            })
            .collect()
    }

    /// Lays extents over one another as a file's writes do.
    fn lay(extents: &mut Vec<Extent>, steps: &[(u32, u32, u8, u32)]) {
        for (start, length, block, offset) in steps {
            overlay(extents, extent(*start, (*length).min(LENGTH - start), *block, *offset));
        }
    }

    proptest! {
        #[test]
        fn joining_leaves_every_byte_as_it_was(
            before in vec((0..LENGTH, 1..LENGTH, 0u8..4, 0u32..20), 1..20),
            meanwhile in vec((0..LENGTH, 1..LENGTH / 4, 0u8..5, 0u32..20), 0..8),
        ) {
            const BLOCK: u8 = 9;
            let mut pieces = Vec::new();
            lay(&mut pieces, &before);
            let mut extents = pieces.clone();
            lay(&mut extents, &meanwhile);
            let (after, delta) = joined(&extents, &pieces, BlockId([BLOCK; 32]));
            let in_block: Vec<Byte> = bytes_of(&pieces, 0, LENGTH).into_iter().filter(Option::is_some).collect();
            let found = bytes_of(&after, 0, LENGTH).into_iter().map(|byte| match byte {
                Some((BLOCK, offset)) => in_block[offset as usize],
                other => other,
            });
            prop_assert_eq!(found.collect::<Vec<_>>(), bytes_of(&extents, 0, LENGTH));
            prop_assert!(seams(&Chunk(after.clone())) <= seams(&Chunk(extents.clone())));
            let mut counted: Vec<Extent> =
                extents.into_iter().filter(|extent| !delta.removed.contains(extent)).collect();
            counted.extend(&delta.added);
            prop_assert_eq!(counted.len(), after.len());
            prop_assert!(!meanwhile.is_empty() || seams(&Chunk(after)) == 0);
        }

        #[test]
        fn extents_are_as_bytes_would_be(
            steps in vec((0..LENGTH, 1..LENGTH, 0u8..3, 0u32..20, any::<bool>()).prop_map(
                |(start, length, block, offset, aligned)| {
                    let offset = if aligned { start } else { offset };
                    (extent(start, length.min(LENGTH - start), block, offset), offset == 19)
                }), 1..20),
            hole in (0..LENGTH, 1..LENGTH),
            from in 0..LENGTH, to in 0..=LENGTH,
        ) {
            let mut extents = Vec::new();
            let mut model: Vec<Byte> = vec![None; LENGTH as usize];
            for (new, is_truncate) in steps {
                let before = extents.clone();
                let delta = if is_truncate {
                    model[new.start as usize..].fill(None);
                    truncate(&mut extents, new.start)
                } else {
                    for i in 0..new.length {
                        model[(new.start + i) as usize] = Some((new.block.0[0], new.offset + i));
                    }
                    overlay(&mut extents, new)
                };
                prop_assert_eq!(&bytes_of(&extents, 0, LENGTH), &model);
                prop_assert!(extents.windows(2).all(|pair| pair[0].end() <= pair[1].start));
                let mut counted: Vec<Extent> =
                    before.into_iter().filter(|extent| !delta.removed.contains(extent)).collect();
                counted.extend(&delta.added);
                counted.sort_by_key(|extent| extent.start);
                prop_assert_eq!(&counted, &extents);
            }
            let end = (hole.0 + hole.1).min(LENGTH);
            punch(&mut extents, hole.0..end);
            model[hole.0 as usize..end as usize].fill(None);
            prop_assert_eq!(&bytes_of(&extents, 0, LENGTH), &model);
            if from <= to {
                prop_assert_eq!(&bytes_of(&extents, from, to)[..], &model[from as usize..to as usize]);
            }
        }
    }
}
