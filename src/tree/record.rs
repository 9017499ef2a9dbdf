//! The records that a volume's tree is made of, and their keys.
//!
//! They are the same everywhere: the daemon stores them, the mount caches them, the wire carries them, and the
//! rules of this module's siblings work on them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Time;
use crate::id::{BlockId, Ino};
use crate::name::{Name, TextOrBytes};

/// Files are mapped in chunks of this many bytes; an extent never crosses a chunk's border.
pub const CHUNK_SIZE: u64 = 4 << 20;
/// The largest file, in bytes (what `off_t` can say).
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;
/// The most that one [`Mutation::CloneRange`](super::Mutation::CloneRange) clones, in bytes.
pub const CLONE_MAX: u64 = 256 << 20;
/// The most links to one inode, as in ext4.
pub const LINK_MAX: u32 = 65_000;
/// The longest target of a symbolic link, in bytes.
pub const SYMLINK_MAX: usize = 4095;
/// The longest value of an extended attribute, in bytes (xattr(7), XATTR_SIZE_MAX).
pub const XATTR_SIZE_MAX: usize = 65_536;
/// The bytes that the names and values of one inode's extended attributes may take together.
pub const XATTR_TOTAL_MAX: u64 = 1 << 20;

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// An inode: one file, directory or other object of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Inode {
    /// Its number, never used twice in a volume.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-uid, set-gid and sticky: 0 to 0o7777.
    pub mode: u32,
    /// The owner's number, as the mount's kernel knows it.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// Links; 0 means an orphan, which lives until nobody holds it open and it is reaped.
    pub nlink: u32,
    /// Bytes of a file; bytes of a symbolic link's target; entries of a directory, see [`Inode::entries`].
    pub size: u64,
    /// Bytes of extents; holes count nothing.
    pub allocated: u64,
    /// A device's number, as `stat` gives it.
    pub rdev: u32,
    /// Last read, as far as it is kept.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// When it was made.
    pub btime: Time,
    /// The directory of its first link; of a directory, its parent; the root is its own.
    pub parent: Ino,
    /// Its name there; `None` for the root and for orphans.
    pub name: Option<Name>,
    /// Entries of a directory, `.` and `..` not counted.
    pub entries: u64,
    /// A symbolic link's target.
    #[serde(with = "serde_bytes")]
    pub target: Option<Vec<u8>>,
    /// Bytes of the names and values of its extended attributes; 0 tells a reader that there are none.
    pub xattr_bytes: u64,
    /// Goes up with every change of the content.
    pub content: u64,
    /// SHA-256 of the content where it is known; a change of the content forgets it.
    #[serde(with = "serde_bytes")]
    pub sha256: Option<Vec<u8>>,
}

impl Inode {
    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind == Kind::File
    }

    /// Whether a read at `time` moves `atime`, which was `after` for the reader: it never goes back, and nobody who has set it
    /// back since (utimensat(2)) is overruled by a read of before that is told late.
    pub fn is_moved_by_read(&self, after: Time, time: Time) -> bool {
        after <= self.atime && self.atime < time
    }

    /// `st_blocks`: 512-byte units that are not holes.
    pub fn blocks_512(&self) -> u64 {
        self.allocated.div_ceil(512)
    }
}

/// A name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// The inode that it leads to.
    pub ino: Ino,
    /// What that is, so that a listing need not load it.
    pub kind: Kind,
}

/// Part of a chunk that has data: `length` bytes at `start` in the chunk are the bytes at `offset` of `block`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Extent {
    /// Where in the chunk it begins, in bytes.
    pub start: u32,
    /// How many bytes.
    pub length: u32,
    /// The block that has them.
    pub block: BlockId,
    /// Where in the block they begin.
    pub offset: u32,
}

impl Extent {
    /// Where in the chunk it ends.
    pub fn end(&self) -> u32 {
        self.start.saturating_add(self.length)
    }
}

/// The extents of one chunk of a file, in order and without overlap. A chunk that is one hole has no record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Chunk(pub Vec<Extent>);

/// What a volume uses and may use. Changed by every mutation that takes or gives back space, so that quotas are
/// exact at commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Bytes of extents.
    pub bytes: u64,
    /// Inodes, the root not counted.
    pub inodes: u64,
    /// The most bytes; `None` for no limit.
    pub quota_bytes: Option<u64>,
    /// The most inodes; `None` for no limit.
    pub quota_inodes: Option<u64>,
}

/// Names a record of a volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// [`Usage`].
    Usage,
    /// An [`Inode`].
    Inode(Ino),
    /// An [`Entry`]: directory, name.
    Entry(Ino, Name),
    /// A [`Chunk`]: file, number of the chunk.
    Chunk(Ino, u64),
    /// The value of an extended attribute: inode, attribute name.
    Xattr(Ino, #[serde(with = "crate::name::text_or_bytes")] Vec<u8>),
    /// A link beside the first one: inode, directory, name. Its record is empty.
    Link(Ino, Ino, Name),
    /// An inode without links that waits to be reaped. Its record is empty.
    Orphan(Ino),
}

/// A record of a volume's tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// Under [`Key::Usage`].
    Usage(Usage),
    /// Under [`Key::Inode`].
    #[schema(value_type = Inode)]
    Inode(Box<Inode>),
    /// Under [`Key::Entry`].
    Entry(Entry),
    /// Under [`Key::Chunk`].
    Chunk(Chunk),
    /// Under [`Key::Xattr`].
    #[schema(value_type = TextOrBytes)]
    Xattr(#[serde(with = "crate::name::text_or_bytes")] Vec<u8>),
    /// Under [`Key::Link`] and [`Key::Orphan`]: being there is all that it says.
    Present,
}

/// A record to load, or a range of them. What a rule asks for when it misses something, what the mount asks
/// the daemon for, and what the daemon reads from its engine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Want {
    /// One record, or the knowledge that there is none.
    Record(Key),
    /// A directory's entry and, if there is one, the inode that it leads to.
    Lookup {
        /// The directory.
        parent: Ino,
        /// The name.
        name: Name,
    },
    /// Entries of a directory in the order of their names' bytes, each with its inode.
    Directory {
        /// The directory.
        ino: Ino,
        /// Only names after this one.
        after: Option<Name>,
        /// At most so many entries; the other side may give fewer.
        limit: u32,
    },
    /// The chunks `from..to` of a file.
    Chunks {
        /// The file.
        ino: Ino,
        /// The first chunk's number.
        from: u64,
        /// One past the last one's.
        to: u64,
    },
    /// All extended attributes of an inode.
    Xattrs(Ino),
    /// All links of an inode but the first.
    Links(Ino),
}

impl Want {
    /// Whether it asks for the record under `key`. How much of a directory is given depends on the other side, so a
    /// directory's range covers nothing for certain.
    pub fn covers(&self, key: &Key) -> bool {
        match (self, key) {
            (Self::Record(wanted), _) => wanted == key,
            (Self::Lookup { parent, name }, Key::Entry(directory, entry)) => {
                parent == directory && name == entry
            }
            (Self::Chunks { ino, from, to }, Key::Chunk(file, number)) => {
                ino == file && (*from..*to).contains(number)
            }
            (Self::Xattrs(ino), Key::Xattr(owner, _)) | (Self::Links(ino), Key::Link(owner, _, _)) => {
                ino == owner
            }
            _ => false,
        }
    }
}
