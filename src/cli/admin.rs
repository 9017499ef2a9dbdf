//! `tandem admin`: nodes, jobs, the system.

use std::time::Duration;

use tandemfs::Error;
use tandemfs::api::admin::{FailNode, Job, JobState, Node, Session, SessionList, System};
use tandemfs::id::NodeId;

use super::arguments::Admin;
use super::failure::{Failure, Outcome};
use super::{Context, audit, output};

/// How often a job that is waited for is asked for.
const POLL: Duration = Duration::from_millis(300);

/// Runs one of its commands.
pub(super) async fn run(context: &Context, command: Admin) -> Outcome {
    let client = &context.client;
    match command {
        Admin::Nodes => context.show(&client.nodes().await?, |list| nodes_table(&list.nodes)),
        Admin::FailNode { node, mode } => {
            let node = client.fail_node(node, &FailNode { mode: mode.into() }).await?;
            context.show(&node, |node| nodes_table(std::slice::from_ref(node)))
        }
        Admin::RepairNode { node, no_wait } => repair(context, node, no_wait).await,
        Admin::System => context.show(&client.system().await?, system_text),
        Admin::Jobs { job: Some(job), cancel } => {
            let job = if cancel { client.cancel_job(job).await? } else { client.job(job).await? };
            context.show(&job, |job| jobs_table(std::slice::from_ref(job)))
        }
        Admin::Jobs { job: None, .. } => context.show(&client.jobs().await?, |list| jobs_table(&list.jobs)),
        Admin::Sessions => context.show(&client.sessions().await?, sessions_table),
        Admin::Audit { verify: true, .. } => audit::verify(context).await,
        Admin::Audit { limit, .. } => audit::show(context, limit).await,
        Admin::Scrub { node } => start(context, client.scrub(node).await?),
        Admin::Gc { dry_run, no_wait } => {
            let job = client.collect(dry_run).await?;
            finish(context, "the collection", job, no_wait, collected_text).await
        }
        Admin::Compact { no_wait } => {
            finish(context, "the compaction", client.compact().await?, no_wait, compacted_text).await
        }
        Admin::Fsck { repair, no_wait } => {
            finish(context, "the check", client.fsck(repair).await?, no_wait, faults_text).await
        }
        // Dispatched before.
        Admin::Users(_) | Admin::Tokens(_) | Admin::Keys(_) | Admin::Volumes(_) | Admin::Grants(_) => {
            Err(Error::internal("").into())
        }
    }
}

/// Repairs a node, and shows how it goes on until it is done.
async fn repair(context: &Context, node: NodeId, no_wait: bool) -> Outcome {
    let job = context.client.repair_node(node).await?;
    if no_wait {
        return start(context, job);
    }
    let job = ended(context, &format!("node {node}"), job).await?;
    match job.state {
        JobState::Done => context.show(&job, |job| {
            format!(
                "node {node} is repaired: {} blocks, {} copied",
                job.blocks_copied,
                output::size(job.bytes_copied)
            )
        }),
        JobState::Cancelled => Err(Error::busy(format!("the repair of node {node} was cancelled")).into()),
        JobState::Failed | JobState::Running => {
            let why = job.error.unwrap_or_default();
            Err(Error::unavailable(format!("the repair of node {node} has failed: {why}")).into())
        }
    }
}

/// Shows how a job goes on until it is done, then what it did.
async fn finish(
    context: &Context,
    what: &str,
    job: Job,
    no_wait: bool,
    text: impl FnOnce(&Job) -> String,
) -> Outcome {
    if no_wait {
        return start(context, job);
    }
    let job = ended(context, what, job).await?;
    match job.state {
        JobState::Done => context.show(&job, text)?,
        JobState::Cancelled => return Err(Error::busy(format!("{what} was cancelled")).into()),
        JobState::Failed | JobState::Running => {
            let why = job.error.unwrap_or_default();
            return Err(Error::unavailable(format!("{what} has failed: {why}")).into());
        }
    }
    if job.faults_left == 0 { Ok(()) } else { Err(Failure::Printed(1)) }
}

fn collected_text(job: &Job) -> String {
    let (blocks, bytes) = (job.blocks_removed, output::size(job.bytes_removed));
    let (packs, won) = (job.packs, output::size(job.bytes_won));
    if job.dry_run {
        format!(
            "{blocks} blocks of {bytes} would be removed\n\
             {packs} packs are less than half in use; compaction would win {won}"
        )
    } else {
        format!("{blocks} blocks of {bytes} were removed")
    }
}

