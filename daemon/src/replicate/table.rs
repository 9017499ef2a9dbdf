//! The table at the end of a pack: which blocks lie in it, and where. Who compacts packs finds the blocks by it; who reads one has its
//! record. `docs/format.md` has the layout.

use tandemfs::api::fs::BLOCK_SIZE_MAX;
use tandemfs::id::BlockId;
use tandemfs::{Error, Result};

/// Bytes of a row.
pub(super) const ROW: usize = 32 + 4 + 4;
/// Bytes behind the rows: their number and the mark.
pub(super) const END: usize = 4 + 8;
/// At most so many blocks lie in a pack, so that one commit can move them.
const ROWS_MAX: usize = 4096;
const MARK: &[u8; 8] = b"TANDEMPK";

/// Where a block lies in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: BlockId,
    pub(super) offset: u32,
    pub(super) size: u32,
}

/// Whether so many blocks of so many bytes in all and their table are a block.
pub(super) fn fits(blocks: usize, bytes: usize) -> bool {
    blocks <= ROWS_MAX && bytes.saturating_add(blocks * ROW + END) <= BLOCK_SIZE_MAX
}

/// What stands behind the blocks.
pub(super) fn encode(rows: &[Row]) -> Vec<u8> {
    let mut table = Vec::with_capacity(rows.len() * ROW + END);
    for row in rows {
        table.extend(row.id.0);
        table.extend(row.offset.to_be_bytes());
        table.extend(row.size.to_be_bytes());
    }
    table.extend((rows.len() as u32).to_be_bytes());
    table.extend(MARK);
    table
}

/// How many bytes the rows have, by the last [`END`] bytes of a pack.
///
/// # Errors
/// `Corrupt` when they end no table.
pub(super) fn rows_length(end: &[u8]) -> Result<u32> {
    let count = end.split_first_chunk::<4>().filter(|(_, mark)| mark == MARK);
    let count = count.map(|(count, _)| u32::from_be_bytes(*count)).filter(|count| *count <= ROWS_MAX as u32);
    count.map(|count| count * ROW as u32).ok_or_else(|| Error::corrupt("there is no table at its end"))
}

/// The rows of a table, which stands at a byte of its pack.
///
/// # Errors
/// `Corrupt` when one leads beyond the blocks.
pub(super) fn decode(mut rows: &[u8], at: u32) -> Result<Vec<Row>> {
    let mut table = Vec::with_capacity(rows.len() / ROW);
    while let Some((id, rest)) = rows.split_first_chunk::<32>() {
        let (offset, rest) = number(rest)?;
        let (size, rest) = number(rest)?;
        if offset.checked_add(size).is_none_or(|end| end > at) {
            return Err(Error::corrupt("a row of its table leads beyond the blocks"));
        }
        table.push(Row { id: BlockId(*id), offset, size });
        rows = rest;
    }
    Ok(table)
}

fn number(bytes: &[u8]) -> Result<(u32, &[u8])> {
    let (number, rest) =
        bytes.split_first_chunk::<4>().ok_or_else(|| Error::corrupt("its table is cut off"))?;
    Ok((u32::from_be_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::{END, ROW, ROWS_MAX, Row, decode, encode, fits, rows_length};
    use tandemfs::api::fs::BLOCK_SIZE_MAX;
    use tandemfs::id::BlockId;

    #[test]
    fn what_was_encoded_is_found_again_and_nothing_else_is_a_table() {
        let rows = [
            Row { id: BlockId([1; 32]), offset: 0, size: 7 },
            Row { id: BlockId([2; 32]), offset: 7, size: 93 },
        ];
        let table = encode(&rows);
        assert_eq!(table.len(), 2 * ROW + END);
        let (body, end) = table.split_at(2 * ROW);
        assert_eq!(rows_length(end).unwrap() as usize, body.len());
        assert_eq!(decode(body, 100).unwrap(), rows);
        assert!(decode(body, 99).is_err());
        assert!(decode(&body[..ROW + 33], 100).is_err());
        assert!(rows_length(&table[2 * ROW + 1..]).is_err());
        assert!(rows_length(&[&[255; 4], &table[2 * ROW + 4..]].concat()).is_err());
        assert!(rows_length(&[0; END]).is_err());
        assert!(rows_length(&[]).is_err());
    }

    #[test]
    fn a_pack_is_a_block() {
        assert!(fits(1, BLOCK_SIZE_MAX - ROW - END));
        assert!(!fits(1, BLOCK_SIZE_MAX - ROW - END + 1));
        assert!(fits(ROWS_MAX, ROWS_MAX));
        assert!(!fits(ROWS_MAX + 1, 0));
    }
}
