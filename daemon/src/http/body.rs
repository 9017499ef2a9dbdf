//! The body of a request as it comes in: whether it comes fast enough, and whether all of it has been read.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use futures::{FutureExt as _, Stream, StreamExt as _};
use tokio::time::{Instant, Sleep};

use super::cut::{Cut, Place};

/// So many bytes must come within the idle time, or the end of the body.
const PROGRESS_BYTES: usize = 16 << 10;

/// What has become of a request's body.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<State>);

#[derive(Debug, Default)]
struct State {
    stalled: AtomicBool,
    unread: AtomicBool,
}

impl Progress {
    /// Of a request that nobody has begun to read.
    pub(super) fn of(request: &Request) -> Self {
        let progress = Self::default();
        let unread = !http_body::Body::is_end_stream(request.body());
        progress.0.unread.store(unread, Ordering::Relaxed);
        progress
    }

    /// It came too slowly.
    pub(super) fn is_stalled(&self) -> bool {
        self.0.stalled.load(Ordering::Relaxed)
    }

    /// Some of it has not been read.
    pub(super) fn is_unread(&self) -> bool {
        self.0.unread.load(Ordering::Relaxed)
    }
}

/// Has a request's body fail when it comes too slowly, or its token is ended.
pub(super) fn watch(request: Request, idle: Duration, progress: &Progress, place: &Place) -> Request {
    let (parts, body) = request.into_parts();
    if http_body::Body::is_end_stream(&body) {
        return Request::from_parts(parts, body);
    }
    let size = http_body::Body::size_hint(&body);
    let watched = Watched {
        body: Cut::new(body, place.clone()),
        idle,
        left: idle,
        fresh: 0,
        waiting: None,
        progress: progress.clone(),
        left_over: size.exact(),
    };
    Request::from_parts(parts, Body::new(Sized { size, body: Body::from_stream(watched) }))
}

/// A body that fails when the other side sends too slowly. Only the time for which the daemon waits counts.
struct Watched {
    body: Cut,
    idle: Duration,
    /// What is left of the time for the next [`PROGRESS_BYTES`].
    left: Duration,
    /// Bytes since the time was last filled up.
    fresh: usize,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
    progress: Progress,
    /// Bytes that have not come, if it is known how many there are.
    left_over: Option<u64>,
}

impl Stream for Watched {
    type Item = Result<Bytes, axum::BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        match this.body.poll_next_unpin(cx) {
            Poll::Ready(Some(Ok(bytes))) => {
                if let Some((since, _)) = this.waiting.take() {
                    this.left = this.left.saturating_sub(since.elapsed());
                }
                this.left_over = this.left_over.map(|left| left.saturating_sub(bytes.len() as u64));
                if this.left_over == Some(0) {
                    this.progress.0.unread.store(false, Ordering::Relaxed);
                }
                this.fresh += bytes.len();
                if this.fresh >= PROGRESS_BYTES {
                    this.fresh = 0;
                    this.left = this.idle;
                }
                Poll::Ready(Some(Ok(bytes)))
            }
            Poll::Ready(None) => {
                this.progress.0.unread.store(false, Ordering::Relaxed);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
            Poll::Pending => {
                let left = this.left;
                let (_, timer) =
                    this.waiting.get_or_insert_with(|| (Instant::now(), Box::pin(tokio::time::sleep(left))));
                if timer.as_mut().poll_unpin(cx).is_ready() {
                    this.progress.0.stalled.store(true, Ordering::Relaxed);
                    return Poll::Ready(Some(Err("the body came too slowly".into())));
                }
                Poll::Pending
            }
        }
    }
}

/// A body that still knows how long it said it would be, so that one that is too long is refused before it is read.
struct Sized {
    size: http_body::SizeHint,
    body: Body,
}

impl http_body::Body for Sized {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.size
    }
}
