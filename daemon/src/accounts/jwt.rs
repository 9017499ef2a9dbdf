//! JSON Web Tokens: HS256 and nothing else (RFC 8725, 3.1).
//!
//! The first part of a token must be, byte for byte, the one that this daemon writes, so no field of a header is ever
//! acted on: no algorithm, no key by address, no key by name beyond our own few.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use tandemfs::{Error, Result};

use crate::random::random;

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
    /// Names the key; it is the `kid` of its tokens.
    id: String,
    /// As the file has it.
    hex: String,
    /// Since when another key signs, in seconds since 1970.
    replaced_s: Option<u64>,
    header: Header,
    /// The first part of every token that is signed with this key.
    prefix: String,
    sign: EncodingKey,
    verify: DecodingKey,
}

/// The keys: the first signs, all verify. One that was replaced verifies until the last token that it can have signed has expired.
///
/// As text, in the file and in the metadata, each has a line: 64 hexadecimal digits or more, and `replaced=` with the second in which another took its
/// place.
pub(super) struct Keys {
    keys: Vec<Key>,
    validation: Validation,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(secret)")
    }
}

impl Keys {
    /// One new key.
    ///
    /// # Errors
    /// `Internal`.
    pub(super) fn draw() -> Result<Self> {
        Self::parse(&hex::encode(random::<32>()?))
    }

    /// Reads the keys from the file `path`; `None` if there is none.
    ///
    /// # Errors
    /// `Invalid` for a file that others can read, or whose keys are too short.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        let mode = match std::fs::metadata(path) {
            Ok(metadata) => metadata.mode(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::from(error)),
        };
        if mode & 0o077 != 0 {
            return Err(Error::invalid(format!(
                "{} can be read by others (mode {:o}); it holds keys: chmod 600 it",
                path.display(),
                mode & 0o777
            )));
        }
        let keys = Self::parse(&std::fs::read_to_string(path)?);
        keys.map(Some).map_err(|error| Error::invalid(format!("{}: {}", path.display(), error.subject())))
    }

    /// Reads the keys from a text as [`Keys::text`] gives it.
    ///
    /// # Errors
    /// `Invalid`.
    pub(super) fn parse(text: &str) -> Result<Self> {
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

    /// The keys with a new one that signs from now on. Those whose tokens have all expired are left out.
    ///
    /// # Errors
    /// `Busy` when there would be too many that still have tokens.
    pub(super) fn rotated(&self, now_s: u64, ttl_s: u64) -> Result<Self> {
        let mut text = hex::encode(random::<32>()?);
        let live = self.keys.iter().filter(|key| key.is_live(now_s, ttl_s));
        for key in live {
            text.push_str(&key.line(Some(key.replaced_s.unwrap_or(now_s))));
        }
        Self::parse(&text).map_err(|_| Error::busy("too many keys still have tokens; wait until they expire"))
    }

    /// The keys without one, whose tokens end with it. In the place of the one that signs there is a new one.
    ///
    /// # Errors
    /// `NotFound`; as [`Keys::rotated`].
    pub(super) fn without(&self, id: &str, now_s: u64, ttl_s: u64) -> Result<Self> {
        let at = self.keys.iter().position(|key| key.id == id);
        let at = at.ok_or_else(|| Error::not_found("key"))?;
        let mut keys = if at == 0 { self.rotated(now_s, ttl_s)? } else { Self::parse(&self.text())? };
        keys.keys.retain(|key| key.id != id);
        Ok(keys)
    }

    /// What the file and the metadata hold.
    pub(super) fn text(&self) -> String {
        self.keys.iter().map(|key| key.line(key.replaced_s)).collect::<String>().trim_start().to_owned()
            + "\n"
    }

    /// The keys that count: the name of each, and since when another signs.
    pub(super) fn list(&self, now_s: u64, ttl_s: u64) -> impl Iterator<Item = (&str, Option<u64>)> {
        let live = self.keys.iter().filter(move |key| key.is_live(now_s, ttl_s));
        live.map(|key| (key.id.as_str(), key.replaced_s))
    }

    /// The name of the key that a token was signed with.
    pub(super) fn key_of(&self, token: &str) -> Option<&str> {
        let (prefix, _) = token.split_once('.')?;
        self.keys.iter().find(|key| key.prefix == prefix).map(|key| key.id.as_str())
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
        let key = self.keys.iter().find(|key| key.prefix == prefix && key.is_live(now_s, ttl_s))?;
        let claims = jsonwebtoken::decode::<Claims>(token, &key.verify, &self.validation).ok()?.claims;
        let fresh = claims.exp > now_s
            && claims.iat <= now_s.saturating_add(LEEWAY_S)
            && claims.exp <= now_s.saturating_add(ttl_s).saturating_add(LEEWAY_S);
        fresh.then_some(claims)
    }
}

impl Key {
    fn parse(line: &str) -> Result<Self> {
        let (hex, rest) = line.split_once(' ').unwrap_or((line, ""));
        let replaced_s = match rest.trim().strip_prefix("replaced=").map(str::parse) {
            Some(Ok(seconds)) => Some(seconds),
            None if rest.is_empty() => None,
            _ => return Err(Error::invalid("after a key there is nothing but replaced=SECONDS")),
        };
        let secret = hex::decode(hex)
            .ok()
            .filter(|secret| secret.len() >= 32)
            .ok_or_else(|| Error::invalid("a key is at least 32 bytes, written as 64 hexadecimal digits"))?;
        let mut header = Header::new(Algorithm::HS256);
        let name = blake3::derive_key("tandemfs 2026-01 name of a signing key", &secret);
        let id = hex::encode(&name[..4]);
        header.kid = Some(id.clone());
        let json = serde_json::to_vec(&header).map_err(|error| Error::internal("a header").because(error))?;
        Ok(Self {
            id,
            hex: hex.to_owned(),
            replaced_s,
            prefix: URL_SAFE_NO_PAD.encode(json),
            header,
            sign: EncodingKey::from_secret(&secret),
            verify: DecodingKey::from_secret(&secret),
        })
    }

    /// Its line, after those before it.
    fn line(&self, replaced_s: Option<u64>) -> String {
        let replaced = replaced_s.map(|seconds| format!(" replaced={seconds}")).unwrap_or_default();
        format!("\n{}{replaced}", self.hex)
    }

    /// Whether it can have signed a token that has not expired.
    fn is_live(&self, now_s: u64, ttl_s: u64) -> bool {
        self.replaced_s.is_none_or(|at| now_s <= at.saturating_add(ttl_s).saturating_add(LEEWAY_S))
    }
}

#[cfg(test)]
mod tests;
