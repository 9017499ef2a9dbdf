//! Sessions over stores in memory.

use futures::{Stream, StreamExt};
use std::pin::Pin;
use std::time::Duration;
use tandemfs::ErrorKind;
use tandemfs::api::fs::{Ack, Batch, Event, OpenSession, Read, ReadReply, ResumeSession};
use tandemfs::id::{Ino, SessionId};
use tandemfs::tree::{Key, Mutation, Want};
use tokio::time::{Instant, timeout};

use crate::accounts::Caller;
use crate::volumes::tests::world::{World, create, name, unlink};

pub(super) type Events = Pin<Box<dyn Stream<Item = Event> + Send>>;

pub(super) async fn events(world: &World, id: SessionId) -> Events {
    Box::pin(world.sessions.events(&world.caller, id).await.unwrap())
}

/// The next event that is no heartbeat.
pub(super) async fn news(events: &mut Events) -> Event {
    loop {
        match events.next().await {
            Some(Event::Heartbeat { .. }) => {}
            Some(event) => return event,
            None => panic!("the stream has ended"),
        }
    }
}

pub(super) async fn ack(world: &World, id: SessionId, number: u64, held: &[u64]) {
    let held = held.iter().map(|ino| Ino(*ino)).collect();
    world.sessions.acknowledge(&world.caller, id, &Ack { number, held }).await.unwrap();
}

/// A session of an earlier run drops all that it remembers.
pub(super) async fn drop_all(world: &World, id: SessionId) {
    let event = news(&mut events(world, id).await).await;
    assert!(matches!(event, Event::DropAll { .. }), "{event:?}");
    ack(world, id, event.number(), &[]).await;
}

/// Waits while a session gives signs of life.
pub(super) async fn alive<T>(world: &World, id: SessionId, future: impl Future<Output = T>) -> T {
    tokio::pin!(future);
    loop {
        if let Ok(value) = timeout(Duration::from_millis(500), &mut future).await {
            return value;
        }
        ack(world, id, 0, &[]).await;
    }
}

/// Whether an inode is still there.
pub(super) async fn lives(world: &World, ino: u64) -> bool {
    let read = world.volume().await.read(None, &[Want::Record(Key::Inode(Ino(ino)))]).await.unwrap();
    read.answers[0].records[0].1.is_some()
}

#[tokio::test(start_paused = true)]
async fn a_change_is_answered_only_when_the_others_have_acknowledged_it() {
    let world = World::new().await;
    let (one, two) = (world.session().await.session, world.session().await.session);
    let first = world.sessions.inodes(&world.caller, one).await.unwrap().first.0;
    let mut heard = events(&world, two).await;
    for round in 0..50 {
        let text = format!("f{round}");
        let batch = world.batch(one, round + 1, vec![create(&text, first + round)]);
        tokio::pin!(batch);
        let event = tokio::select! {
            answer = &mut batch => panic!("answered before anybody was told: {answer:?}"),
            event = news(&mut heard) => event,
        };
        let Event::Changed { number, version, keys, .. } = event else { panic!("{event:?}") };
        assert!(keys.contains(&Key::Entry(Ino::ROOT, name(&text))));
        // The change is on stable storage, but the author is not answered.
        assert!(timeout(Duration::from_millis(500), &mut batch).await.is_err());
        ack(&world, two, number, &[]).await;
        assert_eq!(batch.await.unwrap().version, version);
    }
}

/// What a session reads, if it is answered within some time.
async fn shown(world: &World, id: SessionId, want: Want) -> Option<ReadReply> {
    let read = Read { wants: vec![want] };
    let reply = world.sessions.read(&world.caller, id, &read);
    Some(timeout(Duration::from_millis(300), reply).await.ok()?.unwrap())
}

