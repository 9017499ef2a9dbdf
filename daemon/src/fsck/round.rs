//! One check after the other, in rounds: whoever repairs looks again.

use std::collections::BTreeSet;
use tandemfs::clock::Time;
use tandemfs::id::VolumeId;
use tandemfs::tree::{self as records, Record};
use tandemfs::{ErrorKind, Result};

use super::desk::{Desk, inode_counter};
use super::finding::{self, Finding, Mend, Place};
use super::references::{self, Counter};
use super::replicas::{Placed, Stores};
use super::report::Report;
use super::row::{self, Row};
use super::scan::Cursor;
use super::tree::{self, Walk};
use crate::meta::record;
use crate::meta::{self, MetaStore, keys};
use crate::progress::Progress;

/// So often it is looked again. What one round leaves to the next is soon nothing.
const ROUNDS_MAX: u8 = 16;

/// What is checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site<'a> {
    /// The metadata.
    pub(crate) store: &'a dyn MetaStore,
    /// Where counts lie meanwhile. It is empty.
    pub(crate) scratch: &'a dyn MetaStore,
    /// The nodes.
    pub(crate) stores: &'a Stores,
    /// What can be mended is mended.
    pub(crate) repair: bool,
    /// Rows of the metadata, as far as that is known.
    pub(crate) rows: u64,
    /// The time of day.
    pub(crate) now: Time,
}

/// Checks all that is stored.
///
/// # Errors
/// Those of the engine, the scratch store and the nodes.
pub(crate) async fn check(site: Site<'_>, progress: &mut Progress) -> Result<Report> {
    let mut report = Report::default();
    for number in 0..ROUNDS_MAX {
        let mut desk = Desk::new(site.store, site.repair, site.now, report);
        Round { site, number, unsure: BTreeSet::new() }.run(&mut desk, progress).await?;
        desk.flush().await?;
        report = desk.report;
        if !desk.has_mended {
            break;
        }
        if number + 1 == ROUNDS_MAX {
            report.leave("new faults come up with each one that is mended".to_owned());
        }
    }
    Ok(report)
}

struct Round<'a> {
    site: Site<'a>,
    number: u8,
    /// Volumes of which not everything can be read: nothing is concluded from what is missing there.
    unsure: BTreeSet<VolumeId>,
}

/// What the rows have shown.
#[derive(Debug, Default)]
struct Seen {
    volumes: BTreeSet<VolumeId>,
    /// Some record of a block cannot be read.
    are_blocks_unsure: bool,
    inodes: u64,
    blocks: u64,
}

