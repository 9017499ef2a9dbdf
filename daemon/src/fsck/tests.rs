//! Each kind of damage is found, and mended where that is possible; what is healthy is clean.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use tandemfs::clock::Time;
use tandemfs::id::{BlockId, Ino, NodeId};
use tandemfs::name::Name;
use tandemfs::tree::{Chunk, Entry, Extent, Inode, Key, Kind, Record, Usage};

use super::desk::inode_counter;
use super::replicas::Stores;
use super::report::Report;
use super::round::{self, Site};
use super::{finding, inode};
use crate::blocks::BlockStore;
use crate::meta::memory::MemoryStore;
use crate::meta::record::{self, Block, References};
use crate::meta::{self, MetaStore, Write, keys, put, remove};
use crate::progress::Progress;
use crate::volumes::tests::fsck::{
    DIRECTORY, EMPTY, FILE, Grown, LENGTH, ORPHAN, SUBDIRECTORY, SYMLINK, change_at_random, copy,
};
use crate::volumes::tests::world::World;

const NOW: Time = Time { seconds: 1_700_000_100, nanos: 0 };

pub(crate) async fn check(
    store: &MemoryStore,
    nodes: &[Arc<dyn BlockStore>],
    deep: bool,
    repair: bool,
) -> Report {
    let scratch = MemoryStore::new();
    let nodes = nodes.iter().zip(1..).map(|(node, number)| (NodeId(number), node.clone())).collect();
    let stores = Stores::new(store, nodes, deep).await.unwrap();
    let site = Site { store, scratch: &scratch, stores: &stores, repair, rows: 0, now: NOW };
    round::check(site, &mut Progress::new("rows", 0)).await.unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

impl Grown {
    async fn check(&self, repair: bool) -> Report {
        check(&self.store, &self.nodes, false, repair).await
    }

    fn key(&self, of: Key) -> meta::Key {
        keys::tree(self.volume, &of)
    }

    async fn write(&self, writes: Vec<Write>) {
        self.store.commit(Vec::new(), writes).await.unwrap();
    }

    async fn remove(&self, of: Key) {
        self.write(vec![remove(self.key(of))]).await;
    }

    async fn put(&self, of: Key, record: Record) {
        self.write(vec![put(self.key(of), &record).unwrap()]).await;
    }

    async fn inode(&self, ino: Ino) -> Inode {
        finding::inode(&self.store, self.volume, ino).await.unwrap().unwrap()
    }

    async fn change(&self, ino: Ino, change: impl FnOnce(&mut Inode)) {
        let mut inode = self.inode(ino).await;
        change(&mut inode);
        self.put(Key::Inode(ino), Record::Inode(Box::new(inode))).await;
    }

    async fn block(&self, id: BlockId) -> Block {
        let key = keys::block(self.volume, &id);
        let value = self.store.get_many(std::slice::from_ref(&key)).await.unwrap().pop().unwrap();
        record::decode(&key, &value.unwrap()).unwrap()
    }

    /// The rows with content, and those with attributes: nothing may take them away.
    async fn content(&self) -> Vec<(meta::Key, meta::Value)> {
        let prefix = keys::tree_prefix(self.volume);
        let rows = self.store.scan(&prefix, &keys::end_of(&prefix), usize::MAX).await.unwrap();
        rows.into_iter().filter(|(key, _)| matches!(key[9], b'c' | b'x')).collect()
    }
}

type Damage = for<'a> fn(&'a Grown) -> BoxFuture<'a, ()>;

macro_rules! damage {
    ($grown:ident, $body:expr) => {
        |$grown| Box::pin(async move { $body })
    };
}

