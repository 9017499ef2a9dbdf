//! What is cached of replies, events and changes that cross.

use super::Cache;
use std::collections::BTreeMap;
use tandemfs::id::Ino;
use tandemfs::name::Name;
use tandemfs::tree::{Entry, Key, Kind, Record, Usage};

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
