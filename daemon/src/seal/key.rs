//! The key that seals, and the lock that it is kept behind: a passphrase opens it.

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use tandemfs::{Error, Result};

use crate::random::random;

/// Bytes of the nonce before what is sealed. So many can be drawn at random for ever (draft-irtf-cfrg-xchacha, 2.1).
const NONCE: usize = 24;
/// What [`Lock::kdf`] stands for: memory in KiB, passes and lanes of Argon2id, the second choice of RFC 9106, section 4.
const COST: (u32, u32, u32) = (65_536, 3, 4);
const ARGON2ID: u8 = 1;

/// Seals and opens, by XChaCha20-Poly1305. What was sealed in one context cannot be opened in another.
pub(super) struct Key(XChaCha20Poly1305);

impl Key {
    pub(super) fn new(secret: &[u8; 32]) -> Self {
        Self(XChaCha20Poly1305::new(secret.into()))
    }

    /// A nonce, and the sealed bytes with their tag.
    ///
    /// # Errors
    /// `Internal`.
    pub(super) fn seal(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        let nonce = random::<NONCE>()?;
        let payload = Payload { msg: plain, aad: context };
        let sealed = self.0.encrypt(&XNonce::from(nonce), payload);
        let sealed = sealed.map_err(|_| Error::internal("sealing"))?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// What was sealed; `None` if it was not this, not with this key, or not in this context.
    pub(super) fn open(&self, context: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE>()?;
        self.0.decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: context }).ok()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(secret)")
    }
}

/// The record that has the key, sealed with another one that is made from a passphrase.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Lock {
    /// How the passphrase becomes a key.
    kdf: u8,
    salt: [u8; 16],
    #[serde(with = "serde_bytes")]
    key: Vec<u8>,
    /// All that is to be sealed is, and nothing of before is left.
    pub(super) settled: bool,
}

impl Lock {
    /// Puts a key behind a passphrase. Takes a moment, by intention.
    ///
    /// # Errors
    /// `Internal`.
    pub(super) async fn new(secret: &[u8; 32], passphrase: &str, settled: bool) -> Result<Self> {
        let salt = random()?;
        let key = derive(passphrase, salt).await?.seal(&salt, secret)?;
        Ok(Self { kdf: ARGON2ID, salt, key, settled })
    }

    /// The key; `None` if it is another passphrase, or there is none.
    ///
    /// # Errors
    /// `Unsupported` for a lock of a newer version.
    pub(super) async fn open(&self, passphrase: Option<&str>) -> Result<Option<[u8; 32]>> {
        let Some(passphrase) = passphrase else { return Ok(None) };
        if self.kdf != ARGON2ID {
            return Err(Error::unsupported("the metadata was sealed by a newer version"));
        }
        let opened = derive(passphrase, self.salt).await?.open(&self.salt, &self.key);
        Ok(opened.and_then(|secret| secret.try_into().ok()))
    }
}

async fn derive(passphrase: &str, salt: [u8; 16]) -> Result<Key> {
    let passphrase = passphrase.to_owned();
    let work = move || {
        let (memory, passes, lanes) = COST;
        let mut secret = [0; 32];
        let params = Params::new(memory, passes, lanes, None)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon2.hash_password_into(passphrase.as_bytes(), &salt, &mut secret)?;
        Ok(Key::new(&secret))
    };
    let derived = tokio::task::spawn_blocking(work).await;
    let derived = derived.map_err(|error| Error::internal("a key from a passphrase").because(error))?;
    derived.map_err(|error: argon2::Error| Error::internal(format!("a key from a passphrase: {error}")))
}
