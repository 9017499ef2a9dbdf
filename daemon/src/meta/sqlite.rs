//! SQLite as an engine: one table of keys and values, one writer, a few readers. The only place with SQL.

use async_trait::async_trait;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, ffi};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tandemfs::{Error, Result};
use tokio::sync::Semaphore;

use super::{Guard, Key, MetaStore, Value, Write};

/// Says that a database is ours: "TdFS".
const APPLICATION_ID: i32 = 0x5464_4653;
/// The version of its layout.
const LAYOUT: i32 = 1;
/// Reads that run at once.
const READERS: usize = 4;
/// How long to wait for another process that is just writing.
const BUSY: Duration = Duration::from_secs(10);
/// A look at so few keys, and a commit of so few writes and bytes, takes less time than to hand it to another thread and back.
const FEW: usize = 32;
const FEW_BYTES: usize = 64 << 10;
/// Pages, as far as can be told from outside, that the write-ahead log holds before they are put into the database.
const LOG_PAGES: usize = 1000;
const PAGE_BYTES: usize = 4096;
/// A database up to this size is checked page by page when it is opened; the rows of a larger one have their own
/// checksums, and [`SqliteStore::check`] looks at all of it.
const CHECK_AT_OPEN_MAX: u64 = 64 << 20;

/// Metadata in an SQLite database. Its write-ahead log is not synced with every commit: after a power cut the last ones may be missing, and
/// the journal has them.
#[derive(Debug)]
pub struct SqliteStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    writer: Mutex<Connection>,
    /// Idle readers; `permits` has as many permits as there are readers, so nobody finds it empty.
    readers: Mutex<Vec<Connection>>,
    permits: Semaphore,
    /// Pages that were written to the log since it was last put into the database.
    logged: AtomicUsize,
    /// A sync has failed, so nobody knows what is on the disk: it takes no commit until it is opened anew.
    failed: AtomicBool,
}

impl SqliteStore {
    /// Opens the database at `path`, or makes it. Blocks; called once at start.
    ///
    /// # Errors
    /// `Corrupt` for a damaged database or another program's, `Unsupported` for a newer layout, `NoSpace`, and
    /// `Unavailable`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let explain =
            |error: Error| Error::new(error.kind(), format!("{}: {}", path.display(), error.subject()));
        let opened =
            open_files(path).and_then(|()| Inner::open(path).map_err(|error| meaning(&error, "opening it")));
        let inner = opened.and_then(|inner| inner.validate().map(|()| inner)).map_err(explain)?;
        Ok(Self(Arc::new(inner)))
    }

    /// Looks at every page and every order of keys. Takes a second for some hundred megabytes.
    ///
    /// # Errors
    /// `Corrupt`.
    pub async fn check(&self) -> Result<()> {
        self.read(|connection| {
            connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0))
        })
        .await
        .and_then(|answer| if answer == "ok" { Ok(()) } else { Err(Error::corrupt(answer)) })
    }

    /// How many rows there are. Reads all pages.
    ///
    /// # Errors
    /// `Corrupt`; `Unavailable`.
    pub async fn count(&self) -> Result<u64> {
        let count = self.read(|connection| {
            connection.query_row("SELECT count(*) FROM kv", [], |row| row.get::<_, i64>(0))
        });
        Ok(u64::try_from(count.await?).unwrap_or(0))
    }

    async fn read<T, F>(&self, query: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let inner = self.0.clone();
        let _permit =
            self.0.permits.acquire().await.map_err(|_| Error::internal("the readers are closed"))?;
        blocking(move || inner.read(query)).await
    }

    /// Puts the write-ahead log into the database when it has grown long. That syncs the disk, so commits wait for it in other threads.
    fn shorten_log(&self) {
        if self.0.logged.load(Ordering::Relaxed) >= LOG_PAGES {
            self.0.logged.store(0, Ordering::Relaxed);
            let inner = self.0.clone();
            tokio::task::spawn_blocking(move || {
                let writer = lock(&inner.writer);
                let shortened =
                    writer.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get::<_, i64>(0));
                if let Err(error) = shortened {
                    inner.note_failure(&error);
                    log::error!("{}", meaning(&error, "putting the log into it").subject());
                }
            });
        }
    }
}

