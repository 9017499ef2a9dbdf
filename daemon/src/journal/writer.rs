//! The open segment: entries are appended to it, on all of its nodes at once.

use bytes::Bytes;
use tandemfs::{Error, Result};

use super::Inner;
use super::format::{Entry, Header, Kind, Place, Sealed, begin, frame};
use super::keeper::Shelved;

/// A segment that has become so long is followed by another one.
const SEGMENT_BYTES: u64 = 16 << 20;

/// Where the journal ends, and what it is being written to.
#[derive(Debug)]
pub(super) struct Writer {
    place: Place,
    next_number: u64,
    open: Option<Open>,
    /// The segment before the open one.
    previous: Option<Sealed>,
    /// Bytes that have been appended since the last snapshot was begun.
    pub(super) since_snapshot: u64,
}

#[derive(Debug)]
struct Open {
    header: Header,
    /// Its bytes so far.
    size: u64,
    /// Its bytes at the beginning.
    begin: u64,
}

impl Writer {
    /// Goes on after `place` and the segment `previous`, with segments from number `next_number` on.
    pub(super) fn new(place: Place, next_number: u64, previous: Option<Sealed>) -> Self {
        Self { place, next_number, open: None, previous, since_snapshot: 0 }
    }

    /// The last entry.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// The number of the open segment, or of the one that comes next.
    pub(super) fn segment(&self) -> u64 {
        self.open.as_ref().map_or(self.next_number, |open| open.header.number)
    }

    /// A number that no segment has had.
    pub(super) fn take_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }
}

impl Inner {
    /// Appends an entry. When this returns, it is on stable storage on every node of the open segment, and on as many as there
    /// are copies, if so many can be used. A node that fails, or takes too long, is left out, and another segment is begun without it.
    ///
    /// # Errors
    /// `Unavailable` or `NoSpace` when there are too few nodes; the entry is not in the journal then, unless not even that
    /// could be written anywhere.
    pub(super) async fn append(&self, writer: &mut Writer, entry: &Entry) -> Result<Place> {
        let (bytes, chain) = frame(writer.place.chain, entry)?;
        let bytes = Bytes::from(bytes);
        let length = bytes.len() as u64;
        let mut failure = None;
        for _ in 0..=self.nodes.all().count() {
            let is_full = |open: &Open| open.size > open.begin && open.size + length > SEGMENT_BYTES;
            if writer.open.as_ref().is_none_or(is_full) {
                self.begin_segment(writer).await?;
            }
            let Some(open) = &mut writer.open else { break };
            let (number, copies) = (open.header.number, &open.header.copies);
            let outcome = self.nodes.append(copies, number, open.size, &bytes).await;
            if outcome.done.len() == copies.len() {
                open.size += length;
                writer.since_snapshot += length;
                writer.place = Place { position: writer.place.position + 1, chain };
                self.shelf().position = writer.place.position;
                return Ok(writer.place);
            }
            failure = outcome.error;
            // Some may have it: the next segment says that it begins before it.
            self.seal(writer);
        }
        self.begin_segment(writer).await?;
        Err(failure.unwrap_or_else(|| Error::unavailable("the nodes of the journal")))
    }

    /// Seals the open segment and begins another one, on nodes that can be used now.
    ///
    /// # Errors
    /// `Unavailable` or `NoSpace` when there are too few nodes.
    pub(super) async fn begin_segment(&self, writer: &mut Writer) -> Result<()> {
        self.seal(writer);
        let mut failure = None;
        for _ in 0..=self.nodes.all().count() {
            let number = writer.take_number();
            let chosen = self.nodes.choose(number, self.rules.copies, self.rules.min_copies);
            // If all are full, that is what is to be said.
            let chosen = match (chosen, failure.take()) {
                (Ok(chosen), _) => chosen,
                (Err(_), Some(failure)) => return Err(failure),
                (Err(error), None) => return Err(error),
            };
            let header = Header {
                journal: self.id,
                number,
                kind: Kind::Entries,
                after: writer.place,
                previous: writer.previous,
                snapshots: self.shelf().snapshots(),
                copies: chosen.iter().map(|node| node.id).collect(),
                began_ms: self.now_ms(),
            };
            let bytes = Bytes::from(begin(&header)?);
            let outcome = self.nodes.append(&header.copies, number, 0, &bytes).await;
            if outcome.done.len() == header.copies.len() {
                // Then all others get to know of it: who knows of a segment that is nowhere knows of a loss.
                let mut others: Vec<_> = self.nodes.in_use().iter().map(|node| node.id).collect();
                others.retain(|id| !header.copies.contains(id));
                self.nodes.tell(&others, number, &bytes, &outcome).await;
                let size = bytes.len() as u64;
                let mut shelf = self.shelf();
                (shelf.open, shelf.position) =
                    (header.copies.iter().copied().collect(), writer.place.position);
                drop(shelf);
                writer.open = Some(Open { header, size, begin: size });
                return Ok(());
            }
            failure = outcome.error;
        }
        Err(failure.unwrap_or_else(|| Error::unavailable("the nodes of the journal")))
    }

    /// Writes nothing more to the open segment. One without entries is forgotten: the next says all that it says.
    fn seal(&self, writer: &mut Writer) {
        self.shelf().open.clear();
        let Some(open) = writer.open.take().filter(|open| open.size > open.begin) else { return };
        writer.previous = Some(Sealed { number: open.header.number, size: open.size });
        let on = open.header.copies.iter().copied().collect();
        self.shelf().add(Shelved { header: open.header, size: open.size, end: writer.place, on });
    }
}
