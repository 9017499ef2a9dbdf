//! Bytes that were written and not sent yet, and what a range of a file is made of. No I/O.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use tandemfs::id::BlockId;
use tandemfs::tree::CHUNK_SIZE;

/// Whoever writes so much at once goes on.
const MUCH: usize = 128 << 10;

/// Written bytes of one chunk of a file.
#[derive(Debug, Default)]
pub struct Buffer {
    /// By where they begin in the chunk; they do not overlap.
    segments: BTreeMap<u32, BytesMut>,
    bytes: usize,
}

/// Part of a chunk in the block that [`Buffer::assemble`] made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where in the chunk.
    pub start: u32,
    /// How many bytes.
    pub length: u32,
    /// Where in the block.
    pub block_offset: u32,
}

impl Buffer {
    /// How many bytes it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where the first written byte lies in the chunk.
    pub fn start(&self) -> u32 {
        self.segments.first_key_value().map_or(0, |(start, _)| *start)
    }

    /// Where the last written byte ends in the chunk.
    pub fn end(&self) -> u32 {
        self.segments.last_key_value().map_or(0, |(start, data)| start + data.len() as u32)
    }

    /// Lays bytes over what is there. They must end within the chunk.
    pub fn write(&mut self, start: u32, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let end = start + data.len() as u32;
        // The segment that it touches from the left takes it in; what follows and is covered goes.
        let left = self.segments.range(..=start).next_back().map(|(at, data)| (*at, at + data.len() as u32));
        let (at, mut segment) = match left {
            Some((at, left_end)) if left_end >= start => (at, self.segments.remove(&at).unwrap_or_default()),
            _ => (start, BytesMut::with_capacity(room(start, data.len()))),
        };
        self.bytes -= segment.len();
        let within = (start - at) as usize;
        let overlap = (segment.len() - within).min(data.len());
        segment[within..within + overlap].copy_from_slice(&data[..overlap]);
        segment.extend_from_slice(&data[overlap..]);
        while let Some((&next, covered)) = self.segments.range(at..end).next() {
            let next_end = next + covered.len() as u32;
            if let Some(covered) = self.segments.remove(&next) {
                self.bytes -= covered.len();
                if next_end > end {
                    segment.extend_from_slice(&covered[(end - next) as usize..]);
                }
            }
        }
        self.bytes += segment.len();
        self.segments.insert(at, segment);
    }

    /// What it holds of `start..end`.
    pub fn pieces(&self, start: u32, end: u32) -> Vec<(u32, Bytes)> {
        let from = self.segments.range(..=start).next_back().map_or(start, |(at, _)| *at);
        let mut pieces = Vec::new();
        for (at, data) in self.segments.range(from..end) {
            let (first, last) = (start.max(*at), end.min(at + data.len() as u32));
            if first < last {
                pieces.push((
                    first,
                    Bytes::copy_from_slice(&data[(first - at) as usize..(last - at) as usize]),
                ));
            }
        }
        pieces
    }

    /// One block with all that it holds, and what of the chunk is where in it.
    pub fn assemble(self) -> (Bytes, Vec<Part>) {
        let mut parts: Vec<Part> = Vec::with_capacity(self.segments.len());
        let mut block = BytesMut::new();
        for (start, data) in self.segments {
            let (length, block_offset) = (data.len() as u32, block.len() as u32);
            if block.is_empty() {
                block = data;
            } else {
                block.extend_from_slice(&data);
            }
            match parts.last_mut() {
                Some(last) if last.start + last.length == start => last.length += length,
                _ => parts.push(Part { start, length, block_offset }),
            }
        }
        (block.freeze(), parts)
    }
}

/// What a new segment is given room for: the rest of the chunk when it begins with much, for then more will follow, and growing would
/// copy it again and again. Memory that is not written to takes no room.
fn room(start: u32, bytes: usize) -> usize {
    if bytes < MUCH { bytes } else { (CHUNK_SIZE as usize).saturating_sub(start as usize).max(bytes) }
}

/// Where the bytes of a piece of a file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: zeros.
    Hole,
    /// In memory.
    Memory(Bytes),
    /// In a block, from an offset on.
    Block(BlockId, u32),
}

/// A piece of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins in the file.
    pub start: u64,
    /// Where it ends.
    pub end: u64,
    /// Where its bytes are.
    pub source: Source,
}

impl Piece {
    /// The part of it within `start..end`; `None` if there is none.
    fn cut(&self, start: u64, end: u64) -> Option<Self> {
        let (first, last) = (self.start.max(start), self.end.min(end));
        if first >= last {
            return None;
        }
        let skip = first - self.start;
        let source = match &self.source {
            Source::Hole => Source::Hole,
            Source::Memory(data) => Source::Memory(data.slice(skip as usize..(last - self.start) as usize)),
            Source::Block(block, offset) => Source::Block(*block, offset + skip as u32),
        };
        Some(Self { start: first, end: last, source })
    }
}

