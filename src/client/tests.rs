//! The client against a small server that says exactly what a test wants said.

use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

use super::{Client, Credentials, Upload, is_refused};
use crate::api::fs::{Ack, Event, LocalSocket, OpenSession, Read, ReadReply, SessionGrant};
use crate::api::problem::Problem;
use crate::id::{BlockId, SessionId, VolumeId, VolumeKey};
use crate::tree::Usage;
use crate::{Error, ErrorKind, codec};

/// A request as the server saw it.
#[derive(Clone, Debug)]
struct Request {
    line: String,
    head: String,
    body: Vec<u8>,
}

impl Request {
    fn token(&self) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix("authorization: Bearer "))
    }
}

struct Server {
    url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers each request with the bytes that `answer` gives, then closes the connection.
    async fn start(answer: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), Arc::clone(&requests));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                tokio::spawn(async move {
                    let Some(request) = read_request(&mut stream).await else { return };
                    seen.lock().unwrap().push(request.clone());
                    // The client may have gone.
                    let _ = stream.write_all(&answer(&request)).await;
                });
            }
        });
        Self { url, requests }
    }

    fn client(&self, credentials: Credentials) -> Client {
        Client::new(&self.url, credentials).unwrap()
    }

    fn lines(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(|request| request.line.clone()).collect()
    }
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Request> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8(bytes[..end].to_vec()).ok()?;
    let (line, head) = text.split_once("\r\n").unwrap_or((&text, ""));
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    let mut body = bytes.split_off(end + 4);
    if let Some(length) = header("content-length: ") {
        while body.len() < length.parse().ok()? {
            if stream.read_buf(&mut body).await.ok()? == 0 {
                return None;
            }
        }
    } else if header("transfer-encoding: ").is_some() {
        while !body.ends_with(b"0\r\n\r\n") {
            if stream.read_buf(&mut body).await.ok()? == 0 {
                return None;
            }
        }
    }
    Some(Request { line: line.to_owned(), head: head.to_owned(), body })
}

