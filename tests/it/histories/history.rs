//! What was called, by whom, when, and what was answered.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::checker::Model;
use super::models::{Counter, Directories, Lock, Log, Register};

/// A call and its answer. All times are of one clock.
#[derive(Clone, Debug)]
pub struct Operation<M: Model> {
    pub client: usize,
    pub mount: usize,
    pub call: M::Call,
    /// Nothing if the call may have happened or not, because its mount died, for example.
    pub answer: Option<M::Answer>,
    pub start: Duration,
    /// When it was answered. Without an answer: when it can no longer happen.
    pub end: Duration,
}

impl<M: Model> Display for Operation<M> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { client, mount, call, answer, start, end } = self;
        let (start, end) = (start.as_micros(), end.as_micros());
        write!(f, "client {client} mount {mount}  {start:>11}–{end:<11} µs  {call:?}")?;
        match answer {
            Some(answer) => write!(f, " -> {answer:?}"),
            None => write!(f, " -> unknown"),
        }
    }
}

/// The histories of the objects of one kind, by name.
pub type Objects<M> = BTreeMap<String, Vec<Operation<M>>>;

/// The histories of all objects.
#[derive(Default)]
pub struct Histories {
    pub registers: Objects<Register>,
    pub directories: Objects<Directories>,
    pub logs: Objects<Log>,
    pub locks: Objects<Lock>,
    pub counters: Objects<Counter>,
}

impl Histories {
    /// Takes in what another client has recorded.
    pub fn merge(&mut self, other: Self) {
        fn merge<M: Model>(into: &mut Objects<M>, from: Objects<M>) {
            for (name, mut operations) in from {
                into.entry(name).or_default().append(&mut operations);
            }
        }
        merge(&mut self.registers, other.registers);
        merge(&mut self.directories, other.directories);
        merge(&mut self.logs, other.logs);
        merge(&mut self.locks, other.locks);
        merge(&mut self.counters, other.counters);
    }
}
