//! The shelf of sealed segments, and its keeper: copies that are missing are made, snapshots are made in time, and what is not needed any
//! more is removed.

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use tandemfs::api::files::JournalCounts;
use tandemfs::id::NodeId;
use tandemfs::{Error, Result};

use super::format::{Header, Kind, Place, Sealed, begin};
use super::nodes::JournalNode;
use super::reader::{Copy, PATIENCE, Reader, header};
use super::survey::Survey;
use super::{Inner, Journal};

/// So many whole snapshots are kept, if not more of them are asked for.
pub(super) const SNAPSHOTS: usize = 2;
/// Of the time that one can go back, snapshots are kept this part of it apart.
const BETWEEN: i64 = 4;
/// Each start begins a segment, so there may be many that are short: a snapshot is also made when so many follow the last one.
const SEGMENTS: usize = 64;
/// What nodes have is looked at anew after so many rounds.
const ROUNDS: u64 = 10;
/// What is copied at once.
const PIECE: usize = 1 << 20;

/// A sealed segment, or a whole snapshot.
#[derive(Clone, Debug)]
pub(super) struct Shelved {
    /// What it says of itself.
    pub(super) header: Header,
    /// How many of its bytes count.
    pub(super) size: u64,
    /// Its last entry; for a snapshot the one up to which the journal has to be read after it.
    pub(super) end: Place,
    /// Nodes that have all of it, as far as is known.
    pub(super) on: BTreeSet<NodeId>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    all: BTreeMap<u64, Shelved>,
    /// Nodes of which it is known what they have.
    known: BTreeSet<NodeId>,
    /// The nodes of the open segment.
    pub(super) open: BTreeSet<NodeId>,
    /// The number of the last entry.
    pub(super) position: u64,
}

impl Shelf {
    /// What the nodes hold of a journal that ends at `place`; `size` bytes of its newest segment count.
    pub(super) fn new(survey: &Survey, place: Place, size: u64) -> Self {
        let mut shelf = Self::default();
        let links = survey.links();
        let Some(newest) = links.last().map(|link| link.found.header.clone()) else { return shelf };
        let mut sizes: BTreeMap<u64, u64> = BTreeMap::from([(newest.number, size)]);
        for link in &links {
            sizes.extend(link.found.header.previous.map(|sealed| (sealed.number, sealed.size)));
        }
        sizes.extend(newest.snapshots.iter().map(|sealed| (sealed.number, sealed.size)));
        let mut ends: BTreeMap<u64, Place> =
            links.iter().map(|link| (link.found.header.number, link.end.unwrap_or(place))).collect();
        for sealed in &newest.snapshots {
            ends.insert(sealed.number, place);
        }
        for (number, end) in ends {
            if let (Some(found), Some(size)) = (survey.segments.get(&number), sizes.get(&number)) {
                let on = found.on.iter().filter(|(_, there)| *there >= size).map(|(id, _)| *id).collect();
                shelf.add(Shelved { header: found.header.clone(), size: *size, end, on });
            }
        }
        shelf
    }

    /// All that is on it, by their numbers.
    pub(super) fn into_all(self) -> BTreeMap<u64, Shelved> {
        self.all
    }

    /// Puts one on the shelf.
    pub(super) fn add(&mut self, shelved: Shelved) {
        self.all.insert(shelved.header.number, shelved);
    }

    /// The newest segment of entries, if it ends at `place`.
    pub(super) fn newest(&self, place: Place) -> Option<Sealed> {
        let (number, newest) = self.entries().next_back()?;
        (newest.end == place).then_some(Sealed { number, size: newest.size })
    }

    /// The nodes of the open segment, or of the one before while there is none.
    pub(super) fn newest_nodes(&self) -> &BTreeSet<NodeId> {
        match self.entries().next_back() {
            Some((_, newest)) if self.open.is_empty() => &newest.on,
            _ => &self.open,
        }
    }

    /// The whole snapshots.
    pub(super) fn snapshots(&self) -> Vec<Sealed> {
        let snapshots = self.all.iter().filter(|(_, shelved)| shelved.header.kind == Kind::Snapshot);
        snapshots.map(|(number, shelved)| Sealed { number: *number, size: shelved.size }).collect()
    }

    /// The bytes of entries after the newest snapshot, or in all.
    pub(super) fn since_snapshot(&self) -> u64 {
        self.after_snapshot().map(|shelved| shelved.size).sum()
    }

    /// The segments of entries that come after the newest snapshot.
    fn after_snapshot(&self) -> impl Iterator<Item = &Shelved> {
        let newest = self.snapshots().last().map_or(0, |sealed| sealed.number);
        self.entries().filter(move |(number, _)| *number > newest).map(|(_, shelved)| shelved)
    }

