//! A client: calls on files of a mount, chosen at random, with what was answered and when.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{CWD, FlockOperation, RenameFlags, fcntl_lock, flock, renameat_with};
use rustix::io::Errno;

use super::checker::Model;
use super::descriptors;
use super::drive::{Drive, Handles, Root, SETTLED};
use super::history::{Histories, Objects, Operation};
use super::models::{
    Add, DIRECTORIES, Directories, DirectoryAnswer, DirectoryCall, Kind, LockAnswer, LockCall, Log,
    LogAnswer, LogCall, NAMES, Place, RegisterAnswer, RegisterCall, Was,
};

/// So many calls, of any kind, and the log is another file.
const LOG_CALLS: u64 = 400;
/// How often a value stands in a register that is written in place, in one page, and in one that is replaced.
pub const COPIES: (usize, usize) = (4, 640);
/// How long a number in the file of a counter is.
const NUMBER: usize = 16;

/// A client of the mount `drive.places[mount]`.
pub struct Client<'a> {
    pub number: usize,
    pub mount: usize,
    drive: &'a Drive,
    random: StdRng,
    /// Numbers for values, records and holdings of locks.
    next: u64,
    /// Descriptors that are kept open, by the name of the object.
    kept: HashMap<String, File>,
    /// The mount that they are of.
    kept_in: Option<Arc<Root>>,
    histories: Histories,
}

/// A call that failed in a way that no object answers.
struct Failure {
    error: io::Error,
    /// Whether it may have happened all the same.
    unknown: bool,
}

type Result<T> = std::result::Result<T, Failure>;

/// It certainly did not happen.
fn not_done(error: impl Into<io::Error>) -> Failure {
    Failure { error: error.into(), unknown: false }
}

/// It may have happened.
fn unknown(error: impl Into<io::Error>) -> Failure {
    Failure { error: error.into(), unknown: true }
}

/// What a register holds.
pub fn content(value: u64, copies: usize) -> Vec<u8> {
    format!("{value:016x}").repeat(copies).into_bytes()
}

/// The value of a register, if it is one.
fn value_of(bytes: &[u8], copies: usize) -> RegisterAnswer {
    let first = std::str::from_utf8(bytes.get(..16).unwrap_or_default()).unwrap_or_default();
    match u64::from_str_radix(first, 16) {
        Ok(value) if content(value, copies) == bytes => RegisterAnswer::Value(value),
        _ => RegisterAnswer::Torn(summary(bytes)),
    }
}

/// What a record looks like in a log.
fn line(record: u32) -> Vec<u8> {
    let mut line: Vec<u8> =
        format!("{record:08x}").into_bytes().into_iter().cycle().take(Log::length(record)).collect();
    line[Log::length(record) - 1] = b'\n';
    line
}

/// The records of a log, if it has nothing else.
fn records_of(bytes: &[u8]) -> LogAnswer {
    let (mut records, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let name = std::str::from_utf8(bytes.get(at..at + 8).unwrap_or_default()).unwrap_or_default();
        match u32::from_str_radix(name, 16) {
            Ok(record) if bytes[at..].starts_with(&line(record)) => {
                records.push(record);
                at += Log::length(record);
            }
            _ => {
                let rest = summary(&bytes[at..]);
                return LogAnswer::Torn(format!("{records:x?}, then at {at} of {}: {rest}", bytes.len()));
            }
        }
    }
    LogAnswer::Records(records)
}

/// All of a file. A read that overlaps with changes elsewhere may take the end from before; fstat(2) does not (docs/semantics.md,
/// "Histories").
fn read_to_end(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let begin = bytes.len();
        bytes.resize(begin + (64 << 10), 0);
        let length = file.read_at(&mut bytes[begin..], begin as u64)?;
        bytes.truncate(begin + length);
        if length == 0 && bytes.len() as u64 >= file.metadata()?.len() {
            return Ok(bytes);
        }
    }
}

/// Bytes that should not be so.
fn summary(bytes: &[u8]) -> String {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(100)]).into_owned();
    format!("{} bytes: {shown:?}", bytes.len())
}

impl<'a> Client<'a> {
    pub fn new(drive: &'a Drive, number: usize) -> Self {
        let random = StdRng::seed_from_u64(drive.seed.wrapping_mul(1000) + number as u64);
        let mount = number % drive.places.len();
        Self {
            number,
            mount,
            drive,
            random,
            next: 0,
            kept: HashMap::new(),
            kept_in: None,
            histories: Histories::default(),
        }
    }

