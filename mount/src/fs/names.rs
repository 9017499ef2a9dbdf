//! Names: lookup, create, mkdir, mknod, symlink, link, unlink, rmdir, rename.

use std::collections::BTreeMap;

use tandemfs::api::fs::{DIRECTORY_PAGE_MAX, ReadReply};
use tandemfs::id::Ino;
use tandemfs::name::Name;
use tandemfs::tree::acl::DEFAULT;
use tandemfs::tree::{Credentials, Entry, Inode, Key, Mutation, NewNode, Record, RenameMode, Want};
use tandemfs::{Error, ErrorKind, Result};

use super::{Fs, Stat, written};

/// So often a name is looked up again that leads to what has been replaced.
const HOLDS_MAX: usize = 16;
/// A directory that comes in more pages than this is not read whole for the sake of some names; the other side may give short ones.
const PAGES_MAX: usize = 32;

/// The permission bits of something new, and what the caller's umask takes away from them.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// As asked for; what lies beyond the bits is not looked at.
    pub mode: u32,
    /// umask(2).
    pub umask: u32,
}

impl From<u32> for Mode {
    fn from(mode: u32) -> Self {
        Self { mode, umask: 0 }
    }
}

impl Fs {
    /// lookup.
    ///
    /// # Errors
    /// `NotFound`, `NameTooLong`, those of the daemon.
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Stat> {
        self.session.ready().await?;
        let name = Name::new(name)?;
        let mut tries = HOLDS_MAX;
        let found = loop {
            let found = self.find(parent, &name).await?;
            let Some(inode) = found.as_ref().filter(|_| self.session.guests.are_held()) else { break found };
            self.session.hold(inode.ino);
            match self.admit(inode.ino).await {
                // It was replaced before it was held.
                Err(error) if error.kind() == ErrorKind::Stale && tries > 0 => tries -= 1,
                Err(error) => return Err(error),
                Ok(()) => break found,
            }
        };
        match found {
            Some(inode) if inode.is_file() => {
                let unsent = self.unsent(inode.ino);
                let inode = self.session.cache.inode(inode.ino).flatten().unwrap_or(inode);
                Ok(self.stat_with(inode, unsent))
            }
            Some(inode) => Ok(self.stat(inode)),
            None => Err(Error::not_found(name.to_lossy())),
        }
    }

    /// What a name leads to.
    async fn find(&self, parent: Ino, name: &Name) -> Result<Option<Inode>> {
        match self.session.cache.entry(parent, name) {
            Some(None) => return Ok(None),
            Some(Some(entry)) => {
                if let Some(Some(inode)) = self.session.cache.inode(entry.ino) {
                    return Ok(Some(inode));
                }
            }
            None => (),
        }
        let want = Want::Lookup { parent, name: name.clone() };
        let reply = self.read_with_names(parent, name, want).await?;
        let records = || reply.answers.iter().flat_map(|answer| &answer.records);
        let entry = records().find_map(|(key, record)| match (key, record) {
            (Key::Entry(of, found), Some(Record::Entry(entry))) if *of == parent && found == name => {
                Some(*entry)
            }
            _ => None,
        });
        let Some(Entry { ino, .. }) = entry else { return Ok(None) };
        let inode = records().find_map(|(_, record)| match record {
            Some(Record::Inode(inode)) if inode.ino == ino => Some(inode.as_ref().clone()),
            _ => None,
        });
        inode.map(Some).ok_or_else(|| Error::corrupt("an entry without an inode"))
    }

    /// Asks for what a name that is not known leads to, and perhaps for more of its directory.
    async fn read_with_names(&self, parent: Ino, name: &Name, want: Want) -> Result<ReadReply> {
        let cache = &self.session.cache;
        let directory = cache.inode(parent).flatten();
        let more = self.misses.note(parent, directory.as_ref().map(|inode| inode.entries), name);
        let Some(more) = more else { return self.session.read(vec![want]).await };
        let after = match &more {
            Want::Directory { after, .. } => after.clone(),
            _ => None,
        };
        let is_whole = after.is_none();
        if is_whole && let Some(directory) = &directory {
            self.ahead.came_into(directory);
        }
        let watch = cache.watch(parent);
        let mut reply = self.session.read(vec![want, more]).await?;
        let Some(answer) = reply.answers.pop() else { return Ok(reply) };
        let complete = answer.complete;
        let mut names = answer.into_names();
        if is_whole {
            if self.read_rest(parent, &mut names, complete).await? {
                cache.keep_directory(parent, &watch, names);
            }
        } else {
            let end = names.last_key_value().map(|(end, _)| end.clone());
            let found = complete || end.as_ref().is_some_and(|end| end >= name);
            self.misses.came(parent, end, (after.as_ref() != Some(name)).then_some(found));
        }
        Ok(reply)
    }

    /// Adds the names of a directory that come after those that are there, unless they are complete. Answers whether they are then.
    async fn read_rest(
        &self,
        parent: Ino,
        names: &mut BTreeMap<Name, Entry>,
        mut complete: bool,
    ) -> Result<bool> {
        for _ in 0..PAGES_MAX {
            if complete {
                break;
            }
            let after = names.last_key_value().map(|(last, _)| last.clone());
            let want = Want::Directory { ino: parent, after, limit: DIRECTORY_PAGE_MAX };
            let Some(answer) = self.session.read(vec![want]).await?.answers.pop() else { break };
            complete = answer.complete;
            names.append(&mut answer.into_names());
        }
        Ok(complete)
    }

