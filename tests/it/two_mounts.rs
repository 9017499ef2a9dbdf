//! What one mount has finished, every other sees in its next call.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::cluster::Cluster;

/// Rounds of five checks; `TWO_MOUNTS_ROUNDS` sets more.
const ROUNDS: u64 = 300;

#[test]
fn what_one_has_finished_the_other_sees_in_its_next_call() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.mount("one"), cluster.mount("two"));
    let mounts = [one.path(), two.path()];
    let rounds =
        std::env::var("TWO_MOUNTS_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    for round in 0..rounds {
        let [here, there] = if round % 2 == 0 { mounts } else { [mounts[1], mounts[0]] };
        let name = format!("n{}", round % 7);
        // It is not there; the other looks (and might remember that).
        assert!(!there.join(&name).exists(), "round {round}: {name} should not be there");
        let text = format!("text of round {round}");
        fs::write(here.join(&name), &text).unwrap();
        assert_eq!(fs::read_to_string(there.join(&name)).unwrap(), text, "round {round}: written");
        let longer = format!("{text}, and more");
        fs::write(here.join(&name), &longer).unwrap();
        assert_eq!(
            fs::metadata(there.join(&name)).unwrap().len(),
            longer.len() as u64,
            "round {round}: size"
        );
        assert_eq!(fs::read_to_string(there.join(&name)).unwrap(), longer, "round {round}: overwritten");
        let renamed = format!("r{}", round % 5);
        fs::rename(here.join(&name), here.join(&renamed)).unwrap();
        assert!(!there.join(&name).exists(), "round {round}: the old name");
        let (a, b) =
            (fs::metadata(here.join(&renamed)).unwrap(), fs::metadata(there.join(&renamed)).unwrap());
        assert_eq!(
            (a.ino(), a.len(), a.mtime_nsec()),
            (b.ino(), b.len(), b.mtime_nsec()),
            "round {round}: renamed"
        );
        fs::remove_file(here.join(&renamed)).unwrap();
        assert!(!there.join(&renamed).exists(), "round {round}: removed");
    }
    one.unmount();
    two.unmount();
}

#[test]
fn what_is_cut_off_by_one_is_not_read_by_the_other_any_more() {
    const LENGTH: u64 = 9 << 20;
    let cluster = Cluster::start();
    let (one, two) = (cluster.mount("one"), cluster.mount("two"));
    for data in [Vec::new(), vec![b'x'; LENGTH as usize]] {
        let here = fs::File::create(one.path().join("file")).unwrap();
        here.write_all_at(&data, 0).unwrap();
        here.set_len(LENGTH).unwrap();
        let there = fs::File::open(two.path().join("file")).unwrap();
        let places = [4096, 5 << 20, LENGTH - 100];
        for place in places {
            assert_eq!(there.read_at(&mut [0; 100], place).unwrap(), 100);
        }
        here.set_len(1).unwrap();
        for place in places {
            assert_eq!(there.read_at(&mut [0; 100], place).unwrap(), 0, "at {place}");
        }
    }
    one.unmount();
    two.unmount();
}

#[tokio::test(flavor = "multi_thread")]
async fn rest_and_mount_see_each_other_at_once() {
    let cluster = Cluster::start();
    let mount = cluster.mount("m");
    let rest = cluster.login("admin", "admin123").await;
    for round in 0..50 {
        let path = format!("d/f{round}");
        assert!(!mount.path().join(&path).exists());
        let (status, file) = rest.upload(&path, format!("up {round}").into_bytes()).await;
        assert_eq!(status, 201, "{file}");
        assert_eq!(fs::read_to_string(mount.path().join(&path)).unwrap(), format!("up {round}"));
        fs::write(mount.path().join(&path), format!("from the mount {round}")).unwrap();
        let id = file["file_id"].as_str().unwrap();
        let (status, content) = rest.download(id).await;
        assert_eq!((status, content), (200, format!("from the mount {round}").into_bytes()));
        let answer = rest.request("DELETE", &format!("/files/{id}")).send().await.unwrap();
        assert_eq!(answer.status(), 204);
        assert!(!mount.path().join(&path).exists());
    }
    mount.unmount();
}

