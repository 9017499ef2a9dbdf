//! What is counted when something goes wrong (faults.md R10).

use std::fs;
use std::thread;
use std::time::Duration;

use super::cluster::{Cluster, Rest, noise};
use super::damage::objects;

pub async fn text(rest: &Rest) -> String {
    let answer = rest.request("GET", "/metrics").send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert!(answer.headers()["content-type"].as_bytes().starts_with(b"application/openmetrics-text"));
    answer.text().await.expect("its body")
}

/// A sample's value; 0 if nothing was counted yet.
pub fn value(text: &str, sample: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_counted_and_only_admins_see_it() {
    let cluster = Cluster::start_with(&["--config", &super::damage::config("inline_bytes = 0\n")]);
    let admin = cluster.login("admin", "admin123").await;
    let body = serde_json::json!({"username": "alice", "password": "a good long password"});
    assert_eq!(admin.request("POST", "/register").json(&body).send().await.unwrap().status(), 201);
    let alice = cluster.login("alice", "a good long password").await;
    assert_eq!(alice.request("GET", "/metrics").send().await.unwrap().status(), 403);
    let wrong = serde_json::json!({"username": "alice", "password": "wrong"});
    assert_eq!(admin.request("POST", "/login").json(&wrong).send().await.unwrap().status(), 401);

    let mut ids = Vec::new();
    for number in 0..20 {
        let (status, file) = alice.upload(&format!("f{number}"), noise(number, 5000)).await;
        assert_eq!(status, 201);
        ids.push(file["file_id"].as_str().unwrap().to_owned());
    }
    let before = text(&admin).await;
    assert_eq!(value(&before, "tandemfs_blocks"), 20);
    assert_eq!(value(&before, "tandemfs_nodes_healthy"), 3);
    assert_eq!(value(&before, r#"tandemfs_logins_total{result="unauthenticated"}"#), 1);
    assert_eq!(value(&before, r#"tandemfs_requests_total{status="403"}"#), 1);
    assert_eq!(value(&before, r#"tandemfs_read_faults_total{node="1"}"#), 0);
    assert!(before.ends_with("# EOF\n"), "{before}");
    assert!(cluster.status()["last_scrub"].is_null());

    let damaged = objects(&cluster, 1);
    assert!(!damaged.is_empty());
    for path in damaged.values() {
        fs::write(path, "rot").unwrap();
    }
    for (number, id) in ids.iter().enumerate() {
        assert!(alice.download(id).await == (200, noise(number as u64, 5000)));
    }
    cluster.tandem(&["admin", "scrub"]);
    let mut after = String::new();
    for _ in 0..100 {
        after = text(&admin).await;
        if value(&after, "tandemfs_last_scrub_timestamp_seconds") > 0 {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    assert!(value(&after, r#"tandemfs_read_faults_total{node="1"}"#) > 0, "{after}");
    assert!(value(&after, "tandemfs_bad_copies_total") >= damaged.len() as u64, "{after}");
    assert!(value(&after, "tandemfs_copies_made_total") >= damaged.len() as u64, "{after}");
    assert!(cluster.status()["last_scrub"]["ended"].is_string());
    cluster.tandem(&["admin", "fail-node", "3"]);
    let degraded = text(&admin).await;
    assert_eq!(value(&degraded, "tandemfs_nodes_failed"), 1);
    assert!(value(&degraded, "tandemfs_blocks_under_replicated") > 0, "{degraded}");
}
