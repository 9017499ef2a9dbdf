//! Volumes: load a working set, run the rules, commit; files as people see them; what is garbage.
//!
//! The only writer of trees and of reference counts.

mod blocks;
mod cache;
mod commit;
mod compaction;
mod delegations;
pub mod files;
mod fsck;
mod garbage;
mod homes;
mod joining;
mod load;
mod orphans;
mod packing;
mod reads;
mod references;
mod shares;
mod tally;
#[cfg(test)]
pub(crate) mod tests;
mod unsettled;
mod volume;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tandemfs::clock::Clock;
use tandemfs::id::{Ino, VolumeId};
use tandemfs::tree::Mutation;
use tandemfs::{Error, ErrorKind, Result};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

pub(crate) use self::commit::{Change, Mutations};
pub use self::compaction::Compacted;
pub use self::fsck::Live;
pub use self::garbage::Collected;
pub(crate) use self::load::after as key_after;
pub(crate) use self::volume::Volume;

use self::cache::RecordCache;
use self::commit::{REAP_CHUNKS, REAP_INODES};
use self::orphans::{Due, Orphans, locked};
use self::shares::Shares;
use self::volume::Shared;
use crate::meta::{self, Meta, keys, record};
use crate::replicate::Replicator;
use crate::sessions::audience::Audience;
use crate::settings::Settings;

/// How many records are read at once by what walks over all of a kind.
const PAGE: usize = 1000;
/// How long background work waits after it failed.
const PAUSE: Duration = Duration::from_secs(1);
/// Blocks of uploads that are being stored at once, over all uploads.
const UPLOAD_BLOCKS: usize = 16;

