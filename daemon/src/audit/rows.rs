//! The newest lines as records of the metadata, whose journal lies on the nodes: so they survive the daemon's disk.

use std::path::Path;

use tandemfs::Result;

use super::blocking;
use super::files::{self, Files, Head, Limits, hash};
use crate::meta::{self, Key, Meta, Ticket, keys};

/// Lines that are put into one commit, and read at once.
const LINES: usize = 1_000;

/// What the metadata has of the log.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) meta: Meta,
    /// The generation in which the last lines were submitted.
    generation: u64,
    /// The number of the last line that was.
    number: u64,
}

impl Rows {
    pub(super) async fn open(meta: Meta) -> Result<Self> {
        let generation = meta.generation();
        let number = head(&meta).await?.map_or(0, |head| head.number);
        Ok(Self { meta, generation, number })
    }

    /// Has the metadata follow the files: submits the lines that it lacks, of which there is one, `newest`, unless commits have
    /// failed or a run ended early. Nothing is submitted, and there is nothing to wait for, when it lacks none.
    pub(super) async fn follow(&mut self, files: &Files, newest: Option<&str>) -> Result<Option<Ticket>> {
        let generation = self.meta.generation();
        if generation != self.generation {
            // What was on its way is not stored: a line and the end of the chain are one commit.
            self.number = head(&self.meta).await?.map_or(0, |head| head.number);
            self.generation = generation;
        }
        let mut end = files.head();
        if self.number >= end.number {
            return Ok(None);
        }
        let lines = match newest {
            Some(line) if self.number + 1 == end.number => vec![(end.number, line.to_owned())],
            _ => {
                let (directory, after) = (files.directory().to_owned(), self.number);
                blocking(move || files::read_after(&directory, after, LINES)).await?
            }
        };
        if lines.len() == LINES
            && let Some((number, line)) = lines.last()
        {
            (end.number, end.hash) = (*number, hash(line.as_bytes()));
        }
        let mut writes = Vec::new();
        for (number, line) in lines {
            writes.push(meta::put(keys::audit_line(number), &line)?);
            writes.extend(
                number.checked_sub(files.limits().rows).map(|old| meta::remove(keys::audit_line(old))),
            );
        }
        writes.push(meta::put(keys::audit_head(), &end)?);
        let ticket = self.meta.submit(generation, writes)?;
        self.number = end.number;
        Ok(Some(ticket))
    }
}

/// Where the chain ends, as far as the metadata knows.
pub(super) async fn head(meta: &Meta) -> Result<Option<Head>> {
    meta.get(&keys::audit_head()).await
}

/// Makes the files of a directory that has none from what the metadata has, all or none. Gives the number of the first line; `None` if
/// there are no lines.
pub(super) async fn rebuild(meta: &Meta, directory: &Path, limits: Limits) -> Result<Option<u64>> {
    let (mut from, to) = keys::all_audit_lines();
    let mut draft: Option<(Files, u64)> = None;
    let place = directory.with_extension("restoring");
    loop {
        let page: Vec<(Key, String)> = meta.scan(&from, &to, LINES).await?;
        let Some((last, _)) = page.last() else { break };
        from.clone_from(last);
        from.push(0); // the next possible key
        let place = place.clone();
        let begun = draft.take();
        draft = blocking(move || {
            let mut draft = begun;
            for (key, line) in page {
                let Some(number) = keys::audit_line_number(&key) else { continue };
                if draft.is_none() {
                    files::remove(&place)?;
                    draft = Some((Files::open(place.clone(), None, limits)?, number));
                }
                if let Some((files, _)) = &mut draft {
                    files.write(number, &line, false)?;
                }
            }
            Ok(draft)
        })
        .await?;
    }
    let Some((files, first)) = draft else { return Ok(None) };
    // There may have been more than is kept.
    let first = first.max(files.head().first);
    let directory = directory.to_owned();
    blocking(move || files.rename(&directory)).await?;
    Ok(Some(first))
}