/// Else one could see a change, and another one then what was before it.
#[tokio::test(start_paused = true)]
async fn a_change_is_shown_only_when_nobody_else_can_be_shown_what_was_before() {
    let world = World::new().await;
    let [one, two, three] =
        [world.session().await, world.session().await, world.session().await].map(|grant| grant.session);
    let first = world.sessions.inodes(&world.caller, one).await.unwrap().first.0;
    let (mut heard, mut others) = (events(&world, two).await, events(&world, three).await);
    let batch = world.batch(one, 1, vec![create("f", first)]);
    tokio::pin!(batch);
    let told = async { (news(&mut heard).await.number(), news(&mut others).await.number()) };
    let (second, third) = tokio::select! {
        answer = &mut batch => panic!("{answer:?}"),
        told = told => told,
    };
    let lookup = |text: &str| Want::Lookup { parent: Ino::ROOT, name: name(text) };
    let listing = || Want::Directory { ino: Ino::ROOT, after: None, limit: 10 };
    let changed = || [lookup("f"), listing(), Want::Record(Key::Inode(Ino::ROOT))];
    for want in changed() {
        for reader in [one, two, three] {
            assert!(shown(&world, reader, want.clone()).await.is_none(), "{want:?} by {reader}");
        }
    }
    let names = timeout(Duration::from_millis(300), world.volume().await.read(None, &[lookup("f")])).await;
    assert!(names.is_err(), "shown by REST");
    assert!(shown(&world, three, lookup("g")).await.is_some(), "it has not changed");
    ack(&world, two, second, &[]).await;
    for want in changed() {
        // Who reads drops what was before by himself.
        assert!(shown(&world, three, want.clone()).await.is_some(), "{want:?}");
        assert!(shown(&world, two, want.clone()).await.is_none(), "{want:?}");
    }
    ack(&world, three, third, &[]).await;
    batch.await.unwrap();
    assert!(shown(&world, two, listing()).await.is_some());
}

