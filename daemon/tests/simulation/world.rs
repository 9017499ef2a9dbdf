//! Everything of one run that outlives the daemon: stores, clock, clients, and what they have been promised.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tandemd::meta::record::{self, Block, Place};
use tandemd::settings::Settings;
use tandemfs::api::fs::BatchReply;
use tandemfs::clock::ManualClock;
use tandemfs::id::{BlockId, VolumeId};
use tokio::sync::Notify;

use crate::client::{Client, Session, stamp};
use crate::engine::Engine;
use crate::history::History;
use crate::node::{Mode, Node};
use crate::random::Random;
use crate::trace::{Trace, violate};

/// The only volume.
pub const BEGAN_MS: i64 = 1_700_000_000_000;

/// The world of one seed.
#[derive(Debug)]
pub struct World {
    pub seed: u64,
    pub trace: Arc<Trace>,
    pub clock: ManualClock,
    pub settings: Settings,
    pub nodes: Vec<Node>,
    pub engine: Engine,
    pub clients: Vec<Arc<Client>>,
    /// The volume, once it is made.
    pub home: Mutex<Option<VolumeId>>,
    /// What chaos draws from.
    pub random: Mutex<Random>,
    /// Nodes whose objects were damaged behind the daemon's back and that nobody has looked through since.
    pub suspects: Mutex<BTreeSet<u32>>,
    /// More is broken than the copies allow: calls may fail, but must end, and must not lie.
    pub is_broken: AtomicBool,
    /// Rings when the daemon is to die at once.
    pub crash: Notify,
    /// So many acknowledgements until it does; negative: never.
    acknowledgements_left: AtomicI64,
    resting: AtomicBool,
    histories: Vec<Mutex<History>>,
}

impl World {
    /// The world that a seed describes.
    pub fn new(seed: u64) -> Arc<Self> {
        let mut random = Random::new(seed);
        let trace = Arc::new(Trace::default());
        let node_count = random.between(3, 4) as u32;
        let clients = random.between(2, 4) as usize;
        let settings = Settings {
            nodes: node_count,
            replicas: if node_count == 4 && random.chance(300) { 3 } else { 2 },
            min_replicas: random.between(1, 2) as u32,
            lease_ms: random.between(1500, 3000),
            quiet_ms: if random.chance(500) { 0 } else { 100 },
            grace_s: random.between(1, 3),
            collect_interval_s: 1,
            heal_delay_s: random.between(1, 4),
            probe_interval_ms: 300,
            node_timeout_ms: 1000,
            inline_bytes: if random.chance(800) { 32 << 10 } else { 0 },
            metadata_cache_bytes: if random.chance(500) { 16 << 10 } else { 1 << 20 },
            ..Settings::default()
        };
        let nodes = (1..=node_count).map(|number| Node::new(number, random.fork(), trace.clone())).collect();
        let engine = Engine::new(random.fork(), trace.clone());
        let clients: Vec<_> =
            (0..clients).map(|number| Arc::new(Client::new(number, random.fork()))).collect();
        // One more: what people do through the REST API.
        let histories = (0..=clients.len()).map(|_| Mutex::default()).collect();
        Arc::new(Self {
            seed,
            trace,
            clock: ManualClock::at(BEGAN_MS),
            settings,
            nodes,
            engine,
            clients,
            home: Mutex::default(),
            random: Mutex::new(random),
            suspects: Mutex::default(),
            is_broken: AtomicBool::new(false),
            crash: Notify::new(),
            acknowledgements_left: AtomicI64::new(-1),
            resting: AtomicBool::new(false),
            histories,
        })
    }

