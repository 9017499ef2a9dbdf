//! The journal: an engine around an engine. A commit is appended to a segment on as many nodes as there are copies of a block, is synced on
//! them at once, and only then written to the engine inside and answered. So the engine may lose what it was told last, or all of it:
//! the nodes have it (docs/durability.md).
//!
//! | file | what |
//! | --- | --- |
//! | `format.rs` | segments, frames, entries |
//! | `nodes.rs` | the nodes, and which are left out for a while |
//! | `writer.rs` | the open segment |
//! | `reader.rs` | one segment, from several copies |
//! | `survey.rs` | what the nodes hold |
//! | `replay.rs` | an engine brought forward, or built anew |
//! | `snapshot.rs` | the engine's pairs on the nodes |
//! | `keeper.rs` | copies made whole again, old segments removed |
//! | `check.rs` | whether all copies are whole, for fsck |

mod check;
mod format;
mod keeper;
mod nodes;
mod reader;
mod replay;
mod snapshot;
mod survey;
#[cfg(test)]
mod tests;
mod writer;

use async_trait::async_trait;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tandemfs::clock::Clock;
use tandemfs::id::NodeId;
use tandemfs::{Error, ErrorKind, Result};
use tokio::time::Instant;

use crate::meta::{Guard, Key, MetaStore, Value, Write, keys};
use crate::metrics::COUNTERS;
use crate::progress::Progress;
use format::{Entry, Place};
use keeper::Shelf;
use nodes::Nodes;
use replay::Standing;
use survey::Survey;
use writer::Writer;

pub use check::Copies;
pub use nodes::JournalNode;
pub use replay::Until;

/// How a journal is kept.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Copies of each segment.
    pub copies: usize,
    /// A commit needs so many at least.
    pub min_copies: usize,
    /// A snapshot is made when so many bytes have been appended since the last one.
    pub snapshot_bytes: u64,
    /// One can go back to any moment within so many milliseconds, at least.
    pub keep_ms: i64,
    /// The number of a journal that is begun now: drawn, so that no two are taken for one.
    pub new_journal: u64,
}

/// What a restore has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The last entry that is there.
    pub position: u64,
    /// What follows it, as far as is known, and was left out.
    pub missing_to: Option<u64>,
    /// When the last commit was made, in milliseconds since 1970; 0 if that is not known.
    pub time_ms: i64,
}

/// See the module. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Arc<dyn MetaStore>,
    nodes: Nodes,
    rules: Rules,
    clock: Arc<dyn Clock>,
    /// Its number, drawn when it was begun.
    id: u64,
    writer: tokio::sync::Mutex<Writer>,
    shelf: Mutex<Shelf>,
    /// What is in the engine is not what was answered: nothing is to be believed until a restart.
    broken: AtomicBool,
}

impl Journal {
    /// Brings the engine forward to the end of the journal that the nodes have, builds it anew if it is empty or out of date, and
    /// begins a new segment. Nodes without a journal get a new one.
    ///
    /// # Errors
    /// `Unavailable` when too few nodes can be written to, or when those cannot be read that have what was committed last; `NotFound` when
    /// something of the journal is missing that the engine does not have; those of the engine.
    pub async fn open(
        engine: Arc<dyn MetaStore>,
        nodes: Vec<JournalNode>,
        rules: Rules,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let nodes = Nodes::new(nodes);
        let survey = survey::survey(&nodes).await;
        // So many that they may have what no other has.
        if survey.silent.len() >= rules.copies.max(1) {
            let what =
                format!("nodes {:?} do not answer, and may have what was committed last", survey.silent);
            return Err(Error::unavailable(what));
        }
        let recovered = recover(&engine, &nodes, &survey, rules.new_journal).await;
        let (standing, size) = recovered.map_err(|error| match error.kind() {
            // What is missing may be on those that do not answer now.
            ErrorKind::NotFound if !survey.silent.is_empty() => {
                Error::unavailable(format!("{}; nodes {:?} do not answer", error.subject(), survey.silent))
                    .because(error)
            }
            _ => error,
        })?;
        let shelf = Shelf::new(&survey, standing.place, size);
        let newest = survey.highest.max(standing.segment);
        let mut writer = Writer::new(standing.place, first_number(newest), shelf.newest(standing.place));
        writer.since_snapshot = shelf.since_snapshot();
        let inner = Inner {
            engine,
            nodes,
            rules,
            clock,
            id: standing.journal,
            writer: tokio::sync::Mutex::new(writer),
            shelf: Mutex::new(shelf),
            broken: AtomicBool::new(false),
        };
        {
            let mut writer = inner.writer.lock().await;
            inner.begin_segment(&mut writer).await?;
        }
        Ok(Self(Arc::new(inner)))
    }