#[test]
fn a_session_that_died_holds_nobody_up_for_longer_than_its_lease() {
    let cluster = Cluster::start_with(&["--config", &super::damage::config("lease_ms = 2000\n")]);
    let (one, two) = (cluster.mount("one"), cluster.mount("two"));
    fs::write(one.path().join("f"), "1").unwrap();
    assert_eq!(fs::read_to_string(two.path().join("f")).unwrap(), "1");
    super::cluster::signal(two.pid(), "STOP");
    let pid = two.pid();
    fs::write(one.path().join("f"), "22").unwrap();
    super::cluster::signal(pid, "CONT");
    // It was fenced meanwhile: what it shows is the new state, not what it remembers.
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(fs::read_to_string(two.path().join("f")).unwrap(), "22");
    one.unmount();
    two.unmount();
}

/// Files that two mounts have open: writes are seen by the other's next call, without close or fsync.
#[test]
fn what_was_written_through_an_open_handle_is_seen_at_once() {
    let cluster = Cluster::start();
    let mounts = [cluster.mount("one"), cluster.mount("two")];
    fs::write(mounts[0].path().join("f"), "").unwrap();
    let files = mounts
        .each_ref()
        .map(|mount| fs::OpenOptions::new().read(true).write(true).open(mount.path().join("f")).unwrap());
    let log = mounts.each_ref().map(|mount| {
        fs::OpenOptions::new().append(true).create(true).open(mount.path().join("log")).unwrap()
    });
    let mut appended = String::new();
    for round in 0..300_u64 {
        let (here, there) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
        let text = format!("text of round {round:4}");
        // Aligned to pages and across them, within the file and behind its end.
        let at = round * 37 % 20 * 1000;
        files[here].write_all_at(text.as_bytes(), at).unwrap();
        let mut read = vec![0; text.len()];
        files[there].read_exact_at(&mut read, at).unwrap();
        assert_eq!(String::from_utf8_lossy(&read), text, "round {round}");
        assert_eq!(
            files[there].metadata().unwrap().len(),
            files[here].metadata().unwrap().len(),
            "round {round}: size"
        );
        let line = format!("{round}\n");
        std::io::Write::write_all(&mut &log[here], line.as_bytes()).unwrap();
        appended.push_str(&line);
        if round % 10 == 9 {
            assert_eq!(fs::read_to_string(mounts[there].path().join("log")).unwrap(), appended);
            files[here].set_len(500).unwrap();
            assert_eq!(files[there].metadata().unwrap().len(), 500, "round {round}: cut");
        }
    }
    drop((files, log));
    let [one, two] = mounts;
    one.unmount();
    two.unmount();
}

/// The kernel cuts a write in two where it has not cached a page, and whatever else is true of its size of the file.
#[test]
fn records_that_are_appended_from_two_mounts_stay_whole() {
    const RECORDS: usize = 200;
    // Some lie within a page, some across pages, some across chunks.
    let record = |mount: u8, number: usize| {
        let length = [100, 5000, 100_000][number % 3] + number;
        let mut record = [b'a' + mount].repeat(length);
        record.extend(format!("{number:04}\n").bytes());
        record
    };
    let cluster = Cluster::start();
    let mounts = [cluster.mount("one"), cluster.mount("two")];
    std::thread::scope(|scope| {
        for (number, mount) in (0..).zip(&mounts) {
            scope.spawn(move || {
                let log = fs::OpenOptions::new().append(true).create(true).open(mount.path().join("log"));
                for at in 0..RECORDS {
                    std::io::Write::write_all(&mut log.as_ref().unwrap(), &record(number, at)).unwrap();
                }
            });
        }
    });
    for mount in &mounts {
        let mut next = [0; 2];
        for line in fs::read(mount.path().join("log")).unwrap().split_inclusive(|byte| *byte == b'\n') {
            let from = line[0] - b'a';
            let number = &mut next[usize::from(from)];
            assert!(line == record(from, *number), "record {number} of mount {from} is torn or lost");
            *number += 1;
        }
        assert_eq!(next, [RECORDS; 2]);
    }
    let [one, two] = mounts;
    one.unmount();
    two.unmount();
}