    /// A client's history. Never kept over an `await`.
    pub fn history(&self, of: usize) -> MutexGuard<'_, History> {
        self.histories[of].lock().unwrap()
    }

    /// The number under which people's history is.
    pub fn people(&self) -> usize {
        self.clients.len()
    }

    /// A number from the seed's own stream.
    pub fn draw<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut self.random.lock().unwrap())
    }

    /// Something does not work although it must.
    pub fn expect_service(&self, what: &str) {
        if !self.is_broken.load(Ordering::SeqCst) {
            violate!(self.trace, "{what} although enough is well");
        }
    }

    /// All are to finish what they do and begin nothing new.
    pub fn rest(&self) {
        self.resting.store(true, Ordering::SeqCst);
    }

    /// Whether all are to come to rest.
    pub fn is_resting(&self) -> bool {
        self.resting.load(Ordering::SeqCst)
    }

    /// The daemon dies right after so many more acknowledgements.
    pub fn crash_after(&self, acknowledgements: Option<u64>) {
        let left = acknowledgements.map_or(-1, |count| count as i64);
        self.acknowledgements_left.store(left, Ordering::SeqCst);
    }

    /// Somebody was told that something is done.
    pub fn acknowledged(&self) {
        if self.acknowledgements_left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.crash.notify_one();
        }
    }

    /// A change was acknowledged: no other client may hold what it replaced, and believe that it may use it.
    pub fn nobody_holds_older(&self, author: usize, session: &Session, reply: &BatchReply) {
        for client in self.clients.iter().filter(|client| client.number != author) {
            let state = client.state();
            for (key, _) in &reply.records {
                if let Some(version) = state.cache.version_of(key)
                    && version < stamp(session, reply.version)
                {
                    violate!(
                        self.trace,
                        "client {} still holds {key:?} of version {version:x} when client {author} is told that version {:x} is there",
                        client.number,
                        stamp(session, reply.version)
                    );
                }
            }
        }
    }

    /// A block was acknowledged as durable: its record is there, names enough nodes, and only such as it has reached (R1).
    pub fn block_is_durable(&self, id: &BlockId) {
        let record = self.blocks().into_iter().find(|(other, _)| other == id).map(|(_, block)| block);
        // It may have been collected since, when its grace period was short.
        let is_object = |block: &Block| !block.deleting && block.place == Place::Object;
        let Some(block) = record.filter(is_object) else { return };
        let reached =
            |node: &&Node| block.replicas.iter().any(|of| of.0 == node.number()) && node.was_reached_by(id);
        let copies = self.nodes.iter().filter(reached).count();
        if copies < block.replicas.len() || copies < self.settings.min_replicas as usize {
            violate!(self.trace, "{id:?} is acknowledged with {copies} copies written: {block:?}");
        }
    }

    /// The records of all blocks as the engine has them.
    pub fn blocks(&self) -> Vec<(BlockId, Block)> {
        self.engine
            .rows(b"b")
            .into_iter()
            .filter_map(|(key, value)| {
                let id = BlockId(key.last_chunk::<32>().copied()?);
                Some((id, record::decode::<Block>(&key, &value).ok()?))
            })
            .collect()
    }

    /// Whether every block would still be there without some nodes.
    pub fn can_do_without(&self, nodes: &[u32]) -> bool {
        let left: Vec<&Node> = self
            .nodes
            .iter()
            .filter(|node| {
                !nodes.contains(&node.number()) && matches!(node.mode(), Mode::Well | Mode::Slow(_))
            })
            .collect();
        let is_safe = |id: &BlockId, block: &Block| {
            block.deleting || block.place != Place::Object || left.iter().any(|node| node.has_good(id))
        };
        // And the metadata: what these nodes have of the journal, another one has as well.
        let without = self.nodes.iter().filter(|node| nodes.contains(&node.number()));
        let held: Vec<_> = left.iter().map(|node| node.segments()).collect();
        let is_elsewhere = |(number, bytes): (&u64, &Vec<u8>)| {
            held.iter().any(|held| held.get(number).is_some_and(|other| other.len() >= bytes.len()))
        };
        !left.is_empty()
            && self.blocks().iter().all(|(id, block)| is_safe(id, block))
            && without.flat_map(|node| node.segments()).all(|(number, bytes)| is_elsewhere((&number, &bytes)))
    }
}
