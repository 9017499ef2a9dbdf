//! Generated sequences of calls on two mounts of one volume, compared with files that are plain vectors of bytes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::{collection, test_runner::Config};
use tandemfs::ErrorKind;
use tandemfs::id::Ino;
use tandemfs::tree::{CHUNK_SIZE, Key, RenameMode};

use super::fake::Daemon;
use super::{ROOT, list, mount, mount_with};
use crate::fs::data::How;
use crate::fs::{Fs, Options, Set};

/// Offsets where something may go wrong.
const PLACES: [u64; 6] = [0, 5, 100, CHUNK_SIZE - 3, CHUNK_SIZE, 2 * CHUNK_SIZE - 40];
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

#[derive(Clone, Debug)]
enum Call {
    Create(usize, usize),
    Open(usize, usize, bool),
    Write { handle: usize, place: usize, length: usize, byte: u8 },
    WriteChunk(usize, u8),
    Append(usize, usize, u8),
    Read(usize, usize, usize),
    Truncate(usize, usize, usize),
    Rename(usize, usize, usize),
    Link(usize, usize, usize),
    Unlink(usize, usize),
    Close(usize),
    Fsync(usize),
    List(usize, bool),
    Stat(usize, usize),
    Pause(u64),
}

fn call() -> impl Strategy<Value = Call> {
    let (mounted, name, handle, place) = (0usize..2, 0..NAMES.len(), 0usize..6, 0..PLACES.len());
    let small = 0usize..200;
    prop_oneof![
        3 => (mounted.clone(), name.clone()).prop_map(|(m, n)| Call::Create(m, n)),
        3 => (mounted.clone(), name.clone(), any::<bool>()).prop_map(|(m, n, t)| Call::Open(m, n, t)),
        6 => (handle.clone(), place.clone(), small.clone(), any::<u8>())
            .prop_map(|(handle, place, length, byte)| Call::Write { handle, place, length, byte }),
        1 => (handle.clone(), any::<u8>()).prop_map(|(h, b)| Call::WriteChunk(h, b)),
        2 => (handle.clone(), small.clone(), any::<u8>()).prop_map(|(h, l, b)| Call::Append(h, l, b)),
        6 => (handle.clone(), place.clone(), small).prop_map(|(h, p, l)| Call::Read(h, p, l)),
        2 => (mounted.clone(), name.clone(), place).prop_map(|(m, n, p)| Call::Truncate(m, n, p)),
        2 => (mounted.clone(), name.clone(), name.clone()).prop_map(|(m, a, b)| Call::Rename(m, a, b)),
        1 => (mounted.clone(), name.clone(), name.clone()).prop_map(|(m, a, b)| Call::Link(m, a, b)),
        2 => (mounted.clone(), name.clone()).prop_map(|(m, n)| Call::Unlink(m, n)),
        2 => handle.clone().prop_map(Call::Close),
        1 => handle.prop_map(Call::Fsync),
        1 => (mounted.clone(), any::<bool>()).prop_map(|(m, p)| Call::List(m, p)),
        2 => (mounted, name).prop_map(|(m, n)| Call::Stat(m, n)),
        1 => Just(Call::Close(0)),
        1 => (1u64..100).prop_map(Call::Pause),
    ]
}

type Content = Rc<RefCell<Vec<u8>>>;

struct Handle {
    mounted: usize,
    number: u64,
    content: Content,
}

struct World {
    mounts: Vec<Arc<Fs>>,
    names: BTreeMap<&'static str, Content>,
    handles: Vec<Handle>,
}

fn lay(content: &Content, at: usize, data: &[u8]) {
    let mut content = content.borrow_mut();
    if !data.is_empty() {
        let end = at + data.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[at..end].copy_from_slice(data);
    }
}

