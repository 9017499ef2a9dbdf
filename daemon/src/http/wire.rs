//! Bodies of the mount's part of the API: JSON, or the compact encoding where the client says so.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use tandemfs::block::Draft;
use tandemfs::{Error, codec};

use super::Problem;
use super::extract::require_object;

/// A body in either encoding.
pub(super) struct Wire<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Wire<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let compact = is(request.headers(), CONTENT_TYPE, codec::MEDIA_TYPE);
        let json = is(request.headers(), CONTENT_TYPE, "application/json");
        let body = Bytes::from_request(request, state).await.map_err(|rejection| {
            Problem(match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => Error::too_large("the body"),
                _ => Error::invalid(rejection.body_text()),
            })
        })?;
        if compact {
            return Ok(Self(codec::decode(&body)?));
        }
        if !json {
            return Err(
                Error::unsupported_media(format!("send application/json or {}", codec::MEDIA_TYPE)).into()
            );
        }
        require_object(&body)?;
        serde_json::from_slice(&body).map(Self).map_err(|error| Problem(Error::invalid(error.to_string())))
    }
}

/// A body that is a block, received where its object will lie.
pub(super) struct BlockBody(pub(super) Draft);

impl<S: Send + Sync> FromRequest<S> for BlockBody {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let body = request.into_body();
        let length = http_body::Body::size_hint(&body).exact().unwrap_or(0);
        let mut draft = Draft::with_length(usize::try_from(length).unwrap_or(usize::MAX))?;
        let mut pieces = body.into_data_stream();
        while let Some(piece) = pieces.next().await {
            draft.push(&piece.map_err(|error| Error::invalid(error.to_string()))?)?;
        }
        Ok(Self(draft))
    }
}

/// Which encoding the client takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Accepts {
    /// The compact encoding.
    Compact,
    /// JSON.
    Json,
}

impl<S: Send + Sync> FromRequestParts<S> for Accepts {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let compact = is(&parts.headers, ACCEPT, codec::MEDIA_TYPE);
        Ok(if compact { Self::Compact } else { Self::Json })
    }
}

impl Accepts {
    /// An answer in that encoding.
    pub(super) fn answer<T: Serialize>(self, value: &T) -> Result<Response, Problem> {
        let (media_type, body) = match self {
            Self::Compact => (codec::MEDIA_TYPE, codec::encode(value)?),
            Self::Json => {
                let body = serde_json::to_vec(value);
                (
                    "application/json",
                    body.map_err(|error| Error::internal("encoding an answer").because(error))?,
                )
            }
        };
        Ok(([(CONTENT_TYPE, HeaderValue::from_static(media_type))], body).into_response())
    }
}

/// Whether a header names a media type, among others.
pub(super) fn is(headers: &HeaderMap, name: HeaderName, media_type: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|value| value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(media_type))
}
