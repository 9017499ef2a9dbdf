//! The layout of the keys: one byte for the kind of record, then its parts, numbers in big-endian, so that the order
//! of the bytes is the order of the parts.
//!
//! | key | record |
//! | --- | --- |
//! | `a` | where the chain of the audit log ends |
//! | `b` volume block | [`super::record::Block`]: where its copies are |
//! | `c` name | the next number of a kind |
//! | `d` volume block | the bytes of a block that lies in the metadata |
//! | `e` | the epoch: the number of the daemon's run |
//! | `f` … | failed logins |
//! | `g` time volume block | empty: the block may be garbage since then |
//! | `h` volume user | what the user may do on a shared volume: [`tandemfs::api::volumes::Access`] |
//! | `i` user name | the hash of a user's token |
//! | `j` job | a job |
//! | `k` expiry id | empty: a JWT that was logged out before it expired |
//! | `l` volume | [`super::record::Volume`] |
//! | `m` | the lock of what is sealed |
//! | `n` name | the id of the user who has that name |
//! | `o` node | a node |
//! | `p` number | a line of the audit log |
//! | `q` | which journal the engine follows, and up to where |
//! | `r` volume block | [`super::record::References`] |
//! | `s` session | [`super::record::Session`] |
//! | `t` … | tokens |
//! | `u` user | a user |
//! | `v` volume kind … | a record of the volume's tree |
//! | `w` session slot | the answer to a batch |
//! | `y` | the keys that sign the tokens of logins |

use tandemfs::id::{BlockId, Ino, JobId, NodeId, SessionId, UserId, VolumeId};
use tandemfs::tree;

use super::Key;

fn key(kind: u8, parts: &[&[u8]]) -> Key {
    let mut key = vec![kind];
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

/// Where the chain of the audit log ends.
pub fn audit_head() -> Key {
    key(b'a', &[])
}

/// A line of the audit log.
pub fn audit_line(number: u64) -> Key {
    key(b'p', &[&number.to_be_bytes()])
}

/// The keys of all lines of the audit log: from, to.
pub fn all_audit_lines() -> (Key, Key) {
    (key(b'p', &[]), key(b'p' + 1, &[]))
}

/// The number of the line whose [`audit_line`] key it is.
pub fn audit_line_number(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.strip_prefix(b"p")?.try_into().ok()?))
}

/// A record of a volume's tree.
pub fn tree(volume: VolumeId, of: &tree::Key) -> Key {
    let volume = volume.0.to_be_bytes();
    match of {
        tree::Key::Usage => key(b'v', &[&volume, b"u"]),
        tree::Key::Inode(ino) => key(b'v', &[&volume, b"i", &ino.0.to_be_bytes()]),
        tree::Key::Entry(parent, name) => {
            key(b'v', &[&volume, b"e", &parent.0.to_be_bytes(), name.as_bytes()])
        }
        tree::Key::Chunk(ino, number) => {
            key(b'v', &[&volume, b"c", &ino.0.to_be_bytes(), &number.to_be_bytes()])
        }
        tree::Key::Xattr(ino, name) => key(b'v', &[&volume, b"x", &ino.0.to_be_bytes(), name]),
        tree::Key::Link(ino, parent, name) => {
            key(b'v', &[&volume, b"l", &ino.0.to_be_bytes(), &parent.0.to_be_bytes(), name.as_bytes()])
        }
        tree::Key::Orphan(ino) => key(b'v', &[&volume, b"o", &ino.0.to_be_bytes()]),
    }
}

/// The beginning of all keys of a volume's tree.
pub fn tree_prefix(volume: VolumeId) -> Key {
    key(b'v', &[&volume.0.to_be_bytes()])
}

/// The keys of the chunks of a volume's files: from, to.
pub fn all_chunks(volume: VolumeId) -> (Key, Key) {
    let from = key(b'v', &[&volume.0.to_be_bytes(), b"c"]);
    let to = end_of(&from);
    (from, to)
}