    /// Calls until there have been enough, and answers what was recorded.
    pub fn run(mut self) -> Histories {
        descriptors::of_this_thread();
        while let Some(call) = self.drive.next_call() {
            match self.random.random_range(0..100) {
                0..20 => self.register("closed", Handles::Closed),
                20..35 => self.register("kept", self.drive.handles),
                35..45 => self.replaced(),
                45..70 => self.directories(),
                70..88 => self.log(&format!("log-{}", call / LOG_CALLS)),
                88..94 => self.lock(),
                _ => self.counter(),
            }
        }
        self.histories
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        (self.number as u64) << 24 | self.next
    }

    /// Runs a call, and records it if it has happened or may have.
    fn record<M: Model>(
        &mut self,
        objects: fn(&mut Histories) -> &mut Objects<M>,
        object: &str,
        call: M::Call,
        run: impl FnOnce(&mut Self, &Path) -> Result<M::Answer>,
    ) -> Option<M::Answer> {
        let root = self.drive.places[self.mount].current();
        if self.kept_in.as_ref().is_none_or(|kept_in| !Arc::ptr_eq(kept_in, &root)) {
            self.kept.clear();
            self.kept_in = Some(Arc::clone(&root));
        }
        let start = self.drive.now();
        let result = run(self, &root.path);
        let end = self.drive.now();
        let (answer, end) = match result {
            Ok(answer) => (Some(answer), end),
            Err(failure) => {
                self.kept.clear();
                self.drive.failed(&root, &failure.error, &format!("{object}: {call:?}"));
                self.wait_for_another(&root);
                if !failure.unknown {
                    return None;
                }
                (None, end + SETTLED)
            }
        };
        self.note(objects, object, call, answer.clone(), start, end);
        answer
    }

    fn note<M: Model>(
        &mut self,
        objects: fn(&mut Histories) -> &mut Objects<M>,
        object: &str,
        call: M::Call,
        answer: Option<M::Answer>,
        start: Duration,
        end: Duration,
    ) {
        let (client, mount) = (self.number, self.mount);
        let operation = Operation { client, mount, call, answer, start, end };
        objects(&mut self.histories).entry(object.to_owned()).or_default().push(operation);
    }

