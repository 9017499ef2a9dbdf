//! The REST API by a client that knows nothing of our own code: good input, wrong roles, other people's files, bad input.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::{Cluster, Rest, noise};

async fn two_users(cluster: &Cluster) -> (Rest, Rest, Rest) {
    let admin = cluster.login("admin", "admin123").await;
    for name in ["alice", "ursula"] {
        let body = json!({"username": name, "password": format!("{name} has a long password")});
        let answer = admin.request("POST", "/register").json(&body).send().await.expect("an answer");
        assert_eq!(answer.status(), 201);
    }
    let alice = cluster.login("alice", "alice has a long password").await;
    let ursula = cluster.login("ursula", "ursula has a long password").await;
    (admin, alice, ursula)
}

/// Sends a request and checks the status; if it is an error, also that the body is a proper problem.
async fn expect(request: reqwest::RequestBuilder, status: u16) -> Value {
    let answer = request.send().await.expect("an answer");
    let (got, headers) = (answer.status().as_u16(), answer.headers().clone());
    let text = answer.text().await.unwrap_or_default();
    assert_eq!(got, status, "{text}");
    if got < 400 {
        return serde_json::from_str(&text).unwrap_or(Value::Null);
    }
    assert_eq!(headers["content-type"], "application/problem+json", "{text}");
    let problem: Value = serde_json::from_str(&text).expect("a problem is JSON");
    assert_eq!(problem["status"], got, "{text}");
    for field in ["type", "title", "code", "request_id"] {
        assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{field} in {text}");
    }
    for leak in ["/src/", "panicked", "sqlite", "SELECT", ".rs:"] {
        assert!(!text.contains(leak), "{text}");
    }
    problem
}

#[tokio::test(flavor = "multi_thread")]
async fn the_thirteen_endpoints_do_what_they_say() {
    let cluster = Cluster::start();
    let (admin, alice, _) = two_users(&cluster).await;
    let content = noise(1, 9_000_000);
    let (status, file) = alice.upload("docs/report.bin", content.clone()).await;
    assert_eq!(status, 201, "{file}");
    let id = file["file_id"].as_str().unwrap().to_owned();
    assert_eq!(
        (&file["name"], &file["path"], &file["size"]),
        (&json!("report.bin"), &json!("/docs/report.bin"), &json!(9_000_000))
    );
    assert_eq!(file["replicas"], 2);
    assert_eq!(file["sha256"].as_str().unwrap().len(), 64);

    let list = expect(alice.request("GET", "/files?limit=10&prefix=/docs/"), 200).await;
    assert_eq!(list["files"][0]["file_id"], json!(id));
    assert_eq!(list["next_cursor"], Value::Null);
    let detail = expect(alice.request("GET", &format!("/files/{id}")), 200).await;
    let blocks = detail["blocks"].as_array().unwrap();
    assert_eq!(blocks.iter().map(|block| block["length"].as_u64().unwrap()).sum::<u64>(), 9_000_000);
    assert!(blocks.iter().all(|block| block["replicas"].as_array().unwrap().len() == 2), "{detail}");

    let (status, back) = alice.download(&id).await;
    assert!(status == 200 && back == content);
    let answer = alice
        .request("GET", &format!("/download/{id}"))
        .header("Range", "bytes=4194300-4194310")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 206);
    assert_eq!(answer.headers()["content-range"], "bytes 4194300-4194310/9000000");
    let etag = answer.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(answer.bytes().await.unwrap(), content[4_194_300..=4_194_310]);
    let download =
        |name: &str, value: &str| alice.request("GET", &format!("/download/{id}")).header(name, value);
    assert_eq!(
        download("Range", "bytes=-5").send().await.unwrap().bytes().await.unwrap(),
        content[8_999_995..]
    );
    assert_eq!(download("Range", "bytes=9000000-").send().await.unwrap().status(), 416);
    assert_eq!(download("If-None-Match", &etag).send().await.unwrap().status(), 304);
    let head = alice.request("HEAD", &format!("/download/{id}")).send().await.unwrap();
    assert_eq!(
        (head.status().as_u16(), head.headers()["content-length"].to_str().unwrap()),
        (200, "9000000")
    );

    let storage = expect(alice.request("GET", "/storage"), 200).await;
    assert_eq!(storage["used_bytes"], 9_000_000);
    let status = expect(alice.request("GET", "/status"), 200).await;
    assert_eq!(
        (&status["status"], &status["nodes"]["total"], &status["replicas"]),
        (&json!("healthy"), &json!(3), &json!(2))
    );

    expect(admin.request("GET", "/admin/system"), 200).await;
    let nodes = expect(admin.request("GET", "/admin/system/nodes"), 200).await;
    assert_eq!(nodes["nodes"].as_array().unwrap().len(), 3);
    let failed =
        expect(admin.request("POST", "/admin/system/fail-node/2").json(&json!({"mode": "wipe"})), 200).await;
    assert_eq!(failed["state"], "failed");
    assert!(alice.download(&id).await.1 == content, "with a node gone");
    let repaired = expect(admin.request("POST", "/admin/system/repair-node/2?wait=true"), 200).await;
    assert_eq!(repaired["state"], "healthy");
    expect(admin.request("POST", "/admin/system/fail-node/1"), 200).await;
    let job = expect(admin.request("POST", "/admin/system/repair-node/1?wait=false"), 202).await;
    assert!(job["job_id"].is_u64(), "{job}");

    let answer = alice.request("DELETE", &format!("/files/{id}")).send().await.unwrap();
    assert_eq!(answer.status(), 204);
    expect(alice.request("GET", &format!("/files/{id}")), 404).await;
    assert_eq!(expect(alice.request("GET", "/storage"), 200).await["used_bytes"], 0);
}

