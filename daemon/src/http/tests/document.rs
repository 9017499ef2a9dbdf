//! The OpenAPI document has every route, and the page for people shows it.

use std::collections::BTreeSet;

use axum::http::Method;

use super::Server;

#[test]
fn every_route_is_in_the_document() {
    // Routes come only from `routes!`, which puts them there; `route` and `nest` would not.
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http");
    for file in std::fs::read_dir(sources).unwrap().map(|entry| entry.unwrap().path()) {
        let is_source = file.extension().is_some_and(|end| end == "rs");
        let text = if is_source { std::fs::read_to_string(&file).unwrap() } else { continue };
        for call in [".route(", ".route_service(", ".nest(", ".nest_service(", ".fallback_service("] {
            assert!(!text.contains(call), "{} calls {call}", file.display());
        }
    }
}

#[tokio::test]
async fn the_document_is_whole_and_the_page_shows_it() {
    let server = Server::start().await;
    let document = server.document().await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let text = document.to_string();
    let references = text.split("\"$ref\":\"#/components/schemas/").skip(1);
    let missing: BTreeSet<_> = references
        .map(|reference| reference.split('"').next().unwrap())
        .filter(|name| !document["components"]["schemas"][*name].is_object())
        .collect();
    assert!(missing.is_empty(), "referred to and not there: {missing:?}");
    for path in ["/docs", "/docs/errors"] {
        let page = server.call(Method::GET, path, "", None).await;
        assert!(
            page.headers["content-security-policy"]
                .to_str()
                .unwrap()
                .starts_with("default-src 'none'; style-src 'sha256-")
        );
        let page = String::from_utf8(page.body).unwrap();
        assert!(
            page.contains("/admin/system/repair-node/{node_id}") && page.contains("id=\"quota_exceeded\"")
        );
        assert!(!page.contains("<script") && !page.contains("://"), "nothing from elsewhere");
    }
}
