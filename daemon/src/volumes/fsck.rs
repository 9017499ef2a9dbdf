//! fsck while others work: the same rules as on a data directory that nobody uses (`fsck/`).
//!
//! All is read without locks first, so some of what does not seem to fit is only of two moments. Each such suspicion is looked at again
//! where nothing moves: under the volume's lock when the engine has all that was submitted, or under the block's lock. What cannot be looked at so,
//! because it takes too long, is added up page by page, and changes meanwhile are noted (`tally.rs`).

use serde_bytes::ByteBuf;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tandemfs::id::{BlockId, Ino, VolumeId};
use tandemfs::tree::{Key, Record};
use tandemfs::{Error, ErrorKind, Result};
use tokio::sync::MutexGuard;

use super::tally::{Sum, Tally};
use super::volume::{State, Volume};
use super::{PAUSE, Volumes, records};
use crate::fsck::finding::{self, Change, Finding, Mend, Place};
use crate::fsck::references::{self, Counter, Known, Members};
use crate::fsck::replicas::Stores;
use crate::fsck::report::Report;
use crate::fsck::row;
use crate::fsck::scan::{Cursor, PAGE};
use crate::fsck::tree::{Sums, Walk, check_name, check_usage};
use crate::meta::record::References;
use crate::meta::{self, MetaStore, Write, keys};
use crate::replicate::Check;

/// So often something is looked at anew when a commit fails, or what is looked at changes.
const TRIES: usize = 4;
/// So many things are mended at one place.
const MENDS_MAX: usize = 16;
/// What is to be done about what cannot be mended here.
const OFFLINE: &str = "stop the daemon and run tandemd fsck --repair";

/// A check of a daemon at work.
#[derive(Clone, Copy)]
pub struct Live<'a> {
    /// Where counts lie meanwhile. It is empty.
    pub scratch: &'a dyn MetaStore,
    /// Counts, links and copies are mended.
    pub repair: bool,
    /// Is told how many blocks more have been looked at, and of all that was found.
    pub progress: &'a (dyn Fn(u64, &Report) + Send + Sync),
}

impl std::fmt::Debug for Live<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("repair", &self.repair).finish_non_exhaustive()
    }
}

/// Ends the noting of changes.
struct Counting(Arc<Volume>);

impl Drop for Counting {
    fn drop(&mut self) {
        *self.0.tally() = None;
    }
}

