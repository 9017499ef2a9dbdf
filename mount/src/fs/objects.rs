//! Objects of blocks that the daemon has handed over as open files: parts of large blocks are read from them without a message.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use quick_cache::sync::Cache as Lru;
use rustix::fs::{Advice, fadvise};
use tandemfs::block::{HEADER_MAX, Header};
use tandemfs::id::BlockId;
use tandemfs::{Error, Result};
use tokio::time::{sleep, timeout};

use super::session::Session;
use crate::tasks::block;

/// Files that are kept open,
const OPEN_MAX: usize = 128;
/// and for how long: whoever takes a node away must not find its disk in use for ever.
const OPEN_FOR: Duration = Duration::from_secs(30);
/// A disk that is slower than this is read around: the daemon is asked, which knows other copies.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

/// The objects that are open.
pub(super) struct Objects {
    session: Arc<Session>,
    /// `None` where the daemon does not hand one over.
    open: Lru<BlockId, Option<Arc<Object>>>,
}

/// An object of a block, and its header, which has been checked.
struct Object {
    file: File,
    header: Header,
}

impl Objects {
    pub(super) fn new(session: Arc<Session>) -> Self {
        Self { session, open: Lru::new(OPEN_MAX) }
    }

    /// Bytes of a block, checked; `None` where they cannot be had so.
    pub(super) async fn read(&self, id: BlockId, range: Range<u32>) -> Option<Bytes> {
        self.session.grant().short_circuit?;
        let found: std::result::Result<_, ()> =
            self.open.get_or_insert_async(&id, async { Ok(self.find(id).await) }).await;
        let object = found.ok()??;
        let read = block(move || object.read(range));
        match timeout(PATIENCE, read).await.ok()?? {
            Ok(data) => Some(data),
            Err(error) => {
                log::warn!("block {id} is read from another copy: {error}");
                self.open.remove(&id);
                None
            }
        }
    }

    /// Closes them now and then, for as long as there is somebody who uses this.
    pub(super) async fn close(objects: Weak<Self>) {
        loop {
            sleep(OPEN_FOR).await;
            let Some(objects) = objects.upgrade() else { return };
            objects.open.clear();
        }
    }

    async fn find(&self, id: BlockId) -> Option<Arc<Object>> {
        let socket = self.session.grant().short_circuit?;
        let file = self.session.remote.open_block(&socket, self.session.id(), id).await?;
        let open = block(move || Object::open(file, id));
        match timeout(PATIENCE, open).await.ok()?? {
            Ok(object) => Some(Arc::new(object)),
            Err(error) => {
                log::warn!("block {id} is read from another copy: {error}");
                None
            }
        }
    }
}

impl Object {
    fn open(file: File, id: BlockId) -> Result<Self> {
        // A hint that no system has to follow.
        let _ignored = fadvise(&file, 0, None, Advice::Random);
        let length = file.metadata()?.len().min(HEADER_MAX as u64) as usize;
        let mut start = vec![0; length];
        file.read_exact_at(&mut start, 0)?;
        let header = Header::parse(&start)?;
        if header.id() != id {
            return Err(Error::corrupt("it is another block's object"));
        }
        Ok(Self { file, header })
    }

    fn read(&self, range: Range<u32>) -> Result<Bytes> {
        let stored = self.header.stored_range(range.clone());
        let mut pieces = vec![0; (stored.end - stored.start) as usize];
        self.file.read_exact_at(&mut pieces, stored.start)?;
        self.header.cut(range, pieces.into())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use tandemfs::block::{PIECE, encode};
    use tandemfs::id::{BlockId, VolumeId, VolumeKey};
    use tempfile::tempfile;

    use super::Object;

    fn stored(object: &[u8]) -> File {
        let mut file = tempfile().unwrap();
        file.write_all(object).unwrap();
        file
    }

    #[test]
    fn a_part_is_what_was_stored_or_an_error() {
        let data: Vec<u8> = (0..4 * PIECE as u32 + 5).map(|n| (n % 251) as u8).collect();
        let id = BlockId::of(&VolumeKey([7; 32]), &data);
        let whole = encode(VolumeId(1), &id, &data).unwrap();
        let object = Object::open(stored(&whole), id).unwrap();
        let end = data.len() as u32;
        for range in [0..1, 0..end, 100..3 * PIECE as u32 + 1, end - 3..end, PIECE as u32..PIECE as u32 + 1] {
            let wanted = &data[range.start as usize..range.end as usize];
            assert_eq!(object.read(range.clone()).unwrap(), wanted, "{range:?}");
        }
        assert!(object.read(0..end + 1).is_err());
        assert!(Object::open(stored(&whole), BlockId([1; 32])).is_err(), "another block's");
        assert!(Object::open(stored(&whole[..30]), id).is_err(), "cut off in the header");
        let mut damaged = whole.to_vec();
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        let object = Object::open(stored(&damaged), id).unwrap();
        assert_eq!(object.read(0..10).unwrap(), data[..10]);
        assert!(object.read(end - 1..end).is_err());
        let object = Object::open(stored(&whole[..last - PIECE]), id).unwrap();
        assert!(object.read(end - 1..end).is_err(), "cut off in the data");
    }
}
