//! The state of the system, as admins, users and monitors see it.

use axum::http::Method;
use serde_json::json;

use super::Server;

#[tokio::test]
async fn admins_see_the_warning_and_the_system_and_others_do_not() {
    let server = Server::start().await;
    let (admin, alice) = server.users().await;
    let status = server.call(Method::GET, "/status", &admin, None).await.json();
    assert_eq!(status["status"], "healthy");
    assert_eq!(status["nodes"], json!({"total": 3, "healthy": 3, "failed": 0}));
    assert_eq!(status["warnings"].as_array().unwrap().len(), 1);
    assert!(server.call(Method::GET, "/status", &alice, None).await.json().get("warnings").is_none());
    let system = server.call(Method::GET, "/admin/system", &admin, None).await.json();
    assert_eq!(system["totals"]["users"], 2);
    assert_eq!(system["configuration"]["replicas"], 2);
    let quota = json!({"quota_bytes": 1000, "quota_files": 10});
    let changed = server.call(Method::PATCH, "/v1/users/alice", &admin, Some(quota)).await.json();
    assert_eq!((changed["quota_bytes"].as_u64(), changed["quota_files"].as_u64()), (Some(1000), Some(10)));

    let failed =
        server.call(Method::POST, "/admin/system/fail-node/2", &admin, Some(json!({"mode": "wipe"}))).await;
    assert_eq!((failed.status.as_u16(), failed.json()["state"].as_str()), (200, Some("failed")));
    let status = server.call(Method::GET, "/status", &alice, None).await.json();
    assert_eq!((status["status"].as_str(), status["nodes"]["failed"].as_u64()), (Some("degraded"), Some(1)));
    let started = server.call(Method::POST, "/admin/system/repair-node/2?wait=false", &admin, None).await;
    assert_eq!(started.status, 202);
    let job = format!("/v1/jobs/{}", started.json()["job_id"]);
    assert_eq!(server.call(Method::GET, &job, &admin, None).await.json()["kind"], "repair_node");
    let repaired = server.call(Method::POST, "/admin/system/repair-node/2", &admin, None).await;
    assert_eq!((repaired.status.as_u16(), repaired.json()["state"].as_str()), (200, Some("healthy")));
    server.app.stop().await;
}

#[tokio::test]
async fn an_upload_says_how_many_copies_there_are() {
    let server = Server::start().await;
    let (admin, alice) = server.users().await;
    for (node, copies) in [(1, 2), (2, 1)] {
        let path = format!("/admin/system/fail-node/{node}");
        assert_eq!(server.call(Method::POST, &path, &admin, None).await.status, 200);
        let file = server.upload(&alice, &format!("after-{node}"), 5 << 20).await;
        assert_eq!(file["replicas"], copies, "{file}");
        let path = format!("/files/{}", file["file_id"].as_str().unwrap());
        assert_eq!(server.call(Method::GET, &path, &alice, None).await.json()["replicas"], copies);
    }
    assert_eq!(server.upload(&alice, "empty", 0).await["replicas"], 2, "nothing lacks a copy");
}

#[tokio::test]
async fn health_needs_no_login_and_readiness_needs_nodes() {
    let server = Server::start_with(|settings| settings.min_replicas = 2).await;
    let (admin, _) = server.users().await;
    assert_eq!(server.call(Method::GET, "/healthz", "", None).await.status, 204);
    assert_eq!(server.call(Method::GET, "/readyz", "", None).await.status, 204);
    for node in [1, 2] {
        let path = format!("/admin/system/fail-node/{node}");
        assert_eq!(server.call(Method::POST, &path, &admin, None).await.status, 200);
    }
    let answer = server.call(Method::GET, "/readyz", "", None).await;
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (503, "unavailable"));
    assert_eq!(server.call(Method::GET, "/healthz", "", None).await.status, 204);
    let head = server.call(Method::HEAD, "/status", "", None).await;
    assert_eq!(head.status, 401);
}
