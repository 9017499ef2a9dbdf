//! Creating, removing, attributes, extended attributes: each rule by itself.

use super::store::{
    ROOT, Store, at, create_in, directory, file, link, name, rmdir, set_attributes, unlink, write, written,
};
use crate::ErrorKind;
use crate::clock::Time;
use crate::id::Ino;
use crate::tree::acl::{ACCESS, DEFAULT};
use crate::tree::{
    Credentials, FILE_SIZE_MAX, Key, Kind, LINK_MAX, Mutation, NewNode, Record, SYMLINK_MAX, SetAttributes,
    Usage, XATTR_SIZE_MAX, XattrMode, resolve,
};

const ALICE: Credentials = Credentials { uid: 100, gid: 100 };
const BOB: Credentials = Credentials { uid: 200, gid: 200 };

fn store_of(mutations: &[Mutation]) -> Store {
    let mut store = Store::new();
    for mutation in mutations {
        assert_eq!(store.apply(mutation), Ok(()), "{mutation:?}");
    }
    store
}

#[test]
fn create_makes_what_was_asked_for_and_changes_the_parent() {
    let node = NewNode::CharDevice(0x103);
    let store = store_of(&[create_in(Ino::ROOT, "tty", 9, node, 0o620, ALICE), directory("d", 10)]);
    let inode = store.inode(Ino(9));
    assert_eq!(
        (inode.kind, inode.rdev, inode.mode, inode.uid, inode.gid),
        (Kind::CharDevice, 0x103, 0o620, 100, 100)
    );
    assert_eq!((inode.nlink, inode.btime, inode.atime), (1, at(9), at(9)));
    let root = store.inode(Ino::ROOT);
    assert_eq!((root.nlink, root.entries, root.size, root.mtime, root.ctime), (3, 2, 2, at(10), at(10)));
    assert_eq!(store.usage().inodes, 2);
}

#[test]
fn create_refuses() {
    let mut store = store_of(&[file("f", 2), directory("d", 3), rmdir(Ino::ROOT, "d", ROOT)]);
    let symlink = |length| create_in(Ino::ROOT, "s", 9, NewNode::Symlink(vec![b'x'; length]), 0, ROOT);
    let late = Mutation::Create {
        parent: Ino::ROOT,
        name: name("x"),
        ino: Ino(9),
        node: NewNode::File,
        mode: 0,
        by: ROOT,
        time: Time { seconds: 0, nanos: 1_000_000_000 },
    };
    for (mutation, kind) in [
        (file("f", 9), ErrorKind::AlreadyExists),
        (file("x", 2), ErrorKind::Invalid),
        (file("x", 0), ErrorKind::Invalid),
        (create_in(Ino(2), "x", 9, NewNode::File, 0, ROOT), ErrorKind::NotADirectory),
        (create_in(Ino(3), "x", 9, NewNode::File, 0, ROOT), ErrorKind::NotFound),
        (create_in(Ino(4), "x", 9, NewNode::File, 0, ROOT), ErrorKind::NotFound),
        (create_in(Ino::ROOT, "x", 9, NewNode::File, 0o10_000, ROOT), ErrorKind::Invalid),
        (symlink(0), ErrorKind::NotFound),
        (symlink(SYMLINK_MAX + 1), ErrorKind::NameTooLong),
        (create_in(Ino::ROOT, "s", 9, NewNode::Symlink(b"a\0b".to_vec()), 0, ROOT), ErrorKind::Invalid),
        (late, ErrorKind::Invalid),
    ] {
        assert_eq!(store.apply(&mutation), Err(kind), "{mutation:?}");
    }
    assert_eq!(store.apply(&symlink(SYMLINK_MAX)), Ok(()));
    assert_eq!((store.inode(Ino(9)).size, store.inode(Ino(9)).mode), (4095, 0o777));
}

