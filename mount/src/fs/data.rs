//! Data on its way to the nodes: written into buffers, cut into blocks, uploaded while the writer goes on, and made
//! part of the file by a `Write` mutation. Order: data, then metadata, then the answer.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tandemfs::api::fs::BatchReply;
use tandemfs::clock::{Clock, Time};
use tandemfs::id::{BlockId, Ino, SessionId};
use tandemfs::tree::{CHUNK_SIZE, FILE_SIZE_MAX, Inode, Key, Mutation, Want, WrittenExtent};
use tandemfs::{Error, ErrorKind, Result};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use super::buffer::{Buffer, Part, Piece, Source};
use super::session::Session;
use super::written;

/// Blocks that are uploaded at the same time.
const UPLOADS_MAX: usize = 8;
/// The most extents in one `Write` mutation.
const EXTENTS_MAX: usize = 1024;
/// So many uploaded blocks of a file are committed without waiting for its writer to ask.
const STAGED_MAX: usize = 32;
/// What was written so long ago is sent without being asked for.
const DIRTY_AGE: Duration = Duration::from_secs(5);

/// The dirty data of all files.
pub struct Data {
    pub(super) session: Arc<Session>,
    clock: Arc<dyn Clock>,
    files: Mutex<HashMap<Ino, Arc<FileData>>>,
    memory: Arc<Semaphore>,
    uploads: Semaphore,
}

/// How data is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// The kernel writes back pages of a mapping.
    pub from_cache: bool,
    /// Set-uid and set-gid are to be cleared.
    pub clear_privileges: bool,
    /// It goes to the end of the file, wherever the kernel thinks that is.
    pub append: bool,
}

/// Data that is not part of its file yet.
#[derive(Clone, Copy, Debug)]
pub struct Unsent {
    end: u64,
    time: Option<Time>,
}

impl Unsent {
    /// Shows an inode as it is with it.
    pub fn show(&self, inode: &mut Inode) {
        inode.size = inode.size.max(self.end);
        if let Some(time) = self.time {
            (inode.mtime, inode.ctime) = (time, time);
        }
    }
}

/// The dirty data of one file.
pub struct FileData {
    /// The file.
    pub ino: Ino,
    state: Mutex<State>,
    /// Held while data becomes part of the file, so that writes stay in order.
    commit: tokio::sync::Mutex<()>,
    uploaded: Notify,
}

#[derive(Default)]
struct State {
    users: usize,
    buffers: BTreeMap<u64, Dirty>,
    staged: VecDeque<Staged>,
    number: u64,
    time: Option<Time>,
    since: Option<Instant>,
    clear_privileges: bool,
    /// Some of it was written under locks of this session, so it is committed in it or not at all.
    only: Option<SessionId>,
    /// Of the first that is dirty: what it builds on.
    base: Option<Base>,
    failures: u64,
    failure: Option<Error>,
}

/// What is dirty was written while the file was delegated to a session, and builds on a content ([`Inode::content`]) if that was known.
#[derive(Clone, Copy)]
struct Base {
    session: SessionId,
    content: Option<u64>,
}

#[derive(Default)]
struct Dirty {
    buffer: Buffer,
    permit: Option<OwnedSemaphorePermit>,
}

/// A block on its way, or uploaded and not part of the file yet.
struct Staged {
    number: u64,
    chunk: u64,
    parts: Vec<Part>,
    /// Until it is uploaded.
    data: Option<Bytes>,
    /// From then on.
    block: Option<BlockId>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Staged {
    fn end(&self) -> u64 {
        self.chunk * CHUNK_SIZE + self.parts.last().map_or(0, |part| u64::from(part.start + part.length))
    }
}

impl State {
    fn is_dirty(&self) -> bool {
        !self.buffers.is_empty() || !self.staged.is_empty()
    }

    /// Where the last byte that is not part of the file yet ends.
    fn end(&self) -> u64 {
        let buffers = self.buffers.last_key_value();
        let buffered = buffers.map_or(0, |(chunk, dirty)| chunk * CHUNK_SIZE + u64::from(dirty.buffer.end()));
        self.staged.iter().map(Staged::end).fold(buffered, u64::max)
    }

    fn settle(&mut self) {
        if !self.is_dirty() {
            self.since = None;
            self.time = None;
            self.clear_privileges = false;
            self.only = None;
            self.base = None;
        }
    }

