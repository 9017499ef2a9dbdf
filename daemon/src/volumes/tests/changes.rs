//! Batches: their order, their failure, and what a reader sees meanwhile.

use futures::future::join_all;
use std::collections::BTreeSet;
use std::time::Duration;
use tandemfs::ErrorKind;
use tandemfs::block::Draft;
use tandemfs::id::{BlockId, Ino};
use tandemfs::tree::{Key, Mutation, NewNode, Record, RenameMode, Want};

use super::world::{ROOT_USER, World, create, create_in, name, time, unlink, write};
use crate::meta::faulty::Failure;
use crate::settings::Settings;
use crate::volumes::commit::Change;

/// Names in the root, as a read answers.
async fn names(world: &World) -> BTreeSet<String> {
    let want = Want::Directory { ino: Ino::ROOT, after: None, limit: 4096 };
    let answer = world.volume().await.read(None, &[want]).await.unwrap().answers.remove(0);
    assert!(answer.complete);
    let entries = answer.records.iter().filter_map(|(key, _)| match key {
        Key::Entry(_, name) => Some(name.to_lossy()),
        _ => None,
    });
    entries.collect()
}

#[tokio::test(start_paused = true)]
async fn racing_batches_give_each_name_once() {
    let world = World::new().await;
    world.switches.delay(Duration::ZERO, Duration::from_millis(5));
    let volume = world.volume().await;
    // Twenty batches create the same ten names: each name has one winner, and the count of entries is exact.
    let races = (0..20_u64).map(|round| {
        let volume = volume.clone();
        async move {
            let mut won = 0;
            for number in 0..10_u64 {
                let create = create(&format!("f{number}"), 1000 + round * 10 + number);
                won += u32::from(volume.commit(Change::own(vec![create])).await.is_ok());
            }
            won
        }
    });
    let won: u32 = join_all(races).await.into_iter().sum();
    assert_eq!(won, 10);
    assert_eq!(names(&world).await.len(), 10);
    let root = volume.query(|set| set.inode(Ino::ROOT).map(|inode| inode.entries)).await.unwrap();
    assert_eq!(root, 10);
    assert_eq!(world.volumes.usage(world.caller.home).await.unwrap().inodes, 10);
    // What is in memory is what is stored.
    let before = names(&world).await;
    let world = world.restart().await;
    assert_eq!(names(&world).await, before);
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_done_whole_or_not_at_all() {
    let world = World::new().await;
    let volume = world.volume().await;
    let refused = volume.commit(Change::own(vec![create("a", 10), create("a", 11)])).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
    assert!(names(&world).await.is_empty());
    let rename = Mutation::Rename {
        parent: Ino::ROOT,
        name: name("a"),
        new_parent: Ino(12),
        new_name: name("b"),
        mode: RenameMode::Replace,
        by: ROOT_USER,
        time: time(4),
    };
    let batch = vec![create("a", 10), create_in(Ino::ROOT, "d", 12, NewNode::Directory), rename];
    volume.commit(Change::own(batch)).await.unwrap();
    assert_eq!(names(&world).await, BTreeSet::from(["d".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_failed_engine_loses_nothing_acknowledged_and_shows_nothing_else() {
    let world = World::new().await;
    world.switches.delay(Duration::from_micros(100), Duration::from_millis(3));
    for round in 0..30_u64 {
        world.switches.fail_commits(round % 4, 1 + round % 3, Failure::Refused);
        let commits = (0..12_u64).map(|number| {
            let world = &world;
            async move {
                let text = format!("r{round}-{number}");
                let made = world
                    .volume()
                    .await
                    .commit(Change::own(vec![create(&text, 100 + round * 100 + number)]))
                    .await;
                match made {
                    Ok(_) => Some(text),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
                        None
                    }
                }
            }
        });
        let (made, _) = futures::join!(join_all(commits), async {
            // Reads beside it see only what is stored in the end.
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                names(&world).await;
            }
        });
        world.switches.heal();
        world.switches.delay(Duration::from_micros(100), Duration::from_millis(3));
        let made: BTreeSet<String> = made.into_iter().flatten().collect();
        let there: BTreeSet<String> =
            names(&world).await.into_iter().filter(|name| name.starts_with(&format!("r{round}-"))).collect();
        assert_eq!(there, made, "round {round}");
    }
    let before = names(&world).await;
    assert!(!before.is_empty());
    let world = world.restart().await;
    assert_eq!(names(&world).await, before);
}

#[tokio::test(start_paused = true)]
async fn a_block_that_the_volume_does_not_have_cannot_be_named() {
    let world = World::new().await;
    let volume = world.volume().await;
    let data = bytes::Bytes::from_static(b"hello");
    let block = BlockId::of(volume.key(), &data);
    let batch = || vec![create("a", 10), write(10, 0, 5, block)];
    let missing = volume.commit(Change::own(batch())).await.unwrap_err();
    assert_eq!((missing.kind(), missing.subject()), (ErrorKind::NotFound, "block"));
    assert!(names(&world).await.is_empty());
    assert_eq!(
        volume.put_block(BlockId([7; 32]), Draft::of(&data).unwrap()).await.unwrap_err().kind(),
        ErrorKind::Invalid
    );
    volume.put_block(block, Draft::of(&data).unwrap()).await.unwrap();
    let beyond = volume.commit(Change::own(vec![create("a", 10), write(10, 0, 6, block)])).await.unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::Invalid);
    volume.commit(Change::own(batch())).await.unwrap();

    // Another volume learns nothing of it by its name.
    let (other, writes) = world.volumes.new_home(tandemfs::id::UserId(2), None, None).await.unwrap();
    world.meta.commit(Vec::new(), writes).await.unwrap();
    let other = world.volumes.volume(other).await.unwrap();
    assert_eq!(other.block_size(block).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(other.commit(Change::own(batch())).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn pages_of_a_directory_are_whole_beside_changes() {
    let world = World::new().await;
    let volume = world.volume().await;
    let all: Vec<Mutation> = (0..500).map(|number| create(&format!("{number:04}"), 10 + number)).collect();
    volume.commit(Change::own(all)).await.unwrap();
    world.switches.delay(Duration::ZERO, Duration::from_secs(1));
    // A change that is on its way: every third name goes, some come.
    let mut batch: Vec<Mutation> =
        (0..500).step_by(3).map(|number| unlink(&format!("{number:04}"))).collect();
    batch.extend((0..50).map(|number| create(&format!("{number:04}+"), 1000 + number)));
    let pending = tokio::spawn({
        let volume = volume.clone();
        async move { volume.commit(Change::own(batch)).await }
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    let expected: Vec<String> = (0..500)
        .flat_map(|number| {
            let kept = (number % 3 != 0).then(|| format!("{number:04}"));
            kept.into_iter().chain((number < 50).then(|| format!("{number:04}+")))
        })
        .collect();
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let want = Want::Directory { ino: Ino::ROOT, after: after.clone(), limit: 7 };
        let answer = volume.read(None, &[want]).await.unwrap().answers.remove(0);
        for pair in answer.records.chunks(2) {
            let (Key::Entry(_, name), Some(Record::Inode(inode))) = (&pair[0].0, &pair[1].1) else {
                panic!("{pair:?}")
            };
            assert_eq!(inode.name.as_ref(), Some(name));
            found.push(name.to_lossy());
            after = Some(name.clone());
        }
        if answer.complete {
            break;
        }
    }
    assert_eq!(found, expected);
    pending.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_quota_is_exact_under_racing_uploads() {
    let world = World::with(Settings::default(), Some(1000)).await;
    world.switches.delay(Duration::ZERO, Duration::from_millis(2));
    let uploads = (0..20).map(|number| {
        let world = &world;
        async move { world.upload(&format!("dir/{number}"), &[number as u8; 90]).await }
    });
    let done = join_all(uploads).await;
    let made = done.iter().filter(|result| result.is_ok()).count();
    assert_eq!(made, 11);
    for refused in done.into_iter().filter_map(Result::err) {
        assert_eq!(refused.kind(), ErrorKind::QuotaExceeded);
    }
    let usage = world.volumes.usage(world.caller.home).await.unwrap();
    assert_eq!((usage.bytes, usage.inodes), (990, 12));
    // Less than that is room again.
    world.volumes.set_quota(world.caller.home, Some(100), None).await.unwrap();
    assert_eq!(world.upload("more", b"x").await.unwrap_err().kind(), ErrorKind::QuotaExceeded);
    world.volumes.set_quota(world.caller.home, None, Some(13)).await.unwrap();
    world.upload("more", b"x").await.unwrap();
    assert_eq!(world.upload("even more", b"x").await.unwrap_err().kind(), ErrorKind::QuotaExceeded);
}

#[tokio::test(start_paused = true)]
async fn a_removed_volume_gives_everything_back() {
    let world = World::new().await;
    for number in 0..30 {
        world
            .upload(&format!("d{}/{number}", number % 3), format!("content {number}").as_bytes())
            .await
            .unwrap();
    }
    let volume = world.caller.home;
    world.volumes.remove(volume).await.unwrap();
    assert_eq!(world.volumes.usage(volume).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(world.upload("more", b"x").await.unwrap_err().kind(), ErrorKind::NotFound);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.volumes.totals().await.unwrap().volumes, 0);
    world.clock.advance(120_000);
    assert_eq!(world.collect().await.unwrap(), 30);
    assert_eq!(world.objects().await, 0);
}
