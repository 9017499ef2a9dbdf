//! Uploads: a body becomes blocks as it comes, and a file in one commit at the end.

use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tandemfs::api::files::File;
use tandemfs::api::fs::{BLOCK_SIZE_MAX, INLINE_MAX};
use tandemfs::block::Draft;
use tandemfs::id::{BlockId, Ino};
use tandemfs::name::Name;
use tandemfs::tree::{Credentials, Inode, Kind, Mutation, NewNode, Outcome, WorkingSet, WrittenExtent};
use tandemfs::{Error, Result};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::super::commit::Change;
use super::super::volume::Volume;
use super::{Preconditions, Volumes, etag, file};
use crate::accounts::Caller;

/// Blocks of one upload that are being stored at once.
const IN_FLIGHT: usize = 4;
/// Directories that an upload may make.
const DIRECTORIES_MAX: usize = 256;

/// An upload under way. Until it is finished nothing of it is in the tree; what is given up is collected as garbage.
#[derive(Debug)]
pub struct Upload {
    volume: Arc<Volume>,
    path: Vec<Name>,
    preconditions: Preconditions,
    buffer: Draft,
    hasher: Sha256,
    extents: Vec<WrittenExtent>,
    size: u64,
    size_max: u64,
    room: u64,
    storing: VecDeque<JoinHandle<Result<()>>>,
    limit: Arc<Semaphore>,
    /// Copies of each block that are wanted.
    replicas: u32,
}

impl Volumes {
    /// Begins an upload to a path of the caller's home volume.
    ///
    /// # Errors
    /// `Invalid` for the root; `Stale` when a precondition does not hold; `AlreadyExists` when the path is taken;
    /// `NotADirectory`.
    pub async fn upload(
        &self,
        caller: &Caller,
        path: Vec<Name>,
        preconditions: Preconditions,
    ) -> Result<Upload> {
        if path.is_empty() {
            return Err(Error::invalid("the path names no file"));
        }
        if path.len() > DIRECTORIES_MAX {
            return Err(Error::invalid(format!("the path is deeper than {DIRECTORIES_MAX} directories")));
        }
        let volume = self.volume(caller.home).await?;
        let usage = volume
            .query(|set| {
                parents(set, &path, &preconditions)?;
                set.usage()
            })
            .await?;
        Ok(Upload {
            volume,
            path,
            preconditions,
            buffer: Draft::default(),
            hasher: Sha256::new(),
            extents: Vec::new(),
            size: 0,
            size_max: self.settings.max_file_size,
            room: usage.quota_bytes.map_or(u64::MAX, |quota| quota.saturating_sub(usage.bytes)),
            storing: VecDeque::new(),
            limit: Arc::clone(&self.upload_blocks),
            replicas: self.settings.replicas,
        })
    }

    /// The largest file that may be uploaded, in bytes.
    pub fn max_file_size(&self) -> u64 {
        self.settings.max_file_size
    }
}

impl Upload {
    /// Takes the next bytes; waits while enough of those before are being stored.
    ///
    /// # Errors
    /// `TooLarge`; `QuotaExceeded` as soon as it is clear; those of storing a block.
    pub async fn write(&mut self, mut data: Bytes) -> Result<()> {
        self.size = self.size.saturating_add(data.len() as u64);
        if self.size > self.size_max {
            return Err(Error::too_large(format!("a file may have {} bytes", self.size_max)));
        }
        if self.size > self.room {
            return Err(Error::quota_exceeded("bytes of the home volume"));
        }
        self.hasher.update(&data);
        while !data.is_empty() {
            let some = data.split_to(data.len().min(BLOCK_SIZE_MAX - self.buffer.data().len()));
            self.buffer.push(&some)?;
            if self.buffer.data().len() == BLOCK_SIZE_MAX {
                self.store().await?;
            }
        }
        Ok(())
    }

