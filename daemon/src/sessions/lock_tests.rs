//! Locks of several sessions, over stores in memory.

use std::time::Duration;

use futures::FutureExt;
use tandemfs::api::fs::{DelegationRequest, ResumeSession};
use tandemfs::api::locks::{HeldLock, Lock, LockKind, LockOutcome, LockRequest};
use tandemfs::id::{Ino, SessionId};
use tandemfs::{ErrorKind, Result};
use tokio::time::{Instant, sleep, timeout};

use crate::volumes::tests::world::{World, create};

const FILE: Ino = Ino(7);

fn lock(kind: LockKind, start: u64, end: u64) -> Lock {
    Lock { start, end, kind, pid: 42 }
}

fn held(owner: u64, kind: LockKind, start: u64, end: u64) -> HeldLock {
    HeldLock { ino: FILE, owner, lock: lock(kind, start, end) }
}

/// Owner 1's lock on the first ten bytes.
fn write() -> HeldLock {
    held(1, LockKind::Write, 0, 9)
}

fn read() -> HeldLock {
    held(1, LockKind::Read, 0, 9)
}

async fn ask(world: &World, id: SessionId, request: LockRequest) -> Result<LockOutcome> {
    world.sessions.lock(&world.caller, id, request).await.map(|reply| reply.outcome)
}

async fn set(world: &World, id: SessionId, wanted: HeldLock) -> LockOutcome {
    ask(world, id, LockRequest::Set { wanted, place: None }).await.unwrap()
}

async fn unlock(world: &World, id: SessionId, owner: u64) {
    let all = LockRequest::Unlock { ino: FILE, owner, start: 0, end: 9 };
    assert_eq!(ask(world, id, all).await.unwrap(), LockOutcome::Done);
}

/// Sets a lock however long that takes.
async fn set_waiting(world: &World, id: SessionId, wanted: HeldLock) -> LockOutcome {
    let mut place = None;
    loop {
        match ask(world, id, LockRequest::Set { wanted, place }).await.unwrap() {
            LockOutcome::Held { .. } => {}
            LockOutcome::Recovering => sleep(Duration::from_millis(100)).await,
            other => return other,
        }
        match ask(world, id, LockRequest::Wait { wanted, place }).await.unwrap() {
            LockOutcome::Place(given) => place = Some(given),
            LockOutcome::Recovering => {}
            other => return other,
        }
    }
}

async fn claim(world: &World, id: SessionId, locks: Vec<HeldLock>) -> LockOutcome {
    claim_with(world, id, locks, Vec::new()).await
}

async fn claim_with(world: &World, id: SessionId, locks: Vec<HeldLock>, asked: Vec<HeldLock>) -> LockOutcome {
    let resumed = world.sessions.resume(&world.caller, id, &ResumeSession::default()).await.unwrap();
    ask(world, id, LockRequest::Claim { run: resumed.run, locks, asked }).await.unwrap()
}

/// Keeps sessions alive for as long as something takes.
async fn alive<T>(world: &World, ids: &[SessionId], future: impl Future<Output = T>) -> T {
    let signs = async {
        loop {
            sleep(Duration::from_millis(500)).await;
            for id in ids {
                let _ended = ask(world, *id, LockRequest::Test(held(9, LockKind::Read, 99, 99))).await;
            }
        }
    };
    tokio::select! { value = future => value, () = signs => unreachable!() }
}

