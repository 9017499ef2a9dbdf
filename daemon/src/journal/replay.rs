//! Bringing an engine forward: from the journal's entries, or from a snapshot when there is nothing to begin with.

use tandemfs::{Error, ErrorKind, Result};

use super::format::{Entry, Header, Place};
use super::nodes::Nodes;
use super::survey::{Found, Link, Survey};
use crate::meta::{Key, MetaStore, Write, keys, put, record, remove};
use crate::progress::Progress;

/// What is written to the engine at once.
const BATCH_BYTES: usize = 4 << 20;
/// Rows that are looked at, at once.
const PAGE: usize = 256;

/// What an engine says of itself: which journal it follows, and up to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Standing {
    /// The journal.
    pub(super) journal: u64,
    /// The last entry that is in the engine.
    pub(super) place: Place,
    /// The newest segment at that time.
    pub(super) segment: u64,
}

/// Where an engine stands; `None` if it has never followed a journal, or a restore did not come to its end.
///
/// # Errors
/// `Corrupt`; those of the engine.
pub(super) async fn standing(engine: &dyn MetaStore) -> Result<Option<Standing>> {
    let key = keys::journal();
    let value = engine.get_many(std::slice::from_ref(&key)).await?.pop().flatten();
    value.map(|value| record::decode(&key, &value)).transpose()
}

/// The write that says where an engine stands.
///
/// # Errors
/// Those of [`record::encode`].
pub(super) fn stands(at: &Standing) -> Result<Write> {
    put(keys::journal(), at)
}

/// Whether an engine has no rows.
///
/// # Errors
/// Those of the engine.
pub(super) async fn is_empty(engine: &dyn MetaStore) -> Result<bool> {
    Ok(engine.scan(&[], &keys::END, 1).await?.is_empty())
}

/// Writes to an engine, many at once.
#[derive(Debug)]
struct Batch<'a> {
    engine: &'a dyn MetaStore,
    writes: Vec<Write>,
    bytes: usize,
}

impl<'a> Batch<'a> {
    fn new(engine: &'a dyn MetaStore) -> Self {
        Self { engine, writes: Vec::new(), bytes: 0 }
    }

    fn add(&mut self, writes: Vec<Write>) {
        let size = |write: &Write| write.key.len() + write.value.as_ref().map_or(0, Vec::len) + 32;
        self.bytes += writes.iter().map(size).sum::<usize>();
        self.writes.extend(writes);
    }

    fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES
    }

    async fn flush(&mut self, standing: Option<&Standing>) -> Result<()> {
        self.writes.extend(standing.map(stands).transpose()?);
        self.bytes = 0;
        let writes = std::mem::take(&mut self.writes);
        if writes.is_empty() { Ok(()) } else { self.engine.commit(Vec::new(), writes).await }
    }
}

/// How far a replay is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// As far as there is something.
    End,
    /// Up to this entry.
    Entry(u64),
    /// Up to the last commit that was made by this time, in milliseconds since 1970.
    Time(i64),
}

impl Until {
    /// Whether a snapshot shows something of what comes after it.
    fn is_before(self, snapshot: &Header) -> bool {
        match self {
            Self::End => false,
            Self::Entry(last) => snapshot.after.position > last,
            Self::Time(last) => snapshot.began_ms > last,
        }
    }

    fn is_passed(self, position: u64, time_ms: i64) -> bool {
        match self {
            Self::End => false,
            Self::Entry(last) => position > last,
            Self::Time(last) => time_ms > last,
        }
    }
}

/// How far a replay came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reached {
    /// The last entry that is in the engine now.
    pub(super) place: Place,
    /// Where the journal goes on, as far as is known, although what is between cannot be read.
    pub(super) gap_until: Option<u64>,
    /// The bytes of the newest segment that count.
    pub(super) size: u64,
    /// When the last commit was made, in milliseconds since 1970; 0 if none was read.
    pub(super) time_ms: i64,
}

