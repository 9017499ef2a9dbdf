//! Histories that are right and histories that are wrong, for the checker.

use std::time::Duration;

use rustix::io::Errno;

use super::checker::{Kernel, Model, check};
use super::history::Operation;
use super::models::{
    Add, Counter, Directories, DirectoryAnswer, DirectoryCall, Kind, Lock, LockAnswer, LockCall, Log,
    LogAnswer, LogCall, Register, RegisterAnswer, RegisterCall, Was,
};

/// A call from `start` to `end`.
fn call<M: Model>(start: u64, end: u64, call: M::Call, answer: M::Answer) -> Operation<M> {
    Operation { answer: Some(answer), ..unknown(start, end, call) }
}

/// One that nobody knows the outcome of, and that can happen until `end`.
fn unknown<M: Model>(start: u64, end: u64, call: M::Call) -> Operation<M> {
    let (start, end) = (Duration::from_micros(start), Duration::from_micros(end));
    Operation { client: 0, mount: 0, call, answer: None, start, end }
}

#[track_caller]
fn right<M: Model + Default>(operations: &[Operation<M>]) {
    if let Err(violation) = check(&M::default(), operations, Kernel::Right) {
        panic!("it is right: {violation:?}");
    }
}

/// Answers how long the window is.
#[track_caller]
fn wrong<M: Model + Default>(operations: &[Operation<M>]) -> usize {
    check(&M::default(), operations, Kernel::Right).expect_err("it is wrong").window.len()
}

fn write(start: u64, end: u64, value: u64) -> Operation<Register> {
    call(start, end, RegisterCall::Write(value), RegisterAnswer::Written)
}

fn read(start: u64, end: u64, value: u64) -> Operation<Register> {
    call(start, end, RegisterCall::Read, RegisterAnswer::Value(value))
}

#[test]
fn registers_that_are_right() {
    right::<Register>(&[]);
    right(&[read(0, 1, 0), write(2, 3, 1), read(4, 5, 1)]);
    // While it is being written, either value; and whoever reads later sees no older one.
    right(&[write(0, 10, 1), read(1, 2, 0), read(3, 4, 1), read(5, 6, 1)]);
    right(&[write(0, 10, 1), write(0, 10, 2), read(1, 2, 2), read(3, 4, 1)]);
    // The order of the list does not matter, that of the times does.
    right(&[read(4, 5, 1), write(2, 3, 1), read(0, 1, 0)]);
    // Two that touch may be taken in either order.
    right(&[write(0, 5, 1), read(5, 6, 0)]);
    // The example of Herlihy and Wing (H1): the overlap of each pair decides.
    right(&[write(0, 3, 1), write(2, 8, 2), read(4, 5, 1), read(6, 7, 2)]);
}

#[test]
fn registers_that_are_wrong() {
    assert_eq!(wrong(&[write(0, 1, 1), read(2, 3, 0)]), 1, "a stale read");
    wrong(&[read(0, 1, 1), write(2, 3, 1)]);
    // New, then old again, by whatever reader.
    assert_eq!(wrong(&[write(0, 10, 1), read(1, 2, 1), read(3, 4, 0)]), 3);
    // The writers overlap, the readers have settled the order and then another one.
    wrong(&[write(0, 4, 1), write(0, 4, 2), read(5, 6, 1), read(7, 8, 2)]);
    wrong(&[write(0, 1, 1), write(2, 3, 2), read(4, 5, 1)]);
    wrong(&[write(0, 1, 1), read(2, 3, 7)]);
    wrong(&[write(0, 1, 1), call(2, 3, RegisterCall::Read, RegisterAnswer::Torn("12".into()))]);
    // Three calls, each pair of which is right.
    wrong(&[write(0, 9, 1), write(0, 9, 2), read(1, 2, 1), read(3, 4, 2), read(5, 6, 1)]);
}

