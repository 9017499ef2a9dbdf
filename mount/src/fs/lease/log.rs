//! The log of the queue, a file in the cache directory: what was answered and is not sent survives the process. It is never synced, for what
//! was not synced may be lost with the machine, as on a local disk; then the log is of an earlier boot, and is not looked at.
//!
//! A frame is the length of its body (4 bytes, little endian), the first [`SUM`] bytes of the block id of the body under the volume's key, and
//! the body: a letter and the encoding of a tuple. The first frame that is not whole or not right ends the log.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tandemfs::api::fs::InlineBlock;
use tandemfs::codec::{decode, encode};
use tandemfs::id::{BlockId, Ino, SessionId, VolumeKey};
use tandemfs::tree::Mutation;

/// Bytes of a checksum.
const SUM: usize = 8;
/// The longest body, in bytes. A change is smaller.
const BODY_MAX: usize = 16 << 20;
/// A log of so many bytes is begun anew when nothing waits to be sent.
const LONG: u64 = 4 << 20;
/// One of so many is, whatever waits.
const TOO_LONG: u64 = 32 << 20;
/// Mounts of one volume on one machine.
const LOGS_MAX: usize = 1024;

/// What was done here and is to be sent.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::fs) struct Queued {
    /// Counts the changes of this mount.
    pub(in crate::fs) number: u64,
    pub(in crate::fs) mutations: Vec<Mutation>,
    pub(in crate::fs) blocks: Vec<InlineBlock>,
    /// Inodes that it may leave without links and that are open here.
    pub(in crate::fs) held: Vec<Ino>,
}

/// A log that is being written.
#[derive(Debug)]
pub(in crate::fs) struct Log {
    file: File,
    path: PathBuf,
    key: VolumeKey,
    length: u64,
    session: SessionId,
    /// Of the last batch that was sent.
    sequence: u64,
    /// It could not be written, and holds nothing.
    is_broken: bool,
}

/// What a mount has left behind that was killed.
#[derive(Debug, PartialEq)]
pub(in crate::fs) struct Left {
    /// In which session it was done.
    pub(super) session: SessionId,
    /// The number of the last batch that was sent or is to be sent again.
    pub(super) sequence: u64,
    /// The last change of that batch, if its answer is not known.
    pub(super) sent: Option<u64>,
    /// What the daemon may not have.
    pub(super) changes: Vec<Queued>,
}

/// A log that is nobody's any more. As long as this lives, no other mount takes it.
pub(in crate::fs) struct Orphaned {
    path: PathBuf,
    _lock: File,
    pub(in crate::fs) left: Option<Left>,
}

impl Orphaned {
    /// It has been seen to.
    pub(in crate::fs) fn remove(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::warn!("removing {}: {error}", self.path.display());
        }
    }
}

impl Log {
    /// A log in a directory, which is made.
    ///
    /// # Errors
    /// The system's.
    pub(in crate::fs) fn create(directory: &Path, key: &VolumeKey) -> io::Result<Self> {
        let directory = of_volume(directory, key);
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let boot = boot()?;
        for number in 0..LOGS_MAX {
            let path = directory.join(format!("{boot}-{number}.log"));
            let made = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
            let file = match made {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                other => other?,
            };
            if lock(&file, &path)? {
                let (key, session) = (key.clone(), SessionId(0));
                return Ok(Self { file, path, key, length: 0, session, sequence: 0, is_broken: false });
            }
        }
        Err(io::Error::other(format!("{LOGS_MAX} mounts have logs in {}", directory.display())))
    }

    /// Whether what was added last is in it.
    pub(super) fn is_whole(&self) -> bool {
        !self.is_broken
    }

    /// Begins it anew: nothing waits. `sequence` is that of the session's last batch.
    pub(super) fn begin(&mut self, session: SessionId, sequence: u64) {
        (self.session, self.sequence) = (session, sequence);
        self.clear();
        self.is_broken = false;
        self.append(b'B', &(session, sequence));
    }

    /// A change is about to be answered.
    pub(super) fn change(&mut self, change: &Queued) {
        self.append(b'C', &(change.number, &change.mutations, &change.blocks, &change.held));
    }

    /// All changes up to one, from the first that is not done, are about to be sent as one batch.
    pub(super) fn sent(&mut self, sequence: u64, last: u64) {
        self.sequence = sequence;
        self.append(b'S', &(sequence, last));
    }