    fn fail(&mut self, error: &Error) {
        self.failures += 1;
        self.failure = Some(error.duplicate());
        self.settle();
    }
}

impl FileData {
    fn new(ino: Ino) -> Self {
        Self { ino, state: Mutex::default(), commit: tokio::sync::Mutex::new(()), uploaded: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something was written that is not part of the file yet.
    pub fn is_dirty(&self) -> bool {
        self.lock().is_dirty()
    }

    /// How many failures there have been, for [`FileData::failure_after`].
    pub fn failures(&self) -> u64 {
        self.lock().failures
    }

    /// What went wrong since a handle was last told; each handle is told once.
    ///
    /// # Errors
    /// The last failure.
    pub fn failure_after(&self, seen: &mut u64) -> Result<()> {
        let state = self.lock();
        if state.failures > *seen
            && let Some(error) = &state.failure
        {
            *seen = state.failures;
            return Err(error.duplicate());
        }
        Ok(())
    }

    /// What there is of dirty data now, if there is any.
    pub fn dirty(&self) -> Option<Unsent> {
        let state = self.lock();
        state.is_dirty().then(|| Unsent { end: state.end(), time: state.time })
    }

    /// Where the dirty data ends; 0 without any.
    pub fn end(&self) -> u64 {
        self.lock().end()
    }

    /// The dirty pieces of a range, the oldest first.
    pub fn pieces(&self, start: u64, end: u64) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if start >= end {
            return pieces;
        }
        let state = self.lock();
        for staged in &state.staged {
            let base = staged.chunk * CHUNK_SIZE;
            if base >= end || base + CHUNK_SIZE <= start {
                continue;
            }
            for part in &staged.parts {
                let (from, to) = (base + u64::from(part.start), base + u64::from(part.start + part.length));
                let at = part.block_offset as usize;
                let source = match (&staged.data, staged.block) {
                    (Some(data), _) => Source::Memory(data.slice(at..at + part.length as usize)),
                    (None, Some(block)) => Source::Block(block, part.block_offset),
                    (None, None) => continue,
                };
                pieces.push(Piece { start: from, end: to, source });
            }
        }
        for (chunk, dirty) in state.buffers.range(start / CHUNK_SIZE..=end.saturating_sub(1) / CHUNK_SIZE) {
            let base = chunk * CHUNK_SIZE;
            let from = start.saturating_sub(base).min(CHUNK_SIZE) as u32;
            let to = end.saturating_sub(base).min(CHUNK_SIZE) as u32;
            pieces.extend(dirty.buffer.pieces(from, to).into_iter().map(|(at, data)| {
                let start = base + u64::from(at);
                Piece { start, end: start + data.len() as u64, source: Source::Memory(data) }
            }));
        }
        pieces
    }
}

impl Data {
    /// For a session, with so many bytes for what is being written.
    pub fn new(session: Arc<Session>, clock: Arc<dyn Clock>, memory: usize) -> Arc<Self> {
        let memory = memory.clamp(2 * CHUNK_SIZE as usize, u32::MAX as usize);
        let data = Arc::new(Self {
            session,
            clock,
            files: Mutex::default(),
            memory: Arc::new(Semaphore::new(memory)),
            uploads: Semaphore::new(UPLOADS_MAX),
        });
        // A session has one place where is written.
        let _another = data.session.writer.set(Arc::downgrade(&data));
        data
    }

    fn files(&self) -> MutexGuard<'_, HashMap<Ino, Arc<FileData>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file's dirty data, for a handle.
    pub fn enter(&self, ino: Ino) -> Arc<FileData> {
        let mut files = self.files();
        let file = files.entry(ino).or_insert_with(|| Arc::new(FileData::new(ino)));
        file.lock().users += 1;
        Arc::clone(file)
    }

    /// A handle is gone.
    pub fn leave(&self, file: &Arc<FileData>) {
        let mut files = self.files();
        let mut state = file.lock();
        state.users -= 1;
        if state.users == 0 && !state.is_dirty() {
            drop(state);
            files.remove(&file.ino);
        }
    }

    /// A file's dirty data, if it is open.
    pub fn get(&self, ino: Ino) -> Option<Arc<FileData>> {
        self.files().get(&ino).cloned()
    }

    /// Writes to a file that the caller has delegated to this session. Answers whether that was so to the end; nothing is written
    /// otherwise. When the kernel writes back pages, which it bounds itself, this waits neither for that nor for memory: it may
    /// be doing so in answer to an invalidation, and that must not wait for another mount. What is not delegated is then sent at once.
    ///
    /// # Errors
    /// `TooLarge`.
    pub async fn write(
        self: &Arc<Self>,
        file: &Arc<FileData>,
        offset: u64,
        data: &[u8],
        how: How,
    ) -> Result<bool> {
        check_end(offset, data.len())?;
        if data.is_empty() {
            return Ok(true);
        }
        let permit = self.room(data.len() as u32, !how.from_cache).await;
        if !self.lay(file, offset, data, permit, how) {
            return Ok(false);
        }
        if how.from_cache && self.session.delegations.session_of(file.ino).is_none() {
            tokio::spawn(Arc::clone(self).commit_at_once(Arc::clone(file)));
        }
        self.return_superfluous();
        Ok(true)
    }

