//! A daemon that does not answer, refuses, or has ended the session: what waits, what fails, and what goes on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::BoxFuture;
use tandemfs::ErrorKind;
use tandemfs::id::Ino;
use tandemfs::tree::{NewNode, RenameMode};
use tokio::time::{Instant, sleep};

use super::fake::{Daemon, LEASE_MS};
use super::{ROOT, content, list, make, mount, mount_with};
use crate::fs::data::How;
use crate::fs::{Options, Set};

#[tokio::test(start_paused = true)]
async fn calls_wait_for_a_daemon_that_is_away_and_go_on() {
    let daemon = Arc::new(Daemon::default());
    let fs = mount(&daemon).await;
    let ino = make(&fs, "a", b"data").await;
    assert_eq!(content(&fs, ino).await, b"data");
    daemon.down.store(true, Ordering::SeqCst);
    let making = tokio::spawn({
        let fs = Arc::clone(&fs);
        async move { fs.make(ROOT, Ino::ROOT, b"d", NewNode::Directory, 0o755.into()).await }
    });
    sleep(Duration::from_millis(LEASE_MS * 3)).await;
    assert_eq!(content(&fs, ino).await, b"data", "nobody listens, so nobody changes anything");
    assert!(!making.is_finished());
    daemon.restart();
    daemon.down.store(false, Ordering::SeqCst);
    making.await.unwrap().unwrap();
    assert_eq!(list(&fs, Ino::ROOT, false).await, [".", "..", "a", "d"]);
}

