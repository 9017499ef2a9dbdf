//! What was done here and is not committed yet. It lies over what is cached, and over what the daemon answers.
//!
//! A change that was committed counts for a while yet: a request that was sent before may be answered with what was there before it, and
//! then it lies over that answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;

use tandemfs::api::fs::Answer;
use tandemfs::id::Ino;
use tandemfs::name::Name;
use tandemfs::tree::{Key, Record, Want};

use crate::fs::cache::Known;

/// The records that were changed here, by their keys.
#[derive(Debug, Default)]
pub(in crate::fs) struct Pending {
    records: BTreeMap<Key, Change>,
    /// Keys whose last change was committed, with its number; and the last request that had been sent by then.
    committed: VecDeque<(u64, Vec<(Key, u64)>)>,
}

#[derive(Debug)]
struct Change {
    /// The number of the change.
    number: u64,
    record: Known,
    /// In which version of the volume it is.
    version: Option<u64>,
}

impl Pending {
    /// A record as it was left here, if that is not committed.
    pub(in crate::fs) fn get(&self, key: &Key) -> Option<&Known> {
        self.records.get(key).filter(|change| change.version.is_none()).map(|change| &change.record)
    }

    /// The records of an inode's links that were made here and are not committed.
    pub(in crate::fs) fn links(&self, ino: Ino) -> Vec<(Key, Known)> {
        let Some(all) = links_of(ino) else { return Vec::new() };
        let records = self.records.range(all).filter(|(_, change)| change.version.is_none());
        let links = records.filter(|(_, change)| change.record.is_some());
        links.map(|(key, change)| (key.clone(), change.record.clone())).collect()
    }

    /// The number of the last change of a record that is not committed.
    pub(in crate::fs) fn number(&self, key: &Key) -> Option<u64> {
        self.records.get(key).filter(|change| change.version.is_none()).map(|change| change.number)
    }

    /// Change `number` leaves a record so.
    pub(in crate::fs) fn put(&mut self, number: u64, key: Key, record: Known) {
        self.records.insert(key, Change { number, record, version: None });
    }

    /// All changes of some keys up to one are committed, in a version of the volume. Answers the records that no later change has
    /// changed again. `asked` is the number of the last request that was sent.
    pub(in crate::fs) fn commit(
        &mut self,
        number: u64,
        version: u64,
        keys: Vec<Key>,
        asked: u64,
    ) -> Vec<(Key, Known)> {
        let mut done = Vec::new();
        let mut marks = Vec::new();
        for key in keys {
            if let Some(change) = self.records.get_mut(&key)
                && change.number <= number
                && change.version.is_none()
            {
                change.version = Some(version);
                done.push((key.clone(), change.record.clone()));
                marks.push((key, change.number));
            }
        }
        self.committed.push_back((asked, marks));
        done
    }

    /// Drops what no request can be answered without any more: all that were sent up to `asked` have been.
    pub(in crate::fs) fn settle(&mut self, asked: u64) {
        while self.committed.front().is_some_and(|(until, _)| *until <= asked) {
            let marks = self.committed.pop_front().map(|(_, marks)| marks).unwrap_or_default();
            for (key, number) in marks {
                if self.records.get(&key).is_some_and(|change| change.number == number) {
                    self.records.remove(&key);
                }
            }
        }
    }

    /// Forgets what was committed: another run of the daemon counts its versions anew.
    pub(in crate::fs) fn forget_committed(&mut self) {
        self.committed.clear();
        self.records.retain(|_, change| change.version.is_none());
    }

    /// Forgets everything.
    pub(in crate::fs) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Lays what was done here over an answer that shows the volume as it was in a version.
    pub(in crate::fs) fn lay_over(&self, version: u64, want: &Want, answer: &mut Answer) {
        if self.records.is_empty() {
            return;
        }
        match want {
            Want::Record(_) => {}
            Want::Lookup { parent, name } => return self.lay_over_name(version, (*parent, name), answer),
            Want::Directory { ino, .. } => return self.lay_over_names(version, (*ino, want), answer),
            Want::Chunks { .. } | Want::Xattrs(_) | Want::Links(_) => self.add(version, want, answer),
        }
        for (key, record) in &mut answer.records {
            if let Some(over) = self.over(version, key) {
                *record = over.as_deref().cloned();
            }
        }
        if !matches!(want, Want::Record(_)) {
            answer.records.retain(|(_, record)| record.is_some());
        }
    }

    /// What lies over a record of a version.
    fn over(&self, version: u64, key: &Key) -> Option<&Known> {
        let change = self.records.get(key)?;
        change.version.is_none_or(|committed| committed > version).then_some(&change.record)
    }

    /// What lies over the records of a version between two keys.
    fn range(&self, version: u64, keys: RangeInclusive<Key>) -> impl Iterator<Item = (&Key, &Known)> {
        let changes = self.records.range(keys);
        changes
            .filter(move |(_, change)| change.version.is_none_or(|committed| committed > version))
            .map(|(key, change)| (key, &change.record))
    }

