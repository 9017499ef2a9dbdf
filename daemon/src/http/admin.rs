//! Nodes, jobs, sessions and the system, for admins.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tandemfs::Error;
use tandemfs::api::admin::{
    Capacity, FailNode, Job, JobKind, JobList, JobState, Node, NodeList, Repaired, Session, SessionList,
    StartJob, System, Wait,
};
use tandemfs::id::{JobId, NodeId};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::OptionalJson;
use super::whole::whole;
use super::{Admin, Json, Path, Peer, Problem, Problems, Query};
use crate::audit::outcome;
use crate::daemon::App;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(system))
        .routes(routes!(nodes))
        .routes(routes!(fail_node))
        .routes(routes!(repair_node))
        .routes(routes!(list_jobs, start_job))
        .routes(routes!(get_job, cancel_job))
        .routes(routes!(cancel_job_by_post))
        .routes(routes!(list_sessions))
}

/// The configuration, counts of things, and running jobs.
#[utoipa::path(get, path = "/admin/system", tag = "system",
    responses((status = 200, body = System), Problems))]
async fn system(State(app): State<App>, _admin: Admin) -> Result<Json<System>, Problem> {
    let mut totals = app.volumes.totals().await?;
    totals.users = app.accounts.count().await?;
    let room = app.replicator.room().await;
    let jobs = app.jobs.list().into_iter().filter(|job| job.state == JobState::Running).collect();
    let configuration = serde_json::to_value(&app.settings)
        .map_err(|error| Error::internal("the settings").because(error))?;
    Ok(Json(System {
        configuration,
        totals,
        nodes: app.replicator.node_counts(),
        blocks: app.replicator.counts(),
        jobs,
        capacity: Capacity { total_bytes: room.total_bytes, free_bytes: room.free_bytes },
    }))
}

/// The nodes.
#[utoipa::path(get, path = "/admin/system/nodes", tag = "system",
    responses((status = 200, body = NodeList), Problems))]
async fn nodes(State(app): State<App>, _admin: Admin) -> Result<Json<NodeList>, Problem> {
    Ok(Json(NodeList { nodes: app.replicator.nodes().await }))
}

fn node_id(text: &str) -> Result<NodeId, Problem> {
    // What is not a number names no node.
    Ok(text.parse().map_err(|_| Error::not_found("node"))?)
}

/// Treat a node as if it were gone; `wipe` and `corrupt` also harm its data.
#[utoipa::path(post, path = "/admin/system/fail-node/{node_id}", tag = "system", params(("node_id" = String, Path,)),
    request_body = Option<FailNode>,
    responses((status = 200, body = Node), Problems))]
async fn fail_node(
    State(app): State<App>,
    Admin(caller): Admin,
    Peer(from): Peer,
    Path(node): Path<String>,
    OptionalJson(body): OptionalJson<FailNode>,
) -> Result<Json<Node>, Problem> {
    let id = node_id(&node)?;
    let mode = body.unwrap_or_default().mode;
    let failed = whole(async move {
        let result = app.replicator.fail_node(id, mode).await;
        let what = format!("fail node {mode:?}");
        app.audit.note(&caller.username, &what, &node, Some(from), outcome(&result)).await;
        result
    });
    Ok(Json(failed.await?))
}

/// Bring a node back to what the records say that it holds.
#[utoipa::path(post, path = "/admin/system/repair-node/{node_id}", tag = "system", params(("node_id" = String, Path,), Wait),
    responses((status = 200, body = Repaired), (status = 202, body = Job),
        Problems))]
async fn repair_node(
    State(app): State<App>,
    Admin(caller): Admin,
    Peer(from): Peer,
    Path(node): Path<String>,
    Query(wait): Query<Wait>,
) -> Result<Response, Problem> {
    let id = node_id(&node)?;
    let begun = tokio::time::Instant::now();
    let begin = Arc::clone(&app);
    let job = whole(async move {
        let result = begin.jobs.repair_node(id).await;
        begin.audit.note(&caller.username, "repair node", &node, Some(from), outcome(&result)).await;
        result
    });
    let job = job.await?;
    if !wait.wait.unwrap_or(true) {
        return Ok((StatusCode::ACCEPTED, Json(app.jobs.get(job)?)).into_response());
    }
    let job = tokio::select! {
        biased;
        job = app.jobs.wait(job) => job?,
        () = app.stopping.cancelled() => return Err(Error::unavailable("the daemon stops; the repair goes on later").into()),
    };
    if job.state != JobState::Done {
        let why = job.error.unwrap_or_else(|| "the repair was cancelled".to_owned());
        return Err(Error::unavailable(why).into());
    }
    let nodes = app.replicator.nodes().await;
    let node = nodes.into_iter().find(|node| node.node_id == id).ok_or_else(|| Error::not_found("node"))?;
    Ok(Json(Repaired {
        node_id: id,
        state: node.state,
        blocks_copied: job.blocks_copied,
        bytes_copied: job.bytes_copied,
        seconds: begun.elapsed().as_secs_f64(),
    })
    .into_response())
}

