//! What every engine must do, as functions that each engine's tests call with an empty one.

use std::sync::Arc;
use tandemfs::ErrorKind;

use super::{Guard, Key, MetaStore, Write};

fn put(key: &[u8], value: &[u8]) -> Write {
    Write { key: key.to_vec(), value: Some(value.to_vec()) }
}

fn remove(key: &[u8]) -> Write {
    Write { key: key.to_vec(), value: None }
}

fn guard(key: &[u8], value: Option<&[u8]>) -> Guard {
    Guard { key: key.to_vec(), value: value.map(<[u8]>::to_vec) }
}

async fn get(store: &dyn MetaStore, key: &[u8]) -> Option<Vec<u8>> {
    store.get_many(&[key.to_vec()]).await.unwrap().remove(0)
}

/// The whole contract but for concurrency.
pub(crate) async fn all(store: &dyn MetaStore) {
    starts_empty(store).await;
    reads_what_was_written(store).await;
    scans_in_order(store).await;
    guards_protect(store).await;
    takes_large_and_strange_values(store).await;
}

async fn starts_empty(store: &dyn MetaStore) {
    assert_eq!(store.get_many(&[]).await.unwrap(), Vec::<Option<Vec<u8>>>::new());
    assert_eq!(get(store, b"a").await, None);
    assert_eq!(store.scan(b"", &[0xff; 8], 10).await.unwrap(), vec![]);
    store.commit(vec![], vec![]).await.unwrap();
    store.commit(vec![], vec![remove(b"a")]).await.unwrap();
}

async fn reads_what_was_written(store: &dyn MetaStore) {
    store.commit(vec![], vec![put(b"a", b"1"), put(b"b", b"2"), put(b"c", b"")]).await.unwrap();
    let keys: Vec<Key> = [&b"c"[..], b"missing", b"a", b"a"].map(<[u8]>::to_vec).to_vec();
    let values = store.get_many(&keys).await.unwrap();
    assert_eq!(values, vec![Some(vec![]), None, Some(b"1".to_vec()), Some(b"1".to_vec())]);
    // The later of two writes to one key wins.
    store
        .commit(vec![], vec![put(b"a", b"x"), put(b"a", b"y"), put(b"b", b"z"), remove(b"b")])
        .await
        .unwrap();
    assert_eq!(get(store, b"a").await.unwrap(), b"y");
    assert_eq!(get(store, b"b").await, None);
    store.commit(vec![], vec![remove(b"a"), put(b"a", b"again"), remove(b"c")]).await.unwrap();
    assert_eq!(get(store, b"a").await.unwrap(), b"again");
    store.commit(vec![], vec![remove(b"a")]).await.unwrap();
}

async fn scans_in_order(store: &dyn MetaStore) {
    let keys: [&[u8]; 7] = [b"s", b"s\x00", b"s\x00\x00", b"s\x01", b"sa", b"s\xff", b"t"];
    let writes = keys.iter().rev().map(|key| put(key, key)).collect();
    store.commit(vec![], writes).await.unwrap();
    let names = |pairs: Vec<(Key, Vec<u8>)>| {
        pairs
            .into_iter()
            .inspect(|(key, value)| assert_eq!(key, value))
            .map(|(key, _)| key)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(store.scan(b"s", b"t", 100).await.unwrap()), keys[..6]);
    assert_eq!(names(store.scan(b"s\x00", b"sa", 100).await.unwrap()), keys[1..4]);
    assert_eq!(names(store.scan(b"s\x00", b"t", 2).await.unwrap()), keys[1..3]);
    assert_eq!(names(store.scan(b"s", b"t", 0).await.unwrap()), Vec::<Key>::new());
    assert_eq!(names(store.scan(b"t", b"s", 10).await.unwrap()), Vec::<Key>::new());
    assert_eq!(names(store.scan(b"s", b"s", 10).await.unwrap()), Vec::<Key>::new());
    store.commit(vec![], keys.iter().map(|key| remove(key)).collect()).await.unwrap();
}

async fn guards_protect(store: &dyn MetaStore) {
    store.commit(vec![guard(b"g", None)], vec![put(b"g", b"1")]).await.unwrap();
    for wrong in [None, Some(&b"2"[..]), Some(b""), Some(b"11")] {
        let writes = vec![put(b"g", b"no"), put(b"h", b"no")];
        let error = store.commit(vec![guard(b"other", None), guard(b"g", wrong)], writes).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stale);
    }
    assert_eq!(get(store, b"g").await.unwrap(), b"1");
    assert_eq!(get(store, b"h").await, None, "a refused commit has changed nothing");
    // Guards look at the state before the commit.
    store.commit(vec![guard(b"g", Some(b"1"))], vec![remove(b"g"), put(b"h", b"1")]).await.unwrap();
    assert_eq!(get(store, b"g").await, None);
    let error = store.commit(vec![guard(b"missing", Some(b""))], vec![]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stale, "an empty value is not the same as none");
    store.commit(vec![], vec![remove(b"h")]).await.unwrap();
}

async fn takes_large_and_strange_values(store: &dyn MetaStore) {
    let large: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let key: Vec<u8> = (0..=255).chain(0..=255).collect();
    store.commit(vec![], vec![put(&key, &large), put(b"\x00", b"\x00\x00")]).await.unwrap();
    assert_eq!(get(store, &key).await.unwrap(), large);
    assert_eq!(get(store, b"\x00").await.unwrap(), b"\x00\x00");
    let many = (0..5_000_u32).map(|n| put(&[b"m", &n.to_be_bytes()[..]].concat(), &n.to_be_bytes()));
    store.commit(vec![], many.collect()).await.unwrap();
    let found = store.scan(b"m", b"n", usize::MAX).await.unwrap();
    assert_eq!(found.len(), 5_000);
    assert_eq!(found[4_321].1, 4_321_u32.to_be_bytes());
    let mut all = found.iter().map(|(key, _)| remove(key)).collect::<Vec<_>>();
    all.extend([remove(&key), remove(b"\x00")]);
    store.commit(vec![], all).await.unwrap();
    assert_eq!(store.scan(b"", &[0xff; 8], 10).await.unwrap(), vec![]);
}

/// Many tasks raise one number under guards: none is lost.
pub(crate) async fn counts_concurrently(store: Arc<dyn MetaStore>) {
    const TASKS: u64 = 8;
    const EACH: u64 = 25;
    store.commit(vec![], vec![put(b"n", &0_u64.to_be_bytes())]).await.unwrap();
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut done = 0;
                while done < EACH {
                    let old = get(store.as_ref(), b"n").await.unwrap();
                    let next = u64::from_be_bytes(old.clone().try_into().unwrap()) + 1;
                    let write = vec![put(b"n", &next.to_be_bytes())];
                    match store.commit(vec![guard(b"n", Some(&old))], write).await {
                        Ok(()) => done += 1,
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Stale),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(get(store.as_ref(), b"n").await.unwrap(), (TASKS * EACH).to_be_bytes());
}