/// The file and the number of the chunk whose key it is.
pub fn chunk_of(key: &[u8]) -> Option<(Ino, u64)> {
    let (_, rest) = key.strip_prefix(b"v")?.split_first_chunk::<8>()?;
    let (ino, number) = rest.strip_prefix(b"c")?.split_first_chunk::<8>()?;
    Some((Ino(u64::from_be_bytes(*ino)), u64::from_be_bytes(number.try_into().ok()?)))
}

/// The beginning of the keys of a directory's entries; the name follows.
pub fn entry_prefix(volume: VolumeId, parent: Ino) -> Key {
    key(b'v', &[&volume.0.to_be_bytes(), b"e", &parent.0.to_be_bytes()])
}

/// The beginning of the keys of an inode's extended attributes; the name follows.
pub fn xattr_prefix(volume: VolumeId, ino: Ino) -> Key {
    key(b'v', &[&volume.0.to_be_bytes(), b"x", &ino.0.to_be_bytes()])
}

/// The beginning of the keys of an inode's further links; directory and name follow.
pub fn link_prefix(volume: VolumeId, ino: Ino) -> Key {
    key(b'v', &[&volume.0.to_be_bytes(), b"l", &ino.0.to_be_bytes()])
}

/// The beginning of the keys of a volume's orphans; the inode follows.
pub fn orphan_prefix(volume: VolumeId) -> Key {
    key(b'v', &[&volume.0.to_be_bytes(), b"o"])
}

/// Where a block's copies are.
pub fn block(volume: VolumeId, id: &BlockId) -> Key {
    key(b'b', &[&volume.0.to_be_bytes(), &id.0])
}

/// The bytes of a block that lies in the metadata.
pub fn inline(volume: VolumeId, id: &BlockId) -> Key {
    key(b'd', &[&volume.0.to_be_bytes(), &id.0])
}

/// The id in an [`inline`] key.
pub fn inline_id(key: &[u8]) -> Option<BlockId> {
    let (_, id) = key.strip_prefix(b"d")?.split_first_chunk::<8>()?;
    Some(BlockId(id.try_into().ok()?))
}

/// The [`inline`] keys of a volume: from, to.
pub fn inline_of_volume(volume: VolumeId) -> (Key, Key) {
    let prefix = key(b'd', &[&volume.0.to_be_bytes()]);
    let end = end_of(&prefix);
    (prefix, end)
}

/// How often a block is referred to.
pub fn references(volume: VolumeId, id: &BlockId) -> Key {
    key(b'r', &[&volume.0.to_be_bytes(), &id.0])
}

/// A block that may be garbage since a time in milliseconds.
pub fn garbage(since_ms: u64, volume: VolumeId, id: &BlockId) -> Key {
    key(b'g', &[&since_ms.to_be_bytes(), &volume.0.to_be_bytes(), &id.0])
}

/// A volume.
pub fn volume(id: VolumeId) -> Key {
    key(b'l', &[&id.0.to_be_bytes()])
}

/// What a user may do on a shared volume.
pub fn grant(volume: VolumeId, user: UserId) -> Key {
    key(b'h', &[&volume.0.to_be_bytes(), &user.0.to_be_bytes()])
}

/// The keys of all grants of a volume: from, to.
pub fn all_grants(volume: VolumeId) -> (Key, Key) {
    let from = key(b'h', &[&volume.0.to_be_bytes()]);
    let to = end_of(&from);
    (from, to)
}

/// The user whose [`grant`] key it is.
pub fn grantee(key: &[u8]) -> Option<UserId> {
    let (_, user) = key.strip_prefix(b"h")?.split_first_chunk::<8>()?;
    Some(UserId(u64::from_be_bytes(user.try_into().ok()?)))
}

/// A session.
pub fn session(id: SessionId) -> Key {
    key(b's', &[&id.0.to_be_bytes()])
}