fn reply(status: u16, media_type: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-type: {media_type}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn json(status: u16, body: &str) -> Vec<u8> {
    reply(status, "application/json; charset=utf-8", body.as_bytes())
}

fn problem(error: &Error) -> Vec<u8> {
    let body = serde_json::to_vec(&Problem::from(error)).unwrap();
    reply(error.kind().http_status(), "application/problem+json", &body)
}

const STORAGE: &str =
    r#"{"used_bytes":1,"quota_bytes":null,"available_bytes":2,"files":3,"quota_files":null}"#;

fn login(token: &str, expires_in: u64) -> Vec<u8> {
    json(
        200,
        &format!(
            r#"{{"token":"{token}","token_type":"Bearer","expires_in":{expires_in},"user":{{"username":"u","role":"user"}}}}"#
        ),
    )
}

fn password() -> Credentials {
    Credentials::Password { username: "u".into(), password: "p".into() }
}

#[tokio::test]
async fn every_error_comes_back_as_it_was() {
    for &kind in ErrorKind::ALL {
        let server = Server::start(move |_| problem(&Error::new(kind, "the subject").retry_after(7))).await;
        let error = server.client(Credentials::Token("t".into())).storage().await.unwrap_err();
        assert_eq!(error.kind(), kind);
        assert_eq!(error.retry_after_s(), Some(7));
        assert_eq!(error.subject(), if kind == ErrorKind::Internal { "" } else { "the subject" });
    }
}

#[tokio::test]
async fn what_is_no_problem_body_is_an_error_all_the_same() {
    for (status, kind) in [
        (400, ErrorKind::Invalid),
        (401, ErrorKind::Unauthenticated),
        (404, ErrorKind::NotFound),
        (429, ErrorKind::TooManyRequests),
        (502, ErrorKind::Unavailable),
        (302, ErrorKind::Unavailable),
    ] {
        let server = Server::start(move |_| reply(status, "text/html", b"<h1>from a proxy</h1>")).await;
        let error = server.client(Credentials::None).storage().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{status}");
    }
    for garbage in [&b"HTTP/1.1 200 X\r\ncontent-length: 4\r\n\r\n{\"a\""[..], b"220 ready\r\n", b""] {
        let server = Server::start(move |_| garbage.to_vec()).await;
        server.client(Credentials::None).storage().await.unwrap_err();
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Server::start(|_| json(200, STORAGE)).await;
    let location = other.url.clone();
    let server = Server::start(move |_| {
        format!(
            "HTTP/1.1 307 X\r\nconnection: close\r\nlocation: {location}/storage\r\ncontent-length: 0\r\n\r\n"
        )
        .into_bytes()
    })
    .await;
    server.client(Credentials::Token("secret".into())).storage().await.unwrap_err();
    assert!(other.lines().is_empty());
}

#[tokio::test]
async fn many_requests_share_one_login() {
    let server = Server::start(|request| match request.line.as_str() {
        "POST /login HTTP/1.1" => login("good", 900),
        _ if request.token() == Some("good") => json(200, STORAGE),
        _ => problem(&Error::unauthenticated("")),
    })
    .await;
    let client = server.client(password());
    let all = futures::future::join_all((0..10).map(|_| client.storage())).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(server.lines().iter().filter(|line| line.starts_with("POST /login")).count(), 1);
}

#[tokio::test]
async fn a_login_is_renewed_before_it_expires() {
    let server = Server::start(|request| match request.line.as_str() {
        "POST /login HTTP/1.1" => login("good", 0),
        _ => json(200, STORAGE),
    })
    .await;
    let client = server.client(password());
    client.storage().await.unwrap();
    client.storage().await.unwrap();
    assert_eq!(server.lines().iter().filter(|line| line.starts_with("POST /login")).count(), 2);
}

#[tokio::test]
async fn a_refused_login_is_renewed_once() {
    let logins = Mutex::new(0);
    let server = Server::start(move |request| match request.line.as_str() {
        "POST /login HTTP/1.1" => {
            let mut logins = logins.lock().unwrap();
            *logins += 1;
            login(&format!("token-{logins}"), 900)
        }
        "GET /storage HTTP/1.1" if request.token() == Some("token-2") => json(200, STORAGE),
        _ => problem(&Error::unauthenticated("")),
    })
    .await;
    let client = server.client(password());
    client.storage().await.unwrap();
    assert_eq!(server.lines().len(), 4, "login, refused, login, accepted");
    assert_eq!(client.status().await.unwrap_err().kind(), ErrorKind::Unauthenticated);
    assert_eq!(server.lines().len(), 7, "refused, login, refused, and no more");
}

#[tokio::test]
async fn a_refused_password_is_not_sent_again() {
    let server = Server::start(|_| problem(&Error::unauthenticated("wrong"))).await;
    let client = server.client(password());
    for _ in 0..20 {
        assert_eq!(client.storage().await.unwrap_err().kind(), ErrorKind::Unauthenticated);
    }
    assert_eq!(server.lines().len(), 1, "each would count as a guess");
}

#[tokio::test]
async fn a_token_is_sent_as_it_is_and_never_shown() {
    let server = Server::start(|_| problem(&Error::unauthenticated(""))).await;
    let client = server.client(Credentials::Token("marked-secret".into()));
    let error = client.storage().await.unwrap_err();
    assert_eq!(server.lines().len(), 1);
    assert_eq!(server.requests.lock().unwrap()[0].token(), Some("marked-secret"));
    assert!(!format!("{client:?} {error:?} {:?}", password()).contains("marked-secret"));
}

#[tokio::test]
async fn nobody_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = Client::new(&url, Credentials::None).unwrap().storage().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(is_refused(&error));
}

#[tokio::test]
async fn no_answer_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client =
        Client::new(&format!("http://{}", listener.local_addr().unwrap()), Credentials::None).unwrap();
    let request = tokio::spawn(async move { client.storage().await });
    let (_connection, _) = listener.accept().await.unwrap();
    // Time stands still from here on, and moves to the next timer when there is nothing else to do.
    tokio::time::pause();
    let error = request.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(!is_refused(&error));
}

#[tokio::test]
async fn answers_that_are_cut_off_are_errors() {
    for head in [
        "content-length: 100\r\n\r\nonly this",
        "transfer-encoding: chunked\r\n\r\n9\r\nonly this\r\n",
        "\r\nonly this",
    ] {
        let server =
            Server::start(move |_| format!("HTTP/1.1 200 X\r\nconnection: close\r\n{head}").into_bytes())
                .await;
        let client = server.client(Credentials::None);
        let error = match client.download("f1-2").await {
            Ok(download) => {
                let pieces: Vec<_> = download.data.collect().await;
                pieces.into_iter().find_map(Result::err).expect("an error at the end")
            }
            Err(error) => error,
        };
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{head}");
    }
}

#[tokio::test]
async fn a_download_comes_in_pieces() {
    let data: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let sent = data.clone();
    let server = Server::start(move |_| reply(200, "application/octet-stream", &sent)).await;
    let download = server.client(Credentials::None).download("f1-2").await.unwrap();
    assert_eq!(download.size, Some(3_000_000));
    let pieces: Vec<Bytes> = download.data.map(Result::unwrap).collect().await;
    assert!(pieces.len() > 1);
    assert!(pieces.concat() == data);
}

