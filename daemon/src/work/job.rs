//! A job: what is stored of it, its progress, and how it is told to stop.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tandemfs::Result;
use tandemfs::api::admin::{Job, JobState};
use tandemfs::clock::Clock;
use tandemfs::id::{BlockId, VolumeId};
use tokio_util::sync::CancellationToken;

use crate::fsck::Report;
use crate::meta::{self, Meta, keys};
use crate::replicate::{Mended, Sum};
use crate::volumes::{Collected, Compacted};
use crate::watch;

/// Faults that are kept in words.
const FAULTS_MAX: usize = 100;

/// How far a job has come: where it goes on after a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Place {
    /// At the beginning.
    #[default]
    Start,
    /// All records up to this one are done.
    Records(VolumeId, BlockId),
    /// All records are done.
    Objects,
    /// All objects of the node up to this one are done.
    Object(BlockId),
}

/// A job as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct JobRecord {
    pub(super) job: Job,
    /// How far it has come, as long as the node is in this term.
    pub(super) place: Place,
    pub(super) term: u64,
}

/// A job in memory.
#[derive(Debug)]
pub(super) struct Task {
    record: Mutex<JobRecord>,
    /// An admin has ended it.
    pub(super) cancel: CancellationToken,
    ended: watch::Sender<bool>,
}

impl Task {
    /// From what is stored.
    pub(super) fn new(record: JobRecord) -> Self {
        let ended = watch::Sender::new(record.job.state != JobState::Running);
        Self { record: Mutex::new(record), cancel: CancellationToken::new(), ended }
    }

    /// As people see it.
    pub(super) fn job(&self) -> Job {
        self.lock().job.clone()
    }

    /// How far it has come in a term of its node; what was found in an earlier term may not be so any more.
    pub(super) fn place(&self, term: u64) -> Place {
        let record = &mut *self.lock();
        if record.term != term {
            record.term = term;
            record.place = Place::Start;
        }
        record.place
    }

    /// Forgets how far it has come.
    pub(super) fn start_over(&self) {
        self.lock().place = Place::Start;
    }

    /// The term of its node.
    pub(super) fn term(&self) -> u64 {
        self.lock().term
    }

    /// Begins anew, with so many blocks to look at.
    pub(super) fn forget_progress(&self, blocks: u64) {
        let job = &mut self.lock().job;
        (job.blocks_done, job.blocks_total) = (0, blocks);
        job.faults.clear();
        if job.dry_run {
            (job.blocks_removed, job.bytes_removed) = (0, 0);
        }
    }

    /// Adds what a step of a collection removed, or would remove.
    pub(super) fn collected(&self, step: &Collected) {
        let job = &mut self.lock().job;
        job.blocks_done += step.looked_at;
        job.blocks_total = job.blocks_total.max(job.blocks_done);
        job.blocks_removed += step.blocks;
        job.bytes_removed += step.bytes;
    }

    /// Says what compaction would win.
    pub(super) fn would_win(&self, half_dead: Sum) {
        let job = &mut self.lock().job;
        (job.packs, job.bytes_won) = (half_dead.blocks, half_dead.bytes);
    }

    /// Says what compaction has done so far.
    pub(super) fn compacted(&self, done: &Compacted) {
        let job = &mut self.lock().job;
        job.blocks_done = done.looked_at;
        job.blocks_total = job.blocks_total.max(job.blocks_done);
        job.blocks_packed = done.packed.blocks;
        job.packs = done.packed.emptied;
        job.parts_joined = done.joined;
        job.bytes_won = done.packed.emptied_bytes.saturating_sub(done.packed.bytes);
    }

    /// Says how many blocks there are to look at.
    pub(super) fn expect(&self, blocks: u64) {
        self.lock().job.blocks_total = blocks;
    }

    /// Adds what was done for blocks.
    pub(super) fn add(&self, blocks: u64, mended: &Mended) {
        let job = &mut self.lock().job;
        job.blocks_done += blocks;
        job.blocks_total = job.blocks_total.max(job.blocks_done);
        job.blocks_copied += mended.copied;
        job.bytes_copied += mended.bytes;
        job.blocks_bad += mended.bad;
    }

    /// Says how many blocks more a check has looked at, and what it has found so far.
    pub(super) fn tell(&self, blocks: u64, report: &Report) {
        let job = &mut self.lock().job;
        job.blocks_done += blocks;
        job.blocks_total = job.blocks_total.max(job.blocks_done);
        let told = report.mended_lines.len() + report.left_lines.len() + report.notes.len();
        let counts = (report.mended, report.left);
        // Most of the time there is nothing new.
        if counts != (job.faults_mended, job.faults_left) || job.faults.len() < told.min(FAULTS_MAX) {
            (job.faults_mended, job.faults_left) = counts;
            let left = report.left_lines.iter().chain(&report.notes).cloned();
            let mended = report.mended_lines.iter().map(|line| format!("mended: {line}"));
            job.faults = left.chain(mended).take(FAULTS_MAX).collect();
        }
    }

    /// Stores that everything up to a place is done.
    pub(super) async fn reach(&self, meta: &Meta, place: Place) -> Result<()> {
        self.lock().place = place;
        self.save(meta).await
    }

    /// Stores how it ended, then tells who waits for it.
    pub(super) async fn end(&self, meta: &Meta, clock: &dyn Clock, state: JobState, error: Option<String>) {
        {
            let job = &mut self.lock().job;
            job.state = state;
            job.ended = Some(clock.now().to_rfc3339());
            job.error = error;
        }
        if let Err(error) = self.save(meta).await {
            // It is found running at the next start, and goes on.
            log::warn!("the end of job {} was not stored: {error:?}", self.job().job_id);
        }
        self.ended.send_replace(true);
    }

    /// Stores it.
    pub(super) async fn save(&self, meta: &Meta) -> Result<()> {
        let record = self.lock().clone();
        meta.commit(Vec::new(), vec![meta::put(keys::job(record.job.job_id), &record)?]).await
    }

    /// Waits until it has ended.
    pub(super) async fn ended(&self) {
        // The sender lives in `self`, so this cannot fail.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, JobRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
