//! `tandem-mount` is killed: what it had answered is sent by the next mount, or offered where others have come in between.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::cluster::{Cluster, Mount, signal};
use super::shell::sh;

/// So often the mount is killed at a random moment, unless `MOUNT_KILLS` says otherwise.
const KILLS: u64 = 5;
/// What is in all files is looked at after every tenth kill and after the last; after the others, what is in those that were made since the one before.
const ALL: u64 = 10;

/// Makes, renames, rewrites and removes files from a number on; says of each call what it is, and when it has returned. It ends with the mount.
const WORKER: &str = r#"
import itertools, os, sys
os.chdir(sys.argv[1])
def do(line, call):
    print(line, flush=True)
    call()
    print('ok', flush=True)
def put(name, content):
    with open(name, 'wb') as file:
        file.write(content)
def drop(name):
    # Not by os.path.exists, to which an error says no.
    try:
        os.unlink(name)
    except FileNotFoundError:
        pass
def content(n):
    return (b'%d,' % n) * (1 + n * 397 % 20000)
try:
    for n in itertools.count(int(sys.argv[2])):
        do(f'put f{n} {n}', lambda: put(f'f{n}', content(n)))
        if n % 3 == 0:
            do(f'move f{n} g{n}', lambda: os.rename(f'f{n}', f'g{n}'))
        if n % 5 == 0:
            do(f'put again {n}', lambda: put('again', content(n)))
        if n % 4 == 2:
            do(f'drop f{n-1}', lambda: drop(f'f{n-1}'))
except OSError:
    pass
os._exit(0)
"#;

fn content(number: u64) -> Vec<u8> {
    format!("{number},").into_bytes().repeat(1 + (number * 397 % 20000) as usize)
}

fn leased(cluster: &Cluster) -> Mount {
    let mount = cluster.mount_as("admin", "admin123", "m", "lease");
    thread::sleep(Duration::from_millis(500));
    mount
}

/// Kills the mount and takes what it leaves out of sight.
fn kill(mount: &Mount) {
    signal(mount.pid(), "KILL");
    sh(Path::new("/"), &format!("umount -l '{}'", mount.path().display()));
}

/// What files there are to be: names, and the numbers of what is in them.
type Model = BTreeMap<String, u64>;

fn apply(model: &mut Model, line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["put", name, number] => drop(model.insert(name.into(), number.parse().expect("a number"))),
        ["move", from, to] => {
            let number = model.remove(from).expect("it was made");
            model.insert(to.into(), number);
        }
        ["drop", name] => drop(model.remove(name)),
        _ => panic!("{line}"),
    }
}

