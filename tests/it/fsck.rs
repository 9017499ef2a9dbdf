//! fsck with the real programs: after kills, on damaged rows and objects, and on a daemon at work.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use tandemd::meta::sqlite::SqliteStore;
use tandemd::meta::{self, MetaStore, Write, keys};
use tandemfs::id::VolumeId;
use tandemfs::tree::Record;

use super::cluster::{Cluster, Rest, noise, program};
use super::damage::objects;

/// `tandemd fsck`: its exit status, and what it printed.
fn fsck(data: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new("timeout")
        .arg("120")
        .arg(program("tandemd"))
        .args(["fsck", "--data"])
        .arg(data)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("timeout runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// `tandemd fsck --deep` finds nothing.
#[track_caller]
pub fn is_clean(data: &Path) {
    let (status, said) = fsck(data, &["--deep"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("\nclean\n") || said.starts_with("clean\n"), "{said}");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("a runtime")
}

/// Uploads and deletes files until the daemon is gone.
async fn work(rest: Rest, round: u64) {
    for number in 0.. {
        let name = format!("d{}/r{round}-{number}", number % 3);
        let form = reqwest::multipart::Form::new()
            .text("path", name)
            .part("file", reqwest::multipart::Part::bytes(noise(number, 3000)).file_name("file"));
        let Ok(answer) = rest.request("POST", "/upload").multipart(form).send().await else { return };
        let Ok(body) = answer.json::<serde_json::Value>().await else { return };
        if number % 2 == 0
            && let Some(id) = body["file_id"].as_str()
            && rest.request("DELETE", &format!("/files/{id}")).send().await.is_err()
        {
            return;
        }
    }
}

#[test]
fn nothing_is_wrong_after_kills() {
    let mut cluster = Cluster::start_with(&["--grace-s", "1", "--collect-interval-s", "1"]);
    let runtime = runtime();
    for round in 0..5 {
        let rest = runtime.block_on(cluster.login("admin", "admin123"));
        let working = runtime.spawn(work(rest, round));
        thread::sleep(Duration::from_millis(600 + round * 337));
        cluster.kill();
        runtime.block_on(working).expect("it ends");
        is_clean(&cluster.data());
        let (status, said) = fsck(&cluster.data(), &["--repair"]);
        assert_eq!(status, Some(0), "{said}");
        assert!(!said.contains("mended:"), "{said}");
        cluster.launch();
    }
}

#[test]
fn damage_is_found_and_mended_and_the_daemon_serves() {
    let mut cluster = Cluster::start_with(&["--config", &super::damage::config("inline_bytes = 0\n")]);
    let runtime = runtime();
    let rest = runtime.block_on(cluster.login("admin", "admin123"));
    let mut ids = Vec::new();
    for number in 0..10 {
        let (status, body) = runtime.block_on(rest.upload(&format!("d/f{number}"), noise(number, 2000)));
        assert_eq!(status, 201, "{body}");
        ids.push(body["file_id"].as_str().expect("an id").to_owned());
    }
    let (status, said) = fsck(&cluster.data(), &[]);
    assert_eq!(status, Some(2), "a daemon is running: {said}");
    cluster.kill();
    is_clean(&cluster.data());

    // Rows that the daemon never wrote: each has another file's size, and the counts are wrong.
    runtime.block_on(async {
        let store = SqliteStore::open(cluster.data().join("meta.db")).expect("the database opens");
        let (from, to) = (keys::tree_prefix(VolumeId(1)), keys::tree_prefix(VolumeId(2)));
        let rows = store.scan(&from, &to, usize::MAX).await.expect("rows");
        let mut writes = Vec::new();
        for (key, value) in rows {
            match meta::record::decode(&key, &value).expect("a record") {
                Record::Inode(mut inode) => {
                    inode.nlink += 1;
                    writes.push(meta::put(key, &Record::Inode(inode)).expect("a row"));
                }
                Record::Entry(_) => writes.push(Write { key, value: None }),
                _ => {}
            }
        }
        assert!(writes.len() > 20, "{} rows", writes.len());
        store.commit(Vec::new(), writes).await.expect("a commit");
    });
    let gone = objects(&cluster, 1);
    assert!(!gone.is_empty(), "node 1 has no objects");
    gone.values().for_each(|path| std::fs::remove_file(path).expect("an object"));
    let (status, said) = fsck(&cluster.data(), &[]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("in the journal") && said.contains("lacks copies"), "{said}");
    let (status, said) = fsck(&cluster.data(), &["--repair"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("all mended"), "{said}");
    is_clean(&cluster.data());
    cluster.launch();
    let rest = runtime.block_on(cluster.login("admin", "admin123"));
    for (number, id) in ids.iter().enumerate() {
        let (status, bytes) = runtime.block_on(rest.download(id));
        assert!(status == 200 && bytes == noise(number as u64, 2000), "f{number}: {status}");
    }
    cluster.wait_healthy();
}

#[test]
fn a_daemon_at_work_is_checked_and_mended() {
    let cluster = Cluster::start();
    let runtime = runtime();
    let rest = runtime.block_on(cluster.login("admin", "admin123"));
    let working = runtime.spawn(work(runtime.block_on(cluster.login("admin", "admin123")), 0));
    let (_, body) = runtime.block_on(rest.upload("kept", noise(7, 50_000)));
    let id = body["file_id"].as_str().expect("an id").to_owned();
    for repair in [&["admin", "fsck"][..], &["admin", "fsck", "--repair"]] {
        let said = cluster.tandem(repair);
        assert!(said.contains("0 faults mended, 0 left"), "{said}");
    }
    working.abort();
    let _ = runtime.block_on(working);
    // Not every node has a copy of it.
    let lost = (1..=3).map(|node| objects(&cluster, node)).find(|objects| !objects.is_empty());
    for path in lost.expect("a node with objects").values() {
        std::fs::remove_file(path).expect("an object");
    }
    let found = cluster.try_tandem(&["admin", "fsck"]);
    let said = String::from_utf8_lossy(&found.stdout).into_owned();
    assert_eq!(found.status.code(), Some(1), "{said}");
    assert!(said.contains("lacks copies"), "{said}");
    let said = cluster.tandem(&["admin", "fsck", "--repair"]);
    assert!(said.contains("mended:") && said.contains(", 0 left"), "{said}");
    let said = cluster.tandem(&["admin", "fsck"]);
    assert!(said.contains("0 faults mended, 0 left"), "{said}");
    let (status, bytes) = runtime.block_on(rest.download(&id));
    assert!(status == 200 && bytes == noise(7, 50_000), "{status}");
}
