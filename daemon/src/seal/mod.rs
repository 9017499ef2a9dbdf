//! Sealing: an engine around an engine that seals the values of secret records, so that below it, in the journal, its snapshots and the
//! database, they lie encrypted. Keys, and all other records, lie there as they are (docs/durability.md).
//!
//! A key that was drawn at random seals. It lies in the metadata behind a lock that a passphrase opens, so another passphrase is one
//! record, and no other has to be sealed anew (docs/decisions/0009-secrets.md).

mod key;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tandemfs::config::read_secret;
use tandemfs::id::NodeId;
use tandemfs::{Error, Result};

use self::key::Lock;
use crate::meta::{self, Guard, Key, MetaStore, Value, Write, keys, record};
use crate::random::random;
use crate::settings::Settings;

/// Shorter passphrases are refused, in characters.
const PASSPHRASE_MIN: usize = 16;
/// Records that are sealed or opened in one commit.
const PAGE: usize = 1_000;

/// The passphrases that a daemon was given.
#[derive(Clone, Default)]
pub struct Passphrases {
    /// The one that is to open the lock from now on; `None`: nothing is to be sealed.
    pub now: Option<String>,
    /// The one that has opened it so far.
    pub before: Option<String>,
}

impl std::fmt::Debug for Passphrases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrases(secret)")
    }
}

impl Passphrases {
    /// Reads the files that the settings name.
    ///
    /// # Errors
    /// `Invalid` for one that is too short; those of [`read_secret`].
    pub fn read(settings: &Settings) -> Result<Self> {
        let read = |file: &Option<PathBuf>| file.as_ref().map(|file| read_secret(file)).transpose();
        let now = read(&settings.seal_key_file)?;
        if now.as_ref().is_some_and(|now| now.chars().count() < PASSPHRASE_MIN) {
            return Err(Error::invalid(format!(
                "seal_key_file: it has less than {PASSPHRASE_MIN} characters"
            )));
        }
        Ok(Self { now, before: read(&settings.seal_old_key_file)? })
    }
}

/// See the module.
#[derive(Debug)]
pub struct SealedStore {
    inner: Arc<dyn MetaStore>,
    /// `None`: nothing is sealed.
    key: Option<key::Key>,
    is_secret: fn(&[u8]) -> bool,
}

impl SealedStore {
    /// Opens the lock, and does first what the passphrases ask for: seals what lies in the clear, puts another passphrase in the place of the
    /// one before, or opens everything for good. What is cut off in the middle is gone on with at the next start.
    ///
    /// # Errors
    /// `Forbidden` when the passphrase that is needed was not given; nothing has been changed then. Those of the engine.
    pub async fn open(inner: Arc<dyn MetaStore>, passphrases: &Passphrases) -> Result<Self> {
        let row = inner.get_many(&[keys::seal()]).await?.pop().flatten();
        let lock: Option<Lock> = row.as_deref().map(|row| record::decode(&keys::seal(), row)).transpose()?;
        let mut store = Self { inner, key: None, is_secret: keys::is_secret };
        let Passphrases { now, before } = passphrases;
        let Some(lock) = lock else {
            if let Some(now) = now {
                let secret = random()?;
                store.key = Some(key::Key::new(&secret));
                // With nothing in it yet, nothing lies in the clear.
                let is_new = store.inner.scan(&[], &keys::END, 1).await?.is_empty();
                let lock = store.put_lock(row, Lock::new(&secret, now, is_new).await?).await?;
                store.settle(lock).await?;
            }
            return Ok(store);
        };
        if let Some(secret) = lock.open(now.as_deref()).await? {
            store.key = Some(key::Key::new(&secret));
            store.settle(lock).await?;
            return Ok(store);
        }
        let secret = lock.open(before.as_deref()).await?;
        let secret = secret.ok_or_else(|| refusal(now.is_some(), before.is_some()))?;
        store.key = Some(key::Key::new(&secret));
        match now {
            Some(now) => {
                let lock = store.put_lock(row, Lock::new(&secret, now, false).await?).await?;
                store.settle(lock).await?;
            }
            None => store.unseal(row, lock).await?,
        }
        Ok(store)
    }

    /// For who changes nothing of the sealing: opens the lock, if there is one, with either passphrase.
    ///
    /// # Errors
    /// `Forbidden` when the passphrase that is needed was not given; those of the engine.
    pub async fn join(inner: Arc<dyn MetaStore>, passphrases: &Passphrases) -> Result<Self> {
        let row = inner.get_many(&[keys::seal()]).await?.pop().flatten();
        let lock: Option<Lock> = row.as_deref().map(|row| record::decode(&keys::seal(), row)).transpose()?;
        let mut store = Self { inner, key: None, is_secret: keys::is_secret };
        let Some(lock) = lock else { return Ok(store) };
        let Passphrases { now, before } = passphrases;
        let secret = match lock.open(now.as_deref()).await? {
            Some(secret) => Some(secret),
            None => lock.open(before.as_deref()).await?,
        };
        let secret = secret.ok_or_else(|| refusal(now.is_some(), before.is_some()))?;
        store.key = Some(key::Key::new(&secret));
        Ok(store)
    }

    /// Writes the lock in the place of another one, or of none.
    async fn put_lock(&self, before: Option<Value>, lock: Lock) -> Result<Lock> {
        let guard = Guard { key: keys::seal(), value: before };
        self.inner.commit(vec![guard], vec![meta::put(keys::seal(), &lock)?]).await?;
        Ok(lock)
    }

