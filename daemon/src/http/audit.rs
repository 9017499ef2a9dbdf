//! The audit log, for admins. Nothing here changes it.

use axum::extract::State;
use axum::http::header::LINK;
use axum::response::IntoResponse;
use tandemfs::api::audit::{AuditCheck, AuditPage};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Admin, Json, Page, Problem, Problems, Query};
use crate::daemon::App;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(verify))
}

/// Who did what, the newest first.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(Page),
    responses((status = 200, body = AuditPage), Problems))]
async fn list(
    State(app): State<App>,
    _admin: Admin,
    Query(page): Query<Page>,
) -> Result<impl IntoResponse, Problem> {
    let limit = page.limit.unwrap_or(100);
    let entries = app.audit.page(limit, page.cursor.as_deref()).await?;
    // Cursors are numbers.
    let next = entries
        .next_cursor
        .as_ref()
        .map(|next| format!("</v1/audit?limit={limit}&cursor={next}>; rel=\"next\""));
    Ok((next.map(|next| [(LINK, next)]), Json(entries)))
}

/// Check the whole chain: what is missing, what was changed.
#[utoipa::path(get, path = "/v1/audit/verify", tag = "audit",
    responses((status = 200, body = AuditCheck), Problems))]
async fn verify(State(app): State<App>, _admin: Admin) -> Result<Json<AuditCheck>, Problem> {
    Ok(Json(app.audit.verify().await?))
}
