//! The records that the mount knows. Nothing in here is older than what has been acknowledged to the daemon.
//!
//! A reply says at which version of the volume it was read, an event at which version it changed something. While
//! requests are under way, the cache remembers for each key the newest version that is known to have changed it (its
//! *floor*); a reply that was read before that is not cached.
//!
//! What was done under the lease and is not committed yet lies over all that (`lease/pending.rs`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use quick_cache::Weighter;
use quick_cache::unsync::Cache as Lru;
use tandemfs::api::fs::Answer;
use tandemfs::id::Ino;
use tandemfs::name::Name;
use tandemfs::tree::{CHUNK_SIZE, Entry, Inode, Key, Kind, Record, Want};

use super::lease::pending::Pending;
use directories::Directories;

mod directories;

/// More floors than this are folded into one for all keys.
const FLOORS_MAX: usize = 65_536;
/// So many changes of a directory are laid over a listing of it that is under way.
const OWN_MAX: usize = 1024;
/// Of so many chunks at once it is found out whether they are known.
const CHUNKS_MAX: u64 = 256;

/// What is known of a key: its record, or that there is none.
pub type Known = Option<Arc<Record>>;

/// The cache. See the module.
#[derive(Debug)]
pub struct Cache {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    records: Lru<Key, Cached, Weigh>,
    directories: Directories,
    watches: HashMap<Ino, Vec<Weak<Watch>>>,
    floors: HashMap<Key, u64>,
    floor: u64,
    /// Requests that are under way, by the numbers that they were given when they began.
    under_way: BTreeSet<u64>,
    /// The number of the last one.
    asked: u64,
    generation: u64,
    pending: Pending,
}

#[derive(Clone, Debug)]
struct Cached {
    version: u64,
    record: Known,
}

#[derive(Clone, Debug)]
struct Weigh;

impl Weighter<Key, Cached> for Weigh {
    fn weight(&self, key: &Key, cached: &Cached) -> u64 {
        let key = match key {
            Key::Entry(_, name) | Key::Link(_, _, name) => name.as_bytes().len(),
            Key::Xattr(_, name) => name.len(),
            _ => 0,
        };
        let record = match cached.record.as_deref() {
            Some(Record::Inode(inode)) => 320 + inode.target.as_ref().map_or(0, Vec::len),
            Some(Record::Chunk(chunk)) => 64 + chunk.0.len() * 48,
            Some(Record::Xattr(value)) => 64 + value.len(),
            _ => 64,
        };
        (96 + key + record) as u64
    }
}

/// What names lead to from then on, in the order in which they were changed.
type Changes = Vec<(Name, Option<Entry>)>;

/// Tells a listing whether its directory has changed since it began.
#[derive(Debug)]
pub struct Watch {
    broken: AtomicBool,
    /// What was done here since then; `None` when somebody else has changed the directory, or that was too much.
    own: Mutex<Option<Changes>>,
}

impl Watch {
    fn new() -> Self {
        Self { broken: AtomicBool::new(false), own: Mutex::new(Some(Vec::new())) }
    }

    fn own(&self) -> MutexGuard<'_, Option<Changes>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether names have come or gone.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// A name was changed here. Answers whether there is more to be told.
    fn note(&self, name: &Name, entry: Option<Entry>) -> bool {
        self.broken.store(true, Ordering::Release);
        let mut own = self.own();
        match own.as_mut().filter(|own| own.len() < OWN_MAX) {
            Some(changes) => changes.push((name.clone(), entry)),
            None => *own = None,
        }
        own.is_some()
    }

    /// Somebody else has changed the directory.
    fn end(&self) {
        self.broken.store(true, Ordering::Release);
        *self.own() = None;
    }
}

/// A request under way: what it may tell the cache is limited by what happens until its reply.
#[derive(Debug)]
pub struct Request<'a> {
    cache: &'a Cache,
    generation: u64,
    number: u64,
}

