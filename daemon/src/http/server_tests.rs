//! The server on real sockets, with clients that are slow, many, or ambiguous.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use tokio::time::Instant;

use super::serve;
use super::server::Serving;
use super::tests::Server;
use crate::settings::Settings;

/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);
const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";

/// A daemon that is reached over TCP.
pub(super) async fn listening(change: impl FnOnce(&mut Settings)) -> (Server, Serving) {
    let server = Server::start_with(change).await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let serving = serve(server.app.clone(), listener).await.unwrap();
    (server, serving)
}

pub(super) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Everything up to the end of the connection.
fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the connection stays open");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends a byte at a time until the other side has had enough or `PATIENCE` is over; returns the answer.
fn drip(mut stream: TcpStream) -> String {
    let begun = Instant::now();
    let mut reader = stream.try_clone().unwrap();
    reader.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut answer = [0; 4096];
    while begun.elapsed() < PATIENCE {
        if stream.write_all(b"x").is_err() {
            return String::new();
        }
        match reader.read(&mut answer) {
            Ok(length) => return String::from_utf8_lossy(&answer[..length]).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return String::new(),
        }
    }
    panic!("bytes are taken for as long as they come");
}

/// Whether a request on a connection of its own, from an address, is answered.
pub(super) fn is_served(from: [u8; 4], to: SocketAddr) -> Option<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((IpAddr::from(from), 0))).unwrap();
    let stream = tokio::runtime::Handle::current().block_on(socket.connect(to)).unwrap();
    let mut stream = stream.into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = [0; 12];
    let answered = stream.write_all(HEALTH).and_then(|()| stream.read_exact(&mut answer)).is_ok();
    (answered && answer == *b"HTTP/1.1 204").then_some(stream)
}

