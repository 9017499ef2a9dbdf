//! A directory for what a check needs meanwhile. It is gone afterwards, or before the next one.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use tandemfs::Result;

use crate::meta::sqlite::SqliteStore;

/// See the module.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// An empty one in a data directory, which has one at a time.
    ///
    /// # Errors
    /// As the system says.
    pub(crate) fn new(data: &Path) -> Result<Self> {
        let path = data.join("fsck");
        clear(&path)?;
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    /// A new store in it.
    ///
    /// # Errors
    /// Those of SQLite.
    pub(crate) fn store(&self, name: &str) -> Result<SqliteStore> {
        SqliteStore::open(self.0.join(name))
    }

    /// A copy of a database that nobody writes to.
    ///
    /// # Errors
    /// As the system says; those of SQLite.
    pub(crate) fn copy(&self, database: &Path) -> Result<SqliteStore> {
        let copy = self.0.join("copy.db");
        for suffix in ["", "-wal"] {
            let beside = |path: &Path| {
                let mut name = path.to_owned().into_os_string();
                name.push(suffix);
                name
            };
            match fs::copy(beside(database), beside(&copy)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        SqliteStore::open(copy)
    }
}

fn clear(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = clear(&self.0) {
            log::warn!("{}: {error}", self.0.display());
        }
    }
}
