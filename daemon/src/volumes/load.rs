//! Loads what a rule or a reader wants: from what is pending, else from the cache, else from the engine.

use std::collections::BTreeMap;
use std::ops::Bound;
use tandemfs::id::Ino;
use tandemfs::name::Name;
use tandemfs::tree::{Key, Outcome, Record, Stop, Want, WorkingSet};
use tandemfs::{Error, Result};

use super::volume::{State, Volume};
use crate::meta::keys;

/// How often a rule may stop for something to be loaded before we take it for a mistake of ours. Climbing to the root of a
/// deep tree stops once a directory.
const ROUNDS_MAX: usize = 100_000;
/// How many records are scanned at once where a rule wants all of a range.
const SCAN_PAGE: usize = 4096;

/// A part of a range of records.
pub(super) struct Page {
    /// The records, in the order of their keys.
    pub(super) records: Vec<(Key, Record)>,
    /// Whether the range ends there.
    pub(super) complete: bool,
}

impl Volume {
    /// Runs a rule under the lock, loading what it misses.
    pub(super) async fn run<T>(
        &self,
        state: &State,
        set: &mut WorkingSet,
        mut rule: impl FnMut(&mut WorkingSet) -> Outcome<T>,
    ) -> Result<T> {
        for _ in 0..ROUNDS_MAX {
            match rule(set) {
                Ok(value) => return Ok(value),
                Err(Stop::Refused(error)) => return Err(error),
                Err(Stop::Missing(wants)) => self.load(state, set, wants).await?,
            }
        }
        Err(Error::internal("a rule does not come to an end"))
    }

    /// Loads wants into a working set.
    pub(super) async fn load(&self, state: &State, set: &mut WorkingSet, wants: Vec<Want>) -> Result<()> {
        let mut singles = Vec::new();
        for want in wants {
            match want {
                Want::Record(key) => singles.push(key),
                Want::Lookup { parent, name } => {
                    let key = Key::Entry(parent, name);
                    let entry = self.record(state, &key).await?;
                    if let Some(Record::Entry(entry)) = &entry {
                        singles.push(Key::Inode(entry.ino));
                    }
                    set.load(key, entry);
                }
                Want::Chunks { .. } | Want::Xattrs(_) | Want::Links(_) => {
                    for (key, record) in self.whole_range(state, &want).await? {
                        set.load(key, Some(record));
                    }
                    set.load_range(want);
                }
                Want::Directory { .. } => return Err(Error::internal("a rule wants a page of a directory")),
            }
        }
        let records = self.records(state, &singles).await?;
        for (key, record) in singles.into_iter().zip(records) {
            set.load(key, record);
        }
        Ok(())
    }

    /// One record.
    pub(super) async fn record(&self, state: &State, key: &Key) -> Result<Option<Record>> {
        let mut records = self.records(state, std::slice::from_ref(key)).await?;
        Ok(records.pop().flatten())
    }

