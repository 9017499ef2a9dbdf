//! A user who asks too often (security.md D6).

use serde_json::json;

use super::cluster::Cluster;
use super::metrics::{text, value};
use super::shell::sh;

const PASSWORD: &str = "a good long password";

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_whose_user_asks_too_often_waits_and_goes_on() {
    let cluster = Cluster::start_with(&["--max-user-requests-per-s", "20", "--lease-ms", "5000"]);
    let admin = cluster.login("admin", "admin123").await;
    let body = json!({"username": "alice", "password": PASSWORD});
    assert_eq!(admin.request("POST", "/register").json(&body).send().await.unwrap().status(), 201);

    let mount = cluster.mount_as("alice", PASSWORD, "m", "");
    let at = mount.path().to_owned();
    let writing = tokio::task::spawn_blocking(move || {
        sh(
            &at,
            "for j in 1 2 3 4 5 6; do
               (mkdir d$j; for i in $(seq 20); do head -c 70000 /dev/urandom > d$j/$i; done; sync d$j/*) &
               jobs[j]=$!
             done
             for j in 1 2 3 4 5 6; do wait ${jobs[j]}; done
             md5sum d*/* > sums; sync sums; wc -l < sums",
        )
    });
    let mut served = 0;
    while !writing.is_finished() {
        assert_eq!(admin.request("GET", "/v1/me").send().await.unwrap().status(), 200);
        served += 1;
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert_eq!(writing.await.unwrap().trim(), "120");
    mount.unmount();
    let again = cluster.mount_as("alice", PASSWORD, "m", "");
    sh(again.path(), "md5sum --quiet -c sums");
    again.unmount();

    let counted = text(&admin).await;
    let refused = value(&counted, "tandemfs_requests_total{status=\"429\"}");
    println!("{refused} requests were refused, {served} of another user served meanwhile");
    assert!(refused > 0, "the limit was not reached");
    assert_eq!(value(&counted, "tandemfs_sessions_fenced_total"), 0);
}
