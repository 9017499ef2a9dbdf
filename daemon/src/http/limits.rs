//! What holds for every request, whatever it asks for: limits, an id, headers, problem bodies, and that a panic ends no daemon.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, Uri, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures::FutureExt as _;
use tandemfs::api::REQUEST_ID as REQUEST_ID_HEADER;
use tandemfs::api::problem::{self, MEDIA_TYPE};
use tandemfs::{Error, ErrorKind, Result};
use tokio::sync::Semaphore;

use super::Problem;
use super::body::{self, Progress};
use super::cut::{self, Place};
use super::problem::{REQUEST_ID, respond};
use crate::metrics::{COUNTERS, WithStatus};

/// The largest body of a request, where a route does not say otherwise.
pub(super) const BODY_BYTES_MAX: usize = 1 << 20;
/// The longest that a request may take whose body and answer do not stream.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Where bodies or answers stream, or an answer waits for a job: these have no limit in time beside that of their bodies.
const UNTIMED: [&str; 5] = ["/upload", "/download/", "/fs/v1/", "/v1/uploads", "/admin/system/repair-node/"];
/// Where a token in a URL would be put. It would end in logs and histories, so such a request is refused.
const QUERY_SECRETS: [&str; 5] = ["token", "access_token", "api_key", "authorization", "password"];
const PLAIN_BYTES_MAX: usize = 16 << 10;
/// A request that is not answered after so long is worth a line in the log.
const SLOW: Duration = Duration::from_secs(10);

/// The limits of one daemon.
#[derive(Debug)]
pub(super) struct Limits {
    requests: Semaphore,
    idle: Duration,
}

impl Limits {
    pub(super) fn new(max_requests: usize, idle: Duration) -> Self {
        Self { requests: Semaphore::new(max_requests.min(Semaphore::MAX_PERMITS)), idle }
    }
}

