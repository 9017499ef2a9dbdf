//! Every parser of bytes from outside, with bytes that nobody meant: none panics, and none allocates what the bytes merely claim.
//! `PROPTEST_CASES` makes it longer.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "parts of a test")]

mod api;

use std::sync::Once;

use axum::body::Bytes;
use proptest::prelude::{Just, Strategy, any, prop, prop_assert, prop_oneof, proptest};
use proptest::test_runner::TestCaseError;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tandemd::meta::record;
use tandemd::volumes::files::{RangeAnswer, range_of};
use tandemfs::api::fs::{
    Ack, Batch, BatchReply, DelegationRequest, Event, InlineBlock, OpenSession, Read, ReadReply,
    ResumeSession,
};
use tandemfs::api::locks::{HeldLock, Lock, LockKind, LockRequest};
use tandemfs::block::{self, Header};
use tandemfs::clock::Time;
use tandemfs::codec;
use tandemfs::id::{BlockId, FileId, Ino, NodeId, VolumeId};
use tandemfs::name::{Name, PATH_MAX, join_path, split_path};
use tandemfs::tree::{Credentials, Key, Mutation, NewNode, Record, Want, WrittenExtent};

use api::{Api, COMPACT, FORM, UPLOAD, header};

/// What all tests here may allocate together. An allocation beyond it ends the process.
const MEMORY: u64 = 2 << 30;

fn bound_memory() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
        let now_kib: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
        let limit = Rlimit { current: Some((now_kib << 10) + MEMORY), ..getrlimit(Resource::As) };
        setrlimit(Resource::As, limit).unwrap();
    });
}

