//! What every store of segments must do, as functions that each store's tests call with an empty one.

use bytes::Bytes;
use tandemfs::ErrorKind;

use super::{Segment, SegmentStore};

/// The whole contract.
pub(super) async fn all(store: &dyn SegmentStore) {
    assert_eq!(store.list().await.unwrap(), []);
    assert_eq!(store.read(1, 0..9).await.unwrap_err().kind(), ErrorKind::NotFound);
    store.delete(1).await.unwrap();
    grows_at_its_end(store).await;
    refuses_what_does_not_fit(store).await;
    lists_in_order_and_removes(store).await;
}

async fn grows_at_its_end(store: &dyn SegmentStore) {
    store.append(7, 0, Bytes::from_static(b"head")).await.unwrap();
    store.append(7, 4, Bytes::from_static(b"one")).await.unwrap();
    store.append(7, 7, Bytes::from(vec![b'x'; 3 << 20])).await.unwrap();
    assert_eq!(store.read(7, 0..7).await.unwrap(), &b"headone"[..]);
    assert_eq!(store.read(7, 2..5).await.unwrap(), &b"ado"[..]);
    assert_eq!(store.read(7, 7..u64::MAX).await.unwrap(), vec![b'x'; 3 << 20]);
    assert_eq!(store.read(7, 7 + (3 << 20)..u64::MAX).await.unwrap(), &b""[..]);
    assert_eq!(store.read(7, 99 << 20..100 << 20).await.unwrap(), &b""[..]);
}

async fn refuses_what_does_not_fit(store: &dyn SegmentStore) {
    let append =
        async |number, at| store.append(number, at, Bytes::from_static(b"no")).await.unwrap_err().kind();
    assert_eq!(append(7, 0).await, ErrorKind::AlreadyExists);
    assert_eq!(append(7, 6).await, ErrorKind::Stale);
    assert_eq!(append(7, 99 << 20).await, ErrorKind::Stale);
    assert_eq!(append(8, 1).await, ErrorKind::Stale, "it was never made");
    assert_eq!(store.list().await.unwrap(), [Segment { number: 7, size: 7 + (3 << 20) }]);
}

async fn lists_in_order_and_removes(store: &dyn SegmentStore) {
    for number in [u64::MAX, 3, 12] {
        store.append(number, 0, Bytes::from_static(b"x")).await.unwrap();
    }
    let numbers = async || store.list().await.unwrap().iter().map(|of| of.number).collect::<Vec<_>>();
    assert_eq!(numbers().await, [3, 7, 12, u64::MAX]);
    store.delete(7).await.unwrap();
    store.delete(7).await.unwrap();
    assert_eq!(numbers().await, [3, 12, u64::MAX]);
    assert_eq!(store.append(7, 4, Bytes::new()).await.unwrap_err().kind(), ErrorKind::Stale);
}
