//! Single behaviours, each by name.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tandemfs::clock::Time;
use tandemfs::id::Ino;
use tandemfs::tree::{CHUNK_SIZE, Credentials, Key, NewNode, Record, RenameMode, XattrMode};
use tandemfs::{Error, ErrorKind};
use tokio::time::{Instant, sleep};

use super::fake::{Daemon, LEASE_MS};
use super::{APPEND, ROOT, list, mount, mount_with};
use crate::fs::data::How;
use crate::fs::ids::{Ids, Squash};
use crate::fs::{Fs, Options, Set, SetTime};

pub(super) async fn make(fs: &Fs, name: &str, data: &[u8]) -> Ino {
    let (stat, handle) =
        fs.create(ROOT, Ino::ROOT, name.as_bytes(), 0o644.into(), libc::O_EXCL).await.unwrap();
    fs.write(handle, 0, data, How::default()).await.unwrap();
    fs.flush(handle).await.unwrap();
    fs.release(handle).await;
    stat.inode.ino
}

pub(super) async fn content(fs: &Fs, ino: Ino) -> Vec<u8> {
    let handle = fs.open_file(ROOT, ino, libc::O_RDONLY).await.unwrap();
    let data = fs.read(handle, 0, 1 << 24).await.unwrap();
    fs.release(handle).await;
    data.to_vec()
}

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
    daemon.hold_reads.store(true, Ordering::SeqCst);
    let asking = tokio::spawn({
        let one = Arc::clone(&one);
        async move { one.getattr(ino).await }
    });
    while daemon.reads_held.load(Ordering::SeqCst) == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    daemon.hold_reads.store(false, Ordering::SeqCst);
    let chmod = Set { mode: Some(0o600), ..Set::default() };
    two.setattr(ROOT, ino, chmod).await.unwrap();
    assert!(
        kernel.attributes.lock().unwrap().contains(&ino),
        "the kernel was told before the author was answered"
    );
    assert!(kernel.names.load(Ordering::SeqCst) > 0);
    daemon.release_reads.notify_waiters();
    asking.await.unwrap().unwrap();
    assert_eq!(one.getattr(ino).await.unwrap().inode.mode, 0o600);
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
    assert!(!daemon.keys().contains(&Key::Inode(ino)), "nothing holds it any more");
}