    /// Single records, in the order of `keys`.
    pub(super) async fn records(&self, state: &State, keys: &[Key]) -> Result<Vec<Option<Record>>> {
        let mut found: Vec<Option<Record>> = vec![None; keys.len()];
        let mut missing = Vec::new();
        for (place, key) in keys.iter().enumerate() {
            if let Some(record) = state.record(key) {
                found[place].clone_from(record);
            } else if let Some(record) = self.shared.cache.get(state.life, key) {
                found[place] = record;
            } else {
                missing.push(place);
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        let stored: Vec<_> = missing.iter().map(|place| keys::tree(self.id, &keys[*place])).collect();
        let loaded: Vec<Option<Record>> = self.shared.meta.get_many(&stored).await?;
        for (place, record) in missing.into_iter().zip(loaded) {
            self.shared.cache.put(state.life, keys[place].clone(), record.clone());
            found[place] = record;
        }
        Ok(found)
    }

    /// All records of a range of chunks, attributes or links.
    async fn whole_range(&self, state: &State, want: &Want) -> Result<Vec<(Key, Record)>> {
        let Want::Chunks { ino, from, to } = want else {
            let prefix = match want {
                Want::Xattrs(ino) => keys::xattr_prefix(self.id, *ino),
                Want::Links(ino) => keys::link_prefix(self.id, *ino),
                _ => return Err(Error::internal("not a range")),
            };
            let mut all = Vec::new();
            let mut from = prefix.clone();
            loop {
                let page = self.scan(state, want, &from, &keys::end_of(&prefix), SCAN_PAGE).await?;
                all.extend(page.records);
                match (page.complete, all.last()) {
                    (false, Some((last, _))) => from = after(&keys::tree(self.id, last)),
                    _ => return Ok(all),
                }
            }
        };
        let mut all = Vec::new();
        let mut next = *from;
        loop {
            let page = self.chunks(state, *ino, next, *to, SCAN_PAGE).await?;
            all.extend(page.records);
            match (page.complete, all.last()) {
                (false, Some((Key::Chunk(_, last), _))) => next = last + 1,
                _ => return Ok(all),
            }
        }
    }

    /// Chunks `from..to` of a file, at most `limit` of those that are there.
    pub(super) async fn chunks(
        &self,
        state: &State,
        ino: Ino,
        from: u64,
        to: u64,
        limit: usize,
    ) -> Result<Page> {
        if to <= from {
            return Ok(Page { records: Vec::new(), complete: true });
        }
        let want = Want::Chunks { ino, from, to };
        if to - from == 1 {
            // Most writes touch one chunk, and the cache may know it.
            let key = Key::Chunk(ino, from);
            let record = self.record(state, &key).await?;
            return Ok(Page {
                records: record.map(|record| (key, record)).into_iter().collect(),
                complete: true,
            });
        }
        let (first, last) =
            (keys::tree(self.id, &Key::Chunk(ino, from)), keys::tree(self.id, &Key::Chunk(ino, to)));
        self.scan(state, &want, &first, &last, limit).await
    }

    /// Entries of a directory from the name `from` on (its bytes need not be a name).
    pub(super) async fn entries(&self, state: &State, ino: Ino, from: &[u8], limit: usize) -> Result<Page> {
        let prefix = keys::entry_prefix(self.id, ino);
        let mut first = prefix.clone();
        first.extend_from_slice(from);
        let want = Want::Directory { ino, after: None, limit: 0 };
        self.scan(state, &want, &first, &keys::end_of(&prefix), limit).await
    }

    /// The first `limit` orphans from one inode on.
    pub(super) async fn stored_orphans(&self, from: Ino, limit: usize) -> Result<Vec<Ino>> {
        let prefix = keys::orphan_prefix(self.id);
        let first = keys::tree(self.id, &Key::Orphan(from));
        let found = self.shared.meta.scan::<Record>(&first, &keys::end_of(&prefix), limit).await?;
        found
            .iter()
            .map(|(key, _)| Ok(Ino(number(&mut key.get(prefix.len()..).unwrap_or_default())?)))
            .collect()
    }

    /// Scans the engine and lays over it what is pending.
    async fn scan(&self, state: &State, want: &Want, from: &[u8], to: &[u8], limit: usize) -> Result<Page> {
        let stored: Vec<(Vec<u8>, Record)> = self.shared.meta.scan(from, to, limit).await?;
        let complete = stored.len() < limit;
        let last_stored = stored.last().map(|(key, _)| key.clone());
        let mut records = BTreeMap::new();
        for (key, record) in stored {
            records.insert(self.parse(want, &key)?, record);
        }
        let bound = match records.last_key_value() {
            Some((last, _)) if !complete => Bound::Included(last.clone()),
            _ => Bound::Unbounded,
        };
        for (key, record) in state.records_in((Bound::Included(lowest(want)), bound)) {
            if !in_range(want, key) {
                break;
            }
            let stored = keys::tree(self.id, key);
            if stored.as_slice() < from || stored.as_slice() >= to {
                continue;
            }
            match record {
                Some(record) => drop(records.insert(key.clone(), record.clone())),
                None => drop(records.remove(key)),
            }
        }
        if complete && records.len() <= limit {
            return Ok(Page { records: records.into_iter().collect(), complete: true });
        }
        if let (true, Some(last)) = (records.is_empty(), last_stored) {
            // All that was found is being removed.
            return Box::pin(self.scan(state, want, &after(&last), to, limit)).await;
        }
        Ok(Page { records: records.into_iter().take(limit).collect(), complete: false })
    }

    /// The key of a record that a scan found.
    fn parse(&self, want: &Want, key: &[u8]) -> Result<Key> {
        let corrupt = || Error::corrupt(format!("metadata key {}", hex::encode(key)));
        let mut rest = key.get(keys::tree_prefix(self.id).len() + 1..).ok_or_else(corrupt)?;
        let ino = Ino(number(&mut rest)?);
        Ok(match want {
            Want::Directory { .. } => Key::Entry(ino, Name::new(rest).map_err(|_| corrupt())?),
            Want::Chunks { .. } => Key::Chunk(ino, number(&mut rest)?),
            Want::Xattrs(_) => Key::Xattr(ino, rest.to_vec()),
            Want::Links(_) => {
                let parent = Ino(number(&mut rest)?);
                Key::Link(ino, parent, Name::new(rest).map_err(|_| corrupt())?)
            }
            Want::Record(_) | Want::Lookup { .. } => return Err(Error::internal("not a range")),
        })
    }
}

/// Takes a number off the beginning of a key's rest.
fn number(rest: &mut &[u8]) -> Result<u64> {
    let (first, after) =
        rest.split_first_chunk::<8>().ok_or_else(|| Error::corrupt("a metadata key is too short"))?;
    *rest = after;
    Ok(u64::from_be_bytes(*first))
}

/// The first key after `key`.
pub(crate) fn after(key: &[u8]) -> Vec<u8> {
    let mut next = key.to_vec();
    next.push(0);
    next
}

/// A key that is not after any that a range covers.
fn lowest(want: &Want) -> Key {
    match want {
        Want::Directory { ino, .. } => smallest_name().map_or(Key::Usage, |name| Key::Entry(*ino, name)),
        Want::Chunks { ino, from, .. } => Key::Chunk(*ino, *from),
        Want::Xattrs(ino) => Key::Xattr(*ino, Vec::new()),
        Want::Links(ino) => smallest_name().map_or(Key::Usage, |name| Key::Link(*ino, Ino(0), name)),
        Want::Record(key) => key.clone(),
        Want::Lookup { parent, name } => Key::Entry(*parent, name.clone()),
    }
}

fn smallest_name() -> Option<Name> {
    Name::new([1]).ok()
}

fn in_range(want: &Want, key: &Key) -> bool {
    match (want, key) {
        (Want::Directory { ino, .. }, Key::Entry(directory, _)) => ino == directory,
        _ => want.covers(key),
    }
}
