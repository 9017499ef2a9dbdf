//! The file system against a daemon in memory, without a mount and without HTTP.

mod accesses;
mod ahead;
mod attributes;
mod block_cache;
mod cache;
mod data;
mod delegations;
pub(crate) mod fake;
mod hostile;
mod lease;
mod lease_locks;
mod locks;
mod model;
mod names;
mod orphans;
mod outages;
mod replay;
mod tails;
mod uploads;

use std::sync::Arc;
use std::time::Duration;

use tandemfs::clock::ManualClock;
use tandemfs::id::Ino;
use tandemfs::tree::Credentials;

use super::data::How;
use super::{Fs, Options};
use fake::{Daemon, FakeKernel};

const ROOT: Credentials = Credentials { uid: 0, gid: 0 };
/// A write through a descriptor that appends.
const APPEND: How = How { from_cache: false, clear_privileges: false, append: true };

async fn mount_with(daemon: &Arc<Daemon>, options: Options) -> (Arc<Fs>, Arc<FakeKernel>) {
    let clock = Arc::new(ManualClock::at(1_000_000));
    let fs = Arc::new(Fs::open(Arc::clone(daemon) as _, clock, options).await.unwrap());
    let kernel = Arc::new(FakeKernel::default());
    fs.start(Arc::new(Arc::clone(&kernel)));
    // The stream of events is there before anything happens.
    tokio::time::sleep(Duration::from_millis(1)).await;
    (fs, kernel)
}

async fn mount(daemon: &Arc<Daemon>) -> Arc<Fs> {
    mount_with(daemon, Options::default()).await.0
}

async fn make(fs: &Fs, name: &str, data: &[u8]) -> Ino {
    let (stat, handle) =
        fs.create(ROOT, Ino::ROOT, name.as_bytes(), 0o644.into(), libc::O_EXCL).await.unwrap();
    fs.write(handle, 0, data, How::default()).await.unwrap();
    fs.flush(handle).await.unwrap();
    fs.release(handle).await;
    stat.inode.ino
}

async fn content(fs: &Fs, ino: Ino) -> Vec<u8> {
    let handle = fs.open_file(ROOT, ino, libc::O_RDONLY).await.unwrap();
    let data = fs.read(handle, 0, 1 << 24).await.unwrap();
    fs.release(handle).await;
    data.to_vec()
}

async fn list(fs: &Fs, ino: Ino, plus: bool) -> Vec<String> {
    let handle = fs.open_directory(ino, 0).await.unwrap();
    let directory = fs.directory(handle).unwrap();
    let mut names = Vec::new();
    let mut offset = 0;
    loop {
        let page = fs.read_directory(&directory, offset, plus, 3).await.unwrap();
        let Some(last) = page.last() else { break };
        offset = last.next;
        names.extend(page.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()));
    }
    fs.release_directory(handle).await;
    names
}
