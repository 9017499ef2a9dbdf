//! The walk over one volume's tree: all that belongs to an inode lies under its number, in several ranges of keys that are read side by
//! side. What belongs to another inode, its names above all, is looked up.

use std::collections::BTreeSet;
use tandemfs::clock::Time;
use tandemfs::id::{Ino, VolumeId};
use tandemfs::name::Name;
use tandemfs::tree::{self, CHUNK_SIZE, Chunk, Entry, Inode, Record, Usage};
use tandemfs::{Error, Result};

use super::extents;
use super::finding::{self, Finding, Mend, Place};
use super::inode::{self, Facts};
use super::names::{self, Target};
use super::references::Counter;
use super::row::{self, Row};
use super::scan::{Cursor, PAGE};
use crate::meta::{Key, MetaStore, Value, keys};

/// Directories that are remembered to hang on the root.
const SURE_MAX: usize = 1 << 16;

/// What a walk has added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    /// Bytes of extents.
    pub(crate) bytes: u64,
    /// Inodes, the root not counted.
    pub(crate) inodes: u64,
    /// The highest number of an inode.
    pub(crate) highest: u64,
}

/// A walk, and how far it is.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    store: &'a dyn MetaStore,
    volume: VolumeId,
    now: Time,
    inodes: Cursor<'a>,
    chunks: Cursor<'a>,
    entries: Cursor<'a>,
    links: Cursor<'a>,
    orphans: Cursor<'a>,
    xattrs: Cursor<'a>,
    current: Option<(Ino, Option<Inode>, Facts)>,
    sure: BTreeSet<Ino>,
    sums: Sums,
}

/// The beginning of all keys of a kind that belong to an inode.
fn prefix(volume: VolumeId, kind: u8, ino: Ino) -> Key {
    let mut key = keys::tree_prefix(volume);
    key.push(kind);
    key.extend(ino.0.to_be_bytes());
    key
}

/// The inode that the next row of a cursor belongs to.
async fn ino_of(cursor: &mut Cursor<'_>) -> Result<Option<Ino>> {
    let Some((key, _)) = cursor.peek().await? else { return Ok(None) };
    let number = key.get(1 + 8 + 1..).and_then(|rest| rest.first_chunk());
    let number = number.ok_or_else(|| Error::corrupt(format!("metadata key {}", hex::encode(key))))?;
    Ok(Some(Ino(u64::from_be_bytes(*number))))
}

fn decode((key, value): &(Key, Value)) -> Result<(tree::Key, Record)> {
    match row::parse(key) {
        Some(Row::Tree(_, of)) => row::tree_record(&of, key, value).map(|record| (of, record)),
        _ => Err(Error::corrupt(format!("metadata key {}", hex::encode(key)))),
    }
}

impl<'a> Walk<'a> {
    /// Over the inodes `from..=to` of a volume.
    pub(crate) fn new(store: &'a dyn MetaStore, volume: VolumeId, (from, to): (Ino, Ino), now: Time) -> Self {
        let cursor =
            |kind| Cursor::new(store, prefix(volume, kind, from), keys::end_of(&prefix(volume, kind, to)));
        Self {
            store,
            volume,
            now,
            inodes: cursor(b'i'),
            chunks: cursor(b'c'),
            entries: cursor(b'e'),
            links: cursor(b'l'),
            orphans: cursor(b'o'),
            xattrs: cursor(b'x'),
            current: None,
            sure: BTreeSet::from([Ino::ROOT]),
            sums: Sums::default(),
        }
    }

    /// Over all of a volume.
    pub(crate) fn over(store: &'a dyn MetaStore, volume: VolumeId, now: Time) -> Self {
        Self::new(store, volume, (Ino(0), Ino(u64::MAX)), now)
    }

    /// What has been added up so far.
    pub(crate) fn sums(&self) -> Sums {
        self.sums
    }

    /// Goes on for an inode, or for a page of a directory; `false` at the end.
    ///
    /// # Errors
    /// `Corrupt` where a record cannot be read; those of the engine.
    pub(crate) async fn step(
        &mut self,
        found: &mut Vec<Finding>,
        counter: Option<&mut Counter<'_>>,
    ) -> Result<bool> {
        if self.current.is_none() {
            let Some(ino) = self.next_ino().await? else { return Ok(false) };
            self.begin(ino, found, counter).await?;
        }
        let Some((ino, inode, mut facts)) = self.current.take() else { return Ok(false) };
        if self.names(ino, &mut facts, found).await? {
            self.current = Some((ino, inode, facts));
            return Ok(true);
        }
        self.sums.bytes += facts.allocated;
        self.sums.inodes += u64::from(inode.is_some() && ino != Ino::ROOT);
        self.sums.highest = self.sums.highest.max(ino.0);
        found.extend(inode::check(self.volume, ino, inode.as_ref(), &facts, self.now));
        if let Some(inode) = inode.filter(|inode| inode.is_directory() && facts.has_first) {
            found.extend(self.climb(inode).await?);
        }
        Ok(true)
    }