/// What is done, and what is said of it. All of it can be mended.
const MENDED: &[(Damage, &str)] = &[
    (damage!(g, g.change(FILE, |file| file.nlink = 5).await), "/d/f: says 5 links, 2 were counted"),
    (damage!(g, g.change(EMPTY, |file| file.nlink = 0).await), "/e: says 0 links, 1 were counted"),
    (damage!(g, g.change(DIRECTORY, |d| d.entries = 9).await), "/d: says 9 entries, 3 were counted"),
    (damage!(g, g.change(DIRECTORY, |d| d.nlink = 2).await), "/d: says 2 links, 3 were counted"),
    (damage!(g, g.change(Ino::ROOT, |root| root.size = 0).await), "/: says 0 bytes for its entries"),
    (
        damage!(g, g.change(FILE, |file| file.allocated = 1).await),
        "says 1 bytes of extents, 2000 were counted",
    ),
    (damage!(g, g.change(FILE, |file| file.xattr_bytes = 0).await), "says 0 bytes of attributes"),
    (damage!(g, g.change(FILE, |file| file.size = 1).await), "ends at byte 1 and has content up to"),
    (damage!(g, g.change(SYMLINK, |link| link.size = 0).await), "/l: says 0 bytes of its target"),
    (damage!(g, g.change(FILE, |file| file.ino = EMPTY).await), "says that it is inode 7"),
    (damage!(g, g.put(Key::Usage, Record::Usage(Usage::default())).await), "says 0 bytes and 0 inodes"),
    (damage!(g, g.remove(Key::Usage).await), "what it uses is not recorded"),
    (damage!(g, g.remove(Key::Entry(DIRECTORY, name("f"))).await), "its first name does not lead to it"),
    (damage!(g, g.remove(Key::Entry(DIRECTORY, name("g"))).await), "its further name \"g\" in inode 2"),
    (damage!(g, g.remove(Key::Entry(Ino::ROOT, name("e"))).await), "/e: no name leads to it"),
    (damage!(g, g.remove(Key::Entry(Ino::ROOT, name("d"))).await), "/d: no name leads to it"),
    (damage!(g, g.remove(Key::Inode(EMPTY)).await), "/e: leads to nothing"),
    (
        damage!(g, g.remove(Key::Inode(FILE)).await),
        "/d/f: leads to an inode that is missing; some of it is left",
    ),
    (damage!(g, g.remove(Key::Inode(DIRECTORY)).await), "/d: leads to an inode that is missing"),
    (damage!(g, g.remove(Key::Inode(Ino::ROOT)).await), "/: the inode is missing"),
    (
        damage!(g, g.remove(Key::Link(FILE, DIRECTORY, name("g"))).await),
        "/d/g: is a name that its inode does not know of",
    ),
    (
        damage!(g, g.put(Key::Link(FILE, SUBDIRECTORY, name("z")), Record::Present).await),
        "its further name \"z\" in inode 3 does not lead to it",
    ),
    (
        damage!(g, {
            let entry = Entry { ino: FILE, kind: Kind::Fifo };
            g.put(Key::Entry(DIRECTORY, name("f")), Record::Entry(entry)).await
        }),
        "/d/f: is listed as Fifo and leads to File",
    ),
    (
        damage!(g, {
            let entry = Entry { ino: DIRECTORY, kind: Kind::Directory };
            g.put(Key::Entry(SUBDIRECTORY, name("up")), Record::Entry(entry)).await
        }),
        "/d/s/up: is a second name of a directory",
    ),
    (
        damage!(g, {
            g.remove(Key::Entry(Ino::ROOT, name("d"))).await;
            let entry = Entry { ino: DIRECTORY, kind: Kind::Directory };
            g.put(Key::Entry(SUBDIRECTORY, name("up")), Record::Entry(entry)).await;
            g.change(DIRECTORY, |d| (d.parent, d.name) = (SUBDIRECTORY, Some(name("up")))).await
        }),
        "hangs in a circle of directories",
    ),
    (damage!(g, g.remove(Key::Orphan(ORPHAN)).await), "inode 6: no name leads to it"),
    (
        damage!(g, g.put(Key::Orphan(EMPTY), Record::Present).await),
        "/e: is listed as an orphan and has a name",
    ),
    (
        damage!(g, g.put(Key::Orphan(Ino(15)), Record::Present).await),
        "inode 15: is listed as an orphan and is not there",
    ),
    (damage!(g, g.put(Key::Chunk(FILE, 9), Record::Chunk(Chunk::default())).await), "chunk 9 has no extents"),
    (
        damage!(g, {
            let chunk = Chunk(vec![Extent { start: 5, length: 7, block: g.blocks[0], offset: 1 }]);
            g.put(Key::Chunk(Ino(14), 0), Record::Chunk(chunk)).await
        }),
        "inode 14: the inode is missing",
    ),
    (
        damage!(g, g.write(vec![remove(inode_counter(g.volume))]).await),
        "would give the number 2 to an inode again",
    ),
    (
        damage!(g, {
            let wrong = References { count: 9, unused_since_ms: 0 };
            g.write(vec![put(keys::references(g.volume, &g.blocks[0]), &wrong).unwrap()]).await
        }),
        "is said to be referred to 9 times, 2 were counted",
    ),
    (
        damage!(g, g.write(vec![remove(keys::references(g.volume, &g.blocks[0]))]).await),
        "is said to be referred to 0 times, 2 were counted",
    ),
    (
        damage!(g, {
            let wrong = References { count: 1, unused_since_ms: 0 };
            g.write(vec![put(keys::references(g.volume, &g.blocks[1]), &wrong).unwrap()]).await
        }),
        "is said to be referred to 1 times, 0 were counted",
    ),
    (
        damage!(g, {
            let none = References { count: 0, unused_since_ms: 5 };
            g.write(vec![put(keys::references(g.volume, &BlockId([8; 32])), &none).unwrap()]).await
        }),
        "has a count of references and no record",
    ),
    (damage!(g, g.write(vec![remove(keys::block(g.volume, &g.blocks[0]))]).await), "/d/f: block"),
    (
        damage!(g, {
            let deleting = Block { deleting: true, ..g.block(g.blocks[0]).await };
            g.write(vec![put(keys::block(g.volume, &g.blocks[0]), &deleting).unwrap()]).await
        }),
        "is being deleted although it is referred to",
    ),
    (
        damage!(g, {
            let stored_ms = g.block(g.blocks[1]).await.stored_ms;
            g.write(vec![remove(keys::garbage(stored_ms, g.volume, &g.blocks[1]))]).await
        }),
        "is not referred to and would never be collected",
    ),
    (
        damage!(g, {
            let node = g.block(g.blocks[0]).await.replicas[0];
            g.nodes[node.0 as usize - 1].delete(&g.blocks[0]).await.unwrap()
        }),
        "lacks copies: the copy on node",
    ),
    (
        damage!(g, {
            let node = &g.nodes[g.block(g.blocks[0]).await.replicas[0].0 as usize - 1];
            let object = node.get(&g.blocks[0], None).await.unwrap();
            node.put(&g.blocks[0], object.slice(..object.len() - 1)).await.unwrap()
        }),
        "wrong length",
    ),
];