    /// mkdir, mknod, symlink.
    ///
    /// # Errors
    /// Those of the rules and of the daemon.
    pub async fn make(
        &self,
        by: Credentials,
        parent: Ino,
        name: &[u8],
        node: NewNode,
        mode: Mode,
    ) -> Result<Stat> {
        let stat = self.make_held(by, parent, name, node, mode).await?;
        self.session.let_go(stat.inode.ino).await;
        Ok(stat)
    }

    /// The same, and holds what was made. Another mount may remove it as soon as it is there, and the kernel, which goes on to open it,
    /// would take `Stale` for a reason to begin again, and find with O_EXCL that the name is taken.
    async fn make_held(
        &self,
        by: Credentials,
        parent: Ino,
        name: &[u8],
        node: NewNode,
        mode: Mode,
    ) -> Result<Stat> {
        self.writable()?;
        let (name, by) = (Name::new(name)?, self.options.ids.acting(by));
        let umask = if self.has_default_acl(parent).await? { 0 } else { mode.umask };
        let mut tries = 3;
        loop {
            let ino = self.session.new_ino().await?;
            let create = Mutation::Create {
                parent,
                name: name.clone(),
                ino,
                node: node.clone(),
                mode: mode.mode & 0o7777 & !umask,
                by,
                time: self.clock.now(),
            };
            self.session.opens.add(ino);
            let made = self.session.commit(vec![create], None).await.and_then(|reply| {
                written(&reply, ino).ok_or_else(|| Error::corrupt("a create without an inode"))
            });
            let error = match made {
                Ok(inode) => {
                    self.data.return_superfluous();
                    return Ok(self.stat(inode));
                }
                Err(error) => error,
            };
            self.session.let_go(ino).await;
            // The number was of a session that has ended; nothing was made.
            if error.kind() != ErrorKind::SessionEnded || tries == 0 {
                return Err(error);
            }
            tries -= 1;
        }
    }

    /// Whether what is made in a directory gets its access from there rather than by the umask.
    async fn has_default_acl(&self, directory: Ino) -> Result<bool> {
        match self.get_xattr(directory, DEFAULT).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NoAttribute => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// create: makes a file and opens it. A file that another mount has made since the kernel looked is `Stale` without
    /// O_EXCL: the kernel then looks again, finds it, and opens it with the checks that belong to that.
    ///
    /// # Errors
    /// Those of the rules and of the daemon.
    pub async fn create(
        &self,
        by: Credentials,
        parent: Ino,
        name: &[u8],
        mode: Mode,
        flags: i32,
    ) -> Result<(Stat, u64)> {
        match self.make_held(by, parent, name, NewNode::File, mode).await {
            Ok(stat) => {
                let handle = self.open_handle(stat.inode.ino, flags);
                self.session.let_go(stat.inode.ino).await;
                Ok((stat, handle))
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists && flags & libc::O_EXCL == 0 => {
                Err(Error::stale(error.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    /// link.
    ///
    /// # Errors
    /// Those of the rules and of the daemon.
    pub async fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Stat> {
        self.writable()?;
        let link = Mutation::Link { ino, parent, name: Name::new(name)?, time: self.clock.now() };
        let reply = self.session.commit(vec![link], None).await?;
        let inode = match written(&reply, ino) {
            Some(inode) => inode,
            None => self.inode(ino).await?,
        };
        Ok(self.stat(inode))
    }

    /// What will lose a link when a name is taken away or replaced.
    async fn victim(&self, parent: Ino, name: &Name) -> Result<Option<Ino>> {
        self.session.ready().await?;
        match self.session.cache.entry(parent, name) {
            Some(entry) => Ok(entry.map(|entry| entry.ino)),
            None => Ok(self.find(parent, name).await?.map(|inode| inode.ino)),
        }
    }

    /// unlink and rmdir.
    ///
    /// # Errors
    /// Those of the rules and of the daemon.
    pub async fn remove(&self, by: Credentials, parent: Ino, name: &[u8], directory: bool) -> Result<()> {
        self.writable()?;
        let (name, by) = (Name::new(name)?, self.options.ids.acting(by));
        let victim = self.victim(parent, &name).await?;
        let time = self.clock.now();
        let mutation = if directory {
            Mutation::RemoveDirectory { parent, name, by, time }
        } else {
            Mutation::Unlink { parent, name, by, time }
        };
        self.take_away(mutation, victim).await
    }

    /// Carries out what may take a victim's last name away.
    async fn take_away(&self, mutation: Mutation, victim: Option<Ino>) -> Result<()> {
        let before = victim.and_then(|ino| self.session.cache.inode(ino)).flatten();
        let reply = self.session.commit(vec![mutation], victim).await?;
        let is_gone = |of: Ino| {
            reply.records.iter().any(|(key, record)| match (key, record) {
                (Key::Inode(ino), Some(Record::Inode(inode))) => *ino == of && inode.nlink == 0,
                (Key::Inode(ino), None) => *ino == of,
                _ => false,
            })
        };
        if let Some(directory) = before.filter(|inode| inode.is_directory() && is_gone(inode.ino)) {
            self.session.known.remove(directory);
        }
        Ok(())
    }

    /// rename, renameat2.
    ///
    /// # Errors
    /// Those of the rules and of the daemon.
    pub async fn rename(
        &self,
        by: Credentials,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
    ) -> Result<()> {
        self.writable()?;
        let (name, new_name) = (Name::new(from.1)?, Name::new(to.1)?);
        let by = self.options.ids.acting(by);
        let victim = self.victim(to.0, &new_name).await?;
        let time = self.clock.now();
        let rename = Mutation::Rename { parent: from.0, name, new_parent: to.0, new_name, mode, by, time };
        self.take_away(rename, victim).await
    }
}
