//! Several nodes in memory with faults, a replicator and jobs over them, and an independent check of what they claim.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tandemfs::Result;
use tandemfs::api::admin::{Job, JobState};
use tandemfs::block;
use tandemfs::block::Draft;
use tandemfs::clock::{Clock, Time};
use tandemfs::id::{BlockId, JobId, NodeId, VolumeId, VolumeKey};
use tokio::time::Instant;

use super::{Garbage, Jobs};
use crate::blocks::BlockStore;
use crate::blocks::faulty::{Faults, FaultyStore};
use crate::blocks::memory::MemoryStore;
use crate::fsck::Report;
use crate::meta::{Key, Meta, MetaStore};
use crate::replicate::{NodeSetup, Replicator, Sum};
use crate::segments::memory::MemorySegments;
use crate::settings::Settings;
use crate::volumes::{Collected, Compacted, Live};

pub(crate) const VOLUME: VolumeId = VolumeId(7);

/// The time of day, moved by tokio's clock.
#[derive(Debug)]
struct Moving(Instant);

impl Clock for Moving {
    fn now(&self) -> Time {
        Time::from_millis(1_000_000_000_000 + i64::try_from(self.0.elapsed().as_millis()).unwrap())
    }
}

#[derive(Debug)]
struct NoGarbage;

#[async_trait]
impl Garbage for NoGarbage {
    async fn collect(&self, _: Option<Key>, _: u64, _: usize) -> Result<Collected> {
        Ok(Collected::default())
    }

    async fn preview(&self, _: Option<Key>, _: u64, _: usize) -> Result<Collected> {
        Ok(Collected::default())
    }

    fn half_dead(&self) -> Sum {
        Sum::default()
    }

    async fn compact(&self, _: &(dyn Fn(Compacted) + Send + Sync)) -> Result<Compacted> {
        Ok(Compacted::default())
    }

    async fn fsck(&self, _: Live<'_>) -> Result<Report> {
        Ok(Report::default())
    }
}

/// What a test works with.
pub(crate) struct Site {
    pub(crate) settings: Settings,
    pub(crate) disks: Vec<Arc<MemoryStore>>,
    pub(crate) faults: Vec<Faults>,
    pub(crate) replicator: Arc<Replicator>,
    pub(crate) jobs: Option<Arc<Jobs>>,
    engine: Arc<dyn MetaStore>,
    clock: Arc<dyn Clock>,
}

/// The bytes of a numbered block.
pub(crate) fn data(number: u32) -> Bytes {
    // Some have several pieces, most are small so that the tests are fast.
    let longest = if number.is_multiple_of(10) { 150_000 } else { 5_000 };
    let length = 100 + (number as usize * 7919) % longest;
    Bytes::from(number.to_be_bytes().into_iter().cycle().take(length).collect::<Vec<u8>>())
}

pub(crate) fn id(number: u32) -> BlockId {
    BlockId::of(&VolumeKey([1; 32]), &data(number))
}

impl Site {
    pub(crate) async fn new(nodes: usize, change: impl FnOnce(&mut Settings)) -> Self {
        Self::with(vec![None; nodes], Arc::new(crate::meta::memory::MemoryStore::new()), change).await
    }

    pub(crate) async fn with(
        room: Vec<Option<u64>>,
        engine: Arc<dyn MetaStore>,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let mut settings = Settings {
            node_timeout_ms: 2_000,
            probe_interval_ms: 500,
            scrub_interval_s: 0,
            ..Settings::default()
        };
        change(&mut settings);
        let disk =
            |room: &Option<u64>| Arc::new(room.map_or_else(MemoryStore::new, MemoryStore::with_capacity));
        let disks: Vec<_> = room.iter().map(disk).collect();
        let faults: Vec<_> = (0..disks.len()).map(|seed| Faults::new(seed as u64)).collect();
        let clock: Arc<dyn Clock> = Arc::new(Moving(Instant::now()));
        let replicator = open(&engine, &disks, &faults, &settings, &clock).await;
        Self { settings, disks, faults, replicator, jobs: None, engine, clock }
    }

    /// Ends jobs and replicator and opens all anew, as after a restart of the daemon.
    pub(crate) async fn restart(&mut self) {
        let worked = self.jobs.is_some();
        if let Some(jobs) = self.jobs.take() {
            jobs.stop().await;
        }
        self.replicator = open(&self.engine, &self.disks, &self.faults, &self.settings, &self.clock).await;
        if worked {
            self.work().await;
        }
    }