#[tokio::test(start_paused = true)]
async fn waiting_is_bounded() {
    let daemon = Arc::new(Daemon::default());
    let options = Options { offline_timeout: Duration::from_secs(7), ..Options::default() };
    let (fs, _) = mount_with(&daemon, options).await;
    daemon.down.store(true, Ordering::SeqCst);
    let start = Instant::now();
    let error = fs.make(ROOT, Ino::ROOT, b"d", NewNode::Directory, 0o755.into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!((7..10).contains(&start.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_lost_is_sent_again_though_others_are_answered_meanwhile() {
    let daemon = Arc::new(Daemon::default());
    let fs = mount(&daemon).await;
    daemon.swallow_blocks.store(3, Ordering::SeqCst);
    let ino = make(&fs, "a", b"data").await;
    assert_eq!(daemon.swallow_blocks.load(Ordering::SeqCst), 0, "the block was sent");
    assert_eq!(content(&fs, ino).await, b"data");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_too_often_waits_its_turn_however_long_others_are_answered() {
    let daemon = Arc::new(Daemon::default());
    let fs = mount(&daemon).await;
    daemon.limits.store(true, Ordering::SeqCst);
    let making = tokio::spawn({
        let fs = Arc::clone(&fs);
        async move { make(&fs, "a", b"data").await }
    });
    for number in 0..60 {
        sleep(Duration::from_secs(1)).await;
        let name = format!("d{number}");
        fs.make(ROOT, Ino::ROOT, name.as_bytes(), NewNode::Directory, 0o755.into()).await.unwrap();
    }
    assert!(!making.is_finished());
    let tries = daemon.refused.load(Ordering::SeqCst);
    assert!((50..=61).contains(&tries), "it was to come back after a second, and came {tries} times in 60 s");
    daemon.limits.store(false, Ordering::SeqCst);
    assert_eq!(content(&fs, making.await.unwrap()).await, b"data");
}

#[tokio::test(start_paused = true)]
async fn credentials_that_do_not_count_any_more_end_every_call_at_once_until_they_do() {
    for fenced in [false, true] {
        let daemon = Arc::new(Daemon::default());
        let (fs, kernel) = mount_with(&daemon, Options::default()).await;
        let ino = make(&fs, "a", b"data").await;
        let stat = fs.getattr(ino).await.unwrap();
        fs.tell(stat);
        let handle = fs.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
        fs.write(handle, 0, b"DATA", How::default()).await.unwrap();
        if fenced {
            daemon.fence_all();
        }
        daemon.deny();
        sleep(Duration::from_secs(1)).await;
        let start = Instant::now();
        let mut errors = vec![
            fs.getattr(ino).await.map(drop).unwrap_err(),
            fs.lookup(Ino::ROOT, b"a").await.map(drop).unwrap_err(),
            fs.open_directory(Ino::ROOT, 0).await.map(drop).unwrap_err(),
            fs.read(handle, 0, 4).await.map(drop).unwrap_err(),
            fs.write(handle, 0, b"more", How::default()).await.map(drop).unwrap_err(),
            fs.fsync(handle).await.unwrap_err(),
            fs.setattr(ROOT, ino, Set { mode: Some(0), ..Set::default() }).await.map(drop).unwrap_err(),
        ];
        errors.push(
            fs.make(ROOT, Ino::ROOT, b"d", NewNode::Directory, 0o755.into()).await.map(drop).unwrap_err(),
        );
        for error in errors {
            assert_eq!((error.kind(), error.errno()), (ErrorKind::Unauthenticated, libc::EACCES), "{error}");
        }
        assert!(start.elapsed() < Duration::from_secs(1));
        assert!(kernel.pages.lock().unwrap().contains(&ino), "the kernel answers from its cache");

        daemon.denies.store(false, Ordering::SeqCst);
        sleep(Duration::from_secs(12)).await;
        assert_eq!(content(&fs, ino).await, b"data", "what could not be written was reported and is gone");
        fs.release(handle).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_fenced_mount_writes_what_it_has_staged_in_a_new_session() {
    let daemon = Arc::new(Daemon::default());
    let fs = mount(&daemon).await;
    let (kept, gone) = (make(&fs, "kept", b"").await, make(&fs, "gone", b"").await);
    let handles = [
        fs.open_file(ROOT, kept, libc::O_RDWR).await.unwrap(),
        fs.open_file(ROOT, gone, libc::O_RDWR).await.unwrap(),
    ];
    for handle in handles {
        fs.write(handle, 0, b"staged", How::default()).await.unwrap();
    }
    daemon.fence_all();
    let other = mount(&daemon).await;
    other.remove(ROOT, Ino::ROOT, b"gone", false).await.unwrap();
    fs.flush(handles[0]).await.unwrap();
    assert_eq!(content(&other, kept).await, b"staged");
    assert_eq!(fs.flush(handles[1]).await.unwrap_err().kind(), ErrorKind::Stale);
    make(&fs, "new", b"x").await;
    assert_eq!(list(&other, Ino::ROOT, true).await, [".", "..", "kept", "new"]);
}

/// The kernel asks for the attributes of what it has created before it has it open, and begins again when they are `Stale`.
#[tokio::test(start_paused = true)]
async fn a_file_that_was_created_in_a_session_that_is_over_is_shown_though_it_is_gone() {
    let daemon = Arc::new(Daemon::default());
    let (fs, other) = (mount(&daemon).await, mount(&daemon).await);
    let (stat, handle) = fs.create(ROOT, Ino::ROOT, b"new", 0o600.into(), libc::O_EXCL).await.unwrap();
    let ino = stat.inode.ino;
    daemon.fence_all();
    other.remove(ROOT, Ino::ROOT, b"new", false).await.unwrap();
    sleep(Duration::from_millis(LEASE_MS)).await;
    fs.release(handle).await;
    assert_eq!(fs.getattr(ino).await.unwrap_err().kind(), ErrorKind::Stale);
    assert!(!fs.tell_created(stat).keep);
    let shown = fs.getattr(ino).await.unwrap();
    assert_eq!((shown.inode.ino, shown.inode.nlink, shown.keep), (ino, 0, false));
    assert_eq!(fs.open_file(ROOT, ino, libc::O_RDONLY).await.unwrap_err().kind(), ErrorKind::Stale);
}

/// The kernel does a call again that is answered ESTALE.
#[tokio::test(start_paused = true)]
async fn a_change_that_perhaps_was_made_before_the_session_ended_is_not_made_again() {
    let daemon = Arc::new(Daemon::default());
    let fs = mount(&daemon).await;
    make(&fs, "old", b"").await;
    let calls: [BoxFuture<'_, tandemfs::Result<()>>; 3] = [
        Box::pin(async { fs.create(ROOT, Ino::ROOT, b"new", 0o600.into(), libc::O_EXCL).await.map(drop) }),
        Box::pin(fs.rename(ROOT, (Ino::ROOT, b"old"), (Ino::ROOT, b"other"), RenameMode::NoReplace)),
        Box::pin(fs.remove(ROOT, Ino::ROOT, b"new", false)),
    ];
    for call in calls {
        let before = daemon.batches.load(Ordering::SeqCst);
        daemon.hold_batches.store(true, Ordering::SeqCst);
        let fence = async {
            while daemon.batches.load(Ordering::SeqCst) == before {
                sleep(Duration::from_millis(1)).await;
            }
            daemon.hold_batches.store(false, Ordering::SeqCst);
            daemon.lose_every.store(1, Ordering::SeqCst);
            daemon.release_batches.notify_waiters();
            sleep(Duration::from_millis(1)).await;
            daemon.fence_all();
            daemon.lose_every.store(0, Ordering::SeqCst);
        };
        let (result, ()) = tokio::join!(call, fence);
        assert_eq!(result.unwrap_err().errno(), libc::ETIMEDOUT);
    }
    assert_eq!(list(&fs, Ino::ROOT, true).await, [".", "..", "other"]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_while_numbers_are_asked_for_is_replaced() {
    let daemon = Arc::new(Daemon::default());
    let fs = mount(&daemon).await;
    daemon.fence_all();
    let start = Instant::now();
    make(&fs, "new", b"x").await;
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}
