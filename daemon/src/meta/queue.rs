//! The way to the engine: every commit of the daemon goes through one queue, which puts all that waits into one
//! commit of the engine, under the epoch of this run.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use tandemfs::id::NodeId;
use tandemfs::{Error, ErrorKind, Result};
use tokio::sync::{Notify, oneshot};

use super::{Guard, Key, MetaStore, Value, Write, keys, put, record};
use crate::metrics::COUNTERS;
use crate::watch;

/// What may wait before [`Meta::ready`] makes others wait; [`Meta::submit`] refuses at twice that.
const WAITING_MAX: usize = 4_096;
const WAITING_BYTES_MAX: usize = 64 << 20;
/// What one commit of the engine may carry.
const GROUP_MAX: usize = 1_024;
const GROUP_BYTES_MAX: usize = 8 << 20;
/// How often a commit that only lost a race is tried again.
const TRIES: usize = 16;

/// The metadata of the daemon: reads, and commits in groups. Clones share one queue.
///
/// Its background task commits what is still queued when the last clone is dropped, then ends.
#[derive(Clone, Debug)]
pub struct Meta {
    shared: Arc<Shared>,
    _alive: Arc<Alive>,
}

/// A submitted batch: a future that is ready when its writes are on stable storage, or have failed. The writes
/// happen also if it is dropped.
#[derive(Debug)]
pub struct Ticket(oneshot::Receiver<Result<()>>);

impl Future for Ticket {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(Pin::new(&mut self.0).poll(context)).unwrap_or_else(|_| Err(stopped())))
    }
}

#[derive(Debug)]
struct Shared {
    store: Arc<dyn MetaStore>,
    run: u64,
    epoch: Guard,
    state: Mutex<State>,
    /// There is work, or nothing will be queued any more.
    work: Notify,
    /// Something has left the queue.
    room: Notify,
    standing: watch::Sender<Standing>,
    /// Held by [`Meta::next_numbers`], so that its callers do not race each other.
    numbers: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    generation: u64,
    waiting: VecDeque<Queued>,
    bytes: usize,
}

#[derive(Debug)]
struct Queued {
    guards: Vec<Guard>,
    writes: Vec<Write>,
    bytes: usize,
    answer: oneshot::Sender<Result<()>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Open,
    /// Takes nothing more; what is queued is being committed.
    Closing,
    /// The task has ended.
    Ended,
    /// Another run has raised the epoch.
    Fenced,
}

fn stopped() -> Error {
    Error::unavailable("the metadata store is being closed")
}

fn fenced() -> Error {
    Error::stale("another daemon has taken over the metadata store")
}

