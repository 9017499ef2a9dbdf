//! The keys that sign the tokens of logins, for admins.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use tandemfs::api::users::SigningKeyList;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::whole::whole;
use super::{Admin, Json, Path, Peer, Problem, Problems};
use crate::daemon::App;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, rotate)).routes(routes!(drop_key))
}

/// List the keys that count, the one that signs first.
#[utoipa::path(get, path = "/v1/keys", tag = "keys",
    responses((status = 200, body = SigningKeyList), Problems))]
async fn list(State(app): State<App>, _admin: Admin) -> Json<SigningKeyList> {
    Json(app.accounts.list_keys())
}

/// Have a new key sign from now on.
#[utoipa::path(post, path = "/v1/keys", tag = "keys",
    responses((status = 201, body = SigningKeyList), Problems))]
async fn rotate(
    State(app): State<App>,
    Admin(caller): Admin,
    Peer(from): Peer,
) -> Result<impl IntoResponse, Problem> {
    let keys = whole(async move { app.accounts.rotate_keys(&caller, from).await }).await?;
    Ok((StatusCode::CREATED, Json(keys)))
}

/// Drop a key: all tokens that it has signed end.
#[utoipa::path(delete, path = "/v1/keys/{key_id}", tag = "keys", params(("key_id" = String, Path,)),
    responses((status = 204), Problems))]
async fn drop_key(
    State(app): State<App>,
    Admin(caller): Admin,
    Peer(from): Peer,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    whole(async move { app.accounts.drop_key(&caller, &id, from).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}