#[tokio::test]
async fn an_upload_is_a_form_with_the_path_first() {
    const FILE: &str = r#"{"file_id":"f1-2","name":"b","path":"/a/b","size":9,"sha256":null,"created":"","modified":"","replicas":2}"#;
    let server = Server::start(|_| json(201, FILE)).await;
    let client = server.client(Credentials::Token("t".into()));
    for size in [Some(9), None] {
        let data = futures::stream::iter(["one", "two", "six"].map(|text| Ok(Bytes::from(text))));
        let file = client.upload(&Upload { path: "/a/b".into(), size }, data).await.unwrap();
        assert_eq!(file.path, "/a/b");
        let request = server.requests.lock().unwrap().pop().unwrap();
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let (path, file) =
            (body.find("name=\"path\"").unwrap(), body.find("name=\"file\"; filename=\"file\"").unwrap());
        assert!(path < file);
        let data: String = body[file..]
            .split("\r\n")
            .filter(|line| ["one", "two", "six", "onetwosix"].contains(line))
            .collect();
        assert_eq!(data, "onetwosix");
    }
}

#[tokio::test]
async fn an_upload_whose_source_fails_fails_with_its_error() {
    let server = Server::start(|_| json(201, "{}")).await;
    let client = server.client(Credentials::Token("t".into()));
    let broken = || futures::stream::iter([Ok(Bytes::from("some")), Err(Error::forbidden("the local file"))]);
    let error = client.upload(&Upload { path: "/a".into(), size: None }, broken()).await.unwrap_err();
    assert_eq!((error.kind(), error.subject()), (ErrorKind::Forbidden, "the local file"));
    // As long as it was said to be, or an error.
    for size in [1, 5] {
        let data = futures::stream::iter([Ok(Bytes::from("some"))]);
        let error = client.upload(&Upload { path: "/a".into(), size: Some(size) }, data).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stale, "{size}");
    }
}

#[tokio::test]
async fn reads_travel_in_the_compact_encoding() {
    let answer = ReadReply { version: 5, answers: Vec::new() };
    let sent = codec::encode(&answer).unwrap();
    let server = Server::start(move |_| reply(200, codec::MEDIA_TYPE, &sent)).await;
    let client = server.client(Credentials::Token("t".into()));
    assert_eq!(client.read(SessionId(7), &Read { wants: Vec::new() }).await.unwrap(), answer);
    let request = server.requests.lock().unwrap().pop().unwrap();
    assert_eq!(request.line, "POST /fs/v1/sessions/7/reads HTTP/1.1");
    assert!(request.head.contains(&format!("content-type: {}", codec::MEDIA_TYPE)));
    assert!(codec::decode::<Read>(&request.body).unwrap().wants.is_empty());
}

/// What a session is granted by a daemon that has such a socket.
fn grant(local: Option<LocalSocket>) -> SessionGrant {
    SessionGrant {
        session: SessionId(7),
        volume: VolumeId(1),
        key: VolumeKey([7; 32]),
        read_only: false,
        run: 1,
        version: 1,
        lease_ms: 15_000,
        usage: Usage::default(),
        inline_bytes: 0,
        short_circuit: None,
        local,
    }
}

#[tokio::test]
async fn requests_take_the_socket_of_this_machine_while_it_is_there() {
    let name = format!("tandemfs-test-{}", std::process::id());
    let local: Arc<OnceLock<LocalSocket>> = Arc::default();
    let socket = Arc::clone(&local);
    let server = Server::start(move |request| {
        if request.line.contains("/acks") {
            return reply(204, "text/plain", b"");
        }
        reply(201, codec::MEDIA_TYPE, &codec::encode(&grant(socket.get().cloned())).unwrap())
    })
    .await;
    let address = server.url.strip_prefix("http://").unwrap().parse().unwrap();
    local.set(LocalSocket { address, name: name.clone() }).unwrap();
    let listener = UnixListener::bind(format!("\0{name}")).unwrap();
    let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
    let by_socket = tokio::spawn({
        let seen = Arc::clone(&seen);
        async move {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                let request = read_request(&mut stream).await.unwrap();
                seen.lock().unwrap().push(request);
                stream.write_all(&reply(204, "text/plain", b"")).await.unwrap();
            }
        }
    });
    let client = server.client(Credentials::Token("secret".into()));
    let ack = Ack { number: 1, held: Vec::new() };
    client.ack(SessionId(7), &ack).await.unwrap();
    assert_eq!(server.lines().len(), 1, "before there is a session");
    let open = OpenSession { volume: None, read_only: false, client: String::new() };
    client.open_session(&open).await.unwrap();
    for _ in 0..2 {
        client.ack(SessionId(7), &ack).await.unwrap();
    }
    assert_eq!(server.lines().len(), 2);
    assert!(seen.lock().unwrap().iter().all(|request| request.token() == Some("secret")));
    // The daemon is gone, and another one is there in its place.
    by_socket.await.unwrap();
    client.ack(SessionId(7), &ack).await.unwrap();
    assert_eq!((server.lines().len(), seen.lock().unwrap().len()), (3, 2));
}

