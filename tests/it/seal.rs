//! What is secret outlives the daemon's disk, and lies sealed where that is asked for (docs/durability.md).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::cluster::{Cluster, Rest, program};
use super::journal::lose_disk;
use super::shell::sh;

/// Writes a passphrase into a file of mode 0600.
fn passphrase(root: &Path, name: &str, text: &str) -> String {
    let path = root.join(name);
    fs::write(&path, text).expect("the file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
    path.display().to_string()
}

/// All files under a directory that hold some bytes.
fn holding(directory: &Path, part: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(holding(&path, part));
        } else if fs::read(&path).unwrap_or_default().windows(part.len()).any(|window| window == part) {
            found.push(path);
        }
    }
    found
}

/// Starts a daemon that is expected to refuse; what it says.
fn refused(data: &Path, options: &[&str]) -> String {
    let mut command = Command::new("timeout");
    command.arg("30").arg(program("tandemd")).arg("--data").arg(data);
    command.args(["--listen", "127.0.0.1:0"]).args(options).stdin(Stdio::null());
    let output = command.output().expect("timeout runs");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    said.lines().last().unwrap_or_default().to_owned()
}

async fn me(rest: &Rest, cluster: &Cluster, token: &str) -> u16 {
    let request = rest.http.get(format!("{}/v1/me", cluster.url())).bearer_auth(token);
    request.send().await.expect("an answer").status().as_u16()
}

