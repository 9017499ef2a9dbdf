//! A data directory as a daemon leaves it, what may become of it, and what fsck says.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tandemfs::api::users::Role;
use tandemfs::id::{Ino, UserId, VolumeId};
use tandemfs::tree::{Key, Record};
use tandemfs::{ErrorKind, Result};

use super::Fsck;
use crate::accounts::Caller;
use crate::daemon::{App, Daemon, Parts};
use crate::fsck::Report;
use crate::meta::sqlite::SqliteStore;
use crate::meta::{MetaStore, Write, keys, put};
use crate::options::Options;
use crate::settings::Settings;
use crate::volumes::files::Preconditions;

struct Site {
    directory: tempfile::TempDir,
    settings: Settings,
    caller: Caller,
}

impl Site {
    /// One with some files, whose daemon has stopped.
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { data: directory.path().join("data"), ..Settings::default() };
        let caller =
            Caller { user: UserId(77), username: "ann".to_owned(), role: Role::User, home: VolumeId(0) };
        let mut site = Self { directory, settings, caller };
        let daemon = site.start().await;
        let (home, writes) = daemon.volumes.new_home(UserId(77), None, None).await.unwrap();
        daemon.meta.commit(Vec::new(), writes).await.unwrap();
        site.caller.home = home;
        for number in 0..20 {
            site.upload(&daemon, number).await;
        }
        site.stop(daemon).await;
        site
    }

    async fn start(&self) -> App {
        let options = Options { settings: self.settings.clone(), first_password: None };
        let parts = Parts::from_options(&options).unwrap();
        Daemon::start(self.settings.clone(), parts).await.unwrap()
    }

    async fn stop(&self, daemon: App) {
        daemon.stop().await;
        drop(daemon);
    }

    async fn upload(&self, daemon: &App, number: u8) {
        let path = tandemfs::name::split_path(format!("d/f{number}")).unwrap();
        let mut upload = daemon.volumes.upload(&self.caller, path, Preconditions::default()).await.unwrap();
        upload.write(Bytes::from(vec![number; 40_000])).await.unwrap();
        upload.finish().await.unwrap();
    }

    fn data(&self) -> &Path {
        &self.settings.data
    }

    fn node(&self, number: u32) -> PathBuf {
        self.data().join("nodes").join(number.to_string())
    }

    /// Waits for what a daemon that was stopped still holds.
    async fn try_fsck(&self, repair: bool) -> Result<Report> {
        let fsck = Fsck { settings: self.settings.clone(), repair, deep: true };
        for _ in 0..100 {
            match fsck.run().await {
                Err(error) if error.kind() == ErrorKind::Busy => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                result => return result,
            }
        }
        fsck.run().await
    }

    async fn fsck(&self, repair: bool) -> Report {
        self.try_fsck(repair).await.unwrap()
    }

    /// Finds it, mends it, and finds nothing any more.
    async fn is_mended(&self, what: &str) {
        let found = self.fsck(false).await;
        assert!(!found.is_clean() && found.text().contains(what), "{what}: {}", found.text());
        let mended = self.fsck(true).await;
        assert!(mended.is_clean() && mended.text().contains(what), "{what}: {}", mended.text());
        let again = self.fsck(false).await;
        assert!(again.is_clean() && again.mended == 0, "{what}: {}", again.text());
    }

    async fn engine(&self) -> SqliteStore {
        SqliteStore::open(self.data().join("meta.db")).unwrap()
    }

    async fn write(&self, writes: Vec<Write>) {
        self.engine().await.commit(Vec::new(), writes).await.unwrap();
    }

    fn tree(&self, of: Key) -> Vec<u8> {
        keys::tree(self.caller.home, &of)
    }
}

