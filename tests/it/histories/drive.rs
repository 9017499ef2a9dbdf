//! Clients on mounts of one volume, and what befalls them: pauses, deaths, a daemon that is started anew.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::super::cluster::{Cluster, Mount, signal};
use super::super::damage::config;
use super::client::{COPIES, Client, content, counter};
use super::history::Histories;
use super::models::DIRECTORIES;

const CLIENTS: usize = 4;
const MOUNTS: usize = 3;
/// A short one, so that what waits for it to pass does not wait for long.
pub const LEASE: Duration = Duration::from_secs(2);
/// How long after its end a call of a mount that has died may still happen: the lease, and what a daemon under load adds to it.
pub const SETTLED: Duration = Duration::from_secs(6);
/// So long after a pause that outlasts the lease, calls may fail.
const DOUBTED: Duration = Duration::from_secs(10);
/// The longest time between two faults.
const CALM: Duration = Duration::from_secs(5);

/// What happens to descriptors between two calls of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handles {
    /// They are closed, and opened anew.
    Closed,
    /// They are kept; what is written is synced.
    Synced,
    /// They are kept.
    Kept,
}

/// A directory in a mount, until that dies.
pub struct Root {
    pub path: PathBuf,
    mount: PathBuf,
    pid: u32,
    dead: AtomicBool,
    /// Until when calls may fail, in microseconds, because the session has ended.
    doubted: AtomicU64,
}

impl Root {
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }
}

/// Where a mount is, and another one when that has died.
pub struct Place {
    root: Mutex<Arc<Root>>,
    /// For objects that only one client of a mount may use at a time.
    alone: [Mutex<()>; 4],
}

