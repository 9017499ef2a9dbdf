//! A storage node that outlives the daemon: objects and segments in memory, and everything that can go wrong with a disk.

use async_trait::async_trait;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tandemd::blocks::{BlockStore, Object, Room};
use tandemd::segments::{Segment, SegmentStore};
use tandemfs::id::BlockId;
use tandemfs::{Error, Result};

use crate::random::Random;
use crate::trace::{Trace, note};

/// How a node behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As it should.
    Well,
    /// Every call fails at once.
    Offline,
    /// No call ever returns.
    Hanging,
    /// Every call takes up to so many milliseconds.
    Slow(u64),
    /// So many of a thousand calls fail.
    Flaky(u64),
    /// What is read has a wrong bit.
    Misreading,
    /// Nothing can be written.
    Full,
}

/// One object.
#[derive(Clone, Debug)]
struct Stored {
    bytes: Bytes,
    /// It is what the daemon had stored here.
    is_good: bool,
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    number: u32,
    trace: Arc<Trace>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    random: Random,
    mode: Mode,
    objects: BTreeMap<BlockId, Stored>,
    /// What it held at some time before, for the day when it comes back with that.
    earlier: BTreeMap<BlockId, Stored>,
    /// Puts that a caller has begun: they may reach the disk also when nobody waits any more.
    begun: BTreeMap<u64, (BlockId, Bytes)>,
    segments: BTreeMap<u64, Vec<u8>>,
    /// The segments at that earlier time.
    earlier_segments: BTreeMap<u64, Vec<u8>>,
    /// Appends that have been begun: segment, place, bytes.
    appending: BTreeMap<u64, (u64, u64, Bytes)>,
    calls: u64,
    /// What has ever reached it, whatever became of it.
    reached: BTreeSet<BlockId>,
}

impl Node {
    /// An empty node.
    pub fn new(number: u32, random: Random, trace: Arc<Trace>) -> Self {
        let state = State {
            random,
            mode: Mode::Well,
            objects: BTreeMap::new(),
            earlier: BTreeMap::new(),
            begun: BTreeMap::new(),
            segments: BTreeMap::new(),
            earlier_segments: BTreeMap::new(),
            appending: BTreeMap::new(),
            calls: 0,
            reached: BTreeSet::new(),
        };
        Self(Arc::new(Inner { number, trace, state: Mutex::new(state) }))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.0.number
    }

    /// From now on it behaves so.
    pub fn set(&self, mode: Mode) {
        note!(self.0.trace, "node {} is {mode:?}", self.0.number);
        self.state().mode = mode;
    }

    /// How it behaves.
    pub fn mode(&self) -> Mode {
        self.state().mode
    }

    /// Everything on it is gone.
    pub fn wipe(&self) {
        note!(self.0.trace, "node {} is wiped", self.0.number);
        let mut state = self.state();
        state.objects.clear();
        state.segments.clear();
    }

    /// Remembers what it holds.
    pub fn remember(&self) {
        let mut state = self.state();
        state.earlier = state.objects.clone();
        state.earlier_segments = state.segments.clone();
    }

    /// It holds again what it held when it was told to remember.
    pub fn go_back(&self) {
        note!(self.0.trace, "node {} is back with what it had before", self.0.number);
        let mut state = self.state();
        state.objects = state.earlier.clone();
        state.segments = state.earlier_segments.clone();
    }

    /// Damages so many of a thousand objects: a wrong bit, a missing end, nothing left, or another object's bytes.
    pub fn rot(&self, in_thousand: u64) {
        let mut state = self.state();
        let ids: Vec<BlockId> = state.objects.keys().copied().collect();
        let mut rotten = 0;
        for id in &ids {
            if !state.random.chance(in_thousand) {
                continue;
            }
            let other = *state.random.pick(&ids);
            // It may have been removed just now.
            let other = state.objects.get(&other).map(|object| object.bytes.clone()).unwrap_or_default();
            let mut bytes = state.objects[id].bytes.to_vec();
            match state.random.below(5) {
                0 => bytes.truncate(state.random.below(bytes.len() as u64 + 1) as usize),
                1 => bytes.fill(0),
                2 => bytes = other.to_vec(),
                3 => drop(state.objects.remove(id)),
                _ => flip(&mut bytes, &mut state.random),
            }
            if let Some(object) = state.objects.get_mut(id)
                && object.bytes != bytes
            {
                *object = Stored { bytes: bytes.into(), is_good: false };
            }
            rotten += 1;
        }
        note!(self.0.trace, "node {}: {rotten} of {} objects rot", self.0.number, ids.len());
    }

