//! The systemd units: how much they leave open, and that daemon and mount run with what they leave (security.md F9). systemd itself is
//! not process 1 of the machines that run tests, so what it would do is done by unshare(1) and setpriv(1), and what its filters
//! would refuse is looked for in a trace of the daemon's system calls.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::cluster::{Cluster, program, signal};
use super::metrics::{text, value};
use super::shell::sh;

/// Somebody whom the machine does not know, as whom the daemon runs.
const USER: &str = "64017";

/// A unit file's path, and what it says.
fn unit(name: &str) -> (PathBuf, String) {
    let path = PathBuf::from(format!("{}/scripts/systemd/{name}", env!("CARGO_MANIFEST_DIR")));
    let text = std::fs::read_to_string(&path).expect("the unit");
    (path, text)
}

/// What a unit gives for a setting, in order.
fn values<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    let given = |line: &'a str| line.strip_prefix(name)?.strip_prefix('=');
    unit.lines().filter_map(given).flat_map(str::split_whitespace).collect()
}

/// The system calls of a set of systemd's, or the one of that name.
fn system_calls(name: &str) -> BTreeSet<String> {
    if !name.starts_with('@') {
        return BTreeSet::from([name.to_owned()]);
    }
    let set = sh("/".as_ref(), &format!("systemd-analyze syscall-filter {name}"));
    let names = set.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    names.flat_map(system_calls).collect()
}

/// The system calls that a unit lets through (systemd.exec(5), `SystemCallFilter=`).
fn allowed(unit: &str) -> BTreeSet<String> {
    let mut allowed = system_calls("@default");
    for line in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (refuses, names) = line.strip_prefix('~').map_or((false, line), |names| (true, names));
        for call in names.split_whitespace().flat_map(system_calls) {
            if refuses {
                allowed.remove(&call)
            } else {
                allowed.insert(call)
            };
        }
    }
    allowed
}

#[test]
fn the_units_are_right_and_the_daemons_leaves_little_open() {
    let (daemon, text) = unit("tandemd.service");
    // The threshold is in tenths.
    let command = format!(
        "systemd-analyze security --offline=true --no-pager --threshold=20 '{0}' > exposure || {{ cat exposure; exit 1; }}",
        daemon.display()
    );
    let directory = tempfile::TempDir::with_prefix("tandem-it-").unwrap();
    println!("{}", sh(directory.path(), &format!("{command}; tail -n 1 exposure")));
    for (name, expected) in [
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("PrivateDevices", "yes"),
        ("MemoryDenyWriteExecute", "yes"),
    ] {
        assert_eq!(values(&text, name), [expected], "{name}");
    }
    assert!(text.lines().any(|line| line == "CapabilityBoundingSet="), "it has no capabilities");
    // Mounts on the machine are handed blocks over a socket in the abstract name space of the machine's network.
    assert!(values(&text, "PrivateNetwork").is_empty());
    assert!(values(&text, "RestrictAddressFamilies").contains(&"AF_UNIX"));

    // Units that name programs that are there have nothing that systemd does not know.
    for name in ["tandemd.service", "tandem-mount@.service"] {
        let (_, text) = unit(name);
        let text =
            text.replace("/usr/local/bin/", &format!("{}/", program("tandemd").parent().unwrap().display()));
        let copy = directory.path().join(name);
        std::fs::write(&copy, text).unwrap();
        let said = sh(directory.path(), &format!("systemd-analyze verify --man=no './{name}' 2>&1"));
        assert!(!said.contains(name.split(['@', '.']).next().unwrap()), "{said}");
    }
}