#[test]
fn set_group_id_directories_hand_down_their_group() {
    let shared = create_in(Ino::ROOT, "shared", 2, NewNode::Directory, 0o2775, ALICE);
    let inside = |text, ino, node, mode, by| create_in(Ino(2), text, ino, node, mode, by);
    let store = store_of(&[
        shared,
        inside("plain", 3, NewNode::File, 0o644, BOB),
        inside("sub", 4, NewNode::Directory, 0o755, BOB),
        inside("program by an outsider", 5, NewNode::File, 0o2755, BOB),
        inside("program by a member", 6, NewNode::File, 0o2755, ALICE),
        inside("lock file by an outsider", 7, NewNode::File, 0o2644, BOB),
        inside("program by root", 8, NewNode::File, 0o2755, ROOT),
        create_in(Ino::ROOT, "elsewhere", 9, NewNode::File, 0o2755, BOB),
    ]);
    let of = |ino| (store.inode(Ino(ino)).gid, store.inode(Ino(ino)).mode);
    assert_eq!([of(3), of(4), of(5)], [(100, 0o644), (100, 0o2755), (100, 0o755)]);
    assert_eq!([of(6), of(7), of(8)], [(100, 0o2755), (100, 0o2644), (100, 0o2755)]);
    assert_eq!(of(9), (200, 0o2755));
}

#[test]
fn quotas_are_exact() {
    let usage = Usage { quota_inodes: Some(2), quota_bytes: Some(100), ..Usage::default() };
    let mut store = Store::with(usage);
    assert_eq!(store.apply(&file("a", 2)), Ok(()));
    assert_eq!(store.apply(&file("b", 3)), Ok(()));
    assert_eq!(store.apply(&file("c", 4)), Err(ErrorKind::QuotaExceeded));
    assert_eq!(store.apply(&unlink(Ino::ROOT, "b", ROOT)), Ok(()));
    assert_eq!(store.apply(&file("c", 4)), Err(ErrorKind::QuotaExceeded), "an orphan counts");
    assert_eq!(store.apply(&Mutation::Reap { ino: Ino(3), chunks: 1 }), Ok(()));
    assert_eq!(store.apply(&file("c", 4)), Ok(()));

    assert_eq!(store.apply(&write(2, &[written(0, 100, 1, 0)])), Ok(()));
    assert_eq!(store.apply(&write(2, &[written(50, 51, 2, 0)])), Err(ErrorKind::QuotaExceeded));
    assert_eq!(store.apply(&write(2, &[written(0, 100, 2, 0)])), Ok(()), "nothing more than before");
    store.records.insert(Key::Usage, Record::Usage(Usage { quota_bytes: Some(10), ..store.usage() }));
    assert_eq!(store.apply(&write(2, &[written(5, 20, 3, 0)])), Ok(()), "also over a lowered quota");
    assert_eq!(store.apply(&write(4, &[written(0, 1, 3, 0)])), Err(ErrorKind::QuotaExceeded));
}

#[test]
fn removing_makes_orphans() {
    let mut store =
        store_of(&[file("f", 2), directory("d", 3), create_in(Ino(3), "x", 4, NewNode::Fifo, 0, ROOT)]);
    assert_eq!(store.apply(&unlink(Ino::ROOT, "d", ROOT)), Err(ErrorKind::IsADirectory));
    assert_eq!(store.apply(&rmdir(Ino::ROOT, "f", ROOT)), Err(ErrorKind::NotADirectory));
    assert_eq!(store.apply(&rmdir(Ino::ROOT, "d", ROOT)), Err(ErrorKind::NotEmpty));
    assert_eq!(store.apply(&unlink(Ino::ROOT, "none", ROOT)), Err(ErrorKind::NotFound));
    assert_eq!(store.apply(&unlink(Ino(2), "x", ROOT)), Err(ErrorKind::NotADirectory));
    for mutation in [unlink(Ino(3), "x", ROOT), rmdir(Ino::ROOT, "d", ROOT), unlink(Ino::ROOT, "f", ROOT)] {
        assert_eq!(store.apply(&mutation), Ok(()));
    }
    let root = store.inode(Ino::ROOT);
    assert_eq!((root.nlink, root.entries, root.mtime), (2, 0, at(600)));
    assert_eq!((store.inode(Ino(3)).nlink, store.inode(Ino(3)).ctime), (0, at(650)));
    assert_eq!(store.usage().inodes, 3, "orphans count until they are reaped");
    assert_eq!(store.path_of(Ino(2)), Err(ErrorKind::NotFound));
    assert_eq!(store.apply(&link(2, Ino::ROOT, "again")), Err(ErrorKind::NotFound));
    for ino in [2, 3, 4, 5] {
        assert_eq!(store.apply(&Mutation::Reap { ino: Ino(ino), chunks: 0 }), Ok(()));
    }
    assert_eq!(store.usage().inodes, 0);
    assert_eq!(store.records.len(), 2, "{:?}", store.records);
}

