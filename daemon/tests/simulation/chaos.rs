//! What goes wrong while all work, and the admin who mends it. Never more at once than the copies allow, unless
//! the seed says so: then nothing is promised but honest answers in bounded time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tandemd::meta::record::Place;
use tandemfs::api::admin::FailMode;
use tandemfs::id::NodeId;
use tokio::time::{Instant, sleep};

use crate::daemon::Parts;
use crate::node::{Mode, Node};
use crate::trace::{note, violate};
use crate::world::World;

/// Within this time lost copies are made again once all nodes are well.
const HEALING: Duration = Duration::from_secs(100);

/// Makes trouble until all come to rest.
pub async fn reign(world: Arc<World>, parts: Arc<Parts>) {
    // What the last daemon left behind lasts for a while.
    pause(&world, 0, 2500).await;
    end_troubles(&world);
    while !world.is_resting() && !world.trace.is_violated() {
        pause(&world, 50, 900).await;
        match world.draw(|random| random.below(100)) {
            0..14 => engine_trouble(&world).await,
            14..18 => clock_trouble(&world),
            18..20 => all_look_back(&world),
            20..32 => errand(&world, &parts).await,
            32..70 if world.seed % 8 == 7 => too_much(&world, &parts).await,
            _ => node_trouble(&world, &parts).await,
        }
    }
    end_troubles(&world);
}

async fn pause(world: &World, from: u64, to: u64) {
    let time = world.draw(|random| random.between(from, to));
    sleep(Duration::from_millis(time)).await;
}

/// Nodes and engine are as they should be; what is lost is lost.
pub fn end_troubles(world: &World) {
    for node in &world.nodes {
        if node.mode() != Mode::Well {
            node.set(Mode::Well);
        }
    }
    world.engine.set(0, 8);
    world.is_broken.store(false, Ordering::SeqCst);
}

async fn engine_trouble(world: &World) {
    let (failing, slowest) =
        world.draw(|random| (*random.pick(&[0, 100, 400]), *random.pick(&[8, 150, 600])));
    world.engine.set(failing, slowest);
    pause(world, 100, 1500).await;
    world.engine.set(0, 8);
}

/// The time of day jumps; nothing that counts may depend on it.
fn clock_trouble(world: &World) {
    let by =
        world.draw(|random| *random.pick(&[3_600_000, 86_400_000, -60_000, -864_000_000, 315_360_000_000]));
    note!(world.trace, "the clock jumps by {by} ms");
    use tandemfs::clock::Clock;
    // Before 1970 there is nothing to see.
    if world.clock.now().as_millis() + by > 0 {
        world.clock.advance(by);
    }
}

fn all_look_back(world: &World) {
    for node in &world.nodes {
        node.remember();
    }
}

/// An admin looks after things without a cause.
async fn errand(world: &World, parts: &Parts) {
    let node = world.draw(|random| random.pick(&world.nodes).number());
    let result = match world.draw(|random| random.below(7)) {
        0 => parts.scrub(node).await.map(drop),
        1 => parts.heal().await.map(drop),
        2 => parts.collect().await.map(drop),
        3 => parts.volumes.compact(&|_| ()).await.map(drop),
        4 => parts.volumes.join(1, &|_| ()).await.map(drop),
        _ => parts.volumes.pack().await.map(drop),
    };
    if let Err(error) = result {
        note!(world.trace, "an errand was refused: {error:?}");
    }
}

