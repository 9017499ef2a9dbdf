//! Shared volumes and their grants.

use std::net::IpAddr;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{LINK, LOCATION};
use axum::response::IntoResponse;
use tandemfs::Result;
use tandemfs::api::volumes::{ChangeVolume, Grant, GrantPage, NewGrant, NewVolume, Volume, VolumePage};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::whole::whole;
use super::{Admin, Json, Page, Path, Peer, Problem, Problems, Query};
use crate::accounts::Caller;
use crate::audit::outcome;
use crate::daemon::App;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_volumes, create_volume))
        .routes(routes!(get_volume, change_volume, delete_volume))
        .routes(routes!(list_grants))
        .routes(routes!(grant, revoke))
}

/// Notes what has come of a change.
async fn noted<T>(
    app: &App,
    by: &Caller,
    what: &str,
    object: &str,
    from: IpAddr,
    result: Result<T>,
) -> Result<T> {
    app.audit.note(&by.username, what, object, Some(from), outcome(&result)).await;
    result
}

/// List shared volumes by name: all for admins, those that are granted for others.
#[utoipa::path(get, path = "/v1/volumes", tag = "volumes", params(Page),
    responses((status = 200, body = VolumePage), Problems))]
async fn list_volumes(
    State(app): State<App>,
    caller: Caller,
    Query(page): Query<Page>,
) -> Result<impl IntoResponse, Problem> {
    let limit = page.limit.unwrap_or(100);
    let volumes = app.volumes.list_shared(&caller, limit, page.cursor.as_deref()).await?;
    // Names need no escaping in a URL: their rule allows nothing that would.
    let next = volumes.next_cursor.as_ref();
    let next = next.map(|next| [(LINK, format!("</v1/volumes?limit={limit}&cursor={next}>; rel=\"next\""))]);
    Ok((next, Json(volumes)))
}

/// Make a shared volume. Nobody may use it before it is granted.
#[utoipa::path(post, path = "/v1/volumes", tag = "volumes", request_body = NewVolume,
    responses((status = 201, body = Volume), Problems))]
async fn create_volume(
    State(app): State<App>,
    Admin(caller): Admin,
    Peer(from): Peer,
    Json(new): Json<NewVolume>,
) -> Result<impl IntoResponse, Problem> {
    let volume = whole(async move {
        let result = app.volumes.create_shared(&caller, &new).await;
        noted(&app, &caller, "create volume", &new.name, from, result).await
    });
    let volume = volume.await?;
    Ok((StatusCode::CREATED, [(LOCATION, format!("/v1/volumes/{}", volume.name))], Json(volume)))
}

/// Look at a shared volume.
#[utoipa::path(get, path = "/v1/volumes/{name}", tag = "volumes", params(("name" = String, Path,)),
    responses((status = 200, body = Volume), Problems))]
async fn get_volume(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Volume>, Problem> {
    Ok(Json(app.volumes.shared_volume(&caller, &name).await?))
}

/// Change a shared volume's quota.
#[utoipa::path(patch, path = "/v1/volumes/{name}", tag = "volumes", params(("name" = String, Path,)), request_body = ChangeVolume,
    responses((status = 200, body = Volume), Problems))]
async fn change_volume(
    State(app): State<App>,
    Admin(caller): Admin,
    Peer(from): Peer,
    Path(name): Path<String>,
    Json(change): Json<ChangeVolume>,
) -> Result<Json<Volume>, Problem> {
    let volume = whole(async move {
        let result = app.volumes.change_shared(&caller, &name, &change).await;
        noted(&app, &caller, "change volume quota", &name, from, result).await
    });
    Ok(Json(volume.await?))
}

/// Remove a shared volume, with all files.
#[utoipa::path(delete, path = "/v1/volumes/{name}", tag = "volumes", params(("name" = String, Path,)),
    responses((status = 204), Problems))]
async fn delete_volume(
    State(app): State<App>,
    Admin(caller): Admin,
    Peer(from): Peer,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    let deleted = whole(async move {
        let result = app.volumes.delete_shared(&name).await;
        noted(&app, &caller, "delete volume", &name, from, result).await
    });
    deleted.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List who may use a shared volume, in the order of the users' numbers.
#[utoipa::path(get, path = "/v1/volumes/{name}/grants", tag = "volumes", params(("name" = String, Path,), Page),
    responses((status = 200, body = GrantPage), Problems))]
async fn list_grants(
    State(app): State<App>,
    _admin: Admin,
    Path(name): Path<String>,
    Query(page): Query<Page>,
) -> Result<impl IntoResponse, Problem> {
    let limit = page.limit.unwrap_or(100);
    let (users, next_cursor) = app.volumes.grants(&name, limit, page.cursor.as_deref())?;
    let mut grants = Vec::new();
    for (user, access) in users {
        // One who is just being deleted has no name any more.
        if let Some(username) = app.accounts.username(user).await? {
            grants.push(Grant { username, access });
        }
    }
    let next = next_cursor.as_ref().map(|next| {
        [(LINK, format!("</v1/volumes/{name}/grants?limit={limit}&cursor={next}>; rel=\"next\""))]
    });
    Ok((next, Json(GrantPage { grants, next_cursor })))
}

/// Grant a user a shared volume, or change what the user may do there. Less than before ends the user's sessions on it.
#[utoipa::path(put, path = "/v1/volumes/{name}/grants/{username}", tag = "volumes",
    params(("name" = String, Path,), ("username" = String, Path,)), request_body = NewGrant,
    responses((status = 200, body = Grant), Problems))]
async fn grant(
    State(app): State<App>,
    Admin(caller): Admin,
    Peer(from): Peer,
    Path((name, username)): Path<(String, String)>,
    Json(NewGrant { access }): Json<NewGrant>,
) -> Result<Json<Grant>, Problem> {
    let granted = whole(async move {
        let what = format!("grant {access:?}").to_lowercase();
        let grant = async {
            let user = app.accounts.user(&username).await?.user_id;
            app.volumes.grant(&name, user, access).await
        };
        let result = grant.await;
        noted(&app, &caller, &what, &format!("{name}/{username}"), from, result).await?;
        Ok(Grant { username, access })
    });
    Ok(Json(granted.await?))
}

/// Take a grant away. Ends the user's sessions on the volume.
#[utoipa::path(delete, path = "/v1/volumes/{name}/grants/{username}", tag = "volumes",
    params(("name" = String, Path,), ("username" = String, Path,)),
    responses((status = 204), Problems))]
async fn revoke(
    State(app): State<App>,
    Admin(caller): Admin,
    Peer(from): Peer,
    Path((name, username)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let revoked = whole(async move {
        let revoke = async {
            let user = app.accounts.user(&username).await?.user_id;
            app.volumes.revoke(&name, user).await
        };
        let result = revoke.await;
        noted(&app, &caller, "revoke grant", &format!("{name}/{username}"), from, result).await
    });
    revoked.await?;
    Ok(StatusCode::NO_CONTENT)
}
