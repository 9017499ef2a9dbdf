//! Who has a session on which volume, and is told what changes there before the change is acknowledged.

use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tandemfs::id::{Ino, SessionId, UserId, VolumeId};
use tandemfs::tree::Key;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::delegations::{Delegated, Delegations};
use super::locks::Locks;
use super::session::{News, Session};
use crate::metrics::COUNTERS;

/// A session that lives has so long to send what was written to a file that others wait for: a slow network must not cost it its data.
pub(super) const RETURN_PATIENCE: Duration = Duration::from_secs(60);

/// A silent session that has its volume to itself is kept for so long if nobody else comes ("courteous server", RFC 8881, section 8.4.2.3): the
/// next mount sends what was left in the queue of one that was killed.
pub(super) const COURTESY: Duration = Duration::from_secs(24 * 3600);

/// All sessions that have not ended.
#[derive(Debug)]
pub(crate) struct Audience {
    /// How long others must have been quiet before a session has a volume beside them.
    quiet: Duration,
    inner: Mutex<Inner>,
    ended_added: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    volumes: BTreeMap<VolumeId, BTreeMap<SessionId, Arc<Session>>>,
    sessions: BTreeMap<SessionId, VolumeId>,
    /// Of every volume that has had a session in this run.
    locks: BTreeMap<VolumeId, Arc<Locks>>,
    /// Likewise.
    delegations: BTreeMap<VolumeId, Arc<Delegations>>,
    /// Sessions that have ended and are to be cleared away.
    ended: Vec<(VolumeId, SessionId)>,
}

/// Sessions, and the numbers of the events with which they have been told something.
pub(crate) type Telling = Vec<(Arc<Session>, u64)>;

/// Sessions that have been told something.
pub(crate) struct Told<'a> {
    audience: &'a Audience,
    waiting: Telling,
    /// Orphans that sessions can no longer be asked about, and are taken to hold.
    pub(crate) assumed_held: Vec<(SessionId, Vec<Ino>)>,
}

impl Audience {
    pub(crate) fn new(quiet: Duration) -> Self {
        Self { quiet, inner: Mutex::default(), ended_added: Notify::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, volume: VolumeId, session: Arc<Session>) {
        let mut inner = self.inner();
        inner.sessions.insert(session.id, volume);
        inner.volumes.entry(volume).or_default().insert(session.id, session);
    }

    /// A session that has not ended.
    pub(crate) fn get(&self, id: SessionId) -> Option<Arc<Session>> {
        let inner = self.inner();
        inner.volumes.get(inner.sessions.get(&id)?)?.get(&id).cloned()
    }

    /// All sessions, in the order of their numbers.
    pub(super) fn all(&self) -> Vec<Arc<Session>> {
        let inner = self.inner();
        let mut all: Vec<_> = inner.volumes.values().flat_map(BTreeMap::values).cloned().collect();
        all.sort_by_key(|session| session.id);
        all
    }

    /// How many sessions there are.
    pub(crate) fn len(&self) -> usize {
        self.inner().sessions.len()
    }

    /// The sessions of a volume but one.
    fn others(&self, volume: VolumeId, author: Option<SessionId>) -> Vec<Arc<Session>> {
        let inner = self.inner();
        let of_volume = inner.volumes.get(&volume).into_iter().flat_map(BTreeMap::values);
        of_volume.filter(|session| Some(session.id) != author).cloned().collect()
    }

    /// Whether anybody but `author` has a session on a volume.
    pub(crate) fn has_others(&self, volume: VolumeId, author: Option<SessionId>) -> bool {
        !self.others(volume, author).is_empty()
    }

    /// Tells all sessions of a volume but the author's of a change that is on stable storage.
    pub(crate) fn tell(
        &self,
        volume: VolumeId,
        author: Option<SessionId>,
        version: u64,
        keys: &[Key],
        orphans: &[Ino],
    ) -> Told<'_> {
        if keys.is_empty() && orphans.is_empty() {
            return Told { audience: self, waiting: Vec::new(), assumed_held: Vec::new() };
        }
        self.tell_others(volume, author, |session| session.tell(version, keys.to_vec(), orphans.to_vec()))
    }