    /// Whether it holds the object as it was stored, whoever can reach it now.
    pub fn has_good(&self, id: &BlockId) -> bool {
        self.state().objects.get(id).is_some_and(|object| object.is_good)
    }

    /// Whether an object has ever reached it.
    pub fn was_reached_by(&self, id: &BlockId) -> bool {
        self.state().reached.contains(id)
    }

    /// All that it holds.
    pub fn objects(&self) -> Vec<(BlockId, Bytes)> {
        self.state().objects.iter().map(|(id, object)| (*id, object.bytes.clone())).collect()
    }

    /// The segments that it holds, whoever can reach it now.
    pub fn segments(&self) -> BTreeMap<u64, Vec<u8>> {
        self.state().segments.clone()
    }

    /// The daemon has died: what was on the way to the disk has reached it, or not.
    pub fn crash(&self) {
        let mut state = self.state();
        for (_, (id, bytes)) in std::mem::take(&mut state.begun) {
            if state.random.chance(500) && state.mode != Mode::Offline {
                state.reached.insert(id);
                state.objects.insert(id, Stored { bytes, is_good: true });
            }
        }
        for (_, (number, at, bytes)) in std::mem::take(&mut state.appending) {
            if state.mode != Mode::Offline {
                // All of it, nothing, or the beginning.
                let length = match state.random.below(3) {
                    0 => 0,
                    1 => bytes.len(),
                    _ => state.random.below(bytes.len() as u64 + 1) as usize,
                };
                let _ = state.land(number, at, &bytes[..length]);
            }
        }
    }

    /// The way to the node: time passes, or the call fails, or never ends. `Err` carries the failure.
    async fn travel(&self) -> Result<()> {
        let (mode, wait) = {
            let mut state = self.state();
            state.calls += 1;
            let dawdles = state.random.chance(30);
            let most = match state.mode {
                Mode::Slow(most) => most,
                _ if dawdles => 60,
                _ => 3,
            };
            (state.mode, state.random.below(most + 1))
        };
        if mode == Mode::Offline {
            return Err(self.gone());
        }
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let mode = self.mode();
        match mode {
            Mode::Offline => Err(self.gone()),
            Mode::Hanging => std::future::pending().await,
            Mode::Flaky(often) if self.state().random.chance(often) => Err(self.gone()),
            _ => Ok(()),
        }
    }

    fn gone(&self) -> Error {
        Error::unavailable(format!("node {} does not answer", self.0.number))
    }

    /// What a put does when its time has come; it happens also when its caller has stopped to wait.
    async fn store(self, number: u64) -> Result<()> {
        let arrived = self.travel().await;
        {
            let mut state = self.state();
            let Some((id, object)) = state.begun.remove(&number) else { return Err(self.gone()) };
            // A call that fails may have done its work all the same.
            let lands = arrived.is_ok() || (state.mode != Mode::Offline && state.random.chance(300));
            if state.mode == Mode::Full {
                return Err(Error::no_space(format!("node {}", self.0.number)));
            }
            if lands {
                state.reached.insert(id);
                state.objects.insert(id, Stored { bytes: object, is_good: true });
            }
        }
        arrived?;
        self.travel().await
    }
}

impl State {
    /// Bytes reach the end of a segment.
    fn land(&mut self, number: u64, at: u64, bytes: &[u8]) -> Result<()> {
        match self.segments.get_mut(&number) {
            Some(_) if at == 0 => return Err(Error::already_exists(format!("segment {number}"))),
            None if at == 0 => drop(self.segments.insert(number, bytes.to_vec())),
            Some(segment) if segment.len() as u64 == at => segment.extend_from_slice(bytes),
            _ => return Err(Error::stale(format!("segment {number} does not end at {at}"))),
        }
        Ok(())
    }
}

fn flip(bytes: &mut [u8], random: &mut Random) {
    if !bytes.is_empty() {
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << random.below(8);
    }
}

