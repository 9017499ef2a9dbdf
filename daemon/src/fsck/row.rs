//! One row of the engine: that its key is a known one, and that its value is whole and of the kind that belongs there.

use serde::de::IgnoredAny;
use serde_bytes::ByteBuf;
use tandemfs::id::{BlockId, Ino, VolumeId};
use tandemfs::name::Name;
use tandemfs::tree::{self, Record};
use tandemfs::{Error, Result};

use crate::meta::record::{self, Block, References};
use crate::replicate::NodeRecord;

/// The kinds of keys that are nothing but looked through: their records belong to other parts of the daemon.
const OTHERS: &[u8] = b"acefhijkmnpqstuwy";

/// What a key names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    /// A record of a volume's tree.
    Tree(VolumeId, tree::Key),
    /// Where a block's copies are.
    Block(VolumeId, BlockId),
    /// The bytes of a block.
    Inline(VolumeId, BlockId),
    /// How often a block is referred to.
    References(VolumeId, BlockId),
    /// A block that may be garbage.
    Garbage(VolumeId, BlockId),
    /// A volume.
    Volume(VolumeId),
    /// A node.
    Node,
    /// Any other.
    Other,
}

/// What a key names; `None` for one that is not known.
pub(crate) fn parse(key: &[u8]) -> Option<Row> {
    let (kind, mut rest) = key.split_first()?;
    let rest = &mut rest;
    Some(match kind {
        b'v' => {
            let volume = VolumeId(number(rest)?);
            Row::Tree(volume, tree_key(rest)?)
        }
        b'b' => Row::Block(VolumeId(number(rest)?), block(rest)?),
        b'd' => Row::Inline(VolumeId(number(rest)?), block(rest)?),
        b'r' => Row::References(VolumeId(number(rest)?), block(rest)?),
        b'g' => {
            number(rest)?;
            Row::Garbage(VolumeId(number(rest)?), block(rest)?)
        }
        b'l' => Row::Volume(VolumeId(number(rest).filter(|_| rest.is_empty())?)),
        b'o' => Row::Node,
        kind if OTHERS.contains(kind) => Row::Other,
        _ => return None,
    })
}

fn tree_key(rest: &mut &[u8]) -> Option<tree::Key> {
    let (kind, after) = rest.split_first()?;
    *rest = after;
    if *kind == b'u' {
        return rest.is_empty().then_some(tree::Key::Usage);
    }
    let ino = Ino(number(rest)?);
    Some(match kind {
        b'i' => rest.is_empty().then_some(tree::Key::Inode(ino))?,
        b'o' => rest.is_empty().then_some(tree::Key::Orphan(ino))?,
        b'e' => tree::Key::Entry(ino, Name::new(*rest).ok()?),
        b'c' => tree::Key::Chunk(ino, number(rest).filter(|_| rest.is_empty())?),
        b'x' => tree::Key::Xattr(ino, rest.to_vec()),
        b'l' => {
            let parent = Ino(number(rest)?);
            tree::Key::Link(ino, parent, Name::new(*rest).ok()?)
        }
        _ => return None,
    })
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let (first, after) = rest.split_first_chunk::<8>()?;
    *rest = after;
    Some(u64::from_be_bytes(*first))
}

fn block(rest: &[u8]) -> Option<BlockId> {
    Some(BlockId(rest.try_into().ok()?))
}

/// The record of a tree.
///
/// # Errors
/// `Corrupt` when it is damaged, or no record for such a key.
pub(crate) fn tree_record(of: &tree::Key, key: &[u8], value: &[u8]) -> Result<Record> {
    let record = record::decode(key, value)?;
    let fits = matches!(
        (of, &record),
        (tree::Key::Usage, Record::Usage(_))
            | (tree::Key::Inode(_), Record::Inode(_))
            | (tree::Key::Entry(..), Record::Entry(_))
            | (tree::Key::Chunk(..), Record::Chunk(_))
            | (tree::Key::Xattr(..), Record::Xattr(_))
            | (tree::Key::Link(..) | tree::Key::Orphan(_), Record::Present)
    );
    fits.then_some(record).ok_or_else(|| Error::corrupt("the record is of another kind"))
}

