//! The mount's part of the API, under `/fs/v1`: sessions and their events, batches of mutations, reads, blocks,
//! locks.
//!
//! | request | body | answer |
//! | --- | --- | --- |
//! | `POST /fs/v1/sessions` | [`OpenSession`] | 201 [`SessionGrant`] |
//! | `POST /fs/v1/sessions/<id>/resume` | [`ResumeSession`] | 200 [`SessionGrant`]; 410 when it was fenced |
//! | `GET /fs/v1/sessions/<id>/events` | | a stream of [`Event`]s, one JSON document a line |
//! | `POST /fs/v1/sessions/<id>/acks` | [`Ack`] | 204 |
//! | `POST /fs/v1/sessions/<id>/batches` | [`Batch`] | 200 [`BatchReply`] |
//! | `POST /fs/v1/sessions/<id>/reads` | [`Read`] | 200 [`ReadReply`] |
//! | `POST /fs/v1/sessions/<id>/inodes` | | 200 [`InodeRange`] |
//! | `POST /fs/v1/sessions/<id>/delegations` | [`DelegationRequest`] | 200 [`DelegationReply`] |
//! | `POST /fs/v1/sessions/<id>/locks` | [`LockRequest`](super::locks::LockRequest) | 200 [`LockReply`](super::locks::LockReply) |
//! | `PUT /fs/v1/sessions/<id>/blocks/<block>` | the bytes | 204 once they are durable on every chosen node |
//! | `GET /fs/v1/sessions/<id>/blocks/<block>` | | the bytes, or those of `Range` |
//! | `POST /fs/v1/sessions/<id>/blocks` | [`ReadBlocks`] | 200 [`ReadBlocksReply`] |
//! | `DELETE /fs/v1/sessions/<id>` | | 204 |
//!
//! Bodies are JSON or, by `Content-Type` and `Accept`, the compact encoding of [`crate::codec`]. Answers to batches, reads and
//! delegations carry [`LAST_EVENT`](super::LAST_EVENT), refusals as well.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use url::{Host, Url};
use utoipa::ToSchema;

use crate::id::{BlockId, Ino, SessionId, VolumeId, VolumeKey};
use crate::name::{Name, TextOrBytes};
use crate::tree::{Entry, Key, Mutation, Record, Usage, Want};

/// The most mutations in one batch.
pub const BATCH_MUTATIONS_MAX: usize = 4096;
/// The most wants in one read.
pub const READ_WANTS_MAX: usize = 1024;
/// The most entries of a directory in one answer.
pub const DIRECTORY_PAGE_MAX: u32 = 4096;
/// The most chunks in one answer.
pub const CHUNKS_PAGE_MAX: u64 = 1024;
/// The largest block, in bytes.
pub const BLOCK_SIZE_MAX: usize = 4 << 20;
/// The most bytes of a block that comes with a batch (docs/decisions/0010-inline-blocks.md).
pub const INLINE_MAX: usize = 32 << 10;
/// The most bytes of all blocks that come with one batch, which fits into a body.
pub const BATCH_INLINE_MAX: usize = 512 << 10;
/// The most small blocks that are read with one request.
pub const BLOCKS_MAX: usize = 512;
/// The most bytes that they have together.
pub const BLOCKS_BYTES_MAX: usize = 2 << 20;
/// How many batches of a session may be under way: a sequence number may be used once the one that lies so many
/// before it has been answered. The daemon keeps as many answers, to give them again.
pub const SESSION_SLOTS: u64 = 256;
/// The most delegations of a session, and the most that one request returns.
pub const DELEGATIONS_MAX: usize = 65_536;

/// Opens a session on a volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OpenSession {
    /// A shared volume's name; `None` is the caller's home volume.
    pub volume: Option<String>,
    /// The client wants to read only.
    pub read_only: bool,
    /// For people who look at the list of sessions: host and mount point.
    pub client: String,
}

/// Takes a session up again after the connection or the daemon was gone.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ResumeSession {
    /// Inodes without links that the client still holds open.
    pub held: Vec<Ino>,
    /// Files that are delegated to it ([`DelegationRequest`]). A daemon that was started anew learns of them only so.
    #[serde(default)]
    pub delegations: Vec<Ino>,
    /// The whole volume is delegated to it.
    #[serde(default)]
    pub volume: bool,
}

