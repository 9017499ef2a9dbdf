//! Renaming, and the way from an inode back to its names.

use super::store::{ROOT, Store, at, create_in, directory, file, link, name, unlink};
use crate::ErrorKind;
use crate::id::Ino;
use crate::name::Name;
use crate::tree::{Credentials, Key, Mutation, NewNode, RenameMode};

const ALICE: Credentials = Credentials { uid: 100, gid: 100 };

fn rename(from: (u64, &str), to: (u64, &str), mode: RenameMode) -> Mutation {
    rename_by(from, to, mode, ROOT)
}

fn rename_by(from: (u64, &str), to: (u64, &str), mode: RenameMode, by: Credentials) -> Mutation {
    Mutation::Rename {
        parent: Ino(from.0),
        name: name(from.1),
        new_parent: Ino(to.0),
        new_name: name(to.1),
        mode,
        by,
        time: at(1000),
    }
}

/// ```text
/// /a/ (2)   /a/b/ (3)   /a/b/f (4)   /e/ (5)   /f (6)   /g (6)   /t/ (7, sticky)   /t/x (8)
/// ```
fn tree() -> Store {
    let mut store = Store::new();
    for mutation in [
        directory("a", 2),
        create_in(Ino(2), "b", 3, NewNode::Directory, 0o755, ROOT),
        create_in(Ino(3), "f", 4, NewNode::File, 0o644, ROOT),
        directory("e", 5),
        file("f", 6),
        link(6, Ino::ROOT, "g"),
        create_in(Ino::ROOT, "t", 7, NewNode::Directory, 0o1777, ROOT),
        create_in(Ino(7), "x", 8, NewNode::File, 0o644, ROOT),
    ] {
        assert_eq!(store.apply(&mutation), Ok(()));
    }
    store
}

fn path(names: &[&str]) -> Result<Vec<Name>, ErrorKind> {
    Ok(names.iter().map(|text| name(text)).collect())
}

#[test]
fn a_directory_that_moves_takes_its_link_along() {
    let mut store = tree();
    assert_eq!(store.apply(&rename((2, "b"), (5, "c"), RenameMode::NoReplace)), Ok(()));
    assert_eq!((store.inode(Ino(2)).nlink, store.inode(Ino(5)).nlink), (2, 3));
    assert_eq!(store.path_of(Ino(4)), path(&["e", "c", "f"]));
    assert_eq!(store.inode(Ino(3)).ctime, at(1000));
    assert_eq!((store.inode(Ino(2)).mtime, store.inode(Ino(5)).mtime), (at(1000), at(1000)));
}

#[test]
fn what_is_replaced_becomes_an_orphan() {
    let mut store = tree();
    assert_eq!(store.apply(&rename((3, "f"), (7, "x"), RenameMode::Replace)), Ok(()));
    assert_eq!(store.inode(Ino(8)).nlink, 0);
    assert_eq!(store.path_of(Ino(4)), path(&["t", "x"]));
    assert_eq!(
        store.apply(&rename((1, "a"), (1, "e"), RenameMode::Replace)),
        Ok(()),
        "onto an empty directory"
    );
    assert_eq!((store.inode(Ino(5)).nlink, store.inode(Ino::ROOT).nlink), (0, 4));
    assert_eq!(store.path_of(Ino(3)), path(&["e", "b"]));
}

#[test]
fn exchange_swaps_kinds_and_parents() {
    let mut store = tree();
    assert_eq!(store.apply(&rename((2, "b"), (1, "g"), RenameMode::Exchange)), Ok(()));
    assert_eq!((store.inode(Ino(2)).nlink, store.inode(Ino::ROOT).nlink), (2, 6));
    assert_eq!(store.path_of(Ino(4)), path(&["g", "f"]));
    assert!(
        store.records.contains_key(&Key::Link(Ino(6), Ino(2), name("b"))),
        "a further link moves as such"
    );
    assert_eq!(store.path_of(Ino(6)), path(&["f"]));
    assert_eq!((store.inode(Ino(3)).ctime, store.inode(Ino(6)).ctime), (at(1000), at(1000)));
}

