//! Uploads, listings, downloads: the caller's home volume as a flat set of files.

use axum::body::Body;
use axum::extract::multipart::{Field, Multipart, MultipartError, MultipartRejection};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderName, IF_MATCH, IF_NONE_MATCH, IF_RANGE,
    LAST_MODIFIED, LINK, LOCATION, RANGE,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use tandemfs::api::files::{File, FileDetail, FilePage, ListFiles, Storage};
use tandemfs::api::users::Role;
use tandemfs::name::{Name, PATH_MAX, split_path};
use tandemfs::{Error, Result};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::disposition::attachment;
use super::whole::whole;
use super::{Json, Path, Peer, Problem, Problems, Query};
use crate::accounts::Caller;
use crate::audit::outcome;
use crate::daemon::App;
use crate::volumes::files::{Preconditions, RangeAnswer, etag, range_of};

/// What a multipart body has beside the file, at most.
const OVERHEAD: u64 = 64 << 10;

/// The parts of an upload.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its description is used")]
struct UploadForm {
    /// Where to put it in the home volume; directories are made. If not given, the root, under the file's own name.
    path: Option<String>,
    /// The content. No part may come after it.
    #[schema(value_type = String, content_media_type = "application/octet-stream")]
    file: Vec<u8>,
}

pub(super) fn routes() -> OpenApiRouter<App> {
    // The limit of an upload is that of its file, which is counted as it comes.
    let upload = OpenApiRouter::new().routes(routes!(upload)).layer(DefaultBodyLimit::disable());
    OpenApiRouter::new()
        .merge(upload)
        .routes(routes!(list))
        .routes(routes!(stat, delete))
        .routes(routes!(download))
        .routes(routes!(storage))
}

/// Upload a file: a multipart body with the part `file` and, before it, perhaps the part `path`.
#[utoipa::path(post, path = "/upload", tag = "files",
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses((status = 201, body = File), Problems))]
async fn upload(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: Result<Multipart, MultipartRejection>,
) -> Result<impl IntoResponse, Problem> {
    let mut body = body.map_err(|rejection| Error::unsupported_media(rejection.body_text()))?;
    let length = header(&headers, CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if length.is_some_and(|length| length > app.volumes.max_file_size().saturating_add(OVERHEAD)) {
        return Err(Error::too_large(format!("a file may have {} bytes", app.volumes.max_file_size())).into());
    }
    let mut path = None;
    let mut made = None;
    while let Some(mut field) = body.next_field().await.map_err(broken)? {
        match field.name() {
            Some("path") if path.is_none() && made.is_none() => {
                path = Some(split_path(text(&mut field).await?)?)
            }
            Some("file") if made.is_none() => {
                let path = match path.take() {
                    Some(path) => path,
                    None => vec![file_name(&field)?],
                };
                let mut upload = app.volumes.upload(&caller, path, preconditions(&headers)).await?;
                while let Some(data) = field.chunk().await.map_err(broken)? {
                    upload.write(data).await?;
                }
                made = Some(upload);
            }
            _ => {
                return Err(
                    Error::invalid("the parts are `path`, if there is one, and `file` after it").into()
                );
            }
        }
    }
    // Only now is it sure that the body came to its end.
    let upload = made.ok_or_else(|| Error::invalid("there is no part `file`"))?;
    let file = upload.finish().await?;
    let location = format!("/files/{}", file.file_id);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(file)))
}

/// List files in the order of their paths.
#[utoipa::path(get, path = "/files", tag = "files", params(ListFiles),
    responses((status = 200, body = FilePage), Problems))]
async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(list): Query<ListFiles>,
) -> Result<Response, Problem> {
    let page = app.volumes.list(&caller, &list).await?;
    let mut headers = HeaderMap::new();
    if let Some(cursor) = &page.next_cursor {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("cursor", cursor);
        query.extend_pairs(list.limit.map(|limit| ("limit", limit.to_string())));
        query.extend_pairs(list.prefix.as_ref().map(|prefix| ("prefix", prefix)));
        let link = format!("</files?{}>; rel=\"next\"", query.finish());
        headers.extend(HeaderValue::try_from(link).ok().map(|link| (LINK, link)));
    }
    Ok((headers, Json(page)).into_response())
}

/// Show a file and where its blocks are.
#[utoipa::path(get, path = "/files/{file_id}", tag = "files", params(("file_id" = String, Path,)),
    responses((status = 200, body = FileDetail), Problems))]
async fn stat(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<FileDetail>, Problem> {
    Ok(Json(app.volumes.stat(&caller, &id).await?))
}

/// Delete a file, with all its links.
#[utoipa::path(delete, path = "/files/{file_id}", tag = "files", params(("file_id" = String, Path,)),
    responses((status = 204), Problems))]
