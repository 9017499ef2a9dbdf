//! Written extents, truncation, reaping, digests.

use super::store::{
    ROOT, Store, at, block, byte_of, create_in, directory, file, set_attributes, unlink, write, written,
};
use crate::ErrorKind;
use crate::id::Ino;
use crate::tree::{CHUNK_SIZE, Extent, FILE_SIZE_MAX, Key, Mutation, NewNode, SetAttributes, WrittenExtent};

const F: Ino = Ino(2);

fn store() -> Store {
    let mut store = Store::new();
    assert_eq!(store.apply(&file("f", 2)), Ok(()));
    store
}

fn truncate(size: u64) -> Mutation {
    set_attributes(2, SetAttributes { size: Some(size), ..SetAttributes::default() }, ROOT)
}

fn bytes(number: u8, offset: u64, length: u64) -> Vec<u8> {
    (offset..offset + length).map(|at| byte_of(number, at)).collect()
}

#[test]
fn a_write_across_chunks_is_split_and_read_back() {
    let mut store = store();
    let offset = 3 * CHUNK_SIZE - 10;
    assert_eq!(store.apply(&write(2, &[written(offset, 30, 1, 5)])), Ok(()));
    let inode = store.inode(F);
    assert_eq!((inode.size, inode.allocated, inode.content), (offset + 30, 30, 1));
    assert_eq!((inode.mtime, inode.ctime), (at(800), at(800)));
    assert_eq!(store.references[&block(1)], 2);
    assert_eq!(store.chunk(F, 3).0, [Extent { start: 0, length: 20, block: block(1), offset: 15 }]);
    assert_eq!(store.read(F, offset, u64::MAX), bytes(1, 5, 30));
    assert_eq!(store.read(F, offset - 2, offset), [0, 0]);
}

#[test]
fn a_later_extent_lies_over_an_earlier_one_and_splitting_adds_a_reference() {
    let mut store = store();
    assert_eq!(store.apply(&write(2, &[written(0, 100, 1, 0), written(40, 20, 2, 0)])), Ok(()));
    assert_eq!((store.references[&block(1)], store.references[&block(2)]), (2, 1));
    assert_eq!((store.usage().bytes, store.inode(F).allocated), (100, 100));
    assert_eq!(store.read(F, 0, 100), [bytes(1, 0, 40), bytes(2, 0, 20), bytes(1, 60, 40)].concat());
    assert_eq!(store.apply(&write(2, &[written(40, 20, 1, 40)])), Ok(()));
    assert_eq!((store.references.get(&block(1)), store.references.get(&block(2))), (Some(&1), None));
}

#[test]
fn what_cannot_be_is_refused() {
    let mut store = store();
    assert_eq!(store.apply(&directory("d", 3)), Ok(()));
    assert_eq!(store.apply(&create_in(Ino::ROOT, "p", 4, NewNode::Fifo, 0, ROOT)), Ok(()));
    let sized = |size| Mutation::Write {
        ino: F,
        extents: vec![written(0, 1, 1, 0)],
        size,
        clear_privileges: false,
        time: at(800),
    };
    let end = WrittenExtent { block_offset: u32::MAX, ..written(0, 1, 1, 0) };
    for (mutation, kind) in [
        (write(2, &[]), ErrorKind::Invalid),
        (write(2, &[written(0, 0, 1, 0)]), ErrorKind::Invalid),
        (write(2, &[written(0, CHUNK_SIZE + 1, 1, 0)]), ErrorKind::Invalid),
        (write(2, &[written(0, CHUNK_SIZE, 1, 1)]), ErrorKind::Invalid),
        (write(2, &[written(0, u64::MAX, 1, 1)]), ErrorKind::Invalid),
        (write(2, &[end]), ErrorKind::Invalid),
        (write(2, &[written(0, 1, 1, 0), written(u64::MAX, 1, 1, 0)]), ErrorKind::TooLarge),
        (write(2, &[written(FILE_SIZE_MAX, 1, 1, 0)]), ErrorKind::TooLarge),
        (sized(FILE_SIZE_MAX + 1), ErrorKind::TooLarge),
        (write(3, &[written(0, 1, 1, 0)]), ErrorKind::IsADirectory),
        (write(4, &[written(0, 1, 1, 0)]), ErrorKind::Invalid),
        (write(5, &[written(0, 1, 1, 0)]), ErrorKind::NotFound),
    ] {
        assert_eq!(store.apply(&mutation), Err(kind), "{mutation:?}");
    }
    assert_eq!(store.apply(&write(2, &[written(FILE_SIZE_MAX - 1, 1, 1, 0)])), Ok(()), "the very last byte");
    assert_eq!(store.inode(F).size, FILE_SIZE_MAX);
    assert_eq!(store.read(F, FILE_SIZE_MAX - 2, FILE_SIZE_MAX), [0, byte_of(1, 0)]);
    assert_eq!(store.apply(&truncate(1)), Ok(()));
    assert_eq!(store.usage().bytes, 0);
}

