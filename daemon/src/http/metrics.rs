//! The daemon's metrics, for admins.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use tandemfs::api::admin::JobState;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Admin, Problem, Problems};
use crate::daemon::App;
use crate::metrics::{self, Gauges, signed};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(show))
}

/// Counters of faults and how things stand, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "system",
    responses((status = 200, body = String, content_type = "application/openmetrics-text"),
        Problems))]
async fn show(State(app): State<App>, _admin: Admin) -> Result<impl IntoResponse, Problem> {
    let gauges = Gauges::default();
    let blocks = app.replicator.counts();
    gauges.blocks.set(signed(blocks.total));
    gauges.under_replicated.set(signed(blocks.under_replicated));
    gauges.lost.set(signed(blocks.lost));
    let nodes = app.replicator.node_counts();
    gauges.nodes.set(nodes.total.into());
    gauges.nodes_healthy.set(nodes.healthy.into());
    gauges.nodes_failed.set(nodes.failed.into());
    for node in app.replicator.nodes().await {
        gauges.node_bytes.get_or_create(&node.node_id.into()).set(signed(node.bytes));
        gauges.node_missing.get_or_create(&node.node_id.into()).set(signed(node.missing_replicas));
    }
    let room = app.replicator.room().await;
    gauges.capacity.set(signed(room.total_bytes));
    gauges.free.set(signed(room.free_bytes));
    gauges.sessions.set(signed(app.sessions.list().len() as u64));
    let running = app.jobs.list().iter().filter(|job| job.state == JobState::Running).count();
    gauges.jobs.set(signed(running as u64));
    if let Some(scrub) = app.jobs.last_scrub() {
        let ended = scrub.ended.parse().map(jiff::Timestamp::as_second);
        gauges.last_scrub.set(ended.unwrap_or(0));
        gauges.last_scrub_bad.set(signed(scrub.bad_copies));
    }
    gauges.uptime.set(signed(app.started.elapsed().as_secs()));
    Ok(([(CONTENT_TYPE, metrics::MEDIA_TYPE)], metrics::render(&gauges)?))
}