#[test]
fn sticky_directories_keep_others_out() {
    let mut store = store_of(&[
        create_in(Ino::ROOT, "tmp", 2, NewNode::Directory, 0o1777, ROOT),
        create_in(Ino(2), "a", 3, NewNode::File, 0o666, ALICE),
        create_in(Ino(2), "b", 4, NewNode::File, 0o666, BOB),
        create_in(Ino(2), "d", 5, NewNode::Directory, 0o777, ALICE),
        create_in(Ino::ROOT, "mine", 6, NewNode::Directory, 0o1777, BOB),
        create_in(Ino(6), "a", 7, NewNode::File, 0o666, ALICE),
    ]);
    assert_eq!(store.apply(&unlink(Ino(2), "a", BOB)), Err(ErrorKind::NotPermitted));
    assert_eq!(store.apply(&rmdir(Ino(2), "d", BOB)), Err(ErrorKind::NotPermitted));
    assert_eq!(store.apply(&unlink(Ino(6), "a", BOB)), Ok(()), "the directory's owner");
    assert_eq!(store.apply(&unlink(Ino(2), "a", ALICE)), Ok(()), "the file's owner");
    assert_eq!(store.apply(&unlink(Ino(2), "b", ROOT)), Ok(()), "root");
}

#[test]
fn links_count_and_have_a_limit() {
    let mut store = store_of(&[file("f", 2), directory("d", 3), link(2, Ino(3), "g")]);
    assert_eq!((store.inode(Ino(2)).nlink, store.inode(Ino(2)).ctime), (2, at(500)));
    assert_eq!(store.apply(&link(3, Ino::ROOT, "e")), Err(ErrorKind::NotPermitted));
    assert_eq!(store.apply(&link(2, Ino(3), "g")), Err(ErrorKind::AlreadyExists));
    assert_eq!(store.apply(&link(2, Ino(2), "g")), Err(ErrorKind::NotADirectory));
    assert_eq!(store.apply(&link(8, Ino(3), "h")), Err(ErrorKind::NotFound));

    let mut full = store.clone();
    let inode = crate::tree::Inode { nlink: LINK_MAX, ..store.inode(Ino(2)).clone() };
    full.records.insert(Key::Inode(Ino(2)), Record::Inode(Box::new(inode)));
    let (results, _) = full.batch(super::store::Loading::OneByOne, &[link(2, Ino(3), "h")]);
    assert_eq!(results, [Err(ErrorKind::TooManyLinks)]);
}

#[test]
fn attributes_change_with_the_times() {
    let mut store = store_of(&[file("f", 2)]);
    let before = store.clone();
    assert_eq!(store.apply(&set_attributes(2, SetAttributes::default(), ROOT)), Ok(()));
    assert_eq!(store, before);
    let times = SetAttributes { atime: Some(at(-1)), mtime: Some(at(-2)), ..SetAttributes::default() };
    assert_eq!(store.apply(&set_attributes(2, times, ROOT)), Ok(()));
    let inode = store.inode(Ino(2));
    assert_eq!((inode.atime, inode.mtime, inode.ctime), (at(-1), at(-2), at(700)));
    let bad = Time { seconds: 0, nanos: u32::MAX };
    for set in [
        SetAttributes { mode: Some(0o10_000), ..SetAttributes::default() },
        SetAttributes { uid: Some(u32::MAX), ..SetAttributes::default() },
        SetAttributes { gid: Some(u32::MAX), ..SetAttributes::default() },
        SetAttributes { atime: Some(bad), ..SetAttributes::default() },
        SetAttributes { mtime: Some(bad), ..SetAttributes::default() },
    ] {
        assert_eq!(store.apply(&set_attributes(2, set, ROOT)), Err(ErrorKind::Invalid));
    }
}