/// Reads what follows `from` and writes it to the engine; without one it only finds out how far it would come.
///
/// # Errors
/// `Stale` if `from` is no place of this journal; `NotFound` if what follows it is there no more; those of the engine.
pub(super) async fn replay(
    engine: Option<&dyn MetaStore>,
    nodes: &Nodes,
    links: &[Link],
    mut from: Standing,
    until: Until,
    progress: &mut Progress,
) -> Result<Reached> {
    let first = links.iter().rposition(|link| link.found.header.after.position <= from.place.position);
    let Some(first) = first else {
        return Err(Error::not_found(format!("the journal after entry {}", from.place.position)));
    };
    let mut batch = engine.map(Batch::new);
    // The newest commit waits for the entry behind it, which may cancel it.
    let mut newest: Option<Vec<Write>> = None;
    let mut here = Place::default();
    let (mut size, mut time) = (0, 0);
    let mut is_passed = false;
    let to_read = links.get(first..).unwrap_or_default();
    tell(progress, engine, "the journal", to_read.iter().map(|link| link.found.size()).sum());
    'links: for link in to_read {
        here = link.found.header.after;
        let mut reader = link.found.read(nodes)?;
        loop {
            if here.position == from.place.position && here != from.place {
                return Err(Error::stale(format!("entry {} of the journal is another one", here.position)));
            }
            if link.end.is_some_and(|end| end.position <= here.position) {
                break;
            }
            let before = reader.at();
            let Some(entry) = reader.next().await else { break };
            progress.add(reader.at() - before);
            if entry.position() != Some(here.position + 1) {
                return Err(Error::corrupt(format!("the journal after entry {}", here.position)));
            }
            if let Entry::Commit { time_ms, .. } = &entry
                && until.is_passed(here.position + 1, *time_ms)
            {
                is_passed = true;
                break 'links;
            }
            here = Place { position: here.position + 1, chain: reader.chain() };
            if here.position <= from.place.position {
                continue;
            }
            match entry {
                Entry::Cancel { .. } => newest = None,
                Entry::Commit { writes, time_ms, .. } => {
                    time = time_ms;
                    let before = newest.replace(writes).unwrap_or_default();
                    if let Some(batch) = &mut batch {
                        batch.add(before);
                        if batch.is_full() {
                            progress.wait(batch.flush(None)).await?;
                        }
                    }
                }
                Entry::Pairs(_) | Entry::End { .. } => {}
            }
        }
        size = reader.at();
        if link.end.is_some_and(|end| end != here) {
            break;
        }
    }
    let known = links.last().map_or(0, |link| link.found.header.after.position);
    if here.position < from.place.position && !is_passed {
        // The engine has more than the nodes have.
        return Ok(Reached { place: here, gap_until: None, size, time_ms: time });
    }
    if let Some(batch) = batch.as_mut().filter(|_| here != from.place) {
        batch.add(newest.unwrap_or_default());
        from.place = here;
        progress.wait(batch.flush(Some(&from))).await?;
    }
    let gap_until = (known > here.position && !is_passed).then_some(known);
    Ok(Reached { place: here, gap_until, size, time_ms: time })
}

