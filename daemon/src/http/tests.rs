use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use serde_json::{Value, json};
use tandemfs::api::problem::Problem;
use tandemfs::clock::SystemClock;
use tandemfs::id::NodeId;
use tower::ServiceExt as _;

use super::{limits, router};
use crate::blocks;
use crate::daemon::{App, Daemon, Parts};
use crate::meta;
use crate::replicate::NodeSetup;
use crate::settings::Settings;

const PASSWORD: &str = "a good long password";

pub(super) struct Server {
    pub(super) app: App,
    router: Router,
    _directory: tempfile::TempDir,
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{:?}", String::from_utf8_lossy(&self.body)))
    }

    /// Checks that it is a problem as the API promises them, and returns its code.
    pub(super) fn problem(&self) -> String {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{}", self.status);
        let problem: Problem = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem.status, self.status.as_u16());
        assert_eq!(problem.request_id.as_deref().unwrap(), self.headers["x-request-id"]);
        assert_eq!(self.status == 401, self.headers.contains_key("www-authenticate"));
        problem.code
    }
}

impl Server {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(super) async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = Settings { data: directory.path().to_owned(), ..Settings::default() };
        change(&mut settings);
        let nodes = (1..=3).map(|number| NodeSetup {
            id: NodeId(number),
            kind: "memory".to_owned(),
            location: String::new(),
            zone: number.to_string(),
            weight: 1,
            store: Arc::new(blocks::memory::MemoryStore::new()),
        });
        let parts = Parts {
            meta: Arc::new(meta::memory::MemoryStore::new()),
            nodes: nodes.collect(),
            clock: Arc::new(SystemClock),
            first_password: None,
            lock: None,
        };
        let app = Daemon::start(settings, parts).await.unwrap();
        Self { router: router(app.clone()), app, _directory: directory }
    }

    async fn send(&self, mut request: Request<Body>) -> Answer {
        let peer: SocketAddr = "127.0.0.1:1".parse().unwrap();
        request.extensions_mut().entry_or(ConnectInfo(peer));
        request.headers_mut().entry("host").or_insert(HeaderValue::from_static("localhost"));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1 << 24).await.unwrap().to_vec();
        assert_eq!(parts.headers["x-content-type-options"], "nosniff");
        assert!(parts.headers.contains_key("cache-control"));
        assert!(!parts.headers.contains_key("access-control-allow-origin"));
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub(super) async fn call(&self, method: Method, path: &str, token: &str, body: Option<Value>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let body = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        self.send(request.body(body).unwrap()).await
    }

    pub(super) async fn login(&self, username: &str, password: &str) -> String {
        let body = json!({"username": username, "password": password});
        let answer = self.call(Method::POST, "/login", "", Some(body)).await;
        assert_eq!(answer.status, 200, "{}", answer.json());
        answer.json()["token"].as_str().unwrap().to_owned()
    }

    /// Uploads so many bytes; returns the file.
    pub(super) async fn upload(&self, token: &str, name: &str, size: usize) -> Value {
        let head =
            format!("--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n");
        let body = [head.as_bytes(), &vec![b'x'; size], b"\r\n--b--\r\n"].concat();
        let request = Request::post("/upload")
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "multipart/form-data; boundary=b");
        let answer = self.send(request.body(Body::from(body)).unwrap()).await;
        assert_eq!(answer.status, 201, "{}", answer.json());
        answer.json()
    }

    /// The admin's token and that of a new plain user.
    pub(super) async fn users(&self) -> (String, String) {
        let admin = self.login("admin", "admin123").await;
        let body = json!({"username": "alice", "password": PASSWORD});
        let made = self.call(Method::POST, "/register", &admin, Some(body)).await;
        assert_eq!(made.status, 201, "{}", made.json());
        (admin, self.login("alice", PASSWORD).await)
    }

    async fn document(&self) -> Value {
        let answer = self.call(Method::GET, "/openapi.json", "", None).await;
        assert_eq!(answer.status, 200);
        answer.json()
    }
}

trait EntryOr {
    fn entry_or<T: Clone + Send + Sync + 'static>(&mut self, value: T);
}

impl EntryOr for axum::http::Extensions {
    fn entry_or<T: Clone + Send + Sync + 'static>(&mut self, value: T) {
        if self.get::<T>().is_none() {
            self.insert(value);
        }
    }
}