#[test]
fn reading_moves_atime_forward_and_nothing_else() {
    let mut store = store_of(&[file("f", 2)]);
    let accessed = |ino, after, time| Mutation::Accessed { ino: Ino(ino), after, time };
    let before = store.inode(Ino(2)).clone();
    let (start, later) = (before.atime, at(before.atime.seconds + 9));
    assert_eq!(store.apply(&accessed(2, start, later)), Ok(()));
    assert_eq!(*store.inode(Ino(2)), crate::tree::Inode { atime: later, ..before });
    let read = store.clone();
    for late in [accessed(2, start, start), accessed(2, start, later), accessed(2, at(-5), at(-4))] {
        assert_eq!(store.apply(&late), Ok(()));
        assert_eq!(store, read, "{late:?}");
    }
    // Set back by somebody after a read of another, who tells of it late.
    let back = SetAttributes { atime: Some(at(-9)), ..SetAttributes::default() };
    assert_eq!(store.apply(&set_attributes(2, back, ROOT)), Ok(()));
    assert_eq!(store.apply(&accessed(2, start, at(5000))), Ok(()));
    assert_eq!(store.inode(Ino(2)).atime, at(-9));
    assert_eq!(store.apply(&accessed(2, at(-9), at(5000))), Ok(()));
    assert_eq!(store.inode(Ino(2)).atime, at(5000));
    assert_eq!(store.apply(&accessed(77, start, later)), Ok(()), "it is gone");
    let bad = Time { seconds: 0, nanos: 1_000_000_000 };
    for refused in [accessed(2, bad, later), accessed(2, start, bad), accessed(77, bad, later)] {
        assert_eq!(store.apply(&refused), Err(ErrorKind::Invalid), "{refused:?}");
    }
}

#[test]
fn changes_of_owner_and_size_take_privileges_away() {
    let mode = |mode| SetAttributes { mode: Some(mode), ..SetAttributes::default() };
    let owner = SetAttributes { uid: Some(5), ..SetAttributes::default() };
    let size = SetAttributes { size: Some(5), ..SetAttributes::default() };
    for (before, change, by, after) in [
        (0o6755, &owner, ROOT, 0o755),
        (0o6745, &owner, ROOT, 0o2745),
        (0o6745, &owner, ALICE, 0o745),
        (0o6755, &size, ROOT, 0o6755),
        (0o6755, &size, ALICE, 0o755),
        (0o6745, &size, ALICE, 0o745),
    ] {
        let mut store = store_of(&[file("f", 2), set_attributes(2, mode(before), ROOT)]);
        assert_eq!(store.apply(&set_attributes(2, change.clone(), by)), Ok(()));
        assert_eq!(store.inode(Ino(2)).mode, after, "{before:o} {change:?} {by:?}");
    }
    let both = SetAttributes { mode: Some(0o4711), ..owner.clone() };
    let store = store_of(&[file("f", 2), set_attributes(2, both, ROOT)]);
    assert_eq!((store.inode(Ino(2)).mode, store.inode(Ino(2)).uid), (0o4711, 5));
    let store =
        store_of(&[directory("d", 2), set_attributes(2, mode(0o2755), ROOT), set_attributes(2, owner, ROOT)]);
    assert_eq!(store.inode(Ino(2)).mode, 0o2755, "not of directories");
}

#[test]
fn only_files_have_a_size_to_set_and_links_no_mode() {
    let mut store = store_of(&[
        file("f", 2),
        directory("d", 3),
        create_in(Ino::ROOT, "p", 4, NewNode::Fifo, 0, ROOT),
        create_in(Ino::ROOT, "s", 5, NewNode::Symlink(b"f".to_vec()), 0, ROOT),
    ]);
    let size = |size| SetAttributes { size: Some(size), ..SetAttributes::default() };
    for (ino, size, result) in [
        (2, size(FILE_SIZE_MAX), Ok(())),
        (2, size(FILE_SIZE_MAX + 1), Err(ErrorKind::TooLarge)),
        (3, size(0), Err(ErrorKind::IsADirectory)),
        (4, size(0), Err(ErrorKind::Invalid)),
        (5, size(0), Err(ErrorKind::Invalid)),
        (6, size(0), Err(ErrorKind::NotFound)),
        (5, SetAttributes { mode: Some(0o600), ..SetAttributes::default() }, Err(ErrorKind::Unsupported)),
    ] {
        assert_eq!(store.apply(&set_attributes(ino, size.clone(), ROOT)), result, "{ino} {size:?}");
    }
}

