//! A client's cache of records, kept by the rules that a mount follows.

use std::collections::{BTreeMap, BTreeSet};
use tandemfs::id::Ino;
use tandemfs::tree::{Key, Record};
use tokio::time::Instant;

/// The cache.
#[derive(Debug, Default)]
pub struct Cache {
    /// Records with the version in which they were read.
    records: BTreeMap<Key, (u64, Option<Record>)>,
    /// For each request under way: what was dropped since it began.
    under_way: BTreeMap<u64, Dropped>,
    next: u64,
    /// Until when it may be used.
    pub lease: Option<Instant>,
}

#[derive(Debug, Default)]
struct Dropped {
    keys: BTreeSet<Key>,
    files: BTreeSet<Ino>,
    all: bool,
}

impl Cache {
    /// Whether the lease holds.
    pub fn is_live(&self) -> bool {
        self.lease.is_some_and(|until| Instant::now() < until)
    }

    /// A record, if it may be used.
    pub fn get(&self, key: &Key) -> Option<Option<Record>> {
        if !self.is_live() {
            return None;
        }
        self.records.get(key).map(|(_, record)| record.clone())
    }

    /// The version of a record that may be used.
    pub fn version_of(&self, key: &Key) -> Option<u64> {
        self.records.get(key).filter(|_| self.is_live()).map(|(version, _)| *version)
    }

    /// A request begins; hand the number back with its answer.
    pub fn begin(&mut self) -> u64 {
        self.next += 1;
        self.under_way.insert(self.next, Dropped::default());
        self.next
    }

    /// A request was answered with records of a version; without any when it failed.
    pub fn finish(&mut self, request: u64, version: u64, records: &[(Key, Option<Record>)]) {
        let Some(dropped) = self.under_way.remove(&request) else { return };
        if dropped.all || !self.is_live() {
            return;
        }
        for (key, record) in records {
            let is_newer = self.records.get(key).is_none_or(|(held, _)| *held <= version);
            let is_dropped =
                dropped.keys.contains(key) || file_of(key).is_some_and(|ino| dropped.files.contains(&ino));
            if is_newer && !is_dropped {
                self.records.insert(key.clone(), (version, record.clone()));
            }
        }
    }

    /// Somebody else has changed these.
    pub fn drop_keys(&mut self, keys: &[Key]) {
        for key in keys {
            self.records.remove(key);
            for dropped in self.under_way.values_mut() {
                dropped.keys.insert(key.clone());
            }
        }
    }

    /// A file was delegated to somebody else.
    pub fn drop_file(&mut self, ino: Ino) {
        self.records.retain(|key, _| file_of(key) != Some(ino));
        for dropped in self.under_way.values_mut() {
            dropped.files.insert(ino);
        }
    }

    /// Nothing that is held counts any more.
    pub fn drop_all(&mut self) {
        self.records.clear();
        for dropped in self.under_way.values_mut() {
            dropped.all = true;
        }
    }

    /// The process that made the requests is gone.
    pub fn forget_requests(&mut self) {
        self.under_way.clear();
    }
}

/// The file that a record belongs to.
fn file_of(key: &Key) -> Option<Ino> {
    match key {
        Key::Inode(ino) | Key::Chunk(ino, _) => Some(*ino),
        _ => None,
    }
}
