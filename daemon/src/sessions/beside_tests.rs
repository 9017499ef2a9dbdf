//! The whole volume, delegated while others have it mounted and ask for nothing. The lease is three seconds; others are quiet after one.

use std::pin::pin;
use std::time::Duration;

use tandemfs::api::fs::{Batch, BatchReply, DelegationRequest, Event, Read};
use tandemfs::api::locks::{HeldLock, Lock, LockKind, LockOutcome, LockRequest};
use tandemfs::id::{Ino, SessionId};
use tandemfs::tree::{Key, Want};
use tokio::time::{sleep, timeout};

use super::tests::{Events, ack, events, lives, news};
use crate::volumes::tests::world::{World, create, unlink};

const SOON: Duration = Duration::from_millis(200);
const QUIET: Duration = Duration::from_millis(1100);

async fn take(world: &World, id: SessionId) -> bool {
    let reply = world.sessions.delegation(&world.caller, id, &DelegationRequest::TakeVolume).await.unwrap();
    assert!(!reply.alone);
    reply.done
}

async fn give_back(world: &World, id: SessionId) {
    world.sessions.delegation(&world.caller, id, &DelegationRequest::ReturnVolume).await.unwrap();
}

async fn look(world: &World, id: SessionId) {
    let read = Read { wants: vec![Want::Record(Key::Inode(Ino::ROOT))] };
    world.sessions.read(&world.caller, id, &read).await.unwrap();
}

/// Acknowledges what a session is told until nothing comes, and says what that was.
async fn hear(world: &World, id: SessionId, heard: &mut Events, held: &[u64]) -> Vec<Event> {
    let mut all = Vec::new();
    while let Ok(event) = timeout(SOON, news(heard)).await {
        ack(world, id, event.number(), held).await;
        all.push(event);
    }
    all
}

/// Two sessions; the second has seen something, and the first has made many changes since. Answers the first inode number that is left.
async fn start(world: &World) -> (SessionId, SessionId, u64, Events) {
    let (one, two) = (world.session().await.session, world.session().await.session);
    let first = world.sessions.inodes(&world.caller, one).await.unwrap().first.0;
    let mut heard = events(world, two).await;
    look(world, two).await;
    for number in 1..=40 {
        let made = world.batch(one, number, vec![create(&format!("f{number}"), first + number)]);
        let told = async {
            let event = news(&mut heard).await;
            ack(world, two, event.number(), &[]).await;
        };
        futures::join!(made, told).0.unwrap();
    }
    (one, two, first, heard)
}

#[tokio::test(start_paused = true)]
async fn it_is_given_once_the_others_are_quiet_and_have_dropped_everything() {
    let world = World::new().await;
    let (one, two, first, mut heard) = start(&world).await;
    let mut heard_by_one = events(&world, one).await;
    assert!(!take(&world, one).await, "the other was there just now");
    sleep(QUIET).await;
    assert!(!take(&world, two).await, "it has changed nothing");
    let mut asked = pin!(take(&world, one));
    let event = tokio::select! {
        answer = &mut asked => panic!("given before the other has dropped all: {answer}"),
        event = news(&mut heard) => event,
    };
    assert!(matches!(event, Event::DropAll { .. }), "{event:?}");
    ack(&world, two, event.number(), &[]).await;
    assert!(asked.await);

    // Nobody else is told of its changes, but for what somebody may have open.
    let batch = async |sequence, mutations| -> BatchReply {
        let (held, delegates, blocks) = (Vec::new(), Vec::new(), Vec::new());
        let batch = Batch { sequence, mutations, held, delegates, blocks, brief: false };
        world.sessions.batch(&world.caller, one, batch).await.unwrap()
    };
    timeout(SOON, batch(41, vec![create("g", first + 50)])).await.expect("nobody is waited for");
    assert!(timeout(SOON, news(&mut heard)).await.is_err(), "nobody is told");
    let open = [first + 1];
    let removed = batch(42, vec![unlink("f1")]);
    let (_, told) = futures::join!(removed, hear(&world, two, &mut heard, &open));
    assert!(
        matches!(&told[..], [Event::Changed { orphans, keys, .. }] if orphans == &[Ino(first + 1)] && keys.is_empty())
    );

    let mut seen = pin!(look(&world, two));
    assert!(timeout(SOON, &mut seen).await.is_err(), "it is shown what another has to itself");
    assert!(matches!(news(&mut heard_by_one).await, Event::Recall { volume: true, .. }));
    give_back(&world, one).await;
    timeout(SOON, seen).await.expect("it is returned");
    assert!(lives(&world, first + 1).await, "the other has it open");
    assert!(!take(&world, one).await, "the other is there again");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_drop_everything_in_time_keeps_it_from_being_given() {
    let world = World::new().await;
    let (one, two, first, mut heard) = start(&world).await;
    sleep(QUIET).await;
    assert!(!timeout(2 * SOON, take(&world, one)).await.expect("it does not wait for long"));
    // What it changes now is told as ever.
    let made = world.batch(one, 41, vec![create("g", first + 50)]);
    let told = hear(&world, two, &mut heard, &[]);
    let (made, told) = futures::join!(made, told);
    made.unwrap();
    assert!(matches!(&told[..], [Event::DropAll { .. }, Event::Changed { keys, .. }] if !keys.is_empty()));
    timeout(SOON, look(&world, two)).await.expect("nobody has the volume");
}

#[tokio::test(start_paused = true)]
async fn what_others_have_locked_or_written_to_keeps_it_from_being_given() {
    let world = World::new().await;
    let (one, two, first, mut heard) = start(&world).await;
    let lock = Lock { kind: LockKind::Write, start: 0, end: 9, pid: 1 };
    let held = HeldLock { ino: Ino(first + 1), owner: 7, lock };
    let set = LockRequest::Set { wanted: held, place: None };
    assert_eq!(world.sessions.lock(&world.caller, two, set).await.unwrap().outcome, LockOutcome::Done);
    let changes = async |from: u64, heard: &mut Events| {
        for number in from..from + 32 {
            let made = world.batch(one, number, vec![create(&format!("f{number}"), first + number)]);
            let told = async {
                let event = news(heard).await;
                ack(&world, two, event.number(), &[]).await;
            };
            futures::join!(made, told).0.unwrap();
        }
    };
    changes(41, &mut heard).await;
    sleep(QUIET).await;
    assert!(!take(&world, one).await, "it is not known to one what two has locked");
    assert!(timeout(SOON, news(&mut heard)).await.is_err(), "nothing is to be dropped");
    let unlock = LockRequest::Unlock { ino: Ino(first + 1), owner: 7, start: 0, end: 9 };
    world.sessions.lock(&world.caller, two, unlock).await.unwrap();

    let delegations = world.sessions.audience.delegations(world.caller.home);
    delegations.add(two, Ino(first + 2)).unwrap();
    changes(80, &mut heard).await;
    sleep(QUIET).await;
    assert!(!take(&world, one).await, "two may have written to it");
    let Event::Recall { number, inos, volume: false } = news(&mut heard).await else { panic!() };
    assert_eq!(inos, [Ino(first + 2)]);
    ack(&world, two, number, &[]).await;
    world.sessions.delegation(&world.caller, two, &DelegationRequest::Return(inos)).await.unwrap();
    let dropped = hear(&world, two, &mut heard, &[]);
    let (taken, _) = futures::join!(take(&world, one), dropped);
    assert!(taken);
}
