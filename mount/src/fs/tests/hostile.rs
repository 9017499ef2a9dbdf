//! A daemon that lies: whatever it answers, calls end with an answer or an error, in bounded time and without a panic.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::{collection, sample, test_runner::Config};
use serde::Serialize;
use serde_bytes::ByteBuf;
use tandemfs::api::files::Storage;
use tandemfs::api::fs::{
    Ack, Answer, Batch, BatchReply, DelegationReply, DelegationRequest, Event, InodeRange, OpenSession, Read,
    ReadBlocks, ReadBlocksReply, ReadReply, ResumeSession, SessionGrant,
};
use tandemfs::api::locks::{Lock, LockKind, LockOutcome, LockReply, LockRequest};
use tandemfs::clock::{ManualClock, Time};
use tandemfs::id::{BlockId, Ino, SessionId};
use tandemfs::name::Name;
use tandemfs::tree::{
    CHUNK_SIZE, Chunk, Entry, FILE_SIZE_MAX, Inode, Key, Kind, NewNode, Record, RenameMode, Usage, Want,
    XattrMode,
};
use tandemfs::{Error, ErrorKind, Result, codec};

use super::fake::{Daemon, FakeKernel};
use super::{ROOT, mount};
use crate::fs::data::How;
use crate::fs::remote::{Events, Remote};
use crate::fs::session::lease;
use crate::fs::{Fs, Options, Set, Stat, check};

/// Numbers that are on an edge.
const EDGES: [u64; 12] = [
    0,
    1,
    2,
    7,
    u32::MAX as u64,
    1 << 32,
    CHUNK_SIZE,
    i64::MAX as u64,
    1 << 63,
    (1 << 63) + 1,
    u64::MAX - 1,
    u64::MAX,
];

/// What one answer is changed by.
#[derive(Clone, Debug)]
enum Lie {
    Truth,
    Fail(ErrorKind),
    Version(u64),
    /// Lists and ranges without end.
    Endless,
    Nothing,
    Again,
    Unasked(Key),
    Incomplete,
    Records(Change),
    Number(u64),
    Bytes(usize),
    Silent,
}

/// What every record of an answer is changed by.
#[derive(Clone, Debug)]
enum Change {
    Gone,
    Other(Record),
    Ino(u64),
    Kind(Kind),
    Size(u64),
    Mode(u32),
    Time(i64, u32),
    Target(Option<Vec<u8>>),
    Extent { start: u32, length: u32, offset: u32 },
    Key(Key),
}

fn edge() -> impl Strategy<Value = u64> {
    prop_oneof![4 => sample::select(&EDGES[..]), 1 => any::<u64>()]
}

fn key() -> impl Strategy<Value = Key> {
    let name = Name::new("a").unwrap();
    prop_oneof![
        Just(Key::Usage),
        edge().prop_map(|ino| Key::Inode(Ino(ino))),
        edge().prop_map(move |ino| Key::Entry(Ino(ino), name.clone())),
        (edge(), edge()).prop_map(|(ino, chunk)| Key::Chunk(Ino(ino), chunk)),
        (edge(), any::<[u8; 3]>()).prop_map(|(ino, name)| Key::Xattr(Ino(ino), name.to_vec())),
        edge().prop_map(|ino| Key::Orphan(Ino(ino))),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    sample::select(&[Kind::File, Kind::Directory, Kind::Symlink, Kind::Fifo, Kind::BlockDevice][..])
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        Just(Change::Gone),
        Just(Change::Other(Record::Present)),
        Just(Change::Other(Record::Usage(Usage::default()))),
        (edge(), kind()).prop_map(|(ino, kind)| Change::Other(Record::Entry(Entry { ino: Ino(ino), kind }))),
        Just(Change::Other(Record::Xattr(vec![0; 70_000]))),
        edge().prop_map(Change::Ino),
        kind().prop_map(Change::Kind),
        edge().prop_map(Change::Size),
        any::<u32>().prop_map(Change::Mode),
        (any::<i64>(), any::<u32>()).prop_map(|(seconds, nanos)| Change::Time(seconds, nanos)),
        sample::select(vec![None, Some(vec![]), Some(vec![b'x'; 5000]), Some(b"a\0b".to_vec())])
            .prop_map(Change::Target),
        (edge(), edge(), edge()).prop_map(|(start, length, offset)| Change::Extent {
            start: start as u32,
            length: length as u32,
            offset: offset as u32
        }),
        key().prop_map(Change::Key),
    ]
}

