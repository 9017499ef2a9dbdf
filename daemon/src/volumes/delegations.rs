//! What is delegated to sessions: nobody else is shown a file, or changes one, before it has been returned; and where one session has the
//! whole volume, nobody else is shown or changes anything before that.

use std::collections::BTreeSet;
use std::time::Duration;

use tandemfs::id::{Ino, SessionId};
use tandemfs::tree::{Key, Record};
use tandemfs::{Error, Result};
use tokio::sync::MutexGuard;
use tokio::time::timeout;

use super::volume::{State, Volume};
use crate::sessions::audience::{InTheWay, Told};

/// How often files are recalled for one request: who has returned one may take it again before the other comes to it.
pub(super) const RECALLS_MAX: usize = 64;

/// So long who wants the volume waits for others to drop what they have cached: its changes wait meanwhile.
const DROP_PATIENCE: Duration = Duration::from_millis(250);

/// The volume, given to a session.
pub(crate) struct Given {
    /// Nobody else has it mounted.
    pub(crate) alone: bool,
}

impl Volume {
    /// What is in the way of showing some records to a session, or of a change that has looked at them; to be asked under the lock.
    pub(super) fn in_the_way<'a>(
        &self,
        author: Option<SessionId>,
        records: impl Iterator<Item = (&'a Key, &'a Option<Record>)>,
    ) -> Option<InTheWay> {
        let files: BTreeSet<Ino> =
            records.filter_map(|(key, record)| file_of(key, record.as_ref())).collect();
        self.shared.audience.in_the_way(self.id, author, &files)
    }

    /// Has whoever asks without a session wait for those of the run before: what is delegated to them is not known before they are back.
    pub(super) async fn returned_by_before(&self, author: Option<SessionId>) {
        if author.is_none() {
            self.shared.audience.dropped_by_others(self.id, None).await;
        }
    }

    /// Takes the lock when no session has the volume to itself, for changes that no rule decides about.
    ///
    /// # Errors
    /// `NotFound` when it is being removed; `Unavailable`.
    pub(super) async fn lock_returned(&self) -> Result<MutexGuard<'_, State>> {
        for _ in 0..RECALLS_MAX {
            let state = self.lock_live().await?;
            let Some(in_the_way) = self.in_the_way(None, std::iter::empty()) else { return Ok(state) };
            drop(state);
            self.recall(in_the_way).await;
        }
        Err(busy())
    }

    /// Delegates the whole volume to a session. If others have it mounted and ask for nothing, they drop first what they have cached. `None`: there
    /// are others who use it, or there is hardly any room left.
    ///
    /// # Errors
    /// `SessionEnded`; `Unavailable`.
    pub(crate) async fn delegate_all(&self, to: SessionId) -> Result<Option<Given>> {
        if !self.shared.has_room_for_queues().await {
            return Ok(None);
        }
        let state = self.lock_live().await?;
        let audience = &self.shared.audience;
        let delegations = audience.delegations(self.id);
        if let Some(session) = audience.get(to) {
            // As in `delegate`.
            session.returned_volume();
        }
        // What a download reads is not taken away, and so is not as the session thinks.
        let alone = !audience.has_others(self.id, Some(to));
        if self.orphans.are_read() || !delegations.add_volume(to, alone) {
            drop(state);
            if !alone && delegations.lets_have(to) {
                // For the next time.
                audience.ask_for_files(self.id, to);
            }
            return Ok(None);
        }
        if audience.get(to).is_none() {
            delegations.give_back_volume(to);
            return Err(Error::session_ended(format!("session {to}")));
        }
        // What others ask for from now on is in its way, and what they have asked for until now is dropped. What they have locked
        // is not known to it.
        if !alone && audience.locks(self.id).has_others(to) {
            delegations.not_given(to);
            return Ok(None);
        }
        let told = (!alone).then(|| audience.tell_all(self.id, to, state.version));
        let moment = self.moment(&state);
        drop(state);
        if let Some(told) = told {
            self.note_held(&told);
            if timeout(DROP_PATIENCE, told.acknowledged()).await.is_err() {
                delegations.not_given(to);
                return Ok(None);
            }
            delegations.dropped(to);
        }
        // What it is shown from now on is to be there after a restart as well.
        let _known = self.durable(moment).await;
        Ok(Some(Given { alone }))
    }

    /// Has files returned.
    pub(super) async fn recall(&self, in_the_way: InTheWay) {
        self.shared.audience.recall(in_the_way).await;
    }

    /// Delegates a file to a session, and waits until the others have dropped what they know of it.
    ///
    /// # Errors
    /// `NotFound` for what is not a file; `TooManyRequests`; `SessionEnded`; `Unavailable`.
    pub(crate) async fn delegate(&self, to: SessionId, ino: Ino) -> Result<()> {
        for _ in 0..RECALLS_MAX {
            let mut state = self.lock_live().await?;
            let key = Key::Inode(ino);
            let record = self.record(&state, &key).await?;
            // What is there now is to be known to the session before it builds on it.
            let moment = self.moment(&state);
            if file_of(&key, record.as_ref()).is_none() {
                drop(state);
                if self.durable(moment).await {
                    return Err(Error::not_found(format!("file {ino}")));
                }
                continue;
            }
            if let Some(in_the_way) = self.in_the_way(Some(to), std::iter::once((&key, &record))) {
                drop(state);
                self.recall(in_the_way).await;
                continue;
            }
            let delegations = self.shared.audience.delegations(self.id);
            if let Some(session) = self.shared.audience.get(to) {
                // A recall that has crossed with the return of the file is not carried out any more, and a mark of it that were left
                // would keep the next one from being told.
                session.returned(&[ino]);
            }
            delegations.add(to, ino)?;
            if self.shared.audience.get(to).is_none() {
                delegations.gone(ino);
                return Err(Error::session_ended(format!("session {to}")));
            }
            // What others have asked for until now is older than this, and is not to be kept.
            state.version += 1;
            let version = state.version;
            drop(state);
            let told = self.shared.audience.tell_delegated(self.id, to, version, ino);
            self.note_held(&told);
            told.acknowledged().await;
            // If it never becomes durable, nobody has been told of it either.
            let _known = self.durable(moment).await;
            return Ok(());
        }
        Err(busy())
    }

    /// Orphans that sessions can no longer be asked about.
    pub(super) fn note_held(&self, told: &Told<'_>) {
        for (session, inos) in &told.assumed_held {
            self.orphans.hold(*session, inos);
            self.shared.audience.check_ended(self.id, *session);
        }
    }
}

/// The regular file that a record shows.
fn file_of(key: &Key, record: Option<&Record>) -> Option<Ino> {
    match (key, record) {
        (Key::Inode(ino), Some(Record::Inode(inode))) if inode.is_file() => Some(*ino),
        (Key::Chunk(ino, _), _) => Some(*ino),
        _ => None,
    }
}

pub(super) fn busy() -> Error {
    Error::unavailable("others change it again and again")
}