/// What cannot be mended: it is told of, and left as it is.
const LEFT: &[(Damage, &str)] = &[
    (
        damage!(g, g.write(vec![Write { key: b"~".to_vec(), value: Some(vec![1]) }]).await),
        "row 7e: the key is not known",
    ),
    (
        damage!(g, g.write(vec![Write { key: g.key(Key::Inode(FILE)), value: Some(vec![1; 50]) }]).await),
        "its tree is not compared, for some of it cannot be read",
    ),
    (damage!(g, g.write(vec![remove(keys::volume(g.volume))]).await), "has files, and is not there itself"),
    (
        damage!(g, {
            let extent = |start| Extent { start, length: 600, block: g.blocks[0], offset: 0 };
            g.put(Key::Chunk(FILE, 0), Record::Chunk(Chunk(vec![extent(0), extent(400)]))).await
        }),
        "/d/f: chunk 0 has extents that overlap",
    ),
    (
        damage!(g, {
            let extent = Extent { start: 0, length: LENGTH as u32, block: g.blocks[0], offset: 1 };
            g.put(Key::Chunk(FILE, 0), Record::Chunk(Chunk(vec![extent]))).await
        }),
        "has 1000 bytes, and is referred to up to byte 1001",
    ),
    (
        damage!(g, {
            for node in &g.nodes {
                node.delete(&g.blocks[0]).await.unwrap();
            }
        }),
        "has no good copy: the copy on node",
    ),
    (damage!(g, g.change(Ino::ROOT, |root| root.kind = Kind::File).await), "the root is no directory"),
];

/// What does not hold of a damage that can be mended.
async fn try_damage(grown: &Grown, damage: Damage, what: &str) -> Result<(), String> {
    damage(grown).await;
    let content = grown.content().await;
    let before = rows(&grown.store).await;
    let holds = |holds: bool, of: &str, report: &Report| match holds {
        true => Ok(()),
        false => Err(format!("{what}: not {of}: {}", report.text())),
    };
    let found = grown.check(false).await;
    holds(found.left_lines.iter().any(|line| line.contains(what)), "found", &found)?;
    holds(rows(&grown.store).await == before, "left alone by who only looks", &found)?;
    let mended = grown.check(true).await;
    holds(mended.is_clean(), "clean at once", &mended)?;
    holds(mended.mended_lines.iter().any(|line| line.contains(what)), "mended", &mended)?;
    let again = grown.check(false).await;
    holds(again.is_clean() && again.mended == 0, "clean afterwards", &again)?;
    let empty = grown.key(Key::Chunk(FILE, 9));
    let kept: Vec<_> = content.into_iter().filter(|(key, _)| *key != empty).collect();
    holds(grown.content().await == kept, "without loss", &mended)
}