impl Round<'_> {
    async fn run(&mut self, desk: &mut Desk<'_>, progress: &mut Progress) -> Result<()> {
        let Site { store, scratch, .. } = self.site;
        let seen = self.rows(desk, progress).await?;
        let mut counter = Counter::new(scratch, self.number);
        progress.next("inodes are checked", seen.inodes);
        for volume in seen.volumes {
            match self.volume(volume, desk, &mut counter, progress).await {
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    self.unsure.insert(volume);
                    let what = "is not compared, for some of it cannot be read";
                    desk.take([Finding::new(Place::Volume(volume), what)]).await?;
                }
                result => result?,
            }
        }
        if !seen.are_blocks_unsure {
            let blocks = counter.finish(store);
            let blocks = progress.during("what extents say of blocks is put into order", blocks).await?;
            progress.next("blocks are checked", seen.blocks);
            self.blocks(desk, blocks, progress).await?;
        }
        Ok(())
    }

    /// Every row by itself.
    async fn rows(&mut self, desk: &mut Desk<'_>, progress: &mut Progress) -> Result<Seen> {
        let mut rows = Cursor::new(self.site.store, Vec::new(), keys::END.to_vec());
        progress.next("rows are checked", self.site.rows);
        let mut seen = Seen::default();
        while let Some((key, value)) = rows.next().await? {
            progress.add(1);
            let row = row::parse(&key);
            if let Some(Row::Tree(volume, _) | Row::Volume(volume)) = row {
                seen.volumes.insert(volume);
            }
            seen.inodes += u64::from(matches!(row, Some(Row::Tree(_, records::Key::Inode(_)))));
            seen.blocks += u64::from(matches!(row, Some(Row::Block(..))));
            let Err(error) = row::check(&key, &value) else { continue };
            match row {
                Some(Row::Tree(volume, _)) => drop(self.unsure.insert(volume)),
                Some(Row::Block(..) | Row::References(..)) => seen.are_blocks_unsure = true,
                _ => {}
            }
            desk.take([Finding::new(Place::Row(key), error.subject().to_owned())]).await?;
        }
        Ok(seen)
    }

    async fn volume(
        &mut self,
        volume: VolumeId,
        desk: &mut Desk<'_>,
        counter: &mut Counter<'_>,
        progress: &mut Progress,
    ) -> Result<()> {
        let store = self.site.store;
        let key = keys::volume(volume);
        let value = store.get_many(std::slice::from_ref(&key)).await?.pop().flatten();
        let stored = value.map(|value| record::decode::<record::Volume>(&key, &value)).transpose()?;
        if stored.is_none() {
            desk.take([Finding::new(Place::Volume(volume), "has files, and is not there itself")]).await?;
        }
        if self.unsure.contains(&volume) {
            let what = "its tree is not compared, for some of it cannot be read";
            return desk.take([Finding::new(Place::Volume(volume), what)]).await;
        }
        // A volume that is being taken away is gone in part; its extents count as long as they are there.
        let is_whole = stored.is_some_and(|stored| !stored.removed);
        let mut walk = Walk::over(store, volume, self.site.now);
        let mut found = Vec::new();
        let mut inodes = 0;
        while walk.step(&mut found, Some(counter)).await? {
            progress.add(walk.sums().inodes - inodes);
            inodes = walk.sums().inodes;
            let found = std::mem::take(&mut found);
            if is_whole {
                desk.take(found).await?;
            }
        }
        if !is_whole {
            return Ok(());
        }
        let usage = match finding::tree_record(store, volume, &records::Key::Usage).await? {
            Some(Record::Usage(usage)) => Some(usage),
            _ => None,
        };
        desk.take(tree::check_usage(volume, usage, walk.sums())).await?;
        let counter = inode_counter(volume);
        let value = store.get_many(std::slice::from_ref(&counter)).await?.pop().flatten();
        let next: u64 = value.map_or(Ok(1), |value| record::decode(&counter, &value))?;
        let highest = walk.sums().highest;
        if highest > next {
            let what = format!("would give the number {} to an inode again", next + 1);
            let mend = Mend::Rows(vec![meta::put(counter, &highest)?]);
            desk.take([Finding::new(Place::Volume(volume), what).mended_by(mend)]).await?;
        }
        Ok(())
    }

    async fn blocks(
        &self,
        desk: &mut Desk<'_>,
        mut blocks: references::Blocks<'_>,
        progress: &mut Progress,
    ) -> Result<()> {
        let Site { scratch, stores, now, .. } = self.site;
        let mut placed = Placed::new(scratch, self.number);
        while let Some((volume, id, known)) = blocks.next().await? {
            progress.add(u64::from(known.block.is_some()));
            let mut found = Vec::new();
            if !self.unsure.contains(&volume) {
                found = references::check(volume, id, &known, now)?;
            }
            for finding in &mut found {
                if known.block.is_none()
                    && known.file().is_some()
                    && finding.mend == Mend::No
                    && let Some(write) = stores.adopt(volume, id, now).await?
                {
                    finding.mend = Mend::Rows(vec![write]);
                }
            }
            found.extend(stores.check((volume, id), &known, Some(&mut placed)).await?);
            desk.take(found).await?;
        }
        let strays = stores.strays(placed);
        let strays = progress.during("objects on the nodes are compared with the records", strays).await?;
        for (node, count) in strays {
            desk.report
                .note(format!("node {node}: {count} objects that no record names; a scrub removes them"));
        }
        Ok(())
    }
}
