//! One seed from its beginning to its end: the daemon starts, all work, it dies, several times; then all come to rest
//! and everything is counted.

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tandemfs::clock::Clock;
use tandemfs::id::Ino;
use tandemfs::tree::{Credentials, Mutation, NewNode};
use tokio::time::{Instant, sleep, timeout};

use crate::client::{Called, Mount, PATIENCE, name};
use crate::daemon::Parts;
use crate::recount::recount;
use crate::trace::{note, violate};
use crate::world::World;
use crate::{chaos, people, work};

/// The time of day moves on so often.
const TICK: Duration = Duration::from_millis(40);

const YEAR_MS: i64 = 365 * 86_400_000;

thread_local! {
    /// A panic of this thread, also of a task that nobody waits for.
    pub static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What a run was like.
#[derive(Debug)]
pub struct Outcome {
    /// The promise that was broken, with the last events.
    pub failure: Option<String>,
    /// A hash of all events, and how many there were.
    pub digest: (String, u64),
}

/// Runs a seed.
pub fn run(seed: u64) -> Outcome {
    PANIC.with(|panic| panic.borrow_mut().take());
    let world = World::new(seed);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| lives(&world)));
    let panicked = PANIC.with(|panic| panic.borrow_mut().take());
    if result.is_err() || panicked.is_some() {
        violate!(world.trace, "panic: {}", panicked.unwrap_or_default());
    }
    let failure = world.trace.violation().map(|what| format!("seed {seed}: {what}\n{}", world.trace.last()));
    Outcome { failure, digest: world.trace.digest() }
}

fn lives(world: &Arc<World>) {
    live(world, 0, Life::First);
    let lives = world.draw(|random| random.between(1, 3)) as u32;
    for number in 1..=lives {
        live(world, number, Life::Short);
    }
    live(world, lives + 1, Life::Last);
}

/// What a life of the daemon is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// The directories are made; nothing goes wrong yet.
    First,
    /// It ends at any moment.
    Short,
    /// All come to rest, and everything is counted.
    Last,
}