    /// All changes up to one are committed, or lost. `waiting` are those that are not, where they are known.
    pub(super) fn done<'a>(&mut self, last: u64, waiting: Option<impl Iterator<Item = &'a Queued>>) {
        self.append(b'D', &last);
        let Some(waiting) = waiting else { return };
        let mut waiting = waiting.peekable();
        if waiting.peek().is_none() && (self.length > LONG || self.is_broken) {
            self.begin(self.session, self.sequence);
        } else if self.length > TOO_LONG
            && let Err(error) = self.rewrite(waiting)
        {
            log::warn!("rewriting {}: {error}", self.path.display());
        }
    }

    /// Nothing waits, and nothing will.
    pub(super) fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::warn!("removing {}: {error}", self.path.display());
        }
    }

    /// Puts a new file in its place that holds what waits only.
    fn rewrite<'a>(&mut self, waiting: impl Iterator<Item = &'a Queued>) -> io::Result<()> {
        let path = self.path.with_extension("new");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        lock(&file, &path)?;
        let (key, session, sequence) = (self.key.clone(), self.session, self.sequence);
        let mut new = Self { file, path, key, length: 0, session, sequence, is_broken: false };
        new.begin(session, sequence);
        waiting.for_each(|change| new.change(change));
        if new.is_broken {
            return Err(io::Error::other("it cannot be written"));
        }
        fs::rename(&new.path, &self.path)?;
        new.path.clone_from(&self.path);
        *self = new;
        Ok(())
    }

    fn append(&mut self, letter: u8, entry: &impl serde::Serialize) {
        if self.is_broken {
            return;
        }
        let written = frame(&self.key, letter, entry).and_then(|frame| {
            self.file.write_all(&frame)?;
            Ok(frame.len() as u64)
        });
        match written {
            Ok(length) => self.length += length,
            Err(error) => {
                log::warn!(
                    "{} cannot be written, so changes wait for the daemon: {error}",
                    self.path.display()
                );
                // What is in it already must not be taken for all there was.
                self.clear();
                self.is_broken = true;
            }
        }
    }

    fn clear(&mut self) {
        let cleared = self.file.set_len(0).and_then(|()| io::Seek::rewind(&mut self.file));
        if let Err(error) = cleared {
            log::warn!("emptying {}: {error}", self.path.display());
        }
        self.length = 0;
    }
}

