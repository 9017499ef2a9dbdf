//! Background work: workers that look after the nodes by themselves, and jobs that admins start and follow.
//!
//! All of it is done in small units that may be interrupted at any point; a job that was running when the daemon stopped goes on
//! when it starts again.

mod collect;
mod compact;
mod heal;
mod job;
mod journal;
mod pack;
mod probe;
mod repair;
mod scrub;
#[cfg(test)]
mod site;
#[cfg(test)]
mod tests;
mod walk;
mod worker;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tandemfs::api::admin::{Job, JobKind, JobState, StartJob};
use tandemfs::api::files::LastScrub;
use tandemfs::clock::Clock;
use tandemfs::id::{JobId, NodeId};
use tandemfs::{Error, Result};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::fsck::scratch::Scratch;
use crate::journal::Journal;
use crate::meta::{self, Meta, keys};
use crate::metrics::COUNTERS;
use crate::replicate::Replicator;
use crate::settings::Settings;
use crate::volumes::{Compacted, Live, Volumes};
use job::{JobRecord, Place, Task};

pub use collect::Garbage;
pub use worker::Status;

/// So many of the newest jobs are kept.
const JOBS_KEPT: usize = 1000;

/// The workers and the jobs.
#[derive(Debug)]
pub struct Jobs {
    inner: Arc<Inner>,
}

/// What workers and jobs share.
#[derive(Debug)]
struct Inner {
    meta: Meta,
    replicator: Arc<Replicator>,
    garbage: Arc<dyn Garbage>,
    clock: Arc<dyn Clock>,
    grace: Duration,
    scrub_bytes_per_s: u64,
    data: PathBuf,
    tasks: Mutex<BTreeMap<JobId, Arc<Task>>>,
    /// One job at a time is begun, so that two requests for the same do not both begin it.
    beginning: tokio::sync::Mutex<()>,
    statuses: worker::Statuses,
    stop: CancellationToken,
    running: TaskTracker,
}

impl Jobs {
    /// Loads the jobs, goes on with those that were running, and starts the workers.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn start(
        meta: Meta,
        replicator: Arc<Replicator>,
        garbage: Arc<dyn Garbage>,
        settings: &Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>> {
        let (from, to) = keys::all_jobs();
        let stored = meta.scan::<JobRecord>(&from, &to, usize::from(u16::MAX)).await?;
        let tasks =
            stored.into_iter().map(|(_, record)| (record.job.job_id, Arc::new(Task::new(record)))).collect();
        let inner = Arc::new(Inner {
            meta: meta.clone(),
            replicator: replicator.clone(),
            garbage: garbage.clone(),
            clock: clock.clone(),
            grace: Duration::from_secs(settings.grace_s.max(settings.restore_window_s)),
            scrub_bytes_per_s: settings.scrub_bytes_per_s,
            data: settings.data.clone(),
            tasks: Mutex::new(tasks),
            beginning: tokio::sync::Mutex::default(),
            statuses: worker::Statuses::default(),
            stop: CancellationToken::new(),
            running: TaskTracker::new(),
        });
        inner.resume().await?;
        let changes = || replicator.registry().changes();
        inner.employ(heal::Healer { meta, replicator: replicator.clone(), changes: changes() });
        inner.employ(probe::Prober {
            inner: inner.clone(),
            interval: Duration::from_millis(settings.probe_interval_ms.max(1)),
            changes: changes(),
            returning: BTreeMap::new(),
        });
        inner.employ(collect::Collector {
            garbage,
            clock: clock.clone(),
            grace: inner.grace,
            interval: Duration::from_secs(settings.collect_interval_s.max(1)),
            from: None,
        });
        if settings.scrub_interval_s > 0 {
            let every = Duration::from_secs(settings.scrub_interval_s);
            inner.employ(scrub::Scrubber { inner: inner.clone(), every, started: clock.now() });
        }
        Ok(Arc::new(Self { inner }))
    }

