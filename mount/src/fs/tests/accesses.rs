//! Reading changes atime: at once on this mount, some seconds later everywhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tandemfs::clock::{ManualClock, Time};
use tandemfs::id::Ino;
use tandemfs::tree::{Key, NewNode, Record};
use tokio::time::sleep;

use super::fake::{Daemon, FakeKernel};
use super::{ROOT, content, list, make, mount, mount_with};
use crate::fs::atime::{AtimeRule, When};
use crate::fs::{Fs, Options, Set, SetTime};

/// Longer than a read waits to be sent.
const LAG: Duration = Duration::from_secs(6);
/// What the clocks of [`mount_with`] show.
const START: Time = Time { seconds: 1000, nanos: 0 };

fn at(seconds: i64) -> Time {
    Time { seconds, nanos: 0 }
}

/// A mount whose clock the test moves.
async fn mount_at(daemon: &Arc<Daemon>, when: When) -> (Arc<Fs>, Arc<FakeKernel>, ManualClock) {
    let clock = ManualClock::at(2_000_000);
    let options = Options { atime: AtimeRule { when, not_directories: false }, ..Options::default() };
    let fs = Arc::new(Fs::open(Arc::clone(daemon) as _, Arc::new(clock.clone()), options).await.unwrap());
    let kernel = Arc::new(FakeKernel::default());
    fs.start(Arc::new(Arc::clone(&kernel)));
    sleep(Duration::from_millis(1)).await;
    (fs, kernel, clock)
}

/// Has a file made by a mount that goes.
async fn made(daemon: &Arc<Daemon>, name: &str) -> Ino {
    let fs = mount(daemon).await;
    let ino = make(&fs, name, b"data").await;
    fs.stop().await.unwrap();
    ino
}

async fn seen(fs: &Fs, ino: Ino) -> Time {
    fs.getattr(ino).await.unwrap().inode.atime
}

fn stored(daemon: &Daemon, ino: Ino) -> Time {
    match daemon.record(&Key::Inode(ino)) {
        Some(Record::Inode(inode)) => inode.atime,
        other => panic!("{other:?}"),
    }
}

async fn set_atime(fs: &Fs, ino: Ino, time: Time) {
    let set = Set { atime: Some(SetTime::At(time)), ..Set::default() };
    assert_eq!(fs.setattr(ROOT, ino, set).await.unwrap().inode.atime, time);
}

#[tokio::test(start_paused = true)]
async fn a_read_is_seen_here_at_once_and_elsewhere_some_seconds_later() {
    let daemon = Arc::new(Daemon::default());
    let ino = made(&daemon, "a").await;
    let (here, kernel, clock) = mount_at(&daemon, When::Relative).await;
    let (there, others, _) = mount_at(&daemon, When::Relative).await;
    here.session.known.add(ino, false);
    there.session.known.add(ino, false);
    assert_eq!((seen(&here, ino).await, seen(&there, ino).await), (START, START));
    let before = daemon.batches.load(Ordering::SeqCst);
    let names = others.names.load(Ordering::SeqCst);
    let handle = here.open_file(ROOT, ino, libc::O_RDONLY).await.unwrap();
    assert_eq!(
        *kernel.attributes.lock().unwrap(),
        [ino],
        "the kernel was not told of what it may read by itself"
    );
    clock.advance(5000);
    here.read(handle, 0, 4).await.unwrap();
    assert_eq!((seen(&here, ino).await, stored(&daemon, ino)), (at(2000), START), "the first read counts");
    here.release(handle).await;
    sleep(LAG).await;
    assert_eq!((seen(&here, ino).await, seen(&there, ino).await), (at(2000), at(2000)));
    assert_eq!(daemon.batches.load(Ordering::SeqCst), before + 1);
    assert_eq!(*others.attributes.lock().unwrap(), [ino]);
    assert!(others.pages.lock().unwrap().is_empty(), "reading has cost others their pages");
    assert_eq!(others.names.load(Ordering::SeqCst), names, "… or names, and with them pages");
    content(&here, ino).await;
    sleep(LAG).await;
    assert_eq!(daemon.batches.load(Ordering::SeqCst), before + 1, "there was nothing new to tell");
}