    /// Starts the workers.
    pub(crate) async fn work(&mut self) {
        let (meta, garbage) = (self.replicator.meta().clone(), Arc::new(NoGarbage));
        let jobs = Jobs::start(meta, self.replicator.clone(), garbage, &self.settings, self.clock.clone());
        self.jobs = Some(jobs.await.unwrap());
    }

    pub(crate) fn jobs(&self) -> &Jobs {
        self.jobs.as_ref().unwrap()
    }

    pub(crate) async fn done(&self, job: Result<JobId>) -> Job {
        let job = self.jobs().wait(job.unwrap()).await.unwrap();
        assert_eq!(job.state, JobState::Done, "{job:?}");
        job
    }

    pub(crate) async fn put(&self, number: u32) -> Result<()> {
        self.replicator.put(VOLUME, id(number), Draft::of(&data(number))?).await
    }

    pub(crate) async fn put_all(&self, numbers: std::ops::Range<u32>) {
        for number in numbers {
            self.put(number).await.unwrap();
        }
    }

    /// Reads a block, whole and in part, and compares it.
    pub(crate) async fn check(&self, number: u32) -> Result<()> {
        let (id, data) = (id(number), data(number));
        let length = u32::try_from(data.len()).unwrap();
        assert_eq!(self.replicator.get(VOLUME, id, 0..length).await?, data);
        let part = length / 3..length / 2;
        let read = self.replicator.get(VOLUME, id, part.clone()).await?;
        assert_eq!(read, data.slice(part.start as usize..part.end as usize));
        Ok(())
    }

    pub(crate) async fn check_all(&self, numbers: std::ops::Range<u32>) {
        for number in numbers {
            self.check(number).await.unwrap();
        }
    }

    /// The good objects of a node, and how many others it has.
    pub(crate) async fn on_disk(&self, node: usize) -> (BTreeSet<BlockId>, usize) {
        let (mut good, mut bad) = (BTreeSet::new(), 0);
        for object in self.disks[node].list(None, usize::MAX).await.unwrap() {
            let bytes = self.disks[node].get(&object.id, None).await.unwrap();
            match block::decode(&object.id, bytes) {
                Ok(_) => drop(good.insert(object.id)),
                Err(_) => bad += 1,
            }
        }
        (good, bad)
    }

    /// The counts are those of the records, counted anew.
    pub(crate) async fn audit_counts(&self) {
        let (census, blocks) = self.replicator.recount().await;
        assert_eq!(
            self.replicator.counts().total,
            blocks.values().filter(|block| !block.deleting).count() as u64
        );
        assert_eq!(*self.replicator.census(), census);
    }

    /// Each healthy node has exactly what the records place on it, and nothing else.
    pub(crate) async fn audit(&self) {
        self.audit_counts().await;
        let (_, blocks) = self.replicator.recount().await;
        let mut placed: BTreeMap<NodeId, BTreeSet<BlockId>> = BTreeMap::new();
        for ((_, id), block) in &blocks {
            for node in &block.replicas {
                placed.entry(*node).or_default().insert(*id);
            }
        }
        for node in self.replicator.registry().all().filter(|node| node.is_healthy()) {
            let (good, bad) = self.on_disk(node.id().0 as usize).await;
            assert_eq!(bad, 0, "node {}", node.id());
            assert_eq!(good, placed.remove(&node.id()).unwrap_or_default(), "node {}", node.id());
        }
    }

    /// All is as it is to be: everything healthy, nothing missing, no copy too many, nothing else anywhere.
    pub(crate) async fn audit_whole(&self) {
        self.audit().await;
        let counts = self.replicator.counts();
        assert_eq!((counts.under_replicated, counts.lost), (0, 0));
        let nodes = self.replicator.node_counts();
        assert_eq!(nodes.healthy, nodes.total);
        let (_, blocks) = self.replicator.recount().await;
        assert!(blocks.values().all(|block| block.replicas.len() == self.replicator.wanted()));
    }
}

pub(crate) async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

async fn open(
    engine: &Arc<dyn MetaStore>,
    disks: &[Arc<MemoryStore>],
    faults: &[Faults],
    settings: &Settings,
    clock: &Arc<dyn Clock>,
) -> Arc<Replicator> {
    let nodes = disks.iter().zip(faults).zip(0..).map(|((disk, faults), number)| NodeSetup {
        id: NodeId(number),
        kind: "memory".to_owned(),
        location: String::new(),
        zone: format!("zone {number}"),
        weight: 1,
        store: Arc::new(FaultyStore::new(disk.clone(), faults.clone())),
        segments: Arc::new(MemorySegments::new()),
    });
    let meta = Meta::open(engine.clone()).await.unwrap();
    Replicator::open(meta, nodes.collect(), settings, clock.clone()).await.unwrap()
}
