//! Checked names of directory entries, and paths made of them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use utoipa::ToSchema;

use crate::{Error, Result};

/// The longest name, in bytes (NAME_MAX).
pub const NAME_MAX: usize = 255;
/// The longest path, in bytes (PATH_MAX without its terminator).
pub const PATH_MAX: usize = 4096;
/// The longest name of a user or a volume, in bytes.
const PLAIN_NAME_MAX: usize = 64;

/// A directory entry's name: 1 to 255 bytes, any but `/` and NUL, and neither `.` nor `..`.
///
/// In JSON it is a string where it is UTF-8 and `{"base64": "…"}` where it is not; in the compact encoding it
/// is its bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(value_type = TextOrBytes)]
pub struct Name(Box<[u8]>);

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// `NameTooLong`, or `Invalid` for an empty name, `.`, `..`, and one with `/` or NUL in it.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self> {
        let bytes = bytes.as_ref();
        if bytes.len() > NAME_MAX {
            return Err(Error::name_too_long(String::from_utf8_lossy(&bytes[..32]) + "…"));
        }
        if bytes.is_empty()
            || bytes == b"."
            || bytes == b".."
            || bytes.iter().any(|byte| matches!(byte, 0 | b'/'))
        {
            return Err(Error::invalid(format!("{:?} is not a file name", String::from_utf8_lossy(bytes))));
        }
        Ok(Self(bytes.into()))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name for people; what is not UTF-8 is replaced.
    pub fn to_lossy(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_lossy())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_lossy())
    }
}

/// How bytes that are usually text stand in JSON.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum TextOrBytes {
    /// UTF-8.
    Text(String),
    /// Anything else.
    Bytes {
        /// The bytes in Base64.
        base64: String,
    },
}

/// Serializes bytes as a JSON string where they are UTF-8, else as `{"base64": …}`; as bytes where the format
/// is binary. For `#[serde(with = "tandemfs::name::text_or_bytes")]`.
pub mod text_or_bytes {
    use super::TextOrBytes;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    /// See the module.
    #[expect(clippy::missing_errors_doc, reason = "serde's contract")]
    pub fn serialize<S: Serializer>(bytes: &impl AsRef<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = bytes.as_ref();
        if !serializer.is_human_readable() {
            return serde_bytes::Bytes::new(bytes).serialize(serializer);
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => TextOrBytes::Bytes { base64: STANDARD.encode(bytes) }.serialize(serializer),
        }
    }

    /// See the module.
    #[expect(clippy::missing_errors_doc, reason = "serde's contract")]
    pub fn deserialize<'de, D: Deserializer<'de>, T: From<Vec<u8>>>(deserializer: D) -> Result<T, D::Error> {
        if !deserializer.is_human_readable() {
            return serde_bytes::ByteBuf::deserialize(deserializer).map(|bytes| bytes.into_vec().into());
        }
        match TextOrBytes::deserialize(deserializer)? {
            TextOrBytes::Text(text) => Ok(text.into_bytes().into()),
            TextOrBytes::Bytes { base64 } => {
                STANDARD.decode(base64).map(Into::into).map_err(D::Error::custom)
            }
        }
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        text_or_bytes::serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: Vec<u8> = text_or_bytes::deserialize(deserializer)?;
        Self::new(bytes).map_err(serde::de::Error::custom)
    }
}

/// Checks a name that an admin gives to a user or a volume: one spelling for one thing, and nothing that a log, a path, a mount option or a
/// header could take for more than a name. `what` is for the message.
///
/// # Errors
/// `Invalid`.
pub fn check_plain(what: &str, name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    let good = bytes.len() <= PLAIN_NAME_MAX
        && bytes.first().is_some_and(|first| plain(*first))
        && bytes.iter().all(|byte| plain(*byte) || b"._-".contains(byte));
    if good {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "a {what} name has 1 to {PLAIN_NAME_MAX} of a-z 0-9 . _ - and begins with a letter or a digit"
    )))
}

/// Splits a path from the root of a volume into names: leading, trailing and repeated slashes and `.` count for
/// nothing, `..` is refused because a path here is data and leads nowhere else.
///
/// # Errors
/// `NameTooLong` over 4096 bytes in all or 255 in one name, `Invalid` for `..` and NUL.
pub fn split_path(path: impl AsRef<[u8]>) -> Result<Vec<Name>> {
    let path = path.as_ref();
    if path.len() > PATH_MAX {
        return Err(Error::name_too_long("path of more than 4096 bytes"));
    }
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").map(Name::new).collect()
}

/// Joins names into an absolute path.
pub fn join_path(names: &[Name]) -> Vec<u8> {
    if names.is_empty() {
        return b"/".to_vec();
    }
    names.iter().flat_map(|name| std::iter::once(b'/').chain(name.as_bytes().iter().copied())).collect()
}

#[cfg(test)]
mod tests {
    use super::{Name, check_plain, join_path, split_path};

    #[test]
    fn names_of_users_and_volumes_are_plain() {
        for good in ["a", "0", "team-1.b_c", &"x".repeat(64)] {
            check_plain("volume", good).unwrap();
        }
        for bad in ["", "A", ".a", "-a", "_a", "a b", "a/b", "a,b", "a=b", "ä", "a\n", &"x".repeat(65)] {
            assert!(check_plain("volume", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_are_checked() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
        for good in [&b"a"[..], b"...", b"\xff\xfe", b"a\nb", &[b'x'; 255]] {
            assert!(Name::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn paths_are_split_and_joined() {
        let names = split_path("//a/./b//c/").unwrap();
        assert_eq!(join_path(&names), b"/a/b/c");
        assert_eq!(join_path(&split_path("/").unwrap()), b"/");
        assert!(split_path("a/../b").is_err());
    }

    #[test]
    fn json_keeps_names_that_are_not_text() {
        for bytes in [&b"plain"[..], b"\xff\x00x".get(..1).unwrap()] {
            let name = Name::new(bytes).unwrap();
            let json = serde_json::to_string(&name).unwrap();
            assert_eq!(serde_json::from_str::<Name>(&json).unwrap(), name);
            let packed = crate::codec::encode(&name).unwrap();
            assert_eq!(crate::codec::decode::<Name>(&packed).unwrap(), name);
        }
    }
}