/// Something done to valid bytes.
#[derive(Clone, Debug)]
enum Damage {
    Flip(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    Repeat(usize, usize),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let claim = prop_oneof![
        // MessagePack: an array, a map, bytes, a text of four billion.
        Just(vec![0xdd, 0xff, 0xff, 0xff, 0xff]),
        Just(vec![0xdf, 0xff, 0xff, 0xff, 0xff]),
        Just(vec![0xc6, 0xff, 0xff, 0xff, 0xff]),
        Just(vec![0xdb, 0xff, 0xff, 0xff, 0xff]),
        // Ten thousand arrays in each other.
        Just(vec![0x91; 10_000]),
        Just(vec![b'['; 10_000]),
        prop::collection::vec(any::<u8>(), 1..16),
    ];
    let one = prop_oneof![
        (any::<usize>(), 1..=255_u8).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        any::<usize>().prop_map(Damage::Cut),
        (any::<usize>(), claim).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (any::<usize>(), 1..16_usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        (any::<usize>(), 1..64_usize).prop_map(|(at, count)| Damage::Repeat(at, count)),
    ];
    prop::collection::vec(one, 1..4)
}

fn damaged(valid: &[u8], damage: &[Damage]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for one in damage {
        let place = |at: &usize| at % (bytes.len() + 1);
        match one {
            Damage::Flip(at, bits) => {
                let at = place(at);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= bits;
                }
            }
            Damage::Cut(at) => bytes.truncate(place(at)),
            Damage::Insert(at, more) => {
                let at = place(at);
                bytes.splice(at..at, more.iter().copied());
            }
            Damage::Remove(at, count) => {
                let at = place(at);
                bytes.drain(at..bytes.len().min(at + count));
            }
            Damage::Repeat(at, count) => {
                let at = place(at);
                let some = bytes[at..bytes.len().min(at + count)].to_vec();
                bytes.splice(at..at, some);
            }
        }
    }
    bytes
}

fn name(bytes: &[u8]) -> Name {
    Name::new(bytes).unwrap()
}

/// A batch with one of everything that bytes decide about.
fn batch() -> Batch {
    let (ino, parent, time, by) = (Ino(5), Ino::ROOT, Time::default(), Credentials::default());
    let block = BlockId([7; 32]);
    let extents = vec![WrittenExtent { offset: 0, length: 5, block, block_offset: 0 }];
    let node = NewNode::Symlink(b"/target\xff".to_vec());
    Batch {
        sequence: 1,
        mutations: vec![
            Mutation::Create { parent, name: name(b"text"), ino, node, mode: 0o644, by, time },
            Mutation::Link { ino, parent, name: name(b"\xff\xfe"), time },
            Mutation::Write { ino, extents, size: 5, clear_privileges: true, time },
            Mutation::PunchHole { ino, offset: 1, length: 2, size: 3, clear_privileges: false, time },
            Mutation::CloneRange {
                ino,
                offset: 1,
                from: parent,
                from_offset: 2,
                length: 3,
                clear_privileges: true,
                time,
            },
            Mutation::SetDigest { ino, content: 1, sha256: vec![1; 32] },
            Mutation::Reap { ino, chunks: 3 },
            Mutation::Accessed { ino, after: time, time },
        ],
        held: vec![ino],
        delegates: vec![ino],
        blocks: vec![InlineBlock { id: block, data: b"hello".to_vec() }],
        brief: false,
    }
}

fn read() -> Read {
    let record = Want::Record(Key::Xattr(Ino(1), b"user.a".to_vec()));
    let directory = Want::Directory { ino: Ino(1), after: Some(name(b"a")), limit: 10 };
    Read { wants: vec![record, directory, Want::Chunks { ino: Ino(1), from: 0, to: u64::MAX }] }
}

fn reply() -> BatchReply {
    let records = vec![
        (Key::Link(Ino(1), Ino(2), name(b"a")), Some(Record::Xattr(b"\xff".to_vec()))),
        (Key::Usage, None),
    ];
    BatchReply { version: 3, records }
}

/// Decodes damaged encodings of a value, of both kinds. What is decoded all the same must encode again.
fn survives<T: Serialize + DeserializeOwned>(
    value: &T,
    damage: &[Damage],
    noise: &[u8],
) -> Result<(), TestCaseError> {
    let compact = codec::encode(value).unwrap();
    prop_assert!(codec::decode::<T>(&compact).is_ok());
    for bytes in [noise.to_vec(), damaged(&compact, damage)] {
        if let Ok(value) = codec::decode::<T>(&bytes) {
            prop_assert!(codec::encode(&value).is_ok());
        }
    }
    let text = serde_json::to_vec(value).unwrap();
    prop_assert!(serde_json::from_slice::<T>(&text).is_ok());
    if let Ok(value) = serde_json::from_slice::<T>(&damaged(&text, damage)) {
        prop_assert!(serde_json::to_vec(&value).is_ok());
    }
    Ok(())
}

proptest! {
    #[test]
    fn wire_messages(damage in damage(), noise in prop::collection::vec(any::<u8>(), 0..200)) {
        bound_memory();
        survives(&batch(), &damage, &noise)?;
        survives(&read(), &damage, &noise)?;
        survives(&reply(), &damage, &noise)?;
        survives(&ReadReply { version: 1, answers: Vec::new() }, &damage, &noise)?;
        survives(&Event::DropAll { number: 1, version: 2 }, &damage, &noise)?;
        survives(&Event::Recall { number: 1, inos: vec![Ino(9)], volume: true }, &damage, &noise)?;
        survives(&DelegationRequest::Return(vec![Ino(9)]), &damage, &noise)?;
        survives(&Ack { number: 1, held: vec![Ino(9)] }, &damage, &noise)?;
        survives(&ResumeSession { held: vec![Ino(9)], delegations: vec![Ino(7)], volume: true }, &damage, &noise)?;
        survives(&OpenSession { volume: Some("v".into()), read_only: true, client: "c".into() }, &damage, &noise)?;
    }

    #[test]
    fn stored_records(damage in damage(), noise in prop::collection::vec(any::<u8>(), 0..200)) {
        bound_memory();
        let block = record::Block {
            size: 5,
            place: record::Place::Pack { block: BlockId([7; 32]), offset: 9 },
            replicas: vec![NodeId(1), NodeId(2)],
            members: 4,
            stored_ms: 3,
            deleting: false,
            member_bytes: 5,
        };
        let stored = record::encode(b"key", &block).unwrap();
        prop_assert!(record::decode::<record::Block>(b"key", &stored).is_ok());
        let bytes = damaged(&stored, &damage);
        if bytes != stored {
            prop_assert!(record::decode::<record::Block>(b"key", &bytes).is_err(), "damage is not noticed");
        }
        prop_assert!(record::decode::<record::Block>(b"other key", &stored).is_err());
        prop_assert!(record::decode::<record::Block>(b"key", &noise).is_err());
        survives(&block, &damage, &noise)?;
    }

    #[test]
    fn objects_of_blocks(length in 0..200_000_usize, damage in damage(), from in any::<u32>(), to in any::<u32>()) {
        bound_memory();
        let id = BlockId([9; 32]);
        let data: Vec<u8> = (0..length).map(|at| at as u8).collect();
        let object = block::encode(VolumeId(1), &id, &data).unwrap();
        let bytes = damaged(&object, &damage);
        if bytes[..] != object[..] {
            prop_assert!(block::decode(&id, Bytes::from(bytes.clone())).is_err(), "damage is not noticed");
        }
        if let Ok(header) = Header::parse(&bytes) {
            prop_assert!(header.len() <= block::HEADER_MAX && header.object_len() <= block::OBJECT_MAX as u64);
            let stored = header.stored_range(from..to);
            prop_assert!(stored.start <= stored.end && stored.end <= header.object_len());
            let _ = header.cut(from..to, Bytes::from(bytes));
        }
    }

    #[test]
    fn names_paths_and_ids(bytes in prop::collection::vec(any::<u8>(), 0..5000), text in ".*") {
        bound_memory();
        for bytes in [&bytes[..], &bytes[..bytes.len().min(300)], text.as_bytes()] {
            if let Ok(name) = Name::new(bytes) {
                prop_assert!((1..=255).contains(&name.as_bytes().len()) && !name.as_bytes().contains(&b'/'));
            }
            if let Ok(names) = split_path(bytes) {
                prop_assert!(bytes.len() <= PATH_MAX);
                prop_assert!(names.iter().all(|name| name.as_bytes() != b".." && name.as_bytes() != b"."));
                // Joined it has one slash more than it may have had.
                prop_assert!(bytes.len() == PATH_MAX || split_path(join_path(&names)).unwrap() == names);
            }
        }
        for id in [text.clone(), format!("f{text}"), format!("f1-{text}")] {
            if let Ok(file) = id.parse::<FileId>() {
                prop_assert!(file.to_string() == id, "one spelling for one file");
            }
            let _ = (id.parse::<BlockId>(), id.parse::<NodeId>(), id.parse::<Ino>());
        }
    }

    #[test]
    fn ranges(text in "(bytes)?=?[0-9]{0,25}-?[0-9]{0,25}(,.*)?", size in any::<u64>(), tag in ".*") {
        bound_memory();
        for range in [text.as_str(), tag.as_str()] {
            if let RangeAnswer::Part(part) = range_of(Some(range), None, "\"tag\"", size) {
                prop_assert!(part.start < part.end && part.end <= size);
            }
            prop_assert!(range_of(Some(range), Some("\"other\""), "\"tag\"", size) == RangeAnswer::Whole);
        }
    }
}

#[test]
fn requests() {
    bound_memory();
    let api = Api::start();
    let cursor = b"L2Rpci9uYW1l";
    proptest!(|(damage in damage(), noise in prop::collection::vec(any::<u8>(), 0..100))| {
        // Tokens: not one that was changed is taken.
        for token in [damaged(api.token.as_bytes(), &damage), noise.clone()] {
            let value = header(&[b"Bearer ", &token[..]].concat());
            if value != format!("Bearer {}", api.token).as_bytes() {
                let (status, _) = api.send("GET", "/v1/me", &[("authorization", &value)], "");
                prop_assert!(status == 401, "{status}");
            }
        }
        // Cursors and prefixes.
        for text in [damaged(cursor, &damage), noise.clone()] {
            let text: String = url::form_urlencoded::byte_serialize(&text).collect();
            for path in [format!("/files?cursor={text}"), format!("/files?prefix={text}"), format!("/v1/users?cursor={text}")] {
                let (status, _) = api.send("GET", &path, &[], "");
                prop_assert!(status == 200 || status == 400, "{path}: {status}");
            }
        }
        // Ranges and tags.
        let range = header(&damaged(b"bytes=3-7", &damage));
        let (status, body) = api.send("GET", &format!("/download/{}", api.file), &[("range", &range)], "");
        prop_assert!([200, 206, 416].contains(&status.as_u16()), "{status}");
        prop_assert!(status == 416 || body.len() <= 20);
        let tag = header(&noise);
        for name in ["if-match", "if-none-match", "if-range"] {
            let (status, _) = api.send("GET", &format!("/download/{}", api.file), &[(name, &tag)], "");
            prop_assert!([200, 304, 412].contains(&status.as_u16()), "{name}: {status}");
        }
        // Bodies.
        let (status, body) = api.send("POST", "/upload", &[FORM], damaged(UPLOAD.as_bytes(), &damage));
        prop_assert!(!status.is_server_error(), "{status} {body:?}");
    });
}

fn lock() -> LockRequest {
    let lock = Lock { start: 3, end: 700, kind: LockKind::Read, pid: 4_000_000 };
    LockRequest::Set { wanted: HeldLock { ino: Ino(2), owner: u64::MAX, lock }, place: Some(1) }
}

#[test]
fn batches_reads_and_locks() {
    bound_memory();
    let api = Api::start();
    proptest!(|(damage in damage())| {
        for (path, value) in [
            ("batches", codec::encode(&batch()).unwrap()),
            ("reads", codec::encode(&read()).unwrap()),
            ("locks", codec::encode(&lock()).unwrap()),
        ] {
            let path = format!("/fs/v1/sessions/{}/{path}", api.session);
            let (status, body) = api.send("POST", &path, &[COMPACT], damaged(&value, &damage));
            prop_assert!(!status.is_server_error(), "{status} {body:?}");
        }
    });
}