#[test]
fn a_socket_leads_to_the_daemon_that_has_it() {
    for (address, url, leads) in [
        ("127.0.0.1:5001", "http://127.0.0.1:5001", true),
        ("127.0.0.1:5001", "http://localhost:5001/path", true),
        ("[::1]:5001", "http://[::1]:5001", true),
        ("0.0.0.0:5001", "http://127.0.0.1:5001", true),
        ("127.0.0.1:80", "http://127.0.0.1", true),
        ("127.0.0.1:5001", "http://127.0.0.1:5002", false),
        ("127.0.0.1:5001", "http://127.0.0.2:5001", false),
        ("127.0.0.1:5001", "https://127.0.0.1:5001", false),
        ("10.0.0.1:5001", "http://127.0.0.1:5001", false),
        ("0.0.0.0:5001", "http://10.0.0.1:5001", false),
        ("0.0.0.0:5001", "http://example.org:5001", false),
    ] {
        let socket = LocalSocket { address: address.parse().unwrap(), name: String::new() };
        assert_eq!(socket.leads_to(&url.parse().unwrap()), leads, "{address} {url}");
    }
}

#[tokio::test]
async fn a_block_is_as_long_as_was_asked_for() {
    let server = Server::start(|_| reply(206, "application/octet-stream", b"0123")).await;
    let client = server.client(Credentials::Token("t".into()));
    let id = BlockId([1; 32]);
    assert_eq!(client.get_block(SessionId(7), &id, 4..8).await.unwrap(), "0123");
    assert!(server.requests.lock().unwrap()[0].head.contains("range: bytes=4-7"));
    assert_eq!(client.get_block(SessionId(7), &id, 4..9).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(client.get_block(SessionId(7), &id, 4..4).await.unwrap().is_empty());
}

#[tokio::test]
async fn events_are_cut_at_line_ends_wherever_the_pieces_end() {
    let heartbeats = "{\"event\":\"heartbeat\",\"number\":1}\n\n{\"event\":\"heartbeat\",\"number\":2}\n";
    let chunked = |cut: &str| {
        let chunks: String = heartbeats
            .as_bytes()
            .chunks(7)
            .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk)))
            .collect();
        format!(
            "HTTP/1.1 200 X\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{chunks}{cut}0\r\n\r\n"
        )
        .into_bytes()
    };
    let (whole, cut) = (chunked(""), chunked("5\r\n{\"eve\r\n"));
    let server =
        Server::start(move |request| if request.line.contains("/1/") { whole.clone() } else { cut.clone() })
            .await;
    let client = server.client(Credentials::Token("t".into()));
    let events: Vec<_> = client.events(SessionId(1)).await.unwrap().collect().await;
    let events: Vec<Event> = events.into_iter().map(Result::unwrap).collect();
    assert_eq!(events, [Event::Heartbeat { number: 1 }, Event::Heartbeat { number: 2 }]);
    let events: Vec<_> = client.events(SessionId(2)).await.unwrap().collect().await;
    assert_eq!(events.len(), 3);
    assert_eq!(events[2].as_ref().unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn names_in_paths_are_escaped() {
    let server = Server::start(|_| json(204, "")).await;
    let client = server.client(Credentials::Token("t".into()));
    client.delete_user("a/b?c#d e").await.unwrap();
    assert_eq!(server.lines(), ["DELETE /v1/users/a%2Fb%3Fc%23d%20e HTTP/1.1"]);
    for name in ["", ".", ".."] {
        assert_eq!(client.delete_user(name).await.unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert_eq!(server.lines().len(), 1);
}

#[test]
fn urls_are_checked() {
    for url in [
        "",
        "localhost:5001",
        "ftp://host",
        "http://",
        "http://u@host",
        "http://u:p@host",
        "http://host/?a",
        "http://host/#a",
    ] {
        assert!(Client::new(url, Credentials::None).is_err(), "{url}");
    }
    for (url, normal) in
        [("http://Host:80/", "http://host"), ("https://host:5001/tandem/", "https://host:5001/tandem")]
    {
        assert_eq!(Client::new(url, Credentials::None).unwrap().url(), normal);
    }
    assert!(Client::with_ca("https://host", Credentials::None, Some(b"no certificate")).is_err());
}