impl Place {
    pub fn current(&self) -> Arc<Root> {
        Arc::clone(&self.root.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps other clients of the mount from an object, by its number.
    pub fn alone(&self, object: usize) -> MutexGuard<'_, ()> {
        self.alone[object].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What clients and faults share.
pub struct Drive {
    pub seed: u64,
    /// What is done with descriptors of the objects that are not always opened anew.
    pub handles: Handles,
    pub places: Vec<Place>,
    begin: Instant,
    calls: AtomicU64,
    goal: u64,
    /// What has befallen, and when.
    befallen: Mutex<Vec<String>>,
    /// Calls that failed though nothing had befallen their mount.
    pub surprises: Mutex<Vec<String>>,
}

#[expect(clippy::disallowed_methods, reason = "a test measures real time")]
pub fn now() -> Instant {
    Instant::now()
}

impl Drive {
    /// Time since the begin, on the one clock of all clients.
    pub fn now(&self) -> Duration {
        now() - self.begin
    }

    /// The number of the next call, while there is one.
    pub fn next_call(&self) -> Option<u64> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        (call < self.goal).then_some(call)
    }

    fn is_over(&self) -> bool {
        self.calls.load(Ordering::SeqCst) >= self.goal
    }

    fn befalls(&self, what: &str) {
        let line = format!("{:>11} µs  {what}", self.now().as_micros());
        self.befallen.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn pause(&self, number: usize, time: Duration) {
        let root = self.places[number].current();
        self.befalls(&format!("mount {number} stops"));
        signal(root.pid, "STOP");
        thread::sleep(time);
        signal(root.pid, "CONT");
        self.befalls(&format!("mount {number} goes on"));
    }

    /// A call has failed in a way that is not an answer of an object.
    pub fn failed(&self, root: &Root, error: &io::Error, call: &str) {
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        let stale = matches!(errno, Some(Errno::STALE | Errno::TIMEDOUT));
        let doubted = self.now() < Duration::from_micros(root.doubted.load(Ordering::SeqCst));
        if !(root.is_dead() || stale && doubted) {
            let text = format!("{:?} {}: {call}: {error}", self.now(), root.path.display());
            self.surprises.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        }
    }
}

/// How often what has befallen the mounts and the daemon.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub pauses: u64,
    pub long_pauses: u64,
    pub deaths: u64,
    pub restarts: u64,
}

impl Faults {
    pub fn all(&self) -> u64 {
        self.pauses + self.long_pauses + self.deaths + self.restarts
    }
}

/// What a drive has seen.
pub struct Seen {
    pub histories: Histories,
    /// What has befallen, and when.
    pub faults: Vec<String>,
    /// Failures that nothing explains.
    pub surprises: Vec<String>,
}

/// A daemon and mounts that stay for several drives.
pub struct Stage {
    cluster: Cluster,
    mounts: Vec<Mount>,
    /// Those that have died stay where they are, so that whoever still uses them is told so.
    dead: Vec<Mount>,
    /// Keep mounts where they are when their connection is ended by force. Here, as clients have descriptors of their own.
    busy: Vec<OwnedFd>,
    made: usize,
    pub faults: Faults,
}

impl Stage {
    pub fn new(handles: Handles) -> Self {
        // A mount that dies while it has the volume to itself keeps what it has answered for the next mount on its machine, which is not
        // what others see. Where none dies, it is given as often as can be.
        let quiet_ms = if handles == Handles::Kept { 0 } else { 3_600_000 };
        let settings = format!("lease_ms = {}\nquiet_ms = {quiet_ms}\n", LEASE.as_millis());
        let cluster = Cluster::start_with(&["--config", &config(&settings)]);
        let mounts = (0..MOUNTS).map(|number| mount(&cluster, number)).collect();
        Self { cluster, mounts, dead: Vec::new(), busy: Vec::new(), made: MOUNTS, faults: Faults::default() }
    }

    /// Has clients call `calls` times on new objects.
    pub fn drive(&mut self, seed: u64, calls: u64, handles: Handles) -> Seen {
        let directory = format!("objects-{seed}");
        self.prepare(&directory);
        self.busy = self.mounts.iter().map(busy).collect();
        let places = self.mounts.iter().map(|mount| Place {
            root: Mutex::new(Arc::new(root(mount, &directory))),
            alone: Default::default(),
        });
        let drive = Drive {
            seed,
            handles,
            places: places.collect(),
            begin: now(),
            calls: AtomicU64::new(0),
            goal: calls,
            befallen: Mutex::default(),
            surprises: Mutex::default(),
        };
        let mut histories = Histories::default();
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|number| {
                    let client = Client::new(&drive, number);
                    scope.spawn(move || client.run())
                })
                .collect();
            self.befall(&drive, &directory);
            for client in clients {
                histories.merge(client.join().expect("a client ends well"));
            }
        });
        self.busy.clear();
        self.dead.clear();
        let [faults, surprises] = [drive.befallen, drive.surprises]
            .map(|lines| lines.into_inner().unwrap_or_else(PoisonError::into_inner));
        Seen { histories, faults, surprises }
    }

    /// Makes the objects, as they are at first.
    fn prepare(&self, directory: &str) {
        let root = self.mounts[0].path().join(directory);
        fs::create_dir(&root).expect("a directory");
        for number in 0..DIRECTORIES {
            fs::create_dir(root.join(format!("d{number}"))).expect("a directory");
        }
        let write = |name: &str, bytes: Vec<u8>| fs::write(root.join(name), bytes).expect("a file");
        write("closed", content(0, COPIES.0));
        write("kept", content(0, COPIES.0));
        write("replaced", content(0, COPIES.1));
        for kind in ["flock", "fcntl"] {
            write(&format!("lock-{kind}"), Vec::new());
            write(&format!("counter-{kind}"), counter(0));
        }
    }

    /// One fault after the other, until the clients have called enough.
    fn befall(&mut self, drive: &Drive, directory: &str) {
        let mut random = StdRng::seed_from_u64(drive.seed);
        // What is kept open and not synced is lost with a mount, as it is with a machine.
        let kinds = if drive.handles == Handles::Kept { 2 } else { 4 };
        loop {
            let until = now() + CALM.mul_f64(random.random_range(0.1..1.0));
            while now() < until {
                if drive.is_over() {
                    return;
                }
                thread::sleep(Duration::from_millis(10));
            }
            let number = random.random_range(0..MOUNTS);
            match random.random_range(0..kinds) {
                0 => {
                    self.faults.restarts += 1;
                    drive.befalls("the daemon is killed");
                    self.cluster.kill();
                    thread::sleep(Duration::from_millis(random.random_range(0..1000)));
                    self.cluster.launch();
                    drive.befalls("the daemon is back");
                }
                1 => {
                    self.faults.pauses += 1;
                    // The last sign of life is up to a third of a lease old, and some time is to be left.
                    let time = LEASE.mul_f64(random.random_range(0.05..0.4));
                    drive.pause(number, time);
                }
                2 => {
                    self.faults.long_pauses += 1;
                    let root = drive.places[number].current();
                    root.doubted.store(u64::MAX, Ordering::SeqCst);
                    drive.pause(number, LEASE.mul_f64(random.random_range(1.2..2.0)));
                    let until = (drive.now() + DOUBTED).as_micros() as u64;
                    root.doubted.store(until, Ordering::SeqCst);
                }
                _ => {
                    self.faults.deaths += 1;
                    let place = &drive.places[number];
                    let root = place.current();
                    drive.befalls(&format!("mount {number} dies"));
                    root.dead.store(true, Ordering::SeqCst);
                    signal(root.pid, "KILL");
                    // The process does not end while the kernel drops pages for it that are locked for a read which it no longer answers.
                    thread::sleep(Duration::from_millis(50));
                    let _busy = unmount(&root.mount, UnmountFlags::FORCE);
                    thread::sleep(Duration::from_millis(random.random_range(0..1000)));
                    self.replace(place, number, directory);
                    drive.befalls(&format!("mount {number} is another one"));
                }
            }
        }
    }

    /// Another mount in the place of one that has died.
    fn replace(&mut self, place: &Place, number: usize, directory: &str) {
        let mount = mount(&self.cluster, self.made);
        self.made += 1;
        self.busy.push(busy(&mount));
        *place.root.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(root(&mount, directory));
        self.dead.push(std::mem::replace(&mut self.mounts[number], mount));
    }

    /// What daemon and mounts have logged, which is gone with them.
    pub fn keep_logs(&self, directory: &Path) {
        for entry in fs::read_dir(self.cluster.root()).expect("a directory").flatten() {
            if entry.file_name().to_string_lossy().ends_with("log") {
                fs::copy(entry.path(), directory.join(entry.file_name())).expect("a copy");
            }
        }
    }

    /// Ends it.
    pub fn end(self) {
        for mount in self.mounts {
            mount.unmount();
        }
    }
}

fn mount(cluster: &Cluster, number: usize) -> Mount {
    let options =
        format!("offline_timeout=60s,log={}", cluster.root().join(format!("m{number}.log")).display());
    cluster.mount_as("admin", "admin123", &format!("m{number}"), &options)
}

fn root(mount: &Mount, directory: &str) -> Root {
    Root {
        path: mount.path().join(directory),
        mount: mount.path().to_owned(),
        pid: mount.pid(),
        dead: AtomicBool::new(false),
        doubted: AtomicU64::new(0),
    }
}

fn busy(mount: &Mount) -> OwnedFd {
    openat(CWD, mount.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("it opens")
}
