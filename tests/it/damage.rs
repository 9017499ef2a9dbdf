//! Damaged objects (faults.md B1), and a check of the nodes against the records that uses neither census nor repair.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use tandemd::meta::{self, MetaStore, sqlite::SqliteStore};
use tandemfs::block;
use tandemfs::id::BlockId;

use super::cluster::{Cluster, noise};
use super::shell::sh;

/// The objects in a node's directory.
pub fn objects(cluster: &Cluster, node: u32) -> BTreeMap<BlockId, PathBuf> {
    let mut found = BTreeMap::new();
    for directory in fs::read_dir(cluster.node(node).join("blocks")).expect("the blocks of a node") {
        let directory = directory.expect("an entry").path();
        for object in fs::read_dir(&directory).expect("a directory of blocks") {
            let path = object.expect("an entry").path();
            let name =
                |path: &std::path::Path| path.file_name().expect("a name").to_string_lossy().into_owned();
            let id = (name(&directory) + &name(&path)).parse().expect("the name of an object is a block id");
            found.insert(id, path);
        }
    }
    found
}

/// Stops the daemon and compares, object by object, what lies in the nodes' directories with what the stored records claim:
/// every claimed replica is there and whole, and nothing is claimed that is not. Starts the daemon again.
pub fn nodes_hold_what_is_claimed(cluster: &mut Cluster) {
    cluster.stop();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let records = runtime.block_on(async {
        let store = SqliteStore::open(cluster.data().join("meta.db")).expect("the database opens");
        store.scan(b"b", b"c", usize::MAX).await.expect("the records of blocks")
    });
    let on_nodes: Vec<_> = (1..=3).map(|node| objects(cluster, node)).collect();
    let mut claimed = 0;
    for (key, value) in &records {
        let record: meta::record::Block = meta::record::decode(key, value).expect("a block's record");
        let id = BlockId(key[9..].try_into().expect("32 bytes"));
        if record.deleting {
            continue;
        }
        for node in &record.replicas {
            let path = on_nodes[node.0 as usize - 1]
                .get(&id)
                .unwrap_or_else(|| panic!("node {node} should hold {id}, and does not"));
            let data = block::decode(&id, fs::read(path).expect("an object").into()).expect("a whole object");
            assert_eq!(data.len(), record.size as usize);
            claimed += 1;
        }
    }
    let known: BTreeMap<BlockId, ()> =
        records.iter().map(|(key, _)| (BlockId(key[9..].try_into().expect("32 bytes")), ())).collect();
    let strays = on_nodes.iter().flat_map(BTreeMap::keys).filter(|id| !known.contains_key(id)).count();
    println!(
        "{} records, {claimed} replicas claimed and found, {strays} objects not in any record",
        records.len()
    );
    drop(runtime);
    cluster.launch();
}

#[test]
fn a_reader_never_gets_a_wrong_byte_and_repair_mends_all() {
    let mut cluster = Cluster::start_with(&["--config", &config("inline_bytes = 0\n")]);
    let mount = cluster.mount("m");
    for number in 0..1500_u64 {
        fs::write(mount.path().join(format!("f{number}")), noise(number, 1000 + number as usize)).unwrap();
    }
    mount.unmount();

    // Damage a thousand objects of node 1 in five ways.
    let there: Vec<(BlockId, PathBuf)> = objects(&cluster, 1).into_iter().collect();
    assert!(there.len() >= 900, "{} objects on node 1", there.len());
    for (number, (_, path)) in there.iter().enumerate().take(1000) {
        let mut bytes = fs::read(path).unwrap();
        match number % 5 {
            0 => {
                let at = number * 31 % bytes.len();
                bytes[at] ^= 1 << (number % 8);
                fs::write(path, bytes).unwrap();
            }
            1 => fs::write(path, &bytes[..number * 17 % bytes.len()]).unwrap(),
            2 => fs::write(path, vec![0; bytes.len()]).unwrap(),
            3 => fs::remove_file(path).unwrap(),
            // Another block's object: the next of this kind, which is whole yet, or at the end the first, which is whole again.
            _ => drop(fs::copy(&there.get(number + 5).unwrap_or(&there[4]).1, path).unwrap()),
        }
    }

    let mount = cluster.mount("m");
    for number in 0..1500_u64 {
        let content = fs::read(mount.path().join(format!("f{number}"))).unwrap();
        assert!(content == noise(number, 1000 + number as usize), "f{number} was read wrong");
    }
    mount.unmount();
    cluster.tandem(&["admin", "repair-node", "1"]);
    cluster.wait_healthy();
    nodes_hold_what_is_claimed(&mut cluster);
}

