//! Which changes are sent together, and as what.

use std::collections::BTreeSet;

use tandemfs::api::fs::{BATCH_INLINE_MAX, BATCH_MUTATIONS_MAX, Batch, InlineBlock};
use tandemfs::id::Ino;

use super::log::Queued;

/// How many of some changes fit into one batch, from the first on; at least one if there is one.
pub(super) fn fitting<'a>(changes: impl IntoIterator<Item = &'a Queued>) -> usize {
    let (mut mutations, mut bytes, mut count) = (0, 0, 0);
    let mut held: BTreeSet<Ino> = BTreeSet::new();
    for change in changes {
        mutations += change.mutations.len();
        bytes += change.small_bytes();
        if count > 0
            && (mutations > BATCH_MUTATIONS_MAX
                || held.len() + change.held.len() > BATCH_MUTATIONS_MAX
                || bytes > BATCH_INLINE_MAX)
        {
            break;
        }
        held.extend(&change.held);
        count += 1;
    }
    count
}

/// A batch of changes, which fit, without its number.
pub(super) fn batch_of<'a>(changes: impl IntoIterator<Item = &'a Queued>) -> Batch {
    let mut batch = Batch {
        sequence: 0,
        mutations: Vec::new(),
        held: Vec::new(),
        delegates: Vec::new(),
        blocks: Vec::new(),
        brief: true,
    };
    let mut held = BTreeSet::new();
    for change in changes {
        batch.mutations.extend(change.mutations.iter().cloned());
        batch.held.extend(change.held.iter().copied().filter(|ino| held.insert(*ino)));
        let blocks = change.blocks.iter();
        batch.blocks.extend(blocks.map(|block| InlineBlock { id: block.id, data: block.data.to_vec() }));
    }
    batch
}
