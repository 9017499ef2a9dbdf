//! The audit log: who did what to which object, from where, when, and what came of it.
//!
//! It is a chain: each line carries the hash of the line before, and the metadata has the number and the hash of the last one, so
//! that a line that is changed, cut out or cut off is missed ([`Audit::verify`]). An entry is on stable storage before the
//! request that it tells of is answered. The oldest file is removed when there are too many. That a line cannot be written keeps
//! nobody from working: it is in the daemon's log, and `status` warns.
//!
//! The metadata gets the newest lines as well, with the end of the chain, in a commit that nobody waits for. When the files are gone they
//! are made anew from that (docs/decisions/0009-secrets.md).

mod chain;
mod files;
mod rows;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tandemfs::api::audit::{AuditCheck, AuditEntry, AuditPage};
use tandemfs::clock::Clock;
use tandemfs::{Error, Result};
use tokio::sync::Mutex;

use self::files::{Files, Limits};
use self::rows::Rows;
use crate::meta::Meta;
use crate::metrics::COUNTERS;

/// Characters of each field that are kept.
const FIELD_MAX: usize = 256;
const PAGE_MAX: usize = 1000;
/// Under this name the daemon itself does things.
pub const DAEMON: &str = "tandemd";

/// The audit log of one daemon.
#[derive(Debug)]
pub struct Audit {
    clock: Arc<dyn Clock>,
    open: Arc<Mutex<Open>>,
    failing: AtomicBool,
}

#[derive(Debug)]
struct Open {
    files: Files,
    rows: Rows,
}

/// What came of something, as the log has it.
pub fn outcome<T>(result: &Result<T>) -> &'static str {
    result.as_ref().map_or_else(|error| error.kind().code(), |_| "ok")
}

/// A field's text, not longer than need be: it may be what a stranger sent.
fn clip(text: &str) -> String {
    match text.char_indices().nth(FIELD_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Work on files, in a thread that may wait.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal("the audit log").because(error))?
}

impl Audit {
    /// Opens the log in a directory, or begins one.
    ///
    /// # Errors
    /// Those of the directory and of the metadata.
    pub async fn open(directory: &Path, meta: Meta, clock: Arc<dyn Clock>) -> Result<Self> {
        Self::open_with(directory, meta, clock, Limits::default()).await
    }

    async fn open_with(directory: &Path, meta: Meta, clock: Arc<dyn Clock>, limits: Limits) -> Result<Self> {
        let mut head = rows::head(&meta).await?;
        let open = |head| {
            let directory = directory.to_owned();
            blocking(move || Files::open(directory, head, limits))
        };
        let mut files = open(head.clone()).await?;
        let mut restored = None;
        if files.is_empty() && files.head().number > 0 {
            match rows::rebuild(&meta, directory, limits).await {
                Ok(Some(first)) => {
                    head = head.map(|head| files::Head { first, ..head });
                    files = open(head).await?;
                    restored = Some(format!("entries {first} to {}", files.head().number));
                }
                Ok(None) => {}
                Err(error) => log::error!("the audit log cannot be made anew from the metadata: {error:?}"),
            }
        }
        let mut rows = Rows::open(meta).await?;
        while let Some(stored) = rows.follow(&files, None).await? {
            stored.await?;
        }
        let open = Arc::new(Mutex::new(Open { files, rows }));
        let audit = Self { clock, open, failing: AtomicBool::new(false) };
        if let Some(entries) = restored {
            log::warn!("the audit log was gone: {entries} are made anew from the metadata");
            audit.note(DAEMON, "restore audit log", &entries, None, "ok").await;
        }
        Ok(audit)
    }

    /// Adds an entry; it is on stable storage when this returns.
    pub async fn note(&self, who: &str, what: &str, object: &str, from: Option<IpAddr>, result: &str) {
        let entry = AuditEntry {
            number: 0,
            time: self.clock.now().to_rfc3339(),
            who: clip(who),
            what: clip(what),
            object: clip(object),
            from: from.map(|address| address.to_string()),
            result: result.to_owned(),
            request: crate::http::problem::request_id(),
            previous: String::new(),
        };
        let written = self.write(entry).await;
        self.failing.store(written.is_err(), Ordering::Relaxed);
        if let Err(error) = written {
            COUNTERS.audit_failures.inc();
            log::error!(
                "the audit log cannot be written: {error:?}; who={who:?} what={what:?} object={object:?} result={result:?}"
            );
        }
    }

    async fn write(&self, entry: AuditEntry) -> Result<()> {
        let open = Arc::clone(&self.open).lock_owned().await;
        let (mut open, line) = blocking(move || {
            let mut open = open;
            let line = open.files.append(entry)?;
            Ok((open, line))
        })
        .await?;
        log::info!(target: "audit", "{line}");
        // In the order of the entries, since the files are still ours. Nobody waits for it: until it is stored, the end of the
        // file is ahead of what the metadata knows, which is no fault.
        let Open { files, rows } = &mut *open;
        drop(rows.follow(files, Some(&line)).await?);
        Ok(())
    }

    /// Whether the last entry could not be written.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// A page of entries, the newest first, those before `cursor`.
    ///
    /// # Errors
    /// `Invalid` for a bad limit or cursor; those of the files.
    pub async fn page(&self, limit: u32, cursor: Option<&str>) -> Result<AuditPage> {
        let limit = usize::try_from(limit).unwrap_or(0);
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(Error::invalid(format!("limit is 1 to {PAGE_MAX}")));
        }
        let before = match cursor {
            Some(text) => text.parse::<u64>().map_err(|_| Error::invalid("the cursor is not one of ours"))?,
            None => u64::MAX,
        };
        let directory = self.open.lock().await.files.directory().to_owned();
        let mut entries = blocking(move || files::read_before(&directory, before, limit + 1)).await?;
        let more = entries.len() > limit;
        entries.truncate(limit);
        let next_cursor = entries.last().filter(|_| more).map(|last| last.number.to_string());
        Ok(AuditPage { entries, next_cursor })
    }

    /// Checks the whole chain. Nothing is added meanwhile.
    ///
    /// # Errors
    /// Those of the files.
    pub async fn verify(&self) -> Result<AuditCheck> {
        let open = Arc::clone(&self.open).lock_owned().await;
        blocking(move || chain::check(open.files.directory(), &open.files.head())).await
    }
}
