//! A mount that is killed: what it had answered is sent by the next one, or offered.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tandemfs::id::Ino;
use tandemfs::tree::{Key, NewNode, RenameMode};
use tempfile::TempDir;
use tokio::time::sleep;

use super::fake::Daemon;
use super::{ROOT, content, list, make, mount_with};
use crate::fs::data::How;
use crate::fs::{Fs, Options};

async fn leased(daemon: &Arc<Daemon>, cache: &TempDir) -> Arc<Fs> {
    let options =
        Options { lease: true, cache_directory: Some(cache.path().to_owned()), ..Options::default() };
    let fs = mount_with(daemon, options).await.0;
    tokio::spawn(Fs::offer_lost(Arc::downgrade(&fs)));
    sleep(Duration::from_millis(10)).await;
    fs
}

/// What a process does that is killed at the end: all that it was doing ends.
fn process<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(work)
}

fn logs(cache: &Path) -> usize {
    let queues = std::fs::read_dir(cache.join("queues")).into_iter().flatten();
    queues.map(|directory| std::fs::read_dir(directory.unwrap().path()).unwrap().count()).sum()
}

async fn content_of(fs: &Fs, name: &str) -> Vec<u8> {
    let ino = fs.lookup(Ino::ROOT, name.as_bytes()).await.unwrap().inode.ino;
    content(fs, ino).await
}

async fn work(fs: &Fs, from: usize, to: usize) {
    for number in from..to {
        make(fs, &format!("f{number}"), format!("hello {number}").as_bytes()).await;
        let (old, new) = (format!("f{number}"), format!("g{number}"));
        let (old, new) = ((Ino::ROOT, old.as_bytes()), (Ino::ROOT, new.as_bytes()));
        fs.rename(ROOT, old, new, RenameMode::Replace).await.unwrap();
    }
}

/// Files with numbers, as [`work`] leaves them.
async fn check(fs: &Fs, to: usize) {
    let mut names: Vec<_> = (0..to).map(|number| format!("g{number}")).collect();
    names.extend([".".into(), "..".into()]);
    names.sort();
    let mut listed = list(fs, Ino::ROOT, false).await;
    listed.sort();
    assert_eq!(listed, names);
    for number in 0..to {
        assert_eq!(content_of(fs, &format!("g{number}")).await, format!("hello {number}").as_bytes());
    }
}

#[test]
fn what_a_killed_mount_had_answered_is_sent_by_the_next() {
    let (daemon, cache) = (Arc::new(Daemon::default()), TempDir::new().unwrap());
    process(async {
        let fs = leased(&daemon, &cache).await;
        work(&fs, 0, 5).await;
        sleep(Duration::from_millis(200)).await;
        daemon.hold_batches.store(true, Ordering::SeqCst);
        work(&fs, 5, 20).await;
        // The first of them are on their way.
        sleep(Duration::from_millis(200)).await;
        work(&fs, 20, 30).await;
    });
    daemon.hold_batches.store(false, Ordering::SeqCst);
    assert!(
        daemon.keys().iter().filter(|key| matches!(key, Key::Entry(..))).count() < 20,
        "nothing was left"
    );
    process(async {
        let fs = leased(&daemon, &cache).await;
        check(&fs, 30).await;
        assert_eq!(logs(cache.path()), 1);
        fs.stop().await.unwrap();
    });
    assert_eq!((logs(cache.path()), daemon.sessions()), (0, 0));
}

#[test]
fn what_the_daemon_had_taken_already_is_not_done_twice() {
    let (daemon, cache) = (Arc::new(Daemon::default()), TempDir::new().unwrap());
    process(async {
        let fs = leased(&daemon, &cache).await;
        work(&fs, 0, 5).await;
        sleep(Duration::from_millis(200)).await;
        // Else whether a name is free would have to be asked.
        list(&fs, Ino::ROOT, false).await;
        // It is committed, and its answer is lost, as often as it is asked for.
        daemon.lose_every.store(1, Ordering::SeqCst);
        work(&fs, 5, 20).await;
        sleep(Duration::from_millis(200)).await;
        work(&fs, 20, 30).await;
    });
    daemon.lose_every.store(0, Ordering::SeqCst);
    let entries = daemon.keys().iter().filter(|key| matches!(key, Key::Entry(..))).count();
    assert!((6..30).contains(&entries), "{entries} names are there");
    process(async {
        let fs = leased(&daemon, &cache).await;
        check(&fs, 30).await;
        fs.stop().await.unwrap();
    });
    assert_eq!(logs(cache.path()), 0);
}

#[test]
fn where_the_volume_has_moved_on_it_is_offered() {
    let (daemon, cache) = (Arc::new(Daemon::default()), TempDir::new().unwrap());
    process(async {
        let fs = leased(&daemon, &cache).await;
        make(&fs, "old", b"what was there").await;
        fs.make(ROOT, Ino::ROOT, b"d", NewNode::Directory, 0o755.into()).await.unwrap();
        sleep(Duration::from_millis(200)).await;
        daemon.hold_batches.store(true, Ordering::SeqCst);
        let ino = fs.lookup(Ino::ROOT, b"old").await.unwrap().inode.ino;
        let handle = fs.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
        fs.write(handle, 5, b"IS", How::default()).await.unwrap();
        fs.flush(handle).await.unwrap();
        make(&fs, "new", b"new").await;
        let d = fs.lookup(Ino::ROOT, b"d").await.unwrap().inode.ino;
        fs.rename(ROOT, (Ino::ROOT, b"new"), (d, b"newer"), RenameMode::Replace).await.unwrap();
    });
    daemon.hold_batches.store(false, Ordering::SeqCst);
    daemon.fence_all();
    process(async {
        let fs = leased(&daemon, &cache).await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(content_of(&fs, "old").await, b"what was there");
        let names = list(&fs, Ino::ROOT, false).await;
        let offered = names.iter().find(|name| name.starts_with("recovered-")).expect("it is offered");
        let offered = fs.lookup(Ino::ROOT, offered.as_bytes()).await.unwrap().inode.ino;
        for (path, expected) in [("old", "what ISs there"), ("d/newer", "new")] {
            let mut ino = offered;
            for name in path.split('/') {
                ino = fs.lookup(ino, name.as_bytes()).await.unwrap().inode.ino;
            }
            assert_eq!(content(&fs, ino).await, expected.as_bytes());
        }
        let list = fs.lookup(offered, b"CHANGES.txt").await.unwrap().inode.ino;
        let list = String::from_utf8(content(&fs, list).await).unwrap();
        assert!(list.contains("made: /d/newer\n") && list.contains("renamed: /new to /d/newer\n"), "{list}");
        fs.stop().await.unwrap();
    });
    assert_eq!(logs(cache.path()), 0);
}

#[test]
fn a_mount_that_lives_keeps_its_log() {
    let (daemon, cache) = (Arc::new(Daemon::default()), TempDir::new().unwrap());
    process(async {
        let fs = leased(&daemon, &cache).await;
        work(&fs, 0, 2).await;
        let other = leased(&daemon, &cache).await;
        assert_eq!(logs(cache.path()), 2);
        check(&other, 2).await;
        work(&fs, 2, 4).await;
        check(&other, 4).await;
        other.stop().await.unwrap();
        fs.stop().await.unwrap();
    });
    assert_eq!(logs(cache.path()), 0);
}