/// All volumes.
#[derive(Debug)]
pub struct Volumes {
    shared: Arc<Shared>,
    settings: Settings,
    shares: Shares,
    open: Mutex<BTreeMap<VolumeId, Arc<Volume>>>,
    opening: tokio::sync::Mutex<()>,
    due: Arc<Due>,
    random: Mutex<StdRng>,
    /// Limits what uploads keep in memory.
    upload_blocks: Arc<Semaphore>,
    /// How many downloads there are; the more, the less each keeps in memory.
    downloads: Arc<std::sync::atomic::AtomicUsize>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl Volumes {
    /// Whether what sessions answer before it is sent will find room.
    pub(crate) async fn has_room_for_queues(&self) -> bool {
        self.shared.has_room_for_queues().await
    }

    /// Takes up the volumes of a daemon, and what was left to do in the background.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn open(
        meta: Meta,
        replicator: Arc<Replicator>,
        settings: &Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>> {
        let cache = RecordCache::new(settings.metadata_cache_bytes);
        let audience = Arc::new(Audience::new(Duration::from_millis(settings.quiet_ms)));
        let records = records(&meta).await?;
        let shares = Shares::open(&meta, &records).await?;
        let volumes = Arc::new(Self {
            shared: Arc::new(Shared { meta, replicator, clock, cache, audience }),
            settings: settings.clone(),
            shares,
            open: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            due: Arc::default(),
            random: Mutex::new(StdRng::from_os_rng()),
            upload_blocks: Arc::new(Semaphore::new(UPLOAD_BLOCKS)),
            downloads: Arc::default(),
            workers: Mutex::default(),
        });
        let reaper = tokio::spawn(reap(Arc::downgrade(&volumes), Arc::clone(&volumes.due)));
        locked(&volumes.workers).push(reaper);
        for removed in records.into_iter().filter(|record| record.removed) {
            volumes.take_away(removed.id);
        }
        Ok(volumes)
    }

    /// Makes what is random repeat itself, for a simulation.
    pub fn seed(&self, seed: u64) {
        *locked(&self.random) = StdRng::seed_from_u64(seed);
    }

    /// Stops the background work; it is taken up again by the next run.
    pub fn stop(&self) {
        for worker in locked(&self.workers).drain(..) {
            worker.abort();
        }
    }

    /// The nodes behind them.
    #[cfg(test)]
    pub(crate) fn replicator(&self) -> &Arc<Replicator> {
        &self.shared.replicator
    }

    /// Who has sessions.
    pub(crate) fn audience(&self) -> &Arc<Audience> {
        &self.shared.audience
    }

    /// A volume.
    ///
    /// # Errors
    /// `NotFound`, also for one that is being removed.
    pub(crate) async fn volume(&self, id: VolumeId) -> Result<Arc<Volume>> {
        let volume = self.even_removed(id).await?;
        if volume.is_removed().await {
            return Err(Error::not_found("volume"));
        }
        Ok(volume)
    }

    async fn even_removed(&self, id: VolumeId) -> Result<Arc<Volume>> {
        if let Some(volume) = locked(&self.open).get(&id) {
            return Ok(Arc::clone(volume));
        }
        let _one_at_a_time = self.opening.lock().await;
        if let Some(volume) = locked(&self.open).get(&id) {
            return Ok(Arc::clone(volume));
        }
        let record: Option<record::Volume> = self.shared.meta.get(&keys::volume(id)).await?;
        let record = record.ok_or_else(|| Error::not_found("volume"))?;
        let orphans = Arc::new(Orphans::new(id, Arc::clone(&self.due)));
        let volume = Arc::new(Volume::new(&record, Arc::clone(&self.shared), orphans));
        let mut next = Ino(0);
        loop {
            let page = volume.stored_orphans(next, PAGE).await?;
            let Some(last) = page.last() else { break };
            next = Ino(last.0 + 1);
            page.into_iter().for_each(|ino| volume.orphans.recovered(ino));
        }
        locked(&self.open).insert(id, Arc::clone(&volume));
        Ok(volume)
    }

    /// The sessions of the run before have had their time to say which orphans they hold.
    ///
    /// # Errors
    /// Those of the engine; to be called again.
    pub(crate) async fn settle_recovered(&self) -> Result<()> {
        for record in records(&self.shared.meta).await? {
            let prefix = keys::orphan_prefix(record.id);
            let some =
                self.shared.meta.scan::<tandemfs::tree::Record>(&prefix, &keys::end_of(&prefix), 1).await?;
            if !some.is_empty() && !record.removed {
                self.even_removed(record.id).await?.orphans.settle_all();
            }
        }
        Ok(())
    }

    fn random_key(&self) -> [u8; 32] {
        let mut key = [0; 32];
        locked(&self.random).fill_bytes(&mut key);
        key
    }
}

/// The records of all volumes.
async fn records(meta: &Meta) -> Result<Vec<record::Volume>> {
    let prefix = b"l".to_vec();
    let (mut from, end) = (prefix.clone(), keys::end_of(&prefix));
    let mut all = Vec::new();
    loop {
        let page: Vec<(meta::Key, record::Volume)> = meta.scan(&from, &end, PAGE).await?;
        let Some((last, _)) = page.last() else { return Ok(all) };
        from = key_after(last);
        all.extend(page.into_iter().map(|(_, record)| record));
    }
}

/// Reaps orphans that nobody holds, in portions: many small ones in one commit, a large one in several.
async fn reap(volumes: std::sync::Weak<Volumes>, due: Arc<Due>) {
    let mut at_most = REAP_INODES;
    loop {
        let (id, inos) = due.next(at_most).await;
        let Some(volumes) = volumes.upgrade() else { return };
        let done = match volumes.volume(id).await {
            Ok(volume) => {
                let inos: Vec<Ino> = inos.iter().copied().filter(|ino| volume.orphans.is_due(*ino)).collect();
                if inos.is_empty() {
                    continue;
                }
                let chunks = REAP_CHUNKS / u32::try_from(inos.len()).unwrap_or(REAP_CHUNKS);
                let reap = inos.into_iter().map(|ino| Mutation::Reap { ino, chunks }).collect();
                volume.commit(Change { quiet: true, ..Change::own(reap) }).await.map(drop)
            }
            Err(error) => Err(error),
        };
        drop(volumes);
        match done {
            Ok(()) => at_most = REAP_INODES,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                log::warn!("reaping inodes {inos:?} of volume {id}: {error}");
                tokio::time::sleep(PAUSE).await;
                inos.into_iter().for_each(|ino| due.add(id, ino));
                // One that cannot be reaped must not keep the others from it.
                at_most = 1;
            }
        }
    }
}
