//! Locks of two mounts of one daemon.

use std::future::{pending, ready};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tandemfs::ErrorKind;
use tandemfs::api::locks::{Lock, LockKind, OFFSET_MAX};
use tandemfs::id::Ino;
use tokio::time::{sleep, timeout};

use super::fake::{Daemon, LEASE_MS};
use super::{ROOT, mount};
use crate::fs::data::How;
use crate::fs::locks::Locked;
use crate::fs::{Fs, Set};

const PID: u32 = 42;

fn write(start: u64, end: u64) -> Lock {
    Lock { start, end, kind: LockKind::Write, pid: PID }
}

fn read(start: u64, end: u64) -> Lock {
    Lock { kind: LockKind::Read, ..write(start, end) }
}

/// Two mounts and a handle of each on one file.
async fn two(daemon: &Arc<Daemon>) -> ([Arc<Fs>; 2], Ino, [u64; 2]) {
    let (one, two) = (mount(daemon).await, mount(daemon).await);
    let (stat, first) = one.create(ROOT, Ino::ROOT, b"file", 0o644.into(), libc::O_RDWR).await.unwrap();
    let second = two.open_file(ROOT, stat.inode.ino, libc::O_RDWR).await.unwrap();
    ([one, two], stat.inode.ino, [first, second])
}

async fn attempt(fs: &Fs, handle: u64, owner: u64, lock: Lock) -> Locked {
    fs.set_lock(handle, owner, lock, ready(())).await.unwrap()
}

async fn put(fs: &Fs, handle: u64, data: &[u8]) -> tandemfs::Result<()> {
    fs.write(handle, 0, data, How::default()).await.map(drop)
}

#[tokio::test(start_paused = true)]
async fn a_lock_keeps_another_mount_out_until_it_is_given_up() {
    let daemon = Arc::new(Daemon::default());
    let ([one, two], ino, [first, second]) = two(&daemon).await;
    assert_eq!(attempt(&one, first, 1, write(0, 9)).await, Locked::Granted);
    assert_eq!(attempt(&two, second, 1, read(5, 5)).await, Locked::Held);
    assert_eq!(
        two.test_lock(second, 1, read(0, OFFSET_MAX)).await.unwrap(),
        Some(Lock { pid: 0, ..write(0, 9) })
    );
    assert_eq!(one.test_lock(first, 2, read(0, OFFSET_MAX)).await.unwrap(), Some(write(0, 9)));
    assert_eq!(one.test_lock(first, 1, read(0, OFFSET_MAX)).await.unwrap(), None);
    let waiting = tokio::spawn({
        let two = Arc::clone(&two);
        async move { two.set_lock(second, 1, read(5, 5), pending()).await.unwrap() }
    });
    sleep(Duration::from_secs(25)).await;
    assert!(!waiting.is_finished());
    // What was written under the lock is there before another has it.
    put(&one, first, b"under the lock").await.unwrap();
    assert_eq!(one.unlock(first, 1, 5, 5).await.unwrap(), Locked::Granted);
    assert_eq!(waiting.await.unwrap(), Locked::Granted);
    let handle = two.open_file(ROOT, ino, libc::O_RDONLY).await.unwrap();
    assert_eq!(two.read(handle, 0, 100).await.unwrap(), "under the lock");
    assert_eq!(attempt(&two, second, 1, write(0, 9)).await, Locked::Held);
    // A read lock in the place of a write lock lets others in, so it is the same.
    put(&one, first, b"UNDER").await.unwrap();
    assert_eq!(attempt(&one, first, 1, read(0, 9)).await, Locked::Granted);
    assert_eq!(two.read(handle, 0, 100).await.unwrap(), "UNDER the lock");
}

#[tokio::test(start_paused = true)]
async fn impatience_ends_a_wait_and_leaves_what_was_held() {
    let daemon = Arc::new(Daemon::default());
    let ([one, two], _, [first, second]) = two(&daemon).await;
    assert_eq!(attempt(&one, first, 1, read(0, 9)).await, Locked::Granted);
    assert_eq!(attempt(&two, second, 2, read(0, 9)).await, Locked::Granted);
    assert_eq!(attempt(&two, second, 2, write(0, 9)).await, Locked::Held);
    assert_eq!(daemon.lock_waits.load(Ordering::SeqCst), 0, "who does not wait has no place");
    let wait = two.set_lock(second, 2, write(0, 9), sleep(Duration::from_secs(12)));
    assert_eq!(wait.await.unwrap(), Locked::Held);
    assert_eq!(daemon.leaves.load(Ordering::SeqCst), 1, "the daemon is told before the program is");
    one.unlock(first, 1, 0, OFFSET_MAX).await.unwrap();
    assert_eq!(daemon.locks(), [(2, read(0, 9))]);
}

