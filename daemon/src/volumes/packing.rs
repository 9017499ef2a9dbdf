//! Which blocks leave the metadata for packs: those that were stored together come to lie side by side.

use bytes::Bytes;
use serde_bytes::ByteBuf;
use tandemfs::id::BlockId;
use tandemfs::{ErrorKind, Result};

use super::volume::Volume;
use super::{Volumes, key_after, records};
use crate::meta::keys;
use crate::meta::record::{Block, Place};
use crate::replicate::{Load, Moving, Packed};

/// Blocks that are put into order and packed together.
const WINDOW: usize = 4096;
/// Blocks whose bytes are read at once.
const STEP: usize = 64;

impl Volumes {
    /// Bytes of blocks that lie in the metadata.
    pub fn inline_bytes(&self) -> u64 {
        self.shared.replicator.census().inline().bytes
    }

    /// Packs the blocks that lie in the metadata, and says how many.
    ///
    /// # Errors
    /// Those of the engine and of the nodes; what was packed before stays so.
    pub async fn pack(&self) -> Result<u64> {
        let mut packed = 0;
        for record in records(&self.shared.meta).await? {
            match self.volume(record.id).await {
                Ok(volume) => packed += volume.pack().await?,
                // It is being removed.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(packed)
    }
}

impl Volume {
    async fn pack(&self) -> Result<u64> {
        let (mut from, end) = keys::inline_of_volume(self.id);
        let mut packed = 0;
        loop {
            let mut window: Vec<(u64, BlockId)> = Vec::new();
            let mut is_last = false;
            while window.len() < WINDOW && !is_last {
                let rows = self.shared.meta.scan_raw(&from, &end, STEP).await?;
                is_last = rows.len() < STEP;
                if let Some((last, _)) = rows.last() {
                    from = key_after(last);
                }
                let ids: Vec<BlockId> = rows.iter().filter_map(|(key, _)| keys::inline_id(key)).collect();
                drop(rows);
                let records: Vec<_> = ids.iter().map(|id| keys::block(self.id, id)).collect();
                let records = self.shared.meta.get_many::<Block>(&records).await?;
                let found = ids.into_iter().zip(records).filter_map(|(id, record)| {
                    let block = record.filter(|block| block.place == Place::Inline && !block.deleting);
                    block.map(|block| (block.stored_ms, id))
                });
                window.extend(found);
            }
            window.sort_unstable();
            packed += self.pack_window(&window).await?;
            if is_last {
                return Ok(packed);
            }
        }
    }

    async fn pack_window(&self, window: &[(u64, BlockId)]) -> Result<u64> {
        let pack = async |load| self.shared.replicator.pack(self.id, self.key.clone(), load).await;
        let mut load = Load::default();
        let mut packed = Packed::default();
        for some in window.chunks(STEP) {
            let stored: Vec<_> = some.iter().map(|(_, id)| keys::inline(self.id, id)).collect();
            let data = self.shared.meta.get_many::<ByteBuf>(&stored).await?;
            for ((_, id), data) in some.iter().zip(data) {
                let Some(data) = data else { continue };
                if !load.has_room(data.len()) {
                    packed += pack(std::mem::take(&mut load)).await?;
                }
                load.add(Moving { id: *id, from: Place::Inline, data: Bytes::from(data.into_vec()) });
            }
        }
        packed += pack(load).await?;
        Ok(packed.blocks)
    }
}