fn compacted_text(job: &Job) -> String {
    format!(
        "{} small blocks were packed, {} packs emptied, {} parts of files joined; {} are free after the grace period",
        job.blocks_packed,
        job.packs,
        job.parts_joined,
        output::size(job.bytes_won)
    )
}

fn faults_text(job: &Job) -> String {
    let mut lines: Vec<String> = job.faults.iter().map(|line| output::escape(line).into_owned()).collect();
    lines.push(format!(
        "{} blocks; {} faults mended, {} left",
        job.blocks_done, job.faults_mended, job.faults_left
    ));
    lines.join("\n")
}

/// Shows how a job goes on until it has ended.
async fn ended(context: &Context, what: &str, mut job: Job) -> Outcome<Job> {
    let bar = output::blocks_bar(what, context.json);
    while job.state == JobState::Running {
        bar.set_length(job.blocks_total);
        bar.set_position(job.blocks_done);
        tokio::time::sleep(POLL).await;
        job = context.client.job(job.job_id).await?;
    }
    bar.finish_and_clear();
    Ok(job)
}

fn start(context: &Context, job: Job) -> Outcome {
    context.show(&job, |job| {
        format!("job {} is started; tandem admin jobs {} says how it goes", job.job_id, job.job_id)
    })
}

fn nodes_table(nodes: &[Node]) -> String {
    let row = |node: &Node| {
        vec![
            node.node_id.to_string(),
            word(&node.state),
            node.blocks.to_string(),
            output::size(node.bytes),
            output::or_dash(node.free_bytes.map(output::size)),
            node.missing_replicas.to_string(),
            node.weight.to_string(),
            node.zone.clone(),
            output::or_dash(node.last_seen.as_deref().map(output::seconds_of)),
            format!("{}:{}", node.kind, node.location),
        ]
    };
    let headings = ["NODE", "STATE", "BLOCKS", "DATA", "FREE", "MISSING", "WEIGHT", "ZONE", "SEEN", "PLACE"];
    output::table(&headings, &nodes.iter().map(row).collect::<Vec<_>>())
}

/// How the API writes a state or a kind, for people.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word.replace('_', "-"),
        _ => String::new(),
    }
}

fn jobs_table(jobs: &[Job]) -> String {
    let row = |job: &Job| {
        vec![
            job.job_id.to_string(),
            word(&job.kind),
            output::or_dash(job.node_id),
            word(&job.state),
            format!("{}/{}", job.blocks_done, job.blocks_total),
            format!("{} ({})", job.blocks_copied, output::size(job.bytes_copied)),
            job.blocks_bad.to_string(),
            output::seconds_of(&job.started),
            output::or_dash(job.error.as_deref()),
        ]
    };
    let headings = ["JOB", "KIND", "NODE", "STATE", "BLOCKS", "COPIED", "BAD", "STARTED", "ERROR"];
    output::table(&headings, &jobs.iter().map(row).collect::<Vec<_>>())
}

fn sessions_table(list: &SessionList) -> String {
    let row = |session: &Session| {
        vec![
            session.session_id.to_string(),
            session.username.clone(),
            session.volume_id.to_string(),
            if session.read_only { "ro".to_owned() } else { "rw".to_owned() },
            output::seconds_of(&session.opened),
            session.client.clone(),
        ]
    };
    let headings = ["SESSION", "USER", "VOLUME", "MODE", "OPENED", "CLIENT"];
    output::table(&headings, &list.sessions.iter().map(row).collect::<Vec<_>>())
}

fn system_text(system: &System) -> String {
    let (totals, nodes, blocks) = (&system.totals, &system.nodes, &system.blocks);
    let mut lines = vec![
        format!("users     {}", totals.users),
        format!(
            "volumes   {}, with {} inodes and {}",
            totals.volumes,
            totals.inodes,
            output::size(totals.bytes)
        ),
        format!("sessions  {}", totals.sessions),
        format!("nodes     {} of {} healthy, {} failed", nodes.healthy, nodes.total, nodes.failed),
        format!(
            "blocks    {}; {} under-replicated, {} lost",
            blocks.total, blocks.under_replicated, blocks.lost
        ),
        format!(
            "capacity  {} free of {}",
            output::size(system.capacity.free_bytes),
            output::size(system.capacity.total_bytes)
        ),
        format!("jobs      {} at work", system.jobs.len()),
        "configuration".to_owned(),
    ];
    if let Some(settings) = system.configuration.as_object() {
        lines.extend(
            settings.iter().map(|(name, value)| output::escape(&format!("  {name} = {value}")).into_owned()),
        );
    }
    lines.join("\n")
}