/// What a session is granted.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SessionGrant {
    /// The session.
    pub session: SessionId,
    /// Its volume.
    pub volume: VolumeId,
    /// The key under which the volume's block ids are made.
    pub key: VolumeKey,
    /// No changes are taken.
    pub read_only: bool,
    /// Names the daemon's run: when it differs from the one before, everything that the session has cached is to be
    /// dropped, for events may have been lost.
    pub run: u64,
    /// The version of the volume at this moment.
    pub version: u64,
    /// Milliseconds without a sign of life after which the daemon fences the session.
    pub lease_ms: u64,
    /// What the volume uses and may use.
    pub usage: Usage,
    /// Blocks of at most so many bytes had better come with a batch ([`Batch::blocks`]); 0 for none.
    #[serde(default)]
    pub inline_bytes: u32,
    /// The socket for reads by clients on the daemon's machine ([`crate::short_circuit`]), if there is one.
    pub short_circuit: Option<String>,
    /// Where requests by clients on the daemon's machine are taken as well, if anywhere.
    #[serde(default)]
    pub local: Option<LocalSocket>,
}

/// A Unix socket in the abstract name space (unix(7)) on which the daemon takes the same requests as on its address: a message takes
/// half as long. For clients that use that address on the daemon's own machine, and in its network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LocalSocket {
    /// Where the daemon listens.
    #[schema(value_type = String)]
    pub address: SocketAddr,
    /// The socket's name, which nobody can guess: so nobody else can have taken it, to be sent tokens.
    pub name: String,
}

impl LocalSocket {
    /// Whether it leads to the daemon that is reached at a URL.
    pub fn leads_to(&self, url: &Url) -> bool {
        let listens = self.address.ip();
        let is_host = match url.host() {
            Some(Host::Ipv4(ip)) => ip.is_loopback() && (listens.is_unspecified() || listens == ip),
            Some(Host::Ipv6(ip)) => ip.is_loopback() && (listens.is_unspecified() || listens == ip),
            Some(Host::Domain(name)) => {
                name == "localhost" && (listens.is_unspecified() || listens.is_loopback())
            }
            None => false,
        };
        is_host && url.scheme() == "http" && url.port_or_known_default() == Some(self.address.port())
    }
}

/// Inode numbers that a session may give to what it creates: `first..first + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InodeRange {
    /// The first number.
    pub first: Ino,
    /// How many.
    pub count: u64,
}

/// A batch of mutations: commits as one, in order, once for its (session, sequence).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Batch {
    /// From 1 on, in any order within [`SESSION_SLOTS`]. The same number with the same mutations is answered as before.
    pub sequence: u64,
    /// What to do.
    pub mutations: Vec<Mutation>,
    /// Inodes that this batch may leave without links and that the client holds open: they live on until the
    /// client says [`Mutation::Reap`] or the session ends.
    pub held: Vec<Ino>,
    /// Regular files that this batch creates and that are delegated to the session from then on ([`DelegationRequest`]).
    #[serde(default)]
    pub delegates: Vec<Ino>,
    /// Small blocks that come with it, which its mutations may name: they are stored when it is committed.
    #[serde(default)]
    pub blocks: Vec<InlineBlock>,
    /// The answer need not name records: the author knows what they are, for the volume is delegated to it.
    #[serde(default)]
    pub brief: bool,
}

/// A block that comes with a batch, or with others that were asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InlineBlock {
    /// Its id under the volume's key.
    #[schema(value_type = String)]
    pub id: BlockId,
    /// Its bytes; in a batch at most [`INLINE_MAX`].
    #[serde(with = "crate::name::text_or_bytes")]
    #[schema(value_type = TextOrBytes)]
    pub data: Vec<u8>,
}

/// Takes or returns write delegations (the word is that of NFS version 4, RFC 8881, section 10.4).
///
/// A session to which a file is delegated may answer its programs' writes before the daemon knows of them. Whatever others ask for
/// that shows the file or changes it waits until the session, told by [`Event::Recall`], has committed what was written and has returned
/// the delegation.
///
/// A session that is alone on its volume, or beside others that ask for nothing, may have all of it delegated: then its programs' changes are
/// answered before the daemon knows of them, and whoever else wants to see or change anything there waits until it has been returned.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DelegationRequest {
    /// Wants a regular file; answered when all others have dropped what they had cached of it.
    Take(Ino),
    /// Returns files. What was written to them has been committed.
    Return(Vec<Ino>),
    /// Wants the volume. Not given while other sessions use it, or there are downloads of its files. Sessions that only have it mounted are told to
    /// drop what they have cached ([`Event::DropAll`]), and it is given when they have.
    TakeVolume,
    /// Returns the volume. All that was done has been committed.
    ReturnVolume,
}

