//! The records that a rule sees: some loaded, some changed, the others not known yet.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use super::ranges::Ranges;
use super::record::{Chunk, Entry, Inode, Key, Record, Usage, Want};
use crate::Error;
use crate::id::{BlockId, Ino};
use crate::name::Name;

/// Why a rule stopped.
#[derive(Debug)]
pub enum Stop {
    /// It needs records that are not loaded: load them and run it again. A rule that stops so has changed nothing.
    Missing(Vec<Want>),
    /// It refuses.
    Refused(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// What a rule returns.
pub type Outcome<T> = Result<T, Stop>;

/// Two things that a rule needs, as if it asked for one after the other, but what both of them miss is asked for
/// at once.
///
/// # Errors
/// The first one's, or the second one's if there is none; the wants of both if both miss records.
pub(super) fn both<A, B>(first: Outcome<A>, second: Outcome<B>) -> Outcome<(A, B)> {
    match (first, second) {
        (Ok(first), Ok(second)) => Ok((first, second)),
        (Err(Stop::Missing(mut wants)), Err(Stop::Missing(more))) => {
            wants.extend(more);
            Err(Stop::Missing(wants))
        }
        (Err(stop), _) | (Ok(_), Err(stop)) => Err(stop),
    }
}

/// What a batch does to a volume: the records that it writes, and how many references to each block it adds or
/// takes away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The new records; `None` is a removal.
    pub records: BTreeMap<Key, Option<Record>>,
    /// References to blocks: each extent is one.
    pub references: BTreeMap<BlockId, i64>,
}

/// Records under change.
///
/// Rules read through it and write to it. What is not loaded stops the rule with [`Stop::Missing`]; the driver
/// loads it and runs the rule again, so rules are written as if all records were at hand, and the same ones run
/// on the daemon's engine and on the mount's cache. A rule's writes are undone when it stops or refuses.
#[derive(Debug, Default)]
pub struct WorkingSet {
    loaded: BTreeMap<Key, Option<Record>>,
    ranges: Ranges,
    changed: BTreeMap<Key, Option<Record>>,
    references: BTreeMap<BlockId, i64>,
    undo: Vec<Undo>,
}

#[derive(Debug)]
enum Undo {
    Record(Key, Option<Option<Record>>),
    Reference(BlockId, i64),
}

impl WorkingSet {
    /// An empty one: nothing is known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells it a record as the store has it; `None`: the store has none.
    pub fn load(&mut self, key: Key, record: Option<Record>) {
        self.loaded.insert(key, record);
    }

    /// What it was told, of the records that a rule has asked for and of others.
    pub fn loaded(&self) -> &BTreeMap<Key, Option<Record>> {
        &self.loaded
    }

    /// Tells it that all records that `want` (chunks, attributes or links) covers have been loaded.
    pub fn load_range(&mut self, want: Want) {
        self.ranges.insert(&want);
    }

    /// Runs one rule; undoes its writes unless it succeeds. All writes belong into one.
    ///
    /// # Errors
    /// Those of the rule.
    pub fn attempt<T>(&mut self, rule: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<T> {
        let mark = self.undo.len();
        let result = rule(self);
        if result.is_ok() {
            // Inside of another attempt they are kept: that one may fail yet.
            if mark == 0 {
                self.undo.clear();
            }
            return result;
        }
        for undo in self.undo.drain(mark..).rev() {
            match undo {
                Undo::Record(key, Some(before)) => drop(self.changed.insert(key, before)),
                Undo::Record(key, None) => drop(self.changed.remove(&key)),
                Undo::Reference(block, by) => *self.references.entry(block).or_default() -= by,
            }
        }
        result
    }

    /// The records that have been changed so far; `None` is a removal.
    pub fn changed(&self) -> &BTreeMap<Key, Option<Record>> {
        &self.changed
    }

    /// What has been changed since it was made.
    pub fn into_changes(self) -> Changes {
        let mut references = self.references;
        references.retain(|_, by| *by != 0);
        Changes { records: self.changed, references }
    }

    /// A record as it stands, changes included.
    ///
    /// # Errors
    /// `Missing` when it is not loaded.
    pub fn get(&self, key: &Key) -> Outcome<Option<&Record>> {
        if let Some(record) = self.changed.get(key).or_else(|| self.loaded.get(key)) {
            return Ok(record.as_ref());
        }
        if self.ranges.covers(key) {
            return Ok(None);
        }
        Err(Stop::Missing(vec![Want::Record(key.clone())]))
    }

    /// Changes a record.
    pub fn put(&mut self, key: Key, record: Option<Record>) {
        let before = self.changed.insert(key.clone(), record);
        self.undo.push(Undo::Record(key, before));
    }

    /// Counts references to a block.
    pub fn refer(&mut self, block: BlockId, by: i64) {
        *self.references.entry(block).or_default() += by;
        self.undo.push(Undo::Reference(block, by));
    }

    /// An inode.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn inode(&self, ino: Ino) -> Outcome<Inode> {
        self.inode_ref(ino).cloned()
    }

    /// An inode that is only looked at.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn inode_ref(&self, ino: Ino) -> Outcome<&Inode> {
        match self.get(&Key::Inode(ino))? {
            Some(Record::Inode(inode)) => Ok(inode),
            None => Err(Error::not_found(format!("inode {ino}")).into()),
            Some(_) => Err(wrong_type(&Key::Inode(ino)).into()),
        }
    }

