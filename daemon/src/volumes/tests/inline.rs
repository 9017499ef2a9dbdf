//! Small blocks: they come with a commit, lie in the metadata, and leave it for packs.

use tandemfs::ErrorKind;
use tandemfs::api::fs::{BLOCKS_MAX, Batch, INLINE_MAX, InlineBlock};
use tandemfs::id::BlockId;
use tandemfs::tree::Mutation;

use super::world::{World, create, unlink, write};
use crate::meta::faulty::Failure;
use crate::settings::Settings;

async fn world() -> World {
    let settings = Settings { lease_ms: 3_000, grace_s: 60, inline_bytes: 32 << 10, ..Settings::default() };
    let world = World::with(settings, None).await;
    world.switches.say_copies(2);
    world
}

/// Rows of bytes in the metadata.
async fn rows(world: &World) -> usize {
    world.meta.scan_raw(b"d", b"e", 1000).await.unwrap().len()
}

fn content(number: u8) -> Vec<u8> {
    vec![number; 1000 + usize::from(number)]
}

async fn uploaded(world: &World, count: u8) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..count {
        ids.push(world.upload(&format!("/f{number}"), &content(number)).await.unwrap());
    }
    ids
}

async fn all_right(world: &World, ids: &[String]) {
    for (number, id) in (0..).zip(ids) {
        let bytes = content(number);
        assert_eq!(world.download(id, 0..bytes.len() as u64).await.unwrap(), bytes);
        assert_eq!(world.download(id, 10..900).await.unwrap(), bytes[10..900]);
        let stat = world.volumes.stat(&world.caller, id).await.unwrap();
        assert_eq!((stat.file.replicas, stat.blocks[0].replicas.len()), (2, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_small_file_is_one_commit_and_no_object() {
    let world = world().await;
    let before = world.switches.counts().commits;
    let ids = uploaded(&world, 3).await;
    // Beside the files: numbers for their inodes.
    assert!(world.switches.counts().commits - before <= 4);
    assert_eq!((world.objects().await, rows(&world).await), (0, 3));
    all_right(&world, &ids).await;
    let world = world.restart().await;
    world.switches.say_copies(2);
    all_right(&world, &ids).await;
    // The same bytes once more are not stored once more.
    let again = world.upload("/again", &content(1)).await.unwrap();
    assert_eq!(rows(&world).await, 3);
    for id in &ids {
        world.delete(id).await.unwrap();
    }
    world.clock.advance(61_000);
    assert_eq!((world.collect().await.unwrap(), rows(&world).await), (2, 1));
    assert_eq!(world.download(&again, 0..5).await.unwrap(), content(1)[..5]);
    let large = world.upload("/large", &vec![7; INLINE_MAX + 1]).await.unwrap();
    assert_eq!((world.objects().await, rows(&world).await), (2, 1));
    assert_eq!(world.download(&large, 0..3).await.unwrap(), [7; 3]);
}

#[tokio::test(start_paused = true)]
async fn an_engine_without_copies_keeps_no_data() {
    let world = world().await;
    world.switches.say_copies(1);
    uploaded(&world, 2).await;
    assert_eq!((world.objects().await, rows(&world).await), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn packed_blocks_are_one_object_until_the_last_is_gone() {
    let world = world().await;
    let ids = uploaded(&world, 20).await;
    // One alone stays where it is.
    assert_eq!(world.volumes.pack().await.unwrap(), 20);
    assert_eq!(world.volumes.pack().await.unwrap(), 0);
    assert_eq!((world.objects().await, rows(&world).await), (2, 0));
    all_right(&world, &ids).await;
    let world = world.restart().await;
    world.switches.say_copies(2);
    all_right(&world, &ids).await;
    for id in &ids[..19] {
        world.delete(id).await.unwrap();
    }
    world.clock.advance(61_000);
    assert_eq!((world.collect().await.unwrap(), world.objects().await), (19, 2));
    assert_eq!(world.download(&ids[19], 0..4).await.unwrap(), [19; 4]);
    world.delete(&ids[19]).await.unwrap();
    world.clock.advance(61_000);
    world.collect().await.unwrap();
    world.clock.advance(61_000);
    world.collect().await.unwrap();
    assert_eq!((world.objects().await, world.meta.scan_raw(b"b", b"c", 9).await.unwrap().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_pack_that_is_not_recorded_is_garbage() {
    let world = world().await;
    let ids = uploaded(&world, 5).await;
    // The record of the pack's object is committed, that of its members is not.
    world.switches.fail_commits(1, 1, Failure::Refused);
    assert_eq!(world.volumes.pack().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!((world.objects().await, rows(&world).await), (2, 5));
    all_right(&world, &ids).await;
    world.clock.advance(61_000);
    assert_eq!((world.collect().await.unwrap(), world.objects().await), (1, 0));
    all_right(&world, &ids).await;
}

#[tokio::test(start_paused = true)]
async fn a_batch_brings_its_blocks() {
    let world = world().await;
    let grant = world.session().await;
    let volume = world.volume().await;
    let first = world.sessions.inodes(&world.caller, grant.session).await.unwrap().first.0;
    let block = |bytes: &[u8]| InlineBlock { id: BlockId::of(&grant.key, bytes), data: bytes.to_vec() };
    let send = async |sequence: u64, mutations: Vec<Mutation>, blocks: Vec<InlineBlock>| {
        let batch =
            Batch { sequence, mutations, held: Vec::new(), delegates: Vec::new(), blocks, brief: false };
        world.sessions.batch(&world.caller, grant.session, batch).await.map_err(|error| error.kind())
    };
    let good = block(b"good");
    let mutations = |length| vec![create("a", first), write(first, 0, length, good.id)];
    let other = InlineBlock { id: good.id, data: b"other".to_vec() };
    assert_eq!(send(1, mutations(4), vec![other]).await, Err(ErrorKind::Invalid));
    assert_eq!(send(1, mutations(5), vec![good.clone()]).await, Err(ErrorKind::Invalid));
    assert_eq!(send(1, mutations(4), Vec::new()).await, Err(ErrorKind::NotFound));
    let large = block(&vec![1; INLINE_MAX + 1]);
    assert_eq!(send(1, mutations(4), vec![good.clone(), large]).await, Err(ErrorKind::Invalid));
    world.switches.fail_commits(0, 1, Failure::Refused);
    assert_eq!(send(1, mutations(4), vec![good.clone()]).await, Err(ErrorKind::Unavailable));
    assert_eq!(rows(&world).await, 0);
    let reply = send(1, mutations(4), vec![good.clone()]).await;
    assert!(reply.is_ok());
    assert_eq!(send(1, mutations(4), vec![good.clone()]).await, reply);
    assert_eq!(volume.get_block(good.id, 0..4).await.unwrap(), b"good".as_slice());
    // What a batch brings and does not name is garbage.
    let idle = block(b"idle");
    send(2, vec![unlink("a")], vec![idle]).await.unwrap();
    assert_eq!(rows(&world).await, 2);
    world.clock.advance(61_000);
    assert_eq!((world.collect().await.unwrap(), rows(&world).await), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn many_blocks_are_read_at_once_wherever_they_lie() {
    let world = world().await;
    uploaded(&world, 6).await;
    assert_eq!(world.volumes.pack().await.unwrap(), 6);
    for number in 6..9 {
        world.upload(&format!("/f{number}"), &content(number)).await.unwrap();
    }
    let large = vec![9; INLINE_MAX + 1];
    world.upload("/large", &large).await.unwrap();
    let volume = world.volume().await;
    let id = |data: &[u8]| BlockId::of(volume.key(), data);
    let mut expected: Vec<_> = (0..9).map(content).chain([large]).map(|data| (id(&data), data)).collect();
    let mut ids: Vec<_> = expected.iter().map(|(id, _)| *id).collect();
    ids.push(BlockId([5; 32]));
    let found = async |ids: &[BlockId]| {
        let mut found: Vec<_> =
            volume.get_blocks(ids).await.unwrap().into_iter().map(|(id, data)| (id, data.to_vec())).collect();
        found.sort();
        found
    };
    expected.sort();
    assert_eq!(found(&ids).await, expected, "three kinds of places, and one that is nowhere");
    for node in &world.nodes {
        node.delete(&id(&vec![9; INLINE_MAX + 1])).await.unwrap();
    }
    assert_eq!(found(&ids).await.len(), 9, "one that is lost is left out");
    let too_many = vec![ids[0]; BLOCKS_MAX + 1];
    assert_eq!(volume.get_blocks(&too_many).await.unwrap_err().kind(), ErrorKind::Invalid);
    let replicator = world.volumes.replicator();
    let few = replicator.get_many(world.caller.home, &ids[..4], 2500).await.unwrap();
    assert_eq!(few.len(), 2, "no more bytes than are wanted");
}
