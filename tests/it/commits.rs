//! One node at a time is killed, wiped, full, slow, hung, or back with an old state, while four clients change files: none of them sees an
//! error or waits for long, and all is whole again afterwards (faults.md K4, B4, B6, N1).
//!
//! `NODE_FAULTS_ALL=1` has each node suffer each fault; otherwise each fault befalls one of them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::cluster::{Cluster, noise};
use super::shell::{sh, try_sh};

/// No call may take longer, if the machine is not so busy that calls take long without a fault too.
const STALL: Duration = Duration::from_secs(2);
/// Then a fault may make the slowest call so many times as long.
const SLOWER: u32 = 4;

/// What befalls a node, as scripts: they find its directory as `node` on a file system of its own, which is their working directory.
/// `THAW` sees that it is not left frozen.
const FAULTS: [(&str, &str); 6] = [
    ("killed", "mv -T node away; sleep 2; mv -T away node"),
    // The journal is looked through every ten seconds.
    ("wiped", "find node -type f ! -name .lock ! -path node/journal/node -delete || true; sleep 2"),
    (
        "full",
        "mkdir fill; n=0
         for size in 256M 32M 4M 512K 64K 4K; do
             while fallocate -l $size fill/$n 2>/dev/null; do n=$((n + 1)); done
         done
         sleep 2; rm -r fill; sleep 1",
    ),
    ("slow", "for i in $(seq 8); do fsfreeze -f .; sleep 0.4; fsfreeze -u .; sleep 0.05; done"),
    ("hung", "fsfreeze -f .; sleep 3; fsfreeze -u ."),
    (
        "back as it was",
        "cp -a node old 2>/dev/null || true; sleep 1.5; mv -T node away; sleep 1; mv -T old node; rm -r away",
    ),
];

const THAW: &str = "trap 'fsfreeze -u . 2>/dev/null || true' EXIT\n";

/// Creates, writes, syncs and renames files, and says how long the slowest of these calls took. Any error ends it with a failure.
/// A process of its own, as in `crash.rs`.
const WRITER: &str = r#"
import os, sys, time
directory, stop, prefix = sys.argv[1:]
os.chdir(directory)
def timed(call, *arguments):
    global slowest
    began = time.monotonic()
    result = call(*arguments)
    slowest = max(slowest, (time.monotonic() - began, call.__name__))
    return result
