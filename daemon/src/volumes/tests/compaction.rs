//! Packs of which less than half is in use.

use tandemfs::ErrorKind;
use tandemfs::id::BlockId;

use super::world::World;
use crate::fsck::tests as fsck;
use crate::meta::faulty::Failure;
use crate::meta::keys;
use crate::meta::record::Block;
use crate::replicate::{Load, Moving, waste};
use crate::settings::Settings;

/// Longer than the grace period, in milliseconds.
const GRACE: i64 = 61_000;
const SIZE: usize = 10_000;

async fn world() -> World {
    let settings = Settings { lease_ms: 3_000, grace_s: 60, inline_bytes: 32 << 10, ..Settings::default() };
    let world = World::with(settings, None).await;
    world.switches.say_copies(2);
    world
}

fn content(number: u8) -> Vec<u8> {
    vec![number; SIZE]
}

/// So many files of different content in one pack.
async fn packed(world: &World, count: u8) -> Vec<String> {
    packed_from(world, 0, count).await
}

async fn packed_from(world: &World, first: u8, count: u8) -> Vec<String> {
    let mut ids = Vec::new();
    for number in first..first + count {
        ids.push(world.upload(&format!("/f{number}"), &content(number)).await.unwrap());
    }
    assert_eq!(world.volumes.pack().await.unwrap(), u64::from(count));
    ids
}

/// Deletes all but the first few, and their blocks.
async fn keep(world: &World, ids: &[String], first: usize) {
    for id in &ids[first..] {
        world.delete(id).await.unwrap();
    }
    world.clock.advance(GRACE);
    assert_eq!(world.collect().await.unwrap(), (ids.len() - first) as u64);
}

async fn collected(world: &World) -> u64 {
    world.clock.advance(GRACE);
    world.collect().await.unwrap()
}

async fn all_right(world: &World, ids: &[String]) {
    for (number, id) in (0..).zip(ids) {
        assert_eq!(world.download(id, 0..SIZE as u64).await.unwrap(), content(number));
        assert_eq!(world.download(id, 10..900).await.unwrap(), content(number)[10..900]);
    }
    sound(world).await;
}

