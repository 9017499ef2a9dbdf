//! Errors as answers: `application/problem+json` (RFC 9457).

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use tandemfs::api::problem::{self, MEDIA_TYPE};
use tandemfs::{Error, ErrorKind};
use utoipa::IntoResponses;

tokio::task_local! {
    /// The id of the request that the task works on, for its problem bodies and log lines.
    pub(super) static REQUEST_ID: String;
}

/// The id of the request that is being worked on; empty outside of one.
pub fn request_id() -> String {
    REQUEST_ID.try_with(Clone::clone).unwrap_or_default()
}

/// An error on its way to a client.
#[derive(Debug)]
pub struct Problem(pub Error);

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

/// What every operation may answer beside what it says itself.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its description is used")]
pub(super) enum Problems {
    /// The request is refused; `code` says why.
    #[response(status = "4XX", content_type = "application/problem+json")]
    Refused(problem::Problem),
    /// The daemon cannot do it, now or at all; `code` says why.
    #[response(status = "5XX", content_type = "application/problem+json")]
    Failed(problem::Problem),
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let id = request_id();
        // Our own faults: the client learns only the id under which the log has the rest.
        if matches!(error.kind(), ErrorKind::Internal | ErrorKind::Corrupt) {
            log::error!("request {id}: {error:?}");
        } else if error.kind().http_status() >= 500 {
            log::warn!("request {id}: {error:?}");
        }
        let mut body = problem::Problem::from(&error);
        body.request_id = Some(id).filter(|id| !id.is_empty());
        respond(&body)
    }
}

/// The answer that carries a problem body.
pub(super) fn respond(body: &problem::Problem) -> Response {
    let status = StatusCode::from_u16(body.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let text = serde_json::to_vec(body).unwrap_or_default();
    let mut response = (status, text).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(seconds) = body.retry_after_s {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
