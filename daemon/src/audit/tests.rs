use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use tandemfs::ErrorKind;
use tandemfs::api::audit::AuditEntry;
use tandemfs::clock::ManualClock;

use super::files::{Limits, hash, no_hash};
use super::{Audit, FIELD_MAX};
use crate::meta::faulty::{Failure, FaultyStore, Switches};
use crate::meta::memory::MemoryStore;
use crate::meta::{self, Meta, MetaStore as _, keys};

struct World {
    store: MemoryStore,
    directory: tempfile::TempDir,
    limits: Limits,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { store: MemoryStore::new(), directory, limits: Limits::default() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("audit")
    }

    async fn open(&self) -> Audit {
        let meta = Meta::open(Arc::new(self.store.clone())).await.unwrap();
        let clock = Arc::new(ManualClock::at(1_800_000_000_000));
        Audit::open_with(&self.path(), meta, clock, self.limits).await.unwrap()
    }

    /// Ends a run in good order: the metadata knows the last entry.
    async fn stop(audit: Audit) {
        let meta = audit.open.lock().await.rows.meta.clone();
        meta.close().await;
    }

    async fn with_entries(count: u64) -> (Self, Audit) {
        let world = Self::new();
        let audit = world.open().await;
        for number in 1..=count {
            note(&audit, number).await;
        }
        (world, audit)
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn text(&self) -> String {
        self.files().iter().map(|file| fs::read_to_string(file).unwrap()).collect()
    }

    /// Writes the lines of the only file anew.
    fn rewrite(&self, change: impl FnOnce(&mut Vec<String>)) {
        let mut lines: Vec<String> = self.text().lines().map(str::to_owned).collect();
        change(&mut lines);
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(&self.files()[0], text).unwrap();
    }
}

async fn note(audit: &Audit, number: u64) {
    let from = "192.0.2.7".parse().ok();
    audit.note("alice", "login", &format!("object {number}"), from, "ok").await;
}

async fn faults(audit: &Audit) -> Vec<(u64, String)> {
    let check = audit.verify().await.unwrap();
    assert_eq!(check.whole, check.faults.is_empty());
    check.faults.into_iter().map(|fault| (fault.number, fault.what)).collect()
}

#[tokio::test]
async fn each_line_carries_the_hash_of_the_line_before() {
    let (world, audit) = World::with_entries(5).await;
    let mode = |path: &PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&world.path()), mode(&world.files()[0])), (0o700, 0o600));
    let mut before = no_hash();
    for (index, line) in world.text().lines().enumerate() {
        let entry: AuditEntry = serde_json::from_str(line).unwrap();
        assert_eq!((entry.number, &entry.previous), (index as u64 + 1, &before));
        assert_eq!(entry.time, "2027-01-15T08:00:00.000000000Z");
        assert_eq!((entry.who.as_str(), entry.from.as_deref()), ("alice", Some("192.0.2.7")));
        before = hash(line.as_bytes());
    }
    let check = audit.verify().await.unwrap();
    assert_eq!((check.entries, check.first, check.last, check.whole), (5, 1, 5, true));
}

