//! The engine against what the journal amounts to: two scans, side by side.

use tandemfs::Result;

use super::desk::Desk;
use super::finding::{Finding, Mend, Place};
use super::scan::Cursor;
use crate::meta::{Key, MetaStore, Value, Write, keys};
use crate::progress::Progress;

/// Compares an engine, which has about so many rows, with what the journal amounts to. The journal is right: its entries are a chain of
/// checksums.
///
/// # Errors
/// Those of the two stores.
pub(crate) async fn compare(
    engine: &dyn MetaStore,
    journal: &dyn MetaStore,
    desk: &mut Desk<'_>,
    rows: u64,
    progress: &mut Progress,
) -> Result<()> {
    progress.next("rows are compared with the journal", rows);
    let all = |store| Cursor::new(store, Vec::new(), keys::END.to_vec());
    let (mut here, mut there) = (all(engine), all(journal));
    loop {
        let key = match (here.peek().await?, there.peek().await?) {
            (Some((here, _)), Some((there, _))) => here.min(there).clone(),
            (Some((key, _)), None) | (None, Some((key, _))) => key.clone(),
            (None, None) => break,
        };
        let is = take(&mut here, &key).await?;
        let should_be = take(&mut there, &key).await?;
        progress.add(1);
        // Each says of itself where it stands.
        if is == should_be || key == keys::journal() {
            continue;
        }
        let what = match (&is, &should_be) {
            (None, _) => "is in the journal, and not in the database",
            (_, None) => "is in the database, and not in the journal",
            _ => "is another one in the journal",
        };
        let mend = Mend::Rows(vec![Write { key: key.clone(), value: should_be }]);
        desk.take([Finding::new(Place::Row(key), what).mended_by(mend)]).await?;
    }
    desk.flush().await
}

async fn take(cursor: &mut Cursor<'_>, key: &Key) -> Result<Option<Value>> {
    match cursor.peek().await? {
        Some((next, _)) if next == key => Ok(cursor.next().await?.map(|(_, value)| value)),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::compare;
    use crate::fsck::desk::Desk;
    use crate::fsck::report::Report;
    use crate::meta::memory::MemoryStore;
    use crate::meta::{MetaStore, Write, keys};
    use crate::progress::Progress;
    use tandemfs::clock::Time;

    #[tokio::test]
    async fn every_row_that_differs_becomes_what_the_journal_says() {
        let (engine, journal) = (MemoryStore::new(), MemoryStore::new());
        let write = |key: &[u8], value: &[u8]| Write { key: key.to_vec(), value: Some(value.to_vec()) };
        let same = |from: u8| (from..from + 100).map(|key| write(&[b'c', key], b"same")).collect();
        for store in [&engine, &journal] {
            store.commit(Vec::new(), same(0)).await.unwrap();
        }
        let own = vec![write(&keys::journal(), b"3"), write(b"a", b"1"), write(b"c\x05", b"other")];
        engine.commit(Vec::new(), own).await.unwrap();
        let theirs = vec![write(&keys::journal(), b"4"), write(b"z", b"2")];
        journal.commit(Vec::new(), theirs).await.unwrap();
        let mut progress = Progress::new("rows", 0);
        for (repair, left, mended) in [(false, 3, 0), (true, 0, 3), (false, 0, 0)] {
            let mut desk = Desk::new(&engine, repair, Time::default(), Report::default());
            compare(&engine, &journal, &mut desk, 0, &mut progress).await.unwrap();
            assert_eq!((desk.report.left, desk.report.mended), (left, mended), "{:?}", desk.report);
        }
        let all = async |store: &MemoryStore| {
            let mut all = store.scan(&[], &keys::END, usize::MAX).await.unwrap();
            all.retain(|(key, _)| *key != keys::journal());
            all
        };
        assert_eq!(all(&engine).await, all(&journal).await);
    }
}