    async fn commit_at_once(self: Arc<Self>, file: Arc<FileData>) {
        if let Err(error) = self.commit(&file, true, None).await {
            log::error!("writing back inode {}: {error}", file.ino);
        }
    }

    /// Writes, if the file is delegated to this session and there is memory for all of it. Answers whether that was so.
    ///
    /// # Errors
    /// `TooLarge`.
    pub fn try_write(
        self: &Arc<Self>,
        file: &Arc<FileData>,
        offset: u64,
        data: &[u8],
        how: How,
    ) -> Result<bool> {
        check_end(offset, data.len())?;
        if data.is_empty() || self.session.delegations.session_of(file.ino).is_none() {
            return Ok(false);
        }
        match Arc::clone(&self.memory).try_acquire_many_owned(data.len() as u32) {
            Ok(permit) => Ok(self.lay(file, offset, data, Some(permit), how)),
            Err(_) => Ok(false),
        }
    }

    /// Lays bytes over what is there, unless the file is not delegated. Answers whether it has.
    fn lay(
        self: &Arc<Self>,
        file: &Arc<FileData>,
        mut at: u64,
        mut data: &[u8],
        mut permit: Option<OwnedSemaphorePermit>,
        how: How,
    ) -> bool {
        let locked_by = self.session.locks.session_of(file.ino);
        let mut full = Vec::new();
        {
            let mut state = file.lock();
            // Under the lock: who strikes the delegation off takes it afterwards, and finds all that was laid.
            let delegated_to = self.session.delegations.session_of(file.ino);
            if !how.from_cache && delegated_to.is_none() {
                return false;
            }
            if let (None, Some(session)) = (state.base, delegated_to) {
                state.base = Some(Base { session, content: self.session.content(file.ino) });
            }
            state.time = Some(self.clock.now());
            state.since.get_or_insert_with(Instant::now);
            state.clear_privileges |= how.clear_privileges;
            state.only = state.only.or(locked_by);
            while !data.is_empty() {
                let (chunk, start) = (at / CHUNK_SIZE, (at % CHUNK_SIZE) as u32);
                let (now, later) = data.split_at(data.len().min((CHUNK_SIZE - u64::from(start)) as usize));
                let dirty = state.buffers.entry(chunk).or_default();
                let before = dirty.buffer.bytes();
                dirty.buffer.write(start, now);
                // What is written over needs no more memory; what is left of the permit is given back in the end.
                let grown = dirty.buffer.bytes() - before;
                if let Some(permit) = permit.as_mut().and_then(|permit| permit.split(grown)) {
                    match &mut dirty.permit {
                        Some(held) => held.merge(permit),
                        none => *none = Some(permit),
                    }
                }
                if dirty.buffer.bytes() == CHUNK_SIZE as usize {
                    full.push(chunk);
                }
                (at, data) = (at + now.len() as u64, later);
            }
        }
        for chunk in full {
            self.seal(file, Some(chunk));
        }
        true
    }

    async fn room(self: &Arc<Self>, bytes: u32, wait: bool) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Ok(permit) = Arc::clone(&self.memory).try_acquire_many_owned(bytes) {
                return Some(permit);
            }
            // Everything that waits to grow is sent, so that it makes room.
            let files: Vec<_> = self.files().values().cloned().collect();
            for file in files {
                self.seal(&file, None);
            }
            if !wait {
                return None;
            }
            let more = Arc::clone(&self.memory).acquire_many_owned(bytes);
            if let Ok(permit) = timeout(Duration::from_millis(200), more).await {
                return permit.ok();
            }
        }
    }

    /// Cuts a block out of the buffer of one chunk, or of each, and has it uploaded.
    fn seal(self: &Arc<Self>, file: &Arc<FileData>, chunk: Option<u64>) {
        let mut state = file.lock();
        let chunks: Vec<u64> = match chunk {
            Some(chunk) => vec![chunk],
            None => state.buffers.keys().copied().collect(),
        };
        for chunk in chunks {
            let Some(dirty) = state.buffers.remove(&chunk) else { continue };
            let (data, parts) = dirty.buffer.assemble();
            state.number += 1;
            let number = state.number;
            state.staged.push_back(Staged {
                number,
                chunk,
                parts,
                data: Some(data.clone()),
                block: None,
                permit: dirty.permit,
            });
            tokio::spawn(Arc::clone(self).upload(Arc::clone(file), number, data));
        }
    }

