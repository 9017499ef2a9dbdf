//! The nodes fail in every way that can be asked for, and nobody notices but the counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tandemfs::ErrorKind;
use tandemfs::api::admin::{FailMode, JobState};
use tandemfs::api::files::NodeState;
use tandemfs::block;
use tandemfs::block::Draft;
use tandemfs::id::NodeId;
use tokio::time::Instant;

use super::site::{Site, VOLUME, data, id, seconds};
use crate::blocks::BlockStore;
use crate::blocks::faulty::{Faults, Mode};
use crate::meta::faulty::{Failure, Switches};

fn node_of(site: &Site, number: u32) -> usize {
    let stores = 0..site.disks.len();
    let (_, blocks) = futures::executor::block_on(site.replicator.recount());
    let replicas = &blocks[&(VOLUME, id(number))].replicas;
    stores.into_iter().find(|node| replicas[0].0 as usize == *node).unwrap()
}

#[tokio::test(start_paused = true)]
async fn any_one_node_may_go_at_any_moment_under_load() {
    let mut site = Site::new(3, |_| {}).await;
    for faults in &site.faults {
        faults.delay(Duration::from_millis(1), Duration::from_millis(20));
    }
    site.work().await;
    site.put_all(0..20).await;
    let over = AtomicBool::new(false);
    let site = &site;
    let load = |first: u32| {
        let over = &over;
        async move {
            let mut number = first;
            while !over.load(Ordering::SeqCst) {
                site.put(number).await.unwrap();
                site.check(number).await.unwrap();
                site.check(number % 20).await.unwrap();
                site.check(first + (number - first) / 2).await.unwrap();
                number += 1;
                tokio::time::sleep(Duration::from_millis(800)).await;
            }
            number
        }
    };
    let fail = async {
        for node in 0..3_usize {
            let number = NodeId(u32::try_from(node).unwrap());
            for mode in [FailMode::Offline, FailMode::Wipe, FailMode::Corrupt] {
                tokio::time::sleep(Duration::from_millis(333)).await;
                site.replicator.fail_node(number, mode).await.unwrap();
                tokio::time::sleep(Duration::from_millis(333)).await;
                site.done(site.jobs().repair_node(number).await).await;
            }
            // And without anybody saying so: it hangs, then it refuses, then it is back.
            site.faults[node].set_mode(Mode::Hanging);
            seconds(12).await;
            site.faults[node].set_mode(Mode::Offline);
            seconds(5).await;
            site.faults[node].set_mode(Mode::Up);
            seconds(40).await;
            assert_eq!(site.replicator.node_counts().healthy, 3);
        }
        over.store(true, Ordering::SeqCst);
    };
    let (a, b, c, ()) = tokio::join!(load(1_000), load(20_000), load(40_000), fail);
    for node in 0..3 {
        site.done(site.jobs().repair_node(NodeId(node)).await).await;
    }
    site.audit_whole().await;
    assert!(a > 1_010 && b > 20_010 && c > 40_010);
    assert_eq!(site.replicator.counts().total, u64::from(20 + a - 1_000 + b - 20_000 + c - 40_000));
}

#[tokio::test(start_paused = true)]
async fn bad_copies_are_read_around_and_healed() {
    let site = Site::new(3, |_| {}).await;
    site.put_all(0..30).await;
    for number in 0..30 {
        let disk = &site.disks[node_of(&site, number)];
        let object = disk.get(&id(number), None).await.unwrap();
        match number % 3 {
            0 => disk.delete(&id(number)).await.unwrap(),
            1 => disk.put(&id(number), object.slice(..object.len() - 1)).await.unwrap(),
            _ => {
                let mut bytes = object.to_vec();
                bytes[object.len() / 2] ^= 1;
                disk.put(&id(number), Bytes::from(bytes)).await.unwrap();
            }
        }
    }
    for _ in 0..4 {
        // Which copy is read depends on the load, so all are read a few times over.
        futures::future::join_all((0..30).map(|number| site.check(number))).await;
        seconds(1).await;
    }
    let mut healed = 0;
    for number in 0..30 {
        let disk = &site.disks[node_of(&site, number)];
        let object = disk.get(&id(number), None).await;
        healed += usize::from(object.is_ok_and(|object| block::decode(&id(number), object).is_ok()));
    }
    assert!(healed >= 10, "{healed}");
    site.audit_counts().await;
}

