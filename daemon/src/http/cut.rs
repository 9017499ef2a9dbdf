//! Streams that end with the token that they were begun with: the body of an upload, a download, events.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use axum::body::{Body, BodyDataStream, Bytes};
use axum::response::Response;
use futures::{FutureExt as _, Stream, StreamExt as _};
use tandemfs::Error;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::accounts::Visit;

/// Where a request's visit is put when its token has been looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Place(Arc<OnceLock<Visit>>);

impl Place {
    /// Keeps the visit for as long as the request or its answer has not ended.
    pub(super) fn take(&self, visit: Visit) {
        // A handler that names two extractors of the caller: the first visit will do.
        let _second = self.0.set(visit);
    }

    /// Whether the request's token has been ended.
    pub(super) fn is_cut(&self) -> bool {
        self.0.get().is_some_and(Visit::is_cut)
    }
}

/// A body that fails when the token of its request is ended.
pub(super) struct Cut {
    body: BodyDataStream,
    place: Place,
    end: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Cut {
    pub(super) fn new(body: Body, place: Place) -> Self {
        Self { body: body.into_data_stream(), place, end: None }
    }
}

impl Stream for Cut {
    type Item = Result<Bytes, axum::BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let (None, Some(visit)) = (&this.end, this.place.0.get()) {
            this.end = Some(Box::pin(visit.cut()));
        }
        if this.end.as_mut().is_some_and(|end| end.poll_unpin(cx).is_ready()) {
            return Poll::Ready(Some(Err(ended().into())));
        }
        this.body.poll_next_unpin(cx).map_err(axum::BoxError::from)
    }
}

/// What is said of a token that was ended while its request was under way.
pub(super) fn ended() -> Error {
    Error::unauthenticated("the token was ended while the request was under way")
}

/// Has an answer end with the token of its request, if it streams. One that is whole already is given as it is: it may be that
/// of the very request that ended the token.
pub(super) fn answer(response: Response, place: Place) -> Response {
    if http_body::Body::size_hint(response.body()).exact().is_some() {
        return response;
    }
    response.map(|body| Body::from_stream(Cut::new(body, place)))
}
