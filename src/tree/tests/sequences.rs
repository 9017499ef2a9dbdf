//! Generated sequences of mutations, failures included: the rules and the model must agree about every errno and, after
//! every step, about the whole tree.

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any};
use proptest::sample::select;
use proptest::{prop_assert_eq, prop_oneof, proptest};
use std::collections::{BTreeMap, BTreeSet};

use super::model::Model;
use super::store::{Loading, Store, block, name};
use crate::clock::Time;
use crate::id::Ino;
use crate::name::Name;
use crate::tree::{
    CHUNK_SIZE, CLONE_MAX, Credentials, FILE_SIZE_MAX, Key, Kind, Mutation, NewNode, Piece, Record,
    RenameMode, SetAttributes, Usage, WrittenExtent, XattrMode, extents_in,
};

/// Above this a choice is arbitrary, below it is one of what there is.
const MOSTLY: u8 = 220;

/// An inode, mostly one that there is.
#[derive(Clone, Debug)]
struct AnIno(u8);

impl AnIno {
    fn of(&self, model: &Model, fits: impl Fn(Ino) -> bool) -> Ino {
        let all: Vec<Ino> = model.nodes.keys().copied().filter(|ino| fits(*ino)).collect();
        match all.len() {
            count if count > 0 && self.0 < MOSTLY => all[usize::from(self.0) % count],
            _ => Ino(u64::from(self.0) % 16),
        }
    }

    fn any(&self, model: &Model) -> Ino {
        self.of(model, |_| true)
    }

    fn directory(&self, model: &Model) -> Ino {
        self.of(model, |ino| model.nodes[&ino].kind == Kind::Directory)
    }

    fn file(&self, model: &Model) -> Ino {
        self.of(model, |ino| model.nodes[&ino].kind == Kind::File)
    }
}

/// A place in the tree, mostly one that is taken.
#[derive(Clone, Debug)]
struct APlace(u8, AnIno, Name);

impl APlace {
    fn taken(&self, model: &Model) -> (Ino, Name) {
        let all = model.entries();
        match all.len() {
            count if count > 0 && self.0 < MOSTLY => {
                let (parent, name, _) = all[usize::from(self.0) % count].clone();
                (parent, name)
            }
            _ => self.any(model),
        }
    }

    fn any(&self, model: &Model) -> (Ino, Name) {
        (self.1.directory(model), self.2.clone())
    }
}

/// A mutation that fits itself to the tree as it is.
#[derive(Clone, Debug)]
enum Step {
    Create(APlace, u64, NewNode, u32, Credentials),
    Link(AnIno, APlace),
    Unlink(APlace, Credentials),
    RemoveDirectory(APlace, Credentials),
    Rename(APlace, APlace, bool, RenameMode, Credentials),
    SetAttributes(AnIno, SetAttributes, Credentials),
    Resize(AnIno, u64, Credentials),
    Write(AnIno, Vec<WrittenExtent>, u64, bool),
    PunchHole(AnIno, u64, u64, u64, bool),
    CloneRange(AnIno, u64, AnIno, u64, u64, bool),
    SetXattr(AnIno, Vec<u8>, Vec<u8>, XattrMode),
    RemoveXattr(AnIno, Vec<u8>),
    Reap(AnIno, u32),
    SetDigest(AnIno, bool, usize),
    Accessed(AnIno, Option<Time>),
}