#[tokio::test(start_paused = true)]
async fn slow_and_hanging_nodes_hold_nobody_up_for_long() {
    let site = Site::new(3, |_| {}).await;
    site.put_all(0..20).await;
    for node in 0..3 {
        site.faults[node].set_mode(Mode::Hanging);
        for number in 0..20 {
            let begun = Instant::now();
            site.check(number).await.unwrap();
            assert!(begun.elapsed() < Duration::from_millis(500));
            site.put(100 + number + 100 * node as u32).await.unwrap();
            assert!(begun.elapsed() < Duration::from_millis(700), "{:?}", begun.elapsed());
            // Also where one of the copies that there are may be on it.
            let begun = Instant::now();
            site.put(number).await.unwrap();
            assert!(begun.elapsed() < Duration::from_millis(1_700), "{:?}", begun.elapsed());
        }
        site.faults[node].set_mode(Mode::Up);
        let number = NodeId(node as u32);
        let registry = site.replicator.registry();
        let node = registry.get(number).unwrap();
        registry.set_state(node, |_| true, NodeState::Healthy, None).await.unwrap();
    }
    site.audit_counts().await;
}

#[tokio::test(start_paused = true)]
async fn a_write_goes_to_another_node_when_one_is_far_slower_than_others() {
    let site = Site::new(3, |_| {}).await;
    let puts = |site: &Site| site.faults.iter().map(|faults| faults.counts().puts).sum::<u64>();
    let time = |millis: u64| Duration::from_millis(millis);
    let mut stored = 0;
    // How long each of the nodes takes, how long a write of two copies takes at most, and whether a third copy is tried.
    for (times, most, tries) in [
        ([1, 1, 500], 160, true),
        ([20, 500, 20], 180, true),
        ([100, 300, 300], 300, false),
        ([400, 400, 400], 400, false),
    ] {
        for (faults, millis) in site.faults.iter().zip(times) {
            faults.delay(time(millis), time(millis));
        }
        let (before, first) = (puts(&site), stored);
        while stored < first + 20 {
            let begun = Instant::now();
            site.put(stored).await.unwrap();
            assert!(begun.elapsed() <= time(most), "{times:?}: {:?}", begun.elapsed());
            stored += 1;
        }
        assert_eq!(puts(&site) - before > 40, tries, "{times:?}: {}", puts(&site) - before);
    }
    site.faults.iter().for_each(Faults::heal);
    site.check_all(0..stored).await;
    site.audit_counts().await;
}

