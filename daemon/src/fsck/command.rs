//! `tandemd fsck`: a data directory that no daemon uses.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command};
use tandemfs::clock::{Clock as _, SystemClock, Time};
use tandemfs::{Error, ErrorKind, Result};

use super::desk::Desk;
use super::journal as rows;
use super::replicas::Stores;
use super::report::Report;
use super::round::{self, Site};
use super::scratch::Scratch;
use crate::daemon::{journal_nodes, node_directory, open_journal, open_node, put_aside, take};
use crate::journal::{Journal, Until};
use crate::meta::MetaStore;
use crate::meta::sqlite::SqliteStore;
use crate::options::Options;
use crate::progress::Progress;
use crate::replicate::NodeSetup;
use crate::seal::{Passphrases, SealedStore};
use crate::segments::disk::DiskSegments;
use crate::settings::Settings;

/// What the command is called.
pub const NAME: &str = "fsck";

/// What is to be checked, and how.
#[derive(Clone, Debug)]
pub struct Fsck {
    /// The daemon's settings.
    pub settings: Settings,
    /// What can be mended is mended.
    pub repair: bool,
    /// Every byte on the nodes is read.
    pub deep: bool,
}

/// The command line, to which the settings are added.
pub fn command() -> Command {
    let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    Command::new(NAME)
        .about("Checks whether all that is stored fits together; no daemon may be running")
        .after_help(
            "It takes the same settings as the daemon, from the same places.\n\n\
             Exit statuses:\n  0  clean, or all mended\n  1  faults are left\n  2  it could not be checked",
        )
        .arg(flag("repair").help("Mend what can be mended; no data is removed"))
        .arg(flag("deep").help("Read and check every byte on the nodes as well"))
}

/// What there is to look at.
struct Parts {
    nodes: Vec<NodeSetup>,
    has_journal: bool,
    scratch: Scratch,
    /// Rows of the database, as far as that is known.
    rows: u64,
    clock: Arc<SystemClock>,
    now: Time,
}

impl Fsck {
    /// From the command line.
    ///
    /// # Errors
    /// Those of the settings.
    pub fn from_matches(matches: &ArgMatches, environment: &BTreeMap<String, OsString>) -> Result<Self> {
        let settings = Options::load(matches, environment)?.settings;
        Ok(Self { settings, repair: matches.get_flag("repair"), deep: matches.get_flag("deep") })
    }

    /// Checks, and mends if that is asked for.
    ///
    /// # Errors
    /// `Busy` when a daemon runs; `NotFound` where there is no data; whatever keeps it from looking.
    pub async fn run(&self) -> Result<Report> {
        let data = &self.settings.data;
        if !data.join("nodes").exists() {
            return Err(Error::not_found(format!("{}: no data of a daemon", data.display())));
        }
        let _lock = take(data)?;
        let passphrases = Passphrases::read(&self.settings)?;
        let mut report = Report::default();
        let (nodes, has_journal) = self.nodes(&mut report)?;
        let clock = Arc::new(SystemClock);
        let now = clock.now();
        let scratch = Scratch::new(data)?;
        let mut progress = Progress::new("rows", 0);
        let engine = self.engine(has_journal, &mut report, &mut progress).await?;
        let Some(engine) = engine else { return Ok(report) };
        let rows = progress.during("the rows of the database are counted", engine.count()).await?;
        let parts = Parts { nodes, has_journal, scratch, rows, clock, now };
        let (store, journal, mut report) =
            self.journal(&parts, Arc::new(engine), report, &mut progress).await?;
        let store: Arc<dyn MetaStore> = Arc::new(SealedStore::join(store, &passphrases).await?);
        let counts = parts.scratch.store("counts.db")?;
        let all = parts.nodes.iter().map(|node| (node.id, node.store.clone())).collect();
        let stores = Stores::new(store.as_ref(), all, self.deep).await?;
        let site = Site {
            store: store.as_ref(),
            scratch: &counts,
            stores: &stores,
            repair: self.repair,
            rows: parts.rows,
            now,
        };
        report.add(round::check(site, &mut progress).await?);
        if let Some(journal) = journal {
            // Copies of segments that are missing are made again.
            journal.tend(0).await?;
        }
        Ok(report)
    }

    /// The nodes that are there, and whether they have a journal. One that is not there is not made: all of its copies would be missing.
    fn nodes(&self, report: &mut Report) -> Result<(Vec<NodeSetup>, bool)> {
        let mut nodes = Vec::new();
        let mut has_journal = false;
        for number in 1..=self.settings.nodes {
            let directory = node_directory(&self.settings, number);
            if DiskSegments::owner(&directory)?.is_none() {
                let what = format!("{}: node {number} is not there", directory.display());
                report.leave(format!("{what}; its copies are not looked at"));
                continue;
            }
            let (node, is_empty) = open_node(&self.settings, number)?;
            has_journal |= !is_empty;
            nodes.push(node);
        }
        Ok((nodes, has_journal))
    }

