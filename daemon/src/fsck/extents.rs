//! The rule of a chunk's extents.

use tandemfs::tree::{CHUNK_SIZE, Chunk};

/// What the extents of a chunk come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extents {
    /// Bytes of data.
    pub(crate) bytes: u64,
    /// Where in the chunk the last one ends.
    pub(crate) end: u64,
}

/// Adds up the extents of a chunk.
///
/// # Errors
/// What is wrong with them: they lie in order, without overlap, within the chunk, and none is empty.
pub(crate) fn check(chunk: &Chunk) -> Result<Extents, &'static str> {
    let mut sum = Extents::default();
    let mut wrong = chunk.0.is_empty().then_some("has no extents");
    for extent in &chunk.0 {
        let end = u64::from(extent.start) + u64::from(extent.length);
        if extent.length == 0 {
            wrong = Some("has an empty extent");
        } else if u64::from(extent.start) < sum.end {
            wrong = Some("has extents that overlap or are not in order");
        } else if end > CHUNK_SIZE {
            wrong = Some("has an extent beyond its end");
        }
        sum.bytes += u64::from(extent.length);
        sum.end = sum.end.max(end);
    }
    wrong.map_or(Ok(sum), Err)
}

/// Bytes of data in extents that need not be right: what a reaper would give back.
pub(crate) fn bytes(chunk: &Chunk) -> u64 {
    chunk.0.iter().map(|extent| u64::from(extent.length)).sum()
}

#[cfg(test)]
mod tests {
    use super::{Extents, check};
    use tandemfs::id::BlockId;
    use tandemfs::tree::{Chunk, Extent};

    #[test]
    fn extents_lie_in_order_without_overlap_within_the_chunk() {
        let extent = |(start, length)| Extent { start, length, block: BlockId([1; 32]), offset: 0 };
        let check = |extents: &[(u32, u32)]| check(&Chunk(extents.iter().copied().map(extent).collect()));
        assert_eq!(check(&[(0, 10), (10, 5), (20, 1)]), Ok(Extents { bytes: 16, end: 21 }));
        assert_eq!(check(&[(4 << 20, 0)]).unwrap_err(), "has an empty extent");
        assert_eq!(check(&[((4 << 20) - 1, 1)]), Ok(Extents { bytes: 1, end: 4 << 20 }));
        for wrong in
            [&[][..], &[(0, 10), (9, 5)], &[(10, 1), (0, 1)], &[((4 << 20) - 1, 2)], &[(u32::MAX, 9)]]
        {
            assert!(check(wrong).is_err(), "{wrong:?}");
        }
    }
}