#[tokio::test(start_paused = true)]
async fn directories_and_links_are_read_as_well() {
    let daemon = Arc::new(Daemon::default());
    let fs = mount(&daemon).await;
    let link = NewNode::Symlink(b"x".to_vec());
    let link = fs.make(ROOT, Ino::ROOT, b"l", link, 0o777.into()).await.unwrap().inode.ino;
    let (fs, _, _) = mount_at(&daemon, When::Relative).await;
    let handle = fs.open_directory(Ino::ROOT, 0).await.unwrap();
    assert_eq!((seen(&fs, Ino::ROOT).await, seen(&fs, link).await), (at(0), START));
    fs.release_directory(handle).await;
    fs.readlink(link).await.unwrap();
    list(&fs, Ino::ROOT, false).await;
    assert_eq!((seen(&fs, Ino::ROOT).await, seen(&fs, link).await), (at(2000), at(2000)));
}

#[tokio::test(start_paused = true)]
async fn the_options_decide_which_reads_count() {
    let daemon = Arc::new(Daemon::default());
    let ino = made(&daemon, "a").await;
    let (strict, _, clock) = mount_at(&daemon, When::Always).await;
    for second in [2000, 2001] {
        content(&strict, ino).await;
        assert_eq!(seen(&strict, ino).await, at(second));
        clock.advance(1000);
    }
    let handle = strict.open_file(ROOT, ino, libc::O_RDWR).await.unwrap();
    clock.advance(1000);
    strict.read(handle, 0, 4).await.unwrap();
    assert_eq!(seen(&strict, ino).await, at(2003), "each read counts");
    strict.release(handle).await;
    clock.advance(1000);
    let handle = strict.open_file(ROOT, ino, libc::O_RDONLY | libc::O_NOATIME).await.unwrap();
    strict.read(handle, 0, 4).await.unwrap();
    let written = strict.open_file(ROOT, ino, libc::O_WRONLY).await.unwrap();
    strict.read(handle, 0, 4).await.unwrap();
    assert_eq!(seen(&strict, ino).await, at(2003), "neither O_NOATIME nor O_WRONLY reads");
    let directory = strict.open_directory(Ino::ROOT, libc::O_NOATIME).await.unwrap();
    strict.read_directory(&strict.directory(directory).unwrap(), 0, true, 9).await.unwrap();
    assert_eq!(seen(&strict, Ino::ROOT).await, at(0));
    strict.release_directory(directory).await;
    strict.release(handle).await;
    strict.release(written).await;
    strict.stop().await.unwrap();
    assert_eq!(stored(&daemon, ino), at(2003), "an unmount tells of what was read");

    set_atime(&*mount(&daemon).await, ino, at(5)).await;
    let (never, _, _) = mount_at(&daemon, When::Never).await;
    let (read_only, _) = mount_with(&daemon, Options { read_only: true, ..Options::default() }).await;
    let rule = AtimeRule { when: When::Always, not_directories: true };
    let (files, _) = mount_with(&daemon, Options { atime: rule, ..Options::default() }).await;
    for fs in [&never, &read_only, &files] {
        list(fs, Ino::ROOT, true).await;
        assert_eq!(seen(fs, Ino::ROOT).await, at(0));
    }
    for fs in [&never, &read_only] {
        content(fs, ino).await;
        assert_eq!(seen(fs, ino).await, at(5));
    }
    content(&files, ino).await;
    assert_eq!(seen(&files, ino).await, START);
}

#[tokio::test(start_paused = true)]
async fn who_sets_atime_is_not_overruled_by_reads_of_before() {
    let daemon = Arc::new(Daemon::default());
    let ino = made(&daemon, "a").await;
    let (here, _, clock) = mount_at(&daemon, When::Always).await;
    let (there, _, _) = mount_at(&daemon, When::Always).await;
    // Forward and back, here.
    for time in [at(1500), at(5)] {
        content(&here, ino).await;
        set_atime(&here, ino, time).await;
        sleep(LAG).await;
        assert_eq!((seen(&here, ino).await, stored(&daemon, ino)), (time, time));
    }
    // Back, there.
    content(&here, ino).await;
    set_atime(&there, ino, at(4)).await;
    assert_eq!(seen(&here, ino).await, at(4));
    sleep(LAG).await;
    assert_eq!((seen(&here, ino).await, stored(&daemon, ino)), (at(4), at(4)));
    // While the reads are on their way.
    clock.advance(1000);
    content(&here, ino).await;
    daemon.hold_batches.store(true, Ordering::SeqCst);
    sleep(LAG).await;
    let sent = daemon.batches.load(Ordering::SeqCst);
    let setting = tokio::spawn({
        let here = Arc::clone(&here);
        async move { set_atime(&here, ino, at(2000)).await }
    });
    sleep(Duration::from_millis(10)).await;
    assert_eq!(daemon.batches.load(Ordering::SeqCst), sent, "it might overtake the read");
    daemon.hold_batches.store(false, Ordering::SeqCst);
    daemon.release_batches.notify_waiters();
    setting.await.unwrap();
    sleep(LAG).await;
    assert_eq!((seen(&here, ino).await, stored(&daemon, ino)), (at(2000), at(2000)));
}