/// RFC 9110, section 13.1: what fails for a precondition is told from what is refused anyway, and nothing of it is stored.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_obeys_its_preconditions() {
    let cluster = Cluster::start();
    let admin = cluster.login("admin", "admin123").await;
    let upload = |path: &'static str, header: &'static str, value: String| {
        let part = reqwest::multipart::Part::bytes(noise(2, 5000)).file_name("file");
        let form = reqwest::multipart::Form::new().text("path", path).part("file", part);
        let request = admin.request("POST", "/upload").header(header, value).multipart(form);
        async { request.send().await.expect("an answer").json::<Value>().await.expect("JSON") }
    };
    assert_eq!(upload("d/new", "If-Match", "*".into()).await["status"], 412);
    let file = upload("d/new", "If-None-Match", "*".into()).await;
    let answer = admin.request("GET", &format!("/download/{}", file["file_id"].as_str().unwrap()));
    let etag = answer.send().await.unwrap().headers()["etag"].to_str().unwrap().to_owned();
    for path in ["d/new", "d"] {
        assert_eq!(upload(path, "If-None-Match", "*".into()).await["code"], "stale", "{path}");
        assert_eq!(
            upload(path, "If-None-Match", "\"other\"".into()).await["code"],
            "already_exists",
            "{path}"
        );
        assert_eq!(upload(path, "If-Match", "\"other\"".into()).await["code"], "stale", "{path}");
    }
    assert_eq!(upload("d/new", "If-None-Match", etag.clone()).await["status"], 412);
    assert_eq!(upload("d/new", "If-Match", etag).await["status"], 409);
    let list = expect(admin.request("GET", "/files"), 200).await;
    assert_eq!(list["files"].as_array().map(Vec::len), Some(1), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_cannot_tell_anothers_file_from_none() {
    let cluster = Cluster::start();
    let (admin, alice, ursula) = two_users(&cluster).await;
    let (_, file) = ursula.upload("secret", b"of ursula".to_vec()).await;
    let id = file["file_id"].as_str().unwrap();
    for (method, path) in [("GET", "files"), ("GET", "download"), ("DELETE", "files")] {
        for who in [&alice, &admin] {
            let mut there = expect(who.request(method, &format!("/{path}/{id}")), 404).await;
            let mut never = expect(who.request(method, &format!("/{path}/f7fffffff-7fffffff")), 404).await;
            there["request_id"] = Value::Null;
            never["request_id"] = Value::Null;
            assert_eq!(there, never);
        }
    }
    assert_eq!(ursula.download(id).await.1, b"of ursula");
    // A role is checked, whatever the path.
    for (method, path) in [
        ("GET", "/admin/system"),
        ("GET", "/admin/system/nodes"),
        ("POST", "/admin/system/fail-node/1"),
        ("POST", "/admin/system/repair-node/1"),
        ("GET", "/v1/users"),
        ("GET", "/v1/jobs"),
        ("DELETE", "/v1/users/ursula"),
    ] {
        expect(alice.request(method, path), 403).await;
    }
    let body = json!({"username": "eve", "password": "eve has a long password", "role": "admin"});
    expect(alice.request("POST", "/register").json(&body), 403).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_a_clear_4xx_and_stores_nothing() {
    let cluster = Cluster::start();
    let (admin, alice, _) = two_users(&cluster).await;
    let nobody = Rest { http: alice.http.clone(), url: alice.url.clone(), token: "x".into() };
    for path in ["/files", "/storage", "/status", "/admin/system", "/v1/me"] {
        expect(nobody.request("GET", path), 401).await;
        expect(nobody.http.get(format!("{}{path}", nobody.url)), 401).await;
    }
    let long = "n".repeat(256);
    let deep = "d/".repeat(2100);
    for path in ["../up", "a/../../b", "a/..", "", "/", ".", "nul\0", &long, &deep] {
        let (status, body) = alice.upload(path, b"x".to_vec()).await;
        assert_eq!(status, 400, "{path:?}: {body}");
    }
    for name in [
        "a\"; x=\"",
        "%2e%2e%2f",
        "..%5c",
        "C:\\x",
        "<img src=x onerror=alert(1)>",
        "é\u{202e}gpj.exe",
        "crlf\r\nX-Evil: 1",
    ] {
        let (status, body) = alice.upload(name, b"y".to_vec()).await;
        assert_eq!(status, 201, "{name:?}: {body}");
        assert_eq!(body["name"], name);
        let answer = alice
            .request("GET", &format!("/download/{}", body["file_id"].as_str().unwrap()))
            .send()
            .await
            .unwrap();
        assert!(answer.headers().get("x-evil").is_none());
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
        let disposition = answer.headers()["content-disposition"].to_str().unwrap();
        assert!(disposition.starts_with("attachment"), "{disposition}");
        assert_eq!(alice.upload(name, b"z".to_vec()).await.0, 409);
    }
    let before = expect(alice.request("GET", "/storage"), 200).await;
    let form = |part: &'static str| reqwest::multipart::Form::new().text(part, "v");
    expect(alice.request("POST", "/upload").multipart(form("path")), 400).await;
    expect(alice.request("POST", "/upload").multipart(form("other")), 400).await;
    expect(alice.request("POST", "/upload").json(&json!({"file": 1})), 415).await;
    for query in ["limit=0", "limit=-1", "limit=x", "limit=99999999999999999999", "cursor=%ff%00", "nosuch=1"]
    {
        expect(alice.request("GET", &format!("/files?{query}")), 400).await;
    }
    for (path, body, status) in [
        ("/login", "{", 400),
        ("/login", "[]", 400),
        ("/login", "{\"username\":1,\"password\":2}", 400),
        ("/login", "{\"username\":\"a\",\"username\":\"b\",\"password\":\"c\"}", 400),
        ("/login", "{\"username\":\"a\",\"password\":\"b\",\"more\":1}", 400),
    ] {
        let request =
            alice.http.post(format!("{}{path}", alice.url)).header("content-type", "application/json");
        expect(request.body(body), status).await;
    }
    expect(
        alice
            .http
            .post(format!("{}/login", alice.url))
            .header("content-type", "application/json")
            .body("[".repeat(100_000)),
        400,
    )
    .await;
    let huge = format!("{{\"username\":\"{}\"}}", "x".repeat(50 << 20));
    let answer = alice
        .http
        .post(format!("{}/login", alice.url))
        .header("content-type", "application/json")
        .body(huge)
        .send()
        .await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 413));
    for (username, password) in [
        ("Alice", "a long password"),
        ("../x", "a long password"),
        ("", "a long password"),
        ("n\n", "a long password"),
        (&long[..65], "a long password"),
        ("bob", "short"),
        ("bob", "password"),
        ("bob", &"p".repeat(1025)),
    ] {
        let body = json!({"username": username, "password": password});
        expect(admin.request("POST", "/register").json(&body), 400).await;
    }
    let body = json!({"username": "alice", "password": "another long password"});
    expect(admin.request("POST", "/register").json(&body), 409).await;
    for (path, status) in [
        ("/admin/system/fail-node/9", 404),
        ("/admin/system/fail-node/x", 404),
        ("/admin/system/repair-node/9", 404),
    ] {
        expect(admin.request("POST", path), status).await;
    }
    expect(admin.request("POST", "/admin/system/fail-node/1").json(&json!({"mode": "burn"})), 400).await;
    expect(alice.request("GET", "/nosuch"), 404).await;
    expect(alice.request("PATCH", "/files"), 405).await;
    expect(alice.request("POST", "/upload").header("content-encoding", "gzip").multipart(form("file")), 415)
        .await;
    let after = expect(alice.request("GET", "/storage"), 200).await;
    for field in ["files", "used_bytes"] {
        assert_eq!(after[field], before[field], "something was stored by a request that failed");
    }
    cluster.status();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_upload_stores_nothing() {
    let cluster = Cluster::start();
    let (_, alice, _) = two_users(&cluster).await;
    let address = alice.url.strip_prefix("http://").unwrap().to_owned();
    let head = format!(
        "POST /upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 500000\r\n\r\n\
         --b\r\nContent-Disposition: form-data; name=\"path\"\r\n\r\ncut\r\n--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n",
        alice.token
    );
    tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&[b'x'; 100_000]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
    })
    .await
    .unwrap();
    let list = expect(alice.request("GET", "/files"), 200).await;
    assert_eq!(list["files"], json!([]));
}

