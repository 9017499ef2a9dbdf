//! The rules of one inode, from what was counted of all that belongs to it.

use tandemfs::clock::Time;
use tandemfs::id::{Ino, VolumeId};
use tandemfs::name::Name;
use tandemfs::tree::{self, Inode, Kind, Record};

use super::finding::{Change, Finding, Mend, Place};

/// The permission bits of an inode that is made for what is left of a lost one.
const MODE: u32 = 0o700;

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Names in it.
    pub(crate) entries: u64,
    /// Those of them that lead to directories.
    pub(crate) subdirectories: u64,
    /// Whether its first link is a name that leads to it.
    pub(crate) has_first: bool,
    /// Further links that are names which lead to it.
    pub(crate) links: u64,
    /// One of them.
    pub(crate) link: Option<(Ino, Name)>,
    /// Records of chunks.
    pub(crate) chunks: u64,
    /// Bytes of extents.
    pub(crate) allocated: u64,
    /// Where the last of its extents ends.
    pub(crate) end: u64,
    /// Extended attributes.
    pub(crate) xattrs: u64,
    /// Bytes of their names and values.
    pub(crate) xattr_bytes: u64,
    /// It is listed as an orphan.
    pub(crate) is_orphan: bool,
}

impl Facts {
    /// Links of something that has a name.
    fn nlink(&self, kind: Kind) -> u32 {
        let more = if kind == Kind::Directory { self.subdirectories.saturating_add(1) } else { self.links };
        u32::try_from(more.saturating_add(1)).unwrap_or(u32::MAX)
    }

    fn has_remains(&self) -> bool {
        self.entries + self.chunks + self.xattrs > 0
    }
}

/// What is found out about one inode.
struct Verdict {
    wrong: Vec<String>,
    right: Inode,
    also: Vec<Change>,
    counts_only: bool,
}

impl Verdict {
    fn compare<T: PartialEq + std::fmt::Display>(
        &mut self,
        what: &str,
        field: impl Fn(&mut Inode) -> &mut T,
        counted: T,
    ) {
        let says = field(&mut self.right);
        if *says != counted {
            self.wrong.push(format!("says {says} {what}, {counted} were counted"));
            *says = counted;
        }
    }
}

/// Checks an inode, or what is there without one.
pub(crate) fn check(
    volume: VolumeId,
    ino: Ino,
    found: Option<&Inode>,
    facts: &Facts,
    now: Time,
) -> Vec<Finding> {
    let place = || Place::Inode(volume, ino);
    let Some(found) = found else {
        let mut findings = Vec::new();
        if facts.is_orphan {
            let gone = vec![(tree::Key::Orphan(ino), None)];
            let what = "is listed as an orphan and is not there";
            findings.push(Finding::new(place(), what).mended_by(Mend::Counts(gone)));
        }
        if facts.has_remains() || ino == Ino::ROOT {
            findings
                .push(Finding::new(place(), "the inode is missing").mended_by(made_anew(ino, facts, now)));
        }
        return findings;
    };
    let mut findings = Vec::new();
    let nothing = |what: &str| Finding::new(place(), what);
    if ino == Ino::ROOT && !found.is_directory() {
        return vec![nothing("the root is no directory")];
    }
    if !found.is_directory() && facts.entries > 0 {
        findings.push(nothing("is no directory and has names in it"));
    }
    if !found.is_file() && facts.chunks > 0 {
        findings.push(nothing("is no regular file and has content"));
    }
    if (found.kind == Kind::Symlink) != found.target.is_some() {
        findings.push(nothing("is no symbolic link and has a target, or the other way round"));
    }
    let mut verdict =
        Verdict { wrong: Vec::new(), right: found.clone(), also: Vec::new(), counts_only: true };
    if found.ino != ino {
        verdict.wrong.push(format!("says that it is inode {}", found.ino));
        verdict.right.ino = ino;
        verdict.counts_only = false;
    }
    let Some((linked, links)) = check_names(&mut verdict, facts) else {
        // Its counts are for the next look at it.
        let nlink = facts.nlink(found.kind);
        let lost = Box::new(Inode { nlink, ..verdict.right });
        findings.push(nothing("no name leads to it").mended_by(Mend::LostAndFound(lost)));
        return findings;
    };
    let nlink = match (linked, found.is_directory()) {
        (false, _) => 0,
        (true, true) => facts.nlink(found.kind),
        (true, false) => Facts { links, ..Facts::default() }.nlink(found.kind),
    };
    verdict.compare("links", |inode| &mut inode.nlink, nlink);
    check_sizes(&mut verdict, facts);
    if !verdict.wrong.is_empty() {
        let mut changes = verdict.also;
        if verdict.right != *found {
            changes.push((tree::Key::Inode(ino), Some(Record::Inode(Box::new(verdict.right)))));
        }
        let mend = if verdict.counts_only { Mend::Counts(changes) } else { Mend::Tree(changes) };
        findings.push(Finding::new(place(), verdict.wrong.join("; ")).mended_by(mend));
    }
    findings
}

