//! What the daemon may rely on when it commits.

use super::{Arc, GROUP_MAX, Meta, MetaStore, WAITING_MAX};
use crate::meta::faulty::{Failure, FaultyStore, Switches};
use crate::meta::memory::MemoryStore;
use crate::meta::sqlite::SqliteStore;
use crate::meta::{Key, Write, expect, keys, put, remove};
use std::time::Duration;
use tandemfs::ErrorKind;
use tokio::time::{sleep, timeout};

async fn open() -> (Meta, MemoryStore, Switches) {
    let (memory, switches) = (MemoryStore::new(), Switches::new());
    let store = FaultyStore::new(Arc::new(memory.clone()), switches.clone());
    (Meta::open(Arc::new(store)).await.unwrap(), memory, switches)
}

fn key(name: &str) -> Key {
    format!("k{name}").into_bytes()
}

fn write(name: &str, number: u64) -> Write {
    put(key(name), &number).unwrap()
}

async fn read(meta: &Meta, name: &str) -> Option<u64> {
    meta.get(&key(name)).await.unwrap()
}

const SLOW: Duration = Duration::from_millis(10);

#[tokio::test(start_paused = true)]
async fn batches_that_wait_share_a_commit() {
    let (meta, _, switches) = open().await;
    switches.delay(Duration::ZERO, SLOW);
    let before = switches.counts().commits;
    let submitters: Vec<_> = (0..1_000)
        .map(|number| {
            let meta = meta.clone();
            tokio::spawn(async move {
                let ticket =
                    meta.submit(meta.generation(), vec![write(&number.to_string(), number)]).unwrap();
                ticket.await.unwrap();
                assert_eq!(
                    read(&meta, &number.to_string()).await,
                    Some(number),
                    "seen when it is acknowledged"
                );
            })
        })
        .collect();
    for submitter in submitters {
        submitter.await.unwrap();
    }
    let commits = switches.counts().commits - before;
    assert!((1..=5).contains(&commits), "{commits} commits of the engine for 1000 batches");
}