    /// Has small blocks leave the metadata, and packs that are hardly in use.
    pub fn pack(&self, volumes: Arc<Volumes>) {
        self.inner.employ(compact::Compactor { volumes: volumes.clone(), last: Instant::now(), won: true });
        self.inner.employ(pack::Packer { volumes, last: Instant::now() });
    }

    /// Has the journal looked after.
    pub fn tend(&self, journal: Journal) {
        let changes = self.inner.replicator.registry().changes();
        let replicator = self.inner.replicator.clone();
        self.inner.employ(journal::Keeper { journal, replicator, changes, round: 0 });
    }

    /// Begins to repair a node, or joins the repair that is under way.
    ///
    /// # Errors
    /// `NotFound`; `Busy` for a node that is being emptied or is retired; those of the engine.
    pub async fn repair_node(&self, id: NodeId) -> Result<JobId> {
        self.inner.repair_node(id).await
    }

    /// Begins to make missing copies wherever they are missing.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn heal(&self) -> Result<JobId> {
        self.inner.begin(JobKind::Heal, None).await
    }

    /// Begins to read and check everything that a healthy node holds; without one, that all hold.
    ///
    /// # Errors
    /// `NotFound`; `Busy` for a node that is not healthy; those of the engine.
    pub async fn scrub(&self, id: Option<NodeId>) -> Result<JobId> {
        self.inner.scrub(id).await
    }

    /// Begins to remove blocks that nothing has named for the grace period, or only to find out which these are.
    ///
    /// # Errors
    /// `Busy` while one is running that removes them, or does not, as this one is not to; those of the engine.
    pub async fn collect(&self, dry_run: bool) -> Result<JobId> {
        self.inner.begin_with(StartJob { dry_run, ..StartJob::of(JobKind::Collect) }).await
    }

    /// Begins to pack small blocks and to rewrite packs of which less than half is in use.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn compact(&self) -> Result<JobId> {
        self.inner.begin(JobKind::Compact, None).await
    }

    /// Begins to check whether trees, counts and copies fit together, and to mend them if that is asked for.
    ///
    /// # Errors
    /// `Busy` while one is running that does not mend, or does, as this one is not to; those of the engine.
    pub async fn fsck(&self, repair: bool) -> Result<JobId> {
        self.inner.begin_with(StartJob { repair, ..StartJob::of(JobKind::Fsck) }).await
    }

    /// A job.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn get(&self, id: JobId) -> Result<Job> {
        Ok(self.inner.task(id)?.job())
    }

    /// The newest jobs, newest first.
    pub fn list(&self) -> Vec<Job> {
        self.inner.list()
    }

    /// The last scrub that came to its end.
    pub fn last_scrub(&self) -> Option<LastScrub> {
        let scrubs = self.list().into_iter();
        let done = scrubs.filter(|job| job.kind == JobKind::Scrub && job.state == JobState::Done);
        let last = done.filter_map(|job| Some((job.ended?, job.blocks_bad))).max();
        last.map(|(ended, bad_copies)| LastScrub { ended, bad_copies })
    }

    /// Waits until a job has ended.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` when the daemon stops first.
    pub async fn wait(&self, id: JobId) -> Result<Job> {
        let task = self.inner.task(id)?;
        self.inner.ended(&task).await?;
        Ok(task.job())
    }

    /// Ends a job; what it has done stays done. Nothing happens to one that has ended.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` when the daemon stops first.
    pub async fn cancel(&self, id: JobId) -> Result<Job> {
        self.inner.task(id)?.cancel.cancel();
        self.wait(id).await
    }

    /// How the workers stand, by their names.
    pub fn workers(&self) -> BTreeMap<&'static str, Status> {
        self.inner.statuses.all()
    }

    /// Stops workers and jobs; jobs go on at the next start.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        self.inner.running.close();
        self.inner.running.wait().await;
    }
}

