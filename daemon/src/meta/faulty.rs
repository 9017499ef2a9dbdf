//! An engine that fails when a test or a simulation says so.

use async_trait::async_trait;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tandemfs::id::NodeId;
use tandemfs::{Error, ErrorKind, Result};

use super::{Guard, Key, MetaStore, Value, Write};

/// Passes calls on to another engine, with faults.
#[derive(Clone, Debug)]
pub struct FaultyStore {
    inner: Arc<dyn MetaStore>,
    switches: Switches,
}

impl FaultyStore {
    /// `inner` under the control of `switches`.
    pub fn new(inner: Arc<dyn MetaStore>, switches: Switches) -> Self {
        Self { inner, switches }
    }
}

/// The controls of a [`FaultyStore`]. Clones control the same one.
#[derive(Clone, Debug, Default)]
pub struct Switches(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    skip_commits: u64,
    fail_commits: u64,
    failure: Failure,
    fail_reads: u64,
    commit_delay: Duration,
    read_delay: Duration,
    copies: u32,
}

/// How many calls there were, those that failed included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls of `get_many` and `scan`.
    pub reads: u64,
    /// Calls of `commit`.
    pub commits: u64,
}

/// How a commit fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Failure {
    /// It changes nothing and says `Unavailable`.
    #[default]
    Refused,
    /// It changes nothing and says `NoSpace`.
    Full,
    /// It happens, but the caller hears `Unavailable`.
    AnswerLost,
}

impl Switches {
    /// No faults.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `skip` commits through, then fails `count`.
    pub fn fail_commits(&self, skip: u64, count: u64, failure: Failure) {
        let mut state = self.state();
        (state.skip_commits, state.fail_commits, state.failure) = (skip, count, failure);
    }

    /// Fails the next `count` reads with `Unavailable`.
    pub fn fail_reads(&self, count: u64) {
        self.state().fail_reads = count;
    }

    /// Makes every call take longer, by tokio's clock.
    pub fn delay(&self, reads: Duration, commits: Duration) {
        let mut state = self.state();
        (state.read_delay, state.commit_delay) = (reads, commits);
    }

    /// Has the engine say that its commits are on the nodes from 1 to this one.
    pub fn say_copies(&self, copies: u32) {
        self.state().copies = copies;
    }

    /// Ends all faults and delays; the counts stay.
    pub fn heal(&self) {
        let mut state = self.state();
        *state = State { counts: state.counts, copies: state.copies, ..State::default() };
    }

    /// How many calls there were.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    async fn before_read(&self) -> Result<()> {
        let (fails, delay) = {
            let mut state = self.state();
            state.counts.reads += 1;
            let fails = state.fail_reads > 0;
            state.fail_reads = state.fail_reads.saturating_sub(1);
            (fails, state.read_delay)
        };
        pause(delay).await;
        if fails { Err(Error::unavailable("a fault was asked for")) } else { Ok(()) }
    }

    fn before_commit(&self) -> (Option<Failure>, Duration) {
        let mut state = self.state();
        state.counts.commits += 1;
        let mut failure = None;
        if state.skip_commits > 0 {
            state.skip_commits -= 1;
        } else if state.fail_commits > 0 {
            state.fail_commits -= 1;
            failure = Some(state.failure);
        }
        (failure, state.commit_delay)
    }
}

async fn pause(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

#[async_trait]
impl MetaStore for FaultyStore {
    async fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Value>>> {
        self.switches.before_read().await?;
        self.inner.get_many(keys).await
    }

    async fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        self.switches.before_read().await?;
        self.inner.scan(from, to, limit).await
    }

    async fn commit(&self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<()> {
        let (failure, delay) = self.switches.before_commit();
        pause(delay).await;
        let error = |kind| Err(Error::new(kind, "a fault was asked for"));
        match failure {
            None => self.inner.commit(guards, writes).await,
            Some(Failure::Refused) => error(ErrorKind::Unavailable),
            Some(Failure::Full) => error(ErrorKind::NoSpace),
            Some(Failure::AnswerLost) => {
                self.inner.commit(guards, writes).await?;
                error(ErrorKind::Unavailable)
            }
        }
    }

    fn copies(&self) -> Vec<NodeId> {
        (1..=self.switches.state().copies).map(NodeId).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Arc, Counts, ErrorKind, Failure, FaultyStore, MetaStore, Switches, Write};
    use crate::meta::{contract, memory::MemoryStore};

    #[tokio::test]
    async fn keeps_the_contract_without_faults() {
        contract::all(&FaultyStore::new(Arc::new(MemoryStore::new()), Switches::new())).await;
    }

    #[tokio::test]
    async fn fails_as_it_was_told() {
        let switches = Switches::new();
        let store = FaultyStore::new(Arc::new(MemoryStore::new()), switches.clone());
        let commit = async |name: &str| {
            let write = Write { key: name.into(), value: Some(vec![]) };
            store.commit(vec![], vec![write]).await.map_err(|error| error.kind())
        };
        let names = async || store.scan(b"", b"z", 10).await.unwrap().len();
        switches.fail_commits(1, 2, Failure::Full);
        assert_eq!(commit("a").await, Ok(()));
        assert_eq!(commit("b").await, Err(ErrorKind::NoSpace));
        assert_eq!(commit("b").await, Err(ErrorKind::NoSpace));
        assert_eq!(names().await, 1);
        switches.fail_commits(0, 1, Failure::AnswerLost);
        assert_eq!(commit("b").await, Err(ErrorKind::Unavailable));
        assert_eq!(names().await, 2, "it happened all the same");
        switches.fail_reads(1);
        assert_eq!(store.get_many(&[]).await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(store.get_many(&[]).await.unwrap(), vec![]);
        assert_eq!(switches.counts(), Counts { reads: 4, commits: 4 });
    }
}
