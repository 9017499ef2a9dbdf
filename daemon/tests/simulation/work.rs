//! What a client does all day: changes files of its own, reads everybody's, and checks what it sees.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tandemfs::api::fs::InlineBlock;
use tandemfs::clock::{Clock, Time};
use tandemfs::id::{BlockId, Ino, VolumeKey};
use tandemfs::tree::{Credentials, Key, Mutation, NewNode, Record, RenameMode, SetAttributes, WrittenExtent};
use tandemfs::{Error, ErrorKind};
use tokio::time::Instant;

use crate::client::{Called, Client, Mount, Session, name};
use crate::daemon::Parts;
use crate::history::Tree;
use crate::people;
use crate::random::Random;
use crate::trace::{note, violate};
use crate::world::World;

/// Names that files have.
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// The longest file, in bytes.
const SIZE_MAX: u64 = 900;

/// A change that a client has thought out.
struct Change {
    after: Tree,
    mutations: Vec<Mutation>,
    blocks: Vec<Bytes>,
    /// Files that go and stay open, with what is in them.
    held: Vec<(Ino, Arc<Vec<u8>>)>,
}

/// A client lives as long as the daemon that it works with, or until all come to rest.
pub async fn live(world: Arc<World>, parts: Arc<Parts>, client: Arc<Client>) {
    let mount = Mount { world, client, parts };
    // Some come back at once after a crash, others late.
    let late = {
        let mut state = mount.client.state();
        if state.random.chance(700) { state.random.below(40) } else { state.random.below(5000) }
    };
    mount.breathe(late + 1).await;
    loop {
        let is_open = mount.history(|history| history.is_open());
        if mount.world.trace.is_violated() || (mount.world.is_resting() && !is_open) {
            break;
        }
        mount.step().await;
        mount.breathe(30).await;
    }
    mount.retire().await;
}

impl Mount {
    /// Looks into its own history.
    fn history<T>(&self, look: impl FnOnce(&crate::history::History) -> T) -> T {
        look(&self.world.history(self.client.number))
    }

    async fn step(&self) {
        if self.history(|history| history.is_open()) {
            return self.settle().await;
        }
        let dice = self.client.state().random.below(1000);
        match dice {
            0..520 => self.change().await,
            520..820 => self.read_other().await,
            820..880 => self.read_upload().await,
            880..940 => self.read_all_of_other().await,
            940..965 => self.read_held().await,
            965..975 => self.let_go().await,
            975..980 => self.take_one().await,
            980..986 => self.take_all().await,
            986..990 => self.hang().await,
            990..994 => self.leave().await,
            _ => self.breathe(300).await,
        }
    }

    /// Finds out what became of a change that is in doubt.
    async fn settle(&self) {
        let Some(session) = self.session().await else { return };
        if self.client.state().pending.is_some() {
            return self.carry_through(&session).await;
        }
        let directory = self.client.state().directory;
        let Some(seen) = self.look(&session, directory).await else { return };
        let mut history = self.world.history(self.client.number);
        if seen == *history.last() {
            history.acknowledge();
        } else if seen == *history.done() {
            history.refuse();
            self.still_there(history.done());
        } else {
            violate!(
                self.world.trace,
                "client {}: a change in doubt is neither done nor not done: before {}, after {}, found {}",
                self.client.number,
                show(history.done()),
                show(history.last()),
                show(&seen)
            );
        }
        note!(self.world.trace, "client {}: the change was {}", self.client.number, show(history.done()));
    }

    /// A change did not happen: what it would have removed is there, and may change.
    fn still_there(&self, tree: &Tree) {
        for (ino, content) in &mut self.client.state().held {
            if tree.files.contains_key(ino) {
                *content = None;
            }
        }
    }

