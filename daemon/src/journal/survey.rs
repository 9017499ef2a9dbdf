//! What there is of the journal on the nodes.

use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use tandemfs::id::NodeId;

use super::format::{Header, Kind, Place};
use super::nodes::{JournalNode, Nodes};
use super::reader::{Copy, PATIENCE, Reader, header};
use tandemfs::Result;

/// A segment, and which nodes have something of it.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// What it says of itself.
    pub(super) header: Header,
    /// How many bytes each node has, torn ends included.
    pub(super) on: BTreeMap<NodeId, u64>,
}

impl Found {
    /// Its copies, for reading; those that have most come first.
    pub(super) fn copies(&self, nodes: &Nodes) -> Vec<Copy> {
        let mut on: Vec<_> = self.on.iter().collect();
        on.sort_by_key(|(_, size)| std::cmp::Reverse(**size));
        let copy = |id: &NodeId| Some(Copy { node: *id, store: nodes.get(*id)?.store.clone() });
        on.into_iter().filter_map(|(id, _)| copy(id)).collect()
    }

    /// The bytes of the longest copy.
    pub(super) fn size(&self) -> u64 {
        self.on.values().copied().max().unwrap_or(0)
    }

    /// Begins to read it.
    ///
    /// # Errors
    /// Those of the format.
    pub(super) fn read(&self, nodes: &Nodes) -> Result<Reader> {
        Reader::new(&self.header, self.copies(nodes))
    }
}

/// All segments that were found.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// By their numbers.
    pub(super) segments: BTreeMap<u64, Found>,
    /// Nodes that could not be asked.
    pub(super) silent: BTreeSet<NodeId>,
    /// The highest number that any file has.
    pub(super) highest: u64,
}

/// A segment of entries, and where it ends: where the one after it begins.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// The segment.
    pub(super) found: Found,
    /// None for the last one: it ends where no copy has a further entry.
    pub(super) end: Option<Place>,
}

impl Link {
    /// Whether none of the nodes that it is written to has anything of it, though it may have entries.
    pub(super) fn is_nowhere(&self) -> bool {
        !self.found.header.copies.iter().any(|id| self.found.on.contains_key(id))
    }
}

/// Asks all nodes. Of several journals the one counts that has the newest segment.
pub(super) async fn survey(nodes: &Nodes) -> Survey {
    let answers = join_all(nodes.all().map(|node| async move { (node.id, holdings(node).await) })).await;
    let mut survey = Survey::default();
    let mut headers: Vec<(NodeId, u64, Header)> = Vec::new();
    for (id, answer) in answers {
        let Some(answer) = answer else {
            survey.silent.insert(id);
            continue;
        };
        for (number, size, header) in answer {
            survey.highest = survey.highest.max(number);
            headers.extend(header.map(|header| (id, size, header)));
        }
    }
    let newest = headers
        .iter()
        .map(|(_, _, header)| header)
        .max_by_key(|header| (header.number, header.after.position));
    let Some(journal) = newest.map(|header| header.journal) else { return survey };
    // Two under one number: one was left behind by a daemon that never came to run. It has no entries.
    headers.sort_by_key(|(_, size, header)| std::cmp::Reverse((header.after.position, *size)));
    for (id, size, header) in headers {
        let number = header.number;
        let is_ours = header.journal == journal;
        let found = survey
            .segments
            .entry(number)
            .or_insert_with(|| Found { header: header.clone(), on: BTreeMap::new() });
        if is_ours && found.header == header {
            found.on.insert(id, size);
        }
    }
    survey.segments.retain(|_, found| found.header.journal == journal);
    survey
}

/// A node's segments with their lengths and headers; `None` when it cannot be asked.
async fn holdings(node: &JournalNode) -> Option<Vec<(u64, u64, Option<Header>)>> {
    let ask = async {
        let mut found = Vec::new();
        for segment in node.store.list().await? {
            found.push((segment.number, segment.size, header(node.store.as_ref(), segment.number).await?));
        }
        Ok::<_, tandemfs::Error>(found)
    };
    match tokio::time::timeout(PATIENCE, ask).await {
        Ok(Ok(found)) => Some(found),
        Ok(Err(error)) => {
            log::warn!("what node {} has of the journal cannot be read: {error:?}", node.id);
            None
        }
        Err(_) => {
            log::warn!("what node {} has of the journal cannot be read: no answer", node.id);
            None
        }
    }
}

impl Survey {
    /// The segments of entries that follow one another up to the newest, the oldest first. What is missing before is not among them.
    pub(super) fn links(&self) -> Vec<Link> {
        let entries = |found: &&Found| found.header.kind == Kind::Entries;
        let mut links = Vec::new();
        let mut next = self.segments.values().rev().find(entries);
        let mut end = None;
        while let Some(found) = next {
            links.push(Link { found: found.clone(), end });
            end = Some(found.header.after);
            // A number below, so this ends.
            let before = found.header.previous.filter(|sealed| sealed.number < found.header.number);
            next = before.and_then(|sealed| self.segments.get(&sealed.number)).filter(entries);
        }
        links.reverse();
        links
    }

    /// The snapshots, the newest first. Whether they are whole is not known yet.
    pub(super) fn snapshots(&self) -> impl Iterator<Item = &Found> {
        self.segments.values().rev().filter(|found| found.header.kind == Kind::Snapshot)
    }
}
