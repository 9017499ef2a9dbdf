//! One volume: its lock, what is pending, and how far its changes are on stable storage.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, PoisonError};
use tandemfs::clock::{Clock, Time};
use tandemfs::id::{BlockId, Ino, VolumeId, VolumeKey};
use tandemfs::tree::{Key, Record};
use tandemfs::{Error, Result};
use tokio::sync::{Mutex, MutexGuard};

use super::cache::{Life, RecordCache};
use super::joining::Scattered;
use super::orphans::{Orphans, locked};
use super::tally::Tally;
use super::unsettled::Unsettled;
use crate::meta::record::References;
use crate::meta::{Meta, record};
use crate::replicate::Replicator;
use crate::sessions::audience::Audience;
use crate::watch;

/// So many bytes must be free on the nodes for a session to have a volume to itself.
const QUEUES_ROOM: u64 = 64 << 20;

/// What all volumes share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) meta: Meta,
    pub(super) replicator: Arc<Replicator>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) cache: RecordCache,
    pub(super) audience: Arc<Audience>,
}

impl Shared {
    /// Milliseconds since 1970, as records of blocks keep them.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.now().as_millis()).unwrap_or(0)
    }

    /// Whether what sessions answer before it is sent will find room.
    pub(super) async fn has_room_for_queues(&self) -> bool {
        self.replicator.has_room(QUEUES_ROOM).await
    }

    /// The time for a mutation.
    pub(super) fn now(&self) -> Time {
        self.clock.now()
    }
}

/// One volume.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(super) id: VolumeId,
    pub(super) key: VolumeKey,
    pub(super) shared: Arc<Shared>,
    pub(crate) orphans: Arc<Orphans>,
    pub(super) unsettled: Unsettled,
    pub(super) scattered: Scattered,
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
    /// Positions that are so far, while one before them is not. Locked before the progress is changed.
    ahead: std::sync::Mutex<BTreeSet<u64>>,
    /// What a check notes of changes while it counts. Begun, and added to, under the volume's lock.
    tally: std::sync::Mutex<Option<Tally>>,
}

/// What is changed under the volume's lock.
#[derive(Debug)]
pub(super) struct State {
    /// The generation of the engine's queue that all this builds on.
    pub(super) generation: u64,
    /// Goes up when memory is dropped.
    pub(super) life: Life,
    /// Counts the commits.
    pub(super) version: u64,
    /// The volume is being removed.
    pub(super) removed: bool,
    /// Inode numbers that were taken for what is made here.
    pub(super) spare: std::ops::Range<u64>,
    /// The position of the last submission.
    position: u64,
    /// Records that were submitted and may not be in the engine yet.
    records: BTreeMap<Key, Pending<Option<Record>>>,
    /// Reference counts likewise.
    references: BTreeMap<BlockId, Pending<Option<References>>>,
    /// What each submission put into the two.
    submissions: VecDeque<Submission>,
}

#[derive(Debug)]
struct Pending<T> {
    position: u64,
    value: T,
}

#[derive(Debug)]
struct Submission {
    position: u64,
    keys: Vec<Key>,
    blocks: Vec<BlockId>,
}

/// How far the submissions are on stable storage, and the sessions have been told of them, for those who wait.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    durable: u64,
    resets: u64,
}

/// A moment of a volume that may still be on its way to stable storage.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    position: u64,
    resets: u64,
}

impl Volume {
    pub(super) fn new(of: &record::Volume, shared: Arc<Shared>, orphans: Arc<Orphans>) -> Self {
        let state = State {
            generation: shared.meta.generation(),
            life: (of.id, 1),
            version: 1,
            removed: of.removed,
            spare: 0..0,
            position: 0,
            records: BTreeMap::new(),
            references: BTreeMap::new(),
            submissions: VecDeque::new(),
        };
        Self {
            id: of.id,
            key: of.key.clone(),
            shared,
            orphans,
            unsettled: Unsettled::default(),
            scattered: Scattered::default(),
            state: Mutex::new(state),
            progress: watch::Sender::new(Progress::default()),
            ahead: std::sync::Mutex::default(),
            tally: std::sync::Mutex::default(),
        }
    }

