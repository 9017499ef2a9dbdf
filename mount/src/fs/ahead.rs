//! Reading ahead of who walks through a tree: directories, with what their names lead to, and the content of small files. Many come with one
//! request, while the program is still busy with those before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tandemfs::api::fs::{Answer, BLOCKS_BYTES_MAX};
use tandemfs::id::Ino;
use tandemfs::name::Name;
use tandemfs::tree::{Entry, Inode, Key, Kind, Record, Want};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use super::blocks::Blocks;
use super::cache::Watch;
use super::session::Session;
use super::walks::{Stretch, Walks};

/// Directories that are read ahead at once, and how many names of each: who has more is read when it is asked for.
const DIRECTORIES_MAX: usize = 32;
const NAMES_MAX: u32 = 512;
/// Files that are read ahead at once, and how long such a file may be, in bytes.
const FILES_MAX: usize = 256;
pub(super) const SMALL: u64 = 128 << 10;
/// Readings ahead that are under way at once.
const TASKS: usize = 4;
/// What takes longer is given up: whoever waits for it asks himself.
const PATIENCE: Duration = Duration::from_secs(2);
/// A name that comes so soon after another one is a step; what lies between may be of another kind.
const NEAR: usize = 16;
/// So many names are looked at for each that is read ahead.
const LOOKED_AT: usize = 4;

/// Reads ahead for one mount.
pub(super) struct Ahead {
    session: Arc<Session>,
    blocks: Arc<Blocks>,
    /// Steps from directory to directory, and from file to file.
    directories: Walks,
    files: Walks,
    tasks: Arc<Semaphore>,
    under_way: Mutex<HashMap<Ino, watch::Receiver<()>>>,
}

/// Inodes whose records are on their way. Dropping it says that they are there, or will not come.
struct Coming {
    ahead: Arc<Ahead>,
    inos: Vec<Ino>,
    waiting: watch::Receiver<()>,
    _done: watch::Sender<()>,
}

impl Drop for Coming {
    fn drop(&mut self) {
        let mut under_way = self.ahead.under_way();
        for ino in &self.inos {
            // Another reading of the same may have begun since.
            if under_way.get(ino).is_some_and(|waiting| waiting.same_channel(&self.waiting)) {
                under_way.remove(ino);
            }
        }
    }
}