    async fn next_ino(&mut self) -> Result<Option<Ino>> {
        let mut next: Option<Ino> = None;
        for cursor in [
            &mut self.inodes,
            &mut self.chunks,
            &mut self.entries,
            &mut self.links,
            &mut self.orphans,
            &mut self.xattrs,
        ] {
            if let Some(ino) = ino_of(cursor).await? {
                next = Some(next.map_or(ino, |next| next.min(ino)));
            }
        }
        Ok(next)
    }

    /// Reads all that belongs to an inode but the names in it.
    async fn begin(
        &mut self,
        ino: Ino,
        found: &mut Vec<Finding>,
        mut counter: Option<&mut Counter<'_>>,
    ) -> Result<()> {
        let volume = self.volume;
        let place = || Place::Inode(volume, ino);
        let inode = match self.inodes.next_of(&prefix(volume, b'i', ino)).await? {
            Some(row) => match decode(&row)?.1 {
                Record::Inode(inode) => Some(*inode),
                _ => None,
            },
            None => None,
        };
        let mut facts = Facts::default();
        while let Some(row) = self.chunks.next_of(&prefix(volume, b'c', ino)).await? {
            let (tree::Key::Chunk(_, number), Record::Chunk(chunk)) = decode(&row)? else { continue };
            facts.chunks += 1;
            facts.allocated += extents::bytes(&chunk);
            match extents::check(&chunk) {
                Ok(extents) => {
                    let end = number.saturating_mul(CHUNK_SIZE).saturating_add(extents.end);
                    facts.end = facts.end.max(end);
                }
                Err(what) => found.push(bad_chunk(place(), (ino, number), &chunk, what)),
            }
            if let Some(counter) = &mut counter {
                counter.count(volume, ino, &chunk).await?;
            }
        }
        while let Some(row) = self.xattrs.next_of(&prefix(volume, b'x', ino)).await? {
            let (tree::Key::Xattr(_, name), Record::Xattr(value)) = decode(&row)? else { continue };
            facts.xattrs += 1;
            facts.xattr_bytes += (name.len() + value.len()) as u64;
        }
        while let Some(row) = self.orphans.next_of(&prefix(volume, b'o', ino)).await? {
            decode(&row)?;
            facts.is_orphan = true;
        }
        let first = inode.as_ref().and_then(|inode| Some((inode.parent, inode.name.clone()?)));
        if let Some((parent, name)) = first.clone() {
            facts.has_first = leads_to(self.store, volume, (parent, name), ino).await?;
        }
        while let Some(row) = self.links.next_of(&prefix(volume, b'l', ino)).await? {
            let (key, _) = decode(&row)?;
            let tree::Key::Link(_, parent, name) = &key else { continue };
            let link = (*parent, name.clone());
            if first.as_ref() != Some(&link) && leads_to(self.store, volume, link.clone(), ino).await? {
                facts.links += 1;
                facts.link.get_or_insert(link);
            } else {
                let what = format!("its further name {name:?} in inode {parent} does not lead to it");
                found.push(Finding::new(place(), what).mended_by(Mend::Counts(vec![(key, None)])));
            }
        }
        self.current = Some((ino, inode, facts));
        Ok(())
    }

    /// Checks a page of a directory; whether there is more of it.
    async fn names(&mut self, ino: Ino, facts: &mut Facts, found: &mut Vec<Finding>) -> Result<bool> {
        let mut page: Vec<(Name, Entry)> = Vec::new();
        while page.len() < PAGE
            && let Some(row) = self.entries.next_of(&prefix(self.volume, b'e', ino)).await?
        {
            let (tree::Key::Entry(_, name), Record::Entry(entry)) = decode(&row)? else { continue };
            page.push((name, entry));
        }
        let inodes: Vec<tree::Key> = page.iter().map(|(_, entry)| tree::Key::Inode(entry.ino)).collect();
        let inodes = finding::tree_records(self.store, self.volume, &inodes).await?;
        let is_full = page.len() == PAGE;
        for ((name, entry), inode) in page.into_iter().zip(inodes) {
            facts.entries += 1;
            facts.subdirectories += u64::from(entry.kind == tree::Kind::Directory);
            let is_right = matches!(&inode, Some(Record::Inode(inode)) if is_first(inode, ino, &name) && inode.kind == entry.kind);
            if !is_right {
                found.extend(check_name(self.store, self.volume, (ino, &name), self.now).await?);
            }
        }
        Ok(is_full)
    }

