//! A store of objects that fails when a test or a simulation says so.

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tandemfs::id::BlockId;
use tandemfs::{Error, Result};
use tokio::sync::watch;

use super::{BlockStore, Object, Room};

/// Passes calls on to another store, with faults. Its randomness comes from a seed, its delays from tokio's clock.
#[derive(Clone, Debug)]
pub struct FaultyStore {
    inner: Arc<dyn BlockStore>,
    faults: Faults,
}

/// The controls of a [`FaultyStore`]. Clones control the same one.
#[derive(Clone, Debug)]
pub struct Faults(Arc<Control>);

#[derive(Debug)]
struct Control {
    /// A call that hangs waits for a change of it.
    line: watch::Sender<Line>,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    mode: Mode,
    /// How often it has crashed: a call that began before a crash fails.
    crashes: u64,
}

/// Whether the node can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It answers.
    Up,
    /// Every call fails at once with `Unavailable`.
    Offline,
    /// No call returns until the mode changes.
    Hanging,
}

#[derive(Debug)]
struct State {
    random: StdRng,
    counts: Counts,
    fail_puts: u64,
    fail_gets: u64,
    failing: f64,
    corrupting: f64,
    delay: Range<Duration>,
}

/// How many calls there were, those that failed included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls of `put`.
    pub puts: u64,
    /// Calls of `get`.
    pub gets: u64,
    /// Calls of `delete`.
    pub deletes: u64,
    /// Calls of `head`, `list` and `room`.
    pub others: u64,
}

fn asked_for() -> Error {
    Error::unavailable("a fault was asked for")
}

