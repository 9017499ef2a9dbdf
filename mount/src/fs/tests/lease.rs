//! The lease: what is answered before it is sent, who waits for what, and how it is returned and lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tandemfs::ErrorKind;
use tandemfs::id::Ino;
use tandemfs::name::Name;
use tandemfs::tree::{Key, NewNode, Record, RenameMode};
use tokio::time::{sleep, timeout};

use super::fake::Daemon;
use super::{ROOT, content, list, make, mount, mount_with};
use crate::fs::data::How;
use crate::fs::{Fs, Options};

/// Longer than anything waits to be sent.
const SENT: Duration = Duration::from_millis(200);

/// A mount that is alone, and has the lease.
async fn alone(daemon: &Arc<Daemon>) -> Arc<Fs> {
    let fs = leased(daemon).await;
    assert!(daemon.lease().is_some());
    fs
}

async fn leased(daemon: &Arc<Daemon>) -> Arc<Fs> {
    let fs = mount_with(daemon, Options { lease: true, ..Options::default() }).await.0;
    sleep(Duration::from_millis(10)).await;
    fs
}

fn batches(daemon: &Daemon) -> u64 {
    daemon.batches.load(Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn who_is_alone_is_answered_before_the_daemon_knows() {
    let daemon = Arc::new(Daemon::default());
    let fs = alone(&daemon).await;
    daemon.hold_batches.store(true, Ordering::SeqCst);
    for number in 0..20 {
        make(&fs, &format!("f{number}"), b"hello").await;
    }
    fs.rename(ROOT, (Ino::ROOT, b"f0"), (Ino::ROOT, b"g"), RenameMode::Replace).await.unwrap();
    fs.remove(ROOT, Ino::ROOT, b"f1", false).await.unwrap();
    assert_eq!(list(&fs, Ino::ROOT, true).await.len(), 2 + 19);
    let ino = fs.lookup(Ino::ROOT, b"g").await.unwrap().inode.ino;
    assert_eq!(content(&fs, ino).await, b"hello");
    assert_eq!(fs.lookup(Ino::ROOT, b"f0").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(daemon.record(&Key::Inode(ino)).is_none());
    daemon.hold_batches.store(false, Ordering::SeqCst);
    daemon.release_batches.notify_waiters();
    sleep(SENT).await;
    assert!(matches!(daemon.record(&Key::Inode(ino)), Some(Record::Inode(inode)) if inode.size == 5));
    assert!(batches(&daemon) <= 3, "{} batches for 62 changes", batches(&daemon));
    assert_eq!(content(&fs, ino).await, b"hello");
    fs.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn fsync_waits_until_the_file_and_its_name_are_committed() {
    let daemon = Arc::new(Daemon::default());
    let fs = alone(&daemon).await;
    let (stat, handle) = fs.create(ROOT, Ino::ROOT, b"f", 0o644.into(), 0).await.unwrap();
    fs.write(handle, 0, b"data", How::default()).await.unwrap();
    daemon.hold_batches.store(true, Ordering::SeqCst);
    assert!(timeout(SENT, fs.fsync(handle)).await.is_err(), "it does not wait");
    assert!(timeout(SENT, fs.sync_directory(Ino::ROOT)).await.is_err(), "it does not wait");
    daemon.hold_batches.store(false, Ordering::SeqCst);
    daemon.release_batches.notify_waiters();
    fs.fsync(handle).await.unwrap();
    assert!(
        matches!(daemon.record(&Key::Inode(stat.inode.ino)), Some(Record::Inode(inode)) if inode.size == 4)
    );
    fs.sync_directory(Ino::ROOT).await.unwrap();
    fs.release(handle).await;
    fs.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_second_mount_sees_at_once_what_the_first_has_done() {
    let daemon = Arc::new(Daemon::default());
    let fs = alone(&daemon).await;
    make(&fs, "a", b"one").await;
    let (_, handle) = fs.create(ROOT, Ino::ROOT, b"b", 0o644.into(), 0).await.unwrap();
    fs.write(handle, 0, b"two", How::default()).await.unwrap();
    let other = mount(&daemon).await;
    assert_eq!(list(&other, Ino::ROOT, false).await, [".", "..", "a", "b"]);
    assert_eq!(daemon.lease(), None);
    for (name, expected) in [(b"a", b"one"), (b"b", b"two")] {
        let ino = other.lookup(Ino::ROOT, name).await.unwrap().inode.ino;
        assert_eq!(content(&other, ino).await, expected);
    }
    // What the first one does from now on, the second sees likewise.
    fs.write(handle, 3, b"three", How::default()).await.unwrap();
    let ino = other.lookup(Ino::ROOT, b"b").await.unwrap().inode.ino;
    assert_eq!(content(&other, ino).await, b"twothree");
    make(&fs, "c", b"").await;
    assert_eq!(list(&other, Ino::ROOT, false).await, [".", "..", "a", "b", "c"]);
    other.stop().await.unwrap();
    // Alone again.
    sleep(Duration::from_millis(10)).await;
    make(&fs, "d", b"").await;
    sleep(Duration::from_millis(20)).await;
    assert!(daemon.lease().is_some());
    fs.release(handle).await;
    fs.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_is_started_anew_gets_all_that_was_done() {
    let daemon = Arc::new(Daemon::default());
    let fs = alone(&daemon).await;
    make(&fs, "before", b"x").await;
    sleep(SENT).await;
    // Else whether a name is free would have to be asked.
    list(&fs, Ino::ROOT, false).await;
    daemon.down.store(true, Ordering::SeqCst);
    daemon.restart();
    // The numbers of inodes that were granted are enough for these.
    for number in 0..3 {
        make(&fs, &format!("f{number}"), b"hello").await;
    }
    sleep(SENT).await;
    daemon.down.store(false, Ordering::SeqCst);
    sleep(Duration::from_secs(3)).await;
    assert!(daemon.lease().is_some());
    let other = mount(&daemon).await;
    assert_eq!(list(&other, Ino::ROOT, false).await.len(), 2 + 4);
    assert_eq!(list(&fs, Ino::ROOT, false).await.len(), 2 + 4);
    other.stop().await.unwrap();
    fs.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_is_lost_with_the_session_and_fsync_says_so() {
    let daemon = Arc::new(Daemon::default());
    let fs = alone(&daemon).await;
    make(&fs, "kept", b"x").await;
    sleep(SENT).await;
    daemon.hold_batches.store(true, Ordering::SeqCst);
    let (_, handle) = fs.create(ROOT, Ino::ROOT, b"lost", 0o644.into(), 0).await.unwrap();
    fs.write(handle, 0, b"data", How::default()).await.unwrap();
    fs.flush(handle).await.unwrap();
    sleep(SENT).await;
    daemon.fence_all();
    daemon.hold_batches.store(false, Ordering::SeqCst);
    daemon.release_batches.notify_waiters();
    sleep(Duration::from_secs(2)).await;
    assert!(fs.fsync(handle).await.is_err());
    assert_eq!(list(&fs, Ino::ROOT, false).await, [".", "..", "kept"]);
    make(&fs, "new", b"y").await;
    fs.release(handle).await;
    fs.stop().await.unwrap();
    assert!(daemon.record(&Key::Entry(Ino::ROOT, Name::new("new").unwrap())).is_some());
}

#[tokio::test(start_paused = true)]
async fn in_a_directory_that_was_made_here_no_name_is_asked_for() {
    let daemon = Arc::new(Daemon::default());
    let fs = alone(&daemon).await;
    let directory = fs.make(ROOT, Ino::ROOT, b"d", NewNode::Directory, 0o755.into()).await.unwrap().inode.ino;
    let before = daemon.reads.load(Ordering::SeqCst);
    for number in 0..20 {
        let name = format!("f{number}").into_bytes();
        assert_eq!(fs.lookup(directory, &name).await.unwrap_err().kind(), ErrorKind::NotFound);
        fs.create(ROOT, directory, &name, 0o644.into(), libc::O_EXCL).await.unwrap();
        sleep(SENT).await;
    }
    assert_eq!(list(&fs, directory, false).await.len(), 2 + 20);
    assert_eq!(daemon.reads.load(Ordering::SeqCst), before);
    fs.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn of_links_that_were_just_made_none_is_asked_for() {
    let daemon = Arc::new(Daemon::default());
    let fs = alone(&daemon).await;
    // As git gives its objects their names.
    let d = fs.make(ROOT, Ino::ROOT, b"d", NewNode::Directory, 0o755.into()).await.unwrap().inode.ino;
    let ino = fs.make(ROOT, d, b"tmp", NewNode::Fifo, 0o644.into()).await.unwrap().inode.ino;
    let before = daemon.reads.load(Ordering::SeqCst);
    fs.link(ino, d, b"object").await.unwrap();
    fs.remove(ROOT, d, b"tmp", false).await.unwrap();
    assert_eq!(daemon.reads.load(Ordering::SeqCst), before);
    // Of those that were committed long ago it is not known which they are.
    fs.link(ino, d, b"b").await.unwrap();
    sleep(SENT).await;
    fs.link(ino, d, b"c").await.unwrap();
    fs.remove(ROOT, d, b"object", false).await.unwrap();
    assert!(daemon.reads.load(Ordering::SeqCst) > before);
    let seen = fs.lookup(d, b"b").await.unwrap().inode;
    sleep(SENT).await;
    assert_eq!((seen.nlink, seen.name.as_ref().map(Name::as_bytes)), (2, Some(&b"b"[..])));
    let stored = daemon.record(&Key::Inode(ino));
    assert!(matches!(&stored, Some(Record::Inode(inode)) if **inode == seen), "{stored:?} is not {seen:?}");
    fs.stop().await.unwrap();
}
