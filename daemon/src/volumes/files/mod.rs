//! Files as people see them: regular files of a home volume, by path and by id.

mod download;
mod list;
mod precondition;
mod upload;

use futures::StreamExt;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tandemfs::api::files::{File, FileBlock, FileDetail, NodeState, Replica, Storage};
use tandemfs::id::{BlockId, FileId, Ino, VolumeId};
use tandemfs::name::{Name, join_path};
use tandemfs::tree::{self, Chunk, Credentials, Inode, Key, Mutation, Outcome, Record, Want, WorkingSet};
use tandemfs::{Error, Result};

pub use self::download::Download;
pub use self::precondition::{Preconditions, RangeAnswer, etag, range_of};
pub use self::upload::Upload;

use super::Volumes;
use super::commit::Change;
use super::volume::Volume;
use crate::accounts::Caller;

/// The most blocks that the detail of one file names.
const BLOCKS_MAX: usize = 10_000;
/// Files up to this many bytes are hashed when somebody asks for the hash.
const HASH_MAX: u64 = 64 << 20;
/// Blocks whose records are read at once.
const BLOCKS_PAGE: usize = 1000;
/// Chunks that are read at once.
const CHUNKS_PAGE: usize = 64;

/// Root of the volume, for changes by its owner: sticky directories do not hold the owner back.
const OWNER: Credentials = Credentials { uid: 0, gid: 0 };

impl Volumes {
    /// A file, where its blocks are, and its SHA-256 if the file is not too large to compute that now.
    ///
    /// # Errors
    /// `NotFound` for everything that is not a file of the caller's; `Unavailable`.
    pub async fn stat(&self, caller: &Caller, id: &str) -> Result<FileDetail> {
        let (volume, ino) = self.find(caller, id).await?;
        let mut inode = volume.file(ino).await?;
        if inode.sha256.is_none() && inode.size <= HASH_MAX {
            inode.sha256 = self.hash(&volume, &inode).await?;
        }
        let path = volume.path(ino).await?;
        let (mut blocks, mut next, mut truncated) = (Vec::new(), Some(0), false);
        let mut least = self.settings.replicas;
        while let Some(from) = next {
            let (chunks, after) = volume.some_chunks(ino, from).await?;
            for (number, chunk) in chunks {
                let places = volume.places(&blocks_of(&chunk)).await?;
                for (extent, replicas) in chunk.0.iter().zip(places) {
                    least = least.min(healthy(&replicas));
                    if blocks.len() == BLOCKS_MAX {
                        truncated = true;
                    } else {
                        let offset = number * tree::CHUNK_SIZE + u64::from(extent.start);
                        blocks.push(FileBlock { offset, length: u64::from(extent.length), replicas });
                    }
                }
            }
            next = after;
        }
        let file = file(volume.id, &inode, &path, least);
        Ok(FileDetail { file, blocks, blocks_truncated: truncated })
    }

    /// Deletes a file, with all its links.
    ///
    /// # Errors
    /// As [`Volumes::stat`]; `Stale` when a precondition does not hold.
    pub async fn delete(&self, caller: &Caller, id: &str, preconditions: &Preconditions) -> Result<()> {
        let (volume, ino) = self.find(caller, id).await?;
        let time = self.shared.now();
        let change = Change::planned(move |set| {
            let inode = file_in(set, ino)?;
            preconditions.check(Some(&etag(&inode)))?;
            let unlink = |parent, name| Mutation::Unlink { parent, name, by: OWNER, time };
            let mut mutations: Vec<Mutation> = set
                .range(&Want::Links(ino))?
                .into_iter()
                .filter_map(|link| match link {
                    Key::Link(_, parent, name) => Some(unlink(parent, name)),
                    _ => None,
                })
                .collect();
            let first = inode.name.ok_or_else(no_such_file)?;
            mutations.push(unlink(inode.parent, first));
            Ok(mutations)
        });
        volume.commit(change).await.map(drop)
    }

