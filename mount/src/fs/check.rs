//! What the daemon answers is data: it is looked at here before anything is built on it, so that all else may rely on what
//! records promise. An answer that does not pass is `Corrupt`, which programs see as EIO.

use tandemfs::api::fs::{Answer, BLOCK_SIZE_MAX, BatchReply, InodeRange};
use tandemfs::clock::Time;
use tandemfs::id::Ino;
use tandemfs::tree::{
    CHUNK_SIZE, Chunk, Entry, FILE_SIZE_MAX, Inode, Key, Kind, Record, SYMLINK_MAX, Want, XATTR_SIZE_MAX,
};
use tandemfs::{Error, Result};

/// Checks the answers to wants.
///
/// # Errors
/// `Corrupt`.
pub(super) fn answers(wants: &[Want], answers: &[Answer]) -> Result<()> {
    sound("the number of answers", wants.len() == answers.len())?;
    for (want, answer) in wants.iter().zip(answers) {
        for (key, record) in &answer.records {
            sound("records that were not asked for", belongs(want, key))?;
            check(key, record.as_ref())?;
        }
    }
    Ok(())
}

/// Checks the answer to a batch.
///
/// # Errors
/// `Corrupt`.
pub(super) fn batch(reply: &BatchReply) -> Result<()> {
    reply.records.iter().try_for_each(|(key, record)| check(key, record.as_ref()))
}

/// Checks numbers for new inodes.
///
/// # Errors
/// `Corrupt`.
pub(super) fn numbers(range: InodeRange) -> Result<()> {
    let whole = range.first.0.checked_add(range.count).is_some();
    sound("numbers for inodes", range.count > 0 && range.first > Ino::ROOT && whole)
}

fn sound(what: &str, holds: bool) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::corrupt(format!("the daemon's answer: {what}"))) }
}

fn belongs(want: &Want, key: &Key) -> bool {
    match (want, key) {
        (Want::Directory { ino, .. }, Key::Entry(parent, _)) => ino == parent,
        // The inodes that entries lead to come with them.
        (Want::Directory { .. } | Want::Lookup { .. }, Key::Inode(_)) => true,
        _ => want.covers(key),
    }
}

fn check(key: &Key, record: Option<&Record>) -> Result<()> {
    let Some(record) = record else { return Ok(()) };
    match (key, record) {
        (Key::Usage, Record::Usage(_)) | (Key::Link(..) | Key::Orphan(_), Record::Present) => Ok(()),
        (Key::Inode(ino), Record::Inode(inode)) => {
            sound("another inode", *ino == inode.ino)?;
            sound("an inode", is_inode(inode))
        }
        (Key::Entry(..), Record::Entry(entry)) => sound("an entry", is_entry(*entry)),
        (Key::Chunk(_, number), Record::Chunk(chunk)) => sound("a chunk", is_chunk(*number, chunk)),
        (Key::Xattr(_, name), Record::Xattr(value)) => {
            let named = (1..=255).contains(&name.len()) && !name.contains(&0);
            sound("an extended attribute", named && value.len() <= XATTR_SIZE_MAX)
        }
        _ => sound("a record of another kind", false),
    }
}

fn is_inode(inode: &Inode) -> bool {
    let target = match (&inode.target, inode.kind) {
        (Some(target), Kind::Symlink) => (1..=SYMLINK_MAX).contains(&target.len()) && !target.contains(&0),
        (target, kind) => target.is_none() && kind != Kind::Symlink,
    };
    inode.ino >= Ino::ROOT
        && inode.parent >= Ino::ROOT
        && inode.size <= FILE_SIZE_MAX
        && inode.allocated <= FILE_SIZE_MAX
        && inode.mode <= 0o7777
        && target
        && [inode.atime, inode.mtime, inode.ctime, inode.btime].into_iter().all(is_time)
}

fn is_time(time: Time) -> bool {
    time.nanos < 1_000_000_000
}

/// Nothing leads to the root.
fn is_entry(entry: Entry) -> bool {
    entry.ino > Ino::ROOT
}

fn is_chunk(number: u64, chunk: &Chunk) -> bool {
    let mut end = 0;
    number <= FILE_SIZE_MAX / CHUNK_SIZE
        && chunk.0.iter().all(|extent| {
            let (start, length) = (u64::from(extent.start), u64::from(extent.length));
            let in_order = start >= end;
            end = start + length;
            let in_block = u64::from(extent.offset) + length <= BLOCK_SIZE_MAX as u64;
            in_order && length > 0 && end <= CHUNK_SIZE && in_block
        })
}