    /// Sends the pending batch, and takes note of what became of it.
    async fn carry_through(&self, session: &Session) {
        match self.send(session).await {
            Called::Answered(_) => {
                self.client.state().pending = None;
                self.world.history(self.client.number).acknowledge();
                note!(self.world.trace, "client {}: done", self.client.number);
                self.world.acknowledged();
            }
            Called::Refused(error) => {
                self.client.state().pending = None;
                let mut history = self.world.history(self.client.number);
                history.refuse();
                self.still_there(history.done());
                // Its blocks may have been collected before it named them; nothing else is wrong with what clients ask for.
                if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Stale) {
                    violate!(
                        self.world.trace,
                        "client {}: a change is refused: {error:?}",
                        self.client.number
                    );
                }
            }
            // Without the session nobody can ask again: what is there tells.
            Called::Ended => self.client.state().pending = None,
            Called::InDoubt => {}
        }
    }

    async fn change(&self) {
        let Some(session) = self.session().await else { return };
        let Some(ino) = self.new_ino(&session).await else { return };
        let Some(change) = self.think(ino) else { return };
        let mut inline = Vec::new();
        for block in &change.blocks {
            if self.client.state().random.chance(500) {
                inline.push(InlineBlock { id: BlockId::of(&session.key, block), data: block.to_vec() });
            } else if !self.put_block(&session, block).await {
                return;
            }
        }
        // A writer may take its time between data and names.
        if self.client.state().random.chance(80) {
            self.breathe(3500).await;
        }
        let held = change.held.iter().map(|(ino, _)| *ino).collect();
        if !self.prepare(session.id, change.mutations, held, inline) {
            return;
        }
        let held = change.held.into_iter().map(|(ino, content)| (ino, Some(content)));
        self.client.state().held.extend(held);
        self.world.history(self.client.number).begin(change.after);
        self.carry_through(&session).await;
    }

    /// Thinks a change out.
    fn think(&self, ino: Ino) -> Option<Change> {
        let before = self.history(|history| history.done().clone());
        let mut state = self.client.state();
        let directory = state.directory;
        let key = state.session.as_ref()?.key.clone();
        let mut thought = Thought {
            directory,
            time: self.world.clock.now(),
            key,
            change: Change {
                after: before.clone(),
                mutations: Vec::new(),
                blocks: Vec::new(),
                held: Vec::new(),
            },
        };
        let random = &mut state.random;
        let of = random.pick(&NAMES).to_string();
        let to = random.pick(&NAMES).to_string();
        match (before.names.get(&of).copied(), random.below(10)) {
            (None, _) => thought.create(&of, ino, random),
            (Some(file), 0..4) => thought.write(file, random),
            (Some(file), 4) => thought.truncate(file, random),
            (Some(_), 5..7) => thought.unlink(&of),
            (Some(_), 7..9) if of != to => thought.rename(&of, &to),
            (Some(file), _) if !before.names.contains_key(&to) => thought.link(file, &to),
            (Some(file), _) => thought.write(file, random),
        }
        let change = &mut thought.change;
        // Some of what goes is still open, and lives on until it is closed.
        let gone = before.files.iter().filter(|(ino, _)| !change.after.files.contains_key(ino));
        for (ino, content) in gone {
            if state.held.contains_key(ino) || state.random.chance(300) {
                change.held.push((*ino, content.clone()));
            }
        }
        Some(thought.change)
    }

    /// Reads a file of somebody else by name, as much as possible from the cache.
    async fn read_other(&self) {
        let (other, file_name) = {
            let mut state = self.client.state();
            let other = state.random.below(self.world.clients.len() as u64) as usize;
            (other, state.random.pick(&NAMES).to_string())
        };
        let directory = self.world.clients[other].state().directory;
        let (from, _) = self.world.history(other).window();
        let Some(entry) = self.record(&Key::Entry(directory, name(&file_name))).await else { return };
        let (_, to) = self.world.history(other).window();
        let seen = match entry {
            Some(Record::Entry(entry)) => Some(entry.ino),
            _ => None,
        };
        let holds = |tree: &Tree| tree.names.get(&file_name).copied() == seen;
        if !self.world.history(other).any(from, to, holds) {
            violate!(
                self.world.trace,
                "client {} sees {file_name} of client {other} as {seen:?}, but it is {}",
                self.client.number,
                show(self.world.history(other).done())
            );
            return;
        }
        if let Some(ino) = seen {
            let Some(content) = self.content_by_cache(ino).await else { return };
            self.check_content(other, ino, from, content);
        }
    }

    /// What is in a file by the records that are cached.
    async fn content_by_cache(&self, ino: Ino) -> Option<Option<Vec<u8>>> {
        let inode = self.record(&Key::Inode(ino)).await?;
        let chunk = self.record(&Key::Chunk(ino, 0)).await?;
        let session = self.session().await?;
        self.assemble(&session, inode, chunk).await
    }

    /// Reads a file that was uploaded, as much as possible from the cache.
    async fn read_upload(&self) {
        let people = self.world.people();
        let file_name = self.client.state().random.pick(&people::NAMES).to_string();
        let (from, _) = self.world.history(people).window();
        let top = self.record(&Key::Entry(Ino::ROOT, name(people::DIRECTORY))).await;
        let seen = match top {
            None => return,
            Some(Some(Record::Entry(top))) => {
                let Some(entry) = self.record(&Key::Entry(top.ino, name(&file_name))).await else { return };
                entry
            }
            Some(_) => None,
        };
        let content = match seen {
            Some(Record::Entry(entry)) => {
                let Some(content) = self.content_by_cache(entry.ino).await else { return };
                content
            }
            _ => None,
        };
        let history = self.world.history(people);
        let (_, to) = history.window();
        let expected = |tree: &Tree| tree.names.get(&file_name).and_then(|ino| tree.files.get(ino)).cloned();
        if from == to && expected(history.done()).as_deref() != content.as_ref() {
            violate!(
                self.world.trace,
                "client {} sees the upload {file_name} as {}, but it is {}",
                self.client.number,
                content.as_ref().map_or("nothing".to_owned(), |content| brief(content)),
                show(history.done())
            );
        }
    }

    /// Compares what was read with what a file has been since.
    fn check_content(&self, other: usize, ino: Ino, from: usize, content: Option<Vec<u8>>) {
        let history = self.world.history(other);
        let (_, to) = history.window();
        // Records that were read one after the other beside a change need not fit together.
        if from != to {
            return;
        }
        if !history.any(from, to, |tree| tree.files.get(&ino).map(Arc::as_ref) == content.as_ref()) {
            violate!(
                self.world.trace,
                "client {} reads inode {ino} of client {other} as {}, but it is {}",
                self.client.number,
                content.as_ref().map_or("nothing".to_owned(), |content| brief(content)),
                show(history.done())
            );
            return;
        }
        drop(history);
        let mut state = self.client.state();
        if content.is_some() && state.random.chance(40) {
            note!(self.world.trace, "client {} holds inode {ino} of client {other} open", self.client.number);
            state.held.insert(ino, None);
        }
    }

    /// Reads all of somebody's directory, past the cache.
    async fn read_all_of_other(&self) {
        let Some(session) = self.session().await else { return };
        let other = self.client.state().random.below(self.world.clients.len() as u64) as usize;
        let directory = self.world.clients[other].state().directory;
        let (from, _) = self.world.history(other).window();
        let seen = self.look(&session, directory).await;
        let history = self.world.history(other);
        let (_, to) = history.window();
        if let Some(seen) = seen
            && from == to
            && seen != *history.done()
        {
            violate!(
                self.world.trace,
                "client {} sees client {other}'s directory as {}, but it is {}",
                self.client.number,
                show(&seen),
                show(history.done())
            );
        }
    }

    /// Reads a file without a name that it holds open: it must be as it was.
    async fn read_held(&self) {
        let Some(session) = self.session().await else { return };
        let held = {
            let mut state = self.client.state();
            let held: Vec<_> =
                state.held.iter().filter_map(|(ino, content)| Some((*ino, content.clone()?))).collect();
            if held.is_empty() { return } else { state.random.pick(&held).clone() }
        };
        let (ino, expected) = held;
        note!(self.world.trace, "client {} reads inode {ino}, which it holds", self.client.number);
        let Some(content) = self.content(&session, ino).await else { return };
        let state = self.client.state();
        let is_mine = state.session.as_ref().is_some_and(|now| now.id == session.id);
        if is_mine && state.held.contains_key(&ino) && content.as_ref() != Some(expected.as_ref()) {
            violate!(
                self.world.trace,
                "client {} holds inode {ino} open as {}, and reads {}",
                self.client.number,
                brief(&expected),
                content.as_ref().map_or("nothing".to_owned(), |content| brief(content))
            );
        }
    }

    /// Closes a file that it holds open.
    async fn let_go(&self) {
        let Some(session) = self.session().await else { return };
        let Some(ino) = self.client.state().held.keys().next().copied() else { return };
        self.client.state().held.remove(&ino);
        if !self.prepare(session.id, vec![Mutation::Reap { ino, chunks: 4 }], Vec::new(), Vec::new()) {
            return;
        }
        // Nothing that anybody sees changes.
        let same = self.history(|history| history.done().clone());
        self.world.history(self.client.number).begin(same);
        self.carry_through(&session).await;
    }

    /// Has one of the client's files delegated to it, or another's.
    async fn take_one(&self) {
        let of = self.client.state().random.below(self.world.clients.len() as u64) as usize;
        let files: Vec<Ino> = self.world.history(of).done().files.keys().copied().collect();
        if files.is_empty() {
            return;
        }
        let ino = *self.client.state().random.pick(&files);
        self.take(ino).await;
    }

    /// The machine hangs for a while; perhaps longer than the lease.
    async fn hang(&self) {
        let until = {
            let mut state = self.client.state();
            let until = Instant::now() + Duration::from_millis(state.random.between(300, 9000));
            state.stalled = Some(until);
            until
        };
        note!(self.world.trace, "client {} hangs", self.client.number);
        tokio::time::sleep_until(until).await;
        self.client.state().stalled = None;
        note!(self.world.trace, "client {} goes on", self.client.number);
    }

    /// The client goes, with a word or without.
    async fn leave(&self) {
        let session = self.client.state().session.clone();
        if let Some(session) = session.filter(|session| session.is_attached)
            && self.client.state().random.chance(500)
        {
            self.client.let_loose();
            let _ = self.call("close", self.parts.close(session.id)).await;
        }
        note!(self.world.trace, "client {} is gone", self.client.number);
        self.client.vanish();
    }

    /// All come to rest: everything is closed.
    async fn retire(&self) {
        while !self.world.trace.is_violated() {
            let Some(session) = self.client.state().session.clone() else { return };
            self.client.let_loose();
            match self.call("close", self.parts.close(session.id)).await {
                Called::InDoubt => self.breathe(50).await,
                _ => self.client.vanish(),
            }
        }
    }
}

