//! Locks that are granted under the lease, and what becomes of them with it.

use std::future::{pending, ready};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tandemfs::ErrorKind;
use tandemfs::api::locks::{Lock, LockKind, OFFSET_MAX};
use tandemfs::id::Ino;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::fake::Daemon;
use super::{ROOT, list, make, mount, mount_with};
use crate::fs::data::How;
use crate::fs::locks::Locked;
use crate::fs::{Fs, Options};

const SHORT: Duration = Duration::from_millis(20);

fn write(start: u64, end: u64) -> Lock {
    Lock { start, end, kind: LockKind::Write, pid: 42 }
}

/// A mount that has the lease, and a handle of a file.
async fn alone(daemon: &Arc<Daemon>) -> (Arc<Fs>, Ino, u64) {
    let fs = mount_with(daemon, Options { lease: true, ..Options::default() }).await.0;
    sleep(SHORT).await;
    assert!(daemon.lease().is_some());
    let (stat, handle) = fs.create(ROOT, Ino::ROOT, b"file", 0o644.into(), libc::O_RDWR).await.unwrap();
    (fs, stat.inode.ino, handle)
}

async fn attempt(fs: &Fs, handle: u64, owner: u64, lock: Lock) -> Locked {
    fs.set_lock(handle, owner, lock, ready(())).await.unwrap()
}

fn wait(fs: &Arc<Fs>, handle: u64, owner: u64, lock: Lock) -> JoinHandle<tandemfs::Result<Locked>> {
    let fs = Arc::clone(fs);
    tokio::spawn(async move { fs.set_lock(handle, owner, lock, pending()).await })
}

