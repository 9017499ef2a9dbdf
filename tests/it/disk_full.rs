//! A disk that fills up (faults.md B4).

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::cluster::Cluster;
use super::shell::{sh, try_sh};

/// A loop device with ext4 on it, unmounted when dropped.
struct Disk(std::path::PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        try_sh(Path::new("/"), &format!("umount {0} || umount -l {0}", self.0.display()));
    }
}

#[test]
fn a_full_disk_answers_no_space_and_recovers() {
    let outside = tempfile::TempDir::with_prefix("tandem-it-").unwrap();
    let disk = Disk(outside.path().join("disk"));
    sh(
        outside.path(),
        "truncate -s 192M image && mkfs.ext4 -q image && mkdir disk && mount -o loop image disk",
    );
    let settings = "grace_s = 1\ncollect_interval_s = 1\nnode_reserve_bytes = 33554432\n";
    let cluster = Cluster::at(&disk.0, &["--config", &super::damage::config(settings)]);
    let mount = cluster.mount("m");
    fs::write(mount.path().join("before"), "kept").unwrap();
    let output = try_sh(mount.path(), "timeout 120 dd if=/dev/urandom of=big bs=1M count=400 conv=fsync");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("No space left on device"), "{said}");
    let upload = format!(
        "head -c 60000000 /dev/urandom > {0}/file; curl -s -o /dev/null -w '%{{http_code}}' -H \"Authorization: Bearer $(curl -s {1}/login -H 'Content-Type: application/json' -d '{{\"username\":\"admin\",\"password\":\"admin123\"}}' | python3 -c 'import json,sys; print(json.load(sys.stdin)[\"token\"])')\" -F path=up -F file=@{0}/file {1}/upload",
        outside.path().display(),
        cluster.url()
    );
    assert_eq!(sh(outside.path(), &upload), "507");
    assert_eq!(fs::read_to_string(mount.path().join("before")).unwrap(), "kept");
    // Deleting works on a full disk, and makes it usable again without a restart.
    fs::remove_file(mount.path().join("big")).unwrap();
    let mut last = String::new();
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(200));
        let output = try_sh(mount.path(), "head -c 20000000 /dev/urandom > again && sync again");
        if output.status.success() {
            cluster.wait_healthy();
            mount.unmount();
            return;
        }
        last = String::from_utf8_lossy(&output.stderr).into_owned();
    }
    panic!("still no space: {last}\n{}", cluster.log());
}
