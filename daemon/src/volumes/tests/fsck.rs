//! fsck beside writers, and what it is tried on.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use tandemfs::block::Draft;
use tandemfs::clock::Clock as _;
use tandemfs::id::{BlockId, Ino, VolumeId};
use tandemfs::tree::{Key, Mutation, NewNode, Record, RenameMode, SetAttributes, XattrMode};

use super::world::{ROOT_USER, World, create_in, name, time, write};
use crate::blocks::{self, BlockStore};
use crate::fsck::Report;
use crate::meta::memory::MemoryStore;
use crate::meta::record::References;
use crate::meta::{MetaStore, keys, put, record, remove};
use crate::volumes::commit::Change;
use crate::volumes::{Live, Volume};

/// A copy of everything that a small volume has on its daemon's disk and on its nodes.
pub(crate) struct Grown {
    pub(crate) volume: VolumeId,
    pub(crate) store: MemoryStore,
    pub(crate) nodes: Vec<Arc<dyn BlockStore>>,
    /// The content of [`FILE`], and a block that nothing refers to.
    pub(crate) blocks: [BlockId; 2],
}

/// A directory in the root, with a directory and a file in it.
pub(crate) const DIRECTORY: Ino = Ino(2);
/// The directory in that.
pub(crate) const SUBDIRECTORY: Ino = Ino(3);
/// The file there, `f`; its other name is `g`.
pub(crate) const FILE: Ino = Ino(4);
/// A symbolic link in the root.
pub(crate) const SYMLINK: Ino = Ino(5);
/// A file without a name that somebody reads.
pub(crate) const ORPHAN: Ino = Ino(6);
/// An empty file in the root, `e`.
pub(crate) const EMPTY: Ino = Ino(7);
/// The content of the file is so long.
pub(crate) const LENGTH: u64 = 1000;

async fn store_block(volume: &Volume, data: &[u8]) -> BlockId {
    let id = BlockId::of(volume.key(), data);
    volume.put_block(id, Draft::of(data).unwrap()).await.unwrap();
    id
}

impl Grown {
    pub(crate) async fn new() -> Self {
        let world = World::new().await;
        let volume = world.volume().await;
        assert_eq!(volume.take_inos(16).await.unwrap().start, DIRECTORY.0);
        let content = store_block(&volume, &[1; LENGTH as usize]).await;
        let unused = store_block(&volume, b"nothing refers to it").await;
        let link = Mutation::Link { ino: FILE, parent: DIRECTORY, name: name("g"), time: time(1) };
        let attribute = Mutation::SetXattr {
            ino: FILE,
            name: b"user.color".to_vec(),
            value: b"red".to_vec(),
            mode: XattrMode::Set,
            by: ROOT_USER,
            time: time(1),
        };
        let made = vec![
            create_in(Ino::ROOT, "d", DIRECTORY.0, NewNode::Directory),
            create_in(DIRECTORY, "s", SUBDIRECTORY.0, NewNode::Directory),
            create_in(DIRECTORY, "f", FILE.0, NewNode::File),
            create_in(Ino::ROOT, "l", SYMLINK.0, NewNode::Symlink(b"d/f".to_vec())),
            create_in(Ino::ROOT, "o", ORPHAN.0, NewNode::File),
            create_in(Ino::ROOT, "e", EMPTY.0, NewNode::File),
            write(FILE.0, 0, LENGTH, content),
            write(FILE.0, 5 << 20, LENGTH, content),
            link,
            attribute,
        ];
        volume.commit(Change::own(made)).await.unwrap();
        let _reader = volume.orphans.read(ORPHAN);
        volume.commit(Change::own(vec![super::world::unlink("o")])).await.unwrap();
        let grown = Self {
            volume: volume.id,
            store: world.store.clone(),
            nodes: world.nodes.clone(),
            blocks: [content, unused],
        };
        grown.copy().await
    }

