//! Requests that come too often: by one user, and as HTTP/2 streams that are cut off as soon as they are opened.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;

use axum::http::Method;
use futures::future::join_all;
use tokio::time::Instant;

use super::server_tests::{blocking, connect, is_served, listening};
use super::tests::Server;

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_asks_too_often_is_told_when_to_come_back_and_others_are_served() {
    let server = Server::start_with(|settings| settings.max_user_requests_per_s = 2).await;
    let (admin, alice) = server.users().await;
    let me = async |token: &str| server.call(Method::GET, "/v1/me", token, None).await;
    let begun = Instant::now();
    let (mut taken, mut refused) = (0, 0);
    for answer in join_all((0..50).map(|_| me(&alice))).await {
        if answer.status == 200 {
            taken += 1;
            continue;
        }
        assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (429, "too_many_requests"));
        assert_eq!(answer.headers["retry-after"], "1");
        refused += 1;
    }
    let most = 2 + 2 * (begun.elapsed().as_secs() + 1);
    assert!((2..=most).contains(&taken) && refused > 0, "{taken} taken, {refused} refused");
    assert_eq!(me(&admin).await.status, 200, "another user's requests are counted apart");
    assert_eq!(server.call(Method::GET, "/healthz", "", None).await.status, 204);

    // What keeps a session alive and what ends it is not counted: others would have to wait until it is fenced.
    for (method, path, body) in [
        (Method::POST, "acks", Some(serde_json::json!({"number": 0, "held": []}))),
        (Method::DELETE, "", None),
    ] {
        let path = format!("/fs/v1/sessions/7/{path}");
        let path = path.trim_end_matches('/');
        let answers = (0..20).map(|_| server.call(method.clone(), path, &alice, body.clone()));
        for answer in join_all(answers).await {
            assert_eq!(answer.status, 410, "there is no such session");
        }
    }

    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(me(&alice).await.status, 200);
}

#[tokio::test]
async fn without_a_limit_nobody_is_refused() {
    let server = Server::start_with(|settings| settings.max_user_requests_per_s = 0).await;
    let admin = server.login("admin", "admin123").await;
    for answer in join_all((0..100).map(|_| server.call(Method::GET, "/v1/me", &admin, None))).await {
        assert_eq!(answer.status, 200);
    }
}

/// Types of frames (RFC 9113, section 6).
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
/// Codes of errors (RFC 9113, section 7).
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;
const FLAG_END_STREAM: u8 = 1;
const FLAG_END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET /healthz`, in the static table's words (RFC 7541, appendix A) as far as it has them.
fn request(stream: u32, flags: u8) -> Vec<u8> {
    let head = [&[0x82, 0x86, 0x04, 8], b"/healthz".as_slice(), &[0x01, 1], b"x"].concat();
    frame(HEADERS, FLAG_END_HEADERS | flags, stream, &head)
}

fn opening() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(SETTINGS, 0, 0, &[])].concat()
}

/// The client takes the request back (CVE-2023-44487).
fn taken_back(stream: u32) -> Vec<u8> {
    [request(stream, FLAG_END_STREAM), frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())].concat()
}

/// The client makes the server break the request off, by a window that grows too far (CVE-2025-8671).
fn made_to_break(stream: u32) -> Vec<u8> {
    [request(stream, 0), frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes())].concat()
}

/// Sends so many streams as fast as they are taken, and returns the frames of the answer, each with its type and payload.
fn flood(to: SocketAddr, streams: u32, one: fn(u32) -> Vec<u8>) -> Vec<(u8, Vec<u8>)> {
    let mut stream = connect(to);
    let mut reader = stream.try_clone().unwrap();
    let answer = std::thread::spawn(move || {
        let mut answer = Vec::new();
        let mut part = [0; 4096];
        // Until the other side closes, or has said nothing for a while.
        reader.set_read_timeout(Some(std::time::Duration::from_secs(3))).unwrap();
        while let Ok(length @ 1..) = reader.read(&mut part) {
            answer.extend_from_slice(&part[..length]);
        }
        answer
    });
    let mut sent = stream.write_all(&opening());
    for portion in (0..streams).collect::<Vec<_>>().chunks(100) {
        let frames: Vec<u8> = portion.iter().flat_map(|number| one(2 * number + 1)).collect();
        sent = sent.and_then(|()| stream.write_all(&frames));
    }
    let answer = answer.join().unwrap();
    let (mut rest, mut frames) = (answer.as_slice(), Vec::new());
    while let [a, b, c, kind, _, _, _, _, _, behind @ ..] = rest {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some((payload, behind)) = behind.split_at_checked(length) else { break };
        frames.push((*kind, payload.to_vec()));
        rest = behind;
    }
    frames
}

fn codes_of_goaway(frames: &[(u8, Vec<u8>)]) -> Vec<u32> {
    let goaways = frames.iter().filter(|(kind, _)| *kind == GOAWAY);
    goaways.map(|(_, payload)| u32::from_be_bytes(payload[4..8].try_into().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_cut_off_at_once_end_their_connection_and_others_are_served() {
    let (_server, serving) = listening(|_| {}).await;
    let to = serving.address;
    // Who changes their mind a few times is served.
    let few = blocking(move || {
        flood(to, 11, |stream| match stream {
            21 => request(stream, FLAG_END_STREAM),
            _ => taken_back(stream),
        })
    })
    .await;
    assert!(codes_of_goaway(&few).is_empty() && few.iter().any(|(kind, _)| *kind == HEADERS), "{few:?}");

    for attack in [taken_back, made_to_break] {
        let floods: Vec<_> =
            (0..8).map(|_| tokio::spawn(blocking(move || flood(to, 200_000, attack)))).collect();
        let mut served = 0;
        while floods.iter().any(|flood| !flood.is_finished()) || served == 0 {
            assert!(blocking(move || is_served([127, 0, 0, 2], to)).await.is_some());
            served += 1;
        }
        for answer in join_all(floods).await {
            let answer = answer.unwrap();
            assert_eq!(codes_of_goaway(&answer).last(), Some(&ENHANCE_YOUR_CALM), "{} frames", answer.len());
        }
    }
    serving.stop().await.unwrap();
}
