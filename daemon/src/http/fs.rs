//! The mount's part of the API, under `/fs/v1`.

use utoipa_axum::router::OpenApiRouter;

use crate::daemon::App;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
}
