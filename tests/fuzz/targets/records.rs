//! What the metadata engine gives back: keys and values.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tandemd::meta::{keys, record};
use tandemfs::codec;
use tandemfs::tree::Record;

fn value<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let _ = record::decode::<T>(b"key", bytes);
    // Behind the checksum, which cannot be guessed.
    if let Ok(value) = codec::decode::<T>(bytes) {
        let stored = record::encode(b"key", &value).expect("it was decoded");
        assert!(record::decode::<T>(b"key", &stored).is_ok());
        assert!(record::decode::<T>(b"another key", &stored).is_err());
    }
}

fuzz_target!(|bytes: &[u8]| {
    let _ = (keys::grantee(bytes), keys::block_of(bytes), keys::parse_revoked(bytes));
    value::<record::Volume>(bytes);
    value::<record::Block>(bytes);
    value::<record::References>(bytes);
    value::<record::Session>(bytes);
    value::<Record>(bytes);
});