#[test]
fn what_is_unknown_may_have_happened_or_not() {
    let lost = |end| unknown(2, end, RegisterCall::Write(2));
    right(&[write(0, 1, 1), lost(100), read(4, 5, 1), read(200, 201, 1)]);
    right(&[write(0, 1, 1), lost(100), read(4, 5, 1), read(6, 7, 2), read(200, 201, 2)]);
    // Not once and then not, not before it was called, and not when it can no longer happen.
    wrong(&[write(0, 1, 1), lost(100), read(4, 5, 2), read(6, 7, 1)]);
    wrong(&[write(0, 1, 1), read(1, 1, 2), lost(100)]);
    wrong(&[write(0, 1, 1), lost(100), read(150, 151, 1), read(160, 161, 2)]);
    // It happens once.
    wrong(&[write(0, 1, 1), lost(100), read(4, 5, 2), write(6, 7, 3), read(8, 9, 2)]);
}

#[test]
fn the_window_is_what_matters() {
    let mut operations: Vec<_> =
        (0..1000).flat_map(|at| [write(4 * at, 4 * at + 1, at), read(4 * at + 2, 4 * at + 3, at)]).collect();
    right(&operations);
    operations.extend([
        write(4000, 4010, 7),
        read(4001, 4002, 7),
        read(4003, 4004, 7),
        read(4005, 4006, 999),
    ]);
    let violation = check(&Register(0), &operations, Kernel::Right).unwrap_err();
    assert_eq!(violation.before, [Register(999)]);
    assert_eq!(violation.window.len(), 3, "{violation:?}");
}

fn append(start: u64, end: u64, record: u32) -> Operation<Log> {
    call(start, end, LogCall::Append(record), LogAnswer::Appended)
}

fn records(start: u64, end: u64, records: &[u32]) -> Operation<Log> {
    call(start, end, LogCall::Read, LogAnswer::Records(records.to_vec()))
}

#[test]
fn logs() {
    let two = [append(0, 5, 1), append(0, 5, 2)];
    let and = |more: &[Operation<Log>]| [&two, more].concat();
    right(&and(&[records(6, 7, &[1, 2])]));
    right(&and(&[records(6, 7, &[2, 1]), append(8, 9, 3), records(10, 11, &[2, 1, 3])]));
    right(&and(&[records(1, 2, &[2]), records(3, 4, &[2])]));
    let size = (Log::length(1) + Log::length(2)) as u64;
    right(&and(&[call(6, 7, LogCall::Size, LogAnswer::Size(size))]));
    right(&and(&[unknown(6, 90, LogCall::Append(3)), records(7, 8, &[1, 2]), records(9, 10, &[1, 2, 3])]));
    // Lost, doubled, out of order, in two orders, too early, torn, a size that lags behind.
    wrong(&and(&[records(6, 7, &[1])]));
    wrong(&and(&[records(6, 7, &[1, 2, 2])]));
    wrong(&and(&[append(6, 7, 3), records(8, 9, &[1, 3, 2])]));
    wrong(&and(&[records(6, 7, &[1, 2]), records(8, 9, &[2, 1])]));
    wrong(&and(&[records(1, 2, &[1]), records(6, 7, &[2, 1])]));
    wrong(&and(&[records(6, 7, &[1, 2, 3]), append(8, 9, 3)]));
    wrong(&and(&[call(6, 7, LogCall::Read, LogAnswer::Torn("…".into()))]));
    wrong(&and(&[call(6, 7, LogCall::Size, LogAnswer::Size(size - 1))]));
    wrong(&and(&[unknown(6, 90, LogCall::Append(3)), records(7, 8, &[1, 2, 3]), records(9, 10, &[1, 2])]));
}

const A: (usize, usize) = (0, 0);
const B: (usize, usize) = (0, 1);
const C: (usize, usize) = (1, 0);

fn create(start: u64, end: u64, place: (usize, usize), ino: u64) -> Operation<Directories> {
    call(start, end, DirectoryCall::Create(place), DirectoryAnswer::Ino(ino))
}

fn done(start: u64, end: u64, what: DirectoryCall) -> Operation<Directories> {
    call(start, end, what, DirectoryAnswer::Done)
}

fn failed(start: u64, end: u64, what: DirectoryCall, error: Errno) -> Operation<Directories> {
    call(start, end, what, DirectoryAnswer::Failed(error))
}

fn list(start: u64, end: u64, directory: usize, names: &[(usize, u64)]) -> Operation<Directories> {
    call(start, end, DirectoryCall::List(directory), DirectoryAnswer::Names(names.to_vec()))
}

