//! Exact counts of blocks, kept by the set of nodes that their records name.
//!
//! There are few different sets, so that every question about nodes in any states is answered from a handful of numbers.

use std::collections::BTreeMap;
use tandemfs::api::files::BlockCounts;
use tandemfs::id::NodeId;

use super::pack::waste;
use crate::meta::record::{Block, Place};

/// Blocks and bytes of data in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Blocks.
    pub blocks: u64,
    /// Bytes of data.
    pub bytes: u64,
}

impl Sum {
    fn add(&mut self, block: &Block) {
        self.blocks += 1;
        self.bytes += u64::from(block.size);
    }

    fn remove(&mut self, block: &Block) {
        self.blocks = self.blocks.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(u64::from(block.size));
    }
}

/// The counts. Blocks that are being deleted are not in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Of objects.
    sets: BTreeMap<Vec<NodeId>, Sum>,
    /// Of blocks that lie in the metadata.
    inline: Sum,
    /// Of packs of which less than half is in use: the rest of their bytes.
    half_dead: Sum,
}

impl Census {
    /// Takes note that a block's record was `old` and is `new`.
    pub fn change(&mut self, old: Option<&Block>, new: Option<&Block>) {
        if let Some(waste) = old.and_then(waste) {
            self.half_dead.blocks = self.half_dead.blocks.saturating_sub(1);
            self.half_dead.bytes = self.half_dead.bytes.saturating_sub(u64::from(waste));
        }
        if let Some(waste) = new.and_then(waste) {
            self.half_dead.blocks += 1;
            self.half_dead.bytes += u64::from(waste);
        }
        if let Some(old) = old.filter(|block| !block.deleting) {
            match old.place {
                Place::Object => {
                    if let Some(sum) = self.sets.get_mut(&old.replicas) {
                        sum.remove(old);
                        if sum.blocks == 0 {
                            self.sets.remove(&old.replicas);
                        }
                    }
                }
                Place::Inline => self.inline.remove(old),
                // Its bytes are counted with its pack.
                Place::Pack { .. } => {}
            }
        }
        if let Some(new) = new.filter(|block| !block.deleting) {
            match new.place {
                Place::Object => self.sets.entry(new.replicas.clone()).or_default().add(new),
                Place::Inline => self.inline.add(new),
                Place::Pack { .. } => {}
            }
        }
    }

    /// Blocks that lie in the metadata.
    pub fn inline(&self) -> Sum {
        self.inline
    }

    /// Packs of which less than half is in use, and the bytes in them that are not.
    pub fn half_dead(&self) -> Sum {
        self.half_dead
    }

    /// All blocks, those with fewer than `wanted` copies on nodes that `is_healthy`, and those without any.
    pub fn counts(&self, wanted: usize, is_healthy: impl Fn(NodeId) -> bool) -> BlockCounts {
        let mut counts = BlockCounts { total: self.inline.blocks, ..BlockCounts::default() };
        for (nodes, sum) in &self.sets {
            let healthy = nodes.iter().filter(|node| is_healthy(**node)).count();
            counts.total += sum.blocks;
            counts.under_replicated += if healthy < wanted { sum.blocks } else { 0 };
            counts.lost += if healthy == 0 { sum.blocks } else { 0 };
        }
        counts
    }

    /// What the records place on a node.
    pub fn on(&self, node: NodeId) -> Sum {
        self.sum(|nodes| nodes.contains(&node))
    }

    /// The blocks whose set of nodes is of a kind.
    pub fn sum(&self, of: impl Fn(&[NodeId]) -> bool) -> Sum {
        self.sets.iter().filter(|(nodes, _)| of(nodes)).fold(Sum::default(), |total, (_, sum)| Sum {
            blocks: total.blocks + sum.blocks,
            bytes: total.bytes + sum.bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Census, Sum};
    use crate::meta::record::Block;
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};
    use std::collections::BTreeMap;
    use tandemfs::id::NodeId;

    proptest! {
        #[test]
        fn counts_are_those_of_a_recount(changes in prop::collection::vec((0_u8..12, any::<Option<(u8, u16, bool)>>()), 0..200)) {
            let mut census = Census::default();
            let mut blocks: BTreeMap<u8, Block> = BTreeMap::new();
            for (id, new) in changes {
                let new = new.map(|(nodes, size, deleting)| Block {
                    size: u32::from(size),
                    replicas: (0..4).filter(|bit| nodes >> bit & 1 == 1).map(NodeId).collect(),
                    deleting,
                    ..Block::default()
                });
                census.change(blocks.get(&id), new.as_ref());
                match new {
                    Some(new) => blocks.insert(id, new),
                    None => blocks.remove(&id),
                };
            }
            let live: Vec<&Block> = blocks.values().filter(|block| !block.deleting).collect();
            let healthy = |node: NodeId| node.0 != 2;
            let copies = |block: &&&Block| block.replicas.iter().filter(|node| healthy(**node)).count();
            let counts = census.counts(2, healthy);
            prop_assert_eq!(counts.total, live.len() as u64);
            prop_assert_eq!(counts.under_replicated, live.iter().filter(|block| copies(block) < 2).count() as u64);
            prop_assert_eq!(counts.lost, live.iter().filter(|block| copies(block) == 0).count() as u64);
            for node in (0..4).map(NodeId) {
                let on: Vec<_> = live.iter().filter(|block| block.replicas.contains(&node)).collect();
                let bytes = on.iter().map(|block| u64::from(block.size)).sum();
                prop_assert_eq!(census.on(node), Sum { blocks: on.len() as u64, bytes });
            }
        }
    }
}
