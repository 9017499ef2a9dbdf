//! The engine's own tests: the contract, crashes, damage.

use super::{Arc, MetaStore, Path, PermissionsExt, Result, SqliteStore, Write, fs, lock};
use crate::meta::{contract, put, record};
use rusqlite::Connection;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use tandemfs::ErrorKind;
use tempfile::TempDir;

fn write(key: &str, value: impl Into<Vec<u8>>) -> Write {
    Write { key: key.into(), value: Some(value.into()) }
}

/// A copy of the database as a crash would leave it: the files that last, not the shared memory.
fn crash(path: &Path, into: &TempDir) -> PathBuf {
    let copy = into.path().join("copy.db");
    fs::copy(path, &copy).unwrap();
    fs::copy(beside(path, "-wal"), beside(&copy, "-wal")).unwrap();
    let _ = fs::remove_file(beside(&copy, "-shm"));
    copy
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

#[tokio::test]
async fn keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path().join("meta.db")).unwrap();
    contract::all(&store).await;
    store.check().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_are_serializable() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path().join("meta.db")).unwrap();
    contract::counts_concurrently(Arc::new(store)).await;
}

#[tokio::test]
async fn syncs_every_commit_and_hides_its_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meta.db");
    fs::write(&path, b"").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let store = SqliteStore::open(&path).unwrap();
    store.commit(vec![], vec![write("a", "1")]).await.unwrap();
    for suffix in ["", "-wal", "-shm"] {
        let mode = fs::metadata(beside(&path, suffix)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{suffix}");
    }
    let writer = lock(&store.0.writer);
    let text = |name: &str| writer.pragma_query_value(None, name, |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(text("journal_mode"), "wal");
    let number = writer.pragma_query_value(None, "synchronous", |row| row.get::<_, i32>(0)).unwrap();
    assert_eq!(number, 1, "NORMAL");
}

#[tokio::test]
async fn a_crash_loses_nothing_that_was_committed() {
    let (directory, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = directory.path().join("meta.db");
    let store = SqliteStore::open(&path).unwrap();
    for number in 0..40_u32 {
        store
            .commit(vec![], vec![write("last", number.to_be_bytes()), write("big", vec![7; 9_000])])
            .await
            .unwrap();
        if number % 8 == 0 {
            let copy = crash(&path, &copies);
            let after = SqliteStore::open(&copy).unwrap();
            assert_eq!(
                after.get_many(&[b"last".to_vec()]).await.unwrap()[0].as_deref(),
                Some(&number.to_be_bytes()[..])
            );
            after.check().await.unwrap();
        }
    }
    drop(store);
    let again = SqliteStore::open(&path).unwrap();
    assert_eq!(
        again.get_many(&[b"last".to_vec()]).await.unwrap()[0].as_deref(),
        Some(&39_u32.to_be_bytes()[..])
    );
}

#[tokio::test]
async fn a_torn_log_opens_at_the_last_whole_commit() {
    const FRAME: usize = 24 + 4_096;
    let (directory, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = directory.path().join("meta.db");
    let store = SqliteStore::open(&path).unwrap();
    let log = beside(&path, "-wal");
    // How long the log was after each commit, and what it said.
    let mut commits = vec![];
    for number in 0..6_u8 {
        store.commit(vec![], vec![write("a", [number]), write("b", vec![number; 1_500])]).await.unwrap();
        commits.push((fs::metadata(&log).unwrap().len() as usize, number));
    }
    let (database, log) = (fs::read(&path).unwrap(), fs::read(&log).unwrap());
    assert_eq!(commits.last().unwrap().0, log.len(), "the log was not folded into the database meanwhile");
    let begin = log.len() - 3 * FRAME;
    assert!(begin > commits[0].0, "the cuts lie after the first commit");
    // Every byte of the frames' headers and around their ends, and some of the pages.
    let cuts = (begin..=log.len()).filter(|cut| {
        let at = (cut - begin) % FRAME;
        !(26..=FRAME - 3).contains(&at) || at.is_multiple_of(251)
    });
    let copy = copies.path().join("torn.db");
    for cut in cuts {
        fs::write(&copy, &database).unwrap();
        fs::write(beside(&copy, "-wal"), &log[..cut]).unwrap();
        let _ = fs::remove_file(beside(&copy, "-shm"));
        let torn = SqliteStore::open(&copy).unwrap();
        let wanted = commits.iter().rev().find(|(length, _)| *length <= cut).unwrap().1;
        let values = torn.get_many(&[b"a".to_vec(), b"b".to_vec()]).await.unwrap();
        assert_eq!(values[0].as_deref(), Some(&[wanted][..]), "cut at {cut}");
        assert_eq!(values[1].as_deref(), Some(&vec![wanted; 1_500][..]), "cut at {cut}");
    }
}

/// A database in one file, without a log.
async fn folded(directory: &TempDir) -> (PathBuf, Vec<u8>) {
    let path = directory.path().join("meta.db");
    let store = SqliteStore::open(&path).unwrap();
    let row = |number: u8| put(format!("key {number:03}").into_bytes(), &[number; 100][..]).unwrap();
    store.commit(vec![], (0..=255).map(row).collect()).await.unwrap();
    drop(store);
    assert!(!beside(&path, "-wal").exists(), "folded in when the last connection was closed");
    let bytes = fs::read(&path).unwrap();
    (path, bytes)
}

#[tokio::test]
async fn damage_is_named_when_it_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    let (path, good) = folded(&directory).await;
    let opens = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        SqliteStore::open(&path).map(drop).map_err(|error| error.kind())
    };
    assert_eq!(opens(&good), Ok(()));
    assert_eq!(opens(b"this is a text and no database at all"), Err(ErrorKind::Corrupt));
    assert_eq!(opens(&good[..good.len() / 2]), Err(ErrorKind::Corrupt));
    let page = 4_096;
    for number in 0..good.len() / page {
        let mut bad = good.clone();
        let at = number * page;
        bad[at..at + page].fill(0);
        assert_eq!(opens(&bad), Err(ErrorKind::Corrupt), "page {number} of zeros");
        let mut bad = good.clone();
        bad[at..at + page].iter_mut().for_each(|byte| *byte ^= 0x5a);
        assert_eq!(opens(&bad), Err(ErrorKind::Corrupt), "page {number} of noise");
    }
}

#[tokio::test]
async fn no_flipped_bit_is_taken_for_data() {
    let directory = tempfile::tempdir().unwrap();
    let (path, good) = folded(&directory).await;
    let mut found = 0;
    for at in (0..good.len()).step_by(211) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, &bad).unwrap();
        let store = match SqliteStore::open(&path) {
            Ok(store) => store,
            Err(error) => {
                let kind = error.kind();
                assert!(
                    matches!(kind, ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::Unavailable),
                    "{kind:?}"
                );
                found += 1;
                continue;
            }
        };
        let rows = store.scan(b"", b"z", 1_000).await.map(|pairs| {
            pairs.iter().map(|(key, value)| record::decode::<Vec<u8>>(key, value)).collect::<Result<Vec<_>>>()
        });
        match rows {
            Ok(Ok(rows)) => {
                assert_eq!(rows, (0..=255).map(|number| vec![number; 100]).collect::<Vec<_>>(), "byte {at}")
            }
            Ok(Err(error)) | Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}");
                found += 1;
            }
        }
    }
    assert!(found > 80, "{found}");
}