/// A change being thought out.
struct Thought {
    directory: Ino,
    time: Time,
    key: VolumeKey,
    change: Change,
}

impl Thought {
    fn by() -> Credentials {
        Credentials { uid: 0, gid: 0 }
    }

    fn create(&mut self, of: &str, ino: Ino, random: &mut Random) {
        self.change.after.names.insert(of.to_owned(), ino);
        self.change.after.files.insert(ino, Arc::default());
        self.change.mutations.push(Mutation::Create {
            parent: self.directory,
            name: name(of),
            ino,
            node: NewNode::File,
            mode: 0o644,
            by: Self::by(),
            time: self.time,
        });
        if random.chance(900) {
            self.write(ino, random);
        }
    }

    fn write(&mut self, ino: Ino, random: &mut Random) {
        let mut content = self.change.after.files[&ino].as_ref().clone();
        let mut extents = Vec::new();
        for _ in 0..random.between(1, 2) {
            let data = piece(random);
            let offset = random.below(SIZE_MAX - data.len() as u64);
            let (from, to) = (offset as usize, offset as usize + data.len());
            content.resize(content.len().max(to), 0);
            content[from..to].copy_from_slice(&data);
            extents.push(WrittenExtent {
                offset,
                length: data.len() as u64,
                block: BlockId::of(&self.key, &data),
                block_offset: 0,
            });
            self.change.blocks.push(data);
        }
        self.change.mutations.push(Mutation::Write {
            ino,
            extents,
            size: content.len() as u64,
            clear_privileges: false,
            time: self.time,
        });
        self.change.after.files.insert(ino, Arc::new(content));
    }