/// The daemon as the unit starts it: its user, no privileges, a machine that is read-only but for the data, no devices.
fn confined(root: &std::path::Path, unit: &str) -> Command {
    let script = r#"
        # Copies of other tests' mounts would keep those from ending when they are unmounted.
        awk '$3 == "fuse.tandemfs" { print $2 }' /proc/mounts | while read -r other; do umount -l "$other"; done
        mount -t tmpfs -o mode=755 none /usr/local/bin
        install -m 755 "$PROGRAM" /usr/local/bin/tandemd
        mount -t tmpfs -o mode=755 none /var/lib
        mkdir /var/lib/tandemfs
        mount --bind "$ROOT/data" /var/lib/tandemfs
        mount -t tmpfs -o mode=755 none /etc
        mkdir /etc/tandemfs
        echo 'listen = "127.0.0.1:0"' > /etc/tandemfs/tandemd.toml
        mount -t tmpfs -o mode=755 none /dev
        for device in 'null 3' 'zero 5' 'full 7' 'random 8' 'urandom 9'; do
            set -- $device
            mknod -m 666 /dev/$1 c 1 $2
        done
        for place in /home /root /run; do mount -t tmpfs -o mode=000 none $place; done
        mount -t tmpfs -o mode=1777 none /tmp
        cd /
        findmnt -rno TARGET | while read -r place; do
            case $place in
                /var/lib/tandemfs | /tmp | /proc*) ;;
                *) mount -o remount,bind,ro "$place" 2>/dev/null || true ;;
            esac
        done
        for place in /usr/local/bin /var/lib /etc /dev /; do
            if touch $place/x 2>/dev/null; then echo "$place can be written to" >&2; exit 1; fi
        done
        mount -t proc -o hidepid=invisible,subset=pid none /proc
        exec setpriv --reuid $USER_ID --regid $USER_ID --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \
            strace -D -f -qq -o /var/lib/tandemfs/trace $EXEC_START
    "#;
    let start: Vec<&str> = values(unit, "ExecStart");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "bash", "-euo", "pipefail", "-c", script]);
    command.env("PROGRAM", program("tandemd")).env("ROOT", root);
    command.env("USER_ID", USER).env("EXEC_START", start.join(" "));
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_runs_with_what_its_unit_leaves_and_serves_mounts_on_the_machine() {
    let (_, unit) = unit("tandemd.service");
    let directory = tempfile::TempDir::with_prefix("tandem-it-").unwrap();
    let root = directory.path();
    sh(root, &format!("mkdir data && chmod 700 data && chown {USER}:{USER} data"));
    let mut cluster = Cluster::started_by(root, confined(root, &unit));

    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.pid())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().unwrap_or_default().to_owned()
    };
    assert_eq!(
        (field("Name:"), field("Uid:"), field("NoNewPrivs:")),
        ("tandemd".to_owned(), USER.to_owned(), "1".to_owned())
    );
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set).trim_matches('0'), "", "{set}");
    }

    // What it does all day: files by mount and by REST, blocks as open files, a failure, a repair, a scrub.
    let admin = cluster.login("admin", "admin123").await;
    assert_eq!(admin.upload("by-rest", vec![7; 5_000_000]).await.0, 201);
    let mount = cluster.mount("m");
    sh(
        mount.path(),
        "head -c 9000000 /dev/urandom > f; md5sum f by-rest > sums; sync f sums; rm -r by-rest; mkdir d; mv f d",
    );
    mount.unmount();
    let mount = cluster.mount("m");
    sh(mount.path(), "grep ' f$' sums | (cd d && md5sum --quiet -c -)");
    mount.unmount();
    for command in [
        &["admin", "fail-node", "2", "--mode", "wipe"][..],
        &["admin", "repair-node", "2"],
        &["admin", "scrub"],
        &["admin", "keys", "rotate"],
        &["status"],
    ] {
        cluster.tandem(command);
    }
    assert!(value(&text(&admin).await, "tandemfs_short_circuits_total") > 0, "nothing was handed over");
    signal(cluster.pid(), "HUP");
    cluster.stop();

    let trace = std::fs::read_to_string(root.join("data/trace")).unwrap();
    let calls = || trace.lines().filter_map(|line| line.split_once(' ').map(|(_, call)| call.trim_start()));
    let name = |call: &str| {
        let begun =
            call.split_once('(').map(|(name, _)| name).filter(|name| !name.contains([' ', '<', '+', '-']));
        begun.map(str::to_owned)
    };
    let used: BTreeSet<String> = calls().filter_map(name).collect();
    println!("system calls: {used:?}");
    assert!(used.contains("sendmsg") && used.contains("fdatasync") && used.len() > 40, "{used:?}");
    let allowed = allowed(&unit);
    let refused: Vec<_> = used.iter().filter(|call| !allowed.contains(*call)).collect();
    assert!(refused.is_empty(), "the unit's SystemCallFilter= refuses {refused:?}");

    let families = values(&unit, "RestrictAddressFamilies");
    for call in calls() {
        if let Some(socket) = call.strip_prefix("socket(").or_else(|| call.strip_prefix("socketpair(")) {
            let family = socket.split(',').next().unwrap_or_default();
            assert!(families.contains(&family), "{call}");
        }
        // MemoryDenyWriteExecute=, RestrictNamespaces=, RestrictRealtime=, RestrictSUIDSGID=
        assert!(!(call.starts_with("mmap(") && call.contains("PROT_WRITE|PROT_EXEC")), "{call}");
        assert!(!(call.starts_with("mprotect(") && call.contains("PROT_EXEC")), "{call}");
        assert!(
            !call.contains("CLONE_NEW") && !call.contains("S_ISUID") && !call.contains("S_ISGID"),
            "{call}"
        );
        assert!(!call.starts_with("sched_setscheduler("), "{call}");
    }
}

#[test]
fn the_mount_runs_with_the_capabilities_that_its_unit_leaves() {
    let (_, unit) = unit("tandem-mount@.service");
    let cluster = Cluster::start();
    let point = cluster.root().join("m");
    std::fs::create_dir(&point).unwrap();
    let credentials = cluster.root().join("credentials.toml");
    std::fs::write(&credentials, "username = \"admin\"\npassword = \"admin123\"\n").unwrap();
    std::fs::set_permissions(&credentials, std::fs::Permissions::from_mode(0o600)).unwrap();
    let start = values(&unit, "ExecStart").join(" ");
    assert_eq!(start, "/usr/local/bin/tandem-mount -f ${URL} %f -o ${OPTIONS}");

    let kept = values(&unit, "CapabilityBoundingSet")
        .into_iter()
        .map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()));
    let mut mount = Command::new("setpriv")
        .args(["--no-new-privs", "--inh-caps=-all", "--bounding-set"])
        .arg(format!("-all{}", kept.collect::<String>()))
        .arg(program("tandem-mount"))
        .args(["-f", cluster.url()])
        .arg(&point)
        .args(["-o", &format!("credentials={},allow_other", credentials.display())])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("setpriv starts");
    let root = cluster.root();
    sh(root, "for _ in $(seq 300); do mountpoint -q m && break; sleep 0.1; done; mountpoint -q m");
    let others = "as() { setpriv --reuid $1 --regid $1 --clear-groups cat f; }; as 65534; ! as 65533";
    sh(&point, &format!("echo text > f; chown 65534 f; chmod 600 f; sync f; {others}"));
    signal(mount.id(), "TERM");
    let status = mount.wait().expect("it ends");
    assert!(status.success(), "{status}");
    sh(root, "! mountpoint -q m");
}
