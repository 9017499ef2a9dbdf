//! The API without sockets: a whole daemon over stores in memory, and requests that are handed to its router.

mod document;
mod permissions;
mod requests;
mod system;
mod volumes;

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

use super::router;
use crate::blocks;
use crate::daemon::{App, Daemon, Parts};
use crate::meta;
use crate::replicate::NodeSetup;
use crate::segments;
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
            segments: Arc::new(segments::memory::MemorySegments::new()),
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