/// What only admins may ask for; everything else that needs a login is for every user.
const FOR_ADMINS: &[&str] = &[
    "POST /register",
    "GET /v1/users",
    "GET /v1/users/{name}",
    "PATCH /v1/users/{name}",
    "DELETE /v1/users/{name}",
    "POST /v1/volumes",
    "PATCH /v1/volumes/{name}",
    "DELETE /v1/volumes/{name}",
    "GET /v1/volumes/{name}/grants",
    "PUT /v1/volumes/{name}/grants/{username}",
    "DELETE /v1/volumes/{name}/grants/{username}",
    "GET /admin/system",
    "GET /admin/system/nodes",
    "POST /admin/system/fail-node/{node_id}",
    "POST /admin/system/repair-node/{node_id}",
    "GET /v1/jobs",
    "POST /v1/jobs",
    "GET /v1/jobs/{job_id}",
    "DELETE /v1/jobs/{job_id}",
    "POST /v1/jobs/{job_id}/cancel",
    "GET /v1/sessions",
    "GET /metrics",
    "GET /v1/keys",
    "POST /v1/keys",
    "DELETE /v1/keys/{key_id}",
    "GET /v1/audit",
    "GET /v1/audit/verify",
];
const FOR_ALL: &[&str] =
    &["POST /login", "GET /healthz", "GET /readyz", "GET /openapi.json", "GET /docs", "GET /docs/errors"];

/// Every operation of the document: method, path with its parameters filled in, and its name.
fn operations(document: &Value) -> Vec<(Method, String, String)> {
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let mut filled = path.clone();
            while let (Some(from), Some(to)) = (filled.find('{'), filled.find('}')) {
                filled.replace_range(from..=to, "1");
            }
            operations.push((method.clone(), filled, format!("{method} {path}")));
        }
    }
    operations
}

#[tokio::test]
async fn every_operation_asks_who_is_there_and_what_they_may_do() {
    let server = Server::start().await;
    let (admin, alice) = server.users().await;
    let body = json!({"username": "gone", "password": PASSWORD});
    server.call(Method::POST, "/register", &admin, Some(body)).await;
    let gone = server.login("gone", PASSWORD).await;
    assert_eq!(server.call(Method::DELETE, "/v1/users/gone", &admin, None).await.status, 204);

    let operations = operations(&server.document().await);
    let names: BTreeSet<&str> = operations.iter().map(|(_, _, name)| name.as_str()).collect();
    for name in FOR_ADMINS.iter().chain(FOR_ALL) {
        assert!(names.contains(name), "{name} is not in the document");
    }
    for (method, path, name) in &operations {
        if FOR_ALL.contains(&name.as_str()) {
            continue;
        }
        for token in ["", "rubbish", "tfs_rubbish", gone.as_str()] {
            let answer = server.call(method.clone(), path, token, None).await;
            assert_eq!(answer.status, 401, "{name} with {token:?}");
            if *method != Method::HEAD {
                assert_eq!(answer.problem(), "unauthenticated");
            }
        }
        let for_admins = FOR_ADMINS.contains(&name.as_str());
        if for_admins {
            let answer = server.call(method.clone(), path, &alice, None).await;
            assert_eq!(answer.status, 403, "{name}");
            assert_eq!(answer.problem(), "forbidden");
        } else if !name.contains("/v1/logout") {
            let answer = server.call(method.clone(), path, &alice, None).await;
            assert!(answer.status != 401 && answer.status != 403, "{name}: {}", answer.status);
        }
        assert!(for_admins || !name.contains("/admin/"), "{name} has no row");
    }
}

#[test]
fn every_route_is_in_the_document() {
    // Routes come only from `routes!`, which puts them there; `route` and `nest` would not.
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http");
    for file in std::fs::read_dir(sources).unwrap().map(|entry| entry.unwrap().path()) {
        let is_source = file.extension().is_some_and(|end| end == "rs") && !file.ends_with("tests.rs");
        let text = if is_source { std::fs::read_to_string(&file).unwrap() } else { continue };
        for call in [".route(", ".route_service(", ".nest(", ".nest_service(", ".fallback_service("] {
            assert!(!text.contains(call), "{} calls {call}", file.display());
        }
    }
}