/// Whether it has a name, and how many beside the first; `None` when it should have one and has not.
fn check_names(verdict: &mut Verdict, facts: &Facts) -> Option<(bool, u64)> {
    let Inode { ino, nlink, .. } = verdict.right;
    let is_named = verdict.right.name.is_some();
    let mut links = facts.links;
    let linked = if ino == Ino::ROOT {
        if is_named || verdict.right.parent != Ino::ROOT {
            verdict.wrong.push("the root says that it is in a directory".to_owned());
            (verdict.right.name, verdict.right.parent) = (None, Ino::ROOT);
            verdict.counts_only = false;
        }
        true
    } else if is_named && facts.has_first {
        true
    } else if let Some((parent, name)) = facts.link.clone().filter(|_| !verdict.right.is_directory()) {
        verdict.wrong.push("its first name does not lead to it, another one does".to_owned());
        verdict.also.push((tree::Key::Link(ino, parent, name.clone()), None));
        (verdict.right.parent, verdict.right.name) = (parent, Some(name));
        links -= 1;
        true
    } else if !is_named && facts.is_orphan && nlink == 0 {
        false
    } else {
        return None;
    };
    if linked && facts.is_orphan {
        verdict.wrong.push("is listed as an orphan and has a name".to_owned());
        verdict.also.push((tree::Key::Orphan(ino), None));
    }
    Some((linked, links))
}

fn check_sizes(verdict: &mut Verdict, facts: &Facts) {
    if verdict.right.is_directory() {
        verdict.compare("entries", |inode| &mut inode.entries, facts.entries);
        verdict.compare("bytes for its entries", |inode| &mut inode.size, facts.entries);
    }
    verdict.compare("bytes of extents", |inode| &mut inode.allocated, facts.allocated);
    verdict.compare("bytes of attributes", |inode| &mut inode.xattr_bytes, facts.xattr_bytes);
    if verdict.right.is_file() && facts.end > verdict.right.size {
        verdict
            .wrong
            .push(format!("ends at byte {} and has content up to {}", verdict.right.size, facts.end));
        // Nothing is cut off.
        verdict.right.size = facts.end;
        verdict.counts_only = false;
    }
    if let Some(length) = verdict.right.target.as_ref().map(|target| target.len() as u64) {
        verdict.compare("bytes of its target", |inode| &mut inode.size, length);
    }
}

/// An inode in the place of one that is missing, so that what is left of it can be reached.
pub(crate) fn skeleton(ino: Ino, kind: Kind, now: Time) -> Inode {
    let root = tree::new_root(now, 0, 0);
    let nlink = if kind == Kind::Directory { root.nlink } else { 1 };
    Inode { ino, kind, mode: MODE, nlink, ..root }
}

fn made_anew(ino: Ino, facts: &Facts, now: Time) -> Mend {
    if ino == Ino::ROOT {
        let root = Inode {
            entries: facts.entries,
            size: facts.entries,
            nlink: facts.nlink(Kind::Directory),
            xattr_bytes: facts.xattr_bytes,
            ..tree::new_root(now, 0, 0)
        };
        return Mend::Tree(vec![(tree::Key::Inode(ino), Some(Record::Inode(Box::new(root))))]);
    }
    let kind = if facts.entries > 0 { Kind::Directory } else { Kind::File };
    let size = if facts.entries > 0 { facts.entries } else { facts.end };
    Mend::LostAndFound(Box::new(Inode {
        size,
        entries: facts.entries,
        nlink: facts.nlink(kind),
        allocated: facts.allocated,
        xattr_bytes: facts.xattr_bytes,
        ..skeleton(ino, kind, now)
    }))
}

#[cfg(test)]
mod tests {
    use super::{Facts, check, skeleton};
    use crate::fsck::finding::Mend;
    use tandemfs::clock::Time;
    use tandemfs::id::{Ino, VolumeId};
    use tandemfs::name::Name;
    use tandemfs::tree::{Inode, Key, Kind, Record, new_root};

    const INO: Ino = Ino(9);

    fn file() -> (Inode, Facts) {
        let name = Some(Name::new("f").unwrap());
        let inode = Inode { name, size: 10, allocated: 7, ..skeleton(INO, Kind::File, Time::default()) };
        (inode, Facts { has_first: true, chunks: 1, allocated: 7, end: 9, ..Facts::default() })
    }

    fn directory() -> (Inode, Facts) {
        let name = Some(Name::new("d").unwrap());
        let inode =
            Inode { name, nlink: 3, size: 2, entries: 2, ..skeleton(INO, Kind::Directory, Time::default()) };
        (inode, Facts { has_first: true, entries: 2, subdirectories: 1, ..Facts::default() })
    }

