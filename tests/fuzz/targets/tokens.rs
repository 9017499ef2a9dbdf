//! Tokens of logins (JWT) and API tokens: none but the right one is taken.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem_fuzz::api::header;
use tandem_fuzz::with_api;

fuzz_target!(|input: (u8, u16, &[u8])| {
    let (kind, at, bytes) = input;
    with_api(|api| {
        let mut token = api.token.clone().into_bytes();
        let at = usize::from(at) % token.len();
        match kind % 4 {
            0 => token = bytes.to_vec(),
            1 => token = [b"tfs_", bytes].concat(),
            // The right one with something put into it, or with a part of it changed.
            2 => drop(token.splice(at..at, bytes.iter().copied())),
            _ => drop(token.splice(at..(at + bytes.len()).min(token.len()), bytes.iter().copied())),
        }
        let token = header(&token);
        let (status, _) =
            api.send("GET", "/v1/me", &[("authorization", &[b"Bearer ", &token[..]].concat())], "");
        assert_eq!(status, if token.trim_ascii() == api.token.as_bytes() { 200 } else { 401 });
    });
});