#[tokio::test]
async fn the_document_is_whole_and_the_page_shows_it() {
    let server = Server::start().await;
    let document = server.document().await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let text = document.to_string();
    let references = text.split("\"$ref\":\"#/components/schemas/").skip(1);
    let missing: BTreeSet<_> = references
        .map(|reference| reference.split('"').next().unwrap())
        .filter(|name| !document["components"]["schemas"][*name].is_object())
        .collect();
    assert!(missing.is_empty(), "referred to and not there: {missing:?}");
    for path in ["/docs", "/docs/errors"] {
        let page = server.call(Method::GET, path, "", None).await;
        assert!(
            page.headers["content-security-policy"]
                .to_str()
                .unwrap()
                .starts_with("default-src 'none'; style-src 'sha256-")
        );
        let page = String::from_utf8(page.body).unwrap();
        assert!(
            page.contains("/admin/system/repair-node/{node_id}") && page.contains("id=\"quota_exceeded\"")
        );
        assert!(!page.contains("<script") && !page.contains("://"), "nothing from elsewhere");
    }
}

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

#[tokio::test]
async fn a_user_changes_the_own_password_and_nobody_elses() {
    let server = Server::start().await;
    let (admin, alice) = server.users().await;
    let api = server.call(Method::POST, "/v1/tokens", &alice, Some(json!({"name": "ci"}))).await;
    assert_eq!(api.status, 201);
    let api = api.json()["token"].as_str().unwrap().to_owned();
    assert_eq!(server.call(Method::GET, "/v1/me", &api, None).await.json()["username"], "alice");
    let wrong = json!({"current": "no such password", "new": "another password"});
    assert_eq!(server.call(Method::POST, "/v1/me/password", &api, Some(wrong)).await.status, 403);
    for path in ["/v1/tokens?user=admin", "/v1/tokens?user=nosuch"] {
        assert_eq!(server.call(Method::GET, path, &alice, None).await.status, 403);
    }
    let seen = server.call(Method::GET, "/v1/tokens?user=alice", &admin, None).await.json();
    assert_eq!(seen["tokens"][0]["name"], "ci");
    assert!(!seen.to_string().contains(&api));
    let right = json!({"current": PASSWORD, "new": "another password"});
    assert_eq!(server.call(Method::POST, "/v1/me/password", &alice, Some(right)).await.status, 204);
    for token in [&alice, &api] {
        assert_eq!(server.call(Method::GET, "/v1/me", token, None).await.status, 401);
    }
    let again = server.login("alice", "another password").await;
    assert_eq!(server.call(Method::POST, "/v1/logout", &again, None).await.status, 204);
    assert_eq!(server.call(Method::GET, "/v1/me", &again, None).await.status, 401);
}

#[tokio::test]
async fn admins_see_the_warning_and_the_system_and_others_do_not() {
    let server = Server::start().await;
    let (admin, alice) = server.users().await;
    let status = server.call(Method::GET, "/status", &admin, None).await.json();
    assert_eq!(status["status"], "healthy");
    assert_eq!(status["nodes"], json!({"total": 3, "healthy": 3, "failed": 0}));
    assert_eq!(status["warnings"].as_array().unwrap().len(), 1);
    assert!(server.call(Method::GET, "/status", &alice, None).await.json().get("warnings").is_none());
    let system = server.call(Method::GET, "/admin/system", &admin, None).await.json();
    assert_eq!(system["totals"]["users"], 2);
    assert_eq!(system["configuration"]["replicas"], 2);
    let quota = json!({"quota_bytes": 1000, "quota_files": 10});
    let changed = server.call(Method::PATCH, "/v1/users/alice", &admin, Some(quota)).await.json();
    assert_eq!((changed["quota_bytes"].as_u64(), changed["quota_files"].as_u64()), (Some(1000), Some(10)));

    let failed =
        server.call(Method::POST, "/admin/system/fail-node/2", &admin, Some(json!({"mode": "wipe"}))).await;
    assert_eq!((failed.status.as_u16(), failed.json()["state"].as_str()), (200, Some("failed")));
    let status = server.call(Method::GET, "/status", &alice, None).await.json();
    assert_eq!((status["status"].as_str(), status["nodes"]["failed"].as_u64()), (Some("degraded"), Some(1)));
    let started = server.call(Method::POST, "/admin/system/repair-node/2?wait=false", &admin, None).await;
    assert_eq!(started.status, 202);
    let job = format!("/v1/jobs/{}", started.json()["job_id"]);
    assert_eq!(server.call(Method::GET, &job, &admin, None).await.json()["kind"], "repair_node");
    let repaired = server.call(Method::POST, "/admin/system/repair-node/2", &admin, None).await;
    assert_eq!((repaired.status.as_u16(), repaired.json()["state"].as_str()), (200, Some("healthy")));
    server.app.stop().await;
}