impl Volumes {
    /// Checks trees, counts and copies, while they are in use.
    ///
    /// # Errors
    /// Those of the engine and of the scratch store.
    pub async fn fsck(&self, live: Live<'_>) -> Result<Report> {
        let mut report = Report::default();
        let store = self.shared.meta.store();
        self.check_rows(&live, &mut report).await?;
        let mut counting: BTreeMap<VolumeId, Counting> = BTreeMap::new();
        for record in records(&self.shared.meta).await?.into_iter().filter(|record| !record.removed) {
            let volume = match self.volume(record.id).await {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                volume => volume?,
            };
            let state = volume.lock_settled().await?;
            *volume.tally() = Some(Tally::default());
            drop(state);
            counting.insert(record.id, Counting(volume));
        }
        let mut counter = Counter::new(live.scratch, 0);
        for Counting(volume) in counting.values() {
            match volume.check(&live, &mut counter, &mut report).await {
                // It is being removed.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    report.leave(format!("volume {}: cannot be read: {}", volume.id, error.subject()));
                    *volume.tally() = None;
                }
                result => result?,
            }
            (live.progress)(0, &report);
        }
        let mut blocks = counter.finish(store).await?;
        let stores = Stores::new(store, self.shared.replicator.stores(), false).await?;
        let mut busy = 0;
        while let Some((volume, id, known)) = blocks.next().await? {
            // Of what came meanwhile nothing was counted.
            if let Some(Counting(volume)) = counting.get(&volume)
                && !references::check(volume.id, id, &known, self.shared.now())?.is_empty()
            {
                busy += u64::from(!volume.check_block(&live, id, &known, &mut report).await?);
            }
            if !stores.check((volume, id), &known, None).await?.is_empty() {
                busy +=
                    u64::from(!self.check_copies(&live, (volume, id), &known, &stores, &mut report).await?);
            }
            (live.progress)(u64::from(known.block.is_some()), &report);
        }
        if busy > 0 {
            report.note(format!("{busy} blocks were in use and are not decided about"));
        }
        Ok(report)
    }

    async fn check_rows(&self, live: &Live<'_>, report: &mut Report) -> Result<()> {
        let store = self.shared.meta.store();
        let mut rows = Cursor::new(store, Vec::new(), keys::END.to_vec());
        while let Some((key, value)) = rows.next().await? {
            if let Err(error) = row::check(&key, &value) {
                let finding = Finding::new(Place::Row(key), error.subject().to_owned());
                report.leave(format!("{}; {OFFLINE}", finding.text(store).await));
            }
        }
        (live.progress)(0, report);
        Ok(())
    }

    /// Looks again at a block's copies, while nobody else changes them; `false` if it is in use.
    async fn check_copies(
        &self,
        live: &Live<'_>,
        (volume, id): (VolumeId, BlockId),
        known: &Known,
        stores: &Stores,
        report: &mut Report,
    ) -> Result<bool> {
        let replicator = &self.shared.replicator;
        let Some(guard) = replicator.try_lock_block(volume, id) else { return Ok(false) };
        let known = Known { block: guard.record().await?, ..known.clone() };
        // Nodes fail meanwhile, and what lies there does not count any more.
        let stores = stores.only(|node| replicator.registry().is_healthy(node));
        let found = stores.check((volume, id), &known, None).await?;
        if stores.only(|node| replicator.registry().is_healthy(node)).count() != stores.count() {
            return Ok(false);
        }
        drop(guard);
        for finding in found {
            let text = finding.text(self.shared.meta.store()).await;
            if live.repair && matches!(finding.mend, Mend::Copies(_)) {
                let mended = replicator.mend(volume, id, Check::All, None).await?;
                if mended.unsure == 0 {
                    report.mend(text);
                    continue;
                }
            }
            report.leave(text);
        }
        Ok(true)
    }
}

