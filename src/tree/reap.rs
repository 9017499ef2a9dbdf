//! What is done behind the scenes: reaping of orphans, digests.

use super::working_set::both;
use super::{CHUNK_SIZE, Inode, Key, Outcome, Record, Want, WorkingSet, quota, write};
use crate::Error;
use crate::id::Ino;

/// Bytes of a SHA-256.
const SHA256_SIZE: usize = 32;

/// Takes away at most `chunks` chunks of an orphan, the last ones first, and the orphan itself when it has none left.
/// Nothing happens to an inode that is not there or has links.
///
/// # Errors
/// Only `Corrupt`.
pub(super) fn reap(set: &mut WorkingSet, ino: Ino, chunks: u32) -> Outcome<()> {
    let (inode, _) = both(set.get(&Key::Inode(ino)), set.usage())?;
    let mut inode = match inode {
        Some(Record::Inode(inode)) if inode.nlink == 0 => inode.as_ref().clone(),
        _ => return Ok(()),
    };
    if inode.allocated > 0 && chunks > 0 {
        let keys = last_chunks(set, &inode, chunks)?;
        // What was cut off is not part of the file any more, so the next portion is looked for before it.
        let size = match keys.first() {
            Some(Key::Chunk(_, number)) => number.saturating_mul(CHUNK_SIZE).min(inode.size),
            _ => return Err(Error::corrupt(format!("inode {ino} has less extents than counted")).into()),
        };
        write::cut_chunks(set, &mut inode, &keys, size)?;
        inode.size = size;
    }
    if inode.allocated > 0 {
        set.put_inode(inode);
        return Ok(());
    }
    if inode.xattr_bytes > 0 {
        for key in set.range(&Want::Xattrs(ino))? {
            set.put(key, None);
        }
    }
    set.put(Key::Inode(ino), None);
    set.put(Key::Orphan(ino), None);
    quota::give_inode(set)
}

/// The keys of a file's last chunks, at most so many. Looked for in windows from the end that double until one has
/// any, which may be fewer than there are before a hole, so that neither a hole of terabytes takes many steps nor a full file more than what is asked for.
fn last_chunks(set: &WorkingSet, inode: &Inode, at_most: u32) -> Outcome<Vec<Key>> {
    let count = inode.size.div_ceil(CHUNK_SIZE);
    let mut window = u64::from(at_most);
    loop {
        let from = count.saturating_sub(window);
        let mut keys = set.range(&write::chunks_from(inode, from))?;
        if !keys.is_empty() || from == 0 {
            keys.drain(..keys.len().saturating_sub(at_most as usize));
            return Ok(keys);
        }
        window = window.saturating_mul(2);
    }
}

/// Remembers a file's digest, if the content is still the one that it was computed from.
///
/// # Errors
/// `Invalid` for what is no SHA-256 or no regular file; `IsADirectory`; `NotFound`.
pub(super) fn set_digest(set: &mut WorkingSet, ino: Ino, content: u64, sha256: &[u8]) -> Outcome<()> {
    if sha256.len() != SHA256_SIZE {
        return Err(Error::invalid(format!("a SHA-256 of {} bytes", sha256.len())).into());
    }
    let inode: Inode = set.inode(ino).and_then(write::require_file)?;
    if inode.content == content {
        set.put_inode(Inode { sha256: Some(sha256.to_vec()), ..inode });
    }
    Ok(())
}
