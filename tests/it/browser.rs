//! What a user stored runs nothing in the browser of who is led to it (security.md C8). Each file is shown to be able to: sent
//! without the headers that keep it from running, it runs.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::cluster::{Cluster, Rest};
use super::shell::try_sh;

/// Files that run a script in a browser that shows them. The script asks for `/canary` and says where it ran.
const SCRIPTS: [(&str, &str, &str); 5] = [
    (
        "page.html",
        "text/html",
        "<!doctype html><p>hello<script>fetch('/canary' + location.pathname)</script>",
    ),
    (
        "error.html",
        "text/html",
        "<!doctype html><img src=data:, onerror=\"fetch('/canary' + location.pathname)\">",
    ),
    (
        "picture.svg",
        "image/svg+xml",
        "<svg xmlns='http://www.w3.org/2000/svg'><script>fetch('/canary' + location.pathname)</script></svg>",
    ),
    (
        "list.xml",
        "application/xml",
        "<list><x:script xmlns:x='http://www.w3.org/1999/xhtml'>fetch('/canary' + location.pathname)</x:script></list>",
    ),
    // A page takes it for a script of its own.
    ("code.js", "text/javascript", "fetch('/canary' + new URL(document.currentScript.src).pathname)"),
];
/// Chromium runs the script of such a document, but nothing that it calls is seen from outside: what is looked for is the viewer.
const PAPER: (&str, &str, &str) = (
    "paper.pdf",
    "application/pdf",
    "%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R/OpenAction<</S/JavaScript/JS(this.submitForm\\(\"/canary\"\\))>>>>endobj\n\
        2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]>>endobj\n\
        trailer<</Root 1 0 R>>\n",
);
/// A name that runs a script in a browser that takes it for HTML.
const NAME: &str = "<img src=data:, onerror=fetch('&#47;canary'+location.pathname)>";

/// Stands between the browser and the daemon, for a browser sends no token by itself. `/served/…` is answered as the daemon answers,
/// `/policy/…` with nothing of its protection but the policy (CSP), `/bare/…` with nothing of it. Asked for `/canary…` it notes the rest of the
/// path; `/page/…` is a page that shows, or runs, what lies below it.
struct Proxy {
    upstream: Rest,
    ran: Mutex<Vec<String>>,
}

