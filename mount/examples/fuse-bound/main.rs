//! The bound of FUSE: a file system that keeps everything in memory and answers each call at once. What a workload takes on it is what the
//! kernel, its protocol and the copies of data take, with nothing stored and nothing sent; no mount of this kind can be faster. `scripts/bench`
//! measures it beside the real one, whose session (threads, capabilities, sizes, read-ahead) it has.
//!
//! `fuse-bound DIRECTORY` serves until it is unmounted. Each line on its standard input then mounts the same files again; its end ends it.

mod calls;
mod table;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use fuser::{Config, MountOption, Session, SessionACL};
use tandem_mount::read_ahead;

use table::Table;

/// Threads that take in the kernel's calls.
const THREADS: usize = 4;

fn main() -> io::Result<()> {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: fuse-bound DIRECTORY");
        std::process::exit(1);
    };
    let bound = Bound(Arc::new(RwLock::new(Table::new())));
    bound.serve(&directory)?;
    for _line in io::stdin().lines() {
        bound.serve(&directory)?;
    }
    Ok(())
}

/// The file system as fuser wants it; its copies share the files.
#[derive(Clone)]
struct Bound(Arc<RwLock<Table>>);

impl Bound {
    /// Mounts, and serves until it is unmounted.
    fn serve(&self, directory: &Path) -> io::Result<()> {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("fuse-bound".to_owned()),
            MountOption::DefaultPermissions,
            MountOption::NoSuid,
            MountOption::NoDev,
        ];
        config.acl = SessionACL::Owner;
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        let session = Session::new(self.clone(), directory, &config)?;
        let serving = std::thread::spawn(move || session.run());
        if let Err(error) = read_ahead::raise(std::fs::metadata(directory)?.dev()) {
            eprintln!("fuse-bound: the kernel keeps its own read-ahead: {error}");
        }
        serving.join().unwrap_or_else(|_| Err(io::Error::other("the mount has crashed")))
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
