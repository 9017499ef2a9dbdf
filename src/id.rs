//! Identifiers. Numbers that mean different things are different types.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use utoipa::ToSchema;

use crate::{Error, Result};

macro_rules! number_ids {
    ($( $(#[$doc:meta])* $name:ident($number:ty); )*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub $number);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                text.parse().map(Self).map_err(|_| Error::invalid(format!("{text:?} is not a number")))
            }
        }
    )* };
}

number_ids! {
    /// A volume: one directory tree with its own key, quota and grants.
    VolumeId(u64);
    /// An inode of a volume. Never used twice.
    Ino(u64);
    /// A user.
    UserId(u64);
    /// A storage node.
    NodeId(u32);
    /// A background job.
    JobId(u64);
    /// A mount's session. Not a secret: every request is authenticated as well.
    SessionId(u64);
}

impl Ino {
    /// The root directory of every volume.
    pub const ROOT: Self = Self(1);
}

/// A block's name: the keyed BLAKE3 hash of its bytes under the key of its volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(value_type = String, pattern = "^[0-9a-f]{64}$")]
pub struct BlockId(pub [u8; 32]);

impl BlockId {
    /// The id of `data` in the volume that has `key`.
    pub fn of(key: &VolumeKey, data: &[u8]) -> Self {
        Self(*blake3::keyed_hash(&key.0, data).as_bytes())
    }
}

/// The secret under which a volume's block ids are made, so that nobody outside of the volume can guess one.
#[derive(Clone, PartialEq, Eq, ToSchema)]
#[schema(value_type = String, pattern = "^[0-9a-f]{64}$")]
pub struct VolumeKey(pub [u8; 32]);

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKey(secret)")
    }
}

macro_rules! hex_bytes {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                let mut bytes = [0; 32];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| {
                    Error::invalid(concat!(stringify!($name), " is not 64 hexadecimal digits"))
                })?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.serialize_str(&hex::encode(self.0))
                } else {
                    serde_bytes::Bytes::new(&self.0).serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
                } else {
                    serde_bytes::ByteArray::<32>::deserialize(deserializer)
                        .map(|bytes| Self(bytes.into_array()))
                }
            }
        }
    };
}

hex_bytes!(BlockId);
hex_bytes!(VolumeKey);

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockId({})", hex::encode(&self.0[..4]))
    }
}

/// What people and scripts call a file by: opaque to them, the same for as long as the file lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// The volume that the file is in.
    pub volume: VolumeId,
    /// Its inode there.
    pub ino: Ino,
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "f{:x}-{:x}", self.volume.0, self.ino.0)
    }
}

impl FromStr for FileId {
    type Err = Error;

    /// # Errors
    /// `NotFound`: what is not an id names no file.
    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (volume, ino) = text.strip_prefix('f')?.split_once('-')?;
            let id = Self {
                volume: VolumeId(u64::from_str_radix(volume, 16).ok()?),
                ino: Ino(u64::from_str_radix(ino, 16).ok()?),
            };
            // One spelling for one file: no leading zeros, no upper case, no sign.
            (id.to_string() == text).then_some(id)
        };
        parse().ok_or_else(|| Error::not_found("file"))
    }
}

impl Serialize for FileId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FileId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
