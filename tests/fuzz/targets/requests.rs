//! Cursors, prefixes, ids, tags, ranges and bodies, as the daemon's own endpoints read them: none is answered as the daemon's fault.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem_fuzz::api::{COMPACT, FORM, JSON, header};
use tandem_fuzz::with_api;

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    with_api(|api| {
        let text: String = url::form_urlencoded::byte_serialize(bytes).collect();
        let download = format!("/download/{}", api.file);
        let session = format!("/fs/v1/sessions/{}", api.session);
        let value = &header(bytes)[..];
        let get = |path: &str, headers: &[(&str, &[u8])]| api.send("GET", path, headers, "");
        let post = |path: &str, kind| api.send("POST", path, &[kind], bytes.to_vec());
        let (status, body) = match kind % 17 {
            0 => get(&format!("/files?cursor={text}"), &[]),
            1 => get(&format!("/files?prefix={text}"), &[]),
            2 => get(&format!("/v1/users?cursor={text}"), &[]),
            3 => get(&format!("/v1/audit?cursor={text}"), &[]),
            4 => get(&format!("/files/{text}"), &[]),
            5 => get(&download, &[("range", value)]),
            6 => get(&download, &[("if-none-match", value)]),
            7 => get(&download, &[("if-match", value)]),
            8 => get(&download, &[("range", b"bytes=1-2"), ("if-range", value)]),
            9 => post(&format!("{session}/batches"), COMPACT),
            10 => post(&format!("{session}/reads"), COMPACT),
            11 => post(&format!("{session}/locks"), COMPACT),
            12 => post(&format!("{session}/batches"), JSON),
            13 => post(&format!("{session}/reads"), JSON),
            14 => post("/v1/volumes", JSON),
            15 => post("/login", JSON),
            _ => post("/upload", FORM),
        };
        assert!(!status.is_server_error() || status == 501, "{status} {body:?}");
    });
});
