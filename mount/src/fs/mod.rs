//! The file system: one method for each call of the kernel. It knows nothing of FUSE, so it is tested without a mount.

pub mod accesses;
mod ahead;
pub mod atime;
mod batches;
mod block_cache;
mod blocks;
pub mod buffer;
pub mod cache;
mod check;
mod commits;
pub mod data;
mod delegations;
pub mod directory;
mod dropping;
pub mod events;
pub mod file_data;
pub mod files;
mod guests;
pub mod handles;
pub mod ids;
pub mod kernel;
pub mod known;
mod lease;
pub mod locks;
mod misses;
pub mod names;
mod objects;
pub mod opens;
mod quiet;
pub mod read;
mod recovered;
pub mod remote;
mod requests;
pub mod session;
pub mod space;
mod suspended;
#[cfg(test)]
pub(crate) mod tests;
mod walks;
pub mod xattrs;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tandemfs::api::fs::BatchReply;
use tandemfs::clock::{Clock, Time};
use tandemfs::id::Ino;
use tandemfs::name::Name;
use tandemfs::tree::{Credentials, Inode, Key, Kind, Mutation, Record, SetAttributes, Want};
use tandemfs::{Error, ErrorKind, Result};

use accesses::Accesses;
use ahead::Ahead;
use atime::AtimeRule;
use block_cache::BlockCache;
use blocks::Blocks;
use commits::Reach;
use data::Data;
use directory::OpenDirectory;
use file_data::Unsent;
use handles::{Handles, OpenFile};
use ids::Ids;
use kernel::Kernel;
use misses::Misses;
use quiet::Quiet;
use read::Reader;
use remote::Remote;
use session::Session;

/// How long an unmount waits until the times of the last reads are sent.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// How a file system is to behave.
#[derive(Clone, Debug)]
pub struct Options {
    /// A shared volume's name; `None` is the user's own.
    pub volume: Option<String>,
    /// Nothing is changed.
    pub read_only: bool,
    /// Every write is durable when it returns.
    pub sync: bool,
    /// While nobody else uses the volume, changes are answered before they are sent.
    pub lease: bool,
    /// Where what is answered and not sent yet is kept for the next mount, if this one is killed; `None`: nowhere.
    /// Blocks that were read lie there as well.
    pub cache_directory: Option<PathBuf>,
    /// The most bytes of blocks in that directory for this volume; 0 for none.
    pub cache_size: u64,
    /// For people who look at the list of sessions: host and mount point.
    pub client: String,
    /// How long calls wait for a daemon that is away.
    pub offline_timeout: Duration,
    /// Bytes for all buffers and caches together.
    pub memory: usize,
    /// Who the root of the mount is shown to belong to while it belongs to root, so that a user who mounts a volume
    /// that nobody has chowned yet can use it.
    pub root_owner: Option<(u32, u32)>,
    /// How owners of this machine and of the volume are translated.
    pub ids: Ids,
    /// When reading changes atime.
    pub atime: AtimeRule,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            volume: None,
            read_only: false,
            sync: false,
            lease: false,
            cache_directory: None,
            cache_size: 0,
            client: String::new(),
            offline_timeout: Duration::from_secs(300),
            memory: 96 << 20,
            root_owner: None,
            ids: Ids::default(),
            atime: AtimeRule::default(),
        }
    }
}

/// A mounted volume.
pub struct Fs {
    pub(crate) session: Arc<Session>,
    data: Arc<Data>,
    reader: Arc<Reader>,
    block_cache: Option<Arc<BlockCache>>,
    ahead: Arc<Ahead>,
    misses: Misses,
    accesses: Arc<Accesses>,
    clock: Arc<dyn Clock>,
    options: Options,
    root: Ino,
    files: Handles<OpenFile>,
    quiet: Quiet,
    directories: Handles<OpenDirectory>,
    space: space::Space,
    /// For what the kernel says without waiting for an answer, from a thread of its own.
    runtime: tokio::runtime::Handle,
}

/// An inode as a program sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stat {
    /// The inode, with what was written and is not part of it yet.
    pub inode: Inode,
    /// The kernel may keep the attributes until it is told otherwise.
    pub keep: bool,
}

