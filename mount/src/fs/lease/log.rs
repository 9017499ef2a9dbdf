//! The log of the queue, a file in the cache directory: what was answered and is not sent survives the process. It is never synced, for what
//! was not synced may be lost with the machine, as on a local disk; then the log is of an earlier boot, and is not looked at.
//!
//! A frame is the length of its body (4 bytes, little endian), the first [`SUM`] bytes of the block id of the body under the volume's key, and
//! the body: a letter and the encoding of a tuple. The data of a block that is stored before its change is sent is a frame of its own before
//! that change, once; it has no letter, and its checksum is the second [`SUM`] bytes of its id. The first frame that is not whole or not right
//! ends the log.

mod left;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tandemfs::api::fs::BLOCK_SIZE_MAX;
use tandemfs::codec::encode;
use tandemfs::id::{BlockId, Ino, SessionId, VolumeKey};
use tandemfs::tree::Mutation;

pub(in crate::fs) use left::{Left, Orphaned, orphaned};

/// Bytes of a checksum.
const SUM: usize = 8;
/// The longest body, in bytes. A change is smaller.
const BODY_MAX: usize = 16 << 20;
/// A log of so many bytes is begun anew when nothing waits to be sent.
const LONG: u64 = 4 << 20;
/// One of so many is, whatever waits.
const TOO_LONG: u64 = 32 << 20;
/// Mounts of one volume on one machine.
const LOGS_MAX: usize = 1024;

/// A block that is on no node yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::fs) struct Block {
    pub(in crate::fs) id: BlockId,
    #[serde(with = "tandemfs::name::text_or_bytes")]
    pub(in crate::fs) data: Bytes,
}

/// What was done here and is to be sent.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::fs) struct Queued {
    /// Counts the changes of this mount.
    pub(in crate::fs) number: u64,
    pub(in crate::fs) mutations: Vec<Mutation>,
    /// Blocks that are sent with the mutations, which name them.
    pub(in crate::fs) blocks: Vec<Block>,
    /// Blocks that are stored before.
    pub(in crate::fs) large: Vec<Block>,
    /// Inodes that it may leave without links and that are open here.
    pub(in crate::fs) held: Vec<Ino>,
}

/// A log that is being written.
#[derive(Debug)]
pub(in crate::fs) struct Log {
    file: File,
    path: PathBuf,
    key: VolumeKey,
    length: u64,
    session: SessionId,
    /// Of the last batch that was sent.
    sequence: u64,
    /// Blocks whose data is in it.
    blocks: HashSet<BlockId>,
    /// It could not be written, and holds nothing.
    is_broken: bool,
}

impl Log {
    /// A log in a directory, which is made.
    ///
    /// # Errors
    /// The system's.
    pub(in crate::fs) fn create(directory: &Path, key: &VolumeKey) -> io::Result<Self> {
        let directory = of_volume(directory, key);
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let boot = boot()?;
        for number in 0..LOGS_MAX {
            let path = directory.join(format!("{boot}-{number}.log"));
            let made = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
            let file = match made {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                other => other?,
            };
            if lock(&file, &path)? {
                return Ok(Self::empty(file, path, key.clone(), (SessionId(0), 0)));
            }
        }
        Err(io::Error::other(format!("{LOGS_MAX} mounts have logs in {}", directory.display())))
    }

    fn empty(file: File, path: PathBuf, key: VolumeKey, (session, sequence): (SessionId, u64)) -> Self {
        Self { file, path, key, length: 0, session, sequence, blocks: HashSet::new(), is_broken: false }
    }

    /// Whether what was added last is in it.
    pub(super) fn is_whole(&self) -> bool {
        !self.is_broken
    }

    /// Begins it anew: nothing waits. `sequence` is that of the session's last batch.
    pub(super) fn begin(&mut self, session: SessionId, sequence: u64) {
        (self.session, self.sequence) = (session, sequence);
        self.clear();
        self.is_broken = false;
        self.append(b'B', &(session, sequence));
    }

    /// A change is about to be answered.
    pub(super) fn change(&mut self, change: &Queued) {
        for block in &change.large {
            if !self.blocks.contains(&block.id) {
                self.append_block(block);
            }
        }
        let large: Vec<BlockId> = change.large.iter().map(|block| block.id).collect();
        self.append(b'C', &(change.number, &change.mutations, &change.blocks, &change.held, large));
    }