    /// Waits until a mount that has died is mounted again.
    fn wait_for_another(&self, root: &Arc<Root>) {
        while root.is_dead() && Arc::ptr_eq(root, &self.drive.places[self.mount].current()) {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Takes a descriptor that was kept open, or opens the file.
    fn open(&mut self, object: &str, path: &Path, options: &OpenOptions) -> Result<File> {
        match self.kept.remove(object) {
            Some(file) => Ok(file),
            None => options.open(path).map_err(not_done),
        }
    }

    /// Keeps a descriptor open, or closes it.
    fn put_back(&mut self, object: &str, file: File, handles: Handles) -> io::Result<()> {
        match handles {
            Handles::Closed => descriptors::close(file),
            Handles::Synced | Handles::Kept => {
                self.kept.insert(object.to_owned(), file);
                Ok(())
            }
        }
    }

    /// Makes what was written seen, and puts the descriptor back.
    fn finish(&mut self, object: &str, file: File, handles: Handles) -> io::Result<()> {
        if handles == Handles::Synced {
            file.sync_data()?;
        }
        self.put_back(object, file, handles)
    }

    /// A file that is written in place.
    fn register(&mut self, object: &str, handles: Handles) {
        // On one mount, what is written is seen before it is closed or synced.
        let drive = self.drive;
        let _alone = drive.places[self.mount].alone(usize::from(object == "kept"));
        let options = OpenOptions::new().read(true).write(true).clone();
        if self.random.random_bool(0.3) {
            let value = self.number();
            self.record(
                |all| &mut all.registers,
                object,
                RegisterCall::Write(value),
                |this, root| {
                    let file = this.open(object, &root.join(object), &options)?;
                    file.write_all_at(&content(value, COPIES.0), 0).map_err(unknown)?;
                    this.finish(object, file, handles).map_err(unknown)?;
                    Ok(RegisterAnswer::Written)
                },
            );
        } else {
            self.record(
                |all| &mut all.registers,
                object,
                RegisterCall::Read,
                |this, root| {
                    let file = this.open(object, &root.join(object), &options)?;
                    let mut bytes = vec![0; 16 * COPIES.0 + 1];
                    let length = file.read_at(&mut bytes, 0).map_err(not_done)?;
                    this.put_back(object, file, handles).map_err(not_done)?;
                    Ok(value_of(&bytes[..length], COPIES.0))
                },
            );
        }
    }

    /// A file that another one is put in the place of.
    fn replaced(&mut self) {
        let object = "replaced";
        if self.random.random_bool(0.3) {
            let value = self.number();
            self.record(
                |all| &mut all.registers,
                object,
                RegisterCall::Write(value),
                |this, root| {
                    let new = root.join(format!("new-{}", this.number));
                    let file = File::create(&new).map_err(not_done)?;
                    file.write_all_at(&content(value, COPIES.1), 0).map_err(not_done)?;
                    descriptors::close(file).map_err(not_done)?;
                    fs::rename(&new, root.join(object)).map_err(unknown)?;
                    Ok(RegisterAnswer::Written)
                },
            );
        } else {
            self.record(
                |all| &mut all.registers,
                object,
                RegisterCall::Read,
                |_, root| {
                    let bytes = fs::read(root.join(object)).map_err(not_done)?;
                    Ok(value_of(&bytes, COPIES.1))
                },
            );
        }
    }

    fn log(&mut self, object: &str) {
        let (drive, handles) = (self.drive, self.drive.handles);
        let _alone = drive.places[self.mount].alone(2);
        // Appends and reads each have a descriptor.
        let reads = format!("{object}-read");
        self.kept.retain(|name, _| name == object || *name == reads || !name.starts_with("log-"));
        let options = OpenOptions::new().read(true).append(true).create(true).clone();
        match self.random.random_range(0..6) {
            0..2 => {
                let record = self.number() as u32;
                self.record(
                    |all| &mut all.logs,
                    object,
                    LogCall::Append(record),
                    |this, root| {
                        let file = this.open(object, &root.join(object), &options)?;
                        let line = line(record);
                        let length = io::Write::write(&mut &file, &line).map_err(unknown)?;
                        if length < line.len() {
                            return Err(unknown(io::Error::other("a short write")));
                        }
                        this.finish(object, file, handles).map_err(unknown)?;
                        Ok(LogAnswer::Appended)
                    },
                );
            }
            2 => {
                self.record(
                    |all| &mut all.logs,
                    object,
                    LogCall::Read,
                    |this, root| {
                        // Not the one that appends: its reads go round the kernel's cache.
                        let path = root.join(object);
                        let file = match this.open(&reads, &path, OpenOptions::new().read(true)) {
                            Err(Failure { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                                return Ok(LogAnswer::Records(Vec::new()));
                            }
                            other => other?,
                        };
                        let bytes = read_to_end(&file).map_err(not_done)?;
                        this.put_back(&reads, file, handles).map_err(not_done)?;
                        Ok(records_of(&bytes))
                    },
                );
            }
            _ => {
                self.record(
                    |all| &mut all.logs,
                    object,
                    LogCall::Size,
                    |_, root| match fs::metadata(root.join(object)) {
                        Ok(metadata) => Ok(LogAnswer::Size(metadata.len())),
                        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(LogAnswer::Size(0)),
                        Err(error) => Err(not_done(error)),
                    },
                );
            }
        }
    }

    fn place(&mut self) -> Place {
        (self.random.random_range(0..DIRECTORIES), self.random.random_range(0..NAMES))
    }

    fn directories(&mut self) {
        let _alone = self.drive.places[self.mount].alone(3);
        let place = self.place();
        let call = match self.random.random_range(0..14) {
            0..2 => DirectoryCall::Create(place),
            2..5 => {
                let to = loop {
                    let to = self.place();
                    if to != place {
                        break to;
                    }
                };
                let kinds = [Kind::Replace, Kind::Replace, Kind::NoReplace, Kind::Exchange];
                DirectoryCall::Rename(place, to, kinds[self.random.random_range(0..kinds.len())])
            }
            5 => DirectoryCall::Unlink(place),
            6..10 => DirectoryCall::Stat(place),
            _ => DirectoryCall::List(place.0),
        };
        self.record(
            |all| &mut all.directories,
            "directories",
            call.clone(),
            |_, root| match carry_out(root, &call) {
                Ok(answer) => Ok(answer),
                Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                    Some(errno @ (Errno::EXIST | Errno::NOENT)) => Ok(DirectoryAnswer::Failed(errno)),
                    _ if Directories::is_read(&call) => Err(not_done(error)),
                    _ => Err(unknown(error)),
                },
            },
        );
    }

    /// Takes a lock without waiting, holds it for a moment, and gives it up.
    fn lock(&mut self) {
        let (object, set) = self.kind_of_lock("lock");
        let holding = self.number();
        let shared = self.random.random_bool(0.3);
        let hold = Duration::from_micros(self.random.random_range(0..2000));
        let (call, operation) = if shared {
            (LockCall::Shared(holding), FlockOperation::NonBlockingLockShared)
        } else {
            (LockCall::Exclusive(holding), FlockOperation::NonBlockingLockExclusive)
        };
        let start = self.drive.now();
        let mut locked = None;
        let mut unsure = false;
        let answer = self.record(
            |all| &mut all.locks,
            &object,
            call,
            |_, root| {
                let file =
                    OpenOptions::new().read(true).write(true).open(root.join(&object)).map_err(not_done)?;
                unsure = true;
                match set(&file, operation) {
                    Ok(()) => {
                        locked = Some(file);
                        Ok(LockAnswer::Done)
                    }
                    Err(Errno::AGAIN) => Ok(LockAnswer::Refused),
                    Err(error) => Err(unknown(error)),
                }
            },
        );
        let mut since = self.drive.now();
        if let Some(file) = locked {
            thread::sleep(hold);
            let unlocked = self.record(
                |all| &mut all.locks,
                &object,
                LockCall::Unlock(holding),
                |_, _| {
                    set(&file, FlockOperation::Unlock).map_err(not_done)?;
                    Ok(LockAnswer::Done)
                },
            );
            if unlocked.is_some() {
                return;
            }
        } else if answer.is_some() || !unsure {
            return;
        } else {
            since = start;
        }
        // The session that held it has ended, or will soon have.
        let end = self.drive.now() + 2 * SETTLED;
        let call = LockCall::Unlock(holding);
        self.note(|all| &mut all.locks, &object, call, Some(LockAnswer::Done), since, end);
    }

    /// Adds one to a number under a lock that it waits for.
    fn counter(&mut self) {
        let (object, set) = self.kind_of_lock("counter");
        self.record(
            |all| &mut all.counters,
            &object,
            Add,
            |_, root| {
                let path = root.join(&object);
                let file = OpenOptions::new().read(true).write(true).open(path).map_err(not_done)?;
                set(&file, FlockOperation::LockExclusive).map_err(not_done)?;
                let mut bytes = [0; NUMBER];
                file.read_exact_at(&mut bytes, 0).map_err(not_done)?;
                let text = String::from_utf8_lossy(&bytes);
                let number: u64 =
                    text.parse().map_err(|_| not_done(io::Error::other(format!("{text:?}"))))?;
                file.write_all_at(&counter(number + 1), 0).map_err(unknown)?;
                set(&file, FlockOperation::Unlock).map_err(unknown)?;
                Ok(Was(number))
            },
        );
    }

    /// An object of one of the two kinds of locks, and the call that sets and releases them.
    fn kind_of_lock(&mut self, object: &str) -> (String, SetLock) {
        if self.random.random_bool(0.5) {
            (format!("{object}-flock"), |file, operation| flock(file, operation))
        } else {
            // The owner is the table of descriptors, of which each client has its own.
            (format!("{object}-fcntl"), |file, operation| fcntl_lock(file, operation))
        }
    }
}

type SetLock = fn(&File, FlockOperation) -> std::result::Result<(), Errno>;

/// What the file of a counter holds.
pub fn counter(number: u64) -> Vec<u8> {
    format!("{number:0NUMBER$}").into_bytes()
}

fn carry_out(root: &Path, call: &DirectoryCall) -> io::Result<DirectoryAnswer> {
    let path = |place: Place| root.join(format!("d{}/{}", place.0, place.1));
    match *call {
        DirectoryCall::Create(place) => {
            let file = File::create_new(path(place))?;
            Ok(DirectoryAnswer::Ino(file.metadata()?.ino()))
        }
        DirectoryCall::Rename(from, to, kind) => {
            let flags = match kind {
                Kind::Replace => RenameFlags::empty(),
                Kind::NoReplace => RenameFlags::NOREPLACE,
                Kind::Exchange => RenameFlags::EXCHANGE,
            };
            renameat_with(CWD, path(from), CWD, path(to), flags)?;
            Ok(DirectoryAnswer::Done)
        }
        DirectoryCall::Unlink(place) => fs::remove_file(path(place)).map(|()| DirectoryAnswer::Done),
        DirectoryCall::Stat(place) => {
            fs::symlink_metadata(path(place)).map(|metadata| DirectoryAnswer::Ino(metadata.ino()))
        }
        DirectoryCall::List(directory) => {
            let mut names = Vec::new();
            for entry in fs::read_dir(root.join(format!("d{directory}")))? {
                let entry = entry?;
                let name = entry.file_name().into_string().ok().and_then(|name| name.parse().ok());
                names.push((name.ok_or_else(|| io::Error::other("a strange name"))?, entry.ino()));
            }
            names.sort_unstable();
            Ok(DirectoryAnswer::Names(names))
        }
    }
}
