//! Somebody who uses the REST API beside the mounts: uploads, downloads, lists and deletes files by path.
//!
//! These requests have no sequence numbers: what is in doubt is looked up in the listing.

use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tandemd::volumes::files::Preconditions;
use tandemfs::api::files::{File, ListFiles};
use tandemfs::id::Ino;
use tandemfs::name::split_path;
use tandemfs::{ErrorKind, Result};
use tokio::time::{sleep, timeout};

use crate::client::PATIENCE;
use crate::daemon::Parts;
use crate::history::Tree;
use crate::random::Random;
use crate::trace::{note, violate};
use crate::work::{is_transient, piece, show};
use crate::world::World;

/// The directory that people use.
pub const DIRECTORY: &str = "people";
/// The names of their files.
pub const NAMES: [&str; 4] = ["p", "q", "r", "s"];
/// So long after it was given up, a request has come to its end.
const DOUBT: Duration = Duration::from_secs(8);

/// Somebody at work.
pub struct Person {
    world: Arc<World>,
    parts: Arc<Parts>,
    random: Random,
}

/// Works as long as the daemon lives, or until all come to rest.
pub async fn live(world: Arc<World>, parts: Arc<Parts>) {
    let random = world.draw(Random::fork);
    let mut person = Person { world, parts, random };
    loop {
        let is_open = person.world.history(person.world.people()).is_open();
        if person.world.trace.is_violated() || (person.world.is_resting() && !is_open) {
            return;
        }
        if is_open {
            person.settle().await
        } else {
            person.step().await
        }
        let pause = person.random.between(20, 400);
        sleep(Duration::from_millis(pause)).await;
    }
}

impl Person {
    async fn step(&mut self) {
        let name = *self.random.pick(&NAMES);
        let done = self.world.history(self.world.people()).done().clone();
        match done.names.get(name) {
            None => self.upload(name, done.clone()).await,
            Some(_) if self.random.chance(500) => self.delete(name, done.clone()).await,
            Some(_) => self.compare().await,
        }
    }

    /// A request, of which some are given up at a random moment. `None`: it is in doubt.
    async fn ask<T>(&mut self, what: &str, request: impl Future<Output = Result<T>>) -> Option<Result<T>> {
        let cut = self.random.chance(40).then(|| Duration::from_millis(self.random.below(15)));
        match timeout(cut.unwrap_or(PATIENCE), request).await {
            Ok(Err(error)) => {
                note!(self.world.trace, "people: {what}: {error:?}");
                if matches!(error.kind(), ErrorKind::Internal | ErrorKind::Corrupt) {
                    violate!(self.world.trace, "people: {what}: {error:?}");
                }
                Some(Err(error)).filter(|result: &Result<T>| !result.as_ref().is_err_and(is_transient))
            }
            Ok(result) => Some(result),
            Err(_) if cut.is_some() => None,
            Err(_) => {
                violate!(self.world.trace, "people: {what}: no answer within {PATIENCE:?}");
                None
            }
        }
    }

    async fn upload(&mut self, name: &str, mut tree: Tree) {
        let content: Vec<u8> = (0..self.random.between(1, 3)).flat_map(|_| piece(&mut self.random)).collect();
        // Which inode it will be is not known before; nobody compares the numbers of these.
        let ino = Ino(self.random.next());
        tree.names.insert(name.to_owned(), ino);
        tree.files.insert(ino, Arc::new(content.clone()));
        self.begin(&format!("upload {name}"), tree);
        let parts = self.parts.clone();
        let path = format!("{DIRECTORY}/{name}");
        let request = async move {
            let mut upload =
                parts.volumes.upload(&parts.caller, split_path(path)?, Preconditions::default()).await?;
            for part in content.chunks(100) {
                upload.write(bytes::Bytes::copy_from_slice(part)).await?;
            }
            upload.finish().await
        };
        let result = self.ask("upload", request).await.map(|result| result.map(drop));
        self.conclude(result).await;
    }