impl Step {
    fn mutation(&self, model: &Model, time: Time) -> Mutation {
        match self.clone() {
            Self::Create(place, ino, node, mode, by) => {
                let (parent, name) = place.any(model);
                Mutation::Create { parent, name, ino: Ino(ino), node, mode, by, time }
            }
            Self::Link(ino, place) => {
                let (parent, name) = place.any(model);
                Mutation::Link { ino: ino.any(model), parent, name, time }
            }
            Self::Unlink(place, by) => {
                let (parent, name) = place.taken(model);
                Mutation::Unlink { parent, name, by, time }
            }
            Self::RemoveDirectory(place, by) => {
                let (parent, name) = place.taken(model);
                Mutation::RemoveDirectory { parent, name, by, time }
            }
            Self::Rename(from, to, onto, mode, by) => {
                let (parent, name) = from.taken(model);
                let (new_parent, new_name) = if onto { to.taken(model) } else { to.any(model) };
                Mutation::Rename { parent, name, new_parent, new_name, mode, by, time }
            }
            Self::SetAttributes(ino, set, by) => {
                Mutation::SetAttributes { ino: ino.any(model), set, by, time }
            }
            Self::Resize(ino, size, by) => {
                let set = SetAttributes { size: Some(size), ..SetAttributes::default() };
                Mutation::SetAttributes { ino: ino.file(model), set, by, time }
            }
            Self::Write(ino, extents, size, clear_privileges) => {
                Mutation::Write { ino: ino.file(model), extents, size, clear_privileges, time }
            }
            Self::PunchHole(ino, offset, length, size, clear_privileges) => {
                Mutation::PunchHole { ino: ino.file(model), offset, length, size, clear_privileges, time }
            }
            Self::CloneRange(ino, offset, from, from_offset, length, clear_privileges) => {
                let (ino, from) = (ino.file(model), from.file(model));
                // Mostly what is there to be cloned.
                let size = model.nodes.get(&from).map_or(0, |node| node.size);
                let length = if length == 7 { length } else { length.min(size.saturating_sub(from_offset)) };
                Mutation::CloneRange { ino, offset, from, from_offset, length, clear_privileges, time }
            }
            Self::SetXattr(ino, name, value, mode) => Mutation::SetXattr {
                ino: ino.any(model),
                name,
                value,
                mode,
                by: Credentials::default(),
                time,
            },
            Self::RemoveXattr(ino, name) => Mutation::RemoveXattr { ino: ino.any(model), name, time },
            Self::Reap(ino, chunks) => {
                Mutation::Reap { ino: ino.of(model, |ino| model.nlink(ino) == 0), chunks }
            }
            Self::SetDigest(ino, is_current, length) => {
                let ino = ino.file(model);
                let content = model.nodes.get(&ino).map_or(0, |node| node.content);
                let content = if is_current { content } else { content + 1 };
                Mutation::SetDigest { ino, content, sha256: vec![9; length] }
            }
            Self::Accessed(ino, after) => {
                let ino = ino.any(model);
                // Mostly what there is to be seen.
                let seen = model.nodes.get(&ino).map_or(time, |node| node.times[0]);
                Mutation::Accessed { ino, after: after.unwrap_or(seen), time }
            }
        }
    }
}

fn an_ino() -> impl Strategy<Value = AnIno> {
    any::<u8>().prop_map(AnIno)
}

fn a_place() -> impl Strategy<Value = APlace> {
    (any::<u8>(), an_ino(), select(vec!["a", "b", "c", "d"]))
        .prop_map(|(choice, ino, text)| APlace(choice, ino, name(text)))
}

fn by() -> impl Strategy<Value = Credentials> {
    (select(vec![0, 0, 100, 200]), select(vec![0, 100, 200])).prop_map(|(uid, gid)| Credentials { uid, gid })
}

fn mode() -> impl Strategy<Value = u32> {
    select(vec![0o644, 0o755, 0o755, 0o777, 0o1777, 0o2775, 0o6755, 0o6745, 0o3777, 0o10_000])
}

fn time() -> impl Strategy<Value = Time> {
    (-3i64..100, select(vec![0, 1, 999_999_999, 999_999_999, 999_999_999, 1_000_000_000]))
        .prop_map(|(seconds, nanos)| Time { seconds, nanos })
}

fn node() -> impl Strategy<Value = NewNode> {
    prop_oneof![
        6 => Just(NewNode::File),
        6 => Just(NewNode::Directory),
        2 => select(vec![0, 1, 5, 4095, 4096]).prop_map(|length| NewNode::Symlink(vec![b'x'; length])),
        1 => Just(NewNode::Fifo),
        1 => Just(NewNode::Socket),
        1 => Just(NewNode::CharDevice(5)),
        1 => Just(NewNode::BlockDevice(6)),
    ]
}

/// Places in a file: near its start, around the borders of chunks, and at the end of what can be.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0..80u64,
        4 => CHUNK_SIZE - 40..CHUNK_SIZE + 40,
        2 => 3 * CHUNK_SIZE - 20..3 * CHUNK_SIZE + 20,
        1 => FILE_SIZE_MAX - 60..FILE_SIZE_MAX + 20,
    ]
}

fn extent() -> impl Strategy<Value = WrittenExtent> {
    let block_offset =
        prop_oneof![8 => 0..60u32, 1 => CHUNK_SIZE as u32 - 30..CHUNK_SIZE as u32, 1 => Just(u32::MAX)];
    let length = prop_oneof![30 => 1..70u64, 1 => Just(0), 1 => Just(CHUNK_SIZE + 1), 1 => Just(u64::MAX)];
    (offset(), length, 1u8..4, block_offset, any::<bool>()).prop_map(
        |(offset, length, number, block_offset, in_step)| {
            // In step with the file, so that neighbours may be one extent again.
            let block_offset = if in_step { (offset % 4096) as u32 } else { block_offset };
            WrittenExtent { offset, length, block: block(number), block_offset }
        },
    )
}