fn live(world: &Arc<World>, number: u32, life: Life) {
    if world.trace.is_violated() {
        return;
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let ended = runtime.block_on(async {
        world.trace.begin(number);
        for client in &world.clients {
            client.daemon_started(Instant::now());
        }
        tokio::select! {
            biased;
            () = world.trace.alarm.notified() => {}
            () = act(world, life) => {}
        }
        Instant::now()
    });
    for client in &world.clients {
        client.daemon_died(ended);
    }
    world.trace.end();
    note!(world.trace, "the daemon dies");
    // Everything that it had under way is gone; what was on its way to a disk may still get there.
    drop(runtime);
    for node in &world.nodes {
        node.crash();
    }
    world.engine.crash();
}

async fn act(world: &Arc<World>, life: Life) {
    tokio::spawn(tick(world.clone()));
    let Some(parts) = start(world).await else { return };
    note!(world.trace, "the daemon runs");
    if life == Life::First {
        return make_directories(world, &parts).await;
    }
    let mut clients = Vec::new();
    for client in &world.clients {
        clients.push(tokio::spawn(work::live(world.clone(), parts.clone(), client.clone())));
    }
    clients.push(tokio::spawn(people::live(world.clone(), parts.clone())));
    let chaos = tokio::spawn({
        let (world, parts) = (world.clone(), parts.clone());
        async move { chaos::reign(world, parts).await }
    });
    let time = Duration::from_millis(world.draw(|random| random.between(200, 5000)));
    if life == Life::Short {
        let after = world.draw(|random| random.chance(500).then(|| random.between(1, 60)));
        world.crash_after(after);
        tokio::select! {
            biased;
            () = world.crash.notified() => note!(world.trace, "right after an acknowledgement"),
            () = sleep(time) => {}
        }
        return;
    }
    world.crash_after(None);
    sleep(time).await;
    rest(world, &parts, clients, chaos).await;
}

/// Starts a daemon; what keeps it from starting must be over some time.
async fn start(world: &World) -> Option<Arc<Parts>> {
    let began = Instant::now();
    loop {
        match timeout(PATIENCE, Parts::start(world)).await {
            Ok(Ok(parts)) => return Some(Arc::new(parts)),
            Ok(Err(error)) if work::is_transient(&error) && began.elapsed() < PATIENCE => {
                note!(world.trace, "the daemon does not start: {error:?}");
                chaos::end_troubles(world);
            }
            Ok(Err(error)) => {
                violate!(world.trace, "the daemon does not start: {error:?}");
                return None;
            }
            Err(_) => {
                violate!(world.trace, "the daemon does not start within {PATIENCE:?}");
                return None;
            }
        }
    }
}

async fn tick(world: Arc<World>) {
    loop {
        sleep(TICK).await;
        world.clock.advance(TICK.as_millis() as i64);
    }
}

async fn make_directories(world: &Arc<World>, parts: &Arc<Parts>) {
    for client in &world.clients {
        let mount = Mount { world: world.clone(), client: client.clone(), parts: parts.clone() };
        while client.state().directory == Ino(0) && !world.trace.is_violated() {
            let Some(session) = mount.session().await else { continue };
            let Some(ino) = mount.new_ino(&session).await else { continue };
            let mutation = Mutation::Create {
                parent: Ino::ROOT,
                name: name(&format!("client {}", client.number)),
                ino,
                node: NewNode::Directory,
                mode: 0o755,
                by: Credentials::default(),
                time: world.clock.now(),
            };
            if mount.prepare(session.id, vec![mutation], Vec::new(), Vec::new())
                && let Called::Answered(_) = mount.send(&session).await
            {
                let mut state = client.state();
                state.pending = None;
                state.directory = ino;
            }
        }
    }
}

/// Trouble ends, all finish what they are at; then everything must be perfect within a bounded time.
async fn rest(
    world: &Arc<World>,
    parts: &Arc<Parts>,
    clients: Vec<tokio::task::JoinHandle<()>>,
    chaos: tokio::task::JoinHandle<()>,
) {
    note!(world.trace, "all come to rest");
    world.rest();
    for task in std::iter::once(chaos).chain(clients) {
        if timeout(PATIENCE * 2, task).await.is_err() {
            violate!(world.trace, "somebody does not come to rest");
            return;
        }
    }
    chaos::end_troubles(world);
    world.suspects.lock().unwrap().extend(world.nodes.iter().map(crate::node::Node::number));
    // The clock may have been set back; what was stored before that is as old as it should be only afterwards.
    world.clock.advance(YEAR_MS);
    let began = Instant::now();
    loop {
        if world.trace.is_violated() {
            return;
        }
        chaos::tend(world, parts).await;
        let grace = world.settings.grace_s as i64 * 1000 + 1;
        world.clock.advance(grace);
        if let Err(error) = parts.collect().await {
            note!(world.trace, "nothing is collected: {error:?}");
        }
        sleep(Duration::from_secs(1)).await;
        match agree(world, parts).await {
            Ok(()) => return note!(world.trace, "everything is as it should be"),
            Err(why) if began.elapsed() > PATIENCE => return violate!(world.trace, "at rest: {why}"),
            Err(why) => note!(world.trace, "not yet at rest: {why}"),
        }
        // What was found is looked for again: damage may have been brought in by what was still under way.
        if began.elapsed() > PATIENCE / 4 {
            world.suspects.lock().unwrap().extend(world.nodes.iter().map(crate::node::Node::number));
        }
    }
}

/// Compares the recount with what the daemon says of itself.
async fn agree(world: &World, parts: &Parts) -> Result<(), String> {
    let count = recount(world)?;
    let (blocks, nodes) = (parts.replicator.counts(), parts.replicator.node_counts());
    if (blocks.total, blocks.under_replicated, blocks.lost) != (count.blocks, 0, 0) {
        return Err(format!("the daemon counts {blocks:?}, and there are {}", count.blocks));
    }
    if nodes.healthy != world.nodes.len() as u32 {
        return Err(format!("the nodes are {nodes:?}"));
    }
    for node in parts.replicator.nodes().await {
        let copies = count.copies.get(&node.node_id.0).copied().unwrap_or(0);
        if node.blocks != copies || node.missing_replicas != 0 {
            return Err(format!("the daemon says {node:?}, and there are {copies} objects"));
        }
    }
    Ok(())
}