    /// Tells all sessions of a volume but one that a file is delegated to that one.
    pub(crate) fn tell_delegated(&self, volume: VolumeId, to: SessionId, version: u64, ino: Ino) -> Told<'_> {
        self.tell_others(volume, Some(to), |session| session.tell_delegated(version, ino))
    }

    /// Tells all sessions of a volume but one to drop everything that they have cached.
    pub(crate) fn tell_all(&self, volume: VolumeId, but: SessionId, version: u64) -> Told<'_> {
        self.tell_others(volume, Some(but), |session| session.tell_all(version))
    }

    fn tell_others(
        &self,
        volume: VolumeId,
        author: Option<SessionId>,
        tell: impl Fn(&Session) -> News,
    ) -> Told<'_> {
        let mut told = Told { audience: self, waiting: Vec::new(), assumed_held: Vec::new() };
        for session in self.others(volume, author) {
            let news = tell(&session);
            if !news.assumed_held.is_empty() {
                told.assumed_held.push((session.id, news.assumed_held));
            }
            told.waiting.push((session, news.number));
        }
        told
    }

    /// What stands in the way of showing `author` something that shows some files, or of a change by it; `None`: nothing. The daemon itself
    /// does not wait for sessions of the run before.
    pub(crate) fn in_the_way(
        &self,
        volume: VolumeId,
        author: Option<SessionId>,
        files: &BTreeSet<Ino>,
    ) -> Option<InTheWay> {
        let delegations = self.delegations(volume);
        let expects = author.is_some_and(|author| delegations.expects_others(author));
        let others = delegations.of_others(author, files);
        (expects || !others.is_empty()).then_some(InTheWay { delegations, author, others })
    }

    /// Tells sessions to return files, and does not wait for them.
    pub(crate) fn ask_for_files(&self, volume: VolumeId, but: SessionId) {
        for (id, what) in self.delegations(volume).files_of_others(but) {
            if let Some(session) = self.get(id) {
                session.recall(&what);
            }
        }
    }

    /// Waits until nothing of it is in the way any more: the others have returned the files, or have ended.
    pub(crate) async fn recall(&self, in_the_way: InTheWay) {
        let InTheWay { delegations, author, others } = in_the_way;
        join_all(others.iter().map(|(id, what)| async {
            match self.get(*id) {
                Some(session) => self.returned(&delegations, &session, what).await,
                // It has ended, with a batch under way.
                None => until(&delegations, || !delegations.has_any(*id, what)).await,
            }
        }))
        .await;
        if let Some(author) = author {
            until(&delegations, || !delegations.expects_others(author)).await;
        }
    }

    /// Has a session return what others wait for, or ends it when it does not within its lease, and [`RETURN_PATIENCE`] if it shows that it lives.
    async fn returned(&self, delegations: &Delegations, session: &Session, what: &Delegated) {
        let patience = Instant::now() + RETURN_PATIENCE.max(2 * session.lease);
        let mut changes = delegations.watch();
        loop {
            changes.mark_unchanged();
            if !delegations.has_any(session.id, what) {
                return;
            }
            // Again when it has returned them and has taken them anew before this came to look.
            session.recall(what);
            let deadline = session.deadline().min(patience);
            if deadline <= Instant::now() && !session.is_ended() {
                log::warn!("session {} has not returned what others wait for: fenced", session.id);
                COUNTERS.sessions_fenced.inc();
                self.end(session);
                continue;
            }
            tokio::select! {
                biased;
                _ = changes.changed() => {}
                () = sleep_until(deadline), if !session.is_ended() => {}
            }
        }
    }

    /// What the others on a volume have been told so far, to wait for it.
    pub(super) fn told_before(&self, volume: VolumeId, author: SessionId) -> Told<'_> {
        let others = self.others(volume, Some(author)).into_iter();
        let waiting = others.map(|session| (Arc::clone(&session), session.last())).collect();
        Told { audience: self, waiting, assumed_held: Vec::new() }
    }

    /// The locks of a volume.
    pub(crate) fn locks(&self, volume: VolumeId) -> Arc<Locks> {
        Arc::clone(self.inner().locks.entry(volume).or_default())
    }

    /// The locks of all volumes.
    pub(super) fn all_locks(&self) -> Vec<Arc<Locks>> {
        self.inner().locks.values().cloned().collect()
    }

    /// The delegations of a volume.
    pub(crate) fn delegations(&self, volume: VolumeId) -> Arc<Delegations> {
        let made = || Arc::new(Delegations::new(self.quiet));
        Arc::clone(self.inner().delegations.entry(volume).or_insert_with(made))
    }

    /// The delegations of all volumes.
    pub(super) fn all_delegations(&self) -> Vec<Arc<Delegations>> {
        self.inner().delegations.values().cloned().collect()
    }

    /// Frees the locks and files of a session that has ended, as soon as no batch of it is under way: what was written is seen by
    /// whoever comes next, or is refused.
    pub(super) fn free(&self, volume: VolumeId, session: &Session) {
        if session.is_over() {
            let (locks, delegations) = {
                let inner = self.inner();
                (inner.locks.get(&volume).cloned(), inner.delegations.get(&volume).cloned())
            };
            if let Some(locks) = locks {
                locks.release(session.id);
            }
            if let Some(delegations) = delegations {
                delegations.release(session.id);
            }
        }
    }

    /// Ends a session: it is told nothing more, and nobody waits for it.
    pub(super) fn end(&self, session: &Session) {
        if !session.end() {
            return;
        }
        let mut inner = self.inner();
        let Some(volume) = inner.sessions.remove(&session.id) else { return };
        if let Some(of_volume) = inner.volumes.get_mut(&volume) {
            of_volume.remove(&session.id);
            if of_volume.is_empty() {
                inner.volumes.remove(&volume);
            }
        }
        inner.ended.push((volume, session.id));
        drop(inner);
        self.free(volume, session);
        self.ended_added.notify_one();
    }

    /// Ends all sessions of a volume.
    pub(crate) fn end_volume(&self, volume: VolumeId) {
        for session in self.others(volume, None) {
            self.end(&session);
        }
        let mut inner = self.inner();
        inner.locks.remove(&volume);
        if let Some(delegations) = inner.delegations.remove(&volume) {
            delegations.clear();
        }
    }

    /// Ends a user's sessions on a volume.
    pub(crate) fn end_user_on(&self, volume: VolumeId, user: UserId) {
        for session in self.others(volume, None) {
            if session.record().user == user {
                self.end(&session);
            }
        }
    }

    /// Sessions that have ended and were not cleared away yet.
    pub(super) fn ended(&self) -> Vec<(VolumeId, SessionId)> {
        self.inner().ended.clone()
    }

    /// A session that has ended is cleared away.
    pub(super) fn cleared(&self, session: SessionId) {
        self.inner().ended.retain(|(_, ended)| *ended != session);
    }

    /// To be called when a session was noted as the holder of an inode: if it has ended meanwhile, it lets go again.
    pub(crate) fn check_ended(&self, volume: VolumeId, session: SessionId) {
        let mut inner = self.inner();
        if !inner.sessions.contains_key(&session) && !inner.ended.contains(&(volume, session)) {
            inner.ended.push((volume, session));
        }
    }

    /// Whether a session may be silent for longer than its lease: it has the volume to itself, and nobody waits for it. Whoever comes ends it.
    pub(super) fn waits_for_return(&self, session: &Session) -> bool {
        let volume = self.inner().sessions.get(&session.id).copied();
        volume.is_some_and(|volume| self.delegations(volume).volume() == Some(session.id))
            && session.deadline() + COURTESY > Instant::now()
    }

    /// Whether a silent session has a volume to itself.
    pub(crate) fn is_kept(&self, volume: VolumeId) -> bool {
        let session = self.delegations(volume).volume().and_then(|session| self.get(session));
        session.is_some_and(|session| session.deadline() <= Instant::now())
    }

    /// Whether any session has a volume to itself.
    pub(super) fn has_volumes_delegated(&self) -> bool {
        self.all_delegations().iter().any(|delegations| delegations.volume().is_some())
    }

    /// Tells all sessions to return the volumes that they have to themselves, and does not wait for them.
    pub(super) fn recall_volumes(&self) {
        for delegations in self.all_delegations() {
            if let Some(session) = delegations.volume().and_then(|session| self.get(session)) {
                session.recall(&Delegated { files: Vec::new(), volume: true });
            }
        }
    }

    /// Waits until a session has ended.
    pub(super) async fn some_ended(&self) {
        self.ended_added.notified().await;
    }

    /// Waits until no session of a volume but one remembers anything of an earlier run.
    pub(crate) async fn dropped_by_others(&self, volume: VolumeId, but: Option<SessionId>) {
        let others = self.others(volume, but).into_iter();
        let telling = others.filter_map(|session| session.remembers().map(|number| (session, number)));
        self.acknowledged_by_others(&telling.collect(), None).await;
    }

    /// Waits until all but one have acknowledged what they were told, ended, or been fenced.
    pub(crate) async fn acknowledged_by_others(&self, telling: &Telling, but: Option<SessionId>) {
        let others = telling.iter().filter(|(session, _)| Some(session.id) != but);
        join_all(others.map(|(session, number)| self.wait(session, *number))).await;
    }

    /// Waits until a session has acknowledged an event or its lease has passed, in which case it is fenced.
    async fn wait(&self, session: &Session, number: u64) {
        let mut changes = session.watch();
        loop {
            changes.mark_unchanged();
            if session.is_acknowledged(number) {
                return;
            }
            let deadline = session.deadline();
            if deadline <= Instant::now() {
                log::warn!("session {} has not answered within its lease: fenced", session.id);
                COUNTERS.sessions_fenced.inc();
                self.end(session);
                return;
            }
            tokio::select! {
                biased;
                _ = changes.changed() => {}
                () = sleep_until(deadline) => {}
            }
        }
    }
}

/// What is delegated to others; see [`Audience::in_the_way`].
pub(crate) struct InTheWay {
    delegations: Arc<Delegations>,
    author: Option<SessionId>,
    others: BTreeMap<SessionId, Delegated>,
}

/// Waits until something is so that changes with delegations.
async fn until(delegations: &Delegations, is_so: impl Fn() -> bool) {
    let mut changes = delegations.watch();
    loop {
        changes.mark_unchanged();
        if is_so() || changes.changed().await.is_err() {
            return;
        }
    }
}

impl Told<'_> {
    /// Who was told, if anybody was.
    pub(crate) fn telling(&self) -> Option<Telling> {
        (!self.waiting.is_empty()).then(|| self.waiting.clone())
    }

    /// Waits until each has acknowledged, ended, or been fenced.
    pub(crate) async fn acknowledged(self) {
        self.audience.acknowledged_by_others(&self.waiting, None).await;
    }
}
