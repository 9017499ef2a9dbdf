//! Shared volumes and their grants.

use axum::http::Method;
use serde_json::{Value, json};

use super::Server;

#[tokio::test]
async fn shared_volumes_are_made_by_admins_and_known_to_those_who_have_a_grant() {
    let server = Server::start().await;
    let (admin, alice) = server.users().await;
    let call = async |method: Method, path: &str, token: &str, body: Option<Value>, status: u16| {
        let answer = server.call(method.clone(), path, token, body).await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.status, status, "{method} {path}: {text}");
        serde_json::from_str::<Value>(&text).unwrap_or_default()
    };
    for name in ["team", "other", "third"] {
        let body = json!({"name": name, "quota_bytes": 1000});
        let made = call(Method::POST, "/v1/volumes", &admin, Some(body), 201).await;
        assert_eq!(
            (&made["name"], &made["access"], &made["quota_bytes"]),
            (&json!(name), &Value::Null, &json!(1000))
        );
    }
    call(Method::POST, "/v1/volumes", &admin, Some(json!({"name": "team"})), 409).await;

    // Without a grant it is not there, for an admin's mount neither.
    let mount = json!({"volume": "team", "read_only": false, "client": "test"});
    for token in [&alice, &admin] {
        call(Method::POST, "/fs/v1/sessions", token, Some(mount.clone()), 404).await;
    }
    call(Method::GET, "/v1/volumes/team", &alice, None, 404).await;
    assert_eq!(call(Method::GET, "/v1/volumes", &alice, None, 200).await["volumes"], json!([]));
    let first = server.call(Method::GET, "/v1/volumes?limit=2", &admin, None).await;
    assert_eq!(first.headers["link"], "</v1/volumes?limit=2&cursor=team>; rel=\"next\"");
    let (first, rest) =
        (first.json(), call(Method::GET, "/v1/volumes?limit=2&cursor=team", &admin, None, 200).await);
    let names = |page: &Value| {
        page["volumes"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!((names(&first), names(&rest)), (vec![json!("other"), json!("team")], vec![json!("third")]));
    assert_eq!((&first["next_cursor"], &rest["next_cursor"]), (&json!("team"), &Value::Null));

    let grant = "/v1/volumes/team/grants/alice";
    let read = Some(json!({"access": "read"}));
    let granted = call(Method::PUT, grant, &admin, read, 200).await;
    assert_eq!(granted, json!({"username": "alice", "access": "read"}));
    let seen = call(Method::GET, "/v1/volumes", &alice, None, 200).await;
    assert_eq!(names(&seen), [json!("team")]);
    assert_eq!(seen["volumes"][0]["access"], "read");
    assert_eq!(
        call(Method::GET, "/v1/volumes/team/grants", &admin, None, 200).await["grants"],
        json!([granted])
    );

    let changed = call(Method::PATCH, "/v1/volumes/team", &admin, Some(json!({"quota_files": 7})), 200).await;
    assert_eq!((&changed["quota_bytes"], &changed["quota_files"]), (&json!(1000), &json!(7)));

    // What the kernel would keep from coming is refused here as well.
    let session = call(Method::POST, "/fs/v1/sessions", &alice, Some(mount.clone()), 201).await;
    assert_eq!(session["read_only"], true);
    let path = |id: &Value, rest: &str| format!("/fs/v1/sessions/{id}/{rest}");
    let id = session["session"].clone();
    let time = json!({"seconds": 1, "nanos": 0});
    let create = json!({"create": {"parent": 1, "name": "d", "ino": 2, "node": "directory", "mode": 493,
        "by": {"uid": 0, "gid": 0}, "time": time}});
    let batch = json!({"sequence": 1, "mutations": [create], "held": []});
    let refused = server.call(Method::POST, &path(&id, "batches"), &alice, Some(batch)).await;
    assert_eq!((refused.status.as_u16(), refused.problem().as_str()), (403, "read_only"));
    let refused = server.call(Method::POST, &path(&id, "inodes"), &alice, None).await;
    assert_eq!((refused.status.as_u16(), refused.problem().as_str()), (403, "read_only"));
    let refused =
        server.call(Method::PUT, &path(&id, &format!("blocks/{}", "0".repeat(64))), &alice, None).await;
    assert_eq!((refused.status.as_u16(), refused.problem().as_str()), (403, "read_only"));
    let usage = json!({"wants": [{"record": "usage"}]});
    call(Method::POST, &path(&id, "reads"), &alice, Some(usage.clone()), 200).await;

    call(Method::DELETE, grant, &admin, None, 204).await;
    call(Method::DELETE, grant, &admin, None, 404).await;
    call(Method::POST, &path(&id, "reads"), &alice, Some(usage.clone()), 410).await;
    call(Method::POST, "/fs/v1/sessions", &alice, Some(mount.clone()), 404).await;

    call(Method::PUT, grant, &admin, Some(json!({"access": "write"})), 200).await;
    let session = call(Method::POST, "/fs/v1/sessions", &alice, Some(mount), 201).await;
    assert_eq!(session["read_only"], false);
    call(Method::DELETE, "/v1/volumes/team", &admin, None, 204).await;
    call(Method::POST, &path(&session["session"], "reads"), &alice, Some(usage), 410).await;
    assert_eq!(call(Method::GET, "/v1/volumes", &alice, None, 200).await["volumes"], json!([]));
    // The name is free again, and opens nothing.
    call(Method::POST, "/v1/volumes", &admin, Some(json!({"name": "team"})), 201).await;
    call(Method::GET, "/v1/volumes/team", &alice, None, 404).await;

    let log = call(Method::GET, "/v1/audit?limit=100", &admin, None, 200).await;
    let noted: Vec<_> = log["entries"].as_array().unwrap().iter().rev().collect();
    let said = |entry: &Value| {
        [&entry["what"], &entry["object"], &entry["result"]]
            .map(|text| text.as_str().unwrap().to_owned())
            .join(" ")
    };
    let noted: Vec<String> = noted.into_iter().map(said).filter(|entry| entry.contains("team")).collect();
    assert_eq!(
        noted,
        [
            "create volume team ok",
            "create volume team already_exists",
            "grant read team/alice ok",
            "change volume quota team ok",
            "revoke grant team/alice ok",
            "revoke grant team/alice not_found",
            "grant write team/alice ok",
            "delete volume team ok",
            "create volume team ok"
        ]
    );
}
