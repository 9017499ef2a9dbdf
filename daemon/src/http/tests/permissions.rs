//! Who may do what: without a login, as a user, as an admin.

use std::collections::BTreeSet;

use axum::http::Method;
use serde_json::{Value, json};

use super::{PASSWORD, Server};

/// What only admins may ask for; everything else that needs a login is for every user.
const FOR_ADMINS: &[&str] = &[
    "POST /register",
    "GET /v1/users",
    "GET /v1/users/{name}",
    "PATCH /v1/users/{name}",
    "DELETE /v1/users/{name}",
    "POST /v1/volumes",
    "PATCH /v1/volumes/{name}",
    "DELETE /v1/volumes/{name}",
    "GET /v1/volumes/{name}/grants",
    "PUT /v1/volumes/{name}/grants/{username}",
    "DELETE /v1/volumes/{name}/grants/{username}",
    "GET /admin/system",
    "GET /admin/system/nodes",
    "POST /admin/system/fail-node/{node_id}",
    "POST /admin/system/repair-node/{node_id}",
    "GET /v1/jobs",
    "POST /v1/jobs",
    "GET /v1/jobs/{job_id}",
    "DELETE /v1/jobs/{job_id}",
    "POST /v1/jobs/{job_id}/cancel",
    "GET /v1/sessions",
    "GET /metrics",
    "GET /v1/keys",
    "POST /v1/keys",
    "DELETE /v1/keys/{key_id}",
    "GET /v1/audit",
    "GET /v1/audit/verify",
];
const FOR_ALL: &[&str] =
    &["POST /login", "GET /healthz", "GET /readyz", "GET /openapi.json", "GET /docs", "GET /docs/errors"];

/// Every operation of the document: method, path with its parameters filled in, and its name.
fn operations(document: &Value) -> Vec<(Method, String, String)> {
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let mut filled = path.clone();
            while let (Some(from), Some(to)) = (filled.find('{'), filled.find('}')) {
                filled.replace_range(from..=to, "1");
            }
            operations.push((method.clone(), filled, format!("{method} {path}")));
        }
    }
    operations
}

#[tokio::test]
async fn every_operation_asks_who_is_there_and_what_they_may_do() {
    let server = Server::start().await;
    let (admin, alice) = server.users().await;
    let body = json!({"username": "gone", "password": PASSWORD});
    server.call(Method::POST, "/register", &admin, Some(body)).await;
    let gone = server.login("gone", PASSWORD).await;
    assert_eq!(server.call(Method::DELETE, "/v1/users/gone", &admin, None).await.status, 204);

    let operations = operations(&server.document().await);
    let names: BTreeSet<&str> = operations.iter().map(|(_, _, name)| name.as_str()).collect();
    for name in FOR_ADMINS.iter().chain(FOR_ALL) {
        assert!(names.contains(name), "{name} is not in the document");
    }
    for (method, path, name) in &operations {
        if FOR_ALL.contains(&name.as_str()) {
            continue;
        }
        for token in ["", "rubbish", "tfs_rubbish", gone.as_str()] {
            let answer = server.call(method.clone(), path, token, None).await;
            assert_eq!(answer.status, 401, "{name} with {token:?}");
            if *method != Method::HEAD {
                assert_eq!(answer.problem(), "unauthenticated");
            }
        }
        let for_admins = FOR_ADMINS.contains(&name.as_str());
        if for_admins {
            let answer = server.call(method.clone(), path, &alice, None).await;
            assert_eq!(answer.status, 403, "{name}");
            assert_eq!(answer.problem(), "forbidden");
        } else if !name.contains("/v1/logout") {
            let answer = server.call(method.clone(), path, &alice, None).await;
            assert!(answer.status != 401 && answer.status != 403, "{name}: {}", answer.status);
        }
        assert!(for_admins || !name.contains("/admin/"), "{name} has no row");
    }
}

#[tokio::test]
async fn a_user_changes_the_own_password_and_nobody_elses() {
    let server = Server::start().await;
    let (admin, alice) = server.users().await;
    let api = server.call(Method::POST, "/v1/tokens", &alice, Some(json!({"name": "ci"}))).await;
    assert_eq!(api.status, 201);
    let api = api.json()["token"].as_str().unwrap().to_owned();
    assert_eq!(server.call(Method::GET, "/v1/me", &api, None).await.json()["username"], "alice");
    let wrong = json!({"current": "no such password", "new": "another password"});
    assert_eq!(server.call(Method::POST, "/v1/me/password", &api, Some(wrong)).await.status, 403);
    for path in ["/v1/tokens?user=admin", "/v1/tokens?user=nosuch"] {
        assert_eq!(server.call(Method::GET, path, &alice, None).await.status, 403);
    }
    let seen = server.call(Method::GET, "/v1/tokens?user=alice", &admin, None).await.json();
    assert_eq!(seen["tokens"][0]["name"], "ci");
    assert!(!seen.to_string().contains(&api));
    let right = json!({"current": PASSWORD, "new": "another password"});
    assert_eq!(server.call(Method::POST, "/v1/me/password", &alice, Some(right)).await.status, 204);
    for token in [&alice, &api] {
        assert_eq!(server.call(Method::GET, "/v1/me", token, None).await.status, 401);
    }
    let again = server.login("alice", "another password").await;
    assert_eq!(server.call(Method::POST, "/v1/logout", &again, None).await.status, 204);
    assert_eq!(server.call(Method::GET, "/v1/me", &again, None).await.status, 401);
}
