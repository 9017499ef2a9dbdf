//! Locks between programs on two mounts: fcntl(2) with its two owners, flock(2), waiting, signals, deadlocks, deaths.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::cluster::{Cluster, signal};
use super::shell::sh;

/// A program that does what it is told, a line at a time, and answers each with `ok`, or the name of an errno, or a value. Its
/// files are named by letters; SIGUSR1 is handled by doing nothing.
const PROGRAM: &str = r"
import errno, fcntl, os, signal, struct, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.siginterrupt(signal.SIGUSR1, True)
KINDS = {'r': fcntl.F_RDLCK, 'w': fcntl.F_WRLCK, 'u': fcntl.F_UNLCK}
COMMANDS = {'set': 6, 'wait': 7, 'ofd-set': 37, 'ofd-wait': 38}
FLOCKS = {'r': fcntl.LOCK_SH, 'w': fcntl.LOCK_EX, 'u': fcntl.LOCK_UN}
def lock(kind, start, length):
    return struct.pack('hhqqi4x', KINDS[kind], 0, int(start), int(length), 0)
# As C would: Python's own wrappers call again after a signal (PEP 475) unless its handler raises.
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *arguments):
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), '')
files = {}
def run(name, *a):
    if name == 'open':
        files[a[0]] = os.open(a[1], os.O_RDWR | os.O_CREAT)
    elif name == 'open-read':
        files[a[0]] = os.open(a[1], os.O_RDONLY)
    elif name == 'close':
        os.close(files.pop(a[0]))
    elif name == 'dup':
        files[a[1]] = os.dup(files[a[0]])
    elif name in COMMANDS:
        call(libc.fcntl, files[a[0]], COMMANDS[name], ctypes.create_string_buffer(lock(*a[1:])))
    elif name == 'get':
        kind, _, start, length, pid = struct.unpack('hhqqi4x', fcntl.fcntl(files[a[0]], 5, lock(*a[1:])))
        return f'{dict((v, k) for k, v in KINDS.items())[kind]} {start} {length} {pid}'
    elif name in ('flock', 'flock-wait'):
        call(libc.flock, files[a[0]], FLOCKS[a[1]] | (fcntl.LOCK_NB if name == 'flock' else 0))
    elif name == 'write':
        os.pwrite(files[a[0]], a[1].encode(), 0)
    elif name == 'read':
        return os.pread(files[a[0]], 100, 0).decode()
    elif name == 'sync':
        os.fsync(files[a[0]])
    return 'ok'
for line in sys.stdin:
    try:
        print(run(*line.split()), flush=True)
    except OSError as error:
        # EDEADLK has two names.
        print({**errno.errorcode, errno.EDEADLK: 'EDEADLK'}[error.errno], flush=True)
";

struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    /// A program in a directory.
    fn new(directory: &Path) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", PROGRAM])
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let input = child.stdin.take().expect("its input");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, input, output }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("it listens");
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it answers");
        line.trim().to_owned()
    }

    fn call(&mut self, line: &str) -> String {
        self.tell(line);
        self.answer()
    }

    #[track_caller]
    fn ok(&mut self, line: &str) {
        let answer = self.call(line);
        assert_eq!(answer, "ok", "{line}");
    }

    /// Waits until it sleeps in a call for a lock.
    fn is_waiting(&self) {
        let path = format!("/proc/{}/syscall", self.child.id());
        for _ in 0..1000 {
            // fcntl and flock.
            let number = std::fs::read_to_string(&path).unwrap_or_default();
            if ["72 ", "73 ", "25 ", "32 "].iter().any(|call| number.starts_with(call)) {
                // The kernel has asked the mount; that the mount has asked the daemon cannot be seen from here.
                std::thread::sleep(Duration::from_millis(300));
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not wait");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Two programs, each on its own mount, with `f` open as `a`.
fn two(one: &Path, two: &Path) -> [Program; 2] {
    [one, two].map(|directory| {
        let mut program = Program::new(directory);
        program.ok("open a f");
        program
    })
}

#[test]
fn every_kind_of_lock_keeps_the_other_mount_out() {
    let cluster = Cluster::start();
    let (first, second) = (cluster.mount("one"), cluster.mount("two"));
    let [mut one, mut two] = two(first.path(), second.path());
    // fcntl, by process.
    one.ok("set a w 0 10");
    assert_eq!(two.call("set a r 5 1"), "EAGAIN");
    assert_eq!(two.call("get a w 0 0"), "w 0 10 0", "the process of another mount has no number");
    let mut near = Program::new(first.path());
    near.ok("open a f");
    assert_eq!(near.call("get a r 3 100"), format!("w 0 10 {}", one.child.id()));
    assert_eq!(near.call("set a w 9 1"), "EAGAIN");
    two.ok("set a w 10 0");
    one.ok("set a u 4 2");
    two.ok("set a w 4 2");
    one.ok("set a r 0 4");
    two.ok("set a r 0 4");
    assert_eq!(one.call("set a w 0 1"), "EAGAIN");
    // Any descriptor that is closed gives up the locks of its process.
    two.ok("dup a b");
    two.ok("close b");
    one.ok("set a w 0 0");
    assert_eq!(two.call("get a r 0 0"), "w 0 0 0");
    one.ok("set a u 0 0");
    assert_eq!(two.call("get a w 0 0"), "u 0 0 0");

    // OFD: by open file, also within a process, until the last descriptor goes.
    one.ok("open b f");
    one.ok("ofd-set a w 0 10");
    assert_eq!(one.call("ofd-set b w 0 1"), "EAGAIN");
    assert_eq!(two.call("ofd-set a w 9 9"), "EAGAIN");
    one.ok("dup a c");
    one.ok("close a");
    assert_eq!(two.call("ofd-set a w 9 9"), "EAGAIN");
    one.ok("close c");
    two.ok("ofd-wait a w 9 9");
    two.ok("ofd-set a u 0 0");

    // flock, likewise.
    one.ok("open a f");
    one.ok("flock a r");
    two.ok("flock a r");
    assert_eq!(two.call("flock a w"), "EAGAIN");
    one.ok("dup a c");
    one.ok("close a");
    assert_eq!(two.call("flock a w"), "EAGAIN");
    one.ok("close c");
    two.ok("flock-wait a w");
    assert_eq!(one.call("flock b r"), "EAGAIN");
    two.ok("flock a u");
    one.ok("flock b w");
    drop(one);
    two.ok("flock-wait a w");
    drop((two, near));
    first.unmount();
    second.unmount();
}

#[test]
fn closing_what_only_reads_gives_up_the_locks_of_the_process() {
    let cluster = Cluster::start();
    let (first, second) = (cluster.mount("one"), cluster.mount("two"));
    let [mut one, mut two] = two(first.path(), second.path());
    let mut child = Program::new(first.path());
    for program in [&mut one, &mut child] {
        // Nobody has locked it yet, so the kernel will not say when these are closed.
        program.ok("open-read r f");
    }
    one.ok("set a w 0 0");
    child.ok("close r");
    assert_eq!(two.call("set a r 0 0"), "EAGAIN", "that was another process");
    one.ok("close r");
    two.ok("wait a w 0 0");
    two.ok("set a u 0 0");
    // From here on it is known that the file is locked by some.
    one.ok("open-read r f");
    one.ok("set a w 0 0");
    assert_eq!(two.call("set a r 0 0"), "EAGAIN");
    one.ok("close r");
    two.ok("set a r 0 0");
    two.ok("set a u 0 0");
    for _ in 0..50 {
        one.ok("open-read r f");
        one.ok("set a w 0 0");
        one.ok("close r");
        one.ok("set a w 0 0");
        assert_eq!(two.call("set a r 0 0"), "EAGAIN", "it was locked again");
        one.ok("set a u 0 0");
    }
}

#[test]
fn a_wait_ends_with_the_unlock_with_a_signal_or_with_a_kill() {
    let cluster = Cluster::start();
    let (first, second) = (cluster.mount("one"), cluster.mount("two"));
    let [mut one, mut two] = two(first.path(), second.path());
    for (set, unlock, wait) in [
        ("set a w 0 0", "set a u 0 0", "wait a w 0 0"),
        ("ofd-set a w 0 0", "ofd-set a u 0 0", "ofd-wait a w 0 0"),
        ("flock a w", "flock a u", "flock-wait a w"),
    ] {
        one.ok(set);
        two.tell(wait);
        two.is_waiting();
        one.ok("write a under-the-lock");
        one.ok(unlock);
        assert_eq!(two.answer(), "ok");
        assert_eq!(two.call("read a"), "under-the-lock");
        two.ok(unlock);

        one.ok(set);
        two.tell(wait);
        two.is_waiting();
        signal(two.child.id(), "USR1");
        assert_eq!(two.answer(), "EINTR");
        // It waits no more.
        one.ok(unlock);
        one.ok(set);
        one.ok(unlock);
        one.ok("write a nothing-at-all");
    }
    // Longer than one wait of the daemon.
    one.ok("set a w 0 0");
    two.tell("wait a r 0 0");
    two.is_waiting();
    std::thread::sleep(Duration::from_secs(11));
    one.ok("set a u 0 0");
    assert_eq!(two.answer(), "ok");
    one.tell("wait a w 0 0");
    one.is_waiting();
    one.child.kill().unwrap();
    one.child.wait().unwrap();
    two.ok("set a w 0 0");
    drop((one, two));
    first.unmount();
    second.unmount();
}

#[test]
fn a_circle_of_waits_is_refused() {
    let cluster = Cluster::start();
    let (first, second) = (cluster.mount("one"), cluster.mount("two"));
    let [mut one, mut two] = two(first.path(), second.path());
    let mut three = Program::new(first.path());
    three.ok("open a g");
    for program in [&mut one, &mut two] {
        program.ok("open b g");
    }
    one.ok("set a w 0 1");
    two.ok("set b w 0 1");
    three.ok("set a w 1 1");
    one.tell("wait b w 0 1");
    one.is_waiting();
    assert_eq!(two.call("wait a w 0 1"), "EDEADLK");
    two.tell("wait b w 1 1");
    two.is_waiting();
    three.ok("open b f");
    assert_eq!(three.call("wait b r 0 1"), "EDEADLK", "by way of another");
    three.ok("close a");
    assert_eq!(two.answer(), "ok");
    two.ok("set b u 0 0");
    assert_eq!(one.answer(), "ok");
    drop((one, two, three));
    first.unmount();
    second.unmount();
}

#[test]
fn who_dies_frees_his_locks_within_the_lease_and_who_comes_back_is_told() {
    let cluster = Cluster::start_with(&["--lease-ms", "2000"]);
    let (first, second) = (cluster.mount("one"), cluster.mount("two"));
    let [mut one, mut two] = two(first.path(), second.path());
    // The mount stops for a while.
    one.ok("set a w 0 0");
    one.ok("write a of-the-one-who-slept");
    two.tell("wait a w 0 0");
    two.is_waiting();
    let pid = first.pid();
    signal(pid, "STOP");
    assert_eq!(two.answer(), "ok");
    two.ok("write a of-the-next");
    two.ok("set a u 0 0");
    signal(pid, "CONT");
    for _ in 0..300 {
        if one.call("read a") == "ESTALE" {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(one.call("read a"), "ESTALE");
    assert_eq!(one.call("sync a"), "ESTALE");
    assert_eq!(one.call("write a x"), "ESTALE");
    assert_eq!(one.call("set a w 0 0"), "ESTALE");
    assert_eq!(one.call("close a"), "ESTALE");
    one.ok("open a f");
    assert_eq!(one.call("read a"), "of-the-next");
    // The mount dies.
    one.ok("set a w 0 0");
    two.tell("wait a w 0 0");
    two.is_waiting();
    signal(pid, "KILL");
    assert_eq!(two.answer(), "ok");
    drop((one, two));
    drop(first);
    second.unmount();
}

#[test]
fn locks_outlive_the_daemon() {
    let mut cluster = Cluster::start_with(&["--lease-ms", "4000"]);
    let (first, second) = (cluster.mount("one"), cluster.mount("two"));
    let [mut one, mut two] = two(first.path(), second.path());
    for _ in 0..2 {
        one.ok("set a w 0 0");
        two.tell("wait a w 0 0");
        two.is_waiting();
        cluster.kill();
        cluster.launch();
        let mut near = Program::new(first.path());
        near.ok("open a f");
        assert_eq!(near.call("set a r 0 1"), "EAGAIN");
        one.ok("write a still-mine");
        one.ok("set a u 0 0");
        assert_eq!(two.answer(), "ok");
        assert_eq!(two.call("read a"), "still-mine");
        two.ok("set a u 0 0");
    }
    cluster.stop();
    cluster.launch();
    two.ok("set a w 0 0");
    drop((one, two));
    first.unmount();
    second.unmount();
}

#[test]
fn no_update_under_a_lock_is_lost() {
    let cluster = Cluster::start();
    let (first, second) = (cluster.mount("one"), cluster.mount("two"));
    let [one, two] = [first.path(), second.path()].map(|path| path.display().to_string());
    let count = r"
import fcntl, os, sys
lock, unlock = (lambda f: fcntl.lockf(f, fcntl.LOCK_EX)), (lambda f: fcntl.lockf(f, fcntl.LOCK_UN))
if sys.argv[2] == 'flock':
    lock, unlock = (lambda f: fcntl.flock(f, fcntl.LOCK_EX)), (lambda f: fcntl.flock(f, fcntl.LOCK_UN))
f = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
for _ in range(200):
    lock(f)
    number = int(os.pread(f, 20, 0) or b'0') + 1
    os.pwrite(f, b'%020d' % number, 0)
    unlock(f)
";
    std::fs::write(cluster.root().join("count.py"), count).unwrap();
    let root = cluster.root();
    for kind in ["fcntl", "flock"] {
        sh(
            root,
            &format!(
                "python3 count.py {one}/{kind} {kind} & a=$!; python3 count.py {two}/{kind} {kind} & b=$!; wait $a; wait $b"
            ),
        );
        assert_eq!(sh(root, &format!("cat {one}/{kind}")).trim_start_matches('0'), "400", "{kind}");
    }
    // The same through a mapping, which is written with msync.
    let mapped = r"
import fcntl, mmap, os, struct, sys
f = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(f, 4096)
for _ in range(50):
    fcntl.lockf(f, fcntl.LOCK_EX)
    m[:8] = struct.pack('q', struct.unpack('q', m[:8])[0] + 1)
    m.flush()
    fcntl.lockf(f, fcntl.LOCK_UN)
";
    std::fs::write(cluster.root().join("mapped.py"), mapped).unwrap();
    sh(
        root,
        &format!(
            "truncate -s 4096 {one}/mapped; python3 mapped.py {one}/mapped & a=$!; python3 mapped.py {two}/mapped & b=$!; \
             wait $a; wait $b"
        ),
    );
    assert_eq!(sh(root, &format!("od -An -tu8 -N8 {two}/mapped")).trim(), "100");
    first.unmount();
    second.unmount();
}

#[test]
fn sqlite_in_rollback_mode_works_from_two_mounts() {
    let cluster = Cluster::start();
    let (first, second) = (cluster.mount("one"), cluster.mount("two"));
    let program = r"
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], timeout=300, isolation_level=None)
for number in range(40):
    base.execute('begin immediate')
    base.execute('update counter set n = n + 1')
    base.execute('insert into lines values (?, ?)', (sys.argv[2], number))
    base.execute('commit')
";
    std::fs::write(cluster.root().join("base.py"), program).unwrap();
    let (one, two) = (first.path().display(), second.path().display());
    let schema = "pragma journal_mode = delete; create table counter (n); insert into counter values (0); create table lines (who, n);";
    sh(cluster.root(), &format!("sqlite3 {one}/base '{schema}'"));
    sh(
        cluster.root(),
        &format!(
            "python3 base.py {one}/base one & a=$!; python3 base.py {two}/base two & b=$!; wait $a; wait $b"
        ),
    );
    for mount in [&one, &two] {
        let query = "pragma integrity_check; select n from counter; select count(*), count(distinct who || n) from lines;";
        assert_eq!(sh(cluster.root(), &format!("sqlite3 {mount}/base '{query}'")), "ok\n80\n80|80\n");
    }
    first.unmount();
    second.unmount();
}