    /// Builds an engine anew from what nodes have, to which nothing is written. With `accept_loss` what cannot be read and all after it is
    /// left out. An engine that is restored to a moment of the past begins a journal of its own, for the nodes' has what came after it:
    /// `new_journal` is its number.
    ///
    /// # Errors
    /// `NotFound` for what is missing; those of the engine.
    pub async fn restore(
        engine: &dyn MetaStore,
        nodes: Vec<JournalNode>,
        accept_loss: bool,
        until: Until,
        new_journal: u64,
        progress: &mut Progress,
    ) -> Result<Restored> {
        let nodes = Nodes::new(nodes);
        let survey = survey::survey(&nodes).await;
        let segment = survey.highest;
        let reached = replay::restore(engine, &nodes, &survey, segment, accept_loss, until, progress).await?;
        if until != Until::End {
            // Not the beginning: a replay of the new journal alone would not come to what is here.
            let place = Place { position: 1, ..Place::default() };
            let standing = Standing { journal: new_journal, place, segment };
            engine.commit(Vec::new(), vec![replay::stands(&standing)?]).await?;
        }
        Ok(Restored {
            position: reached.place.position,
            missing_to: reached.gap_until,
            time_ms: reached.time_ms,
        })
    }

    /// Says which nodes are to be left alone, as if they were gone.
    pub fn shut(&self, nodes: BTreeSet<NodeId>) {
        self.0.nodes.shut(nodes);
    }
}

/// The number of a run's first segment. The numbers of two runs lie far apart, so that none is given twice: a run may not know the last
/// ones of the run before, which were written to a node that is away.
fn first_number(newest: u64) -> u64 {
    ((newest >> 32) + 1) << 32
}

/// Has the engine at the end of the journal, and says where that is, and how many bytes of the newest segment count.
async fn recover(
    engine: &Arc<dyn MetaStore>,
    nodes: &Nodes,
    survey: &Survey,
    new_journal: u64,
) -> Result<(Standing, u64)> {
    let standing = replay::standing(engine.as_ref()).await?;
    let links = survey.links();
    let Some(newest) = links.last().map(|link| &link.found.header) else {
        return match standing {
            Some(standing) => {
                log::error!(
                    "no node has anything of the journal any more: it goes on from what the daemon has"
                );
                Ok((standing, 0))
            }
            None => Ok((begin_anew(engine, new_journal).await?, 0)),
        };
    };
    let journal = newest.journal;
    let segment = survey.highest;
    let mut progress = Progress::new("bytes of the journal are read", 0);
    let mut reached = None;
    if let Some(standing) = standing.filter(|standing| standing.journal == journal) {
        match replay::replay(Some(engine.as_ref()), nodes, &links, standing, Until::End, &mut progress).await
        {
            Ok(reached) if reached.place.position < standing.place.position => {
                log::error!(
                    "the nodes have the journal up to entry {} only: it goes on from entry {}, which the daemon has",
                    reached.place.position,
                    standing.place.position
                );
                return Ok((Standing { segment, ..standing }, reached.size));
            }
            Ok(replayed) if replayed.gap_until.is_none() => {
                let entries = replayed.place.position - standing.place.position;
                if entries > 0 {
                    log::info!("the metadata was {entries} entries behind the journal");
                }
                reached = Some(replayed);
            }
            Ok(replayed) => {
                log::error!(
                    "what follows entry {} is on no node: the metadata is built anew",
                    replayed.place.position
                );
            }
            Err(error) if matches!(error.kind(), ErrorKind::Stale | ErrorKind::NotFound) => {
                log::error!(
                    "the metadata does not fit to the journal, {error}: it is built anew from the nodes"
                );
            }
            Err(error) => return Err(error),
        }
    } else {
        log::warn!("the metadata is missing or of another journal: it is built anew from the nodes");
    }
    let reached = match reached {
        Some(reached) => reached,
        None => {
            replay::restore(engine.as_ref(), nodes, survey, segment, false, Until::End, &mut progress).await?
        }
    };
    Ok((Standing { journal, place: reached.place, segment }, reached.size))
}

