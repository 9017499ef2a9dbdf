//! A host that loses the network in the middle of its work.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::io::Errno;
use tokio::time::Instant;

use super::cluster::Cluster;
use super::link::Link;

const LEASE: Duration = Duration::from_secs(6);
/// For what the machine does besides.
const SLACK: Duration = Duration::from_secs(20);

#[test]
fn a_host_that_is_cut_off_is_waited_for_no_longer_than_its_lease_and_overwrites_nothing() {
    let cluster = Cluster::start_with(&["--lease-ms", &LEASE.as_millis().to_string()]);
    let link = Link::to(cluster.url());
    let (away, here) = (cluster.mount_through(&link, "away"), cluster.mount("here"));
    let [there, here_too] = [&away, &here].map(|mount| mount.path().join("file"));
    let file = File::create(&there).unwrap();
    file.write_all_at(b"sent", 0).unwrap();
    file.sync_all().unwrap();

    // What is written now never leaves that host.
    file.write_all_at(b"lost", 0).unwrap();
    link.cut();
    let begun = Instant::now();
    fs::write(here.path().join("another"), "of no concern to it").unwrap();
    assert_eq!(fs::read_to_string(&here_too).unwrap(), "sent");
    assert!(begun.elapsed() < LEASE + SLACK, "it took {:?}", begun.elapsed());
    fs::write(&here_too, "next").unwrap();

    link.mend();
    // As a child process does that was born with a copy.
    drop(file.try_clone().unwrap());
    let error = file.sync_all().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::STALE.raw_os_error()), "{error}");
    for path in [&there, &here_too] {
        assert_eq!(fs::read_to_string(path).unwrap(), "next");
    }
    // The mount goes on.
    fs::write(&there, "back again").unwrap();
    assert_eq!(fs::read_to_string(&here_too).unwrap(), "back again");
    drop(file);
    away.unmount();
    here.unmount();
}

#[test]
fn a_lock_of_a_host_that_is_cut_off_is_free_after_its_lease() {
    let cluster = Cluster::start_with(&["--lease-ms", &LEASE.as_millis().to_string()]);
    let link = Link::to(cluster.url());
    let (away, here) = (cluster.mount_through(&link, "away"), cluster.mount("here"));
    let theirs = File::create(away.path().join("file")).unwrap();
    theirs.lock().unwrap();
    let ours = File::open(here.path().join("file")).unwrap();
    assert!(ours.try_lock().is_err());

    link.cut();
    let begun = Instant::now();
    ours.lock().unwrap();
    assert!(begun.elapsed() < LEASE + SLACK, "it took {:?}", begun.elapsed());

    link.mend();
    let error = theirs.write_all_at(b"under a lock that is lost", 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::STALE.raw_os_error()), "{error}");
    drop(theirs);
    assert!(File::open(away.path().join("file")).unwrap().try_lock().is_err(), "the lock is ours");
    drop(ours);
    away.unmount();
    here.unmount();
}
