//! One session in memory: what it has to be told, what it has acknowledged, and which of its batches are under way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tandemfs::api::fs::{Ack, BatchReply, Event, SESSION_SLOTS};
use tandemfs::id::{Ino, SessionId};
use tandemfs::tree::Key;
use tandemfs::{Error, Result};
use tokio::time::Instant;

use super::delegations::Delegated;
use crate::meta::record;
use crate::watch;

/// Events that may wait for an acknowledgement; more of them become one that says to drop everything.
const EVENTS_MAX: usize = 1024;
/// Keys that may wait likewise, over all events.
const KEYS_MAX: usize = 65_536;
/// Ranges of inode numbers that a session is remembered to have; the oldest are forgotten.
const RANGES_MAX: usize = 256;

/// What comes of a batch, for all who have asked.
pub(super) type Answered = Option<Arc<Result<BatchReply>>>;

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(super) id: SessionId,
    pub(super) lease: Duration,
    /// The event that says to drop all that it remembers of an earlier run; 0: there is none.
    drop_all: u64,
    inner: Mutex<Inner>,
    /// Goes up when something has changed that somebody may wait for.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    record: record::Session,
    ended: bool,
    /// When the client last gave a sign of life.
    seen: Instant,
    /// Events that have not been acknowledged, in order, and since when they wait.
    events: VecDeque<(Instant, Event)>,
    keys: usize,
    /// Files that it was told to return and has not returned yet.
    recalled: BTreeSet<Ino>,
    /// Likewise, all of the volume.
    volume_recalled: bool,
    /// The number of the last event.
    last: u64,
    acknowledged: u64,
    /// The number of the stream in use; an older one ends.
    stream: u64,
    /// The sequence number that each slot holds the answer to; `None`: not loaded since the daemon started.
    slots: Option<BTreeMap<u64, u64>>,
    under_way: BTreeMap<u64, watch::Receiver<Answered>>,
}

/// What was queued for a session.
pub(super) struct News {
    /// The event's number.
    pub(super) number: u64,
    /// Orphans that the session can no longer be asked about.
    pub(super) assumed_held: Vec<Ino>,
}

/// What to do with a batch.
pub(super) enum Begun {
    /// It is new: commit it and give the answer to all who wait.
    New(watch::Sender<Answered>),
    /// It is under way: wait for its answer.
    UnderWay(watch::Receiver<Answered>),
    /// It was committed: give its answer again.
    Done,
}

/// What an event stream does next.
pub(super) enum Next {
    /// Gives this event.
    Event(Event),
    /// Waits.
    Wait,
    /// Ends.
    End,
}

impl Session {
    /// A session that has just been opened.
    pub(super) fn opened(record: record::Session, lease: Duration) -> Self {
        Self::new(record, lease, 0, Some(BTreeMap::new()))
    }

    /// A session of an earlier run: the first thing that it is told is to drop all that it remembers. Its events are numbered
    /// on from beyond what that run can have used.
    pub(super) fn recovered(record: record::Session, lease: Duration, run: u64, version: u64) -> Self {
        let mut session = Self::new(record, lease, run << 32, None);
        session.drop_all = session.push(version, |number, version| Event::DropAll { number, version });
        session
    }