    /// The database, if there is a sound one.
    async fn engine(
        &self,
        has_journal: bool,
        report: &mut Report,
        progress: &mut Progress,
    ) -> Result<Option<SqliteStore>> {
        let path = self.settings.data.join("meta.db");
        let wrong = if !path.exists() {
            Error::not_found("it is missing")
        } else {
            let opened = match SqliteStore::open(&path) {
                Ok(engine) => {
                    let checked = engine.check();
                    progress.during("the pages of the database are checked", checked).await.map(|()| engine)
                }
                Err(error) => Err(error),
            };
            match opened {
                Ok(engine) => return Ok(Some(engine)),
                Err(error) if error.kind() == ErrorKind::Corrupt => error,
                Err(error) => return Err(error),
            }
        };
        let line = format!("{}: {}", path.display(), wrong.subject());
        match (self.repair, has_journal) {
            (true, true) => {
                if path.exists() {
                    put_aside(&self.settings.data)?;
                }
                report.mend(format!("{line}; it is built anew from the journal"));
                SqliteStore::open(&path).map(Some)
            }
            (false, true) => {
                report.leave(format!("{line}; the daemon builds it anew from the journal when it starts"));
                Ok(None)
            }
            (_, false) => {
                report.leave(format!("{line}; no node has a journal to build it from"));
                Ok(None)
            }
        }
    }

    /// Compares the database with the journal. Gives what is to be checked further: the journal around the database, which takes what is
    /// mended, or the database at the end of the journal.
    async fn journal(
        &self,
        parts: &Parts,
        engine: Arc<dyn MetaStore>,
        mut report: Report,
        progress: &mut Progress,
    ) -> Result<(Arc<dyn MetaStore>, Option<Journal>, Report)> {
        let mut is_whole = self.copies(parts, &mut report, progress).await?;
        let nodes = || journal_nodes(&parts.nodes);
        let mut journal = None;
        let mut store = engine.clone();
        if self.repair {
            let opened =
                open_journal(engine.clone(), &parts.nodes, &self.settings, parts.clock.clone()).await?;
            store = Arc::new(opened.clone());
            journal = Some(opened);
        }
        if !parts.has_journal {
            report.note("the nodes have no journal yet".to_owned());
            return Ok((store, journal, report));
        }
        let rebuilt = parts.scratch.store("journal.db")?;
        match Journal::restore(&rebuilt, nodes(), false, Until::End, 0, progress).await {
            Ok(restored) => {
                let position = Journal::position(engine.as_ref()).await?.unwrap_or(0);
                if position > restored.position {
                    let line = format!(
                        "the nodes have the journal up to commit {} only, the database has commit {position}",
                        restored.position
                    );
                    is_whole = false;
                    self.tell(line, &mut report);
                } else {
                    if position < restored.position {
                        report.note(format!(
                            "the database is {} commits behind the journal, as it may be after a power cut",
                            restored.position - position
                        ));
                        let copy = parts.scratch.copy(&self.settings.data.join("meta.db"))?;
                        Journal::catch_up(&copy, nodes(), progress).await?;
                        store = Arc::new(copy);
                    }
                    let mut desk = Desk::new(store.as_ref(), self.repair, parts.now, Report::default());
                    rows::compare(store.as_ref(), &rebuilt, &mut desk, parts.rows, progress).await?;
                    report.add(desk.report);
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                is_whole = false;
                self.tell(format!("the journal is not whole: {}", error.subject()), &mut report);
            }
            Err(error) => return Err(error),
        }
        if let Some(journal) = journal.as_ref().filter(|_| !is_whole) {
            journal.renew().await?;
        }
        Ok((store, journal, report))
    }

    /// Something of the journal that is made anew from the database.
    fn tell(&self, line: String, report: &mut Report) {
        if self.repair { report.mend(line) } else { report.leave(line) }
    }

    /// Reads all copies of segments, and removes damaged ones of which there are others; whether there are others of each.
    async fn copies(&self, parts: &Parts, report: &mut Report, progress: &mut Progress) -> Result<bool> {
        let mut is_whole = true;
        let mut short = 0;
        for copies in Journal::copies(journal_nodes(&parts.nodes), progress).await? {
            for node in &copies.damaged {
                let line = format!("segment {} of the journal on node {node} is damaged", copies.segment);
                self.tell(line, report);
                if copies.whole.is_empty() {
                    is_whole = false;
                } else if self.repair
                    && let Some(node) = parts.nodes.iter().find(|other| other.id == *node)
                {
                    node.segments.delete(copies.segment).await?;
                }
            }
            let wanted = (self.settings.replicas as usize).min(parts.nodes.len());
            short += u64::from(copies.whole.len() + copies.damaged.len() < wanted);
        }
        if short > 0 {
            report.note(format!("{short} segments of the journal lack copies; the daemon makes them"));
        }
        Ok(is_whole)
    }
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