#[test]
fn a_write_may_make_the_file_longer_than_its_data() {
    let mut store = store();
    let extents = vec![written(0, 4, 1, 0)];
    let write = Mutation::Write { ino: F, extents, size: 6, clear_privileges: true, time: at(800) };
    let mode = SetAttributes { mode: Some(0o6755), ..SetAttributes::default() };
    assert_eq!(store.apply(&set_attributes(2, mode, ROOT)), Ok(()));
    assert_eq!(store.apply(&write), Ok(()));
    assert_eq!((store.inode(F).size, store.inode(F).mode), (6, 0o755));
    assert_eq!(store.read(F, 0, 9), [bytes(1, 0, 4), vec![0; 2]].concat());
}

#[test]
fn truncation_cuts_content_and_never_brings_it_back() {
    let mut store = store();
    assert_eq!(
        store.apply(&write(2, &[written(CHUNK_SIZE - 50, 100, 1, 0), written(9 * CHUNK_SIZE, 9, 2, 0)])),
        Ok(())
    );
    assert_eq!(store.apply(&truncate(CHUNK_SIZE - 20)), Ok(()));
    let inode = store.inode(F);
    assert_eq!((inode.allocated, inode.content, inode.mtime, inode.ctime), (30, 2, at(700), at(700)));
    assert_eq!(store.references, [(block(1), 1)].into());
    assert_eq!(store.apply(&truncate(FILE_SIZE_MAX)), Ok(()));
    assert_eq!(store.read(F, CHUNK_SIZE - 21, CHUNK_SIZE - 19), [byte_of(1, 29), 0]);
    assert_eq!(store.apply(&truncate(0)), Ok(()));
    assert_eq!((store.usage().bytes, store.references.len()), (0, 0));
}

#[test]
fn a_digest_is_kept_until_the_content_changes() {
    let mut store = store();
    let digest = |content, length| Mutation::SetDigest { ino: F, content, sha256: vec![3; length] };
    assert_eq!(store.apply(&write(2, &[written(0, 9, 1, 0)])), Ok(()));
    assert_eq!(store.apply(&digest(0, 32)), Ok(()));
    assert_eq!(store.inode(F).sha256, None, "of an older content");
    assert_eq!(store.apply(&digest(1, 31)), Err(ErrorKind::Invalid));
    for change in [write(2, &[written(0, 1, 1, 0)]), truncate(5)] {
        let content = store.inode(F).content;
        assert_eq!(store.apply(&digest(content, 32)), Ok(()));
        assert_eq!(
            (store.inode(F).sha256.as_deref(), store.inode(F).ctime < at(900)),
            (Some(&[3; 32][..]), true)
        );
        assert_eq!(store.apply(&truncate(store.inode(F).size)), Ok(()));
        assert!(store.inode(F).sha256.is_some(), "the same size is the same content");
        assert_eq!(store.apply(&change), Ok(()));
        assert_eq!(store.inode(F).sha256, None);
    }
}