async fn delete(
    State(app): State<App>,
    caller: Caller,
    Peer(from): Peer,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let preconditions = preconditions(&headers);
    whole(async move {
        let result = app.volumes.delete(&caller, &id, &preconditions).await;
        if caller.role == Role::Admin {
            app.audit.note(&caller.username, "delete file", &id, Some(from), outcome(&result)).await;
        }
        result
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Download a file, or a range of it.
#[utoipa::path(get, path = "/download/{file_id}", tag = "files", params(("file_id" = String, Path,)),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream", description = "The file"),
        (status = 206, body = Vec<u8>, content_type = "application/octet-stream", description = "The range of it"),
        (status = 304, description = "What `If-None-Match` names is still the file"), Problems))]
async fn download(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let found = app.volumes.download(&caller, &id).await?;
    let (tag, size) = (etag(&found.inode), found.inode.size);
    let preconditions = preconditions(&headers);
    preconditions.check_read(&tag)?;
    let mut answer = HeaderMap::new();
    let mut put =
        |name, value: String| answer.extend(HeaderValue::try_from(value).ok().map(|value| (name, value)));
    put(ETAG, tag.clone());
    put(CACHE_CONTROL, "private, no-store".to_owned());
    put(LAST_MODIFIED, http_date(found.inode.mtime.to_system()));
    if preconditions.is_not_modified(Some(&tag)) {
        return Ok((StatusCode::NOT_MODIFIED, answer).into_response());
    }
    let range = range_of(header(&headers, RANGE), header(&headers, IF_RANGE), &tag, size);
    let (status, range) = match range {
        RangeAnswer::Whole => (StatusCode::OK, 0..size),
        RangeAnswer::Part(range) => {
            put(CONTENT_RANGE, format!("bytes {}-{}/{size}", range.start, range.end - 1));
            (StatusCode::PARTIAL_CONTENT, range)
        }
        RangeAnswer::Unsatisfiable => {
            let problem = Problem(Error::out_of_range(format!("the file has {size} bytes")));
            return Ok(([(CONTENT_RANGE, format!("bytes */{size}"))], problem).into_response());
        }
    };
    put(ACCEPT_RANGES, "bytes".to_owned());
    put(CONTENT_LENGTH, (range.end - range.start).to_string());
    put(CONTENT_TYPE, "application/octet-stream".to_owned());
    put(
        CONTENT_DISPOSITION,
        attachment(found.inode.name.as_ref().map(Name::to_lossy).unwrap_or_default().as_str()),
    );
    put(CONTENT_SECURITY_POLICY, "sandbox; default-src 'none'".to_owned());
    put(HeaderName::from_static("x-content-type-options"), "nosniff".to_owned());
    let body = Body::from_stream(app.volumes.read(&found, range).await?);
    Ok((status, answer, body).into_response())
}

/// Show what the caller uses and may use.
#[utoipa::path(get, path = "/storage", tag = "files",
    responses((status = 200, body = Storage), Problems))]
async fn storage(State(app): State<App>, caller: Caller) -> Result<Json<Storage>, Problem> {
    Ok(Json(app.volumes.storage(&caller).await?))
}

fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn preconditions(headers: &HeaderMap) -> Preconditions {
    let all = |name| {
        let tags: Vec<&str> =
            headers.get_all(name).into_iter().filter_map(|tags| tags.to_str().ok()).collect();
        (!tags.is_empty()).then(|| tags.join(","))
    };
    Preconditions { if_match: all(IF_MATCH), if_none_match: all(IF_NONE_MATCH) }
}

/// A body that is not what it says it is, or ends too early.
fn broken(error: MultipartError) -> Error {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Error::too_large("the body"),
        _ => Error::invalid(format!("the multipart body: {}", error.body_text())),
    }
}

/// The bytes of a small part.
async fn text(field: &mut Field<'_>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(data) = field.chunk().await.map_err(broken)? {
        if bytes.len() + data.len() > PATH_MAX {
            return Err(Error::name_too_long("path of more than 4096 bytes"));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// The last component of the name that a client gives a file.
fn file_name(field: &Field<'_>) -> Result<Name> {
    let given = field.file_name().ok_or_else(|| Error::invalid("neither `path` nor a filename"))?;
    Name::new(given.rsplit(['/', '\\']).next().unwrap_or_default())
}

/// RFC 9110, section 5.6.7.
fn http_date(time: std::time::SystemTime) -> String {
    let stamp = jiff::Timestamp::try_from(time).unwrap_or_default();
    stamp.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}