#[tokio::test(start_paused = true)]
async fn closing_gives_up_a_processes_locks_and_the_last_descriptor_those_of_the_open_file() {
    let daemon = Arc::new(Daemon::default());
    let ([one, two], ino, [first, _]) = two(&daemon).await;
    let other = one.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
    for owner in [1, 2, 3] {
        let lock = read(owner, owner);
        assert_eq!(attempt(&one, first, owner, lock).await, Locked::Granted);
    }
    // Any descriptor of the file will do for those of a process, here number 1.
    put(&one, first, b"data").await.unwrap();
    one.close(other, 1).await.unwrap();
    one.release(other).await;
    assert_eq!(daemon.locks(), [(2, read(2, 2)), (3, read(3, 3))]);
    let handle = two.open_file(ROOT, ino, libc::O_RDONLY).await.unwrap();
    assert_eq!(two.read(handle, 0, 100).await.unwrap(), "data");
    one.close(first, 9).await.unwrap();
    assert_eq!(daemon.locks().len(), 2);
    one.release(first).await;
    assert_eq!(daemon.locks(), []);
}

#[tokio::test(start_paused = true)]
async fn a_circle_of_two_mounts_is_a_deadlock() {
    let daemon = Arc::new(Daemon::default());
    let ([one, two], _, [first, second]) = two(&daemon).await;
    assert_eq!(attempt(&one, first, 1, write(0, 0)).await, Locked::Granted);
    assert_eq!(attempt(&two, second, 1, write(1, 1)).await, Locked::Granted);
    let both = async {
        tokio::select! {
            one = one.set_lock(first, 1, write(1, 1), pending()) => one,
            two = two.set_lock(second, 1, write(0, 0), pending()) => two,
        }
    };
    assert_eq!(timeout(Duration::from_secs(60), both).await.unwrap().unwrap(), Locked::Deadlock);
}

#[tokio::test(start_paused = true)]
async fn locks_outlive_a_restart_of_the_daemon() {
    let daemon = Arc::new(Daemon::default());
    let ([one, two], _, [first, second]) = two(&daemon).await;
    assert_eq!(attempt(&one, first, 1, write(0, 9)).await, Locked::Granted);
    daemon.restart();
    assert_eq!(daemon.locks(), []);
    assert_eq!(attempt(&two, second, 1, write(0, 9)).await, Locked::Held);
    put(&one, first, b"still mine").await.unwrap();
    assert_eq!(one.unlock(first, 1, 0, 9).await.unwrap(), Locked::Granted);
    assert_eq!(attempt(&two, second, 1, write(0, 9)).await, Locked::Granted);
    assert_eq!(two.read(second, 0, 100).await.unwrap(), "still mine");
}