#[test]
fn orphans_are_written_to_and_reaped_from_the_end() {
    let mut store = store();
    let places = [0, 1, 2, 5, 1 << 20, (1 << 41) - 1];
    assert_eq!(store.apply(&Mutation::Reap { ino: F, chunks: 9 }), Ok(()), "not while it has links");
    assert_eq!(store.apply(&unlink(Ino::ROOT, "f", ROOT)), Ok(()));
    for place in places {
        assert_eq!(store.apply(&write(2, &[written(place * CHUNK_SIZE, 3, 1, 0)])), Ok(()));
    }
    let left = |store: &Store| -> Vec<u64> {
        let chunks = store.records.keys().filter_map(|key| match key {
            Key::Chunk(_, number) => Some(*number),
            _ => None,
        });
        chunks.collect()
    };
    assert_eq!(store.apply(&Mutation::Reap { ino: F, chunks: 0 }), Ok(()));
    assert_eq!(left(&store), places);
    for count in [5, 4, 3] {
        assert_eq!(store.apply(&Mutation::Reap { ino: F, chunks: 1 }), Ok(()));
        assert_eq!(left(&store), places[..count]);
    }
    assert_eq!(store.apply(&Mutation::Reap { ino: F, chunks: 2 }), Ok(()));
    assert_eq!(left(&store), [0]);
    assert_eq!(store.usage().bytes, 3);
    assert_eq!(store.apply(&Mutation::Reap { ino: F, chunks: 2 }), Ok(()));
    assert_eq!(store.records.len(), 2, "the inode went with the last chunk");
    assert!(store.references.is_empty());
}

#[test]
fn joining_changes_where_the_content_lies_and_nothing_else() {
    let mut store = store();
    assert_eq!(store.apply(&write(2, &[written(0, 100, 1, 0), written(40, 20, 2, 0)])), Ok(()));
    let (inode, usage) = (store.inode(F).clone(), store.usage());
    let extents = store.chunk(F, 0).0;
    let join =
        |extents: &[Extent]| Mutation::Join { ino: F, number: 0, extents: extents.to_vec(), block: block(3) };
    for of_no_use in [&extents[..1], &[]] {
        assert_eq!(store.apply(&join(of_no_use)), Err(ErrorKind::Stale));
    }
    assert_eq!(store.apply(&join(&extents)), Ok(()));
    assert_eq!(store.chunk(F, 0).0, [Extent { start: 0, length: 100, block: block(3), offset: 0 }]);
    assert_eq!((store.references.get(&block(1)), store.references.get(&block(2))), (None, None));
    assert_eq!((store.references[&block(3)], store.inode(F), store.usage()), (1, &inode, usage));
    assert_eq!(store.apply(&join(&extents)), Err(ErrorKind::Stale));
}

#[test]
fn joining_leaves_what_was_written_meanwhile() {
    let mut store = store();
    let pieces: Vec<_> = (0..10).map(|n| written(n * 10, 10, 1 + (n % 2) as u8, 0)).collect();
    assert_eq!(store.apply(&write(2, &pieces)), Ok(()));
    let extents = store.chunk(F, 0).0;
    assert_eq!(store.apply(&write(2, &[written(35, 10, 4, 0), written(95, 20, 4, 0)])), Ok(()));
    let join = Mutation::Join { ino: F, number: 0, extents, block: block(3) };
    assert_eq!(store.apply(&join), Ok(()));
    let at = |start, length, number, offset| Extent { start, length, block: block(number), offset };
    assert_eq!(store.chunk(F, 0).0, [at(0, 35, 3, 0), at(35, 10, 4, 0), at(45, 50, 3, 45), at(95, 20, 4, 0)]);
    assert_eq!(store.references, [(block(3), 2), (block(4), 2)].into());
}