fn lie() -> impl Strategy<Value = Lie> {
    prop_oneof![
        6 => Just(Lie::Truth),
        2 => sample::select(ErrorKind::ALL).prop_map(Lie::Fail),
        1 => edge().prop_map(Lie::Version),
        2 => Just(Lie::Endless),
        1 => Just(Lie::Nothing),
        1 => Just(Lie::Again),
        1 => key().prop_map(Lie::Unasked),
        1 => Just(Lie::Incomplete),
        8 => change().prop_map(Lie::Records),
        2 => edge().prop_map(Lie::Number),
        1 => sample::select(&[0, 1, 100, 5 << 20][..]).prop_map(Lie::Bytes),
        1 => Just(Lie::Silent),
    ]
}

impl Change {
    fn apply(&self, key: &mut Key, record: &mut Option<Record>) {
        match (self, &mut *record) {
            (Self::Gone, _) => *record = None,
            (Self::Other(other), _) => *record = Some(other.clone()),
            (Self::Key(other), _) => *key = other.clone(),
            (Self::Ino(ino), Some(Record::Inode(inode))) => inode.ino = Ino(*ino),
            (Self::Ino(ino), Some(Record::Entry(entry))) => entry.ino = Ino(*ino),
            (Self::Kind(kind), Some(Record::Inode(inode))) => inode.kind = *kind,
            (Self::Kind(kind), Some(Record::Entry(entry))) => entry.kind = *kind,
            (Self::Size(size), Some(Record::Inode(inode))) => (inode.size, inode.allocated) = (*size, *size),
            (Self::Mode(mode), Some(Record::Inode(inode))) => (inode.mode, inode.nlink) = (*mode, *mode),
            (Self::Time(seconds, nanos), Some(Record::Inode(inode))) => {
                inode.mtime = Time { seconds: *seconds, nanos: *nanos };
            }
            (Self::Target(target), Some(Record::Inode(inode))) => inode.target.clone_from(target),
            (Self::Extent { start, length, offset }, Some(Record::Chunk(Chunk(extents)))) => {
                for extent in extents {
                    (extent.start, extent.length, extent.offset) = (*start, *length, *offset);
                }
            }
            _ => (),
        }
    }
}

/// An answer to a want that never comes to an end.
fn endless(want: &Want) -> Answer {
    let records = match want {
        Want::Directory { ino, after, .. } => {
            let from: u64 = after
                .as_ref()
                .and_then(|name| name.to_lossy().get(1..).and_then(|digits| digits.parse().ok()))
                .unwrap_or(0);
            let name = |number: u64| Name::new(format!("z{number:020}")).unwrap();
            let entry = |number| Entry { ino: Ino(2 + number % 9), kind: Kind::File };
            (from + 1..from + 700)
                .map(|number| (Key::Entry(*ino, name(number)), Some(Record::Entry(entry(number)))))
                .collect()
        }
        Want::Chunks { ino, from, .. } => {
            let extent = tandemfs::tree::Extent {
                start: 0,
                length: CHUNK_SIZE as u32,
                block: BlockId([3; 32]),
                offset: 0,
            };
            let chunk = Record::Chunk(Chunk(vec![extent]));
            vec![(Key::Chunk(*ino, *from), Some(chunk))]
        }
        _ => Vec::new(),
    };
    Answer { records, complete: false }
}

/// Tells the truth with the help of an honest daemon, and then changes it.
struct Hostile {
    honest: Arc<Daemon>,
    lies: Vec<Lie>,
    next: AtomicUsize,
    last: Mutex<Option<ReadReply>>,
}

impl Hostile {
    fn lie(&self) -> Lie {
        let next = self.next.fetch_add(1, Ordering::SeqCst);
        self.lies.get(next % self.lies.len().max(1)).cloned().unwrap_or(Lie::Truth)
    }

