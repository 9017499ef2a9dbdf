//! API tokens.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use tandemfs::Error;
use tandemfs::api::users::{CreatedToken, NewToken, Role, TokenList};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Peer;
use super::whole::whole;
use super::{Json, OfUser, Path, Problem, Problems, Query};
use crate::accounts::Caller;
use crate::daemon::App;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list_tokens, create_token)).routes(routes!(revoke_token))
}

impl OfUser {
    fn name(self, caller: &Caller) -> Result<String, Problem> {
        match self.user {
            Some(user) if user != caller.username && caller.role != Role::Admin => {
                Err(Error::forbidden("other users' tokens are for admins").into())
            }
            Some(user) => Ok(user),
            None => Ok(caller.username.clone()),
        }
    }
}

/// List tokens, without their secrets.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", params(OfUser),
    responses((status = 200, body = TokenList), Problems))]
async fn list_tokens(
    State(app): State<App>,
    caller: Caller,
    Query(of): Query<OfUser>,
) -> Result<Json<TokenList>, Problem> {
    let name = of.name(&caller)?;
    Ok(Json(TokenList { tokens: app.accounts.list_tokens(&name).await? }))
}

/// Make a token for the caller. Its secret is shown this once.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", request_body = NewToken,
    responses((status = 201, body = CreatedToken), Problems))]
async fn create_token(
    State(app): State<App>,
    caller: Caller,
    Peer(from): Peer,
    Json(new): Json<NewToken>,
) -> Result<impl IntoResponse, Problem> {
    let created = whole(async move { app.accounts.create_token(&caller, &new, from).await }).await?;
    Ok((StatusCode::CREATED, Json(created)))
}

/// Revoke a token.
#[utoipa::path(delete, path = "/v1/tokens/{token_id}", tag = "tokens", params(("token_id" = String, Path,), OfUser),
    responses((status = 204), Problems))]
async fn revoke_token(
    State(app): State<App>,
    caller: Caller,
    Peer(from): Peer,
    Path(id): Path<String>,
    Query(of): Query<OfUser>,
) -> Result<StatusCode, Problem> {
    let name = of.name(&caller)?;
    whole(async move { app.accounts.revoke_token(&caller, &name, &id, from).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}
