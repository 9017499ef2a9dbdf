//! Shared volumes: who may mount them, what a grant lets through, and what becomes of mounts when it ends.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::cluster::{Cluster, Mount, Rest, noise};
use super::shell::{sh, try_sh};

/// Within so long a mount must have noticed that its grant has ended.
const AT_ONCE: Duration = Duration::from_secs(5);

fn password_of(user: &str) -> String {
    format!("{user} has a long password")
}

/// A cluster with users and one shared volume that all of them may use as given.
async fn with_team(grants: &[(&str, &str)], quota: &[&str]) -> (Cluster, Rest) {
    let cluster =
        Cluster::start_with(&["--config", &super::damage::config("grace_s = 1\ncollect_interval_s = 1\n")]);
    let admin = cluster.login("admin", "admin123").await;
    cluster.tandem(&[&["admin", "volumes", "add", "team"], quota].concat());
    for (user, access) in grants {
        let body = json!({"username": user, "password": password_of(user)});
        assert_eq!(
            admin.request("POST", "/register").json(&body).send().await.expect("an answer").status(),
            201
        );
        if !access.is_empty() {
            cluster.tandem(&["admin", "grants", "set", "team", user, access]);
        }
    }
    (cluster, admin)
}

fn mount_team(cluster: &Cluster, user: &str, options: &str) -> Mount {
    let options = format!("volume=team{}{options}", if options.is_empty() { "" } else { "," });
    cluster.mount_as(user, &password_of(user), user, &options)
}

/// Checks that a user cannot mount the volume, and is told so as if there were none.
#[track_caller]
fn cannot_mount(cluster: &Cluster, user: &str) {
    let place = cluster.root().join(format!("{user}-refused"));
    fs::create_dir_all(&place).expect("a directory");
    let output = cluster.try_mount(user, &password_of(user), &place, "volume=team");
    assert_eq!(output.status.code(), Some(32));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("there is no volume \"team\"") && said.contains("or it is not granted to you"),
        "{said}"
    );
}