impl Cache {
    /// An empty one of about so many bytes.
    pub fn new(bytes: usize) -> Self {
        let records = bytes / 4 * 3;
        Self {
            inner: Mutex::new(Inner {
                records: Lru::with_weighter((records / 400).max(16), records as u64, Weigh),
                directories: Directories::new(bytes / 4),
                watches: HashMap::new(),
                floors: HashMap::new(),
                floor: 0,
                under_way: BTreeSet::new(),
                asked: 0,
                generation: 0,
                pending: Pending::default(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called before a request is sent.
    pub fn begin(&self) -> Request<'_> {
        let mut inner = self.lock();
        inner.asked += 1;
        let number = inner.asked;
        inner.under_way.insert(number);
        Request { cache: self, generation: inner.generation, number }
    }

    /// What is known of a key; `None`: nothing.
    pub fn get(&self, key: &Key) -> Option<Known> {
        self.lock().get(key)
    }

    /// An inode, if it is known to be there.
    pub fn inode(&self, ino: Ino) -> Option<Option<Inode>> {
        Some(match self.get(&Key::Inode(ino))?.as_deref() {
            Some(Record::Inode(inode)) => Some(inode.as_ref().clone()),
            _ => None,
        })
    }

    /// What a name leads to, from the record or from the whole directory.
    pub fn entry(&self, parent: Ino, name: &Name) -> Option<Option<Entry>> {
        self.lock().entry(parent, name)
    }

    /// The records that a rule wants, if all of them are known. Much is known without a record: what an inode says that it does not have.
    pub(super) fn known(&self, want: &Want) -> Option<Vec<(Key, Known)>> {
        self.lock().known(want)
    }

    /// Change `number`, which was done here, leaves records so.
    pub(super) fn change(&self, number: u64, records: &BTreeMap<Key, Known>) {
        let mut inner = self.lock();
        for (key, record) in records {
            inner.pending.put(number, key.clone(), record.clone());
            inner.patch(key, record.as_deref());
        }
    }

    /// The number of the last change of a record that was done here and is not committed.
    pub(super) fn pending(&self, key: &Key) -> Option<u64> {
        self.lock().pending.number(key)
    }

    /// All changes of some keys up to one are committed, in a version of the volume.
    pub(super) fn committed(&self, number: u64, version: u64, keys: Vec<Key>) {
        let mut inner = self.lock();
        let asked = inner.asked;
        for key in &keys {
            inner.raise(key, version);
        }
        let done = inner.pending.commit(number, version, keys.clone(), asked);
        // What was changed again meanwhile is not known as it was.
        for key in &keys {
            inner.records.remove(key);
        }
        for (key, record) in done {
            inner.insert(key, version, record);
        }
        inner.settle();
    }

    /// Lays what was done here over answers.
    pub(super) fn lay_over(&self, version: u64, wants: &[Want], answers: &mut [Answer]) {
        let inner = self.lock();
        for (want, answer) in wants.iter().zip(answers) {
            inner.pending.lay_over(version, want, answer);
        }
    }

    /// What was done here and is not committed never will be.
    pub(super) fn lose_pending(&self) {
        self.lock().pending.clear();
    }

    /// At most `limit` names after one, if the whole directory is known.
    pub fn names(&self, ino: Ino, after: Option<&Name>, limit: usize) -> Option<Vec<(Name, Entry)>> {
        self.lock().directories.names(ino, after, limit)
    }

    /// Watches a directory from now on.
    pub fn watch(&self, ino: Ino) -> Arc<Watch> {
        let watch = Arc::new(Watch::new());
        let mut inner = self.lock();
        let watches = inner.watches.entry(ino).or_default();
        watches.retain(|watch| watch.strong_count() > 0);
        watches.push(Arc::downgrade(&watch));
        watch
    }

    /// Keeps all names of a directory, with what was done here since `watch` began, unless somebody else has changed it since.
    pub fn keep_directory(&self, ino: Ino, watch: &Watch, mut names: BTreeMap<Name, Entry>) {
        let mut inner = self.lock();
        let Some(own) = watch.own().clone() else { return };
        for (name, entry) in own {
            match entry {
                Some(entry) => names.insert(name, entry),
                None => names.remove(&name),
            };
        }
        inner.directories.keep(ino, names);
    }

    /// Somebody else changed these keys.
    pub fn drop_keys(&self, version: u64, keys: &[Key]) {
        let mut inner = self.lock();
        for key in keys {
            inner.raise(key, version);
            inner.records.remove(key);
            if let Key::Entry(parent, _) = key {
                inner.break_watches(*parent);
                inner.directories.forget(*parent);
            }
        }
    }

    /// Files are delegated to somebody else since a version: nothing that was read of them before counts any more.
    pub fn drop_files(&self, version: u64, files: &BTreeSet<Ino>) {
        let mut inner = self.lock();
        if !inner.under_way.is_empty() {
            // Which chunks a request under way will tell of is not known.
            inner.floor = inner.floor.max(version);
        }
        inner
            .records
            .retain(|key, _| !matches!(key, Key::Inode(ino) | Key::Chunk(ino, _) if files.contains(ino)));
    }

    /// Drops chunks of a file whose blocks have turned out to be gone.
    pub fn drop_chunks(&self, ino: Ino, numbers: impl Iterator<Item = u64>) {
        let mut inner = self.lock();
        for number in numbers {
            inner.records.remove(&Key::Chunk(ino, number));
        }
    }

    /// Drops everything that the daemon has told. No reply to a request that is under way is cached.
    pub fn reset(&self) {
        let mut inner = self.lock();
        inner.generation += 1;
        inner.pending.forget_committed();
        inner.records.clear();
        inner.floors.clear();
        inner.floor = 0;
        inner.directories.clear();
        for (_, watches) in inner.watches.drain() {
            break_all(&watches);
        }
    }
}

impl Inner {
    fn get(&self, key: &Key) -> Option<Known> {
        if let Some(known) = self.pending.get(key) {
            return Some(known.clone());
        }
        self.records.get(key).map(|cached| cached.record.clone())
    }

    fn inode(&self, ino: Ino) -> Option<Option<Arc<Record>>> {
        self.get(&Key::Inode(ino))
    }

    fn entry(&self, parent: Ino, name: &Name) -> Option<Option<Entry>> {
        let key = Key::Entry(parent, name.clone());
        let as_entry = |known: &Known| match known.as_deref() {
            Some(Record::Entry(entry)) => Some(*entry),
            _ => None,
        };
        if let Some(known) = self.pending.get(&key) {
            return Some(as_entry(known));
        }
        if let Some(entry) = self.directories.entry(parent, name) {
            return Some(entry);
        }
        self.records.get(&key).map(|cached| as_entry(&cached.record))
    }

    /// See [`Cache::known`].
    fn known(&self, want: &Want) -> Option<Vec<(Key, Known)>> {
        match want {
            Want::Record(Key::Entry(parent, name)) | Want::Lookup { parent, name } => {
                let entry = match self.entry(*parent, name) {
                    Some(entry) => entry,
                    None if self.has_no(*parent, |inode| inode.entries == 0) => None,
                    None => return None,
                };
                let record = entry.map(|entry| Arc::new(Record::Entry(entry)));
                let mut known = vec![(Key::Entry(*parent, name.clone()), record)];
                if let Some(entry) = entry
                    && let Some(inode) = self.inode(entry.ino)
                {
                    known.push((Key::Inode(entry.ino), inode));
                }
                Some(known)
            }
            Want::Record(key) => Some(vec![(key.clone(), self.record(key)?)]),
            Want::Chunks { ino, from, to } => {
                let inode = self.inode(*ino)?;
                let Some(Record::Inode(inode)) = inode.as_deref() else { return Some(Vec::new()) };
                let end = inode.size.div_ceil(CHUNK_SIZE).min(*to);
                if end.saturating_sub(*from) > CHUNKS_MAX {
                    return None;
                }
                (*from..end)
                    .map(|number| Key::Chunk(*ino, number))
                    .map(|key| self.get(&key).map(|known| (key, known)))
                    .collect()
            }
            Want::Xattrs(ino) => self.has_no(*ino, |inode| inode.xattr_bytes == 0).then(Vec::new),
            Want::Links(ino) => self.links(*ino),
            Want::Directory { .. } => None,
        }
    }

    /// The links of an inode beside the first, of which there is a record each, if it can be told that these are all.
    fn links(&self, ino: Ino) -> Option<Vec<(Key, Known)>> {
        let inode = self.inode(ino)?;
        let Some(Record::Inode(inode)) = inode.as_deref() else { return None };
        let links = if inode.nlink > 1 { self.pending.links(ino) } else { Vec::new() };
        (links.len() as u64 == u64::from(inode.nlink).saturating_sub(1)).then_some(links)
    }

    /// A record, or that there is none, from all that is known.
    fn record(&self, key: &Key) -> Option<Known> {
        if let Some(known) = self.get(key) {
            return Some(known);
        }
        let is_none = match key {
            Key::Chunk(ino, number) => {
                self.has_no(*ino, |inode| inode.size <= number.saturating_mul(CHUNK_SIZE))
            }
            Key::Xattr(ino, _) => self.has_no(*ino, |inode| inode.xattr_bytes == 0),
            Key::Link(ino, _, _) => self.has_no(*ino, |inode| inode.nlink <= 1),
            Key::Orphan(ino) => self.has_no(*ino, |inode| inode.nlink > 0),
            Key::Inode(_) | Key::Usage | Key::Entry(..) => false,
        };
        is_none.then_some(None)
    }

    /// Whether an inode is known and says that it has none of something.
    fn has_no(&self, ino: Ino, says: impl FnOnce(&Inode) -> bool) -> bool {
        self.inode(ino).is_some_and(|known| match known.as_deref() {
            Some(Record::Inode(inode)) => says(inode),
            _ => false,
        })
    }

    /// Drops changes that were committed before all requests that are under way.
    fn settle(&mut self) {
        let first = self.under_way.first().copied();
        self.pending.settle(first.map_or(self.asked, |first| first - 1));
    }

    /// The newest version that is known to have changed a key.
    fn floor(&self, key: &Key) -> u64 {
        self.floors.get(key).copied().unwrap_or(0).max(self.floor)
    }

    fn raise(&mut self, key: &Key, version: u64) {
        if self.under_way.is_empty() {
            return;
        }
        if self.floors.len() >= FLOORS_MAX {
            self.floor = self.floors.drain().map(|(_, floor)| floor).fold(self.floor, u64::max);
        }
        let floor = self.floors.entry(key.clone()).or_default();
        *floor = version.max(*floor);
    }

    fn insert(&mut self, key: Key, version: u64, record: Known) {
        if self.floor(&key) > version {
            // It may be out of date already. What is older than it certainly is.
            if self.records.peek(&key).is_some_and(|cached| cached.version < version) {
                self.records.remove(&key);
            }
            return;
        }
        if self.records.peek(&key).is_some_and(|cached| cached.version > version) {
            return;
        }
        self.records.insert(key, Cached { version, record });
    }

    fn break_watches(&mut self, ino: Ino) {
        if let Some(watches) = self.watches.remove(&ino) {
            break_all(&watches);
        }
    }

    /// What our own change of a record says of the directories that are known whole, or are being listed.
    fn patch(&mut self, key: &Key, record: Option<&Record>) {
        match (key, record) {
            (Key::Entry(parent, name), _) => {
                let entry = match record {
                    Some(Record::Entry(entry)) => Some(*entry),
                    _ => None,
                };
                self.directories.patch(*parent, name, entry);
                if let Some(watches) = self.watches.get_mut(parent) {
                    watches.retain(|watch| watch.upgrade().is_some_and(|watch| watch.note(name, entry)));
                    if watches.is_empty() {
                        self.watches.remove(parent);
                    }
                }
            }
            (Key::Inode(ino), Some(Record::Inode(inode)))
                if inode.kind == Kind::Directory && inode.entries == 0 =>
            {
                self.directories.keep_empty(*ino);
            }
            (Key::Inode(ino), None) => self.directories.forget(*ino),
            _ => {}
        }
    }
}

fn break_all(watches: &[Weak<Watch>]) {
    for watch in watches.iter().filter_map(Weak::upgrade) {
        watch.end();
    }
}

impl Request<'_> {
    /// Takes in what a read answered.
    pub fn accept(self, version: u64, records: impl IntoIterator<Item = (Key, Option<Record>)>) {
        let mut inner = self.cache.lock();
        if inner.generation == self.generation {
            for (key, record) in records {
                inner.insert(key, version, record.map(Arc::new));
            }
        }
    }

    /// Takes in what a batch of ours wrote.
    pub fn accept_change(self, version: u64, records: impl IntoIterator<Item = (Key, Option<Record>)>) {
        let mut inner = self.cache.lock();
        let current = inner.generation == self.generation;
        for (key, record) in records {
            if current && inner.floor(&key) <= version {
                inner.patch(&key, record.as_ref());
            } else if let Key::Entry(parent, _) = &key {
                inner.directories.forget(*parent);
                inner.break_watches(*parent);
            }
            if current {
                inner.insert(key.clone(), version, record.map(Arc::new));
            } else {
                // What is cached belongs to another run, and may or may not have this change.
                inner.records.remove(&key);
            }
            inner.raise(&key, version);
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        let mut inner = self.cache.lock();
        inner.under_way.remove(&self.number);
        if inner.under_way.is_empty() {
            inner.floors.clear();
            inner.floor = 0;
        }
        inner.settle();
    }
}

#[cfg(test)]
mod tests;
