//! The mount's part of the API, under `/fs/v1`.

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{CONTENT_RANGE, CONTENT_TYPE, RANGE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::Serialize;
use tandemfs::api::LAST_EVENT;
use tandemfs::api::fs::{
    Ack, Batch, BatchReply, DelegationReply, DelegationRequest, Event, InodeRange, OpenSession, Read,
    ReadBlocks, ReadBlocksReply, ReadReply, ResumeSession, SessionGrant,
};
use tandemfs::api::locks::{LockReply, LockRequest};
use tandemfs::id::{BlockId, SessionId};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Uncounted;
use super::wire::{Accepts, BlockBody, Wire};
use super::{Path, Problem, Problems};
use crate::accounts::Caller;
use crate::daemon::App;
use crate::volumes::files::{RangeAnswer, range_of};

/// The largest body of a batch, a read, a claim of locks or a return of delegations, in bytes.
const BATCH_BYTES_MAX: usize = 16 << 20;

pub(super) fn routes() -> OpenApiRouter<App> {
    let large = OpenApiRouter::new()
        .routes(routes!(batch))
        .routes(routes!(read))
        .routes(routes!(lock))
        .routes(routes!(delegation))
        .layer(DefaultBodyLimit::max(BATCH_BYTES_MAX));
    OpenApiRouter::new()
        .routes(routes!(open))
        .routes(routes!(close))
        .routes(routes!(resume))
        .routes(routes!(events))
        .routes(routes!(acknowledge))
        .routes(routes!(inodes))
        .routes(routes!(put_block, get_block))
        .routes(routes!(read_blocks))
        .merge(large)
}

/// Answers a session, and says what it was told before.
fn answer<T: Serialize>(app: &App, session: u64, accepts: Accepts, reply: tandemfs::Result<T>) -> Response {
    let answer = reply.map_err(Problem::from).and_then(|reply| accepts.answer(&reply));
    let mut answer = answer.unwrap_or_else(IntoResponse::into_response);
    // Now, for it must count all that the reply shows.
    if let Some(number) = app.sessions.last_event(SessionId(session))
        && let Ok(value) = HeaderValue::try_from(format!("{session}.{number}"))
    {
        answer.headers_mut().insert(LAST_EVENT, value);
    }
    answer
}

/// Open a session on a volume.
#[utoipa::path(post, path = "/fs/v1/sessions", tag = "mount",
    request_body(content((OpenSession = "application/json"), (OpenSession = "application/vnd.msgpack"))),
    responses((status = 201, content((SessionGrant = "application/json"), (SessionGrant = "application/vnd.msgpack"))), Problems))]
async fn open(
    State(app): State<App>,
    caller: Caller,
    accepts: Accepts,
    Wire(open): Wire<OpenSession>,
) -> Result<impl IntoResponse, Problem> {
    let grant = app.sessions.start(&caller, open).await?;
    Ok((StatusCode::CREATED, accepts.answer(&grant)?))
}

/// Take a session up again.
#[utoipa::path(post, path = "/fs/v1/sessions/{session}/resume", tag = "mount", params(("session" = u64, Path,)),
    request_body(content((ResumeSession = "application/json"), (ResumeSession = "application/vnd.msgpack"))),
    responses((status = 200, content((SessionGrant = "application/json"), (SessionGrant = "application/vnd.msgpack"))), Problems))]
async fn resume(
    State(app): State<App>,
    caller: Caller,
    accepts: Accepts,
    Path(session): Path<u64>,
    Wire(resume): Wire<ResumeSession>,
) -> Result<Response, Problem> {
    accepts.answer(&app.sessions.resume(&caller, SessionId(session), &resume).await?)
}

/// End a session.
#[utoipa::path(delete, path = "/fs/v1/sessions/{session}", tag = "mount", params(("session" = u64, Path,)),
    responses((status = 204), Problems))]
