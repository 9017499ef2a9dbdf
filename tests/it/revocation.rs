//! What a user has open when the user's token ends: uploads, downloads, events, mounts (security.md B7).

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::cluster::{Cluster, Rest, noise};
use super::shell::{sh, try_sh};

/// Within so long everything must have ended.
const AT_ONCE: Duration = Duration::from_secs(5);
/// More than the sockets between the two sides hold.
const LARGE: usize = 24 << 20;

fn password_of(user: &str) -> String {
    format!("{user} has a long password")
}

async fn new_user(admin: &Rest, name: &str) {
    let body = json!({"username": name, "password": password_of(name)});
    let answer = admin.request("POST", "/register").json(&body).send().await.expect("an answer");
    assert_eq!(answer.status(), 201);
}

async fn done(request: reqwest::RequestBuilder) -> Value {
    let answer = request.send().await.expect("an answer");
    let (status, text) = (answer.status(), answer.text().await.expect("its body"));
    assert!(status.is_success(), "{status} {text}");
    serde_json::from_str(&text).unwrap_or_default()
}

/// A body that is begun and then says nothing more.
fn endless() -> reqwest::Body {
    let first = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from(vec![7; 100_000]))]);
    reqwest::Body::wrap_stream(first.chain(futures::stream::pending()))
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_downloads_and_events_end_with_their_token() {
    let cluster = Cluster::start();
    let admin = cluster.login("admin", "admin123").await;
    for ending in ["logout", "disable", "delete", "role", "reset", "password", "revoke"] {
        let user = format!("user-{ending}");
        new_user(&admin, &user).await;
        let mut rest = cluster.login(&user, &password_of(&user)).await;
        let other = cluster.login(&user, &password_of(&user)).await;
        let created = done(rest.request("POST", "/v1/tokens").json(&json!({"name": "mount"}))).await;
        if ending == "revoke" {
            rest.token = created["token"].as_str().unwrap().to_owned();
        }
        let (status, file) = rest.upload("large", vec![1; LARGE]).await;
        assert_eq!(status, 201, "{file}");

        let form = reqwest::multipart::Form::new()
            .part("file", reqwest::multipart::Part::stream(endless()).file_name("file"));
        let upload = tokio::spawn(rest.request("POST", "/upload").multipart(form).send());
        let path = format!("/download/{}", file["file_id"].as_str().unwrap());
        let mut download = rest.request("GET", &path).send().await.unwrap();
        assert_eq!(download.status(), 200);
        let open = json!({"volume": null, "read_only": true, "client": "test"});
        let session = done(rest.request("POST", "/fs/v1/sessions").json(&open)).await["session"].clone();
        let events = rest.request("GET", &format!("/fs/v1/sessions/{session}/events")).send().await.unwrap();
        assert_eq!(events.status(), 200);
        let mut events = events.bytes_stream();
        assert!(events.next().await.unwrap().is_ok(), "the heartbeat at the start");
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!upload.is_finished());

        let change = |change: Value| admin.request("PATCH", &format!("/v1/users/{user}")).json(&change);
        match ending {
            "logout" => done(rest.request("POST", "/v1/logout")).await,
            "disable" => done(change(json!({"disabled": true}))).await,
            "delete" => done(admin.request("DELETE", &format!("/v1/users/{user}"))).await,
            "role" => done(change(json!({"role": "admin"}))).await,
            "reset" => done(change(json!({"password": "chosen by an admin"}))).await,
            "password" => {
                let body = json!({"current": password_of(&user), "new": "another long password"});
                done(other.request("POST", "/v1/me/password").json(&body)).await
            }
            _ => {
                let id = created["token_id"].as_str().unwrap();
                done(other.request("DELETE", &format!("/v1/tokens/{id}"))).await
            }
        };
        let end = Instant::now();
        let answer = timeout(AT_ONCE, upload).await.expect("the upload ends").unwrap();
        // The daemon may close the connection before the client has read its answer.
        assert!(answer.as_ref().map_or(true, |answer| answer.status() == 401), "{ending}: {answer:?}");
        let cut = timeout(AT_ONCE, async { while events.next().await.is_some_and(|event| event.is_ok()) {} });
        cut.await.unwrap_or_else(|_| panic!("{ending}: events go on"));
        let rest_of_it = async {
            let mut read = 0;
            while let Ok(Some(data)) = download.chunk().await {
                read += data.len();
            }
            read
        };
        let read = timeout(AT_ONCE, rest_of_it).await.expect("the download ends");
        assert!(read < LARGE, "{ending}: the whole file came");
        assert_eq!(rest.request("GET", "/v1/me").send().await.unwrap().status(), 401, "{ending}");
        let still = other.request("GET", "/v1/me").send().await.unwrap().status();
        let ends_one = matches!(ending, "logout" | "revoke");
        assert_eq!(still, if ends_one { 200 } else { 401 }, "{ending}: the user's other token");
        println!("{ending}: all had ended after {:?}, {read} bytes of {LARGE} had come", end.elapsed());
    }
    assert_eq!(admin.request("GET", "/v1/me").send().await.unwrap().status(), 200);
}