impl Inner {
    fn employ(self: &Arc<Self>, worker: impl worker::Worker + 'static) {
        self.running.spawn(worker::run(worker, self.statuses.clone(), self.stop.clone()));
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, BTreeMap<JobId, Arc<Task>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn task(&self, id: JobId) -> Result<Arc<Task>> {
        self.tasks().get(&id).cloned().ok_or_else(|| Error::not_found(format!("job {id}")))
    }

    /// Waits until a job has ended, or the daemon stops.
    async fn ended(&self, task: &Task) -> Result<()> {
        tokio::select! {
            biased;
            () = task.ended() => Ok(()),
            () = self.stop.cancelled() => Err(Error::unavailable("the daemon is stopping")),
        }
    }

    fn list(&self) -> Vec<Job> {
        self.tasks().values().rev().take(JOBS_KEPT).map(|task| task.job()).collect()
    }

    /// Goes on with what was running when the daemon stopped.
    async fn resume(self: &Arc<Self>) -> Result<()> {
        let running: Vec<_> =
            self.tasks().values().filter(|task| task.job().state == JobState::Running).cloned().collect();
        for task in running {
            self.spawn(task);
        }
        let nodes = self.replicator.registry();
        let orphaned = nodes.all().filter(|node| node.state() == tandemfs::api::files::NodeState::Repairing);
        for id in orphaned.map(|node| node.id()).collect::<Vec<_>>() {
            self.repair_node(id).await?;
        }
        Ok(())
    }

    async fn repair_node(self: &Arc<Self>, id: NodeId) -> Result<JobId> {
        repair::begin(&self.replicator, id).await?;
        let term = self.replicator.registry().get(id)?.record().term;
        let old = self.running(JobKind::RepairNode, Some(id)).filter(|task| task.term() != term);
        if let Some(old) = old {
            // The node has failed since that repair began, and it has not noticed yet.
            old.cancel.cancel();
            self.ended(&old).await?;
            repair::begin(&self.replicator, id).await?;
        }
        self.begin(JobKind::RepairNode, Some(id)).await
    }

    async fn scrub(self: &Arc<Self>, id: Option<NodeId>) -> Result<JobId> {
        if let Some(id) = id
            && !self.replicator.registry().get(id)?.is_healthy()
        {
            return Err(Error::busy(format!("node {id} is not healthy")));
        }
        self.begin(JobKind::Scrub, id).await
    }

    fn running(&self, kind: JobKind, node: Option<NodeId>) -> Option<Arc<Task>> {
        let same = |job: &Job| job.state == JobState::Running && job.kind == kind && job.node_id == node;
        self.tasks().values().find(|task| same(&task.job())).cloned()
    }

    /// Begins a job, or joins the same one that is running.
    async fn begin(self: &Arc<Self>, kind: JobKind, node: Option<NodeId>) -> Result<JobId> {
        self.begin_with(StartJob { node_id: node, ..StartJob::of(kind) }).await
    }

    async fn begin_with(self: &Arc<Self>, start: StartJob) -> Result<JobId> {
        let StartJob { kind, node_id: node, repair, dry_run } = start;
        let _beginning = self.beginning.lock().await;
        if let Some(job) = self.running(kind, node).map(|task| task.job()) {
            return if (job.repair, job.dry_run) == (repair, dry_run) {
                Ok(job.job_id)
            } else {
                Err(Error::busy(format!("job {} is running", job.job_id)))
            };
        }
        if self.stop.is_cancelled() {
            return Err(Error::unavailable("the daemon is stopping"));
        }
        let term = match node {
            Some(id) => self.replicator.registry().get(id)?.record().term,
            None => 0,
        };
        let id = JobId(self.meta.next_numbers("job", 1).await?);
        let job = Job {
            job_id: id,
            kind,
            node_id: node,
            state: JobState::Running,
            started: self.clock.now().to_rfc3339(),
            ended: None,
            blocks_done: 0,
            blocks_total: 0,
            blocks_copied: 0,
            bytes_copied: 0,
            blocks_bad: 0,
            error: None,
            repair,
            faults_mended: 0,
            faults_left: 0,
            faults: Vec::new(),
            dry_run,
            blocks_removed: 0,
            bytes_removed: 0,
            blocks_packed: 0,
            packs: 0,
            bytes_won: 0,
            parts_joined: 0,
        };
        let task = Arc::new(Task::new(JobRecord { job, place: Place::Start, term }));
        task.save(&self.meta).await?;
        self.tasks().insert(id, task.clone());
        self.forget_old().await?;
        self.spawn(task);
        Ok(id)
    }

    /// Forgets the oldest jobs that have ended.
    async fn forget_old(&self) -> Result<()> {
        let old: Vec<JobId> = {
            let tasks = self.tasks();
            let surplus = tasks.len().saturating_sub(JOBS_KEPT);
            let ended = tasks.iter().filter(|(_, task)| task.job().state != JobState::Running);
            ended.map(|(id, _)| *id).take(surplus).collect()
        };
        if old.is_empty() {
            return Ok(());
        }
        self.meta.commit(Vec::new(), old.iter().map(|id| meta::remove(keys::job(*id))).collect()).await?;
        self.tasks().retain(|id, _| !old.contains(id));
        Ok(())
    }

    fn spawn(self: &Arc<Self>, task: Arc<Task>) {
        let this = self.clone();
        self.running.spawn(async move {
            let outcome = tokio::select! {
                biased;
                () = this.stop.cancelled() => None,
                () = task.cancel.cancelled() => Some((JobState::Cancelled, None)),
                result = this.work(&task) => Some(match result {
                    Ok(()) => (JobState::Done, None),
                    Err(error) => {
                        log::warn!("job {} has failed: {error:?}", task.job().job_id);
                        COUNTERS.jobs_failed.inc();
                        (JobState::Failed, Some(error.to_string()))
                    }
                }),
            };
            let Some((state, error)) = outcome else {
                // It goes on at the next start.
                if let Err(error) = task.save(&this.meta).await {
                    log::warn!("the progress of job {} was not stored: {error:?}", task.job().job_id);
                }
                return;
            };
            let job = task.job();
            if let (JobKind::RepairNode, Some(node), true) = (job.kind, job.node_id, state != JobState::Done)
                && this.replicator.registry().get(node).is_ok_and(|node| node.record().term == task.term())
            {
                repair::give_up(&this.replicator, node).await;
            }
            task.end(&this.meta, this.clock.as_ref(), state, error).await;
        });
    }

    async fn work(&self, task: &Task) -> Result<()> {
        let job = task.job();
        match (job.kind, job.node_id) {
            (JobKind::RepairNode, Some(node)) => repair::run(&self.replicator, &self.meta, task, node).await,
            (JobKind::Scrub, Some(node)) => {
                let walk = scrub::scrub(node, self.scrub_bytes_per_s);
                walk.run(&self.replicator, &self.meta, Some(task)).await.map(drop)
            }
            (JobKind::Heal, _) => heal::heal().run(&self.replicator, &self.meta, Some(task)).await.map(drop),
            (JobKind::Scrub, None) => {
                let nodes: Vec<NodeId> = self.replicator.registry().all().map(|node| node.id()).collect();
                for node in nodes {
                    // Where it stood was a place on another node.
                    task.start_over();
                    if self.replicator.registry().is_reachable(node) {
                        let walk = scrub::scrub(node, self.scrub_bytes_per_s);
                        walk.run(&self.replicator, &self.meta, Some(task)).await?;
                    }
                }
                Ok(())
            }
            (JobKind::Collect, _) => collect::run(self, task, job.dry_run).await,
            (JobKind::Compact, _) => {
                // It begins anew after a restart, and finds less to do.
                task.forget_progress(self.replicator.counts().total);
                let tell = |done: Compacted| task.compacted(&done);
                self.garbage.compact(&tell).await.map(drop)
            }
            (JobKind::Fsck, _) => {
                // It begins anew after a restart.
                task.forget_progress(self.replicator.counts().total);
                let scratch = Scratch::new(&self.data)?;
                let counts = scratch.store("counts.db")?;
                let progress = |blocks, report: &_| task.tell(blocks, report);
                let live = Live { scratch: &counts, repair: job.repair, progress: &progress };
                let report = self.garbage.fsck(live).await?;
                task.tell(0, &report);
                Ok(())
            }
            (JobKind::RepairNode, None) => Err(Error::invalid("a repair without its node")),
        }
    }
}