#[test]
fn a_failed_upload_and_a_deleted_file_leave_nothing_on_the_nodes() {
    let mut cluster = Cluster::start_with(&[
        "--config",
        &config("grace_s = 1\ncollect_interval_s = 1\ninline_bytes = 0\n"),
    ]);
    let mount = cluster.mount("m");
    sh(mount.path(), "for i in $(seq 50); do echo MARKER-$i > f$i; done; rm f*");
    mount.unmount();
    for _ in 0..200 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        if (1..=3).all(|node| objects(&cluster, node).is_empty()) {
            nodes_hold_what_is_claimed(&mut cluster);
            sh(&cluster.data(), "! grep -r MARKER nodes");
            return;
        }
    }
    panic!("deleted data is still on the nodes:\n{}", cluster.log());
}

/// faults.md P3. The node has lost what came after the copy was made, and has again what was deleted since.
#[test]
fn a_node_that_comes_back_as_it_was_some_time_ago_serves_nothing_old_and_is_healed() {
    let mut cluster = Cluster::start_with(&[
        "--config",
        &config("grace_s = 1\ncollect_interval_s = 1\ninline_bytes = 0\n"),
    ]);
    let stored = |cluster: &Cluster| (1..=3).map(|node| objects(cluster, node).len()).sum::<usize>();
    // What a file holds in the end; each is a block of its own.
    let content = |number: u64| match number {
        0..40 => Some(noise(number, 3000)),
        40..80 => Some(noise(1000 + number, 3000)),
        80..120 => None,
        _ => Some(noise(number, 3000)),
    };
    let mount = cluster.mount("m");
    for number in 0..120 {
        fs::write(mount.path().join(format!("f{number}")), noise(number, 3000)).unwrap();
    }
    mount.unmount();
    cluster.stop();
    sh(cluster.root(), "cp -a data/nodes/1 old");
    cluster.launch();
    let mount = cluster.mount("m");
    for number in 40..160 {
        let path = mount.path().join(format!("f{number}"));
        match content(number) {
            Some(content) => fs::write(path, content).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
    }
    mount.unmount();
    // Until the blocks of before are gone: nothing but the copy in `old` has them then.
    let mut tries = 0..300;
    while stored(&cluster) != 2 * 120 {
        assert!(
            tries.next().is_some(),
            "garbage is not collected: {} objects\n{}",
            stored(&cluster),
            cluster.log()
        );
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    cluster.stop();
    let before = objects(&cluster, 1);
    sh(cluster.root(), "rm -r data/nodes/1 && mv old data/nodes/1");
    let old = objects(&cluster, 1);
    let missing = before.keys().filter(|id| !old.contains_key(id)).count();
    let again = old.keys().filter(|id| !before.contains_key(id)).count();
    println!("{missing} objects are missing on node 1, {again} are there again");
    assert!(missing > 20 && again > 20);
    cluster.launch();

    let mount = cluster.mount("m");
    for number in 0..160 {
        let read = fs::read(mount.path().join(format!("f{number}"))).ok();
        assert!(read == content(number), "f{number} is not what it was last");
    }
    mount.unmount();
    cluster.tandem(&["admin", "repair-node", "1"]);
    cluster.wait_healthy();
    nodes_hold_what_is_claimed(&mut cluster);
    assert_eq!(stored(&cluster), 2 * 120, "two copies of each block, and nothing else");
}

/// A configuration file that lives as long as the test process.
pub fn config(text: &str) -> String {
    let file = tempfile::Builder::new().prefix("tandem-it-").suffix(".toml").tempfile().expect("a file");
    fs::write(file.path(), text).expect("the file is written");
    let (_, path) = file.keep().expect("the file is kept");
    path.display().to_string()
}