/// Waits for a connection that is served.
fn until_served(to: SocketAddr) {
    let begun = Instant::now();
    while is_served([127, 0, 0, 1], to).is_none() {
        assert!(begun.elapsed() < PATIENCE, "no place has become free");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Runs what blocks where it may.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_and_bodies_are_given_up() {
    let (_server, serving) = listening(|settings| {
        settings.header_timeout_s = 1;
        settings.idle_timeout_s = 1;
    })
    .await;
    let to = serving.address;
    let silent = blocking(move || rest(connect(to)));
    let head = blocking(move || {
        let mut stream = connect(to);
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ").unwrap();
        drip(stream)
    });
    let idle = blocking(move || {
        let mut stream = connect(to);
        stream.write_all(HEALTH).unwrap();
        rest(stream)
    });
    let body = blocking(move || {
        let mut stream = connect(to);
        let head = "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        drip(stream)
    });
    let (silent, head, idle, body) = tokio::join!(silent, head, idle, body);
    assert_eq!(silent, "");
    assert!(head.is_empty() || head.starts_with("HTTP/1.1 408"), "{head}");
    assert!(idle.starts_with("HTTP/1.1 204"), "{idle}");
    assert!(body.starts_with("HTTP/1.1 408") && body.contains("\"timed_out\""), "{body}");
    serving.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_a_client_that_first_sends_all_that_it_has() {
    let (_server, serving) = listening(|_| {}).await;
    let to = serving.address;
    let answer = blocking(move || {
        let mut stream = connect(to);
        let body = vec![b'x'; 100 << 20];
        let head = format!("POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&body).unwrap();
        rest(stream)
    })
    .await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    serving.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ends_with_its_answer_is_said_to() {
    let (_server, serving) = listening(|_| {}).await;
    let to = serving.address;
    let head_of_answer = move |path: &'static str, body: &'static str| {
        blocking(move || {
            let mut stream = connect(to);
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(head.as_bytes()).unwrap();
            let mut answer = [0; 2048];
            let length = stream.read(&mut answer).unwrap();
            String::from_utf8_lossy(&answer[..length]).to_ascii_lowercase()
        })
    };
    let refused = head_of_answer("/upload", "not read").await;
    assert!(
        refused.starts_with("http/1.1 401") && refused.contains("\r\nconnection: close\r\n"),
        "{refused}"
    );
    let read = head_of_answer("/login", r#"{"username":"a","password":"b"}"#).await;
    assert!(read.starts_with("http/1.1 401") && !read.contains("connection: close"), "{read}");
    serving.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stands_still_loses_its_place() {
    let (server, serving) = listening(|settings| {
        settings.max_connections = 1;
        settings.idle_timeout_s = 1;
    })
    .await;
    let to = serving.address;
    let token = server.login("admin", "admin123").await;
    let id = server.upload(&token, "large", 64 << 20).await["file_id"].as_str().unwrap().to_owned();
    blocking(move || {
        let mut reader = connect(to);
        let head = format!("GET /download/{id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
        reader.write_all(head.as_bytes()).unwrap();
        let mut status = [0; 12];
        reader.read_exact(&mut status).unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");
        until_served(to);
        drop(reader);
    })
    .await;
    serving.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_limited_in_all_and_by_address() {
    let (_server, serving) = listening(|settings| {
        settings.max_connections = 5;
        settings.max_connections_per_address = 3;
    })
    .await;
    let to = serving.address;
    blocking(move || {
        let (here, there) = ([127, 0, 0, 1], [127, 0, 0, 2]);
        let mut held: Vec<_> = (0..3).map(|_| is_served(here, to).expect("a place")).collect();
        assert!(is_served(here, to).is_none(), "a fourth from one address");
        held.extend((0..2).map(|_| is_served(there, to).expect("another address has places")));
        assert!(is_served(there, to).is_none(), "a sixth in all");
        held.truncate(2);
        until_served(to);
    })
    .await;
    serving.stop().await.unwrap();
}

/// What follows each ambiguous request: an answer to it would be one that the client did not ask for.
const SMUGGLED: &str = "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_requests_are_refused_and_their_connections_closed() {
    let (_server, serving) = listening(|_| {}).await;
    let to = serving.address;
    let json = r#"{"username":"a","password":"b"}"#;
    let (length, chunked) = (json.len(), format!("{:x}\r\n{json}\r\n0\r\n\r\n", json.len()));
    let post = |headers: &str, body: &str| {
        format!(
            "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}\r\n\r\n{body}"
        )
    };
    let encoded = |header: &str| post(header, &chunked);
    let sized = |header: &str| post(header, json);
    let chunk = |size: &str| post("Transfer-Encoding: chunked", &format!("{size}\r\n{json}\r\n0\r\n\r\n"));
    let get = |line: &str, headers: &str| format!("{line}\r\n{headers}\r\n\r\n");
    let line = "GET /healthz HTTP/1.1";
    let many: Vec<String> = (0..101).map(|number| format!("X-{number}: x")).collect();
    let requests = [
        // Two lengths, or one that is none.
        sized(&format!("Content-Length: {length}\r\nContent-Length: 0")),
        sized(&format!("Content-Length: {length}, 0")),
        sized(&format!("Content-Length: {length}, {length}")),
        sized(&format!("Content-Length: +{length}")),
        sized("Content-Length: -1"),
        sized("Content-Length: 0x1f"),
        sized("Content-Length: 3 1"),
        sized("Content-Length: 99999999999999999999"),
        sized("Content-Length: "),
        sized(&format!("Content-Length : {length}")),
        // Encodings that another program may not know, or may know differently.
        encoded("Transfer-Encoding : chunked"),
        encoded("Transfer-Encoding: xchunked"),
        encoded("Transfer-Encoding: identity"),
        encoded("Transfer-Encoding: chunked, identity"),
        encoded("Transfer-Encoding: identity, chunked"),
        encoded("Transfer-Encoding: gzip, chunked"),
        encoded("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
        encoded("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"),
        encoded("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        encoded("Transfer-Encoding: \"chunked\""),
        encoded("Transfer-Encoding: \x0bchunked"),
        encoded("Transfer-Encoding:\r\n chunked"),
        encoded("Transfer-Encoding: chunked").replace("HTTP/1.1", "HTTP/1.0"),
        // Chunks that do not say clearly where they end.
        chunk("-1"),
        chunk("0x1f"),
        chunk("fffffffffffffffff"),
        chunk("1f;a\n=b"),
        chunk("1"),
        post("Transfer-Encoding: chunked", &format!("{length:x}\n{json}\n0\n\n")),
        // Lines that do not say clearly where they end, and heads that are none.
        get(line, "Host: x\r\nX-Folded: a\r\n b"),
        get(line, " Host: x"),
        get(line, "Host: x\rX-More: a"),
        get(line, "Host: x\r\nX-Nul: a\0b"),
        get(line, "Host: x\r\nTransfer-Encoding"),
        get(line, "Host: x\r\n: x"),
        get(line, "Host: x\r\nX More: a"),
        get("GET  /healthz  HTTP/1.1", "Host: x"),
        get("GET\t/healthz\tHTTP/1.1", "Host: x"),
        get("GET /healthz HTTP/1.2", "Host: x"),
        get("GET /healthz", "Host: x"),
        // More than one place to go, or none.
        get(line, "X-Host: x"),
        get(line, "Host: x\r\nHost: x"),
        get(line, "Host: x y"),
        get(line, "Host: x/../y"),
    ];
    let too_much = [
        get(line, &format!("Host: x\r\n{}", many.join("\r\n"))),
        get(line, &format!("Host: x\r\nX-Long: {}", "x".repeat(70_000))),
    ];
    let requests = requests.into_iter().map(|request| (request, "400"));
    let requests = requests.chain(too_much.into_iter().map(|request| (request, "431")));
    let answers = requests.map(|(request, expected)| {
        blocking(move || {
            let mut stream = connect(to);
            // The other side may close before it has read all.
            let _ = stream.write_all(format!("{request}{SMUGGLED}").as_bytes());
            (request, expected, rest(stream))
        })
    });
    for (request, expected, answer) in futures::future::join_all(answers).await {
        let shown = &request[..request.len().min(300)];
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{shown:?}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{shown:?}: {answer:?}");
    }
    // A length beside an encoding: hyper goes by the encoding and closes, as RFC 9112, section 6.3, allows.
    for headers in
        ["Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4"]
    {
        let request = encoded(headers) + SMUGGLED;
        let answer = blocking(move || {
            let mut stream = connect(to);
            stream.write_all(request.as_bytes()).unwrap();
            rest(stream)
        })
        .await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
    // A bare LF ends a line of a head, as RFC 9112, section 2.2, allows (docs/security.md): it is never a part of a value, so that
    // what it hides from another program counts here.
    let hidden = |header: &str| encoded(&format!("X-Hides: a\n{header}")) + SMUGGLED;
    for (request, expected) in [
        (hidden("Transfer-Encoding: chunked\r\nContent-Length: 4"), "401"),
        (hidden("Transfer-Encoding: identity"), "400"),
        (get(line, "Host: x\nHost: x") + SMUGGLED, "400"),
        (get(line, "Host: x\nX-More : a") + SMUGGLED, "400"),
    ] {
        let shown = request.clone();
        let answer = blocking(move || {
            let mut stream = connect(to);
            let _ = stream.write_all(request.as_bytes());
            rest(stream)
        })
        .await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{shown:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{shown:?}: {answer}");
    }
    serving.stop().await.unwrap();
}