/// Waits until a command in a mount fails, and checks that it does so with EACCES and in time.
#[track_caller]
fn denied_within(at: &Path, command: &str, name: &str) {
    let begun = Instant::now();
    let command = format!("{command} '{}'", at.join(name).display());
    loop {
        let output = try_sh(Path::new("/"), &format!("timeout 10 {command}"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.contains("Permission denied") {
            println!("{command}: EACCES after {:?}", begun.elapsed());
            return;
        }
        assert!(output.status.success(), "{command}: {} {said}", output.status);
        assert!(begun.elapsed() < AT_ONCE, "{command} still works");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_whose_user_is_let_in_no_more_says_so_and_can_be_unmounted() {
    let cluster = Cluster::start();
    let admin = cluster.login("admin", "admin123").await;
    for user in ["alice", "ursula"] {
        new_user(&admin, user).await;
    }
    // A mount that takes the refusal for an absence would wait for so long, which nothing can cut short.
    let by_password = cluster.mount_as("alice", &password_of("alice"), "by-password", "offline_timeout=20s");
    let ursula = cluster.login("ursula", &password_of("ursula")).await;
    let created = done(ursula.request("POST", "/v1/tokens").json(&json!({"name": "mount"}))).await;
    let credentials = cluster.root().join("credentials");
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&credentials).unwrap();
    fs::write(&credentials, format!("token = {}\n", created["token"])).unwrap();
    let options = format!("offline_timeout=20s,credentials={}", credentials.display());
    let by_token = cluster.mount_as("", "", "by-token", &options);
    for mount in [&by_password, &by_token] {
        fs::write(mount.path().join("kept"), noise(1, 100_000)).unwrap();
        sh(mount.path(), "sync kept && cat kept | md5sum && ls -l");
    }

    done(admin.request("PATCH", "/v1/users/alice").json(&json!({"disabled": true}))).await;
    let id = created["token_id"].as_str().unwrap();
    done(admin.request("DELETE", &format!("/v1/tokens/{id}?user=ursula"))).await;
    for mount in [&by_password, &by_token] {
        // What every cache has, what none has, and a change.
        denied_within(mount.path(), "cat", "kept");
        denied_within(mount.path(), "ls -l", "");
        denied_within(mount.path(), "stat", "no-such-name");
        denied_within(mount.path(), "mkdir", "directory");
    }
    by_token.unmount();
    by_password.unmount();

    // Nobody was locked out: the mount has not gone on guessing with the password.
    done(admin.request("PATCH", "/v1/users/alice").json(&json!({"disabled": false}))).await;
    let again = cluster.mount_as("alice", &password_of("alice"), "by-password", "");
    assert!(fs::read(again.path().join("kept")).unwrap() == noise(1, 100_000));
    again.unmount();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_signs_while_requests_run_and_none_of_them_notices() {
    let cluster = Cluster::start();
    let admin = cluster.login("admin", "admin123").await;
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let http = (admin.request("GET", "/v1/me"), admin.request("GET", "/status"));
    let load = tokio::spawn(async move {
        let mut count = 0_u32;
        while !*stopped.borrow_and_update() {
            for request in [&http.0, &http.1] {
                let answer = request.try_clone().unwrap().send().await.unwrap();
                assert_eq!(answer.status(), 200);
                count += 1;
            }
        }
        count
    });
    for _ in 0..5 {
        cluster.tandem(&["admin", "keys", "rotate"]);
        let fresh = cluster.login("admin", "admin123").await;
        done(fresh.request("GET", "/v1/me")).await;
    }
    stop.send(true).unwrap();
    let count = load.await.unwrap();
    println!("{count} requests with the token of before, none refused");
    let keys = cluster.tandem_json(&["admin", "keys", "list"]);
    let keys = keys["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 6);
    let fresh = cluster.login("admin", "admin123").await;
    cluster.tandem(&["admin", "keys", "drop", keys[5]["key_id"].as_str().unwrap()]);
    assert_eq!(admin.request("GET", "/v1/me").send().await.unwrap().status(), 401);
    done(fresh.request("GET", "/v1/me")).await;
    let file = cluster.data().join("jwt.key");
    assert_eq!(sh(&cluster.data(), &format!("stat -c %a {}", file.display())), "600\n");
}

#[test]
fn the_command_changes_passwords_and_revokes_tokens() {
    let cluster = Cluster::start();
    let made = cluster.tandem(&["tokens", "create", "backup"]);
    let stored_before = fs::read_to_string(cluster.root().join("config/tandemfs/credentials.toml")).unwrap();
    let as_backup = |arguments: &[&str]| {
        cluster.command(arguments).env("TANDEM_TOKEN", made.trim()).output().expect("tandem starts")
    };
    assert!(as_backup(&["whoami"]).status.success());
    let list = cluster.tandem_json(&["tokens", "list"]);
    let named = |name: &str| {
        let tokens = list["tokens"].as_array().unwrap();
        tokens.iter().find(|token| token["name"] == name).map(|token| token["token_id"].as_str().unwrap())
    };
    cluster.tandem(&["tokens", "revoke", named("backup").unwrap()]);
    let refused = as_backup(&["whoami"]);
    assert_eq!(refused.status.code(), Some(3), "{}", String::from_utf8_lossy(&refused.stderr));
    assert!(!cluster.tandem(&["tokens", "list"]).contains("backup"));

    // Another login does not end what mounts go on with.
    let again =
        cluster.command(&["login", "-u", "admin"]).env("TANDEM_PASSWORD", "admin123").output().unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    let stored = fs::read_to_string(cluster.root().join("config/tandemfs/credentials.toml")).unwrap();
    assert_eq!(stored, stored_before);

    let passwd = |current: &str, new: &str| {
        let mut command = cluster.command(&["passwd"]);
        command.env("TANDEM_PASSWORD", current).env("TANDEM_NEW_PASSWORD", new).output().unwrap()
    };
    assert_eq!(passwd("wrong", "a good long password").status.code(), Some(3));
    assert!(!passwd("admin123", "short").status.success());
    let changed = passwd("admin123", "a good long password");
    assert!(changed.status.success(), "{}", String::from_utf8_lossy(&changed.stderr));
    let stored = fs::read_to_string(cluster.root().join("config/tandemfs/credentials.toml")).unwrap();
    assert_ne!(stored, stored_before, "this machine has a token again");
    assert_eq!(cluster.tandem(&["whoami"]).trim(), "admin (admin)");
    let old = stored_before.lines().find_map(|line| line.strip_prefix("token = ")).unwrap();
    let old = cluster.command(&["whoami"]).env("TANDEM_TOKEN", old.trim_matches('"')).output().unwrap();
    assert_eq!(old.status.code(), Some(3), "the token of before has ended");
    let mount = cluster.mount_as("admin", "a good long password", "m", "");
    sh(mount.path(), "echo x > f");
    mount.unmount();
    assert!(!cluster.try_mount("admin", "admin123", &cluster.root().join("m"), "").status.success());
}