/// A time for setattr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// UTIME_NOW.
    Now,
    /// This one.
    At(Time),
}

/// What a setattr changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size of a file.
    pub size: Option<u64>,
    /// Last read.
    pub atime: Option<SetTime>,
    /// Last change of the content.
    pub mtime: Option<SetTime>,
}

impl Fs {
    /// Opens a session, begins to follow its events, and makes a file system of it.
    ///
    /// # Errors
    /// Those of the daemon.
    pub async fn open(remote: Arc<dyn Remote>, clock: Arc<dyn Clock>, options: Options) -> Result<Self> {
        // Half for what is being written, a quarter for blocks, a quarter for records.
        let session = Session::open(remote, &options).await?;
        let data = Data::new(Arc::clone(&session), Arc::clone(&clock), options.memory / 2);
        let block_cache = options.cache_directory.as_ref().and_then(|directory| {
            BlockCache::start(directory, &session.grant().key, options.cache_size, options.memory)
        });
        let index_bytes = block_cache.as_ref().map_or(0, |_| BlockCache::index_bytes(options.memory));
        let blocks = Blocks::new(Arc::clone(&session), options.memory / 4 - index_bytes, block_cache.clone());
        let reader = Reader::new(Arc::clone(&session), Arc::clone(&blocks));
        let ahead = Ahead::new(Arc::clone(&session), blocks);
        let accesses = Accesses::new(Arc::clone(&session));
        tokio::spawn(Data::write_back(Arc::downgrade(&data)));
        tokio::spawn(Accesses::send_lazily(Arc::downgrade(&accesses)));
        tokio::spawn(Session::send_queue(Arc::downgrade(&session)));
        tokio::spawn(Session::store_queue(Arc::downgrade(&session)));
        // Before anything is asked: whoever is shown something is told of its changes, and others wait until it answers.
        tokio::spawn(Arc::clone(&session).follow());
        Ok(Self {
            session,
            data,
            reader,
            block_cache,
            ahead,
            misses: Misses::default(),
            accesses,
            clock,
            options,
            root: Ino::ROOT,
            files: Handles::default(),
            quiet: Quiet::default(),
            directories: Handles::default(),
            space: space::Space::default(),
            runtime: tokio::runtime::Handle::current(),
        })
    }

    /// Makes a directory the root: what lies outside of it cannot be reached by names. To be called before the file
    /// system is used; a failure ends the session.
    ///
    /// # Errors
    /// `NotFound`; `NotADirectory`, also for a symbolic link; those of the daemon.
    pub async fn below(mut self, path: &[Name]) -> Result<Self> {
        for name in path {
            let found = match self.lookup(self.root, name.as_bytes()).await {
                Ok(stat) if !stat.inode.is_directory() => Err(Error::not_a_directory(name.to_lossy())),
                other => other,
            };
            match found {
                Ok(stat) => self.root = stat.inode.ino,
                Err(error) => {
                    self.session.close().await;
                    return Err(error);
                }
            }
        }
        Ok(self)
    }

    /// The inode that the mount shows as its root.
    pub fn root(&self) -> Ino {
        self.root
    }

    /// From now on the kernel's caches are kept right as well, and the volume is leased if nobody else uses it.
    pub fn start(&self, kernel: Arc<dyn Kernel>) {
        self.session.known.add(self.root, false);
        if self.session.kernel.set(kernel).is_ok() {
            tokio::spawn(Session::seek_lease(Arc::downgrade(&self.session)));
        }
    }

    /// Commits what is dirty.
    ///
    /// # Errors
    /// The last failure of writing.
    pub async fn commit_all(&self) -> Result<()> {
        let sent = self.data.commit_older(Duration::ZERO).await;
        sent.and(self.session.all_committed().await)
    }

    /// Commits what is dirty and ends the session.
    ///
    /// # Errors
    /// The last failure of writing.
    pub async fn stop(&self) -> Result<()> {
        let mut result = self.data.commit_older(Duration::ZERO).await;
        if tokio::time::timeout(STOP_PATIENCE, self.accesses.send_all()).await.is_err() {
            log::warn!("the times of the last reads are lost: the daemon does not answer");
        }
        result = result.and(self.session.all_committed().await);
        self.session.close().await;
        if let Some(cache) = &self.block_cache {
            cache.close().await;
        }
        result
    }

