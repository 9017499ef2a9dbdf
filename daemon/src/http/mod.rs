//! The REST API: extract, call, reply. Nothing is decided here.

pub mod auth;
mod extract;
mod files;
mod fs;
pub mod problem;

pub use auth::Admin;
pub use extract::{Json, Path, Query};
pub use problem::Problem;

use axum::Router;
use utoipa_axum::router::OpenApiRouter;

use crate::daemon::App;

/// The whole API of a daemon.
pub fn router(app: App) -> Router {
    let (router, _document) =
        OpenApiRouter::new().merge(files::routes()).merge(fs::routes()).split_for_parts();
    router.with_state(app)
}
