//! A daemon with its nodes in a directory of its own, and mounts of it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::link::Link;
use super::shell::try_sh;

/// How long anything may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program of this workspace, built before the tests run (`cargo build --workspace`).
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test has a path");
    let directory = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    let program = directory.join(name);
    assert!(program.exists(), "{} is missing: run `cargo build --workspace` first", program.display());
    program
}

/// A running daemon. Dropping it kills the daemon and unmounts what is left.
pub struct Cluster {
    directory: Option<TempDir>,
    root: PathBuf,
    options: Vec<String>,
    daemon: Option<Child>,
    url: String,
}

impl Cluster {
    /// A new one with three nodes and two replicas.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A new one with more options for the daemon.
    pub fn start_with(options: &[&str]) -> Self {
        let directory = TempDir::with_prefix("tandem-it-").expect("a temporary directory");
        let root = directory.path().to_owned();
        let mut cluster = Self::at(&root, options);
        cluster.directory = Some(directory);
        cluster
    }

    /// One whose data lies in a directory that the test made.
    pub fn at(root: &Path, options: &[&str]) -> Self {
        let options = options.iter().map(ToString::to_string).collect();
        let mut cluster =
            Self { directory: None, root: root.to_owned(), options, daemon: None, url: String::new() };
        cluster.launch();
        cluster
    }

    /// One whose daemon a command of the test's own starts, on `root/data`.
    pub fn started_by(root: &Path, mut command: Command) -> Self {
        let mut cluster = Self {
            directory: None,
            root: root.to_owned(),
            options: Vec::new(),
            daemon: None,
            url: String::new(),
        };
        cluster.spawn(&mut command);
        cluster
    }

    /// Starts the daemon, on the same port if it ran before.
    pub fn launch(&mut self) {
        assert!(self.daemon.is_none(), "it runs already");
        let listen = self.url.split_once("://").map_or("127.0.0.1:0", |(_, address)| address).to_owned();
        let mut command = Command::new(program("tandemd"));
        command.arg("--data").arg(self.data()).args(["--listen", &listen]).args(&self.options);
        self.spawn(&mut command);
    }

