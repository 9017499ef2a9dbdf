//! Files that the kernel itself reads and writes (`FUSE_PASSTHROUGH`, Linux 6.9 and later): what is in them lies in a directory of another
//! file system, and only opening and closing reaches this program.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::{BackingId, Errno, INodeNo};

/// The directory, and the files in it that are open.
pub(crate) struct Passthrough {
    directory: PathBuf,
    open: Mutex<HashMap<u64, Open>>,
}

/// The kernel wants the same backing from all who have a file open.
struct Open {
    backing: Arc<BackingId>,
    times: usize,
}

/// What is in a file. It goes with the file.
pub(crate) struct Backed(PathBuf);

impl Passthrough {
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty file for an inode that is going to be made; in memory it has no more than its name.
    pub(crate) fn make(&self, number: u64) -> io::Result<Backed> {
        let path = self.directory.join(number.to_string());
        File::create(&path)?;
        Ok(Backed(path))
    }

    /// Has the kernel read and write a file by itself; `register` tells it of the file below. Each is to be followed by a [`Self::closed`].
    pub(crate) fn opened(
        &self,
        ino: INodeNo,
        backed: &Backed,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Result<Arc<BackingId>, Errno> {
        let mut open = self.open();
        if let Some(open) = open.get_mut(&ino.0) {
            open.times += 1;
            return Ok(Arc::clone(&open.backing));
        }
        let file = OpenOptions::new().read(true).write(true).open(&backed.0)?;
        let backing = Arc::new(register(&file)?);
        open.insert(ino.0, Open { backing: Arc::clone(&backing), times: 1 });
        Ok(backing)
    }

    pub(crate) fn closed(&self, ino: INodeNo) {
        let mut open = self.open();
        if let Some(of_file) = open.get_mut(&ino.0) {
            of_file.times -= 1;
            if of_file.times == 0 {
                open.remove(&ino.0);
            }
        }
    }
}

impl Backed {
    pub(crate) fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    pub(crate) fn resize(&self, size: u64) -> io::Result<()> {
        OpenOptions::new().write(true).open(&self.0)?.set_len(size)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_data()
    }
}

impl Drop for Backed {
    fn drop(&mut self) {
        // One that stays goes with the directory.
        let _left = std::fs::remove_file(&self.0);
    }
}