impl Node {
    /// What an append does when its time has come; it happens also when its caller has stopped to wait.
    async fn extend(self, call: u64) -> Result<()> {
        let arrived = self.travel().await;
        {
            let mut state = self.state();
            let Some((number, at, bytes)) = state.appending.remove(&call) else { return Err(self.gone()) };
            if state.mode == Mode::Full {
                return Err(Error::no_space(format!("node {}", self.0.number)));
            }
            // A call that fails may have done its work all the same, or a part of it.
            let length = match &arrived {
                Ok(()) => bytes.len(),
                Err(_) if state.mode == Mode::Offline => 0,
                Err(_) => state.random.below(bytes.len() as u64 + 1) as usize,
            };
            if length > 0 {
                state.land(number, at, &bytes[..length])?;
            }
        }
        arrived?;
        self.travel().await
    }
}

#[async_trait]
impl SegmentStore for Node {
    async fn append(&self, number: u64, at: u64, bytes: Bytes) -> Result<()> {
        let call = {
            let mut state = self.state();
            if state.mode == Mode::Offline {
                return Err(self.gone());
            }
            state.calls += 1;
            let call = state.calls;
            state.appending.insert(call, (number, at, bytes));
            call
        };
        tokio::spawn(self.clone().extend(call)).await.map_err(|_| self.gone())?
    }

    async fn read(&self, number: u64, range: Range<u64>) -> Result<Bytes> {
        self.travel().await?;
        let mut state = self.state();
        let segment =
            state.segments.get(&number).ok_or_else(|| Error::not_found(format!("segment {number}")))?;
        let place = |at: u64| at.min(segment.len() as u64) as usize;
        let mut bytes = segment[place(range.start)..place(range.end)].to_vec();
        if state.mode == Mode::Misreading {
            flip(&mut bytes, &mut state.random);
        }
        Ok(bytes.into())
    }

    async fn list(&self) -> Result<Vec<Segment>> {
        self.travel().await?;
        let list = |(number, bytes): (&u64, &Vec<u8>)| Segment { number: *number, size: bytes.len() as u64 };
        Ok(self.state().segments.iter().map(list).collect())
    }

    async fn delete(&self, number: u64) -> Result<()> {
        self.travel().await?;
        self.state().segments.remove(&number);
        self.travel().await
    }
}

#[async_trait]
impl BlockStore for Node {
    async fn put(&self, id: &BlockId, object: Bytes) -> Result<()> {
        let number = {
            let mut state = self.state();
            if state.mode == Mode::Offline {
                return Err(self.gone());
            }
            state.calls += 1;
            let number = state.calls;
            state.begun.insert(number, (*id, object));
            number
        };
        note!(self.0.trace, "node {} put {id:?}", self.0.number);
        tokio::spawn(self.clone().store(number)).await.map_err(|_| self.gone())?
    }

    async fn get(&self, id: &BlockId, range: Option<Range<u64>>) -> Result<Bytes> {
        self.travel().await?;
        let mut state = self.state();
        let object = state.objects.get(id).ok_or_else(|| Error::not_found(format!("object {id}")))?;
        let length = object.bytes.len() as u64;
        let range = range.unwrap_or(0..length);
        let bytes = object.bytes.slice(range.start.min(length) as usize..range.end.min(length) as usize);
        if state.mode == Mode::Misreading {
            let mut bytes = bytes.to_vec();
            flip(&mut bytes, &mut state.random);
            return Ok(bytes.into());
        }
        Ok(bytes)
    }

    async fn head(&self, id: &BlockId) -> Result<Option<Object>> {
        self.travel().await?;
        Ok(self.state().objects.get(id).map(|object| Object { id: *id, size: object.bytes.len() as u64 }))
    }

    async fn list(&self, after: Option<&BlockId>, limit: usize) -> Result<Vec<Object>> {
        self.travel().await?;
        let state = self.state();
        let objects = state.objects.iter().filter(|(id, _)| after.is_none_or(|after| *id > after));
        Ok(objects
            .take(limit)
            .map(|(id, object)| Object { id: *id, size: object.bytes.len() as u64 })
            .collect())
    }

    async fn delete(&self, id: &BlockId) -> Result<()> {
        self.travel().await?;
        note!(self.0.trace, "node {} delete {id:?}", self.0.number);
        self.state().objects.remove(id);
        self.travel().await
    }

    async fn room(&self) -> Result<Option<Room>> {
        self.travel().await?;
        Ok(Some(Room {
            total_bytes: 1 << 40,
            free_bytes: if self.mode() == Mode::Full { 0 } else { 1 << 39 },
        }))
    }
}
