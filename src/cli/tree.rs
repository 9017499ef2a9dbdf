//! Directories by path, over a short-lived session of the kind that mounts have.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use futures::StreamExt;
use tandemfs::api::fs::{Ack, Batch, DIRECTORY_PAGE_MAX, OpenSession, Read, SessionGrant};
use tandemfs::client::Client;
use tandemfs::clock::{Clock, SystemClock, Time};
use tandemfs::id::{FileId, Ino, SessionId};
use tandemfs::name::{Name, split_path};
use tandemfs::tree::{Credentials, Inode, Key, Mutation, Record, Want};
use tandemfs::{Error, Result};

use super::Context;
use super::failure::Outcome;

/// An open session on the home volume. It keeps nothing of what it reads.
pub(super) struct Tree {
    client: Client,
    grant: SessionGrant,
    sequence: u64,
    free: std::ops::Range<u64>,
    by: Credentials,
}

/// A page of a directory.
pub(super) struct Page {
    /// The entries, in the order of their names' bytes.
    pub(super) entries: Vec<(Name, Inode)>,
    /// Whether these are the last ones.
    pub(super) complete: bool,
}

/// Does some work in a session, and ends it whatever comes of the work.
pub(super) async fn with<T>(
    context: &Context,
    read_only: bool,
    work: impl AsyncFnOnce(&mut Tree) -> Outcome<T>,
) -> Outcome<T> {
    let client = context.client.clone();
    let request =
        OpenSession { volume: None, read_only, client: format!("tandem, process {}", std::process::id()) };
    let grant = client.open_session(&request).await?;
    let session = grant.session;
    let mut tree = Tree { client: client.clone(), grant, sequence: 0, free: 0..0, by: process_owner() };
    let answering = tokio::spawn(answer_events(client.clone(), session));
    let outcome = work(&mut tree).await;
    answering.abort();
    if let Err(error) = client.close_session(session).await {
        log::debug!("session {session} is left to its lease: {error}");
    }
    outcome
}

/// Acknowledges all events, for there is nothing to drop: so nobody has to wait for this session, and it stays alive.
async fn answer_events(client: Client, session: SessionId) {
    let Ok(mut events) = client.events(session).await else { return };
    while let Some(Ok(event)) = events.next().await {
        if client.ack(session, &Ack { number: event.number(), held: Vec::new() }).await.is_err() {
            return;
        }
    }
}

impl Tree {
    /// The id of a file of this volume.
    pub(super) fn file_id(&self, ino: Ino) -> FileId {
        FileId { volume: self.grant.volume, ino }
    }

    /// What a path leads to; symbolic links are not followed.
    pub(super) async fn find(&self, path: &str) -> Result<Option<Inode>> {
        self.find_names(&split_path(path)?).await
    }

    /// The same; it is an error when there is nothing.
    pub(super) async fn get(&self, path: &str) -> Result<Inode> {
        self.find(path).await?.ok_or_else(|| Error::not_found(path))
    }

    /// What a path leads to.
    pub(super) async fn find_names(&self, names: &[Name]) -> Result<Option<Inode>> {
        let mut inode = self.root().await?;
        for name in names {
            if !inode.is_directory() {
                return Err(Error::not_a_directory(
                    inode.name.map(|name| name.to_lossy()).unwrap_or_default(),
                ));
            }
            match self.lookup(inode.ino, name).await? {
                Some(next) => inode = next,
                None => return Ok(None),
            }
        }
        Ok(Some(inode))
    }

    /// The directory that a path's last name is in, and that name. `None` for the root, which has no name.
    pub(super) async fn parent_of(&self, path: &str) -> Result<Option<(Inode, Name)>> {
        let mut names = split_path(path)?;
        let Some(name) = names.pop() else { return Ok(None) };
        match self.find_names(&names).await? {
            Some(parent) if parent.is_directory() => Ok(Some((parent, name))),
            Some(_) => Err(Error::not_a_directory(path)),
            None => Err(Error::not_found(path)),
        }
    }