#[tokio::test]
async fn an_upload_says_how_many_copies_there_are() {
    let server = Server::start().await;
    let (admin, alice) = server.users().await;
    for (node, copies) in [(1, 2), (2, 1)] {
        let path = format!("/admin/system/fail-node/{node}");
        assert_eq!(server.call(Method::POST, &path, &admin, None).await.status, 200);
        let file = server.upload(&alice, &format!("after-{node}"), 5 << 20).await;
        assert_eq!(file["replicas"], copies, "{file}");
        let path = format!("/files/{}", file["file_id"].as_str().unwrap());
        assert_eq!(server.call(Method::GET, &path, &alice, None).await.json()["replicas"], copies);
    }
    assert_eq!(server.upload(&alice, "empty", 0).await["replicas"], 2, "nothing lacks a copy");
}

#[tokio::test]
async fn health_needs_no_login_and_readiness_needs_nodes() {
    let server = Server::start_with(|settings| settings.min_replicas = 2).await;
    let (admin, _) = server.users().await;
    assert_eq!(server.call(Method::GET, "/healthz", "", None).await.status, 204);
    assert_eq!(server.call(Method::GET, "/readyz", "", None).await.status, 204);
    for node in [1, 2] {
        let path = format!("/admin/system/fail-node/{node}");
        assert_eq!(server.call(Method::POST, &path, &admin, None).await.status, 200);
    }
    let answer = server.call(Method::GET, "/readyz", "", None).await;
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (503, "unavailable"));
    assert_eq!(server.call(Method::GET, "/healthz", "", None).await.status, 204);
    let head = server.call(Method::HEAD, "/status", "", None).await;
    assert_eq!(head.status, 401);
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