/// The logs of a volume that no mount is writing any more. Those of an earlier boot are removed: what was not synced then is lost.
///
/// # Errors
/// The system's.
pub(in crate::fs) fn orphaned(directory: &Path, key: &VolumeKey) -> io::Result<Vec<Orphaned>> {
    let boot = boot()?;
    let entries = match fs::read_dir(of_volume(directory, key)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for entry in entries.take(LOGS_MAX) {
        let path = entry?.path();
        let Ok(mut file) = OpenOptions::new().read(true).write(true).open(&path) else { continue };
        if !lock(&file, &path)? {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(&boot) || !name.ends_with(".log") {
            fs::remove_file(&path)?;
            continue;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        found.push(Orphaned { left: read(key, &bytes), path, _lock: file });
    }
    Ok(found)
}

/// What is left in a log.
fn read(key: &VolumeKey, bytes: &[u8]) -> Option<Left> {
    let mut left: Option<Left> = None;
    let mut rest = bytes;
    while let Some((body, after)) = next(key, rest) {
        rest = after;
        let (letter, entry) = body.split_first()?;
        match (letter, &mut left) {
            (b'B', _) => {
                let (session, sequence) = decode(entry).ok()?;
                left = Some(Left { session, sequence, sent: None, changes: Vec::new() });
            }
            (b'C', Some(left)) => {
                let (number, mutations, blocks, held) = decode(entry).ok()?;
                left.changes.push(Queued { number, mutations, blocks, held });
            }
            (b'S', Some(left)) => {
                let (sequence, last) = decode(entry).ok()?;
                (left.sequence, left.sent) = (sequence, Some(last));
            }
            (b'D', Some(left)) => {
                let last: u64 = decode(entry).ok()?;
                left.changes.retain(|change| change.number > last);
                left.sent = left.sent.filter(|sent| *sent > last);
            }
            _ => break,
        }
    }
    left
}

/// The body of the first frame, and what comes after it.
fn next<'a>(key: &VolumeKey, bytes: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<SUM>()?;
    let (body, after) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    (BlockId::of(key, body).0[..SUM] == *sum).then_some((body, after))
}

fn frame(key: &VolumeKey, letter: u8, entry: &impl serde::Serialize) -> io::Result<Vec<u8>> {
    let entry = encode(entry).map_err(io::Error::other)?;
    let body = [&[letter][..], &entry].concat();
    let length = u32::try_from(body.len()).ok().filter(|length| *length as usize <= BODY_MAX);
    let length = length.ok_or_else(|| io::Error::other("a change that is too large"))?;
    Ok([&length.to_le_bytes()[..], &BlockId::of(key, &body).0[..SUM], &body].concat())
}

/// The directory of a volume's logs.
fn of_volume(directory: &Path, key: &VolumeKey) -> PathBuf {
    directory.join("queues").join(BlockId::of(key, b"the directory of its queues").to_string())
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned())
}

/// Locks a file for this process. `false`: it is another's, or is not there any more.
fn lock(file: &File, path: &Path) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(false),
        other => other?,
    }
    let is_there = fs::metadata(path).is_ok_and(|there| {
        file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (there.dev(), there.ino()))
    });
    Ok(is_there)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tandemfs::clock::Time;
    use tandemfs::tree::XattrMode;
    use tempfile::TempDir;

    use super::*;

    const KEY: VolumeKey = VolumeKey([7; 32]);
    const SESSION: SessionId = SessionId(9);

    fn queued(number: u64) -> Queued {
        let data = vec![number as u8; number as usize % 50];
        let mutation = Mutation::SetXattr {
            ino: Ino(number),
            name: b"user.x".to_vec(),
            value: data.clone(),
            mode: XattrMode::Set,
            by: tandemfs::tree::Credentials::default(),
            time: Time::default(),
        };
        let blocks = vec![InlineBlock { id: BlockId::of(&KEY, &data), data }];
        Queued { number, mutations: vec![mutation], blocks, held: vec![Ino(number)] }
    }

    /// What one mount leaves that has added ten changes, sent five, and been told of three.
    fn left_by(directory: &Path) -> Vec<u8> {
        let mut log = Log::create(directory, &KEY).unwrap();
        log.begin(SESSION, 40);
        (1..=5).for_each(|number| log.change(&queued(number)));
        log.sent(41, 3);
        log.done(3, None::<std::iter::Empty<_>>);
        log.sent(42, 5);
        (6..=10).for_each(|number| log.change(&queued(number)));
        fs::read(&log.path).unwrap()
    }

    #[test]
    fn what_is_not_done_is_left() {
        let directory = TempDir::new().unwrap();
        left_by(directory.path());
        let mut found = orphaned(directory.path(), &KEY).unwrap();
        let left =
            Left { session: SESSION, sequence: 42, sent: Some(5), changes: (4..=10).map(queued).collect() };
        assert_eq!(found[0].left, Some(left));
        assert!(orphaned(directory.path(), &KEY).unwrap().is_empty(), "it is taken");
        assert!(
            orphaned(directory.path(), &VolumeKey([8; 32])).unwrap().is_empty(),
            "it is another volume's"
        );
        found.remove(0).remove();
        assert!(orphaned(directory.path(), &KEY).unwrap().is_empty());
    }

    #[test]
    fn a_long_log_is_written_anew() {
        let directory = TempDir::new().unwrap();
        let mut log = Log::create(directory.path(), &KEY).unwrap();
        log.begin(SESSION, 0);
        let large = |number| Queued {
            blocks: vec![InlineBlock { id: BlockId([1; 32]), data: vec![1; 1 << 20] }],
            ..queued(number)
        };
        for number in 1..=40 {
            log.change(&large(number));
            log.sent(number, number);
            // The last one always waits.
            let last = large(number);
            log.done(number - 1, Some(std::iter::once(&last)));
            assert!(log.length <= TOO_LONG + (2 << 20), "{} bytes", log.length);
        }
        let bytes = fs::read(&log.path).unwrap();
        let left = read(&KEY, &bytes).unwrap();
        assert_eq!((left.sequence, left.changes), (40, vec![large(40)]));
        log.done(40, Some(std::iter::empty()));
        assert_eq!(read(&KEY, &fs::read(&log.path).unwrap()).unwrap().changes, []);
        assert!(fs::metadata(&log.path).unwrap().len() < 100);
        assert!(orphaned(directory.path(), &KEY).unwrap().is_empty(), "it is in use");
    }

    proptest! {
        #[test]
        fn of_a_damaged_log_what_comes_before_counts(at in 0_usize..5000, to: u8, cut: bool) {
            let directory = TempDir::new().unwrap();
            let mut bytes = left_by(directory.path());
            let whole = read(&KEY, &bytes).unwrap();
            let at = at % bytes.len();
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] = to;
            }
            if let Some(left) = read(&KEY, &bytes) {
                for change in &left.changes {
                    prop_assert_eq!(change, &queued(change.number));
                }
                // From the first on that was not done by then, without a gap.
                let first = left.changes.first().map_or(11, |change| change.number);
                prop_assert!(first <= 4 || left.changes.is_empty() || left == whole);
                let numbers: Vec<u64> = left.changes.iter().map(|change| change.number).collect();
                prop_assert_eq!(numbers, (first..first + left.changes.len() as u64).collect::<Vec<_>>());
            }
        }
    }
}