/// Waits until a command on a name in a mount fails in the way that is wanted.
#[track_caller]
fn fails_soon(at: &Path, command: &str, name: &str, how: &str) {
    let begun = Instant::now();
    // Not in the mount, which may let nobody in.
    let command = format!("{command} {}", at.join(name).display());
    loop {
        let output = try_sh(Path::new("/"), &format!("timeout 10 {command}"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.contains(how) {
            println!("{command}: {how} after {:?}", begun.elapsed());
            return;
        }
        assert!(output.status.success(), "{command}: {} {said}", output.status);
        assert!(begun.elapsed() < AT_ONCE, "{command} still works");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_users_share_a_volume_and_a_third_does_not_know_of_it() {
    let grants = [("alice", "write"), ("ursula", "write"), ("eve", "")];
    let (cluster, admin) = with_team(&grants, &["--quota-bytes", "1M", "--quota-files", "20"]).await;
    let (alice, ursula) = (mount_team(&cluster, "alice", ""), mount_team(&cluster, "ursula", ""));
    for (here, there) in [(&alice, &ursula), (&ursula, &alice)] {
        let name = here.path().file_name().unwrap().to_str().unwrap();
        fs::write(here.path().join(name), noise(7, 100_000)).unwrap();
        assert!(fs::read(there.path().join(name)).unwrap() == noise(7, 100_000));
        fs::rename(there.path().join(name), there.path().join(format!("{name}-renamed"))).unwrap();
        assert!(!here.path().join(name).exists());
    }
    sh(ursula.path(), "echo appended >> alice-renamed");
    assert_eq!(sh(alice.path(), "tail -c 9 alice-renamed"), "appended\n");

    // The quota is the volume's, not the user's: exact, and what df shows.
    let df = sh(alice.path(), "df --output=size -B1 . | tail -1; df --output=itotal . | tail -1");
    assert_eq!(df.split_whitespace().collect::<Vec<_>>(), ["1048576", "20"]);
    let volume = cluster.tandem_json(&["admin", "volumes", "list"])["volumes"][0].clone();
    assert_eq!((&volume["used_bytes"], &volume["files"]), (&json!(200_009), &json!(2)));
    let left = 1_048_576 - 200_009;
    let write = |size: u32| try_sh(ursula.path(), &format!("head -c {size} /dev/zero > fill && sync fill"));
    assert!(!write(left + 1).status.success());
    fs::remove_file(ursula.path().join("fill")).unwrap();
    assert!(write(left).status.success(), "to the last byte");
    let refused = try_sh(alice.path(), "for n in $(seq 40); do mkdir d$n; done");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("d18") && said.contains("Disk quota exceeded"), "3 and 17 are 20: {said}");
    let changed = cluster.tandem_json(&["admin", "volumes", "change", "team", "--quota-files", "21"]);
    assert_eq!((&changed["quota_files"], &changed["quota_bytes"]), (&json!(21), &json!(1_048_576)));
    sh(alice.path(), "mkdir d18");
    assert!(!try_sh(alice.path(), "mkdir d19").status.success());

    // Others: no mount, no session, no name in a list, nothing by a file's number.
    cannot_mount(&cluster, "eve");
    let eve = cluster.login("eve", &password_of("eve")).await;
    let get = async |who: &Rest, path: &str| {
        let answer = who.request("GET", path).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    assert_eq!(get(&eve, "/v1/volumes").await.1["volumes"], json!([]));
    assert_eq!(get(&eve, "/v1/volumes/team").await.0, 404);
    let open = json!({"volume": "team", "read_only": true, "client": "test"});
    for who in [&eve, &admin] {
        let answer = who.request("POST", "/fs/v1/sessions").json(&open).send().await.unwrap();
        assert_eq!(answer.status(), 404, "a role is no grant");
    }
    let user = cluster.login("alice", &password_of("alice")).await;
    assert_eq!(get(&user, "/files").await.1["files"], json!([]), "the home volume alone");
    let of_team = format!("/download/f{:x}-2", volume["volume_id"].as_u64().unwrap());
    assert_eq!(get(&user, &of_team).await.0, 404);

    let seen = cluster.tandem_json(&["admin", "grants", "list", "team"]);
    let pair = |name: &str| json!({"username": name, "access": "write"});
    assert_eq!(seen["grants"], json!([pair("alice"), pair("ursula")]));
    alice.unmount();
    ursula.unmount();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_grant_mounts_read_only_and_the_daemon_refuses_what_the_kernel_would_let_through() {
    let (cluster, _) = with_team(&[("alice", "write"), ("ursula", "read")], &[]).await;
    let (alice, ursula) = (mount_team(&cluster, "alice", ""), mount_team(&cluster, "ursula", "rw"));
    fs::write(alice.path().join("f"), "text").unwrap();
    assert_eq!(fs::read_to_string(ursula.path().join("f")).unwrap(), "text");
    let options = |mount: &Mount| sh(mount.path(), "findmnt -no VFS-OPTIONS,FS-OPTIONS -T .");
    assert!(
        options(&ursula).starts_with("ro,") && options(&alice).starts_with("rw,"),
        "{}",
        options(&ursula)
    );
    for command in ["touch f", "mkdir d", "rm f", "mv f g", "chmod 600 f", "truncate -s 0 f"] {
        let output = try_sh(ursula.path(), command);
        assert!(String::from_utf8_lossy(&output.stderr).contains("Read-only file system"), "{command}");
    }
    // Also when the kernel is told that it may write.
    let remounted = cluster.try_mount("", "", ursula.path(), "remount,rw");
    assert!(remounted.status.success() && options(&ursula).starts_with("rw,"));
    fails_soon(ursula.path(), "mkdir", "d", "Read-only file system");
    assert_eq!(fs::read_to_string(alice.path().join("f")).unwrap(), "text");

    let rest = cluster.login("ursula", &password_of("ursula")).await;
    let open = json!({"volume": "team", "read_only": false, "client": "test"});
    let answer = rest.request("POST", "/fs/v1/sessions").json(&open).send().await.unwrap();
    let session = answer.json::<Value>().await.unwrap();
    assert_eq!(session["read_only"], true);
    let time = json!({"seconds": 1, "nanos": 0});
    let mutations = [
        json!({"set_attributes": {"ino": 1, "set": {"mode": 511, "uid": null, "gid": null, "size": null, "atime": null,
            "mtime": null}, "by": {"uid": 0, "gid": 0}, "time": time}}),
        json!({"unlink": {"parent": 1, "name": "f", "by": {"uid": 0, "gid": 0}, "time": time}}),
    ];
    for mutation in mutations {
        let batch = json!({"sequence": 1, "mutations": [mutation], "held": []});
        let path = format!("/fs/v1/sessions/{}/batches", session["session"]);
        let answer = rest.request("POST", &path).json(&batch).send().await.unwrap();
        let (status, problem) = (answer.status().as_u16(), answer.json::<Value>().await.unwrap());
        assert_eq!((status, &problem["code"]), (403, &json!("read_only")), "{problem}");
    }
    let path = format!("/fs/v1/sessions/{}/blocks/{}", session["session"], "0".repeat(64));
    assert_eq!(rest.request("PUT", &path).body("x").send().await.unwrap().status(), 403);
    assert_eq!(fs::read_to_string(alice.path().join("f")).unwrap(), "text");
    alice.unmount();
    ursula.unmount();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_ends_ends_the_mount_at_once_and_for_good() {
    let (mut cluster, admin) = with_team(&[("alice", "write"), ("ursula", "write")], &[]).await;
    let (alice, ursula) = (mount_team(&cluster, "alice", ""), mount_team(&cluster, "ursula", ""));
    fs::write(alice.path().join("kept"), noise(1, 100_000)).unwrap();
    sh(alice.path(), "sync kept; cat kept > /dev/null; ls -l");
    cluster.tandem(&["admin", "grants", "revoke", "team", "alice"]);
    for (command, name) in [("cat", "kept"), ("ls -l", ""), ("stat", "no-such-name"), ("mkdir", "directory")]
    {
        fails_soon(alice.path(), command, name, "Permission denied");
    }
    cannot_mount(&cluster, "alice");
    assert!(fs::read(ursula.path().join("kept")).unwrap() == noise(1, 100_000), "others are not touched");

    // Less than before: what is mounted goes on, for reading.
    cluster.tandem(&["admin", "grants", "set", "team", "ursula", "read"]);
    fails_soon(ursula.path(), "mkdir", "directory", "Read-only file system");
    assert!(fs::read(ursula.path().join("kept")).unwrap() == noise(1, 100_000));
    let sessions = cluster.tandem_json(&["admin", "sessions"]);
    let sessions = sessions["sessions"].as_array().unwrap();
    assert!(sessions.iter().all(|session| session["username"] != "alice" && session["read_only"] == true));

    // After a restart as well.
    cluster.kill();
    cluster.launch();
    fails_soon(alice.path(), "cat", "kept", "Permission denied");
    cannot_mount(&cluster, "alice");
    assert!(!try_sh(ursula.path(), "mkdir directory").status.success());
    assert_eq!(sh(ursula.path(), "ls"), "kept\n");
    // Granted again, the mount finds back by itself.
    cluster.tandem(&["admin", "grants", "set", "team", "alice", "write"]);
    let begun = Instant::now();
    while fs::read(alice.path().join("kept")).is_err() {
        assert!(begun.elapsed() < 4 * AT_ONCE, "it stays away");
        std::thread::sleep(Duration::from_millis(100));
    }
    sh(alice.path(), "mkdir directory");

    // Deleted: the mounts end, the blocks go, and the name opens nothing.
    let usage = || cluster.tandem_json(&["status"])["blocks"]["total"].as_u64().unwrap();
    assert!(usage() > 0);
    cluster.tandem(&["admin", "volumes", "delete", "team"]);
    for mount in [&alice, &ursula] {
        fails_soon(mount.path(), "cat", "kept", "Permission denied");
    }
    cannot_mount(&cluster, "ursula");
    let begun = Instant::now();
    while usage() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} blocks are left", usage());
        std::thread::sleep(Duration::from_millis(300));
    }
    cluster.tandem(&["admin", "volumes", "add", "team"]);
    cannot_mount(&cluster, "ursula");
    let answer = admin.request("GET", "/v1/volumes/team/grants").send().await.unwrap();
    assert_eq!(answer.json::<Value>().await.unwrap()["grants"], json!([]));
    alice.unmount();
    ursula.unmount();
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_are_squashed_and_mapped_as_the_mount_says() {
    let (cluster, _) = with_team(&[("alice", "write"), ("ursula", "write")], &[]).await;
    let plain = mount_team(&cluster, "ursula", "allow_other");
    fs::set_permissions(plain.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let owner = |mount: &Mount, name: &str| {
        let metadata = fs::metadata(mount.path().join(name)).unwrap();
        (metadata.uid(), metadata.gid())
    };
    let as_user = |mount: &Mount, script: &str| {
        sh(mount.path(), &format!("setpriv --reuid 1000 --regid 1000 --clear-groups bash -c '{script}'"))
    };
    let mapped = mount_team(&cluster, "alice", "allow_other,root_squash,map_uid=1000:5000,map_gid=1000:6000");
    as_user(&mapped, "echo x > mine && mkdir dir");
    assert_eq!((owner(&mapped, "mine"), owner(&plain, "mine")), ((1000, 1000), (5000, 6000)));
    sh(mapped.path(), "touch of-root");
    assert_eq!((owner(&mapped, "of-root"), owner(&plain, "of-root")), ((65534, 65534), (65534, 65534)));
    sh(plain.path(), "touch theirs && chown 1000:1000 theirs && chmod 600 theirs");
    assert_eq!(owner(&mapped, "theirs"), (65534, 65534), "another user 1000 than the one here");
    let refused = try_sh(mapped.path(), "setpriv --reuid 1000 --regid 1000 --clear-groups cat theirs");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Permission denied"));
    sh(mapped.path(), "chown 1000:7 of-root");
    assert_eq!(owner(&plain, "of-root"), (5000, 7));
    let refused = try_sh(mapped.path(), "chown 0 mine");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Operation not permitted"));
    mapped.unmount();

    let squashed = "allow_other,all_squash,anonuid=5000,anongid=6000,map_uid=1000:5000,map_gid=1000:6000";
    let squashed = mount_team(&cluster, "alice", squashed);
    sh(squashed.path(), "touch all && chmod 644 all");
    as_user(&squashed, "echo y >> mine && echo z > all");
    assert_eq!((owner(&squashed, "all"), owner(&plain, "all")), ((1000, 1000), (5000, 6000)));
    squashed.unmount();
    plain.unmount();
}
