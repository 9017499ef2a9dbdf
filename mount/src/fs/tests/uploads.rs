//! Data that is uploaded after its file was closed, under the lease.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tandemfs::ErrorKind;
use tandemfs::id::Ino;
use tandemfs::tree::{Key, Record};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::fake::Daemon;
use super::{ROOT, content, list, make, mount, mount_with};
use crate::fs::data::How;
use crate::fs::{Fs, Options, Set};

/// Longer than anything waits to be sent.
const SENT: Duration = Duration::from_millis(200);
/// More than comes with a batch.
const LARGE: usize = 100 << 10;

async fn leased_with(daemon: &Arc<Daemon>, cache: Option<&TempDir>, memory: usize) -> Arc<Fs> {
    let cache_directory = cache.map(|cache| cache.path().to_owned());
    let options = Options { lease: true, cache_directory, memory, ..Options::default() };
    let fs = mount_with(daemon, options).await.0;
    tokio::spawn(Fs::offer_lost(Arc::downgrade(&fs)));
    sleep(Duration::from_millis(10)).await;
    assert!(daemon.lease().is_some());
    fs
}

async fn leased(daemon: &Arc<Daemon>) -> Arc<Fs> {
    leased_with(daemon, None, 96 << 20).await
}

fn hold(daemon: &Daemon, held: bool) {
    daemon.hold_blocks.store(held, Ordering::SeqCst);
    if !held {
        daemon.release_blocks.notify_waiters();
    }
}

fn too_early(daemon: &Daemon) -> u64 {
    daemon.too_early.load(Ordering::SeqCst)
}

fn is_committed(daemon: &Daemon, ino: Ino, size: usize) -> bool {
    matches!(daemon.record(&Key::Inode(ino)), Some(Record::Inode(inode)) if inode.size == size as u64)
}

async fn content_of(fs: &Fs, name: &str) -> Vec<u8> {
    let ino = fs.lookup(Ino::ROOT, name.as_bytes()).await.unwrap().inode.ino;
    content(fs, ino).await
}

