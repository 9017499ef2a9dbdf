//! Whether all is well, for every user.

use axum::extract::State;
use tandemfs::api::files::{Health, Status};
use tandemfs::api::users::Role;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Json, Problem, Problems};
use crate::accounts::Caller;
use crate::daemon::App;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(status))
}

/// Whether every block and all of the metadata have all their copies.
#[utoipa::path(get, path = "/status", tag = "system",
    responses((status = 200, body = Status), Problems))]
async fn status(State(app): State<App>, caller: Caller) -> Result<Json<Status>, Problem> {
    let warnings = match caller.role {
        Role::Admin => app.warnings().await?,
        Role::User => Vec::new(),
    };
    let nodes = app.replicator.node_counts();
    let blocks = app.replicator.counts();
    let journal = app.journal.counts();
    let is_whole = blocks.under_replicated == 0 && blocks.lost == 0 && journal.under_replicated == 0;
    let healthy = nodes.healthy == nodes.total && is_whole;
    Ok(Json(Status {
        status: if healthy { Health::Healthy } else { Health::Degraded },
        nodes,
        replicas: app.settings.replicas,
        blocks,
        journal,
        last_scrub: app.jobs.last_scrub(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: app.started.elapsed().as_secs(),
        warnings,
    }))
}