/// The key of the admin's home, as a mount is told it.
async fn volume_key(admin: &Rest) -> Vec<u8> {
    let answer = admin
        .request("POST", "/fs/v1/sessions")
        .json(&json!({"volume": null, "read_only": true, "client": "test"}))
        .send()
        .await;
    let opened: Value = answer.expect("an answer").json().await.expect("JSON");
    hex::decode(opened["key"].as_str().unwrap_or_else(|| panic!("no key in {opened}"))).expect("digits")
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_and_the_audit_log_outlive_the_daemons_disk() {
    let mut cluster = Cluster::start();
    let admin = cluster.login("admin", "admin123").await;
    let gone = cluster.login("admin", "admin123").await;
    cluster.tandem(&["admin", "keys", "rotate"]);
    let newer = cluster.login("admin", "admin123").await;
    assert_eq!(gone.request("POST", "/v1/logout").send().await.unwrap().status(), 204);
    let keys = fs::read_to_string(cluster.data().join("jwt.key")).unwrap();
    let last =
        |cluster: &Cluster| cluster.tandem_json(&["admin", "audit", "--limit", "5000"])["entries"].clone();
    let before = last(&cluster);
    cluster.stop();
    let restored = cluster.root().join("restored");
    fs::create_dir(&restored).unwrap();
    let nodes: Vec<String> = (1..=3).map(|number| cluster.node(number).display().to_string()).collect();
    for restore in [false, true] {
        lose_disk(&cluster.data());
        let mut other = None;
        if restore {
            let output = Command::new(program("tandemd"))
                .arg("restore")
                .arg("--data")
                .arg(restored.join("data"))
                .arg("--from")
                .args(&nodes)
                .output()
                .expect("tandemd runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            other = Some(Cluster::at(&restored, &["--lease-ms", "3000"]));
        } else {
            cluster.launch();
        }
        let now = other.as_mut().unwrap_or(&mut cluster);
        assert_eq!(me(&admin, now, &admin.token).await, 200);
        assert_eq!(me(&admin, now, &newer.token).await, 200);
        assert_eq!(me(&admin, now, &gone.token).await, 401);
        assert_eq!(fs::read_to_string(now.data().join("jwt.key")).unwrap(), keys);
        assert!(super::cluster::open_to_others(&now.data()).is_empty());
        assert!(now.tandem(&["admin", "audit", "--verify"]).contains("is whole"));
        let (before, after) = (before.as_array().unwrap(), last(now));
        let after = after.as_array().unwrap();
        for entry in before {
            assert!(after.contains(entry), "{entry} is gone");
        }
        assert!(after.iter().any(|entry| entry["what"] == "restore audit log"), "{after:?}");
        now.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_secrets_lie_on_no_disk_and_open_with_the_passphrase_alone() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let root = directory.path();
    fs::create_dir(root.join("site")).expect("the site");
    let one = passphrase(root, "one", "a passphrase for this test\n");
    let two = passphrase(root, "two", "another passphrase for it\n");
    let mut cluster = Cluster::at(&root.join("site"), &["--seal-key-file", &one, "--lease-ms", "3000"]);
    let admin = cluster.login("admin", "admin123").await;
    let (status, uploaded) = admin.upload("f", b"some content".to_vec()).await;
    assert_eq!(status, 201, "{uploaded}");
    let key = volume_key(&admin).await;
    let data = cluster.data();
    assert!(!data.join("jwt.key").exists());
    cluster.stop();
    for part in [key.as_slice(), b"$argon2id$", b"create user"] {
        let found: Vec<_> =
            holding(&data, part).into_iter().filter(|path| !path.starts_with(data.join("audit"))).collect();
        assert_eq!(found, Vec::<PathBuf>::new());
    }
    // The daemon's disk is lost: what is on the nodes is of no use without the passphrase.
    lose_disk(&data);
    for _ in 0..2 {
        assert!(refused(&data, &[]).contains("name the file with the passphrase in seal_key_file"));
        assert!(
            refused(&data, &["--seal-key-file", &two])
                .contains("is not the one that the metadata is sealed with")
        );
    }
    let inside = passphrase(&data, "inside", "a passphrase for this test");
    assert!(refused(&data, &["--seal-key-file", &inside]).contains("not in the data directory"));
    fs::set_permissions(&one, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refused(&data, &["--seal-key-file", &one]).contains("chmod 600"));
    fs::set_permissions(&one, fs::Permissions::from_mode(0o600)).unwrap();
    cluster.launch();
    assert_eq!(me(&admin, &cluster, &admin.token).await, 200);
    assert_eq!(volume_key(&cluster.login("admin", "admin123").await).await, key);
    assert!(cluster.tandem(&["admin", "audit", "--verify"]).contains("is whole"));
    cluster.stop();
    // Another passphrase; the first one opens nothing any more.
    drop(cluster);
    let mut cluster = Cluster::at(
        &root.join("site"),
        &["--seal-key-file", &two, "--seal-old-key-file", &one, "--lease-ms", "3000"],
    );
    assert_eq!(me(&admin, &cluster, &admin.token).await, 200);
    cluster.stop();
    drop(cluster);
    assert!(refused(&data, &["--seal-key-file", &one]).contains("is not the one"));
    // Off again.
    let mut cluster = Cluster::at(&root.join("site"), &["--seal-old-key-file", &two, "--lease-ms", "3000"]);
    assert_eq!(me(&admin, &cluster, &admin.token).await, 200);
    assert!(data.join("jwt.key").exists());
    cluster.kill();
    cluster.launch();
    let admin = cluster.login("admin", "admin123").await;
    let (status, content) = admin.download(uploaded["file_id"].as_str().unwrap()).await;
    assert_eq!((status, content), (200, b"some content".to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lay_in_the_clear_is_gone_from_all_disks_when_it_is_sealed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let root = directory.path();
    fs::create_dir(root.join("site")).expect("the site");
    let one = passphrase(root, "one", "a passphrase for this test\n");
    let mut cluster = Cluster::at(&root.join("site"), &["--lease-ms", "3000"]);
    let admin = cluster.login("admin", "admin123").await;
    let key = volume_key(&admin).await;
    let data = cluster.data();
    let signing = fs::read_to_string(data.join("jwt.key")).unwrap().trim().to_owned();
    for user in 0..50 {
        let user = json!({"username": format!("user-{user}"), "password": "a good long password"});
        assert_eq!(admin.request("POST", "/register").json(&user).send().await.unwrap().status(), 201);
    }
    cluster.kill();
    cluster.launch();
    cluster.stop();
    drop(cluster);
    let secrets: [&[u8]; 3] = [&key, signing.as_bytes(), b"$argon2id$"];
    for part in secrets {
        assert!(holding(&data, part).iter().any(|path| path.starts_with(data.join("nodes"))));
        assert!(holding(&data, part).contains(&data.join("meta.db")));
    }
    let mut cluster = Cluster::at(&root.join("site"), &["--seal-key-file", &one, "--lease-ms", "3000"]);
    for part in secrets {
        assert_eq!(holding(&data, part), Vec::<PathBuf>::new());
    }
    assert_eq!(me(&admin, &cluster, &admin.token).await, 200);
    assert_eq!(volume_key(&cluster.login("admin", "admin123").await).await, key);
    // From the nodes alone, with one of them gone.
    cluster.stop();
    lose_disk(&data);
    sh(&data, "rm -r nodes/2");
    cluster.launch();
    assert_eq!(me(&admin, &cluster, &admin.token).await, 200);
    cluster.login("user-7", "a good long password").await;
}
