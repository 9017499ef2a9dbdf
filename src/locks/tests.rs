//! The table against a model that notes for each byte who has locked it.

use proptest::prelude::{Strategy, any, prop, proptest};

use super::{LOCKS_MAX, LockTable, Refusal, WAITS_MAX};
use crate::api::locks::{Lock, LockKind, OFFSET_MAX};
use crate::id::Ino;

const BYTES: usize = 12;
const OWNERS: usize = 3;
const FILE: Ino = Ino(7);

fn lock(start: u64, end: u64, kind: LockKind) -> Lock {
    Lock { start, end, kind, pid: 1 }
}

fn write(start: u64, end: u64) -> Lock {
    lock(start, end, LockKind::Write)
}

fn read(start: u64, end: u64) -> Lock {
    lock(start, end, LockKind::Read)
}

#[derive(Clone, Debug)]
enum Step {
    Set(usize, usize, usize, bool),
    Unlock(usize, usize, usize),
    Release(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (0..BYTES, 0..BYTES).prop_map(|(one, other)| (one.min(other), one.max(other)));
    let step =
        (0..OWNERS, range(), 0..8_u8, any::<bool>()).prop_map(
            |(owner, (start, end), what, write)| match what {
                0 => Step::Release(owner),
                1..=2 => Step::Unlock(owner, start, end),
                _ => Step::Set(owner, start, end, write),
            },
        );
    prop::collection::vec(step, 1..60)
}

/// By owner and byte.
type Model = [[Option<LockKind>; BYTES]; OWNERS];

fn stands_against(
    model: &Model,
    owner: usize,
    bytes: std::ops::RangeInclusive<usize>,
    kind: LockKind,
) -> bool {
    let others = (0..OWNERS).filter(|other| *other != owner);
    others
        .flat_map(|other| &model[other][bytes.clone()])
        .any(|held| held.is_some_and(|held| held == LockKind::Write || kind == LockKind::Write))
}

proptest! {
    #[test]
    fn each_byte_is_locked_as_in_the_model(steps in steps()) {
        let mut table = LockTable::default();
        let mut model: Model = Default::default();
        for step in steps {
            match step {
                Step::Set(owner, start, end, exclusive) => {
                    let kind = if exclusive { LockKind::Write } else { LockKind::Read };
                    let wanted = lock(start as u64, end as u64, kind);
                    let blocker = table.blocker(FILE, owner, wanted, None);
                    assert_eq!(blocker.is_some(), stands_against(&model, owner, start..=end, kind));
                    if let Some((holder, held)) = blocker {
                        assert_ne!(holder, owner);
                        assert!(held.start <= wanted.end && wanted.start <= held.end);
                    } else {
                        table.set(FILE, owner, wanted).unwrap();
                        model[owner][start..=end].fill(Some(kind));
                    }
                }
                Step::Unlock(owner, start, end) => {
                    table.unlock(FILE, owner, start as u64, end as u64).unwrap();
                    model[owner][start..=end].fill(None);
                }
                Step::Release(owner) => {
                    table.release(|other| other == owner);
                    model[owner].fill(None);
                }
            }
            let mut bytes: Model = Default::default();
            let mut runs = 0;
            for (ino, owner, held) in table.locks() {
                assert_eq!(ino, FILE);
                for byte in held.start..=held.end {
                    let byte = &mut bytes[owner][byte as usize];
                    assert!(byte.replace(held.kind).is_none(), "two locks of one owner overlap");
                }
                runs += 1;
            }
            assert_eq!(bytes, model);
            // As few locks as can say it: neighbours of one kind are one.
            let changes = |bytes: &[Option<LockKind>; BYTES]| {
                (0..BYTES).filter(|at| bytes[*at].is_some() && (*at == 0 || bytes[*at - 1] != bytes[*at])).count()
            };
            assert_eq!(runs, model.iter().map(changes).sum::<usize>());
            assert_eq!(table.is_locked(FILE), runs > 0);
        }
    }
}

#[test]
fn a_lock_may_reach_to_the_end_of_all_files() {
    let mut table = LockTable::default();
    table.set(FILE, 1, write(0, OFFSET_MAX)).unwrap();
    assert!(table.blocker(FILE, 2, read(OFFSET_MAX, OFFSET_MAX), None).is_some());
    table.unlock(FILE, 1, 10, OFFSET_MAX).unwrap();
    assert_eq!(table.locks().collect::<Vec<_>>(), [(FILE, 1, write(0, 9))]);
    assert_eq!(table.blocker(FILE, 2, read(10, OFFSET_MAX), None), None);
    assert_eq!(table.blocker(Ino(8), 2, write(0, OFFSET_MAX), None), None);
}

#[test]
fn a_table_has_an_end_and_a_refused_change_changes_nothing() {
    let mut table = LockTable::default();
    for number in 0..LOCKS_MAX as u64 {
        table.set(FILE, 1, write(number * 4, number * 4 + 2)).unwrap();
    }
    assert_eq!(table.set(FILE, 1, write(3, 3)), Ok(()), "three become one");
    table.set(FILE, 1, write(LOCKS_MAX as u64 * 8, LOCKS_MAX as u64 * 8)).unwrap();
    assert_eq!(table.set(Ino(8), 2, write(0, 0)), Err(Refusal::Full));
    assert_eq!(table.unlock(FILE, 1, 1, 1), Err(Refusal::Full), "one would become two");
    assert_eq!(table.locks().count(), LOCKS_MAX);
    table.unlock(FILE, 1, 0, 6).unwrap();
    table.set(Ino(8), 2, write(0, 0)).unwrap();
    for _ in 0..WAITS_MAX {
        table.wait(Ino(8), 3, write(0, 0), None).unwrap();
    }
    assert_eq!(table.wait(Ino(8), 3, write(0, 0), None), Err(Refusal::Full));
}

#[test]
fn who_has_waited_longer_comes_first() {
    let mut table = LockTable::default();
    table.set(FILE, 1, write(0, 9)).unwrap();
    let two = table.wait(FILE, 2, write(0, 9), None).unwrap();
    let three = table.wait(FILE, 3, write(5, 5), None).unwrap();
    assert_eq!(table.blocker(FILE, 2, write(0, 9), Some(two)), Some((1, write(0, 9))));
    table.unlock(FILE, 1, 5, 9).unwrap();
    // The one before cannot have its lock yet, so it stands in nobody's way.
    assert_eq!(table.blocker(FILE, 3, write(5, 5), Some(three)), None);
    table.unlock(FILE, 1, 0, 9).unwrap();
    assert_eq!(table.blocker(FILE, 2, write(0, 9), Some(two)), None);
    assert_eq!(table.blocker(FILE, 3, write(5, 5), Some(three)), Some((2, write(0, 9))));
    assert_eq!(table.blocker(FILE, 4, read(0, 0), None), Some((2, write(0, 9))), "it has not waited at all");
    assert_eq!(table.blocker(FILE, 4, read(11, 11), None), None);
    // Away for a moment and back: the place is the same.
    table.leave(3, two);
    assert!(table.blocker(FILE, 3, write(5, 5), Some(three)).is_some(), "that was not its place");
    table.leave(2, two);
    assert_eq!(table.blocker(FILE, 3, write(5, 5), Some(three)), None);
    assert_eq!(table.wait(FILE, 2, write(0, 9), Some(two)), Ok(two));
    assert!(table.blocker(FILE, 3, write(5, 5), Some(three)).is_some());
    assert_ne!(table.wait(FILE, 9, write(0, 9), Some(two)), Ok(two), "it is taken");
    assert_ne!(table.wait(FILE, 9, write(0, 9), Some(999)), Ok(999), "it was never given");
}

#[test]
fn a_circle_of_waits_is_a_deadlock_and_a_chain_is_none() {
    let mut table = LockTable::default();
    for owner in 0..4 {
        table.set(FILE, owner, write(owner, owner)).unwrap();
    }
    table.wait(FILE, 0, write(1, 1), None).unwrap();
    table.wait(FILE, 1, write(2, 2), None).unwrap();
    let third = table.wait(FILE, 2, write(3, 3), None).unwrap();
    assert_eq!(table.wait(FILE, 3, read(0, 0), None), Err(Refusal::Deadlock));
    assert_eq!(table.wait(FILE, 2, write(0, 1), None), Err(Refusal::Deadlock));
    // Not its own lock, nor one that nobody holds.
    table.wait(FILE, 3, write(3, 9), None).unwrap();
    table.leave(2, third);
    table.wait(FILE, 3, read(0, 0), None).unwrap();
    // Two that read and both want to write.
    table.release(|_| true);
    table.set(FILE, 1, read(0, 9)).unwrap();
    table.set(FILE, 2, read(0, 9)).unwrap();
    table.wait(FILE, 1, write(0, 9), None).unwrap();
    assert_eq!(table.wait(FILE, 2, write(0, 9), None), Err(Refusal::Deadlock));
}

#[test]
fn weakening_takes_from_a_lock_and_adds_to_none() {
    let mut table = LockTable::default();
    table.set(FILE, 1, write(2, 5)).unwrap();
    table.set(FILE, 2, write(7, 9)).unwrap();
    table.weaken(FILE, 1, write(0, 9)).unwrap();
    table.weaken(FILE, 1, read(4, 9)).unwrap();
    let mut left: Vec<_> = table.locks().map(|(_, owner, lock)| (owner, lock)).collect();
    left.sort_unstable_by_key(|(_, lock)| lock.start);
    assert_eq!(left, [(1, write(2, 3)), (1, read(4, 5)), (2, write(7, 9))]);
}
