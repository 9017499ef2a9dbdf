//! A daemon without HTTP over stores in memory, which can be opened again over the same stores.

use bytes::Bytes;
use std::sync::Arc;
use tandemfs::Result;
use tandemfs::api::fs::{Batch, BatchReply, OpenSession, SessionGrant};
use tandemfs::api::users::Role;
use tandemfs::clock::{ManualClock, Time};
use tandemfs::id::{BlockId, Ino, NodeId, SessionId, UserId, VolumeId};
use tandemfs::name::Name;
use tandemfs::tree::{Credentials, Mutation, NewNode, WrittenExtent};

use crate::accounts::Caller;
use crate::blocks::{self, BlockStore};
use crate::meta::faulty::{FaultyStore, Switches};
use crate::meta::{Meta, memory::MemoryStore};
use crate::replicate::{NodeSetup, Replicator};
use crate::segments::memory::MemorySegments;
use crate::sessions::Sessions;
use crate::settings::Settings;
use crate::volumes::files::Preconditions;
use crate::volumes::{Compacted, Volume, Volumes};

/// A daemon's middle.
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) clock: ManualClock,
    pub(crate) store: MemoryStore,
    pub(crate) switches: Switches,
    pub(crate) nodes: Vec<Arc<dyn BlockStore>>,
    pub(crate) meta: Meta,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) caller: Caller,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Settings { lease_ms: 3_000, grace_s: 60, ..Settings::default() }, None).await
    }

    pub(crate) async fn with(settings: Settings, quota_bytes: Option<u64>) -> Self {
        Self::over(settings, quota_bytes, blocks::memory::MemoryStore::new).await
    }

    /// With nodes that have so many bytes each.
    pub(crate) async fn with_nodes_of(bytes: u64) -> Self {
        let settings = Settings { lease_ms: 3_000, grace_s: 60, ..Settings::default() };
        Self::over(settings, None, || blocks::memory::MemoryStore::with_capacity(bytes)).await
    }

    async fn over(
        settings: Settings,
        quota_bytes: Option<u64>,
        node: impl Fn() -> blocks::memory::MemoryStore,
    ) -> Self {
        let nodes = (0..3).map(|_| Arc::new(node()) as Arc<dyn BlockStore>).collect();
        let store = MemoryStore::new();
        let caller =
            Caller { user: UserId(1), username: "ann".to_owned(), role: Role::User, home: VolumeId(0) };
        let clock = ManualClock::at(1_700_000_000_000);
        let mut world = Self::open(settings, clock, store, nodes, caller).await;
        let (home, writes) = world.volumes.new_home(UserId(1), quota_bytes, None).await.unwrap();
        world.meta.commit(Vec::new(), writes).await.unwrap();
        world.caller.home = home;
        world
    }

    async fn open(
        settings: Settings,
        clock: ManualClock,
        store: MemoryStore,
        nodes: Vec<Arc<dyn BlockStore>>,
        caller: Caller,
    ) -> Self {
        let switches = Switches::new();
        let faulty = FaultyStore::new(Arc::new(store.clone()), switches.clone());
        let meta = Meta::open(Arc::new(faulty)).await.unwrap();
        let setups = nodes.iter().zip(1..).map(|(store, number)| NodeSetup {
            id: NodeId(number),
            kind: "memory".to_owned(),
            location: String::new(),
            zone: number.to_string(),
            weight: 1,
            store: Arc::clone(store),
            segments: Arc::new(MemorySegments::new()),
        });
        let injected = Arc::new(clock.clone());
        let replicator =
            Replicator::open(meta.clone(), setups.collect(), &settings, injected.clone()).await.unwrap();
        let volumes = Volumes::open(meta.clone(), replicator, &settings, injected.clone()).await.unwrap();
        volumes.seed(1);
        let sessions = Sessions::open(meta.clone(), volumes.clone(), &settings, injected).await.unwrap();
        Self { settings, clock, store, switches, nodes, meta, volumes, sessions, caller }
    }

    /// As if the daemon had been killed and started again.
    pub(crate) async fn restart(self) -> Self {
        self.volumes.stop();
        self.sessions.stop();
        Self::open(self.settings, self.clock, self.store, self.nodes, self.caller).await
    }

    pub(crate) async fn volume(&self) -> Arc<Volume> {
        self.volumes.volume(self.caller.home).await.unwrap()
    }

    pub(crate) async fn session(&self) -> SessionGrant {
        let open = OpenSession { volume: None, read_only: false, client: "test".to_owned() };
        self.sessions.start(&self.caller, open).await.unwrap()
    }

    pub(crate) async fn batch(
        &self,
        id: SessionId,
        sequence: u64,
        mutations: Vec<Mutation>,
    ) -> Result<BatchReply> {
        self.sessions
            .batch(
                &self.caller,
                id,
                Batch {
                    sequence,
                    mutations,
                    held: Vec::new(),
                    delegates: Vec::new(),
                    blocks: Vec::new(),
                    brief: false,
                },
            )
            .await
    }

    /// Uploads a file; its id.
    pub(crate) async fn upload(&self, path: &str, data: &[u8]) -> Result<String> {
        let path = tandemfs::name::split_path(path)?;
        let mut upload = self.volumes.upload(&self.caller, path, Preconditions::default()).await?;
        for piece in data.chunks(1_000_000) {
            upload.write(Bytes::copy_from_slice(piece)).await?;
        }
        Ok(upload.finish().await?.file_id)
    }

    pub(crate) async fn download(&self, id: &str, range: std::ops::Range<u64>) -> Result<Vec<u8>> {
        use futures::TryStreamExt;
        let download = self.volumes.download(&self.caller, id).await?;
        let pieces: Vec<Bytes> = self.volumes.read(&download, range).await?.try_collect().await?;
        Ok(pieces.concat())
    }

    pub(crate) async fn delete(&self, id: &str) -> Result<()> {
        self.volumes.delete(&self.caller, id, &Preconditions::default()).await
    }

    /// Milliseconds since 1970.
    pub(crate) fn now_ms(&self) -> u64 {
        use tandemfs::clock::Clock;
        u64::try_from(self.clock.now().as_millis()).unwrap()
    }

    /// Collects all garbage that is old enough; how many blocks.
    pub(crate) async fn collect(&self) -> Result<u64> {
        let now = self.now_ms();
        let (mut from, mut blocks) = (None, 0);
        loop {
            let step = self.volumes.collect(from, now - self.settings.grace_s * 1000, 7).await?;
            blocks += step.blocks;
            match step.next {
                Some(next) => from = Some(next),
                None => return Ok(blocks),
            }
        }
    }

    /// Rewrites packs of which less than half is in use.
    pub(crate) async fn compact(&self) -> Result<Compacted> {
        self.volumes.compact_packs(&|_| ()).await
    }

    /// Objects on all nodes.
    pub(crate) async fn objects(&self) -> usize {
        let mut count = 0;
        for node in &self.nodes {
            count += node.list(None, 1_000_000).await.unwrap().len();
        }
        count
    }
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn time(seconds: i64) -> Time {
    Time { seconds, nanos: 0 }
}

pub(crate) const ROOT_USER: Credentials = Credentials { uid: 0, gid: 0 };

pub(crate) fn create(text: &str, ino: u64) -> Mutation {
    create_in(Ino::ROOT, text, ino, NewNode::File)
}

pub(crate) fn create_in(parent: Ino, text: &str, ino: u64, node: NewNode) -> Mutation {
    Mutation::Create {
        parent,
        name: name(text),
        ino: Ino(ino),
        node,
        mode: 0o755,
        by: ROOT_USER,
        time: time(1),
    }
}

pub(crate) fn unlink(text: &str) -> Mutation {
    Mutation::Unlink { parent: Ino::ROOT, name: name(text), by: ROOT_USER, time: time(2) }
}

pub(crate) fn write(ino: u64, offset: u64, length: u64, block: BlockId) -> Mutation {
    let extents = vec![WrittenExtent { offset, length, block, block_offset: 0 }];
    Mutation::Write { ino: Ino(ino), extents, size: offset + length, clear_privileges: false, time: time(3) }
}
