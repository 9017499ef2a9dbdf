//! Blocks against the extents that name them. Extents are counted in the order of files and compared in the order of blocks; in between
//! they lie in a scratch store, so that there may be more of them than memory.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use std::collections::BTreeMap;
use tandemfs::clock::Time;
use tandemfs::id::{BlockId, Ino, VolumeId};
use tandemfs::tree::Chunk;
use tandemfs::{Error, Result, codec};

use super::finding::{Finding, Mend, Place};
use super::row::{self, Row};
use super::scan::Cursor;
use crate::meta::record::{self, Block, References};
use crate::meta::{self, Key, MetaStore, Write, keys};

/// Blocks that are counted in memory.
const COUNTED_MAX: usize = 1 << 15;

/// What extents say of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counted {
    /// How many there are.
    pub(crate) extents: u64,
    /// Where in the block the last one ends.
    pub(crate) end: u64,
    /// A file that has one.
    pub(crate) file: u64,
}

impl Counted {
    fn add(&mut self, other: Self) {
        self.extents += other.extents;
        self.end = self.end.max(other.end);
        self.file = other.file;
    }
}

/// Counts extents.
#[derive(Debug)]
pub(crate) struct Counter<'a> {
    scratch: &'a dyn MetaStore,
    round: u8,
    counted: BTreeMap<(VolumeId, BlockId), Counted>,
    runs: u64,
}

/// The key of a part of a count in the scratch store: a round of checks, what it is, the block, and a number.
fn scratch_key(round: u8, kind: u8, (volume, id): (VolumeId, BlockId), run: u64) -> Key {
    [&[round, kind][..], &volume.0.to_be_bytes(), &id.0, &run.to_be_bytes()].concat()
}

impl<'a> Counter<'a> {
    /// One that has counted nothing. No two that use a scratch store have the same round.
    pub(crate) fn new(scratch: &'a dyn MetaStore, round: u8) -> Self {
        Self { scratch, round, counted: BTreeMap::new(), runs: 0 }
    }

