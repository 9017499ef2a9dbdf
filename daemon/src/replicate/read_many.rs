//! Reading many small blocks at once, as who reads ahead of a program wants them: those that lie side by side in a pack are one read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::iter;
use tandemfs::Result;
use tandemfs::id::{BlockId, VolumeId};

use super::Replicator;
use crate::meta::keys;
use crate::meta::record::{Block, Place};

/// Reads of packs and objects that are under way at once.
const READS: usize = 8;
/// Bytes between two blocks of a pack that are read with them rather than left out.
const GAP: u32 = 64 << 10;

/// Blocks that are read as one: all of a range of an object.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    object: BlockId,
    range: Range<u32>,
    /// The blocks, and where their bytes begin in the object.
    blocks: Vec<(BlockId, Range<u32>)>,
}

impl Replicator {
    /// The bytes of those of some blocks that can be had, the first ones up to about `bytes_max`. What is damaged or cannot be reached is left
    /// out: who needs it asks for it alone.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn get_many(
        self: &Arc<Self>,
        volume: VolumeId,
        ids: &[BlockId],
        bytes_max: usize,
    ) -> Result<Vec<(BlockId, Bytes)>> {
        let mut room = bytes_max;
        let (mut inline, mut placed) = (Vec::new(), Vec::new());
        for (id, block) in ids.iter().zip(self.blocks(volume, ids).await?) {
            let Some(block) = block else { continue };
            let Some(left) = room.checked_sub(block.size as usize) else { break };
            room = left;
            match block.place {
                Place::Inline => inline.push(*id),
                _ => placed.push((*id, block)),
            }
        }
        let keys: Vec<_> = inline.iter().map(|id| keys::inline(volume, id)).collect();
        let stored = self.meta.get_many::<serde_bytes::ByteBuf>(&keys).await?;
        let found = inline.into_iter().zip(stored);
        let mut found: Vec<_> =
            found.filter_map(|(id, data)| Some((id, Bytes::from(data?.into_vec())))).collect();
        let reads = iter(runs(placed)).map(|run| async move {
            // A failure shows when the block is asked for alone.
            let data = self.get(volume, run.object, run.range.clone()).await.unwrap_or_default();
            let cut = |range: &Range<u32>| {
                let at = (range.start - run.range.start) as usize..(range.end - run.range.start) as usize;
                (at.end <= data.len()).then(|| data.slice(at))
            };
            run.blocks.iter().filter_map(|(id, range)| Some((*id, cut(range)?))).collect::<Vec<_>>()
        });
        let mut reads = std::pin::pin!(reads.buffer_unordered(READS));
        while let Some(blocks) = reads.next().await {
            found.extend(blocks);
        }
        Ok(found)
    }
}

/// What to read so that all of these are read.
fn runs(blocks: Vec<(BlockId, Block)>) -> Vec<Run> {
    let mut packs: BTreeMap<BlockId, Vec<(u32, u32, BlockId)>> = BTreeMap::new();
    let mut runs = Vec::new();
    for (id, block) in blocks {
        match block.place {
            Place::Pack { block: pack, offset } => {
                let end = offset.saturating_add(block.size);
                packs.entry(pack).or_default().push((offset, end, id));
            }
            _ => runs.push(Run { object: id, range: 0..block.size, blocks: vec![(id, 0..block.size)] }),
        }
    }
    for (pack, mut members) in packs {
        members.sort_unstable();
        let first = runs.len();
        for (start, end, id) in members {
            match runs[first..].last_mut() {
                Some(run) if start.saturating_sub(run.range.end) <= GAP => {
                    run.range.end = run.range.end.max(end);
                    run.blocks.push((id, start..end));
                }
                _ => runs.push(Run { object: pack, range: start..end, blocks: vec![(id, start..end)] }),
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::{GAP, Run, runs};
    use crate::meta::record::{Block, Place};
    use tandemfs::id::BlockId;

    #[test]
    fn neighbours_in_a_pack_are_one_read_and_all_else_is_its_own() {
        let id = |number| BlockId([number; 32]);
        let packed =
            |offset, size| Block { size, place: Place::Pack { block: id(9), offset }, ..Block::default() };
        let far = 300 + GAP + 1;
        let object = Block { size: 7, place: Place::Object, ..Block::default() };
        let found = runs(vec![
            (id(1), packed(200, 100)),
            (id(2), packed(0, 50)),
            (id(3), object),
            (id(4), packed(far, 10)),
        ]);
        let run = |object, range, blocks| Run { object, range, blocks };
        assert_eq!(
            found,
            [
                run(id(3), 0..7, vec![(id(3), 0..7)]),
                run(id(9), 0..300, vec![(id(2), 0..50), (id(1), 200..300)]),
                run(id(9), far..far + 10, vec![(id(4), far..far + 10)]),
            ]
        );
    }
}