impl Volume {
    /// Takes the lock when the engine has all that was submitted.
    async fn lock_settled(&self) -> Result<MutexGuard<'_, State>> {
        for _ in 0..TRIES {
            self.shared.meta.ready().await?;
            let state = self.lock_returned().await?;
            if state.is_settled() {
                return Ok(state);
            }
            // What is committed after all that was submitted.
            if let Ok(ticket) = self.shared.meta.submit(state.generation, Vec::new())
                && ticket.await.is_ok()
            {
                return Ok(state);
            }
            drop(state);
            tokio::time::sleep(PAUSE).await;
        }
        Err(Error::unavailable("changes fail again and again"))
    }

    /// Checks the tree, and counts extents.
    async fn check(
        self: &Arc<Self>,
        live: &Live<'_>,
        counter: &mut Counter<'_>,
        report: &mut Report,
    ) -> Result<()> {
        let mut walk = Walk::over(self.shared.meta.store(), self.id, self.shared.now());
        let mut found = Vec::new();
        while walk.step(&mut found, Some(counter)).await? {
            let mut places = BTreeSet::new();
            for finding in found.drain(..) {
                match finding.place {
                    Place::Inode(_, ino) => drop(places.insert((ino, None))),
                    Place::Name(_, parent, name) => drop(places.insert((parent, Some(name)))),
                    _ => {}
                }
            }
            for (ino, name) in places {
                self.look_again(live, (ino, name), report).await?;
            }
        }
        self.check_sums(live, report).await
    }

    /// What does not fit at an inode, or at a name.
    async fn look_at(&self, (ino, name): &(Ino, Option<tandemfs::name::Name>)) -> Result<Vec<Finding>> {
        let (store, now) = (self.shared.meta.store(), self.shared.now());
        if let Some(name) = name {
            return Ok(check_name(store, self.id, (*ino, name), now).await?.into_iter().collect());
        }
        let mut walk = Walk::new(store, self.id, (*ino, *ino), now);
        let mut found = Vec::new();
        while walk.step(&mut found, None).await? {}
        // Names have been looked at by themselves.
        found.retain(|finding| matches!(finding.place, Place::Inode(..)));
        Ok(found)
    }

    /// Looks again at a place until it is known what does not fit there, and mends it if that is asked for.
    async fn look_again(
        self: &Arc<Self>,
        live: &Live<'_>,
        place: (Ino, Option<tandemfs::name::Name>),
        report: &mut Report,
    ) -> Result<()> {
        let store = self.shared.meta.store();
        let key = keys::tree(self.id, &Key::Inode(place.0));
        // Whatever changes at an inode changes its record too. So a large directory need not be read under the lock.
        for _ in 0..TRIES {
            let before = self.shared.meta.get_raw(&key).await?;
            let found = self.look_at(&place).await?;
            if before == self.shared.meta.get_raw(&key).await? {
                if found.is_empty() {
                    return Ok(());
                }
                break;
            }
        }
        for _ in 0..MENDS_MAX {
            let mut state = self.lock_settled().await?;
            let found = self.look_at(&place).await?;
            let can_mend = |finding: &Finding| live.repair && matches!(finding.mend, Mend::Counts(_));
            let Some(finding) = found.iter().find(|finding| can_mend(finding)) else {
                for finding in found {
                    let text = finding.text(store).await;
                    let is_for_offline = !matches!(finding.mend, Mend::No | Mend::Counts(_));
                    let more = if is_for_offline { format!("; {OFFLINE}") } else { String::new() };
                    report.leave(text + &more);
                }
                return Ok(());
            };
            let Mend::Counts(changes) = &finding.mend else { return Ok(()) };
            report.mend(finding.text(store).await);
            let submitted = self.submit_changes(&mut state, changes)?;
            drop(state);
            self.finish(submitted).await?;
        }
        Ok(())
    }

    fn submit_changes(&self, state: &mut State, changes: &[Change]) -> Result<super::commit::Submitted> {
        let records: BTreeMap<Key, Option<Record>> = changes.iter().cloned().collect();
        let write = |(key, record): (&Key, &Option<Record>)| {
            let key = keys::tree(self.id, key);
            match record {
                Some(record) => meta::put(key, record),
                None => Ok(meta::remove(key)),
            }
        };
        let writes = records.iter().map(write).collect::<Result<Vec<Write>>>()?;
        self.submit_records(state, writes, records)
    }

    /// Adds up what the volume uses: page by page under the lock, with what changes meanwhile.
    async fn check_sums(self: &Arc<Self>, live: &Live<'_>, report: &mut Report) -> Result<()> {
        let store = self.shared.meta.store();
        let from = keys::tree(self.id, &Key::Inode(Ino(0)));
        let to = keys::end_of(&keys::tree(self.id, &Key::Inode(Ino(u64::MAX))));
        let mut sum = Sum::default();
        let mut next = from;
        loop {
            let mut state = self.lock_settled().await?;
            let page = store.scan(&next, &to, PAGE).await?;
            let mut passed = u64::MAX;
            for (key, value) in &page {
                let Some(row::Row::Tree(_, of @ Key::Inode(ino))) = row::parse(key) else { continue };
                sum.count(ino, Some(&row::tree_record(&of, key, value)?), 1);
                passed = ino.0;
            }
            let is_last = page.len() < PAGE;
            let noted = {
                let mut tally = self.tally();
                let Some(tally) = tally.as_mut() else {
                    report.note(format!("volume {}: a commit has failed meanwhile; check again", self.id));
                    return Ok(());
                };
                tally.passed = if is_last { u64::MAX } else { passed };
                tally.sum()
            };
            if let Some((last, _)) = page.last().filter(|_| !is_last) {
                next = super::key_after(last);
                continue;
            }
            let usage = match finding::tree_record(store, self.id, &Key::Usage).await? {
                Some(Record::Usage(usage)) => Some(usage),
                _ => None,
            };
            let counted = |sum: i64, noted: i64| u64::try_from(sum.saturating_add(noted)).unwrap_or(0);
            let sums = Sums {
                bytes: counted(sum.bytes, noted.bytes),
                inodes: counted(sum.inodes, noted.inodes),
                ..Sums::default()
            };
            let Some(finding) = check_usage(self.id, usage, sums) else { return Ok(()) };
            let text = finding.text(store).await;
            let Mend::Counts(changes) = &finding.mend else { return Ok(()) };
            if !live.repair {
                report.leave(text);
                return Ok(());
            }
            report.mend(text);
            let submitted = self.submit_changes(&mut state, changes)?;
            drop(state);
            return self.finish(submitted).await.map(drop);
        }
    }

    /// Looks again at a block under the lock; `false` if extents that name it have changed since they were counted.
    async fn check_block(
        &self,
        live: &Live<'_>,
        id: BlockId,
        known: &Known,
        report: &mut Report,
    ) -> Result<bool> {
        let store = self.shared.meta.store();
        let mut state = match self.lock_settled().await {
            // It is being removed.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
            state => state?,
        };
        if self.tally().as_ref().is_none_or(|tally| tally.has_touched(&id)) {
            return Ok(false);
        }
        let Some(_guard) = self.shared.replicator.try_lock_block(self.id, id) else { return Ok(false) };
        let block = self.shared.meta.get(&keys::block(self.id, &id)).await?;
        let references: Option<References> = self.shared.meta.get(&keys::references(self.id, &id)).await?;
        let inline: Option<ByteBuf> = self.shared.meta.get(&keys::inline(self.id, &id)).await?;
        let inline = inline.map(|bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        let mut known = Known { block, references, inline, ..known.clone() };
        // Blocks are packed meanwhile: how many lie in one is for the check without a daemon.
        known.members = known.block.as_ref().map_or_else(Members::default, Members::said_by);
        // It is listed since it was stored or used last, or since an earlier moment, and then for now.
        let since = [
            known.block.as_ref().map(|block| block.stored_ms),
            known.references.map(|references| references.unused_since_ms),
        ];
        let rows: Vec<_> =
            since.into_iter().flatten().map(|since_ms| keys::garbage(since_ms, self.id, &id)).collect();
        let rows = self.shared.meta.get_many_raw(&rows).await?;
        known.is_listed |= rows.iter().any(Option::is_some);
        for finding in references::check(self.id, id, &known, self.shared.now())? {
            let text = finding.text(store).await;
            let mut references = None;
            let writes = match finding.mend {
                Mend::References(new, also) if live.repair => {
                    let key = keys::references(self.id, &id);
                    let write = match &new {
                        Some(new) => meta::put(key, new)?,
                        None => meta::remove(key),
                    };
                    references = Some(new);
                    also.into_iter().chain([write]).collect()
                }
                // A row of the index of garbage; a block's own record is not for here.
                Mend::Rows(writes)
                    if live.repair && writes.iter().all(|write| write.key.first() == Some(&b'g')) =>
                {
                    writes
                }
                Mend::No => {
                    report.leave(text);
                    continue;
                }
                Mend::Rows(_) => {
                    report.leave(format!("{text}; {OFFLINE}"));
                    continue;
                }
                _ => {
                    report.leave(text);
                    continue;
                }
            };
            let ticket = self.shared.meta.submit(state.generation, writes)?;
            let counts = references.map(|new| (id, new)).into_iter().collect();
            state.submitted(&self.shared.cache, &BTreeMap::new(), &counts);
            let moment = self.moment(&state);
            ticket.await?;
            self.made_durable(moment);
            report.mend(text);
        }
        Ok(true)
    }
}
