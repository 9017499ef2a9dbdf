//! Who is asking: the extractors that every protected route names.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use tandemfs::api::users::Role;
use tandemfs::{Error, Result};

use super::Problem;
use super::cut::Place;
use super::rate::Rate;
use crate::accounts::Caller;
use crate::daemon::App;

/// The token of a request. Only the header counts: a token in a URL would end in logs and histories.
fn bearer(headers: &HeaderMap) -> Result<&str> {
    let missing = || Error::unauthenticated("give a token as Authorization: Bearer");
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or_else(missing)?;
    if values.next().is_some() {
        return Err(Error::unauthenticated("more than one Authorization header"));
    }
    let value = value.to_str().map_err(|_| missing())?;
    let (scheme, token) = value.split_once(' ').ok_or_else(missing)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(missing());
    }
    Ok(token.trim())
}

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let Uncounted(caller) = Uncounted::from_request_parts(parts, app).await?;
        let rate = parts.extensions.get::<Arc<Rate>>();
        rate.ok_or_else(|| Error::internal("a request without a limit"))?.count(caller.user)?;
        Ok(caller)
    }
}

/// A caller whose request does not count for the user's requests a second. For signs of life and the end of sessions: a mount whose
/// user asks too much must not hold up others until it is fenced, and these cost no more than to refuse them.
#[derive(Clone, Debug)]
pub(super) struct Uncounted(pub(super) Caller);

impl FromRequestParts<App> for Uncounted {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let (caller, visit) = app.accounts.authenticate(bearer(&parts.headers)?).await?;
        if let Some(place) = parts.extensions.get::<Place>() {
            place.take(visit);
        }
        Ok(Self(caller))
    }
}

/// A caller who is an admin; others are answered 403.
#[derive(Clone, Debug)]
pub struct Admin(pub Caller);

impl FromRequestParts<App> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, app).await?;
        match caller.role {
            Role::Admin => Ok(Self(caller)),
            Role::User => Err(Error::forbidden("for admins only").into()),
        }
    }
}

/// The token that the request carries, as it is.
pub(super) struct Secret(pub(super) String);

impl FromRequestParts<App> for Secret {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Problem> {
        Ok(Self(bearer(&parts.headers)?.to_owned()))
    }
}

/// Where the request comes from, by its connection: headers that claim another address are not believed.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

impl<S: Send + Sync> FromRequestParts<S> for Peer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let ConnectInfo(address) = parts
            .extensions
            .get::<ConnectInfo<SocketAddr>>()
            .ok_or_else(|| Error::internal("a request without a connection"))?;
        Ok(Self(address.ip().to_canonical()))
    }
}
