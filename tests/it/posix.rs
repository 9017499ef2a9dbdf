//! What programs expect of a file system, on a mount and across two mounts of one volume.

use std::path::Path;
use std::process::Command;

use super::cluster::Cluster;
use super::shell::sh;

const CHECKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/posix-checks");
const OPTIONS: &str = "allow_other,suid,dev";

#[test]
fn mounts_do_what_programs_expect() {
    let cluster = Cluster::start();
    let one = cluster.mount_as("admin", "admin123", "one", OPTIONS);
    let alone = sh(cluster.root(), &format!("{CHECKS} one"));
    assert!(alone.contains("0 failed"), "{alone}");
    let two = cluster.mount_as("admin", "admin123", "two", OPTIONS);
    let together = sh(cluster.root(), &format!("{CHECKS} one two"));
    assert!(together.contains("0 failed"), "{together}");
    one.unmount();
    two.unmount();
}

#[test]
fn a_copy_takes_no_room_on_the_nodes_and_survives_its_source() {
    let cluster = Cluster::start();
    let mount = cluster.mount("m");
    sh(mount.path(), "head -c 9000001 /dev/urandom > a && mkdir d");
    let used = || sh(&cluster.data(), "find nodes -type f -printf '%s\\n' | sort -n | tail -n 20");
    let before = used();
    sh(
        mount.path(),
        "cp --reflink=auto a d/b && cmp a d/b && sum=$(sha256sum <d/b) && rm a && [ \"$(sha256sum <d/b)\" = \"$sum\" ]",
    );
    assert_eq!(used(), before, "copying has stored something");
    mount.unmount();
    let mount = cluster.mount("m");
    sh(mount.path(), "[ \"$(stat -c %s d/b)\" = 9000001 ] && cat d/b >/dev/null");
    mount.unmount();
}

#[test]
fn the_documentation_has_the_table_of_the_checks() {
    let output = Command::new(CHECKS).arg("--table").output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/semantics.md")).unwrap();
    assert!(table.len() > 100 && page.contains(&table), "put this into docs/semantics.md:\n{table}");
}