/// A multipart body of parts, each a head and its bytes.
fn parts(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (head, bytes) in parts {
        body.extend_from_slice(format!("--b\r\nContent-Disposition: {head}\r\n\r\n").as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--b--\r\n");
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn multipart_bodies_are_what_they_say_or_refused() {
    let cluster = Cluster::start();
    let (_, alice, _) = two_users(&cluster).await;
    let send = |body: Vec<u8>| {
        let request = alice.request("POST", "/upload");
        request.header("content-type", "multipart/form-data; boundary=b").body(body)
    };
    let (file, path) = ("form-data; name=\"file\"; filename=\"f\"", "form-data; name=\"path\"");
    let whole = parts(&[(path, b"whole"), (file, b"x")]);
    for body in [
        Vec::new(),
        b"--b--\r\n".to_vec(),
        b"no boundary at all".to_vec(),
        parts(&[(path, b"alone")]),
        parts(&[(file, b"x"), (path, b"late")]),
        parts(&[(path, b"one"), (path, b"two"), (file, b"x")]),
        parts(&[(file, b"x"), (file, b"y")]),
        parts(&[(path, b"p"), (file, b"x"), ("form-data; name=\"more\"", b"z")]),
        parts(&[("form-data; name=\"file\"", b"neither a path nor a filename")]),
        parts(&[("form-data; name=\"file\"; filename=\"\"", b"x")]),
        parts(&[("form-data; name=\"file\"; filename=\"..\"", b"x")]),
        parts(&[("form-data; name=\"file\"; filename=\"a/..\"", b"x")]),
        parts(&[(&format!("form-data; name=\"file\"; filename=\"{}\"", "n".repeat(256)), b"x")]),
        parts(&[("attachment", b"x")]),
        parts(&[(path, "p".repeat(5000).as_bytes()), (file, b"x")]),
        parts(&[(path, b"../up"), (file, b"x")]),
        parts(&[(path, b"nul\0"), (file, b"x")]),
        whole[..whole.len() - 3].to_vec(),
        whole[..whole.len() - 8].to_vec(),
        whole[..20].to_vec(),
    ] {
        let shown = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
        let problem = expect(send(body), 400).await;
        assert!(
            ["invalid", "name_too_long"].contains(&problem["code"].as_str().unwrap()),
            "{shown:?}: {problem}"
        );
    }
    for kind in ["multipart/form-data", "multipart/mixed; boundary=b", "text/plain"] {
        let request = alice.request("POST", "/upload").header("content-type", kind).body(whole.clone());
        expect(request, 415).await;
    }
    let storage = expect(alice.request("GET", "/storage"), 200).await;
    assert_eq!(
        (&storage["files"], &storage["used_bytes"]),
        (&json!(0), &json!(0)),
        "a refused body has stored something"
    );
    // Of a client's own path only the name counts, and a name may have any byte but two.
    for (filename, name) in
        [("../../etc/passwd", "passwd"), ("C:\\\\dir\\\\f.txt", "f.txt"), ("é\u{202e}.exe", "é\u{202e}.exe")]
    {
        let body = parts(&[(&format!("form-data; name=\"file\"; filename=\"{filename}\""), b"x")]);
        assert_eq!(expect(send(body), 201).await["path"], format!("/{name}"));
    }
    let made = expect(send(parts(&[(path, b"bytes/\xff\xfe"), (file, b"x")])), 201).await;
    assert_eq!(made["path_base64"], "L2J5dGVzL//+", "{made}");
    assert_eq!(expect(send(whole), 201).await["path"], "/whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_not_waited_for() {
    let cluster = Cluster::start_with(&["--max-file-size", "1000000"]);
    let (_, alice, _) = two_users(&cluster).await;
    let address = alice.url.strip_prefix("http://").unwrap().to_owned();
    let begin = format!(
        "POST /upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: multipart/form-data; boundary=b\r\n",
        alice.token
    );
    let part = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n";
    let answers = tokio::task::spawn_blocking(move || {
        let send = |head: &str, body: &[u8]| {
            let mut stream = TcpStream::connect(&address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(format!("{begin}{head}\r\n\r\n").as_bytes()).unwrap();
            let _ = stream.write_all(body);
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).unwrap();
            String::from_utf8_lossy(&answer).into_owned()
        };
        let chunk = format!("{part}{}", "x".repeat(1_000_001));
        let chunked = format!("{:x}\r\n{chunk}\r\n", chunk.len());
        [
            send("Content-Length: 100000000000", b""),
            send("Content-Length: 100000000000\r\nExpect: 100-continue", b""),
            send("Transfer-Encoding: chunked", chunked.as_bytes()),
        ]
    });
    assert_eq!(answers.await.unwrap(), ["HTTP/1.1 413"; 3]);
    let storage = expect(alice.request("GET", "/storage"), 200).await;
    assert_eq!((&storage["files"], &storage["used_bytes"]), (&json!(0), &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_and_sizes_are_exact_under_racing_uploads() {
    let cluster = Cluster::start_with(&["--config", &super::damage::config("max_file_size = 3000000\n")]);
    let admin = cluster.login("admin", "admin123").await;
    let body = json!({"username": "bob", "password": "bob has a long password", "quota_bytes": 1_000_000, "quota_files": 8});
    expect(admin.request("POST", "/register").json(&body), 201).await;
    let bob = std::sync::Arc::new(cluster.login("bob", "bob has a long password").await);
    assert_eq!(admin.upload("large", noise(1, 3_000_001)).await.0, 413);
    assert_eq!(bob.upload("large", noise(1, 2_000_000)).await.0, 507);
    let uploads: Vec<_> = (0..20)
        .map(|number| {
            let bob = bob.clone();
            tokio::spawn(async move { bob.upload(&format!("f{number}"), noise(number, 300_000)).await.0 })
        })
        .collect();
    let mut stored = 0;
    for upload in uploads {
        match upload.await.unwrap() {
            201 => stored += 1,
            507 => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!(stored, 3, "three of 300,000 bytes fit into 1,000,000");
    let storage = expect(bob.request("GET", "/storage"), 200).await;
    assert_eq!((&storage["used_bytes"], &storage["files"]), (&json!(900_000), &json!(3)));
    for number in 0..5 {
        assert_eq!(bob.upload(&format!("s{number}"), vec![b'x'; 10]).await.0, 201);
    }
    assert_eq!(bob.upload("ninth", vec![b'x'; 10]).await.0, 507);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_downloads_at_once() {
    let cluster = Cluster::start();
    let rest = std::sync::Arc::new(cluster.login("admin", "admin123").await);
    let content = std::sync::Arc::new(noise(7, 200_000));
    let (_, file) = rest.upload("f", content.to_vec()).await;
    let id = file["file_id"].as_str().unwrap().to_owned();
    let downloads: Vec<_> = (0..1000)
        .map(|_| {
            let (rest, id, content) = (rest.clone(), id.clone(), content.clone());
            tokio::spawn(async move {
                let (status, back) = rest.download(&id).await;
                assert!(status == 200 && back == *content, "{status}");
            })
        })
        .collect();
    for download in downloads {
        download.await.unwrap();
    }
    let (now, _) = super::cluster::memory_kib(cluster.pid());
    println!("resident after 1000 downloads: {now} KiB");
    assert!(now < 256 << 10);
}
