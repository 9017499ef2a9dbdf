//! Inodes without a name that somebody still uses.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tandemfs::ErrorKind;
use tandemfs::id::Ino;
use tandemfs::tree::{Key, NewNode, RenameMode};
use tokio::time::sleep;

use super::fake::Daemon;
use super::{ROOT, content, make, mount};
use crate::fs::Fs;
use crate::fs::data::How;

fn is_left(daemon: &Daemon, ino: Ino) -> bool {
    daemon.keys().contains(&Key::Inode(ino))
}

#[tokio::test(start_paused = true)]
async fn what_was_written_to_an_orphan_is_read_where_it_is_still_open() {
    let daemon = Arc::new(Daemon::default());
    let (one, two) = (mount(&daemon).await, mount(&daemon).await);
    let (stat, first) = one.create(ROOT, Ino::ROOT, b"file", 0o644.into(), libc::O_RDWR).await.unwrap();
    let ino = stat.inode.ino;
    let second = two.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
    one.remove(ROOT, Ino::ROOT, b"file", false).await.unwrap();
    one.write(first, 0, b"by the first", How::default()).await.unwrap();
    one.flush(first).await.unwrap();
    one.release(first).await;
    assert_eq!(two.getattr(ino).await.unwrap().inode.size, 12);
    assert_eq!(two.read(second, 0, 100).await.unwrap(), "by the first");
    // Nobody reads this any more, so it is not sent.
    two.write(second, 0, b"by the second", How::default()).await.unwrap();
    two.flush(second).await.unwrap();
    two.release(second).await;
    assert!(!is_left(&daemon, ino));
    assert_eq!(daemon.blocks(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_kernel_opens_by_itself_is_there_as_long_as_the_kernel_knows_it() {
    let daemon = Arc::new(Daemon::default());
    let (one, two) = (mount(&daemon).await, mount(&daemon).await);
    for (name, remover) in [(b"a", &one), (b"b", &two)] {
        let made = one.make(ROOT, Ino::ROOT, name, NewNode::Fifo, 0o644.into()).await.unwrap();
        let ino = made.inode.ino;
        one.tell(made);
        one.tell(one.lookup(Ino::ROOT, name).await.unwrap());
        remover.remove(ROOT, Ino::ROOT, name, false).await.unwrap();
        one.forget(ino, 1);
        assert_eq!(one.getattr(ino).await.unwrap().inode.nlink, 0);
        one.forget(ino, 1);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!is_left(&daemon, ino));
    }
}

#[tokio::test(start_paused = true)]
async fn opening_waits_for_a_removal_on_the_same_mount() {
    let daemon = Arc::new(Daemon::default());
    let fs = mount(&daemon).await;
    let ino = make(&fs, "gone", b"data").await;
    let kept = make(&fs, "kept", b"data").await;
    daemon.hold_batches.store(true, Ordering::SeqCst);
    let before = daemon.batches.load(Ordering::SeqCst);
    let spawn = |fs: &Arc<Fs>| {
        let fs = Arc::clone(fs);
        tokio::spawn(async move { fs.remove(ROOT, Ino::ROOT, b"gone", false).await })
    };
    let removing = spawn(&fs);
    while daemon.batches.load(Ordering::SeqCst) == before {
        sleep(Duration::from_millis(1)).await;
    }
    // The batch does not say that it is open: whoever opens it now must not be told that it is.
    let opening = tokio::spawn({
        let fs = Arc::clone(&fs);
        async move { fs.open_file(ROOT, ino, libc::O_RDONLY).await }
    });
    sleep(Duration::from_millis(10)).await;
    assert!(!opening.is_finished());
    assert_eq!(content(&fs, kept).await, b"data", "other files are not held up");
    daemon.hold_batches.store(false, Ordering::SeqCst);
    daemon.release_batches.notify_waiters();
    removing.await.unwrap().unwrap();
    assert_eq!(opening.await.unwrap().unwrap_err().kind(), ErrorKind::Stale);
}

#[tokio::test(start_paused = true)]
async fn what_was_removed_while_the_kernel_opens_it_is_stale() {
    let daemon = Arc::new(Daemon::default());
    let (one, two) = (mount(&daemon).await, mount(&daemon).await);
    let ino = make(&one, "gone", b"data").await;
    let directory =
        one.make(ROOT, Ino::ROOT, b"d", NewNode::Directory, 0o755.into()).await.unwrap().inode.ino;
    let open = one.open_file(ROOT, ino, libc::O_RDONLY).await.unwrap();
    assert_eq!(one.lookup(Ino::ROOT, b"gone").await.unwrap().inode.ino, ino);
    two.remove(ROOT, Ino::ROOT, b"gone", false).await.unwrap();
    two.remove(ROOT, Ino::ROOT, b"d", true).await.unwrap();
    // Who had it open goes on, and may open it again through that.
    assert_eq!(one.read(open, 0, 10).await.unwrap(), &b"data"[..]);
    let again = one.open_file(ROOT, ino, libc::O_RDONLY).await.unwrap();
    one.release(open).await;
    assert_eq!(one.read(again, 0, 10).await.unwrap(), &b"data"[..]);
    one.release(again).await;
    assert_eq!(one.open_file(ROOT, ino, libc::O_RDONLY).await.unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(one.open_directory(directory, 0).await.unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(one.lookup(Ino::ROOT, b"gone").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!is_left(&daemon, ino), "nothing holds it any more");
}

/// As when `rename` replaces a file again and again, which never leaves it without a name.
#[tokio::test(start_paused = true)]
async fn what_is_replaced_while_the_kernel_opens_it_can_be_opened_when_that_has_looked_again() {
    let daemon = Arc::new(Daemon::default());
    let (one, two) = (mount(&daemon).await, mount(&daemon).await);
    let replace = async |text: &[u8]| {
        make(&two, "new", text).await;
        let to = (Ino::ROOT, &b"name"[..]);
        two.rename(ROOT, (Ino::ROOT, b"new"), to, RenameMode::Replace).await.unwrap();
    };
    replace(b"first").await;
    let first = one.lookup(Ino::ROOT, b"name").await.unwrap().inode.ino;
    replace(b"second").await;
    assert_eq!(one.open_file(ROOT, first, libc::O_RDONLY).await.unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(one.getattr(first).await.unwrap_err().kind(), ErrorKind::Stale);
    let second = one.lookup(Ino::ROOT, b"name").await.unwrap().inode.ino;
    replace(b"third").await;
    let handle = one.open_file(ROOT, second, libc::O_RDONLY).await.unwrap();
    assert_eq!(one.read(handle, 0, 10).await.unwrap(), &b"second"[..]);
    one.release(handle).await;
    sleep(Duration::from_secs(6)).await;
    assert!(!is_left(&daemon, second), "nothing holds it any more");
    // Who has not met this holds nothing.
    let third = one.lookup(Ino::ROOT, b"name").await.unwrap().inode.ino;
    replace(b"fourth").await;
    assert!(!is_left(&daemon, third));
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_was_removed_is_there_as_long_as_the_kernel_knows_it() {
    let daemon = Arc::new(Daemon::default());
    let one = mount(&daemon).await;
    let made = one.make(ROOT, Ino::ROOT, b"d", NewNode::Directory, 0o755.into()).await.unwrap();
    let ino = made.inode.ino;
    one.tell(made);
    one.remove(ROOT, Ino::ROOT, b"d", true).await.unwrap();
    assert!(!is_left(&daemon, ino));
    one.session.cache.reset();
    assert_eq!(one.getattr(ino).await.unwrap().inode.nlink, 0);
    let handle = one.open_directory(ino, libc::O_RDONLY).await.unwrap();
    one.release_directory(handle).await;
    assert_eq!(one.lookup(ino, b"x").await.unwrap_err().kind(), ErrorKind::NotFound);
    one.forget(ino, 1);
    assert_eq!(one.getattr(ino).await.unwrap_err().kind(), ErrorKind::Stale);
}