impl Meta {
    /// Raises the epoch, so that commits of every earlier run fail from now on, and starts the queue.
    ///
    /// # Errors
    /// Those of the engine; `Corrupt` for a damaged epoch.
    pub async fn open(store: Arc<dyn MetaStore>) -> Result<Self> {
        let key = keys::epoch();
        for _ in 0..TRIES {
            let value = store.get_many(std::slice::from_ref(&key)).await?.pop().flatten();
            let last: u64 =
                value.as_deref().map(|value| record::decode(&key, value)).transpose()?.unwrap_or(0);
            let run = last + 1;
            let raise = put(key.clone(), &run)?;
            let epoch = Guard { key: key.clone(), value: raise.value.clone() };
            match store.commit(vec![Guard { key: key.clone(), value }], vec![raise]).await {
                Ok(()) => return Ok(Self::start(store, run, epoch)),
                Err(error) if error.kind() == ErrorKind::Stale => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::unavailable("other daemons keep opening the metadata store"))
    }

    fn start(store: Arc<dyn MetaStore>, run: u64, epoch: Guard) -> Self {
        let shared = Arc::new(Shared {
            store,
            run,
            epoch,
            state: Mutex::default(),
            work: Notify::new(),
            room: Notify::new(),
            standing: watch::Sender::new(Standing::Open),
            numbers: tokio::sync::Mutex::default(),
        });
        let end = End(shared.clone());
        tokio::spawn(async move { end.0.work_off().await });
        Self { _alive: Arc::new(Alive(shared.clone())), shared }
    }

    /// The number of this run: the epoch that guards its commits.
    pub fn run(&self) -> u64 {
        self.shared.run
    }

    /// Goes up whenever a commit of the engine fails: whoever has built on something that was submitted in an older
    /// generation drops it.
    pub fn generation(&self) -> u64 {
        self.shared.state().generation
    }

    /// The nodes that a commit is on when it returns; none for an engine that keeps it alone.
    pub fn copies(&self) -> Vec<NodeId> {
        self.shared.store.copies()
    }

    /// The engine, for reads.
    pub(crate) fn store(&self) -> &dyn MetaStore {
        self.shared.store.as_ref()
    }

    /// Waits until the queue is short enough to take more. Call it before taking a lock under which to submit.
    ///
    /// # Errors
    /// `Unavailable` after [`Meta::close`]; `Stale` when another run has taken over.
    pub async fn ready(&self) -> Result<()> {
        loop {
            let mut room = std::pin::pin!(self.shared.room.notified());
            room.as_mut().enable();
            self.shared.check()?;
            if self.shared.state().has_room(1) {
                return Ok(());
            }
            room.await;
        }
    }

    /// Queues writes. The order of the calls is the order of the commits; a batch is committed as a whole.
    ///
    /// # Errors
    /// `Unavailable` when `generation` is not the current one, when the queue is full, and after [`Meta::close`];
    /// `Stale` when another run has taken over.
    pub fn submit(&self, generation: u64, writes: Vec<Write>) -> Result<Ticket> {
        self.shared.check()?;
        let state = self.shared.state();
        if generation != state.generation {
            return Err(Error::unavailable("an earlier change could not be stored"));
        }
        if !state.has_room(2) {
            return Err(Error::unavailable("too many changes are waiting to be stored").retry_after(1));
        }
        Ok(self.shared.queue(state, Vec::new(), writes))
    }

    /// Commits writes if all guards hold. It goes through the queue like a batch; guards look at the state after
    /// all that was queued before. Dropping the future does not take the commit back.
    ///
    /// # Errors
    /// `Stale` if a guard does not hold, which hurts nothing else in the queue, or when another run has taken
    /// over; those of the engine.
    pub async fn commit(&self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<()> {
        self.ready().await?;
        let ticket = self.shared.queue(self.shared.state(), guards, writes);
        ticket.await
    }

    /// The first of `count` numbers of a kind that were never given before; the first of all is 1.
    ///
    /// # Errors
    /// Those of the engine; numbers of a failed call may be left out.
    pub async fn next_numbers(&self, name: &str, count: u64) -> Result<u64> {
        let key = keys::counter(name);
        let _alone = self.shared.numbers.lock().await;
        for _ in 0..TRIES {
            let value = self.get_raw(&key).await?;
            let next: u64 =
                value.as_deref().map(|value| record::decode(&key, value)).transpose()?.unwrap_or(1);
            let after =
                next.checked_add(count).ok_or_else(|| Error::internal(format!("no more numbers: {name}")))?;
            // A call that was dropped half-way may have left its commit in the queue: hence the guard.
            match self.commit(vec![Guard { key: key.clone(), value }], vec![put(key.clone(), &after)?]).await
            {
                Ok(()) => return Ok(next),
                Err(error) if error.kind() == ErrorKind::Stale => self.shared.check()?,
                Err(error) => return Err(error),
            }
        }
        Err(Error::unavailable(format!("numbers are being taken too fast: {name}")))
    }

    /// Takes nothing more and returns when all that is queued has been committed or has failed.
    pub async fn close(&self) {
        self.shared.begin_to_close();
        let mut standing = self.shared.standing.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _ = standing.wait_for(|standing| matches!(standing, Standing::Ended | Standing::Fenced)).await;
    }

    /// Returns when another run has taken over the store. From then on every commit fails, what is in memory is
    /// out of date, and the daemon must stop serving.
    pub async fn fenced(&self) -> Error {
        let mut standing = self.shared.standing.subscribe();
        if standing.wait_for(|standing| *standing == Standing::Fenced).await.is_err() {
            std::future::pending::<()>().await;
        }
        fenced()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No panic can leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self) -> Result<()> {
        match self.standing.get() {
            Standing::Open => Ok(()),
            Standing::Closing | Standing::Ended => Err(stopped()),
            Standing::Fenced => Err(fenced()),
        }
    }

    fn begin_to_close(&self) {
        self.standing.send_if_modified(|standing| {
            let open = *standing == Standing::Open;
            if open {
                *standing = Standing::Closing;
            }
            open
        });
        self.work.notify_one();
        self.room.notify_waiters();
    }

    fn queue(&self, mut state: MutexGuard<'_, State>, guards: Vec<Guard>, writes: Vec<Write>) -> Ticket {
        let (answer, ticket) = oneshot::channel();
        // Looked at under the lock, which the end of the task takes as well: nothing is queued after it.
        if let Err(error) = self.check() {
            let _ = answer.send(Err(error));
            return Ticket(ticket);
        }
        let bytes =
            writes.iter().map(|write| write.key.len() + write.value.as_ref().map_or(0, Vec::len)).sum();
        state.bytes += bytes;
        state.waiting.push_back(Queued { guards, writes, bytes, answer });
        drop(state);
        self.work.notify_one();
        Ticket(ticket)
    }

    /// The background task.
    async fn work_off(&self) {
        loop {
            let group = self.state().next_group();
            if group.is_empty() {
                if self.standing.get() != Standing::Open {
                    return;
                }
                self.work.notified().await;
                continue;
            }
            self.room.notify_waiters();
            let (writes, answers) = self.admit(group).await;
            if answers.is_empty() {
                continue;
            }
            match self.store.commit(vec![self.epoch.clone()], writes).await {
                // Nobody waits for a ticket that was dropped.
                Ok(()) => answers.into_iter().for_each(|answer| drop(answer.send(Ok(())))),
                Err(error) => self.fail(answers, &error),
            }
        }
    }

    /// Answers those of a group whose guards do not hold, and joins the others. As nothing but this queue commits under
    /// this epoch, what is read here is still so when the engine commits, or the guard on the epoch fails.
    async fn admit(&self, group: Vec<Queued>) -> (Vec<Write>, Vec<oneshot::Sender<Result<()>>>) {
        let guarded: Vec<Key> =
            group.iter().flat_map(|queued| &queued.guards).map(|guard| guard.key.clone()).collect();
        let read = if guarded.is_empty() { Ok(Vec::new()) } else { self.store.get_many(&guarded).await };
        let mut now: Result<BTreeMap<Key, Option<Value>>> =
            read.map(|values| guarded.into_iter().zip(values).collect());
        let (mut writes, mut answers) = (Vec::new(), Vec::new());
        for queued in group {
            if let Err(error) = holds(&now, &queued.guards) {
                let _ = queued.answer.send(Err(error));
                continue;
            }
            for write in &queued.writes {
                if let Ok(value) = now.as_mut().map(|now| now.get_mut(&write.key))
                    && let Some(value) = value
                {
                    value.clone_from(&write.value);
                }
            }
            writes.extend(queued.writes);
            answers.push(queued.answer);
        }
        (writes, answers)
    }

    /// A commit of the engine has failed: so has all that is queued, as it may be built on it.
    fn fail(&self, answers: Vec<oneshot::Sender<Result<()>>>, error: &Error) {
        let taken_over = error.kind() == ErrorKind::Stale;
        log::error!("metadata could not be committed: {error:?}");
        COUNTERS.commit_failures.inc();
        let waiting = {
            let mut state = self.state();
            state.generation += 1;
            if taken_over {
                self.standing.send_replace(Standing::Fenced);
            }
            state.bytes = 0;
            std::mem::take(&mut state.waiting)
        };
        self.room.notify_waiters();
        for answer in answers.into_iter().chain(waiting.into_iter().map(|queued| queued.answer)) {
            let _ = answer.send(Err(if taken_over { fenced() } else { error.duplicate() }));
        }
    }
}

fn holds(now: &Result<BTreeMap<Key, Option<Value>>>, guards: &[Guard]) -> Result<()> {
    for guard in guards {
        let now = now.as_ref().map_err(Error::duplicate)?;
        if now.get(&guard.key) != Some(&guard.value) {
            return Err(Error::stale(format!("metadata record {}", hex::encode(&guard.key))));
        }
    }
    Ok(())
}

impl State {
    fn has_room(&self, times: usize) -> bool {
        self.waiting.len() < WAITING_MAX * times && self.bytes < WAITING_BYTES_MAX * times
    }

    fn next_group(&mut self) -> Vec<Queued> {
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.waiting.front()
            && group.len() < GROUP_MAX
            && (group.is_empty() || bytes + next.bytes <= GROUP_BYTES_MAX)
        {
            bytes += next.bytes;
            group.extend(self.waiting.pop_front());
        }
        self.bytes -= bytes;
        group
    }
}

/// Closes the queue when the last [`Meta`] is dropped.
#[derive(Debug)]
struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.begin_to_close();
    }
}

/// Dropped with the background task, however that ends: nobody waits for it in vain.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.0.state();
            state.generation += 1;
            state.bytes = 0;
            self.0.standing.send_if_modified(|standing| {
                let fenced = *standing == Standing::Fenced;
                if !fenced {
                    *standing = Standing::Ended;
                }
                !fenced
            });
            std::mem::take(&mut state.waiting)
        };
        self.0.room.notify_waiters();
        // The tickets see that their senders are gone.
        drop(waiting);
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
