//! The walk behind repair, scrub and heal: over all records, then over all objects of a node.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tandemfs::id::{BlockId, NodeId, VolumeId};
use tandemfs::{Error, Result};
use tokio::time::Instant;

use super::job::{Place, Task};
use crate::meta::Meta;
use crate::meta::record::{self, Block};
use crate::replicate::{Check, LIST, Mended, PAGE, Replicator};

/// Blocks that are worked on at once; each takes up to three times the size of a block in memory.
const PARALLEL: usize = 4;
/// A page with errors is tried so often.
const TRIES: u32 = 5;
/// A place is stored no more often.
const SAVE: Duration = Duration::from_secs(1);

/// What is walked, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    /// Everything that this node has is checked; without one, only blocks that lack copies are worked on.
    pub(super) node: Option<NodeId>,
    /// Whether that node is being repaired: it counts like a healthy one.
    pub(super) joining: bool,
    /// The most bytes that are read in a second.
    pub(super) bytes_per_s: Option<u64>,
}

struct Walker<'a> {
    walk: Walk,
    term: u64,
    replicator: &'a Arc<Replicator>,
    meta: &'a Meta,
    task: Option<&'a Task>,
    began: Instant,
    saved: Instant,
    checked: u64,
    total: Mended,
}

impl Walk {
    /// Walks from where the task stands, or from the beginning. What was done is the same however often it is interrupted.
    ///
    /// # Errors
    /// `Unavailable` when a node gives errors again and again; those of the engine.
    pub(super) async fn run(
        self,
        replicator: &Arc<Replicator>,
        meta: &Meta,
        task: Option<&Task>,
    ) -> Result<Mended> {
        let term = match self.node {
            Some(node) => replicator.registry().get(node)?.record().term,
            None => 0,
        };
        let now = Instant::now();
        let total = Mended::default();
        let mut walker =
            Walker { walk: self, term, replicator, meta, task, began: now, saved: now, checked: 0, total };
        if let Some(task) = task {
            task.expect(replicator.counts().total);
        }
        let place = task.map_or(Place::Start, |task| task.place(term));
        if !matches!(place, Place::Objects | Place::Object(_)) {
            walker.records(place).await?;
        }
        if let Some(node) = self.node {
            walker.objects(node, place).await?;
        }
        Ok(walker.total)
    }

    fn joining(&self) -> Option<NodeId> {
        self.node.filter(|_| self.joining)
    }

    /// Whether a record needs to be looked at, and which of its copies.
    fn check(&self, replicator: &Replicator, block: &Block) -> Option<Check> {
        if block.place != record::Place::Object {
            return None;
        }
        let Some(node) = self.node else { return replicator.is_due(&block.replicas).then_some(Check::None) };
        if block.deleting {
            None
        } else if block.replicas.contains(&node) {
            Some(Check::Node(node))
        } else {
            replicator.is_short(&block.replicas).then_some(Check::None)
        }
    }
}

