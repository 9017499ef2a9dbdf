//! Nodes that go while there is load: no error, and all is well again after the repair.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::cluster::{Cluster, noise};
use super::shell::{sh, try_sh};

#[test]
fn each_node_in_turn_fails_in_each_way_under_load() {
    let mut cluster = Cluster::start();
    let work = cluster.root().join("work");
    fs::create_dir(&work).unwrap();
    sh(&work, "cp -a /usr/include/linux tree && cd tree && find . -type f -exec md5sum {} + > ../sums");
    let mount = cluster.mount("m");
    let there = mount.path().to_owned();
    sh(&work, &format!("cp -a tree {}/base", there.display()));

    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let (work, stop) = (work.clone(), stop.clone());
        thread::spawn(move || {
            let mut rounds = 0;
            while !stop.load(Ordering::SeqCst) {
                let m = there.display();
                sh(
                    &work,
                    &format!(
                        "rm -rf {m}/copy && cp -a tree {m}/copy && cd {m}/copy && md5sum --quiet -c {w}/sums && cd {m}/base && md5sum --quiet -c {w}/sums",
                        w = work.display()
                    ),
                );
                rounds += 1;
            }
            rounds
        })
    };
    for mode in ["offline", "wipe", "corrupt"] {
        for node in ["1", "2", "3"] {
            thread::sleep(Duration::from_millis(300));
            cluster.tandem(&["admin", "fail-node", node, "--mode", mode]);
            thread::sleep(Duration::from_millis(700));
            assert_eq!(cluster.status()["nodes"]["failed"], 1);
            cluster.tandem(&["admin", "repair-node", node]);
            let status = cluster.status();
            assert_eq!(status["nodes"]["healthy"], 3, "after the repair of {node} ({mode}): {status}");
            // The next node may go only when every block has its copies again.
            cluster.wait_healthy();
        }
    }
    stop.store(true, Ordering::SeqCst);
    let rounds = load.join().expect("no request failed");
    println!("{rounds} rounds of copying and checking");
    assert!(rounds >= 1);

    mount.unmount();
    let mount = cluster.mount("m");
    sh(&mount.path().join("copy"), &format!("md5sum --quiet -c {}/sums", work.display()));
    mount.unmount();
    cluster.wait_healthy();
    super::damage::nodes_hold_what_is_claimed(&mut cluster);
}

#[test]
fn with_two_of_three_nodes_gone_what_is_left_works_and_nothing_hangs() {
    let cluster = Cluster::start_with(&["--config", &super::damage::config("inline_bytes = 0\n")]);
    let mount = cluster.mount("m");
    for number in 0..12_u64 {
        fs::write(mount.path().join(format!("f{number}")), noise(number, 5000)).unwrap();
    }
    mount.unmount();
    cluster.tandem(&["admin", "fail-node", "1"]);
    cluster.tandem(&["admin", "fail-node", "2"]);
    let status = cluster.status();
    assert_eq!(status["status"], "degraded");
    assert!(status["blocks"]["lost"].as_u64().unwrap() > 0, "{status}");
    let mount = cluster.mount("m");
    let (mut read, mut refused) = (0, 0);
    for number in 0..12_u64 {
        match fs::read(mount.path().join(format!("f{number}"))) {
            Ok(content) => {
                assert!(content == noise(number, 5000));
                read += 1;
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5), "{error}");
                refused += 1;
            }
        }
    }
    println!("{read} read, {refused} refused");
    assert!(read > 0 && refused > 0);
    // min_replicas is 1: a write is accepted, and counted.
    let output = try_sh(mount.path(), "timeout 20 sh -c 'echo new > new && sync new'");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    cluster.tandem(&["admin", "repair-node", "1"]);
    cluster.tandem(&["admin", "repair-node", "2"]);
    cluster.wait_healthy();
    for number in 0..12_u64 {
        assert!(fs::read(mount.path().join(format!("f{number}"))).unwrap() == noise(number, 5000));
    }
    mount.unmount();
}

#[test]
fn below_min_replicas_a_write_is_refused_in_bounded_time() {
    let cluster = Cluster::start_with(&["--config", &super::damage::config("min_replicas = 2\n")]);
    cluster.tandem(&["admin", "fail-node", "1"]);
    cluster.tandem(&["admin", "fail-node", "3"]);
    let output = try_sh(
        cluster.root(),
        &format!(
            "echo x > small; timeout 20 '{}' --url {} put small small",
            super::cluster::program("tandem").display(),
            cluster.url()
        ),
    );
    assert!(!output.status.success());
    assert_ne!(output.status.code(), Some(124), "it hung");
}