    async fn upload(self: Arc<Self>, file: Arc<FileData>, number: u64, data: Bytes) {
        let Ok(slot) = self.uploads.acquire().await else { return };
        let block = BlockId::of(&self.session.grant().key, &data);
        let session = &self.session;
        let result = session
            .until_answered(|id| {
                let data = data.clone();
                Box::pin(async move { session.remote.put_block(id, block, data).await })
            })
            .await;
        drop(slot);
        let crowded = {
            let mut state = file.lock();
            match (&result, state.staged.iter().position(|staged| staged.number == number)) {
                (Ok(()), Some(at)) => {
                    let staged = &mut state.staged[at];
                    staged.block = Some(block);
                    staged.data = None;
                    staged.permit = None;
                }
                (Err(error), Some(at)) => {
                    log::error!("uploading data of inode {}: {error}", file.ino);
                    state.staged.remove(at);
                    state.fail(error);
                }
                // It was thrown away by a truncation meanwhile.
                (_, None) => (),
            }
            state.staged.iter().take_while(|staged| staged.block.is_some()).count() >= STAGED_MAX
        };
        file.uploaded.notify_waiters();
        if crowded && file.commit.try_lock().is_ok() {
            tokio::spawn(async move {
                if let Err(error) = self.commit(&file, false, None).await {
                    log::error!("committing data of inode {}: {error}", file.ino);
                }
            });
        }
    }