    /// Whether the volume takes no changes: it was mounted so, or the user may read only.
    pub fn is_read_only(&self) -> bool {
        self.options.read_only || self.session.is_read_only()
    }

    /// Has the kernel drop a file's pages, in a thread that may wait for it.
    pub fn drop_pages(&self, ino: Ino) {
        self.session.drop_pages(ino);
    }

    /// The kernel has forgotten an inode so many of the times that it was told of it.
    pub fn forget(&self, ino: Ino, times: u64) {
        if self.session.known.forget(ino, times) {
            let session = Arc::clone(&self.session);
            self.runtime.spawn(async move { session.let_go(ino).await });
        }
    }

    /// The kernel is being told of an inode; answers what to tell. From now on it is told as well when that becomes wrong, so
    /// what has become wrong before must not be kept.
    pub fn tell(&self, stat: Stat) -> Stat {
        // The kernel opens these itself, and does not say so.
        let is_special = !matches!(stat.inode.kind, Kind::File | Kind::Directory | Kind::Symlink);
        if self.session.known.add(stat.inode.ino, is_special) {
            self.session.opens.add(stat.inode.ino);
        }
        self.confirmed(stat)
    }

    /// The kernel is being told of a file that was created; as [`Fs::tell`]. If that was in a session that has ended, others may have removed
    /// it by now. The kernel asks once more before the file is open, and would create another one if that were `Stale`.
    pub fn tell_created(&self, stat: Stat) -> Stat {
        let told = self.tell(stat);
        let ids = &self.options.ids;
        if !told.keep
            && let (Ok(uid), Ok(gid)) = (ids.user(told.inode.uid), ids.group(told.inode.gid))
        {
            self.session.known.remove(Inode { uid, gid, ..told.inode.clone() });
        }
        told
    }

    /// Attributes that the kernel may keep only if they are still right: what has become wrong before this it is not told.
    fn confirmed(&self, stat: Stat) -> Stat {
        let unsent = self.unsent(stat.inode.ino);
        match self.session.cache.inode(stat.inode.ino) {
            Some(Some(inode)) if self.session.is_ready() => self.stat_with(inode, unsent),
            _ => Stat { keep: false, ..stat },
        }
    }

    /// getattr.
    ///
    /// # Errors
    /// `Stale` for what is gone, those of the daemon.
    pub async fn getattr(&self, ino: Ino) -> Result<Stat> {
        self.session.ready().await?;
        let unsent = self.unsent(ino);
        let stat = self.stat_with(self.inode(ino).await?, unsent);
        self.session.known.give_attributes(ino);
        Ok(self.confirmed(stat))
    }

