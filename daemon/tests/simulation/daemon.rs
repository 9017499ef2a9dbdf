//! One life of the daemon's engine: its parts, on stores that outlive it.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use std::ops::Range;
use std::sync::Arc;
use tandemd::accounts::Caller;
use tandemd::journal::{Journal, JournalNode, Rules};
use tandemd::meta::{Meta, MetaStore, keys, record};
use tandemd::replicate::{NodeSetup, Replicator};
use tandemd::sessions::Sessions;
use tandemd::volumes::Volumes;
use tandemd::work::Jobs;
use tandemfs::api::admin::{Job, JobState};
use tandemfs::api::files::NodeState;
use tandemfs::api::fs::{
    Ack, Batch, BatchReply, DelegationReply, DelegationRequest, Event, InodeRange, OpenSession, Read,
    ReadReply, ResumeSession, SessionGrant,
};
use tandemfs::api::users::Role;
use tandemfs::block::Draft;
use tandemfs::clock::Clock;
use tandemfs::id::{BlockId, JobId, NodeId, SessionId, UserId, VolumeId, VolumeKey};
use tandemfs::{Error, Result};

use crate::node::Node;
use crate::random::Random;
use crate::world::World;

/// What a session is told.
pub type Events = BoxStream<'static, Event>;

/// The parts of a daemon that runs.
#[derive(Debug)]
pub struct Parts {
    pub replicator: Arc<Replicator>,
    pub volumes: Arc<Volumes>,
    pub sessions: Arc<Sessions>,
    pub jobs: Arc<Jobs>,
    pub caller: Caller,
}

async fn open_journal(world: &World, engine: Arc<dyn MetaStore>, clock: &Arc<dyn Clock>) -> Result<Journal> {
    let node = |node: &Node| JournalNode {
        id: NodeId(node.number()),
        zone: format!("zone {}", node.number()),
        store: Arc::new(node.clone()),
    };
    let rules = Rules {
        copies: world.settings.replicas as usize,
        min_copies: world.settings.min_replicas as usize,
        snapshot_bytes: world.draw(|random| *random.pick(&[2 << 10, 32 << 10, 1 << 20])),
        keep_ms: 0,
        new_journal: world.draw(Random::next),
    };
    Journal::open(engine, world.nodes.iter().map(node).collect(), rules, clock.clone()).await
}

impl Parts {
    /// Starts a daemon on the stores of a world; makes the volume if there is none.
    pub async fn start(world: &World) -> Result<Self> {
        let settings = &world.settings;
        let clock: Arc<dyn Clock> = Arc::new(world.clock.clone());
        let engine: Arc<dyn MetaStore> = Arc::new(world.engine.clone());
        let journal = open_journal(world, engine, &clock).await?;
        let meta = Meta::open(Arc::new(journal.clone())).await?;
        let setups = world.nodes.iter().map(|node| NodeSetup {
            id: NodeId(node.number()),
            kind: "simulated".to_owned(),
            location: String::new(),
            zone: format!("zone {}", node.number()),
            weight: 1,
            store: Arc::new(node.clone()),
            segments: Arc::new(node.clone()),
        });
        let replicator = Replicator::open(meta.clone(), setups.collect(), settings, clock.clone()).await?;
        let volumes = Volumes::open(meta.clone(), replicator.clone(), settings, clock.clone()).await?;
        volumes.seed(world.draw(Random::next));
        let home = *world.home.lock().unwrap();
        let home = match home {
            Some(home) => home,
            None => make_home(world, &meta, &volumes).await?,
        };
        let sessions = Sessions::open(meta.clone(), volumes.clone(), settings, clock.clone()).await?;
        let jobs = Jobs::start(meta, replicator.clone(), volumes.clone(), settings, clock).await?;
        jobs.tend(journal);
        let caller = Caller { user: UserId(1), username: "somebody".to_owned(), role: Role::User, home };
        Ok(Self { replicator, volumes, sessions, jobs, caller })
    }

    pub async fn open(&self, open: OpenSession) -> Result<SessionGrant> {
        self.sessions.start(&self.caller, open).await
    }

    pub async fn resume(&self, session: SessionId, resume: ResumeSession) -> Result<SessionGrant> {
        self.sessions.resume(&self.caller, session, &resume).await
    }