async fn node_trouble(world: &World, parts: &Parts) {
    let node = world.draw(|random| random.pick(&world.nodes).clone());
    if !wait_for_copies(world, parts, &[node.number()]).await {
        return;
    }
    // From here to the next sleep nothing else happens.
    match world.draw(|random| random.below(12)) {
        0..2 => ail(world, &node, Mode::Offline).await,
        2 => ail(world, &node, Mode::Hanging).await,
        3 => ail(world, &node, Mode::Slow(700)).await,
        4 => ail(world, &node, Mode::Flaky(400)).await,
        5 => ail(world, &node, Mode::Misreading).await,
        6 => ail(world, &node, Mode::Full).await,
        7 => {
            node.set(Mode::Offline);
            pause(world, 100, 5000).await;
            suspect(world, &node);
            node.wipe();
            node.set(Mode::Well);
        }
        8 => {
            suspect(world, &node);
            node.go_back();
        }
        9 => {
            suspect(world, &node);
            node.rot(world.draw(|random| *random.pick(&[50, 300, 1000])));
        }
        dice => {
            let mode = if dice == 10 { FailMode::Offline } else { FailMode::Wipe };
            note!(world.trace, "an admin fails node {}: {mode:?}", node.number());
            if let Err(error) = parts.replicator.fail_node(NodeId(node.number()), mode).await {
                note!(world.trace, "it was not done: {error:?}");
            }
            suspect(world, &node);
            pause(world, 100, 4000).await;
        }
    }
    // What was being written meanwhile comes to its end.
    let timeout = Duration::from_millis(world.settings.node_timeout_ms);
    sleep(timeout * 2).await;
}

async fn ail(world: &World, node: &Node, mode: Mode) {
    node.set(mode);
    pause(world, 100, 5000).await;
    node.set(Mode::Well);
}

fn suspect(world: &World, node: &Node) {
    world.suspects.lock().unwrap().insert(node.number());
}

/// All nodes but one are away: whoever asks gets an honest answer in time.
async fn too_much(world: &World, parts: &Parts) {
    let stays = world.draw(|random| random.pick(&world.nodes).number());
    if !wait_for_copies(world, parts, &[]).await {
        return;
    }
    note!(world.trace, "all nodes but {stays} go away");
    world.is_broken.store(true, Ordering::SeqCst);
    for node in world.nodes.iter().filter(|node| node.number() != stays) {
        node.set(if world.draw(|random| random.chance(500)) { Mode::Offline } else { Mode::Hanging });
    }
    pause(world, 500, 8000).await;
    for node in &world.nodes {
        node.set(Mode::Well);
    }
    sleep(Duration::from_secs(10)).await;
    world.is_broken.store(false, Ordering::SeqCst);
}

/// Waits until all but `nodes` are in service and every block has a good copy on one of them, with an admin who repairs what needs it. `false`: all
/// come to rest.
async fn wait_for_copies(world: &World, parts: &Parts, nodes: &[u32]) -> bool {
    let began = Instant::now();
    loop {
        if world.is_resting() || world.trace.is_violated() {
            return false;
        }
        let away = parts.away(nodes).await;
        if away.is_empty() && world.can_do_without(nodes) {
            return true;
        }
        if began.elapsed() > HEALING {
            let lost = describe(world, nodes);
            violate!(
                world.trace,
                "nodes {away:?} are not taken up again, or copies are not made again: {lost}"
            );
            return false;
        }
        tend(world, parts).await;
        sleep(Duration::from_millis(400)).await;
    }
}

/// The admin repairs the nodes that are to be repaired and has the others looked through.
pub async fn tend(world: &World, parts: &Parts) {
    let suspects: Vec<u32> = world.suspects.lock().unwrap().iter().copied().collect();
    for node in suspects {
        let result = match parts.is_failed(node).await {
            true => parts.repair(node).await,
            false => parts.scrub_and_wait(node).await,
        };
        match result {
            Ok(()) => {
                world.suspects.lock().unwrap().remove(&node);
            }
            Err(error) => note!(world.trace, "node {node} is not looked after: {error:?}"),
        }
    }
}

fn describe(world: &World, without: &[u32]) -> String {
    let mut text = String::new();
    for (id, block) in world.blocks() {
        let good: Vec<u32> = world.nodes.iter().filter(|node| node.has_good(&id)).map(Node::number).collect();
        if block.place == Place::Object && !block.deleting && !good.iter().any(|node| !without.contains(node))
        {
            text += &format!("{id:?} is recorded on {:?}, and good on {good:?}; ", block.replicas);
        }
    }
    text
}
