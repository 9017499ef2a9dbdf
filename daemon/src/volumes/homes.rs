//! Making and removing volumes, and quotas.

use std::collections::BTreeMap;
use std::sync::Arc;
use tandemfs::api::admin::Totals;
use tandemfs::id::{BlockId, Ino, UserId, VolumeId, VolumeKey};
use tandemfs::tree::{self, Key, Record, Usage};
use tandemfs::{Error, ErrorKind, Result};

use super::volume::Volume;
use super::{PAGE, PAUSE, Volumes};
use crate::meta::{self, Write, keys, record};

impl Volumes {
    /// A new home volume, and the writes that make it, to be committed together with the user.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn new_home(
        &self,
        owner: UserId,
        quota_bytes: Option<u64>,
        quota_files: Option<u64>,
    ) -> Result<(VolumeId, Vec<Write>)> {
        let (volume, writes) = self.new_volume(Some(owner), None, quota_bytes, quota_files).await?;
        Ok((volume.id, writes))
    }

    /// A new volume, a user's home or a shared one, and the writes that make it.
    pub(super) async fn new_volume(
        &self,
        owner: Option<UserId>,
        name: Option<String>,
        quota_bytes: Option<u64>,
        quota_files: Option<u64>,
    ) -> Result<(record::Volume, Vec<Write>)> {
        let id = VolumeId(self.shared.meta.next_numbers("volume", 1).await?);
        let now = self.shared.now();
        let volume = record::Volume {
            id,
            name,
            owner,
            key: VolumeKey(self.random_key()),
            created: now,
            removed: false,
        };
        let usage = Usage { quota_bytes, quota_inodes: quota_files, ..Usage::default() };
        let root = tree::new_root(now, 0, 0);
        let writes = vec![
            meta::put(keys::volume(id), &volume)?,
            meta::put(keys::tree(id, &Key::Usage), &Record::Usage(usage))?,
            meta::put(keys::tree(id, &Key::Inode(Ino::ROOT)), &Record::Inode(Box::new(root)))?,
        ];
        Ok((volume, writes))
    }

    /// What a volume uses and may use.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable`.
    pub async fn usage(&self, id: VolumeId) -> Result<Usage> {
        let (_, usage) = self.volume(id).await?.usage().await?;
        Ok(usage)
    }

    /// Sets a volume's quota. What is used already stays, also beyond it.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable`.
    pub async fn set_quota(
        &self,
        id: VolumeId,
        quota_bytes: Option<u64>,
        quota_files: Option<u64>,
    ) -> Result<()> {
        self.volume(id).await?.set_quota(quota_bytes, quota_files).await
    }

    /// Removes a volume: nobody can use it when this returns; its data goes in the background.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable`.
    pub async fn remove(self: &Arc<Self>, id: VolumeId) -> Result<()> {
        self.remove_with(id, Vec::new()).await
    }

    /// The same, with more writes in the same commit.
    pub(super) async fn remove_with(self: &Arc<Self>, id: VolumeId, mut writes: Vec<Write>) -> Result<()> {
        let volume = self.volume(id).await?;
        let mut state = volume.lock().await;
        let key = keys::volume(id);
        let record: Option<record::Volume> = self.shared.meta.get(&key).await?;
        let record = record.ok_or_else(|| Error::not_found("volume"))?;
        writes.push(meta::put(key, &record::Volume { removed: true, ..record })?);
        self.shared.meta.commit(Vec::new(), writes).await?;
        state.removed = true;
        drop(state);
        self.shared.audience.end_volume(id);
        self.take_away(id);
        Ok(())
    }

    /// Takes a removed volume's records away in the background, until it is done.
    pub(super) fn take_away(self: &Arc<Self>, id: VolumeId) {
        let volumes = Arc::downgrade(self);
        let worker = tokio::spawn(async move {
            loop {
                let Some(volumes) = volumes.upgrade() else { return };
                let done = volumes.take_some_away(id).await;
                drop(volumes);
                match done {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(error) if error.kind() == ErrorKind::NotFound => return,
                    Err(error) => {
                        log::warn!("taking volume {id} away: {error}");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        });
        let mut workers = super::orphans::locked(&self.workers);
        workers.retain(|worker| !worker.is_finished());
        workers.push(worker);
    }

    /// Whether nothing is left.
    async fn take_some_away(&self, id: VolumeId) -> Result<bool> {
        let volume = self.even_removed(id).await?;
        if volume.take_some_away().await? {
            self.shared.meta.commit(Vec::new(), vec![meta::remove(keys::volume(id))]).await?;
            super::orphans::locked(&self.open).remove(&id);
            return Ok(true);
        }
        Ok(false)
    }

    /// What all volumes use together. Users are counted elsewhere.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn totals(&self) -> Result<Totals> {
        let sessions = u64::try_from(self.shared.audience.len()).unwrap_or(u64::MAX);
        let mut totals = Totals { sessions, ..Totals::default() };
        let volumes: Vec<_> =
            super::records(&self.shared.meta).await?.into_iter().filter(|record| !record.removed).collect();
        for some in volumes.chunks(PAGE) {
            let keys: Vec<_> = some.iter().map(|record| keys::tree(record.id, &Key::Usage)).collect();
            for usage in self.shared.meta.get_many::<Record>(&keys).await? {
                totals.volumes += 1;
                if let Some(Record::Usage(usage)) = usage {
                    totals.inodes += usage.inodes;
                    totals.bytes += usage.bytes;
                }
            }
        }
        Ok(totals)
    }
}

impl Volume {
    async fn set_quota(self: &Arc<Self>, bytes: Option<u64>, inodes: Option<u64>) -> Result<()> {
        let mut state = self.lock_returned().await?;
        let usage = match self.record(&state, &Key::Usage).await? {
            Some(Record::Usage(usage)) => usage,
            _ => Usage::default(),
        };
        let usage = Usage { quota_bytes: bytes, quota_inodes: inodes, ..usage };
        let record = Record::Usage(usage);
        let write = meta::put(keys::tree(self.id, &Key::Usage), &record)?;
        let records = BTreeMap::from([(Key::Usage, Some(record))]);
        let submitted = self.submit_records(&mut state, vec![write], records)?;
        drop(state);
        self.finish(submitted).await.map(drop)
    }

    /// Takes one portion of a removed volume's records away; whether none is left.
    async fn take_some_away(&self) -> Result<bool> {
        let mut state = self.lock().await;
        let prefix = keys::tree_prefix(self.id);
        let page: Vec<(meta::Key, Record)> =
            self.shared.meta.scan(&prefix, &keys::end_of(&prefix), PAGE).await?;
        if page.is_empty() {
            return Ok(true);
        }
        let mut references: BTreeMap<BlockId, i64> = BTreeMap::new();
        let mut writes = Vec::new();
        for (key, record) in page {
            if let Record::Chunk(chunk) = record {
                for extent in chunk.0 {
                    *references.entry(extent.block).or_default() -= 1;
                }
            }
            writes.push(meta::remove(key));
        }
        let (counts, counted) = self.count_references(&state, &references).await?;
        writes.extend(counted);
        let ticket = self.shared.meta.submit(state.generation, writes)?;
        state.submitted(&self.shared.cache, &BTreeMap::new(), &counts);
        let moment = self.moment(&state);
        // Under the lock to the end: the next portion reads what is left from the engine.
        ticket.await?;
        self.made_durable(moment);
        Ok(false)
    }
}