    /// Fails, or says nothing for a long time, where that is the lie.
    async fn fail(&self, lie: &Lie) -> Result<()> {
        match lie {
            Lie::Fail(kind) => Err(Error::new(*kind, "a lie")),
            Lie::Silent => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                Err(Error::timed_out("silence"))
            }
            _ => Ok(()),
        }
    }

    fn grant(&self, lie: &Lie, mut grant: SessionGrant) -> SessionGrant {
        match lie {
            Lie::Number(number) => grant.lease_ms = *number,
            Lie::Version(version) => (grant.version, grant.run) = (*version, *version),
            _ => (),
        }
        grant
    }
}

#[async_trait]
impl Remote for Hostile {
    async fn open_session(&self, open: &OpenSession) -> Result<SessionGrant> {
        let lie = self.lie();
        self.fail(&lie).await?;
        Ok(self.grant(&lie, self.honest.open_session(open).await?))
    }

    async fn resume_session(&self, session: SessionId, resume: &ResumeSession) -> Result<SessionGrant> {
        let lie = self.lie();
        self.fail(&lie).await?;
        Ok(self.grant(&lie, self.honest.resume_session(session, resume).await?))
    }

    async fn close_session(&self, session: SessionId) -> Result<()> {
        self.honest.close_session(session).await
    }

    fn last_event(&self, session: SessionId) -> u64 {
        match self.lie() {
            Lie::Number(number) => number,
            _ => self.honest.last_event(session),
        }
    }

    async fn events(&self, session: SessionId) -> Result<Events> {
        let lie = self.lie();
        self.fail(&lie).await?;
        let events = match lie {
            Lie::Number(number) => {
                let keys = EDGES.iter().map(|edge| Key::Chunk(Ino(number), *edge)).collect();
                let orphans = EDGES.iter().map(|edge| Ino(*edge)).collect();
                vec![
                    Event::Changed { number, version: number, keys, orphans },
                    Event::DropAll { number: 0, version: 0 },
                ]
            }
            Lie::Records(Change::Key(key)) => {
                vec![
                    Event::Changed { number: u64::MAX, version: 0, keys: vec![key], orphans: Vec::new() };
                    200
                ]
            }
            _ => return self.honest.events(session).await,
        };
        let honest = self.honest.events(session).await?;
        Ok(futures::stream::iter(events.into_iter().map(Ok)).chain(honest).boxed())
    }

    async fn ack(&self, session: SessionId, ack: &Ack) -> Result<()> {
        self.fail(&self.lie()).await?;
        self.honest.ack(session, ack).await
    }

    async fn batch(&self, session: SessionId, batch: &Batch) -> Result<BatchReply> {
        let lie = self.lie();
        self.fail(&lie).await?;
        // The honest one waits for acknowledgements of sessions that were lied away; a connection does not wait as long.
        let mut reply = tokio::time::timeout(Duration::from_secs(60), self.honest.batch(session, batch))
            .await
            .map_err(|_| Error::timed_out("the connection"))??;
        match lie {
            Lie::Version(version) => reply.version = version,
            Lie::Nothing => reply.records.clear(),
            Lie::Unasked(key) => reply.records.push((key, Some(Record::Present))),
            Lie::Again => reply.records.extend(reply.records.clone()),
            // Whatever was asked for, the inode is still there.
            Lie::Endless => reply.records.push((Key::Inode(Ino(2)), Some(Record::Inode(Box::new(inode(2)))))),
            Lie::Records(change) => {
                reply.records.iter_mut().for_each(|(key, record)| change.apply(key, record));
            }
            _ => (),
        }
        Ok(reply)
    }

    async fn read(&self, session: SessionId, read: &Read) -> Result<ReadReply> {
        let lie = self.lie();
        self.fail(&lie).await?;
        let truth = self.honest.read(session, read).await?;
        let mut reply = truth.clone();
        match lie {
            Lie::Version(version) => reply.version = version,
            Lie::Endless => reply.answers = read.wants.iter().map(endless).collect(),
            Lie::Nothing => reply.answers.clear(),
            Lie::Again => reply = self.last.lock().unwrap().clone().unwrap_or(reply),
            Lie::Incomplete => reply.answers.iter_mut().for_each(|answer| {
                answer.records.clear();
                answer.complete = false;
            }),
            Lie::Unasked(key) => reply
                .answers
                .iter_mut()
                .for_each(|answer| answer.records.push((key.clone(), Some(Record::Present)))),
            Lie::Records(change) => reply
                .answers
                .iter_mut()
                .flat_map(|answer| &mut answer.records)
                .for_each(|(key, record)| change.apply(key, record)),
            _ => (),
        }
        *self.last.lock().unwrap() = Some(truth);
        Ok(reply)
    }