number = 0
while not os.path.exists(stop):
    length = [17, 4096, 40000][number % 3]
    data = (b'%s%08d,' % (prefix.encode(), number) * (length // 10 + 1))[:length]
    slowest = (0, '')
    fd = timed(os.open, f'{prefix}t{number}', os.O_CREAT | os.O_WRONLY, 0o644)
    assert timed(os.write, fd, data) == length
    timed(os.fsync, fd)
    timed(os.close, fd)
    timed(os.rename, f'{prefix}t{number}', f'{prefix}{number}')
    print(number, length, int(slowest[0] * 1e6), slowest[1], flush=True)
    number += 1
    time.sleep(0.02)
"#;

/// What a writer writes into a file.
fn pattern(prefix: &str, number: u64, length: usize) -> Vec<u8> {
    format!("{prefix}{number:08},").into_bytes().into_iter().cycle().take(length).collect()
}

/// What was acknowledged, by name.
type Acknowledged = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// The slowest call since it was last asked for, and which one that was.
#[derive(Clone, Default)]
struct Slowest(Arc<Mutex<(Duration, String)>>);

impl Slowest {
    fn note(&self, time: Duration, call: &str) {
        let mut slowest = self.0.lock().expect("the slowest call");
        if time > slowest.0 {
            *slowest = (time, call.to_owned());
        }
    }

    fn take(&self) -> (Duration, String) {
        std::mem::take(&mut *self.0.lock().expect("the slowest call"))
    }
}

fn write_files(directory: &Path, stop: &Path, prefix: &str, slowest: &Slowest, done: &Acknowledged) {
    let mut writer = Command::new("python3")
        .args(["-c", WRITER])
        .args([directory, stop, Path::new(prefix)])
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 starts");
    for line in BufReader::new(writer.stdout.take().expect("its output")).lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        slowest.note(Duration::from_micros(number(2)), words[3]);
        let file = (format!("{prefix}{}", words[0]), pattern(prefix, number(0), number(1) as usize));
        done.lock().expect("the list").push(file);
    }
    assert!(writer.wait().expect("it ends").success(), "a call in the mount failed");
}

fn upload_files(
    cluster: &Cluster,
    stop: Arc<AtomicBool>,
    seed: u64,
    slowest: Slowest,
    done: Acknowledged,
) -> thread::JoinHandle<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let rest = runtime.block_on(cluster.login("admin", "admin123"));
    thread::spawn(move || {
        runtime.block_on(async {
            for number in seed.. {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let content = noise(number, [100, 5000, 60_000][number as usize % 3]);
                let name = format!("up/{number}");
                let began = tokio::time::Instant::now();
                let (status, answer) = rest.upload(&name, content.clone()).await;
                slowest.note(began.elapsed(), "upload");
                assert_eq!(status, 201, "{answer}");
                done.lock().expect("the list").push((name, content));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    })
}

/// A file system for each node, unmounted when dropped.
struct Disks(PathBuf);

impl Disks {
    /// They are sparse, and larger than what the clients write.
    fn new(directory: &Path) -> Self {
        sh(
            directory,
            "mkdir -p -m 700 data/nodes
             for n in 1 2 3; do
                 truncate -s 2G disk$n.img; mkfs.ext4 -q -N 100000 disk$n.img
                 mkdir disk$n; mount -o loop disk$n.img disk$n; mkdir -m 700 disk$n/node
                 ln -s ../../disk$n/node data/nodes/$n
             done",
        );
        Self(directory.to_owned())
    }

    fn of(&self, node: u32) -> PathBuf {
        self.0.join(format!("disk{node}"))
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        let script = "for n in 1 2 3; do fsfreeze -u disk$n; umount disk$n || umount -l disk$n; done";
        try_sh(&self.0, &format!("set +e; {script}"));
    }
}

/// Waits until all blocks and all of the journal have their copies.
#[track_caller]
fn wait_whole(cluster: &Cluster, after: &str) {
    let mut status = serde_json::Value::Null;
    for _ in 0..600 {
        status = cluster.status();
        let short = |of: &str| status[of]["under_replicated"].as_u64();
        if status["status"] == "healthy" && short("blocks") == Some(0) && short("journal") == Some(0) {
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("not whole again after a node was {after}: {status}\n{}", cluster.log());
}

#[test]
fn with_one_node_at_fault_no_client_sees_an_error_or_waits_for_long() {
    let all = std::env::var("NODE_FAULTS_ALL").is_ok_and(|all| all == "1");
    let outside = tempfile::TempDir::with_prefix("tandem-it-").unwrap();
    let disks = Disks::new(outside.path());
    let settings = "node_reserve_bytes = 1048576\nprobe_interval_ms = 500\n";
    let mut cluster = Cluster::at(outside.path(), &["--config", &super::damage::config(settings)]);
    let mount = cluster.mount("m");
    fs::create_dir(mount.path().join("up")).unwrap();

    let (slowest, done) = (Slowest::default(), Acknowledged::default());
    let (stop, stop_file) = (Arc::new(AtomicBool::new(false)), outside.path().join("stop"));
    let mut clients = Vec::new();
    for prefix in ["a", "b"] {
        let (path, stop, slowest, done) =
            (mount.path().to_owned(), stop_file.clone(), slowest.clone(), done.clone());
        clients.push(thread::spawn(move || write_files(&path, &stop, prefix, &slowest, &done)));
    }
    for seed in [1_000_000, 2_000_000] {
        clients.push(upload_files(&cluster, stop.clone(), seed, slowest.clone(), done.clone()));
    }
    thread::sleep(Duration::from_secs(1));
    slowest.take();
    thread::sleep(Duration::from_secs(2));
    let (mut usual, call) = slowest.take();
    println!("no fault: the slowest call took {usual:?} ({call})");
    let mut too_slow = Vec::new();
    for (number, (fault, script)) in FAULTS.into_iter().enumerate() {
        for node in (1..=3).filter(|node| all || number as u32 % 3 + 1 == *node) {
            thread::sleep(Duration::from_secs(1));
            usual = usual.max(slowest.take().0);
            let before = done.lock().unwrap().len();
            sh(&disks.of(node), &format!("{THAW}{script}"));
            if fault == "wiped" {
                cluster.tandem(&["admin", "repair-node", &node.to_string()]);
                // What a node has of the journal is looked at every ten seconds.
                thread::sleep(Duration::from_secs(11));
            }
            wait_whole(&cluster, fault);
            let (longest, call) = slowest.take();
            let files = done.lock().unwrap().len() - before;
            println!("node {node} {fault}: the slowest call took {longest:?} ({call}), {files} files");
            if longest > STALL.max(usual * SLOWER)
                || files == 0
                || clients.iter().any(thread::JoinHandle::is_finished)
            {
                too_slow.push(format!("node {node} {fault}: {longest:?} ({call}), {files} files"));
            }
        }
    }
    println!("at other times: the slowest call took {usual:?}");
    stop.store(true, Ordering::SeqCst);
    fs::write(&stop_file, "").unwrap();
    for client in clients {
        assert!(client.join().is_ok(), "a call failed\n{}", cluster.log());
    }
    assert!(too_slow.is_empty(), "{too_slow:?}\n{}", cluster.log());

    mount.unmount();
    let mount = cluster.mount("again");
    let done = done.lock().unwrap();
    for (name, content) in done.iter() {
        let read = fs::read(mount.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(read == *content, "{name} has other bytes than were acknowledged");
    }
    println!("{} files acknowledged and read back", done.len());
    mount.unmount();
    super::damage::nodes_hold_what_is_claimed(&mut cluster);
    wait_whole(&cluster, "started again");
    cluster.stop();
    super::fsck::is_clean(&cluster.data());
}
