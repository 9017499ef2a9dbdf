//! The description of the API, and a page to read it.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Extension;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{Html, IntoResponse};
use serde_json::Value;
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::daemon::App;

/// What the handlers do not say.
#[derive(Debug, OpenApi)]
#[openapi(
    info(title = "TandemFS", description = "Replicated file storage that you mount as a Linux directory."),
    // What only records refer to is not found from the handlers.
    components(schemas(
        tandemfs::tree::Chunk,
        tandemfs::tree::Entry,
        tandemfs::tree::Extent,
        tandemfs::tree::Inode,
        tandemfs::tree::Usage
    )),
    security(("bearer" = []))
)]
pub(super) struct Base;

/// The finished documents.
#[derive(Debug)]
pub(super) struct Documents {
    json: String,
    html: String,
}

impl Documents {
    pub(super) fn new(mut api: utoipa::openapi::OpenApi) -> Self {
        let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        api.components.get_or_insert_default().add_security_scheme("bearer", bearer);
        let mut api = serde_json::to_value(&api).unwrap_or_default();
        describe(&mut api);
        Self { json: api.to_string(), html: page(&api) }
    }
}

/// Gives every answer a description, which OpenAPI 3.1 asks for: the name of its status where the handler has no other.
fn describe(api: &mut Value) {
    let paths = api["paths"].as_object_mut().into_iter().flatten();
    let operations = paths.flat_map(|(_, path)| path.as_object_mut().into_iter().flatten());
    let answers =
        operations.flat_map(|(_, operation)| operation["responses"].as_object_mut().into_iter().flatten());
    for (status, answer) in answers {
        let name =
            StatusCode::from_bytes(status.as_bytes()).ok().and_then(|status| status.canonical_reason());
        if let (Some(name), Some(answer)) = (name, answer.as_object_mut()) {
            answer.entry("description").or_insert_with(|| name.into());
        }
    }
}

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(openapi)).routes(routes!(docs)).routes(routes!(errors))
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "documentation", security(()), responses((status = 200, body = Value)))]
async fn openapi(Extension(documents): Extension<Arc<Documents>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], documents.json.clone())
}

/// This description, to read.
#[utoipa::path(get, path = "/docs", tag = "documentation", security(()),
    responses((status = 200, body = String, content_type = "text/html")))]
async fn docs(Extension(documents): Extension<Arc<Documents>>) -> impl IntoResponse {
    let policy = format!(
        "default-src 'none'; style-src '{STYLE_HASH}'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    );
    ([(CONTENT_SECURITY_POLICY, policy)], Html(documents.html.clone()))
}

/// This description, at the place that problem bodies refer to.
#[utoipa::path(get, path = "/docs/errors", tag = "documentation", security(()),
    responses((status = 200, body = String, content_type = "text/html")))]
async fn errors(documents: Extension<Arc<Documents>>) -> impl IntoResponse {
    docs(documents).await
}

const STYLE: &str = include_str!("docs.css");
/// The SHA-256 of [`STYLE`] in Base64, by which the policy lets it in. A test compares them.
const STYLE_HASH: &str = "sha256-H429VVPFuMAEq03gd8A9UFFF4VrIQRV4PmwXEXe/51o=";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn page(api: &Value) -> String {
    let text = |value: &Value| escape(value.as_str().unwrap_or_default());
    let mut body = String::new();
    for (path, methods) in api["paths"].as_object().into_iter().flatten() {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            let open = operation["security"]
                .as_array()
                .is_some_and(|any| any.iter().any(|one| one == &serde_json::json!({})));
            let _ = writeln!(
                body,
                "<section><h2><b>{}</b> {}</h2><p>{} {}{}</p>",
                escape(&method.to_uppercase()),
                escape(path),
                text(&operation["summary"]),
                text(&operation["description"]),
                if open { " <i>No login needed.</i>" } else { "" }
            );
            let parameters = operation["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
            for parameter in parameters {
                let _ = writeln!(
                    body,
                    "<p><code>{}</code> in {}: {}</p>",
                    text(&parameter["name"]),
                    text(&parameter["in"]),
                    text(&parameter["description"])
                );
            }
            if let Some(content) = operation["requestBody"]["content"].as_object() {
                for (kind, what) in content {
                    let _ = writeln!(
                        body,
                        "<p>Body: <code>{}</code> {}</p>",
                        escape(kind),
                        type_name(&what["schema"])
                    );
                }
            }
            for (status, answer) in operation["responses"].as_object().into_iter().flatten() {
                let kinds = answer["content"].as_object().into_iter().flatten();
                let kinds: Vec<_> = kinds.map(|(_, what)| type_name(&what["schema"])).collect();
                let _ = writeln!(
                    body,
                    "<p>{}: {} {}</p>",
                    escape(status),
                    text(&answer["description"]),
                    kinds.join(", ")
                );
            }
            body.push_str("</section>\n");
        }
    }
    let mut types = String::new();
    for (name, schema) in api["components"]["schemas"].as_object().into_iter().flatten() {
        let _ = writeln!(
            types,
            "<section id=\"{0}\"><h2>{0}</h2><p>{1}</p>",
            escape(name),
            text(&schema["description"])
        );
        for (field, what) in schema["properties"].as_object().into_iter().flatten() {
            let _ = writeln!(
                types,
                "<p><code>{}</code> {} {}</p>",
                escape(field),
                type_name(what),
                text(&what["description"])
            );
        }
        types.push_str("</section>\n");
    }
    let mut errors = String::new();
    for kind in tandemfs::ErrorKind::ALL {
        let _ = writeln!(
            errors,
            "<p id=\"{0}\"><code>{0}</code> {1}: {2}</p>",
            kind.code(),
            kind.http_status(),
            escape(kind.title())
        );
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>TandemFS API</title>\
         <style>{STYLE}</style></head><body><h1>TandemFS API</h1>\
         <p>The same for programs: <a href=\"/openapi.json\">openapi.json</a>.</p>\n{body}<h1>Types</h1>\n{types}\
         <h1>Errors</h1>\n{errors}</body></html>\n"
    )
}

/// A type, linked where it is described on the page.
fn type_name(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()) {
        return format!("<a href=\"#{0}\">{0}</a>", escape(name));
    }
    match &schema["type"] {
        Value::String(name) if name == "array" => format!("list of {}", type_name(&schema["items"])),
        Value::String(name) => escape(name),
        Value::Array(names) => {
            names.iter().filter_map(Value::as_str).map(escape).collect::<Vec<_>>().join(" or ")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::{STYLE, STYLE_HASH};
    use base64::Engine as _;
    use sha2::Digest as _;

    #[test]
    fn the_policy_lets_in_this_very_style() {
        let hash = base64::engine::general_purpose::STANDARD.encode(sha2::Sha256::digest(STYLE));
        assert_eq!(STYLE_HASH, format!("sha256-{hash}"));
    }
}