#[test]
fn two_names_of_one_inode_stay_as_they_are() {
    for mode in [RenameMode::Replace, RenameMode::Exchange] {
        let mut store = tree();
        let before = store.clone();
        assert_eq!(store.apply(&rename((1, "f"), (1, "g"), mode)), Ok(()));
        assert_eq!(store.apply(&rename((1, "f"), (1, "f"), mode)), Ok(()));
        assert_eq!(store, before);
    }
}

#[test]
fn rename_refuses() {
    let (replace, keep, swap) = (RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange);
    let mut store = tree();
    for (mutation, kind) in [
        (rename((1, "none"), (1, "x"), replace), ErrorKind::NotFound),
        (rename((9, "none"), (1, "x"), replace), ErrorKind::NotFound),
        (rename((1, "f"), (6, "x"), replace), ErrorKind::NotADirectory),
        (rename((1, "f"), (1, "g"), keep), ErrorKind::AlreadyExists),
        (rename((1, "f"), (1, "none"), swap), ErrorKind::NotFound),
        (rename((1, "a"), (3, "x"), replace), ErrorKind::Invalid),
        (rename((1, "a"), (2, "x"), keep), ErrorKind::Invalid),
        (rename((1, "a"), (3, "f"), swap), ErrorKind::Invalid),
        (rename((3, "f"), (1, "a"), swap), ErrorKind::Invalid),
        (rename((3, "f"), (1, "a"), replace), ErrorKind::NotEmpty),
        (rename((1, "e"), (1, "a"), replace), ErrorKind::NotEmpty),
        (rename((1, "e"), (1, "f"), replace), ErrorKind::NotADirectory),
        (rename((1, "f"), (1, "e"), replace), ErrorKind::IsADirectory),
        (rename_by((7, "x"), (1, "x"), replace, ALICE), ErrorKind::NotPermitted),
        (rename_by((1, "f"), (7, "x"), replace, ALICE), ErrorKind::NotPermitted),
    ] {
        assert_eq!(store.apply(&mutation), Err(kind), "{mutation:?}");
    }
    assert_eq!(
        store.apply(&rename_by((1, "f"), (7, "y"), replace, ALICE)),
        Ok(()),
        "a new name in a sticky one"
    );
}

#[test]
fn another_link_takes_the_place_of_the_first() {
    let mut store = tree();
    assert_eq!(store.apply(&link(6, Ino(5), "h")), Ok(()));
    assert_eq!(store.apply(&unlink(Ino::ROOT, "f", ROOT)), Ok(()));
    assert_eq!((store.path_of(Ino(6)), store.inode(Ino(6)).nlink), (path(&["g"]), 2));
    assert_eq!(store.apply(&rename((1, "g"), (2, "i"), RenameMode::Replace)), Ok(()));
    assert_eq!(store.path_of(Ino(6)), path(&["a", "i"]));
    assert_eq!(store.apply(&unlink(Ino(2), "i", ROOT)), Ok(()));
    assert_eq!(store.path_of(Ino(6)), path(&["e", "h"]));
    assert_eq!(store.apply(&unlink(Ino(5), "h", ROOT)), Ok(()));
    assert!(store.records.contains_key(&Key::Orphan(Ino(6))));
}

#[test]
fn links_that_a_batch_made_are_promoted_within_it() {
    let mut store = tree();
    let mutations = [
        link(4, Ino(5), "one"),
        unlink(Ino(3), "f", ROOT),
        unlink(Ino(5), "one", ROOT),
        link(4, Ino(5), "two"),
        link(6, Ino(5), "three"),
        unlink(Ino::ROOT, "g", ROOT),
        unlink(Ino::ROOT, "f", ROOT),
    ];
    let (results, changes) = store.batch(super::store::Loading::OneByOne, &mutations);
    let gone = Err(ErrorKind::NotFound);
    assert_eq!(results, [Ok(()), Ok(()), Ok(()), gone, Ok(()), Ok(()), Ok(())]);
    store.commit(changes);
    assert_eq!(store.path_of(Ino(6)), path(&["e", "three"]));
    assert_eq!(store.apply(&unlink(Ino(5), "three", ROOT)), Ok(()));
}