#[tokio::test]
async fn what_was_cut_out_changed_or_cut_off_is_named() {
    for victim in 1..=5_usize {
        let (world, audit) = World::with_entries(5).await;
        world.rewrite(|lines| drop(lines.remove(victim - 1)));
        let found = faults(&audit).await;
        let place = if victim == 5 { " at the end" } else { "" };
        assert_eq!(found, [(victim as u64, format!("entry {victim} is missing{place}"))]);

        let (world, audit) = World::with_entries(5).await;
        world.rewrite(|lines| lines[victim - 1] = lines[victim - 1].replace("alice", "mallory"));
        let found = faults(&audit).await;
        assert!(found.len() == 1 && found[0].0 == victim as u64, "{victim}: {found:?}");
        assert!(found[0].1.starts_with(&format!("entry {victim} was changed")), "{found:?}");

        let (world, audit) = World::with_entries(5).await;
        world.rewrite(|lines| lines[victim - 1] = "{}".to_owned());
        assert_eq!(faults(&audit).await[0].0, victim as u64);
    }
    // A chain that was made anew from a changed line on ends with another hash than the metadata knows.
    let (world, audit) = World::with_entries(5).await;
    world.rewrite(|lines| {
        let mut before = no_hash();
        for line in lines {
            let mut entry: AuditEntry = serde_json::from_str(line).unwrap();
            entry.who = "mallory".to_owned();
            entry.previous = before;
            *line = serde_json::to_string(&entry).unwrap();
            before = hash(line.as_bytes());
        }
    });
    assert_eq!(faults(&audit).await, [(5, "entry 5 was changed".to_owned())]);
    fs::remove_dir_all(world.path()).unwrap();
    fs::create_dir(world.path()).unwrap();
    assert_eq!(faults(&audit).await, [(1, "entries 1 to 5 are missing at the end".to_owned())]);
}

#[tokio::test]
async fn the_chain_goes_on_after_a_restart_and_a_gap_stays_to_be_seen() {
    let (world, audit) = World::with_entries(3).await;
    World::stop(audit).await;
    // A power cut in the middle of a line.
    let file = &world.files()[0];
    fs::write(file, format!("{}{{\"number\":4,\"ti", world.text())).unwrap();
    let audit = world.open().await;
    note(&audit, 4).await;
    assert_eq!(faults(&audit).await, []);
    World::stop(audit).await;
    world.rewrite(|lines| lines.truncate(2));
    let audit = world.open().await;
    assert_eq!(faults(&audit).await, [(3, "entries 3 to 4 are missing at the end".to_owned())]);
    note(&audit, 5).await;
    assert_eq!(faults(&audit).await, [(3, "entries 3 to 4 are missing".to_owned())]);
}

#[tokio::test]
async fn old_files_go_and_pages_lead_through_all_others() {
    let mut world = World::new();
    world.limits = Limits { file_bytes: 1000, files: 3, ..Limits::default() };
    let audit = world.open().await;
    for number in 1..=40 {
        note(&audit, number).await;
    }
    assert_eq!(world.files().len(), 3);
    let check = audit.verify().await.unwrap();
    assert!(check.whole && check.first > 20 && check.last == 40, "{check:?}");
    let mut numbers = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let page = audit.page(4, cursor.as_deref()).await.unwrap();
        numbers.extend(page.entries.iter().map(|entry| entry.number));
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(numbers, (check.first..=40).rev().collect::<Vec<_>>());
    for (limit, cursor) in [(0, None), (1001, None), (1, Some("x")), (1, Some("-1"))] {
        assert_eq!(audit.page(limit, cursor).await.unwrap_err().kind(), ErrorKind::Invalid);
    }
    World::stop(audit).await;
    let audit = world.open().await;
    assert!(audit.verify().await.unwrap().whole);
    fs::remove_file(&world.files()[0]).unwrap();
    assert_eq!(faults(&audit).await[0].0, check.first, "the oldest file was removed by somebody else");
}

#[tokio::test]
async fn what_strangers_send_is_cut_short_and_forges_no_line() {
    let (world, audit) = World::with_entries(0).await;
    let name = format!("x\n{{\"number\":2}}\r\u{1b}[2J\u{202e}{}", "y".repeat(1 << 20));
    audit.note(&name, "login", "", None, "unauthenticated").await;
    let text = world.text();
    assert_eq!(text.lines().count(), 1);
    assert!(text.len() < 8 * FIELD_MAX && !text.contains(['\r', '\u{1b}']), "{text:?}");
    assert!(audit.verify().await.unwrap().whole);
}

