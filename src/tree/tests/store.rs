//! A store of records for tests: a driver as the daemon has one, and a check of everything that must always hold.

use std::collections::{BTreeMap, BTreeSet};

use crate::ErrorKind;
use crate::clock::Time;
use crate::id::{BlockId, Ino};
use crate::name::Name;
use crate::tree::{
    CHUNK_SIZE, Changes, Chunk, Credentials, Inode, Key, Kind, Mutation, NewNode, Outcome, Record,
    SetAttributes, Stop, Usage, Want, WorkingSet, WrittenExtent, apply, extents_in, new_root, path_of,
};

pub(super) const ROOT: Credentials = Credentials { uid: 0, gid: 0 };

pub(super) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(super) fn at(seconds: i64) -> Time {
    Time { seconds, nanos: 7 }
}

pub(super) fn block(number: u8) -> BlockId {
    BlockId([number; 32])
}

/// The bytes of the block `number`: known everywhere, and different in every place.
pub(super) fn byte_of(number: u8, offset: u64) -> u8 {
    (u64::from(number) * 89 + offset * 31 + offset / 251) as u8 | 1
}

/// How much a driver tells a working set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loading {
    /// Everything beforehand.
    Whole,
    /// The first thing that it misses, again and again.
    OneByOne,
}

/// All records of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Store {
    pub(super) records: BTreeMap<Key, Record>,
    pub(super) references: BTreeMap<BlockId, i64>,
}

impl Store {
    pub(super) fn new() -> Self {
        Self::with(Usage::default())
    }

    pub(super) fn with(usage: Usage) -> Self {
        let root = new_root(at(0), 0, 0);
        let records =
            [(Key::Usage, Record::Usage(usage)), (Key::Inode(Ino::ROOT), Record::Inode(Box::new(root)))]
                .into();
        Self { records, references: BTreeMap::new() }
    }

    fn whole(&self) -> WorkingSet {
        let mut set = WorkingSet::new();
        for (key, record) in &self.records {
            set.load(key.clone(), Some(record.clone()));
        }
        set
    }

    /// Answers a want as the daemon does.
    fn load(&self, set: &mut WorkingSet, want: &Want) {
        match want {
            Want::Record(key) => set.load(key.clone(), self.records.get(key).cloned()),
            Want::Lookup { parent, name } => {
                let key = Key::Entry(*parent, name.clone());
                let entry = self.records.get(&key).cloned();
                set.load(key, entry.clone());
                if let Some(Record::Entry(entry)) = entry {
                    let key = Key::Inode(entry.ino);
                    set.load(key.clone(), self.records.get(&key).cloned());
                }
            }
            range => {
                for (key, record) in self.records.iter().filter(|(key, _)| range.covers(key)) {
                    set.load(key.clone(), Some(record.clone()));
                }
                set.load_range(range.clone());
            }
        }
    }

    /// Runs something until it misses nothing.
    pub(super) fn run<T>(
        &self,
        loading: Loading,
        set: &mut WorkingSet,
        mut rule: impl FnMut(&mut WorkingSet) -> Outcome<T>,
    ) -> Result<T, ErrorKind> {
        // Nothing may ask without end; a want that is asked for twice would.
        let mut asked = BTreeSet::new();
        loop {
            match rule(set) {
                Ok(value) => return Ok(value),
                Err(Stop::Refused(error)) => return Err(error.kind()),
                Err(Stop::Missing(wants)) => {
                    assert!(asked.insert(wants.clone()), "{wants:?} once more");
                    let count = if loading == Loading::Whole { wants.len() } else { 1 };
                    for want in wants.iter().take(count) {
                        self.load(set, want);
                    }
                }
            }
        }
    }

    /// Applies mutations as one batch, the refused ones left out; what came of each, and the changes.
    pub(super) fn batch(
        &self,
        loading: Loading,
        mutations: &[Mutation],
    ) -> (Vec<Result<(), ErrorKind>>, Changes) {
        let mut set = if loading == Loading::Whole { self.whole() } else { WorkingSet::new() };
        let results = mutations
            .iter()
            .map(|mutation| self.run(loading, &mut set, |set| apply(set, mutation)))
            .collect();
        (results, set.into_changes())
    }

    pub(super) fn commit(&mut self, changes: Changes) {
        for (key, record) in changes.records {
            match record {
                Some(record) => drop(self.records.insert(key, record)),
                None => drop(self.records.remove(&key)),
            }
        }
        for (block, by) in changes.references {
            *self.references.entry(block).or_default() += by;
        }
        self.references.retain(|_, count| *count != 0);
    }

