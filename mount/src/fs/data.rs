//! Data on its way to the nodes: written into buffers, cut into blocks, uploaded while the writer goes on, and made
//! part of the file by a `Write` mutation. Order: data, then metadata, then the answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tandemfs::clock::Clock;
use tandemfs::id::{BlockId, Ino};
use tandemfs::tree::{CHUNK_SIZE, FILE_SIZE_MAX};
use tandemfs::{Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::commits::Reach;
use super::file_data::{Base, FileData, Staged, State};
use super::session::Session;

/// Blocks that are uploaded at the same time.
pub(super) const UPLOADS_MAX: usize = 8;
/// Bytes of a file that may be uploaded after it was closed. Most of what is longer is uploaded while it is written, and is not to go through
/// the log of the queue as well.
const LATER_MAX: usize = CHUNK_SIZE as usize;
/// So many uploaded blocks of a file are committed without waiting for its writer to ask.
const STAGED_MAX: usize = 32;

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

    pub(super) fn files(&self) -> MutexGuard<'_, HashMap<Ino, Arc<FileData>>> {
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
        if how.from_cache && self.session.delegated_to(file.ino).is_none() {
            tokio::spawn(Arc::clone(self).commit_at_once(Arc::clone(file)));
        }
        self.return_superfluous();
        Ok(true)
    }

    async fn commit_at_once(self: Arc<Self>, file: Arc<FileData>) {
        if let Err(error) = self.commit(&file, Reach::All, None).await {
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
        if data.is_empty() || self.session.delegated_to(file.ino).is_none() {
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
            let delegated_to = self.session.delegated_to(file.ino);
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
            self.seal(file, Some(chunk), Then::More);
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
                self.seal(&file, None, Then::More);
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

    /// Cuts a block out of the buffer of one chunk, or of each, and has it uploaded, unless it is small enough to come with a commit that
    /// follows, or may be uploaded after that. That is for who holds the file's order of commits: then nothing else changes its content in
    /// between.
    pub(super) fn seal(self: &Arc<Self>, file: &Arc<FileData>, chunk: Option<u64>, then: Then) {
        let key = self.session.grant().key;
        let inline_max = self.session.inline_max();
        let mut coming = Vec::new();
        let mut state = file.lock();
        let chunks: Vec<u64> = match chunk {
            Some(chunk) => vec![chunk],
            None => state.buffers.keys().copied().collect(),
        };
        let session = self.session.delegated_to(file.ino);
        let base = session.map(|session| Base { session, content: self.session.content(file.ino) });
        // What is staged already is laid over what the file has.
        let base = base.filter(|_| then != Then::More && state.staged.is_empty());
        let is_later = then == Then::Commit { later: true } && self.may_be_later(&state);
        for chunk in chunks {
            let Some(mut dirty) = state.buffers.remove(&chunk) else { continue };
            if let (Some(tail), Some(base)) = (&state.tail, base)
                && tail.is_of(base)
            {
                tail.join(chunk, &mut dirty.buffer);
            }
            let (data, parts) = dirty.buffer.assemble();
            state.number += 1;
            let number = state.number;
            state.staged.push_back(Staged {
                number,
                chunk,
                parts,
                data: Some(data.clone()),
                block: None,
                permit: dirty.permit.map(Arc::new),
            });
            if then != Then::More && (is_later || data.len() <= inline_max) {
                coming.push((number, data));
            } else {
                tokio::spawn(Arc::clone(self).upload(Arc::clone(file), number, data));
            }
        }
        drop(state);
        for (number, data) in coming {
            // It takes a while where they are large.
            let block = BlockId::of(&key, &data);
            if let Some(staged) = file.lock().staged.iter_mut().find(|staged| staged.number == number) {
                staged.block = Some(block);
            }
        }
    }

    /// Whether what is in the buffers of a file may be uploaded after it was made part of it. A file that is being uploaded already is waited
    /// for in any case.
    fn may_be_later(&self, state: &State) -> bool {
        let bytes: usize = state.buffers.values().map(|dirty| dirty.buffer.bytes()).sum();
        self.session.lease.session().is_some()
            && bytes <= LATER_MAX
            && state.staged.iter().all(|staged| staged.block.is_some())
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
                if let Err(error) = self.commit(&file, Reach::Uploaded, None).await {
                    log::error!("committing data of inode {}: {error}", file.ino);
                }
            });
        }
    }
}

/// What comes after blocks were cut.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// More may be written before anything is committed.
    More,
    /// They are committed at once, and uploaded before that, or `later` where that may be.
    Commit { later: bool },
}

/// Whether a file may be as long as a write would make it.
fn check_end(offset: u64, length: usize) -> Result<()> {
    match offset.checked_add(length as u64) {
        Some(end) if end <= FILE_SIZE_MAX => Ok(()),
        _ => Err(Error::too_large("the file would be longer than a file can be")),
    }
}
