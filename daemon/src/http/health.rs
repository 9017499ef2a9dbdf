//! For whoever watches the daemon: does it live, does it work. Without login, so they say nothing else.

use axum::extract::State;
use axum::http::StatusCode;
use tandemfs::Error;
use tandemfs::api::problem::Problem as ProblemBody;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Problem;
use crate::daemon::App;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(healthz)).routes(routes!(readyz))
}

/// The process lives.
#[utoipa::path(get, path = "/healthz", tag = "health", security(()), responses((status = 204)))]
async fn healthz() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// Metadata can be read, and enough nodes are there to write.
#[utoipa::path(get, path = "/readyz", tag = "health", security(()),
    responses((status = 204), (status = 503, body = ProblemBody, content_type = "application/problem+json")))]
async fn readyz(State(app): State<App>) -> Result<StatusCode, Problem> {
    app.meta.ready().await?;
    let healthy = app.replicator.node_counts().healthy;
    if healthy < app.settings.min_replicas {
        return Err(Error::unavailable("not enough nodes are healthy").retry_after(5).into());
    }
    Ok(StatusCode::NO_CONTENT)
}
