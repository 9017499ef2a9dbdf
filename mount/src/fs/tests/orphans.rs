//! Inodes without a name that somebody still uses.

use std::sync::Arc;

use tandemfs::id::Ino;
use tandemfs::tree::{Key, NewNode};

use super::fake::Daemon;
use super::{ROOT, mount};
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
