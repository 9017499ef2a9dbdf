//! How records are stored, and the daemon's own records beside those of the trees.
//!
//! A stored value is one byte of version, the record in the compact encoding, and eight bytes of BLAKE3 over the key and
//! all before, so that a damaged or misplaced row is found when it is read (faults.md R4's rule for metadata).

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tandemfs::clock::Time;
use tandemfs::id::{BlockId, Ino, NodeId, SessionId, UserId, VolumeId, VolumeKey};
use tandemfs::{Error, Result, codec};

const VERSION: u8 = 1;
/// The first byte of a value that is sealed ([`crate::seal`]), whose record is inside.
pub const SEALED: u8 = 2;
const CHECK: usize = 8;

fn check(key: &[u8], body: &[u8]) -> [u8; CHECK] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_be_bytes());
    hasher.update(key);
    hasher.update(body);
    let mut check = [0; CHECK];
    hasher.finalize_xof().fill(&mut check);
    check
}

/// Encodes a record for the value under `key`.
///
/// # Errors
/// Those of [`codec::encode`].
pub fn encode<T: Serialize + ?Sized>(key: &[u8], record: &T) -> Result<Vec<u8>> {
    let mut value = vec![VERSION];
    value.extend(codec::encode(record)?);
    let check = check(key, &value);
    value.extend(check);
    Ok(value)
}

/// Decodes the value under `key`.
///
/// # Errors
/// `Corrupt` when it is damaged or belongs under another key.
pub fn decode<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T> {
    let corrupt = |what: &str| Error::corrupt(format!("metadata record {}: {what}", hex::encode(key)));
    if value.first() == Some(&SEALED) {
        return Err(corrupt("it is sealed"));
    }
    let (body, stored) = value.split_last_chunk::<CHECK>().ok_or_else(|| corrupt("too short"))?;
    if check(key, body) != *stored {
        return Err(corrupt("wrong checksum"));
    }
    match body.split_first() {
        Some((&VERSION, record)) => {
            codec::decode(record).map_err(|error| corrupt("no valid record").because(error))
        }
        _ => Err(corrupt("unknown version")),
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its number.
    pub id: VolumeId,
    /// A shared volume's name; `None` for a home volume.
    pub name: Option<String>,
    /// Whose home it is; `None` for a shared one.
    pub owner: Option<UserId>,
    /// The key of its block ids.
    pub key: VolumeKey,
    /// When it was made.
    pub created: Time,
    /// It is being removed; nothing may use it any more.
    pub removed: bool,
}

/// Where a block's bytes are. Changed only under the block's lock of the replicator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Bytes of data.
    pub size: u32,
    /// Where they lie.
    pub place: Place,
    /// Nodes that are known to have a good copy of its object, in the order of their numbers; none for a block without one.
    pub replicas: Vec<NodeId>,
    /// How many blocks lie in this one.
    pub members: u32,
    /// When it was last stored, in milliseconds since 1970: its grace period begins anew.
    pub stored_ms: u64,
    /// The collector has decided to remove it and may not have finished.
    pub deleting: bool,
    /// Bytes of the blocks that lie in this one.
    #[serde(default)]
    pub member_bytes: u32,
}

/// Where the bytes of a block lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// In an object of its own.
    #[default]
    Object,
    /// In the metadata, under `d`: what came with the commit that named it.
    Inline,
    /// In the object of another block of the volume, a pack.
    Pack {
        /// The pack.
        block: BlockId,
        /// Where in it they begin.
        offset: u32,
    },
}

/// How often the extents of a volume's files refer to a block. Changed only under the volume's lock. A block that was never
/// referred to has no such record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct References {
    /// How many extents.
    pub count: u64,
    /// Since when there are none, in milliseconds since 1970; 0 while there are some.
    pub unused_since_ms: u64,
}

/// A mount's session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its number.
    pub id: SessionId,
    /// Whose it is.
    pub user: UserId,
    /// On which volume.
    pub volume: VolumeId,
    /// It may not change anything.
    pub read_only: bool,
    /// Host and mount point, for people.
    pub client: String,
    /// When it was opened.
    pub opened: Time,
    /// Inode numbers that it was granted: first and count.
    pub inodes: Vec<(Ino, u64)>,
}
