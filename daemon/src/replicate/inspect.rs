//! A copy as it is found on a node, for a check: it takes no lock and changes nothing.

use tandemfs::block::{self, HEADER_MAX, Header};
use tandemfs::id::{BlockId, VolumeId};
use tandemfs::{Error, ErrorKind, Result};

use crate::blocks::BlockStore;

/// Looks at a block's copy: that it is there, belongs to the block, and is as long as it should be; with `data` also every byte of it.
/// Gives the bytes of data in it.
///
/// # Errors
/// `NotFound`; `Corrupt`, with what is wrong; whatever keeps the node from answering.
pub(crate) async fn inspect(
    store: &dyn BlockStore,
    volume: VolumeId,
    id: &BlockId,
    data: bool,
) -> Result<u32> {
    let object = store.head(id).await?.ok_or_else(|| Error::not_found(format!("object {id}")))?;
    let start = store.get(id, Some(0..HEADER_MAX as u64)).await?;
    let header = Header::parse(&start)?;
    if header.id() != *id || header.volume() != volume {
        return Err(Error::corrupt("object: it is another block's"));
    }
    if header.object_len() != object.size {
        return Err(Error::corrupt("object: wrong length"));
    }
    if data {
        block::decode(id, store.get(id, None).await?)?;
    }
    Ok(header.data_len())
}

/// Whether an error of [`inspect`] says something of the copy, and not of its node.
pub(crate) fn is_about_copy(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt)
}

#[cfg(test)]
mod tests {
    use super::inspect;
    use crate::blocks::BlockStore;
    use crate::blocks::memory::MemoryStore;
    use tandemfs::ErrorKind;
    use tandemfs::block::encode;
    use tandemfs::id::{BlockId, VolumeId};

    #[tokio::test]
    async fn a_copy_is_whole_or_not() {
        let (store, volume, id) = (MemoryStore::new(), VolumeId(3), BlockId([1; 32]));
        let inspect =
            async |volume, data| inspect(&store, volume, &id, data).await.map_err(|error| error.kind());
        assert_eq!(inspect(volume, false).await, Err(ErrorKind::NotFound));
        let object = encode(volume, &id, &[7; 1000]).unwrap();
        store.put(&id, object.clone()).await.unwrap();
        assert_eq!(inspect(volume, true).await, Ok(1000));
        assert_eq!(inspect(VolumeId(4), true).await, Err(ErrorKind::Corrupt));
        store.put(&id, object.slice(..object.len() - 1)).await.unwrap();
        assert_eq!(inspect(volume, false).await, Err(ErrorKind::Corrupt));
        let mut damaged = object.to_vec();
        damaged[500] ^= 1;
        store.put(&id, damaged.into()).await.unwrap();
        assert_eq!(inspect(volume, false).await, Ok(1000), "only the data shows it");
        assert_eq!(inspect(volume, true).await, Err(ErrorKind::Corrupt));
    }
}
