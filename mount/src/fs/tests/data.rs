//! The data of files: appends, copies, holes, large writes, and what could not be stored.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tandemfs::id::Ino;
use tandemfs::tree::CHUNK_SIZE;
use tandemfs::{Error, ErrorKind};

use super::fake::Daemon;
use super::{APPEND, ROOT, content, make, mount, mount_with};
use crate::fs::Options;
use crate::fs::data::How;

#[tokio::test(start_paused = true)]
async fn appends_of_two_mounts_do_not_overwrite_one_another() {
    let daemon = Arc::new(Daemon::default());
    let (one, two) = (mount(&daemon).await, mount(&daemon).await);
    let ino = make(&one, "log", b"").await;
    // Both have become appenders by fcntl(2).
    let flags = libc::O_WRONLY;
    let handles =
        [one.open_file(ROOT, ino, flags).await.unwrap(), two.open_file(ROOT, ino, flags).await.unwrap()];
    for round in 0..4 {
        for (fs, handle) in [&one, &two].into_iter().zip(handles) {
            // The kernel's idea of the size is not to be trusted.
            let written = fs.write(handle, 0, b"line\n", APPEND).await.unwrap();
            assert_eq!(written.moved, round > 0 || handle == handles[1] && Arc::ptr_eq(fs, &two));
            fs.flush(handle).await.unwrap();
        }
    }
    assert_eq!(content(&one, ino).await, b"line\n".repeat(8));
}

#[tokio::test(start_paused = true)]
async fn appends_of_two_mounts_lie_in_the_order_in_which_they_were_written() {
    let daemon = Arc::new(Daemon::default());
    let (one, two) = (mount(&daemon).await, mount(&daemon).await);
    let ino = make(&one, "log", b"head\n").await;
    let flags = libc::O_RDWR | libc::O_APPEND;
    let handles =
        [one.open_file(ROOT, ino, flags).await.unwrap(), two.open_file(ROOT, ino, flags).await.unwrap()];
    for _ in 0..3 {
        one.write(handles[0], 0, b"of one\n", APPEND).await.unwrap();
        two.write(handles[1], 0, b"of two\n", APPEND).await.unwrap();
    }
    assert_eq!(one.getattr(ino).await.unwrap().inode.size, 5 + 6 * 7);
    let all = [&b"head\n"[..], &b"of one\nof two\n".repeat(3)].concat();
    assert_eq!(one.read(handles[0], 0, 1000).await.unwrap(), all);
    assert_eq!(content(&two, ino).await, all);
    // What is written elsewhere keeps its place.
    let (body, tail) = (two.open_file(ROOT, ino, libc::O_RDWR).await.unwrap(), handles[1]);
    two.write(tail, 0, b"end\n", APPEND).await.unwrap();
    two.write(body, 0, b"HEAD", How::default()).await.unwrap();
    two.write(tail, 0, b"END\n", APPEND).await.unwrap();
    two.fsync(tail).await.unwrap();
    let content = content(&one, ino).await;
    assert!(content.starts_with(b"HEAD\n") && content.ends_with(b"of two\nend\nEND\n"));
}

#[tokio::test(start_paused = true)]
async fn a_copied_range_is_what_was_written_and_stays_so() {
    let daemon = Arc::new(Daemon::default());
    let (one, two) = (mount(&daemon).await, mount(&daemon).await);
    let (from, source) = one.create(ROOT, Ino::ROOT, b"from", 0o644.into(), 0).await.unwrap();
    let (to, target) = one.create(ROOT, Ino::ROOT, b"to", 0o644.into(), 0).await.unwrap();
    let end = CHUNK_SIZE - 2;
    one.write(source, end, b"0123456789", How::default()).await.unwrap();
    one.write(target, 0, b"abc", How::default()).await.unwrap();
    let copy = |from_offset, offset| one.copy_range(ROOT, (source, from_offset), (target, offset), 100);
    assert_eq!(copy(end + 1, 2).await.unwrap(), 9, "only what there is");
    assert_eq!(copy(end + 10, 0).await.unwrap(), 0);
    assert_eq!(content(&two, to.inode.ino).await, b"ab123456789");
    one.write(target, 3, b"!", How::default()).await.unwrap();
    one.fsync(target).await.unwrap();
    assert_eq!(content(&two, to.inode.ino).await, b"ab1!3456789");
    assert!(content(&two, from.inode.ino).await.ends_with(b"\x000123456789"));
    assert_eq!(one.copy_range(ROOT, (source, 0), (source, end), 100).await.unwrap(), 100, "within a file");
    assert_eq!(two.getattr(from.inode.ino).await.unwrap().inode.size, end + 100);
}

