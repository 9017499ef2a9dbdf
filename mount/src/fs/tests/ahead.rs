//! Reading ahead of who walks through a tree: it takes few requests, and shows nothing that is out of date.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tandemfs::id::Ino;
use tandemfs::tree::{NewNode, RenameMode};
use tokio::time::sleep;

use super::fake::Daemon;
use super::{ROOT, content, list, mount};
use crate::fs::Fs;
use crate::fs::data::How;

/// Directories and, in each, files; as many as the daemon in memory tells at once.
const COUNT: usize = 6;

fn text(directory: usize, file: usize) -> Vec<u8> {
    format!("file {file} in {directory}").into_bytes()
}

async fn write(fs: &Fs, directory: Ino, name: &str, data: &[u8]) -> Ino {
    let (stat, handle) =
        fs.create(ROOT, directory, name.as_bytes(), 0o644.into(), libc::O_EXCL).await.unwrap();
    fs.write(handle, 0, data, How::default()).await.unwrap();
    fs.flush(handle).await.unwrap();
    fs.release(handle).await;
    stat.inode.ino
}

/// A tree in a daemon, made by a mount that is still there; and another mount, which knows nothing of it.
async fn world() -> (Arc<Daemon>, Arc<Fs>, Arc<Fs>) {
    let daemon = Arc::new(Daemon::default());
    let author = mount(&daemon).await;
    for directory in 0..COUNT {
        let name = format!("d{directory}");
        let node = NewNode::Directory;
        let made = author.make(ROOT, Ino::ROOT, name.as_bytes(), node, 0o755.into()).await.unwrap();
        for file in 0..COUNT {
            write(&author, made.inode.ino, &format!("f{file}"), &text(directory, file)).await;
        }
    }
    let reader = mount(&daemon).await;
    (daemon, author, reader)
}

async fn find(fs: &Fs, parent: Ino, name: &str) -> Ino {
    let found = fs.lookup(parent, name.as_bytes()).await.unwrap().inode.ino;
    // What is read ahead comes while the program is busy.
    sleep(Duration::from_millis(1)).await;
    found
}

fn requests(daemon: &Daemon) -> u64 {
    daemon.reads.load(Ordering::SeqCst) + daemon.block_reads.load(Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn a_walk_through_directories_and_files_takes_few_requests() {
    let (daemon, _author, reader) = world().await;
    let before = requests(&daemon);
    list(&reader, Ino::ROOT, true).await;
    for directory in 0..COUNT {
        let ino = find(&reader, Ino::ROOT, &format!("d{directory}")).await;
        assert_eq!(list(&reader, ino, true).await.len(), COUNT + 2);
        for file in 0..COUNT {
            let name = format!("f{file}");
            assert_eq!(content(&reader, find(&reader, ino, &name).await).await, text(directory, file));
        }
    }
    // One by one: a listing for each directory, and what it consists of and a block for each file.
    let one_by_one = (COUNT + 2 * COUNT * COUNT) as u64;
    let taken = requests(&daemon) - before;
    assert!(taken < one_by_one / 2, "{taken} instead of {one_by_one}");
}

#[tokio::test(start_paused = true)]
async fn names_that_are_looked_up_one_by_one_take_few_requests() {
    let (daemon, _author, reader) = world().await;
    let before = requests(&daemon);
    for directory in 0..COUNT {
        let ino = find(&reader, Ino::ROOT, &format!("d{directory}")).await;
        for file in 0..COUNT {
            find(&reader, ino, &format!("f{file}")).await;
        }
        assert!(reader.lookup(ino, b"no such").await.is_err());
    }
    let taken = requests(&daemon) - before;
    let one_by_one = (COUNT * (COUNT + 2)) as u64;
    assert!(taken < one_by_one / 2, "{taken} instead of {one_by_one}");
}

#[tokio::test(start_paused = true)]
async fn who_renames_all_files_of_a_directory_reads_it_once() {
    const FILES: usize = 8 * COUNT;
    let daemon = Arc::new(Daemon::default());
    let author = mount(&daemon).await;
    for file in 0..FILES {
        write(&author, Ino::ROOT, &format!("f{file}"), b"text").await;
    }
    let fs = mount(&daemon).await;
    let before = requests(&daemon);
    for file in 0..FILES {
        let (old, new) = (format!("f{file}"), format!("f{file}r"));
        find(&fs, Ino::ROOT, &old).await;
        assert!(fs.lookup(Ino::ROOT, new.as_bytes()).await.is_err());
        let names = ((Ino::ROOT, old.as_bytes()), (Ino::ROOT, new.as_bytes()));
        fs.rename(ROOT, names.0, names.1, RenameMode::Replace).await.unwrap();
    }
    let taken = requests(&daemon) - before;
    assert!(taken < FILES as u64 / 2, "{taken} for {FILES} files");
    assert_eq!(list(&fs, Ino::ROOT, true).await, list(&author, Ino::ROOT, true).await);
}

#[tokio::test(start_paused = true)]
async fn what_was_read_ahead_is_not_shown_when_it_has_changed() {
    let (_daemon, author, reader) = world().await;
    list(&reader, Ino::ROOT, true).await;
    for directory in 0..COUNT {
        let ino = find(&reader, Ino::ROOT, &format!("d{directory}")).await;
        let mut expected: Vec<_> = (0..COUNT).map(|file| format!("f{file}")).collect();
        if directory > 2 {
            // It has been read ahead by now, files and all, or is just coming.
            write(&author, ino, "g", b"new").await;
            author.remove(ROOT, ino, b"f0", false).await.unwrap();
            let changed = find(&author, ino, "f3").await;
            let handle = author.open_file(ROOT, changed, libc::O_WRONLY).await.unwrap();
            author.write(handle, 0, b"FILE", How::default()).await.unwrap();
            author.fsync(handle).await.unwrap();
            author.release(handle).await;
            expected.remove(0);
            expected.push("g".to_owned());
        }
        assert_eq!(list(&reader, ino, true).await[2..], expected);
        for (file, name) in expected.iter().enumerate() {
            let found = content(&reader, find(&reader, ino, name).await).await;
            match (directory > 2, name.as_str()) {
                (true, "g") => assert_eq!(found, b"new"),
                (true, "f3") => assert!(found.starts_with(b"FILE 3"), "{name}"),
                (later, _) => assert_eq!(found, text(directory, file + usize::from(later))),
            }
        }
    }
}
