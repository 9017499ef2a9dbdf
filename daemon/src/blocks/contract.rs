//! What every store of objects must do, as functions that each store's tests call with an empty one.

use bytes::Bytes;
use std::io::{Read, Write};
use tandemfs::ErrorKind;
use tandemfs::id::BlockId;

use super::{BlockStore, Object};

/// An id for a number; ids of 256 numbers in a row lie in 256 directories.
pub(super) fn id(number: u64) -> BlockId {
    let mut id = [0; 32];
    id[0] = number.to_be_bytes()[7];
    id[24..].copy_from_slice(&number.to_be_bytes());
    BlockId(id)
}

/// The whole contract.
pub(super) async fn all(store: &dyn BlockStore) {
    starts_empty(store).await;
    keeps_objects(store).await;
    cuts_ranges(store).await;
    lists_in_order(store).await;
    takes_concurrent_calls(store).await;
}

async fn starts_empty(store: &dyn BlockStore) {
    assert_eq!(store.list(None, 10).await.unwrap(), vec![]);
    assert_eq!(store.head(&id(1)).await.unwrap(), None);
    assert_eq!(store.get(&id(1), None).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.get(&id(1), Some(0..1)).await.unwrap_err().kind(), ErrorKind::NotFound);
    store.delete(&id(1)).await.unwrap();
    if let Some(room) = store.room().await.unwrap() {
        assert!(room.free_bytes <= room.total_bytes && room.total_bytes > 0);
    }
}

async fn keeps_objects(store: &dyn BlockStore) {
    store.put(&id(1), Bytes::from_static(b"first")).await.unwrap();
    store.put(&id(2), Bytes::new()).await.unwrap();
    assert_eq!(store.get(&id(1), None).await.unwrap(), &b"first"[..]);
    assert_eq!(store.get(&id(2), None).await.unwrap(), Bytes::new());
    assert_eq!(store.head(&id(1)).await.unwrap(), Some(Object { id: id(1), size: 5 }));
    assert_eq!(store.head(&id(2)).await.unwrap(), Some(Object { id: id(2), size: 0 }));
    if let Some(mut file) = store.file(&id(1)).await.unwrap() {
        let mut object = Vec::new();
        file.read_to_end(&mut object).unwrap();
        assert_eq!(object, b"first");
        assert_eq!(store.file(&id(9)).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert!(file.write(b"x").is_err(), "it is for reading only");
    }
    // Another one in its place.
    store.put(&id(1), Bytes::from_static(b"second one")).await.unwrap();
    assert_eq!(store.get(&id(1), None).await.unwrap(), &b"second one"[..]);
    let large = Bytes::from((0..4_200_000_u32).map(|n| (n.wrapping_mul(7) >> 3) as u8).collect::<Vec<_>>());
    let large = large.slice(..tandemfs::block::OBJECT_MAX.min(large.len()));
    store.put(&id(3), large.clone()).await.unwrap();
    assert_eq!(store.get(&id(3), None).await.unwrap(), large);
    let over = Bytes::from(vec![0; tandemfs::block::OBJECT_MAX + 1]);
    assert_eq!(store.put(&id(4), over).await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(store.head(&id(4)).await.unwrap(), None);
    for number in [1, 2, 3] {
        store.delete(&id(number)).await.unwrap();
        store.delete(&id(number)).await.unwrap();
        assert_eq!(store.head(&id(number)).await.unwrap(), None);
        assert_eq!(store.get(&id(number), None).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
}

async fn cuts_ranges(store: &dyn BlockStore) {
    store.put(&id(5), Bytes::from_static(b"0123456789")).await.unwrap();
    for (range, wanted) in [
        (0..10, &b"0123456789"[..]),
        (0..1, b"0"),
        (3..7, b"3456"),
        (8..100, b"89"),
        (9..u64::MAX, b"9"),
        (10..20, b""),
        (50..60, b""),
        (4..4, b""),
        #[expect(clippy::reversed_empty_ranges, reason = "must not panic")]
        (7..3, b""),
    ] {
        assert_eq!(store.get(&id(5), Some(range.clone())).await.unwrap(), wanted, "{range:?}");
    }
    store.delete(&id(5)).await.unwrap();
}

async fn lists_in_order(store: &dyn BlockStore) {
    // 600 numbers: up to three objects in each of 256 directories.
    let mut ids: Vec<BlockId> = (0..600).map(id).collect();
    for (number, id) in ids.iter().enumerate() {
        store.put(id, Bytes::from(vec![7; number % 5])).await.unwrap();
    }
    ids.sort_unstable();
    let names = |objects: Vec<Object>| objects.into_iter().map(|object| object.id).collect::<Vec<_>>();
    assert_eq!(names(store.list(None, 10_000).await.unwrap()), ids);
    assert_eq!(names(store.list(None, 0).await.unwrap()), vec![]);
    let mut paged = Vec::new();
    while let Some(page) = Some(store.list(paged.last(), 7).await.unwrap()).filter(|page| !page.is_empty()) {
        assert!(page.len() <= 7);
        paged.extend(names(page));
    }
    assert_eq!(paged, ids);
    // After one that is not there.
    store.delete(&ids[300]).await.unwrap();
    assert_eq!(names(store.list(Some(&ids[300]), 2).await.unwrap()), ids[301..303]);
    assert_eq!(store.list(Some(&BlockId([0xff; 32])), 5).await.unwrap(), vec![]);
    assert_eq!(
        store.list(Some(&ids[0]), 1).await.unwrap()[0].size,
        store.head(&ids[1]).await.unwrap().unwrap().size
    );
    for id in &ids {
        store.delete(id).await.unwrap();
    }
    assert_eq!(store.list(None, 1).await.unwrap(), vec![]);
}

async fn takes_concurrent_calls(store: &dyn BlockStore) {
    // All write one object: a reader sees one of them whole, whenever it looks.
    let one = |number: u8| Bytes::from(vec![number; 50_000 + usize::from(number)]);
    store.put(&id(9), one(0)).await.unwrap();
    let writers = (0..20).map(|number| async move { store.put(&id(9), one(number)).await });
    let readers = (0..20).map(|_| async {
        let object = store.get(&id(9), None).await.unwrap();
        let number = object[0];
        assert_eq!(object, one(number));
    });
    let (puts, ()) = tokio::join!(futures::future::join_all(writers), async {
        futures::future::join_all(readers).await;
    });
    for put in puts {
        put.unwrap();
    }
    store.delete(&id(9)).await.unwrap();
    assert_eq!(store.list(None, 10).await.unwrap(), vec![]);
}
