//! Names in a directory: who gets one that two want, and lists of many.

use std::sync::Arc;

use tandemfs::ErrorKind;
use tandemfs::id::Ino;
use tandemfs::tree::NewNode;

use super::fake::Daemon;
use super::{ROOT, make, mount};

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
