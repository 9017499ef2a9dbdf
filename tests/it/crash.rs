//! faults.md K1, K5 and M6: the daemon killed and stopped under a mixed load, with a mount that rides it out.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::cluster::{Cluster, Mount, noise};
use super::shell::sh;

/// So often the daemon is killed, unless `CRASH_KILLS` says otherwise.
const KILLS: u64 = 20;

/// What was acknowledged as durable: name, seed, length.
pub type Acknowledged = Arc<Mutex<Vec<(String, u64, usize)>>>;

/// Creates, writes, syncs and renames files, and removes older ones; says on its output what is done. Any error ends it with a failure.
/// It makes at most 100 files a second and keeps the newest few hundred, so that neither a full disk nor ever longer checks end a long run.
///
/// It is a process of its own: a process that has files of a mount open cannot start a daemon while that mount waits for the daemon, for
/// the new process closes its copies of the files first, and `close` waits.
const WRITER: &str = r#"
import os, sys, time
def synced(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
os.chdir(sys.argv[1])
number, kept = 0, []
while not os.path.exists(sys.argv[2]):
    length = [17, 4096, 70000, 300000][number % 4]
    fd = os.open(f't{number}', os.O_CREAT | os.O_WRONLY, 0o644)
    data = (b'%08d,' % number * (length // 9 + 1))[:length]
    assert os.write(fd, data) == length
    os.fsync(fd)
    os.close(fd)
    os.rename(f't{number}', f'w{number}')
    synced('.')
    print('done', number, length, flush=True)
    kept.append(number)
    while len(kept) > 300 or number % 3 == 2 and kept[-2] == number - 1:
        old = kept.pop(0 if len(kept) > 300 else -2)
        print('forget', old, 0, flush=True)
        os.unlink(f'w{old}')
    number += 1
    time.sleep(0.01)
"#;

/// What the writer writes into file `number`.
pub fn pattern(number: u64, length: usize) -> Vec<u8> {
    format!("{number:08},").into_bytes().into_iter().cycle().take(length).collect()
}

/// Runs the writer in a directory of a mount until the file `stop` is there. Any error is a failure: the mount must ride it out.
pub fn write_files(directory: PathBuf, stop: PathBuf, done: Acknowledged) {
    let mut writer = Command::new("python3")
        .args(["-c", WRITER])
        .args([directory, stop])
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 starts");
    for line in BufReader::new(writer.stdout.take().expect("its output")).lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let (number, length) = (words[1].parse().expect("a number"), words[2].parse().expect("a length"));
        let name = format!("w{number}");
        let mut done = done.lock().expect("the list");
        match words[0] {
            "done" => done.push((name, number, length)),
            _ => done.retain(|(other, _, _)| *other != name),
        }
    }
    assert!(writer.wait().expect("it ends").success(), "a call in the mount failed");
}

/// Uploads files over REST until told to stop; only a 201 counts.
fn upload_files(cluster_url: String, stop: Arc<AtomicBool>, done: Acknowledged) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        let http = super::cluster::reqwest_client();
        let mut token = String::new();
        for number in 0_u64.. {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            if token.is_empty() {
                let body = serde_json::json!({"username": "admin", "password": "admin123"});
                if let Ok(answer) = http.post(format!("{cluster_url}/login")).json(&body).send().await
                    && let Ok(reply) = answer.json::<serde_json::Value>().await
                {
                    token = reply["token"].as_str().unwrap_or_default().to_owned();
                }
                if token.is_empty() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            }
            let length = [100, 5000, 200_000][number as usize % 3];
            let name = format!("u{number}");
            let form = reqwest::multipart::Form::new()
                .text("path", format!("up/{name}"))
                .part("file", reqwest::multipart::Part::bytes(noise(number, length)).file_name("x"));
            match http.post(format!("{cluster_url}/upload")).bearer_auth(&token).multipart(form).send().await
            {
                Ok(answer) if answer.status() == 201 => {
                    let mut done = done.lock().expect("the list");
                    done.push((name, number, length));
                    // What is no longer looked for is not removed: an upload is never undone here.
                    let surplus = done.len().saturating_sub(300);
                    done.drain(..surplus);
                }
                Ok(answer) if answer.status().is_server_error() || answer.status() == 401 => token.clear(),
                Ok(answer) => panic!("upload answered {}", answer.status()),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
}

fn verify(directory: &std::path::Path, list: &[(String, u64, usize)], content_of: fn(u64, usize) -> Vec<u8>) {
    for (name, seed, length) in list {
        let content =
            fs::read(directory.join(name)).unwrap_or_else(|error| panic!("{name} was acknowledged: {error}"));
        assert!(content == content_of(*seed, *length), "{name} has other bytes than were acknowledged");
    }
}

fn logs(cluster: &Cluster) -> String {
    let mount = fs::read_to_string(cluster.root().join("mount.log")).unwrap_or_default();
    format!("{}\nThe mount:\n{mount}", cluster.log())
}

/// What was acknowledged at one moment: written through the mount, and uploaded.
pub struct Known {
    written: Vec<(String, u64, usize)>,
    uploaded: Vec<(String, u64, usize)>,
    /// What has been acknowledged since: what is not in it may have been removed.
    since: Acknowledged,
}

impl Known {
    /// Checks that a cluster has all of it that has not been removed.
    pub fn verify(&self, cluster: &Cluster) {
        let mount = cluster.mount("known");
        let written: Vec<_> = {
            let since = self.since.lock().expect("the list");
            self.written.iter().filter(|file| since.contains(file)).cloned().collect()
        };
        verify(mount.path(), &written, pattern);
        verify(&mount.path().join("up"), &self.uploaded, noise);
        mount.unmount();
    }
}

/// A writer in a mount and an uploader beside it.
pub struct Load {
    mount: Mount,
    stop: Arc<AtomicBool>,
    written: Acknowledged,
    uploaded: Acknowledged,
    threads: [JoinHandle<()>; 2],
}

impl Load {
    pub fn start(cluster: &Cluster) -> Self {
        let log = format!("log={}", cluster.root().join("mount.log").display());
        let mount = cluster.mount_as("admin", "admin123", "m", &log);
        fs::create_dir(mount.path().join("up")).expect("a directory");
        let stop = Arc::new(AtomicBool::new(false));
        let (written, uploaded) = (Acknowledged::default(), Acknowledged::default());
        let writer = {
            let (path, stop, done) = (mount.path().to_owned(), cluster.root().join("stop"), written.clone());
            thread::spawn(move || write_files(path, stop, done))
        };
        let uploader = {
            let (url, stop, done) = (cluster.url().to_owned(), stop.clone(), uploaded.clone());
            thread::spawn(move || upload_files(url, stop, done))
        };
        Self { mount, stop, written, uploaded, threads: [writer, uploader] }
    }

    /// Waits until another file is written. On a busy disk that may take a while.
    pub fn wait_for_more(&self) {
        let written = self.written.lock().expect("the list").len();
        for _ in 0..50 {
            if self.written.lock().expect("the list").len() != written {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// What has been acknowledged so far.
    pub fn acknowledged(&self) -> Known {
        Known {
            written: self.written.lock().expect("the list").clone(),
            uploaded: self.uploaded.lock().expect("the list").clone(),
            since: self.written.clone(),
        }
    }

    /// Ends it, and checks that all that was acknowledged is there, in this mount and in the next one.
    pub fn end(self, cluster: &mut Cluster) {
        self.stop.store(true, Ordering::SeqCst);
        fs::write(cluster.root().join("stop"), "").expect("a file");
        for thread in self.threads {
            assert!(thread.join().is_ok(), "the load failed\n{}", logs(cluster));
        }
        let (written, uploaded) =
            (self.written.lock().expect("the list"), self.uploaded.lock().expect("the list"));
        println!("{} written, {} uploaded", written.len(), uploaded.len());
        assert!(!written.is_empty() && !uploaded.is_empty(), "there was no load");
        verify(self.mount.path(), &written, pattern);
        self.mount.unmount();
        let mount = cluster.mount("again");
        verify(mount.path(), &written, pattern);
        verify(&mount.path().join("up"), &uploaded, noise);
        mount.unmount();
        super::damage::nodes_hold_what_is_claimed(cluster);
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_daemon_is_killed() {
    let kills = std::env::var("CRASH_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS);
    let mut cluster = Cluster::start();
    let load = Load::start(&cluster);
    let mut slowest = Duration::ZERO;
    for kill in 0..kills {
        thread::sleep(Duration::from_millis(150 + kill * 37 % 400));
        load.wait_for_more();
        cluster.kill();
        // A clock of the test's own: how long until the daemon listens again.
        #[expect(clippy::disallowed_methods, reason = "a test measures real time")]
        let begin = std::time::Instant::now();
        cluster.launch();
        slowest = slowest.max(begin.elapsed());
    }
    println!("slowest start {slowest:?}");
    thread::sleep(Duration::from_millis(500));
    assert!(load.written.lock().unwrap().len() > 20, "there was hardly any load\n{}", logs(&cluster));
    load.end(&mut cluster);
}

/// The daemon gets ten seconds ([`Cluster::stop`]), with a mount and an uploader that go on meanwhile.
#[test]
fn a_daemon_that_is_told_to_stop_under_load_ends_in_time_and_leaves_only_its_data() {
    let mut cluster = Cluster::start();
    let load = Load::start(&cluster);
    for _ in 0..3 {
        thread::sleep(Duration::from_secs(1));
        let address = cluster.url().trim_start_matches("http://").to_owned();
        cluster.stop();
        assert!(TcpStream::connect(&address).is_err(), "somebody still listens on {address}");
        // No lock is held, no socket is left, and what was begun to be stored is stored or gone.
        sh(
            &cluster.data(),
            "flock -n lock true && [ -z \"$(find . -type s)\" ] && [ -z \"$(find nodes/*/staging -type f)\" ]",
        );
        cluster.launch();
    }
    thread::sleep(Duration::from_millis(500));
    load.end(&mut cluster);
}