#[tokio::test(start_paused = true)]
async fn who_is_alone_is_granted_locks_without_a_message() {
    let daemon = Arc::new(Daemon::default());
    let (fs, _, handle) = alone(&daemon).await;
    assert_eq!(attempt(&fs, handle, 1, write(0, 9)).await, Locked::Granted);
    assert_eq!(attempt(&fs, handle, 2, write(5, 5)).await, Locked::Held);
    assert_eq!(fs.test_lock(handle, 2, write(0, OFFSET_MAX)).await.unwrap(), Some(write(0, 9)));
    assert_eq!(fs.test_lock(handle, 1, write(0, OFFSET_MAX)).await.unwrap(), None);
    // In the order in which they came.
    let second = wait(&fs, handle, 2, write(0, 9));
    sleep(SHORT).await;
    let third = wait(&fs, handle, 3, write(0, 9));
    sleep(SHORT).await;
    assert_eq!(attempt(&fs, handle, 4, write(0, 9)).await, Locked::Held);
    fs.unlock(handle, 1, 0, 9).await.unwrap();
    assert_eq!(second.await.unwrap().unwrap(), Locked::Granted);
    assert!(!third.is_finished());
    fs.close(handle, 2).await.unwrap();
    assert_eq!(third.await.unwrap().unwrap(), Locked::Granted);
    assert_eq!((daemon.locks(), daemon.lock_waits.load(Ordering::SeqCst)), (vec![], 0));
    fs.release(handle).await;
    fs.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn impatience_leaves_no_place_behind_and_a_circle_is_a_deadlock() {
    let daemon = Arc::new(Daemon::default());
    let (fs, _, handle) = alone(&daemon).await;
    assert_eq!(attempt(&fs, handle, 1, write(0, 0)).await, Locked::Granted);
    assert_eq!(attempt(&fs, handle, 2, write(1, 1)).await, Locked::Granted);
    let impatient = fs.set_lock(handle, 3, write(0, 0), sleep(SHORT));
    assert_eq!(impatient.await.unwrap(), Locked::Held);
    let waiting = wait(&fs, handle, 2, write(0, 0));
    sleep(SHORT).await;
    let circle = fs.set_lock(handle, 1, write(1, 1), pending());
    assert_eq!(timeout(SHORT, circle).await.unwrap().unwrap(), Locked::Deadlock);
    waiting.abort();
    let _aborted = waiting.await;
    fs.unlock(handle, 1, 0, 0).await.unwrap();
    assert_eq!(attempt(&fs, handle, 4, write(0, 0)).await, Locked::Granted, "somebody's place is left");
}

#[tokio::test(start_paused = true)]
async fn another_mount_meets_the_locks_and_what_was_written_under_them() {
    let daemon = Arc::new(Daemon::default());
    let (fs, ino, handle) = alone(&daemon).await;
    assert_eq!(attempt(&fs, handle, 1, write(0, 9)).await, Locked::Granted);
    assert_eq!(attempt(&fs, handle, 2, write(20, 29)).await, Locked::Granted);
    fs.unlock(handle, 2, 25, OFFSET_MAX).await.unwrap();
    fs.write(handle, 0, b"under the lock", How::default()).await.unwrap();
    // Waits here now, and at the daemon afterwards.
    let waiting = wait(&fs, handle, 3, write(9, 9));
    sleep(SHORT).await;
    let other = mount(&daemon).await;
    let theirs = other.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
    assert_eq!(daemon.lease(), None);
    assert_eq!(attempt(&other, theirs, 1, write(0, 0)).await, Locked::Held);
    assert_eq!(attempt(&other, theirs, 1, write(24, 24)).await, Locked::Held);
    assert_eq!(attempt(&other, theirs, 1, write(25, 25)).await, Locked::Granted);
    assert_eq!(other.read(theirs, 0, 100).await.unwrap(), "under the lock");
    assert!(!waiting.is_finished());
    fs.unlock(handle, 1, 0, OFFSET_MAX).await.unwrap();
    assert_eq!(timeout(SHORT, waiting).await.unwrap().unwrap().unwrap(), Locked::Granted);
    assert_eq!(attempt(&other, theirs, 1, write(9, 9)).await, Locked::Held);
    other.release(theirs).await;
    other.stop().await.unwrap();
    fs.release(handle).await;
    assert_eq!(daemon.locks(), []);
    fs.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_waits_at_the_daemon_goes_on_here_when_the_lease_is_taken() {
    let daemon = Arc::new(Daemon::default());
    let (fs, _, handle) = alone(&daemon).await;
    let other = mount(&daemon).await;
    list(&other, Ino::ROOT, false).await;
    assert_eq!(daemon.lease(), None);
    assert_eq!(attempt(&fs, handle, 1, write(0, 9)).await, Locked::Granted);
    let waiting = wait(&fs, handle, 2, write(0, 9));
    sleep(SHORT).await;
    assert_eq!(daemon.lock_waits.load(Ordering::SeqCst), 1);
    other.stop().await.unwrap();
    sleep(SHORT).await;
    make(&fs, "alone again", b"").await;
    sleep(SHORT).await;
    assert!(daemon.lease().is_some());
    assert!(!waiting.is_finished());
    fs.unlock(handle, 1, 0, 9).await.unwrap();
    assert_eq!(timeout(SHORT, waiting).await.unwrap().unwrap().unwrap(), Locked::Granted);
    // Given up here, so the daemon is to forget it.
    let another = mount(&daemon).await;
    list(&another, Ino::ROOT, false).await;
    assert_eq!(daemon.locks(), [(2, write(0, 9))]);
    another.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_daemon_and_a_lost_session_count_as_without_the_lease() {
    let daemon = Arc::new(Daemon::default());
    let (fs, _, handle) = alone(&daemon).await;
    assert_eq!(attempt(&fs, handle, 1, write(0, 9)).await, Locked::Granted);
    daemon.restart();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(daemon.locks(), [(1, write(0, 9))]);
    assert!(daemon.lease().is_some());
    assert_eq!(attempt(&fs, handle, 1, write(10, 19)).await, Locked::Granted);
    daemon.fence_all();
    sleep(Duration::from_secs(2)).await;
    assert!(fs.usable(handle).is_err_and(|error| error.kind() == ErrorKind::Stale));
    fs.release(handle).await;
    fs.stop().await.unwrap();
}