    fn truncate(&mut self, ino: Ino, random: &mut Random) {
        let size = random.below(SIZE_MAX);
        let mut content = self.change.after.files[&ino].as_ref().clone();
        content.resize(size as usize, 0);
        self.change.after.files.insert(ino, Arc::new(content));
        let set = SetAttributes { size: Some(size), ..SetAttributes::default() };
        self.change.mutations.push(Mutation::SetAttributes { ino, set, by: Self::by(), time: self.time });
    }

    fn unlink(&mut self, of: &str) {
        self.change.after.remove(of);
        let (parent, name) = (self.directory, name(of));
        self.change.mutations.push(Mutation::Unlink { parent, name, by: Self::by(), time: self.time });
    }

    fn rename(&mut self, of: &str, to: &str) {
        let after = &mut self.change.after;
        let ino = after.names[of];
        // Two names of one file: rename(2) does nothing.
        if after.names.get(to) != Some(&ino) {
            after.remove(to);
            after.names.remove(of);
            after.names.insert(to.to_owned(), ino);
        }
        self.change.mutations.push(Mutation::Rename {
            parent: self.directory,
            name: name(of),
            new_parent: self.directory,
            new_name: name(to),
            mode: RenameMode::Replace,
            by: Self::by(),
            time: self.time,
        });
    }

    fn link(&mut self, ino: Ino, to: &str) {
        self.change.after.names.insert(to.to_owned(), ino);
        let (parent, name) = (self.directory, name(to));
        self.change.mutations.push(Mutation::Link { ino, parent, name, time: self.time });
    }
}

/// Data for a block. There are few different ones, so that the same are stored, dropped and stored again all the time.
pub fn piece(random: &mut Random) -> Bytes {
    let number = if random.chance(800) { random.below(12) } else { random.next() };
    let mut own = Random::new(number);
    let length = own.between(1, 300) as usize;
    (0..length).map(|_| own.next() as u8).collect()
}

/// A tree in few words.
pub fn show(tree: &Tree) -> String {
    let mut shown: BTreeMap<&str, String> = BTreeMap::new();
    for (name, ino) in &tree.names {
        let content = tree.files.get(ino).map_or("?".to_owned(), |content| brief(content));
        shown.insert(name, format!("{ino}={content}"));
    }
    format!("{shown:?}")
}

fn brief(content: &[u8]) -> String {
    format!("{} bytes {}", content.len(), &blake3::hash(content).to_hex()[..6])
}

/// Whether trying again may help.
pub fn is_transient(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::TimedOut | ErrorKind::TooManyRequests)
}