    /// Whether what is here is enough to build an engine anew: a snapshot, or everything from the beginning on.
    pub(super) fn is_complete(&self) -> bool {
        let begins = self.entries().next().is_some_and(|(_, first)| first.header.after == Place::default());
        begins || !self.snapshots().is_empty()
    }

    fn entries(&self) -> impl DoubleEndedIterator<Item = (u64, &Shelved)> {
        self.all
            .iter()
            .filter(|(_, shelved)| shelved.header.kind == Kind::Entries)
            .map(|(number, shelved)| (*number, shelved))
    }

    /// What is not needed any more, so that one can still go back by `keep_ms` from now: beside the newest snapshots one that is old enough to
    /// begin with is needed, and some between, which grow old.
    fn surplus(&self, now_ms: i64, keep_ms: i64) -> Vec<u64> {
        let snapshots: Vec<&Header> = self
            .all
            .values()
            .map(|shelved| &shelved.header)
            .filter(|header| header.kind == Kind::Snapshot)
            .collect();
        let Some(newest) = snapshots.len().checked_sub(SNAPSHOTS) else { return Vec::new() };
        // Without a time to go back to, the clock does not matter.
        let is_old = |header: &&&Header| keep_ms == 0 || header.began_ms <= now_ms.saturating_sub(keep_ms);
        let base = snapshots.iter().take(newest + 1).rev().find(is_old).map(|header| header.after.position);
        let mut kept: BTreeSet<u64> = snapshots.iter().skip(newest).map(|header| header.number).collect();
        let mut last: Option<i64> = None;
        for header in snapshots.iter().filter(|header| base.is_none_or(|base| header.after.position >= base))
        {
            if last.is_none_or(|last| header.began_ms.saturating_sub(last) >= keep_ms / BETWEEN) {
                kept.insert(header.number);
                last = Some(header.began_ms);
            }
        }
        let is_surplus = |shelved: &Shelved| match shelved.header.kind {
            Kind::Snapshot => !kept.contains(&shelved.header.number),
            Kind::Entries => base.is_some_and(|base| shelved.end.position <= base),
        };
        self.all.iter().filter(|(_, shelved)| is_surplus(shelved)).map(|(number, _)| *number).collect()
    }
}

impl Journal {
    /// One round of upkeep: nodes that were left out are asked whether they are back, missing copies are made, a snapshot if it is
    /// time for one, and what is not needed any more is removed.
    ///
    /// # Errors
    /// Whatever keeps one of these from being done; the next round tries again.
    pub async fn tend(&self, round: u64) -> Result<()> {
        let inner = &self.0;
        if round.is_multiple_of(ROUNDS) {
            inner.shelf().known.clear();
        }
        inner.nodes.look_again().await;
        inner.spread().await?;
        inner.inspect().await?;
        let healed = inner.heal().await;
        if inner.wants_snapshot().await {
            inner.snapshot().await?;
        }
        inner.remove_surplus().await?;
        healed
    }

    /// How the journal stands.
    pub fn counts(&self) -> JournalCounts {
        let inner = &self.0;
        let in_use: BTreeSet<NodeId> = inner.nodes.in_use().iter().map(|node| node.id).collect();
        let shelf = inner.shelf();
        let has_enough = |on: &BTreeSet<NodeId>| on.intersection(&in_use).count() >= inner.rules.copies;
        let short = shelf.all.values().filter(|shelved| !has_enough(&shelved.on)).count();
        JournalCounts {
            position: shelf.position,
            segments: shelf.all.len() as u64 + 1,
            under_replicated: short as u64 + u64::from(!has_enough(&shelf.open)),
            bytes: shelf.all.values().map(|shelved| shelved.size).sum(),
            snapshots: shelf.snapshots().len() as u64,
        }
    }
}

impl Inner {
    /// Begins another segment when the open one is on fewer nodes that are in use than is possible.
    async fn spread(&self) -> Result<()> {
        let mut writer = self.writer.lock().await;
        let in_use = self.nodes.in_use();
        let copies = {
            let shelf = self.shelf();
            in_use.iter().filter(|node| shelf.open.contains(&node.id)).count()
        };
        if copies < in_use.len().min(self.rules.copies) {
            self.begin_segment(&mut writer).await
        } else {
            Ok(())
        }
    }

