//! A request that is answered before all of its body has come: what still comes is taken and thrown away for a while before the answer is
//! given. A connection that is closed with bytes unread is reset, and the client may lose the answer with it (RFC 9112, section 9.6).

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::Version;
use axum::http::header::EXPECT;
use axum::middleware::Next;
use axum::response::Response;
use futures::StreamExt as _;
use http_body::{Frame, SizeHint};
use tokio::time::timeout;

/// So many bytes are thrown away, and more or less what is on its way with them.
const BYTES_MAX: usize = 8 << 20;
/// For so long.
const TIME_MAX: Duration = Duration::from_secs(2);

/// A layer outside of all that may refuse a request.
pub(super) async fn apply(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    // HTTP/2 ends a stream and not its connection.
    if body.is_end_stream() || parts.version > Version::HTTP_11 {
        return next.run(Request::from_parts(parts, body)).await;
    }
    let rest = Rest::default();
    // Who asks for leave to send is told by the answer not to.
    let comes = !parts.headers.contains_key(EXPECT);
    let lent = Lent { body: Some(body), comes, rest: rest.clone() };
    let response = next.run(Request::from_parts(parts, Body::new(lent))).await;
    if let Some(body) = rest.take() {
        // What more there is must end with the connection.
        let _late = timeout(TIME_MAX, throw_away(body)).await;
    }
    response
}

async fn throw_away(body: Body) {
    let mut left = BYTES_MAX;
    let mut stream = body.into_data_stream();
    while let Some(Ok(data)) = stream.next().await {
        left = left.saturating_sub(data.len());
        if left == 0 {
            return;
        }
    }
}

/// Where a body is put that was not read to its end.
#[derive(Clone, Default)]
struct Rest(Arc<Mutex<Option<Body>>>);

impl Rest {
    fn take(&self) -> Option<Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A body that comes back when it is dropped before its end.
struct Lent {
    body: Option<Body>,
    /// The client sends it, or will.
    comes: bool,
    rest: Rest,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.comes = true;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.comes && !self.is_end_stream() {
            *self.rest.0.lock().unwrap_or_else(PoisonError::into_inner) = self.body.take();
        }
    }
}
