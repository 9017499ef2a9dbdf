//! axum's extractors, with problem bodies for what they refuse.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tandemfs::Error;

use super::Problem;
use super::wire::is;

/// A JSON body, in both directions.
#[derive(Clone, Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is(request.headers(), CONTENT_TYPE, "application/json") {
            return Err(Error::unsupported_media("send JSON, as Content-Type: application/json").into());
        }
        let body = Bytes::from_request(request, state).await.map_err(|rejection| {
            Problem(match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => Error::too_large("the body"),
                _ => Error::invalid(rejection.body_text()),
            })
        })?;
        require_object(&body)?;
        match axum::Json::from_bytes(&body) {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem(Error::invalid(rejection.body_text()))),
        }
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// Refuses JSON that is no object: serde would also take an array of the fields' values in the order of their declaration.
///
/// # Errors
/// `Invalid`.
pub(super) fn require_object(body: &[u8]) -> Result<(), Error> {
    if body.trim_ascii_start().starts_with(b"{") {
        return Ok(());
    }
    Err(Error::invalid("the body is not a JSON object"))
}

/// The parts of the path.
#[derive(Clone, Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem(Error::invalid(rejection.body_text()))),
        }
    }
}

/// The query.
#[derive(Clone, Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Problem(Error::invalid(rejection.body_text()))),
        }
    }
}

/// A JSON body that may be left out.
#[derive(Clone, Debug)]
pub(super) struct OptionalJson<T>(pub(super) Option<T>);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if http_body::Body::is_end_stream(request.body()) {
            return Ok(Self(None));
        }
        let Json(value) = Json::from_request(request, state).await?;
        Ok(Self(Some(value)))
    }
}
