//! Which blocks lie where, in memory, and the segments from the oldest to the newest.

use std::collections::{HashMap, VecDeque};

use tandemfs::id::BlockId;

use super::segment::{FRAME_MAX, Frame};

/// Segments that a cache is cut into, unless they would be too short or too long.
const SEGMENTS: u64 = 16;
/// The fewest that are of use: one is dropped whole.
const SEGMENTS_MIN: u64 = 4;
/// The longest segment, in bytes.
const SEGMENT_MAX: u64 = 64 << 20;
/// Bytes of memory for a block: its place twice at most, for a hash map is between half full and full.
const ENTRY_BYTES: usize = 32;

/// The bounds of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// The longest segment, in bytes.
    pub(super) segment_bytes: u64,
    /// The most segments.
    pub(super) segments: usize,
    /// The most blocks.
    pub(super) entries: usize,
}

impl Shape {
    /// For so many bytes on disk and in memory; `None` if that is too little to be of use.
    pub(super) fn of(disk_bytes: u64, memory_bytes: usize) -> Option<Self> {
        let segment_bytes = (disk_bytes / SEGMENTS).clamp(FRAME_MAX, SEGMENT_MAX);
        let segments = disk_bytes / segment_bytes;
        let entries = memory_bytes / ENTRY_BYTES;
        let is_of_use = segments >= SEGMENTS_MIN && entries as u64 >= SEGMENTS;
        is_of_use.then_some(Self { segment_bytes, segments: usize::try_from(segments).ok()?, entries })
    }

    /// The most bytes of all segments together.
    pub(super) fn bytes(&self) -> u64 {
        self.segment_bytes * self.segments as u64
    }

    /// Blocks after which a segment is full, so that few blocks are dropped at once also if they are small.
    fn segment_entries(&self) -> usize {
        (self.entries / self.segments.min(SEGMENTS as usize)).max(1)
    }
}

/// Where the data of a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) offset: u32,
    pub(super) length: u32,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    number: u32,
    /// Of the file.
    length: u64,
    entries: usize,
}

/// What the disk has, as far as is known.
#[derive(Debug)]
pub(super) struct Index {
    shape: Shape,
    /// By the first bytes of the id: data is checked against all of it when it is read.
    places: HashMap<u64, Place>,
    segments: VecDeque<Segment>,
}

impl Index {
    /// Of an empty cache.
    pub(super) fn new(shape: Shape) -> Self {
        Self { shape, places: HashMap::new(), segments: VecDeque::new() }
    }

    /// Where a block lies.
    pub(super) fn place(&self, id: &BlockId) -> Option<Place> {
        self.places.get(&short(id)).copied()
    }

    /// Whether a block is to be appended: it is not there, or among what is dropped next.
    pub(super) fn wants(&self, id: &BlockId) -> bool {
        self.place(id).is_none_or(|place| self.is_old(place.segment))
    }

    /// Whether a segment is in the oldest quarter.
    pub(super) fn is_old(&self, number: u32) -> bool {
        let rank = self.segments.partition_point(|segment| segment.number < number);
        rank < self.segments.len() / 4
    }

    /// Forgets a block that is not where it should be.
    pub(super) fn remove(&mut self, id: &BlockId, place: Place) {
        if self.place(id) == Some(place) {
            self.places.remove(&short(id));
        }
    }

    /// So many blocks can be added before the memory is full.
    pub(super) fn free_entries(&self) -> usize {
        self.shape.entries.saturating_sub(self.places.len())
    }

    /// Takes up a segment that was there before and is older than all that are known. Its blocks may lie in those once more.
    pub(super) fn add_oldest(&mut self, number: u32, length: u64, frames: &[Frame]) {
        debug_assert!(self.oldest().is_none_or(|oldest| number < oldest), "the newest comes first");
        self.segments.push_front(Segment { number, length, entries: frames.len() });
        for frame in frames {
            let place = Place { segment: number, offset: frame.offset, length: frame.length };
            // Of two frames in one segment the last one counts, and the later segment counts before an earlier one.
            let held = self.places.entry(short(&frame.id)).or_insert(place);
            if held.segment == number {
                *held = place;
            }
        }
    }

    /// A segment was begun that is newer than all that are known.
    pub(super) fn begin(&mut self, number: u32) {
        debug_assert!(self.newest().is_none_or(|newest| number > newest), "numbers go up");
        self.segments.push_back(Segment { number, length: 0, entries: 0 });
    }

    /// The newest segment.
    pub(super) fn newest(&self) -> Option<u32> {
        self.segments.back().map(|segment| segment.number)
    }

    /// Whether a segment must be dropped before another one is begun, or before a block is added to the newest.
    pub(super) fn is_full(&self, begin: bool) -> bool {
        let bytes: u64 = self.segments.iter().map(|segment| segment.length).sum();
        let no_room = begin
            && (self.segments.len() >= self.shape.segments
                || bytes + self.shape.segment_bytes > self.shape.bytes());
        no_room || self.free_entries() == 0
    }

    /// The oldest segment.
    pub(super) fn oldest(&self) -> Option<u32> {
        self.segments.front().map(|segment| segment.number)
    }

    /// The oldest segment and what lies in it is gone.
    pub(super) fn forget_oldest(&mut self) {
        if let Some(gone) = self.segments.pop_front() {
            self.places.retain(|_, place| place.segment != gone.number);
        }
    }

    /// Where a frame of so many bytes is to be written in the newest segment; `None` if there is no room.
    pub(super) fn room(&self, frame_bytes: u64) -> Option<u64> {
        let newest = self.segments.back()?;
        let has_room = newest.length + frame_bytes <= self.shape.segment_bytes
            && newest.entries < self.shape.segment_entries();
        has_room.then_some(newest.length)
    }

    /// A frame was appended to the newest segment, which now has `length` bytes.
    pub(super) fn appended(&mut self, frame: Frame, length: u64) {
        let Some(newest) = self.segments.back_mut() else { return };
        newest.length = length;
        newest.entries += 1;
        let place = Place { segment: newest.number, offset: frame.offset, length: frame.length };
        self.places.insert(short(&frame.id), place);
    }

    /// Nothing more is appended to the newest segment, whose length is not known for certain.
    pub(super) fn close_newest(&mut self) {
        if let Some(newest) = self.segments.back_mut() {
            newest.length = newest.length.max(self.shape.segment_bytes);
        }
    }
}

fn short(id: &BlockId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = id.0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}