/// The answer to a batch of a session.
pub fn reply(id: SessionId, slot: u64) -> Key {
    key(b'w', &[&id.0.to_be_bytes(), &slot.to_be_bytes()])
}

/// A user.
pub fn user(id: UserId) -> Key {
    key(b'u', &[&id.0.to_be_bytes()])
}

/// Whose name it is.
pub fn user_name(name: &str) -> Key {
    key(b'n', &[name.as_bytes()])
}

/// A token by the hash of its secret.
pub fn token(hash: &[u8; 32]) -> Key {
    key(b't', &[hash])
}

/// The hash of a user's token, by the token's name.
pub fn user_token(user: UserId, name: &str) -> Key {
    key(b'i', &[&user.0.to_be_bytes(), name.as_bytes()])
}

/// A JWT that was logged out; `expires_s` is in seconds since 1970.
pub fn revoked(expires_s: u64, id: &str) -> Key {
    key(b'k', &[&expires_s.to_be_bytes(), id.as_bytes()])
}

/// Where the keys of JWTs that were logged out begin and end.
pub fn revoked_range() -> (Key, Key) {
    (key(b'k', &[]), end_of(b"k"))
}

/// The parts of a key of [`revoked`].
pub fn parse_revoked(key: &[u8]) -> Option<(u64, String)> {
    let (expires, id) = key.strip_prefix(b"k")?.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*expires), String::from_utf8(id.to_vec()).ok()?))
}

/// Failed logins of an account or an address.
pub fn login_failures(of: &str) -> Key {
    key(b'f', &[of.as_bytes()])
}

/// The lock of what is sealed.
pub fn seal() -> Key {
    key(b'm', &[])
}

/// The kinds of records whose values are sealed where sealing is on: lines of the audit log, volumes with their keys, users with the
/// hashes of their passwords, signing keys.
pub const SECRET: [u8; 4] = *b"pluy";

/// Whether a key is one of a [`SECRET`] record.
pub fn is_secret(key: &[u8]) -> bool {
    key.first().is_some_and(|kind| SECRET.contains(kind))
}

/// The keys that sign the tokens of logins.
pub fn signing_keys() -> Key {
    key(b'y', &[])
}

/// A node.
pub fn node(id: NodeId) -> Key {
    key(b'o', &[&id.0.to_be_bytes()])
}

/// The keys of all nodes: from, to.
pub fn all_nodes() -> (Key, Key) {
    (key(b'o', &[]), key(b'o' + 1, &[]))
}

/// Which journal the engine follows, and up to where.
pub fn journal() -> Key {
    key(b'q', &[])
}

/// Behind every key.
pub const END: [u8; 1] = [u8::MAX];

/// The keys of all blocks: from, to.
pub fn all_blocks() -> (Key, Key) {
    (key(b'b', &[]), key(b'b' + 1, &[]))
}

/// The block whose [`block`] key it is.
pub fn block_of(key: &[u8]) -> Option<(VolumeId, BlockId)> {
    let (volume, id) = key.strip_prefix(b"b")?.split_first_chunk()?;
    Some((VolumeId(u64::from_be_bytes(*volume)), BlockId(id.try_into().ok()?)))
}

/// The keys of all jobs: from, to.
pub fn all_jobs() -> (Key, Key) {
    (key(b'j', &[]), key(b'j' + 1, &[]))
}

/// A job.
pub fn job(id: JobId) -> Key {
    key(b'j', &[&id.0.to_be_bytes()])
}

/// The next number of a kind.
pub fn counter(name: &str) -> Key {
    key(b'c', &[name.as_bytes()])
}

/// The epoch.
pub fn epoch() -> Key {
    key(b'e', &[])
}

/// One past the last key that begins with `prefix`.
pub fn end_of(prefix: &[u8]) -> Key {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![u8::MAX; 512]
}
