//! Delegations between several sessions, over stores in memory. The lease is three seconds.

use std::pin::pin;
use std::time::Duration;

use tandemfs::api::fs::{Batch, DelegationRequest, Event, Read, ResumeSession};
use tandemfs::block::Draft;
use tandemfs::id::{BlockId, Ino, SessionId};
use tandemfs::tree::{Key, Want};
use tandemfs::{ErrorKind, Result};
use tokio::time::{Instant, sleep, timeout};

use super::audience::{COURTESY, RETURN_PATIENCE};
use super::delegations::Delegated;
use super::tests::{ack, alive, drop_all, events, news};
use crate::volumes::tests::world::{World, create};

/// Long for a request that waits for nobody.
const SOON: Duration = Duration::from_millis(300);

async fn ask(world: &World, id: SessionId, request: DelegationRequest) -> Result<u64> {
    world.sessions.delegation(&world.caller, id, &request).await.map(|reply| reply.run)
}

async fn look(world: &World, id: SessionId, ino: Ino) -> Result<()> {
    let read = Read { wants: vec![Want::Record(Key::Inode(ino))] };
    world.sessions.read(&world.caller, id, &read).await.map(drop)
}

/// Two sessions, and a file that the first has made.
async fn start(world: &World) -> (SessionId, SessionId, Ino) {
    let (one, two) = (world.session().await.session, world.session().await.session);
    let first = world.sessions.inodes(&world.caller, one).await.unwrap().first;
    alive(world, two, async {
        let mut heard = events(world, two).await;
        let made = pin!(world.batch(one, 1, vec![create("f", first.0)]));
        let told = async {
            let Event::Changed { number, .. } = news(&mut heard).await else { panic!() };
            ack(world, two, number, &[]).await;
        };
        futures::join!(made, told).0.unwrap();
    })
    .await;
    (one, two, first)
}

