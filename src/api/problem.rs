//! Errors on the wire: `application/problem+json` (RFC 9457).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Error, ErrorKind};

/// The media type of a problem body.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// A problem body. It parses back into the error that it was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A reference that names the type: `/docs/errors#` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// A sentence about the type.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What this one is about.
    #[serde(default)]
    pub detail: String,
    /// The stable code of the type.
    pub code: String,
    /// Names the request in the daemon's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Seconds after which it is worth trying again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u64>,
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        let kind = error.kind();
        // What is wrong inside of the daemon is for its log.
        let detail = match kind {
            ErrorKind::Internal => String::new(),
            _ => error.subject().to_owned(),
        };
        Self {
            kind: format!("/docs/errors#{}", kind.code()),
            title: kind.title().to_owned(),
            status: kind.http_status(),
            detail,
            code: kind.code().to_owned(),
            request_id: None,
            retry_after_s: error.retry_after_s(),
        }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        let kind = ErrorKind::from_code(&problem.code).unwrap_or(ErrorKind::Internal);
        let error = Self::new(kind, problem.detail);
        match problem.retry_after_s {
            Some(seconds) => error.retry_after(seconds),
            None => error,
        }
    }
}