    async fn delete(&mut self, name: &str, mut tree: Tree) {
        let Some(file) = self.find(name).await else { return };
        tree.remove(name);
        self.begin(&format!("delete {name}"), tree);
        let parts = self.parts.clone();
        let request = async move {
            parts.volumes.delete(&parts.caller, &file.file_id, &Preconditions::default()).await
        };
        let result = self.ask("delete", request).await;
        self.conclude(result).await;
    }

    fn begin(&self, what: &str, tree: Tree) {
        note!(self.world.trace, "people: {what}");
        self.world.history(self.world.people()).begin(tree);
    }

    async fn conclude(&mut self, result: Option<Result<()>>) {
        match result {
            Some(Ok(())) => {
                self.world.history(self.world.people()).acknowledge();
                note!(self.world.trace, "people: done");
                self.world.acknowledged();
            }
            Some(Err(error)) => {
                self.world.history(self.world.people()).refuse();
                // A block may be collected before the file that names it is made.
                if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NoSpace) {
                    violate!(self.world.trace, "people: refused: {error:?}");
                }
            }
            None => sleep(DOUBT).await,
        }
    }

    async fn list(&mut self) -> Option<Vec<File>> {
        let parts = self.parts.clone();
        let list = ListFiles { prefix: Some(format!("/{DIRECTORY}/")), ..ListFiles::default() };
        let page = self.ask("list", async move { parts.volumes.list(&parts.caller, &list).await }).await?;
        page.ok().map(|page| page.files)
    }

    async fn find(&mut self, name: &str) -> Option<File> {
        let files = self.list().await?;
        let found = files.into_iter().find(|file| file.name == name);
        if found.is_none() {
            violate!(self.world.trace, "people: {name} is not in the list");
        }
        found
    }

    async fn download(&mut self, file: &File) -> Option<Vec<u8>> {
        let (parts, id, size) = (self.parts.clone(), file.file_id.clone(), file.size);
        let request = async move {
            let download = parts.volumes.download(&parts.caller, &id).await?;
            let mut pieces = parts.volumes.read(&download, 0..size).await?;
            let mut content = Vec::new();
            while let Some(piece) = pieces.next().await {
                content.extend_from_slice(&piece?);
            }
            Ok(content)
        };
        match self.ask("download", request).await? {
            Ok(content) => Some(content),
            Err(error) => {
                violate!(self.world.trace, "people: {} cannot be downloaded: {error:?}", file.name);
                None
            }
        }
    }

    /// All files as the API gives them.
    async fn look(&mut self) -> Option<Tree> {
        let mut tree = Tree::default();
        for (number, file) in self.list().await?.iter().enumerate() {
            let content = self.download(file).await?;
            let ino = Ino(number as u64);
            tree.names.insert(file.name.clone(), ino);
            tree.files.insert(ino, Arc::new(content));
        }
        Some(tree)
    }

    async fn compare(&mut self) {
        let Some(seen) = self.look().await else { return };
        let history = self.world.history(self.world.people());
        if !same(&seen, history.done()) {
            violate!(self.world.trace, "people see {}, but it is {}", show(&seen), show(history.done()));
        }
    }

    /// Finds out what became of a request in doubt.
    async fn settle(&mut self) {
        let Some(seen) = self.look().await else { return };
        let mut history = self.world.history(self.world.people());
        if same(&seen, history.last()) {
            history.acknowledge();
        } else if same(&seen, history.done()) {
            history.refuse();
        } else {
            violate!(
                self.world.trace,
                "people: a request in doubt is neither done nor not done: before {}, after {}, found {}",
                show(history.done()),
                show(history.last()),
                show(&seen)
            );
        }
    }
}

/// Whether two trees have the same names with the same content.
pub fn same(a: &Tree, b: &Tree) -> bool {
    let contents = |tree: &Tree| -> Vec<(String, Option<Arc<Vec<u8>>>)> {
        tree.names.iter().map(|(name, ino)| (name.clone(), tree.files.get(ino).cloned())).collect()
    };
    contents(a) == contents(b)
}
