//! Another signing key while the daemon runs, and the end of one that somebody else may have.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use tandemfs::api::users::{SigningKey, SigningKeyList};
use tandemfs::clock::Time;
use tandemfs::config::{remove_drafts, write_secret};
use tandemfs::{Error, Result};

use super::{Accounts, Caller, jwt};
use crate::audit::{self, Audit, outcome};
use crate::meta::{self, Meta, keys};

impl Accounts {
    /// The keys in force.
    pub(super) fn keys(&self) -> Arc<jwt::Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The keys that count, the one that signs first.
    pub fn list_keys(&self) -> SigningKeyList {
        let keys = self.keys();
        let describe = |(id, replaced_s): (&str, Option<u64>)| SigningKey {
            key_id: id.to_owned(),
            replaced: replaced_s.map(|seconds| {
                Time { seconds: i64::try_from(seconds).unwrap_or(i64::MAX), nanos: 0 }.to_rfc3339()
            }),
        };
        SigningKeyList { keys: keys.list(self.now_s(), self.rules.token_ttl_s).map(describe).collect() }
    }

    /// Has a new key sign from now on. The tokens of the one before are valid until they expire.
    ///
    /// # Errors
    /// `Busy` after too many such changes within the life of a token; those of the metadata and of the key file.
    pub async fn rotate_keys(&self, caller: &Caller, from: IpAddr) -> Result<SigningKeyList> {
        let result = {
            let _changing = self.changing.lock().await;
            match self.keys().rotated(self.now_s(), self.rules.token_ttl_s) {
                Ok(keys) => self.put_keys(keys).await,
                Err(error) => Err(error),
            }
        };
        self.audit.note(&caller.username, "rotate signing keys", "", Some(from), outcome(&result)).await;
        result.map(|()| self.list_keys())
    }

    /// Drops a key: all tokens that it has signed end, and what is under way with them. If it is the one that signs, a new one
    /// takes its place.
    ///
    /// # Errors
    /// `NotFound`; as [`Accounts::rotate_keys`].
    pub async fn drop_key(&self, caller: &Caller, id: &str, from: IpAddr) -> Result<()> {
        let result = {
            let _changing = self.changing.lock().await;
            match self.keys().without(id, self.now_s(), self.rules.token_ttl_s) {
                Ok(keys) => self.put_keys(keys).await,
                Err(error) => Err(error),
            }
        };
        if result.is_ok() {
            self.visits.end(|pass| pass.key.as_deref() == Some(id));
        }
        self.audit.note(&caller.username, "drop signing key", id, Some(from), outcome(&result)).await;
        result
    }

    /// Keeps keys, then uses them.
    async fn put_keys(&self, keys: jwt::Keys) -> Result<()> {
        let text = keys.text();
        self.meta.commit(Vec::new(), vec![meta::put(keys::signing_keys(), &text)?]).await?;
        if self.rules.keep_key_file {
            write(&self.key_file, text).await?;
        }
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }

    /// The keys of the file, since that is where an operator changes them; if there is none, those of the metadata, which survive the
    /// daemon's disk; at the first start a new one. Then both have them, or the metadata alone if the file is not to be kept.
    pub(super) async fn open_keys(
        meta: &Meta,
        audit: &Audit,
        file: &Path,
        keep_file: bool,
    ) -> Result<jwt::Keys> {
        // Keys that a crash has left there, which may have been dropped since.
        remove_drafts(file)?;
        let recorded: Option<String> = meta.get(&keys::signing_keys()).await?;
        let found = jwt::Keys::read(file)?;
        let in_file = found.is_some();
        let keys = match (found, &recorded) {
            (Some(keys), _) => keys,
            (None, Some(text)) => jwt::Keys::parse(text)?,
            (None, None) => jwt::Keys::draw()?,
        };
        let text = keys.text();
        if recorded.as_ref() != Some(&text) {
            meta.commit(Vec::new(), vec![meta::put(keys::signing_keys(), &text)?]).await?;
            if recorded.is_some() {
                log::warn!("{} has other keys than the metadata had: they count from now on", file.display());
                audit.note(audit::DAEMON, "change signing keys", "", None, "ok").await;
            }
        }
        match (in_file, keep_file) {
            (false, true) => write(file, text).await?,
            (true, false) => {
                std::fs::remove_file(file)?;
                log::info!("{} is removed: the keys in it are sealed in the metadata", file.display());
            }
            _ => {}
        }
        Ok(keys)
    }
}

async fn write(file: &Path, text: String) -> Result<()> {
    let file = file.to_owned();
    tokio::task::spawn_blocking(move || write_secret(&file, text.as_bytes()))
        .await
        .map_err(|error| Error::internal("writing the signing keys").because(error))?
}
