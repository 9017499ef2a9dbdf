//! Changes that are made to their end, also when the client goes away in the middle: a connection that breaks must not leave a
//! user half disabled, or a change out of the audit log.

use std::future::Future;

use tandemfs::{Error, Result};

use super::problem::{REQUEST_ID, request_id};

/// Does the work in a task of its own and gives its result.
///
/// # Errors
/// Those of the work; `Internal` if it panicked.
pub(super) async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(REQUEST_ID.scope(request_id(), work))
        .await
        .map_err(|error| Error::internal("a change was not made to its end").because(error))?
}