/// How long a range is that is punched or cloned.
fn stretch() -> impl Strategy<Value = u64> {
    let many = select(vec![0, 1, 7, CHUNK_SIZE, 3 * CHUNK_SIZE, CLONE_MAX + 1, u64::MAX]);
    prop_oneof![3 => 1..60u64, 1 => many]
}

fn xattr_name() -> impl Strategy<Value = Vec<u8>> {
    let names = ["user.a", "user.a", "user.b", "trusted.c", "", "user.", "system.x", "user.\0"];
    select(names.map(|name| name.as_bytes().to_vec()).to_vec())
}

fn attributes() -> impl Strategy<Value = SetAttributes> {
    use proptest::option::{of, weighted};
    let owner = || weighted(0.3, select(vec![0, 100, 200, u32::MAX]));
    (of(mode()), owner(), owner(), weighted(0.2, offset()), weighted(0.2, time()), weighted(0.2, time()))
        .prop_map(|(mode, uid, gid, size, atime, mtime)| SetAttributes { mode, uid, gid, size, atime, mtime })
}

fn step() -> impl Strategy<Value = Step> {
    let extents = || prop_oneof![20 => vec(extent(), 1..5), 1 => Just(vec![])];
    let size = prop_oneof![3 => Just(0), 1 => offset()];
    let renames =
        select(vec![RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]);
    let sets = select(vec![XattrMode::Set, XattrMode::Create, XattrMode::Replace]);
    let lengths = select(vec![0, 3, 65_536, 65_537]);
    prop_oneof![
        10 => (a_place(), 0..24u64, node(), mode(), by())
            .prop_map(|(place, ino, node, mode, by)| Step::Create(place, ino, node, mode, by)),
        4 => (an_ino(), a_place()).prop_map(|(ino, place)| Step::Link(ino, place)),
        4 => (a_place(), by()).prop_map(|(place, by)| Step::Unlink(place, by)),
        2 => (a_place(), by()).prop_map(|(place, by)| Step::RemoveDirectory(place, by)),
        8 => (a_place(), a_place(), any::<bool>(), renames, by())
            .prop_map(|(from, to, onto, mode, by)| Step::Rename(from, to, onto, mode, by)),
        3 => (an_ino(), attributes(), by()).prop_map(|(ino, set, by)| Step::SetAttributes(ino, set, by)),
        3 => (an_ino(), offset(), by()).prop_map(|(ino, size, by)| Step::Resize(ino, size, by)),
        8 => (an_ino(), extents(), size, any::<bool>())
            .prop_map(|(ino, extents, size, clear)| Step::Write(ino, extents, size, clear)),
        4 => (an_ino(), offset(), stretch(), prop_oneof![3 => Just(0), 1 => offset()], any::<bool>())
            .prop_map(|(ino, offset, length, size, clear)| Step::PunchHole(ino, offset, length, size, clear)),
        6 => (an_ino(), offset(), an_ino(), offset(), stretch(), any::<bool>())
            .prop_map(|(ino, at, from, from_at, length, clear)| Step::CloneRange(ino, at, from, from_at, length, clear)),
        2 => (an_ino(), xattr_name(), lengths, sets)
            .prop_map(|(ino, name, length, mode)| Step::SetXattr(ino, name, vec![1; length], mode)),
        1 => (an_ino(), xattr_name()).prop_map(|(ino, name)| Step::RemoveXattr(ino, name)),
        3 => (an_ino(), 0..3u32).prop_map(|(ino, chunks)| Step::Reap(ino, chunks)),
        1 => (an_ino(), any::<bool>(), 31..33usize)
            .prop_map(|(ino, is_current, length)| Step::SetDigest(ino, is_current, length)),
        3 => (an_ino(), proptest::option::weighted(0.3, time())).prop_map(|(ino, after)| Step::Accessed(ino, after)),
    ]
}

