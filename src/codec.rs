//! The compact encoding of everything that is stored or sent between our own programs: MessagePack.
//!
//! Structures are encoded as arrays in the order of their fields, so a field may be added at the end of a
//! structure with `#[serde(default)]`, and never removed or moved.

use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, Result};

/// The media type of the encoding on the wire.
pub const MEDIA_TYPE: &str = "application/vnd.msgpack";

/// Encodes a value.
///
/// # Errors
/// `Internal` for a value that has no encoding, which none of ours is.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>> {
    rmp_serde::to_vec(value).map_err(|error| Error::internal("encoding a value").because(error))
}

/// Decodes a value; bytes after it are refused.
///
/// # Errors
/// `Invalid` when the bytes are not an encoding of `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let mut rest = bytes;
    let value = rmp_serde::from_read(&mut rest)
        .map_err(|error| Error::invalid(format!("not a valid encoding: {error}")))?;
    if !rest.is_empty() {
        return Err(Error::invalid("bytes after the end of the value"));
    }
    Ok(value)
}