impl Walker<'_> {
    async fn records(&mut self, place: Place) -> Result<()> {
        let mut after = match place {
            Place::Records(volume, id) => Some((volume, id)),
            _ => None,
        };
        loop {
            let page = self.replicator.page(after.as_ref()).await?;
            let due: Vec<(VolumeId, BlockId, Check)> = page
                .iter()
                .filter_map(|(volume, id, block)| {
                    Some((*volume, *id, self.walk.check(self.replicator, block)?))
                })
                .collect();
            let skipped = (page.len() - due.len()) as u64;
            self.note(skipped, &Mended::default());
            let joining = self.walk.joining();
            let replicator = self.replicator;
            self.each(due, |(volume, id, check)| replicator.mend(volume, id, check, joining)).await?;
            let Some((volume, id, _)) = page.last().filter(|_| page.len() == PAGE) else { break };
            after = Some((*volume, *id));
            self.save(Place::Records(*volume, *id), false).await?;
        }
        self.save(Place::Objects, true).await
    }

    async fn objects(&mut self, node: NodeId, place: Place) -> Result<()> {
        let mut after = match place {
            Place::Object(id) => Some(id),
            _ => None,
        };
        let joining = self.walk.joining();
        loop {
            let nodes = self.replicator.registry();
            let page = nodes.list(nodes.get(node)?, after.as_ref(), LIST).await?;
            let ids: Vec<BlockId> = page.iter().map(|object| object.id).collect();
            let replicator = self.replicator;
            self.each_quietly(ids, |id| replicator.sweep(node, id, joining)).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.id);
            self.save(Place::Object(last.id), false).await?;
        }
    }

    /// Works on records, some at once, each until it succeeds.
    async fn each<T, F, R>(&mut self, items: Vec<T>, work: F) -> Result<()>
    where
        T: Copy,
        F: Fn(T) -> R,
        R: Future<Output = Result<Mended>>,
    {
        self.all(items, 1, work).await
    }

    /// Works on objects, which do not count as blocks that were looked at.
    async fn each_quietly<T, F, R>(&mut self, items: Vec<T>, work: F) -> Result<()>
    where
        T: Copy,
        F: Fn(T) -> R,
        R: Future<Output = Result<Mended>>,
    {
        self.all(items, 0, work).await
    }

    async fn all<T, F, R>(&mut self, mut items: Vec<T>, counts: u64, work: F) -> Result<()>
    where
        T: Copy,
        F: Fn(T) -> R,
        R: Future<Output = Result<Mended>>,
    {
        for attempt in 1.. {
            let mut failed = Vec::new();
            let mut error = None;
            let mut results = futures::stream::iter(items.iter().copied().map(|item| {
                let work = work(item);
                async move { (item, work.await) }
            }))
            .buffer_unordered(PARALLEL);
            while let Some((item, result)) = results.next().await {
                match result {
                    Ok(mended) if mended.unsure == 0 => self.note(counts, &mended),
                    Ok(mended) => {
                        // What was done is counted now, the block when it is done with.
                        self.note(0, &mended);
                        failed.push(item);
                    }
                    Err(why) => {
                        error = Some(why);
                        failed.push(item);
                    }
                }
                self.slow_down().await;
            }
            drop(results);
            self.stand()?;
            if failed.is_empty() {
                return Ok(());
            }
            if attempt == TRIES {
                let what = format!("{} blocks gave errors again and again", failed.len());
                return Err(error.unwrap_or_else(|| Error::unavailable(what)));
            }
            items = failed;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    }

    /// A node that has gone meanwhile is not walked any further.
    fn stand(&self) -> Result<()> {
        let Some(node) = self.walk.node else { return Ok(()) };
        let nodes = self.replicator.registry();
        if nodes.is_reachable(node) && nodes.get(node)?.record().term == self.term {
            Ok(())
        } else {
            Err(Error::unavailable(format!("node {node} has failed meanwhile")))
        }
    }

    fn note(&mut self, blocks: u64, mended: &Mended) {
        self.checked += mended.checked;
        self.total.copied += mended.copied;
        self.total.bytes += mended.bytes;
        self.total.bad += mended.bad;
        self.total.removed += mended.removed;
        if let Some(task) = self.task {
            task.add(blocks, mended);
        }
    }

    /// Waits as long as the rate of reading demands.
    async fn slow_down(&self) {
        if let Some(rate) = self.walk.bytes_per_s {
            let time = Duration::from_millis(self.checked.saturating_mul(1000) / rate.max(1));
            tokio::time::sleep_until(self.began + time).await;
        }
    }

    async fn save(&mut self, place: Place, now: bool) -> Result<()> {
        match self.task {
            Some(task) if now || self.saved.elapsed() >= SAVE => {
                self.saved = Instant::now();
                task.reach(self.meta, place).await
            }
            _ => Ok(()),
        }
    }
}