    /// All changes up to one, from the first that is not done, are about to be sent as one batch.
    pub(super) fn sent(&mut self, sequence: u64, last: u64) {
        self.sequence = sequence;
        self.append(b'S', &(sequence, last));
    }

    /// All changes up to one are committed, or lost. `waiting` are those that are not, where they are known.
    pub(super) fn done<'a>(&mut self, last: u64, waiting: Option<impl Iterator<Item = &'a Queued>>) {
        self.append(b'D', &last);
        let Some(waiting) = waiting else { return };
        let mut waiting = waiting.peekable();
        if waiting.peek().is_none() && (self.length > LONG || self.is_broken) {
            self.begin(self.session, self.sequence);
        } else if self.length > TOO_LONG
            && let Err(error) = self.rewrite(waiting)
        {
            log::warn!("rewriting {}: {error}", self.path.display());
        }
    }

    /// Nothing waits, and nothing will.
    pub(super) fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::warn!("removing {}: {error}", self.path.display());
        }
    }

    /// Puts a new file in its place that holds what waits only.
    fn rewrite<'a>(&mut self, waiting: impl Iterator<Item = &'a Queued>) -> io::Result<()> {
        let path = self.path.with_extension("new");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        lock(&file, &path)?;
        let of = (self.session, self.sequence);
        let mut new = Self::empty(file, path, self.key.clone(), of);
        new.begin(of.0, of.1);
        waiting.for_each(|change| new.change(change));
        if new.is_broken {
            return Err(io::Error::other("it cannot be written"));
        }
        fs::rename(&new.path, &self.path)?;
        new.path.clone_from(&self.path);
        *self = new;
        Ok(())
    }

    fn append(&mut self, letter: u8, entry: &impl Serialize) {
        if self.is_broken {
            return;
        }
        let written = frame(&self.key, letter, entry).and_then(|frame| {
            self.file.write_all(&frame)?;
            Ok(frame.len() as u64)
        });
        self.appended(written);
    }

    fn append_block(&mut self, block: &Block) {
        if self.is_broken {
            return;
        }
        let length = u32::try_from(block.data.len()).ok().filter(|length| *length as usize <= BLOCK_SIZE_MAX);
        let length = length.ok_or_else(|| io::Error::other("a block that is too large"));
        let written = length.and_then(|length| {
            self.file.write_all(&[&length.to_le_bytes()[..], &block.id.0[SUM..2 * SUM]].concat())?;
            self.file.write_all(&block.data)?;
            Ok((4 + SUM + block.data.len()) as u64)
        });
        self.blocks.insert(block.id);
        self.appended(written);
    }

    fn appended(&mut self, written: io::Result<u64>) {
        match written {
            Ok(length) => self.length += length,
            Err(error) => {
                log::warn!(
                    "{} cannot be written, so changes wait for the daemon: {error}",
                    self.path.display()
                );
                // What is in it already must not be taken for all there was.
                self.clear();
                self.is_broken = true;
            }
        }
    }

    fn clear(&mut self) {
        let cleared = self.file.set_len(0).and_then(|()| io::Seek::rewind(&mut self.file));
        if let Err(error) = cleared {
            log::warn!("emptying {}: {error}", self.path.display());
        }
        self.length = 0;
        self.blocks.clear();
    }
}

fn frame(key: &VolumeKey, letter: u8, entry: &impl Serialize) -> io::Result<Vec<u8>> {
    let entry = encode(entry).map_err(io::Error::other)?;
    let body = [&[letter][..], &entry].concat();
    let length = u32::try_from(body.len()).ok().filter(|length| *length as usize <= BODY_MAX);
    let length = length.ok_or_else(|| io::Error::other("a change that is too large"))?;
    Ok([&length.to_le_bytes()[..], &BlockId::of(key, &body).0[..SUM], &body].concat())
}

/// The directory of a volume's logs.
fn of_volume(directory: &Path, key: &VolumeKey) -> PathBuf {
    directory.join("queues").join(BlockId::of(key, b"the directory of its queues").to_string())
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned())
}

/// Locks a file for this process. `false`: it is another's, or is not there any more.
///
/// # Errors
/// The system's.
pub(in crate::fs) fn lock(file: &File, path: &Path) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(false),
        other => other?,
    }
    let is_there = fs::metadata(path).is_ok_and(|there| {
        file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (there.dev(), there.ino()))
    });
    Ok(is_there)
}