    /// Makes the file.
    ///
    /// # Errors
    /// As [`Volumes::upload`] and [`Upload::write`]; `QuotaExceeded`; nothing has changed then.
    pub async fn finish(mut self) -> Result<File> {
        let mut inline = BTreeMap::new();
        if (1..=INLINE_MAX).contains(&self.buffer.data().len()) {
            let data = Bytes::copy_from_slice(self.buffer.data());
            inline.insert(self.add(self.buffer.data().len(), BlockId::of(&self.volume.key, &data)), data);
        } else if !self.buffer.data().is_empty() {
            self.store().await?;
        }
        while let Some(stored) = self.storing.pop_front() {
            joined(stored).await?;
        }
        let sha256 = self.hasher.finalize().to_vec();
        let volume = Arc::clone(&self.volume);
        let inos = volume.new_inos(self.path.len()).await?;
        let time = volume.shared.now();
        let (path, preconditions) = (&self.path, &self.preconditions);
        let (extents, size) = (&self.extents, self.size);
        let ino = inos.last().copied().unwrap_or(Ino::ROOT);
        let change = Change::planned(move |set| {
            let (mut parent, missing) = parents(set, path, preconditions)?;
            let by = Credentials { uid: parent.uid, gid: parent.gid };
            let mut mutations = Vec::new();
            let (last, directories) =
                missing.split_last().ok_or_else(|| Error::internal("no name is missing"))?;
            for (name, ino) in directories.iter().zip(&inos) {
                let (name, node, mode) = (name.clone(), NewNode::Directory, 0o755);
                mutations.push(Mutation::Create {
                    parent: parent.ino,
                    name,
                    ino: *ino,
                    node,
                    mode,
                    by,
                    time,
                });
                parent.ino = *ino;
            }
            let (name, node) = (last.clone(), NewNode::File);
            mutations.push(Mutation::Create { parent: parent.ino, name, ino, node, mode: 0o644, by, time });
            let mut content = NEW_CONTENT;
            if size > 0 {
                let extents = extents.clone();
                mutations.push(Mutation::Write { ino, extents, size, clear_privileges: false, time });
                content += 1;
            }
            mutations.push(Mutation::SetDigest { ino, content, sha256: sha256.clone() });
            Ok(mutations)
        });
        // One that comes with the commit has as many copies as are wanted.
        let blocks = extents.iter().map(|extent| extent.block).filter(|block| !inline.contains_key(block));
        let replicas = volume.least_copies(&blocks.collect::<Vec<_>>(), self.replicas).await?;
        let reply = volume.commit(Change { blocks: inline, ..change }).await?;
        let made = reply.records.into_iter().find_map(|(_, record)| match record {
            Some(tandemfs::tree::Record::Inode(inode)) if inode.ino == ino => Some(*inode),
            _ => None,
        });
        let inode = made.ok_or_else(|| Error::internal("an upload made no file"))?;
        Ok(file(volume.id, &inode, &self.path, replicas))
    }

    /// Begins to store what is in the buffer.
    async fn store(&mut self) -> Result<()> {
        while self.storing.len() >= IN_FLIGHT {
            if let Some(first) = self.storing.pop_front() {
                joined(first).await?;
            }
        }
        let permit = Arc::clone(&self.limit).acquire_owned().await;
        let permit = permit.map_err(|_| Error::unavailable("the daemon is stopping"))?;
        let data = std::mem::take(&mut self.buffer);
        let block = self.add(data.data().len(), BlockId::of(&self.volume.key, data.data()));
        let volume = Arc::clone(&self.volume);
        self.storing.push_back(tokio::spawn(async move {
            let stored = volume.shared.replicator.put(volume.id, block, data).await;
            drop(permit);
            stored
        }));
        Ok(())
    }
}

impl Upload {
    /// The file goes on with a block.
    fn add(&mut self, length: usize, block: BlockId) -> BlockId {
        let offset = self.extents.last().map_or(0, |last| last.offset + last.length);
        self.extents.push(WrittenExtent { offset, length: length as u64, block, block_offset: 0 });
        block
    }
}

/// What [`Inode::content`] is of a file that has just been made.
const NEW_CONTENT: u64 = 0;

async fn joined(stored: JoinHandle<Result<()>>) -> Result<()> {
    stored.await.unwrap_or_else(|error| Err(Error::internal("storing a block was cut short").because(error)))
}

/// The deepest directory of a path that is there, and the names below it that are not, the file's own last. What is at the path
/// decides about the preconditions, which come before the rule that an upload replaces nothing (RFC 9110, section 13.2.1).
fn parents(set: &WorkingSet, path: &[Name], preconditions: &Preconditions) -> Outcome<(Inode, Vec<Name>)> {
    let mut parent = set.directory(Ino::ROOT)?.clone();
    for (depth, name) in path.iter().enumerate() {
        let Some(entry) = set.entry(parent.ino, name)? else {
            preconditions.check(None)?;
            return Ok((parent, path[depth..].to_vec()));
        };
        if depth + 1 == path.len() {
            preconditions.check(Some(&etag(set.inode_ref(entry.ino)?)))?;
            return Err(Error::already_exists(name.to_lossy()).into());
        }
        if entry.kind != Kind::Directory {
            return Err(Error::not_a_directory(name.to_lossy()).into());
        }
        parent = set.directory(entry.ino)?.clone();
    }
    Err(Error::invalid("the path names no file").into())
}

impl Volume {
    /// Numbers for inodes that are made here.
    async fn new_inos(&self, count: usize) -> Result<Vec<Ino>> {
        let mut state = self.lock().await;
        let mut inos = Vec::with_capacity(count);
        for _ in 0..count {
            inos.push(self.new_ino(&mut state).await?);
        }
        Ok(inos)
    }
}
