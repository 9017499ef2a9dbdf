//! Logins and users.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::IntoResponse;
use tandemfs::api::users::{
    ChangePassword, ChangeUser, Login, LoginReply, LoginUser, Register, User, UserPage,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Peer, Secret};
use super::whole::whole;
use super::{Admin, Json, Page, Path, Problem, Problems, Query};
use crate::accounts::{Caller, NewUser};
use crate::daemon::App;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(login))
        .routes(routes!(logout))
        .routes(routes!(register))
        .routes(routes!(list_users))
        .routes(routes!(get_user, change_user, delete_user))
        .routes(routes!(me))
        .routes(routes!(change_password))
}

/// Log in.
#[utoipa::path(post, path = "/login", tag = "accounts", security(()), request_body = Login,
    responses((status = 200, body = LoginReply), Problems))]
async fn login(
    State(app): State<App>,
    Peer(from): Peer,
    Json(body): Json<Login>,
) -> Result<Json<LoginReply>, Problem> {
    let login = whole(async move { app.accounts.login(&body.username, &body.password, from).await }).await?;
    Ok(Json(LoginReply {
        token: login.token,
        token_type: "Bearer".to_owned(),
        expires_in: login.expires_in,
        user: LoginUser { username: login.account.username.clone(), role: login.account.role },
    }))
}

/// End the token that the request carries.
#[utoipa::path(post, path = "/v1/logout", tag = "accounts",
    responses((status = 204), Problems))]
async fn logout(
    State(app): State<App>,
    caller: Caller,
    Peer(from): Peer,
    Secret(token): Secret,
) -> Result<StatusCode, Problem> {
    whole(async move { app.accounts.logout(&caller, &token, from).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Make a user.
#[utoipa::path(post, path = "/register", tag = "accounts", request_body = Register,
    responses((status = 201, body = User), Problems))]
async fn register(
    State(app): State<App>,
    Admin(caller): Admin,
    Peer(from): Peer,
    Json(body): Json<Register>,
) -> Result<impl IntoResponse, Problem> {
    let new = NewUser {
        username: body.username,
        password: body.password,
        role: body.role,
        quota_bytes: body.quota_bytes,
        quota_files: body.quota_files,
    };
    let user = whole(async move { app.accounts.create(&caller, &new, from).await }).await?;
    Ok((StatusCode::CREATED, [(LOCATION, format!("/v1/users/{}", user.username))], Json(user)))
}

/// List users by name.
#[utoipa::path(get, path = "/v1/users", tag = "accounts", params(Page),
    responses((status = 200, body = UserPage), Problems))]
async fn list_users(
    State(app): State<App>,
    _admin: Admin,
    Query(page): Query<Page>,
) -> Result<impl IntoResponse, Problem> {
    let limit = page.limit.unwrap_or(100);
    let users = app.accounts.list(limit, page.cursor.as_deref()).await?;
    // Names need no escaping in a URL: their rule allows nothing that would.
    let next = users
        .next_cursor
        .as_ref()
        .map(|next| format!("</v1/users?limit={limit}&cursor={next}>; rel=\"next\""));
    Ok((next.map(|next| [(axum::http::header::LINK, next)]), Json(users)))
}

/// Look at a user.
#[utoipa::path(get, path = "/v1/users/{name}", tag = "accounts", params(("name" = String, Path,)),
    responses((status = 200, body = User), Problems))]
async fn get_user(
    State(app): State<App>,
    _admin: Admin,
    Path(name): Path<String>,
) -> Result<Json<User>, Problem> {
    Ok(Json(app.accounts.user(&name).await?))
}

/// Change a user: role, quota, password, disabled or not.
#[utoipa::path(patch, path = "/v1/users/{name}", tag = "accounts", params(("name" = String, Path,)), request_body = ChangeUser,
    responses((status = 200, body = User), Problems))]
async fn change_user(
    State(app): State<App>,
    Admin(caller): Admin,
    Peer(from): Peer,
    Path(name): Path<String>,
    Json(change): Json<ChangeUser>,
) -> Result<Json<User>, Problem> {
    Ok(Json(whole(async move { app.accounts.change(&caller, &name, &change, from).await }).await?))
}

/// Remove a user, with all files.
#[utoipa::path(delete, path = "/v1/users/{name}", tag = "accounts", params(("name" = String, Path,)),
    responses((status = 204), Problems))]
async fn delete_user(
    State(app): State<App>,
    Admin(caller): Admin,
    Peer(from): Peer,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    whole(async move { app.accounts.delete(&caller, &name, from).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who am I?
#[utoipa::path(get, path = "/v1/me", tag = "accounts",
    responses((status = 200, body = User), Problems))]
async fn me(State(app): State<App>, caller: Caller) -> Result<Json<User>, Problem> {
    Ok(Json(app.accounts.user(&caller.username).await?))
}

/// Change the own password. Ends all tokens of the caller.
#[utoipa::path(post, path = "/v1/me/password", tag = "accounts", request_body = ChangePassword,
    responses((status = 204), Problems))]
async fn change_password(
    State(app): State<App>,
    caller: Caller,
    Peer(from): Peer,
    Json(body): Json<ChangePassword>,
) -> Result<StatusCode, Problem> {
    whole(async move { app.accounts.change_password(&caller, &body.current, &body.new, from).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}