    fn lay_over_name(&self, version: u64, (parent, name): (Ino, &Name), answer: &mut Answer) {
        let key = Key::Entry(parent, name.clone());
        let stored = answer.records.iter().find_map(|(of, record)| (*of == key).then(|| record.clone()));
        let entry = self.over(version, &key).map(|over| over.as_deref().cloned()).or(stored).flatten();
        let inode = match &entry {
            Some(Record::Entry(entry)) => Some(Key::Inode(entry.ino)),
            _ => None,
        };
        let inode = inode.map(|of| (of.clone(), self.record(version, &of, &answer.records)));
        answer.records = std::iter::once((key, entry)).chain(inode).collect();
    }

    /// A record as it is here, or as an answer has it.
    fn record(&self, version: u64, key: &Key, stored: &[(Key, Option<Record>)]) -> Option<Record> {
        match self.over(version, key) {
            Some(over) => over.as_deref().cloned(),
            None => stored.iter().find_map(|(of, record)| (of == key).then(|| record.clone())).flatten(),
        }
    }

    /// A page of a directory: names that have come since lie in it where they belong, as far as it reaches.
    fn lay_over_names(&self, version: u64, (ino, want): (Ino, &Want), answer: &mut Answer) {
        let mut names: BTreeMap<Name, Option<Record>> = BTreeMap::new();
        let mut inodes: BTreeMap<Ino, Option<Record>> = BTreeMap::new();
        for (key, record) in std::mem::take(&mut answer.records) {
            match key {
                Key::Entry(_, name) => drop(names.insert(name, record)),
                Key::Inode(ino) => drop(inodes.insert(ino, record)),
                _ => {}
            }
        }
        let Want::Directory { after, .. } = want else { return };
        let last = names.last_key_value().map(|(name, _)| name.clone());
        let reaches = |name: &Name| {
            after.as_ref().is_none_or(|after| name > after)
                && (answer.complete || last.as_ref().is_some_and(|last| name <= last))
        };
        let Some(all) = names_of(ino) else { return };
        for (key, record) in self.range(version, all) {
            if let Key::Entry(_, name) = key
                && reaches(name)
            {
                names.insert(name.clone(), record.as_deref().cloned());
            }
        }
        for (name, record) in names {
            let Some(Record::Entry(entry)) = record else { continue };
            let key = Key::Inode(entry.ino);
            let inode = match self.over(version, &key) {
                Some(over) => over.as_deref().cloned(),
                None => inodes.get(&entry.ino).cloned().flatten(),
            };
            answer.records.push((Key::Entry(ino, name), Some(Record::Entry(entry))));
            answer.records.push((key, inode));
        }
    }

    /// Adds what has come since to a range.
    fn add(&self, version: u64, want: &Want, answer: &mut Answer) {
        let (from, to) = match want {
            Want::Chunks { ino, from, to } => {
                // What comes after the last one of an answer that is not whole is asked for next.
                let last = answer.records.last().map(|(key, _)| key.clone());
                let end = Key::Chunk(*ino, to.saturating_sub(1));
                (Key::Chunk(*ino, *from), if answer.complete { Some(end) } else { last })
            }
            Want::Xattrs(ino) => (Key::Xattr(*ino, Vec::new()), Some(Key::Xattr(*ino, vec![0xff; 256]))),
            Want::Links(ino) => {
                let Some((first, last)) = links_of(*ino).map(RangeInclusive::into_inner) else { return };
                (first, Some(last))
            }
            _ => return,
        };
        let Some(to) = to.filter(|to| *to >= from) else { return };
        let there: BTreeSet<Key> = answer.records.iter().map(|(key, _)| key.clone()).collect();
        let more = self
            .range(version, from..=to)
            .filter(|(key, record)| record.is_some() && want.covers(key) && !there.contains(key));
        let more: Vec<_> = more.map(|(key, record)| (key.clone(), record.as_deref().cloned())).collect();
        if !more.is_empty() {
            answer.records.extend(more);
            answer.records.sort_by(|(one, _), (other, _)| one.cmp(other));
        }
    }
}

/// The keys of all names of a directory.
fn names_of(ino: Ino) -> Option<RangeInclusive<Key>> {
    let (first, last) = (Name::new([1]).ok()?, Name::new([0xff; 255]).ok()?);
    Some(Key::Entry(ino, first)..=Key::Entry(ino, last))
}

/// The keys of all links of an inode.
fn links_of(ino: Ino) -> Option<RangeInclusive<Key>> {
    let (first, last) = (Name::new([1]).ok()?, Name::new([0xff; 255]).ok()?);
    Some(Key::Link(ino, Ino(0), first)..=Key::Link(ino, Ino(u64::MAX), last))
}

/// A record that is known, as an owned one.
pub(in crate::fs) fn owned(known: &Known) -> Option<Record> {
    known.as_ref().map(|record: &Arc<Record>| record.as_ref().clone())
}
