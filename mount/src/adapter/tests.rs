//! The adapter in front of a real kernel, on a daemon in memory. Needs /dev/fuse and the right to mount.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

use tandemfs::clock::{SystemClock, Time};
use tokio::runtime::Runtime;

use super::{Mount, MountSettings, Unmounter};
use crate::fs::tests::fake::Daemon;
use crate::fs::{Fs, Options};

struct Mounted {
    directory: tempfile::TempDir,
    unmounter: Unmounter,
    serving: Option<JoinHandle<std::io::Result<()>>>,
}

impl Mounted {
    fn new(runtime: &Runtime, daemon: &Arc<Daemon>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let remote = Arc::clone(daemon) as _;
        let fs = runtime.block_on(Fs::open(remote, Arc::new(SystemClock), Options::default())).unwrap();
        let fs = Arc::new(fs);
        let settings = MountSettings { source: "test".to_owned(), ..MountSettings::default() };
        let mut mount = Mount::new(&fs, runtime.handle(), directory.path(), &settings).unwrap();
        let unmounter = mount.unmounter();
        let serving = Some(std::thread::spawn(move || mount.serve()));
        Self { directory, unmounter, serving }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn unmount(mut self) {
        self.unmounter.unmount().unwrap();
        self.serving.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // After a failed assertion the directory must not stay mounted.
        let _status = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.directory.path())
            .stderr(std::process::Stdio::null())
            .status();
    }
}

fn names(path: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn ordinary_calls_through_the_kernel() {
    let runtime = Runtime::new().unwrap();
    let daemon = Arc::new(Daemon::default());
    let mounted = Mounted::new(&runtime, &daemon);
    let file = mounted.path("file");
    let data: Vec<u8> = (0..9_000_000u32).map(|number| (number / 7) as u8).collect();
    fs::write(&file, &data).unwrap();
    assert!(fs::read(&file).unwrap() == data);
    assert_eq!(fs::metadata(&file).unwrap().len(), data.len() as u64);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);

    let mut open = OpenOptions::new().read(true).write(true).open(&file).unwrap();
    open.write_all_at(b"overlay", 4_194_300).unwrap();
    let mut piece = [0; 7];
    open.read_exact_at(&mut piece, 4_194_300).unwrap();
    assert_eq!(&piece, b"overlay");
    open.set_len(10).unwrap();
    open.seek(SeekFrom::Start(0)).unwrap();
    let mut rest = Vec::new();
    open.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, data[..10]);
    open.set_modified(UNIX_EPOCH + Duration::new(5, 6)).unwrap();
    fs::remove_file(&file).unwrap();
    open.write_all(b"unlinked").unwrap();
    open.sync_all().unwrap();
    assert_eq!(open.metadata().unwrap().len(), 18);
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    drop(open);

    fs::create_dir_all(mounted.path("a/b/c")).unwrap();
    symlink("b/c", mounted.path("a/link")).unwrap();
    fs::write(mounted.path("a/link/deep"), b"x").unwrap();
    assert_eq!(fs::read(mounted.path("a/b/c/deep")).unwrap(), b"x");
    fs::hard_link(mounted.path("a/b/c/deep"), mounted.path("hard")).unwrap();
    assert_eq!(fs::metadata(mounted.path("hard")).unwrap().nlink(), 2);
    fs::rename(mounted.path("a"), mounted.path("z")).unwrap();
    assert_eq!(names(&mounted.path("")), ["hard", "z"]);
    fs::remove_dir_all(mounted.path("z")).unwrap();
    assert_eq!(names(&mounted.path("")), ["hard"]);

    let mut append = OpenOptions::new().append(true).create(true).open(mounted.path("log")).unwrap();
    for _ in 0..3 {
        append.write_all(b"line\n").unwrap();
    }
    assert_eq!(fs::read(mounted.path("log")).unwrap(), b"line\nline\nline\n");
    drop(append);
    mounted.unmount();

    let again = Mounted::new(&runtime, &daemon);
    assert_eq!(names(&again.path("")), ["hard", "log"]);
    again.unmount();
    assert_eq!(daemon.sessions(), 0);
}

#[test]
fn a_large_directory_is_listed_while_it_changes() {
    let runtime = Runtime::new().unwrap();
    let daemon = Arc::new(Daemon::default());
    let mounted = Mounted::new(&runtime, &daemon);
    for number in 0..2000 {
        File::create(mounted.path(&format!("{number:05}"))).unwrap();
    }
    let mut seen = Vec::new();
    for (at, entry) in fs::read_dir(mounted.path("")).unwrap().enumerate() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().len(), 0);
        seen.push(entry.file_name());
        if at % 3 == 0 {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    seen.sort();
    let wanted: Vec<_> = (0..2000).map(|number| OsString::from(format!("{number:05}"))).collect();
    assert_eq!(seen, wanted);
    assert_eq!(names(&mounted.path("")).len(), 2000 - 667);
    mounted.unmount();
}

#[test]
fn what_one_mount_has_done_the_other_sees() {
    let runtime = Runtime::new().unwrap();
    let daemon = Arc::new(Daemon::default());
    let (one, two) = (Mounted::new(&runtime, &daemon), Mounted::new(&runtime, &daemon));
    fs::write(one.path("kept"), b"").unwrap();
    let open = File::open(two.path("kept")).unwrap();
    for round in 0..300 {
        let text = format!("round {round} {}", "x".repeat(round % 13));
        fs::write(one.path("kept"), &text).unwrap();
        assert_eq!(fs::read_to_string(two.path("kept")).unwrap(), text);
        assert_eq!(open.metadata().unwrap().len(), text.len() as u64);
        let mut read = vec![0; text.len()];
        open.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, text.as_bytes());
        fs::rename(two.path("kept"), two.path("moved")).unwrap();
        assert!(!one.path("kept").exists());
        assert_eq!(fs::metadata(one.path("moved")).unwrap().len(), text.len() as u64);
        fs::rename(one.path("moved"), one.path("kept")).unwrap();
        assert_eq!(names(&two.path("")), ["kept"]);
        fs::write(two.path("gone"), b"x").unwrap();
        assert!(one.path("gone").exists());
        fs::remove_file(one.path("gone")).unwrap();
        assert!(!two.path("gone").exists());
    }
    drop(open);
    one.unmount();
    two.unmount();
}

#[test]
fn times_before_1970_are_what_the_kernel_sent() {
    // What fuser 0.18 makes of (-2 s, 500 million ns).
    let arrived = UNIX_EPOCH - Duration::new(2, 500_000_000);
    assert_eq!(super::convert::sent_time(arrived), Time { seconds: -2, nanos: 500_000_000 });
    assert_eq!(
        super::convert::sent_time(UNIX_EPOCH - Duration::from_secs(3)),
        Time { seconds: -3, nanos: 0 }
    );
    let after = Time { seconds: 7, nanos: 9 };
    assert_eq!(super::convert::sent_time(after.to_system()), after);
}
