//! Where findings go: each is told of, and mended if that is asked for and known.
//!
//! What is mended was found by reading page after page, so a record that has been changed since must not be changed again: that waits
//! for the next round. Rounds follow until one finds nothing that can be mended; so what follows from other records, such as the count of
//! a directory that got or lost a name, is put right by the round after.

use std::collections::{BTreeMap, BTreeSet};
use tandemfs::Result;
use tandemfs::clock::Time;
use tandemfs::id::{Ino, VolumeId};
use tandemfs::name::Name;
use tandemfs::tree::{self, Entry, Inode, Kind, Record};

use super::finding::{self, Change, Finding, Mend, Place};
use super::inode::skeleton;
use super::report::Report;
use crate::meta::record;
use crate::meta::{self, Key, MetaStore, Write, keys};

/// Writes of one commit, and their bytes.
const WRITES_MAX: usize = 512;
const BYTES_MAX: usize = 4 << 20;
/// Records that one round changes.
const TOUCHED_MAX: usize = 1 << 16;
/// Names that are tried for what was found.
const NAMES_MAX: u32 = 100;
/// Where that is put.
const LOST_AND_FOUND: &str = "lost+found";

/// See the module.
#[derive(Debug)]
pub(crate) struct Desk<'a> {
    store: &'a dyn MetaStore,
    repair: bool,
    now: Time,
    staged: Vec<Write>,
    bytes: usize,
    touched: BTreeSet<Key>,
    lost_and_found: BTreeMap<VolumeId, Ino>,
    /// What has been told.
    pub(crate) report: Report,
    /// Whether the round has changed anything.
    pub(crate) has_mended: bool,
}

/// What can be done about a finding.
enum Remedy {
    Writes(Vec<Write>),
    /// It waits for something else to be mended.
    Later,
    Nothing,
}

impl<'a> Desk<'a> {
    /// For one round; what earlier ones have mended is in the report.
    pub(crate) fn new(store: &'a dyn MetaStore, repair: bool, now: Time, report: Report) -> Self {
        let report = Report { left: 0, left_lines: Vec::new(), ..report };
        Self {
            store,
            repair,
            now,
            staged: Vec::new(),
            bytes: 0,
            touched: BTreeSet::new(),
            lost_and_found: BTreeMap::new(),
            report,
            has_mended: false,
        }
    }

