//! Engines and nodes in memory, losses of all kinds, and what must be there afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tandemfs::clock::{Clock, ManualClock};
use tandemfs::id::NodeId;
use tandemfs::{ErrorKind, Result};
use tokio::time::Instant;

use super::{Journal, JournalNode, Rules, Until};
use crate::meta::faulty::{Failure, FaultyStore, Switches};
use crate::meta::memory::MemoryStore;
use crate::meta::{Guard, MetaStore, Write, contract, keys};
use crate::progress::Progress;
use crate::segments::faulty::{Fault, FaultySegments};
use crate::segments::memory::MemorySegments;

/// Three nodes and what a daemon needs to run on them, again and again.
struct Site {
    engine: MemoryStore,
    switches: Switches,
    disks: Vec<MemorySegments>,
    nodes: Vec<FaultySegments>,
    rules: Rules,
    clock: ManualClock,
}

impl Site {
    fn new() -> Self {
        let disks: Vec<_> = (0..3).map(|_| MemorySegments::new()).collect();
        let nodes = disks.iter().map(|disk| FaultySegments::new(Arc::new(disk.clone()))).collect();
        let rules = Rules { copies: 2, min_copies: 1, snapshot_bytes: u64::MAX, keep_ms: 0, new_journal: 7 };
        Self {
            engine: MemoryStore::new(),
            switches: Switches::new(),
            disks,
            nodes,
            rules,
            clock: ManualClock::at(1_700_000_000_000),
        }
    }

    /// Starts on some of the nodes, counted from 0.
    async fn start_on(&self, nodes: &[usize]) -> Result<Journal> {
        let node = |number: &usize| JournalNode {
            id: NodeId(*number as u32),
            zone: number.to_string(),
            store: Arc::new(self.nodes[*number].clone()),
        };
        let engine = FaultyStore::new(Arc::new(self.engine.clone()), self.switches.clone());
        let nodes = nodes.iter().map(node).collect();
        Journal::open(Arc::new(engine), nodes, self.rules, Arc::new(self.clock.clone())).await
    }

    async fn start(&self) -> Journal {
        self.start_on(&[0, 1, 2]).await.unwrap()
    }

    /// The daemon's disk is gone.
    fn lose_engine(&mut self) {
        self.engine = MemoryStore::new();
    }

    fn heal(&self) {
        self.nodes.iter().for_each(|node| node.set(Fault::None));
    }
}

async fn put(store: &dyn MetaStore, key: &str, value: &str) -> Result<()> {
    let write = Write { key: key.into(), value: Some(value.into()) };
    store.commit(vec![], vec![write]).await
}

async fn get(store: &dyn MetaStore, key: &str) -> Option<String> {
    let value = store.get_many(&[key.into()]).await.unwrap().pop().unwrap()?;
    Some(String::from_utf8(value).unwrap())
}

/// All pairs but the journal's own.
async fn pairs(store: &dyn MetaStore) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let all = store.scan(&[], &keys::END, usize::MAX).await.unwrap();
    all.into_iter().filter(|(key, _)| *key != keys::journal()).collect()
}

#[tokio::test]
async fn keeps_the_contract_of_engines() {
    contract::all(&Site::new().start().await).await;
    contract::counts_concurrently(Arc::new(Site::new().start().await)).await;
}