/// Runs blocking work to its end, also when the caller does not wait for it any more.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(Error::internal("a call of the metadata engine did not end").because(error))
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A connection that a panic left in a transaction rolls it back.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the file readable for nobody else; SQLite gives the files beside it the same mode.
fn open_files(path: &Path) -> Result<()> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    if file.metadata()?.permissions().mode() & 0o777 != 0o600 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(File::open(directory)?.sync_all()?)
}

impl Inner {
    fn open(path: &Path) -> rusqlite::Result<Self> {
        let mut writer = connect(path)?;
        let setup = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Only a database that is quite empty is made ours.
        if setup.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))? == 0 {
            // Without rowids a key lies in one place, with its value and their checksum. In a table with an index, a flipped bit of the
            // index hides a row, and nobody notices. The price: a search that passes a large value reads all of it.
            setup.execute_batch(
                "CREATE TABLE kv (key BLOB PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID",
            )?;
            setup.pragma_update(None, "application_id", APPLICATION_ID)?;
            setup.pragma_update(None, "user_version", LAYOUT)?;
        }
        setup.commit()?;
        let readers = (0..READERS).map(|_| connect(path)).collect::<rusqlite::Result<_>>()?;
        Ok(Self {
            path: path.to_owned(),
            writer: Mutex::new(writer),
            readers: Mutex::new(readers),
            permits: Semaphore::new(READERS),
            logged: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
        })
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        connect(&self.path)
    }

    /// Refuses what is damaged or not ours.
    fn validate(&self) -> Result<()> {
        let writer = lock(&self.writer);
        let number = |name| {
            let value = writer.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
            value.map_err(|error| meaning(&error, "opening it"))
        };
        if number("application_id")? != APPLICATION_ID {
            return Err(Error::corrupt("it is not a metadata database of this program"));
        }
        let layout = number("user_version")?;
        if layout != LAYOUT {
            return Err(Error::unsupported(format!(
                "its layout has version {layout}, this program knows {LAYOUT}"
            )));
        }
        if fs::metadata(&self.path)?.len() <= CHECK_AT_OPEN_MAX {
            let answer = writer.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
            let answer = answer.map_err(|error| meaning(&error, "checking it"))?;
            if answer != "ok" {
                return Err(Error::corrupt(answer));
            }
        }
        Ok(())
    }

    fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        let reader = lock(&self.readers).pop();
        let reader = reader.map_or_else(|| self.connect(), Ok).map_err(|error| meaning(&error, "reading"))?;
        let result = query(&reader).map_err(|error| meaning(&error, "reading"));
        let mut idle = lock(&self.readers);
        if idle.len() < READERS {
            idle.push(reader);
        }
        result
    }

    /// Commits if nobody else writes.
    fn try_commit(&self, guards: &[Guard], writes: &[Write]) -> Option<Result<()>> {
        let mut writer = self.writer.try_lock().ok()?;
        Some(self.commit(&mut writer, guards, writes))
    }

    fn commit(&self, writer: &mut Connection, guards: &[Guard], writes: &[Write]) -> Result<()> {
        if self.failed.load(Ordering::SeqCst) {
            return Err(Error::unavailable("the metadata store failed to sync its disk; restart the daemon"));
        }
        match commit(writer, guards, writes) {
            Ok(None) => {
                let pages = writes.iter().map(|write| 1 + bytes_of(write) / PAGE_BYTES).sum();
                self.logged.fetch_add(pages, Ordering::Relaxed);
                Ok(())
            }
            Ok(Some(key)) => Err(Error::stale(format!("metadata record {}", hex::encode(key)))),
            Err(error) => {
                self.note_failure(&error);
                Err(meaning(&error, "committing"))
            }
        }
    }

    fn note_failure(&self, error: &rusqlite::Error) {
        if is_failed_sync(error) {
            self.failed.store(true, Ordering::SeqCst);
        }
    }
}