    /// Finds out what nodes have that came into use, and removes what does not belong there.
    async fn inspect(&self) -> Result<()> {
        let in_use = self.nodes.in_use();
        let unknown: Vec<&JournalNode> = {
            let mut shelf = self.shelf();
            let ids: BTreeSet<NodeId> = in_use.iter().map(|node| node.id).collect();
            shelf.known.retain(|id| ids.contains(id));
            let known = shelf.known.clone();
            for shelved in shelf.all.values_mut() {
                shelved.on.retain(|id| known.contains(id) || ids.contains(id));
            }
            in_use.into_iter().filter(|node| !known.contains(&node.id)).collect()
        };
        for node in unknown {
            // What is begun from now on is not looked at.
            let open = self.writer.lock().await.segment();
            let list = self.nodes.bounded(node, PATIENCE, node.store.list()).await?;
            let mut has = BTreeSet::new();
            for segment in list.into_iter().filter(|segment| segment.number < open) {
                let header =
                    self.nodes.bounded(node, PATIENCE, header(node.store.as_ref(), segment.number)).await?;
                let expected = self
                    .shelf()
                    .all
                    .get(&segment.number)
                    .map(|shelved| (shelved.header.clone(), shelved.size));
                match (header, expected) {
                    (Some(header), Some((expected, size))) if header == expected => {
                        if segment.size >= size {
                            has.insert(segment.number);
                        }
                    }
                    (Some(header), _) if header.journal != self.id => {
                        log::warn!("node {} has segment {} of another journal", node.id, segment.number);
                    }
                    _ => {
                        log::info!("segment {} on node {} is not needed", segment.number, node.id);
                        self.nodes.bounded(node, PATIENCE, node.store.delete(segment.number)).await?;
                    }
                }
            }
            let mut shelf = self.shelf();
            for (number, shelved) in shelf.all.range_mut(..open) {
                if has.contains(number) {
                    shelved.on.insert(node.id);
                } else {
                    shelved.on.remove(&node.id);
                }
            }
            shelf.known.insert(node.id);
        }
        Ok(())
    }

    /// Makes all copies that are missing. One that cannot be made does not keep others from it.
    async fn heal(&self) -> Result<()> {
        let mut outcome = Ok(());
        let numbers: Vec<u64> = self.shelf().all.keys().copied().collect();
        for number in numbers {
            let Some(shelved) = self.shelf().all.get(&number).cloned() else { continue };
            let in_use = self.nodes.in_use();
            let there = in_use.iter().filter(|node| shelved.on.contains(&node.id)).count();
            let targets = self.nodes.choose(number, self.nodes.all().count(), 0)?;
            let targets = targets.into_iter().filter(|node| !shelved.on.contains(&node.id));
            for node in targets.take(self.rules.copies.saturating_sub(there)) {
                if let Err(error) = self.copy(&shelved, node).await {
                    outcome = Err(error);
                    break;
                }
                if let Some(shelved) = self.shelf().all.get_mut(&number) {
                    shelved.on.insert(node.id);
                }
                log::info!("segment {number} of the journal is on node {} now", node.id);
            }
        }
        outcome
    }

    /// Copies a segment to a node, from wherever each entry of it is good.
    async fn copy(&self, shelved: &Shelved, to: &JournalNode) -> Result<()> {
        let number = shelved.header.number;
        let mut reader = Reader::new(&shelved.header, self.copies_of(shelved, to.id))?;
        self.nodes.bounded(to, PATIENCE, to.store.delete(number)).await?;
        let mut piece = begin(&shelved.header)?;
        let mut at = 0;
        loop {
            // One without entries is a link between others, and copied too.
            let is_end = reader.at() >= shelved.size;
            if is_end || piece.len() >= PIECE {
                let bytes = Bytes::from(std::mem::take(&mut piece));
                let length = bytes.len() as u64;
                self.nodes.bounded(to, PATIENCE, to.store.append(number, at, bytes)).await?;
                at += length;
            }
            if is_end {
                return Ok(());
            }
            let Some((frame, _)) = reader.next_frame().await else {
                let what =
                    format!("segment {number} of the journal at byte {}: no node has it whole", reader.at());
                return Err(Error::corrupt(what));
            };
            piece.extend_from_slice(&frame);
        }
    }

    /// Where a segment can be read, but not from the node that is to get it: those first that have all of it.
    fn copies_of(&self, shelved: &Shelved, but: NodeId) -> Vec<Copy> {
        let mut nodes = self.nodes.in_use();
        nodes.retain(|node| node.id != but);
        nodes.sort_by_key(|node| !shelved.on.contains(&node.id));
        nodes.into_iter().map(|node| Copy { node: node.id, store: node.store.clone() }).collect()
    }

    async fn wants_snapshot(&self) -> bool {
        let since = self.writer.lock().await.since_snapshot;
        let shelf = self.shelf();
        let newest = shelf.snapshots().last().map_or(0, |sealed| sealed.size);
        !shelf.is_complete()
            || since >= self.rules.snapshot_bytes.max(newest)
            || shelf.after_snapshot().count() >= SEGMENTS
    }

    /// Removes what is not needed any more from all nodes that are in use; from others when they come back.
    pub(super) async fn remove_surplus(&self) -> Result<()> {
        let surplus = self.shelf().surplus(self.now_ms(), self.rules.keep_ms);
        for number in surplus {
            for node in self.nodes.in_use() {
                self.nodes.bounded(node, PATIENCE, node.store.delete(number)).await?;
            }
            self.shelf().all.remove(&number);
        }
        Ok(())
    }
}