fn stat(start: u64, end: u64, place: (usize, usize), ino: u64) -> Operation<Directories> {
    call(start, end, DirectoryCall::Stat(place), DirectoryAnswer::Ino(ino))
}

#[test]
fn directories_that_are_right() {
    right(&[create(0, 5, A, 9), failed(0, 5, DirectoryCall::Create(A), Errno::EXIST), stat(6, 7, A, 9)]);
    let moved = |kind| DirectoryCall::Rename(A, C, kind);
    let (replace, keep, swap) = (moved(Kind::Replace), moved(Kind::NoReplace), moved(Kind::Exchange));
    right(&[
        create(0, 1, A, 9),
        done(2, 6, replace.clone()),
        list(3, 4, 0, &[(0, 9)]),
        list(7, 8, 1, &[(0, 9)]),
    ]);
    right(&[
        create(0, 1, A, 9),
        create(0, 1, C, 8),
        failed(2, 3, keep.clone(), Errno::EXIST),
        stat(4, 5, A, 9),
    ]);
    right(&[
        create(0, 1, A, 9),
        create(0, 1, C, 8),
        done(2, 3, swap.clone()),
        stat(4, 5, A, 8),
        stat(4, 5, C, 9),
    ]);
    right(&[
        create(0, 1, A, 9),
        failed(2, 3, swap, Errno::NOENT),
        failed(4, 5, DirectoryCall::Unlink(B), Errno::NOENT),
    ]);
    right(&[
        create(0, 1, A, 9),
        create(0, 1, C, 8),
        done(2, 3, replace),
        list(4, 5, 0, &[]),
        list(4, 5, 1, &[(0, 9)]),
    ]);
    right(&[create(0, 1, A, 9), done(2, 3, keep), done(4, 5, DirectoryCall::Unlink(C)), list(6, 7, 1, &[])]);
    // The number of what an unknown call has made is learned.
    right(&[
        unknown(0, 50, DirectoryCall::Create(A)),
        list(2, 3, 0, &[]),
        stat(4, 5, A, 9),
        list(6, 7, 0, &[(0, 9)]),
    ]);
}

#[test]
fn directories_that_are_wrong() {
    // Two creators that both won.
    wrong(&[create(0, 5, A, 9), create(0, 5, A, 8)]);
    wrong(&[failed(0, 1, DirectoryCall::Create(A), Errno::EXIST)]);
    let renamed = |kind| [create(0, 1, A, 9), done(2, 6, DirectoryCall::Rename(A, C, kind))];
    let and = |more: &[Operation<Directories>]| [&renamed(Kind::Replace), more].concat();
    // A rename seen half: under neither name, under both, at the old name again.
    wrong(&and(&[list(3, 4, 0, &[]), list(4, 5, 1, &[]), list(5, 6, 0, &[(0, 9)])]));
    wrong(&and(&[stat(3, 3, C, 9), stat(4, 4, A, 9)]));
    wrong(&and(&[
        failed(3, 3, DirectoryCall::Stat(A), Errno::NOENT),
        failed(4, 5, DirectoryCall::Stat(C), Errno::NOENT),
    ]));
    wrong(&and(&[list(7, 8, 0, &[(0, 9)])]));
    // Two that moved or removed the same thing.
    wrong(&and(&[done(2, 6, DirectoryCall::Rename(A, B, Kind::Replace))]));
    wrong(&[create(0, 1, A, 9), done(2, 6, DirectoryCall::Unlink(A)), done(2, 6, DirectoryCall::Unlink(A))]);
    // Replaced what was to be kept.
    wrong(&[&renamed(Kind::NoReplace)[..], &[create(0, 1, C, 8)]].concat());
    // The wrong one stands there, once more after it has gone, or twice in a list.
    wrong(&and(&[stat(7, 8, C, 8)]));
    wrong(&[create(0, 1, A, 9), done(2, 3, DirectoryCall::Unlink(A)), stat(4, 5, A, 9)]);
    wrong(&[create(0, 1, A, 9), create(0, 1, B, 8), list(2, 3, 0, &[(0, 9), (0, 9)])]);
    wrong(&[unknown(0, 50, DirectoryCall::Create(A)), stat(4, 5, A, 9), stat(6, 7, A, 8)]);
}

