//! Requests that are wrong, claim what is not so, or are too slow or too many.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Request, StatusCode};
use serde_json::json;
use tower::ServiceExt as _;

use super::{Answer, Server};
use crate::http::limits;

#[tokio::test]
async fn bad_requests_get_problems() {
    let server = Server::start().await;
    let (admin, _) = server.users().await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let big = format!("{{\"username\":\"{}\"}}", "a".repeat(2 << 20));
    let json = "application/json";
    let cases: Vec<(&str, &str, &str, Vec<u8>, u16)> = vec![
        ("POST", "/login", json, b"{".to_vec(), 400),
        ("POST", "/login", json, b"".to_vec(), 400),
        ("POST", "/login", json, br#"["admin", "admin123"]"#.to_vec(), 400),
        ("POST", "/login", json, b"[1e400]".to_vec(), 400),
        ("POST", "/login", json, deep.into_bytes(), 400),
        ("POST", "/login", json, big.into_bytes(), 413),
        ("POST", "/login", json, b"\xef\xbb\xbf{}".to_vec(), 400),
        ("POST", "/login", json, b"{\"username\":\"\xff\xfe\",\"password\":\"x\"}".to_vec(), 400),
        ("POST", "/login", json, br#"{"username":1,"password":"x"}"#.to_vec(), 400),
        ("POST", "/login", json, br#"{"username":"a"}"#.to_vec(), 400),
        ("POST", "/login", json, br#"{"username":"a","username":"b","password":"x"}"#.to_vec(), 400),
        ("POST", "/login", json, br#"{"username":"a","password":"x","role":"admin"}"#.to_vec(), 400),
        ("POST", "/login", "text/plain", br#"{"username":"a","password":"x"}"#.to_vec(), 415),
        ("POST", "/login", "application/x-www-form-urlencoded", b"username=a&password=x".to_vec(), 415),
        ("GET", "/login", json, Vec::new(), 405),
        ("PUT", "/v1/users", json, Vec::new(), 405),
        ("TRACE", "/status", json, Vec::new(), 405),
        ("OPTIONS", "/status", json, Vec::new(), 405),
        ("GET", "/nowhere", json, Vec::new(), 404),
        ("GET", "/v1/users/../../etc/passwd", json, Vec::new(), 404),
        ("GET", "/v1/users/%ff", json, Vec::new(), 400),
        ("GET", "/v1/users/nosuch", json, Vec::new(), 404),
        ("GET", "/v1/users?limit=-1", json, Vec::new(), 400),
        ("GET", "/v1/users?limit=0", json, Vec::new(), 400),
        ("GET", "/v1/users?limit=1000000000", json, Vec::new(), 400),
        ("GET", "/v1/users?limit=99999999999999999999", json, Vec::new(), 400),
        ("GET", "/v1/users?offset=1", json, Vec::new(), 400),
        ("GET", "/status?token=x", json, Vec::new(), 400),
        ("GET", "/status?a=b&Access_Token=x", json, Vec::new(), 400),
        ("GET", "/v1/jobs/x", json, Vec::new(), 404),
        ("GET", "/v1/jobs/999999", json, Vec::new(), 404),
        ("POST", "/v1/jobs", json, br#"{"kind":"dance"}"#.to_vec(), 400),
        ("POST", "/v1/jobs", json, br#"{"kind":"repair_node"}"#.to_vec(), 400),
        ("POST", "/v1/jobs", json, br#"{"kind":"collect","node_id":1}"#.to_vec(), 400),
        ("POST", "/admin/system/fail-node/99", json, b"".to_vec(), 404),
        ("POST", "/admin/system/fail-node/x", json, b"".to_vec(), 404),
        ("POST", "/admin/system/fail-node/1", json, br#"{"mode":"explode"}"#.to_vec(), 400),
        ("POST", "/admin/system/repair-node/1?wait=perhaps", json, b"".to_vec(), 400),
        ("POST", "/admin/system/repair-node/99", json, b"".to_vec(), 404),
        (
            "POST",
            "/register",
            json,
            br#"{"username":"bob","password":"a good long password","id":1}"#.to_vec(),
            400,
        ),
        (
            "POST",
            "/register",
            json,
            br#"{"username":"bob","password":"a good long password","role":"root"}"#.to_vec(),
            400,
        ),
        (
            "POST",
            "/register",
            json,
            br#"{"username":"bob","password":"a good long password","quota_bytes":-1}"#.to_vec(),
            400,
        ),
        ("POST", "/register", json, br#"{"username":"Bob","password":"a good long password"}"#.to_vec(), 400),
        ("POST", "/register", json, br#"{"username":"bob","password":"password"}"#.to_vec(), 400),
        (
            "POST",
            "/register",
            json,
            br#"{"username":"alice","password":"a good long password"}"#.to_vec(),
            409,
        ),
        ("PATCH", "/v1/users/alice", json, br#"{"user_id":1}"#.to_vec(), 400),
        ("PATCH", "/v1/users/alice", json, br#"{"username":"eve"}"#.to_vec(), 400),
        ("POST", "/v1/volumes", json, br#"{"name":"x","owner":1}"#.to_vec(), 400),
        ("POST", "/v1/volumes", json, br#"{"name":"Team A"}"#.to_vec(), 400),
        ("POST", "/v1/volumes", json, br#"{"name":"x","quota_bytes":-1}"#.to_vec(), 400),
        ("GET", "/v1/volumes?limit=0", json, Vec::new(), 400),
        ("GET", "/v1/volumes?limit=1001", json, Vec::new(), 400),
        ("GET", "/v1/volumes?offset=1", json, Vec::new(), 400),
        ("GET", "/v1/volumes/nosuch", json, Vec::new(), 404),
        ("PATCH", "/v1/volumes/nosuch", json, br#"{"name":"y"}"#.to_vec(), 400),
        ("PATCH", "/v1/volumes/nosuch", json, br#"{"quota_bytes":1}"#.to_vec(), 404),
        ("DELETE", "/v1/volumes/nosuch", json, Vec::new(), 404),
        ("GET", "/v1/volumes/nosuch/grants", json, Vec::new(), 404),
        ("GET", "/v1/volumes/nosuch/grants?cursor=x", json, Vec::new(), 400),
        ("PUT", "/v1/volumes/nosuch/grants/alice", json, br#"{"access":"read"}"#.to_vec(), 404),
        ("PUT", "/v1/volumes/nosuch/grants/nosuch", json, br#"{"access":"read"}"#.to_vec(), 404),
        ("PUT", "/v1/volumes/nosuch/grants/alice", json, br#"{"access":"own"}"#.to_vec(), 400),
        ("PUT", "/v1/volumes/nosuch/grants/alice", json, br#"{"access":"read","until":1}"#.to_vec(), 400),
        ("DELETE", "/v1/volumes/nosuch/grants/alice", json, Vec::new(), 404),
        ("POST", "/v1/tokens", json, br#"{"name":""}"#.to_vec(), 400),
        ("POST", "/v1/tokens", json, br#"{"name":"x","user":"alice"}"#.to_vec(), 400),
        ("DELETE", "/v1/tokens/nosuch", json, Vec::new(), 404),
    ];
    for (method, path, kind, body, status) in cases {
        let shown = format!("{method} {path} {:?}", String::from_utf8_lossy(&body[..body.len().min(80)]));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {admin}"))
            .header("content-type", kind)
            .body(Body::from(body))
            .unwrap();
        let answer = server.send(request).await;
        assert_eq!(answer.status.as_u16(), status, "{shown}: {}", String::from_utf8_lossy(&answer.body));
        answer.problem();
        assert_eq!(answer.status == 405, answer.headers.contains_key("allow"), "{shown}");
        let text = String::from_utf8_lossy(&answer.body);
        assert!(!text.contains("src/") && !text.contains("panicked"), "{text}");
    }
}

#[tokio::test]
async fn encoded_bodies_foreign_addresses_and_ids_of_requests_are_not_believed() {
    let server = Server::start().await;
    let login = |headers: &[(&str, &str)], peer: &str, password: &str| {
        let mut request = Request::post("/login").header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = json!({"username": "admin", "password": password}).to_string();
        let peer: SocketAddr = peer.parse().unwrap();
        request.extension(ConnectInfo(peer)).body(Body::from(body)).unwrap()
    };
    let encoded = server.send(login(&[("content-encoding", "gzip")], "127.0.0.1:1", "admin123")).await;
    assert_eq!((encoded.status.as_u16(), encoded.problem().as_str()), (415, "unsupported_media"));
    for headers in [
        vec![],
        vec![("x-forwarded-for", "127.0.0.1"), ("forwarded", "for=127.0.0.1"), ("host", "localhost")],
    ] {
        let away = server.send(login(&headers, "192.0.2.1:1", "admin123")).await;
        assert_eq!((away.status.as_u16(), away.problem().as_str()), (403, "default_password"));
    }
    let mut refused = 0;
    for n in 0..12 {
        let forged = format!("10.0.0.{n}");
        let answer = server.send(login(&[("x-forwarded-for", &forged)], "192.0.2.2:1", "wrong")).await;
        if answer.status == 429 {
            assert!(answer.headers.contains_key("retry-after"));
            refused += 1;
        }
    }
    assert_eq!(refused, 2);
    let named = server.send(login(&[("x-request-id", "mine-1")], "127.0.0.1:1", "wrong")).await;
    assert_eq!(named.headers["x-request-id"], "mine-1");
    let named = server.send(login(&[("x-request-id", "a b\tc")], "127.0.0.1:1", "wrong")).await;
    assert_ne!(named.headers["x-request-id"], "a b\tc");
}

#[tokio::test(start_paused = true)]
async fn panics_slow_bodies_and_crowds_get_answers() {
    use axum::middleware;
    use axum::routing::{get, post};
    let limits = Arc::new(limits::Limits::new(1, std::time::Duration::from_secs(30)));
    let (wait, go) = tokio::sync::oneshot::channel::<()>();
    let go = Arc::new(tokio::sync::Mutex::new(Some(go)));
    let router = Router::new()
        .route("/panic", get(|| async { panic!("a secret detail") as StatusCode }))
        .route("/body", post(|body: String| async move { body }))
        .route("/hang", get(std::future::pending::<()>))
        .route(
            "/wait",
            get(move || async move {
                if let Some(go) = go.lock().await.take() {
                    let _ = go.await;
                }
            }),
        )
        .route("/healthz", get(|| async {}))
        .layer(middleware::from_fn_with_state(limits, limits::apply));
    let send = |mut request: Request<Body>| {
        let router = router.clone();
        request.headers_mut().insert("host", HeaderValue::from_static("localhost"));
        async move {
            let (parts, body) = router.oneshot(request).await.unwrap().into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec();
            Answer { status: parts.status, headers: parts.headers, body }
        }
    };
    let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();

    let answer = send(get("/panic")).await;
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (500, "internal"));
    assert!(!String::from_utf8_lossy(&answer.body).contains("secret"));
    assert_eq!(send(get("/healthz")).await.status, 200);

    let answer = send(get("/hang")).await;
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (408, "timed_out"));

    // One byte each ten seconds: never silent for long, and still too slow.
    let drip = futures::stream::unfold((), |()| async {
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        Some((Ok::<_, std::io::Error>("x"), ()))
    });
    let begun = tokio::time::Instant::now();
    let answer = send(Request::post("/body").body(Body::from_stream(drip)).unwrap()).await;
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (408, "timed_out"));
    assert!(begun.elapsed().as_secs() <= 31, "{:?}", begun.elapsed());

    let waiting = tokio::spawn(send(get("/wait")));
    tokio::task::yield_now().await;
    let answer = send(get("/wait")).await;
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (503, "unavailable"));
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(send(get("/healthz")).await.status, 200, "the watchers are still answered");
    drop(wait);
    assert_eq!(waiting.await.unwrap().status, 200);
    assert_eq!(send(get("/wait")).await.status, 200);
}
