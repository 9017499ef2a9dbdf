//! Uploads, listings, downloads.

use utoipa_axum::router::OpenApiRouter;

use crate::daemon::App;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
}