fn lock(start: u64, end: u64, what: LockCall, answer: LockAnswer) -> Operation<Lock> {
    call(start, end, what, answer)
}

#[test]
fn locks() {
    use LockAnswer::{Done, Refused};
    use LockCall::{Exclusive, Shared, Unlock};
    let held = [lock(0, 1, Exclusive(1), Done), lock(10, 12, Unlock(1), Done)];
    let and = |more: &[Operation<Lock>]| [&held, more].concat();
    right(&and(&[lock(2, 3, Exclusive(2), Refused), lock(11, 13, Exclusive(2), Done)]));
    right(&[lock(0, 1, Shared(1), Done), lock(0, 1, Shared(2), Done), lock(2, 3, Exclusive(3), Refused)]);
    // A session that has died gives its locks up at some moment, and then it has.
    right(&[lock(0, 1, Exclusive(1), Done), lock(2, 90, Unlock(1), Done), lock(5, 6, Exclusive(2), Done)]);
    right(&[lock(0, 1, Exclusive(1), Done), unknown(2, 90, Unlock(1)), lock(91, 92, Exclusive(2), Refused)]);
    // Two holders; one that is refused although nobody holds it.
    wrong(&and(&[lock(2, 3, Exclusive(2), Done)]));
    wrong(&and(&[lock(2, 3, Shared(2), Done)]));
    wrong(&[lock(0, 1, Shared(1), Done), lock(0, 1, Exclusive(2), Done)]);
    wrong(&and(&[lock(13, 14, Exclusive(2), Refused)]));
    wrong(&[
        lock(0, 1, Exclusive(1), Done),
        lock(2, 90, Unlock(1), Done),
        lock(91, 92, Exclusive(2), Refused),
    ]);
}

#[test]
fn counters() {
    let add = |start, end, was| call::<Counter>(start, end, Add, Was(was));
    right(&[add(0, 5, 1), add(1, 6, 0), add(7, 8, 2)]);
    right(&[add(0, 1, 0), unknown(2, 90, Add), add(3, 4, 1), add(5, 6, 3)]);
    // It has happened, or not, before anybody has looked.
    right(&[add(0, 1, 0), unknown(2, 90, Add), add(91, 92, 2)]);
    right(&[add(0, 1, 0), unknown(2, 90, Add), add(91, 92, 1)]);
    right(&[add(0, 1, 0), unknown(2, 90, Add), add(89, 92, 2)]);
    // Two that held the lock at once, a number that was left out, one that was undone.
    wrong(&[add(0, 5, 0), add(1, 6, 0)]);
    wrong(&[add(0, 1, 0), add(2, 3, 2)]);
    wrong(&[add(0, 1, 0), add(2, 3, 1), add(4, 5, 1)]);
    wrong(&[add(0, 1, 0), unknown(2, 90, Add), add(91, 92, 1), add(93, 94, 3)]);
}

/// Two mounts move a file from one name to the other, and the kernel of the second finds it under both.
#[test]
fn what_only_a_fault_of_the_kernel_explains_is_told_from_what_nothing_explains() {
    let rename = |start, end| {
        let rename = DirectoryCall::Rename((0, 0), (0, 1), Kind::Replace);
        call::<Directories>(start, end, rename, DirectoryAnswer::Done)
    };
    let create = call(0, 1, DirectoryCall::Create((0, 0)), DirectoryAnswer::Ino(7));
    let of_kernel = [create.clone(), rename(10, 20), rename(11, 21)];
    wrong(&of_kernel);
    check(&Directories::default(), &of_kernel, Kernel::Faulty).unwrap();
    // The second has nothing to move, and nothing is there for it to find.
    let of_nobody = [rename(10, 20), rename(11, 21)];
    check(&Directories::default(), &of_nobody, Kernel::Faulty).unwrap_err();
    // A name is not freed by that.
    let left = [create, rename(10, 20), call(30, 40, DirectoryCall::Unlink((0, 0)), DirectoryAnswer::Done)];
    check(&Directories::default(), &left, Kernel::Faulty).unwrap_err();
}