    async fn inodes(&self, session: SessionId) -> Result<InodeRange> {
        let lie = self.lie();
        self.fail(&lie).await?;
        match lie {
            Lie::Number(number) => Ok(InodeRange { first: Ino(number), count: number }),
            Lie::Version(number) => Ok(InodeRange { first: Ino(number), count: 1 }),
            Lie::Nothing => Ok(InodeRange { first: Ino(5000), count: 0 }),
            _ => self.honest.inodes(session).await,
        }
    }

    async fn delegation(&self, session: SessionId, request: &DelegationRequest) -> Result<DelegationReply> {
        let lie = self.lie();
        self.fail(&lie).await?;
        let mut reply =
            tokio::time::timeout(Duration::from_secs(60), self.honest.delegation(session, request))
                .await
                .map_err(|_| Error::timed_out("the connection"))??;
        if let Lie::Version(run) | Lie::Number(run) = lie {
            reply.run = run;
        }
        Ok(reply)
    }

    async fn lock(&self, session: SessionId, request: &LockRequest) -> Result<LockReply> {
        let lie = self.lie();
        self.fail(&lie).await?;
        let mut reply = self.honest.lock(session, request).await?;
        match lie {
            Lie::Version(run) => reply.run = run,
            Lie::Nothing => reply.outcome = LockOutcome::Recovering,
            Lie::Unasked(_) => reply.outcome = LockOutcome::Lost,
            Lie::Number(number) => reply.outcome = LockOutcome::Place(number),
            Lie::Bytes(_) => {
                let lock = Lock { start: u64::MAX, end: 0, kind: LockKind::Write, pid: 1 };
                reply.outcome = LockOutcome::Held { lock, own: true };
            }
            _ => (),
        }
        Ok(reply)
    }

    async fn put_block(&self, session: SessionId, block: BlockId, data: Bytes) -> Result<()> {
        self.fail(&self.lie()).await?;
        self.honest.put_block(session, block, data).await
    }

    async fn get_blocks(&self, session: SessionId, wanted: &ReadBlocks) -> Result<ReadBlocksReply> {
        let lie = self.lie();
        self.fail(&lie).await?;
        let mut reply = self.honest.get_blocks(session, wanted).await?;
        match lie {
            Lie::Bytes(length) => reply.blocks.iter_mut().for_each(|block| block.data = vec![1; length]),
            Lie::Nothing => reply.blocks.clear(),
            Lie::Again => reply.blocks.extend(reply.blocks.clone()),
            _ => (),
        }
        Ok(reply)
    }

    async fn get_block(
        &self,
        session: SessionId,
        block: BlockId,
        range: Option<Range<u32>>,
    ) -> Result<Bytes> {
        let lie = self.lie();
        self.fail(&lie).await?;
        match lie {
            Lie::Bytes(length) => Ok(vec![1; length].into()),
            _ if range.as_ref().is_some_and(|range| range.end > 10) => Ok(Bytes::new()),
            _ => self.honest.get_block(session, block, range).await,
        }
    }

    async fn storage(&self, volume: Option<&str>) -> Result<Storage> {
        let lie = self.lie();
        self.fail(&lie).await?;
        let mut storage = self.honest.storage(volume).await?;
        if let Lie::Number(number) = lie {
            storage = Storage {
                used_bytes: number,
                quota_bytes: None,
                available_bytes: number,
                files: number,
                quota_files: Some(1),
            };
        }
        Ok(storage)
    }

    fn is_refused(&self, _: &Error) -> bool {
        false
    }
}

fn inode(ino: u64) -> Inode {
    Inode { ino: Ino(ino), kind: Kind::File, ..tandemfs::tree::new_root(Time::default(), 0, 0) }
}

