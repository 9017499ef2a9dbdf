//! faults.md P1: the whole site is cut off from power, again and again.
//!
//! The data disk is an ext4 image that lies on XFS with reflinks. Cloning the image at one instant gives what a disk would
//! hold after a power cut: what ext4 has not yet written to its device is not in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::cluster::Cluster;
use super::crash::{Acknowledged, pattern, write_files};
use super::shell::{sh, try_sh};

/// So often the power is cut, unless `POWER_CUTS` says otherwise.
const CUTS: u64 = 20;

/// The disks, unmounted when dropped.
struct Rig(PathBuf);

impl Rig {
    /// Both images are sparse and far larger than what the writer writes, however long the cuts take.
    fn new(directory: &Path) -> Self {
        sh(
            directory,
            "truncate -s 40G host.img && mkfs.xfs -q -m reflink=1 host.img && mkdir host live cut && mount -o loop host.img host
             truncate -s 24G host/disk.img && mkfs.ext4 -q -N 400000 -E lazy_itable_init=0,lazy_journal_init=0 host/disk.img && mount -o loop host/disk.img live",
        );
        Self(directory.to_owned())
    }

    /// What is on the disk at this instant, mounted at `cut`.
    fn cut(&self) {
        sh(&self.0, "cp --reflink=always host/disk.img host/cut.img && mount -o loop host/cut.img cut");
    }

    fn forget(&self) {
        sh(&self.0, "umount cut && rm host/cut.img");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        try_sh(
            &self.0,
            "for d in cut live host; do umount $d 2>/dev/null || umount -l $d 2>/dev/null || true; done",
        );
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_goes() {
    let cuts = std::env::var("POWER_CUTS").ok().and_then(|cuts| cuts.parse().ok()).unwrap_or(CUTS);
    let outside = tempfile::TempDir::with_prefix("tandem-it-").unwrap();
    let rig = Rig::new(outside.path());
    let cluster = Cluster::at(&outside.path().join("live"), &[]);
    let mountpoint = outside.path().join("m");
    fs::create_dir(&mountpoint).unwrap();
    assert!(cluster.try_mount("admin", "admin123", &mountpoint, "").status.success(), "{}", cluster.log());

    // The control: the rig does lose what was not synced.
    fs::write(outside.path().join("live/control"), "not synced").unwrap();
    rig.cut();
    let control = fs::read_to_string(outside.path().join("cut/control")).unwrap_or_default();
    assert_ne!(control, "not synced", "the rig keeps what was never synced: it tests nothing");
    rig.forget();

    let stop = outside.path().join("stop");
    let done = Acknowledged::default();
    let writer = {
        let (path, stop, done) = (mountpoint.clone(), stop.clone(), done.clone());
        thread::spawn(move || write_files(path, stop, done))
    };
    for cut in 0..cuts {
        thread::sleep(Duration::from_millis(100 + cut * 53 % 300));
        // Acknowledged before the cut began: these must be there. A file that is being removed just now may be gone.
        let before = done.lock().unwrap().clone();
        rig.cut();
        let after = done.lock().unwrap().clone();
        // It waits a lease for the mount that was there when the power went.
        let twin = Cluster::at(&outside.path().join("cut"), &["--lease-ms", "1500"]);
        let seen = twin.mount("look");
        for (name, seed, length) in &before {
            if !after.iter().any(|(other, _, _)| other == name) {
                continue;
            }
            let content =
                fs::read(seen.path().join(name)).unwrap_or_else(|error| panic!("cut {cut}: {name}: {error}"));
            assert!(content == pattern(*seed, *length), "cut {cut}: {name} has other bytes");
        }
        seen.unmount();
        drop(twin);
        rig.forget();
    }
    fs::write(&stop, "").unwrap();
    writer.join().expect("no call failed");
    println!("{} files acknowledged in the end", done.lock().unwrap().len());
    assert!(done.lock().unwrap().len() > 10);
    sh(outside.path(), "umount m");
}
