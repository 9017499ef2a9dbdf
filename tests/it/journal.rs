//! The daemon's disk is lost: what was acknowledged is on the nodes, the metadata included (docs/durability.md).

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::cluster::{Cluster, program};
use super::crash::Load;
use super::shell::sh;

/// So often the disk is lost, unless `DISK_LOSSES` says otherwise.
const LOSSES: u64 = 3;

/// Everything in a data directory but the nodes is gone.
pub fn lose_disk(data: &Path) {
    sh(data, "find . -mindepth 1 -maxdepth 1 ! -name nodes -exec rm -rf {} +");
}

#[test]
fn nothing_acknowledged_is_lost_with_the_daemons_disk() {
    let losses = std::env::var("DISK_LOSSES").ok().and_then(|losses| losses.parse().ok()).unwrap_or(LOSSES);
    let mut cluster = Cluster::start();
    let load = Load::start(&cluster);
    for loss in 0..losses {
        thread::sleep(Duration::from_millis(700 + loss * 137 % 900));
        load.wait_for_more();
        let acknowledged = load.acknowledged();
        cluster.kill();
        // What each two of the nodes have is enough.
        for lost in 1..=3 {
            let copy = cluster.root().join(format!("without-{lost}"));
            fs::create_dir(&copy).unwrap();
            sh(&copy, &format!("cp -a {} data && rm -rf data/nodes/{lost}", cluster.data().display()));
            lose_disk(&copy.join("data"));
            let other = Cluster::at(&copy, &["--lease-ms", "3000"]);
            acknowledged.verify(&other);
            assert!(other.log().contains("restored"), "{}", other.log());
            drop(other);
            fs::remove_dir_all(&copy).unwrap();
        }
        lose_disk(&cluster.data());
        cluster.launch();
    }
    load.end(&mut cluster);
}

