//! Many logins at once: each hash takes 19 MiB and some milliseconds of a processor (security.md A2).

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::cluster::{Cluster, memory_kib, noise};

const LOGINS: usize = 150;

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_logins_takes_little_memory_and_others_are_served_meanwhile() {
    let cluster = Cluster::start();
    let admin = cluster.login("admin", "admin123").await;
    let (_, file) = admin.upload("f", noise(1, 4096)).await;
    let id = file["file_id"].as_str().unwrap();
    let (before, _) = memory_kib(cluster.pid());
    let crowd = (0..LOGINS).map(|_| {
        let body = json!({"username": "admin", "password": "admin123"});
        let request = admin.http.post(format!("{}/login", cluster.url())).json(&body);
        tokio::spawn(async move {
            let answer = request.send().await.unwrap();
            (answer.status().as_u16(), answer.headers().contains_key("retry-after"))
        })
    });
    let crowd: Vec<_> = crowd.collect();
    let mut slowest = Duration::ZERO;
    let mut served = 0;
    while crowd.iter().any(|login| !login.is_finished()) {
        let begun = Instant::now();
        assert!(admin.download(id).await == (200, noise(1, 4096)));
        let health = admin.http.get(format!("{}/healthz", cluster.url())).send().await.unwrap();
        assert_eq!(health.status(), 204);
        slowest = slowest.max(begun.elapsed());
        served += 1;
    }
    let (mut right, mut later) = (0, 0);
    for login in crowd {
        match login.await.unwrap() {
            (200, _) => right += 1,
            (503, true) => later += 1,
            other => panic!("{other:?}"),
        }
    }
    let (_, peak) = memory_kib(cluster.pid());
    println!(
        "{right} logged in, {later} were to come later, {served} others served, the slowest in {slowest:?}; {before} to {peak} KiB"
    );
    assert!(right > 0 && served > 0 && right + later == LOGINS);
    // Two hashes at once, and what connections and the allocator take.
    assert!(peak - before < (2 * 19 + 50) << 10, "{before} to {peak} KiB");
    assert!(slowest < Duration::from_secs(10), "others have waited {slowest:?}");
}