#[test]
fn extended_attributes_follow_their_modes_and_limits() {
    let set = |text: &str, length, mode| Mutation::SetXattr {
        ino: Ino(2),
        name: text.into(),
        value: vec![7; length],
        mode,
        by: ROOT,
        time: at(900),
    };
    let remove = |text: &str| Mutation::RemoveXattr { ino: Ino(2), name: text.into(), time: at(901) };
    let mut store = store_of(&[file("f", 2), create_in(Ino::ROOT, "p", 3, NewNode::Fifo, 0, ROOT)]);
    let long = format!("user.{}", "x".repeat(251));
    for (mutation, result) in [
        (remove("user.a"), Err(ErrorKind::NoAttribute)),
        (set("user.a", 3, XattrMode::Replace), Err(ErrorKind::NoAttribute)),
        (set("user.a", 0, XattrMode::Create), Ok(())),
        (set("user.a", 3, XattrMode::Create), Err(ErrorKind::AlreadyExists)),
        (set("user.a", 3, XattrMode::Replace), Ok(())),
        (set("user.b", XATTR_SIZE_MAX, XattrMode::Set), Ok(())),
        (set("user.b", XATTR_SIZE_MAX + 1, XattrMode::Set), Err(ErrorKind::ValueTooLarge)),
        (set("", 0, XattrMode::Set), Err(ErrorKind::OutOfRange)),
        (set(&long, 0, XattrMode::Set), Err(ErrorKind::OutOfRange)),
        (set(&long[..255], 0, XattrMode::Set), Ok(())),
        (set("user.", 0, XattrMode::Set), Err(ErrorKind::Invalid)),
        (set("user.\0", 0, XattrMode::Set), Err(ErrorKind::Invalid)),
        (set("system.other", 0, XattrMode::Set), Err(ErrorKind::Unsupported)),
        (set("system.posix_acl_default", 3, XattrMode::Set), Err(ErrorKind::Invalid)),
        (set("system.posix_acl_access", 0, XattrMode::Set), Err(ErrorKind::Invalid)),
        (remove("user.b"), Ok(())),
        (remove("user.b"), Err(ErrorKind::NoAttribute)),
        (unlink(Ino::ROOT, "f", ROOT), Ok(())),
        (set("security.x", 1, XattrMode::Set), Ok(())),
    ] {
        assert_eq!(store.apply(&mutation), result, "{mutation:?}");
    }
    assert_eq!((store.inode(Ino(2)).xattr_bytes, store.inode(Ino(2)).ctime), (9 + 255 + 11, at(900)));
    for number in 0..15 {
        assert_eq!(store.apply(&set(&format!("user.{number:02}"), XATTR_SIZE_MAX, XattrMode::Set)), Ok(()));
    }
    assert_eq!(store.apply(&set("user.15", XATTR_SIZE_MAX, XattrMode::Set)), Err(ErrorKind::NoSpace));
    assert_eq!(store.apply(&Mutation::Reap { ino: Ino(2), chunks: 1 }), Ok(()));
    assert_eq!(store.usage().inodes, 1);
    let Mutation::SetXattr { name, value, mode, time, .. } = set("user.a", 1, XattrMode::Set) else {
        panic!()
    };
    let on_fifo = Mutation::SetXattr { ino: Ino(3), name, value, mode, by: ROOT, time };
    assert_eq!(store.apply(&on_fifo), Err(ErrorKind::NotPermitted));
}