    /// Unless that is done: seals what lies in the clear, and has the engine forget that it did, and other locks.
    async fn settle(&self, mut lock: Lock) -> Result<()> {
        if lock.settled {
            return Ok(());
        }
        let is_sealed = |value: &Value| value.first() == Some(&record::SEALED);
        let seal = |key: &[u8], value| if is_sealed(&value) { Ok(value) } else { self.seal(key, value) };
        let sealed = self.rewrite(seal).await?;
        log::info!("the secrets in the metadata are sealed, {sealed} of them only now");
        if let Err(error) = self.inner.forget().await {
            log::error!(
                "what was in the metadata before may still lie on the nodes' disks, the next start tries again: {error:?}"
            );
            return Ok(());
        }
        let before = meta::put(keys::seal(), &lock)?.value;
        lock.settled = true;
        self.put_lock(before, lock).await.map(drop)
    }

    /// Opens everything for good.
    async fn unseal(&mut self, row: Option<Value>, mut lock: Lock) -> Result<()> {
        // If this is cut off and somebody seals again, all has to be looked at.
        lock.settled = false;
        let lock = self.put_lock(row, lock).await?;
        let opened = self.rewrite(|key, value| self.open_value(key, value)).await?;
        let guard = Guard { key: keys::seal(), value: meta::put(keys::seal(), &lock)?.value };
        self.inner.commit(vec![guard], vec![meta::remove(keys::seal())]).await?;
        log::warn!("the metadata is not sealed any more: {opened} records lie in the clear");
        self.key = None;
        Ok(())
    }

    /// Changes the secret values below, some at a time; says how many.
    async fn rewrite(&self, change: impl Fn(&[u8], Value) -> Result<Value>) -> Result<usize> {
        let mut changed = 0;
        for kind in keys::SECRET {
            let mut from = vec![kind];
            loop {
                let page = self.inner.scan(&from, &[kind + 1], PAGE).await?;
                let Some((last, _)) = page.last() else { break };
                from.clone_from(last);
                from.push(0); // the next possible key
                let (mut guards, mut writes) = (Vec::new(), Vec::new());
                for (key, value) in page {
                    let after = change(&key, value.clone())?;
                    if after != value {
                        guards.push(Guard { key: key.clone(), value: Some(value) });
                        writes.push(Write { key, value: Some(after) });
                    }
                }
                changed += writes.len();
                if !writes.is_empty() {
                    self.inner.commit(guards, writes).await?;
                }
            }
        }
        Ok(changed)
    }

    /// A value as it is stored.
    fn seal(&self, key: &[u8], value: Value) -> Result<Value> {
        match &self.key {
            Some(own) if (self.is_secret)(key) => {
                let mut sealed = vec![record::SEALED];
                sealed.extend(own.seal(key, &value)?);
                Ok(sealed)
            }
            _ => Ok(value),
        }
    }

    /// A value as it was committed.
    fn open_value(&self, key: &[u8], value: Value) -> Result<Value> {
        let sealed = match value.split_first() {
            Some((&record::SEALED, sealed)) if (self.is_secret)(key) => sealed,
            _ => return Ok(value),
        };
        let name = || format!("metadata record {}", hex::encode(key));
        let own = self.key.as_ref();
        let own =
            own.ok_or_else(|| Error::corrupt(format!("{}: it is sealed, but there is no lock", name())))?;
        own.open(key, sealed).ok_or_else(|| Error::corrupt(format!("{}: it cannot be opened", name())))
    }
}

/// Why a lock stays closed.
fn refusal(now: bool, before: bool) -> Error {
    Error::forbidden(match (now, before) {
        (false, false) => {
            "the secrets in the metadata are sealed; name the file with the passphrase in seal_key_file"
        }
        (true, false) => {
            "the passphrase in seal_key_file is not the one that the metadata is sealed with; to put it in the place of that one, \
             name the file with the old one in seal_old_key_file"
        }
        (false, true) => {
            "the passphrase in seal_old_key_file is not the one that the metadata is sealed with"
        }
        (true, true) => {
            "neither the passphrase in seal_key_file nor that in seal_old_key_file is the one that the metadata is sealed with"
        }
    })
}

#[async_trait]
impl MetaStore for SealedStore {
    async fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Value>>> {
        let values = self.inner.get_many(keys).await?;
        let opened = keys.iter().zip(values);
        opened.map(|(key, value)| value.map(|value| self.open_value(key, value)).transpose()).collect()
    }

    async fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        let pairs = self.inner.scan(from, to, limit).await?;
        let open = |(key, value): (Key, Value)| Ok((key.clone(), self.open_value(&key, value)?));
        pairs.into_iter().map(open).collect()
    }

    async fn commit(&self, mut guards: Vec<Guard>, mut writes: Vec<Write>) -> Result<()> {
        for write in &mut writes {
            if let Some(value) = write.value.take() {
                write.value = Some(self.seal(&write.key, value)?);
            }
        }
        // No two sealed values are the same: a guard is one on what is stored, if that is what it asks for.
        for guard in guards.iter_mut().filter(|guard| (self.is_secret)(&guard.key)) {
            let stored = self.inner.get_many(std::slice::from_ref(&guard.key)).await?.pop().flatten();
            let opened = stored.clone().map(|value| self.open_value(&guard.key, value)).transpose()?;
            if opened != guard.value {
                return Err(Error::stale(format!("metadata record {}", hex::encode(&guard.key))));
            }
            guard.value = stored;
        }
        self.inner.commit(guards, writes).await
    }

    fn copies(&self) -> Vec<NodeId> {
        self.inner.copies()
    }

    async fn forget(&self) -> Result<()> {
        self.inner.forget().await
    }
}
