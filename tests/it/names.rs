//! Names are data: whatever a user calls a file, the daemon opens nothing but its own files.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::cluster::{Cluster, Rest, signal};

/// In every name here, so that it is seen if a name ever becomes part of a path.
const MARK: &str = "canary";
/// The system calls that take paths.
const CALLS: &str = "trace=open,openat,openat2,creat,rename,renameat,renameat2,unlink,unlinkat,link,linkat,symlink,symlinkat,\
    mkdir,mkdirat,readlink,readlinkat,truncate,chdir";

/// strace on a running daemon.
struct Trace {
    strace: Child,
    directory: TempDir,
}

impl Trace {
    fn of(cluster: &Cluster) -> Self {
        let directory = TempDir::with_prefix("tandem-strace-").expect("a temporary directory");
        let messages = directory.path().join("messages");
        let child = Command::new("strace")
            .args(["-f", "-y", "-s", "4096", "-e", CALLS, "-p", &cluster.pid().to_string(), "-o"])
            .arg(directory.path().join("calls"))
            .stderr(File::create(&messages).expect("a file"))
            .spawn()
            .expect("strace starts");
        let trace = Self { strace: child, directory };
        let attached = || std::fs::read_to_string(&messages).is_ok_and(|text| text.contains("attached"));
        let mut tries = 0..300;
        while !attached() {
            assert!(tries.next().is_some(), "strace does not attach");
            std::thread::sleep(Duration::from_millis(100));
        }
        trace
    }