#[tokio::test(start_paused = true)]
async fn a_lock_stands_against_others_and_is_told_of() {
    let world = World::new().await;
    let (one, two) = (world.session().await.session, world.session().await.session);
    assert_eq!(set(&world, one, write()).await, LockOutcome::Done);
    let foreign = LockOutcome::Held { lock: Lock { pid: 0, ..write().lock }, own: false };
    assert_eq!(set(&world, two, write()).await, foreign, "the same number, but another session's owner");
    assert_eq!(ask(&world, two, LockRequest::Test(read())).await.unwrap(), foreign);
    let own = LockOutcome::Held { lock: write().lock, own: true };
    assert_eq!(set(&world, one, held(2, LockKind::Read, 9, 20)).await, own);
    assert_eq!(ask(&world, one, LockRequest::Test(write())).await.unwrap(), LockOutcome::Done);
    assert_eq!(set(&world, one, read()).await, LockOutcome::Done);
    assert_eq!(set(&world, two, read()).await, LockOutcome::Done);
    unlock(&world, one, 1).await;
    assert_eq!(set(&world, two, write()).await, LockOutcome::Done);
    for (start, end) in [(2, 1), (0, u64::MAX)] {
        let refused = ask(&world, one, LockRequest::Test(held(1, LockKind::Read, start, end))).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_served_in_their_order_and_who_goes_away_is_not_waited_for() {
    let world = World::new().await;
    let one = world.session().await.session;
    assert_eq!(set(&world, one, write()).await, LockOutcome::Done);
    let wait = |owner| {
        let wanted = held(owner, LockKind::Write, 0, 9);
        ask(&world, one, LockRequest::Wait { wanted, place: None })
    };
    let (mut gone, mut second, mut third) = (Box::pin(wait(2)), Box::pin(wait(3)), Box::pin(wait(4)));
    for waiting in [&mut gone, &mut second, &mut third] {
        assert!(waiting.now_or_never().is_none());
    }
    drop(gone);
    unlock(&world, one, 1).await;
    let LockOutcome::Place(place) = second.await.unwrap() else { panic!("no place") };
    // Its turn is kept for a moment: neither who comes next nor who has not waited is faster.
    assert!(matches!(set(&world, one, write()).await, LockOutcome::Held { .. }));
    assert!((&mut third).now_or_never().is_none());
    let wanted = held(3, LockKind::Write, 0, 9);
    assert_eq!(
        ask(&world, one, LockRequest::Set { wanted, place: Some(place) }).await.unwrap(),
        LockOutcome::Done
    );
    assert!((&mut third).now_or_never().is_none());
    unlock(&world, one, 3).await;
    // The third does not come to take it, so it goes to whoever asks.
    assert!(matches!(third.await.unwrap(), LockOutcome::Place(_)));
    sleep(Duration::from_millis(2_100)).await;
    assert_eq!(set(&world, one, write()).await, LockOutcome::Done);
}

#[tokio::test(start_paused = true)]
async fn who_has_said_that_he_waits_no_more_keeps_nobody_out() {
    let world = World::new().await;
    let (one, two) = (world.session().await.session, world.session().await.session);
    assert_eq!(set(&world, one, write()).await, LockOutcome::Done);
    // One of them is still waiting, the other has been told that its turn has come.
    for is_told in [false, true] {
        let mut waiting = Box::pin(ask(&world, two, LockRequest::Wait { wanted: write(), place: None }));
        assert!((&mut waiting).now_or_never().is_none());
        if is_told {
            unlock(&world, one, 1).await;
            assert!(matches!((&mut waiting).await.unwrap(), LockOutcome::Place(_)));
            assert!(matches!(set(&world, one, write()).await, LockOutcome::Held { .. }));
        }
        assert_eq!(ask(&world, two, LockRequest::Leave(write())).await.unwrap(), LockOutcome::Done);
        if !is_told {
            assert!(matches!(waiting.now_or_never(), Some(Ok(LockOutcome::Place(_)))), "it is answered");
            unlock(&world, one, 1).await;
        }
        assert_eq!(set(&world, one, write()).await, LockOutcome::Done);
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_unanswered_after_a_while_and_a_circle_at_once() {
    let world = World::new().await;
    let (one, two) = (world.session().await.session, world.session().await.session);
    let other = |owner| HeldLock { ino: Ino(8), owner, lock: lock(LockKind::Write, 0, 9) };
    assert_eq!(set(&world, one, write()).await, LockOutcome::Done);
    assert_eq!(set(&world, two, other(1)).await, LockOutcome::Done);
    let begun = Instant::now();
    let waited = ask(&world, two, LockRequest::Wait { wanted: write(), place: None });
    assert!(matches!(alive(&world, &[one, two], waited).await.unwrap(), LockOutcome::Place(_)));
    assert!(begun.elapsed() >= Duration::from_secs(10));
    let waiting = set_waiting(&world, two, write());
    tokio::pin!(waiting);
    assert!(alive(&world, &[one, two], timeout(Duration::from_secs(11), &mut waiting)).await.is_err());
    let circle = LockRequest::Wait { wanted: other(1), place: None };
    assert_eq!(ask(&world, one, circle).await.unwrap(), LockOutcome::Deadlock);
    unlock(&world, one, 1).await;
    assert_eq!(waiting.await, LockOutcome::Done);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_closed_or_fenced_frees_its_locks() {
    let world = World::new().await;
    let (one, two) = (world.session().await.session, world.session().await.session);
    assert_eq!(set(&world, one, write()).await, LockOutcome::Done);
    let both = [one, two];
    let waiting = alive(&world, &both, set_waiting(&world, two, write()));
    let closing = async {
        sleep(Duration::from_secs(1)).await;
        world.sessions.close(&world.caller, one).await.unwrap();
    };
    assert_eq!(futures::join!(waiting, closing).0, LockOutcome::Done);

    let three = world.session().await.session;
    let begun = Instant::now();
    assert_eq!(alive(&world, &[three], set_waiting(&world, three, write())).await, LockOutcome::Done);
    assert!(begun.elapsed() <= Duration::from_secs(5), "{:?}", begun.elapsed());
    let late = ask(&world, two, LockRequest::Unlock { ino: FILE, owner: 1, start: 0, end: 9 }).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::SessionEnded);
}

#[tokio::test(start_paused = true)]
async fn the_locks_of_a_session_that_ends_are_free_only_when_its_last_batch_is_done() {
    let world = World::new().await;
    let (one, two) = (world.session().await.session, world.session().await.session);
    let first = world.sessions.inodes(&world.caller, one).await.unwrap().first.0;
    assert_eq!(set(&world, one, write()).await, LockOutcome::Done);
    // Two says nothing, so the batch is under way until it is fenced, long after its author has gone.
    let batch = world.batch(one, 1, vec![create("f", first)]);
    tokio::pin!(batch);
    assert!(timeout(Duration::from_millis(100), &mut batch).await.is_err());
    world.sessions.close(&world.caller, one).await.unwrap();
    let three = world.session().await.session;
    assert!(matches!(set(&world, three, write()).await, LockOutcome::Held { .. }));
    alive(&world, &[three], batch).await.unwrap();
    assert_eq!(set(&world, three, write()).await, LockOutcome::Done);
    let late = ask(&world, two, LockRequest::Test(write())).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::SessionEnded);
}

#[tokio::test(start_paused = true)]
async fn locks_outlive_a_restart_if_they_are_claimed() {
    let world = World::new().await;
    let (one, two) = (world.session().await.session, world.session().await.session);
    assert_eq!(set(&world, one, write()).await, LockOutcome::Done);
    let world = world.restart().await;
    // Nobody knows yet who holds what, and who asks before it has claimed would be forgotten by its own claim.
    assert_eq!(claim(&world, two, Vec::new()).await, LockOutcome::Done);
    assert_eq!(set(&world, two, write()).await, LockOutcome::Recovering);
    assert_eq!(ask(&world, two, LockRequest::Test(read())).await.unwrap(), LockOutcome::Recovering);
    let early = ask(&world, one, LockRequest::Unlock { ino: FILE, owner: 1, start: 0, end: 9 }).await;
    assert_eq!(early.unwrap(), LockOutcome::Recovering);
    let other_run = LockRequest::Claim { run: 999, locks: Vec::new(), asked: Vec::new() };
    assert_eq!(ask(&world, one, other_run).await.unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(claim(&world, one, vec![write()]).await, LockOutcome::Done);
    assert!(matches!(set(&world, two, read()).await, LockOutcome::Held { .. }));
    // The answer was lost, so it claims again.
    assert_eq!(claim(&world, one, vec![write()]).await, LockOutcome::Done);
    unlock(&world, one, 1).await;
    assert_eq!(set(&world, two, read()).await, LockOutcome::Done);
}

#[tokio::test(start_paused = true)]
async fn what_was_only_asked_for_is_held_after_a_restart_where_nobody_claims_what_stands_against_it() {
    let world = World::new().await;
    let (one, two) = (world.session().await.session, world.session().await.session);
    let world = world.restart().await;
    let asked = vec![held(1, LockKind::Write, 0, 9), held(2, LockKind::Write, 20, 29)];
    assert_eq!(claim_with(&world, one, Vec::new(), asked).await, LockOutcome::Done);
    assert_eq!(claim(&world, two, vec![held(1, LockKind::Read, 5, 5)]).await, LockOutcome::Done);
    assert_eq!(set(&world, two, held(1, LockKind::Write, 0, 9)).await, LockOutcome::Done);
    assert!(matches!(set(&world, two, held(1, LockKind::Read, 25, 40)).await, LockOutcome::Held { .. }));
    world.sessions.close(&world.caller, one).await.unwrap();
    assert_eq!(set(&world, two, held(1, LockKind::Read, 25, 40)).await, LockOutcome::Done);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_comes_too_late_is_refused() {
    let world = World::new().await;
    let (one, two) = (world.session().await.session, world.session().await.session);
    assert_eq!(set(&world, one, write()).await, LockOutcome::Done);
    let world = world.restart().await;
    assert_eq!(claim(&world, two, Vec::new()).await, LockOutcome::Done);
    let begun = Instant::now();
    // The holder lives, but does not claim.
    assert_eq!(alive(&world, &[one, two], set_waiting(&world, two, write())).await, LockOutcome::Done);
    assert!(begun.elapsed() >= Duration::from_secs(3) && begun.elapsed() <= Duration::from_secs(5));
    unlock(&world, two, 1).await;
    assert_eq!(claim(&world, one, vec![write()]).await, LockOutcome::Lost, "two has had it since");
    assert_eq!(set(&world, two, write()).await, LockOutcome::Done);
}

#[tokio::test(start_paused = true)]
async fn who_has_the_volume_hands_its_locks_over_before_another_is_granted_any() {
    let world = World::new().await;
    let one = world.session().await.session;
    assert_eq!(set(&world, one, held(5, LockKind::Write, 50, 59)).await, LockOutcome::Done);
    let take = DelegationRequest::TakeVolume;
    assert!(world.sessions.delegation(&world.caller, one, &take).await.unwrap().done);
    let two = world.session().await.session;
    // It has asked for nothing else before.
    let mut asked = Box::pin(set(&world, two, write()));
    assert!(
        timeout(Duration::from_millis(100), &mut asked).await.is_err(),
        "it does not wait for the volume"
    );
    // What it has granted itself takes the place of what the daemon knew of it.
    let replace = LockRequest::Replace { locks: vec![write()] };
    assert_eq!(ask(&world, one, replace).await.unwrap(), LockOutcome::Done);
    world.sessions.delegation(&world.caller, one, &DelegationRequest::ReturnVolume).await.unwrap();
    assert!(matches!(asked.await, LockOutcome::Held { own: false, .. }));
    assert_eq!(set(&world, two, held(1, LockKind::Write, 50, 59)).await, LockOutcome::Done);
    // All or nothing, and no range that is none.
    let locks = vec![held(2, LockKind::Write, 20, 29), held(3, LockKind::Write, 55, 55)];
    assert_eq!(ask(&world, one, LockRequest::Replace { locks }).await.unwrap(), LockOutcome::Lost);
    assert_eq!(set(&world, two, held(1, LockKind::Write, 0, 29)).await, LockOutcome::Done);
    let locks = vec![held(2, LockKind::Write, 9, 8)];
    let refused = ask(&world, one, LockRequest::Replace { locks }).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
}
