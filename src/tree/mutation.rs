//! A mutation: one POSIX-level change to a volume's tree. It carries all that it needs, so that applying it is
//! deterministic.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Extent;
use crate::clock::Time;
use crate::id::{BlockId, Ino};
use crate::name::{Name, TextOrBytes};

/// Who does it, as the client's kernel says. Decides about sticky directories and what is inherited or
/// cleared; who may use the volume at all is decided by the daemon from the token, never from this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Credentials {
    /// The caller's user number; 0 may do everything.
    pub uid: u32,
    /// The caller's group number.
    pub gid: u32,
}

/// What a create makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NewNode {
    /// An empty regular file.
    File,
    /// An empty directory.
    Directory,
    /// A symbolic link to a target of 1 to 4095 bytes without NUL.
    #[schema(value_type = TextOrBytes)]
    Symlink(#[serde(with = "crate::name::text_or_bytes")] Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device with its number.
    CharDevice(u32),
    /// A block device with its number.
    BlockDevice(u32),
}

/// What a rename does when the new name is taken (renameat2(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RenameMode {
    /// Replaces what is there.
    Replace,
    /// Refuses (RENAME_NOREPLACE).
    NoReplace,
    /// Exchanges the two, which must both exist (RENAME_EXCHANGE).
    Exchange,
}

/// What a set-attribute changes; `None` leaves as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetAttributes {
    /// Permission bits, 0 to 0o7777.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size of a regular file, in bytes: cuts off, or adds a hole.
    pub size: Option<u64>,
    /// Last read.
    pub atime: Option<Time>,
    /// Last change of the content.
    pub mtime: Option<Time>,
}

/// What setxattr(2) does about a value that is or is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum XattrMode {
    /// Sets it either way.
    Set,
    /// Refuses if it is there (XATTR_CREATE).
    Create,
    /// Refuses if it is not (XATTR_REPLACE).
    Replace,
}

/// Data that was written: `length` bytes of a file from `offset` on are the bytes of `block` from `block_offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WrittenExtent {
    /// Where in the file, in bytes. Need not respect chunks.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// A block of this volume.
    pub block: BlockId,
    /// Where in the block the bytes begin.
    pub block_offset: u32,
}

