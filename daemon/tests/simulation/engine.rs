//! A metadata engine that outlives the daemon, and fails as engines do.

use async_trait::async_trait;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tandemd::meta::{Guard, Key, MetaStore, Value, Write};
use tandemfs::{Error, Result};

use crate::random::Random;
use crate::trace::{Trace, note};

/// The engine.
#[derive(Clone, Debug)]
pub struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    trace: Arc<Trace>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    random: Random,
    rows: BTreeMap<Key, Value>,
    /// What the last commits have replaced, the newest last.
    undo: VecDeque<Vec<(Key, Option<Value>)>>,
    /// So many of a thousand commits fail.
    failing: u64,
    /// The longest commit, in milliseconds.
    slowest: u64,
}

/// So many of the last commits may not be on stable storage.
const UNSYNCED: usize = 40;

/// What becomes of a commit.
enum Fate {
    Works,
    Fails,
}

impl Engine {
    /// An empty engine.
    pub fn new(random: Random, trace: Arc<Trace>) -> Self {
        let state = State { random, rows: BTreeMap::new(), undo: VecDeque::new(), failing: 0, slowest: 8 };
        Self(Arc::new(Inner { trace, state: Mutex::new(state) }))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    /// From now on so many of a thousand commits fail, and they take up to so many milliseconds.
    pub fn set(&self, failing: u64, slowest: u64) {
        note!(self.0.trace, "engine: {failing} of 1000 commits fail, up to {slowest} ms");
        let mut state = self.state();
        state.failing = failing;
        state.slowest = slowest;
    }

    /// The daemon has died: with the power, the last commits may have gone, and with the disk all of them.
    pub fn crash(&self) {
        let mut state = self.state();
        if state.random.chance(60) {
            note!(self.0.trace, "engine: everything is lost");
            state.rows.clear();
        } else if state.random.chance(300) {
            let unsynced = state.undo.len() as u64;
            let lost = state.random.below(unsynced + 1);
            note!(self.0.trace, "engine: {lost} commits are lost");
            for _ in 0..lost {
                for (key, value) in state.undo.pop_back().into_iter().flatten().rev() {
                    match value {
                        Some(value) => drop(state.rows.insert(key, value)),
                        None => drop(state.rows.remove(&key)),
                    }
                }
            }
        }
        state.undo.clear();
    }

    /// All rows of a prefix, past the daemon.
    pub fn rows(&self, prefix: &[u8]) -> Vec<(Key, Value)> {
        let state = self.state();
        let rows = state.rows.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
        rows.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    async fn wait(&self) {
        let (busy, time) = {
            let mut state = self.state();
            let slowest = state.slowest;
            (state.random.chance(400), state.random.below(slowest + 1))
        };
        if busy {
            tokio::time::sleep(Duration::from_millis(time)).await;
        }
    }
}

#[async_trait]
impl MetaStore for Engine {
    async fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Value>>> {
        self.wait().await;
        let state = self.state();
        Ok(keys.iter().map(|key| state.rows.get(key).cloned()).collect())
    }

    async fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        self.wait().await;
        if from >= to {
            return Ok(Vec::new());
        }
        let state = self.state();
        let rows = state.rows.range(from.to_vec()..to.to_vec()).take(limit);
        Ok(rows.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    async fn commit(&self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<()> {
        self.wait().await;
        {
            let mut state = self.state();
            let failing = state.failing;
            let fate = if state.random.chance(failing) { Fate::Fails } else { Fate::Works };
            if matches!(fate, Fate::Fails) {
                note!(self.0.trace, "engine: a commit of {} writes fails", writes.len());
                return Err(Error::unavailable("the engine does not answer"));
            }
            for guard in &guards {
                if state.rows.get(&guard.key) != guard.value.as_ref() {
                    return Err(Error::stale(format!("row {}", hex::encode(&guard.key))));
                }
            }
            let mut before = Vec::with_capacity(writes.len());
            for write in writes {
                before.push((write.key.clone(), state.rows.get(&write.key).cloned()));
                if let [b'v', .., b'o', a, b, c, d, e, f, g, h] = write.key.as_slice() {
                    let ino = u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
                    let what = if write.value.is_some() { "has no name any more" } else { "is gone" };
                    note!(self.0.trace, "engine: inode {ino} {what}");
                }
                match write.value {
                    Some(value) => drop(state.rows.insert(write.key, value)),
                    None => drop(state.rows.remove(&write.key)),
                }
            }
            state.undo.push_back(before);
            if state.undo.len() > UNSYNCED {
                state.undo.pop_front();
            }
        }
        // It has happened; the answer takes its time, and a crash may come first.
        self.wait().await;
        Ok(())
    }
}
