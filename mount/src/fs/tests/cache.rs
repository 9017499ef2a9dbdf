//! What is cached, here and in the kernel: it costs no request, and is dropped when it changes elsewhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tandemfs::ErrorKind;
use tandemfs::id::Ino;
use tandemfs::tree::{Key, RenameMode};
use tokio::time::{Instant, sleep};

use super::fake::Daemon;
use super::{ROOT, content, list, make, mount, mount_with};
use crate::fs::{Options, Set};

#[tokio::test(start_paused = true)]
async fn what_is_cached_costs_no_request() {
    let daemon = Arc::new(Daemon::default());
    let fs = mount(&daemon).await;
    for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i"] {
        make(&fs, name, b"x").await;
    }
    let names = list(&fs, Ino::ROOT, true).await;
    assert_eq!(names.len(), 11);
    let before = daemon.reads.load(Ordering::SeqCst);
    assert_eq!(list(&fs, Ino::ROOT, true).await, names);
    assert_eq!(fs.lookup(Ino::ROOT, b"no such").await.unwrap_err().kind(), ErrorKind::NotFound);
    fs.lookup(Ino::ROOT, b"e").await.unwrap();
    assert_eq!(fs.get_xattr(Ino::ROOT, b"user.x").await.unwrap_err().kind(), ErrorKind::NoAttribute);
    assert_eq!(daemon.reads.load(Ordering::SeqCst), before);
}

#[tokio::test(start_paused = true)]
async fn an_event_between_request_and_reply_is_not_lost() {
    let daemon = Arc::new(Daemon::default());
    let (one, kernel) = mount_with(&daemon, Options::default()).await;
    let two = mount(&daemon).await;
    let ino = make(&two, "a", b"old").await;
    let chmod = |mode| Set { mode: Some(mode), ..Set::default() };
    assert!(one.tell(one.lookup(Ino::ROOT, b"a").await.unwrap()).keep);
    kernel.attributes.lock().unwrap().clear();
    two.setattr(ROOT, ino, chmod(0o640)).await.unwrap();
    assert_eq!(
        std::mem::take(&mut *kernel.attributes.lock().unwrap()),
        [ino],
        "the kernel was told before the author was answered"
    );
    daemon.hold_reads.store(true, Ordering::SeqCst);
    let asking = tokio::spawn({
        let one = Arc::clone(&one);
        async move { one.getattr(ino).await }
    });
    while daemon.reads_held.load(Ordering::SeqCst) == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    daemon.hold_reads.store(false, Ordering::SeqCst);
    two.setattr(ROOT, ino, chmod(0o600)).await.unwrap();
    // It would throw the answer away, and the size with it, and has nothing to drop.
    assert!(kernel.attributes.lock().unwrap().is_empty(), "the kernel was told while it asked");
    daemon.release_reads.notify_waiters();
    let answered = asking.await.unwrap().unwrap();
    assert!(!answered.keep || answered.inode.mode == 0o600);
    let answered = one.getattr(ino).await.unwrap();
    assert!(answered.keep && answered.inode.mode == 0o600);
    two.setattr(ROOT, ino, chmod(0o644)).await.unwrap();
    assert_eq!(*kernel.attributes.lock().unwrap(), [ino], "it has them again");
}

