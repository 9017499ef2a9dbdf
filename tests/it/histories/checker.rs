//! Decides whether a history is linearizable: whether each call can be given one moment between its start and its end, so that all
//! answers are right when the calls happen one after the other in the order of these moments.
//!
//! M. Herlihy and J. Wing, "Linearizability: a correctness condition for concurrent objects" (1990); objects are checked one by one, by
//! its theorem of locality. The search is that of J. Wing and C. Gong, "Testing and verifying concurrent objects" (1993), with what G. Lowe
//! added in "Testing for linearizability" (2017): a pair of what has happened and the state that it led to is looked into once, and
//! a call is given its moment only when an answer that has come needs it. So only calls under way and the states that are possible are
//! in memory, and the time that it takes grows with the length of the history, however long that is.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

use super::history::Operation;

/// What an object does when it is used by one client after the other.
pub trait Model: Clone + Debug + Eq + Hash {
    type Call: Clone + Debug;
    type Answer: Clone + Debug + PartialEq;

    /// What becomes of the object with a call that is answered so, or, without an answer, whatever is answered. Nothing if
    /// the object, as it is, would not answer so.
    fn step(&self, call: &Self::Call, answer: Option<&Self::Answer>) -> Option<Self>;

    /// What else may become of the object with the call by a fault of the kernel that is known and cannot be mended here.
    fn step_of_kernel(&self, _: &Self::Call, _: Option<&Self::Answer>) -> Option<Self> {
        None
    }

    /// Whether a call leaves the object as it is.
    fn is_read(call: &Self::Call) -> bool;
}

/// Calls that can be under way at once, those that may have happened included.
const UNDER_WAY_MAX: u32 = 128;

/// A set of calls under way, by their slots.
type Set = u128;

/// A part of a history that cannot be explained.
#[derive(Debug)]
pub struct Violation<M: Model> {
    /// What the object may have been when no call was under way for the last time.
    pub before: Vec<M>,
    /// All calls from then on until the answer that fits nothing, which is that of the last; without reads that do not matter.
    pub window: Vec<Operation<M>>,
}

/// Whether the known faults of the kernel are allowed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    Right,
    Faulty,
}

/// Checks the history of an object, in any order.
///
/// # Errors
/// The first part that is not linearizable.
pub fn check<M: Model>(
    initial: &M,
    operations: &[Operation<M>],
    kernel: Kernel,
) -> Result<(), Box<Violation<M>>> {
    let run = |initial, operations: &_| run(initial, operations, kernel);
    let Err((mut before, mut window)) = run(vec![initial.clone()], operations) else { return Ok(()) };
    // A history that is right stays so when a read is taken out of it, so what is left tells as much.
    let mut position = 0;
    while position < window.len() {
        let removed = window.remove(position);
        match run(before.clone(), &window) {
            Err((states, rest)) if M::is_read(&removed.call) => (before, window) = (states, rest),
            _ => {
                window.insert(position, removed);
                position += 1;
            }
        }
    }
    Err(Box::new(Violation { before, window }))
}

/// The states at the last moment of rest, and the calls from then on.
type Failure<M> = (Vec<M>, Vec<Operation<M>>);

fn run<M: Model>(initial: Vec<M>, operations: &[Operation<M>], kernel: Kernel) -> Result<(), Failure<M>> {
    // What starts at the very moment of an end is taken to overlap.
    let mut events: Vec<_> = operations.iter().enumerate().map(|(at, one)| (one.start, false, at)).collect();
    events.extend(operations.iter().enumerate().map(|(at, one)| (one.end, true, at)));
    events.sort_unstable();
    let mut under_way: Vec<Option<usize>> = Vec::new();
    // What has happened of the calls under way, and what the object is then: all that is possible.
    let mut possible: HashSet<(Set, M)> = initial.into_iter().map(|state| (0, state)).collect();
    let (mut before, mut begun) = (Vec::new(), Vec::new());
    for (_, ends, at) in events {
        if !ends {
            if under_way.iter().all(Option::is_none) {
                before = possible.iter().map(|(_, state)| state.clone()).collect();
                begun.clear();
            }
            begun.push(at);
            let free = under_way.iter().position(Option::is_none).unwrap_or_else(|| {
                under_way.push(None);
                under_way.len() - 1
            });
            assert!(free < UNDER_WAY_MAX as usize, "too many calls are under way");
            under_way[free] = Some(at);
            continue;
        }
        let slot = under_way.iter().position(|other| *other == Some(at)).expect("it has started");
        let has_happened = happened(&possible, slot, &under_way, operations, kernel);
        possible = if operations[at].answer.is_some() {
            has_happened
        } else {
            // It has happened by now, or it never will.
            possible.into_iter().filter(|(set, _)| set & (1 << slot) == 0).chain(has_happened).collect()
        };
        under_way[slot] = None;
        if possible.is_empty() {
            begun.retain(|other| *other != at);
            begun.push(at);
            return Err((before, begun.into_iter().map(|at| operations[at].clone()).collect()));
        }
    }
    Ok(())
}

/// All that is possible when the call in `slot` has happened, others under way before it or not.
fn happened<M: Model>(
    possible: &HashSet<(Set, M)>,
    slot: usize,
    under_way: &[Option<usize>],
    operations: &[Operation<M>],
    kernel: Kernel,
) -> HashSet<(Set, M)> {
    let mut done = HashSet::new();
    let mut left: Vec<(Set, M)> = possible.iter().cloned().collect();
    let mut seen = possible.clone();
    while let Some((set, state)) = left.pop() {
        if set & (1 << slot) != 0 {
            done.insert((set & !(1 << slot), state));
            continue;
        }
        for (other, at) in under_way.iter().enumerate() {
            let Some(at) = *at else { continue };
            if set & (1 << other) != 0 {
                continue;
            }
            let Operation { call, answer, .. } = &operations[at];
            let right = state.step(call, answer.as_ref());
            let faulty = state.step_of_kernel(call, answer.as_ref()).filter(|_| kernel == Kernel::Faulty);
            for after in right.into_iter().chain(faulty) {
                let next = (set | 1 << other, after);
                if seen.insert(next.clone()) {
                    left.push(next);
                }
            }
        }
    }
    done
}
