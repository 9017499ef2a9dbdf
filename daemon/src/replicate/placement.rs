//! Which nodes a block belongs on: weighted rendezvous hashing, spread over zones.
//!
//! Every node gets a score for a block from a hash of both; the highest scores win. So a block's places follow from the
//! block and the nodes alone, shares follow the weights, and when a node comes or goes only the blocks move that win or lose it
//! (Thaler and Ravishankar, 1998; the weighted form is Schindelhauer and Schomaker's logarithmic method).

use std::collections::BTreeMap;
use tandemfs::id::{BlockId, NodeId};

/// A node that may be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub id: NodeId,
    /// Its zone.
    pub zone: String,
    /// Its share beside others; with 0 it is never chosen.
    pub weight: u32,
}

/// Chooses up to `count` of `candidates` for a block that is to have further copies beside those in the zones `taken`; the
/// best first. A zone is used again only when every zone of a candidate has been used as often.
pub fn choose(id: &BlockId, candidates: &[Candidate], taken: &[&str], count: usize) -> Vec<NodeId> {
    let mut uses: BTreeMap<&str, usize> = BTreeMap::new();
    for zone in taken {
        *uses.entry(zone).or_default() += 1;
    }
    let mut ranked: Vec<(f64, &Candidate)> = candidates
        .iter()
        .filter(|candidate| candidate.weight > 0)
        .map(|candidate| (score(id, candidate), candidate))
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.id.cmp(&b.1.id)));
    let mut chosen = Vec::new();
    while chosen.len() < count {
        // Of several with the least used zone, the first has the highest score.
        let Some(best) =
            (0..ranked.len()).min_by_key(|at| uses.get(ranked[*at].1.zone.as_str()).copied().unwrap_or(0))
        else {
            break;
        };
        let (_, candidate) = ranked.remove(best);
        *uses.entry(&candidate.zone).or_default() += 1;
        chosen.push(candidate.id);
    }
    chosen
}

/// A number that is high where the block belongs: exponentially distributed arrival times, divided by the weight, inverted.
fn score(id: &BlockId, candidate: &Candidate) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&id.0);
    hasher.update(&candidate.id.0.to_be_bytes());
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    // 53 bits, moved by half a step so that the logarithm is never that of 0 or 1.
    let uniform = ((u64::from_be_bytes(bytes) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    f64::from(candidate.weight) / -uniform.ln()
}

#[cfg(test)]
mod tests {
    use super::{Candidate, choose};
    use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};
    use std::collections::{BTreeMap, BTreeSet};
    use tandemfs::id::{BlockId, NodeId};

    fn node(id: u32, zone: &str, weight: u32) -> Candidate {
        Candidate { id: NodeId(id), zone: zone.to_owned(), weight }
    }

    fn block(number: u64) -> BlockId {
        BlockId(*blake3::hash(&number.to_be_bytes()).as_bytes())
    }

    #[test]
    fn shares_follow_the_weights() {
        let nodes: Vec<_> = [1, 2, 3, 4].map(|weight| node(weight, &format!("z{weight}"), weight)).to_vec();
        let mut first: BTreeMap<NodeId, u32> = BTreeMap::new();
        let blocks = 20_000;
        for number in 0..blocks {
            *first.entry(choose(&block(number), &nodes, &[], 2)[0]).or_default() += 1;
        }
        for node in &nodes {
            let expected = blocks as f64 * f64::from(node.weight) / 10.0;
            let found = f64::from(first[&node.id]);
            assert!((found - expected).abs() < expected * 0.06, "{node:?}: {found} of {expected}");
        }
    }

    #[test]
    fn a_taken_zone_is_avoided_and_weight_nought_is_never_chosen() {
        let nodes = [node(1, "a", 1), node(2, "a", 1), node(3, "b", 1), node(4, "c", 0)];
        for number in 0..200 {
            assert_eq!(choose(&block(number), &nodes, &["a"], 1), [NodeId(3)]);
            assert_eq!(choose(&block(number), &nodes, &[], 9).len(), 3);
        }
    }

    fn nodes() -> impl Strategy<Value = Vec<Candidate>> {
        prop::collection::vec((0_u32..4, 1_u32..5), 1..9).prop_map(|of| {
            of.into_iter()
                .zip(1..)
                .map(|((zone, weight), id)| node(id, &format!("z{zone}"), weight))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn no_two_copies_in_one_zone_while_zones_allow_it(nodes in nodes(), number in any::<u64>(), count in 1_usize..5) {
            let chosen = choose(&block(number), &nodes, &[], count);
            prop_assert_eq!(chosen.len(), count.min(nodes.len()));
            prop_assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), chosen.len());
            let zone_of = |id: &NodeId| &nodes.iter().find(|node| node.id == *id).unwrap().zone;
            let zones: BTreeSet<_> = chosen.iter().map(zone_of).collect();
            let all: BTreeSet<_> = nodes.iter().map(|node| &node.zone).collect();
            prop_assert_eq!(zones.len(), count.min(all.len()));
        }

        #[test]
        fn only_blocks_of_a_node_that_goes_move(number in any::<u64>(), count in 1_usize..4, size in 2_u32..8, gone in 0_u32..8) {
            let nodes: Vec<_> = (0..size).map(|id| node(id, &format!("z{id}"), 1 + id % 3)).collect();
            let left: Vec<_> = nodes.iter().filter(|node| node.id.0 != gone % size).cloned().collect();
            let before: BTreeSet<_> = choose(&block(number), &nodes, &[], count).into_iter().collect();
            let after: BTreeSet<_> = choose(&block(number), &left, &[], count).into_iter().collect();
            prop_assert!(before.iter().filter(|id| id.0 != gone % size).all(|id| after.contains(id)));
        }

        #[test]
        fn the_order_of_the_candidates_does_not_matter(mut nodes in nodes(), number in any::<u64>()) {
            let before = choose(&block(number), &nodes, &[], 3);
            nodes.reverse();
            prop_assert_eq!(before, choose(&block(number), &nodes, &[], 3));
        }
    }
}