#[tokio::test(start_paused = true)]
async fn each_damage_is_found_and_mended_and_no_content_goes() {
    let grown = Grown::new().await;
    assert_eq!(grown.check(false).await.text(), "clean");
    let mut wrong = Vec::new();
    for (damage, what) in MENDED {
        wrong.extend(try_damage(&grown.copy().await, *damage, what).await.err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_mended_is_told_and_left() {
    let grown = Grown::new().await;
    for (damage, what) in LEFT {
        let grown = grown.copy().await;
        damage(&grown).await;
        let content = grown.content().await;
        for repair in [false, true] {
            let report = grown.check(repair).await;
            assert!(report.left_lines.iter().any(|line| line.contains(what)), "{what}: {}", report.text());
        }
        assert_eq!(grown.content().await, content, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_is_found_by_who_reads_everything() {
    let grown = Grown::new().await;
    let node = &grown.nodes[grown.block(grown.blocks[0]).await.replicas[0].0 as usize - 1];
    let mut object = node.get(&grown.blocks[0], None).await.unwrap().to_vec();
    *object.last_mut().unwrap() ^= 1;
    node.put(&grown.blocks[0], object.into()).await.unwrap();
    assert_eq!(grown.check(false).await.text(), "clean");
    let found = check(&grown.store, &grown.nodes, true, false).await;
    assert!(found.text().contains("wrong checksum of the data"), "{}", found.text());
    assert!(check(&grown.store, &grown.nodes, true, true).await.is_clean());
    assert_eq!(grown.block(grown.blocks[0]).await.replicas.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_copy_stays_while_no_other_is_known_to_be_good() {
    let grown = Grown::new().await;
    let block = grown.block(grown.blocks[0]).await;
    let [bad, away] = block.replicas.as_slice() else { panic!("{block:?}") };
    grown.nodes[bad.0 as usize - 1].put(&grown.blocks[0], vec![1, 2, 3].into()).await.unwrap();
    let scratch = MemoryStore::new();
    let nodes = grown.nodes.iter().zip(1..).map(|(node, number)| (NodeId(number), node.clone()));
    let nodes = nodes.filter(|(node, _)| node != away).collect();
    let stores = Stores::new(&grown.store, nodes, true).await.unwrap();
    let site =
        Site { store: &grown.store, scratch: &scratch, stores: &stores, repair: true, rows: 0, now: NOW };
    let report = round::check(site, &mut Progress::new("rows", 0)).await.unwrap();
    assert_eq!((report.left, report.mended), (1, 0), "{}", report.text());
    assert_eq!(grown.block(grown.blocks[0]).await, block);
}

#[tokio::test(start_paused = true)]
async fn objects_that_no_record_names_are_no_fault() {
    let grown = Grown::new().await;
    let object = tandemfs::block::encode(grown.volume, &BlockId([7; 32]), b"stray").unwrap();
    grown.nodes[1].put(&BlockId([7; 32]), object).await.unwrap();
    let report = grown.check(true).await;
    assert!(report.is_clean());
    assert_eq!(report.text(), "note: node 2: 1 objects that no record names; a scrub removes them\nclean");
}

#[tokio::test(start_paused = true)]
async fn many_that_are_lost_are_all_found_again() {
    let grown = Grown::new().await;
    let count = 700;
    let lost = |ino| {
        let inode = inode::skeleton(Ino(ino), Kind::File, NOW);
        let inode = Inode { parent: DIRECTORY, name: Some(name("gone")), ..inode };
        put(grown.key(Key::Inode(Ino(ino))), &Record::Inode(Box::new(inode))).unwrap()
    };
    let mut writes: Vec<Write> = (100..100 + count).map(lost).collect();
    writes.push(put(inode_counter(grown.volume), &1000_u64).unwrap());
    grown.write(writes).await;
    let report = grown.check(true).await;
    assert!(report.is_clean() && report.mended >= count, "{}", report.text());
    assert_eq!(grown.check(false).await.text(), "clean");
    let root = grown.inode(Ino::ROOT).await;
    assert_eq!((root.entries, root.nlink), (4, 4));
    assert_eq!(grown.inode(Ino(1001)).await.entries, count, "lost+found");
}

async fn rows(store: &MemoryStore) -> BTreeMap<meta::Key, meta::Value> {
    store.scan(&[], &keys::END, usize::MAX).await.unwrap().into_iter().collect()
}

#[tokio::test(start_paused = true)]
async fn what_was_done_by_the_rules_is_clean() {
    for seed in 0..30 {
        let world = World::new().await;
        world.volume().await.take_inos(100).await.unwrap();
        change_at_random(&world, seed, 200).await;
        let store = copy(&world.store).await;
        let report = check(&store, &world.nodes, true, false).await;
        assert_eq!(report.text(), "clean", "seed {seed}");
    }
}
