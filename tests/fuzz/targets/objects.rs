//! The object of a block as it lies on a node: its header and its data.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tandemfs::block::{self, ALIGNED_MIN, Header, PIECE};
use tandemfs::id::{BlockId, VolumeId};
use twox_hash::XxHash3_128;

/// Makes the checksum of the header right, which cannot be guessed (docs/format.md).
fn seal(object: &mut [u8]) {
    let Some(length) = object.get(56..60) else { return };
    let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
    if let Some((checked, rest)) = object.split_at_mut_checked(64 + length.div_ceil(PIECE) * 16)
        && let Some(sum) = rest.get_mut(..16)
    {
        sum.copy_from_slice(&XxHash3_128::oneshot(checked).to_be_bytes());
    }
}

fuzz_target!(|input: (u8, u32, u8, u32, u32, &[u8])| {
    let (kind, at, bits, from, to, bytes) = input;
    let (volume, id) = (VolumeId(1), BlockId([9; 32]));
    let mut object = if kind & 1 == 0 {
        bytes.to_vec()
    } else {
        let mut data = bytes.to_vec();
        if kind & 2 != 0 {
            // One that is filled up.
            data.resize(ALIGNED_MIN + bytes.len(), 7);
        }
        let mut object = block::encode(volume, &id, &data).unwrap().to_vec();
        assert!(block::decode(&id, object.clone().into()).unwrap() == data);
        let at = at as usize % object.len();
        object[at] ^= bits;
        object
    };
    if kind & 4 != 0 {
        seal(&mut object);
    }
    let decoded = block::decode(&id, object.clone().into());
    let Ok(header) = Header::parse(&object) else { return assert!(decoded.is_err()) };
    assert!(header.len() <= block::HEADER_MAX && header.object_len() <= block::OBJECT_MAX as u64);
    if let Ok(data) = decoded {
        assert!(block::encode(header.volume(), &id, &data).unwrap() == object, "one object for one block");
    }
    let stored = header.stored_range(from..to);
    assert!(stored.start <= stored.end && stored.end <= header.object_len());
    let object = Bytes::from(object);
    let pieces = if stored.end <= object.len() as u64 {
        object.slice(stored.start as usize..stored.end as usize)
    } else {
        object
    };
    if let Ok(part) = header.cut(from..to, pieces) {
        assert_eq!(part.len() as u32, to - from);
    }
});