    /// Climbs from a directory to the root. Directories that hang on each other in a circle are told of once, at the one with the
    /// lowest number.
    async fn climb(&mut self, directory: Inode) -> Result<Option<Finding>> {
        let mut path = BTreeSet::new();
        let mut at = directory.clone();
        loop {
            if self.sure.contains(&at.ino) {
                break;
            }
            if !path.insert(at.ino) {
                let is_told_here = at.ino == directory.ino && path.first() == Some(&directory.ino);
                return Ok(is_told_here.then(|| {
                    let what = "hangs in a circle of directories, away from the root";
                    let lost = Mend::LostAndFound(Box::new(directory.clone()));
                    Finding::new(Place::Inode(self.volume, directory.ino), what).mended_by(lost)
                }));
            }
            match finding::inode(self.store, self.volume, at.parent).await? {
                // A directory that is missing, or has no name, is told of by itself.
                Some(parent) => at = parent,
                None => return Ok(None),
            }
        }
        if self.sure.len() + path.len() > SURE_MAX {
            self.sure = BTreeSet::from([Ino::ROOT]);
        }
        if path.len() < SURE_MAX {
            self.sure.append(&mut path);
        }
        Ok(None)
    }
}

fn is_first(inode: &Inode, parent: Ino, name: &Name) -> bool {
    inode.parent == parent && inode.name.as_ref() == Some(name)
}

async fn leads_to(
    store: &dyn MetaStore,
    volume: VolumeId,
    (parent, name): (Ino, Name),
    ino: Ino,
) -> Result<bool> {
    let entry = finding::tree_record(store, volume, &tree::Key::Entry(parent, name)).await?;
    Ok(matches!(entry, Some(Record::Entry(entry)) if entry.ino == ino))
}

/// Checks one name by itself.
///
/// # Errors
/// `Corrupt` where a record cannot be read; those of the engine.
pub(crate) async fn check_name(
    store: &dyn MetaStore,
    volume: VolumeId,
    (parent, name): (Ino, &Name),
    now: Time,
) -> Result<Option<Finding>> {
    let key = tree::Key::Entry(parent, name.clone());
    let Some(Record::Entry(entry)) = finding::tree_record(store, volume, &key).await? else {
        return Ok(None);
    };
    let link = tree::Key::Link(entry.ino, parent, name.clone());
    let is_link = finding::tree_record(store, volume, &link).await?.is_some();
    let inode = finding::inode(store, volume, entry.ino).await?;
    let mut target = Target { knows: is_link, ..Target::default() };
    match &inode {
        Some(inode) if is_first(inode, parent, name) => target.knows = true,
        Some(Inode { parent, name: Some(name), .. }) => {
            target.has_first = leads_to(store, volume, (*parent, name.clone()), entry.ino).await?;
        }
        Some(_) => {}
        None => target.has_remains = has_remains(store, volume, entry.ino).await?,
    }
    target.inode = inode;
    Ok(names::check(volume, (parent, name), entry, &target, now))
}

/// Whether anything is there that belongs to an inode.
async fn has_remains(store: &dyn MetaStore, volume: VolumeId, ino: Ino) -> Result<bool> {
    for kind in *b"cex" {
        let from = prefix(volume, kind, ino);
        if !store.scan(&from, &keys::end_of(&from), 1).await?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn bad_chunk(place: Place, (ino, number): (Ino, u64), chunk: &Chunk, what: &str) -> Finding {
    let finding = Finding::new(place, format!("chunk {number} {what}"));
    // Which of several extents is the right one, nothing says.
    let is_empty = chunk.0.is_empty();
    if is_empty {
        finding.mended_by(Mend::Counts(vec![(tree::Key::Chunk(ino, number), None)]))
    } else {
        finding
    }
}

/// Compares what a volume says that it uses with what was added up.
pub(crate) fn check_usage(volume: VolumeId, usage: Option<Usage>, sums: Sums) -> Option<Finding> {
    let says = usage.unwrap_or_default();
    let right = Usage { bytes: sums.bytes, inodes: sums.inodes, ..says };
    let what = match usage {
        Some(_) if says == right => return None,
        Some(_) => format!(
            "says {} bytes and {} inodes, {} and {} were counted",
            says.bytes, says.inodes, right.bytes, right.inodes
        ),
        None => "what it uses is not recorded, and its quotas are lost".to_owned(),
    };
    let mend = Mend::Counts(vec![(tree::Key::Usage, Some(Record::Usage(right)))]);
    Some(Finding::new(Place::Volume(volume), what).mended_by(mend))
}