impl World {
    async fn inode(&self, mounted: usize, name: &str) -> Option<Ino> {
        match self.mounts[mounted].lookup(Ino::ROOT, name.as_bytes()).await {
            Ok(stat) => Some(stat.inode.ino),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound);
                None
            }
        }
    }

    async fn write(&self, handle: usize, at: u64, data: &[u8]) {
        let Some(handle) = self.handles.get(handle) else { return };
        let fs = &self.mounts[handle.mounted];
        let written = fs.write(handle.number, at, data, How::default()).await.unwrap();
        assert_eq!(written.bytes as usize, data.len());
        lay(&handle.content, at as usize, data);
    }

    async fn call(&mut self, call: Call) {
        match call {
            Call::Create(m, n) => {
                let made = self.mounts[m]
                    .create(ROOT, Ino::ROOT, NAMES[n].as_bytes(), 0o644.into(), libc::O_EXCL)
                    .await;
                match made {
                    Ok((stat, number)) => {
                        assert_eq!(stat.inode.size, 0);
                        let content = Content::default();
                        assert!(self.names.insert(NAMES[n], Rc::clone(&content)).is_none());
                        self.handles.push(Handle { mounted: m, number, content });
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
                        assert!(self.names.contains_key(NAMES[n]));
                    }
                }
            }
            Call::Open(m, n, truncate) => {
                let found = self.inode(m, NAMES[n]).await;
                assert_eq!(found.is_some(), self.names.contains_key(NAMES[n]));
                let Some(ino) = found else { return };
                let flags = libc::O_RDWR | if truncate { libc::O_TRUNC } else { 0 };
                let number = self.mounts[m].open_file(ROOT, ino, flags).await.unwrap();
                let content = Rc::clone(&self.names[NAMES[n]]);
                if truncate {
                    content.borrow_mut().clear();
                }
                self.handles.push(Handle { mounted: m, number, content });
            }
            Call::Write { handle, place, length, byte } => {
                self.write(handle, PLACES[place], &vec![byte; length]).await;
            }
            Call::WriteChunk(handle, byte) => self.write(handle, 0, &vec![byte; CHUNK_SIZE as usize]).await,
            Call::Append(handle, length, byte) => {
                let Some(at) = self.handles.get(handle).map(|handle| handle.content.borrow().len()) else {
                    return;
                };
                self.write(handle, at as u64, &vec![byte; length]).await;
            }
            Call::Read(handle, place, length) => {
                let Some(handle) = self.handles.get(handle) else { return };
                let at = PLACES[place];
                let read = self.mounts[handle.mounted].read(handle.number, at, length as u32).await.unwrap();
                let content = handle.content.borrow();
                let from = content.len().min(at as usize);
                let wanted = &content[from..content.len().min(from + length)];
                assert!(
                    read == wanted,
                    "{length} bytes at {at} of {}: {read:?} is not {wanted:?}",
                    content.len()
                );
            }
            Call::Truncate(m, n, place) => {
                let Some(ino) = self.inode(m, NAMES[n]).await else { return };
                let set = Set { size: Some(PLACES[place]), ..Set::default() };
                let stat = self.mounts[m].setattr(ROOT, ino, set).await.unwrap();
                assert_eq!(stat.inode.size, PLACES[place]);
                self.names[NAMES[n]].borrow_mut().resize(PLACES[place] as usize, 0);
            }
            Call::Rename(m, a, b) => {
                let (from, to) = ((Ino::ROOT, NAMES[a].as_bytes()), (Ino::ROOT, NAMES[b].as_bytes()));
                match self.mounts[m].rename(ROOT, from, to, RenameMode::Replace).await {
                    Ok(()) => {
                        let same =
                            self.names.get(NAMES[b]).is_some_and(|b| Rc::ptr_eq(b, &self.names[NAMES[a]]));
                        if !same {
                            let content = self.names.remove(NAMES[a]).unwrap();
                            self.names.insert(NAMES[b], content);
                        }
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::NotFound);
                        assert!(!self.names.contains_key(NAMES[a]));
                    }
                }
            }
            Call::Link(m, a, b) => {
                let Some(ino) = self.inode(m, NAMES[a]).await else { return };
                match self.mounts[m].link(ino, Ino::ROOT, NAMES[b].as_bytes()).await {
                    Ok(stat) => {
                        assert_eq!(stat.inode.ino, ino);
                        let content = Rc::clone(&self.names[NAMES[a]]);
                        assert!(self.names.insert(NAMES[b], content).is_none());
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
                        assert!(self.names.contains_key(NAMES[b]));
                    }
                }
            }
            Call::Unlink(m, n) => {
                match self.mounts[m].remove(ROOT, Ino::ROOT, NAMES[n].as_bytes(), false).await {
                    Ok(()) => assert!(self.names.remove(NAMES[n]).is_some()),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::NotFound);
                        assert!(!self.names.contains_key(NAMES[n]));
                    }
                }
            }
            Call::Close(handle) => {
                if handle < self.handles.len() {
                    let handle = self.handles.remove(handle);
                    self.mounts[handle.mounted].flush(handle.number).await.unwrap();
                    self.mounts[handle.mounted].release(handle.number).await;
                }
            }
            Call::Fsync(handle) => {
                if let Some(handle) = self.handles.get(handle) {
                    self.mounts[handle.mounted].fsync(handle.number).await.unwrap();
                }
            }
            Call::List(m, plus) => {
                let names: Vec<&str> = [".", ".."].into_iter().chain(self.names.keys().copied()).collect();
                assert_eq!(list(&self.mounts[m], Ino::ROOT, plus).await, names);
            }
            Call::Pause(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Call::Stat(m, n) => {
                let Some(ino) = self.inode(m, NAMES[n]).await else { return };
                let inode = self.mounts[m].getattr(ino).await.unwrap().inode;
                assert_eq!(inode.size as usize, self.names[NAMES[n]].borrow().len());
                let links =
                    self.names.values().filter(|other| Rc::ptr_eq(other, &self.names[NAMES[n]])).count();
                assert_eq!(inode.nlink as usize, links);
            }
        }
    }
}