#[tokio::test]
async fn shared_volumes_are_made_by_admins_and_known_to_those_who_have_a_grant() {
    let server = Server::start().await;
    let (admin, alice) = server.users().await;
    let call = async |method: Method, path: &str, token: &str, body: Option<Value>, status: u16| {
        let answer = server.call(method.clone(), path, token, body).await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.status, status, "{method} {path}: {text}");
        serde_json::from_str::<Value>(&text).unwrap_or_default()
    };
    for name in ["team", "other", "third"] {
        let body = json!({"name": name, "quota_bytes": 1000});
        let made = call(Method::POST, "/v1/volumes", &admin, Some(body), 201).await;
        assert_eq!(
            (&made["name"], &made["access"], &made["quota_bytes"]),
            (&json!(name), &Value::Null, &json!(1000))
        );
    }
    call(Method::POST, "/v1/volumes", &admin, Some(json!({"name": "team"})), 409).await;

    // Without a grant it is not there, for an admin's mount neither.
    let mount = json!({"volume": "team", "read_only": false, "client": "test"});
    for token in [&alice, &admin] {
        call(Method::POST, "/fs/v1/sessions", token, Some(mount.clone()), 404).await;
    }
    call(Method::GET, "/v1/volumes/team", &alice, None, 404).await;
    assert_eq!(call(Method::GET, "/v1/volumes", &alice, None, 200).await["volumes"], json!([]));
    let first = server.call(Method::GET, "/v1/volumes?limit=2", &admin, None).await;
    assert_eq!(first.headers["link"], "</v1/volumes?limit=2&cursor=team>; rel=\"next\"");
    let (first, rest) =
        (first.json(), call(Method::GET, "/v1/volumes?limit=2&cursor=team", &admin, None, 200).await);
    let names = |page: &Value| {
        page["volumes"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!((names(&first), names(&rest)), (vec![json!("other"), json!("team")], vec![json!("third")]));
    assert_eq!((&first["next_cursor"], &rest["next_cursor"]), (&json!("team"), &Value::Null));

    let grant = "/v1/volumes/team/grants/alice";
    let read = Some(json!({"access": "read"}));
    let granted = call(Method::PUT, grant, &admin, read, 200).await;
    assert_eq!(granted, json!({"username": "alice", "access": "read"}));
    let seen = call(Method::GET, "/v1/volumes", &alice, None, 200).await;
    assert_eq!(names(&seen), [json!("team")]);
    assert_eq!(seen["volumes"][0]["access"], "read");
    assert_eq!(
        call(Method::GET, "/v1/volumes/team/grants", &admin, None, 200).await["grants"],
        json!([granted])
    );

    let changed = call(Method::PATCH, "/v1/volumes/team", &admin, Some(json!({"quota_files": 7})), 200).await;
    assert_eq!((&changed["quota_bytes"], &changed["quota_files"]), (&json!(1000), &json!(7)));

    // What the kernel would keep from coming is refused here as well.
    let session = call(Method::POST, "/fs/v1/sessions", &alice, Some(mount.clone()), 201).await;
    assert_eq!(session["read_only"], true);
    let path = |id: &Value, rest: &str| format!("/fs/v1/sessions/{id}/{rest}");
    let id = session["session"].clone();
    let time = json!({"seconds": 1, "nanos": 0});
    let create = json!({"create": {"parent": 1, "name": "d", "ino": 2, "node": "directory", "mode": 493,
        "by": {"uid": 0, "gid": 0}, "time": time}});
    let batch = json!({"sequence": 1, "mutations": [create], "held": []});
    let refused = server.call(Method::POST, &path(&id, "batches"), &alice, Some(batch)).await;
    assert_eq!((refused.status.as_u16(), refused.problem().as_str()), (403, "read_only"));
    let refused = server.call(Method::POST, &path(&id, "inodes"), &alice, None).await;
    assert_eq!((refused.status.as_u16(), refused.problem().as_str()), (403, "read_only"));
    let refused =
        server.call(Method::PUT, &path(&id, &format!("blocks/{}", "0".repeat(64))), &alice, None).await;
    assert_eq!((refused.status.as_u16(), refused.problem().as_str()), (403, "read_only"));
    let usage = json!({"wants": [{"record": "usage"}]});
    call(Method::POST, &path(&id, "reads"), &alice, Some(usage.clone()), 200).await;

    call(Method::DELETE, grant, &admin, None, 204).await;
    call(Method::DELETE, grant, &admin, None, 404).await;
    call(Method::POST, &path(&id, "reads"), &alice, Some(usage.clone()), 410).await;
    call(Method::POST, "/fs/v1/sessions", &alice, Some(mount.clone()), 404).await;

    call(Method::PUT, grant, &admin, Some(json!({"access": "write"})), 200).await;
    let session = call(Method::POST, "/fs/v1/sessions", &alice, Some(mount), 201).await;
    assert_eq!(session["read_only"], false);
    call(Method::DELETE, "/v1/volumes/team", &admin, None, 204).await;
    call(Method::POST, &path(&session["session"], "reads"), &alice, Some(usage), 410).await;
    assert_eq!(call(Method::GET, "/v1/volumes", &alice, None, 200).await["volumes"], json!([]));
    // The name is free again, and opens nothing.
    call(Method::POST, "/v1/volumes", &admin, Some(json!({"name": "team"})), 201).await;
    call(Method::GET, "/v1/volumes/team", &alice, None, 404).await;

    let log = call(Method::GET, "/v1/audit?limit=100", &admin, None, 200).await;
    let noted: Vec<_> = log["entries"].as_array().unwrap().iter().rev().collect();
    let said = |entry: &Value| {
        [&entry["what"], &entry["object"], &entry["result"]]
            .map(|text| text.as_str().unwrap().to_owned())
            .join(" ")
    };
    let noted: Vec<String> = noted.into_iter().map(said).filter(|entry| entry.contains("team")).collect();
    assert_eq!(
        noted,
        [
            "create volume team ok",
            "create volume team already_exists",
            "grant read team/alice ok",
            "change volume quota team ok",
            "revoke grant team/alice ok",
            "revoke grant team/alice not_found",
            "grant write team/alice ok",
            "delete volume team ok",
            "create volume team ok"
        ]
    );
}