/// Builds an engine anew: everything in it goes, then comes a whole snapshot, or nothing, then what follows it. Nothing goes before it is
/// known that this can be done. With `accept_loss` what cannot be read and all after it is left out; what comes after `until` is left out too.
///
/// # Errors
/// `NotFound` when the nodes have neither a whole snapshot with all that follows it nor the whole journal; those of the engine.
pub(super) async fn restore(
    engine: &dyn MetaStore,
    nodes: &Nodes,
    survey: &Survey,
    segment: u64,
    accept_loss: bool,
    until: Until,
    progress: &mut Progress,
) -> Result<Reached> {
    let links = survey.links();
    if let Some(newest) = links.last().filter(|newest| newest.is_nowhere())
        && !accept_loss
        && until == Until::End
    {
        let Header { after, copies, .. } = &newest.found.header;
        let copies: Vec<String> = copies.iter().map(ToString::to_string).collect();
        return Err(Error::not_found(format!(
            "what came after entry {} of the journal: it was written to nodes {} alone",
            after.position,
            copies.join(" and ")
        )));
    }
    let beginning =
        links.first().map(|link| &link.found.header).filter(|header| header.after == Place::default());
    let mut missing = Error::not_found("a snapshot of the metadata, or the beginning of the journal");
    for snapshot in survey.snapshots().map(Some).chain([None]) {
        let Some(header) = snapshot.map(|found| &found.header).or(beginning) else { continue };
        let standing = Standing { journal: header.journal, place: header.after, segment };
        if snapshot.is_some() && until.is_before(header) {
            missing = Error::not_found("a snapshot of the metadata that is old enough to begin with");
            continue;
        }
        let end = match snapshot {
            Some(found) => load(None, nodes, found, progress).await?,
            None => Some(0),
        };
        let from = match snapshot {
            Some(_) => format!("the snapshot after entry {}", header.after.position),
            None => "the beginning".to_owned(),
        };
        let Some(end) = end else {
            missing = Error::not_found(format!("a part of {from}"));
            continue;
        };
        match replay(None, nodes, &links, standing, until, progress).await {
            Ok(reached) if reached.place.position >= end && (accept_loss || reached.gap_until.is_none()) => {}
            Ok(reached) => {
                missing = match reached.gap_until {
                    None if until != Until::End => {
                        Error::not_found("a snapshot of the metadata that is old enough to begin with")
                    }
                    gap_until => gap(reached.place.position + 1, gap_until.unwrap_or(end)),
                };
                continue;
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Stale) => {
                missing = error;
                continue;
            }
            Err(error) => return Err(error),
        }
        clear(engine, progress).await?;
        if let Some(found) = snapshot {
            load(Some(engine), nodes, found, progress).await?;
        }
        let reached = replay(Some(engine), nodes, &links, standing, until, progress).await?;
        log::info!("restored from {from} and the journal up to entry {}", reached.place.position);
        return Ok(reached);
    }
    Err(missing)
}

/// The bytes of something are read: first to see whether it is whole, then once more to write it to the engine.
fn tell(progress: &mut Progress, engine: Option<&dyn MetaStore>, of: &str, bytes: u64) {
    let done = if engine.is_some() { "restored" } else { "looked through" };
    progress.next(format!("bytes of {of} are {done}"), bytes);
}

/// Entries of the journal that cannot be read.
pub(super) fn gap(from: u64, to: u64) -> Error {
    Error::not_found(format!("entries {from} to {to} of the journal, which no node that answers has"))
}

/// Reads a snapshot, and writes it to an empty engine if there is one. Gives the entry up to which the journal has to be read after it;
/// `None` if it is not whole.
async fn load(
    engine: Option<&dyn MetaStore>,
    nodes: &Nodes,
    found: &Found,
    progress: &mut Progress,
) -> Result<Option<u64>> {
    let mut reader = found.read(nodes)?;
    let mut batch = engine.map(Batch::new);
    let mut loaded = 0_u64;
    tell(progress, engine, "the snapshot", found.size());
    let mut at = 0;
    while let Some(entry) = reader.next().await {
        progress.add(reader.at() - at);
        at = reader.at();
        match entry {
            Entry::Pairs(pairs) => {
                loaded += pairs.len() as u64;
                let Some(batch) = &mut batch else { continue };
                batch.add(pairs);
                if batch.is_full() {
                    progress.wait(batch.flush(None)).await?;
                }
            }
            Entry::End { position, pairs } if pairs == loaded => {
                if let Some(batch) = &mut batch {
                    progress.wait(batch.flush(None)).await?;
                }
                return Ok(Some(position));
            }
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// Removes every row.
async fn clear(engine: &dyn MetaStore, progress: &mut Progress) -> Result<()> {
    progress.next("rows that were there before are removed", 0);
    loop {
        let page = engine.scan(&[], &keys::END, PAGE).await?;
        if page.is_empty() {
            return Ok(());
        }
        progress.add(page.len() as u64);
        // The row that says where it stands is the first to go: what is left of the rest is never taken for whole.
        let mut gone: Vec<Key> = vec![keys::journal()];
        gone.extend(page.into_iter().map(|(key, _)| key));
        engine.commit(Vec::new(), gone.into_iter().map(remove).collect()).await?;
    }
}
