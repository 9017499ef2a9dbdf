//! Makes what was written part of its file: by a `Write` mutation, once its blocks are on the nodes or with those that are small.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tandemfs::api::fs::BatchReply;
use tandemfs::id::{Ino, SessionId};
use tandemfs::tree::{Key, Mutation, Want};
use tandemfs::{Error, ErrorKind, Result};
use tokio::time::{Instant, sleep};

use super::batches::Coming;
use super::data::{Data, Then};
use super::file_data::{Base, FileData, Next, Tail, next_write};
use super::written;

/// What was written so long ago is sent without being asked for.
const DIRTY_AGE: Duration = Duration::from_secs(5);

/// How much of what was written to a file is made part of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// What has been uploaded already.
    Uploaded,
    /// All of it. While changes are made here, it may be uploaded after that; it can be read all the same.
    All,
    /// All of it, and it is on the nodes by then or lies in the commit.
    AllUploaded,
}

impl Data {
    /// Makes what was written part of the file, then applies another mutation, in the same batch where that is
    /// possible.
    ///
    /// # Errors
    /// Those of the commit. Failures are remembered for the file's handles as well.
    pub async fn commit(
        self: &Arc<Self>,
        file: &Arc<FileData>,
        reach: Reach,
        then: Option<Mutation>,
    ) -> Result<Option<BatchReply>> {
        let _order = file.commit.lock().await;
        match reach {
            Reach::Uploaded => {}
            Reach::All => self.seal(file, None, Then::Commit { later: true }),
            Reach::AllUploaded => self.seal(file, None, Then::Commit { later: false }),
        }
        if reach != Reach::Uploaded {
            self.uploads_done(file).await;
        }
        let mut then = then;
        let only = file.lock().only.or(self.session.locks.session_of(file.ino));
        while let Some(Next { count, write, coming, last }) = next_write(file, self.session.inline_max()) {
            let session = self.check_base(file).await?;
            let in_session = only.or(session);
            let mut mutations = vec![write.clone()];
            if last && let Some(then) = &then {
                mutations.push(then.clone());
            }
            let both = mutations.len() > 1;
            let again = if both { coming.clone() } else { Coming::default() };
            let mut result = self.session.commit_with(in_session, mutations, coming).await;
            let mut alone = false;
            if both && result.as_ref().is_err_and(|error| !error.kind().is_retryable()) {
                // Which of the two was refused? The data must not suffer for the other.
                result = self.session.commit_with(in_session, vec![write], again).await;
                alone = true;
            }
            let is_stale = result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Stale);
            if is_stale && only.is_none() && session.is_some_and(|session| session != self.session.id()) {
                // The session has ended meanwhile.
                continue;
            }
            let mut state = file.lock();
            state.tail = None;
            let last_staged = state.staged.drain(..count).next_back();
            match result {
                Ok(reply) => {
                    if let (Some(base), Some(inode)) = (&mut state.base, written(&reply, file.ino)) {
                        base.content = Some(inode.content);
                    }
                    if last && (!both || alone) {
                        state.tail =
                            last_staged.zip(state.base).and_then(|(staged, base)| Tail::of(&staged, base));
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
            if reach == Reach::Uploaded && last {
                break;
            }
        }
        match then.take() {
            Some(then) => self.session.commit_in(only, vec![then]).await.map(Some),
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
            if self.session.delegated_to(file.ino) != Some(session) {
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
        state.tail = None;
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
            if let Err(error) = self.commit(&file, Reach::All, None).await {
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
