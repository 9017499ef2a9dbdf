//! Reads that change atime: noted here, seen on this mount at once, sent to the daemon some seconds later, many in one
//! batch. Reading waits for none of it and never fails for it: what cannot be sent is lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tandemfs::clock::Time;
use tandemfs::id::{Ino, SessionId};
use tandemfs::tree::{Inode, Mutation};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::dropping::What;
use super::session::Session;

/// How long a read waits to be sent with others.
const LAG: Duration = Duration::from_secs(5);
/// So many inodes are noted at most; what is read beyond that before they are sent is not noted.
const NOTED_MAX: usize = if cfg!(test) { 40 } else { 4096 };
/// So many are sent in one batch. Fewer than a batch may have, for its answer names the record of each.
const BATCH_MAX: usize = if cfg!(test) { 16 } else { 1024 };

/// The reads of a mount that the daemon does not know of.
pub struct Accesses {
    session: Arc<Session>,
    noted: Mutex<Noted>,
    /// There is enough for a batch.
    many: Arc<Notify>,
    /// A batch has been answered.
    sent: Notify,
}

#[derive(Default)]
struct Noted {
    waiting: HashMap<Ino, Access>,
    under_way: HashMap<Ino, Access>,
}

#[derive(Clone, Copy, Debug)]
struct Access {
    /// A session that ends takes with it what was read in it.
    session: SessionId,
    /// The atime in the volume, as far as was known.
    after: Time,
    time: Time,
}

impl Access {
    fn mutation(&self, ino: Ino) -> Mutation {
        Mutation::Accessed { ino, after: self.after, time: self.time }
    }
}

impl Accesses {
    /// None yet.
    pub fn new(session: Arc<Session>) -> Arc<Self> {
        Arc::new(Self { session, noted: Mutex::default(), many: Arc::default(), sent: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a read of an inode, which is given as the volume has it.
    pub fn note(&self, inode: &Inode, time: Time) {
        let access = Access { session: self.session.id(), after: inode.atime, time };
        let mut noted = self.lock();
        if let Some(waiting) = noted.waiting.get_mut(&inode.ino) {
            *waiting = access;
        } else if noted.waiting.len() + noted.under_way.len() < NOTED_MAX {
            noted.waiting.insert(inode.ino, access);
            if noted.waiting.len().is_multiple_of(BATCH_MAX) {
                self.many.notify_one();
            }
        }
    }

    /// Shows an inode of the volume as it will be when its reads have been sent.
    pub fn show(&self, inode: &mut Inode) {
        let noted = self.lock();
        for access in [noted.under_way.get(&inode.ino), noted.waiting.get(&inode.ino)].into_iter().flatten() {
            if inode.is_moved_by_read(access.after, access.time) && access.session == self.session.id() {
                inode.atime = access.time;
            }
        }
    }

    /// Forgets the reads of an inode whose atime is going to be set, and waits for those that are being sent.
    pub async fn forget(&self, ino: Ino) {
        self.lock().waiting.remove(&ino);
        self.answered(|noted| !noted.under_way.contains_key(&ino)).await;
    }

    /// Sends the reads of one inode.
    pub async fn send(&self, ino: Ino) {
        self.answered(|noted| !noted.under_way.contains_key(&ino)).await;
        self.send_batch(&[ino]).await;
    }

    /// Sends all that were noted before.
    pub async fn send_all(&self) {
        let waiting: Vec<Ino> = self.lock().waiting.keys().copied().collect();
        for inos in waiting.chunks(BATCH_MAX) {
            self.send_batch(inos).await;
        }
        self.answered(|noted| noted.under_way.is_empty()).await;
    }

    /// Sends what has waited for some time, or when there is much of it, for as long as there is somebody who uses this.
    pub async fn send_lazily(accesses: Weak<Self>) {
        while let Some(many) = accesses.upgrade().map(|accesses| Arc::clone(&accesses.many)) {
            let _either = timeout(LAG, many.notified()).await;
            if let Some(accesses) = accesses.upgrade() {
                accesses.send_all().await;
            }
        }
    }

    async fn send_batch(&self, inos: &[Ino]) {
        let session = self.session.id();
        let batch = self.take(session, inos);
        if batch.is_empty() {
            return;
        }
        let mutations = batch.iter().map(|(ino, access)| access.mutation(*ino)).collect();
        let result = self.session.commit_in(Some(session), mutations).await;
        {
            let mut noted = self.lock();
            for (ino, _) in &batch {
                noted.under_way.remove(ino);
            }
        }
        self.sent.notify_waiters();
        if let Err(error) = result {
            log::debug!("the times of {} reads are lost: {error}", batch.len());
            batch.iter().for_each(|(ino, _)| self.refresh(*ino));
        }
    }

    /// What is to be sent of these inodes in a session, which from now on is under way.
    fn take(&self, session: SessionId, inos: &[Ino]) -> Vec<(Ino, Access)> {
        let mut noted = self.lock();
        let mut batch = Vec::with_capacity(inos.len());
        for ino in inos {
            if !noted.under_way.contains_key(ino)
                && let Some(access) = noted.waiting.remove(ino)
                && access.session == session
            {
                noted.under_way.insert(*ino, access);
                batch.push((*ino, access));
            }
        }
        batch
    }

    /// Has the kernel ask for the attributes of an inode again.
    pub fn refresh(&self, ino: Ino) {
        if let Some(kernel) = self.session.kernel.get()
            && self.session.known.take(ino, What::Attributes).is_some()
        {
            kernel.drop_attributes(ino);
        }
    }

    /// Waits until what is under way is as wanted.
    async fn answered(&self, wanted: impl Fn(&Noted) -> bool) {
        loop {
            let mut sent = std::pin::pin!(self.sent.notified());
            sent.as_mut().enable();
            if wanted(&self.lock()) {
                return;
            }
            sent.await;
        }
    }
}
