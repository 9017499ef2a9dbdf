//! Locks on ranges of files: `POST /fs/v1/sessions/<id>/locks` takes a [`LockRequest`] and answers a [`LockReply`].
//!
//! An owner is a number that the client chooses (FUSE's `lk_owner`: a process for fcntl(2)'s locks, an open file for those of
//! flock(2) and OFD); owners of different sessions are different.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::Ino;

/// The last byte that a lock may cover: the largest offset of a file.
pub const OFFSET_MAX: u64 = i64::MAX as u64;

/// Whom a lock keeps out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LockKind {
    /// Writers (F_RDLCK, LOCK_SH).
    Read,
    /// Everybody (F_WRLCK, LOCK_EX).
    Write,
}

/// A lock on the bytes `start..=end` of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lock {
    /// The first byte.
    pub start: u64,
    /// The last byte, at most [`OFFSET_MAX`], which stands for the end of the file wherever that will be.
    pub end: u64,
    /// Whom it keeps out.
    pub kind: LockKind,
    /// The process that asked for it; 0 in what is told of another session's lock.
    pub pid: u32,
}

/// A lock and who holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeldLock {
    /// The file.
    pub ino: Ino,
    /// The owner within the session.
    pub owner: u64,
    /// The lock.
    pub lock: Lock,
}

/// What a session asks about locks.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LockRequest {
    /// Would it be granted? Answers `done` or `held`.
    Test(HeldLock),
    /// Set it, in the place of what the owner has in its range; answers `done`, `held` or `full`, at once.
    Set {
        /// What to set.
        wanted: HeldLock,
        /// The place that a wait has given.
        place: Option<u64>,
    },
    /// Wait until it may be set, but not for longer than some seconds. Answers `place` or `deadlock` or `full`; to be followed by a
    /// `set` with that place, and another wait with it if that is refused. Nothing is held by waiting.
    Wait {
        /// What to wait for.
        wanted: HeldLock,
        /// The place that the wait before has given.
        place: Option<u64>,
    },
    /// The owner waits for this no more: whoever comes after the answer is not kept out by its place. Its `wait` is answered.
    Leave(HeldLock),
    /// Give up what an owner has in a range. Answers `done` or `full` (it may leave two locks where one was).
    Unlock {
        /// The file.
        ino: Ino,
        /// The owner.
        owner: u64,
        /// The first byte.
        start: u64,
        /// The last byte.
        end: u64,
    },
    /// All locks of a session that has the volume to itself and has granted them by itself, in the place of what the daemon knows of it. To be
    /// sent before the volume is returned. Answers `done`, or `lost` as a claim does.
    Replace {
        /// All locks.
        locks: Vec<HeldLock>,
    },
    /// After a restart of the daemon: all locks that the session holds. Answers `done`, or `lost` when it came too late.
    Claim {
        /// The daemon's run that the claim is for.
        run: u64,
        /// All locks that were granted.
        locks: Vec<HeldLock>,
        /// What was asked for and not answered: another may have seen it granted. Held again where nobody claims what stands against
        /// it.
        #[serde(default)]
        asked: Vec<HeldLock>,
    },
}

/// The answer to a [`LockRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LockReply {
    /// The daemon's run: what one run has granted, the next knows only if it is claimed.
    pub run: u64,
    /// What came of it.
    pub outcome: LockOutcome,
}

/// What came of a [`LockRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LockOutcome {
    /// It is done, or nothing stands against it.
    Done,
    /// This lock stands against it.
    Held {
        /// A lock of somebody else.
        lock: Lock,
        /// Whether the same session holds it.
        own: bool,
    },
    /// A place in the queue.
    Place(u64),
    /// Waiting would never end: the holder waits, by way of others perhaps, for this owner (EDEADLK).
    Deadlock,
    /// There are too many locks, or too many who wait (ENOLCK).
    Full,
    /// The daemon was started anew and does not know yet who holds what: ask again soon.
    Recovering,
    /// Another may have had one of the claimed locks since: the session holds none of them.
    Lost,
}