#[tokio::test(start_paused = true)]
async fn holes_are_found() {
    let daemon = Arc::new(Daemon::default());
    let fs = mount(&daemon).await;
    let (_, handle) = fs.create(ROOT, Ino::ROOT, b"a", 0o644.into(), 0).await.unwrap();
    fs.write(handle, CHUNK_SIZE + 10, b"data", How::default()).await.unwrap();
    assert_eq!(fs.seek(handle, 0, false).await.unwrap(), CHUNK_SIZE + 10);
    assert_eq!(fs.seek(handle, 0, true).await.unwrap(), 0);
    assert_eq!(fs.seek(handle, CHUNK_SIZE + 11, true).await.unwrap(), CHUNK_SIZE + 14);
    let past = |result: Result<u64, Error>| result.unwrap_err().kind() == ErrorKind::OutOfRange;
    assert!(past(fs.seek(handle, CHUNK_SIZE + 14, false).await));
    fs.allocate(ROOT, handle, 0, 3 * CHUNK_SIZE, 0).await.unwrap();
    assert_eq!(fs.seek(handle, CHUNK_SIZE + 11, true).await.unwrap(), CHUNK_SIZE + 14);
    assert!(past(fs.seek(handle, CHUNK_SIZE + 14, false).await));
    let error = fs.allocate(ROOT, handle, 0, 1, libc::FALLOC_FL_INSERT_RANGE).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Unsupported);
    fs.write(handle, 5, b"later", How::default()).await.unwrap();
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    fs.allocate(ROOT, handle, 6, 2 * CHUNK_SIZE, punch).await.unwrap();
    assert_eq!(fs.seek(handle, 0, false).await.unwrap(), 5, "what was written before is there");
    assert_eq!(fs.seek(handle, 5, true).await.unwrap(), 6);
    assert!(past(fs.seek(handle, 6, false).await));
    fs.allocate(ROOT, handle, 0, 4 * CHUNK_SIZE, libc::FALLOC_FL_ZERO_RANGE).await.unwrap();
    assert!(past(fs.seek(handle, 0, false).await));
    assert_eq!(fs.seek(handle, 0, true).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_large_write_stays_within_its_memory() {
    let daemon = Arc::new(Daemon::default());
    let (fs, _) = mount_with(&daemon, Options { memory: 32 << 20, ..Options::default() }).await;
    let (stat, handle) = fs.create(ROOT, Ino::ROOT, b"big", 0o644.into(), 0).await.unwrap();
    let piece = vec![9; 1 << 20];
    for at in 0..80 {
        fs.write(handle, at << 20, &piece, How::default()).await.unwrap();
    }
    fs.fsync(handle).await.unwrap();
    fs.release(handle).await;
    let size = stat.inode.ino;
    let other = mount(&daemon).await;
    assert_eq!(other.getattr(size).await.unwrap().inode.size, 80 << 20);
    let handle = other.open_file(ROOT, size, libc::O_RDONLY).await.unwrap();
    for at in 0..80 {
        assert!(other.read(handle, at << 20, 1 << 20).await.unwrap() == piece);
    }
    assert_eq!(other.read(handle, 80 << 20, 10).await.unwrap(), &b""[..]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_upload_is_reported_once_to_each_handle() {
    let daemon = Arc::new(Daemon::default());
    let fs = mount(&daemon).await;
    let ino = make(&fs, "a", b"kept").await;
    let one = fs.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
    let two = fs.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
    daemon.full.store(true, Ordering::SeqCst);
    fs.write(one, 0, b"lost", How::default()).await.unwrap();
    assert_eq!(fs.fsync(one).await.unwrap_err().kind(), ErrorKind::NoSpace);
    fs.fsync(one).await.unwrap();
    // The close of a copy of the descriptor, as in a child process, does not take the failure from who syncs.
    for _ in 0..2 {
        assert_eq!(fs.flush(two).await.unwrap_err().kind(), ErrorKind::NoSpace);
    }
    assert_eq!(fs.fsync(two).await.unwrap_err().kind(), ErrorKind::NoSpace);
    fs.flush(two).await.unwrap();
    daemon.full.store(false, Ordering::SeqCst);
    assert_eq!(content(&fs, ino).await, b"kept");
    fs.write(two, 4, b" more", How::default()).await.unwrap();
    fs.fsync(two).await.unwrap();
    assert_eq!(content(&fs, ino).await, b"kept more");
}