/// Runs `call` with the answer of the daemon to what it asks about locks held back while `meanwhile` runs.
async fn unanswered<T>(daemon: &Daemon, call: impl Future<Output = T>, meanwhile: impl AsyncFnOnce()) -> T {
    daemon.hold_lock_answers.store(true, Ordering::SeqCst);
    let mut call = pin!(call);
    assert!(timeout(Duration::from_millis(100), &mut call).await.is_err(), "it has the answer");
    daemon.hold_lock_answers.store(false, Ordering::SeqCst);
    meanwhile().await;
    daemon.release_lock_answers.notify_waiters();
    timeout(Duration::from_secs(60), call).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_being_given_up_when_the_daemon_is_started_anew_is_not_claimed() {
    let daemon = Arc::new(Daemon::default());
    let ([one, two], _, [first, second]) = two(&daemon).await;
    assert_eq!(attempt(&one, first, 1, write(0, 9)).await, Locked::Granted);
    assert_eq!(attempt(&one, first, 2, write(20, 20)).await, Locked::Granted);
    let unlocked = unanswered(&daemon, one.unlock(first, 1, 0, 4), async || {
        assert_eq!(attempt(&two, second, 1, write(0, 4)).await, Locked::Granted);
        daemon.restart();
        sleep(Duration::from_secs(1)).await;
    });
    assert_eq!(unlocked.await.unwrap(), Locked::Granted);
    // A claim that stood against another's would have cost it the session's other locks.
    put(&one, first, b"x").await.unwrap();
    let mut held = daemon.locks();
    held.sort_unstable_by_key(|(_, lock)| lock.start);
    assert_eq!(held, [(1, write(0, 4)), (1, write(5, 9)), (2, write(20, 20))]);
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_being_weakened_when_the_daemon_is_started_anew_is_claimed_as_the_weaker() {
    let daemon = Arc::new(Daemon::default());
    let ([one, two], _, [first, second]) = two(&daemon).await;
    assert_eq!(attempt(&one, first, 1, write(0, 9)).await, Locked::Granted);
    let locked = unanswered(&daemon, attempt(&one, first, 1, read(3, 20)), async || {
        assert_eq!(attempt(&two, second, 1, read(3, 9)).await, Locked::Granted);
        daemon.restart();
        sleep(Duration::from_secs(1)).await;
    });
    assert_eq!(locked.await, Locked::Granted);
    for (fs, handle) in [(&one, first), (&two, second)] {
        put(fs, handle, b"x").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_others_may_have_seen_granted_outlives_a_restart_of_the_daemon() {
    let daemon = Arc::new(Daemon::default());
    let ([one, two], _, [first, second]) = two(&daemon).await;
    let locked = unanswered(&daemon, attempt(&one, first, 1, write(0, 9)), async || {
        assert_eq!(attempt(&two, second, 1, write(0, 9)).await, Locked::Held);
        daemon.restart();
        assert_eq!(attempt(&two, second, 1, write(0, 9)).await, Locked::Held);
    });
    assert_eq!(locked.await, Locked::Granted);
}

/// As when the process was stopped for longer than its lease while the answer was on its way.
#[tokio::test(start_paused = true)]
async fn a_lock_that_is_answered_after_the_lease_is_lost() {
    let daemon = Arc::new(Daemon::default());
    let one = mount(&daemon).await;
    let first = one.create(ROOT, Ino::ROOT, b"file", 0o644.into(), libc::O_RDWR).await.unwrap().1;
    let locked = unanswered(&daemon, one.set_lock(first, 1, write(0, 9), ready(())), async || {
        daemon.fence_all();
        one.session.state().lease_until = tokio::time::Instant::now();
    });
    // Others may have had it since, whom it kept out before.
    assert_eq!(locked.await.unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(daemon.locks(), []);
    assert_eq!(attempt(&one, first, 1, write(0, 9)).await, Locked::Granted);
}

#[tokio::test(start_paused = true)]
async fn lost_answers_lose_no_lock() {
    let daemon = Arc::new(Daemon::default());
    let ([one, two], _, [first, second]) = two(&daemon).await;
    daemon.lose_every.store(2, Ordering::SeqCst);
    for round in 0..20 {
        assert_eq!(attempt(&one, first, 1, write(0, 9)).await, Locked::Granted, "{round}");
        assert_eq!(attempt(&two, second, 1, write(0, 9)).await, Locked::Held, "{round}");
        one.unlock(first, 1, 0, 9).await.unwrap();
        assert_eq!(attempt(&two, second, 1, write(0, 9)).await, Locked::Granted, "{round}");
        two.close(second, 1).await.unwrap();
    }
    assert_eq!(daemon.locks(), []);
}

/// Everything that can be done with a handle whose lock is lost fails, what was written under the lock is not written, and a
/// new handle works.
async fn is_lost(fs: &Fs, ino: Ino, handle: u64) {
    let stale = |result: tandemfs::Result<()>| assert_eq!(result.unwrap_err().kind(), ErrorKind::Stale);
    stale(fs.read(handle, 0, 1).await.map(drop));
    stale(put(fs, handle, b"x").await);
    stale(fs.fsync(handle).await);
    stale(fs.set_lock(handle, 1, write(0, 9), ready(())).await.map(drop));
    stale(fs.test_lock(handle, 1, write(0, 9)).await.map(drop));
    stale(fs.unlock(handle, 1, 0, 9).await.map(drop));
    let new = fs.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
    assert_eq!(fs.read(new, 0, 100).await.unwrap(), "of the next");
    stale(fs.close(handle, 1).await);
    fs.release(handle).await;
    assert_eq!(attempt(fs, new, 1, write(0, 9)).await, Locked::Granted);
    put(fs, new, b"good").await.unwrap();
    fs.close(new, 1).await.unwrap();
    fs.release(new).await;
}

#[tokio::test(start_paused = true)]
async fn who_loses_a_lock_with_the_session_is_told_and_overwrites_nothing() {
    let daemon = Arc::new(Daemon::default());
    let one = mount(&daemon).await;
    let (stat, first) = one.create(ROOT, Ino::ROOT, b"file", 0o644.into(), libc::O_RDWR).await.unwrap();
    let ino = stat.inode.ino;
    let without = one.create(ROOT, Ino::ROOT, b"other", 0o644.into(), libc::O_RDWR).await.unwrap().1;
    assert_eq!(attempt(&one, first, 1, write(0, 9)).await, Locked::Granted);
    put(&one, first, b"of the one who was fenced").await.unwrap();
    put(&one, without, b"kept").await.unwrap();
    daemon.fence_all();
    let two = mount(&daemon).await;
    let second = two.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
    assert_eq!(attempt(&two, second, 1, write(0, 9)).await, Locked::Granted);
    put(&two, second, b"of the next").await.unwrap();
    two.close(second, 1).await.unwrap();
    // It notices with its next sign of life.
    sleep(Duration::from_millis(LEASE_MS)).await;
    is_lost(&one, ino, first).await;
    one.close(without, 1).await.unwrap();
    assert_eq!(one.read(without, 0, 100).await.unwrap(), "kept");
}

#[tokio::test(start_paused = true)]
async fn a_change_that_was_under_way_when_the_lock_was_lost_is_not_made_in_the_next_session() {
    let daemon = Arc::new(Daemon::default());
    let one = mount(&daemon).await;
    let (stat, first) = one.create(ROOT, Ino::ROOT, b"file", 0o644.into(), libc::O_RDWR).await.unwrap();
    put(&one, first, b"of the next").await.unwrap();
    one.fsync(first).await.unwrap();
    assert_eq!(attempt(&one, first, 1, write(0, 9)).await, Locked::Granted);
    daemon.hold_batches.store(true, Ordering::SeqCst);
    let truncating = one.setattr(ROOT, stat.inode.ino, Set { size: Some(0), ..Set::default() });
    tokio::pin!(truncating);
    assert!(timeout(Duration::from_millis(100), &mut truncating).await.is_err());
    daemon.fence_all();
    daemon.hold_batches.store(false, Ordering::SeqCst);
    daemon.release_batches.notify_waiters();
    assert_eq!(truncating.await.unwrap_err().kind(), ErrorKind::Stale);
    is_lost(&one, stat.inode.ino, first).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_comes_too_late_is_a_loss() {
    let daemon = Arc::new(Daemon::default());
    let one = mount(&daemon).await;
    let (stat, first) = one.create(ROOT, Ino::ROOT, b"file", 0o644.into(), libc::O_RDWR).await.unwrap();
    put(&one, first, b"of the next").await.unwrap();
    one.fsync(first).await.unwrap();
    assert_eq!(attempt(&one, first, 1, write(0, 9)).await, Locked::Granted);
    daemon.lose_claims();
    daemon.restart();
    sleep(Duration::from_secs(1)).await;
    is_lost(&one, stat.inode.ino, first).await;
}

/// As when the process was stopped for longer than its lease, and goes on in the middle of a program's critical section.
#[tokio::test(start_paused = true)]
async fn a_write_that_waits_for_the_session_is_not_made_when_the_lock_is_lost_with_it() {
    let daemon = Arc::new(Daemon::default());
    let one = mount(&daemon).await;
    let (stat, first) = one.create(ROOT, Ino::ROOT, b"file", 0o644.into(), libc::O_RDWR).await.unwrap();
    put(&one, first, b"of the next").await.unwrap();
    one.fsync(first).await.unwrap();
    assert_eq!(attempt(&one, first, 1, write(0, 9)).await, Locked::Granted);
    daemon.fence_all();
    one.session.state().lease_until = tokio::time::Instant::now();
    let error = one.write(first, 0, b"stale", How::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stale);
    is_lost(&one, stat.inode.ino, first).await;
}