/// Checks a row by itself.
///
/// # Errors
/// `Corrupt`, with what is wrong.
pub(crate) fn check(key: &[u8], value: &[u8]) -> Result<()> {
    match parse(key).ok_or_else(|| Error::corrupt("the key is not known"))? {
        Row::Tree(_, of) => tree_record(&of, key, value).map(drop),
        Row::Block(..) => record::decode::<Block>(key, value).map(drop),
        Row::Inline(..) => record::decode::<ByteBuf>(key, value).map(drop),
        Row::References(..) => record::decode::<References>(key, value).map(drop),
        Row::Garbage(..) => record::decode::<()>(key, value),
        Row::Volume(_) => record::decode::<record::Volume>(key, value).map(drop),
        Row::Node => record::decode::<NodeRecord>(key, value).map(drop),
        Row::Other => record::decode::<IgnoredAny>(key, value).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::{Row, check, parse};
    use crate::meta::{keys, put};
    use tandemfs::id::{BlockId, Ino, SessionId, UserId, VolumeId};
    use tandemfs::name::Name;
    use tandemfs::tree::{Key, Record, Usage};

    const VOLUME: VolumeId = VolumeId(3);
    const BLOCK: BlockId = BlockId([9; 32]);

    #[test]
    fn keys_are_told_apart() {
        let name = Name::new("a").unwrap();
        let trees = [
            Key::Usage,
            Key::Inode(Ino(1)),
            Key::Entry(Ino(1), name.clone()),
            Key::Chunk(Ino(1), 5),
            Key::Xattr(Ino(1), b"user.x".to_vec()),
            Key::Link(Ino(1), Ino(2), name),
            Key::Orphan(Ino(7)),
        ];
        for key in trees {
            assert_eq!(parse(&keys::tree(VOLUME, &key)), Some(Row::Tree(VOLUME, key)));
        }
        assert_eq!(parse(&keys::block(VOLUME, &BLOCK)), Some(Row::Block(VOLUME, BLOCK)));
        assert_eq!(parse(&keys::inline(VOLUME, &BLOCK)), Some(Row::Inline(VOLUME, BLOCK)));
        assert_eq!(parse(&keys::references(VOLUME, &BLOCK)), Some(Row::References(VOLUME, BLOCK)));
        assert_eq!(parse(&keys::garbage(8, VOLUME, &BLOCK)), Some(Row::Garbage(VOLUME, BLOCK)));
        assert_eq!(parse(&keys::volume(VOLUME)), Some(Row::Volume(VOLUME)));
        let others = [
            keys::audit_head(),
            keys::counter("job"),
            keys::epoch(),
            keys::login_failures("x"),
            keys::grant(VOLUME, UserId(1)),
            keys::user_token(UserId(1), "t"),
            keys::job(tandemfs::id::JobId(1)),
            keys::revoked(1, "id"),
            keys::user_name("ann"),
            keys::journal(),
            keys::session(SessionId(1)),
            keys::token(&[0; 32]),
            keys::user(UserId(1)),
            keys::reply(SessionId(1), 2),
        ];
        assert!(others.iter().all(|key| parse(key) == Some(Row::Other)));
        for unknown in [&b""[..], b"~", b"v", b"v\0\0\0\0\0\0\0\x03z", b"b123", b"l\0\0\0\0\0\0\0\x01x"] {
            assert_eq!(parse(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn a_row_is_whole_under_its_own_key_and_of_its_own_kind() {
        let key = keys::tree(VOLUME, &Key::Usage);
        let value = put(key.clone(), &Record::Usage(Usage::default())).unwrap().value.unwrap();
        check(&key, &value).unwrap();
        let mut damaged = value.clone();
        damaged[3] ^= 1;
        assert!(check(&key, &damaged).is_err());
        assert!(check(&keys::tree(VOLUME, &Key::Inode(Ino(1))), &value).is_err());
        let wrong = put(key.clone(), &Record::Present).unwrap().value.unwrap();
        assert!(check(&key, &wrong).is_err());
        let session = keys::session(SessionId(1));
        let value = put(session.clone(), &(1, "any record")).unwrap().value.unwrap();
        check(&session, &value).unwrap();
    }
}