async fn close(
    State(app): State<App>,
    Uncounted(caller): Uncounted,
    Path(session): Path<u64>,
) -> Result<StatusCode, Problem> {
    app.sessions.close(&caller, SessionId(session)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Follow what others change: one JSON document a line.
#[utoipa::path(get, path = "/fs/v1/sessions/{session}/events", tag = "mount", params(("session" = u64, Path,)),
    responses((status = 200, body = Event, content_type = "application/x-ndjson"), Problems))]
async fn events(
    State(app): State<App>,
    caller: Caller,
    Path(session): Path<u64>,
) -> Result<Response, Problem> {
    let events = app.sessions.events(&caller, SessionId(session)).await?;
    let lines = events.map(|event| {
        serde_json::to_vec(&event).map(|mut line| {
            line.push(b'\n');
            Bytes::from(line)
        })
    });
    let stopping = app.stopping.clone().cancelled_owned();
    let body = Body::from_stream(lines.take_until(stopping));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// Acknowledge events.
#[utoipa::path(post, path = "/fs/v1/sessions/{session}/acks", tag = "mount", params(("session" = u64, Path,)),
    request_body(content((Ack = "application/json"), (Ack = "application/vnd.msgpack"))),
    responses((status = 204), Problems))]
async fn acknowledge(
    State(app): State<App>,
    Uncounted(caller): Uncounted,
    Path(session): Path<u64>,
    Wire(ack): Wire<Ack>,
) -> Result<StatusCode, Problem> {
    app.sessions.acknowledge(&caller, SessionId(session), &ack).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Commit a batch of mutations.
#[utoipa::path(post, path = "/fs/v1/sessions/{session}/batches", tag = "mount", params(("session" = u64, Path,)),
    request_body(content((Batch = "application/json"), (Batch = "application/vnd.msgpack"))),
    responses((status = 200, content((BatchReply = "application/json"), (BatchReply = "application/vnd.msgpack"))), Problems))]
async fn batch(
    State(app): State<App>,
    caller: Caller,
    accepts: Accepts,
    Path(session): Path<u64>,
    Wire(batch): Wire<Batch>,
) -> Response {
    let reply = app.sessions.batch(&caller, SessionId(session), batch).await;
    answer(&app, session, accepts, reply)
}

/// Read records.
#[utoipa::path(post, path = "/fs/v1/sessions/{session}/reads", tag = "mount", params(("session" = u64, Path,)),
    request_body(content((Read = "application/json"), (Read = "application/vnd.msgpack"))),
    responses((status = 200, content((ReadReply = "application/json"), (ReadReply = "application/vnd.msgpack"))), Problems))]
async fn read(
    State(app): State<App>,
    caller: Caller,
    accepts: Accepts,
    Path(session): Path<u64>,
    Wire(read): Wire<Read>,
) -> Response {
    let reply = app.sessions.read(&caller, SessionId(session), &read).await;
    answer(&app, session, accepts, reply)
}

/// Take or return write delegations.
#[utoipa::path(post, path = "/fs/v1/sessions/{session}/delegations", tag = "mount", params(("session" = u64, Path,)),
    request_body(content((DelegationRequest = "application/json"), (DelegationRequest = "application/vnd.msgpack"))),
    responses((status = 200, content((DelegationReply = "application/json"), (DelegationReply = "application/vnd.msgpack"))), Problems))]
async fn delegation(
    State(app): State<App>,
    caller: Caller,
    accepts: Accepts,
    Path(session): Path<u64>,
    Wire(request): Wire<DelegationRequest>,
) -> Response {
    let reply = app.sessions.delegation(&caller, SessionId(session), &request).await;
    answer(&app, session, accepts, reply)
}

/// Test, set, wait for, or release locks.
#[utoipa::path(post, path = "/fs/v1/sessions/{session}/locks", tag = "mount", params(("session" = u64, Path,)),
    request_body(content((LockRequest = "application/json"), (LockRequest = "application/vnd.msgpack"))),
    responses((status = 200, content((LockReply = "application/json"), (LockReply = "application/vnd.msgpack"))), Problems))]