    fn new(record: record::Session, lease: Duration, last: u64, slots: Option<BTreeMap<u64, u64>>) -> Self {
        let id = record.id;
        let inner = Inner {
            record,
            ended: false,
            seen: Instant::now(),
            events: VecDeque::new(),
            keys: 0,
            recalled: BTreeSet::new(),
            volume_recalled: false,
            last,
            acknowledged: last,
            stream: 0,
            slots,
            under_way: BTreeMap::new(),
        };
        Self { id, lease, drop_all: 0, inner: Mutex::new(inner), changes: watch::Sender::new(0) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Wakes at each change of the session.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Its record.
    pub(super) fn record(&self) -> record::Session {
        self.inner().record.clone()
    }

    /// A request has come. A client that asks but does not carry out what it was told within two leases is given up, so that
    /// nobody waits for it for ever.
    ///
    /// # Errors
    /// `SessionEnded`.
    pub(super) fn touch(&self) -> Result<()> {
        let mut inner = self.inner();
        let now = Instant::now();
        let overdue = inner.events.front().is_some_and(|(since, _)| *since + 2 * self.lease <= now);
        if inner.ended || overdue {
            return Err(Error::session_ended(format!("session {}", self.id)));
        }
        inner.seen = now;
        drop(inner);
        self.changed();
        Ok(())
    }

    /// Until when the client may be silent.
    pub(super) fn deadline(&self) -> Instant {
        self.inner().seen + self.lease
    }

    /// Ends it; whether it had not ended before.
    pub(super) fn end(&self) -> bool {
        let was_live = !std::mem::replace(&mut self.inner().ended, true);
        self.changed();
        was_live
    }

    /// Whether it has ended.
    pub(super) fn is_ended(&self) -> bool {
        self.inner().ended
    }

    /// Whether it has ended and none of its batches is under way.
    pub(super) fn is_over(&self) -> bool {
        let inner = self.inner();
        inner.ended && inner.under_way.is_empty()
    }

    /// Queues the news of a change. When that is too much to say one by one, the session is told to drop everything, and is
    /// taken to hold all orphans that it was not told of.
    pub(super) fn tell(&self, version: u64, keys: Vec<Key>, orphans: Vec<Ino>) -> News {
        let mut inner = self.inner();
        let news = if inner.is_full(keys.len()) {
            let mut news = inner.fold(version);
            news.assumed_held.extend(orphans);
            news
        } else {
            inner.keys += keys.len();
            let number =
                inner.push(version, |number, version| Event::Changed { number, version, keys, orphans });
            News { number, assumed_held: Vec::new() }
        };
        drop(inner);
        self.changed();
        news
    }

    /// Queues the news that a file is delegated to another session; as [`Session::tell`].
    pub(super) fn tell_delegated(&self, version: u64, ino: Ino) -> News {
        let mut inner = self.inner();
        let news = if inner.is_full(1) {
            inner.fold(version)
        } else {
            let number = inner.push(version, |number, version| Event::Delegated { number, version, ino });
            News { number, assumed_held: Vec::new() }
        };
        drop(inner);
        self.changed();
        news
    }

    /// Queues the news that nothing that it has cached counts any more.
    pub(super) fn tell_all(&self, version: u64) -> News {
        let mut inner = self.inner();
        let news = if inner.is_full(0) {
            inner.fold(version)
        } else {
            let number = inner.push(version, |number, version| Event::DropAll { number, version });
            News { number, assumed_held: Vec::new() }
        };
        drop(inner);
        self.changed();
        news
    }

    /// Tells it to return what is delegated to it, each file once, and the volume once.
    pub(super) fn recall(&self, what: &Delegated) {
        let mut inner = self.inner();
        let inos: Vec<Ino> = what.files.iter().copied().filter(|ino| inner.recalled.insert(*ino)).collect();
        let volume = what.volume && !std::mem::replace(&mut inner.volume_recalled, true);
        if volume || !inos.is_empty() {
            inner.push(0, |number, _| Event::Recall { number, inos, volume });
        }
        drop(inner);
        self.changed();
    }

    /// It has returned files.
    pub(crate) fn returned(&self, inos: &[Ino]) {
        let mut inner = self.inner();
        for ino in inos {
            inner.recalled.remove(ino);
        }
    }

    /// It has returned the volume.
    pub(crate) fn returned_volume(&self) {
        self.inner().volume_recalled = false;
    }

    fn push(&self, version: u64, event: impl FnOnce(u64, u64) -> Event) -> u64 {
        let number = self.inner().push(version, event);
        self.changed();
        number
    }

    /// The number of the last event.
    pub(super) fn last(&self) -> u64 {
        self.inner().last
    }

    /// Whether an event needs no more waiting for.
    pub(super) fn is_acknowledged(&self, number: u64) -> bool {
        let inner = self.inner();
        inner.ended || inner.acknowledged >= number
    }

    /// The event that says to drop all that it remembers of an earlier run, if it has not acknowledged that yet.
    pub(super) fn remembers(&self) -> Option<u64> {
        (!self.is_acknowledged(self.drop_all)).then_some(self.drop_all)
    }

    /// Takes an acknowledgement.
    ///
    /// # Errors
    /// `Invalid` for an event that there was not.
    pub(super) fn acknowledge(&self, ack: &Ack) -> Result<()> {
        let mut inner = self.inner();
        if ack.number > inner.last {
            return Err(Error::invalid("an event of that number was never sent"));
        }
        inner.acknowledged = inner.acknowledged.max(ack.number);
        while inner.events.front().is_some_and(|(_, event)| event.number() <= ack.number) {
            if let Some((_, Event::Changed { keys, .. })) = inner.events.pop_front() {
                inner.keys -= keys.len();
            }
        }
        drop(inner);
        self.changed();
        Ok(())
    }

    /// Begins a stream of events in the place of the one before; its number, and the last event's that was acknowledged.
    pub(super) fn begin_stream(&self) -> (u64, u64) {
        let mut inner = self.inner();
        inner.stream += 1;
        let begun = (inner.stream, inner.acknowledged);
        drop(inner);
        self.changed();
        begun
    }

    /// What a stream does that has given all events up to `given`.
    pub(super) fn next(&self, stream: u64, given: u64) -> Next {
        let inner = self.inner();
        if inner.ended || inner.stream != stream {
            return Next::End;
        }
        match inner.events.iter().find(|(_, event)| event.number() > given) {
            Some((_, event)) => Next::Event(event.clone()),
            None => Next::Wait,
        }
    }

    /// Whether the answers that are kept for it are known.
    pub(super) fn has_slots(&self) -> bool {
        self.inner().slots.is_some()
    }

    /// Tells it the sequence numbers of the answers that are kept.
    pub(super) fn load_slots(&self, sequences: impl Iterator<Item = u64>) {
        let slots = sequences.map(|sequence| (sequence % SESSION_SLOTS, sequence)).collect();
        self.inner().slots.get_or_insert(slots);
    }

    /// Looks whether a batch is new.
    ///
    /// # Errors
    /// `Stale` for a sequence number that is out of the window.
    pub(super) fn begin(&self, sequence: u64) -> Result<Begun> {
        let mut inner = self.inner();
        if let Some(waiter) = inner.under_way.get(&sequence) {
            return Ok(Begun::UnderWay(waiter.clone()));
        }
        let slot = sequence % SESSION_SLOTS;
        let stale = || Error::stale(format!("sequence number {sequence} is out of the window"));
        match inner.slots.as_ref().and_then(|slots| slots.get(&slot)) {
            Some(held) if *held == sequence => return Ok(Begun::Done),
            Some(held) if *held > sequence => return Err(stale()),
            _ => {}
        }
        if inner.under_way.keys().any(|other| other % SESSION_SLOTS == slot) {
            return Err(stale());
        }
        let (sender, receiver) = watch::channel(None);
        inner.under_way.insert(sequence, receiver);
        Ok(Begun::New(sender))
    }

    /// A batch is no longer under way.
    pub(super) fn done(&self, sequence: u64, committed: bool) {
        let mut inner = self.inner();
        inner.under_way.remove(&sequence);
        if let (true, Some(slots)) = (committed, inner.slots.as_mut()) {
            slots.insert(sequence % SESSION_SLOTS, sequence);
        }
    }

    /// Whether an inode number was granted.
    pub(super) fn owns(&self, ino: Ino) -> bool {
        self.inner().record.inodes.iter().any(|(first, count)| (first.0..first.0 + count).contains(&ino.0))
    }

    /// Its record with one more range of inode numbers.
    pub(super) fn with_inodes(&self, first: Ino, count: u64) -> record::Session {
        let mut inner = self.inner();
        let inodes = &mut inner.record.inodes;
        match inodes.last_mut() {
            Some((last, length)) if last.0 + *length == first.0 => *length += count,
            _ => inodes.push((first, count)),
        }
        if inodes.len() > RANGES_MAX {
            inodes.remove(0);
        }
        inner.record.clone()
    }
}

impl Inner {
    /// Whether there is no room for another event with so many keys.
    fn is_full(&self, keys: usize) -> bool {
        self.events.len() >= EVENTS_MAX || self.keys + keys > KEYS_MAX
    }

    /// Makes one event of all that are waiting, beside what is to be returned.
    fn fold(&mut self, version: u64) -> News {
        let mut assumed_held = Vec::new();
        for (_, event) in std::mem::take(&mut self.events) {
            if let Event::Changed { orphans, .. } = event {
                assumed_held.extend(orphans);
            }
        }
        self.keys = 0;
        let number = self.push(version, |number, version| Event::DropAll { number, version });
        if self.volume_recalled || !self.recalled.is_empty() {
            let (inos, volume) = (self.recalled.iter().copied().collect(), self.volume_recalled);
            self.push(version, |number, _| Event::Recall { number, inos, volume });
        }
        News { number, assumed_held }
    }

    fn push(&mut self, version: u64, event: impl FnOnce(u64, u64) -> Event) -> u64 {
        self.last += 1;
        self.events.push_back((Instant::now(), event(self.last, version)));
        self.last
    }
}
