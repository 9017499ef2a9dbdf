//! The rule of one name in a directory.

use tandemfs::clock::Time;
use tandemfs::id::{Ino, VolumeId};
use tandemfs::name::Name;
use tandemfs::tree::{self, Entry, Inode, Kind, Record};

use super::finding::{Finding, Mend, Place};
use super::inode::skeleton;

/// What a name leads to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Target {
    /// The inode; `None`: there is none.
    pub(crate) inode: Option<Inode>,
    /// Whether the inode knows of the name: as its first one, or as a further one.
    pub(crate) knows: bool,
    /// Whether the inode's first name leads to it.
    pub(crate) has_first: bool,
    /// Whether anything is left of an inode that is not there.
    pub(crate) has_remains: bool,
}

/// Checks a name.
pub(crate) fn check(
    volume: VolumeId,
    (parent, name): (Ino, &Name),
    entry: Entry,
    target: &Target,
    now: Time,
) -> Option<Finding> {
    let finding =
        |what: &str, mend| Finding::new(Place::Name(volume, parent, name.clone()), what).mended_by(mend);
    let gone = || Mend::Tree(vec![(tree::Key::Entry(parent, name.clone()), None)]);
    let put = |inode: Inode| (tree::Key::Inode(entry.ino), Some(Record::Inode(Box::new(inode))));
    let named = |inode: &Inode| Inode { parent, name: Some(name.clone()), ..inode.clone() };
    let Some(inode) = &target.inode else {
        // Only files and directories have anything but their inode.
        let is_mendable = target.has_remains && matches!(entry.kind, Kind::File | Kind::Directory);
        return Some(if is_mendable {
            let anew = named(&skeleton(entry.ino, entry.kind, now));
            finding("leads to an inode that is missing; some of it is left", Mend::Tree(vec![put(anew)]))
        } else {
            finding("leads to nothing", gone())
        });
    };
    if inode.kind != entry.kind {
        let right = Record::Entry(Entry { kind: inode.kind, ..entry });
        let what = format!("is listed as {:?} and leads to {:?}", entry.kind, inode.kind);
        return Some(finding(
            &what,
            Mend::Counts(vec![(tree::Key::Entry(parent, name.clone()), Some(right))]),
        ));
    }
    if target.knows {
        return None;
    }
    let is_first = inode.ino == Ino::ROOT || target.has_first;
    Some(match (inode.is_directory(), is_first) {
        (true, true) => finding("is a second name of a directory", gone()),
        (true, false) => {
            finding("leads to a directory that is not said to be here", Mend::Tree(vec![put(named(inode))]))
        }
        (false, true) => {
            let link = (tree::Key::Link(entry.ino, parent, name.clone()), Some(Record::Present));
            let linked = Inode { nlink: inode.nlink.saturating_add(1), ..inode.clone() };
            finding("is a name that its inode does not know of", Mend::Counts(vec![link, put(linked)]))
        }
        (false, false) => {
            let linked = Inode { nlink: inode.nlink.max(1), ..named(inode) };
            finding("is a name that its inode does not know of", Mend::Counts(vec![put(linked)]))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{Target, check, skeleton};
    use crate::fsck::finding::Mend;
    use tandemfs::clock::Time;
    use tandemfs::id::{Ino, VolumeId};
    use tandemfs::name::Name;
    use tandemfs::tree::{Entry, Key, Kind, Record};

    fn mend(kind: Kind, target: &Target) -> Option<Mend> {
        let name = Name::new("a").unwrap();
        let entry = Entry { ino: Ino(9), kind };
        let finding = check(VolumeId(1), (Ino(5), &name), entry, target, Time::default());
        finding.map(|finding| finding.mend)
    }

    #[test]
    fn a_name_leads_to_an_inode_that_knows_of_it() {
        let inode = |kind| Some(skeleton(Ino(9), kind, Time::default()));
        let of = |kind, knows, has_first| Target { inode: inode(kind), knows, has_first, has_remains: false };
        let entry = Key::Entry(Ino(5), Name::new("a").unwrap());
        assert_eq!(mend(Kind::File, &of(Kind::File, true, true)), None);
        // Of another kind.
        let right = Record::Entry(Entry { ino: Ino(9), kind: Kind::File });
        let expected = Mend::Counts(vec![(entry.clone(), Some(right))]);
        assert_eq!(mend(Kind::Fifo, &of(Kind::File, true, true)), Some(expected));
        // A second name of a directory goes, its only one stays.
        let gone = Some(Mend::Tree(vec![(entry, None)]));
        assert_eq!(mend(Kind::Directory, &of(Kind::Directory, false, true)), gone);
        let Some(Mend::Tree(changes)) = mend(Kind::Directory, &of(Kind::Directory, false, false)) else {
            panic!("not mended")
        };
        assert!(
            matches!(&changes[0], (Key::Inode(Ino(9)), Some(Record::Inode(inode))) if inode.parent == Ino(5))
        );
        // A file gets the name as a further one, or as its first.
        let Some(Mend::Counts(changes)) = mend(Kind::File, &of(Kind::File, false, true)) else {
            panic!("not mended")
        };
        assert!(matches!(&changes[0].0, Key::Link(Ino(9), Ino(5), _)));
        let Some(Mend::Counts(changes)) = mend(Kind::File, &of(Kind::File, false, false)) else {
            panic!("not mended")
        };
        assert!(matches!(&changes[0].0, Key::Inode(Ino(9))));
        // What leads to nothing goes, but not while something is left there.
        assert_eq!(mend(Kind::File, &Target::default()), gone);
        let remains = Target { has_remains: true, ..Target::default() };
        assert!(matches!(mend(Kind::File, &remains), Some(Mend::Tree(changes)) if changes[0].1.is_some()));
        assert_eq!(mend(Kind::Symlink, &remains), gone);
    }
}