/// One change to a volume's tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mutation {
    /// open(O_CREAT|O_EXCL), mkdir, mknod, symlink.
    Create {
        /// The directory.
        parent: Ino,
        /// The new name.
        name: Name,
        /// The new inode's number, from a range granted to the author.
        ino: Ino,
        /// What to make.
        node: NewNode,
        /// Permission bits, the umask applied unless the directory has a default access control list, which is then
        /// applied here (umask(2)).
        mode: u32,
        /// The author.
        by: Credentials,
        /// When.
        time: Time,
    },
    /// link(2).
    Link {
        /// What gets another name; not a directory.
        ino: Ino,
        /// The directory.
        parent: Ino,
        /// The new name.
        name: Name,
        /// When.
        time: Time,
    },
    /// unlink(2). An inode without links becomes an orphan.
    Unlink {
        /// The directory.
        parent: Ino,
        /// The name.
        name: Name,
        /// The author.
        by: Credentials,
        /// When.
        time: Time,
    },
    /// rmdir(2). The directory becomes an orphan.
    RemoveDirectory {
        /// The directory that it is in.
        parent: Ino,
        /// Its name.
        name: Name,
        /// The author.
        by: Credentials,
        /// When.
        time: Time,
    },
    /// rename(2), renameat2(2).
    Rename {
        /// The directory.
        parent: Ino,
        /// The name.
        name: Name,
        /// The new directory.
        new_parent: Ino,
        /// The new name.
        new_name: Name,
        /// What to do when it is taken.
        mode: RenameMode,
        /// The author.
        by: Credentials,
        /// When.
        time: Time,
    },
    /// chmod, chown, truncate, utimensat.
    SetAttributes {
        /// Of what.
        ino: Ino,
        /// What to change.
        set: SetAttributes,
        /// The author.
        by: Credentials,
        /// When.
        time: Time,
    },
    /// Data of a regular file that has reached the nodes.
    Write {
        /// The file.
        ino: Ino,
        /// What was written, in order: a later one lies over an earlier one.
        extents: Vec<WrittenExtent>,
        /// The file is at least so long afterwards.
        size: u64,
        /// Set-uid and set-gid are cleared (a write by anybody but root).
        clear_privileges: bool,
        /// When.
        time: Time,
    },
    /// fallocate(2): makes a hole of a range of a regular file, and makes the file longer.
    PunchHole {
        /// The file.
        ino: Ino,
        /// Where the hole begins, in bytes.
        offset: u64,
        /// How many bytes; 0 for no hole. What of them lies at or beyond the end of the file counts nothing.
        length: u64,
        /// The file is at least so long afterwards.
        size: u64,
        /// Set-uid and set-gid are cleared.
        clear_privileges: bool,
        /// When.
        time: Time,
    },
    /// copy_file_range(2) without moving data: a range of a regular file names the blocks of another range, holes
    /// included.
    CloneRange {
        /// The file that is written to.
        ino: Ino,
        /// Where in it, in bytes.
        offset: u64,
        /// The file that the content is taken from; may be the same one.
        from: Ino,
        /// Where in that.
        from_offset: u64,
        /// How many bytes: 1 to [`CLONE_MAX`](super::CLONE_MAX).
        length: u64,
        /// Set-uid and set-gid are cleared.
        clear_privileges: bool,
        /// When.
        time: Time,
    },
    /// setxattr(2).
    SetXattr {
        /// Of what.
        ino: Ino,
        /// The attribute's full name, 1 to 255 bytes without NUL.
        #[serde(with = "crate::name::text_or_bytes")]
        #[schema(value_type = TextOrBytes)]
        name: Vec<u8>,
        /// Its value.
        #[serde(with = "crate::name::text_or_bytes")]
        #[schema(value_type = TextOrBytes)]
        value: Vec<u8>,
        /// What to do about one that is or is not there.
        mode: XattrMode,
        /// The author.
        by: Credentials,
        /// When.
        time: Time,
    },
    /// removexattr(2).
    RemoveXattr {
        /// Of what.
        ino: Ino,
        /// The attribute's full name.
        #[serde(with = "crate::name::text_or_bytes")]
        #[schema(value_type = TextOrBytes)]
        name: Vec<u8>,
        /// When.
        time: Time,
    },
    /// Takes an orphan's records and space away, at most so many chunks at once, the last of them first; the inode itself
    /// goes with the last chunk. Nothing happens to an inode that is not there or has links.
    Reap {
        /// The orphan.
        ino: Ino,
        /// At most so many chunks.
        chunks: u32,
    },
    /// Remembers the SHA-256 of a file's content, if that is still the content it was computed from.
    SetDigest {
        /// The file.
        ino: Ino,
        /// [`super::Inode::content`] when it was computed.
        content: u64,
        /// 32 bytes.
        #[serde(with = "serde_bytes")]
        sha256: Vec<u8>,
    },
    /// Something was read (read(2), readdir(3), readlink(2)). Moves its atime forward as [`super::Inode::is_moved_by_read`]
    /// says, and changes nothing else. Nothing happens to an inode that is not there.
    Accessed {
        /// What was read.
        ino: Ino,
        /// The atime that the reader saw.
        after: Time,
        /// When.
        time: Time,
    },
    /// The pieces of a part of a file lie in one block from now on, where they have not been overwritten meanwhile; the content is the same. Only
    /// the daemon does this. Refused when too little of the pieces is left to win anything.
    Join {
        /// The file.
        ino: Ino,
        /// Which of its chunks.
        number: u64,
        /// The extents that the chunk had. The data of those that [are pieces](super::is_piece) were put behind one another.
        extents: Vec<Extent>,
        /// The block that the data are in now.
        #[schema(value_type = String)]
        block: BlockId,
    },
}
