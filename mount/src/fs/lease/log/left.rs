//! What a mount that was killed has left in its log.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Deserialize;
use tandemfs::codec::decode;
use tandemfs::id::{BlockId, Ino, SessionId, VolumeKey};
use tandemfs::tree::Mutation;

use super::{Block, LOGS_MAX, Queued, SUM, boot, lock, of_volume};

/// What a mount has left behind that was killed.
#[derive(Debug, PartialEq)]
pub(in crate::fs) struct Left {
    /// In which session it was done.
    pub(in crate::fs) session: SessionId,
    /// The number of the last batch that was sent or is to be sent again.
    pub(in crate::fs) sequence: u64,
    /// The last change of that batch, if its answer is not known.
    pub(in crate::fs) sent: Option<u64>,
    /// What the daemon may not have.
    pub(in crate::fs) changes: Vec<Queued>,
}

/// A log that is nobody's any more. As long as this lives, no other mount takes it.
pub(in crate::fs) struct Orphaned {
    path: PathBuf,
    _lock: File,
    pub(in crate::fs) left: Option<Left>,
}

impl Orphaned {
    /// It has been seen to.
    pub(in crate::fs) fn remove(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::warn!("removing {}: {error}", self.path.display());
        }
    }
}

/// A change as it is read from a log.
#[derive(Deserialize)]
struct Logged {
    number: u64,
    mutations: Vec<Mutation>,
    blocks: Vec<Block>,
    held: Vec<Ino>,
    /// Their data lies before it.
    #[serde(default)]
    large: Vec<BlockId>,
}

impl Logged {
    /// With the data of its blocks, if all of it is known.
    fn whole(self, data: &HashMap<BlockId, Bytes>) -> Option<Queued> {
        let Self { number, mutations, blocks, held, large } = self;
        let large = large.into_iter().map(|id| data.get(&id).map(|data| Block { id, data: data.clone() }));
        Some(Queued { number, mutations, blocks, large: large.collect::<Option<_>>()?, held })
    }
}

/// The logs of a volume that no mount is writing any more. Those of an earlier boot are removed: what was not synced then is lost.
///
/// # Errors
/// The system's.
pub(in crate::fs) fn orphaned(directory: &Path, key: &VolumeKey) -> io::Result<Vec<Orphaned>> {
    let boot = boot()?;
    let entries = match fs::read_dir(of_volume(directory, key)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for entry in entries.take(LOGS_MAX) {
        let path = entry?.path();
        let Ok(mut file) = OpenOptions::new().read(true).write(true).open(&path) else { continue };
        if !lock(&file, &path)? {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(&boot) || !name.ends_with(".log") {
            fs::remove_file(&path)?;
            continue;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        found.push(Orphaned { left: read(key, &bytes.into()), path, _lock: file });
    }
    Ok(found)
}

/// What is left in a log.
pub(super) fn read(key: &VolumeKey, log: &Bytes) -> Option<Left> {
    let mut left: Option<Left> = None;
    let mut blocks = HashMap::new();
    let mut rest = log.clone();
    while let Some(frame) = next(key, &mut rest) {
        let body = match frame {
            Frame::Entry(body) => body,
            Frame::Block(id, data) => {
                blocks.insert(id, data);
                continue;
            }
        };
        let (letter, entry) = body.split_first()?;
        match (letter, &mut left) {
            (b'B', _) => {
                let (session, sequence) = decode(entry).ok()?;
                left = Some(Left { session, sequence, sent: None, changes: Vec::new() });
            }
            (b'C', Some(left)) => {
                let logged: Logged = decode(entry).ok()?;
                let Some(change) = logged.whole(&blocks) else { break };
                left.changes.push(change);
            }
            (b'S', Some(left)) => {
                let (sequence, last) = decode(entry).ok()?;
                (left.sequence, left.sent) = (sequence, Some(last));
            }
            (b'D', Some(left)) => {
                let last: u64 = decode(entry).ok()?;
                left.changes.retain(|change| change.number > last);
                left.sent = left.sent.filter(|sent| *sent > last);
            }
            _ => break,
        }
    }
    left
}

enum Frame {
    Entry(Bytes),
    Block(BlockId, Bytes),
}

/// Takes the first frame off, if it is whole and right.
fn next(key: &VolumeKey, rest: &mut Bytes) -> Option<Frame> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (sum, after) = after.split_first_chunk::<SUM>()?;
    let length = u32::from_le_bytes(*length) as usize;
    if after.len() < length {
        return None;
    }
    let id = BlockId::of(key, &after[..length]);
    let (of_entry, of_block) = (id.0[..SUM] == *sum, id.0[SUM..2 * SUM] == *sum);
    let body = rest.split_to(4 + SUM + length).split_off(4 + SUM);
    match (of_entry, of_block) {
        (true, _) => Some(Frame::Entry(body)),
        (_, true) => Some(Frame::Block(id, body)),
        _ => None,
    }
}