/// What a range of a file is made of: pieces in order, without gap or overlap.
#[derive(Clone, Debug)]
pub struct Layers {
    start: u64,
    end: u64,
    pieces: Vec<Piece>,
}

impl Layers {
    /// A hole.
    pub fn new(start: u64, end: u64) -> Self {
        Self { start, end, pieces: vec![Piece { start, end, source: Source::Hole }] }
    }

    /// Lays a piece over what is there; what of it lies outside counts nothing.
    pub fn lay(&mut self, piece: &Piece) {
        let Some(piece) = piece.cut(self.start, self.end) else { return };
        let mut pieces = Vec::with_capacity(self.pieces.len() + 2);
        let at = self.pieces.partition_point(|other| other.end <= piece.start);
        let rest = self.pieces.split_off(at);
        pieces.append(&mut self.pieces);
        let mut laid = false;
        for other in rest {
            pieces.extend(other.cut(0, piece.start));
            if !laid {
                pieces.push(piece.clone());
                laid = true;
            }
            pieces.extend(other.cut(piece.end, u64::MAX));
        }
        self.pieces = pieces;
    }

    /// The pieces that are not empty.
    pub fn into_pieces(self) -> impl Iterator<Item = Piece> {
        self.pieces.into_iter().filter(|piece| piece.start < piece.end)
    }
}

#[cfg(test)]
mod tests {
    use super::{Buffer, Layers, Piece, Source};
    use bytes::Bytes;
    use proptest::prelude::{any, prop_assert_eq, proptest};
    use proptest::{collection, prop_assert};

    proptest! {
        #[test]
        fn a_buffer_holds_what_was_written_last(
            writes in collection::vec((0u32..200, 1usize..60, any::<u8>()), 0..30),
            read in (0u32..260, 0u32..260),
        ) {
            let mut model = vec![None; 300];
            let mut buffer = Buffer::default();
            for (start, length, byte) in writes {
                let data: Vec<u8> = (0..length).map(|i| byte.wrapping_add(i as u8)).collect();
                buffer.write(start, &data);
                for (i, byte) in data.iter().enumerate() {
                    model[start as usize + i] = Some(*byte);
                }
            }
            let held = model.iter().flatten().count();
            prop_assert_eq!(buffer.bytes(), held);
            prop_assert_eq!(buffer.end() as usize, model.iter().rposition(Option::is_some).map_or(0, |last| last + 1));
            let (from, to) = (read.0.min(read.1), read.0.max(read.1));
            let mut seen = vec![None; 300];
            for (start, data) in buffer.pieces(from, to) {
                for (i, byte) in data.iter().enumerate() {
                    seen[start as usize + i] = Some(*byte);
                }
            }
            for at in 0..300 {
                let wanted = if (from as usize..to as usize).contains(&at) { model[at] } else { None };
                prop_assert_eq!(seen[at], wanted);
            }
            let (block, parts) = buffer.assemble();
            prop_assert_eq!(block.len(), held);
            let mut seen = vec![None; 300];
            for part in parts {
                for i in 0..part.length as usize {
                    prop_assert!(seen[part.start as usize + i].is_none());
                    seen[part.start as usize + i] = Some(block[part.block_offset as usize + i]);
                }
            }
            prop_assert_eq!(seen, model);
        }

        #[test]
        fn layers_show_the_last_one_laid(
            range in (0u64..100, 0u64..100),
            pieces in collection::vec((0u64..100, 1usize..50, any::<u8>()), 0..20),
        ) {
            let (start, end) = (range.0.min(range.1), range.0.max(range.1));
            let mut layers = Layers::new(start, end);
            let mut model = [0u8; 200];
            for (at, length, byte) in pieces {
                let data: Vec<u8> = (0..length).map(|i| byte.wrapping_add(i as u8)).collect();
                model[at as usize..at as usize + length].copy_from_slice(&data);
                layers.lay(&Piece { start: at, end: at + length as u64, source: Source::Memory(Bytes::from(data)) });
            }
            let mut at = start;
            for piece in layers.into_pieces() {
                prop_assert_eq!(piece.start, at);
                at = piece.end;
                let wanted = &model[piece.start as usize..piece.end as usize];
                match piece.source {
                    Source::Memory(data) => prop_assert_eq!(&data[..], wanted),
                    _ => prop_assert!(wanted.iter().all(|byte| *byte == 0)),
                }
            }
            prop_assert_eq!(at, end);
        }
    }
}