impl Faults {
    /// No faults; `seed` decides what is random in later ones.
    pub fn new(seed: u64) -> Self {
        let state = State {
            random: StdRng::seed_from_u64(seed),
            counts: Counts::default(),
            fail_puts: 0,
            fail_gets: 0,
            failing: 0.0,
            corrupting: 0.0,
            delay: Duration::ZERO..Duration::ZERO,
        };
        let line = watch::Sender::new(Line { mode: Mode::Up, crashes: 0 });
        Self(Arc::new(Control { line, state: Mutex::new(state) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the node answer, refuse or hang.
    pub fn set_mode(&self, mode: Mode) {
        self.0.line.send_modify(|line| line.mode = mode);
    }

    /// Every call under way fails now, and a put or delete among them has not happened.
    pub fn crash(&self) {
        self.0.line.send_modify(|line| line.crashes += 1);
    }

    /// Fails the next `count` puts.
    pub fn fail_puts(&self, count: u64) {
        self.state().fail_puts = count;
    }

    /// Fails the next `count` gets.
    pub fn fail_gets(&self, count: u64) {
        self.state().fail_gets = count;
    }

    /// Fails this share of all calls, 0 to 1.
    pub fn fail_some(&self, share: f64) {
        self.state().failing = share.clamp(0.0, 1.0);
    }

    /// Flips a bit in what this share of all gets returns, 0 to 1; what is stored stays good.
    pub fn corrupt_reads(&self, share: f64) {
        self.state().corrupting = share.clamp(0.0, 1.0);
    }

    /// Makes every call take a time from this range; the same two for a fixed one.
    pub fn delay(&self, from: Duration, to: Duration) {
        self.state().delay = from..to;
    }

    /// Ends all faults and delays; the counts stay.
    pub fn heal(&self) {
        {
            let mut state = self.state();
            (state.fail_puts, state.fail_gets, state.failing, state.corrupting) = (0, 0, 0.0, 0.0);
            state.delay = Duration::ZERO..Duration::ZERO;
        }
        self.set_mode(Mode::Up);
    }

    /// How many calls there were.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// Counts a call, decides what happens to it, and does it after the delay unless there is a crash before.
    async fn call<T>(
        &self,
        count: fn(&mut Counts) -> &mut u64,
        chosen: fn(&mut State) -> Option<&mut u64>,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let (fails, delay) = self.state().decide(count, chosen);
        let mut line = self.0.line.subscribe();
        let begun = line.borrow_and_update().crashes;
        let passed = async {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            // Neither can fail: `self` has the sender.
            let now = line.wait_for(|line| line.crashes != begun || line.mode != Mode::Hanging).await;
            now.is_ok_and(|line| line.crashes == begun && line.mode == Mode::Up)
        };
        let mut crash = self.0.line.subscribe();
        let passed = tokio::select! {
            biased;
            _ = crash.wait_for(|line| line.crashes != begun || line.mode == Mode::Offline) => false,
            passed = passed => passed,
        };
        if fails || !passed {
            return Err(asked_for());
        }
        call.await
    }
}

impl State {
    fn decide(
        &mut self,
        count: fn(&mut Counts) -> &mut u64,
        chosen: fn(&mut Self) -> Option<&mut u64>,
    ) -> (bool, Duration) {
        *count(&mut self.counts) += 1;
        let mut fails = self.failing > 0.0 && self.random.random_bool(self.failing);
        if let Some(left) = chosen(self).filter(|left| **left > 0) {
            *left -= 1;
            fails = true;
        }
        let range = self.delay.clone();
        let delay = if range.is_empty() { range.start } else { self.random.random_range(range) };
        (fails, delay)
    }
}

impl FaultyStore {
    /// `inner` under the control of `faults`.
    pub fn new(inner: Arc<dyn BlockStore>, faults: Faults) -> Self {
        Self { inner, faults }
    }

    /// The controls.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Flips one bit in each of `count` stored objects, chosen at random, and names them.
    ///
    /// # Errors
    /// Those of the store inside.
    pub async fn damage(&self, count: usize) -> Result<Vec<BlockId>> {
        let chosen = self.choose(count).await?;
        for id in &chosen {
            let object = self.inner.get(id, None).await?;
            self.inner.put(id, self.flip(&object)).await?;
        }
        Ok(chosen)
    }

    /// Cuts each of `count` stored objects, chosen at random, to half of its length, and names them.
    ///
    /// # Errors
    /// Those of the store inside.
    pub async fn truncate(&self, count: usize) -> Result<Vec<BlockId>> {
        let chosen = self.choose(count).await?;
        for id in &chosen {
            let object = self.inner.get(id, None).await?;
            self.inner.put(id, object.slice(..object.len() / 2)).await?;
        }
        Ok(chosen)
    }

    /// Drops `count` stored objects, chosen at random, and names them.
    ///
    /// # Errors
    /// Those of the store inside.
    pub async fn lose(&self, count: usize) -> Result<Vec<BlockId>> {
        let chosen = self.choose(count).await?;
        for id in &chosen {
            self.inner.delete(id).await?;
        }
        Ok(chosen)
    }

    async fn choose(&self, count: usize) -> Result<Vec<BlockId>> {
        let mut all = self.inner.list(None, usize::MAX).await?;
        let mut chosen = Vec::new();
        while chosen.len() < count && !all.is_empty() {
            let at = self.faults.state().random.random_range(0..all.len());
            chosen.push(all.swap_remove(at).id);
        }
        Ok(chosen)
    }

    fn flip(&self, object: &[u8]) -> Bytes {
        let mut bytes = object.to_vec();
        if !bytes.is_empty() {
            let bit = self.faults.state().random.random_range(0..bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        Bytes::from(bytes)
    }
}

#[async_trait]
impl BlockStore for FaultyStore {
    async fn put(&self, id: &BlockId, object: Bytes) -> Result<()> {
        let put = self.inner.put(id, object);
        self.faults.call(|counts| &mut counts.puts, |state| Some(&mut state.fail_puts), put).await
    }

    async fn get(&self, id: &BlockId, range: Option<Range<u64>>) -> Result<Bytes> {
        let get = self.inner.get(id, range);
        let bytes =
            self.faults.call(|counts| &mut counts.gets, |state| Some(&mut state.fail_gets), get).await?;
        let corrupts = {
            let mut state = self.faults.state();
            let share = state.corrupting;
            share > 0.0 && state.random.random_bool(share)
        };
        Ok(if corrupts { self.flip(&bytes) } else { bytes })
    }

    async fn head(&self, id: &BlockId) -> Result<Option<Object>> {
        self.faults.call(|counts| &mut counts.others, |_| None, self.inner.head(id)).await
    }

    async fn list(&self, after: Option<&BlockId>, limit: usize) -> Result<Vec<Object>> {
        self.faults.call(|counts| &mut counts.others, |_| None, self.inner.list(after, limit)).await
    }

    async fn delete(&self, id: &BlockId) -> Result<()> {
        self.faults.call(|counts| &mut counts.deletes, |_| None, self.inner.delete(id)).await
    }

    async fn room(&self) -> Result<Option<Room>> {
        self.faults.call(|counts| &mut counts.others, |_| None, self.inner.room()).await
    }
}

#[cfg(test)]
mod tests {
    use super::{Arc, BlockStore, Bytes, Counts, Duration, Faults, FaultyStore, Mode};
    use crate::blocks::contract::{self, id};
    use crate::blocks::memory::MemoryStore;
    use tandemfs::ErrorKind;
    use tokio::time::timeout;

    fn store() -> (FaultyStore, Faults) {
        let faults = Faults::new(1);
        (FaultyStore::new(Arc::new(MemoryStore::new()), faults.clone()), faults)
    }

    #[tokio::test(start_paused = true)]
    async fn keeps_the_contract_without_faults_and_when_it_is_slow() {
        let (store, faults) = store();
        contract::all(&store).await;
        faults.delay(Duration::from_millis(1), Duration::from_millis(50));
        contract::all(&store).await;
    }

    #[tokio::test(start_paused = true)]
    async fn is_offline_or_hangs() {
        let (store, faults) = store();
        store.put(&id(1), Bytes::from_static(b"one")).await.unwrap();
        faults.set_mode(Mode::Offline);
        assert_eq!(store.get(&id(1), None).await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(store.room().await.unwrap_err().kind(), ErrorKind::Unavailable);
        faults.set_mode(Mode::Hanging);
        assert!(timeout(Duration::from_secs(3_600), store.get(&id(1), None)).await.is_err());
        let one = id(1);
        let get = store.get(&one, None);
        let (got, ()) = tokio::join!(get, async { faults.set_mode(Mode::Up) });
        assert_eq!(got.unwrap(), &b"one"[..]);
        assert_eq!(faults.counts(), Counts { puts: 1, gets: 3, deletes: 0, others: 1 });
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_loses_what_is_under_way() {
        let (store, faults) = store();
        store.put(&id(1), Bytes::from_static(b"done")).await.unwrap();
        faults.delay(Duration::from_secs(1), Duration::from_secs(1));
        let (one, two) = (id(1), id(2));
        let put = store.put(&two, Bytes::from_static(b"not done"));
        let delete = store.delete(&one);
        let (put, delete, ()) = tokio::join!(put, delete, async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            faults.crash();
        });
        assert_eq!(put.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(delete.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(store.list(None, 10).await.unwrap().len(), 1);
        assert_eq!(store.get(&id(1), None).await.unwrap(), &b"done"[..]);
    }

    #[tokio::test]
    async fn fails_and_corrupts_as_it_was_told() {
        let (store, faults) = store();
        let good = Bytes::from(vec![0; 1_000]);
        faults.fail_puts(2);
        assert!(store.put(&id(1), good.clone()).await.is_err());
        assert!(store.put(&id(1), good.clone()).await.is_err());
        store.put(&id(1), good.clone()).await.unwrap();
        faults.fail_gets(1);
        assert!(store.get(&id(1), None).await.is_err());
        faults.corrupt_reads(1.0);
        let bad = store.get(&id(1), None).await.unwrap();
        assert_eq!(bad.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1, "one bit");
        faults.heal();
        assert_eq!(store.get(&id(1), None).await.unwrap(), good);
        faults.fail_some(0.5);
        let mut failed = 0;
        for _ in 0..1_000 {
            failed += usize::from(store.head(&id(1)).await.is_err());
        }
        assert!((400..600).contains(&failed), "{failed}");
    }

    #[tokio::test]
    async fn damages_what_is_stored() {
        let (store, _) = store();
        for number in 0..10 {
            store.put(&id(number), Bytes::from(vec![0; 100])).await.unwrap();
        }
        let damaged = store.damage(3).await.unwrap();
        for number in 0..10 {
            let bits =
                store.get(&id(number), None).await.unwrap().iter().map(|byte| byte.count_ones()).sum::<u32>();
            assert_eq!(bits, u32::from(damaged.contains(&id(number))));
        }
        assert_eq!(store.truncate(1).await.unwrap().len(), 1);
        assert_eq!(store.list(None, 99).await.unwrap().iter().filter(|object| object.size == 50).count(), 1);
        assert_eq!(store.lose(100).await.unwrap().len(), 10, "no more than there are");
        assert_eq!(store.list(None, 10).await.unwrap(), vec![]);
    }
}
