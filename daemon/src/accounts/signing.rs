//! Another signing key while the daemon runs, and the end of one that somebody else may have.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};

use tandemfs::api::users::{SigningKey, SigningKeyList};
use tandemfs::clock::Time;
use tandemfs::config::write_secret;
use tandemfs::{Error, Result};

use super::{Accounts, Caller, jwt};
use crate::audit::outcome;

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
    /// `Busy` after too many such changes within the life of a token; those of the key file.
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

    /// Keeps keys in the file, then uses them.
    async fn put_keys(&self, keys: jwt::Keys) -> Result<()> {
        let (path, text) = (self.key_file.clone(), keys.text());
        tokio::task::spawn_blocking(move || write_secret(&path, text.as_bytes()))
            .await
            .map_err(|error| Error::internal("writing the signing keys").because(error))??;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }
}