#[tokio::test(start_paused = true)]
async fn the_least_number_of_copies_decides() {
    let site = Site::new(3, |_| {}).await;
    site.put(1).await.unwrap();
    site.replicator.fail_node(NodeId(0), FailMode::Offline).await.unwrap();
    site.replicator.fail_node(NodeId(1), FailMode::Offline).await.unwrap();
    let calls = site.faults[0].counts();
    site.put(2).await.unwrap();
    let counts = site.replicator.counts();
    assert_eq!((counts.total, counts.under_replicated), (2, 2));
    site.check(2).await.unwrap();
    site.replicator.fail_node(NodeId(2), FailMode::Offline).await.unwrap();
    assert_eq!(site.put(3).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(site.check(2).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(site.replicator.counts().lost, 2);
    assert_eq!(site.faults[0].counts(), calls, "a failed node was called");
    site.audit_counts().await;

    let strict = Site::new(3, |settings| settings.min_replicas = 2).await;
    strict.replicator.fail_node(NodeId(0), FailMode::Offline).await.unwrap();
    strict.put(1).await.unwrap();
    strict.replicator.fail_node(NodeId(1), FailMode::Offline).await.unwrap();
    assert_eq!(strict.put(2).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(strict.replicator.counts().total, 1);
    strict.audit_counts().await;
}

#[tokio::test(start_paused = true)]
async fn full_nodes_are_said_to_be_full_and_are_not_failed() {
    let engine = Arc::new(crate::meta::memory::MemoryStore::new());
    let site = Site::with(vec![Some(1_000); 3], engine, |_| {}).await;
    assert_eq!(site.put(9).await.unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(site.replicator.node_counts().healthy, 3);
    let engine = Arc::new(crate::meta::memory::MemoryStore::new());
    let site = Site::with(vec![Some(1_000), None, None], engine, |_| {}).await;
    site.put_all(1..30).await;
    site.check_all(1..30).await;
    site.audit().await;
    assert_eq!(site.replicator.counts().under_replicated, 0);
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_takes_the_node_out_and_another_takes_its_place() {
    let mut site = Site::new(3, |_| {}).await;
    for node in 0..3 {
        site.faults[node].fail_puts(1);
        site.put_all(node as u32 * 50..node as u32 * 50 + 20).await;
        assert_eq!(site.replicator.node_counts().failed, 1);
        assert_eq!(site.replicator.counts().under_replicated > 0, node > 0);
        // It answers, so it is repaired by itself.
        site.work().await;
        seconds(120).await;
        assert_eq!(site.replicator.node_counts().healthy, 3);
        site.jobs.take().unwrap().stop().await;
    }
    site.audit_whole().await;
}

#[tokio::test(start_paused = true)]
async fn a_repair_copies_exactly_what_is_missing() {
    let mut site = Site::new(3, |_| {}).await;
    site.work().await;
    site.put_all(0..60).await;
    let node = NodeId(1);
    let held = site.on_disk(1).await.0.len() as u64;
    assert!(held > 20);
    for (mode, copied) in [(FailMode::Offline, 0), (FailMode::Wipe, held), (FailMode::Corrupt, held)] {
        let failed = site.replicator.fail_node(node, mode).await.unwrap();
        assert_eq!(
            (failed.state, failed.missing_replicas, failed.free_bytes),
            (NodeState::Failed, held, None)
        );
        assert_eq!(site.replicator.counts().under_replicated, held);
        site.check_all(0..60).await;
        let puts: Vec<u64> = site.faults.iter().map(|faults| faults.counts().puts).collect();
        let job = site.done(site.jobs().repair_node(node).await).await;
        assert_eq!((job.blocks_copied, job.blocks_bad), (copied, copied), "{mode:?}");
        let now: Vec<u64> = site.faults.iter().map(|faults| faults.counts().puts).collect();
        assert_eq!(now, [puts[0], puts[1] + copied, puts[2]], "{mode:?}");
        site.audit_whole().await;
    }
    site.check_all(0..60).await;
}

#[tokio::test(start_paused = true)]
async fn a_repair_goes_on_after_a_restart_and_copies_nothing_twice() {
    let mut site = Site::new(3, |_| {}).await;
    site.work().await;
    site.put_all(0..700).await;
    site.replicator.fail_node(NodeId(2), FailMode::Wipe).await.unwrap();
    let missing = site.replicator.nodes().await[2].missing_replicas;
    let before = site.faults[2].counts().puts;
    site.faults[2].delay(Duration::from_millis(10), Duration::from_millis(10));
    let job = site.jobs().repair_node(NodeId(2)).await.unwrap();
    assert_eq!(site.jobs().repair_node(NodeId(2)).await.unwrap(), job, "one repair at a time");
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(site.jobs().get(job).unwrap().state, JobState::Running);
        site.restart().await;
        site.check_all(0..5).await;
    }
    let ended = site.jobs().wait(job).await.unwrap();
    assert_eq!(ended.state, JobState::Done);
    assert_eq!(site.faults[2].counts().puts - before, missing);
    site.audit_whole().await;
}

#[tokio::test(start_paused = true)]
async fn a_repair_can_be_ended_and_a_node_that_fails_again_starts_over() {
    let mut site = Site::new(3, |_| {}).await;
    site.work().await;
    site.put_all(0..100).await;
    site.replicator.fail_node(NodeId(0), FailMode::Wipe).await.unwrap();
    site.faults[0].delay(Duration::from_millis(50), Duration::from_millis(50));
    let job = site.jobs().repair_node(NodeId(0)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(site.jobs().cancel(job).await.unwrap().state, JobState::Cancelled);
    assert_eq!(site.replicator.node_counts().failed, 1);
    let second = site.jobs().repair_node(NodeId(0)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    site.replicator.fail_node(NodeId(0), FailMode::Wipe).await.unwrap();
    let third = site.jobs().repair_node(NodeId(0)).await;
    site.done(third).await;
    assert_ne!(site.jobs().get(second).unwrap().state, JobState::Done);
    site.audit_whole().await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_damaged_objects_never_give_a_wrong_byte_and_are_all_mended() {
    let mut site = Site::new(3, |_| {}).await;
    let blocks = 2_000;
    site.put_all(0..blocks).await;
    let disk = site.disks[1].clone();
    let ids: Vec<_> = site.on_disk(1).await.0.into_iter().take(1_000).collect();
    assert_eq!(ids.len(), 1_000);
    for (at, id) in ids.iter().enumerate() {
        let object = disk.get(id, None).await.unwrap();
        match at % 5 {
            0 => disk.delete(id).await.unwrap(),
            1 => disk.put(id, object.slice(..object.len() / 2)).await.unwrap(),
            2 => disk.put(id, Bytes::from(vec![0; object.len()])).await.unwrap(),
            3 => {
                let mut bytes = object.to_vec();
                let place = at * 37 % bytes.len();
                bytes[place] ^= 1 << (at % 8);
                disk.put(id, Bytes::from(bytes)).await.unwrap();
            }
            // Two of them in each other's place.
            _ => {
                let other = disk.get(&ids[at - 1], None).await.unwrap();
                disk.put(&ids[at - 1], object).await.unwrap();
                disk.put(id, other).await.unwrap();
            }
        }
    }
    for number in (0..blocks).step_by(17) {
        site.check(number).await.unwrap();
    }
    seconds(1).await;
    let mended = 1_000 - {
        let good = site.on_disk(1).await.0;
        ids.iter().filter(|id| !good.contains(id)).count() as u64
    };
    site.work().await;
    let job = site.done(site.jobs().scrub(Some(NodeId(1))).await).await;
    assert_eq!((job.blocks_bad, job.blocks_copied), (1_000 - mended, 1_000 - mended));
    site.audit_whole().await;
    site.check_all(0..blocks).await;
}

#[tokio::test(start_paused = true)]
async fn missing_copies_are_made_by_themselves() {
    let mut site = Site::new(3, |settings| settings.heal_delay_s = 100).await;
    site.work().await;
    site.replicator.fail_node(NodeId(0), FailMode::Offline).await.unwrap();
    site.replicator.fail_node(NodeId(1), FailMode::Offline).await.unwrap();
    site.put_all(0..20).await;
    assert_eq!(site.replicator.counts().under_replicated, 20);
    // Written degraded: completed as soon as there is a node to complete them on.
    site.done(site.jobs().repair_node(NodeId(0)).await).await;
    seconds(5).await;
    assert_eq!(site.replicator.counts().under_replicated, 0);
    site.done(site.jobs().repair_node(NodeId(1)).await).await;
    site.audit_whole().await;
    // A node that is away for a short while is waited for, one that stays away is not.
    site.put_all(20..60).await;
    site.replicator.fail_node(NodeId(2), FailMode::Offline).await.unwrap();
    seconds(50).await;
    assert!(site.replicator.counts().under_replicated > 0);
    seconds(60).await;
    assert_eq!(site.replicator.counts().under_replicated, 0);
    site.audit().await;
    // When it comes back after all, its copies are used where they belong, and others go.
    let job = site.done(site.jobs().repair_node(NodeId(2)).await).await;
    assert_eq!(job.blocks_copied, 0);
    site.audit_whole().await;
    site.check_all(0..60).await;
}

#[tokio::test(start_paused = true)]
async fn orphans_are_removed_and_lost_copies_that_turn_up_are_taken_back() {
    let mut site = Site::new(3, |_| {}).await;
    site.work().await;
    site.put_all(0..10).await;
    let stray = block::encode(VOLUME, &id(99), &data(99)).unwrap();
    site.disks[0].put(&id(99), stray).await.unwrap();
    site.disks[1].put(&id(98), Bytes::from_static(b"no object at all")).await.unwrap();
    site.done(site.jobs().scrub(None).await).await;
    site.audit_whole().await;
    // Both copies are gone: the block is lost. Then one turns up.
    let object = site.disks[node_of(&site, 3)].get(&id(3), None).await.unwrap();
    for disk in &site.disks {
        disk.delete(&id(3)).await.unwrap();
    }
    assert_eq!(site.check(3).await.unwrap_err().kind(), ErrorKind::Corrupt);
    site.done(site.jobs().scrub(None).await).await;
    assert_eq!(site.replicator.counts().lost, 1);
    assert_eq!(site.check(3).await.unwrap_err().kind(), ErrorKind::Corrupt);
    site.audit_counts().await;
    site.disks[2].put(&id(3), object).await.unwrap();
    site.done(site.jobs().scrub(None).await).await;
    site.audit_whole().await;
    site.check(3).await.unwrap();
    // And a block that is lost for good is whole again when it is stored again.
    for disk in &site.disks {
        disk.delete(&id(4)).await.unwrap();
    }
    site.put(4).await.unwrap();
    site.audit_whole().await;
}

#[tokio::test(start_paused = true)]
async fn the_collector_and_a_writer_never_meet() {
    let site = Site::new(3, |_| {}).await;
    site.put(1).await.unwrap();
    let guard = site.replicator.try_lock_block(VOLUME, id(1)).unwrap();
    assert!(site.replicator.try_lock_block(VOLUME, id(1)).is_none());
    let writer = tokio::spawn({
        let replicator = site.replicator.clone();
        async move { replicator.put(VOLUME, id(1), Draft::of(&data(1))?).await }
    });
    let guard = guard.mark_deleting().await.unwrap();
    assert_eq!(site.replicator.blocks(VOLUME, &[id(1)]).await.unwrap(), [None]);
    assert_eq!(site.replicator.counts().total, 0);
    assert!(guard.record().await.unwrap().unwrap().deleting);
    seconds(1).await;
    guard.delete_objects(Vec::new()).await.unwrap();
    writer.await.unwrap().unwrap();
    site.check(1).await.unwrap();
    site.audit_whole().await;
    let guard = site.replicator.try_lock_block(VOLUME, id(1)).unwrap();
    assert_eq!(guard.delete_objects(Vec::new()).await.unwrap_err().kind(), ErrorKind::Internal);
    let guard = site.replicator.try_lock_block(VOLUME, id(1)).unwrap();
    guard.mark_deleting().await.unwrap().delete_objects(Vec::new()).await.unwrap();
    assert_eq!(site.check(1).await.unwrap_err().kind(), ErrorKind::NotFound);
    site.audit_whole().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_committed_has_not_happened() {
    let switches = Switches::new();
    let engine = crate::meta::faulty::FaultyStore::new(
        Arc::new(crate::meta::memory::MemoryStore::new()),
        switches.clone(),
    );
    let mut site = Site::with(vec![None; 3], Arc::new(engine), |_| {}).await;
    site.put_all(0..5).await;
    switches.fail_commits(0, 1, Failure::Refused);
    site.put(7).await.unwrap_err();
    assert_eq!(site.check(7).await.unwrap_err().kind(), ErrorKind::NotFound);
    // It has happened, but the answer was lost: the counts follow what is stored.
    switches.fail_commits(0, 1, Failure::AnswerLost);
    site.put(8).await.unwrap_err();
    site.audit_counts().await;
    switches.fail_commits(0, 1, Failure::Refused);
    site.replicator.fail_node(NodeId(0), FailMode::Offline).await.unwrap_err();
    assert_eq!(site.replicator.node_counts().healthy, 3);
    site.audit_counts().await;
    site.restart().await;
    site.work().await;
    site.done(site.jobs().scrub(None).await).await;
    site.audit_whole().await;
    // The states of nodes outlive a restart.
    site.replicator.fail_node(NodeId(0), FailMode::Offline).await.unwrap();
    site.restart().await;
    assert_eq!(site.replicator.node_counts().failed, 1);
    assert_eq!(site.jobs().list().len(), 1);
}
