//! Has the kernel drop what it has cached, without ever waiting for a request of the kernel that may wait for another mount.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use tandemfs::id::Ino;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout};

use super::known::KERNEL_PATIENCE;
use super::session::Session;
use super::suspended::without;

/// A drop that does not get any further for so long waits for a request. Longer than the kernel's patience.
const STALL: Duration = Duration::from_millis(100);
/// Pages that may not be locked are dropped well within this.
const UNLOCKED: Duration = Duration::from_millis(5);
/// The pauses before pages are looked at again that a request has locked meanwhile.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What is to be dropped of an inode.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// Its attributes alone.
    Attributes,
    /// Its attributes, and pages: offsets and lengths; a length of 0 means to the end.
    Pages(Vec<(u64, u64)>),
}

impl What {
    /// All that there is.
    pub(super) fn all() -> Self {
        Self::Pages(vec![(0, 0)])
    }

    pub(super) fn is_all(&self) -> bool {
        matches!(self, Self::Pages(ranges) if ranges.contains(&(0, 0)))
    }
}

impl Session {
    /// Has the kernel drop everything.
    pub(super) async fn forget_in_kernel(&self) {
        let inodes = self.known.all().into_iter().map(|ino| (ino, What::all())).collect();
        self.drop_in_kernel(inodes, true).await;
    }

    /// Has the kernel drop a file's pages, having written back what was changed in them.
    pub(super) async fn drop_file(&self, ino: Ino) {
        self.drop_in_kernel(vec![(ino, What::all())], false).await;
    }

    /// Has the kernel drop something of some inodes, as far as it has it, and perhaps look up every name again.
    pub(super) async fn drop_in_kernel(&self, inodes: Vec<(Ino, What)>, names: bool) {
        let mut settled = Instant::now();
        let inodes = inodes.into_iter().filter_map(|(ino, what)| {
            let (what, when) = self.known.take(ino, what)?;
            settled = settled.max(when);
            Some((ino, what))
        });
        let inodes: Vec<_> = inodes.collect();
        if settled > Instant::now() {
            sleep_until(settled).await;
        }
        let (busy, inodes): (Vec<_>, Vec<_>) =
            inodes.into_iter().partition(|(ino, _)| self.suspended.has(*ino));
        let mut around: Vec<_> = busy.into_iter().map(|(ino, what)| self.drop_around(ino, what)).collect();
        let inodes = Arc::new(inodes);
        let mut from = 0;
        while let Some(stalled) = self.drop_in_order(&inodes, from).await {
            let (ino, what) = inodes[stalled].clone();
            around.push(self.drop_around(ino, what));
            from = stalled + 1;
        }
        join_all(around).await;
        if names && let Some(kernel) = self.kernel.get() {
            kernel.drop_names();
        }
    }

    /// Drops in a thread that may wait for the kernel. Answers at which inode it has got stuck.
    async fn drop_in_order(&self, inodes: &Arc<Vec<(Ino, What)>>, from: usize) -> Option<usize> {
        let kernel = Arc::clone(self.kernel.get()?);
        if from >= inodes.len() {
            return None;
        }
        let (known, inodes) = (Arc::clone(&self.known), Arc::clone(inodes));
        let at = Arc::new(AtomicUsize::new(from));
        let progress = Arc::clone(&at);
        let mut job = spawn_blocking(move || {
            let mut patience = KERNEL_PATIENCE;
            for (place, (ino, what)) in inodes.iter().enumerate().skip(from) {
                progress.store(place, Ordering::Relaxed);
                known.drop_in_kernel(*ino, &mut patience, || match what {
                    What::Attributes => kernel.drop_attributes(*ino),
                    What::Pages(ranges) => {
                        ranges.iter().all(|(offset, length)| kernel.drop_pages(*ino, *offset, *length))
                    }
                });
            }
        });
        let mut before = from;
        loop {
            if finished(timeout(STALL, &mut job).await) {
                return None;
            }
            let now = at.load(Ordering::Relaxed);
            if now == before {
                return Some(now);
            }
            before = now;
        }
    }

    /// Drops what no request has locked. A request that comes after it began may stop it: then what that one has locked is left
    /// out as well.
    async fn drop_around(&self, ino: Ino, what: What) {
        let Some(kernel) = self.kernel.get() else { return };
        let What::Pages(ranges) = what else {
            // For attributes nothing is locked.
            kernel.drop_attributes(ino);
            return;
        };
        let drop = |ranges: Vec<(u64, u64)>| {
            let kernel = Arc::clone(kernel);
            spawn_blocking(move || {
                kernel.drop_attributes(ino);
                for (offset, length) in ranges {
                    kernel.drop_pages(ino, offset, length);
                }
            })
        };
        let mut left_out = self.suspended.overtake(ino);
        let mut pause = PAUSE.0;
        let mut rest = drop(without(&ranges, &left_out));
        loop {
            let unlocked = left_out.iter().filter(|pages| !pages.locked);
            let unlocked: Vec<JoinHandle<()>> = unlocked
                .map(|pages| drop(vec![(pages.bytes.start, pages.bytes.end - pages.bytes.start)]))
                .collect();
            if !unlocked.is_empty() {
                // Those that are locked after all are dropped when their request has been answered.
                let _locked = timeout(UNLOCKED, join_all(unlocked)).await;
            }
            loop {
                if finished(timeout(pause, &mut rest).await) {
                    return;
                }
                pause = (pause * 2).min(PAUSE.1);
                let now = self.suspended.overtake(ino);
                // A thread more only where it gets further.
                if now != left_out {
                    left_out = now;
                    break;
                }
            }
            rest = drop(without(&ranges, &left_out));
        }
    }
}

/// Whether a job has come to its end.
fn finished<T>(result: Result<Result<(), tokio::task::JoinError>, T>) -> bool {
    match result {
        Ok(Err(error)) => {
            log::error!("dropping the kernel's caches failed: {error}");
            true
        }
        Ok(Ok(())) => true,
        Err(_) => false,
    }
}