    /// Counts the extents of a chunk.
    ///
    /// # Errors
    /// Those of the scratch store.
    pub(crate) async fn count(&mut self, volume: VolumeId, file: Ino, chunk: &Chunk) -> Result<()> {
        for extent in &chunk.0 {
            let end = u64::from(extent.offset) + u64::from(extent.length);
            let one = Counted { extents: 1, end, file: file.0 };
            self.counted.entry((volume, extent.block)).or_default().add(one);
        }
        if self.counted.len() >= COUNTED_MAX { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<()> {
        self.runs += 1;
        let counted = std::mem::take(&mut self.counted);
        let write = |(of, counted)| {
            let value = Some(codec::encode(&counted)?);
            Ok(Write { key: scratch_key(self.round, b'r', of, self.runs), value })
        };
        let writes = counted.into_iter().map(write).collect::<Result<_>>()?;
        self.scratch.commit(Vec::new(), writes).await
    }

    /// Counts the blocks that lie in packs.
    async fn count_members(&mut self, store: &dyn MetaStore) -> Result<()> {
        let mut blocks = Cursor::new(store, b"b".to_vec(), keys::end_of(b"b"));
        let mut members: BTreeMap<(VolumeId, BlockId), Members> = BTreeMap::new();
        loop {
            let next = blocks.next().await?;
            if let Some((key, value)) = &next
                && let Some(Row::Block(volume, _)) = row::parse(key)
                && let record @ Block { place: record::Place::Pack { block, .. }, .. } =
                    record::decode::<Block>(key, value)?
            {
                members.entry((volume, block)).or_default().add(Members { count: 1, bytes: record.size });
            }
            if next.is_none() || members.len() >= COUNTED_MAX {
                self.runs += 1;
                let write = |(of, count): ((VolumeId, BlockId), Members)| {
                    let value = Some(codec::encode(&count)?);
                    Ok(Write { key: scratch_key(self.round, b'm', of, self.runs), value })
                };
                let writes = std::mem::take(&mut members).into_iter().map(write).collect::<Result<_>>()?;
                self.scratch.commit(Vec::new(), writes).await?;
            }
            if next.is_none() {
                return Ok(());
            }
        }
    }

    /// All blocks that were counted, or have a record or a count, in the order of volumes and ids.
    ///
    /// # Errors
    /// Those of the scratch store and the engine.
    pub(crate) async fn finish(mut self, store: &'a dyn MetaStore) -> Result<Blocks<'a>> {
        self.flush().await?;
        let mut garbage = Cursor::new(store, b"g".to_vec(), keys::end_of(b"g"));
        let mut writes = Vec::new();
        while let Some((key, _)) = garbage.next().await? {
            if let Some(Row::Garbage(volume, id)) = row::parse(&key) {
                let key = scratch_key(self.round, b'g', (volume, id), 0);
                writes.push(Write { key, value: Some(Vec::new()) });
            }
            if writes.len() >= COUNTED_MAX {
                self.scratch.commit(Vec::new(), std::mem::take(&mut writes)).await?;
            }
        }
        self.scratch.commit(Vec::new(), writes).await?;
        self.count_members(store).await?;
        let scratch = |kind| {
            let prefix = [self.round, kind];
            Cursor::new(self.scratch, prefix.to_vec(), keys::end_of(&prefix))
        };
        let stored = |kind: u8| Cursor::new(store, vec![kind], keys::end_of(&[kind]));
        Ok(Blocks {
            round: self.round,
            blocks: stored(b'b'),
            references: stored(b'r'),
            inline: stored(b'd'),
            counted: scratch(b'r'),
            members: scratch(b'm'),
            garbage: scratch(b'g'),
        })
    }
}

/// The blocks that lie in one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Members {
    /// How many.
    pub(crate) count: u32,
    /// Their bytes.
    pub(crate) bytes: u32,
}

impl Members {
    /// What a record says.
    pub(crate) fn said_by(block: &Block) -> Self {
        Self { count: block.members, bytes: block.member_bytes }
    }

    fn add(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// All that is known of a block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its record.
    pub(crate) block: Option<Block>,
    /// How often it is said to be referred to.
    pub(crate) references: Option<References>,
    /// What its extents say.
    pub(crate) counted: Counted,
    /// The blocks that say that they lie in it.
    pub(crate) members: Members,
    /// How many bytes of it lie in the metadata.
    pub(crate) inline: Option<u32>,
    /// It is in the index of garbage.
    pub(crate) is_listed: bool,
}

impl Known {
    /// A file that has some of it.
    pub(crate) fn file(&self) -> Option<Ino> {
        (self.counted.extents > 0).then_some(Ino(self.counted.file))
    }
}

/// Goes through all blocks.
#[derive(Debug)]
pub(crate) struct Blocks<'a> {
    round: u8,
    blocks: Cursor<'a>,
    references: Cursor<'a>,
    inline: Cursor<'a>,
    counted: Cursor<'a>,
    members: Cursor<'a>,
    garbage: Cursor<'a>,
}

/// The volume and the block in a key, as its bytes.
fn name(key: &[u8], skip: usize) -> Option<[u8; 40]> {
    key.get(skip..)?.first_chunk().copied()
}

impl Blocks<'_> {
    /// The next one.
    ///
    /// # Errors
    /// `Corrupt` where a record cannot be read; those of the engine.
    pub(crate) async fn next(&mut self) -> Result<Option<(VolumeId, BlockId, Known)>> {
        let mut next: Option<[u8; 40]> = None;
        for (cursor, skip) in [
            (&mut self.blocks, 1),
            (&mut self.references, 1),
            (&mut self.inline, 1),
            (&mut self.counted, 2),
            (&mut self.members, 2),
            (&mut self.garbage, 2),
        ] {
            if let Some((key, _)) = cursor.peek().await? {
                let name = name(key, skip)
                    .ok_or_else(|| Error::corrupt(format!("metadata key {}", hex::encode(key))))?;
                next = Some(next.map_or(name, |next| next.min(name)));
            }
        }
        let Some(next) = next else { return Ok(None) };
        let of = |start: &[u8]| [start, &next].concat();
        let mut known = Known::default();
        if let Some((key, value)) = self.blocks.next_of(&of(b"b")).await? {
            known.block = Some(record::decode(&key, &value)?);
        }
        if let Some((key, value)) = self.references.next_of(&of(b"r")).await? {
            known.references = Some(record::decode(&key, &value)?);
        }
        if let Some((key, value)) = self.inline.next_of(&of(b"d")).await? {
            let bytes: ByteBuf = record::decode(&key, &value)?;
            known.inline = Some(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        }
        while let Some((_, value)) = self.members.next_of(&of(&[self.round, b'm'])).await? {
            known.members.add(codec::decode(&value)?);
        }
        while let Some((_, value)) = self.counted.next_of(&of(&[self.round, b'r'])).await? {
            known.counted.add(codec::decode(&value)?);
        }
        known.is_listed = self.garbage.next_of(&of(&[self.round, b'g'])).await?.is_some();
        let (volume, id) = next.split_at(8);
        let volume = volume.first_chunk().map(|volume| VolumeId(u64::from_be_bytes(*volume)));
        let id = id.first_chunk().map(|id| BlockId(*id));
        Ok(volume.zip(id).map(|(volume, id)| (volume, id, known)))
    }
}

/// Checks what is known of a block.
pub(crate) fn check(volume: VolumeId, id: BlockId, known: &Known, now: Time) -> Result<Vec<Finding>> {
    let finding = |what: String| Finding::new(Place::Block(volume, id, known.file()), what);
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(0);
    let counted = known.counted.extents;
    let row = |since_ms| meta::put(keys::garbage(since_ms, volume, &id), &());
    let mut findings = Vec::new();
    let says = known.references.map_or(0, |references| references.count);
    if says != counted {
        let what = format!("is said to be referred to {says} times, {counted} were counted");
        let unused_since_ms = if counted == 0 { now_ms } else { 0 };
        let references = References { count: counted, unused_since_ms };
        let also = if counted == 0 { vec![row(now_ms)?] } else { Vec::new() };
        findings.push(finding(what).mended_by(Mend::References(Some(references), also)));
    }
    match &known.block {
        None if counted > 0 || known.members.count > 0 => {
            findings.push(finding("is referred to and has no record".to_owned()));
        }
        None if says == 0 && known.references.is_some() => {
            let what = "has a count of references and no record".to_owned();
            findings.push(finding(what).mended_by(Mend::References(None, Vec::new())));
        }
        None => {}
        Some(block) if block.deleting && (counted > 0 || known.members.count > 0) => {
            let kept = Block { deleting: false, ..block.clone() };
            let write = meta::put(keys::block(volume, &id), &kept)?;
            let what = "is being deleted although it is referred to".to_owned();
            findings.push(finding(what).mended_by(Mend::Rows(vec![write])));
        }
        Some(block) if counted > 0 && known.counted.end > u64::from(block.size) => {
            let what =
                format!("has {} bytes, and is referred to up to byte {}", block.size, known.counted.end);
            findings.push(finding(what));
        }
        // A count that is put right leaves a row of its own.
        Some(block) if counted == 0 && known.members.count == 0 && says == 0 && !known.is_listed => {
            let since_ms =
                block.stored_ms.max(known.references.map_or(0, |references| references.unused_since_ms));
            let what = "is not referred to and would never be collected".to_owned();
            findings.push(finding(what).mended_by(Mend::Rows(vec![row(since_ms)?])));
        }
        Some(_) => {}
    }
    findings.extend(check_place(volume, id, known)?);
    Ok(findings)
}

/// Checks where a block's bytes are said to lie.
fn check_place(volume: VolumeId, id: BlockId, known: &Known) -> Result<Vec<Finding>> {
    let finding = |what: String| Finding::new(Place::Block(volume, id, known.file()), what);
    let key = keys::block(volume, &id);
    let mut findings = Vec::new();
    let is_inline = known.block.as_ref().is_some_and(|block| block.place == record::Place::Inline);
    match (&known.block, known.inline) {
        (Some(block), inline) if is_inline && inline != Some(block.size) => {
            findings.push(finding("its bytes are not in the metadata".to_owned()));
        }
        (None, Some(size)) if known.counted.extents > 0 => {
            let what = "its bytes are in the metadata, and it has no record".to_owned();
            let found = Block { size, place: record::Place::Inline, ..Block::default() };
            findings.push(finding(what).mended_by(Mend::Rows(vec![meta::put(key.clone(), &found)?])));
        }
        (_, Some(_)) if !is_inline => {
            let what = "its bytes are in the metadata, where nothing looks for them".to_owned();
            let write = meta::remove(keys::inline(volume, &id));
            findings.push(finding(what).mended_by(Mend::Rows(vec![write])));
        }
        _ => {}
    }
    if let Some(block) = known.block.as_ref().filter(|block| Members::said_by(block) != known.members) {
        let Members { count, bytes } = known.members;
        let (says, says_bytes) = (block.members, block.member_bytes);
        let what = format!(
            "is said to have {says} members of {says_bytes} bytes, {count} of {bytes} bytes were counted"
        );
        let right = Block { members: count, member_bytes: bytes, ..block.clone() };
        findings.push(finding(what).mended_by(Mend::Rows(vec![meta::put(key, &right)?])));
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::{Counted, Counter, Known, Members, check};
    use crate::fsck::finding::Mend;
    use crate::meta::memory::MemoryStore;
    use crate::meta::record::{Block, Place, References};
    use crate::meta::{MetaStore, keys, put, remove};
    use tandemfs::clock::Time;
    use tandemfs::id::{BlockId, Ino, NodeId, VolumeId};
    use tandemfs::tree::{Chunk, Extent};

    const VOLUME: VolumeId = VolumeId(1);
    const ID: BlockId = BlockId([5; 32]);

    fn block(deleting: bool) -> Option<Block> {
        Some(Block { size: 100, replicas: vec![NodeId(1)], stored_ms: 7, deleting, ..Block::default() })
    }

    fn known(count: u64, extents: u64) -> Known {
        Known {
            block: block(false),
            references: Some(References { count, unused_since_ms: 0 }),
            counted: Counted { extents, end: 100, file: 3 },
            is_listed: extents == 0,
            ..Known::default()
        }
    }

    fn findings(known: &Known) -> Vec<(String, Mend)> {
        let findings = check(VOLUME, ID, known, Time::from_millis(9)).unwrap();
        findings.into_iter().map(|finding| (finding.what, finding.mend)).collect()
    }

    #[test]
    fn a_count_is_the_number_of_extents() {
        assert_eq!(findings(&known(2, 2)), []);
        assert_eq!(findings(&known(0, 0)), []);
        assert_eq!(findings(&Known { references: None, ..known(0, 0) }), []);
        let right = References { count: 2, unused_since_ms: 0 };
        let found = findings(&known(3, 2));
        assert_eq!(found[0].1, Mend::References(Some(right), Vec::new()));
        let found = findings(&known(1, 0));
        let row = put(keys::garbage(9, VOLUME, &ID), &()).unwrap();
        let right = References { count: 0, unused_since_ms: 9 };
        assert_eq!(found, [(found[0].0.clone(), Mend::References(Some(right), vec![row]))]);
    }

    #[test]
    fn what_is_referred_to_is_there_and_what_is_not_is_collected_some_day() {
        let found = findings(&Known { block: None, ..known(2, 2) });
        assert!(matches!(found.as_slice(), [(_, Mend::No)]));
        let found = findings(&Known { block: None, ..known(0, 0) });
        assert!(matches!(found.as_slice(), [(_, Mend::References(None, _))]));
        let found = findings(&Known { block: block(true), ..known(2, 2) });
        assert!(matches!(found.as_slice(), [(_, Mend::Rows(_))]));
        let counted = Counted { end: 101, ..known(2, 2).counted };
        let found = findings(&Known { counted, ..known(2, 2) });
        assert!(matches!(found.as_slice(), [(_, Mend::No)]));
        let found = findings(&Known { is_listed: false, ..known(0, 0) });
        let row = put(keys::garbage(7, VOLUME, &ID), &()).unwrap();
        assert_eq!(found[0].1, Mend::Rows(vec![row]));
    }

    #[test]
    fn bytes_lie_where_they_are_said_to_lie() {
        let at = |place, members| {
            block(false).map(|block| Block { place, members, member_bytes: 10 * members, ..block })
        };
        let inline = Known { block: at(Place::Inline, 0), inline: Some(100), ..known(2, 2) };
        assert_eq!(findings(&inline), []);
        for wrong in [None, Some(99)] {
            let found = findings(&Known { inline: wrong, ..inline.clone() });
            assert!(matches!(found.as_slice(), [(_, Mend::No)]), "{found:?}");
        }
        let found = findings(&Known { inline: Some(100), ..known(2, 2) });
        assert_eq!(found[0].1, Mend::Rows(vec![remove(keys::inline(VOLUME, &ID))]));
        let found = findings(&Known { block: None, inline: Some(100), ..known(2, 2) });
        let right = Block { size: 100, place: Place::Inline, ..Block::default() };
        assert_eq!(found[1].1, Mend::Rows(vec![put(keys::block(VOLUME, &ID), &right).unwrap()]));
        let counted = |count| Members { count, bytes: 10 * count };
        let pack =
            Known { block: at(Place::Object, 3), members: counted(3), is_listed: false, ..known(0, 0) };
        assert_eq!(findings(&pack), []);
        let found = findings(&Known { members: counted(2), ..pack });
        let right = at(Place::Object, 2).unwrap();
        assert_eq!(found[0].1, Mend::Rows(vec![put(keys::block(VOLUME, &ID), &right).unwrap()]));
    }

    #[tokio::test]
    async fn counts_of_all_runs_come_together_in_the_order_of_blocks() {
        let (store, scratch) = (MemoryStore::new(), MemoryStore::new());
        let key = keys::block(VOLUME, &ID);
        store.commit(Vec::new(), vec![put(key, &block(false)).unwrap()]).await.unwrap();
        let row = put(keys::garbage(5, VOLUME, &ID), &()).unwrap();
        store.commit(Vec::new(), vec![row]).await.unwrap();
        let mut counter = Counter::new(&scratch, 3);
        let extent = |block: u8, offset| Extent { start: 0, length: 10, block: BlockId([block; 32]), offset };
        counter.count(VOLUME, Ino(2), &Chunk(vec![extent(5, 0), extent(6, 0)])).await.unwrap();
        counter.flush().await.unwrap();
        counter.count(VOLUME, Ino(4), &Chunk(vec![extent(5, 20)])).await.unwrap();
        counter.count(VolumeId(0), Ino(9), &Chunk(vec![extent(5, 0)])).await.unwrap();
        let mut blocks = counter.finish(&store).await.unwrap();
        let mut found = Vec::new();
        while let Some((volume, id, known)) = blocks.next().await.unwrap() {
            let Counted { extents, end, .. } = known.counted;
            found.push((volume.0, id.0[0], extents, end, known.block.is_some(), known.is_listed));
        }
        assert_eq!(
            found,
            [(0, 5, 1, 10, false, false), (1, 5, 2, 30, true, true), (1, 6, 1, 10, false, false)]
        );
    }
}