/// The outermost layer.
pub(super) async fn apply(State(limits): State<Arc<Limits>>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let (version, progress) = (request.version(), Progress::of(&request));
    let mut response = REQUEST_ID.scope(id.clone(), answer(&limits, request, &progress, next)).await;
    let status = response.status().as_u16();
    COUNTERS.requests.get_or_create(&WithStatus { status }).inc();
    let headers = response.headers_mut();
    let mut put = |name: HeaderName, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    put(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    put(header::CACHE_CONTROL, "no-store");
    put(header::REFERRER_POLICY, "no-referrer");
    put(header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'");
    put(header::VARY, "Authorization");
    if let Ok(id) = HeaderValue::try_from(id) {
        headers.insert(HeaderName::from_static(REQUEST_ID_HEADER), id);
    }
    // hyper ends such a connection, but does not say so: a client that has sent all of its body would use it for the next request,
    // and not know whether that was done (RFC 9112, section 9.6).
    if progress.is_unread() && version <= Version::HTTP_11 {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The id that the client gave, if it is a plain word, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    let plain = |id: &&str| {
        (1..=64).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    match headers.get(REQUEST_ID_HEADER).and_then(|id| id.to_str().ok()).filter(plain) {
        Some(id) => id.to_owned(),
        None => format!("{:016x}", rand::random::<u64>()),
    }
}

async fn answer(limits: &Limits, request: Request, progress: &Progress, next: Next) -> Response {
    if let Err(error) = check_framing(&request) {
        // Where this request ends is not sure.
        return ([(header::CONNECTION, "close")], Problem(error)).into_response();
    }
    if let Err(error) = check(&request) {
        return Problem(error).into_response();
    }
    let path = request.uri().path();
    let untimed = UNTIMED.iter().any(|start| path.starts_with(start));
    // Whoever watches the daemon is answered also when it is busy.
    let _place = if path == "/healthz" {
        None
    } else {
        match limits.requests.try_acquire() {
            Ok(place) => Some(place),
            Err(_) => {
                return Problem(Error::unavailable("too many requests at once").retry_after(1))
                    .into_response();
            }
        }
    };
    let head = request.method() == Method::HEAD;
    let place = Place::default();
    let mut request = body::watch(request, limits.idle, progress, &place);
    request.extensions_mut().insert(place.clone());
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let run = notice_slow(&method, &uri, AssertUnwindSafe(next.run(request)).catch_unwind());
    let response = if untimed {
        run.await
    } else {
        match tokio::time::timeout(REQUEST_TIMEOUT, run).await {
            Ok(response) => response,
            Err(_) => return Problem(Error::timed_out("the request took too long")).into_response(),
        }
    };
    let response = match response {
        Ok(response) => response,
        Err(panic) => {
            COUNTERS.panics.inc();
            let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Problem(Error::internal(format!("a handler panicked: {text}"))).into_response()
        }
    };
    if progress.is_stalled() && response.status().is_client_error() {
        return Problem(Error::timed_out("the body came too slowly")).into_response();
    }
    if place.is_cut() && response.status().is_client_error() {
        return Problem(cut::ended()).into_response();
    }
    if head { response } else { cut::answer(as_problem(response).await, place) }
}

/// Says in the log when something takes long: who looks for the cause of a stall has to know where to begin.
async fn notice_slow<T>(method: &Method, uri: &Uri, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    match tokio::time::timeout(SLOW, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            log::warn!(
                "request {}: {method} {:?} is not answered after {} s",
                super::problem::request_id(),
                uri.path(),
                SLOW.as_secs()
            );
            work.await
        }
    }
}

/// Refuses what another program on the way could understand differently (RFC 9112, sections 3.2 and 6.1). The rest of that,
/// such as two different lengths, hyper refuses by itself.
fn check_framing(request: &Request) -> Result<()> {
    if request.version() != Version::HTTP_11 {
        return Ok(());
    }
    let headers = request.headers();
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().ok_or_else(|| Error::invalid("no Host"))?;
    if hosts.next().is_some() || !(host.is_empty() || Authority::try_from(host.as_bytes()).is_ok()) {
        return Err(Error::invalid("Host"));
    }
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let chunked =
        encodings.next().is_none_or(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if !chunked || encodings.next().is_some() {
        return Err(Error::invalid("Transfer-Encoding: only chunked is known"));
    }
    Ok(())
}

/// What is refused before any handler looks at it.
fn check(request: &Request) -> Result<()> {
    let encodings = request.headers().get_all(header::CONTENT_ENCODING);
    if encodings.iter().any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Error::unsupported_media("bodies are taken without Content-Encoding"));
    }
    let query = request.uri().query().unwrap_or_default();
    let names = query.split('&').map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name));
    for name in names {
        if QUERY_SECRETS.iter().any(|secret| name.eq_ignore_ascii_case(secret)) {
            return Err(Error::invalid("secrets are not taken from a URL; use the Authorization header"));
        }
    }
    Ok(())
}

/// Gives answers that axum or hyper made by themselves a problem body.
async fn as_problem(response: Response) -> Response {
    let status = response.status();
    let is_problem = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == MEDIA_TYPE);
    if is_problem || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (parts, body) = response.into_parts();
    let text = axum::body::to_bytes(body, PLAIN_BYTES_MAX).await.unwrap_or_default();
    let detail = String::from_utf8_lossy(&text).into_owned();
    let kind = match status.as_u16() {
        401 => ErrorKind::Unauthenticated,
        403 => ErrorKind::Forbidden,
        404 => ErrorKind::NotFound,
        405 => ErrorKind::MethodNotAllowed,
        408 => ErrorKind::TimedOut,
        413 => ErrorKind::TooLarge,
        415 => ErrorKind::UnsupportedMedia,
        416 => ErrorKind::OutOfRange,
        400..500 => ErrorKind::Invalid,
        503 => ErrorKind::Unavailable,
        _ => {
            log::error!("request {}: {status}: {detail:?}", super::problem::request_id());
            ErrorKind::Internal
        }
    };
    let mut body = problem::Problem::from(&Error::new(kind, detail));
    body.request_id = Some(super::problem::request_id());
    let mut response = respond(&body);
    if let Some(allow) = parts.headers.get(header::ALLOW) {
        response.headers_mut().insert(header::ALLOW, allow.clone());
    }
    response
}