/// Works until the mount is killed. Answers the call that had not returned by then.
fn work_until_killed(mount: Mount, from: u64, after: Duration, model: &mut Model) -> Option<String> {
    let mut worker = Command::new("python3")
        .args(["-c", WORKER])
        .arg(mount.path())
        .arg(from.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 starts");
    let mut lines = BufReader::new(worker.stdout.take().expect("its output")).lines().map_while(Result::ok);
    // Only now is it in the mount for sure.
    let mut under_way = lines.next();
    let killer = thread::spawn(move || {
        thread::sleep(after);
        kill(&mount);
    });
    for line in lines {
        match (line.as_str(), under_way.take()) {
            ("ok", Some(done)) => apply(model, &done),
            _ => under_way = Some(line),
        }
    }
    killer.join().expect("it is killed");
    worker.wait().expect("it ends");
    under_way
}

#[test]
fn nothing_that_was_answered_is_lost_when_the_mount_is_killed() {
    let kills = std::env::var("MOUNT_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS);
    let cluster = Cluster::start();
    let mut model = Model::new();
    let mut replayed = 0;
    for kill in 0..kills {
        let mount = leased(&cluster);
        // From the second one on, what it did not see itself.
        let after = Duration::from_millis(200 + kill * 7919 % 800);
        let under_way = work_until_killed(mount, kill * 100_000, after, &mut model);
        let path = cluster.root().join("m");
        let said = cluster.try_mount("admin", "admin123", &path, "");
        replayed += u64::from(String::from_utf8_lossy(&said.stderr).contains("that a mount had left behind"));
        let mount = Mount::at(path);
        let mut with = model.clone();
        let mut possible = Vec::new();
        if let Some(line) = &under_way {
            apply(&mut with, line);
            possible.extend(line.split(' ').skip(1).map(str::to_owned));
        }
        let names: Vec<String> = fs::read_dir(mount.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !possible.contains(name))
            .collect();
        assert!(!names.iter().any(|name| name.starts_with("recovered")), "{names:?}");
        let expected = model.iter().filter(|(name, _)| !possible.contains(name));
        let from = if kill % ALL == ALL - 1 || kill == kills - 1 { 0 } else { kill * 100_000 };
        let mut count = 0;
        for (name, number) in expected {
            count += 1;
            if *number < from {
                continue;
            }
            let found = fs::read(mount.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(found == content(*number), "{name} has other bytes");
        }
        assert_eq!(names.len(), count, "there is more than was made");
        // What was under way is there or is not; from here on it is known.
        for name in possible {
            let number = fs::read(mount.path().join(&name)).ok();
            match number {
                Some(found) if with.get(&name).is_some_and(|number| found == content(*number)) => {
                    model.insert(name.clone(), with[&name]);
                }
                Some(found) if model.get(&name).is_some_and(|number| found == content(*number)) => {}
                Some(_) => {
                    // It was open, and written in part.
                    fs::remove_file(mount.path().join(&name)).unwrap();
                    model.remove(&name);
                }
                None => drop(model.remove(&name)),
            }
        }
        mount.unmount();
    }
    println!("{kills} kills, after {replayed} something was left to send, {} files", model.len());
    assert!(replayed > 0, "no kill met changes that were not sent");
}

/// Has a mount answer what a daemon that stands still has not heard of, and kills it.
fn leave_something(cluster: &Cluster) {
    let mount = leased(cluster);
    sh(mount.path(), "mkdir d && echo old > old && ls && sync old");
    signal(cluster.pid(), "STOP");
    // This one is on its way to the daemon, who may take it.
    sh(mount.path(), "touch begun; sleep 0.3");
    sh(
        mount.path(),
        "for i in $(seq 50); do echo $i > f$i; done; mv f7 d/g7; rm f8; echo more >> old; head -c 200000 /dev/urandom > f9; sha256sum < f9 > f9.sum",
    );
    kill(&mount);
    signal(cluster.pid(), "CONT");
}

#[test]
fn the_next_mount_sends_what_was_left() {
    let cluster = Cluster::start();
    leave_something(&cluster);
    // However long after; the daemon keeps the session while nobody else comes.
    thread::sleep(Duration::from_secs(5));
    let mount = cluster.mount("m");
    sh(
        mount.path(),
        "[ $(ls | grep -c ^f) = 49 ] && [ $(cat d/g7) = 7 ] && [ \"$(cat old)\" = \"old\nmore\" ] && [ \"$(sha256sum < f9)\" = \"$(cat f9.sum)\" ]",
    );
    mount.unmount();
    sh(cluster.root(), "[ -z \"$(find cache -name '*.log')\" ]");
}

#[test]
fn what_was_left_is_offered_when_others_have_come_in_between() {
    let cluster = Cluster::start();
    leave_something(&cluster);
    // Whoever comes does not wait for ever.
    let listed = cluster.tandem_json(&["ls", "/"]).to_string();
    assert!(listed.contains("\"old\"") && !listed.contains("\"f1\""), "{listed}");
    let mount = cluster.mount("m");
    sh(
        mount.path(),
        "for try in $(seq 100); do ls recovered-*/CHANGES.txt 2>/dev/null && break; sleep 0.1; done
         cd recovered-* && [ $(ls | grep -c ^f) = 49 ] && [ $(cat d/g7) = 7 ] && [ \"$(cat old)\" = \"old\nmore\" ] && [ \"$(sha256sum < f9)\" = \"$(cat f9.sum)\" ] && grep -q 'removed: /f8' CHANGES.txt
         [ \"$(cat ../old)\" = old ] && [ ! -e ../f1 ]",
    );
    mount.unmount();
    sh(cluster.root(), "[ -z \"$(find cache -name '*.log')\" ]");
}
