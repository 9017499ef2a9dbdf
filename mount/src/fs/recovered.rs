//! What could not be sent for a mount that was killed, because the volume has moved on, is offered in a directory of the volume: for each
//! file that was written to, what it is now with what was written laid over it, under the name that it had; and a list of all that was done.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::Weak;
use std::time::Duration;

use bytes::Bytes;
use tandemfs::id::{BlockId, Ino};
use tandemfs::name::{Name, join_path};
use tandemfs::tree::{Credentials, Mutation, NewNode, WrittenExtent};
use tandemfs::{Error, ErrorKind, Result};
use tokio::time::sleep;

use super::data::How;
use super::lease::log::{Orphaned, Queued};
use super::{Fs, Set};

const ROOT: Credentials = Credentials { uid: 0, gid: 0 };
/// Bytes that are copied at once.
const COPY: u32 = 1 << 20;
/// How deep a name may lie.
const DEPTH_MAX: usize = 256;
/// How long, and how often, nodes that are full are left alone before anything is offered: an hour.
const FULL_PAUSE: Duration = Duration::from_secs(15);
const FULL_TRIES: usize = 240;
/// The list of what was done.
const LIST: &[u8] = b"CHANGES.txt";

/// What changes say of files.
#[derive(Default)]
struct Story<'a> {
    /// The names that they gave.
    names: HashMap<Ino, (Ino, Name)>,
    /// What was done to the content of files, in order.
    files: BTreeMap<Ino, Vec<Step<'a>>>,
    blocks: HashMap<BlockId, Bytes>,
}

enum Step<'a> {
    /// It was made, and had nothing in it.
    Made,
    Written(&'a [WrittenExtent]),
    Sized(u64),
}

impl Fs {
    /// Offers what could not be sent, for as long as there is somebody who uses this. Where that fails, what a mount before has left stays
    /// where it is, for the next one.
    pub async fn offer_lost(fs: Weak<Self>) {
        let Some(mut more) = fs.upgrade().map(|fs| fs.session.lost.subscribe()) else { return };
        more.mark_changed();
        while more.changed().await.is_ok() {
            let Some(fs) = fs.upgrade() else { return };
            let mut all = Vec::new();
            fs.session.lost.send_if_modified(|lost| {
                all.append(lost);
                false
            });
            for lost in all {
                fs.store_lost(&lost.changes).await;
                match fs.offer(&lost.changes).await {
                    Ok(name) => {
                        log::warn!(
                            "the volume has moved on: what was written and could not be sent is in {name}"
                        );
                        lost.log.into_iter().for_each(Orphaned::remove);
                    }
                    Err(error) => log::error!("what could not be sent cannot be offered: {error}"),
                }
            }
        }
    }

    /// Stores what may not have been stored because the nodes were full, so that it does not get lost again on its way into the directory.
    async fn store_lost(&self, changes: &[Queued]) {
        let blocks: Vec<_> = changes.iter().flat_map(|change| change.large.iter().cloned()).collect();
        for _ in 0..FULL_TRIES {
            match self.session.store_at_once(blocks.clone()).await {
                Err(error) if error.kind() == ErrorKind::NoSpace => sleep(FULL_PAUSE).await,
                // Where it is not possible for another reason, it cannot be offered, either, which is told.
                _ => return,
            }
        }
    }

    /// Answers the name of the directory.
    async fn offer(&self, changes: &[Queued]) -> Result<String> {
        let story = Story::of(changes);
        let mut list = String::new();
        for mutation in changes.iter().flat_map(|change| &change.mutations) {
            self.describe(&story, mutation, &mut list).await;
        }
        let mut name = format!("recovered-{}", self.clock.now().to_rfc3339());
        let directory = loop {
            match self.make(ROOT, self.root, name.as_bytes(), NewNode::Directory, 0o700.into()).await {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => name.push('+'),
                other => break other?.inode.ino,
            }
        };
        for (ino, steps) in &story.files {
            if let Err(error) = self.put_back(&story, directory, *ino, steps).await {
                let _infallible = writeln!(list, "inode {ino} is not whole: {error}");
            }
        }
        let (_, handle) = self.create(ROOT, directory, LIST, 0o600.into(), libc::O_EXCL).await?;
        let listed = self.write(handle, 0, list.as_bytes(), How::default()).await;
        self.release(handle).await;
        listed?;
        self.commit_all().await?;
        Ok(name)
    }

    /// One line for a change.
    async fn describe(&self, story: &Story<'_>, mutation: &Mutation, list: &mut String) {
        let (what, ino, name) = match mutation {
            Mutation::Create { ino, .. } => ("made", *ino, None),
            Mutation::Link { parent, name, .. } => ("linked", *parent, Some(name)),
            Mutation::Unlink { parent, name, .. } | Mutation::RemoveDirectory { parent, name, .. } => {
                ("removed", *parent, Some(name))
            }
            Mutation::Rename { parent, name, .. } => ("renamed", *parent, Some(name)),
            Mutation::Write { ino, .. }
            | Mutation::CloneRange { ino, .. }
            | Mutation::PunchHole { ino, .. } => ("written", *ino, None),
            Mutation::SetAttributes { ino, .. } => ("attributes changed", *ino, None),
            Mutation::SetXattr { ino, .. } | Mutation::RemoveXattr { ino, .. } => {
                ("extended attributes changed", *ino, None)
            }
            Mutation::Reap { .. }
            | Mutation::SetDigest { .. }
            | Mutation::Accessed { .. }
            | Mutation::Join { .. } => return,
        };
        let mut path = self.path(story, ino).await;
        path.extend(name.cloned());
        let _infallible = write!(list, "{what}: {}", shown(&path));
        if let Mutation::Rename { new_parent, new_name, .. } = mutation {
            let mut path = self.path(story, *new_parent).await;
            path.push(new_name.clone());
            let _infallible = write!(list, " to {}", shown(&path));
        }
        list.push('\n');
    }

