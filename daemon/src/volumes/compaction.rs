//! Packs of which less than half is in use any more: what is left in them goes into new ones, and they are garbage.

use std::sync::Arc;

use tandemfs::id::{BlockId, VolumeId};
use tandemfs::{ErrorKind, Result};

use super::Volumes;
use super::joining::SEAMS_MANY;
use super::volume::Volume;
use crate::replicate::{Load, PAGE, Packed, Sum, waste};

/// What compaction has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Records of blocks that were looked at.
    pub looked_at: u64,
    /// Small blocks that were moved, and the packs that were made and emptied.
    pub packed: Packed,
    /// Parts of files that were joined.
    pub joined: u64,
}

/// What is on its way into a pack.
struct Loading {
    volume: Arc<Volume>,
    load: Load,
}

impl Volumes {
    /// Packs of which less than half is in use, and the bytes in them that are not.
    pub fn half_dead(&self) -> Sum {
        self.shared.replicator.census().half_dead()
    }

    /// Joins the pieces of files, packs the blocks that lie in the metadata, rewrites packs of which less than half is in use, and tells every
    /// now and then what it has done so far.
    ///
    /// # Errors
    /// Those of the engine and of storing blocks; what was done before stays so.
    pub async fn compact(&self, tell: &(dyn Fn(Compacted) + Send + Sync)) -> Result<Compacted> {
        let none = Compacted::default();
        let joined = self.join(SEAMS_MANY, &|joined| tell(Compacted { joined, ..none })).await?;
        let blocks = self.pack().await?;
        let with_these = |done: Compacted| {
            let packed = Packed { blocks: done.packed.blocks + blocks, ..done.packed };
            Compacted { packed, joined, ..done }
        };
        Ok(with_these(self.compact_packs(&|done| tell(with_these(done))).await?))
    }

    /// Rewrites packs of which less than half is in use, and tells every now and then what it has done so far. A pack that cannot be read
    /// stays as it is.
    ///
    /// # Errors
    /// Those of the engine and of storing a pack; what was rewritten before stays so.
    pub async fn compact_packs(&self, tell: &(dyn Fn(Compacted) + Send + Sync)) -> Result<Compacted> {
        let mut done = Compacted::default();
        let mut after = None;
        let mut loading: Option<Loading> = None;
        loop {
            let page = self.shared.replicator.page(after.as_ref()).await?;
            let packed = &mut done.packed;
            for (id, pack, block) in &page {
                if waste(block).is_none() {
                    continue;
                }
                if loading.as_ref().is_some_and(|loading| loading.volume.id != *id) {
                    *packed += self.unload(loading.take()).await?;
                }
                if loading.is_none() {
                    let Some(volume) = self.compactable(*id).await? else { continue };
                    loading = Some(Loading { volume, load: Load::default() });
                }
                if let Some(loading) = &mut loading {
                    *packed += self.add(loading, *pack, block.size).await?;
                }
            }
            let last = page.last().filter(|_| page.len() == PAGE).map(|(volume, id, _)| (*volume, *id));
            if last.is_none() {
                *packed += self.unload(loading.take()).await?;
            }
            done.looked_at += page.len() as u64;
            tell(done);
            match last {
                Some(last) => after = Some(last),
                None => return Ok(done),
            }
        }
    }

    /// A volume, unless it is being removed: all in it is garbage then.
    pub(super) async fn compactable(&self, id: VolumeId) -> Result<Option<Arc<Volume>>> {
        match self.volume(id).await {
            Ok(volume) => Ok(Some(volume)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes what lies in a pack, and stores a new one whenever that is full.
    async fn add(&self, loading: &mut Loading, pack: BlockId, size: u32) -> Result<Packed> {
        let volume = &loading.volume;
        let mut packed = Packed::default();
        let found = match self.shared.replicator.unpack(volume.id, &volume.key, pack, size).await {
            Ok(found) => found,
            Err(error) if is_about_one(error.kind()) => {
                log::warn!("pack {pack} of volume {} is not compacted: {error}", volume.id);
                return Ok(packed);
            }
            Err(error) => return Err(error),
        };
        for block in found {
            if !loading.load.has_room(block.data.len()) {
                let load = std::mem::take(&mut loading.load);
                packed += self.shared.replicator.pack(volume.id, volume.key.clone(), load).await?;
            }
            loading.load.add(block);
        }
        Ok(packed)
    }

    async fn unload(&self, loading: Option<Loading>) -> Result<Packed> {
        let Some(Loading { volume, load }) = loading else { return Ok(Packed::default()) };
        self.shared.replicator.pack(volume.id, volume.key.clone(), load).await
    }
}

/// Whether an error is about one pack or file, and keeps no other from being rewritten.
pub(super) fn is_about_one(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Corrupt
            | ErrorKind::NotFound
            | ErrorKind::OutOfRange
            | ErrorKind::Unavailable
            | ErrorKind::Busy
            | ErrorKind::Stale
    )
}
