//! A daemon without disks, and who sends it requests. Also for `tests/fuzz`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Request, StatusCode};
use serde_json::Value;
use tandemd::blocks::memory::MemoryStore as BlockMemory;
use tandemd::daemon::{Daemon, Parts};
use tandemd::http::router;
use tandemd::meta::memory::MemoryStore;
use tandemd::replicate::NodeSetup;
use tandemd::segments::memory::MemorySegments;
use tandemd::settings::Settings;
use tandemfs::clock::SystemClock;
use tandemfs::id::NodeId;
use tower::ServiceExt as _;

/// An upload of a file of 20 bytes.
pub const UPLOAD: &str = "--b\r\nContent-Disposition: form-data; name=\"path\"\r\n\r\ndir/name\r\n\
    --b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n01234567890123456789\r\n--b--\r\n";
/// What an upload's body is.
pub const FORM: (&str, &[u8]) = ("content-type", b"multipart/form-data; boundary=b");
/// What most other bodies are.
pub const JSON: (&str, &[u8]) = ("content-type", b"application/json");
/// What mounts send.
pub const COMPACT: (&str, &[u8]) = ("content-type", b"application/vnd.msgpack");

pub struct Api {
    runtime: tokio::runtime::Runtime,
    router: Router,
    /// The admin's.
    pub token: String,
    /// The id of the file of [`UPLOAD`], in the admin's home volume.
    pub file: String,
    /// The admin's, on a shared volume: who changes files in the home volume need not wait for it.
    pub session: u64,
    _directory: tempfile::TempDir,
}

impl Api {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            data: directory.path().to_owned(),
            lease_ms: 3_600_000,
            max_user_requests_per_s: 0,
            ..Settings::default()
        };
        let nodes = (1..=3).map(|number| NodeSetup {
            id: NodeId(number),
            kind: "memory".to_owned(),
            location: String::new(),
            zone: number.to_string(),
            weight: 1,
            store: Arc::new(BlockMemory::new()),
            segments: Arc::new(MemorySegments::new()),
        });
        let parts = Parts {
            meta: Arc::new(MemoryStore::new()),
            nodes: nodes.collect(),
            clock: Arc::new(SystemClock),
            first_password: None,
            lock: None,
        };
        let router = router(runtime.block_on(Daemon::start(settings, parts)).unwrap());
        let (token, file, session) = (String::new(), String::new(), 0);
        let mut api = Self { runtime, router, token, file, session, _directory: directory };
        let sent = |api: &Self, path, kind, body| -> Value {
            serde_json::from_slice(&api.send("POST", path, &[kind], body).1).unwrap()
        };
        let login = sent(&api, "/login", JSON, r#"{"username":"admin","password":"admin123"}"#);
        api.token = login["token"].as_str().unwrap().to_owned();
        api.file = sent(&api, "/upload", FORM, UPLOAD)["file_id"].as_str().unwrap().to_owned();
        sent(&api, "/v1/volumes", JSON, r#"{"name":"team"}"#);
        let grant = api.send("PUT", "/v1/volumes/team/grants/admin", &[JSON], r#"{"access":"write"}"#);
        assert!(grant.0.is_success(), "{grant:?}");
        let open = r#"{"volume":"team","read_only":false,"client":"test"}"#;
        api.session = sent(&api, "/fs/v1/sessions", JSON, open)["session"].as_u64().unwrap();
        api
    }

    /// The answer to a request as the admin, unless a header says who else.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &[u8])],
        body: impl Into<Body>,
    ) -> (StatusCode, Bytes) {
        let peer: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let mut request =
            Request::builder().method(method).uri(path).extension(ConnectInfo(peer)).header("host", "x");
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.header("authorization", format!("Bearer {}", self.token));
        }
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_bytes(value).unwrap());
        }
        let request = request.body(body.into()).unwrap();
        self.runtime.block_on(async {
            let (parts, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
            (parts.status, to_bytes(body, 1 << 20).await.unwrap())
        })
    }
}

/// What a header may carry of some bytes.
pub fn header(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().filter(|byte| *byte >= 0x20 && *byte != 0x7f).collect()
}
