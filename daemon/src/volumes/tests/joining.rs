//! Files that are written in many small steps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tandemfs::ErrorKind;
use tandemfs::api::fs::{DelegationRequest, ResumeSession};
use tandemfs::id::{BlockId, Ino};
use tandemfs::tree::{Chunk, Key, Mutation, Record, seams};
use tokio::time::sleep;

use super::world::{World, create, write};
use crate::fsck::tests as fsck;
use crate::settings::Settings;
use crate::volumes::Volume;
use crate::volumes::commit::Change;
use crate::volumes::joining::SEAMS_MANY;

const FILE: u64 = 10;
const PAGE: usize = 4096;

async fn world() -> World {
    let settings = Settings { lease_ms: 3_000, grace_s: 60, inline_bytes: 32 << 10, ..Settings::default() };
    let world = World::with(settings, None).await;
    world.switches.say_copies(2);
    // The file's number is one that was given.
    world.volume().await.take_inos(FILE).await.unwrap();
    world
}

/// Writes at a place, together with what else is to be done.
async fn overwrite(volume: &Arc<Volume>, mut first: Vec<Mutation>, place: usize, data: &[u8]) {
    let block = BlockId::of(volume.key(), data);
    first.push(write(FILE, place as u64, data.len() as u64, block));
    let blocks = BTreeMap::from([(block, Bytes::copy_from_slice(data))]);
    volume.commit(Change { blocks, ..Change::own(first) }).await.unwrap();
}

async fn chunk(volume: &Volume) -> Chunk {
    let state = volume.lock_live().await.unwrap();
    match volume.record(&state, &Key::Chunk(Ino(FILE), 0)).await.unwrap() {
        Some(Record::Chunk(chunk)) => chunk,
        other => panic!("{other:?}"),
    }
}

async fn content(volume: &Volume) -> Vec<u8> {
    let mut content = Vec::new();
    for extent in chunk(volume).await.0 {
        content.resize(extent.start as usize, 0);
        let data =
            volume.get_block(extent.block, extent.offset..extent.offset + extent.length).await.unwrap();
        content.extend_from_slice(&data);
    }
    content
}

async fn sound(world: &World) {
    let report = fsck::check(&world.store, &world.nodes, true, false).await;
    assert!(report.is_clean(), "{}", report.text());
}

#[tokio::test(start_paused = true)]
async fn five_thousand_overwrites_leave_few_pieces() {
    let world = world().await;
    let volume = world.volume().await;
    let mut random = StdRng::seed_from_u64(5);
    let mut model = vec![0; 4 << 20];
    overwrite(&volume, vec![create("f", FILE)], 0, &model).await;
    let mut most = 0;
    for number in 1..=5000 {
        let place = random.random_range(0..model.len() / PAGE) * PAGE;
        let mut data = vec![0; PAGE];
        random.fill_bytes(&mut data);
        overwrite(&volume, Vec::new(), place, &data).await;
        model[place..place + PAGE].copy_from_slice(&data);
        if number % 100 == 0 {
            most = most.max(chunk(&volume).await.0.len());
            world.volumes.join_noted().await.unwrap();
        }
    }
    let left = chunk(&volume).await;
    assert!(most < 400 && seams(&left) < SEAMS_MANY, "{most} {}", left.0.len());
    assert!(content(&volume).await == model);
    // On request, all that there is.
    overwrite(&volume, Vec::new(), 100, b"here").await;
    model[100..104].copy_from_slice(b"here");
    assert_eq!(world.volumes.join(1, &|_| ()).await.unwrap(), 1);
    let left = chunk(&volume).await;
    assert_eq!(seams(&left), 0);
    assert!(content(&volume).await == model);
    assert_eq!(world.volumes.join(1, &|_| ()).await.unwrap(), 0);
    sound(&world).await;
    world.clock.advance(61_000);
    world.collect().await.unwrap();
    let blocks: BTreeSet<BlockId> = left.0.iter().map(|extent| extent.block).collect();
    let inline = world.meta.scan_raw(b"d", b"e", 99).await.unwrap().len();
    assert_eq!(world.objects().await / 2 + inline, blocks.len());
    let world = world.restart().await;
    let volume = world.volume().await;
    assert!(content(&volume).await == model);
    sound(&world).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_joined_where_a_silent_session_has_the_volume() {
    let world = world().await;
    let volume = world.volume().await;
    overwrite(&volume, vec![create("f", FILE)], 0, &[1; 1000]).await;
    overwrite(&volume, Vec::new(), 100, b"here").await;
    let session = world.session().await.session;
    let take = world.sessions.delegation(&world.caller, session, &DelegationRequest::TakeVolume).await;
    assert!(take.unwrap().done);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.volumes.join(1, &|_| ()).await.unwrap(), 0);
    assert!(world.sessions.last_event(session).is_some(), "it may come back");
    world.sessions.resume(&world.caller, session, &ResumeSession::default()).await.unwrap();
    world.sessions.close(&world.caller, session).await.unwrap();
    assert_eq!(world.volumes.join(1, &|_| ()).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_written_meanwhile_is_kept_and_the_rest_joined() {
    let world = world().await;
    let volume = world.volume().await;
    overwrite(&volume, vec![create("f", FILE)], 0, &[1; 1000]).await;
    overwrite(&volume, Vec::new(), 500, &[2; 10]).await;
    let before = chunk(&volume).await;
    let data = content(&volume).await;
    overwrite(&volume, Vec::new(), 700, &[3; 10]).await;
    let block = BlockId::of(volume.key(), &data);
    let join = Mutation::Join { ino: Ino(FILE), number: 0, extents: before.0, block };
    // Without its block it is refused as any other.
    let refused = volume.commit(Change::own(vec![join.clone()])).await.unwrap_err();
    assert_eq!((refused.kind(), refused.subject()), (ErrorKind::NotFound, "block"));
    let blocks = BTreeMap::from([(block, data.into())]);
    let now = content(&volume).await;
    volume.commit(Change { blocks: blocks.clone(), ..Change::own(vec![join.clone()]) }).await.unwrap();
    assert_eq!(
        chunk(&volume).await.0.len(),
        3,
        "what is left of the pieces on both sides of what was written last"
    );
    assert!(content(&volume).await == now);
    let late = volume.commit(Change { blocks, ..Change::own(vec![join.clone()]) }).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Stale, "of no use");
    // It is not for others.
    let grant = world.session().await;
    let refused = world.batch(grant.session, 1, vec![join]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    sound(&world).await;
}

#[tokio::test(start_paused = true)]
async fn holes_stay_and_small_parts_stay_inline() {
    let world = world().await;
    let volume = world.volume().await;
    overwrite(&volume, vec![create("f", FILE)], 0, b"a").await;
    for place in 1..1000 {
        if place != 500 {
            overwrite(&volume, Vec::new(), place, &[b'a' + (place % 26) as u8]).await;
        }
    }
    let before = content(&volume).await;
    assert_eq!(world.volumes.join_noted().await.unwrap(), 1);
    assert_eq!((chunk(&volume).await.0.len(), world.objects().await), (2, 0));
    assert!(content(&volume).await == before);
    sound(&world).await;
}
