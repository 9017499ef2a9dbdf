//! What programs expect of a file system, on a mount and across two mounts of one volume.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::cluster::Cluster;
use super::shell::sh;

const CHECKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/posix-checks");
const TWO_HANDLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/two-handles");
const RANDOM_CALLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/random-calls");
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
    sh(cluster.root(), &format!("{TWO_HANDLES} one two 600"));
    let reference = TempDir::with_prefix_in("tandem-it-", "/dev/shm").unwrap();
    sh(cluster.root(), &format!("{RANDOM_CALLS} one two {} 1500", reference.path().display()));
    one.unmount();
    two.unmount();
}

#[test]
fn a_copy_takes_no_room_on_the_nodes_and_survives_its_source() {
    let cluster = Cluster::start();
    let mount = cluster.mount("m");
    sh(mount.path(), "head -c 9000001 /dev/urandom > a && mkdir d");
    let used = || sh(&cluster.data(), "find nodes/*/blocks -type f -printf '%s\\n' | sort -n | tail -n 20");
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
fn reading_changes_atime_as_the_options_say() {
    let cluster = Cluster::start();
    let mounted = |name: &str, options: &str| cluster.mount_as("admin", "admin123", name, options);
    let (usual, never, strict) =
        (mounted("usual", ""), mounted("never", "noatime"), mounted("strict", "strictatime"));
    let (files, read_only) = (mounted("files", "strictatime,nodiratime"), mounted("read_only", "ro"));
    sh(
        cluster.root(),
        r#"
        old=1000000000
        fresh() { rm -rf usual/d && mkdir usual/d && echo data > usual/d/f && cp /bin/true usual/d/run && touch -d @$old usual/d/* usual/d; }
        atime() { stat -c %.9X $1; }
        is_old() { [ "$(atime $1)" = $old.000000000 ] || { echo "$1 was read at $(atime $1)"; return 1; }; }
        later() { [[ "$(atime $1)" > "$2" ]] || { echo "$1 was read at $(atime $1), which is not after $2"; return 1; }; }
        soon() { for _ in $(seq 100); do [ "$(atime $1)" = "$2" ] && return; sleep 0.1; done; echo "$1 was read at $(atime $1), not $2"; return 1; }

        fresh
        for m in never read_only; do cat $m/d/f >/dev/null && ls $m/d >/dev/null && $m/d/run && is_old $m/d && is_old $m/d/f && is_old $m/d/run; done
        cat files/d/f >/dev/null && ls files/d >/dev/null && is_old files/d && later files/d/f $old

        fresh
        dd if=usual/d/f iflag=noatime status=none >/dev/null && is_old usual/d/f
        cat usual/d/f >/dev/null && usual/d/run && ls usual/d >/dev/null
        for path in d d/f d/run; do later usual/$path $old; done
        first=$(atime usual/d/f)
        sleep 0.02 && cat usual/d/f >/dev/null && [ "$(atime usual/d/f)" = $first ]
        soon never/d/f $first && soon read_only/d/f $first
        yesterday=$(($(date +%s) - 86401)) && touch -d @$yesterday usual/d/f && sleep 0.02 && cat usual/d/f >/dev/null
        later usual/d/f $first

        for _ in 1 2 3; do
            last=$(atime strict/d/f)
            sleep 0.02 && cat strict/d/f >/dev/null && later strict/d/f $last
        done
        soon usual/d/f $(atime strict/d/f)
        [ "$(fincore -nro pages usual/d/f)" = 1 ] || { echo "reading elsewhere has cost the pages here"; false; }
        cat strict/d/f >/dev/null && touch -a -d @$old strict/d/f && is_old strict/d/f && is_old usual/d/f
        sleep 6 && is_old strict/d/f && is_old usual/d/f
        cat strict/d/f >/dev/null && atime strict/d/f > last
        "#,
    );
    // What was read just before an unmount is told with it.
    strict.unmount();
    sh(cluster.root(), r#"[ "$(stat -c %.9X usual/d/f)" = "$(cat last)" ]"#);
    for mount in [usual, never, files, read_only] {
        mount.unmount();
    }
}

#[test]
fn the_documentation_has_the_table_of_the_checks() {
    let output = Command::new(CHECKS).arg("--table").output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/semantics.md")).unwrap();
    assert!(table.len() > 100 && page.contains(&table), "put this into docs/semantics.md:\n{table}");
}