    /// Takes the volume's lock; forgets what is no longer pending, and everything if a commit has failed.
    pub(super) async fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().await;
        let generation = self.shared.meta.generation();
        if state.generation == generation {
            let durable = self.progress.get().durable;
            state.settle(durable);
        } else {
            state.reset(generation);
            // It has noted what did not happen.
            *self.tally() = None;
            // What failed is nothing to wait for any more.
            let durable = state.position;
            let mut ahead = self.ahead();
            ahead.clear();
            self.progress
                .send_modify(|progress| *progress = Progress { durable, resets: progress.resets + 1 });
        }
        state
    }

    /// Takes the lock of a volume that is in use.
    ///
    /// # Errors
    /// `NotFound` when it is being removed.
    pub(super) async fn lock_live(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.lock().await;
        if state.removed {
            return Err(Error::not_found("volume"));
        }
        Ok(state)
    }

    /// What a check notes of changes.
    pub(super) fn tally(&self) -> std::sync::MutexGuard<'_, Option<Tally>> {
        locked(&self.tally)
    }

    /// This moment; for use under the lock.
    pub(super) fn moment(&self, state: &State) -> Moment {
        Moment { position: state.position, resets: self.progress.get().resets }
    }

    /// Notes that a submission is on stable storage and that the sessions have been told of it. It counts when that is so of all before.
    pub(super) fn made_durable(&self, moment: Moment) {
        let mut ahead = self.ahead();
        self.progress.send_if_modified(|progress| {
            if progress.resets != moment.resets || progress.durable >= moment.position {
                return false;
            }
            ahead.insert(moment.position);
            let before = progress.durable;
            while ahead.remove(&(progress.durable + 1)) {
                progress.durable += 1;
            }
            progress.durable > before
        });
    }

    fn ahead(&self) -> std::sync::MutexGuard<'_, BTreeSet<u64>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a moment is on stable storage; `false` if it never will be, because a commit before it failed.
    pub(super) async fn durable(&self, moment: Moment) -> bool {
        let mut progress = self.progress.subscribe();
        let reached = progress
            .wait_for(|progress| progress.resets != moment.resets || progress.durable >= moment.position)
            .await;
        reached.is_ok_and(|progress| progress.resets == moment.resets)
    }

    /// The number for a new inode that is made here.
    pub(super) async fn new_ino(&self, state: &mut State) -> Result<Ino> {
        if state.spare.is_empty() {
            state.spare = self.take_inos(SPARE_INODES).await?;
        }
        state.spare.next().map(Ino).ok_or_else(|| Error::internal("no inode numbers"))
    }

    /// Inode numbers that were never given before.
    pub(crate) async fn take_inos(&self, count: u64) -> Result<std::ops::Range<u64>> {
        let first = self.shared.meta.next_numbers(&format!("inode:{}", self.id), count).await?;
        // Numbers begin at 1, which is the root's.
        Ok(first + Ino::ROOT.0..first + Ino::ROOT.0 + count)
    }
}

/// How many inode numbers are taken at once for what is made here.
const SPARE_INODES: u64 = 64;

impl State {
    /// A record that is pending.
    pub(super) fn record(&self, key: &Key) -> Option<&Option<Record>> {
        self.records.get(key).map(|pending| &pending.value)
    }

    /// The pending records in a range of keys.
    pub(super) fn records_in(
        &self,
        range: impl std::ops::RangeBounds<Key>,
    ) -> impl Iterator<Item = (&Key, &Option<Record>)> {
        self.records.range(range).map(|(key, pending)| (key, &pending.value))
    }

    /// A reference count that is pending.
    pub(super) fn references(&self, block: &BlockId) -> Option<Option<References>> {
        self.references.get(block).map(|pending| pending.value)
    }

    /// Takes up what was just submitted.
    pub(super) fn submitted(
        &mut self,
        cache: &RecordCache,
        records: &BTreeMap<Key, Option<Record>>,
        references: &BTreeMap<BlockId, Option<References>>,
    ) {
        self.position += 1;
        self.version += 1;
        let position = self.position;
        for (key, record) in records {
            cache.put(self.life, key.clone(), record.clone());
            self.records.insert(key.clone(), Pending { position, value: record.clone() });
        }
        for (block, count) in references {
            self.references.insert(*block, Pending { position, value: *count });
        }
        self.submissions.push_back(Submission {
            position,
            keys: records.keys().cloned().collect(),
            blocks: references.keys().copied().collect(),
        });
    }

    /// Whether the engine has all that was submitted.
    pub(super) fn is_settled(&self) -> bool {
        self.submissions.is_empty()
    }

    fn settle(&mut self, durable: u64) {
        while self.submissions.front().is_some_and(|first| first.position <= durable) {
            let Some(done) = self.submissions.pop_front() else { return };
            for key in done.keys {
                if self.records.get(&key).is_some_and(|pending| pending.position == done.position) {
                    self.records.remove(&key);
                }
            }
            for block in done.blocks {
                if self.references.get(&block).is_some_and(|pending| pending.position == done.position) {
                    self.references.remove(&block);
                }
            }
        }
    }

    fn reset(&mut self, generation: u64) {
        self.generation = generation;
        self.life.1 += 1;
        self.version += 1;
        self.records.clear();
        self.references.clear();
        self.submissions.clear();
    }
}
