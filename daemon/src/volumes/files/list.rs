//! Lists every file of a home volume in the order of paths, walking the directories in the order of names.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::collections::VecDeque;
use tandemfs::api::files::{File, FilePage, ListFiles};
use tandemfs::id::Ino;
use tandemfs::name::{Name, PATH_MAX, join_path};
use tandemfs::tree::{Entry, Inode, Key, Kind, Record};
use tandemfs::{Error, Result};

use super::super::load::after;
use super::super::volume::Volume;
use super::{Volumes, file};
use crate::accounts::Caller;

/// Files in a page if nothing is said, and at most.
const LIMIT: u32 = 100;
const LIMIT_MAX: u32 = 1000;
/// Entries of a directory that are read at once.
const ENTRIES_PAGE: usize = 128;
/// Entries that are looked at for one page: in a tree with few files a page may be short, and the next one goes on.
const VISITS_MAX: usize = 20_000;
/// Directories below each other: no path is longer.
const DEPTH_MAX: usize = PATH_MAX / 2;

/// A directory on the way from the root to where the walk is.
struct Level {
    ino: Ino,
    name: Option<Name>,
    /// Entries that were read and not looked at.
    entries: VecDeque<(Name, Kind, Option<Inode>)>,
    /// Where to read on; `None` at the end.
    next: Option<Vec<u8>>,
}

impl Level {
    fn new(ino: Ino, name: Option<Name>, from: Vec<u8>) -> Self {
        Self { ino, name, entries: VecDeque::new(), next: Some(from) }
    }
}

/// A walk over the files of a volume.
struct Walk<'a> {
    volume: &'a Volume,
    levels: Vec<Level>,
    /// The names that the walk is below, and what the next one must begin with.
    fixed: usize,
    begins: Vec<u8>,
}

/// Where a walk has come to.
enum Step {
    File(Box<Inode>, Vec<Name>),
    Other(Vec<Name>),
    End,
}

impl Volumes {
    /// A page of the caller's files.
    ///
    /// # Errors
    /// `Invalid` for a limit out of 1 to 1000, or a cursor that was not given by this.
    pub async fn list(&self, caller: &Caller, list: &ListFiles) -> Result<FilePage> {
        let limit = list.limit.unwrap_or(LIMIT);
        if limit == 0 || limit > LIMIT_MAX {
            return Err(Error::invalid(format!("limit must be 1 to {LIMIT_MAX}")));
        }
        let volume = self.volume(caller.home).await?;
        let prefix = list.prefix.as_deref().unwrap_or_default();
        let cursor = list.cursor.as_deref().map(parse_cursor).transpose()?;
        let Some(mut walk) = Walk::begin(&volume, prefix.as_bytes(), cursor.as_deref()).await? else {
            return Ok(FilePage { files: Vec::new(), next_cursor: None });
        };
        let mut found: Vec<(Inode, Vec<Name>)> = Vec::new();
        let mut next = None;
        for visit in 1.. {
            let here = match walk.step().await? {
                Step::End => break,
                Step::Other(path) => path,
                Step::File(inode, path) => {
                    found.push((*inode, path.clone()));
                    path
                }
            };
            if found.len() == limit as usize || visit == VISITS_MAX {
                next = Some(URL_SAFE_NO_PAD.encode(join_path(&here)));
                break;
            }
        }
        let mut files: Vec<File> = Vec::with_capacity(found.len());
        for (inode, path) in found {
            let replicas = self.least_replicas(&volume, &inode).await?;
            files.push(file(volume.id, &inode, &path, replicas));
        }
        Ok(FilePage { files, next_cursor: next })
    }
}

fn parse_cursor(cursor: &str) -> Result<Vec<Name>> {
    let invalid = || Error::invalid("cursor");
    let path = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| invalid())?;
    // A path of the volume may be longer than one that a client may send.
    let parts = path.split(|byte| *byte == b'/').skip(1);
    let names: Vec<Name> = parts.map(Name::new).collect::<Result<_>>().map_err(|_| invalid())?;
    if names.is_empty() || names.len() > DEPTH_MAX {
        return Err(invalid());
    }
    Ok(names)
}

