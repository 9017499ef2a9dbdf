//! What each kind of object does when it is used by one client after the other.

use std::collections::BTreeSet;

use rustix::io::Errno;

use super::checker::Model;

/// A file that is read and written as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Register(pub u64);

#[derive(Clone, Debug)]
pub enum RegisterCall {
    Write(u64),
    Read,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RegisterAnswer {
    Written,
    Value(u64),
    /// What was read is no value that anybody writes.
    Torn(String),
}

impl Model for Register {
    type Call = RegisterCall;
    type Answer = RegisterAnswer;

    fn step(&self, call: &RegisterCall, answer: Option<&RegisterAnswer>) -> Option<Self> {
        let (after, right) = match call {
            RegisterCall::Write(value) => (Self(*value), RegisterAnswer::Written),
            RegisterCall::Read => (self.clone(), RegisterAnswer::Value(self.0)),
        };
        answer.is_none_or(|answer| *answer == right).then_some(after)
    }

    fn is_read(call: &RegisterCall) -> bool {
        matches!(call, RegisterCall::Read)
    }
}

/// A file to which records are appended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Log(pub Vec<u32>);

#[derive(Clone, Debug)]
pub enum LogCall {
    Append(u32),
    Read,
    Size,
}

#[derive(Clone, Debug, PartialEq)]
pub enum LogAnswer {
    Appended,
    Records(Vec<u32>),
    /// In bytes.
    Size(u64),
    /// What was read is no row of whole records.
    Torn(String),
}

impl Log {
    /// How long a record is, in bytes: some do not fit into a page.
    pub fn length(record: u32) -> usize {
        if record % 16 == 7 { 5000 } else { 40 + record as usize % 50 }
    }
}

impl Model for Log {
    type Call = LogCall;
    type Answer = LogAnswer;

    fn step(&self, call: &LogCall, answer: Option<&LogAnswer>) -> Option<Self> {
        let right = match (call, answer) {
            (LogCall::Append(record), None | Some(LogAnswer::Appended)) => {
                let mut records = self.0.clone();
                records.push(*record);
                return Some(Self(records));
            }
            (_, None) => true,
            (LogCall::Read, Some(LogAnswer::Records(records))) => *records == self.0,
            (LogCall::Size, Some(LogAnswer::Size(size))) => {
                *size == self.0.iter().map(|record| Self::length(*record) as u64).sum::<u64>()
            }
            _ => false,
        };
        right.then(|| self.clone())
    }

    fn is_read(call: &LogCall) -> bool {
        !matches!(call, LogCall::Append(_))
    }
}

/// So many directories are one object, because a rename changes two of them.
pub const DIRECTORIES: usize = 2;
/// Names in each.
pub const NAMES: usize = 4;

/// Two directories: which inode stands under each name. 0 is one whose number nobody has been told yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Directories(pub [[Option<u64>; NAMES]; DIRECTORIES]);

/// A name in a directory.
pub type Place = (usize, usize);

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Replace,
    NoReplace,
    Exchange,
}

#[derive(Clone, Debug)]
pub enum DirectoryCall {
    /// With `O_EXCL`.
    Create(Place),
    Rename(Place, Place, Kind),
    Unlink(Place),
    Stat(Place),
    List(usize),
}

#[derive(Clone, Debug, PartialEq)]
pub enum DirectoryAnswer {
    Done,
    Ino(u64),
    /// Names, in order, each with its inode.
    Names(Vec<(usize, u64)>),
    Failed(Errno),
}

impl Directories {
    fn at(&mut self, place: Place) -> &mut Option<u64> {
        &mut self.0[place.0][place.1]
    }

    /// Learns of an inode under a name, if it can be there.
    fn learn(&mut self, place: Place, ino: u64) -> bool {
        match self.at(place) {
            Some(known) if *known == 0 || *known == ino => {
                *known = ino;
                true
            }
            _ => false,
        }
    }

    /// Carries out a call that changes something.
    fn change(&mut self, call: &DirectoryCall) -> Result<(), Errno> {
        match *call {
            DirectoryCall::Create(place) => match self.at(place) {
                Some(_) => return Err(Errno::EXIST),
                free => *free = Some(0),
            },
            DirectoryCall::Unlink(place) => drop(self.at(place).take().ok_or(Errno::NOENT)?),
            DirectoryCall::Rename(from, to, kind) => {
                let moved = self.at(from).ok_or(Errno::NOENT)?;
                let replaced = *self.at(to);
                match (kind, replaced) {
                    (Kind::NoReplace, Some(_)) => return Err(Errno::EXIST),
                    (Kind::Exchange, None) => return Err(Errno::NOENT),
                    (Kind::Exchange, _) => *self.at(from) = replaced,
                    _ => *self.at(from) = None,
                }
                *self.at(to) = Some(moved);
            }
            DirectoryCall::Stat(_) | DirectoryCall::List(_) => (),
        }
        Ok(())
    }
}

