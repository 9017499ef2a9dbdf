//! The socket by which mounts on the daemon's machine send their requests.

use std::fs;
use std::time::Duration;

use tandemfs::api::fs::OpenSession;
use tandemfs::client::{Client, Credentials};

use super::cluster::Cluster;
use super::link::Link;
use super::shell::sh;

/// The name of the daemon's socket.
async fn name(cluster: &Cluster) -> String {
    let admin = cluster.login("admin", "admin123").await;
    let client = Client::new(cluster.url(), Credentials::Token(admin.token.clone())).expect("a client");
    let open = OpenSession { volume: None, read_only: true, client: "test".to_owned() };
    let grant = client.open_session(&open).await.expect("a session");
    client.close_session(grant.session).await.expect("it ends");
    grant.local.expect("a socket").name
}

/// Connections to a socket of the abstract name space: each is listed with its name on the side of who has accepted it.
fn connections(name: &str) -> usize {
    let sockets = fs::read_to_string("/proc/net/unix").expect("the sockets");
    let is_connected = |line: &&str| line.split_whitespace().nth(5) == Some("03");
    sockets.lines().filter(|line| line.ends_with(&format!("@{name}"))).filter(is_connected).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_on_the_daemons_machine_sends_its_requests_by_a_socket() {
    let mut cluster = Cluster::start();
    let mount = cluster.mount("m");
    sh(mount.path(), "echo one > f && sync f");
    let first = name(&cluster).await;
    assert!(connections(&first) > 0, "it comes by TCP");

    // A daemon that is started anew has another one.
    cluster.kill();
    cluster.launch();
    sh(mount.path(), "echo two >> f && sync f && cat f");
    let second = name(&cluster).await;
    assert_ne!(first, second);
    tokio::time::timeout(Duration::from_secs(20), async {
        while connections(&second) == 0 {
            sh(mount.path(), "date > g && sync g");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("it goes on by TCP");
    assert_eq!(fs::read_to_string(mount.path().join("f")).unwrap(), "one\ntwo\n");
    mount.unmount();

    // Whoever has another address comes by that: it may be the way that is to be taken.
    let link = Link::to(cluster.url());
    let mount = cluster.mount_through(&link, "far");
    tokio::time::timeout(Duration::from_secs(20), async {
        while connections(&second) > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("connections of those that are gone end");
    sh(mount.path(), "[ \"$(cat f | xargs)\" = 'one two' ] && date > h && sync h");
    assert_eq!(connections(&second), 0);
    mount.unmount();
}