#[tokio::test(start_paused = true)]
async fn a_file_is_delegated_once_the_others_have_dropped_it_and_shown_once_it_is_returned() {
    let world = World::new().await;
    let (one, two, ino) = start(&world).await;
    let mut heard = [events(&world, one).await, events(&world, two).await];
    let mut take = pin!(ask(&world, one, DelegationRequest::Take(ino)));
    let event = tokio::select! {
        answer = &mut take => panic!("given before the other has dropped it: {answer:?}"),
        event = news(&mut heard[1]) => event,
    };
    let Event::Delegated { number, ino: of, .. } = event else { panic!("{event:?}") };
    assert_eq!(of, ino);
    ack(&world, two, number, &[]).await;
    take.await.unwrap();
    timeout(SOON, look(&world, one, ino)).await.expect("one's own").unwrap();

    // Another session, a change by it, and REST: all wait, and the first is told once.
    let mut seen = pin!(look(&world, two, ino));
    let wants = [Want::Record(Key::Inode(ino))];
    let mut listed = pin!(async { world.volume().await.read(None, &wants).await });
    assert!(timeout(SOON, async { tokio::join!(&mut seen, &mut listed) }).await.is_err());
    let Event::Recall { number, inos, volume: false } = news(&mut heard[0]).await else { panic!() };
    assert_eq!(inos, [ino]);
    ack(&world, one, number, &[]).await;
    assert!(timeout(SOON, news(&mut heard[0])).await.is_err(), "told once");
    ask(&world, one, DelegationRequest::Return(vec![ino])).await.unwrap();
    let (seen, listed) =
        timeout(SOON, async { tokio::join!(seen, listed) }).await.expect("nothing is in the way");
    seen.unwrap();
    listed.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_recall_that_crosses_with_a_return_does_not_keep_the_next_from_being_told() {
    let world = World::new().await;
    let (one, two, ino) = start(&world).await;
    let mut heard = [events(&world, one).await, events(&world, two).await];
    world.sessions.audience.get(one).unwrap().recall(&Delegated { files: vec![ino], volume: false });
    assert!(matches!(news(&mut heard[0]).await, Event::Recall { .. }));
    let take = ask(&world, one, DelegationRequest::Take(ino));
    let told = async {
        let Event::Delegated { number, .. } = news(&mut heard[1]).await else { panic!() };
        ack(&world, two, number, &[]).await;
    };
    futures::join!(take, told).0.unwrap();
    let mut seen = pin!(look(&world, two, ino));
    assert!(timeout(SOON, &mut seen).await.is_err());
    assert!(matches!(timeout(SOON, news(&mut heard[0])).await, Ok(Event::Recall { .. })), "it was not told");
}

#[tokio::test(start_paused = true)]
async fn who_returns_a_file_and_takes_it_anew_before_the_others_come_to_it_is_told_again() {
    let world = World::new().await;
    let (one, two, ino) = start(&world).await;
    let mut heard = events(&world, one).await;
    let delegations = world.sessions.audience.delegations(world.caller.home);
    delegations.add(one, ino).unwrap();
    let mut seen = pin!(look(&world, two, ino));
    assert!(timeout(SOON, &mut seen).await.is_err());
    assert!(matches!(news(&mut heard).await, Event::Recall { .. }));
    // At once, so that the other does not run in between.
    delegations.give_back(one, &[ino]);
    world.sessions.audience.get(one).unwrap().returned(&[ino]);
    delegations.add(one, ino).unwrap();
    assert!(timeout(SOON, &mut seen).await.is_err());
    assert!(matches!(timeout(SOON, news(&mut heard)).await, Ok(Event::Recall { .. })), "it was not told");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_return_a_file_is_fenced() {
    let world = World::new().await;
    let (one, two, ino) = start(&world).await;
    world.sessions.audience.delegations(world.caller.home).add(one, ino).unwrap();
    let begun = Instant::now();
    // It acknowledges what it is told, and does no more.
    let hears = async {
        let mut heard = events(&world, one).await;
        loop {
            match news(&mut heard).await {
                Event::Recall { number, .. } => ack(&world, one, number, &[]).await,
                other => panic!("{other:?}"),
            }
        }
    };
    let seen = alive(&world, one, alive(&world, two, look(&world, two, ino)));
    tokio::select! {
        seen = seen => seen.unwrap(),
        () = hears => {}
    }
    let taken = begun.elapsed();
    assert!(taken >= RETURN_PATIENCE && taken < RETURN_PATIENCE + Duration::from_secs(2), "{taken:?}");
    assert_eq!(look(&world, one, ino).await.unwrap_err().kind(), ErrorKind::SessionEnded);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_nobody_is_shown_a_file_before_all_have_said_what_they_have() {
    let world = World::new().await;
    let (one, two, ino) = start(&world).await;
    let world = world.restart().await;
    let resume = async |id, delegations| {
        let resume = ResumeSession { held: Vec::new(), delegations, volume: false };
        world.sessions.resume(&world.caller, id, &resume).await.unwrap();
        drop_all(&world, id).await;
    };
    resume(two, Vec::new()).await;
    let mut seen = pin!(look(&world, two, ino));
    assert!(timeout(SOON, &mut seen).await.is_err(), "the other has not said yet");
    resume(one, vec![ino]).await;
    timeout(SOON, look(&world, one, ino)).await.expect("one's own").unwrap();
    assert!(timeout(SOON, &mut seen).await.is_err(), "the other has it");
    ask(&world, one, DelegationRequest::Return(vec![ino])).await.unwrap();
    timeout(SOON, seen).await.expect("nothing is in the way").unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_created_may_be_delegated_with_that_and_nothing_else() {
    let world = World::new().await;
    let one = world.session().await.session;
    let first = world.sessions.inodes(&world.caller, one).await.unwrap().first;
    let batch = |sequence, ino: Ino, delegates| {
        let mutations = vec![create(&format!("f{sequence}"), ino.0)];
        let batch =
            Batch { sequence, mutations, held: Vec::new(), delegates, blocks: Vec::new(), brief: false };
        world.sessions.batch(&world.caller, one, batch)
    };
    batch(1, first, vec![first]).await.unwrap();
    let delegations = world.sessions.audience.delegations(world.caller.home);
    assert!(delegations.has(one, first));
    let refused = batch(2, Ino(first.0 + 1), vec![first]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    let missing = ask(&world, one, DelegationRequest::Take(Ino(first.0 + 7))).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let directory = ask(&world, one, DelegationRequest::Take(Ino::ROOT)).await.unwrap_err();
    assert_eq!(directory.kind(), ErrorKind::NotFound);
    world.sessions.close(&world.caller, one).await.unwrap();
    assert!(!delegations.has(one, first));
}

async fn take_all(world: &World, id: SessionId) -> bool {
    world.sessions.delegation(&world.caller, id, &DelegationRequest::TakeVolume).await.unwrap().done
}

#[tokio::test(start_paused = true)]
async fn the_volume_is_delegated_to_who_is_alone_and_returned_when_anybody_wants_anything() {
    let world = World::new().await;
    let one = world.session().await.session;
    assert!(take_all(&world, one).await);
    assert!(take_all(&world, one).await, "an answer may have been lost");
    let mut heard = events(&world, one).await;
    let first = world.sessions.inodes(&world.caller, one).await.unwrap().first;
    timeout(SOON, world.batch(one, 1, vec![create("f", first.0)])).await.expect("one's own").unwrap();

    // A session that is opened now waits before it is shown anything, and REST likewise.
    let two = world.session().await.session;
    assert!(!take_all(&world, two).await);
    let mut seen = pin!(look(&world, two, Ino::ROOT));
    let wants = [Want::Record(Key::Usage)];
    let mut listed = pin!(async { world.volume().await.read(None, &wants).await });
    let mut limited = pin!(async { world.volumes.set_quota(world.caller.home, Some(1 << 30), None).await });
    assert!(timeout(SOON, async { tokio::join!(&mut seen, &mut listed, &mut limited) }).await.is_err());
    let Event::Recall { number, inos, volume: true } = news(&mut heard).await else { panic!() };
    assert!(inos.is_empty());
    ack(&world, one, number, &[]).await;
    assert!(timeout(SOON, news(&mut heard)).await.is_err(), "told once");
    // Nobody knows anything that it could change.
    timeout(SOON, world.batch(one, 2, vec![create("g", first.0 + 1)])).await.expect("it is sent").unwrap();
    world.sessions.delegation(&world.caller, one, &DelegationRequest::ReturnVolume).await.unwrap();
    let (seen, listed) = timeout(SOON, async { tokio::join!(seen, listed) }).await.expect("it is returned");
    seen.unwrap();
    listed.unwrap();
    world.sessions.close(&world.caller, two).await.unwrap();
    let told = async {
        let Event::Changed { number, .. } = news(&mut heard).await else { panic!() };
        ack(&world, one, number, &[]).await;
    };
    timeout(SOON, async { futures::join!(limited, told).0 }).await.expect("it is returned").unwrap();
    assert!(take_all(&world, one).await, "alone again");
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_nobody_is_shown_anything_before_all_have_said_what_they_have() {
    let world = World::new().await;
    let one = world.session().await.session;
    assert!(take_all(&world, one).await);
    let two = world.session().await.session;
    let world = world.restart().await;
    let resume = async |id, volume| {
        let resume = ResumeSession { held: Vec::new(), delegations: Vec::new(), volume };
        world.sessions.resume(&world.caller, id, &resume).await.unwrap();
        drop_all(&world, id).await;
    };
    resume(two, false).await;
    let mut seen = pin!(look(&world, two, Ino::ROOT));
    assert!(timeout(SOON, &mut seen).await.is_err(), "the other has not said yet");
    resume(one, true).await;
    assert!(timeout(SOON, &mut seen).await.is_err(), "the other has all of it");
    world.sessions.delegation(&world.caller, one, &DelegationRequest::ReturnVolume).await.unwrap();
    timeout(SOON, seen).await.expect("it is returned").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silent_session_that_has_the_volume_is_kept_until_somebody_comes() {
    let world = World::new().await;
    let one = world.session().await.session;
    let first = world.sessions.inodes(&world.caller, one).await.unwrap().first;
    assert!(take_all(&world, one).await);
    world.batch(one, 1, vec![create("f", first.0)]).await.unwrap();
    sleep(Duration::from_secs(3600)).await;
    // Another session alone changes nothing.
    let two = world.session().await.session;
    let resume = ResumeSession { held: Vec::new(), delegations: Vec::new(), volume: true };
    world.sessions.resume(&world.caller, one, &resume).await.unwrap();
    world.batch(one, 1, vec![create("f", first.0)]).await.unwrap();
    world.batch(one, 2, vec![create("g", first.0 + 1)]).await.unwrap();
    sleep(Duration::from_secs(20)).await;
    let two = if world.sessions.last_event(two).is_some() { two } else { world.session().await.session };
    timeout(SOON, look(&world, two, first)).await.expect("nobody waits for who is not there").unwrap();
    let resumed = world.sessions.resume(&world.caller, one, &resume).await;
    assert_eq!(resumed.unwrap_err().kind(), ErrorKind::SessionEnded);
    // Others are fenced as ever, and so is this one in the end.
    let three = world.session().await.session;
    sleep(Duration::from_secs(20)).await;
    assert!(world.sessions.last_event(three).is_none());
    let four = world.session().await.session;
    assert!(take_all(&world, four).await);
    sleep(COURTESY + Duration::from_secs(20)).await;
    assert!(world.sessions.last_event(four).is_none());
}

#[tokio::test(start_paused = true)]
async fn without_room_nobody_has_the_volume() {
    let world = World::with_nodes_of(100 << 20).await;
    let one = world.session().await.session;
    assert!(take_all(&world, one).await);
    let mut heard = events(&world, one).await;
    for number in 0..16_u8 {
        let block = vec![number; 4 << 20];
        let id = BlockId::of(world.volume().await.key(), &block);
        let draft = Draft::of(&block).unwrap();
        world.sessions.put_block(&world.caller, one, id, draft).await.unwrap();
    }
    let Event::Recall { volume: true, .. } = news(&mut heard).await else { panic!() };
    world.sessions.delegation(&world.caller, one, &DelegationRequest::ReturnVolume).await.unwrap();
    assert!(!take_all(&world, one).await);
}