    /// What the caller uses and may use.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn storage(&self, caller: &Caller) -> Result<Storage> {
        self.storage_of(caller.home).await
    }

    /// The caller's volume and the inode that an id names there.
    async fn find(&self, caller: &Caller, id: &str) -> Result<(Arc<Volume>, Ino)> {
        let id: FileId = id.parse().map_err(|_| no_such_file())?;
        if id.volume != caller.home {
            return Err(no_such_file());
        }
        Ok((self.volume(caller.home).await?, id.ino))
    }

    /// The least number of copies on healthy nodes that any block of a file has.
    async fn least_replicas(&self, volume: &Volume, inode: &Inode) -> Result<u32> {
        let counts = self.shared.replicator.counts();
        let mut least = self.settings.replicas;
        if inode.allocated == 0 || (counts.under_replicated == 0 && counts.lost == 0) {
            return Ok(least);
        }
        let mut next = Some(0);
        while let Some(from) = next {
            let (chunks, after) = volume.some_chunks(inode.ino, from).await?;
            for (_, chunk) in chunks {
                least = volume.least_copies(&blocks_of(&chunk), least).await?;
            }
            next = after;
        }
        Ok(least)
    }

    /// Computes a file's SHA-256 and remembers it. `None` when the file has changed meanwhile.
    async fn hash(&self, volume: &Arc<Volume>, inode: &Inode) -> Result<Option<Vec<u8>>> {
        let mut hasher = Sha256::new();
        let mut pieces = self.pieces(volume, inode, 0..inode.size);
        while let Some(piece) = pieces.next().await {
            match piece {
                Ok(piece) => hasher.update(&piece),
                Err(error) => {
                    log::warn!("hashing inode {} of volume {}: {error}", inode.ino, volume.id);
                    return Ok(None);
                }
            }
        }
        let sha256 = hasher.finalize().to_vec();
        let set = Mutation::SetDigest { ino: inode.ino, content: inode.content, sha256: sha256.clone() };
        if let Err(error) = volume.commit(Change { quiet: true, ..Change::own(vec![set]) }).await {
            log::debug!("a digest was not kept: {error}");
        }
        Ok(Some(sha256))
    }
}

impl Volume {
    /// A regular file with links.
    async fn file(&self, ino: Ino) -> Result<Inode> {
        self.query(|set| file_in(set, ino)).await
    }

    /// The path of a file by its first link.
    async fn path(&self, ino: Ino) -> Result<Vec<Name>> {
        self.query(|set| tree::path_of(set, ino)).await
    }

    /// Where the copies of some blocks are.
    async fn places(&self, blocks: &[BlockId]) -> Result<Vec<Vec<Replica>>> {
        self.shared.replicator.copies(self.id, blocks).await
    }

    /// The least number of copies on healthy nodes that any of some blocks has, and at most `wanted`.
    async fn least_copies(&self, blocks: &[BlockId], wanted: u32) -> Result<u32> {
        let mut least = wanted;
        for some in blocks.chunks(BLOCKS_PAGE) {
            let places = self.places(some).await?;
            least = places.iter().map(|replicas| healthy(replicas)).fold(least, u32::min);
        }
        Ok(least)
    }

    /// Some of a file's chunks from one on, and where to go on.
    async fn some_chunks(&self, ino: Ino, from: u64) -> Result<(Vec<(u64, Chunk)>, Option<u64>)> {
        let answer = self.read(None, &[Want::Chunks { ino, from, to: u64::MAX }]).await?.answers.pop();
        let answer = answer.ok_or_else(|| Error::internal("a want without an answer"))?;
        let chunks: Vec<(u64, Chunk)> = chunks_of(answer.records).collect();
        let next = chunks.last().filter(|_| !answer.complete).map(|(number, _)| number + 1);
        Ok((chunks, next))
    }
}

/// The chunks among some records.
fn chunks_of(records: Vec<(Key, Option<Record>)>) -> impl Iterator<Item = (u64, Chunk)> {
    records.into_iter().filter_map(|(key, record)| match (key, record) {
        (Key::Chunk(_, number), Some(Record::Chunk(chunk))) => Some((number, chunk)),
        _ => None,
    })
}

/// A regular file with links, in a working set.
fn file_in(set: &WorkingSet, ino: Ino) -> Outcome<Inode> {
    match set.get(&Key::Inode(ino))? {
        Some(Record::Inode(inode)) if inode.is_file() && inode.nlink > 0 => Ok(inode.as_ref().clone()),
        _ => Err(no_such_file().into()),
    }
}

/// The same for what is not there, is not the caller's, and is no file.
fn no_such_file() -> Error {
    Error::not_found("file")
}

fn blocks_of(chunk: &Chunk) -> Vec<BlockId> {
    chunk.0.iter().map(|extent| extent.block).collect()
}

fn healthy(replicas: &[Replica]) -> u32 {
    let healthy = replicas.iter().filter(|replica| replica.state == NodeState::Healthy);
    u32::try_from(healthy.count()).unwrap_or(u32::MAX)
}

/// A file as the API shows it.
fn file(volume: VolumeId, inode: &Inode, path: &[Name], replicas: u32) -> File {
    use base64::Engine;
    let bytes = join_path(path);
    let path_base64 = std::str::from_utf8(&bytes)
        .is_err()
        .then(|| base64::engine::general_purpose::STANDARD.encode(&bytes));
    File {
        file_id: FileId { volume, ino: inode.ino }.to_string(),
        name: path.last().map(Name::to_lossy).unwrap_or_default(),
        path: String::from_utf8_lossy(&bytes).into_owned(),
        path_base64,
        size: inode.size,
        sha256: inode.sha256.as_ref().map(hex::encode),
        created: inode.btime.to_rfc3339(),
        modified: inode.mtime.to_rfc3339(),
        replicas,
    }
}