impl Ahead {
    /// For a session and what reads its files.
    pub(super) fn new(session: Arc<Session>, blocks: Arc<Blocks>) -> Arc<Self> {
        Arc::new(Self {
            session,
            blocks,
            directories: Walks::new(DIRECTORIES_MAX),
            files: Walks::new(FILES_MAX),
            tasks: Arc::new(Semaphore::new(TASKS)),
            under_way: Mutex::default(),
        })
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<Ino, watch::Receiver<()>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn coming(self: &Arc<Self>, inos: impl IntoIterator<Item = Ino>) -> Coming {
        let (done, waiting) = watch::channel(());
        let inos: Vec<Ino> = inos.into_iter().collect();
        self.under_way().extend(inos.iter().map(|ino| (*ino, waiting.clone())));
        Coming { ahead: Arc::clone(self), inos, waiting, _done: done }
    }

    /// Waits until the names of a directory, or the chunks of a file, are no longer on their way.
    pub(super) async fn settled(&self, ino: Ino) {
        let waiting = self.under_way().get(&ino).cloned();
        if let Some(mut waiting) = waiting {
            // An error says that the other side is gone, which is what is waited for.
            let _gone = waiting.changed().await;
        }
    }

    /// Somebody lists a directory from its beginning, or looks up its names.
    pub(super) fn came_into(self: &Arc<Self>, inode: &Inode) {
        let Some(stretch) = self.step(&self.directories, inode) else { return };
        let Ok(permit) = Arc::clone(&self.tasks).try_acquire_owned() else {
            return self.directories.reached(stretch.directory, &[], false);
        };
        let wanted = self.known_names(&stretch, Kind::Directory).unwrap_or_default();
        let names: Vec<Name> = wanted.iter().map(|(name, _)| name.clone()).collect();
        self.directories.reached(stretch.directory, &names, names.is_empty());
        let is_unknown = |ino: &Ino| self.session.cache.names(*ino, None, 0).is_none();
        let unknown: Vec<Ino> = wanted.into_iter().map(|(_, entry)| entry.ino).filter(is_unknown).collect();
        if !unknown.is_empty() {
            let this = Arc::clone(self);
            spawn(permit, async move { this.list(unknown).await });
        }
    }

    /// Somebody reads a small file from its beginning.
    pub(super) fn came_to(self: &Arc<Self>, inode: &Inode) {
        let Some(stretch) = self.step(&self.files, inode) else { return };
        let Ok(permit) = Arc::clone(&self.tasks).try_acquire_owned() else {
            return self.files.reached(stretch.directory, &[], false);
        };
        match self.known_names(&stretch, Kind::File) {
            Some(wanted) => {
                let files = self.note_files(&stretch, wanted);
                if !files.is_empty() {
                    let this = Arc::clone(self);
                    spawn(permit, async move { this.fetch(files).await });
                }
            }
            None => {
                let this = Arc::clone(self);
                spawn(permit, async move {
                    let wanted = this.names(&stretch).await;
                    let files = this.note_files(&stretch, wanted);
                    this.fetch(files).await;
                });
            }
        }
    }

    /// Notes where somebody is.
    fn step(&self, walks: &Walks, inode: &Inode) -> Option<Stretch> {
        let cache = &self.session.cache;
        let (directory, name) = (inode.parent, inode.name.as_ref()?);
        let parent = cache.inode(directory).flatten().map_or(Ino(0), |inode| inode.parent);
        walks.step(parent, directory, name, |last| {
            let next = cache.names(directory, Some(last), NEAR);
            next.is_none_or(|next| next.iter().any(|(next, _)| next == name))
        })
    }

    /// The names of a stretch that are of a kind, if the whole directory is known.
    fn known_names(&self, stretch: &Stretch, kind: Kind) -> Option<Vec<(Name, Entry)>> {
        let Stretch { directory, after, count } = stretch;
        let names = self.session.cache.names(*directory, Some(after), count * LOOKED_AT)?;
        Some(names.into_iter().filter(|(_, entry)| entry.kind == kind).take(*count).collect())
    }

    /// The files of a stretch of a directory that is not known whole.
    async fn names(&self, stretch: &Stretch) -> Vec<(Name, Entry)> {
        let Stretch { directory, after, count } = stretch;
        let limit = u32::try_from(*count).unwrap_or(u32::MAX);
        let want = Want::Directory { ino: *directory, after: Some(after.clone()), limit };
        let Ok(reply) = self.session.read(vec![want]).await else { return Vec::new() };
        let names = reply.answers.into_iter().flat_map(Answer::into_names);
        names.filter(|(_, entry)| entry.kind == Kind::File).collect()
    }

    /// Those of some files that are small and whose content is not known, up to what fits into one request; notes how far that is.
    fn note_files(&self, stretch: &Stretch, names: Vec<(Name, Entry)>) -> Vec<Ino> {
        let (mut files, mut passed, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (name, entry) in &names {
            let inode = self.session.cache.inode(entry.ino).flatten();
            if let Some(inode) = inode.filter(|inode| inode.size > 0 && inode.size <= SMALL) {
                bytes += inode.size;
                if bytes > BLOCKS_BYTES_MAX as u64 / 2 {
                    break;
                }
                files.push(inode.ino);
            }
            passed.push(name.clone());
        }
        self.files.reached(stretch.directory, &passed, names.is_empty());
        files
    }

    /// Reads all names of some directories, with what they lead to.
    async fn list(self: &Arc<Self>, directories: Vec<Ino>) {
        let _coming = self.coming(directories.iter().copied());
        let cache = &self.session.cache;
        let watches: Vec<Arc<Watch>> = directories.iter().map(|ino| cache.watch(*ino)).collect();
        let want = |ino: &Ino| Want::Directory { ino: *ino, after: None, limit: NAMES_MAX };
        // A failure shows when somebody lists one of them.
        let Ok(reply) = self.session.read(directories.iter().map(want).collect()).await else { return };
        for ((ino, watch), answer) in directories.iter().zip(watches).zip(reply.answers) {
            if answer.complete {
                cache.keep_directory(*ino, &watch, answer.into_names());
            }
        }
    }

    /// Reads the content of files: what they consist of, then the blocks.
    async fn fetch(self: &Arc<Self>, files: Vec<Ino>) {
        let cache = &self.session.cache;
        let is_known = |ino: &Ino| cache.get(&Key::Chunk(*ino, 0)).is_some();
        let (known, unknown): (Vec<Ino>, Vec<Ino>) = files.into_iter().partition(is_known);
        let mut ids = Vec::new();
        let mut add = |record: Option<&Record>| {
            if let Some(Record::Chunk(chunk)) = record {
                ids.extend(chunk.0.iter().map(|extent| extent.block));
            }
        };
        known
            .iter()
            .filter_map(|ino| cache.get(&Key::Chunk(*ino, 0)))
            .for_each(|record| add(record.as_deref()));
        // Who waits for these then waits for their blocks.
        let coming = self.coming(unknown.iter().copied());
        if !unknown.is_empty() {
            let wants = unknown.iter().map(|ino| Want::Chunks { ino: *ino, from: 0, to: 1 }).collect();
            let Ok(reply) = self.session.read(wants).await else { return };
            let records = reply.answers.iter().flat_map(|answer| &answer.records);
            records.for_each(|(_, record)| add(record.as_ref()));
        }
        let claimed = self.blocks.claim(&ids);
        drop(coming);
        self.blocks.fetch(claimed).await;
    }
}

fn spawn(permit: OwnedSemaphorePermit, task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(async move {
        let _given_up = timeout(PATIENCE, task).await;
        drop(permit);
    });
}