#[tokio::test(start_paused = true)]
async fn less_than_half_a_pack_is_rewritten() {
    let world = world().await;
    let ids = packed(&world, 20).await;
    keep(&world, &ids, 11).await;
    assert_eq!(world.volumes.half_dead().blocks, 0);
    assert_eq!(world.compact().await.unwrap().packed.blocks, 0);
    keep(&world, &ids[..11], 5).await;
    let half_dead = world.volumes.half_dead();
    assert_eq!(half_dead.blocks, 1);
    let before = pack_bytes(&world).await;
    let done = world.compact().await.unwrap().packed;
    assert_eq!((done.blocks, done.emptied, done.emptied_bytes), (5, 1, u64::from(before[0])));
    // What was said to be won is won, but for the end of the new table.
    assert_eq!(done.emptied_bytes - done.bytes, half_dead.bytes - 12);
    assert_eq!((world.volumes.half_dead().blocks, world.objects().await), (0, 4));
    all_right(&world, &ids[..5]).await;
    // The old one can be read and brought back for the whole grace period.
    world.clock.advance(GRACE / 2);
    assert_eq!((world.collect().await.unwrap(), world.objects().await), (0, 4));
    assert_eq!((collected(&world).await, world.objects().await), (1, 2));
    let world = world.restart().await;
    world.switches.say_copies(2);
    all_right(&world, &ids[..5]).await;
    assert_eq!(world.compact().await.unwrap().packed.blocks, 0);
    keep(&world, &ids[..5], 0).await;
    collected(&world).await;
    assert_eq!((world.objects().await, world.volumes.half_dead().blocks), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_several_comes_together_and_one_alone_is_enough() {
    let world = world().await;
    let mut ids = Vec::new();
    for first in [0, 10, 20] {
        ids.extend(packed_from(&world, first, 10).await);
    }
    assert_eq!(pack_bytes(&world).await.len(), 3);
    for (number, id) in ids.iter().enumerate() {
        if number % 10 != 3 {
            world.delete(id).await.unwrap();
        }
    }
    collected(&world).await;
    let done = world.compact().await.unwrap().packed;
    assert_eq!((done.blocks, done.emptied, pack_bytes(&world).await.len()), (3, 3, 1));
    collected(&world).await;
    world.delete(&ids[3]).await.unwrap();
    world.delete(&ids[13]).await.unwrap();
    collected(&world).await;
    assert_eq!(world.compact().await.unwrap().packed.blocks, 1);
    collected(&world).await;
    assert_eq!(world.objects().await, 2);
    assert_eq!(world.download(&ids[23], 0..SIZE as u64).await.unwrap(), content(23));
    sound(&world).await;
}

#[tokio::test(start_paused = true)]
async fn files_that_share_a_block_share_it_afterwards() {
    let world = world().await;
    let ids = packed(&world, 20).await;
    let again = world.upload("/again", &content(1)).await.unwrap();
    keep(&world, &ids, 3).await;
    assert_eq!(world.compact().await.unwrap().packed.blocks, 3);
    world.delete(&ids[1]).await.unwrap();
    collected(&world).await;
    assert_eq!(world.download(&again, 0..SIZE as u64).await.unwrap(), content(1));
    // What comes once more is there already, wherever it lies.
    let objects = world.objects().await;
    let third = world.upload("/third", &content(1)).await.unwrap();
    assert_eq!((world.objects().await, world.download(&third, 0..5).await.unwrap()), (objects, vec![1; 5]));
    sound(&world).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_changes_meanwhile_keeps_its_change() {
    let world = world().await;
    let ids = packed(&world, 20).await;
    keep(&world, &ids, 4).await;
    let volume = world.volume().await;
    let (id, block) = half_dead(&world).await;
    let replicator = world.volumes.replicator();
    let found = replicator.unpack(world.caller.home, volume.key(), id, block.size).await.unwrap();
    assert_eq!(found.len(), 4);
    let load = || {
        let mut load = Load::default();
        for Moving { id, from, data } in &found {
            load.add(Moving { id: *id, from: *from, data: data.clone() });
        }
        load
    };
    // Between reading and moving, one file is another one, and another file's block is being removed.
    world.delete(&ids[0]).await.unwrap();
    let new = world.upload("/f0", &content(100)).await.unwrap();
    world.delete(&ids[1]).await.unwrap();
    collected(&world).await;
    let packed = replicator.pack(world.caller.home, volume.key().clone(), load()).await.unwrap();
    assert_eq!((packed.blocks, packed.emptied), (2, 1));
    assert_eq!(world.download(&new, 0..SIZE as u64).await.unwrap(), content(100));
    // Who comes late with the same moves nothing.
    let packed = replicator.pack(world.caller.home, volume.key().clone(), load()).await.unwrap();
    assert_eq!(packed.blocks, 0);
    collected(&world).await;
    for number in [2, 3] {
        let all = world.download(&ids[usize::from(number)], 0..SIZE as u64).await.unwrap();
        assert_eq!(all, content(number));
    }
    sound(&world).await;
}

#[tokio::test(start_paused = true)]
async fn a_kill_before_the_switch_leaves_garbage() {
    let world = world().await;
    let ids = packed(&world, 20).await;
    keep(&world, &ids, 4).await;
    // The record of the new pack is committed, the move is not.
    world.switches.fail_commits(1, 1, Failure::Refused);
    assert_eq!(world.compact().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(world.objects().await, 4);
    let world = world.restart().await;
    world.switches.say_copies(2);
    all_right(&world, &ids[..4]).await;
    assert_eq!((collected(&world).await, world.objects().await), (1, 2));
    assert_eq!(world.compact().await.unwrap().packed.blocks, 4);
    // Those that are moved leave the old one behind, which is garbage in its turn.
    assert_eq!((collected(&world).await, world.objects().await), (1, 2));
    all_right(&world, &ids[..4]).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_copy_is_read_around_and_a_lost_pack_keeps_no_other() {
    let world = world().await;
    let ids = packed(&world, 20).await;
    let (lost, _) = packs(&world).await.remove(0);
    let others: Vec<String> = packed_from(&world, 20, 20).await;
    keep(&world, &ids, 4).await;
    keep(&world, &others, 4).await;
    let mut is_first = true;
    for node in &world.nodes {
        for object in node.list(None, 9).await.unwrap() {
            if object.id == lost || std::mem::take(&mut is_first) {
                node.delete(&object.id).await.unwrap();
            }
        }
    }
    assert_eq!(world.volumes.half_dead().blocks, 2);
    let done = world.compact().await.unwrap().packed;
    assert_eq!((done.blocks, done.emptied), (4, 1));
    for (number, id) in (20..).zip(&others[..4]) {
        assert_eq!(world.download(id, 0..SIZE as u64).await.unwrap(), content(number));
    }
}

#[tokio::test(start_paused = true)]
async fn a_preview_says_what_a_collection_removes_and_removes_nothing() {
    let world = world().await;
    let ids = packed(&world, 20).await;
    world.upload("/large", &vec![7; 100_000]).await.unwrap();
    for id in &ids[4..] {
        world.delete(id).await.unwrap();
    }
    let preview = async |age_ms: u64| {
        let now_ms = world.now_ms();
        let (mut from, mut sum) = (None, (0, 0));
        loop {
            let step = world.volumes.preview(from, now_ms - age_ms, 7).await.unwrap();
            sum = (sum.0 + step.blocks, sum.1 + step.bytes);
            match step.next {
                Some(next) => from = Some(next),
                None => return sum,
            }
        }
    };
    assert_eq!(preview(60_000).await, (0, 0));
    world.clock.advance(GRACE);
    let rows = world.meta.scan_raw(b"", b"z", 10_000).await.unwrap();
    assert_eq!(preview(60_000).await, (16, 16 * SIZE as u64));
    assert!(rows == world.meta.scan_raw(b"", b"z", 10_000).await.unwrap());
    assert_eq!(world.collect().await.unwrap(), 16);
    assert_eq!((preview(60_000).await, world.volumes.half_dead().blocks), ((0, 0), 1));
    world.compact().await.unwrap();
    let old = packs(&world).await.remove(0).1.size;
    world.clock.advance(GRACE);
    let (blocks, bytes) = preview(60_000).await;
    assert!(blocks == 1 && bytes > u64::from(old), "{blocks} {bytes}");
    assert_eq!(world.collect().await.unwrap(), 1);
}

/// The packs.
async fn packs(world: &World) -> Vec<(BlockId, Block)> {
    let (from, to) = keys::all_blocks();
    let blocks = world.meta.scan::<Block>(&from, &to, 1000).await.unwrap();
    let packs = blocks.into_iter().filter(|(_, block)| block.members > 0);
    packs.map(|(key, block)| (keys::block_of(&key).unwrap().1, block)).collect()
}

async fn pack_bytes(world: &World) -> Vec<u32> {
    packs(world).await.into_iter().map(|(_, block)| block.size).collect()
}

/// The pack of which less than half is in use.
async fn half_dead(world: &World) -> (BlockId, Block) {
    packs(world).await.into_iter().find(|(_, block)| waste(block).is_some()).unwrap()
}

/// What is stored fits together, also for the check without a daemon.
async fn sound(world: &World) {
    let report = fsck::check(&world.store, &world.nodes, true, false).await;
    assert!(report.is_clean(), "{}", report.text());
}