    /// Takes findings.
    ///
    /// # Errors
    /// Those of the engine.
    pub(crate) async fn take(&mut self, findings: impl IntoIterator<Item = Finding>) -> Result<()> {
        for finding in findings {
            let remedy = if self.repair { self.remedy(&finding).await? } else { Remedy::Nothing };
            match remedy {
                Remedy::Nothing => self.report.leave(finding.text(self.store).await),
                Remedy::Later => self.has_mended = true,
                Remedy::Writes(writes) => {
                    let is_touched = writes.iter().any(|write| self.touched.contains(&write.key));
                    self.has_mended = true;
                    if !is_touched && self.touched.len() < TOUCHED_MAX {
                        self.report.mend(finding.text(self.store).await);
                        self.stage(writes).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn stage(&mut self, writes: Vec<Write>) -> Result<()> {
        self.touched.extend(writes.iter().map(|write| write.key.clone()));
        let size = |write: &Write| write.key.len() + write.value.as_ref().map_or(0, Vec::len);
        self.bytes += writes.iter().map(size).sum::<usize>();
        self.staged.extend(writes);
        if self.staged.len() >= WRITES_MAX || self.bytes >= BYTES_MAX { self.flush().await } else { Ok(()) }
    }

    /// Commits what is staged.
    ///
    /// # Errors
    /// Those of the engine.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        self.bytes = 0;
        let writes = std::mem::take(&mut self.staged);
        if writes.is_empty() { Ok(()) } else { self.store.commit(Vec::new(), writes).await }
    }

    async fn remedy(&mut self, finding: &Finding) -> Result<Remedy> {
        let volume = match &finding.place {
            Place::Volume(volume)
            | Place::Inode(volume, _)
            | Place::Name(volume, ..)
            | Place::Block(volume, ..) => *volume,
            Place::Row(_) => VolumeId(0),
        };
        Ok(match &finding.mend {
            Mend::No => Remedy::Nothing,
            Mend::Counts(changes) | Mend::Tree(changes) => Remedy::Writes(tree_writes(volume, changes)?),
            Mend::Copies(writes) | Mend::Rows(writes) => Remedy::Writes(writes.clone()),
            Mend::References(references, also) => {
                let Place::Block(volume, id, _) = &finding.place else { return Ok(Remedy::Nothing) };
                let mut writes = also.clone();
                let key = keys::references(*volume, id);
                writes.push(match references {
                    Some(references) => meta::put(key, references)?,
                    None => meta::remove(key),
                });
                Remedy::Writes(writes)
            }
            // A name that leads to it was found, and comes first.
            Mend::LostAndFound(inode)
                if self.touched.contains(&keys::tree(volume, &tree::Key::Inode(inode.ino))) =>
            {
                Remedy::Later
            }
            Mend::LostAndFound(inode) => match self.lost_and_found(volume).await? {
                Some(parent) => Remedy::Writes(self.found(volume, parent, inode).await?),
                None => Remedy::Later,
            },
        })
    }

    /// Gives an inode a name in `lost+found`.
    async fn found(&self, volume: VolumeId, parent: Ino, inode: &Inode) -> Result<Vec<Write>> {
        let mut changes: Vec<Change> = Vec::new();
        if let Some(name) = inode.name.clone() {
            // A name by which it cannot be reached.
            let key = tree::Key::Entry(inode.parent, name);
            if let Some(Record::Entry(entry)) = finding::tree_record(self.store, volume, &key).await?
                && entry.ino == inode.ino
            {
                changes.push((key, None));
            }
        }
        let name = self.free_name(volume, parent, &format!("#{}", inode.ino)).await?;
        let entry = Record::Entry(Entry { ino: inode.ino, kind: inode.kind });
        changes.push((tree::Key::Entry(parent, name.clone()), Some(entry)));
        let inode = Inode { parent, name: Some(name), ..inode.clone() };
        changes.push((tree::Key::Inode(inode.ino), Some(Record::Inode(Box::new(inode)))));
        tree_writes(volume, &changes)
    }

    async fn free_name(&self, volume: VolumeId, parent: Ino, wanted: &str) -> Result<Name> {
        for number in 1..NAMES_MAX {
            let name = if number == 1 { wanted.to_owned() } else { format!("{wanted}-{number}") };
            let name = Name::new(name)?;
            let key = tree::Key::Entry(parent, name.clone());
            let is_taken = self.touched.contains(&keys::tree(volume, &key))
                || finding::tree_record(self.store, volume, &key).await?.is_some();
            if !is_taken {
                return Ok(name);
            }
        }
        Err(tandemfs::Error::already_exists(wanted.to_owned()))
    }

    /// The directory for what was found, which is made if there is none; `None` while there is no root.
    async fn lost_and_found(&mut self, volume: VolumeId) -> Result<Option<Ino>> {
        if let Some(ino) = self.lost_and_found.get(&volume) {
            return Ok(Some(*ino));
        }
        self.flush().await?;
        let root = finding::inode(self.store, volume, Ino::ROOT).await?;
        let Some(mut root) = root.filter(Inode::is_directory) else { return Ok(None) };
        let there = tree::Key::Entry(Ino::ROOT, Name::new(LOST_AND_FOUND)?);
        if let Some(Record::Entry(entry)) = finding::tree_record(self.store, volume, &there).await?
            && let Some(inode) = finding::inode(self.store, volume, entry.ino).await?
            && inode.is_directory()
            && inode.parent == Ino::ROOT
            && inode.nlink > 0
        {
            self.lost_and_found.insert(volume, entry.ino);
            return Ok(Some(entry.ino));
        }
        let name = self.free_name(volume, Ino::ROOT, LOST_AND_FOUND).await?;
        let counter = inode_counter(volume);
        let value = self.store.get_many(std::slice::from_ref(&counter)).await?.pop().flatten();
        let next: u64 = value.map_or(Ok(1), |value| record::decode(&counter, &value))?;
        let ino = Ino(next + Ino::ROOT.0);
        if finding::inode(self.store, volume, ino).await?.is_some() {
            // The counter is wrong, and is put right first.
            return Ok(None);
        }
        let inode =
            Inode { parent: Ino::ROOT, name: Some(name.clone()), ..skeleton(ino, Kind::Directory, self.now) };
        root.entries += 1;
        root.size = root.entries;
        root.nlink = root.nlink.saturating_add(1);
        let mut changes = vec![
            (tree::Key::Entry(Ino::ROOT, name), Some(Record::Entry(Entry { ino, kind: inode.kind }))),
            (tree::Key::Inode(ino), Some(Record::Inode(Box::new(inode)))),
            (tree::Key::Inode(Ino::ROOT), Some(Record::Inode(Box::new(root)))),
        ];
        if let Some(Record::Usage(mut usage)) =
            finding::tree_record(self.store, volume, &tree::Key::Usage).await?
        {
            usage.inodes += 1;
            changes.push((tree::Key::Usage, Some(Record::Usage(usage))));
        }
        let mut writes = tree_writes(volume, &changes)?;
        writes.push(meta::put(counter, &(next + 1))?);
        self.stage(writes).await?;
        self.flush().await?;
        self.lost_and_found.insert(volume, ino);
        Ok(Some(ino))
    }
}

/// The key of the number that a volume's next inode is made from.
pub(crate) fn inode_counter(volume: VolumeId) -> Key {
    keys::counter(&format!("inode:{volume}"))
}

fn tree_writes(volume: VolumeId, changes: &[Change]) -> Result<Vec<Write>> {
    let write = |(key, record): &Change| {
        let key = keys::tree(volume, key);
        match record {
            Some(record) => meta::put(key, record),
            None => Ok(meta::remove(key)),
        }
    };
    changes.iter().map(write).collect()
}
