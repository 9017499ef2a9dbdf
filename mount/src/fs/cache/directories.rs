//! The directories of which all names are known: a name that is not in one of them is nowhere.

use std::collections::BTreeMap;
use std::ops::Bound;

use quick_cache::Weighter;
use quick_cache::unsync::Cache as Lru;
use tandemfs::id::Ino;
use tandemfs::name::Name;
use tandemfs::tree::Entry;

/// What a directory takes without its names, in bytes.
const DIRECTORY_BYTES: usize = 160;
/// What a name takes without its own bytes.
const NAME_BYTES: usize = 80;
/// So many bytes a directory is guessed to take, for the size of the table.
const USUAL_BYTES: usize = 1_000;

/// The directories. Those that have not been used for long are forgotten.
#[derive(Debug)]
pub(super) struct Directories {
    whole: Lru<Ino, Directory, Weigh>,
}

/// All names of a directory.
#[derive(Clone, Debug, Default)]
struct Directory {
    names: BTreeMap<Name, Entry>,
    /// Of the names; counted, for it is asked at each change.
    bytes: usize,
}

#[derive(Clone, Debug)]
struct Weigh;

impl Weighter<Ino, Directory> for Weigh {
    fn weight(&self, _: &Ino, directory: &Directory) -> u64 {
        (DIRECTORY_BYTES + directory.bytes) as u64
    }
}

fn name_bytes(name: &Name) -> usize {
    NAME_BYTES + name.as_bytes().len()
}

impl Directories {
    /// None, of about so many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        Self { whole: Lru::with_weighter((bytes / USUAL_BYTES).max(16), bytes as u64, Weigh) }
    }

    /// What a name leads to; `None` when not all names of the directory are known.
    pub(super) fn entry(&self, parent: Ino, name: &Name) -> Option<Option<Entry>> {
        Some(self.whole.get(&parent)?.names.get(name).copied())
    }

    /// At most `limit` names after one, if all are known.
    pub(super) fn names(&self, ino: Ino, after: Option<&Name>, limit: usize) -> Option<Vec<(Name, Entry)>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let names = self.whole.get(&ino)?.names.range((from, Bound::Unbounded));
        Some(names.take(limit).map(|(name, entry)| (name.clone(), *entry)).collect())
    }

    /// Keeps all names of a directory; one that is too large is not kept.
    pub(super) fn keep(&mut self, ino: Ino, names: BTreeMap<Name, Entry>) {
        let bytes = names.keys().map(name_bytes).sum();
        self.whole.insert(ino, Directory { names, bytes });
    }

    /// A directory has no names: it was made just now, or its last name has gone.
    pub(super) fn keep_empty(&mut self, ino: Ino) {
        if !self.whole.contains_key(&ino) {
            self.whole.insert(ino, Directory::default());
        }
    }

    /// A name of a directory leads there now, or nowhere. Nothing to do when not all of its names are known.
    pub(super) fn patch(&mut self, parent: Ino, name: &Name, entry: Option<Entry>) {
        let Some(mut directory) = self.whole.get_mut(&parent) else { return };
        let before = match entry {
            Some(entry) => directory.names.insert(name.clone(), entry),
            None => directory.names.remove(name),
        };
        if entry.is_some() && before.is_none() {
            directory.bytes += name_bytes(name);
        } else if entry.is_none() && before.is_some() {
            directory.bytes -= name_bytes(name);
        }
    }

    /// Forgets a directory.
    pub(super) fn forget(&mut self, ino: Ino) {
        self.whole.remove(&ino);
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.whole.clear();
    }
}