/// The answer to a [`DelegationRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DelegationReply {
    /// The daemon's run ([`SessionGrant::run`]) in which this counts: the next one knows of it by [`ResumeSession`] alone.
    pub run: u64,
    /// What was wanted is delegated, or returned.
    pub done: bool,
    /// It is the volume, and nobody else has it mounted.
    #[serde(default)]
    pub alone: bool,
}

/// The answer to a batch that was committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchReply {
    /// The volume's version that the batch made.
    pub version: u64,
    /// Every record that it wrote, as it stands in that version; `None`: removed. Of extents only those of files
    /// that the batch wrote to.
    pub records: Vec<(Key, Option<Record>)>,
}

/// Asks for records.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Read {
    /// Which ones.
    pub wants: Vec<Want>,
}

/// The answer to a read: the state of one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReadReply {
    /// The volume's version that was read.
    pub version: u64,
    /// One answer for each want.
    pub answers: Vec<Answer>,
}

/// The answer to one want.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Answer {
    /// The records; `None` says that there is none (for a single record and a look-up).
    pub records: Vec<(Key, Option<Record>)>,
    /// Whether a range was given whole. If not, go on after the last record.
    pub complete: bool,
}

impl Answer {
    /// The names that are in it, and what they lead to: those of a directory, if that was asked for.
    pub fn into_names(self) -> BTreeMap<Name, Entry> {
        let entry_of = |(key, record)| match (key, record) {
            (Key::Entry(_, name), Some(Record::Entry(entry))) => Some((name, entry)),
            _ => None,
        };
        self.records.into_iter().filter_map(entry_of).collect()
    }
}

/// Asks for whole blocks, most of which are small.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReadBlocks {
    /// Which ones; at most [`BLOCKS_MAX`].
    #[schema(value_type = Vec<String>)]
    pub ids: Vec<BlockId>,
}

/// The answer to [`ReadBlocks`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReadBlocksReply {
    /// Those that could be had, in any order, the first ones that were asked for up to [`BLOCKS_BYTES_MAX`] bytes. The others are to be asked
    /// for alone.
    pub blocks: Vec<InlineBlock>,
}

/// What the daemon tells a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// Somebody else changed these records: drop them from every cache, then acknowledge `number`. The one who
    /// changed them is answered only then.
    Changed {
        /// Counts the events of this session, from 1 on.
        number: u64,
        /// The volume's version that has the change.
        version: u64,
        /// What was changed.
        keys: Vec<Key>,
        /// Inodes that have no links any more. The acknowledgement says which of them are held open.
        orphans: Vec<Ino>,
    },
    /// A file is delegated to another session, which need not tell of writes at once: drop all that is cached of the file, then
    /// acknowledge.
    Delegated {
        /// As above.
        number: u64,
        /// The volume's version from which on this is so.
        version: u64,
        /// The file.
        ino: Ino,
    },
    /// Others wait for files that are delegated to this session, or for the volume: acknowledge at once, then commit what was done and
    /// return them.
    Recall {
        /// As above.
        number: u64,
        /// The files.
        inos: Vec<Ino>,
        /// All of the volume.
        #[serde(default)]
        volume: bool,
    },
    /// Too much has changed to say what: drop everything, then acknowledge.
    DropAll {
        /// As above.
        number: u64,
        /// As above.
        version: u64,
    },
    /// Nothing happened; acknowledge `number` (the last event's) all the same, which renews the lease.
    Heartbeat {
        /// The number of the last event.
        number: u64,
    },
}

impl Event {
    /// The number to acknowledge it by.
    pub fn number(&self) -> u64 {
        match self {
            Self::Changed { number, .. }
            | Self::Delegated { number, .. }
            | Self::Recall { number, .. }
            | Self::DropAll { number, .. }
            | Self::Heartbeat { number } => *number,
        }
    }
}

/// Acknowledges events, and renews the lease.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Ack {
    /// All events up to this one have been carried out.
    pub number: u64,
    /// Which of the orphans that they named the client holds open.
    pub held: Vec<Ino>,
}