/// A volume with one of everything.
async fn fill(daemon: &Arc<Daemon>) {
    let fs = mount(daemon).await;
    let (_, handle) = fs.create(ROOT, Ino::ROOT, b"file", 0o644.into(), 0).await.unwrap();
    fs.write(handle, 0, b"0123456789", How::default()).await.unwrap();
    fs.write(handle, CHUNK_SIZE + 5, b"0123456789", How::default()).await.unwrap();
    fs.release(handle).await;
    let file = fs.lookup(Ino::ROOT, b"file").await.unwrap().inode.ino;
    fs.set_xattr(ROOT, file, b"user.a", b"value", XattrMode::Set).await.unwrap();
    let link = NewNode::Symlink(b"file".to_vec());
    fs.make(ROOT, Ino::ROOT, b"link", link, 0o777.into()).await.unwrap();
    let directory = fs.make(ROOT, Ino::ROOT, b"dir", NewNode::Directory, 0o755.into()).await.unwrap();
    for name in [b"a", b"b", b"c"] {
        fs.make(ROOT, directory.inode.ino, name, NewNode::File, 0o644.into()).await.unwrap();
    }
    fs.stop().await.unwrap();
}

/// What the kernel may be told.
fn may_be_told(stat: &Stat) {
    assert!(stat.inode.size <= FILE_SIZE_MAX && stat.inode.ino >= Ino::ROOT, "{stat:?}");
    assert!(stat.inode.mtime.nanos < 1_000_000_000 && stat.inode.mode <= 0o7777, "{stat:?}");
}

/// Makes every call there is, and goes on after failures.
async fn use_it(fs: &Arc<Fs>) -> Result<()> {
    let file = fs.lookup(Ino::ROOT, b"file").await.inspect(may_be_told);
    let link = fs.lookup(Ino::ROOT, b"link").await.inspect(may_be_told);
    let directory = fs.lookup(Ino::ROOT, b"dir").await.inspect(may_be_told);
    let numbers = [&file, &link, &directory].map(|stat| stat.as_ref().map_or(Ino(3), |stat| stat.inode.ino));
    for ino in [Ino::ROOT, numbers[0], numbers[2]] {
        let told = fs.getattr(ino).await.map(|stat| fs.tell(stat));
        let _told = told.inspect(may_be_told);
        for plus in [false, true] {
            let Ok(handle) = fs.open_directory(ino, 0).await else { continue };
            let open = fs.directory(handle)?;
            let mut offset = 0;
            while let Ok(page) = fs.read_directory(&open, offset, plus, 4096).await {
                page.iter().filter_map(|entry| entry.stat.as_ref()).for_each(|(stat, _)| may_be_told(stat));
                let Some(last) = page.last() else { break };
                assert!(last.next > offset, "the listing does not go on");
                offset = last.next;
            }
            fs.release_directory(handle).await;
        }
    }
    if let Ok(target) = fs.readlink(numbers[1]).await {
        assert!((1..4096).contains(&target.len()) && !target.contains(&0));
    }
    let _any = fs.get_xattr(numbers[0], b"user.a").await;
    let _any = fs.list_xattrs(ROOT, numbers[0]).await;
    let _any = fs.room().await;
    if let Ok(handle) = fs.open_file(ROOT, numbers[0], libc::O_RDWR).await {
        for offset in [0, 5, CHUNK_SIZE, 1 << 40, i64::MAX as u64 - 4096] {
            if let Ok(data) = fs.read(handle, offset, 1 << 17).await {
                assert!(data.len() <= 1 << 17);
            }
            for hole in [false, true] {
                if let Ok(at) = fs.seek(handle, offset, hole).await {
                    assert!(at >= offset);
                }
            }
        }
        let _any = fs.write(handle, 3, b"more", How::default()).await;
        let lock = Lock { start: 0, end: 9, kind: LockKind::Write, pid: 1 };
        let _any = fs.test_lock(handle, 1, lock).await;
        let _any = fs.set_lock(handle, 1, lock, tokio::time::sleep(Duration::from_secs(3))).await;
        let _any = fs.unlock(handle, 1, 5, 5).await;
        let _any = fs.fsync(handle).await;
        let _any = fs.allocate(ROOT, handle, 0, 1 << 30, 0).await;
        let _any = fs.close(handle, 1).await;
        fs.release(handle).await;
    }
    let set = Set { size: Some(3), ..Set::default() };
    let _any = fs.setattr(ROOT, numbers[0], set).await.inspect(may_be_told);
    if let Ok((stat, handle)) = fs.create(ROOT, Ino::ROOT, b"new", 0o644.into(), libc::O_RDWR).await {
        may_be_told(&stat);
        let _any = fs.write(handle, 0, b"data", How::default()).await;
        let _any = fs.remove(ROOT, Ino::ROOT, b"new", false).await;
        fs.release(handle).await;
    }
    let _any = fs.link(numbers[0], Ino::ROOT, b"hard").await.inspect(may_be_told);
    let _any = fs.rename(ROOT, (Ino::ROOT, b"hard"), (numbers[2], b"a"), RenameMode::Replace).await;
    let _any = fs.remove(ROOT, numbers[2], b"a", false).await;
    Ok(())
}