/// All bytes of a file that are not in holes.
fn bytes_of(store: &Store, ino: Ino) -> BTreeMap<u64, u8> {
    let chunks = store.records.range(Key::Chunk(ino, 0)..=Key::Chunk(ino, u64::MAX));
    let mut bytes = BTreeMap::new();
    for (key, record) in chunks {
        let (Key::Chunk(_, number), Record::Chunk(chunk)) = (key, record) else { panic!("{key:?}") };
        for piece in extents_in(chunk, 0, CHUNK_SIZE as u32) {
            let Piece::Data(data) = piece else { continue };
            for i in 0..data.length {
                let at = number * CHUNK_SIZE + u64::from(data.start + i);
                bytes.insert(at, super::store::byte_of(data.block.0[0], u64::from(data.offset + i)));
            }
        }
    }
    bytes
}

/// Compares everything that can be seen.
fn compare(store: &Store, model: &Model) {
    let inodes = store.records.keys().filter_map(|key| match key {
        Key::Inode(ino) => Some(*ino),
        _ => None,
    });
    assert_eq!(inodes.collect::<BTreeSet<_>>(), model.nodes.keys().copied().collect());
    for (ino, node) in &model.nodes {
        let inode = store.inode(*ino);
        assert_eq!((inode.kind, inode.mode, inode.rdev), (node.kind, node.mode, node.rdev), "{inode:?}");
        assert_eq!((inode.uid, inode.gid, &inode.target), (node.uid, node.gid, &node.target));
        assert_eq!([inode.atime, inode.mtime, inode.ctime, inode.btime], node.times, "{inode:?}");
        assert_eq!((inode.content, &inode.sha256), (node.content, &node.sha256));
        assert_eq!(inode.nlink, model.nlink(*ino));
        assert_eq!(inode.size, if inode.is_directory() { node.children.len() as u64 } else { node.size });
        assert_eq!(bytes_of(store, *ino), node.bytes);
        let paths = model.paths(*ino);
        match store.path_of(*ino) {
            Ok(path) => assert!(paths.contains(&path), "{path:?} is none of {paths:?}"),
            Err(kind) => assert!(paths.is_empty(), "{kind:?}, but it has {paths:?}"),
        }
    }
    let entries = store.records.iter().filter_map(|(key, record)| match (key, record) {
        (Key::Entry(parent, name), Record::Entry(entry)) => Some((*parent, name.clone(), entry.ino)),
        _ => None,
    });
    assert_eq!(entries.collect::<Vec<_>>(), model.entries());
    let xattrs = store.records.iter().filter_map(|(key, record)| match (key, record) {
        (Key::Xattr(ino, name), Record::Xattr(value)) => Some((*ino, name, value)),
        _ => None,
    });
    let expected = model
        .nodes
        .iter()
        .flat_map(|(ino, node)| node.xattrs.iter().map(|(name, value)| (*ino, name, value)));
    assert!(xattrs.eq(expected));
    let usage = store.usage();
    assert_eq!((usage.bytes, usage.inodes), (model.used_bytes(), model.nodes.len() as u64 - 1));
}

fn start(quota_bytes: u64, quota_inodes: u64) -> (Store, Model) {
    let usage =
        Usage { quota_bytes: Some(quota_bytes), quota_inodes: Some(quota_inodes), ..Usage::default() };
    (Store::with(usage), Model::new(quota_bytes, quota_inodes))
}

proptest! {
    #[test]
    fn rules_and_model_agree(
        steps in vec((step(), time()), 1..70), quota_bytes in 50..600u64, quota_inodes in 3..14u64,
    ) {
        let (mut store, mut model) = start(quota_bytes, quota_inodes);
        for (step, time) in steps {
            let mutation = step.mutation(&model, time);
            let expected = model.apply(&mutation);
            prop_assert_eq!(store.apply(&mutation).map_err(|kind| kind.errno()), expected, "{:?}", mutation);
            compare(&store, &model);
        }
    }

    #[test]
    fn a_batch_does_what_its_mutations_do_one_by_one(
        steps in vec((step(), time()), 1..40), batch_size in 1..12usize,
    ) {
        let (mut store, mut model) = start(600, 14);
        let mut batched = store.clone();
        let mut results = Vec::new();
        let mut mutations = Vec::new();
        for (step, time) in steps {
            let mutation = step.mutation(&model, time);
            let _ = model.apply(&mutation);
            results.push(store.apply(&mutation));
            mutations.push(mutation);
        }
        for (mutations, results) in mutations.chunks(batch_size).zip(results.chunks(batch_size)) {
            let (batch_results, changes) = batched.batch(Loading::OneByOne, mutations);
            prop_assert_eq!(&batch_results, results);
            prop_assert_eq!(batched.batch(Loading::Whole, mutations), (batch_results, changes.clone()));
            batched.commit(changes);
        }
        prop_assert_eq!(batched, store);
    }
}
