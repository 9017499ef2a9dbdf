//! Blocks that an earlier mount has read, on the local disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tempfile::TempDir;

use super::fake::Daemon;
use super::{content, make, mount, mount_with};
use crate::fs::{Fs, Options};
use tandemfs::id::Ino;
use tandemfs::tree::CHUNK_SIZE;

async fn cached(daemon: &Arc<Daemon>, directory: &Path) -> Arc<Fs> {
    let cache_directory = Some(directory.to_owned());
    let options = Options { cache_directory, cache_size: 64 << 20, ..Options::default() };
    let fs = mount_with(daemon, options).await.0;
    fs.block_cache.as_ref().unwrap().settle();
    fs
}

/// Reads a file with a mount of its own; answers its content, and how often the daemon was asked for a block.
async fn read(daemon: &Arc<Daemon>, directory: &Path, ino: Ino) -> (Vec<u8>, u64) {
    let before = daemon.block_reads.load(Ordering::SeqCst);
    let fs = cached(daemon, directory).await;
    let data = content(&fs, ino).await;
    fs.block_cache.as_ref().unwrap().settle();
    fs.stop().await.unwrap();
    (data, daemon.block_reads.load(Ordering::SeqCst) - before)
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files
        .flat_map(|path| if path.is_dir() { segments(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "segment"))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_later_mount_reads_what_an_earlier_one_has_read() {
    let daemon = Arc::new(Daemon::default());
    let writer = mount(&daemon).await;
    let data: Vec<u8> = (0..CHUNK_SIZE as u32 / 4 + 50_000).flat_map(u32::to_le_bytes).collect();
    let ino = make(&writer, "a", &data).await;
    let directory = TempDir::new().unwrap();
    let (first, asked) = read(&daemon, directory.path(), ino).await;
    assert!(first == data && asked >= 2, "{asked}");
    let (second, asked) = read(&daemon, directory.path(), ino).await;
    assert!(second == data);
    assert_eq!(asked, 0, "it lies on the disk");
    // Another mount while one has it does without.
    let holder = cached(&daemon, directory.path()).await;
    let (third, asked) = read(&daemon, directory.path(), ino).await;
    assert!(third == data && asked >= 2);
    holder.stop().await.unwrap();
    for path in segments(directory.path()) {
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.iter_mut().skip(1000).step_by(4096).for_each(|byte| *byte ^= 1);
        std::fs::write(&path, bytes).unwrap();
    }
    let (fourth, asked) = read(&daemon, directory.path(), ino).await;
    assert!(fourth == data && asked >= 1, "what is damaged comes from the daemon");
    let (fifth, asked) = read(&daemon, directory.path(), ino).await;
    assert!(fifth == data);
    assert_eq!(asked, 0, "and lies on the disk again");
}
