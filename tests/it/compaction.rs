//! Packs of small files that are mostly deleted, and files that are rewritten in small steps.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::cluster::{Cluster, program};
use super::damage::{config, objects};
use super::shell::sh;

/// Longer than the grace period.
const GRACE: Duration = Duration::from_millis(2500);

/// Bytes of the objects on all nodes.
fn used(cluster: &Cluster) -> u64 {
    let all = (1..=3).flat_map(|node| objects(cluster, node).into_values());
    all.map(|path| path.metadata().expect("it is there").len()).sum()
}

fn clean(data: &Path) {
    let fsck = Command::new(program("tandemd"))
        .arg("fsck")
        .arg("--data")
        .arg(data)
        .output()
        .expect("tandemd starts");
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stdout));
}

/// Nothing is collected or compacted but on request.
const SETTINGS: &str = "grace_s = 1\ncollect_interval_s = 3600\nlease_ms = 3000\n";

#[test]
fn room_comes_back_from_packs_of_deleted_files() {
    let mut cluster = Cluster::start_with(&["--config", &config(SETTINGS)]);
    let mount = cluster.mount("m");
    sh(
        mount.path(),
        "mkdir d; for i in $(seq 1000); do head -c 9000 /dev/urandom > d/f$i; done; md5sum d/f*0 > sums; sync sums",
    );
    let done = cluster.tandem_json(&["admin", "compact"]);
    assert!(done["blocks_packed"].as_u64().unwrap() >= 1000, "{done}");
    let full = used(&cluster);
    assert!(full >= 2 * 9_000_000, "{full}");

    sh(mount.path(), "ls -d d/* | grep -v 0$ | xargs rm; sync d");
    thread::sleep(GRACE);
    let said = cluster.tandem_json(&["admin", "gc", "--dry-run"]);
    assert_eq!((&said["blocks_removed"], &said["packs"]), (&900.into(), &0.into()), "{said}");
    assert_eq!(said["bytes_removed"], 900 * 9000);
    let text = cluster.tandem(&["admin", "gc", "--dry-run"]);
    assert!(text.contains("900 blocks of 7.7 MiB would be removed"), "{text}");
    assert_eq!(cluster.tandem_json(&["admin", "gc"])["blocks_removed"], 900);
    // It did not change before, and the packs are what they were.
    assert_eq!(used(&cluster), full);

    let said = cluster.tandem_json(&["admin", "gc", "--dry-run"]);
    assert!(
        said["packs"].as_u64().unwrap() >= 2 && said["bytes_won"].as_u64().unwrap() > 7_000_000,
        "{said}"
    );
    let done = cluster.tandem_json(&["admin", "compact"]);
    assert_eq!((&done["state"], &done["packs"]), (&"done".into(), &said["packs"]), "{done}");
    // The hundred that are left, and perhaps that of the sums.
    assert!((100..=101).contains(&done["blocks_packed"].as_u64().unwrap()), "{done}");
    sh(mount.path(), "md5sum -c --quiet sums");
    thread::sleep(GRACE);
    cluster.tandem(&["admin", "gc"]);
    let left = used(&cluster);
    assert!(left < 2 * 1_200_000, "{left} of {full} bytes are left");
    let said = cluster.tandem_json(&["admin", "gc", "--dry-run"]);
    assert_eq!((&said["blocks_removed"], &said["packs"]), (&0.into(), &0.into()), "{said}");

    // Not from any cache.
    mount.unmount();
    cluster.stop();
    cluster.launch();
    let mount = cluster.mount("again");
    sh(mount.path(), "md5sum -c --quiet sums && [ $(ls d | wc -l) = 100 ]");
    mount.unmount();
    cluster.stop();
    clean(&cluster.data());
}

/// 5,000 synced overwrites of 4 KiB at random places leave a file in few pieces, with what was written last.
#[test]
fn a_file_that_is_rewritten_often_lies_in_few_pieces() {
    let mut cluster = Cluster::start_with(&["--config", &config(SETTINGS)]);
    let mount = cluster.mount("m");
    let script = "
import os, random
random.seed(5)
content = bytearray(4 << 20)
file = os.open('f', os.O_RDWR | os.O_CREAT)
os.pwrite(file, content, 0)
for number in range(5000):
    place, data = random.randrange(1024) * 4096, random.randbytes(4096)
    os.pwrite(file, data, place)
    os.fdatasync(file)
    content[place:place + 4096] = data
os.close(file)
open('../content', 'wb').write(content)
";
    sh(mount.path(), &format!("python3 -c \"{script}\""));
    let blocks = |cluster: &Cluster| cluster.tandem_json(&["stat", "/f"])["blocks"].as_array().unwrap().len();
    // The worker comes by every five seconds. At most 127 seams are left, and what is between 16 large extents.
    for _ in 0..100 {
        if blocks(&cluster) <= 160 {
            break;
        }
        thread::sleep(Duration::from_millis(200));
    }
    let pieces = blocks(&cluster);
    assert!(pieces <= 160, "{pieces} pieces");
    sh(mount.path(), "cmp f ../content");
    mount.unmount();
    let mount = cluster.mount("again");
    sh(mount.path(), "cmp f ../content");
    mount.unmount();
    cluster.stop();
    clean(&cluster.data());
}