#[tokio::test(start_paused = true)]
async fn many_reads_are_few_messages_and_what_is_too_much_is_not_noted() {
    let daemon = Arc::new(Daemon::default());
    let fs = mount(&daemon).await;
    let mut inos = Vec::new();
    for number in 0..80 {
        inos.push(make(&fs, &format!("f{number}"), b"x").await);
    }
    fs.stop().await.unwrap();
    let (fs, _, _) = mount_at(&daemon, When::Relative).await;
    for ino in inos.drain(..20) {
        content(&fs, ino).await;
    }
    sleep(Duration::from_millis(100)).await;
    let told = daemon
        .keys()
        .into_iter()
        .filter(|key| matches!(key, Key::Inode(ino) if stored(&daemon, *ino) == at(2000)));
    assert!((16..=20).contains(&told.count()), "enough for a batch does not wait");
    sleep(LAG).await;
    let before = daemon.batches.load(Ordering::SeqCst);
    daemon.hold_batches.store(true, Ordering::SeqCst);
    for ino in &inos {
        assert_eq!(content(&fs, *ino).await, b"x", "reading waits for nothing");
    }
    let mut noted = 0;
    for ino in &inos {
        noted += usize::from(seen(&fs, *ino).await == at(2000));
    }
    assert_eq!(noted, 40);
    daemon.hold_batches.store(false, Ordering::SeqCst);
    daemon.release_batches.notify_waiters();
    sleep(LAG * 2).await;
    assert_eq!(inos.iter().filter(|ino| stored(&daemon, **ino) == at(2000)).count(), 40);
    let batches = daemon.batches.load(Ordering::SeqCst) - before;
    assert!((3..=4).contains(&batches), "{batches} batches for 40 reads");
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_or_ended_is_dropped_silently() {
    let daemon = Arc::new(Daemon::default());
    let (gone, ino) = (made(&daemon, "gone").await, made(&daemon, "a").await);
    let (fs, _, _) = mount_at(&daemon, When::Relative).await;
    fs.lookup(Ino::ROOT, b"gone").await.unwrap();
    content(&fs, gone).await;
    content(&fs, ino).await;
    fs.remove(ROOT, Ino::ROOT, b"gone", false).await.unwrap();
    sleep(LAG).await;
    assert_eq!(
        (daemon.record(&Key::Inode(gone)), stored(&daemon, ino)),
        (None, at(2000)),
        "one spoilt the other"
    );

    let (fs, _, clock) = mount_at(&daemon, When::Always).await;
    clock.advance(1000);
    content(&fs, ino).await;
    assert_eq!(seen(&fs, ino).await, at(2001));
    let ended = fs.session.id();
    daemon.fence_all();
    while fs.session.id() == ended {
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(seen(&fs, ino).await, at(2000), "lost with the session");
    sleep(LAG).await;
    assert_eq!((seen(&fs, ino).await, stored(&daemon, ino)), (at(2000), at(2000)));
    content(&fs, ino).await;
    sleep(LAG).await;
    assert_eq!(stored(&daemon, ino), at(2001));
}

#[tokio::test(start_paused = true)]
async fn fsync_tells_of_reads_and_fdatasync_does_not() {
    let daemon = Arc::new(Daemon::default());
    let ino = made(&daemon, "a").await;
    let (fs, _, _) = mount_at(&daemon, When::Relative).await;
    let handle = fs.open_file(ROOT, ino, libc::O_RDONLY).await.unwrap();
    fs.fdatasync(handle).await.unwrap();
    assert_eq!(stored(&daemon, ino), START);
    fs.fsync(handle).await.unwrap();
    assert_eq!(stored(&daemon, ino), at(2000));
    let before = daemon.batches.load(Ordering::SeqCst);
    fs.fsync(handle).await.unwrap();
    assert_eq!(daemon.batches.load(Ordering::SeqCst), before);
    fs.release(handle).await;
}