#[tokio::test(start_paused = true)]
async fn close_does_not_wait_for_an_upload_and_fsync_does() {
    let daemon = Arc::new(Daemon::default());
    let fs = leased(&daemon).await;
    hold(&daemon, true);
    let data = vec![5; LARGE];
    let ino = timeout(SENT, make(&fs, "f", &data)).await.expect("close does not wait");
    assert!(content(&fs, ino).await == data);
    assert_eq!(fs.getattr(ino).await.unwrap().inode.size, LARGE as u64);
    sleep(SENT).await;
    assert!(!is_committed(&daemon, ino, LARGE));
    let handle = fs.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
    assert!(timeout(SENT, fs.fsync(handle)).await.is_err(), "fsync waits");
    hold(&daemon, false);
    timeout(SENT, fs.fsync(handle)).await.unwrap().unwrap();
    assert!(is_committed(&daemon, ino, LARGE));
    assert!(content(&fs, ino).await == data);
    fs.release(handle).await;
    assert_eq!((too_early(&daemon), daemon.stored.load(Ordering::SeqCst)), (0, 1));
    fs.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn fsync_does_not_wait_for_what_was_closed_later() {
    let daemon = Arc::new(Daemon::default());
    let fs = leased(&daemon).await;
    let (stat, handle) = fs.create(ROOT, Ino::ROOT, b"first", 0o644.into(), 0).await.unwrap();
    fs.write(handle, 0, b"small", How::default()).await.unwrap();
    fs.flush(handle).await.unwrap();
    hold(&daemon, true);
    let later = make(&fs, "later", &vec![5; LARGE]).await;
    timeout(SENT, fs.fsync(handle)).await.expect("it does not wait").unwrap();
    assert!(is_committed(&daemon, stat.inode.ino, 5) && !is_committed(&daemon, later, LARGE));
    hold(&daemon, false);
    fs.release(handle).await;
    fs.stop().await.unwrap();
    assert!(is_committed(&daemon, later, LARGE));
    assert_eq!(too_early(&daemon), 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_program_syncs_is_not_uploaded_twice_nor_in_turn() {
    let daemon = Arc::new(Daemon::default());
    let fs = leased(&daemon).await;
    daemon.slow_blocks.store(100, Ordering::SeqCst);
    for number in 0..8 {
        make(&fs, &format!("f{number}"), &vec![number; LARGE]).await;
    }
    let (_, handle) = fs.create(ROOT, Ino::ROOT, b"synced", 0o644.into(), 0).await.unwrap();
    fs.write(handle, 0, &vec![9; LARGE], How::default()).await.unwrap();
    // Eight are uploaded at once, and this one beside them.
    timeout(Duration::from_millis(150), fs.fsync(handle)).await.expect("they go in parallel").unwrap();
    assert_eq!((daemon.stored.load(Ordering::SeqCst), too_early(&daemon)), (9, 0));
    fs.release(handle).await;
    fs.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_second_mount_waits_for_what_is_being_uploaded() {
    let daemon = Arc::new(Daemon::default());
    let fs = leased(&daemon).await;
    daemon.slow_blocks.store(300, Ordering::SeqCst);
    let files: Vec<_> = (0..20_u8).map(|number| (format!("f{number}"), vec![number; LARGE])).collect();
    for (name, data) in &files {
        make(&fs, name, data).await;
    }
    let other = mount(&daemon).await;
    for (name, data) in &files {
        assert!(content_of(&other, name).await == *data);
    }
    assert_eq!((daemon.lease(), too_early(&daemon)), (None, 0));
    other.stop().await.unwrap();
    fs.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_changed_while_it_is_uploaded_is_what_it_was_made() {
    let daemon = Arc::new(Daemon::default());
    let fs = leased(&daemon).await;
    hold(&daemon, true);
    let ino = make(&fs, "f", &vec![1; LARGE]).await;
    let handle = fs.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
    fs.write(handle, 10, &vec![2; LARGE / 2], How::default()).await.unwrap();
    fs.flush(handle).await.unwrap();
    fs.setattr(ROOT, ino, Set { size: Some(LARGE as u64 - 5), ..Set::default() }).await.unwrap();
    fs.write(handle, 3, b"three", How::default()).await.unwrap();
    let (_, copy) = fs.create(ROOT, Ino::ROOT, b"copy", 0o644.into(), 0).await.unwrap();
    let mut expected = vec![1; LARGE - 5];
    expected[10..10 + LARGE / 2].fill(2);
    expected[3..8].copy_from_slice(b"three");
    let copied = fs.copy_range(ROOT, (handle, 0), (copy, 0), LARGE as u64).await.unwrap();
    assert_eq!(copied as usize, expected.len());
    assert!(content(&fs, ino).await == expected && content_of(&fs, "copy").await == expected);
    hold(&daemon, false);
    fs.release(handle).await;
    fs.release(copy).await;
    let other = mount(&daemon).await;
    assert!(content_of(&other, "f").await == expected && content_of(&other, "copy").await == expected);
    assert_eq!(too_early(&daemon), 0);
    other.stop().await.unwrap();
    fs.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_bounded_and_goes_on_when_there_is_room() {
    let daemon = Arc::new(Daemon::default());
    // A quarter of the half of it may wait: 8 MiB.
    let fs = leased_with(&daemon, None, 64 << 20).await;
    hold(&daemon, true);
    let closing = tokio::spawn({
        let fs = Arc::clone(&fs);
        async move {
            for number in 0..40_u8 {
                make(&fs, &format!("f{number}"), &vec![number; 1 << 20]).await;
            }
        }
    });
    sleep(Duration::from_secs(10)).await;
    let made = list(&fs, Ino::ROOT, false).await.len() - 2;
    assert_eq!(made, 9, "eight wait, and the ninth for room");
    // What needs no such room is not held up.
    timeout(SENT, fs.remove(ROOT, Ino::ROOT, b"f0", false)).await.unwrap().unwrap();
    hold(&daemon, false);
    timeout(Duration::from_secs(20), closing).await.expect("it goes on").unwrap();
    fs.stop().await.unwrap();
    let other = mount(&daemon).await;
    assert_eq!(list(&other, Ino::ROOT, false).await.len() - 2, 39);
    assert!(content_of(&other, "f39").await == vec![39; 1 << 20]);
    assert_eq!(too_early(&daemon), 0);
}

#[tokio::test(start_paused = true)]
async fn what_streams_is_uploaded_while_it_is_written() {
    let daemon = Arc::new(Daemon::default());
    let fs = leased(&daemon).await;
    hold(&daemon, true);
    let long = make(&fs, "short", &vec![1; 3 << 20]).await;
    let closing = tokio::spawn({
        let fs = Arc::clone(&fs);
        async move { make(&fs, "long", &vec![1; 9 << 20]).await }
    });
    sleep(SENT).await;
    assert!(!closing.is_finished(), "what is longer is waited for");
    hold(&daemon, false);
    closing.await.unwrap();
    assert_eq!(content(&fs, long).await.len(), 3 << 20);
    fs.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_no_node_has_room_for_is_offered_and_fsync_says_so() {
    let daemon = Arc::new(Daemon::default());
    let fs = leased(&daemon).await;
    make(&fs, "kept", &vec![1; LARGE]).await;
    sleep(SENT).await;
    daemon.full.store(true, Ordering::SeqCst);
    let data = vec![5; LARGE];
    let (_, handle) = fs.create(ROOT, Ino::ROOT, b"lost", 0o644.into(), libc::O_RDWR).await.unwrap();
    fs.write(handle, 0, &data, How::default()).await.unwrap();
    fs.flush(handle).await.unwrap();
    sleep(Duration::from_secs(14)).await;
    assert!(content_of(&fs, "lost").await == data, "it is being tried");
    let synced = timeout(Duration::from_secs(5), fs.fsync(handle)).await.expect("it is given up");
    assert_eq!(synced.unwrap_err().kind(), ErrorKind::NoSpace);
    fs.release(handle).await;
    // It is kept until there is room again.
    sleep(Duration::from_secs(60)).await;
    daemon.full.store(false, Ordering::SeqCst);
    sleep(Duration::from_secs(20)).await;
    assert!(content_of(&fs, "kept").await == vec![1; LARGE]);
    let names = list(&fs, Ino::ROOT, false).await;
    assert_eq!(names.iter().filter(|name| name.starts_with("recovered-")).count(), 1, "{names:?}");
    let offered = names.iter().find(|name| name.starts_with("recovered-")).unwrap();
    let offered = fs.lookup(Ino::ROOT, offered.as_bytes()).await.unwrap().inode.ino;
    let ino = fs.lookup(offered, b"lost").await.unwrap().inode.ino;
    assert!(content(&fs, ino).await == data);
    fs.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_block_that_was_collected_before_its_batch_came_is_stored_again() {
    let daemon = Arc::new(Daemon::default());
    let fs = leased(&daemon).await;
    daemon.hold_batches.store(true, Ordering::SeqCst);
    let data = vec![5; LARGE];
    let ino = make(&fs, "f", &data).await;
    sleep(SENT).await;
    assert_eq!(daemon.blocks(), 1);
    daemon.lose_blocks();
    daemon.hold_batches.store(false, Ordering::SeqCst);
    daemon.release_batches.notify_waiters();
    sleep(SENT).await;
    assert!(is_committed(&daemon, ino, LARGE));
    assert_eq!((too_early(&daemon), daemon.stored.load(Ordering::SeqCst)), (1, 2));
    assert!(content(&fs, ino).await == data);
    fs.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn uploads_go_on_when_a_daemon_is_back_and_end_with_the_session() {
    let daemon = Arc::new(Daemon::default());
    let fs = leased(&daemon).await;
    daemon.down.store(true, Ordering::SeqCst);
    let handles = {
        let mut handles = Vec::new();
        for name in [b"f0", b"f1"] {
            // The numbers of inodes were granted before.
            daemon.down.store(false, Ordering::SeqCst);
            let (stat, handle) = fs.create(ROOT, Ino::ROOT, name, 0o644.into(), 0).await.unwrap();
            daemon.down.store(true, Ordering::SeqCst);
            fs.write(handle, 0, &vec![3; LARGE], How::default()).await.unwrap();
            fs.flush(handle).await.unwrap();
            handles.push((stat.inode.ino, handle));
        }
        handles
    };
    sleep(Duration::from_secs(3)).await;
    daemon.down.store(false, Ordering::SeqCst);
    sleep(Duration::from_secs(3)).await;
    for (ino, _) in &handles {
        assert!(is_committed(&daemon, *ino, LARGE));
    }
    // The same data again, which is lost with the session, and is stored anew for who writes it after that.
    hold(&daemon, true);
    fs.write(handles[0].1, 0, &vec![8; LARGE], How::default()).await.unwrap();
    fs.flush(handles[0].1).await.unwrap();
    sleep(SENT).await;
    daemon.fence_all();
    hold(&daemon, false);
    sleep(Duration::from_secs(3)).await;
    assert!(fs.fsync(handles[0].1).await.is_err());
    let ino = timeout(Duration::from_secs(5), make(&fs, "new", &vec![8; LARGE])).await.unwrap();
    for (_, handle) in handles {
        fs.release(handle).await;
    }
    fs.stop().await.unwrap();
    assert!(is_committed(&daemon, ino, LARGE));
    assert_eq!(too_early(&daemon), 0);
}

/// What a process does that is killed at the end: all that it was doing ends.
fn process<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.unwrap().block_on(work)
}

#[test]
fn what_a_killed_mount_had_not_uploaded_is_uploaded_by_the_next() {
    let (daemon, cache) = (Arc::new(Daemon::default()), TempDir::new().unwrap());
    let data = |number: u8| vec![number; LARGE + usize::from(number)];
    process(async {
        let fs = leased_with(&daemon, Some(&cache), 96 << 20).await;
        // Some are uploaded and committed, some uploaded, some neither.
        for number in 0..12 {
            make(&fs, &format!("f{number}"), &data(number)).await;
            match number {
                3 => sleep(SENT).await,
                4 => daemon.hold_batches.store(true, Ordering::SeqCst),
                8 => {
                    sleep(SENT).await;
                    hold(&daemon, true);
                }
                _ => {}
            }
        }
        make(&fs, "same", &data(11)).await;
        make(&fs, "small", b"small").await;
        sleep(SENT).await;
    });
    assert!((5..12).contains(&daemon.blocks()), "{} blocks are there", daemon.blocks());
    daemon.hold_batches.store(false, Ordering::SeqCst);
    hold(&daemon, false);
    process(async {
        let fs = leased_with(&daemon, Some(&cache), 96 << 20).await;
        for number in 0..12 {
            assert!(content_of(&fs, &format!("f{number}")).await == data(number));
        }
        assert!(content_of(&fs, "same").await == data(11));
        assert_eq!(content_of(&fs, "small").await, b"small");
        assert!(list(&fs, Ino::ROOT, false).await.iter().all(|name| !name.starts_with("recovered")));
        fs.stop().await.unwrap();
    });
    assert_eq!((daemon.sessions(), too_early(&daemon)), (0, 0));
}

#[test]
fn what_a_killed_mount_had_not_uploaded_is_offered_where_the_volume_has_moved_on() {
    let (daemon, cache) = (Arc::new(Daemon::default()), TempDir::new().unwrap());
    process(async {
        let fs = leased_with(&daemon, Some(&cache), 96 << 20).await;
        hold(&daemon, true);
        make(&fs, "f", &vec![6; LARGE]).await;
    });
    hold(&daemon, false);
    daemon.fence_all();
    process(async {
        let fs = leased_with(&daemon, Some(&cache), 96 << 20).await;
        sleep(Duration::from_secs(1)).await;
        let names = list(&fs, Ino::ROOT, false).await;
        let offered = names.iter().find(|name| name.starts_with("recovered-")).expect("it is offered");
        let offered = fs.lookup(Ino::ROOT, offered.as_bytes()).await.unwrap().inode.ino;
        let ino = fs.lookup(offered, b"f").await.unwrap().inode.ino;
        assert!(content(&fs, ino).await == vec![6; LARGE]);
        fs.stop().await.unwrap();
    });
}