/// A process that has been answered goes on with the size only when it is given a processor.
#[tokio::test(start_paused = true)]
async fn an_answer_is_given_time_before_it_is_dropped() {
    let daemon = Arc::new(Daemon::default());
    let (one, kernel) = mount_with(&daemon, Options::default()).await;
    let two = mount(&daemon).await;
    let ino = make(&two, "a", b"").await;
    one.tell(one.lookup(Ino::ROOT, b"a").await.unwrap());
    kernel.attributes.lock().unwrap().clear();
    for asks in [false, true] {
        if asks {
            one.getattr(ino).await.unwrap();
        }
        let before = Instant::now();
        let chmod = Set { mode: Some(0o600), ..Set::default() };
        two.setattr(ROOT, ino, chmod).await.unwrap();
        let waited = before.elapsed() >= Duration::from_millis(2);
        assert_eq!((waited, kernel.attributes.lock().unwrap().len()), (asks, 1 + usize::from(asks)));
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_event_has_overtaken_is_not_kept_by_the_kernel() {
    let daemon = Arc::new(Daemon::default());
    let (one, kernel) = mount_with(&daemon, Options::default()).await;
    let two = mount(&daemon).await;
    let ino = make(&two, "a", b"").await;
    let chmod = |mode| Set { mode: Some(mode), ..Set::default() };
    // The event comes before the kernel is told.
    let stat = one.lookup(Ino::ROOT, b"a").await.unwrap();
    assert!(stat.keep);
    two.setattr(ROOT, ino, chmod(0o600)).await.unwrap();
    let told = one.tell(stat);
    assert!(!told.keep || told.inode.mode == 0o600);
    // It comes when the kernel has been told and has not taken that in.
    let stat = one.tell(one.lookup(Ino::ROOT, b"a").await.unwrap());
    assert!(stat.keep);
    kernel.attributes.lock().unwrap().clear();
    kernel.unknown.lock().unwrap().insert(ino);
    let changing = tokio::spawn(async move { two.setattr(ROOT, ino, chmod(0o640)).await });
    // The paused clock does not go on while the kernel is being told.
    while kernel.misses.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    kernel.unknown.lock().unwrap().clear();
    changing.await.unwrap().unwrap();
    assert!(kernel.attributes.lock().unwrap().contains(&ino));
    // What it has forgotten is not waited for.
    one.forget(ino, 2);
    kernel.unknown.lock().unwrap().insert(ino);
    kernel.misses.store(0, Ordering::SeqCst);
    let three = mount(&daemon).await;
    three.setattr(ROOT, ino, chmod(0o644)).await.unwrap();
    assert_eq!(kernel.misses.load(Ordering::SeqCst), 0);
}

/// Who has seen a file under its new name does not find the old one any more, in the kernel's cache either.
#[tokio::test(start_paused = true)]
async fn an_answer_is_used_when_what_it_has_replaced_is_dropped() {
    let daemon = Arc::new(Daemon::default());
    let (one, kernel) = mount_with(&daemon, Options::default()).await;
    let two = mount(&daemon).await;
    let ino = make(&two, "old", b"").await;
    one.tell(one.lookup(Ino::ROOT, b"old").await.unwrap());
    // The kernel has not taken that in, so it takes some time until it has dropped it.
    kernel.unknown.lock().unwrap().insert(ino);
    let renaming = tokio::spawn(async move {
        two.rename(ROOT, (Ino::ROOT, b"old"), (Ino::ROOT, b"new"), RenameMode::Replace).await
    });
    let names = kernel.names.load(Ordering::SeqCst);
    while one.lookup(Ino::ROOT, b"new").await.is_err() {
        tokio::task::yield_now().await;
    }
    assert!(kernel.names.load(Ordering::SeqCst) > names);
    assert_eq!(one.lookup(Ino::ROOT, b"old").await.unwrap_err().kind(), ErrorKind::NotFound);
    renaming.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_new_run_of_the_daemon_drops_what_is_cached() {
    let daemon = Arc::new(Daemon::default());
    let (fs, kernel) = mount_with(&daemon, Options::default()).await;
    let ino = make(&fs, "a", b"data").await;
    fs.tell(fs.getattr(ino).await.unwrap());
    content(&fs, ino).await;
    daemon.restart();
    sleep(Duration::from_secs(2)).await;
    assert!(kernel.pages.lock().unwrap().contains(&ino));
    assert!(fs.session.cache.get(&Key::Inode(ino)).is_none());
    assert_eq!(content(&fs, ino).await, b"data");
}