/// The newest jobs.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs",
    responses((status = 200, body = JobList), Problems))]
async fn list_jobs(State(app): State<App>, _admin: Admin) -> Result<Json<JobList>, Problem> {
    Ok(Json(JobList { jobs: app.jobs.list() }))
}

/// Start a job.
#[utoipa::path(post, path = "/v1/jobs", tag = "jobs", request_body = StartJob,
    responses((status = 202, body = Job), Problems))]
async fn start_job(
    State(app): State<App>,
    Admin(caller): Admin,
    Peer(from): Peer,
    Json(start): Json<StartJob>,
) -> Result<impl IntoResponse, Problem> {
    let started = whole(async move {
        let result = match (start.kind, start.node_id) {
            (kind, _) if start.dry_run && kind != JobKind::Collect => {
                Err(Error::invalid("only a collection can be tried"))
            }
            (JobKind::RepairNode, Some(node)) => app.jobs.repair_node(node).await,
            (JobKind::RepairNode, None) => Err(Error::invalid("which node? give node_id")),
            (JobKind::Scrub, node) => app.jobs.scrub(node).await,
            (JobKind::Heal, None) => app.jobs.heal().await,
            (JobKind::Collect, None) => app.jobs.collect(start.dry_run).await,
            (JobKind::Compact, None) => app.jobs.compact().await,
            (JobKind::Fsck, None) => app.jobs.fsck(start.repair).await,
            (JobKind::Heal | JobKind::Collect | JobKind::Fsck | JobKind::Compact, Some(_)) => {
                Err(Error::invalid("this job is not about one node"))
            }
        };
        let object = format!("{:?}", start.kind);
        app.audit.note(&caller.username, "start job", &object, Some(from), outcome(&result)).await;
        app.jobs.get(result?)
    });
    Ok((StatusCode::ACCEPTED, Json(started.await?)))
}

fn job_id(text: &str) -> Result<JobId, Problem> {
    Ok(text.parse().map_err(|_| Error::not_found("job"))?)
}

/// Look at a job.
#[utoipa::path(get, path = "/v1/jobs/{job_id}", tag = "jobs", params(("job_id" = String, Path,)),
    responses((status = 200, body = Job), Problems))]
async fn get_job(
    State(app): State<App>,
    _admin: Admin,
    Path(job): Path<String>,
) -> Result<Json<Job>, Problem> {
    Ok(Json(app.jobs.get(job_id(&job)?)?))
}

/// End a job.
#[utoipa::path(delete, path = "/v1/jobs/{job_id}", tag = "jobs", params(("job_id" = String, Path,)),
    responses((status = 200, body = Job), Problems))]
async fn cancel_job(
    State(app): State<App>,
    Admin(caller): Admin,
    Peer(from): Peer,
    Path(job): Path<String>,
) -> Result<Json<Job>, Problem> {
    let id = job_id(&job)?;
    let cancelled = whole(async move {
        let result = app.jobs.cancel(id).await;
        app.audit.note(&caller.username, "cancel job", &job, Some(from), outcome(&result)).await;
        result
    });
    Ok(Json(cancelled.await?))
}

/// End a job: the same as `DELETE` of it.
#[utoipa::path(post, path = "/v1/jobs/{job_id}/cancel", tag = "jobs", params(("job_id" = String, Path,)),
    responses((status = 200, body = Job), Problems))]
async fn cancel_job_by_post(
    app: State<App>,
    admin: Admin,
    peer: Peer,
    job: Path<String>,
) -> Result<Json<Job>, Problem> {
    cancel_job(app, admin, peer, job).await
}

/// The sessions of mounts.
#[utoipa::path(get, path = "/v1/sessions", tag = "system",
    responses((status = 200, body = SessionList), Problems))]
async fn list_sessions(State(app): State<App>, _admin: Admin) -> Result<Json<SessionList>, Problem> {
    let mut sessions = Vec::new();
    for session in app.sessions.list() {
        sessions.push(Session {
            session_id: session.id,
            username: app.accounts.username(session.user).await?.unwrap_or_default(),
            volume_id: session.volume,
            client: session.client,
            read_only: session.read_only,
            opened: session.opened.to_rfc3339(),
        });
    }
    sessions.sort_by_key(|session| session.session_id);
    Ok(Json(SessionList { sessions }))
}