    /// An inode that must be a directory with links.
    ///
    /// # Errors
    /// `NotFound`, also for a directory that was removed; `NotADirectory`.
    pub fn directory(&self, ino: Ino) -> Outcome<&Inode> {
        let inode = self.inode_ref(ino)?;
        if !inode.is_directory() {
            return Err(Error::not_a_directory(format!("inode {ino}")).into());
        }
        if inode.nlink == 0 {
            return Err(Error::not_found(format!("removed directory {ino}")).into());
        }
        Ok(inode)
    }

    /// Changes an inode.
    pub fn put_inode(&mut self, inode: Inode) {
        self.put(Key::Inode(inode.ino), Some(Record::Inode(Box::new(inode))));
    }

    /// A directory's entry. A miss asks for the inode that it leads to as well.
    ///
    /// # Errors
    /// Only `Missing`.
    pub fn entry(&self, parent: Ino, name: &Name) -> Outcome<Option<Entry>> {
        let key = Key::Entry(parent, name.clone());
        match self.get(&key) {
            Ok(Some(Record::Entry(entry))) => Ok(Some(*entry)),
            Ok(None) => Ok(None),
            Ok(Some(_)) => Err(wrong_type(&key).into()),
            Err(_) => Err(Stop::Missing(vec![Want::Lookup { parent, name: name.clone() }])),
        }
    }

    /// Changes a directory's entry.
    pub fn put_entry(&mut self, parent: Ino, name: Name, entry: Option<Entry>) {
        self.put(Key::Entry(parent, name), entry.map(Record::Entry));
    }

    /// What the volume uses.
    ///
    /// # Errors
    /// Only `Missing`; a volume without the record uses nothing and has no limit.
    pub fn usage(&self) -> Outcome<Usage> {
        match self.get(&Key::Usage)? {
            Some(Record::Usage(usage)) => Ok(*usage),
            None => Ok(Usage::default()),
            Some(_) => Err(wrong_type(&Key::Usage).into()),
        }
    }

    /// Changes what the volume uses.
    pub fn put_usage(&mut self, usage: Usage) {
        self.put(Key::Usage, Some(Record::Usage(usage)));
    }

    /// A chunk of a file; empty where there is none.
    ///
    /// # Errors
    /// Only `Missing`.
    pub fn chunk(&self, ino: Ino, number: u64) -> Outcome<Chunk> {
        let key = Key::Chunk(ino, number);
        match self.get(&key)? {
            Some(Record::Chunk(chunk)) => Ok(chunk.clone()),
            None => Ok(Chunk::default()),
            Some(_) => Err(wrong_type(&key).into()),
        }
    }

    /// Changes a chunk; an empty one is removed.
    pub fn put_chunk(&mut self, ino: Ino, number: u64, chunk: Chunk) {
        self.put(Key::Chunk(ino, number), (!chunk.0.is_empty()).then_some(Record::Chunk(chunk)));
    }

    /// The keys of all records that are there in a range of chunks, attributes or links, in order.
    ///
    /// # Errors
    /// `Missing` when the range is not loaded.
    pub fn range(&self, want: &Want) -> Outcome<Vec<Key>> {
        let (loaded, changed) = self.in_range(want)?;
        let mut keys: BTreeSet<&Key> = loaded.collect();
        for (key, record) in changed {
            if record.is_some() {
                keys.insert(key);
            } else {
                keys.remove(key);
            }
        }
        Ok(keys.into_iter().cloned().collect())
    }

    /// The first key of such a range.
    ///
    /// # Errors
    /// `Missing` when the range is not loaded.
    pub fn first(&self, want: &Want) -> Outcome<Option<Key>> {
        let (mut loaded, mut changed) = self.in_range(want)?;
        let loaded = loaded.find(|key| !self.changed.contains_key(key));
        let changed = changed.find_map(|(key, record)| record.as_ref().map(|_| key));
        Ok(loaded.into_iter().chain(changed).min().cloned())
    }

    /// The keys of the records that were loaded in a range, and what was changed in it.
    fn in_range<'a>(
        &'a self,
        want: &'a Want,
    ) -> Outcome<(impl Iterator<Item = &'a Key>, impl Iterator<Item = (&'a Key, &'a Option<Record>)>)> {
        if !self.ranges.contains(want) {
            return Err(Stop::Missing(vec![want.clone()]));
        }
        let bounds = bounds(want).ok_or_else(|| Error::internal(format!("{want:?} is not a range")))?;
        let loaded = self.loaded.range(bounds.clone()).filter(|(_, record)| record.is_some());
        let changed = self.changed.range(bounds);
        Ok((
            loaded.map(|(key, _)| key).filter(|key| want.covers(key)),
            changed.filter(|(key, _)| want.covers(key)),
        ))
    }
}

fn wrong_type(key: &Key) -> Error {
    Error::corrupt(format!("the record under {key:?} is of another type"))
}

/// Bounds in the order of keys that hold all that `want` covers, and perhaps more.
fn bounds(want: &Want) -> Option<RangeInclusive<Key>> {
    // 255 bytes of 0xff are the last name that there can be.
    let last_name = || Name::new([0xff; 255]).ok();
    let first_name = || Name::new([1]).ok();
    Some(match want {
        Want::Chunks { ino, from, to } => Key::Chunk(*ino, *from)..=Key::Chunk(*ino, *to.max(from)),
        Want::Xattrs(ino) => Key::Xattr(*ino, Vec::new())..=Key::Xattr(*ino, vec![0xff; 256]),
        Want::Links(ino) => {
            Key::Link(*ino, Ino(0), first_name()?)..=Key::Link(*ino, Ino(u64::MAX), last_name()?)
        }
        _ => return None,
    })
}