    /// Applies one mutation and checks everything that must hold: that a driver which knows everything and one
    /// which loads one thing at a time come to the same, that a refused one changes nothing, that all records agree.
    pub(super) fn apply(&mut self, mutation: &Mutation) -> Result<(), ErrorKind> {
        let (results, changes) = self.batch(Loading::OneByOne, std::slice::from_ref(mutation));
        assert_eq!(
            self.batch(Loading::Whole, std::slice::from_ref(mutation)),
            (results.clone(), changes.clone())
        );
        if results[0].is_err() {
            assert_eq!(changes, Changes::default(), "{mutation:?} was refused and changed something");
        }
        self.commit(changes);
        self.check();
        results[0]
    }

    pub(super) fn inode(&self, ino: Ino) -> &Inode {
        match self.records.get(&Key::Inode(ino)) {
            Some(Record::Inode(inode)) => inode,
            other => panic!("inode {ino} is {other:?}"),
        }
    }

    pub(super) fn usage(&self) -> Usage {
        match self.records.get(&Key::Usage) {
            Some(Record::Usage(usage)) => *usage,
            other => panic!("usage is {other:?}"),
        }
    }

    pub(super) fn path_of(&self, ino: Ino) -> Result<Vec<Name>, ErrorKind> {
        self.run(Loading::OneByOne, &mut WorkingSet::new(), |set| path_of(set, ino))
    }

    pub(super) fn chunk(&self, ino: Ino, number: u64) -> Chunk {
        match self.records.get(&Key::Chunk(ino, number)) {
            Some(Record::Chunk(chunk)) => chunk.clone(),
            None => Chunk::default(),
            other => panic!("a chunk is {other:?}"),
        }
    }

    /// The bytes of a file in a range, as a reader puts them together.
    pub(super) fn read(&self, ino: Ino, from: u64, to: u64) -> Vec<u8> {
        let to = to.min(self.inode(ino).size);
        let mut bytes = Vec::new();
        let mut at = from;
        while at < to {
            let (number, start) = (at / CHUNK_SIZE, (at % CHUNK_SIZE) as u32);
            let end = (u64::from(start) + (to - at)).min(CHUNK_SIZE) as u32;
            for piece in extents_in(&self.chunk(ino, number), start, end) {
                match piece {
                    crate::tree::Piece::Hole { length, .. } => {
                        bytes.extend(std::iter::repeat_n(0, length as usize))
                    }
                    crate::tree::Piece::Data(data) => bytes.extend(
                        (0..data.length).map(|i| byte_of(data.block.0[0], u64::from(data.offset + i))),
                    ),
                }
            }
            at += u64::from(end - start);
        }
        bytes
    }