    /// Another one like it.
    pub(crate) async fn copy(&self) -> Self {
        let store = copy(&self.store).await;
        let mut nodes = Vec::new();
        for node in &self.nodes {
            let copy = blocks::memory::MemoryStore::new();
            for object in node.list(None, usize::MAX).await.unwrap() {
                copy.put(&object.id, node.get(&object.id, None).await.unwrap()).await.unwrap();
            }
            nodes.push(Arc::new(copy) as Arc<dyn BlockStore>);
        }
        Self { volume: self.volume, store, nodes, blocks: self.blocks }
    }
}

/// A copy of all rows.
pub(crate) async fn copy(store: &MemoryStore) -> MemoryStore {
    let copy = MemoryStore::new();
    let rows = store.scan(&[], &keys::END, usize::MAX).await.unwrap();
    let writes = rows.into_iter().map(|(key, value)| crate::meta::Write { key, value: Some(value) });
    copy.commit(Vec::new(), writes.collect()).await.unwrap();
    copy
}

/// Something that one may do to a volume; most of it is refused.
fn any_mutation(random: &mut StdRng, blocks: &[BlockId]) -> Mutation {
    let ino = Ino(random.random_range(1..14));
    let parent = Ino([1, 1, 2, 3, 4][random.random_range(0..5)]);
    let text = ["a", "b", "c", "d"][random.random_range(0..4)];
    let other = ["a", "b", "c", "d"][random.random_range(0..4)];
    let offset = [0, 500, (4 << 20) - 300, 9 << 20][random.random_range(0..4)];
    let block = blocks[random.random_range(0..blocks.len())];
    let time = time(random.random_range(1..1000));
    match random.random_range(0..12) {
        0 => create_in(parent, text, ino.0, NewNode::Directory),
        1 | 2 => create_in(parent, text, ino.0, NewNode::File),
        3 => create_in(parent, text, ino.0, NewNode::Symlink(b"there".to_vec())),
        4 => Mutation::Link { ino, parent, name: name(text), time },
        5 => Mutation::Unlink { parent, name: name(text), by: ROOT_USER, time },
        6 => Mutation::RemoveDirectory { parent, name: name(text), by: ROOT_USER, time },
        7 => Mutation::Rename {
            parent,
            name: name(text),
            new_parent: Ino([1, 2, 3][random.random_range(0..3)]),
            new_name: name(other),
            mode: [RenameMode::Replace, RenameMode::Exchange][random.random_range(0..2)],
            by: ROOT_USER,
            time,
        },
        8 | 9 => write(ino.0, offset, 1000, block),
        10 => Mutation::SetAttributes {
            ino,
            set: SetAttributes { size: Some(offset + 100), ..SetAttributes::default() },
            by: ROOT_USER,
            time,
        },
        _ => Mutation::SetXattr {
            ino,
            name: format!("user.{text}").into_bytes(),
            value: vec![7; random.random_range(0..50)],
            mode: XattrMode::Set,
            by: ROOT_USER,
            time,
        },
    }
}

/// Blocks of a world, and changes of it.
pub(crate) async fn change_at_random(world: &World, seed: u64, changes: usize) {
    let volume = world.volume().await;
    let mut random = StdRng::seed_from_u64(seed);
    let mut blocks = Vec::new();
    for number in 0..4 {
        blocks.push(store_block(&volume, &[number; 1000]).await);
    }
    for _ in 0..changes {
        let batch = (0..random.random_range(1..4)).map(|_| any_mutation(&mut random, &blocks)).collect();
        // Refused, or done.
        let _ = volume.commit(Change::own(batch)).await;
    }
}

async fn fsck(world: &World, repair: bool) -> Report {
    let scratch = MemoryStore::new();
    let live = Live { scratch: &scratch, repair, progress: &|_, _| {} };
    world.volumes.fsck(live).await.unwrap()
}