#[tokio::test(start_paused = true)]
async fn who_is_told_that_a_name_is_taken_finds_it() {
    let daemon = Arc::new(Daemon::default());
    let (one, two) = (mount(&daemon).await, mount(&daemon).await);
    // Both have inode numbers to give away, and one knows that there is no such file.
    make(&one, "one", b"").await;
    make(&two, "two", b"").await;
    assert_eq!(one.lookup(Ino::ROOT, b"new").await.unwrap_err().kind(), ErrorKind::NotFound);
    let theirs = two.create(ROOT, Ino::ROOT, b"new", 0o644.into(), 0);
    // In one go, so that the event of their creation cannot come in between.
    let ours = async {
        let made = one.create(ROOT, Ino::ROOT, b"new", 0o644.into(), 0).await;
        assert_eq!(made.unwrap_err().kind(), ErrorKind::Stale, "the kernel is to look again");
        one.lookup(Ino::ROOT, b"new").await
    };
    let (theirs, ours) = futures::join!(theirs, ours);
    assert_eq!(ours.unwrap().inode.ino, theirs.unwrap().0.inode.ino);
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
    assert_eq!(kernel.misses.load(Ordering::SeqCst), 1);
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
    assert_eq!(fs.flush(two).await.unwrap_err().kind(), ErrorKind::NoSpace);
    fs.flush(two).await.unwrap();
    daemon.full.store(false, Ordering::SeqCst);
    assert_eq!(content(&fs, ino).await, b"kept");
    fs.write(two, 4, b" more", How::default()).await.unwrap();
    fs.fsync(two).await.unwrap();
    assert_eq!(content(&fs, ino).await, b"kept more");
}

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
async fn a_new_run_of_the_daemon_drops_what_is_cached() {
    let daemon = Arc::new(Daemon::default());
    let (fs, kernel) = mount_with(&daemon, Options::default()).await;
    let ino = make(&fs, "a", b"data").await;
    fs.tell(fs.getattr(ino).await.unwrap());
    daemon.restart();
    sleep(Duration::from_secs(2)).await;
    assert!(kernel.pages.lock().unwrap().contains(&ino));
    assert!(fs.session.cache.get(&Key::Inode(ino)).is_none());
    assert_eq!(content(&fs, ino).await, b"data");
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

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_while_numbers_are_asked_for_is_replaced() {
    let daemon = Arc::new(Daemon::default());
    let fs = mount(&daemon).await;
    daemon.fence_all();
    let start = Instant::now();
    make(&fs, "new", b"x").await;
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn times_set_after_writing_stay() {
    let daemon = Arc::new(Daemon::default());
    let fs = mount(&daemon).await;
    let (stat, handle) = fs.create(ROOT, Ino::ROOT, b"a", 0o644.into(), 0).await.unwrap();
    fs.write(handle, 0, b"data", How::default()).await.unwrap();
    let batches = daemon.batches.load(Ordering::SeqCst);
    let time = Time { seconds: 5, nanos: 7 };
    let set = Set { mtime: Some(SetTime::At(time)), ..Set::default() };
    fs.setattr(ROOT, stat.inode.ino, set).await.unwrap();
    fs.flush(handle).await.unwrap();
    assert_eq!(daemon.batches.load(Ordering::SeqCst), batches + 1, "data and times in one batch");
    match daemon.record(&Key::Inode(stat.inode.ino)) {
        Some(Record::Inode(inode)) => assert_eq!((inode.mtime, inode.size), (time, 4)),
        other => panic!("{other:?}"),
    }
}

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
async fn a_large_directory_is_not_kept_and_can_be_gone_back_in() {
    let daemon = Arc::new(Daemon::default());
    let fs = mount(&daemon).await;
    let made: Vec<Vec<u8>> = (0..200).map(|number| format!("f{number:03}").into_bytes()).collect();
    for name in &made {
        fs.make(ROOT, Ino::ROOT, name, NewNode::File, 0o644.into()).await.unwrap();
    }
    let handle = fs.open_directory(Ino::ROOT, 0).await.unwrap();
    let directory = fs.directory(handle).unwrap();
    let mut offsets = vec![0];
    for from in [0, 150, 3, 77, 76, 201, 40] {
        let mut names = Vec::new();
        let mut offset = *offsets.get(from).unwrap();
        loop {
            let page = fs.read_directory(&directory, offset, from % 2 == 0, 10).await.unwrap();
            let Some(last) = page.last() else { break };
            offset = last.next;
            if from == 0 {
                offsets.extend(page.iter().map(|entry| entry.next));
            }
            names.extend(page.into_iter().map(|entry| entry.name));
        }
        let all: Vec<Vec<u8>> = [b".".to_vec(), b"..".to_vec()].into_iter().chain(made.clone()).collect();
        assert_eq!(names, all[from..], "from {from}");
    }
    fs.release_directory(handle).await;
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
async fn attributes_with_names_and_values() {
    let daemon = Arc::new(Daemon::default());
    let (one, two) = (mount(&daemon).await, mount(&daemon).await);
    let ino = make(&one, "a", b"").await;
    one.set_xattr(ROOT, ino, b"user.x", b"1", XattrMode::Create).await.unwrap();
    assert_eq!(two.get_xattr(ino, b"user.x").await.unwrap(), b"1");
    one.set_xattr(ROOT, ino, b"user.x", b"2", XattrMode::Replace).await.unwrap();
    assert_eq!(two.get_xattr(ino, b"user.x").await.unwrap(), b"2");
    assert_eq!(two.list_xattrs(ROOT, ino).await.unwrap(), b"user.x\0");
    two.remove_xattr(ino, b"user.x").await.unwrap();
    assert_eq!(one.get_xattr(ino, b"user.x").await.unwrap_err().kind(), ErrorKind::NoAttribute);
    for (name, kind) in
        [(&b"system.posix_acl_access"[..], ErrorKind::NoAttribute), (b"system.x", ErrorKind::Unsupported)]
    {
        assert_eq!(one.get_xattr(ino, name).await.unwrap_err().kind(), kind);
    }
    one.set_xattr(ROOT, ino, b"trusted.x", b"", XattrMode::Set).await.unwrap();
    let somebody = Credentials { uid: 5, gid: 5 };
    assert_eq!(one.list_xattrs(ROOT, ino).await.unwrap(), b"trusted.x\0");
    assert_eq!(one.list_xattrs(somebody, ino).await.unwrap(), b"");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_changed_through_a_read_only_mount() {
    let daemon = Arc::new(Daemon::default());
    let ino = make(&*mount(&daemon).await, "a", b"data").await;
    let (fs, _) = mount_with(&daemon, Options { read_only: true, ..Options::default() }).await;
    assert_eq!(content(&fs, ino).await, b"data");
    let refused = [
        fs.open_file(ROOT, ino, libc::O_RDWR).await.map(drop),
        fs.setattr(ROOT, ino, Set { mode: Some(0), ..Set::default() }).await.map(drop),
        fs.remove(ROOT, Ino::ROOT, b"a", false).await,
        fs.set_xattr(ROOT, ino, b"user.x", b"", XattrMode::Set).await,
    ];
    for result in refused {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::ReadOnly);
    }
    let room = fs.room().await.unwrap();
    assert_eq!((room.total, room.free, room.inodes, room.inodes_free), (3, 2, 3, 2));
}

#[tokio::test(start_paused = true)]
async fn owners_are_stored_in_the_volumes_numbers_and_shown_in_the_machines() {
    let daemon = Arc::new(Daemon::default());
    let mut ids = Ids { squash: Squash::Root, anonymous_user: 77, anonymous_group: 78, ..Ids::default() };
    ids.users.add("1000:5000").unwrap();
    ids.groups.add("100:6000").unwrap();
    let (here, _) = mount_with(&daemon, Options { ids, ..Options::default() }).await;
    let there = mount(&daemon).await;
    let owner = async |fs: &Fs, ino: Ino| {
        let inode = fs.getattr(ino).await.unwrap().inode;
        (inode.uid, inode.gid)
    };
    let user = Credentials { uid: 1000, gid: 100 };
    let made = here.make(user, Ino::ROOT, b"d", NewNode::Directory, 0o1777.into()).await.unwrap().inode;
    assert_eq!((made.uid, made.gid), (1000, 100));
    assert_eq!(owner(&there, made.ino).await, (5000, 6000));
    let by_root = here.make(ROOT, made.ino, b"r", NewNode::File, 0o644.into()).await.unwrap().inode;
    assert_eq!(((by_root.uid, by_root.gid), owner(&there, by_root.ino).await), ((77, 78), (77, 78)));

    let chown = |uid, gid| Set { uid, gid, ..Set::default() };
    here.setattr(ROOT, by_root.ino, chown(Some(1000), Some(7))).await.unwrap();
    assert_eq!((owner(&here, by_root.ino).await, owner(&there, by_root.ino).await), ((1000, 7), (5000, 7)));
    for refused in [chown(Some(0), None), chown(Some(5000), None), chown(None, Some(6000))] {
        let error = here.setattr(ROOT, by_root.ino, refused).await.unwrap_err();
        assert_eq!(error.errno(), libc::EPERM, "{refused:?}");
    }
    // A squashed root is not root in a sticky directory; the one to whom things belong is known by the other number.
    there.setattr(ROOT, by_root.ino, chown(Some(1), None)).await.unwrap();
    there.setattr(ROOT, made.ino, chown(Some(1), None)).await.unwrap();
    assert_eq!(here.remove(ROOT, made.ino, b"r", false).await.unwrap_err().errno(), libc::EPERM);
    there.setattr(ROOT, by_root.ino, chown(Some(5000), None)).await.unwrap();
    here.rename(user, (made.ino, b"r"), (made.ino, b"s"), RenameMode::NoReplace).await.unwrap();
    here.remove(user, made.ino, b"s", false).await.unwrap();
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
    sleep(Duration::from_secs(2)).await;
    assert!(!daemon.keys().contains(&Key::Inode(second)), "nothing holds it any more");
    // Who has not met this holds nothing.
    let third = one.lookup(Ino::ROOT, b"name").await.unwrap().inode.ino;
    replace(b"fourth").await;
    assert!(!daemon.keys().contains(&Key::Inode(third)));
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
