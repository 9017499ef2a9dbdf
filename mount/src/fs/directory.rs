//! Listing directories: by pages, with offsets that stay valid while the directory changes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tandemfs::api::fs::{DIRECTORY_PAGE_MAX, READ_WANTS_MAX};
use tandemfs::id::Ino;
use tandemfs::name::Name;
use tandemfs::tree::{Entry, Inode, Key, Kind, Record, Want};
use tandemfs::{Error, Result};
use tokio::sync::Mutex;

use super::cache::Watch;
use super::{Fs, Stat};

/// Entries whose inodes are looked for in advance when a listing wants attributes.
const PLUS_AHEAD: usize = 128;
/// The longest listing. A directory is not as large, but a daemon may give no end.
const LISTED_MAX: usize = if cfg!(test) { 1 << 12 } else { 1 << 24 };
/// So many names are copied from a directory that is known whole.
const COPY_MAX: usize = 1024;
/// Of what was listed, so much is kept at least; a larger directory is not remembered as a whole.
const WINDOW: usize = if cfg!(test) { 40 } else { 1 << 16 };
/// A listing can go on from every so many entries, also from those that are not kept any more.
const MARK: usize = if cfg!(test) { 8 } else { 256 };

/// An open directory: what it has listed so far. An offset is a number in that list, `.` and `..` being the first.
pub struct OpenDirectory {
    /// The directory.
    pub ino: Ino,
    /// open(2)'s flags.
    flags: i32,
    listing: Mutex<Listing>,
    /// Names were given to the kernel, which may not have taken them in yet.
    given: AtomicBool,
}

struct Listing {
    parent: Ino,
    watch: Arc<Watch>,
    /// The last entries that were listed, from number `first` on.
    listed: VecDeque<(Name, Entry)>,
    first: usize,
    /// The name of the last entry that was listed.
    last: Option<Name>,
    /// The name of every [`MARK`]th entry.
    marks: Vec<Name>,
    complete: bool,
}

impl Listing {
    fn new(parent: Ino, watch: Arc<Watch>, complete: bool) -> Self {
        let (listed, marks) = (VecDeque::new(), Vec::new());
        Self { parent, watch, listed, first: 0, last: None, marks, complete }
    }

    /// How many were listed.
    fn end(&self) -> usize {
        self.first + self.listed.len()
    }

    fn push(&mut self, name: Name, entry: Entry) {
        self.last = Some(name.clone());
        self.listed.push_back((name.clone(), entry));
        if self.end().is_multiple_of(MARK) {
            self.marks.push(name);
        }
    }

    /// Lets go of what is older than the window, but of nothing from `number` on.
    fn trim(&mut self, number: usize) {
        let old = self.listed.len().saturating_sub(WINDOW).min(number.saturating_sub(self.first));
        self.listed.drain(..old);
        self.first += old;
    }

    /// Goes back to before a number that is not kept any more. Where names have come or gone since in the piece of the list that it lies
    /// in, the numbers in it are others now: that is so only for who goes back far in a large directory (seekdir(3)).
    fn go_back(&mut self, number: usize) {
        let marks = (number / MARK).min(self.marks.len());
        self.marks.truncate(marks);
        self.first = marks * MARK;
        self.last = self.marks.last().cloned();
        self.listed.clear();
        self.complete = false;
    }
}

/// An entry of a listing.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Where the listing goes on after it.
    pub next: u64,
    /// Its name; `.` and `..` among them.
    pub name: Vec<u8>,
    /// What it leads to.
    pub ino: Ino,
    /// What that is.
    pub kind: Kind,
    /// Its attributes, where they were asked for, and whether the kernel may keep them and the name.
    pub stat: Option<(Stat, bool)>,
}

impl OpenDirectory {
    /// A handle on a directory, opened with these flags of open(2).
    pub fn new(ino: Ino, flags: i32, watch: Arc<Watch>) -> Self {
        let listing = Mutex::new(Listing::new(ino, watch, false));
        Self { ino, flags, listing, given: AtomicBool::new(false) }
    }
}

