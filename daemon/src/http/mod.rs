//! The REST API: extract, call, reply. Nothing is decided here.

mod admin;
mod audit;
pub mod auth;
mod body;
mod cut;
mod disposition;
mod extract;
mod files;
mod fs;
mod gate;
mod health;
mod keys;
mod limits;
mod metrics;
mod openapi;
pub mod problem;
mod rate;
mod server;
mod status;
mod tls;
mod tokens;
mod users;
mod volumes;
mod whole;
mod wire;

pub use auth::{Admin, Peer};
pub use extract::{Json, Path, Query};
pub use problem::Problem;
use problem::Problems;
pub use server::{Serving, serve};

use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::{Extension, Router, middleware};
use serde::Deserialize;
use tandemfs::Error;
use utoipa::{IntoParams, OpenApi as _};
use utoipa_axum::router::OpenApiRouter;

use crate::daemon::App;

/// Which page of a list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Page {
    /// At most so many, 1 to 1000; 100 if not given.
    limit: Option<u32>,
    /// Where the page before ended.
    cursor: Option<String>,
}

/// Whose tokens.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct OfUser {
    /// Another user's, for admins; the caller's own if not given.
    user: Option<String>,
}

fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::Base::openapi())
        .merge(users::routes())
        .merge(tokens::routes())
        .merge(volumes::routes())
        .merge(files::routes())
        .merge(fs::routes())
        .merge(status::routes())
        .merge(admin::routes())
        .merge(audit::routes())
        .merge(keys::routes())
        .merge(metrics::routes())
        .merge(health::routes())
        .merge(openapi::routes())
}

/// The whole API of a daemon. Requests must carry their connection's address (`ConnectInfo<SocketAddr>`).
pub fn router(app: App) -> Router {
    let idle = Duration::from_secs(app.settings.idle_timeout_s);
    let limits = Arc::new(limits::Limits::new(app.settings.max_requests, idle));
    let rate = rate::Rate::new(app.settings.max_user_requests_per_s);
    let (router, document) = routes().split_for_parts();
    router
        .fallback(|| async { Problem(Error::not_found("there is no such endpoint")) })
        .layer(Extension(Arc::new(openapi::Documents::new(document))))
        .layer(Extension(Arc::new(rate)))
        .layer(DefaultBodyLimit::max(limits::BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(limits, limits::apply))
        .with_state(app)
}

#[cfg(test)]
mod flood_tests;
#[cfg(test)]
mod server_tests;
#[cfg(test)]
mod tests;