impl Model for Directories {
    type Call = DirectoryCall;
    type Answer = DirectoryAnswer;

    fn step(&self, call: &DirectoryCall, answer: Option<&DirectoryAnswer>) -> Option<Self> {
        let mut after = self.clone();
        let right = match (call, answer) {
            (_, None) => {
                let _whatever = after.change(call);
                true
            }
            (DirectoryCall::Stat(place), Some(DirectoryAnswer::Ino(ino))) => after.learn(*place, *ino),
            (DirectoryCall::Stat(place), Some(answer)) => {
                after.at(*place).is_none() && *answer == DirectoryAnswer::Failed(Errno::NOENT)
            }
            (DirectoryCall::List(directory), Some(DirectoryAnswer::Names(names))) => {
                names.len() == self.0[*directory].iter().flatten().count()
                    && names.is_sorted_by(|one, next| one.0 < next.0)
                    && names.iter().all(|(name, ino)| after.learn((*directory, *name), *ino))
            }
            (DirectoryCall::Create(place), Some(DirectoryAnswer::Ino(ino))) => {
                after.change(call).is_ok() && after.learn(*place, *ino)
            }
            // The kernel looks the two names up one after the other, so the old one may be gone by then.
            (DirectoryCall::Rename(_, to, Kind::NoReplace), Some(DirectoryAnswer::Failed(Errno::EXIST))) => {
                after.at(*to).is_some()
            }
            (_, Some(DirectoryAnswer::Failed(error))) => after.change(call) == Err(*error),
            (_, Some(answer)) => *answer == DirectoryAnswer::Done && after.change(call).is_ok(),
        };
        right.then_some(after)
    }

    /// The kernel looks up the two names of a rename one after the other. If another mount moves a file from the one to the other in
    /// between, it finds the same file twice and does nothing, as rename(2) asks for of two links to one file.
    fn step_of_kernel(&self, call: &DirectoryCall, answer: Option<&DirectoryAnswer>) -> Option<Self> {
        match (call, answer) {
            (DirectoryCall::Rename(_, to, _), Some(DirectoryAnswer::Done)) => {
                self.0[to.0][to.1].is_some().then(|| self.clone())
            }
            _ => None,
        }
    }

    fn is_read(call: &DirectoryCall) -> bool {
        matches!(call, DirectoryCall::Stat(_) | DirectoryCall::List(_))
    }
}

/// Who holds a lock that nobody waits for. Each holding has a number of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lock {
    pub exclusive: Option<u64>,
    pub shared: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
pub enum LockCall {
    Exclusive(u64),
    Shared(u64),
    /// By the client, or because its session has ended.
    Unlock(u64),
}

#[derive(Clone, Debug, PartialEq)]
pub enum LockAnswer {
    Done,
    Refused,
}

impl Model for Lock {
    type Call = LockCall;
    type Answer = LockAnswer;

    fn step(&self, call: &LockCall, answer: Option<&LockAnswer>) -> Option<Self> {
        let mut after = self.clone();
        let granted = match *call {
            LockCall::Exclusive(holding) => {
                let free = self.exclusive.is_none() && self.shared.is_empty();
                if free {
                    after.exclusive = Some(holding);
                }
                free
            }
            LockCall::Shared(holding) => {
                let free = self.exclusive.is_none();
                if free {
                    after.shared.insert(holding);
                }
                free
            }
            LockCall::Unlock(holding) => {
                after.exclusive = self.exclusive.filter(|holder| *holder != holding);
                after.shared.remove(&holding);
                true
            }
        };
        let right = if granted { LockAnswer::Done } else { LockAnswer::Refused };
        answer.is_none_or(|answer| *answer == right).then_some(after)
    }

    fn is_read(_: &LockCall) -> bool {
        false
    }
}

/// A number in a file, which clients read and write anew under a lock. Two that hold it at once give the same number twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counter(pub u64);

/// Adds one.
#[derive(Clone, Debug)]
pub struct Add;

/// The number before.
#[derive(Clone, Debug, PartialEq)]
pub struct Was(pub u64);

impl Model for Counter {
    type Call = Add;
    type Answer = Was;

    fn step(&self, _: &Add, answer: Option<&Was>) -> Option<Self> {
        answer.is_none_or(|answer| answer.0 == self.0).then_some(Self(self.0 + 1))
    }

    fn is_read(_: &Add) -> bool {
        false
    }
}
