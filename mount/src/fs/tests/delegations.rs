//! What a program has written through an open handle is seen at once, whoever looks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tandemfs::ErrorKind;
use tokio::time::{sleep, timeout};

use super::fake::Daemon;
use super::{APPEND, ROOT, content, make, mount, mount_with};
use crate::fs::Options;
use crate::fs::data::How;

#[tokio::test(start_paused = true)]
async fn what_was_written_and_not_synced_is_seen_by_others() {
    let daemon = Arc::new(Daemon::default());
    let (one, two) = (mount(&daemon).await, mount(&daemon).await);
    let ino = make(&one, "a", b"old").await;
    assert_eq!(content(&two, ino).await, b"old");
    let handles = [
        one.open_file(ROOT, ino, libc::O_RDWR).await.unwrap(),
        two.open_file(ROOT, ino, libc::O_RDWR).await.unwrap(),
    ];
    for round in 0..20_u64 {
        let text = format!("round {round:3}");
        let (here, there) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
        let fs = [&one, &two];
        fs[here].write(handles[here], round, text.as_bytes(), How::default()).await.unwrap();
        let size = fs[there].getattr(ino).await.unwrap().inode.size;
        assert_eq!(size, round + text.len() as u64);
        assert_eq!(fs[there].read(handles[there], round, 100).await.unwrap(), text.as_bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_writes_alone_asks_once() {
    let daemon = Arc::new(Daemon::default());
    let one = mount(&daemon).await;
    let ino = make(&one, "a", b"").await;
    let created = daemon.takes.load(Ordering::SeqCst);
    assert_eq!(created, 0, "a file that is created is delegated with that");
    for _ in 0..10 {
        let handle = one.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
        one.write(handle, 0, b"text", How::default()).await.unwrap();
        one.release(handle).await;
    }
    let two = mount(&daemon).await;
    assert_eq!(content(&two, ino).await, b"text");
    assert!(daemon.delegations().is_empty());
    for _ in 0..10 {
        let handle = one.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
        one.write(handle, 0, b"more", How::default()).await.unwrap();
        one.release(handle).await;
    }
    assert_eq!(daemon.takes.load(Ordering::SeqCst), created + 1);
}

#[tokio::test(start_paused = true)]
async fn delegations_that_are_not_in_use_are_returned_when_there_are_many() {
    let daemon = Arc::new(Daemon::default());
    let one = mount(&daemon).await;
    for number in 0..100 {
        make(&one, &format!("f{number}"), b"x").await;
    }
    sleep(Duration::from_secs(1)).await;
    let left = daemon.delegations().len();
    assert!((1..=17).contains(&left), "{left} are left");
    assert!(daemon.returns.load(Ordering::SeqCst) >= 80);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_was_started_anew_learns_what_was_delegated() {
    let daemon = Arc::new(Daemon::default());
    let (one, two) = (mount(&daemon).await, mount(&daemon).await);
    let ino = make(&one, "a", b"old").await;
    let handle = one.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
    one.write(handle, 0, b"new", How::default()).await.unwrap();
    daemon.restart();
    assert_eq!(content(&two, ino).await, b"new");
}

#[tokio::test(start_paused = true)]
async fn what_a_session_that_has_ended_has_not_sent_is_written_if_nobody_else_has_changed_the_file() {
    let daemon = Arc::new(Daemon::default());
    let one = mount(&daemon).await;
    let inos = [make(&one, "a", b"aaaa").await, make(&one, "b", b"bbbb").await];
    let mut handles = Vec::new();
    for ino in inos {
        let handle = one.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
        one.write(handle, 0, b"XX", How::default()).await.unwrap();
        handles.push(handle);
    }
    daemon.fence_all();
    let two = mount(&daemon).await;
    let other = two.open_file(ROOT, inos[1], libc::O_RDWR).await.unwrap();
    two.write(other, 3, b"Y", How::default()).await.unwrap();
    two.release(other).await;
    one.fsync(handles[0]).await.unwrap();
    assert_eq!(one.fsync(handles[1]).await.unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(content(&two, inos[0]).await, b"XXaa");
    assert_eq!(content(&two, inos[1]).await, b"bbbY");
    assert_eq!(content(&one, inos[1]).await, b"bbbY");
}

/// Real time: a thread that waits keeps time that is paused from going on.
#[tokio::test]
async fn a_read_that_waits_is_not_waited_for_and_sees_what_was_written_meanwhile() {
    let patience = Duration::from_secs(2);
    let daemon = Arc::new(Daemon::default());
    let one = mount(&daemon).await;
    let (two, kernel) = mount_with(&daemon, Options::default()).await;
    let ino = make(&one, "a", b"old").await;
    let stat = two.getattr(ino).await.unwrap();
    two.tell(stat);
    let handle = two.open_file(ROOT, ino, libc::O_RDONLY).await.unwrap();
    let written = one.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
    *kernel.locked.lock().unwrap() = Some((ino, 0..4096));
    daemon.hold_reads.store(true, Ordering::SeqCst);
    let read = tokio::spawn({
        let two = Arc::clone(&two);
        async move { two.read(handle, 0, 4096).await }
    });
    while daemon.reads_held.load(Ordering::SeqCst) == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    daemon.hold_reads.store(false, Ordering::SeqCst);
    let write = one.write(written, 0, b"new", How::default());
    timeout(patience, write).await.expect("nobody waits for the page").unwrap();
    daemon.release_reads.notify_waiters();
    assert_eq!(timeout(patience, read).await.expect("the read goes on").unwrap().unwrap(), b"new"[..]);
}

#[tokio::test]
async fn a_session_is_taken_up_while_reads_and_writes_wait_for_it() {
    let patience = Duration::from_secs(2);
    for fenced in [false, true] {
        let daemon = Arc::new(Daemon::default());
        let (fs, kernel) = mount_with(&daemon, Options::default()).await;
        let ino = make(&fs, "a", b"data").await;
        let stat = fs.getattr(ino).await.unwrap();
        fs.tell(stat);
        let handle = fs.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
        *kernel.locked.lock().unwrap() = Some((ino, 0..4096));
        if fenced {
            daemon.fence_all();
            fs.session.ended(fs.session.id());
        } else {
            daemon.restart();
        }
        let (read, written) = tokio::join!(
            timeout(patience, fs.read(handle, 0, 4)),
            timeout(patience, fs.write(handle, 8, b"more", How::default())),
        );
        assert_eq!(read.unwrap_or_else(|_| panic!("the read hangs, fenced {fenced}")).unwrap(), b"data"[..]);
        written.expect("the write goes on").unwrap();
        *kernel.locked.lock().unwrap() = None;
        assert_eq!(fs.getattr(ino).await.unwrap().inode.size, 12);
    }
}

/// The return must not end what was given after it.
#[tokio::test(start_paused = true)]
async fn a_file_that_is_being_returned_is_asked_for_again_only_after_that() {
    let daemon = Arc::new(Daemon::default());
    let (one, two) = (mount(&daemon).await, mount(&daemon).await);
    let ino = make(&one, "log", b"").await;
    let handle = one.open_file(ROOT, ino, libc::O_RDWR | libc::O_APPEND).await.unwrap();
    let append = || one.write(handle, 0, b"text", APPEND);
    append().await.unwrap();
    daemon.hold_batches.store(true, Ordering::SeqCst);
    let before = daemon.batches.load(Ordering::SeqCst);
    let release = async {
        while daemon.batches.load(Ordering::SeqCst) == before {
            sleep(Duration::from_millis(1)).await;
        }
        sleep(Duration::from_millis(100)).await;
        daemon.hold_batches.store(false, Ordering::SeqCst);
        daemon.release_batches.notify_waiters();
    };
    let again = async {
        while daemon.batches.load(Ordering::SeqCst) == before {
            sleep(Duration::from_millis(1)).await;
        }
        append().await.unwrap();
    };
    let (seen, (), ()) = tokio::join!(two.getattr(ino), release, again);
    assert!([4, 8].contains(&seen.unwrap().inode.size));
    append().await.unwrap();
    assert_eq!(two.getattr(ino).await.unwrap().inode.size, 12);
}

/// Else an append would be laid where the file ended before somebody else's.
#[tokio::test(start_paused = true)]
async fn a_file_is_returned_when_nobody_uses_it_and_is_not_used_until_then() {
    let daemon = Arc::new(Daemon::default());
    let (one, two) = (mount(&daemon).await, mount(&daemon).await);
    let ino = make(&one, "log", b"text").await;
    let first = one.session.delegated(ino).await.unwrap();
    let second = one.session.delegated(ino).await.unwrap();
    let mut seen = std::pin::pin!(two.getattr(ino));
    let mut third = std::pin::pin!(one.session.delegated(ino));
    let wait = Duration::from_millis(100);
    assert!(timeout(wait, &mut seen).await.is_err());
    assert!(timeout(wait, &mut third).await.is_err());
    drop(first);
    assert!(timeout(wait, &mut seen).await.is_err());
    assert!(timeout(wait, &mut third).await.is_err());
    drop(second);
    assert_eq!(timeout(wait, &mut seen).await.unwrap().unwrap().inode.size, 4);
    timeout(wait, &mut third).await.unwrap().unwrap();
}

/// As when the process was stopped: others may have been shown the file meanwhile, without what is written now.
#[tokio::test(start_paused = true)]
async fn a_write_is_answered_only_while_the_lease_lives() {
    let daemon = Arc::new(Daemon::default());
    let one = mount(&daemon).await;
    let ino = make(&one, "f", b"").await;
    let handle = one.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
    one.write(handle, 0, b"before", How::default()).await.unwrap();
    assert!(one.write_at_once(handle, 6, b" and", How::default()).is_some());
    one.session.state().lease_until = tokio::time::Instant::now();
    assert!(one.write_at_once(handle, 10, b" after", How::default()).is_none());
    let mut write = std::pin::pin!(one.write(handle, 10, b" after", How::default()));
    assert!(timeout(Duration::from_millis(100), &mut write).await.is_err());
    // The session goes on, and so does the write.
    write.await.unwrap();
    assert_eq!(one.read(handle, 0, 100).await.unwrap(), &b"before and after"[..]);
}