    pub async fn close(&self, session: SessionId) -> Result<()> {
        self.sessions.close(&self.caller, session).await
    }

    pub async fn events(&self, session: SessionId) -> Result<Events> {
        Ok(self.sessions.events(&self.caller, session).await?.boxed())
    }

    pub async fn ack(&self, session: SessionId, ack: Ack) -> Result<()> {
        self.sessions.acknowledge(&self.caller, session, &ack).await
    }

    pub async fn batch(&self, session: SessionId, batch: Batch) -> Result<BatchReply> {
        self.sessions.batch(&self.caller, session, batch).await
    }

    /// Answers also which event was the last one by then.
    pub async fn read(&self, session: SessionId, read: Read) -> Result<(ReadReply, Option<u64>)> {
        let reply = self.sessions.read(&self.caller, session, &read).await?;
        Ok((reply, self.sessions.last_event(session)))
    }

    pub async fn delegation(
        &self,
        session: SessionId,
        request: DelegationRequest,
    ) -> Result<DelegationReply> {
        self.sessions.delegation(&self.caller, session, &request).await
    }

    pub async fn inodes(&self, session: SessionId) -> Result<InodeRange> {
        self.sessions.inodes(&self.caller, session).await
    }

    pub async fn put_block(&self, session: SessionId, block: BlockId, data: Bytes) -> Result<()> {
        self.sessions.put_block(&self.caller, session, block, Draft::of(&data)?).await
    }

    pub async fn get_block(&self, session: SessionId, block: BlockId, range: Range<u32>) -> Result<Bytes> {
        self.sessions.get_block(&self.caller, session, block, range).await
    }

    /// Whether the daemon takes a node for gone.
    pub async fn is_failed(&self, node: u32) -> bool {
        let nodes = self.replicator.nodes().await;
        nodes.iter().any(|other| other.node_id == NodeId(node) && other.state == NodeState::Failed)
    }

    /// Nodes that the daemon does not count on, beside some.
    pub async fn away(&self, beside: &[u32]) -> Vec<u32> {
        let nodes = self.replicator.nodes().await.into_iter();
        let away = nodes.filter(|node| node.state != NodeState::Healthy).map(|node| node.node_id.0);
        away.filter(|node| !beside.contains(node)).collect()
    }

    /// Repairs a node and waits for it.
    pub async fn repair(&self, node: u32) -> Result<()> {
        let job = self.jobs.repair_node(NodeId(node)).await?;
        self.wait(job).await
    }

    /// Has a node's objects read and checked.
    pub async fn scrub(&self, node: u32) -> Result<JobId> {
        self.jobs.scrub(Some(NodeId(node))).await
    }

    /// The same, and waits for it.
    pub async fn scrub_and_wait(&self, node: u32) -> Result<()> {
        let job = self.scrub(node).await?;
        self.wait(job).await
    }

    /// Has missing copies made.
    pub async fn heal(&self) -> Result<JobId> {
        self.jobs.heal().await
    }

    /// Has garbage collected.
    pub async fn collect(&self) -> Result<JobId> {
        self.jobs.collect(false).await
    }

    async fn wait(&self, job: JobId) -> Result<()> {
        let job: Job = self.jobs.wait(job).await?;
        match job.state {
            JobState::Done => Ok(()),
            _ => Err(Error::unavailable(format!("{job:?}"))),
        }
    }
}

/// Makes the volume, with a key that follows from the seed.
async fn make_home(world: &World, meta: &Meta, volumes: &Volumes) -> Result<VolumeId> {
    let (home, mut writes) = volumes.new_home(UserId(1), None, None).await?;
    for write in &mut writes {
        if write.key == keys::volume(home)
            && let Some(value) = &write.value
        {
            let volume: record::Volume = record::decode(&write.key, value)?;
            let key = VolumeKey(*blake3::hash(&world.seed.to_be_bytes()).as_bytes());
            write.value = Some(record::encode(&write.key, &record::Volume { key, ..volume })?);
        }
    }
    meta.commit(Vec::new(), writes).await?;
    *world.home.lock().unwrap() = Some(home);
    Ok(home)
}