fn bytes_of(write: &Write) -> usize {
    write.key.len() + write.value.as_ref().map_or(0, Vec::len)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(16);
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = 67108864;
         PRAGMA wal_autocheckpoint = 0;
         PRAGMA cache_size = -8192; PRAGMA cell_size_check = ON; PRAGMA trusted_schema = OFF;
         PRAGMA temp_store = MEMORY;",
    )?;
    Ok(connection)
}

/// Does all writes, or gives the key of a guard that does not hold.
fn commit(writer: &mut Connection, guards: &[Guard], writes: &[Write]) -> rusqlite::Result<Option<Key>> {
    // Immediate: what the guards see cannot change before the commit. Dropped without a commit, it rolls back.
    let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for guard in guards {
        if value(&transaction, &guard.key)? != guard.value {
            return Ok(Some(guard.key.clone()));
        }
    }
    {
        let mut put = transaction.prepare_cached("INSERT OR REPLACE INTO kv (key, value) VALUES (?1, ?2)")?;
        let mut remove = transaction.prepare_cached("DELETE FROM kv WHERE key = ?1")?;
        for Write { key, value } in writes {
            match value {
                Some(value) => put.execute((key, value))?,
                None => remove.execute((key,))?,
            };
        }
    }
    transaction.commit()?;
    Ok(None)
}

/// Values of one moment.
fn values(reader: &Connection, keys: &[Key]) -> rusqlite::Result<Vec<Option<Value>>> {
    if let [key] = keys {
        return Ok(vec![value(reader, key)?]);
    }
    let moment = reader.unchecked_transaction()?;
    keys.iter().map(|key| value(&moment, key)).collect()
}

fn value(connection: &Connection, key: &[u8]) -> rusqlite::Result<Option<Value>> {
    let mut statement = connection.prepare_cached("SELECT value FROM kv WHERE key = ?1")?;
    statement.query_row((key,), |row| row.get(0)).optional()
}

fn is_failed_sync(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    matches!(code, Some(ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC))
}

fn meaning(error: &rusqlite::Error, doing: &str) -> Error {
    let subject = format!("metadata database, {doing}: {error}");
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Error::no_space(subject),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Error::corrupt(subject),
        Some(ErrorCode::TooBig) => Error::too_large(subject),
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::SystemIoFailure
            | ErrorCode::CannotOpen
            | ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied
            | ErrorCode::OutOfMemory,
        ) => Error::unavailable(subject),
        // A schema or a type that is not ours.
        _ => Error::corrupt(subject),
    }
}

#[async_trait]
impl MetaStore for SqliteStore {
    async fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Value>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        if keys.len() <= FEW
            && let Ok(_permit) = self.0.permits.try_acquire()
        {
            return self.0.read(|reader| values(reader, keys));
        }
        let keys = keys.to_vec();
        self.read(move |reader| values(reader, &keys)).await
    }

    async fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        let (from, to) = (from.to_vec(), to.to_vec());
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(move |reader| {
            let query = "SELECT key, value FROM kv WHERE key >= ?1 AND key < ?2 ORDER BY key LIMIT ?3";
            let mut statement = reader.prepare_cached(query)?;
            let rows = statement.query_map((from, to, limit), |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })
        .await
    }

    async fn commit(&self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<()> {
        let is_small = writes.len() <= FEW && writes.iter().map(bytes_of).sum::<usize>() <= FEW_BYTES;
        let at_once = is_small.then(|| self.0.try_commit(&guards, &writes)).flatten();
        let done = match at_once {
            Some(done) => done,
            None => {
                let inner = self.0.clone();
                blocking(move || inner.commit(&mut lock(&inner.writer), &guards, &writes)).await
            }
        };
        self.shorten_log();
        done
    }

    async fn forget(&self) -> Result<()> {
        let inner = self.0.clone();
        blocking(move || {
            // What is free in pages, and in the log, has what was there before. The copy may be too large for memory.
            let rewritten = lock(&inner.writer).execute_batch(
                "PRAGMA temp_store = FILE; VACUUM; PRAGMA temp_store = MEMORY; PRAGMA wal_checkpoint(TRUNCATE);",
            );
            rewritten.map_err(|error| meaning(&error, "writing it anew"))
        })
        .await
    }
}

#[cfg(test)]
#[path = "sqlite_tests.rs"]
mod tests;