#[tokio::test]
async fn a_log_that_cannot_be_written_is_told_of_and_stops_nobody() {
    let (world, audit) = World::with_entries(0).await;
    fs::remove_dir_all(world.path()).unwrap();
    drop(audit);
    fs::write(world.path(), "in the way").unwrap();
    let meta = Meta::open(Arc::new(world.store.clone())).await.unwrap();
    assert!(Audit::open(&world.path(), meta, Arc::new(ManualClock::at(0))).await.is_err());
    fs::remove_file(world.path()).unwrap();
    let audit = world.open().await;
    fs::remove_dir_all(world.path()).unwrap();
    note(&audit, 3).await;
    assert!(audit.is_failing());
    fs::create_dir(world.path()).unwrap();
    note(&audit, 3).await;
    assert!(!audit.is_failing());
}

/// The numbers that the metadata has lines of.
async fn rows(world: &World) -> Vec<u64> {
    let (from, to) = keys::all_audit_lines();
    let pairs = world.store.scan(&from, &to, 1000).await.unwrap();
    pairs.iter().map(|(key, _)| keys::audit_line_number(key).unwrap()).collect()
}

#[tokio::test]
async fn files_that_are_gone_are_made_anew_from_the_metadata_which_keeps_the_newest_lines() {
    let mut world = World::new();
    world.limits = Limits { file_bytes: 1000, files: 32, rows: 12 };
    let audit = world.open().await;
    for number in 1..=40 {
        note(&audit, number).await;
    }
    let before = world.text();
    World::stop(audit).await;
    assert_eq!(rows(&world).await, (29..=40).collect::<Vec<_>>());
    fs::remove_dir_all(world.path()).unwrap();
    // What an attempt that was cut off has left is in nobody's way.
    let draft = world.path().with_extension("restoring");
    fs::create_dir(&draft).unwrap();
    fs::write(draft.join("00000000000000000001.jsonl"), "{}\n").unwrap();
    let audit = world.open().await;
    assert!(
        before.ends_with(&world.text().lines().take(12).map(|line| format!("{line}\n")).collect::<String>())
    );
    note(&audit, 42).await;
    let check = audit.verify().await.unwrap();
    assert_eq!((check.entries, check.first, check.last, check.whole), (14, 29, 42, true), "{check:?}");
    let told = audit.page(2, None).await.unwrap().entries.remove(1);
    assert_eq!((told.what.as_str(), told.object.as_str()), ("restore audit log", "entries 29 to 40"));
    World::stop(audit).await;
    assert_eq!(rows(&world).await, (31..=42).collect::<Vec<_>>());
    // Where the log begins now is remembered.
    let audit = world.open().await;
    assert_eq!(faults(&audit).await, []);
    assert!(!draft.exists());
}

#[tokio::test]
async fn lines_whose_commit_failed_are_put_into_the_metadata_with_a_later_one() {
    let world = World::new();
    let switches = Switches::new();
    let store = FaultyStore::new(Arc::new(world.store.clone()), switches.clone());
    let meta = Meta::open(Arc::new(store)).await.unwrap();
    let clock = Arc::new(ManualClock::at(1_800_000_000_000));
    let audit = Audit::open_with(&world.path(), meta.clone(), clock, world.limits).await.unwrap();
    note(&audit, 1).await;
    meta.commit(Vec::new(), Vec::new()).await.unwrap();
    switches.fail_commits(0, 2, Failure::Refused);
    for number in 2..=4 {
        note(&audit, number).await;
        let _ = meta.commit(Vec::new(), Vec::new()).await;
    }
    World::stop(audit).await;
    assert_eq!(rows(&world).await, [1, 2, 3, 4]);
    // So are those that were on their way when a run ended.
    let audit = world.open().await;
    World::stop(audit).await;
    let meta = Meta::open(Arc::new(world.store.clone())).await.unwrap();
    let mut head = super::rows::head(&meta).await.unwrap().unwrap();
    head.number = 2;
    let writes = vec![
        meta::put(keys::audit_head(), &head).unwrap(),
        meta::remove(keys::audit_line(3)),
        meta::remove(keys::audit_line(4)),
    ];
    meta.commit(Vec::new(), writes).await.unwrap();
    let audit = world.open().await;
    assert_eq!(rows(&world).await, [1, 2, 3, 4]);
    assert_eq!(faults(&audit).await, []);
}