/// A journal for an engine that has none.
async fn begin_anew(engine: &Arc<dyn MetaStore>, journal: u64) -> Result<Standing> {
    // An engine that has something already is not what the first entries would make of an empty one: they are not the beginning.
    let position = u64::from(!replay::is_empty(engine.as_ref()).await?);
    let place = Place { position, ..Place::default() };
    let standing = Standing { journal, place, segment: 0 };
    engine.commit(Vec::new(), vec![replay::stands(&standing)?]).await?;
    Ok(standing)
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Inner {
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> i64 {
        self.clock.now().as_millis()
    }

    fn check(&self) -> Result<()> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(Error::unavailable("the metadata is behind the journal; restart the daemon"));
        }
        Ok(())
    }

    async fn commit(&self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<()> {
        let mut writer = self.writer.lock().await;
        self.check()?;
        // Nothing else commits to the engine, so what holds now holds below.
        let keys: Vec<Key> = guards.iter().map(|guard| guard.key.clone()).collect();
        let values = self.engine.get_many(&keys).await?;
        if let Some((guard, _)) = guards.iter().zip(values).find(|(guard, value)| guard.value != *value) {
            return Err(Error::stale(format!("metadata record {}", hex::encode(&guard.key))));
        }
        let position = writer.place().position + 1;
        let entry = Entry::Commit { position, time_ms: self.now_ms(), writes };
        let began = Instant::now();
        let place = self.append(&mut writer, &entry).await?;
        let appended = Instant::now();
        let standing = Standing { journal: self.id, place, segment: writer.segment() };
        let Entry::Commit { mut writes, .. } = entry else { return Err(Error::internal("not a commit")) };
        writes.push(replay::stands(&standing)?);
        let applied = self.engine.commit(Vec::new(), writes).await;
        COUNTERS.commits.inc();
        COUNTERS.commit_append_us.inc_by(microseconds(appended - began));
        COUNTERS.commit_apply_us.inc_by(microseconds(appended.elapsed()));
        let Err(error) = applied else { return Ok(()) };
        // It is said to have failed, so it must not come back.
        let cancel = Entry::Cancel { position: position + 1 };
        if let Err(cause) = self.append(&mut writer, &cancel).await {
            self.broken.store(true, Ordering::SeqCst);
            log::error!(
                "entry {position} of the journal failed in the engine, and cannot be cancelled: {cause:?}"
            );
        }
        Err(error)
    }
}

#[async_trait]
impl MetaStore for Journal {
    async fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Value>>> {
        self.0.check()?;
        self.0.engine.get_many(keys).await
    }

    async fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        self.0.check()?;
        // The journal's own row is none of those that were committed.
        let own = keys::journal();
        let is_within = from <= own.as_slice() && own.as_slice() < to;
        let mut pairs = self.0.engine.scan(from, to, limit.saturating_add(usize::from(is_within))).await?;
        if is_within {
            pairs.retain(|(key, _)| *key != own);
            pairs.truncate(limit);
        }
        Ok(pairs)
    }

    async fn commit(&self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<()> {
        // A task of its own: a caller who goes away leaves nothing half done.
        let inner = self.0.clone();
        let task = tokio::spawn(async move { inner.commit(guards, writes).await });
        task.await.unwrap_or_else(|error| Err(Error::internal("a commit of the journal").because(error)))
    }

    fn copies(&self) -> Vec<NodeId> {
        self.0.shelf().newest_nodes().iter().copied().collect()
    }

    async fn forget(&self) -> Result<()> {
        // As many snapshots as are kept: nothing of before is needed any more then.
        for _ in 0..keeper::SNAPSHOTS {
            self.0.snapshot().await?;
        }
        self.0.remove_surplus().await?;
        self.0.engine.forget().await
    }
}