    /// Makes what was written part of the file, then applies another mutation, in the same batch where that is
    /// possible. Without `all`, only what has been uploaded already.
    ///
    /// # Errors
    /// Those of the commit. Failures are remembered for the file's handles as well.
    pub async fn commit(
        self: &Arc<Self>,
        file: &Arc<FileData>,
        all: bool,
        then: Option<Mutation>,
    ) -> Result<Option<BatchReply>> {
        let _order = file.commit.lock().await;
        if all {
            self.seal(file, None);
            self.uploads_done(file).await;
        }
        let mut then = then;
        let only = file.lock().only.or(self.session.locks.session_of(file.ino));
        while let Some(Next { count, write, last }) = next_write(file) {
            let session = self.check_base(file).await?;
            let in_session = only.or(session);
            let mut mutations = vec![write.clone()];
            if last && let Some(then) = &then {
                mutations.push(then.clone());
            }
            let both = mutations.len() > 1;
            let mut result = self.session.commit_in(in_session, mutations, None).await;
            let mut alone = false;
            if both && result.as_ref().is_err_and(|error| !error.kind().is_retryable()) {
                // Which of the two was refused? The data must not suffer for the other.
                result = self.session.commit_in(in_session, vec![write], None).await;
                alone = true;
            }
            let is_stale = result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Stale);
            if is_stale && only.is_none() && session.is_some_and(|session| session != self.session.id()) {
                // The session has ended meanwhile.
                continue;
            }
            let mut state = file.lock();
            state.staged.drain(..count);
            match result {
                Ok(reply) => {
                    if let (Some(base), Some(inode)) = (&mut state.base, written(&reply, file.ino)) {
                        base.content = Some(inode.content);
                    }
                    state.settle();
                    drop(state);
                    if both && !alone {
                        return Ok(Some(reply));
                    }
                }
                Err(error) => {
                    // A file that is gone with its session is a stale handle, not a missing name.
                    let error = if error.kind() == ErrorKind::NotFound {
                        Error::stale(error.to_string())
                    } else {
                        error
                    };
                    state.fail(&error);
                    return Err(error);
                }
            }
            if !all && last {
                break;
            }
        }
        match then.take() {
            Some(then) => self.session.commit_in(only, vec![then], None).await.map(Some),
            None => Ok(None),
        }
    }

    /// Finds out whether what is dirty may still become part of the file: if the session has ended in which it was written, only if
    /// nobody else has changed the file since. Answers the session in which that is so, if it depends on one.
    ///
    /// # Errors
    /// `Stale`, and it is thrown away; those of the daemon.
    async fn check_base(&self, file: &FileData) -> Result<Option<SessionId>> {
        loop {
            let Some(base) = file.lock().base else { return Ok(None) };
            let session = self.session.id();
            if base.session == session {
                return Ok(Some(session));
            }
            let _in_use = match self.session.delegated(file.ino).await {
                Err(error) if error.kind() == ErrorKind::Stale => return Err(self.give_up(file, error)),
                other => other?,
            };
            self.session.read(vec![Want::Record(Key::Inode(file.ino))]).await?;
            if self.session.delegations.session_of(file.ino) != Some(session) {
                continue;
            }
            let mut state = file.lock();
            if base.content.is_some() && self.session.content(file.ino) == base.content {
                state.base = Some(Base { session, ..base });
                return Ok(Some(session));
            }
            drop(state);
            let error = Error::stale(format!("inode {} was changed after the session had ended", file.ino));
            return Err(self.give_up(file, error));
        }
    }

    /// Throws away what is dirty, for a reason that the file's handles are told.
    fn give_up(&self, file: &FileData, error: Error) -> Error {
        log::error!("what was written to inode {} is given up: {error}", file.ino);
        let mut state = file.lock();
        state.buffers.clear();
        state.staged.clear();
        state.fail(&error);
        drop(state);
        file.uploaded.notify_waiters();
        self.session.drop_pages(file.ino);
        error
    }

    /// Waits until what is staged now has been uploaded.
    async fn uploads_done(&self, file: &FileData) {
        let until = file.lock().number;
        loop {
            let mut uploaded = std::pin::pin!(file.uploaded.notified());
            uploaded.as_mut().enable();
            if !file.lock().staged.iter().any(|staged| staged.number <= until && staged.block.is_none()) {
                return;
            }
            uploaded.await;
        }
    }

    /// Throws away what was written to a file and is not part of it yet.
    pub async fn discard(&self, ino: Ino) {
        let Some(file) = self.get(ino) else { return };
        let _order = file.commit.lock().await;
        let mut files = self.files();
        let mut state = file.lock();
        state.buffers.clear();
        state.staged.clear();
        state.settle();
        if state.users == 0 {
            files.remove(&ino);
        }
        drop((state, files));
        file.uploaded.notify_waiters();
    }

    /// Commits what all files have that was written before `age`. Answers the last failure.
    ///
    /// # Errors
    /// As [`Data::commit`].
    pub async fn commit_older(self: &Arc<Self>, age: Duration) -> Result<()> {
        let now = Instant::now();
        let files: Vec<_> = self.files().values().cloned().collect();
        let mut result = Ok(());
        for file in files {
            let old = file.lock().since.is_some_and(|since| now.duration_since(since) >= age);
            if !old || self.session.opens.is_orphan(file.ino) {
                continue;
            }
            if let Err(error) = self.commit(&file, true, None).await {
                log::error!("writing back inode {}: {error}", file.ino);
                result = Err(error);
            }
            let mut files = self.files();
            let state = file.lock();
            if state.users == 0 && !state.is_dirty() {
                files.remove(&file.ino);
            }
        }
        result
    }

    /// Sends what has been dirty for some seconds, for as long as there is somebody who uses this.
    pub async fn write_back(data: Weak<Self>) {
        loop {
            sleep(DIRTY_AGE / 5).await;
            let Some(data) = data.upgrade() else { return };
            // Its failures are remembered and logged.
            let _failed = data.commit_older(DIRTY_AGE).await;
        }
    }
}

/// Whether a file may be as long as a write would make it.
fn check_end(offset: u64, length: usize) -> Result<()> {
    match offset.checked_add(length as u64) {
        Some(end) if end <= FILE_SIZE_MAX => Ok(()),
        _ => Err(Error::too_large("the file would be longer than a file can be")),
    }
}

/// What of the uploaded data is to become part of the file next.
struct Next {
    /// So many staged blocks.
    count: usize,
    /// The mutation that does it.
    write: Mutation,
    /// Nothing is staged behind it.
    last: bool,
}

fn next_write(file: &FileData) -> Option<Next> {
    let state = file.lock();
    let mut extents: Vec<WrittenExtent> = Vec::new();
    let (mut count, mut end) = (0, 0);
    for staged in &state.staged {
        let Some(block) = staged.block else { break };
        if !extents.is_empty() && extents.len() + staged.parts.len() > EXTENTS_MAX {
            break;
        }
        let base = staged.chunk * CHUNK_SIZE;
        extents.extend(staged.parts.iter().map(|part| WrittenExtent {
            offset: base + u64::from(part.start),
            length: u64::from(part.length),
            block,
            block_offset: part.block_offset,
        }));
        end = staged.end().max(end);
        count += 1;
    }
    if extents.is_empty() {
        return None;
    }
    let (clear_privileges, time) = (state.clear_privileges, state.time.unwrap_or_default());
    let write = Mutation::Write { ino: file.ino, extents, size: end, clear_privileges, time };
    Some(Next { count, write, last: count == state.staged.len() })
}
