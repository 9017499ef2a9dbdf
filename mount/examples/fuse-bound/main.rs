//! The bound of FUSE: a file system that keeps everything in memory and answers each call at once. What a workload takes on it is what the
//! kernel, its protocol and the copies of data take, with nothing stored and nothing sent; no mount of this kind can be faster. `scripts/bench`
//! measures it beside the real one, whose session (threads, capabilities, sizes, read-ahead) it has.
//!
//! `fuse-bound DIRECTORY` serves until it is unmounted. Each line on its standard input then mounts the same files again; its end ends it.
//! With a second directory, which is to be empty, what is in files lies there, and the kernel reads and writes it by itself.

mod calls;
mod passthrough;
mod table;

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use fuser::{BackingId, Config, Errno, MountOption, Session, SessionACL};
use tandem_mount::read_ahead;

use passthrough::Passthrough;
use table::{Content, Inode, Table};

/// Threads that take in the kernel's calls.
const THREADS: usize = 4;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let Some(directory) = arguments.next() else {
        eprintln!("usage: fuse-bound DIRECTORY [DIRECTORY FOR WHAT IS IN FILES]");
        std::process::exit(1);
    };
    let passthrough = arguments.next().map(|directory| Arc::new(Passthrough::new(&directory)));
    let bound = Bound { table: Arc::new(RwLock::new(Table::new())), passthrough };
    bound.serve(&directory)?;
    for _line in io::stdin().lines() {
        bound.serve(&directory)?;
    }
    Ok(())
}

/// The file system as fuser wants it; its copies share the files.
#[derive(Clone)]
struct Bound {
    table: Arc<RwLock<Table>>,
    passthrough: Option<Arc<Passthrough>>,
}

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
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a new file has in it.
    fn blank(&self, table: &Table) -> io::Result<Content> {
        match &self.passthrough {
            Some(passthrough) => Ok(Content::Backed(passthrough.make(table.next())?)),
            None => Ok(Content::File(Vec::new())),
        }
    }

    /// Has the kernel read and write an open file by itself, if that is how files are kept.
    fn pass(
        &self,
        inode: &Inode,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Result<Option<Arc<BackingId>>, Errno> {
        match (&self.passthrough, &inode.content) {
            (Some(passthrough), Content::Backed(backed)) => {
                passthrough.opened(inode.attr.ino, backed, register).map(Some)
            }
            _ => Ok(None),
        }
    }
}