#[test]
fn one_node_alone_says_what_is_missing_and_invents_nothing() {
    let mut cluster = Cluster::start();
    let mount = cluster.mount("m");
    sh(mount.path(), "for i in $(seq 20); do echo $i > f$i; done; sync");
    mount.unmount();
    // Runs write to different nodes.
    cluster.kill();
    cluster.launch();
    cluster.kill();
    let mut refused = 0;
    for kept in 1..=3 {
        let copy = cluster.root().join(format!("only-{kept}"));
        fs::create_dir(&copy).unwrap();
        sh(
            &copy,
            &format!("mkdir -p data/nodes && cp -a {} data/nodes/{kept}", cluster.node(kept).display()),
        );
        let output = Command::new("timeout")
            .args(["20"])
            .arg(program("tandemd"))
            .arg("--data")
            .arg(copy.join("data"))
            .args(["--listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.code() != Some(124) {
            assert!(!output.status.success() && said.contains("of the journal"), "{said}");
            refused += 1;
            let node = copy.join("data/nodes").join(kept.to_string());
            let (done, said) = restore(&copy.join("new"), &format!("--from {}", node.display()));
            assert!(!done && said.contains("of the journal"), "{said}");
            let (done, said) =
                restore(&copy.join("new"), &format!("--from {} --accept-loss", node.display()));
            assert!(done && said.contains("restored up to commit"), "{said}");
        }
    }
    assert!(refused >= 1, "each node alone had everything");
}

#[test]
fn a_damaged_database_is_put_aside_and_built_anew() {
    let mut cluster = Cluster::start();
    let mount = cluster.mount("m");
    sh(mount.path(), "mkdir d && for i in $(seq 50); do echo $i > d/f$i; done; sync");
    cluster.kill();
    sh(
        &cluster.data(),
        "for at in 0 3 7; do dd if=/dev/urandom of=meta.db bs=4096 count=1 seek=$at conv=notrunc status=none; done; rm -f meta.db-wal meta.db-shm",
    );
    cluster.launch();
    sh(mount.path(), "[ \"$(cat d/f* | sort -n | tr '\\n' ' ')\" = \"$(seq 50 | tr '\\n' ' ')\" ]");
    mount.unmount();
    assert!(cluster.log().contains("it is kept as"), "{}", cluster.log());
    sh(&cluster.data(), "ls meta.db.damaged-1");
    cluster.wait_healthy();
    // Where the nodes have no journal, it is all that there is: nothing begins anew.
    cluster.kill();
    sh(
        &cluster.data(),
        "rm -r nodes/*/journal && dd if=/dev/urandom of=meta.db bs=4096 count=3 conv=notrunc status=none && rm -f meta.db-wal meta.db-shm",
    );
    let output = Command::new("timeout")
        .arg("20")
        .arg(program("tandemd"))
        .arg("--data")
        .arg(cluster.data())
        .args(["--listen", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .output()
        .expect("timeout runs");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    sh(&cluster.data(), "ls meta.db && ! ls meta.db.damaged-2");
}

fn restore(data: &Path, arguments: &str) -> (bool, String) {
    let command = format!(
        "timeout 60 '{}' restore --data {} {arguments}",
        program("tandemd").display(),
        data.display()
    );
    let output = Command::new("sh").args(["-c", &command]).stdin(Stdio::null()).output().expect("sh runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn restore_builds_a_data_directory_around_nodes() {
    let mut cluster = Cluster::start();
    let mount = cluster.mount("m");
    sh(mount.path(), "for i in $(seq 20); do echo $i > f$i; done; sync");
    mount.unmount();
    let new = cluster.root().join("new/data");
    let [one, two, three] = [1, 2, 3].map(|number| cluster.node(number).display().to_string());
    let (done, said) = restore(&new, &format!("--from {one} {two} {three}"));
    assert!(!done && said.contains("another daemon uses it"), "{said}");
    cluster.stop();
    for (arguments, what) in [
        (format!("--from {}", cluster.root().display()), "no node's directory"),
        (format!("--from {one} {one}"), "given twice"),
    ] {
        let (done, said) = restore(&new, &arguments);
        assert!(!done && said.contains(what), "{said}");
    }
    let (done, said) = restore(&new, &format!("--from {one} {three}"));
    assert!(done && said.contains("restored up to commit") && said.contains("nodes: 1, 3"), "{said}");
    let (done, said) = restore(&new, &format!("--from {one} {three}"));
    assert!(!done && said.contains("move it away first"), "{said}");
    let restored = Cluster::at(new.parent().unwrap(), &["--lease-ms", "3000"]);
    restored.tandem(&["admin", "repair-node", "2"]);
    let mount = restored.mount("again");
    sh(
        mount.path(),
        "[ \"$(cat f* | sort -n | tr '\\n' ' ')\" = \"$(seq 20 | tr '\\n' ' ')\" ] && echo more > more && sync",
    );
    mount.unmount();
    restored.wait_healthy();
    drop(restored);
    // Its nodes are those of the old one, which sees what was done since.
    let (done, said) = restore(&cluster.root().join("third"), &format!("--from {one} {three}"));
    assert!(done, "{said}");
}

#[test]
fn a_moment_of_the_past_is_brought_back() {
    let outside = tempfile::TempDir::with_prefix("tandem-it-").unwrap();
    let settings = "grace_s = 1\ncollect_interval_s = 1\nrestore_window_s = 3600\n";
    let mut cluster = Cluster::at(outside.path(), &["--config", &super::damage::config(settings)]);
    let mount = cluster.mount("m");
    sh(mount.path(), "echo small > small; head -c 3000000 /dev/zero | tr '\\0' x > large; sync small large");
    let moment = sh(mount.path(), "date -u +%Y-%m-%dT%H:%M:%S.%NZ");
    // What is deleted, overwritten and collected since would be gone without a window.
    sh(
        mount.path(),
        "echo other > small; rm large; echo later > later; sync later; sleep 4; echo again > small; sync small",
    );
    mount.unmount();
    cluster.stop();
    let new = cluster.root().join("new/data");
    let nodes = [1, 2, 3].map(|number| cluster.node(number).display().to_string()).join(" ");
    let (done, said) = restore(&new, &format!("--until yesterday --from {nodes}"));
    assert!(!done && said.contains("neither a time"), "{said}");
    let (done, said) = restore(&new, &format!("--until {} --from {nodes}", moment.trim()));
    assert!(done && said.contains("restored up to commit"), "{said}");
    let restored = Cluster::at(new.parent().unwrap(), &["--lease-ms", "3000"]);
    let mount = restored.mount("again");
    sh(
        mount.path(),
        "[ \"$(cat small)\" = small ] && [ $(tr -d x < large | wc -c) = 0 ] && [ $(stat -c %s large) = 3000000 ]",
    );
    sh(mount.path(), "[ ! -e later ] && echo new > new && sync new");
    mount.unmount();
    restored.wait_healthy();
}

/// Small files ride in the journal: what was synced is there after the daemon and its disk are gone, with any node, and is packed.
#[test]
fn small_files_ride_in_the_journal() {
    let outside = tempfile::TempDir::with_prefix("tandem-it-").unwrap();
    let settings = "inline_bytes = 32768\nlease_ms = 3000\n";
    let mut cluster = Cluster::at(outside.path(), &["--config", &super::damage::config(settings)]);
    let mount = cluster.mount("m");
    sh(
        mount.path(),
        "mkdir d; for i in $(seq 200); do head -c $((i * 100)) /dev/zero | tr '\\0' x > d/f$i; sync d/f$i; done",
    );
    let objects =
        |cluster: &Cluster| (1..=3).map(|node| super::damage::objects(cluster, node).len()).sum::<usize>();
    assert_eq!(objects(&cluster), 0, "they lie in the journal");
    let check = "for i in $(seq 200); do [ $(tr -d x < d/f$i | wc -c) = 0 ] && [ $(stat -c %s d/f$i) = $((i * 100)) ] || exit 1; done";
    sh(mount.path(), check);
    cluster.kill();
    lose_disk(&cluster.data());
    sh(&cluster.data(), "rm -rf nodes/2");
    cluster.launch();
    cluster.tandem(&["admin", "repair-node", "2"]);
    sh(mount.path(), &format!("{check}; echo more > d/f7; sync d/f7"));
    // More than is left there is packed.
    sh(
        mount.path(),
        "mkdir e; for i in $(seq 800); do head -c 30000 /dev/urandom > e/f$i; done; sync; md5sum e/* > sums; sync",
    );
    for _ in 0..300 {
        if objects(&cluster) > 0 {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    assert!((2..=40).contains(&objects(&cluster)), "{} objects", objects(&cluster));
    mount.unmount();
    cluster.wait_healthy();
    super::damage::nodes_hold_what_is_claimed(&mut cluster);
    let mount = cluster.mount("again");
    sh(mount.path(), "md5sum -c --quiet sums && [ \"$(cat d/f7)\" = more ]");
    mount.unmount();
    cluster.stop();
    let fsck =
        Command::new(program("tandemd")).arg("fsck").arg("--data").arg(cluster.data()).output().unwrap();
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stdout));
}