/// The largest segment of a node.
fn segment(node: &Path) -> PathBuf {
    let entries = fs::read_dir(node.join("journal")).unwrap().map(|entry| entry.unwrap().path());
    entries.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_daemon_leaves_is_clean_and_what_is_damaged_is_mended() {
    let site = Site::new().await;
    let report = site.fsck(false).await;
    assert!(report.is_clean(), "{}", report.text());

    // Rows are another thing than the journal says: it is right.
    let root = site.tree(Key::Inode(Ino::ROOT));
    let value = site.engine().await.get_many(std::slice::from_ref(&root)).await.unwrap().pop().unwrap();
    site.write(vec![Write { key: root.clone(), value: Some(vec![7; 90]) }]).await;
    site.is_mended("is another one in the journal").await;
    assert_eq!(site.engine().await.get_many(std::slice::from_ref(&root)).await.unwrap(), [value]);
    site.write(vec![Write { key: root, value: None }]).await;
    site.is_mended("is in the journal, and not in the database").await;
    let orphan = put(site.tree(Key::Orphan(Ino(999))), &Record::Present).unwrap();
    site.write(vec![orphan]).await;
    site.is_mended("is in the database, and not in the journal").await;

    // A copy of a segment is damaged, then what is left of a whole node.
    let number = (1..=3).max_by_key(|number| fs::metadata(segment(&site.node(*number))).unwrap().len());
    let of = segment(&site.node(number.unwrap()));
    flip(&of, fs::metadata(&of).unwrap().len() as usize / 2);
    site.is_mended("of the journal on node").await;

    // Objects are missing.
    fs::remove_dir_all(site.node(1).join("blocks")).unwrap();
    site.is_mended("lacks copies").await;

    // The database is damaged, then missing.
    fs::write(site.data().join("meta.db"), vec![5; 20_000]).unwrap();
    site.is_mended("meta.db").await;
    fs::remove_file(site.data().join("meta.db")).unwrap();
    site.is_mended("it is missing").await;

    let daemon = site.start().await;
    site.upload(&daemon, 21).await;
    let usage = daemon.volumes.usage(site.caller.home).await.unwrap();
    assert_eq!((usage.bytes, usage.inodes), (21 * 40_000, 22));
    site.stop(daemon).await;
    let report = site.fsck(false).await;
    assert!(report.is_clean() && report.mended == 0, "{}", report.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_behind_is_no_fault() {
    let site = Site::new().await;
    let before = site.directory.path().join("before");
    site.fsck(false).await;
    fs::copy(site.data().join("meta.db"), &before).unwrap();
    let daemon = site.start().await;
    for number in 30..40 {
        site.upload(&daemon, number).await;
    }
    site.stop(daemon).await;
    site.fsck(false).await;
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(site.data().join(format!("meta.db{suffix}")));
    }
    fs::copy(&before, site.data().join("meta.db")).unwrap();
    let behind = site.fsck(false).await;
    assert!(behind.is_clean() && behind.text().contains("commits behind the journal"), "{}", behind.text());
    let again = site.fsck(false).await;
    assert_eq!(again, behind, "looking changes nothing");
    let repaired = site.fsck(true).await;
    assert!(repaired.is_clean() && repaired.mended == 0, "{}", repaired.text());
    let report = site.fsck(false).await;
    assert!(!report.text().contains("behind"), "{}", report.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_is_not_whole_is_made_anew() {
    let site = Site::new().await;
    site.fsck(false).await;
    // All copies of what came first.
    for number in 1..=3 {
        let path = segment(&site.node(number));
        if fs::metadata(&path).unwrap().len() > 10_000 {
            flip(&path, 6000);
        }
    }
    let found = site.fsck(false).await;
    assert!(found.text().contains("the nodes have the journal up to commit"), "{}", found.text());
    let mended = site.fsck(true).await;
    assert!(mended.is_clean() && mended.mended == 1, "{}", mended.text());
    let again = site.fsck(false).await;
    assert!(again.is_clean() && again.mended == 0, "{}", again.text());
    let daemon = site.start().await;
    site.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_checked_is_an_error_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { data: directory.path().join("typo"), ..Settings::default() };
    let fsck = Fsck { settings, repair: true, deep: false };
    assert_eq!(fsck.run().await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!fsck.settings.data.exists());
    let site = Site::new().await;
    let daemon = site.start().await;
    let fsck = Fsck { settings: site.settings.clone(), repair: false, deep: false };
    assert_eq!(fsck.run().await.unwrap_err().kind(), ErrorKind::Busy);
    site.stop(daemon).await;
    site.fsck(false).await;
    // A disk that is not there has not lost its copies.
    fs::rename(site.node(2), directory.path().join("away")).unwrap();
    let report = site.fsck(false).await;
    assert!(report.text().contains("node 2 is not there"), "{}", report.text());
    assert!(!report.text().contains("lacks copies"), "{}", report.text());
}