    /// The names from the root to an inode, as they were left.
    async fn path(&self, story: &Story<'_>, ino: Ino) -> Vec<Name> {
        let mut path = Vec::new();
        let mut at = ino;
        while at != Ino::ROOT && path.len() < DEPTH_MAX {
            let told = story.names.get(&at).cloned();
            let found = match told {
                Some(told) => Some(told),
                None => {
                    self.getattr(at).await.ok().and_then(|stat| Some((stat.inode.parent, stat.inode.name?)))
                }
            };
            let Some((parent, name)) = found else {
                path.extend(Name::new(format!("inode {at}")));
                break;
            };
            path.push(name);
            at = parent;
        }
        path.reverse();
        path
    }

    /// Makes a file as it was left, below a directory.
    async fn put_back(&self, story: &Story<'_>, below: Ino, ino: Ino, steps: &[Step<'_>]) -> Result<()> {
        let path = self.path(story, ino).await;
        let Some((name, parents)) = path.split_last() else { return Ok(()) };
        let mut directory = below;
        for parent in parents {
            let made = self.make(ROOT, directory, parent.as_bytes(), NewNode::Directory, 0o700.into()).await;
            directory = match made {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    self.lookup(directory, parent.as_bytes()).await?.inode.ino
                }
                other => other?.inode.ino,
            };
        }
        let flags = libc::O_EXCL | libc::O_RDWR;
        let (stat, handle) = self.create(ROOT, directory, name.as_bytes(), 0o600.into(), flags).await?;
        let filled = self.fill(story, ino, steps, (stat.inode.ino, handle)).await;
        let flushed = self.flush(handle).await;
        self.release(handle).await;
        filled.and(flushed)
    }

    async fn fill(
        &self,
        story: &Story<'_>,
        ino: Ino,
        steps: &[Step<'_>],
        (copy, handle): (Ino, u64),
    ) -> Result<()> {
        if !matches!(steps.first(), Some(Step::Made)) {
            match self.open_file(ROOT, ino, libc::O_RDONLY).await {
                Ok(source) => {
                    let copied = self.copy_all(source, handle).await;
                    self.release(source).await;
                    copied?;
                }
                Err(error) => log::info!("inode {ino} is not there any more: {error}"),
            }
        }
        for step in steps {
            match step {
                Step::Made => {}
                Step::Sized(size) => {
                    drop(self.setattr(ROOT, copy, Set { size: Some(*size), ..Set::default() }).await?);
                }
                Step::Written(extents) => {
                    for extent in *extents {
                        let data = self.bytes_of(story, extent).await?;
                        self.write(handle, extent.offset, &data, How::default()).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn copy_all(&self, from: u64, to: u64) -> Result<()> {
        let mut offset = 0;
        loop {
            let data = self.read(from, offset, COPY).await?;
            if data.is_empty() {
                return Ok(());
            }
            self.write(to, offset, &data, How::default()).await?;
            offset += data.len() as u64;
        }
    }

    /// The bytes of an extent, which came with the change or are on the nodes.
    async fn bytes_of(&self, story: &Story<'_>, extent: &WrittenExtent) -> Result<Bytes> {
        let end = u64::from(extent.block_offset) + extent.length;
        if let Some(block) = story.blocks.get(&extent.block) {
            let range = extent.block_offset as usize..usize::try_from(end).unwrap_or(usize::MAX);
            let is_whole = range.start <= range.end && range.end <= block.len();
            return is_whole.then(|| block.slice(range)).ok_or_else(|| Error::corrupt("a short block"));
        }
        let end = u32::try_from(end).map_err(|_| Error::corrupt("a long block"))?;
        let range = Some(extent.block_offset..end);
        self.session.remote.get_block(self.session.id(), extent.block, range).await
    }
}

impl<'a> Story<'a> {
    fn of(changes: &'a [Queued]) -> Self {
        let mut story = Self::default();
        for change in changes {
            let blocks = change.blocks.iter().chain(&change.large);
            story.blocks.extend(blocks.map(|block| (block.id, block.data.clone())));
            change.mutations.iter().for_each(|mutation| story.note(mutation));
        }
        // What was only removed or cut is not missed.
        story.files.retain(|_, steps| steps.iter().any(|step| !matches!(step, Step::Sized(_))));
        story
    }

    fn note(&mut self, mutation: &'a Mutation) {
        match mutation {
            Mutation::Create { parent, name, ino, node, .. } => {
                self.names.insert(*ino, (*parent, name.clone()));
                if *node == NewNode::File {
                    self.files.insert(*ino, vec![Step::Made]);
                }
            }
            Mutation::Rename { parent, name, new_parent, new_name, .. } => {
                let renamed = self.names.values_mut().find(|named| (&named.0, &named.1) == (parent, name));
                if let Some(renamed) = renamed {
                    *renamed = (*new_parent, new_name.clone());
                }
            }
            Mutation::Write { ino, extents, .. } => {
                self.files.entry(*ino).or_default().push(Step::Written(extents));
            }
            Mutation::SetAttributes { ino, set, .. } => {
                if let Some(size) = set.size {
                    self.files.entry(*ino).or_default().push(Step::Sized(size));
                }
            }
            _ => {}
        }
    }
}

fn shown(path: &[Name]) -> String {
    String::from_utf8_lossy(&join_path(path)).into_owned()
}