#[tokio::test]
async fn guards_hold_or_nothing_happens() {
    let journal = Site::new().start().await;
    put(&journal, "a", "1").await.unwrap();
    let guard = |value: Option<&str>| Guard { key: "a".into(), value: value.map(Into::into) };
    let write = Write { key: "b".into(), value: Some("2".into()) };
    let refused = journal.commit(vec![guard(None)], vec![write.clone()]).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(get(&journal, "b").await, None);
    journal.commit(vec![guard(Some("1"))], vec![write]).await.unwrap();
    assert_eq!(get(&journal, "b").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn an_engine_is_built_anew_from_any_two_of_three_nodes() {
    let mut site = Site::new();
    for life in 0..4 {
        let journal = site.start().await;
        for number in 0..50 {
            put(&journal, &format!("{life}-{number}"), "value").await.unwrap();
        }
    }
    let want = pairs(&site.engine).await;
    assert_eq!(want.len(), 200);
    for nodes in [&[0, 1, 2][..], &[0, 1], &[1, 2], &[0, 2]] {
        site.lose_engine();
        site.start_on(nodes).await.unwrap();
        assert_eq!(pairs(&site.engine).await, want, "from {nodes:?}");
    }
}

#[tokio::test]
async fn one_node_alone_says_what_is_missing() {
    let mut site = Site::new();
    for life in 0..4 {
        put(&site.start().await, &format!("{life}"), "value").await.unwrap();
    }
    for node in 0..3 {
        site.lose_engine();
        let error = site.start_on(&[node]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(error.to_string().contains("of the journal"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_goes_on_without_a_node_that_fails() {
    for fault in
        [Fault::Offline, Fault::Hanging, Fault::Full, Fault::Torn(0), Fault::Torn(9), Fault::AnswerLost]
    {
        for node in 0..3 {
            let mut site = Site::new();
            let journal = site.start().await;
            put(&journal, "before", "1").await.unwrap();
            site.nodes[node].set(fault);
            let begun = Instant::now();
            put(&journal, "during", "2").await.unwrap();
            assert!(begun.elapsed() <= Duration::from_millis(300), "{fault:?}: {:?}", begun.elapsed());
            put(&journal, "after", "3").await.unwrap();
            let want = pairs(&site.engine).await;
            site.lose_engine();
            site.heal();
            // Without the node that failed, and with it.
            let others: Vec<usize> = (0..3).filter(|other| *other != node).collect();
            for nodes in [&others[..], &[0, 1, 2]] {
                site.lose_engine();
                site.start_on(nodes).await.unwrap();
                assert_eq!(pairs(&site.engine).await, want, "{fault:?} of node {node}");
            }
        }
    }
}

/// How long each of some commits took.
async fn commits(journal: &Journal, prefix: &str, count: u32) -> Vec<Duration> {
    let mut times = Vec::new();
    for number in 0..count {
        let begun = Instant::now();
        put(journal, &format!("{prefix}{number}"), "value").await.unwrap();
        times.push(begun.elapsed());
    }
    times
}

#[tokio::test(start_paused = true)]
async fn a_slow_node_holds_up_one_commit_if_another_can_take_its_place() {
    for node in 0..3 {
        let mut site = Site::new();
        let journal = site.start().await;
        site.nodes[node].set(Fault::Slow(Duration::from_millis(500)));
        let slowest = commits(&journal, "a", 20).await.into_iter().sum::<Duration>();
        assert!(slowest <= Duration::from_millis(200), "node {node}: {slowest:?}");
        // It is asked again, and what it was left out for arrives.
        for round in 0..10 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let _ = journal.tend(round).await;
            let slowest = commits(&journal, &format!("b{round}-"), 5).await.into_iter().sum::<Duration>();
            assert!(slowest <= Duration::from_millis(400), "node {node}, round {round}: {slowest:?}");
        }
        let want = pairs(&site.engine).await;
        site.heal();
        let others: Vec<usize> = (0..3).filter(|other| *other != node).collect();
        for nodes in [&others[..], &[0, 1, 2]] {
            site.lose_engine();
            site.start_on(nodes).await.unwrap();
            assert_eq!(pairs(&site.engine).await, want, "of node {node}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_node_is_waited_for_if_no_other_can_take_its_place() {
    for node in 0..2 {
        let site = Site::new();
        let journal = site.start_on(&[0, 1]).await.unwrap();
        site.nodes[node].set(Fault::Slow(Duration::from_millis(400)));
        assert_eq!(commits(&journal, "a", 3).await, [Duration::from_millis(400); 3]);
        assert_eq!(journal.counts().under_replicated, 0);
        let want = pairs(&site.engine).await;
        for alone in 0..2 {
            let store = Arc::new(site.nodes[alone].clone());
            let alone = JournalNode { id: NodeId(alone as u32), zone: String::new(), store };
            let engine = MemoryStore::new();
            let mut progress = Progress::new("bytes", 0);
            Journal::restore(&engine, vec![alone], false, Until::End, 8, &mut progress).await.unwrap();
            assert_eq!(pairs(&engine).await, want);
        }
        // But not for ever.
        site.nodes[node].set(Fault::Slow(Duration::from_secs(2)));
        let times = commits(&journal, "b", 2).await;
        assert_eq!(times, [Duration::from_millis(750), Duration::ZERO], "{times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_that_are_all_slow_are_all_waited_for() {
    let site = Site::new();
    let journal = site.start().await;
    site.nodes.iter().for_each(|node| node.set(Fault::Slow(Duration::from_millis(100))));
    site.nodes[1].set(Fault::Slow(Duration::from_millis(600)));
    for slowest in commits(&journal, "a", 10).await {
        assert!(slowest <= Duration::from_millis(600), "{slowest:?}");
    }
    let counts = journal.counts();
    assert_eq!((counts.segments, counts.under_replicated), (1, 0), "{counts:?}");
}

/// What is there after each commit can be brought back within the window, also when snapshots have been made and removed meanwhile.
#[tokio::test(start_paused = true)]
async fn a_moment_of_the_past_is_brought_back() {
    const HOUR: i64 = 3_600_000;
    let mut site = Site::new();
    site.rules = Rules { snapshot_bytes: 400, keep_ms: 6 * HOUR, ..site.rules };
    let journal = site.start().await;
    let mut history = Vec::new();
    for number in 0..60 {
        site.clock.advance(HOUR / 2);
        let value = "x".repeat(number % 7 * 10);
        if number % 5 == 4 {
            site.switches.fail_commits(0, 1, Failure::Refused);
            put(&journal, &format!("{}", number % 4), &value).await.unwrap_err();
        }
        put(&journal, &format!("{}", number % 9), &value).await.unwrap();
        history.push((site.clock.now().as_millis(), journal.counts().position, pairs(&site.engine).await));
        for round in 0..3 {
            journal.tend(round).await.unwrap();
        }
    }
    let counts = journal.counts();
    assert!((3..=8).contains(&counts.snapshots), "{counts:?}");
    drop(journal);
    let nodes = || {
        let node = |number: usize| JournalNode {
            id: NodeId(number as u32),
            zone: number.to_string(),
            store: Arc::new(site.nodes[number].clone()),
        };
        (0..3).map(node).collect::<Vec<_>>()
    };
    let last = history.last().unwrap().0;
    let mut progress = Progress::new("bytes", 0);
    for (time, position, want) in history.iter().filter(|(time, _, _)| *time >= last - 6 * HOUR) {
        for until in [Until::Entry(*position), Until::Time(*time), Until::Time(*time + 1)] {
            let engine = MemoryStore::new();
            put(&engine, "rubbish", "1").await.unwrap();
            let restored = Journal::restore(&engine, nodes(), false, until, 8, &mut progress).await.unwrap();
            assert_eq!((restored.position, restored.missing_to), (*position, None), "{until:?}");
            assert_eq!(pairs(&engine).await, *want, "{until:?}");
        }
    }
    let too_old =
        Journal::restore(&MemoryStore::new(), nodes(), false, Until::Entry(1), 8, &mut progress).await;
    assert_eq!(too_old.unwrap_err().kind(), ErrorKind::NotFound);
    // It goes on with a journal of its own, on nodes without one, and takes nothing from the other journal when a node returns that has it.
    let (_, position, want) = &history[history.len() - 5];
    let nodes = nodes();
    site.engine = MemoryStore::new();
    Journal::restore(&site.engine, nodes, false, Until::Entry(*position), 8, &mut progress).await.unwrap();
    let old = std::mem::replace(&mut site.nodes[2], FaultySegments::new(Arc::new(MemorySegments::new())));
    for number in 0..2 {
        site.nodes[number] = FaultySegments::new(Arc::new(MemorySegments::new()));
    }
    let journal = site.start().await;
    assert_eq!(pairs(&site.engine).await, *want);
    put(&journal, "new", "1").await.unwrap();
    journal.tend(0).await.unwrap();
    let want = pairs(&site.engine).await;
    drop(journal);
    site.nodes[2] = old;
    site.start().await;
    assert_eq!(pairs(&site.engine).await, want);
    site.lose_engine();
    site.start().await;
    assert_eq!(pairs(&site.engine).await, want);
}

#[tokio::test(start_paused = true)]
async fn without_nodes_nothing_is_committed_and_with_them_it_goes_on() {
    let mut site = Site::new();
    let journal = site.start().await;
    put(&journal, "a", "1").await.unwrap();
    site.nodes.iter().for_each(|node| node.set(Fault::Full));
    assert_eq!(put(&journal, "b", "2").await.unwrap_err().kind(), ErrorKind::NoSpace);
    site.nodes.iter().for_each(|node| node.set(Fault::Offline));
    assert_eq!(put(&journal, "b", "2").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(get(&journal, "b").await, None);
    site.heal();
    put(&journal, "c", "3").await.unwrap();
    site.lose_engine();
    site.start().await;
    assert_eq!(get(&site.engine, "b").await, None);
    assert_eq!(get(&site.engine, "c").await.as_deref(), Some("3"));
}

#[tokio::test]
async fn what_the_engine_refused_does_not_come_back() {
    let mut site = Site::new();
    let journal = site.start().await;
    put(&journal, "a", "1").await.unwrap();
    site.switches.fail_commits(0, 1, Failure::Full);
    assert_eq!(put(&journal, "b", "2").await.unwrap_err().kind(), ErrorKind::NoSpace);
    let again = site.start().await;
    assert_eq!(get(&again, "b").await, None);
    put(&again, "c", "3").await.unwrap();
    site.lose_engine();
    let anew = site.start().await;
    assert_eq!((get(&anew, "b").await, get(&anew, "c").await), (None, Some("3".to_owned())));
}

#[tokio::test]
async fn the_engine_is_brought_forward() {
    let site = Site::new();
    let journal = site.start().await;
    put(&journal, "a", "1").await.unwrap();
    // What an engine looks like that lost its last commits in a power cut.
    let old = site.engine.scan(&[], &keys::END, usize::MAX).await.unwrap();
    for number in 0..30 {
        put(&journal, "b", &number.to_string()).await.unwrap();
    }
    let want = pairs(&site.engine).await;
    let behind = Site { engine: MemoryStore::new(), ..site };
    let writes = old.into_iter().map(|(key, value)| Write { key, value: Some(value) }).collect();
    behind.engine.commit(vec![], writes).await.unwrap();
    behind.start().await;
    assert_eq!(pairs(&behind.engine).await, want);
}

#[tokio::test]
async fn a_damaged_copy_and_a_torn_end_do_no_harm() {
    let mut site = Site::new();
    let journal = site.start().await;
    for number in 0..100 {
        put(&journal, &number.to_string(), "value").await.unwrap();
    }
    let want = pairs(&site.engine).await;
    drop(journal);
    // Each of the two copies is damaged somewhere else, and a third of one is a torn end.
    let mut damaged = 0;
    for disk in &site.disks {
        for segment in disk.segments().values_mut().filter(|segment| segment.len() > 2_000) {
            segment[1_000 + 700 * damaged] ^= 1;
            segment.extend_from_slice(&vec![7; 300 * damaged]);
            damaged += 1;
        }
    }
    assert_eq!(damaged, 2);
    site.lose_engine();
    let journal = site.start().await;
    assert_eq!(pairs(&site.engine).await, want);
    // Healing makes good copies of what it can read.
    for round in 0..3 {
        journal.tend(round).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn copies_are_made_whole_again() {
    let mut site = Site::new();
    let journal = site.start().await;
    for round in 0..6_u64 {
        put(&journal, &format!("a{round}"), "value").await.unwrap();
        let node = &site.nodes[(round % 3) as usize];
        node.set(Fault::Offline);
        put(&journal, &format!("b{round}"), "value").await.unwrap();
        if round % 2 == 0 {
            site.disks[(round % 3) as usize].segments().clear();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let _ = journal.tend(1).await;
        node.set(Fault::None);
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let _ = journal.tend(1).await;
        }
        assert_eq!(journal.counts().under_replicated, 0, "{:?}", journal.counts());
    }
    let want = pairs(&site.engine).await;
    assert_eq!(want.len(), 12);
    drop(journal);
    for nodes in [[0, 1], [1, 2], [0, 2]] {
        site.lose_engine();
        site.start_on(&nodes).await.unwrap();
        assert_eq!(pairs(&site.engine).await, want, "from {nodes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_segment_without_entries_is_copied_too() {
    for wiped in 0..3 {
        let mut site = Site::new();
        put(&site.start().await, "a", "1").await.unwrap();
        site.start().await;
        let journal = site.start().await;
        site.disks[wiped].segments().clear();
        put(&journal, "b", "2").await.unwrap();
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let _ = journal.tend(0).await;
        }
        assert_eq!(journal.counts().under_replicated, 0, "{:?}", journal.counts());
        let want = pairs(&site.engine).await;
        drop(journal);
        for nodes in [[0, 1], [1, 2], [0, 2]] {
            site.lose_engine();
            site.start_on(&nodes).await.unwrap();
            assert_eq!(pairs(&site.engine).await, want, "from {nodes:?}, {wiped} was wiped");
        }
    }
}

#[tokio::test]
async fn a_node_that_an_admin_has_failed_is_left_alone() {
    let site = Site::new();
    let journal = site.start().await;
    for shut in 0..3 {
        journal.shut([NodeId(shut)].into());
        journal.tend(1).await.unwrap();
        let before = site.disks[shut as usize].segments().clone();
        put(&journal, "a", &shut.to_string()).await.unwrap();
        assert_eq!(*site.disks[shut as usize].segments(), before);
        assert_eq!(journal.counts().under_replicated, 0, "{:?}", journal.counts());
    }
}

#[tokio::test]
async fn snapshots_take_the_place_of_old_segments() {
    let mut site = Site::new();
    site.rules.snapshot_bytes = 20_000;
    let journal = site.start().await;
    let mut most = 0;
    for round in 0..40 {
        // Others commit while it is made.
        let busy = async {
            for number in 0..20 {
                put(&journal, &format!("{number}-{}", round % 7), &format!("{round:0200}")).await.unwrap();
                tokio::task::yield_now().await;
            }
            let gone = Write { key: format!("3-{}", round % 5).into(), value: None };
            journal.commit(vec![], vec![gone]).await.unwrap();
        };
        let (tended, ()) = tokio::join!(journal.tend(round), busy);
        tended.unwrap();
        most = most.max(journal.counts().bytes);
    }
    let counts = journal.counts();
    assert!(counts.snapshots >= 2 && counts.snapshots <= 3, "{counts:?}");
    assert!(most < 400_000, "{most} bytes are kept");
    let want = pairs(&site.engine).await;
    drop(journal);
    for nodes in [&[0, 1, 2][..], &[0, 1], &[1, 2], &[0, 2]] {
        site.lose_engine();
        site.start_on(nodes).await.unwrap();
        assert_eq!(pairs(&site.engine).await, want, "from {nodes:?}");
    }
}

#[tokio::test]
async fn an_engine_that_was_there_before_the_journal_gets_a_snapshot() {
    let mut site = Site::new();
    put(&site.engine, "old", "1").await.unwrap();
    let journal = site.start().await;
    put(&journal, "new", "2").await.unwrap();
    journal.tend(0).await.unwrap();
    let want = pairs(&site.engine).await;
    site.lose_engine();
    let anew = site.start().await;
    assert_eq!(pairs(&anew).await, want);
    assert_eq!(want.len(), 2);
}

#[tokio::test]
async fn what_is_to_be_forgotten_is_on_no_node_any_more() {
    let mut site = Site::new();
    let holds = |site: &Site, part: &[u8]| {
        let in_segments = |disk: &MemorySegments| {
            disk.segments().values().any(|segment| segment.windows(part.len()).any(|window| window == part))
        };
        site.disks.iter().any(in_segments)
    };
    for round in 0..3 {
        let journal = site.start().await;
        put(&journal, "key", "an old secret").await.unwrap();
        journal.tend(round).await.unwrap();
    }
    let journal = site.start().await;
    put(&journal, "key", "sealed").await.unwrap();
    assert!(holds(&site, b"an old secret"));
    journal.forget().await.unwrap();
    assert!(!holds(&site, b"an old secret") && holds(&site, b"sealed"));
    put(&journal, "more", "1").await.unwrap();
    let want = pairs(&site.engine).await;
    drop(journal);
    for nodes in [[0, 1], [1, 2], [0, 2]] {
        site.lose_engine();
        site.start_on(&nodes).await.unwrap();
        assert_eq!(pairs(&site.engine).await, want, "from {nodes:?}");
    }
}

/// Lives of a daemon on nodes that fail and tear, ended at any moment; the engine loses its end, or all. After each: what was acknowledged is
/// there, what was refused is not, and what is in doubt is wholly there or not at all.
#[tokio::test(start_paused = true)]
async fn generated_lives() {
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut site = Site::new();
        site.rules.snapshot_bytes = if random.random_bool(0.5) { 2_000 } else { u64::MAX };
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut value = 0;
        let mut is_wiped = false;
        for life in 0..8 {
            // One node at a time is away or broken.
            site.heal();
            let bad = random.random_range(0..3);
            let away = random.random_bool(0.3) && !is_wiped;
            let nodes: Vec<usize> = (0..3).filter(|node| !away || *node != bad).collect();
            let journal = match site.start_on(&nodes).await {
                Ok(journal) => journal,
                Err(error) => panic!("seed {seed}, life {life}: {error:?}"),
            };
            assert_eq!(pairs(&site.engine).await, model, "seed {seed}, life {life}");
            for _ in 0..random.random_range(0..20) {
                value += 1;
                let key = format!("{}", random.random_range(0..9));
                if random.random_bool(0.1) {
                    let length = random.random_range(0..60);
                    let slow = Fault::Slow(Duration::from_millis(random.random_range(0..3_000)));
                    let faults =
                        [Fault::Offline, Fault::Hanging, Fault::Torn(length), Fault::AnswerLost, slow];
                    site.nodes[bad].set(faults[random.random_range(0..faults.len())]);
                }
                if random.random_bool(0.05) {
                    site.switches.fail_commits(0, 1, Failure::Refused);
                }
                if put(&journal, &key, &value.to_string()).await.is_ok() {
                    model.insert(key.into(), value.to_string().into());
                }
                if random.random_bool(0.1) {
                    let _ = journal.tend(1).await;
                }
            }
            site.switches.heal();
            // Healed before another node may be lost.
            site.heal();
            let mut tended = Ok(());
            for _ in 0..30 {
                tokio::time::sleep(Duration::from_secs(20)).await;
                tended = journal.tend(0).await;
            }
            tended.unwrap_or_else(|error| panic!("seed {seed}, life {life}: {error:?}"));
            let counts = journal.counts();
            assert!(nodes.len() < 3 || counts.under_replicated == 0, "seed {seed}, life {life}: {counts:?}");
            drop(journal);
            let lost = random.random_range(0..4);
            is_wiped = lost == 1 && nodes.len() == 3;
            if is_wiped {
                site.disks[random.random_range(0..3)].segments().clear();
            } else if lost == 0 {
                site.lose_engine();
            }
        }
    }
}