impl Fs {
    /// Some entries of an open directory from an offset on; none at the end. `plus` asks for attributes.
    ///
    /// # Errors
    /// Those of the daemon.
    pub async fn read_directory(
        &self,
        directory: &OpenDirectory,
        offset: u64,
        plus: bool,
        limit: usize,
    ) -> Result<Vec<Listed>> {
        self.session.ready().await?;
        let mut listing = directory.listing.lock().await;
        self.settle_listing(directory, &listing);
        if offset == 0 {
            let inode = self.inode(directory.ino).await?;
            // As in any file system, the root is its own parent.
            let parent = if inode.ino == self.root { self.root } else { inode.parent };
            self.ahead.came_into(&inode);
            self.ahead.settled(directory.ino).await;
            let watch = self.session.cache.watch(directory.ino);
            *listing = Listing::new(parent, watch, inode.nlink == 0);
        }
        let mut entries = Vec::new();
        for (number, name, ino) in [(0, &b"."[..], directory.ino), (1, b"..", listing.parent)] {
            if offset <= number && directory.ino != Ino(0) {
                entries.push(Listed {
                    next: number + 1,
                    name: name.to_vec(),
                    ino,
                    kind: Kind::Directory,
                    stat: None,
                });
            }
        }
        let from = usize::try_from(offset.saturating_sub(2)).map_err(|_| Error::invalid("offset"))?;
        if from < listing.first {
            listing.go_back(from);
        }
        while listing.end() <= from && !listing.complete {
            self.list_more(directory.ino, &mut listing, from).await?;
        }
        let limit = if plus { limit.min(PLUS_AHEAD) } else { limit };
        let to = listing.end().min(from.saturating_add(limit));
        let skip = from.saturating_sub(listing.first);
        let page: Vec<_> = listing.listed.iter().skip(skip).take(to.saturating_sub(from)).collect();
        let stats = if plus { self.stats(&page).await? } else { BTreeMap::new() };
        let fresh = !listing.watch.is_broken();
        for (at, (name, entry)) in page.iter().enumerate() {
            let stat = stats.get(&entry.ino).map(|stat| (stat.clone(), fresh));
            if plus && stat.is_none() {
                // Removed since it was listed.
                continue;
            }
            entries.push(Listed {
                next: (from + at) as u64 + 3,
                name: name.as_bytes().to_vec(),
                ino: entry.ino,
                kind: entry.kind,
                stat,
            });
        }
        if entries.is_empty() && to > from {
            // All of this page are gone; an empty answer would mean the end.
            drop(listing);
            return Box::pin(self.read_directory(directory, to as u64 + 2, plus, limit)).await;
        }
        if plus && !page.is_empty() {
            directory.given.store(true, Ordering::Release);
        }
        self.note_read(directory.ino, directory.flags);
        Ok(entries)
    }

    /// The kernel has taken in what it was given before. Where that had become wrong meanwhile, it is told so again:
    /// it may have made new names of it after it was told the first time.
    fn settle_listing(&self, directory: &OpenDirectory, listing: &Listing) {
        if directory.given.swap(false, Ordering::AcqRel)
            && listing.watch.is_broken()
            && let Some(kernel) = self.session.kernel.get()
        {
            kernel.drop_names();
        }
    }

    pub(super) async fn end_listing(&self, directory: &OpenDirectory) {
        let listing = directory.listing.lock().await;
        self.settle_listing(directory, &listing);
    }

    /// Adds a page to what was listed, from the cache or from the daemon; keeps what is wanted, from a number on.
    async fn list_more(&self, ino: Ino, listing: &mut Listing, wanted: usize) -> Result<()> {
        let after = listing.last.clone();
        if let Some(page) = self.session.cache.names(ino, after.as_ref(), COPY_MAX) {
            listing.complete = page.len() < COPY_MAX;
            page.into_iter().for_each(|(name, entry)| listing.push(name, entry));
            listing.trim(wanted);
            return Ok(());
        }
        let want = Want::Directory { ino, after, limit: DIRECTORY_PAGE_MAX };
        let reply = self.session.read(vec![want]).await?;
        let answer =
            reply.answers.into_iter().next().ok_or_else(|| Error::corrupt("an answer without records"))?;
        let before = listing.end();
        for (key, record) in answer.records {
            if let (Key::Entry(parent, name), Some(Record::Entry(entry))) = (key, record) {
                if parent != ino || listing.last.as_ref().is_some_and(|last| *last >= name) {
                    return Err(Error::corrupt("a listing that is out of order"));
                }
                listing.push(name, entry);
            }
        }
        if listing.end() > LISTED_MAX {
            return Err(Error::corrupt("a listing without end"));
        }
        listing.complete = answer.complete;
        if !answer.complete && listing.end() == before {
            return Err(Error::corrupt("an empty page that is not the last"));
        }
        listing.trim(wanted);
        if listing.complete && listing.end() <= WINDOW {
            let names = listing.listed.iter().cloned().collect();
            self.session.cache.keep_directory(ino, &listing.watch, names);
        }
        Ok(())
    }

    /// The attributes of some entries, by inode; those that are not there any more are left out.
    async fn stats(&self, page: &[&(Name, Entry)]) -> Result<BTreeMap<Ino, Stat>> {
        let mut stats = BTreeMap::new();
        let mut missing = Vec::new();
        for (_, entry) in page {
            match self.session.cache.inode(entry.ino) {
                Some(Some(inode)) => drop(stats.insert(entry.ino, self.stat(inode))),
                Some(None) => (),
                None => missing.push(entry.ino),
            }
        }
        for inos in missing.chunks(READ_WANTS_MAX) {
            let wants = inos.iter().map(|ino| Want::Record(Key::Inode(*ino))).collect();
            for (_, record) in
                self.session.read(wants).await?.answers.into_iter().flat_map(|answer| answer.records)
            {
                if let Some(Record::Inode(inode)) = record {
                    let inode: Inode = *inode;
                    stats.insert(inode.ino, self.stat(inode));
                }
            }
        }
        Ok(stats)
    }
}