fn run(calls: Vec<Call>, mounts: usize, lose_every: u64) {
    run_with(&Options::default(), calls, mounts, lose_every);
}

/// Every mount takes the lease whenever it can. About half of what is written is too large to come with a batch, and is stored while the
/// next calls are made.
fn run_leased(calls: Vec<Call>, mounts: usize, lose_every: u64) {
    run_with(&Options { lease: true, ..Options::default() }, calls, mounts, lose_every);
}

fn run_with(options: &Options, calls: Vec<Call>, mounts: usize, lose_every: u64) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let daemon = Arc::new(Daemon::default());
        daemon.lose_every.store(lose_every, Ordering::SeqCst);
        daemon.lends.store(true, Ordering::SeqCst);
        if options.lease {
            daemon.set_inline_bytes(100);
            daemon.slow_blocks.store(30, Ordering::SeqCst);
        }
        let first = mount_with(&daemon, options.clone()).await.0;
        let second =
            if mounts == 2 { mount_with(&daemon, options.clone()).await.0 } else { Arc::clone(&first) };
        let mut world = World { mounts: vec![first, second], names: BTreeMap::new(), handles: Vec::new() };
        for call in calls {
            world.call(call).await;
        }
        while !world.handles.is_empty() {
            world.call(Call::Close(0)).await;
        }
        // A third mount, which has seen nothing, finds all of it; and nothing is left of what was unlinked.
        let fresh = mount(&daemon).await;
        for (name, content) in &world.names {
            let ino = fresh.lookup(Ino::ROOT, name.as_bytes()).await.unwrap().inode.ino;
            let handle = fresh.open_file(ROOT, ino, libc::O_RDONLY).await.unwrap();
            let read = fresh.read(handle, 0, u32::MAX).await.unwrap();
            assert!(read == *content.borrow(), "{name}");
            fresh.release(handle).await;
        }
        for fs in world.mounts.iter().take(mounts).chain([&fresh]) {
            fs.stop().await.unwrap();
        }
        for key in daemon.keys() {
            assert!(!matches!(key, Key::Orphan(_)), "{key:?} is left");
        }
        assert_eq!(daemon.sessions(), 0);
        assert_eq!(daemon.too_early.load(Ordering::SeqCst), 0, "what a batch names is stored before");
    });
}

/// How many sequences; `PROPTEST_CASES` sets more.
fn config() -> Config {
    let chosen = Config::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { chosen.cases } else { 48 };
    Config { cases, max_shrink_iters: 2000, ..chosen }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn one_mount_behaves_as_plain_files(calls in collection::vec(call(), 1..50)) {
        run(calls, 1, 0);
    }

    #[test]
    fn two_mounts_see_one_another(calls in collection::vec(call(), 1..50)) {
        run(calls, 2, 0);
    }

    #[test]
    fn one_mount_with_the_lease_behaves_as_plain_files(calls in collection::vec(call(), 1..50)) {
        run_leased(calls, 1, 0);
    }

    #[test]
    fn two_mounts_that_recall_the_lease_see_one_another(calls in collection::vec(call(), 1..50)) {
        run_leased(calls, 2, 0);
    }

    #[test]
    fn lost_answers_change_nothing_under_the_lease(calls in collection::vec(call(), 1..40), every in 2u64..7) {
        run_leased(calls, 2, every);
    }

    #[test]
    fn lost_answers_change_nothing(calls in collection::vec(call(), 1..40), every in 2u64..7) {
        run(calls, 2, every);
    }
}

/// Two mounts, an unlinked file that stays readable, its name taken again.
#[test]
fn a_sequence_that_is_easy_to_read() {
    let calls = vec![
        Call::Create(0, 0),
        Call::Write { handle: 0, place: 3, length: 10, byte: 1 },
        Call::Read(0, 3, 20),
        Call::Unlink(1, 0),
        Call::Read(0, 3, 20),
        Call::Create(1, 0),
        Call::List(0, true),
    ];
    run(calls, 2, 0);
}