#[test]
fn access_control_lists_and_modes_follow_one_another() {
    // user::rwx, user:100:rw-, group::r-x, mask::rwx, other::r--
    let list = |mask: u8| {
        let mut value = vec![2, 0, 0, 0];
        for (tag, permissions, id) in
            [(1, 7, u32::MAX), (2, 6, 100), (4, 5, u32::MAX), (16, mask, u32::MAX), (32, 4, u32::MAX)]
        {
            value.extend([tag, 0, permissions, 0]);
            value.extend(id.to_le_bytes());
        }
        value
    };
    let minimal =
        [&[2, 0, 0, 0, 1, 0, 6, 0][..], &[255; 4], &[4, 0, 4, 0], &[255; 4], &[32, 0, 0, 0], &[255; 4]]
            .concat();
    let set = |ino, name: &[u8], value: Vec<u8>, by| Mutation::SetXattr {
        ino: Ino(ino),
        name: name.to_vec(),
        value,
        mode: XattrMode::Set,
        by,
        time: at(900),
    };
    let chmod =
        |ino, mode| set_attributes(ino, SetAttributes { mode: Some(mode), ..SetAttributes::default() }, ROOT);
    let mut store = store_of(&[
        file("f", 2),
        directory("d", 3),
        create_in(Ino::ROOT, "s", 4, NewNode::Symlink(b"f".to_vec()), 0, ROOT),
    ]);
    let kept = |store: &Store, ino, name: &[u8]| match store.records.get(&Key::Xattr(Ino(ino), name.to_vec()))
    {
        Some(Record::Xattr(value)) => Some(value.clone()),
        _ => None,
    };
    for (mutation, result) in [
        (set(2, DEFAULT, list(7), ROOT), Err(ErrorKind::Invalid)),
        (set(4, ACCESS, list(7), ROOT), Err(ErrorKind::Unsupported)),
        (chmod(2, 0o2755), Ok(())),
        (set(2, ACCESS, list(6), ROOT), Ok(())),
    ] {
        assert_eq!(store.apply(&mutation), result, "{mutation:?}");
    }
    assert_eq!((store.inode(Ino(2)).mode, kept(&store, 2, ACCESS)), (0o2764, Some(list(6))));
    assert_eq!(store.apply(&chmod(2, 0o2774)), Ok(()));
    assert_eq!(kept(&store, 2, ACCESS), Some(list(7)), "chmod sets the mask");
    let outsider = Credentials { uid: 5, gid: 5 };
    assert_eq!(store.apply(&set(2, ACCESS, minimal, outsider)), Ok(()));
    let inode = store.inode(Ino(2));
    assert_eq!((inode.mode, inode.xattr_bytes, kept(&store, 2, ACCESS)), (0o640, 0, None));

    assert_eq!(store.apply(&set(3, DEFAULT, list(7), ROOT)), Ok(()));
    for (ino, node, mode) in [(5, NewNode::File, 0o666), (6, NewNode::Directory, 0o777)] {
        assert_eq!(store.apply(&create_in(Ino(3), &format!("n{ino}"), ino, node, mode, ROOT)), Ok(()));
    }
    let symlink = NewNode::Symlink(b"f".to_vec());
    assert_eq!(store.apply(&create_in(Ino(3), "s", 7, symlink, 0, ROOT)), Ok(()));
    assert_eq!([5, 6, 7].map(|ino| store.inode(Ino(ino)).mode), [0o664, 0o774, 0o777]);
    assert_eq!(kept(&store, 6, DEFAULT), Some(list(7)));
    assert_eq!((kept(&store, 5, DEFAULT), kept(&store, 7, ACCESS)), (None, None));
    assert!(kept(&store, 5, ACCESS).is_some() && kept(&store, 6, ACCESS) == Some(list(7)));
}

#[test]
fn paths_lead_to_inodes_and_not_through_links() {
    let store = store_of(&[
        directory("d", 2),
        create_in(Ino(2), "f", 3, NewNode::File, 0, ROOT),
        create_in(Ino::ROOT, "s", 4, NewNode::Symlink(b"d".to_vec()), 0, ROOT),
    ]);
    let at_path = |path: &str| {
        let path = crate::name::split_path(path).unwrap();
        let mut set = crate::tree::WorkingSet::new();
        store.run(super::store::Loading::OneByOne, &mut set, |set| resolve(set, &path)).map(|inode| inode.ino)
    };
    assert_eq!(at_path("/"), Ok(Ino::ROOT));
    assert_eq!(at_path("/d/f"), Ok(Ino(3)));
    assert_eq!(at_path("/s"), Ok(Ino(4)));
    assert_eq!(at_path("/s/f"), Err(ErrorKind::NotADirectory));
    assert_eq!(at_path("/d/f/g"), Err(ErrorKind::NotADirectory));
    assert_eq!(at_path("/d/g"), Err(ErrorKind::NotFound));
    assert_eq!(store.path_of(Ino(3)), Ok(vec![name("d"), name("f")]));
    assert_eq!(store.path_of(Ino::ROOT), Ok(vec![]));
}
