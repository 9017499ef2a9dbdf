//! JSON Web Tokens: HS256 and nothing else (RFC 8725, 3.1).
//!
//! The first part of a token must be, byte for byte, the one that this daemon writes, so no field of a header is ever
//! acted on: no algorithm, no key by address, no key by name beyond our own few.

use std::fmt;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use tandemfs::{Error, Result};

const ISSUER: &str = "tandemfs";
const AUDIENCE: &str = "tandemfs:api";
/// Longer than any token that we make.
const TOKEN_BYTES_MAX: usize = 2048;
const KEYS_MAX: usize = 8;
/// How far the clocks of one machine may be turned back without ending fresh tokens, in seconds.
const LEEWAY_S: u64 = 5;

/// What a token says. A token with any other claim is not one of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Claims {
    pub(super) iss: String,
    pub(super) aud: String,
    /// The user's number.
    pub(super) sub: String,
    pub(super) iat: u64,
    pub(super) exp: u64,
    /// Names the token, so that it can be revoked.
    pub(super) jti: String,
    /// The user's generation.
    pub(super) ver: u64,
}

struct Key {
    header: Header,
    /// The first part of every token that is signed with this key.
    prefix: String,
    sign: EncodingKey,
    verify: DecodingKey,
}

/// The keys: the first signs, all verify. One of them is replaced by putting a new first line into the file and
/// taking the old one out when its last token has expired.
pub(super) struct Keys {
    keys: Vec<Key>,
    validation: Validation,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(secret)")
    }
}

/// Random bytes from the operating system.
pub(super) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| Error::internal("the system gives no randomness").because(error))?;
    Ok(bytes)
}

impl Keys {
    /// Reads the keys from `path`, or makes one there.
    ///
    /// # Errors
    /// `Invalid` for a file that others can read, or whose keys are too short.
    pub(super) fn open(path: &Path) -> Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(mut file) => {
                file.write_all(format!("{}\n", hex::encode(random::<32>()?)).as_bytes())?;
                file.sync_all()?;
                if let Some(directory) = path.parent() {
                    std::fs::File::open(directory)?.sync_all()?;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::from(error)),
        }
        let mode = std::fs::metadata(path)?.mode();
        if mode & 0o077 != 0 {
            return Err(Error::invalid(format!(
                "{} can be read by others (mode {:o}); it holds keys: chmod 600 it",
                path.display(),
                mode & 0o777
            )));
        }
        Self::parse(&std::fs::read_to_string(path)?)
            .map_err(|error| Error::invalid(format!("{}: {}", path.display(), error.subject())))
    }

    fn parse(text: &str) -> Result<Self> {
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() || lines.len() > KEYS_MAX {
            return Err(Error::invalid(format!("wants 1 to {KEYS_MAX} keys, a line each")));
        }
        let keys = lines.into_iter().map(Key::parse).collect::<Result<Vec<_>>>()?;
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        // Times are checked against the daemon's own clock, below.
        validation.validate_exp = false;
        Ok(Self { keys, validation })
    }

    /// A token for a user, and its claims.
    ///
    /// # Errors
    /// `Internal`.
    pub(super) fn sign(
        &self,
        user: u64,
        generation: u64,
        now_s: u64,
        ttl_s: u64,
    ) -> Result<(String, Claims)> {
        let key = self.keys.first().ok_or_else(|| Error::internal("no key"))?;
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: user.to_string(),
            iat: now_s,
            exp: now_s.saturating_add(ttl_s),
            jti: hex::encode(random::<16>()?),
            ver: generation,
        };
        let token = jsonwebtoken::encode(&key.header, &claims, &key.sign)
            .map_err(|error| Error::internal("signing a token").because(error))?;
        Ok((token, claims))
    }

    /// The claims of a token that this daemon signed and that has not expired.
    pub(super) fn verify(&self, token: &str, now_s: u64, ttl_s: u64) -> Option<Claims> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (prefix, _) = token.split_once('.')?;
        let key = self.keys.iter().find(|key| key.prefix == prefix)?;
        let claims = jsonwebtoken::decode::<Claims>(token, &key.verify, &self.validation).ok()?.claims;
        let fresh = claims.exp > now_s
            && claims.iat <= now_s.saturating_add(LEEWAY_S)
            && claims.exp <= now_s.saturating_add(ttl_s).saturating_add(LEEWAY_S);
        fresh.then_some(claims)
    }
}

impl Key {
    fn parse(line: &str) -> Result<Self> {
        let secret = hex::decode(line)
            .ok()
            .filter(|secret| secret.len() >= 32)
            .ok_or_else(|| Error::invalid("a key is at least 32 bytes, written as 64 hexadecimal digits"))?;
        let mut header = Header::new(Algorithm::HS256);
        let name = blake3::derive_key("tandemfs 2026-01 name of a signing key", &secret);
        header.kid = Some(hex::encode(&name[..4]));
        let json = serde_json::to_vec(&header).map_err(|error| Error::internal("a header").because(error))?;
        Ok(Self {
            prefix: URL_SAFE_NO_PAD.encode(json),
            header,
            sign: EncodingKey::from_secret(&secret),
            verify: DecodingKey::from_secret(&secret),
        })
    }
}

#[cfg(test)]
mod tests;
