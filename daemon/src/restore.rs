//! `tandemd restore`: a data directory that is built anew around the directories of nodes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command};
use tandemfs::clock::Time;
use tandemfs::id::NodeId;
use tandemfs::{Error, Result};

use crate::blocks::disk::{DiskStore, sync_directory};
use crate::daemon::take;
use crate::journal::{Journal, JournalNode, Until};
use crate::meta::sqlite::SqliteStore;
use crate::progress::Progress;
use crate::segments::disk::DiskSegments;

/// What the command is called.
pub const NAME: &str = "restore";

/// What is to be restored from where.
#[derive(Clone, Debug)]
pub struct Restore {
    /// The new data directory.
    pub data: PathBuf,
    /// The directories of nodes.
    pub from: Vec<PathBuf>,
    /// What is missing is left out, and all that came after it.
    pub accept_loss: bool,
    /// What came after that is left out as well.
    pub until: Until,
}

/// A time as RFC 3339 has it, or the number of a commit.
fn parse_until(text: &str) -> std::result::Result<Until, String> {
    if let Ok(position) = text.parse() {
        return Ok(Until::Entry(position));
    }
    let time = Time::from_rfc3339(text)
        .ok_or("neither a time like 2026-11-30T08:15:00Z nor the number of a commit")?;
    Ok(Until::Time(time.as_millis()))
}

/// The command line.
pub fn command() -> Command {
    let path = |name: &'static str| {
        Arg::new(name).long(name).value_parser(clap::value_parser!(PathBuf)).required(true)
    };
    Command::new(NAME)
        .about("Builds the metadata anew from the directories of nodes, and says up to which commit")
        .arg(
            path("data").value_name("DIR").help("The new data directory; it may have nodes, but no metadata"),
        )
        .arg(path("from").value_name("DIR").num_args(1..).help("The directories of the nodes that are left"))
        .arg(
            Arg::new("accept_loss")
                .long("accept-loss")
                .action(ArgAction::SetTrue)
                .help("Leave out commits that are on none of them, and all later ones"),
        )
        .arg(
            Arg::new("until")
                .long("until")
                .value_name("TIME|COMMIT")
                .value_parser(parse_until)
                .help("Leave out what came after a moment; the nodes' journals are put aside"),
        )
}

impl Restore {
    /// What the command line says.
    pub fn from_matches(matches: &ArgMatches) -> Self {
        Self {
            data: matches.get_one::<PathBuf>("data").cloned().unwrap_or_default(),
            from: matches.get_many::<PathBuf>("from").unwrap_or_default().cloned().collect(),
            accept_loss: matches.get_flag("accept_loss"),
            until: matches.get_one("until").copied().unwrap_or(Until::End),
        }
    }

    /// Does it, and says in sentences for people what was done. The nodes' directories are not changed, but when a moment of the past is
    /// restored: their journals are put aside then. The new data directory has links to those that lie elsewhere.
    ///
    /// # Errors
    /// `AlreadyExists` when there is metadata; `Busy` when a daemon uses one of the directories; `Invalid` for one that is no node's;
    /// `NotFound` for what is missing.
    pub async fn run(&self) -> Result<String> {
        let _lock = take(&self.data)?;
        let database = self.data.join("meta.db");
        if database.exists() {
            return Err(Error::already_exists(format!("{}: move it away first", database.display())));
        }
        let mut nodes: BTreeMap<NodeId, PathBuf> = BTreeMap::new();
        for directory in &self.from {
            let owner = DiskSegments::owner(directory)?;
            let id = owner
                .ok_or_else(|| Error::invalid(format!("{}: no node's directory", directory.display())))?;
            if nodes.insert(id, directory.canonicalize()?).is_some() {
                return Err(Error::invalid(format!("{}: node {id} is given twice", directory.display())));
            }
        }
        // Held, so that no daemon uses them meanwhile.
        let _stores: Vec<DiskStore> = nodes.values().map(DiskStore::open).collect::<Result<_>>()?;
        let mut sources = Vec::new();
        for (id, directory) in &nodes {
            let store = Arc::new(DiskSegments::open(directory, *id)?);
            sources.push(JournalNode { id: *id, zone: id.to_string(), store });
        }
        // A log that lies there alone would be taken for that of the new one.
        remove(&database)?;
        // Only what is whole gets the name.
        let draft = self.data.join("meta.db.restoring");
        remove(&draft)?;
        let engine = SqliteStore::open(&draft)?;
        let mut progress = Progress::new("bytes of the journal are read", 0);
        let restored =
            Journal::restore(&engine, sources, self.accept_loss, self.until, rand::random(), &mut progress)
                .await?;
        drop(engine);
        // Before the name, so that what has the name has its nodes, and a restore that was cut off can be done again.
        let links = self.link(&nodes)?;
        for suffix in ["-wal", ""] {
            if beside(&draft, suffix).exists() {
                std::fs::rename(beside(&draft, suffix), beside(&database, suffix))?;
            }
        }
        // SQLite leaves its shared memory where its last checkpoint has failed.
        remove(&draft)?;
        if self.until != Until::End {
            // Only now: until then the nodes have all that there is.
            nodes.values().try_for_each(|directory| put_aside(directory, restored.position))?;
        }
        let mut text = format!("restored up to commit {}", restored.position);
        if restored.time_ms > 0 {
            let _ = write!(text, ", of {}", Time::from_millis(restored.time_ms).to_rfc3339());
        }
        if let Some(to) = restored.missing_to {
            let _ = write!(text, "\nLEFT OUT: commits {} to {to} at least", restored.position + 1);
        }
        let _ = write!(text, "\nnodes: {links}\nnext: tandemd --data {}", self.data.display());
        Ok(text)
    }

    /// Has each node where the daemon looks for it.
    fn link(&self, nodes: &BTreeMap<NodeId, PathBuf>) -> Result<String> {
        let place = self.data.join("nodes");
        std::fs::create_dir_all(&place)?;
        for (id, directory) in nodes {
            let name = place.join(id.to_string());
            match name.canonicalize() {
                Ok(there) if there == *directory => {}
                Ok(_) => return Err(Error::already_exists(name.display().to_string())),
                Err(_) => symlink(directory, &name)?,
            }
        }
        Ok(nodes.keys().map(ToString::to_string).collect::<Vec<_>>().join(", "))
    }
}

/// Keeps a node's journal under another name.
fn put_aside(node: &Path, position: u64) -> Result<()> {
    let names = (0_u32..).map(|number| match number {
        0 => format!("journal.until-{position}"),
        number => format!("journal.until-{position}-{number}"),
    });
    let mut free = names.map(|name| node.join(name)).skip_while(|path| path.exists());
    if let Some(path) = free.next() {
        std::fs::rename(node.join("journal"), path)?;
    }
    sync_directory(node)?;
    Ok(())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(suffix);
    name.into()
}

/// Removes a database and what lies beside it.
fn remove(path: &Path) -> Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        match std::fs::remove_file(beside(path, suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
