//! Looking at the journal without running it: whether each copy of each segment is whole, and where the journal and an engine stand.

use std::collections::BTreeSet;
use tandemfs::id::NodeId;
use tandemfs::{Error, Result};

use super::format::Place;
use super::keeper::{Shelf, Shelved};
use super::nodes::{JournalNode, Nodes};
use super::reader::{Copy, Reader};
use super::survey::{self, Survey};
use super::{Journal, Until, replay};
use crate::meta::MetaStore;
use crate::progress::Progress;

/// How the copies of a segment are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copies {
    /// The segment.
    pub segment: u64,
    /// Nodes that have all of it.
    pub whole: BTreeSet<NodeId>,
    /// Nodes that have as many bytes, but not the right ones.
    pub damaged: BTreeSet<NodeId>,
}

impl Journal {
    /// Reads every copy of every segment that counts. What is shorter than it should be is no copy: it was left behind where an append
    /// was cut off. Nothing where there is no journal.
    ///
    /// # Errors
    /// `Unavailable` when a node cannot be asked.
    pub async fn copies(nodes: Vec<JournalNode>, progress: &mut Progress) -> Result<Vec<Copies>> {
        let nodes = Nodes::new(nodes);
        let survey = asked(&nodes).await?;
        let Some(newest) = survey.links().pop() else { return Ok(Vec::new()) };
        let mut place = newest.found.header.after;
        let mut reader = newest.found.read(&nodes)?;
        while reader.next().await.is_some() {
            place = Place { position: place.position + 1, chain: reader.chain() };
        }
        let mut all = Vec::new();
        let shelf = Shelf::new(&survey, place, reader.at()).into_all();
        let bytes = shelf.values().map(|shelved| shelved.size * shelved.on.len() as u64).sum();
        progress.next("bytes of all copies of the journal are checked", bytes);
        for (segment, shelved) in shelf {
            let mut copies = Copies { segment, ..Copies::default() };
            for id in &shelved.on {
                let Some(node) = nodes.get(*id) else { continue };
                let is_whole = is_whole(&shelved, node, progress).await?;
                if is_whole { &mut copies.whole } else { &mut copies.damaged }.insert(*id);
            }
            all.push(copies);
        }
        Ok(all)
    }

    /// The last entry that an engine has; `None` if it follows no journal.
    ///
    /// # Errors
    /// `Corrupt`; those of the engine.
    pub async fn position(engine: &dyn MetaStore) -> Result<Option<u64>> {
        Ok(replay::standing(engine).await?.map(|standing| standing.place.position))
    }

    /// Brings an engine forward to the end of the journal, to which nothing is written.
    ///
    /// # Errors
    /// `Stale` for an engine of another journal; `NotFound` when what follows is not there any more; those of the engine.
    pub async fn catch_up(
        engine: &dyn MetaStore,
        nodes: Vec<JournalNode>,
        progress: &mut Progress,
    ) -> Result<()> {
        let nodes = Nodes::new(nodes);
        let survey = asked(&nodes).await?;
        let links = survey.links();
        let journal = links.last().map(|link| link.found.header.journal);
        match replay::standing(engine).await? {
            Some(standing) if Some(standing.journal) == journal => {
                replay::replay(Some(engine), &nodes, &links, standing, Until::End, progress).await.map(drop)
            }
            _ => Err(Error::stale("the metadata is of another journal")),
        }
    }

    /// Makes the journal whole again from the engine: with as many new snapshots as are kept, nothing older is needed.
    ///
    /// # Errors
    /// Those of the nodes and the engine.
    pub async fn renew(&self) -> Result<()> {
        for _ in 0..super::keeper::SNAPSHOTS {
            self.0.snapshot().await?;
        }
        self.tend(0).await
    }
}

async fn asked(nodes: &Nodes) -> Result<Survey> {
    let survey = survey::survey(nodes).await;
    match survey.silent.first() {
        Some(node) => Err(Error::unavailable(format!("what node {node} has of the journal cannot be read"))),
        None => Ok(survey),
    }
}

async fn is_whole(shelved: &Shelved, node: &JournalNode, progress: &mut Progress) -> Result<bool> {
    let copy = Copy { node: node.id, store: node.store.clone() };
    let mut reader = Reader::new(&shelved.header, vec![copy])?;
    while reader.at() < shelved.size {
        let before = reader.at();
        if reader.next_frame().await.is_none() {
            return Ok(false);
        }
        progress.add(reader.at() - before);
    }
    Ok(true)
}
