//! The throttle on guessing: failures are counted per account and address, and per address, and kept over restarts.
//!
//! Counting per account *and* address means that a guesser locks out nobody but itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tandemfs::clock::Clock;
use tandemfs::{Error, Result};

use super::record::Failures;
use crate::meta::{self, Meta, keys};

/// Failures older than this do not count.
const WINDOW_MS: i64 = 15 * 60 * 1000;
/// Failures of one account from one address within the window.
const ACCOUNT_FAILURES_MAX: usize = 10;
/// Failures from one address within the window.
const ADDRESS_FAILURES_MAX: usize = 100;
/// Accounts and addresses that are kept in mind.
const ENTRIES_MAX: usize = 100_000;

#[derive(Debug, Default)]
struct Entry {
    failures: Failures,
    /// Tries that have begun and may become failures.
    under_way: usize,
}

impl Entry {
    fn forget_before(&mut self, ms: i64) {
        self.failures.times_ms.retain(|time| *time > ms);
    }
}

/// Counts failures.
#[derive(Debug)]
pub(super) struct Throttle {
    meta: Meta,
    clock: Arc<dyn Clock>,
    entries: Mutex<BTreeMap<String, Entry>>,
}

/// A try at a password that the throttle has let through. Dropped without a word it counts for nothing.
#[derive(Debug)]
pub(super) struct Try<'a> {
    throttle: &'a Throttle,
    names: [String; 2],
}

/// One name for all addresses that one party usually has: an IPv6 network of 64 bits, or an IPv4 address.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Throttle {
    /// Takes up the failures that are stored.
    ///
    /// # Errors
    /// Those of the metadata.
    pub(super) async fn open(meta: Meta, clock: Arc<dyn Clock>) -> Result<Self> {
        let from = keys::login_failures("");
        let to = keys::end_of(&from);
        let oldest = clock.now().as_millis() - WINDOW_MS;
        let mut entries = BTreeMap::new();
        let mut old = Vec::new();
        for (key, mut failures) in meta.scan::<Failures>(&from, &to, ENTRIES_MAX).await? {
            failures.times_ms.retain(|time| *time > oldest);
            let name = String::from_utf8_lossy(key.get(from.len()..).unwrap_or_default()).into_owned();
            if failures.times_ms.is_empty() {
                old.push(meta::remove(key));
            } else {
                entries.insert(name, Entry { failures, under_way: 0 });
            }
        }
        if !old.is_empty() {
            meta.commit(Vec::new(), old).await?;
        }
        Ok(Self { meta, clock, entries: Mutex::new(entries) })
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a try through, or says when to come back.
    ///
    /// # Errors
    /// `TooManyRequests`.
    pub(super) fn begin(&self, account: &str, address: IpAddr) -> Result<Try<'_>> {
        let now = self.clock.now().as_millis();
        let network = network(address);
        let names = [format!("{network} {account}"), network.to_string()];
        let mut entries = self.entries();
        if entries.len() + names.len() > ENTRIES_MAX {
            entries.retain(|_, entry| {
                entry.forget_before(now - WINDOW_MS);
                entry.under_way > 0 || !entry.failures.times_ms.is_empty()
            });
            if entries.len() + names.len() > ENTRIES_MAX {
                return Err(Error::too_many_requests("too many addresses fail to log in").retry_after(60));
            }
        }
        for (name, most) in names.iter().zip([ACCOUNT_FAILURES_MAX, ADDRESS_FAILURES_MAX]) {
            let Some(entry) = entries.get_mut(name) else { continue };
            entry.forget_before(now - WINDOW_MS);
            if entry.failures.times_ms.len() + entry.under_way >= most {
                let first = entry.failures.times_ms.first().copied().unwrap_or(now - WINDOW_MS);
                let seconds = u64::try_from((first + WINDOW_MS - now + 999) / 1000).unwrap_or(1);
                return Err(Error::too_many_requests("too many failed logins").retry_after(seconds));
            }
        }
        for name in &names {
            entries.entry(name.clone()).or_default().under_way += 1;
        }
        Ok(Try { throttle: self, names })
    }
}

impl Try<'_> {
    /// The password was wrong: counts it, and returns when that is stored.
    ///
    /// # Errors
    /// Those of the metadata; it counts in memory all the same.
    pub(super) async fn failed(self) -> Result<()> {
        let now = self.throttle.clock.now().as_millis();
        let stored = {
            let mut writes = Vec::new();
            let mut entries = self.throttle.entries();
            for name in &self.names {
                let entry = entries.entry(name.clone()).or_default();
                entry.failures.times_ms.push(now);
                writes.push(meta::put(keys::login_failures(name), &entry.failures)?);
            }
            // Within the lock, so that the later count is stored later.
            let meta = &self.throttle.meta;
            meta.submit(meta.generation(), writes)?
        };
        stored.await
    }

    /// The password was right: the account's failures from this address are forgotten.
    ///
    /// # Errors
    /// Those of the metadata.
    pub(super) async fn succeeded(self) -> Result<()> {
        let [of_account, _] = &self.names;
        let had = match self.throttle.entries().get_mut(of_account) {
            Some(entry) => !std::mem::take(&mut entry.failures.times_ms).is_empty(),
            None => false,
        };
        if had {
            self.throttle
                .meta
                .commit(Vec::new(), vec![meta::remove(keys::login_failures(of_account))])
                .await?;
        }
        Ok(())
    }
}

impl Drop for Try<'_> {
    fn drop(&mut self) {
        let mut entries = self.throttle.entries();
        for name in &self.names {
            if let Some(entry) = entries.get_mut(name) {
                entry.under_way -= 1;
                if entry.under_way == 0 && entry.failures.times_ms.is_empty() {
                    entries.remove(name);
                }
            }
        }
    }
}