impl<'a> Walk<'a> {
    /// A walk over all paths that begin with `prefix`, after the path `after_path`; `None` if there can be none.
    async fn begin(volume: &'a Volume, prefix: &[u8], after_path: Option<&[Name]>) -> Result<Option<Self>> {
        let prefix = prefix.strip_prefix(b"/").unwrap_or(prefix);
        let mut parts: Vec<&[u8]> = prefix.split(|byte| *byte == b'/').collect();
        let begins = parts.pop().unwrap_or_default().to_vec();
        let Ok(fixed) = parts.into_iter().map(Name::new).collect::<Result<Vec<Name>>>() else {
            return Ok(None);
        };
        let mut levels = vec![Level::new(Ino::ROOT, None, Vec::new())];
        for name in &fixed {
            match volume.entry(last_ino(&levels), name).await? {
                Some(entry) if entry.kind == Kind::Directory => {
                    levels.push(Level::new(entry.ino, Some(name.clone()), Vec::new()));
                }
                _ => return Ok(None),
            }
        }
        let mut walk = Self { volume, levels, fixed: fixed.len(), begins };
        if let Some(level) = walk.levels.last_mut() {
            level.next = Some(walk.begins.clone());
        }
        if let Some(path) = after_path
            && path.starts_with(&fixed)
        {
            walk.skip_to(&path[fixed.len()..]).await?;
        }
        Ok(Some(walk))
    }

    /// Goes to the place after a path below the fixed part.
    async fn skip_to(&mut self, path: &[Name]) -> Result<()> {
        for (depth, name) in path.iter().enumerate() {
            let ino = last_ino(&self.levels);
            if let Some(level) = self.levels.last_mut() {
                level.next = Some(after(name.as_bytes()).max(level.next.take().unwrap_or_default()));
            }
            if depth + 1 == path.len() {
                break;
            }
            match self.volume.entry(ino, name).await? {
                Some(entry) if entry.kind == Kind::Directory => {
                    self.levels.push(Level::new(entry.ino, Some(name.clone()), Vec::new()));
                }
                // The directory is gone: on with what comes after it.
                _ => break,
            }
        }
        Ok(())
    }

    /// The next entry.
    async fn step(&mut self) -> Result<Step> {
        loop {
            let depth = self.levels.len();
            if depth <= self.fixed {
                return Ok(Step::End);
            }
            let Some(level) = self.levels.last_mut() else { return Ok(Step::End) };
            let Some((name, kind, inode)) = level.entries.pop_front() else {
                let Some(from) = level.next.take() else {
                    self.levels.pop();
                    continue;
                };
                let answer = self.volume.entries_from(level.ino, &from, ENTRIES_PAGE).await?;
                level.entries = entries_of(answer.records);
                let last = level.entries.back().filter(|_| !answer.complete);
                level.next = last.map(|(name, ..)| after(name.as_bytes()));
                continue;
            };
            if depth == self.fixed + 1 && !name.as_bytes().starts_with(&self.begins) {
                // Names are in order, so none of the later ones begins so.
                return Ok(Step::End);
            }
            let parent = level.ino;
            let names = self.levels.iter().filter_map(|level| level.name.clone());
            let path: Vec<Name> = names.chain([name.clone()]).collect();
            match (kind, inode) {
                (Kind::Directory, Some(inode)) if depth < DEPTH_MAX => {
                    self.levels.push(Level::new(inode.ino, Some(name), Vec::new()));
                }
                // A file with several links is listed once, at its first.
                (Kind::File, Some(inode)) if inode.parent == parent && inode.name.as_ref() == Some(&name) => {
                    return Ok(Step::File(Box::new(inode), path));
                }
                _ => {}
            }
            return Ok(Step::Other(path));
        }
    }
}

fn last_ino(levels: &[Level]) -> Ino {
    levels.last().map_or(Ino::ROOT, |level| level.ino)
}

impl Volume {
    async fn entry(&self, parent: Ino, name: &Name) -> Result<Option<Entry>> {
        self.query(|set| set.entry(parent, name)).await
    }
}

/// The entries among a directory's records, each of which its inode follows.
fn entries_of(records: Vec<(Key, Option<Record>)>) -> VecDeque<(Name, Kind, Option<Inode>)> {
    let mut entries = VecDeque::new();
    for (key, record) in records {
        match (key, record) {
            (Key::Entry(_, name), Some(Record::Entry(entry))) => entries.push_back((name, entry.kind, None)),
            (Key::Inode(_), Some(Record::Inode(inode))) => {
                if let Some((.., place)) = entries.back_mut() {
                    *place = Some(*inode);
                }
            }
            _ => {}
        }
    }
    entries
}