    /// The calls up to now.
    fn end(mut self) -> Vec<String> {
        signal(self.strace.id(), "INT");
        self.strace.wait().expect("strace ends");
        let text = std::fs::read_to_string(self.directory.path().join("calls")).expect("a trace");
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

/// The paths of a traced call: each string that it was given, below the directory that stands before it.
fn paths(call: &str) -> Vec<PathBuf> {
    let arguments = call.split_once('(').map_or("", |(_, arguments)| arguments);
    let mut found = Vec::new();
    let mut before = "";
    let mut parts = arguments.split('"');
    while let (Some(text), Some(path)) = (parts.next(), parts.next()) {
        before = if text.contains('<') { text } else { before };
        let directory =
            before.rsplit_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(path, _)| path);
        found.push(Path::new(directory).join(path));
    }
    found
}

/// A session on a user's home volume, with inode numbers to give away.
async fn session(rest: &Rest) -> (String, u64) {
    let open = json!({"volume": null, "read_only": false, "client": "test"});
    let answer = rest.request("POST", "/fs/v1/sessions").json(&open).send().await.expect("an answer");
    assert_eq!(answer.status(), 201);
    let path = format!("/fs/v1/sessions/{}", answer.json::<Value>().await.expect("JSON")["session"]);
    let answer = rest.request("POST", &format!("{path}/inodes")).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    (path, answer.json::<Value>().await.expect("JSON")["first"].as_u64().expect("a number"))
}

async fn status(rest: &Rest, method: &str, path: &str) -> u16 {
    rest.request(method, path).send().await.expect("an answer").status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_name_and_no_symbolic_link_leads_the_daemon_anywhere() {
    // So that each upload makes objects.
    let cluster = Cluster::start_with(&["--config", &super::damage::config("inline_bytes = 0\n")]);
    let rest = cluster.login("admin", "admin123").await;
    let canary = cluster.root().join(MARK);
    std::fs::write(&canary, "sings").unwrap();
    let trace = Trace::of(&cluster);

    let absolute = canary.display().to_string();
    let up = "../".repeat(12);
    let (long, deep) = (MARK.repeat(50), format!("{MARK}/").repeat(700));
    let refused = [
        format!("../{MARK}"),
        format!("a/../../{MARK}"),
        format!("{up}{absolute}"),
        format!("{MARK}\0"),
        long,
        deep,
    ];
    for path in &refused {
        assert_eq!(rest.upload(path, b"x".to_vec()).await.0, 400, "{path:?}");
    }
    let taken = [
        absolute.clone(),
        format!("//{MARK}//a"),
        format!("./{MARK}/./b"),
        format!("{MARK}%2e%2e%2f{MARK}"),
        format!("..%5c{MARK}"),
        format!("..\\{MARK}"),
        format!("%252e%252e%252f{MARK}"),
        format!("C:\\{MARK}"),
        format!("{MARK}\r\nX-Evil: 1"),
        format!("{MARK}\u{202e}gpj.exe"),
        format!("~/{MARK}"),
        format!("$(touch {MARK})"),
        format!("{MARK}' or 1=1 --"),
        format!("nodes/1/{MARK}"),
    ];
    for path in &taken {
        let content = format!("the content of {path}").into_bytes();
        let (code, file) = rest.upload(path, content.clone()).await;
        assert_eq!(code, 201, "{path:?}: {file}");
        let id = file["file_id"].as_str().unwrap();
        assert_eq!(rest.download(id).await, (200, content), "{path:?}");
        assert_eq!(status(&rest, "DELETE", &format!("/files/{id}")).await, 204, "{path:?}");
    }
    for id in [
        "%2e%2e%2fcanary",
        "..%2fcanary",
        "..%5ccanary",
        "%c0%ae%c0%ae%2fcanary",
        "%00canary",
        "canary",
        "f1-1",
    ] {
        for (method, path) in [("GET", "files"), ("GET", "download"), ("DELETE", "files")] {
            let code = status(&rest, method, &format!("/{path}/{id}")).await;
            assert!(code == 404 || code == 400, "{method} {path} {id}: {code}");
        }
    }

    // A symbolic link is text that the mount's kernel follows, never the daemon.
    let (session, first) = session(&rest).await;
    let by = json!({"uid": 0, "gid": 0});
    let time = json!({"seconds": 1, "nanos": 0});
    let links = [absolute.as_str(), "/etc/passwd", "../../canary", "/"];
    let create = |(number, target): (usize, &&str)| {
        json!({"create": {"parent": 1, "name": format!("link-{MARK}-{number}"), "ino": first + number as u64,
            "node": {"symlink": target}, "mode": 0o777, "by": by, "time": time}})
    };
    let mutations: Vec<Value> = links.iter().enumerate().map(create).collect();
    let batch = json!({"sequence": 1, "mutations": mutations, "held": []});
    let answer = rest.request("POST", &format!("{session}/batches")).json(&batch).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    for (number, target) in links.iter().enumerate() {
        let id = format!("f1-{:x}", first + number as u64);
        for (method, path) in [("GET", "files"), ("GET", "download"), ("DELETE", "files")] {
            assert_eq!(status(&rest, method, &format!("/{path}/{id}")).await, 404, "{target}");
        }
        assert_eq!(
            rest.upload(&format!("link-{MARK}-{number}/passwd"), b"x".to_vec()).await.0,
            409,
            "{target}"
        );
        assert_eq!(rest.upload(&format!("link-{MARK}-{number}"), b"x".to_vec()).await.0, 409, "{target}");
    }
    assert_eq!(status(&rest, "DELETE", &session).await, 204);

    let calls = trace.end();
    let data = cluster.data();
    let inside = |path: &PathBuf| path.starts_with(&data);
    let mut seen = 0;
    for call in calls.iter().filter(|call| call.contains('(')) {
        for path in paths(call) {
            // The process looks at itself: threads, memory, limits.
            let own = path.starts_with("/proc/self") || path.starts_with("/sys/fs/cgroup");
            assert!(inside(&path) || own, "{call}");
            assert!(!path.display().to_string().contains(MARK), "{call}");
            seen += usize::from(path.starts_with(data.join("nodes")));
        }
    }
    assert!(seen >= 2 * taken.len(), "each file was written to two nodes, but only {seen} calls were seen");
    assert_eq!(std::fs::read_to_string(&canary).unwrap(), "sings");
    let mut left: Vec<_> =
        std::fs::read_dir(cluster.root()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [MARK, "data", "log"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_is_told_to_run_nothing_that_a_user_stored() {
    let cluster = Cluster::start();
    let rest = cluster.login("admin", "admin123").await;
    for name in ["page.html", "picture.svg", "paper.pdf", "feed.xml", "code.js", "a\"; x=\".html"] {
        let (code, file) = rest.upload(name, b"<script>alert(1)</script>".to_vec()).await;
        assert_eq!(code, 201, "{file}");
        let path = format!("/download/{}", file["file_id"].as_str().unwrap());
        let whole = rest.request("GET", &path);
        let part = rest.request("GET", &path).header("range", "bytes=0-7");
        let head = rest.request("HEAD", &path);
        for request in [whole, part, head] {
            let answer = request.header("accept", "text/html").send().await.unwrap();
            assert!(answer.status().is_success());
            let header = |name: &str| {
                let values: Vec<_> = answer.headers().get_all(name).iter().collect();
                assert_eq!(values.len(), 1, "{name}: {values:?}");
                values[0].to_str().unwrap().to_owned()
            };
            assert_eq!(header("content-type"), "application/octet-stream");
            assert_eq!(header("x-content-type-options"), "nosniff");
            assert_eq!(header("content-security-policy"), "sandbox; default-src 'none'");
            assert_eq!(header("cache-control"), "private, no-store");
            assert_eq!(header("vary"), "Authorization");
            assert!(header("content-disposition").starts_with("attachment; filename=\""));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_means_itself_and_is_no_pattern() {
    let cluster = Cluster::start();
    let rest = cluster.login("admin", "admin123").await;
    let names = [
        "a%b", "a_b", "aXb", "a\\b", "a'b", "a\"b", "a*b", "a?b", "a[b", "a.b", "a;b", "a--b", "a b", "a+b",
        "a&b",
    ];
    for name in names {
        assert_eq!(rest.upload(name, b"x".to_vec()).await.0, 201, "{name}");
    }
    for name in names {
        for prefix in [name.to_owned(), format!("/{name}")] {
            let request = rest.request("GET", "/files").query(&[("prefix", &prefix)]);
            let page: Value = request.send().await.unwrap().json().await.unwrap();
            let found: Vec<_> = page["files"].as_array().unwrap().iter().map(|file| &file["name"]).collect();
            assert_eq!(found, [name], "{prefix}");
        }
    }
    for prefix in ["%", "_", "*", "' or '1'='1", "\\", "a%25b", "..", "/../", "//"] {
        let request = rest.request("GET", "/files").query(&[("prefix", prefix)]);
        let page: Value = request.send().await.unwrap().json().await.unwrap();
        assert_eq!(page["files"], json!([]), "{prefix}");
    }
}