impl Proxy {
    async fn start(upstream: Rest) -> (Arc<Self>, String) {
        let proxy = Arc::new(Self { upstream, ran: Mutex::default() });
        let router = Router::new().fallback(answer).with_state(proxy.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (proxy, url)
    }

    /// Where scripts have run.
    fn ran(&self) -> Vec<String> {
        let mut ran = self.ran.lock().expect("nobody panics").clone();
        ran.sort();
        ran.dedup();
        ran
    }
}

async fn answer(State(proxy): State<Arc<Proxy>>, uri: Uri) -> Response {
    let path = uri.path();
    if let Some(place) = path.strip_prefix("/canary") {
        proxy.ran.lock().expect("nobody panics").push(place.to_owned());
        return StatusCode::NO_CONTENT.into_response();
    }
    if let Some(file) = path.strip_prefix("/page") {
        let shown = format!(
            "<iframe src='{file}'></iframe><object data='{file}'></object><embed src='{file}'><script src='{file}'></script>"
        );
        return Html(format!("<!doctype html><title>page</title>{shown}")).into_response();
    }
    let Some((how, rest)) = path.trim_start_matches('/').split_once('/') else {
        return Html("<!doctype html><title>nothing</title>").into_response();
    };
    // The last part is a name for people; the type of the bare answer goes by it.
    let (rest, name) = rest.rsplit_once('/').expect("a name");
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let from = proxy.upstream.request("GET", &format!("/{rest}{query}")).send().await.expect("an answer");
    let mut answer = Response::builder().status(from.status());
    if how == "served" {
        *answer.headers_mut().expect("headers") = from.headers().clone();
    } else {
        let kind =
            SCRIPTS.iter().chain([&PAPER]).find(|file| file.0 == name).map_or("text/html", |file| file.1);
        answer = answer.header(header::CONTENT_TYPE, kind);
        if let Some(policy) = from.headers().get(header::CONTENT_SECURITY_POLICY).filter(|_| how == "policy")
        {
            answer = answer.header(header::CONTENT_SECURITY_POLICY, policy);
        }
    }
    answer.body(Body::from(from.bytes().await.expect("a body"))).expect("an answer")
}

/// Chromium without a window, driven by chromedriver (WebDriver).
struct Browser {
    driver: Child,
    directory: TempDir,
    http: reqwest::Client,
    session: String,
}

impl Browser {
    async fn start(http: reqwest::Client) -> Self {
        let directory = TempDir::with_prefix("tandem-browser-").expect("a temporary directory");
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .env("HOME", directory.path())
            .env("TMPDIR", directory.path())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("chromedriver starts");
        let lines = BufReader::new(driver.stdout.take().expect("its output")).lines();
        let started =
            |line: String| Some(line.split_once("successfully on port ")?.1.trim_end_matches('.').to_owned());
        let port = lines.map_while(Result::ok).find_map(started).expect("its port");
        let mut browser =
            Self { driver, directory, http, session: format!("http://127.0.0.1:{port}/session") };
        // As root Chromium has no sandbox of its own; it is not what is tested.
        let options = json!({
            "args": ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
            "prefs": {"download.default_directory": browser.downloads()},
        });
        let capabilities = json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}});
        let session = browser.call("", capabilities).await;
        browser.session += &format!("/{}", session["sessionId"].as_str().expect("a session"));
        browser
    }

    fn downloads(&self) -> PathBuf {
        self.directory.path().join("downloads")
    }

    async fn call(&self, command: &str, body: Value) -> Value {
        let request =
            self.http.post(format!("{}{command}", self.session)).json(&body).timeout(Duration::from_secs(60));
        let answer = request.send().await.expect("chromedriver answers");
        let status = answer.status();
        let mut reply: Value = answer.json().await.expect("JSON");
        assert!(status.is_success(), "{command} {body}: {reply}");
        reply["value"].take()
    }

    /// Goes to an address and returns the path and the type of what is shown then.
    async fn go(&self, url: &str) -> (String, String) {
        self.call("/url", json!({"url": url})).await;
        let script = json!({"script": "return [location.pathname, document.contentType]", "args": []});
        let shown = self.call("/execute/sync", script).await;
        let text = |index: usize| shown[index].as_str().expect("text").to_owned();
        (text(0), text(1))
    }

    /// Waits until a file has been saved, which goes on beside what is shown.
    async fn has_saved(&self, name: &str) {
        for _ in 0..100 {
            if self.downloads().join(name).exists() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{name} was not saved");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // chromedriver leaves its browser behind, but in its own process group.
        try_sh(Path::new("/"), &format!("kill -KILL -- -{}", self.driver.id()));
        let _ = self.driver.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_stored_runs_no_script_in_a_browser() {
    let cluster = Cluster::start();
    let rest = cluster.login("admin", "admin123").await;
    let mut files = Vec::new();
    for (name, kind, content) in SCRIPTS.iter().chain([&PAPER]) {
        let (code, file) = rest.upload(name, content.as_bytes().to_vec()).await;
        assert_eq!(code, 201, "{file}");
        files.push((*name, *kind, format!("/download/{}/{name}", file["file_id"].as_str().unwrap())));
    }
    // Names are a user's, too.
    assert_eq!(rest.upload(NAME, b"x".to_vec()).await.0, 201);
    let list = ("list", "text/html", "/files/list".to_owned());
    let (proxy, url) = Proxy::start(rest).await;
    let browser = Browser::start(proxy.upstream.http.clone()).await;

    for (name, _, path) in &files {
        browser.go(&url).await;
        let shown = browser.go(&format!("{url}/served{path}")).await;
        assert_eq!(shown, ("/".to_owned(), "text/html".to_owned()), "{name} is shown instead of saved");
        browser.has_saved(name).await;
        browser.go(&format!("{url}/page/served{path}")).await;
        // A policy speaks of what is shown; not of what a page takes for its own script.
        browser.go(&format!("{url}/policy{path}")).await;
        if *name != "code.js" {
            browser.go(&format!("{url}/page/policy{path}")).await;
        }
    }
    assert_eq!(browser.go(&format!("{url}/served{}", list.2)).await.1, "application/json");
    browser.go(&format!("{url}/policy{}", list.2)).await;

    let mut expected = Vec::new();
    for (name, kind, path) in files.iter().chain([&list]) {
        let shown = browser.go(&format!("{url}/bare{path}")).await;
        assert_eq!(shown, (format!("/bare{path}"), (*kind).to_owned()), "{name} is no good test");
        browser.go(&format!("{url}/page/bare{path}")).await;
        if *name != PAPER.0 {
            expected.push(format!("/bare{path}"));
        }
    }
    // What ran, and nothing else: all that is protected was seen before, so its scripts have had their time as well.
    for _ in 0..100 {
        if proxy.ran().len() >= expected.len() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    expected.sort();
    assert_eq!(proxy.ran(), expected);
}
