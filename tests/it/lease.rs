//! The lease: a mount that is alone answers before it sends, and nobody else can tell.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::cluster::{Cluster, Mount, program};
use super::metrics::{text, value};
use super::shell::sh;

fn leased(cluster: &Cluster, name: &str) -> Mount {
    let mount = cluster.mount_as("admin", "admin123", name, "lease");
    // It is asked for at once, but not waited for.
    thread::sleep(Duration::from_millis(500));
    mount
}

/// Commits of the journal so far.
fn commits(cluster: &Cluster) -> u64 {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let admin = cluster.login("admin", "admin123").await;
        value(&text(&admin).await, "tandemfs_commits_total")
    })
}

fn is_clean(cluster: &mut Cluster) {
    cluster.stop();
    let fsck = Command::new(program("tandemd")).arg("fsck").arg("--data").arg(cluster.data()).output();
    let fsck = fsck.expect("tandemd starts");
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stdout));
}

#[test]
fn many_changes_are_few_commits_and_others_see_all_of_them() {
    let mut cluster = Cluster::start();
    let mount = leased(&cluster, "m");
    let before = commits(&cluster);
    sh(mount.path(), "mkdir d && for i in $(seq 500); do echo $i > d/f$i; done && mv d e && rm e/f7");
    let made = commits(&cluster) - before;
    println!("{made} commits for about 2,500 changes");
    assert!(made < 500, "{made} commits");
    // What has just been done is there for REST and for another mount.
    sh(mount.path(), "echo rest > e/rest");
    let listed = cluster.tandem_json(&["ls", "e"]);
    assert!(listed.to_string().contains("\"rest\""), "{listed}");
    sh(mount.path(), "echo other > e/other");
    let other = cluster.mount("other");
    sh(other.path(), "[ $(ls e | wc -l) = 501 ] && [ \"$(cat e/f500 e/other)\" = \"500\nother\" ]");
    // The two of them see one another.
    for number in 0..50 {
        fs::write(mount.path().join("e/turn"), format!("{number}")).unwrap();
        assert_eq!(fs::read_to_string(other.path().join("e/turn")).unwrap(), format!("{number}"));
        fs::rename(other.path().join("e/turn"), other.path().join("e/next")).unwrap();
        assert!(fs::metadata(mount.path().join("e/turn")).is_err());
    }
    other.unmount();
    sh(mount.path(), "cp -a e copy && rm -rf e && [ $(cat copy/f* | wc -l) = 499 ]");
    mount.unmount();
    let again = cluster.mount("again");
    sh(again.path(), "[ $(cat copy/f* | wc -l) = 499 ] && [ ! -e e ]");
    again.unmount();
    is_clean(&mut cluster);
}

#[test]
fn a_mount_beside_an_idle_one_has_the_volume_to_itself_until_that_asks() {
    let mut cluster = Cluster::start();
    let other = cluster.mount("other");
    sh(other.path(), "mkdir d && echo old > d/seen && cat d/seen && ls d");
    let open = fs::File::open(other.path().join("d/seen")).unwrap();
    let mount = leased(&cluster, "m");
    // The first changes are sent one by one.
    sh(
        mount.path(),
        "for i in $(seq 60); do echo $i > d/f$i; done; sleep 1.5; for i in $(seq 9); do echo $i > d/g$i; done",
    );
    let before = commits(&cluster);
    sh(mount.path(), "for i in $(seq 500); do echo $i > d/h$i; done");
    // A look at the metrics asks nothing of the volume.
    let made = commits(&cluster) - before;
    println!("{made} commits for about 1,500 changes");
    assert!(made < 300, "{made} commits");
    sh(mount.path(), "echo new > d/seen && rm d/f1 && mv d/h500 d/last");
    sh(
        other.path(),
        "[ $(cat d/seen) = new ] && [ ! -e d/f1 ] && [ $(cat d/last) = 500 ] && [ $(ls d | wc -l) = 569 ]",
    );
    // What is open elsewhere lives on, whoever removes it.
    sh(
        mount.path(),
        "sleep 1.5; for i in $(seq 60); do echo $i > d/i$i; done; sleep 0.5; rm d/seen; echo x > d/x",
    );
    let mut text = String::new();
    std::io::Read::read_to_string(&mut &open, &mut text).unwrap();
    assert_eq!(text, "new\n");
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    drop(open);
    other.unmount();
    mount.unmount();
    is_clean(&mut cluster);
}

#[test]
fn a_mount_with_the_lease_rides_out_kills_of_the_daemon() {
    let mut cluster = Cluster::start();
    let mount = leased(&cluster, "m");
    let path = mount.path().to_owned();
    let work = thread::spawn(move || {
        for number in 0..400 {
            let name = path.join(format!("f{number}"));
            fs::write(&name, format!("{number}")).unwrap();
            if number % 7 == 0 {
                fs::File::open(&name).unwrap().sync_all().unwrap();
            }
            thread::sleep(Duration::from_millis(5));
        }
    });
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(700));
        cluster.kill();
        cluster.launch();
    }
    work.join().expect("no call failed");
    mount.unmount();
    let mount = cluster.mount("again");
    for number in 0..400 {
        assert_eq!(fs::read_to_string(mount.path().join(format!("f{number}"))).unwrap(), format!("{number}"));
    }
    mount.unmount();
    is_clean(&mut cluster);
}
