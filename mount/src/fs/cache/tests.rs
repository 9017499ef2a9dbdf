//! What is cached of replies, events and changes that cross.

use super::Cache;
use std::collections::BTreeMap;
use std::sync::Arc;
use tandemfs::clock::Time;
use tandemfs::id::Ino;
use tandemfs::name::Name;
use tandemfs::tree::{Entry, Inode, Key, Kind, Record, Usage, new_root};

fn usage(bytes: u64) -> Option<Record> {
    Some(Record::Usage(Usage { bytes, ..Usage::default() }))
}

fn cached(cache: &Cache) -> Option<u64> {
    match cache.get(&Key::Usage)?.as_deref() {
        Some(Record::Usage(usage)) => Some(usage.bytes),
        _ => None,
    }
}

#[test]
fn a_reply_older_than_an_event_is_not_cached() {
    let cache = Cache::new(1 << 20);
    let request = cache.begin();
    cache.drop_keys(5, &[Key::Usage]);
    request.accept(4, [(Key::Usage, usage(4))]);
    assert_eq!(cached(&cache), None);
    let request = cache.begin();
    cache.drop_keys(5, &[Key::Usage]);
    request.accept(5, [(Key::Usage, usage(5))]);
    assert_eq!(cached(&cache), Some(5), "a reply that has the change is cached");
}

#[test]
fn what_a_refused_change_has_replaced_is_forgotten() {
    let cache = Cache::new(1 << 20);
    cache.begin().accept(3, [(Key::Usage, usage(3))]);
    let change = cache.begin();
    cache.drop_files(5, &[Ino(7)].into());
    change.accept_change(4, [(Key::Usage, usage(4))]);
    assert_eq!(cached(&cache), None);
}

#[test]
fn the_newer_of_two_replies_stays() {
    let cache = Cache::new(1 << 20);
    let (read, batch) = (cache.begin(), cache.begin());
    batch.accept_change(7, [(Key::Usage, usage(7))]);
    read.accept(6, [(Key::Usage, usage(6))]);
    assert_eq!(cached(&cache), Some(7));
    let (first, second) = (cache.begin(), cache.begin());
    first.accept_change(8, [(Key::Usage, usage(8))]);
    second.accept_change(9, [(Key::Usage, usage(9))]);
    assert_eq!(cached(&cache), Some(9));
}

#[test]
fn nothing_asked_before_a_reset_is_cached() {
    let cache = Cache::new(1 << 20);
    let (read, batch) = (cache.begin(), cache.begin());
    cache.reset();
    read.accept(100, [(Key::Usage, usage(1))]);
    assert_eq!(cached(&cache), None);
    cache.begin().accept(3, [(Key::Usage, usage(3))]);
    batch.accept_change(4, [(Key::Usage, usage(4))]);
    assert_eq!(cached(&cache), None, "a change from before the reset drops what may lack it");
}

#[test]
fn a_directory_is_kept_whole_until_somebody_changes_it() {
    let cache = Cache::new(1 << 20);
    let name = |text: &str| Name::new(text).unwrap();
    let entry = Entry { ino: Ino(5), kind: Kind::File };
    let watch = cache.watch(Ino(1));
    cache.keep_directory(Ino(1), &watch, BTreeMap::from([(name("a"), entry)]));
    assert_eq!(cache.entry(Ino(1), &name("a")), Some(Some(entry)));
    assert_eq!(cache.entry(Ino(1), &name("b")), Some(None));
    let key = Key::Entry(Ino(1), name("b"));
    cache.begin().accept_change(2, [(key.clone(), Some(Record::Entry(entry)))]);
    assert_eq!(cache.entry(Ino(1), &name("b")), Some(Some(entry)));
    assert!(watch.is_broken());
    cache.drop_keys(3, &[key]);
    assert_eq!(cache.entry(Ino(1), &name("a")), None);
    let watch = cache.watch(Ino(1));
    cache.drop_keys(4, &[Key::Entry(Ino(1), name("c"))]);
    cache.keep_directory(Ino(1), &watch, BTreeMap::new());
    assert_eq!(cache.entry(Ino(1), &name("a")), None, "a listing that was changed meanwhile is not kept");
}

/// A directory that says that it has so many names.
fn directory(entries: u64) -> Record {
    Record::Inode(Box::new(Inode { entries, ..new_root(Time::default(), 0, 0) }))
}

#[test]
fn a_directory_that_was_made_here_is_known_whole() {
    let cache = Cache::new(1 << 20);
    let (ino, name) = (Ino(9), Name::new("a").unwrap());
    cache.begin().accept_change(2, [(Key::Inode(ino), Some(directory(1)))]);
    assert_eq!(cache.entry(ino, &name), None, "it has a name, which is not known");
    let change = cache.begin();
    cache.drop_keys(4, &[Key::Entry(ino, name.clone()), Key::Inode(ino)]);
    change.accept_change(3, [(Key::Inode(ino), Some(directory(0)))]);
    assert_eq!(cache.entry(ino, &name), None, "somebody else was later");
    cache.begin().accept_change(5, [(Key::Inode(ino), Some(directory(0)))]);
    assert_eq!(cache.entry(ino, &name), Some(None));
    cache.begin().accept_change(6, [(Key::Inode(ino), None)]);
    assert_eq!(cache.entry(ino, &name), None, "it has gone");
}

#[test]
fn no_more_directories_are_known_than_there_is_memory_for() {
    let cache = Cache::new(64 << 10);
    for number in 0..10_000 {
        cache.change(number, &BTreeMap::from([(Key::Inode(Ino(number)), Some(Arc::new(directory(0))))]));
    }
    let known = (0..10_000).filter(|number| cache.names(Ino(*number), None, 1).is_some()).count();
    assert!((10..=200).contains(&known), "{known}");
}

#[test]
fn a_directory_that_is_changed_here_while_it_is_listed_is_kept_with_the_changes() {
    let cache = Cache::new(1 << 20);
    let name = |text: &str| Name::new(text).unwrap();
    let entry = |ino| Entry { ino: Ino(ino), kind: Kind::File };
    let key = |text: &str| Key::Entry(Ino(1), name(text));
    let listed = || BTreeMap::from([(name("a"), entry(5)), (name("b"), entry(6))]);
    let watch = cache.watch(Ino(1));
    cache.change(1, &BTreeMap::from([(key("a"), None), (key("c"), Some(Arc::new(Record::Entry(entry(5)))))]));
    cache.begin().accept_change(2, [(key("d"), Some(Record::Entry(entry(7))))]);
    assert!(watch.is_broken(), "who lists it by a handle is told");
    cache.keep_directory(Ino(1), &watch, listed());
    let names = cache.names(Ino(1), None, 9).unwrap();
    assert_eq!(names, [(name("b"), entry(6)), (name("c"), entry(5)), (name("d"), entry(7))]);
    // Not when there was too much, or somebody else was there as well.
    cache.reset();
    let watch = cache.watch(Ino(1));
    (0..5000).for_each(|_| cache.begin().accept_change(3, [(key("d"), None)]));
    cache.keep_directory(Ino(1), &watch, listed());
    assert_eq!(cache.names(Ino(1), None, 9), None);
    let watch = cache.watch(Ino(1));
    cache.begin().accept_change(3, [(key("d"), None)]);
    cache.drop_keys(4, &[key("b")]);
    cache.begin().accept_change(5, [(key("d"), None)]);
    cache.keep_directory(Ino(1), &watch, listed());
    assert_eq!(cache.names(Ino(1), None, 9), None);
}
