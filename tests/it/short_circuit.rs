//! Reads of a mount on the daemon's machine: objects that are handed over as open files, to those who may have them.

use std::fs::{self, File};
use std::io::Read;
use std::time::Duration;

use serde_json::json;
use tandemfs::api::fs::{OpenSession, SessionGrant};
use tandemfs::block;
use tandemfs::client::{Client, Credentials};
use tandemfs::id::BlockId;
use tandemfs::short_circuit;

use super::cluster::{Cluster, Rest, noise};
use super::damage::{config, objects};
use super::metrics::{text, value};

const LARGE: usize = 9 << 20;

async fn count(admin: &Rest) -> u64 {
    value(&text(admin).await, "tandemfs_short_circuits_total")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_reads_objects_as_files_and_others_where_these_are_bad() {
    let cluster = Cluster::start();
    let admin = cluster.login("admin", "admin123").await;
    let data = noise(1, LARGE);
    let mount = cluster.mount("m");
    fs::write(mount.path().join("f"), &data).unwrap();
    mount.unmount();
    let before = count(&admin).await;
    let mount = cluster.mount("m");
    assert!(fs::read(mount.path().join("f")).unwrap() == data);
    mount.unmount();
    assert!(count(&admin).await >= before + 3, "a block of 4 MiB, another, and the rest");

    let nodes = (1..=3).map(|node| objects(&cluster, node));
    let damaged = nodes.max_by_key(std::collections::BTreeMap::len).expect("three nodes");
    assert!(damaged.len() >= 2, "six copies lie on three nodes");
    for path in damaged.values() {
        let mut object = fs::read(path).unwrap();
        let middle = object.len() / 2;
        object[middle] ^= 1;
        fs::write(path, object).unwrap();
    }
    let mount = cluster.mount("m");
    assert!(fs::read(mount.path().join("f")).unwrap() == data, "read from the copies that are good");
    mount.unmount();
    cluster.wait_healthy();
}

async fn session(client: &Client) -> SessionGrant {
    let open = OpenSession { volume: None, read_only: false, client: "test".to_owned() };
    client.open_session(&open).await.expect("a session")
}

fn content(id: &BlockId, mut file: File) -> Vec<u8> {
    let mut object = Vec::new();
    file.read_to_end(&mut object).expect("the object is read");
    block::decode(id, object.into()).expect("it is whole").into()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_may_read_a_block_is_given_its_object() {
    let cluster = Cluster::start();
    let admin = cluster.login("admin", "admin123").await;
    for name in ["alice", "ursula"] {
        let body = json!({"username": name, "password": "a good long password"});
        assert_eq!(admin.request("POST", "/register").json(&body).send().await.unwrap().status(), 201);
    }
    let alice = cluster.login("alice", "a good long password").await;
    let ursula = cluster.login("ursula", "a good long password").await;
    let client = |rest: &Rest| Client::new(cluster.url(), Credentials::Token(rest.token.clone())).unwrap();
    let (of_alice, of_ursula) = (client(&alice), client(&ursula));
    let (hers, other) = (session(&of_alice).await, session(&of_ursula).await);
    let socket = hers.short_circuit.clone().expect("a socket");
    let data = noise(2, 100_000);
    let id = BlockId::of(&hers.key, &data);
    of_alice.put_block(hers.session, &id, data.clone().into()).await.unwrap();

    let file = of_alice.open_block(&socket, hers.session, &id).await.expect("her object");
    assert!(content(&id, file) == data);
    assert!(of_alice.open_block(&socket, hers.session, &BlockId([7; 32])).await.is_none());
    assert!(of_alice.open_block(&socket, hers.session, &id).await.is_some(), "the connection goes on");
    // Another's session; her own, but a block of another's volume; a token that is none; no session.
    assert!(of_ursula.open_block(&socket, hers.session, &id).await.is_none());
    assert!(of_ursula.open_block(&socket, other.session, &id).await.is_none());
    let nobody = Client::new(cluster.url(), Credentials::Token("none".to_owned())).unwrap();
    assert!(nobody.open_block(&socket, hers.session, &id).await.is_none());
    assert!(of_alice.open_block(&socket, tandemfs::id::SessionId(999), &id).await.is_none());
    assert!(of_alice.open_block("tandemfs-elsewhere", hers.session, &id).await.is_none());

    // A connection ends with its token.
    let mut connection = short_circuit::Client::connect(&socket, hers.session, &alice.token).await.unwrap();
    assert!(connection.open(&id).await.unwrap().is_some());
    assert_eq!(alice.request("POST", "/v1/logout").send().await.unwrap().status(), 204);
    let ended = tokio::time::timeout(Duration::from_secs(5), async {
        while connection.open(&id).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    ended.await.expect("it is cut");

    // A failed node hands nothing out: with both nodes of the block gone there is no file.
    let session = session(&of_ursula).await;
    let id = BlockId::of(&session.key, &data);
    of_ursula.put_block(session.session, &id, data.into()).await.unwrap();
    assert!(of_ursula.open_block(&socket, session.session, &id).await.is_some());
    for node in (1..=3).filter(|node| objects(&cluster, *node).contains_key(&id)) {
        let path = format!("/admin/system/fail-node/{node}");
        assert_eq!(admin.request("POST", &path).send().await.unwrap().status(), 200);
    }
    assert!(of_ursula.open_block(&socket, session.session, &id).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_of_no_use_once_its_token_has_expired() {
    let cluster = Cluster::start_with(&["--config", &config("token_ttl_s = 3\n")]);
    let admin = cluster.login("admin", "admin123").await;
    let client = Client::new(cluster.url(), Credentials::Token(admin.token.clone())).unwrap();
    let grant = session(&client).await;
    let data = noise(3, 1000);
    let id = BlockId::of(&grant.key, &data);
    client.put_block(grant.session, &id, data.into()).await.unwrap();
    let socket = grant.short_circuit.expect("a socket");
    let mut connection = short_circuit::Client::connect(&socket, grant.session, &admin.token).await.unwrap();
    assert!(connection.open(&id).await.unwrap().is_some());
    // Asking all the while keeps the session alive, not the token.
    let ended = tokio::time::timeout(Duration::from_secs(10), async {
        while connection.open(&id).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    ended.await.expect("it is refused");
}