async fn lock(
    State(app): State<App>,
    caller: Caller,
    accepts: Accepts,
    Path(session): Path<u64>,
    Wire(request): Wire<LockRequest>,
) -> Result<Response, Problem> {
    tokio::select! {
        reply = app.sessions.lock(&caller, SessionId(session), request) => accepts.answer(&reply?),
        () = app.stopping.cancelled() => Err(tandemfs::Error::unavailable("the daemon is stopping").into()),
    }
}

/// Get inode numbers.
#[utoipa::path(post, path = "/fs/v1/sessions/{session}/inodes", tag = "mount", params(("session" = u64, Path,)),
    responses((status = 200, content((InodeRange = "application/json"), (InodeRange = "application/vnd.msgpack"))), Problems))]
async fn inodes(
    State(app): State<App>,
    caller: Caller,
    accepts: Accepts,
    Path(session): Path<u64>,
) -> Result<Response, Problem> {
    accepts.answer(&app.sessions.inodes(&caller, SessionId(session)).await?)
}

/// Store a block.
#[utoipa::path(put, path = "/fs/v1/sessions/{session}/blocks/{block}", tag = "mount", params(("session" = u64, Path,), ("block" = String, Path, description = "64 hexadecimal digits")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204), Problems))]
async fn put_block(
    State(app): State<App>,
    caller: Caller,
    Path((session, block)): Path<(u64, String)>,
    BlockBody(data): BlockBody,
) -> Result<StatusCode, Problem> {
    let block: BlockId = block.parse()?;
    app.sessions.put_block(&caller, SessionId(session), block, data).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Read small blocks.
#[utoipa::path(post, path = "/fs/v1/sessions/{session}/blocks", tag = "mount", params(("session" = u64, Path,)),
    request_body(content((ReadBlocks = "application/json"), (ReadBlocks = "application/vnd.msgpack"))),
    responses((status = 200, content((ReadBlocksReply = "application/json"), (ReadBlocksReply = "application/vnd.msgpack"))), Problems))]
async fn read_blocks(
    State(app): State<App>,
    caller: Caller,
    accepts: Accepts,
    Path(session): Path<u64>,
    Wire(wanted): Wire<ReadBlocks>,
) -> Result<Response, Problem> {
    accepts.answer(&app.sessions.get_blocks(&caller, SessionId(session), &wanted).await?)
}

/// Read a block.
#[utoipa::path(get, path = "/fs/v1/sessions/{session}/blocks/{block}", tag = "mount", params(("session" = u64, Path,), ("block" = String, Path, description = "64 hexadecimal digits")),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream", description = "The block"),
        (status = 206, body = Vec<u8>, content_type = "application/octet-stream", description = "The range of it"), Problems))]
async fn get_block(
    State(app): State<App>,
    caller: Caller,
    Path((session, block)): Path<(u64, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (session, block) = (SessionId(session), block.parse::<BlockId>()?);
    let range = headers.get(RANGE).and_then(|range| range.to_str().ok());
    let size = app.sessions.block_size(&caller, session, block).await?;
    match range_of(range, None, "", u64::from(size)) {
        RangeAnswer::Whole => {
            let data = app.sessions.get_block(&caller, session, block, 0..size).await?;
            Ok(([(CONTENT_TYPE, "application/octet-stream")], data).into_response())
        }
        RangeAnswer::Part(part) => {
            // The range was cut at the block's size, so it fits.
            let part = part.start as u32..part.end as u32;
            let data = app.sessions.get_block(&caller, session, block, part.clone()).await?;
            let range = format!("bytes {}-{}/{size}", part.start, part.end - 1);
            let headers = [(CONTENT_TYPE, "application/octet-stream".to_owned()), (CONTENT_RANGE, range)];
            Ok((StatusCode::PARTIAL_CONTENT, headers, data).into_response())
        }
        RangeAnswer::Unsatisfiable => {
            Err(tandemfs::Error::out_of_range(format!("the block has {size} bytes")).into())
        }
    }
}