async fn with_numbers(world: &World) {
    // Those that the changes give.
    world.volume().await.take_inos(100).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_wrong_while_others_work() {
    for seed in 0..4 {
        let world = World::new().await;
        world.switches.delay(std::time::Duration::from_micros(50), std::time::Duration::from_millis(2));
        with_numbers(&world).await;
        let work = async {
            for part in 0..4 {
                change_at_random(&world, seed * 10 + part, 150).await;
                world.clock.advance(30_000);
                world.collect().await.unwrap();
            }
        };
        let check = async {
            let mut checks = 0;
            loop {
                let report = fsck(&world, checks % 2 == 1).await;
                assert_eq!((report.left, report.mended), (0, 0), "seed {seed}: {}", report.text());
                checks += 1;
            }
        };
        tokio::select! {
            () = work => {}
            () = check => {}
        }
        let report = fsck(&world, false).await;
        assert_eq!(report.text(), "clean", "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn counts_links_usage_and_copies_are_mended_while_others_work() {
    let world = World::new().await;
    with_numbers(&world).await;
    let volume = world.volume().await;
    let id = world.upload("d/f", &[3; 5000]).await.unwrap();
    let content = BlockId::of(volume.key(), &[3; 5000]);
    let unused = store_block(&volume, b"nothing refers to it").await;
    let now = u64::try_from(world.clock.now().as_millis()).unwrap();
    let rows = world
        .store
        .scan(&keys::tree_prefix(volume.id), &keys::end_of(&keys::tree_prefix(volume.id)), 100)
        .await;
    let mut damaged = Vec::new();
    for (key, value) in rows.unwrap() {
        match record::decode::<Record>(&key, &value).unwrap() {
            Record::Inode(mut inode) => {
                inode.nlink += 3;
                inode.allocated += 5;
                inode.entries += 1;
                damaged.push(put(key, &Record::Inode(inode)).unwrap());
            }
            Record::Usage(usage) => {
                let wrong = tandemfs::tree::Usage { bytes: 1, inodes: 77, ..usage };
                damaged.push(put(key, &Record::Usage(wrong)).unwrap());
            }
            _ => {}
        }
    }
    let wrong = References { count: 9, unused_since_ms: 0 };
    damaged.push(put(keys::references(volume.id, &content), &wrong).unwrap());
    damaged.push(remove(keys::garbage(now, volume.id, &unused)));
    world.store.commit(Vec::new(), damaged).await.unwrap();
    for node in &world.nodes {
        if node.head(&content).await.unwrap().is_some() {
            node.delete(&content).await.unwrap();
            break;
        }
    }
    let found = fsck(&world, false).await;
    assert!(found.left >= 6 && found.mended == 0, "{}", found.text());
    let mended = fsck(&world, true).await;
    assert!(mended.is_clean() && mended.mended >= 6, "{}", mended.text());
    let report = fsck(&world, false).await;
    assert_eq!(report.text(), "clean");
    assert_eq!(world.download(&id, 0..5000).await.unwrap(), vec![3; 5000]);
    // What is in memory is what is stored.
    let usage = world.volumes.usage(volume.id).await.unwrap();
    assert_eq!((usage.bytes, usage.inodes), (5000, 2));
    world.delete(&id).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_takes_more_than_counting_is_for_when_the_daemon_is_stopped() {
    let world = World::new().await;
    with_numbers(&world).await;
    world.upload("f", b"content").await.unwrap();
    let volume = world.volume().await.id;
    let entry = keys::tree(volume, &Key::Entry(Ino::ROOT, name("f")));
    world.store.commit(Vec::new(), vec![remove(entry)]).await.unwrap();
    for repair in [false, true] {
        let report = fsck(&world, repair).await;
        let text = report.text();
        assert!(
            text.contains("no name leads to it; stop the daemon and run tandemd fsck --repair"),
            "{text}"
        );
        assert!(report.left >= 1);
    }
}
