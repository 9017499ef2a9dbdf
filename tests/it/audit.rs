//! The audit log of a real daemon: everything that is to be in it is, and what is taken out of it is missed (security.md F1).

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::cluster::Cluster;

fn file(cluster: &Cluster) -> PathBuf {
    let mut files = fs::read_dir(cluster.data().join("audit")).expect("the audit log");
    files.next().expect("a file").expect("an entry").path()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_do_is_in_the_audit_log_and_what_is_cut_out_is_missed() {
    let mut cluster = Cluster::start();
    let admin = cluster.login("admin", "admin123").await;
    let send = async |rest: &super::cluster::Rest, method: &str, path: &str, body: Value| {
        let request = rest.request(method, path).header("x-request-id", "marked-request");
        let request = if body.is_null() { request } else { request.json(&body) };
        request.send().await.unwrap().status().as_u16()
    };
    let alice = json!({"username": "alice", "password": "marked long password"});
    assert_eq!(send(&admin, "POST", "/register", alice.clone()).await, 201);
    assert_eq!(send(&admin, "POST", "/register", alice.clone()).await, 409);
    let wrong = json!({"username": "alice\r\nforged", "password": "marked wrong password"});
    assert_eq!(send(&admin, "POST", "/login", wrong).await, 401);
    let rest = cluster.login("alice", "marked long password").await;
    let made = rest.request("POST", "/v1/tokens").json(&json!({"name": "backup"})).send().await.unwrap();
    let made: Value = made.json().await.unwrap();
    let id = made["token_id"].as_str().unwrap();
    assert_eq!(send(&rest, "DELETE", &format!("/v1/tokens/{id}"), Value::Null).await, 204);
    let new = json!({"current": "marked long password", "new": "marked new password"});
    assert_eq!(send(&rest, "POST", "/v1/me/password", new).await, 204);
    for change in [json!({"quota_bytes": 1000}), json!({"role": "admin"}), json!({"disabled": true})] {
        assert_eq!(send(&admin, "PATCH", "/v1/users/alice", change).await, 200);
    }
    let (_, uploaded) = admin.upload("f", vec![1; 10]).await;
    let deleted = format!("/files/{}", uploaded["file_id"].as_str().unwrap());
    assert_eq!(send(&admin, "DELETE", &deleted, Value::Null).await, 204);
    assert_eq!(send(&admin, "DELETE", "/v1/users/alice", Value::Null).await, 204);
    assert_eq!(send(&admin, "POST", "/admin/system/fail-node/2", Value::Null).await, 200);
    assert_eq!(send(&admin, "POST", "/admin/system/repair-node/2", Value::Null).await, 200);
    assert_eq!(send(&admin, "POST", "/v1/logout", Value::Null).await, 204);

    let log = cluster.tandem_json(&["admin", "audit", "--limit", "5000"]);
    let entries = log["entries"].as_array().unwrap();
    let find = |who: &str, what: &str, object: &str, result: &str| {
        let found = entries.iter().find(|entry| {
            (&entry["who"], &entry["what"], &entry["object"], &entry["result"])
                == (&json!(who), &json!(what), &json!(object), &json!(result))
        });
        found.unwrap_or_else(|| panic!("{who} {what} {object} {result} is not in {entries:#?}"))
    };
    find("tandemd", "start", env!("CARGO_PKG_VERSION"), "ok");
    find("tandemd", "create user", "admin", "ok");
    find("admin", "login", "", "ok");
    let created = find("admin", "create user", "alice", "ok");
    assert_eq!((&created["from"], &created["request"]), (&json!("127.0.0.1"), &json!("marked-request")));
    find("admin", "create user", "alice", "already_exists");
    find("alice\r\nforged", "login", "", "unauthenticated");
    find("alice", "create token", "backup", "ok");
    find("alice", "revoke token", "alice/backup", "ok");
    find("alice", "change password", "alice", "ok");
    find("admin", "change user quota", "alice", "ok");
    find("admin", "change user role", "alice", "ok");
    find("admin", "change user disabled", "alice", "ok");
    find("admin", "delete file", uploaded["file_id"].as_str().unwrap(), "ok");
    find("admin", "delete user", "alice", "ok");
    find("admin", "fail node Offline", "2", "ok");
    find("admin", "repair node", "2", "ok");
    find("admin", "logout", "", "ok");
    let text = fs::read_to_string(file(&cluster)).unwrap();
    assert!(!text.contains("marked long") && !text.contains("marked wrong"));
    assert!(!text.contains(made["token"].as_str().unwrap()));
    assert_eq!(super::cluster::open_to_others(&cluster.data()), Vec::<PathBuf>::new());
    assert!(cluster.tandem(&["admin", "audit", "--verify"]).contains("is whole"));

    let lines: Vec<&str> = text.lines().collect();
    let write = |lines: &[&str]| fs::write(file(&cluster), lines.join("\n") + "\n").unwrap();
    let verify = |cluster: &Cluster| {
        let output = cluster.try_tandem(&["admin", "audit", "--verify"]);
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    write(&[&lines[..6], &lines[7..]].concat());
    assert_eq!(verify(&cluster).trim(), "entry 7 is missing");
    let changed = lines[6].replace("\"ok\"", "\"OK\"");
    write(&[&lines[..6], &[changed.as_str()], &lines[7..]].concat());
    assert!(verify(&cluster).starts_with("entry 7 was changed"));
    write(&lines[..lines.len() - 1]);
    assert_eq!(verify(&cluster).trim(), format!("entry {} is missing at the end", lines.len()));
    // Also by a daemon that was not there when it happened.
    cluster.kill();
    cluster.launch();
    assert_eq!(verify(&cluster).trim(), format!("entry {} is missing", lines.len()));
}