    fn spawn(&mut self, command: &mut Command) {
        let log =
            File::options().create(true).append(true).open(self.root.join("log")).expect("the log opens");
        let mut child = command
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("tandemd starts");
        let output = child.stdout.take().expect("its output");
        self.daemon = Some(child);
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some(url) = line.strip_prefix("listening on ") {
                    let _ = sender.send(url.to_owned());
                }
            }
        });
        match receiver.recv_timeout(PATIENCE) {
            Ok(url) => self.url = url,
            Err(_) => panic!("tandemd does not get ready:\n{}", self.log()),
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// The directory of a node, numbered from 1.
    pub fn node(&self, number: u32) -> PathBuf {
        self.data().join("nodes").join(number.to_string())
    }

    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("it runs").id()
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().expect("it can be killed");
            daemon.wait().expect("it ends");
        }
    }

    /// SIGTERM; panics if it has not ended well within ten seconds.
    pub fn stop(&mut self) {
        let mut daemon = self.daemon.take().expect("it runs");
        signal(daemon.id(), "TERM");
        for _ in 0..100 {
            if let Some(status) = daemon.try_wait().expect("it can be waited for") {
                assert!(status.success(), "{status}\n{}", self.log());
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        let _ = daemon.kill();
        panic!("tandemd did not stop within 10 s:\n{}", self.log());
    }

    /// Mounts the admin's home at a new directory.
    pub fn mount(&self, name: &str) -> Mount {
        self.mount_as("admin", "admin123", name, "")
    }

    /// Mounts a user's home with options.
    pub fn mount_as(&self, user: &str, password: &str, name: &str, options: &str) -> Mount {
        let path = self.root.join(name);
        std::fs::create_dir_all(&path).expect("the mount point");
        self.mounted(path.clone(), &self.try_mount(user, password, &path, options))
    }

    /// Mounts the admin's home by way of a link.
    pub fn mount_through(&self, link: &Link, name: &str) -> Mount {
        let path = self.root.join(name);
        std::fs::create_dir_all(&path).expect("the mount point");
        self.mounted(path.clone(), &self.try_mount_from(link.url(), "admin", "admin123", &path, ""))
    }

    fn mounted(&self, path: PathBuf, output: &Output) -> Mount {
        assert!(
            output.status.success(),
            "mounting: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        Mount { path }
    }

    /// Runs `tandem-mount` and returns how it ended.
    pub fn try_mount(&self, user: &str, password: &str, path: &Path, options: &str) -> Output {
        self.try_mount_from(&self.url, user, password, path, options)
    }

    fn try_mount_from(&self, url: &str, user: &str, password: &str, path: &Path, options: &str) -> Output {
        let cache = self.root.join("cache");
        std::fs::create_dir_all(&cache).expect("the cache directory");
        let mut command = Command::new(program("tandem-mount"));
        command.arg(url).arg(path);
        // For running everything in another mode than the default one.
        let more = std::env::var("MOUNT_OPTIONS").unwrap_or_default();
        for options in [options, &more].into_iter().filter(|options| !options.is_empty()) {
            command.args(["-o", options]);
        }
        command
            .env("TANDEM_USER", user)
            .env("TANDEM_PASSWORD", password)
            .env("XDG_CACHE_HOME", cache)
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .output()
            .expect("tandem-mount starts")
    }

    /// Runs `tandem` as the admin and returns how it ended.
    pub fn try_tandem(&self, arguments: &[&str]) -> Output {
        let config = self.root.join("config");
        if !config.exists() {
            std::fs::create_dir_all(&config).expect("the configuration directory");
            let output = self
                .command(&["login", "-u", "admin"])
                .env("TANDEM_PASSWORD", "admin123")
                .output()
                .expect("tandem starts");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        self.command(arguments).output().expect("tandem starts")
    }

    /// Runs `tandem` as the admin and returns what it printed; panics when it fails.
    #[track_caller]
    pub fn tandem(&self, arguments: &[&str]) -> String {
        let output = self.try_tandem(arguments);
        assert!(
            output.status.success(),
            "tandem {arguments:?}: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The same with `--json`, parsed.
    #[track_caller]
    pub fn tandem_json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = std::iter::once("--json").chain(arguments.iter().copied()).collect();
        serde_json::from_str(&self.tandem(&arguments)).expect("tandem --json prints JSON")
    }

    /// `tandem` as whoever is logged in, to be given more.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("tandem"));
        command.args(["--url", &self.url]).args(arguments);
        command.env("XDG_CONFIG_HOME", self.root.join("config")).stdin(Stdio::null());
        command
    }

    /// Logs in over HTTP.
    pub async fn login(&self, user: &str, password: &str) -> Rest {
        let http = reqwest_client();
        let body = serde_json::json!({"username": user, "password": password});
        let answer = http.post(format!("{}/login", self.url)).json(&body).send().await.expect("an answer");
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap_or_default());
        let reply: Value = answer.json().await.expect("JSON");
        Rest { http, url: self.url.clone(), token: reply["token"].as_str().expect("a token").to_owned() }
    }

    /// `GET /status` as the admin.
    pub fn status(&self) -> Value {
        self.tandem_json(&["status"])
    }

    /// Waits until `/status` says healthy with nothing under-replicated.
    #[track_caller]
    pub fn wait_healthy(&self) {
        let mut status = Value::Null;
        for _ in 0..300 {
            status = self.status();
            if status["status"] == "healthy" && status["blocks"]["under_replicated"] == 0 {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("not healthy again: {status}\n{}", self.log());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Mounts that a failed test left behind would keep the directory from being removed.
        let script = format!(
            "grep -F ' {}/' /proc/mounts | cut -d' ' -f2 | sort -r | while read -r m; do umount -l \"$m\"; done",
            self.root.display()
        );
        if thread::panicking() {
            try_sh(Path::new("/"), &script);
        }
        self.kill();
    }
}

/// A client that knows nothing of our own: reqwest with a token.
pub struct Rest {
    pub http: reqwest::Client,
    pub url: String,
    pub token: String,
}

impl Rest {
    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token)
    }

    /// Uploads bytes to a path; returns the status and the body.
    pub async fn upload(&self, path: &str, data: Vec<u8>) -> (u16, Value) {
        let form = reqwest::multipart::Form::new()
            .text("path", path.to_owned())
            .part("file", reqwest::multipart::Part::bytes(data).file_name("file"));
        let answer = self.request("POST", "/upload").multipart(form).send().await.expect("an answer");
        (answer.status().as_u16(), answer.json().await.unwrap_or(Value::Null))
    }

    /// Downloads a file by its id; returns the status and the body.
    pub async fn download(&self, id: &str) -> (u16, Vec<u8>) {
        let answer = self.request("GET", &format!("/download/{id}")).send().await.expect("an answer");
        let status = answer.status().as_u16();
        (status, answer.bytes().await.map(Into::into).unwrap_or_default())
    }
}

/// A client without any of our defaults.
pub fn reqwest_client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().expect("a client")
}

/// A mounted volume. Dropping it unmounts it.
pub struct Mount {
    path: PathBuf,
}

impl Mount {
    /// What `tandem-mount` has mounted there.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts and waits for the end; panics if that fails.
    #[track_caller]
    pub fn unmount(self) {
        let umount = || Command::new("umount").arg(&self.path).output().expect("umount starts");
        let is_busy = |output: &Output| String::from_utf8_lossy(&output.stderr).contains("target is busy");
        let mut output = umount();
        // A child that another test has just forked holds what this process had open, until it runs its own program.
        for _ in 0..20 {
            if !is_busy(&output) {
                break;
            }
            thread::sleep(Duration::from_millis(50));
            output = umount();
        }
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // umount(8) returns when the kernel has let go; the process may still be flushing.
        let needle = self.path.display().to_string();
        for _ in 0..300 {
            let list = try_sh(Path::new("/"), "ps -eo args=").stdout;
            if !String::from_utf8_lossy(&list)
                .lines()
                .any(|line| line.contains("tandem-mount") && line.contains(&needle))
            {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("tandem-mount does not end after umount");
    }

    /// The process that serves it.
    pub fn pid(&self) -> u32 {
        let script = format!("pgrep -f 'tandem-mount.* {}( |$)'", self.path.display());
        let output = try_sh(Path::new("/"), &script);
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .last()
            .and_then(|line| line.trim().parse().ok())
            .expect("its process")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let script = format!(
            "if mountpoint -q '{0}' || ! stat '{0}' >/dev/null 2>&1; then umount '{0}' || umount -l '{0}'; fi",
            self.path.display()
        );
        try_sh(Path::new("/"), &script);
    }
}

/// Sends a signal by name.
pub fn signal(pid: u32, name: &str) {
    try_sh(Path::new("/"), &format!("kill -{name} {pid}"));
}

/// Resident memory of a process in KiB, and its peak.
pub fn memory_kib(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next())
            .and_then(|number| number.parse().ok())
            .unwrap_or(0)
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// Files under a directory that group or others may use.
pub fn open_to_others(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = std::fs::symlink_metadata(&path).expect("metadata");
        if metadata.permissions().mode() & 0o077 != 0 && !metadata.is_symlink() {
            found.push(path.clone());
        }
        if metadata.is_dir() {
            left.extend(
                std::fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()),
            );
        }
    }
    found
}

/// Bytes that look random and depend on the seed alone (xorshift64*).
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