fn run(lies: Vec<Lie>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let honest = Arc::new(Daemon::default());
        fill(&honest).await;
        let last = Mutex::default();
        let hostile = Arc::new(Hostile { honest, lies, next: AtomicUsize::new(0), last });
        let options = Options { offline_timeout: Duration::from_secs(5), ..Options::default() };
        let clock = Arc::new(ManualClock::at(1_000_000));
        let Ok(fs) = Fs::open(hostile, clock, options).await else { return };
        let Ok(fs) = fs.below(&[]).await else { return };
        let fs = Arc::new(fs);
        fs.start(Arc::new(Arc::new(FakeKernel::default())));
        // Each call may wait for as long as the daemon may be away, and for some silences.
        let used = tokio::time::timeout(Duration::from_secs(24 * 3600), async {
            use_it(&fs).await.unwrap();
            let _failed = fs.stop().await;
        });
        used.await.expect("a call hangs");
    });
}

proptest! {
    #![proptest_config(Config { cases: 1000, max_shrink_iters: 50, ..Config::default() })]

    #[test]
    fn whatever_the_daemon_answers_calls_end(lies in collection::vec(lie(), 1..40)) {
        run(lies);
    }

    #[test]
    fn one_lie_told_all_the_time_is_survived(first in collection::vec(Just(Lie::Truth), 0..2), lie in lie()) {
        run(first.into_iter().chain([lie]).collect());
    }
}

/// What no lie above shows, as nothing in reach of a call goes wrong at once: what was not asked for is kept, or for too long.
#[tokio::test]
async fn what_was_not_asked_for_is_refused_and_no_lease_is_endless() {
    let want = Want::Record(Key::Inode(Ino(2)));
    let answer = |ino: u64| Answer {
        records: vec![(Key::Inode(Ino(ino)), Some(Record::Inode(Box::new(inode(ino)))))],
        complete: true,
    };
    let wants = std::slice::from_ref(&want);
    assert!(check::answers(wants, &[answer(2)]).is_ok());
    for answers in [vec![answer(3)], vec![], vec![answer(2), answer(2)]] {
        let error = check::answers(wants, &answers).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{answers:?}");
    }
    let open = OpenSession { volume: None, read_only: false, client: "test".to_owned() };
    let mut grant = Arc::new(Daemon::default()).open_session(&open).await.unwrap();
    for (told_ms, believed_s) in [(15_000, 15), (u64::MAX, 3600)] {
        grant.lease_ms = told_ms;
        assert_eq!(lease(&grant), Duration::from_secs(believed_s));
    }
}

/// The shape of a [`ReadReply`] with one entry, whose name is any bytes.
#[derive(Serialize)]
struct Shape(u64, Vec<ShapeOfAnswer>);

#[derive(Serialize)]
struct ShapeOfAnswer(Vec<(ShapeOfKey, Option<()>)>, bool);

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum ShapeOfKey {
    Entry(u64, ByteBuf),
}

#[test]
fn names_that_are_none_do_not_get_in() {
    let decode = |name: &[u8]| {
        let key = ShapeOfKey::Entry(1, ByteBuf::from(name.to_vec()));
        let bytes = codec::encode(&Shape(1, vec![ShapeOfAnswer(vec![(key, None)], true)])).unwrap();
        codec::decode::<ReadReply>(&bytes)
    };
    let good = decode(b"name").unwrap();
    assert_eq!(good.answers[0].records[0].0, Key::Entry(Ino(1), Name::new("name").unwrap()));
    for bad in [&b"a/b"[..], b"/", b"a\0b", b"..", b".", b"", &[b'x'; 256]] {
        assert!(decode(bad).is_err(), "{bad:?}");
    }
}
