//! The compact encoding and the JSON of what mounts and the daemon send to each other, also the lines of the event stream. What is
//! decoded must encode to what decodes to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tandemfs::api::fs::{
    Ack, Batch, BatchReply, DelegationReply, DelegationRequest, Event, InodeRange, OpenSession, Read, ReadReply,
    ResumeSession, SessionGrant,
};
use tandemfs::api::locks::{LockReply, LockRequest};
use tandemfs::codec;

fn message<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(value) = codec::decode::<T>(bytes) {
        let again = codec::encode(&value).expect("it was decoded");
        let value = codec::decode::<T>(&again).expect("it was encoded");
        assert_eq!(codec::encode(&value).expect("it was decoded"), again);
    }
    if let Ok(value) = serde_json::from_slice::<T>(bytes) {
        let again = serde_json::to_vec(&value).expect("it was decoded");
        let value = serde_json::from_slice::<T>(&again).expect("it was encoded");
        assert_eq!(serde_json::to_vec(&value).expect("it was decoded"), again);
    }
}

fuzz_target!(|bytes: &[u8]| {
    message::<OpenSession>(bytes);
    message::<ResumeSession>(bytes);
    message::<SessionGrant>(bytes);
    message::<InodeRange>(bytes);
    message::<Batch>(bytes);
    message::<BatchReply>(bytes);
    message::<Read>(bytes);
    message::<ReadReply>(bytes);
    message::<Event>(bytes);
    message::<Ack>(bytes);
    message::<DelegationRequest>(bytes);
    message::<DelegationReply>(bytes);
    message::<LockRequest>(bytes);
    message::<LockReply>(bytes);
});