    fn findings(inode: Option<&Inode>, facts: &Facts) -> Vec<(String, Mend)> {
        let ino = inode.map_or(INO, |inode| inode.ino);
        let findings = check(VolumeId(1), ino, inode, facts, Time::default());
        findings.into_iter().map(|finding| (finding.what, finding.mend)).collect()
    }

    /// What is wrong is put right by one record, and nothing is wrong with that.
    #[track_caller]
    fn is_mended(good: &(Inode, Facts), bad: Inode, what: &str) {
        let found = findings(Some(&bad), &good.1);
        let [(said, Mend::Counts(changes) | Mend::Tree(changes))] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert!(said.contains(what), "{said}");
        let expected = Record::Inode(Box::new(good.0.clone()));
        assert_eq!(changes.as_slice(), [(Key::Inode(good.0.ino), Some(expected))]);
    }

    #[test]
    fn what_is_right_is_not_complained_about() {
        for (inode, facts) in [file(), directory()] {
            assert_eq!(findings(Some(&inode), &facts), []);
        }
        let root = new_root(Time::default(), 0, 0);
        assert_eq!(findings(Some(&root), &Facts::default()), []);
        let orphan = Inode { nlink: 0, name: None, ..file().0 };
        assert_eq!(findings(Some(&orphan), &Facts { is_orphan: true, ..file().1 }), []);
        assert_eq!(findings(None, &Facts::default()), []);
    }

    #[test]
    fn wrong_numbers_are_those_that_were_counted() {
        let good = file();
        is_mended(&good, Inode { nlink: 2, ..good.0.clone() }, "says 2 links, 1 were counted");
        is_mended(&good, Inode { allocated: 9, ..good.0.clone() }, "bytes of extents");
        is_mended(&good, Inode { xattr_bytes: 4, ..good.0.clone() }, "bytes of attributes");
        let short = (Inode { size: 9, ..good.0.clone() }, good.1.clone());
        is_mended(&short, Inode { size: 8, ..good.0.clone() }, "has content up to 9");
        let good = directory();
        is_mended(&good, Inode { nlink: 2, ..good.0.clone() }, "links");
        is_mended(&good, Inode { entries: 1, ..good.0.clone() }, "entries");
        is_mended(&good, Inode { size: 0, ..good.0.clone() }, "bytes for its entries");
        let target = Some(b"there".to_vec());
        let link = Inode { kind: Kind::Symlink, size: 5, allocated: 0, target, ..file().0 };
        let facts = Facts { has_first: true, ..Facts::default() };
        is_mended(&(link.clone(), facts), Inode { size: 1, ..link }, "target");
    }

    #[test]
    fn what_no_name_leads_to_is_found_again_and_never_removed() {
        let (inode, facts) = file();
        let lost = |inode: &Inode, facts: &Facts| {
            let found = findings(Some(inode), facts);
            matches!(found.as_slice(), [(_, Mend::LostAndFound(_))])
        };
        assert!(lost(&inode, &Facts { has_first: false, ..facts.clone() }));
        let removed = Inode { nlink: 0, name: None, ..inode.clone() };
        assert!(lost(&removed, &facts), "not listed as an orphan");
        let orphan = Facts { is_orphan: true, ..facts.clone() };
        assert!(lost(&Inode { name: None, ..inode.clone() }, &orphan), "an orphan with links");
        assert!(matches!(findings(None, &facts).as_slice(), [(_, Mend::LostAndFound(_))]));
        assert!(matches!(
            findings(None, &Facts { is_orphan: true, ..Facts::default() }).as_slice(),
            [(_, Mend::Counts(_))]
        ));
    }

    #[test]
    fn another_name_takes_the_place_of_the_first() {
        let (inode, facts) = file();
        let name = Name::new("other").unwrap();
        let facts = Facts { has_first: false, links: 1, link: Some((Ino(4), name.clone())), ..facts };
        let found = findings(Some(&inode), &facts);
        let [(_, Mend::Counts(changes))] = found.as_slice() else { panic!("{found:?}") };
        let right = Inode { parent: Ino(4), name: Some(name.clone()), ..inode };
        assert_eq!(
            changes.as_slice(),
            [(Key::Link(INO, Ino(4), name), None), (Key::Inode(INO), Some(Record::Inode(Box::new(right))))]
        );
    }

    #[test]
    fn a_missing_root_is_made_anew() {
        let facts = Facts { entries: 3, subdirectories: 1, ..Facts::default() };
        let found = check(VolumeId(1), Ino::ROOT, None, &facts, Time::default());
        let Mend::Tree(changes) = &found[0].mend else { panic!("{found:?}") };
        let Some((_, Some(Record::Inode(root)))) = changes.first() else { panic!("{changes:?}") };
        assert_eq!((root.entries, root.nlink, root.mode), (3, 3, 0o755));
    }
}