    async fn root(&self) -> Result<Inode> {
        let records = self.read(Want::Record(Key::Inode(Ino::ROOT))).await?.0;
        inodes_of(&records).remove(&Ino::ROOT).ok_or_else(|| Error::corrupt("the volume has no root"))
    }

    /// What a name in a directory leads to.
    pub(super) async fn lookup(&self, parent: Ino, name: &Name) -> Result<Option<Inode>> {
        let (records, _) = self.read(Want::Lookup { parent, name: name.clone() }).await?;
        let mut inodes = inodes_of(&records);
        for (key, record) in &records {
            if let (Key::Entry(..), Some(Record::Entry(entry))) = (key, record) {
                return inodes.remove(&entry.ino).map(Some).ok_or_else(|| Error::corrupt(name.to_lossy()));
            }
        }
        Ok(None)
    }

    /// Entries of a directory after a name.
    pub(super) async fn page(&self, directory: Ino, after: Option<Name>) -> Result<Page> {
        let (records, complete) =
            self.read(Want::Directory { ino: directory, after, limit: DIRECTORY_PAGE_MAX }).await?;
        let inodes = inodes_of(&records);
        let mut entries = Vec::new();
        for (key, record) in records {
            if let (Key::Entry(parent, name), Some(Record::Entry(entry))) = (key, record)
                && parent == directory
            {
                // Two links to one inode may be in one page.
                let inode = inodes.get(&entry.ino).cloned().ok_or_else(|| Error::corrupt(name.to_lossy()))?;
                entries.push((name, inode));
            }
        }
        // A page without an entry that says there is more would be asked for again for ever.
        let complete = complete || entries.is_empty();
        Ok(Page { entries, complete })
    }

    async fn read(&self, want: Want) -> Result<(Vec<(Key, Option<Record>)>, bool)> {
        let mut reply = self.client.read(self.grant.session, &Read { wants: vec![want] }).await?;
        let answer = reply.answers.pop().ok_or_else(|| Error::internal("a read without an answer"))?;
        Ok((answer.records, answer.complete))
    }

    /// Has a mutation committed.
    pub(super) async fn change(&mut self, mutation: Mutation) -> Result<()> {
        self.change_all(vec![mutation]).await
    }

    /// Has mutations committed as one.
    pub(super) async fn change_all(&mut self, mutations: Vec<Mutation>) -> Result<()> {
        self.sequence += 1;
        let batch = Batch {
            sequence: self.sequence,
            mutations,
            held: Vec::new(),
            delegates: Vec::new(),
            blocks: Vec::new(),
            brief: false,
        };
        self.client.batch(self.grant.session, &batch).await.map(drop)
    }

    /// A number for something new.
    pub(super) async fn new_ino(&mut self) -> Result<Ino> {
        loop {
            if let Some(number) = self.free.next() {
                return Ok(Ino(number));
            }
            let range = self.client.inodes(self.grant.session).await?;
            if range.count == 0 {
                return Err(Error::internal("no inode numbers were granted"));
            }
            self.free = range.first.0..range.first.0.saturating_add(range.count);
        }
    }

    /// Who makes the changes.
    pub(super) fn by(&self) -> Credentials {
        self.by
    }
}

/// The time of day.
pub(super) fn now() -> Time {
    SystemClock.now()
}

fn inodes_of(records: &[(Key, Option<Record>)]) -> BTreeMap<Ino, Inode> {
    let inode = |(_, record): &(Key, Option<Record>)| match record {
        Some(Record::Inode(inode)) => Some((inode.ino, Inode::clone(inode))),
        _ => None,
    };
    records.iter().filter_map(inode).collect()
}

/// Who runs this process, as the kernel shows it.
fn process_owner() -> Credentials {
    match std::fs::metadata("/proc/self") {
        Ok(process) => Credentials { uid: process.uid(), gid: process.gid() },
        Err(_) => Credentials::default(),
    }
}