#[tokio::test(start_paused = true)]
async fn the_order_of_the_calls_is_the_order_of_the_commits() {
    let (meta, _, switches) = open().await;
    switches.delay(Duration::ZERO, SLOW);
    let count = GROUP_MAX as u64 * 2 + 7;
    let tickets: Vec<_> =
        (0..count).map(|number| meta.submit(0, vec![write("last", number)]).unwrap()).collect();
    let mut seen = 0;
    for (number, ticket) in (0..count).zip(tickets) {
        ticket.await.unwrap();
        let now = read(&meta, "last").await.unwrap();
        assert!(now >= number && now >= seen);
        seen = now;
    }
    assert_eq!(seen, count - 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_commit_fails_all_that_is_queued_and_ends_the_generation() {
    for (failure, kind) in [(Failure::Refused, ErrorKind::Unavailable), (Failure::Full, ErrorKind::NoSpace)] {
        let (meta, _, switches) = open().await;
        meta.submit(0, vec![write("a", 1)]).unwrap().await.unwrap();
        switches.delay(Duration::ZERO, SLOW);
        switches.fail_commits(0, 1, failure);
        let first = meta.submit(0, vec![write("a", 2)]).unwrap();
        sleep(SLOW / 2).await;
        // These wait behind the commit that fails, and may be built on it.
        let second = meta.submit(0, vec![write("b", 2)]).unwrap();
        let guarded = meta.commit(vec![], vec![write("c", 2)]);
        let (first, second, guarded) = tokio::join!(
            async {
                let result = first.await;
                assert_eq!(meta.generation(), 1, "raised before anybody learns of the failure");
                result
            },
            second,
            guarded
        );
        for result in [first, second, guarded] {
            assert_eq!(result.unwrap_err().kind(), kind);
        }
        assert_eq!((read(&meta, "a").await, read(&meta, "b").await), (Some(1), None));
        assert_eq!(read(&meta, "c").await, None);
        let old = meta.submit(0, vec![write("a", 3)]).unwrap_err();
        assert_eq!(old.kind(), ErrorKind::Unavailable, "built on what did not happen");
        meta.submit(1, vec![write("a", 3)]).unwrap().await.unwrap();
        assert_eq!(read(&meta, "a").await, Some(3));
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_whose_answer_was_lost_counts_as_failed() {
    let (meta, _, switches) = open().await;
    switches.fail_commits(0, 1, Failure::AnswerLost);
    let error = meta.submit(0, vec![write("a", 1)]).unwrap().await.unwrap_err();
    assert_eq!((error.kind(), meta.generation()), (ErrorKind::Unavailable, 1));
    assert_eq!(read(&meta, "a").await, Some(1), "who reads anew sees it");
}

#[tokio::test(start_paused = true)]
async fn guards_see_what_was_queued_before_and_hurt_nobody_else() {
    let (meta, _, switches) = open().await;
    switches.delay(Duration::ZERO, SLOW);
    let before = meta.submit(0, vec![write("a", 1)]).unwrap();
    let guard = |name: &str, value: Option<u64>| vec![expect(key(name), value.as_ref()).unwrap()];
    let results = tokio::join!(
        before,
        meta.commit(guard("a", None), vec![write("a", 2)]),
        meta.commit(guard("a", Some(1)), vec![write("a", 3), write("b", 3)]),
        meta.commit(guard("a", Some(3)), vec![remove(key("a"))]),
        meta.commit(guard("a", Some(3)), vec![write("b", 4)]),
        meta.commit(guard("a", None), vec![write("c", 5)]),
        async { meta.submit(0, vec![write("d", 6)])?.await },
    );
    let kind = |result: tandemfs::Result<()>| result.map_err(|error| error.kind());
    let stale = Err(ErrorKind::Stale);
    assert_eq!([kind(results.0), kind(results.1), kind(results.2)], [Ok(()), stale, Ok(())]);
    assert_eq!(
        [kind(results.3), kind(results.4), kind(results.5), kind(results.6)],
        [Ok(()), stale, Ok(()), Ok(())]
    );
    let values = meta.get_many::<u64>(&["a", "b", "c", "d"].map(key)).await.unwrap();
    assert_eq!(values, [None, Some(3), Some(5), Some(6)]);
    assert_eq!(meta.generation(), 0);
    // An engine that cannot be read fails the guarded commit only.
    switches.fail_reads(1);
    let (guarded, plain) =
        tokio::join!(meta.commit(guard("a", None), vec![]), meta.commit(vec![], vec![write("a", 7)]));
    assert_eq!(kind(guarded), Err(ErrorKind::Unavailable));
    plain.unwrap();
    assert_eq!(meta.generation(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_later_run_fences_an_earlier_one() {
    let (first, memory, _) = open().await;
    first.submit(0, vec![write("a", 1)]).unwrap().await.unwrap();
    let second = Meta::open(Arc::new(memory)).await.unwrap();
    assert!(second.run() > first.run());
    let queued = first.submit(0, vec![write("a", 2)]).unwrap();
    assert_eq!(queued.await.unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(first.fenced().await.kind(), ErrorKind::Stale);
    for _ in 0..3 {
        assert_eq!(first.submit(first.generation(), vec![]).unwrap_err().kind(), ErrorKind::Stale);
        assert_eq!(first.commit(vec![], vec![write("a", 2)]).await.unwrap_err().kind(), ErrorKind::Stale);
        assert_eq!(first.next_numbers("n", 1).await.unwrap_err().kind(), ErrorKind::Stale);
        assert_eq!(first.ready().await.unwrap_err().kind(), ErrorKind::Stale);
    }
    first.close().await;
    assert_eq!(read(&second, "a").await, Some(1));
    second.commit(vec![], vec![write("a", 3)]).await.unwrap();
    assert!(timeout(Duration::from_secs(60), second.fenced()).await.is_err(), "the later one is not fenced");
}

#[tokio::test(start_paused = true)]
async fn numbers_are_given_once() {
    let (meta, memory, switches) = open().await;
    switches.delay(SLOW, SLOW);
    assert_eq!(meta.next_numbers("n", 10).await.unwrap(), 1);
    assert_eq!(meta.next_numbers("other", 1).await.unwrap(), 1);
    let tasks: Vec<_> = (1..=20)
        .map(|count| {
            let meta = meta.clone();
            tokio::spawn(async move {
                // Some give up before they have the answer.
                let wait = SLOW * if count % 4 == 0 { 2 } else { 10_000 };
                let first = timeout(wait, meta.next_numbers("n", count)).await.ok()?.unwrap();
                Some(first..first + count)
            })
        })
        .collect();
    let mut given = vec![std::ops::Range { start: 1, end: 11 }];
    for task in tasks {
        given.extend(task.await.unwrap());
    }
    // A failure may leave numbers out, but gives none twice; nor does a new run.
    switches.fail_commits(0, 1, Failure::AnswerLost);
    meta.next_numbers("n", 5).await.unwrap_err();
    let first = meta.next_numbers("n", 5).await.unwrap();
    given.push(first..first + 5);
    drop(meta);
    let first = Meta::open(Arc::new(memory)).await.unwrap().next_numbers("n", 1).await.unwrap();
    given.push(first..first + 1);
    given.sort_by_key(|range| range.start);
    assert!(given.len() >= 15);
    assert!(given.windows(2).all(|pair| pair[0].end <= pair[1].start), "{given:?}");
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded() {
    let (meta, _, switches) = open().await;
    switches.delay(Duration::ZERO, SLOW);
    let mut tickets = vec![];
    while let Ok(ticket) = meta.submit(0, vec![write("a", 1)]) {
        tickets.push(ticket);
        assert!(tickets.len() <= 2 * WAITING_MAX);
    }
    assert_eq!(tickets.len(), 2 * WAITING_MAX);
    assert_eq!(meta.submit(0, vec![]).unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(timeout(SLOW, meta.ready()).await.is_err(), "makes others wait");
    meta.ready().await.unwrap();
    for ticket in tickets {
        ticket.await.unwrap();
    }
    meta.submit(0, vec![write("a", 1)]).unwrap().await.unwrap();
    // By bytes as well.
    let large = || vec![Write { key: key("l"), value: Some(vec![0; 16 << 20]) }];
    let taken: Vec<_> = std::iter::from_fn(|| meta.submit(0, large()).ok()).take(100).collect();
    assert_eq!(taken.len(), 8);
    for ticket in taken {
        ticket.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn it_ends_in_order() {
    let (meta, memory, switches) = open().await;
    switches.delay(Duration::ZERO, SLOW);
    let ticket = meta.submit(0, vec![write("a", 1)]).unwrap();
    let waiting = meta.submit(0, vec![write("b", 1)]).unwrap();
    meta.close().await;
    ticket.await.unwrap();
    waiting.await.unwrap();
    assert_eq!(meta.submit(meta.generation(), vec![]).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(meta.commit(vec![], vec![]).await.unwrap_err().kind(), ErrorKind::Unavailable);
    meta.close().await;
    assert_eq!(read(&meta, "b").await, Some(1), "reads still work");
    // Dropped without a word: what was queued still happens.
    let meta = Meta::open(Arc::new(memory.clone())).await.unwrap();
    let ticket = meta.clone().submit(0, vec![write("c", 1)]).unwrap();
    drop(meta);
    ticket.await.unwrap();
    assert!(memory.get_many(&[key("c")]).await.unwrap()[0].is_some());
}

#[test]
fn nobody_waits_for_a_runtime_that_is_gone() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let first = runtime();
    let (meta, _, switches) = first.block_on(open());
    switches.delay(Duration::ZERO, Duration::from_secs(3_600));
    let under_way = meta.submit(0, vec![write("a", 1)]).unwrap();
    first.block_on(tokio::task::yield_now());
    let queued = meta.submit(0, vec![write("a", 1)]).unwrap();
    drop(first);
    runtime().block_on(async {
        assert_eq!(under_way.await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(queued.await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(meta.ready().await.unwrap_err().kind(), ErrorKind::Unavailable);
        meta.close().await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_works_on_a_disk_and_over_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meta.db");
    for run in 1..=3 {
        let switches = Switches::new();
        let store = FaultyStore::new(Arc::new(SqliteStore::open(&path).unwrap()), switches.clone());
        let meta = Meta::open(Arc::new(store)).await.unwrap();
        assert_eq!(meta.run(), run);
        let submitters: Vec<_> = (0..1_000)
            .map(|number| {
                let meta = meta.clone();
                tokio::spawn(
                    async move { meta.submit(0, vec![write(&number.to_string(), number * run)])?.await },
                )
            })
            .collect();
        for submitter in submitters {
            submitter.await.unwrap().unwrap();
        }
        let commits = switches.counts().commits;
        // How many wait for one another is the machine's; most do.
        assert!(commits < 900, "{commits} commits of the engine for 1000 batches");
        let rows = meta.scan::<u64>(b"k", b"l", 2_000).await.unwrap();
        assert_eq!(rows.iter().map(|(_, number)| number).sum::<u64>(), 999 * 500 * run);
        meta.close().await;
    }
}

#[tokio::test]
async fn damaged_records_are_named() {
    let (meta, memory, _) = open().await;
    meta.commit(vec![], vec![write("a", 1), write("b", 2)]).await.unwrap();
    let good = meta.get_raw(&key("a")).await.unwrap();
    memory.commit(vec![], vec![Write { key: key("b"), value: good }]).await.unwrap();
    assert_eq!(meta.get::<u64>(&key("b")).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(meta.scan::<u64>(b"k", b"l", 9).await.unwrap_err().kind(), ErrorKind::Corrupt);
    let epoch = Write { key: keys::epoch(), value: Some(b"?".to_vec()) };
    memory.commit(vec![], vec![epoch]).await.unwrap();
    assert_eq!(Meta::open(Arc::new(memory)).await.unwrap_err().kind(), ErrorKind::Corrupt);
}
