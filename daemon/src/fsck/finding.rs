//! What a check finds: where, what is wrong, and what mends it.

use tandemfs::Result;
use tandemfs::id::{BlockId, Ino, VolumeId};
use tandemfs::name::Name;
use tandemfs::tree::{self, Inode, Record};

use super::row;
use crate::meta::record::References;
use crate::meta::{Key, MetaStore, Write, keys};

/// A path that is told of has at most so many names.
const NAMES_MAX: usize = 256;

/// A record of a tree and what it is to be; `None`: it is to go.
pub(crate) type Change = (tree::Key, Option<Record>);

/// Where something is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A volume as a whole.
    Volume(VolumeId),
    /// An inode, and all that belongs to it alone.
    Inode(VolumeId, Ino),
    /// A name in a directory.
    Name(VolumeId, Ino, Name),
    /// A block, and a file that refers to it.
    Block(VolumeId, BlockId, Option<Ino>),
    /// A row of the engine.
    Row(Key),
}

/// How it is mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mend {
    /// Not at all: nothing says what would be right.
    No,
    /// Counts and links of a tree, which follow from its other records.
    Counts(Vec<Change>),
    /// Other records of a tree.
    Tree(Vec<Change>),
    /// The inode gets a name in the volume's `lost+found`.
    LostAndFound(Box<Inode>),
    /// The count of a block's references, and rows that go with it.
    References(Option<References>, Vec<Write>),
    /// The copies of a block are compared, and made again, by what does that in a daemon; these writes do it without one.
    Copies(Vec<Write>),
    /// Other rows.
    Rows(Vec<Write>),
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Where.
    pub(crate) place: Place,
    /// What is wrong, without the place.
    pub(crate) what: String,
    /// How it is mended.
    pub(crate) mend: Mend,
}

impl Finding {
    /// One that nothing mends.
    pub(crate) fn new(place: Place, what: impl Into<String>) -> Self {
        Self { place, what: what.into(), mend: Mend::No }
    }

    /// The same with what mends it.
    pub(crate) fn mended_by(self, mend: Mend) -> Self {
        Self { mend, ..self }
    }

    /// For people: one line.
    pub(crate) async fn text(&self, store: &dyn MetaStore) -> String {
        let what = &self.what;
        match &self.place {
            Place::Volume(volume) => format!("volume {volume}: {what}"),
            Place::Inode(volume, ino) => {
                format!("volume {volume}, {}: {what}", shown(store, *volume, *ino, None).await)
            }
            Place::Name(volume, parent, name) => {
                format!("volume {volume}, {}: {what}", shown(store, *volume, *parent, Some(name)).await)
            }
            Place::Block(volume, id, Some(ino)) => {
                format!("volume {volume}, {}: block {id} {what}", shown(store, *volume, *ino, None).await)
            }
            Place::Block(volume, id, None) => format!("volume {volume}: block {id} {what}"),
            Place::Row(key) => format!("row {}: {what}", hex::encode(key)),
        }
    }
}

/// The path of an inode, or of a name in it; its number where it has none.
async fn shown(store: &dyn MetaStore, volume: VolumeId, ino: Ino, name: Option<&Name>) -> String {
    let mut names: Vec<Name> = name.into_iter().cloned().collect();
    let mut at = ino;
    while at != Ino::ROOT {
        match inode(store, volume, at).await {
            Ok(Some(Inode { name: Some(name), parent, .. })) if names.len() < NAMES_MAX => {
                names.push(name);
                at = parent;
            }
            _ => {
                let number = format!("inode {ino}");
                return match name {
                    Some(name) => format!("{number}, name {}", name.to_lossy().escape_debug()),
                    None => number,
                };
            }
        }
    }
    let path: String =
        names.iter().rev().map(|name| format!("/{}", name.to_lossy().escape_debug())).collect();
    if path.is_empty() { "/".to_owned() } else { path }
}

/// An inode.
///
/// # Errors
/// `Corrupt`; those of the engine.
pub(crate) async fn inode(store: &dyn MetaStore, volume: VolumeId, ino: Ino) -> Result<Option<Inode>> {
    match tree_record(store, volume, &tree::Key::Inode(ino)).await? {
        Some(Record::Inode(inode)) => Ok(Some(*inode)),
        _ => Ok(None),
    }
}

/// A record of a tree.
///
/// # Errors
/// `Corrupt`; those of the engine.
pub(crate) async fn tree_record(
    store: &dyn MetaStore,
    volume: VolumeId,
    of: &tree::Key,
) -> Result<Option<Record>> {
    Ok(tree_records(store, volume, std::slice::from_ref(of)).await?.pop().flatten())
}

/// Records of a tree, in the order of their keys' order in `of`.
///
/// # Errors
/// `Corrupt`; those of the engine.
pub(crate) async fn tree_records(
    store: &dyn MetaStore,
    volume: VolumeId,
    of: &[tree::Key],
) -> Result<Vec<Option<Record>>> {
    let stored: Vec<Key> = of.iter().map(|key| keys::tree(volume, key)).collect();
    let values = store.get_many(&stored).await?;
    let records = of.iter().zip(&stored).zip(values);
    records
        .map(|((of, key), value)| value.map(|value| row::tree_record(of, key, &value)).transpose())
        .collect()
}