#[tokio::test]
async fn other_programs_and_newer_layouts_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let other = directory.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    assert_eq!(SqliteStore::open(&other).unwrap_err().kind(), ErrorKind::Corrupt);
    let newer = directory.path().join("newer.db");
    drop(SqliteStore::open(&newer).unwrap());
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", 2).unwrap();
    assert_eq!(SqliteStore::open(&newer).unwrap_err().kind(), ErrorKind::Unsupported);
    let missing = directory.path().join("no/such/directory/meta.db");
    assert_eq!(SqliteStore::open(&missing).unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_full_disk_is_said_and_over_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path().join("meta.db")).unwrap();
    store.commit(vec![], vec![write("a", "1")]).await.unwrap();
    // The engine's own limit fails in the same way as the disk's.
    let limit = |pages: i64| {
        let set = format!("PRAGMA max_page_count = {pages}");
        lock(&store.0.writer).query_row(&set, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    limit(20);
    let large = vec![write("a", "2"), write("b", vec![1; 200_000])];
    assert_eq!(store.commit(vec![], large.clone()).await.unwrap_err().kind(), ErrorKind::NoSpace);
    let values = store.get_many(&[b"a".to_vec(), b"b".to_vec()]).await.unwrap();
    assert_eq!(values, vec![Some(b"1".to_vec()), None], "a failed commit has changed nothing");
    store.commit(vec![], vec![write("c", "small")]).await.unwrap();
    limit(1_000_000);
    store.commit(vec![], large).await.unwrap();
}

#[tokio::test]
async fn takes_no_commit_after_a_failed_sync() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path().join("meta.db")).unwrap();
    store.commit(vec![], vec![write("a", "1")]).await.unwrap();
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_FSYNC);
    assert!(super::is_failed_sync(&rusqlite::Error::SqliteFailure(code, None)));
    store.0.failed.store(true, Ordering::SeqCst);
    assert_eq!(store.commit(vec![], vec![write("a", "2")]).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(store.get_many(&[b"a".to_vec()]).await.unwrap(), vec![Some(b"1".to_vec())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_sees_one_moment() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(directory.path().join("meta.db")).unwrap());
    let keys: Vec<_> = (0..50).map(|number| format!("k{number:02}")).collect();
    let all = |value: u8| keys.iter().map(|key| write(key, [value])).collect::<Vec<_>>();
    store.commit(vec![], all(0)).await.unwrap();
    let reader = tokio::spawn({
        let (store, keys) =
            (store.clone(), keys.iter().map(|key| key.clone().into_bytes()).collect::<Vec<_>>());
        async move {
            for _ in 0..100 {
                let values = store.get_many(&keys).await.unwrap();
                assert!(values.iter().all(|value| *value == values[0]));
                let pairs = store.scan(b"k", b"l", 100).await.unwrap();
                assert!(pairs.iter().all(|(_, value)| *value == pairs[0].1));
            }
        }
    });
    for value in 1..=60 {
        store.commit(vec![], all(value)).await.unwrap();
    }
    reader.await.unwrap();
}

#[tokio::test]
async fn what_was_replaced_is_not_in_the_files_once_they_are_written_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meta.db");
    let store = SqliteStore::open(&path).unwrap();
    let rows = |value: &str| (0..2_000).map(|n| write(&format!("key {n}"), value)).collect::<Vec<_>>();
    store.commit(Vec::new(), rows("an old secret")).await.unwrap();
    store.commit(Vec::new(), rows("sealed")).await.unwrap();
    let holds = |path: &Path, part: &[u8]| {
        fs::read(path).unwrap_or_default().windows(part.len()).any(|window| window == part)
    };
    let is_found = |part: &[u8]| ["", "-wal"].iter().any(|suffix| holds(&beside(&path, suffix), part));
    assert!(is_found(b"an old secret"));
    store.forget().await.unwrap();
    assert!(!is_found(b"an old secret") && is_found(b"sealed"));
    store.commit(Vec::new(), rows("later")).await.unwrap();
    let all = store.scan(b"key", b"kez", 10_000).await.unwrap();
    assert!(all.len() == 2_000 && all.iter().all(|(_, value)| value == b"later"));
    store.check().await.unwrap();
}
