//! Snapshots: all pairs of the engine in a segment of their own.
//!
//! Commits go on while one is made, so some pairs are older than others. That does no harm: entries set values and do not change them, so
//! once the journal has been read from where the snapshot began to where it ended, all are as they were at its end.

use bytes::Bytes;
use tandemfs::{Error, Result};

use super::Inner;
use super::format::{Chain, Entry, Header, Kind, Sealed, begin, frame};
use super::keeper::Shelved;
use crate::meta::{Key, Write, keys};

/// Pairs that are read at once; the bytes of a block may be in one.
const PAGE: usize = 256;
/// What one frame may hold, and what is appended at once.
const FRAME: usize = 1 << 20;
/// The longest wait for a node to take a part of a snapshot.
const PATIENCE: std::time::Duration = super::reader::PATIENCE;

/// A snapshot that is being written.
#[derive(Debug)]
struct Draft {
    header: Header,
    chain: Chain,
    size: u64,
    pairs: u64,
    page: Vec<Write>,
    bytes: usize,
}

impl Inner {
    /// Makes a snapshot on as many nodes as there are copies.
    ///
    /// # Errors
    /// Those of the nodes and the engine; then there is none.
    pub(super) async fn snapshot(&self) -> Result<()> {
        let (number, after) = {
            let mut writer = self.writer.lock().await;
            // From here on it counts what the next one will have to have.
            writer.since_snapshot = 0;
            (writer.take_number(), writer.place())
        };
        let chosen = self.nodes.choose(number, self.rules.copies, self.rules.min_copies)?;
        let header = Header {
            journal: self.id,
            number,
            kind: Kind::Snapshot,
            after,
            previous: None::<Sealed>,
            snapshots: Vec::new(),
            copies: chosen.iter().map(|node| node.id).collect(),
            began_ms: self.now_ms(),
        };
        let mut draft = Draft { chain: after.chain, header, size: 0, pairs: 0, page: Vec::new(), bytes: 0 };
        let written = self.write(&mut draft).await;
        let end = match written {
            Ok(end) => end,
            Err(error) => {
                for id in &draft.header.copies {
                    if let Some(node) = self.nodes.get(*id) {
                        // What stays is removed when the node is looked at the next time.
                        let _ = self.nodes.bounded(node, PATIENCE, node.store.delete(number)).await;
                    }
                }
                return Err(error);
            }
        };
        log::info!(
            "snapshot {number}: {} rows, {} bytes, after entry {}",
            draft.pairs,
            draft.size,
            after.position
        );
        let on = draft.header.copies.iter().copied().collect();
        self.shelf().add(Shelved { header: draft.header, size: draft.size, end, on });
        // The next segment's header says that it is whole.
        let mut writer = self.writer.lock().await;
        self.begin_segment(&mut writer).await
    }

    /// Writes all pairs, and the end. Gives the last entry at that time.
    async fn write(&self, draft: &mut Draft) -> Result<super::Place> {
        let bytes = begin(&draft.header)?;
        self.put(draft, bytes).await?;
        let mut from: Key = Vec::new();
        loop {
            let page = self.engine.scan(&from, &keys::END, PAGE).await?;
            let is_last = page.len() < PAGE;
            if let Some((last, _)) = page.last() {
                from.clone_from(last);
                from.push(0); // the next possible key
            }
            for (key, value) in page.into_iter().filter(|(key, _)| *key != keys::journal()) {
                draft.bytes += key.len() + value.len() + 16;
                draft.page.push(Write { key, value: Some(value) });
                if draft.bytes >= FRAME {
                    self.flush(draft).await?;
                }
            }
            if is_last {
                break;
            }
        }
        self.flush(draft).await?;
        let place = self.writer.lock().await.place();
        let (bytes, chain) =
            frame(draft.chain, &Entry::End { position: place.position, pairs: draft.pairs })?;
        draft.chain = chain;
        self.put(draft, bytes).await?;
        Ok(place)
    }

    async fn flush(&self, draft: &mut Draft) -> Result<()> {
        if draft.page.is_empty() {
            return Ok(());
        }
        let page = std::mem::take(&mut draft.page);
        draft.pairs += page.len() as u64;
        draft.bytes = 0;
        let (bytes, chain) = frame(draft.chain, &Entry::Pairs(page))?;
        draft.chain = chain;
        self.put(draft, bytes).await
    }

    /// Appends to all copies; each must take it.
    async fn put(&self, draft: &mut Draft, bytes: Vec<u8>) -> Result<()> {
        let bytes = Bytes::from(bytes);
        for id in &draft.header.copies {
            let node = self.nodes.get(*id).ok_or_else(|| Error::not_found(format!("node {id}")))?;
            let append = node.store.append(draft.header.number, draft.size, bytes.clone());
            self.nodes.bounded(node, PATIENCE, append).await?;
        }
        draft.size += bytes.len() as u64;
        Ok(())
    }
}
