//! Starting and stopping, and what lies around meanwhile.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::cluster::{Cluster, open_to_others, program, signal};
use super::shell::sh;

#[test]
fn a_second_daemon_on_one_data_directory_refuses() {
    let cluster = Cluster::start();
    let output = Command::new("timeout")
        .arg("5")
        .arg(program("tandemd"))
        .arg("--data")
        .arg(cluster.data())
        .args(["--listen", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert_ne!(output.status.code(), Some(124), "it did not refuse by itself");
    assert!(!String::from_utf8_lossy(&output.stderr).is_empty());
    cluster.status();
}

#[test]
fn it_stops_cleanly_under_load_and_keeps_its_files_to_itself() {
    let mut cluster = Cluster::start();
    let mount = cluster.mount("m");
    sh(mount.path(), "for i in $(seq 30); do head -c 100000 /dev/urandom > f$i; done; md5sum f* > /dev/null");
    let options = sh(mount.path(), "findmnt -no FSTYPE,SOURCE,OPTIONS .");
    assert!(options.contains("fuse.tandemfs") && options.contains(cluster.url()), "{options}");
    assert!(
        options.contains("nosuid") && options.contains("nodev") && options.contains("default_permissions"),
        "{options}"
    );
    // Nothing secret where everybody can look (security.md B12).
    sh(
        mount.path(),
        "! cat /proc/*/cmdline /proc/mounts 2>/dev/null | tr '\\0' ' ' | grep -v grep | grep -F admin123",
    );
    cluster.stop();
    assert_eq!(open_to_others(&cluster.data()), Vec::<std::path::PathBuf>::new());
    cluster.launch();
    sh(mount.path(), "[ $(ls | wc -l) = 30 ] && cat f* | wc -c");
    mount.unmount();
}

#[test]
fn the_mount_says_why_it_cannot() {
    let cluster = Cluster::start();
    let point = cluster.root().join("m");
    std::fs::create_dir(&point).unwrap();
    for (user, password, options, path) in [
        ("admin", "wrong", "", &point),
        ("admin", "admin123", "volume=nosuch", &point),
        ("admin", "admin123", "nosuchoption", &point),
        ("admin", "admin123", "", &cluster.root().join("missing")),
    ] {
        let output = cluster.try_mount(user, password, path, options);
        assert!(!output.status.success(), "{user} {password} {options} {}", path.display());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.trim().is_empty() && !said.contains("panicked"), "{said}");
        assert!(!said.contains("admin123"), "{said}");
    }
}

#[test]
fn a_killed_mount_leaves_what_was_synced_and_can_be_mounted_again() {
    let cluster = Cluster::start();
    let mount = cluster.mount("m");
    sh(mount.path(), "echo kept > f && sync f");
    signal(mount.pid(), "KILL");
    std::thread::sleep(Duration::from_millis(300));
    let again = cluster.mount("m");
    assert_eq!(sh(again.path(), "cat f"), "kept\n");
    again.unmount();
    drop(mount);
}