    /// Counts everything anew and compares it with what the records say.
    fn check(&self) {
        let mut entries: BTreeMap<Ino, (u64, u32)> = BTreeMap::new();
        let mut names: BTreeMap<Ino, BTreeSet<(Ino, Name)>> = BTreeMap::new();
        let mut further: BTreeMap<Ino, BTreeSet<(Ino, Name)>> = BTreeMap::new();
        let mut allocated: BTreeMap<Ino, u64> = BTreeMap::new();
        let mut xattrs: BTreeMap<Ino, u64> = BTreeMap::new();
        let mut references: BTreeMap<BlockId, i64> = BTreeMap::new();
        for (key, record) in &self.records {
            match (key, record) {
                (Key::Entry(parent, name), Record::Entry(entry)) => {
                    assert_eq!(self.inode(entry.ino).kind, entry.kind);
                    let counts = entries.entry(*parent).or_default();
                    counts.0 += 1;
                    counts.1 += u32::from(entry.kind == Kind::Directory);
                    names.entry(entry.ino).or_default().insert((*parent, name.clone()));
                }
                (Key::Link(ino, parent, name), Record::Present) => {
                    further.entry(*ino).or_default().insert((*parent, name.clone()));
                }
                (Key::Chunk(ino, number), Record::Chunk(chunk)) => {
                    assert!(!chunk.0.is_empty(), "an empty chunk is kept");
                    let mut end = 0;
                    for extent in &chunk.0 {
                        assert!(extent.length > 0 && extent.start >= end, "{chunk:?}");
                        end = extent.end();
                        *allocated.entry(*ino).or_default() += u64::from(extent.length);
                        *references.entry(extent.block).or_default() += 1;
                    }
                    assert!(u64::from(end) <= CHUNK_SIZE);
                    assert!(number * CHUNK_SIZE + u64::from(end) <= self.inode(*ino).size);
                }
                (Key::Xattr(ino, name), Record::Xattr(value)) => {
                    *xattrs.entry(*ino).or_default() += (name.len() + value.len()) as u64;
                }
                (Key::Orphan(ino), Record::Present) => assert_eq!(self.inode(*ino).nlink, 0),
                (Key::Usage, Record::Usage(_)) | (Key::Inode(_), Record::Inode(_)) => {}
                other => panic!("a record of the wrong type: {other:?}"),
            }
        }
        let mut inodes = 0;
        for (key, record) in &self.records {
            let (Key::Inode(ino), Record::Inode(inode)) = (key, record) else { continue };
            inodes += 1;
            assert_eq!(inode.ino, *ino);
            assert_eq!(inode.allocated, allocated.remove(ino).unwrap_or(0));
            assert_eq!(inode.xattr_bytes, xattrs.remove(ino).unwrap_or(0));
            let (count, directories) = entries.remove(ino).unwrap_or((0, 0));
            assert_eq!(inode.entries, count);
            let mut names = names.remove(ino).unwrap_or_default();
            let links = match inode.kind {
                Kind::Directory if names.is_empty() && *ino != Ino::ROOT => 0,
                Kind::Directory => 2 + directories,
                _ => names.len() as u32,
            };
            assert_eq!(inode.nlink, links, "{inode:?}");
            assert!(!inode.is_directory() || inode.size == inode.entries && names.len() < 2);
            assert_eq!(inode.nlink == 0, self.records.contains_key(&Key::Orphan(*ino)));
            assert_eq!(inode.name.is_none(), names.is_empty(), "{inode:?}");
            if let Some(name) = &inode.name {
                assert!(names.remove(&(inode.parent, name.clone())), "the first link is none: {inode:?}");
            }
            assert_eq!(names, further.remove(ino).unwrap_or_default(), "further links of {inode:?}");
        }
        assert!(entries.is_empty() && names.is_empty() && further.is_empty());
        assert!(allocated.is_empty() && xattrs.is_empty());
        assert_eq!(self.references, references);
        assert_eq!(self.usage().inodes, inodes - 1);
        assert_eq!(self.usage().bytes, references_bytes(&self.records));
    }
}

fn references_bytes(records: &BTreeMap<Key, Record>) -> u64 {
    let chunks = records.values().filter_map(|record| match record {
        Record::Chunk(chunk) => Some(chunk),
        _ => None,
    });
    chunks.flat_map(|chunk| &chunk.0).map(|extent| u64::from(extent.length)).sum()
}

// Short spellings for the tests of single rules.

pub(super) fn create_in(
    parent: Ino,
    text: &str,
    ino: u64,
    node: NewNode,
    mode: u32,
    by: Credentials,
) -> Mutation {
    Mutation::Create { parent, name: name(text), ino: Ino(ino), node, mode, by, time: at(ino as i64) }
}

pub(super) fn file(text: &str, ino: u64) -> Mutation {
    create_in(Ino::ROOT, text, ino, NewNode::File, 0o644, ROOT)
}

pub(super) fn directory(text: &str, ino: u64) -> Mutation {
    create_in(Ino::ROOT, text, ino, NewNode::Directory, 0o755, ROOT)
}

pub(super) fn link(ino: u64, parent: Ino, text: &str) -> Mutation {
    Mutation::Link { ino: Ino(ino), parent, name: name(text), time: at(500) }
}

pub(super) fn unlink(parent: Ino, text: &str, by: Credentials) -> Mutation {
    Mutation::Unlink { parent, name: name(text), by, time: at(600) }
}

pub(super) fn rmdir(parent: Ino, text: &str, by: Credentials) -> Mutation {
    Mutation::RemoveDirectory { parent, name: name(text), by, time: at(650) }
}

pub(super) fn set_attributes(ino: u64, set: SetAttributes, by: Credentials) -> Mutation {
    Mutation::SetAttributes { ino: Ino(ino), set, by, time: at(700) }
}

pub(super) fn written(offset: u64, length: u64, number: u8, block_offset: u32) -> WrittenExtent {
    WrittenExtent { offset, length, block: block(number), block_offset }
}

pub(super) fn write(ino: u64, extents: &[WrittenExtent]) -> Mutation {
    Mutation::Write {
        ino: Ino(ino),
        extents: extents.to_vec(),
        size: 0,
        clear_privileges: false,
        time: at(800),
    }
}