    /// readlink.
    ///
    /// # Errors
    /// `Invalid` for what is not a symbolic link, those of the daemon.
    pub async fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.session.ready().await?;
        let target = self.inode(ino).await?.target.ok_or_else(|| Error::invalid("not a symbolic link"))?;
        self.note_read(ino, 0);
        Ok(target)
    }

    /// setattr.
    ///
    /// # Errors
    /// `Stale` for what is gone. Those of the rules and of the daemon.
    pub async fn setattr(&self, by: Credentials, ino: Ino, set: Set) -> Result<Stat> {
        self.writable()?;
        let now = self.clock.now();
        let time = |set: SetTime| match set {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        let (ids, by) = (&self.options.ids, self.options.ids.acting(by));
        let set = SetAttributes {
            mode: set.mode.map(|mode| mode & 0o7777),
            uid: set.uid.map(|uid| ids.user(uid)).transpose()?,
            gid: set.gid.map(|gid| ids.group(gid)).transpose()?,
            size: set.size,
            atime: set.atime.map(time),
            mtime: set.mtime.map(time),
        };
        let new_size = set.size;
        if set.atime.is_some() {
            self.accesses.forget(ino).await;
        }
        let mutation = Mutation::SetAttributes { ino, set, by, time: now };
        // What was written before must not change times, privileges or size afterwards; and the content changes in the order of commits.
        let is_dirty = self.data.get(ino).is_some_and(|file| file.is_dirty());
        let reply = match (is_dirty || new_size.is_some()).then(|| self.data.enter(ino)) {
            Some(file) => {
                if new_size == Some(0) {
                    self.data.discard(ino).await;
                }
                let committed = self.data.commit(&file, Reach::All, Some(mutation)).await;
                self.data.leave(&file);
                self.of_inode(ino, committed)?
            }
            None => {
                let only = self.session.locks.session_of(ino);
                Some(self.of_inode(ino, self.session.commit_in(only, vec![mutation]).await)?)
            }
        };
        let inode = match reply.as_ref().and_then(|reply| written(reply, ino)) {
            Some(inode) => inode,
            None => self.inode(ino).await?,
        };
        Ok(self.stat(inode))
    }

    fn writable(&self) -> Result<()> {
        if self.is_read_only() { Err(Error::read_only("mounted read-only")) } else { Ok(()) }
    }

    /// What is said of an inode that is gone: there is no name here that could be missing, and the kernel looks the name up again.
    fn gone(&self, ino: Ino) -> Error {
        self.session.guests.missed();
        Error::stale(format!("inode {ino}"))
    }

    /// What came of a call on an inode, for which there is no other thing that could be missing.
    fn of_inode<T>(&self, ino: Ino, result: Result<T>) -> Result<T> {
        result.map_err(|error| if error.kind() == ErrorKind::NotFound { self.gone(ino) } else { error })
    }

    /// An inode, from the cache or the daemon.
    ///
    /// # Errors
    /// `Stale` if it is gone; those of the daemon.
    async fn inode(&self, ino: Ino) -> Result<Inode> {
        let gone = || self.session.known.removed(ino).ok_or_else(|| self.gone(ino));
        if let Some(cached) = self.session.cache.inode(ino) {
            return cached.map_or_else(gone, Ok);
        }
        let reply = self.session.read(vec![Want::Record(Key::Inode(ino))]).await?;
        for (_, record) in reply.answers.into_iter().flat_map(|answer| answer.records) {
            if let Some(Record::Inode(inode)) = record
                && inode.ino == ino
            {
                return Ok(*inode);
            }
        }
        gone()
    }

    /// Notes a read through a handle with these flags of open(2), if it changes atime. Answers whether it does. Who read has the
    /// inode in the cache, mostly; nothing waits for it here.
    fn note_read(&self, ino: Ino, flags: i32) -> bool {
        let rule = self.options.atime;
        if rule.when == atime::When::Never || flags & libc::O_NOATIME != 0 || self.is_read_only() {
            return false;
        }
        let Some(Some(inode)) = self.session.cache.inode(ino) else { return false };
        let now = self.clock.now();
        let counts = rule.counts(&self.stat(inode.clone()).inode, now);
        if counts {
            self.accesses.note(&inode, now);
        }
        counts
    }

    /// What was written to a file and is not part of it yet. To be asked for before the inode is: what becomes part of it after
    /// this is then in the inode.
    fn unsent(&self, ino: Ino) -> Option<Unsent> {
        self.data.get(ino)?.dirty()
    }

    /// An inode that was just made what it is, as a program sees it.
    fn stat(&self, inode: Inode) -> Stat {
        let unsent = self.unsent(inode.ino);
        self.stat_with(inode, unsent)
    }

    /// An inode as a program sees it.
    fn stat_with(&self, mut inode: Inode, unsent: Option<Unsent>) -> Stat {
        let unsent = unsent.filter(|_| inode.kind == Kind::File);
        if let Some(unsent) = &unsent {
            unsent.show(&mut inode);
        }
        self.accesses.show(&mut inode);
        if inode.ino == self.root
            && (inode.uid, inode.gid) == (0, 0)
            && let Some((uid, gid)) = self.options.root_owner
        {
            (inode.uid, inode.gid) = (uid, gid);
        } else {
            self.options.ids.show(&mut inode);
        }
        Stat { inode, keep: unsent.is_none() }
    }
}

/// An inode as a batch has left it.
fn written(reply: &BatchReply, ino: Ino) -> Option<Inode> {
    reply.records.iter().find_map(|(key, record)| match (key, record) {
        (Key::Inode(number), Some(Record::Inode(inode))) if *number == ino => Some(inode.as_ref().clone()),
        _ => None,
    })
}