/// Of what was changed when the daemon stopped nobody knows who was told.
#[tokio::test(start_paused = true)]
async fn after_a_restart_nothing_is_shown_before_the_others_have_dropped_everything() {
    let world = World::new().await;
    let (one, two) = (world.session().await.session, world.session().await.session);
    let world = world.restart().await;
    for id in [one, two] {
        world.sessions.resume(&world.caller, id, &ResumeSession::default()).await.unwrap();
    }
    let root = || Want::Record(Key::Inode(Ino::ROOT));
    assert!(shown(&world, one, root()).await.is_none());
    drop_all(&world, two).await;
    assert!(shown(&world, one, root()).await.is_some());
    assert!(shown(&world, two, root()).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_is_fenced_and_holds_up_nobody_for_longer_than_the_lease() {
    let world = World::new().await;
    let (one, two) = (world.session().await.session, world.session().await.session);
    let first = world.sessions.inodes(&world.caller, one).await.unwrap().first.0;
    let mut heard = events(&world, two).await;
    let begun = Instant::now();
    alive(&world, one, world.batch(one, 1, vec![create("f", first)])).await.unwrap();
    let taken = begun.elapsed();
    assert!(taken >= Duration::from_millis(2_900) && taken < Duration::from_millis(3_500), "{taken:?}");
    while heard.next().await.is_some() {}
    let ended = world.sessions.read(&world.caller, two, &Read { wants: Vec::new() }).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::SessionEnded);
    let resumed = world.sessions.resume(&world.caller, two, &ResumeSession::default()).await;
    assert_eq!(resumed.unwrap_err().kind(), ErrorKind::SessionEnded);
    // One that asks all the time but carries nothing out is given up as well.
    let third = world.session().await.session;
    let asking = async {
        let read = Read { wants: Vec::new() };
        while world.sessions.read(&world.caller, third, &read).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let changing = async {
        alive(&world, one, world.batch(one, 2, vec![create("g", first + 1)])).await.unwrap();
    };
    let both = async { futures::join!(asking, changing) };
    timeout(Duration::from_secs(12), both).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_carried_out_once_also_over_a_restart() {
    let world = World::new().await;
    let grant = world.session().await;
    let id = grant.session;
    let first = world.sessions.inodes(&world.caller, id).await.unwrap().first.0;
    world.switches.delay(Duration::ZERO, Duration::from_millis(20));
    let again = || world.batch(id, 1, vec![create("f", first)]);
    // A repeated request that comes while the first is under way waits for it.
    let (one, two, three) = futures::join!(again(), again(), again());
    let reply = one.unwrap();
    assert_eq!((two.unwrap(), three.unwrap()), (reply.clone(), reply.clone()));
    assert_eq!(again().await.unwrap(), reply);
    for sequence in [2, 300] {
        world.batch(id, sequence, vec![unlink("f"), create("f", first + sequence)]).await.unwrap();
    }
    // The slot of 44 has the answer to 300.
    assert_eq!(world.batch(id, 44, vec![unlink("f")]).await.unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(world.batch(id, 0, Vec::new()).await.unwrap_err().kind(), ErrorKind::Invalid);
    let foreign = world.batch(id, 3, vec![create("g", first + 1_000_000)]).await.unwrap_err();
    assert_eq!(foreign.kind(), ErrorKind::Invalid);

    let world = world.restart().await;
    let resumed = world.sessions.resume(&world.caller, id, &ResumeSession::default()).await.unwrap();
    assert_ne!(resumed.run, grant.run);
    assert_eq!(world.batch(id, 1, vec![create("f", first)]).await.unwrap(), reply);
    assert_eq!(world.batch(id, 44, vec![unlink("f")]).await.unwrap_err().kind(), ErrorKind::Stale);
    world.batch(id, 301, vec![create("g", first + 301)]).await.unwrap();
    // Who has no session waits until this one has dropped everything, or has been fenced.
    assert!(lives(&world, first + 300).await && lives(&world, first + 301).await);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_a_session_is_told_to_drop_everything_before_anything_changes() {
    let world = World::new().await;
    let (one, two) = (world.session().await.session, world.session().await.session);
    let first = world.sessions.inodes(&world.caller, one).await.unwrap().first.0;
    let world = world.restart().await;
    world.sessions.resume(&world.caller, one, &ResumeSession::default()).await.unwrap();
    let batch = world.batch(one, 1, vec![create("f", first)]);
    tokio::pin!(batch);
    assert!(timeout(Duration::from_secs(1), &mut batch).await.is_err());
    world.sessions.resume(&world.caller, two, &ResumeSession::default()).await.unwrap();
    assert!(timeout(Duration::from_secs(1), &mut batch).await.is_err());
    let mut heard = events(&world, two).await;
    assert!(matches!(news(&mut heard).await, Event::DropAll { .. }));
    let Event::Changed { number, .. } = news(&mut heard).await else { panic!("no change") };
    ack(&world, two, number, &[]).await;
    batch.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_orphan_lives_as_long_as_somebody_holds_it() {
    let world = World::new().await;
    let one = world.session().await.session;
    let first = world.sessions.inodes(&world.caller, one).await.unwrap().first.0;
    // Alone: gone at once, unless the author holds it.
    world.batch(one, 1, vec![create("a", first), create("b", first + 1), unlink("a")]).await.unwrap();
    assert!(!lives(&world, first).await);
    let batch = Batch {
        sequence: 2,
        mutations: vec![unlink("b")],
        held: vec![Ino(first + 1)],
        delegates: Vec::new(),
        blocks: Vec::new(),
        brief: false,
    };
    world.sessions.batch(&world.caller, one, batch).await.unwrap();
    assert!(lives(&world, first + 1).await);
    let reap = |ino: u64| Mutation::Reap { ino: Ino(ino), chunks: 1 };
    world.batch(one, 3, vec![reap(first + 1), create("c", first + 2), create("d", first + 3)]).await.unwrap();
    assert!(!lives(&world, first + 1).await);

    // Another holds it: neither the author's word nor time takes it away, only the holder's.
    let two = world.session().await.session;
    let mut heard = events(&world, two).await;
    let (unlinked, ()) = futures::join!(world.batch(one, 4, vec![unlink("c"), unlink("d")]), async {
        let Event::Changed { number, orphans, .. } = news(&mut heard).await else { panic!("no change") };
        assert_eq!(orphans, [Ino(first + 2), Ino(first + 3)]);
        ack(&world, two, number, &[first + 2]).await;
    });
    unlinked.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(lives(&world, first + 2).await);
    assert!(!lives(&world, first + 3).await, "nobody holds it");
    world.batch(one, 5, vec![reap(first + 2)]).await.unwrap();
    assert!(lives(&world, first + 2).await);

    // It outlives the daemon if its holder says so, and ends with him.
    let world = world.restart().await;
    let held = ResumeSession { held: vec![Ino(first + 2)], delegations: Vec::new(), volume: false };
    world.sessions.resume(&world.caller, two, &held).await.unwrap();
    let mut heard = events(&world, two).await;
    for _ in 0..20 {
        if let Ok(Some(Event::DropAll { number, .. } | Event::Heartbeat { number })) =
            timeout(Duration::from_millis(400), heard.next()).await
        {
            ack(&world, two, number, &[]).await;
        }
    }
    assert!(lives(&world, first + 2).await);
    world.sessions.close(&world.caller, two).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!lives(&world, first + 2).await);
    assert_eq!(world.volumes.usage(world.caller.home).await.unwrap().inodes, 0);
}

#[tokio::test(start_paused = true)]
async fn who_may_only_read_lets_go_of_an_orphan_and_changes_nothing_else() {
    let world = World::new().await;
    let one = world.session().await.session;
    let open = OpenSession { volume: None, read_only: true, client: "reader".to_owned() };
    let reader = world.sessions.start(&world.caller, open).await.unwrap().session;
    let mut heard = events(&world, reader).await;
    let first = world.sessions.inodes(&world.caller, one).await.unwrap().first.0;
    let next = async |heard: &mut Events, held: &[u64]| {
        let Event::Changed { number, .. } = news(heard).await else { panic!("no change") };
        ack(&world, reader, number, held).await;
    };
    let made = vec![create("a", first), create("b", first + 1)];
    let (made, ()) = futures::join!(world.batch(one, 1, made), next(&mut heard, &[]));
    made.unwrap();
    let holds = [first];
    let (removed, ()) = futures::join!(world.batch(one, 2, vec![unlink("a")]), next(&mut heard, &holds));
    removed.unwrap();
    assert!(lives(&world, first).await);
    let reap = |ino| Mutation::Reap { ino: Ino(ino), chunks: 1 };
    for change in [vec![unlink("b")], vec![reap(first), unlink("b")]] {
        let refused = world.batch(reader, 1, change).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ReadOnly);
    }
    let (reaped, ()) = futures::join!(world.batch(reader, 1, vec![reap(first), reap(first + 1)]), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        ack(&world, one, 1, &[]).await;
    });
    reaped.unwrap();
    assert!(!lives(&world, first).await, "its space is given back while the reader is still there");
    assert!(lives(&world, first + 1).await, "it has a name");
}

#[tokio::test(start_paused = true)]
async fn many_orphans_are_reaped_in_few_commits() {
    let world = World::new().await;
    let (one, two) = (world.session().await.session, world.session().await.session);
    let mut heard = events(&world, two).await;
    let first = world.sessions.inodes(&world.caller, one).await.unwrap().first.0;
    let files = 300;
    let name = |number: u64| format!("f{number}");
    let acknowledged = async |heard: &mut Events| {
        let Event::Changed { number, .. } = news(heard).await else { panic!("no change") };
        ack(&world, two, number, &[]).await;
    };
    let created = (0..files).map(|number| create(&name(number), first + number)).collect();
    let (created, ()) = futures::join!(world.batch(one, 1, created), acknowledged(&mut heard));
    created.unwrap();
    let removed = (0..files).map(|number| unlink(&name(number))).collect();
    let before = world.switches.counts().commits;
    let (removed, ()) = futures::join!(world.batch(one, 2, removed), acknowledged(&mut heard));
    removed.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.volumes.usage(world.caller.home).await.unwrap().inodes, 0);
    let commits = world.switches.counts().commits - before;
    assert!(commits < 10, "{commits} commits for {files} orphans");
}

#[tokio::test(start_paused = true)]
async fn a_session_is_its_users_alone_and_ends_with_him() {
    let world = World::new().await;
    let id = world.session().await.session;
    let other = Caller { user: tandemfs::id::UserId(2), ..world.caller.clone() };
    let refused = world.sessions.resume(&other, id, &ResumeSession::default()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    assert!(world.sessions.events(&other, id).await.is_err());
    let mut heard = events(&world, id).await;
    assert!(heard.next().await.is_some());
    world.sessions.end_user(world.caller.user);
    assert!(heard.next().await.is_none());
    let ended = world.sessions.inodes(&world.caller, id).await.unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::SessionEnded);
}
