//! Two calls at once on one thing: each check holds until the change that relies on it is made.

use std::sync::Arc;

use serde_json::{Value, json};

use super::cluster::{Cluster, Rest};

/// Rounds of each race.
const ROUNDS: u64 = 50;

/// A client with a session on its home volume.
struct Author {
    rest: Rest,
    session: String,
    next_ino: u64,
    sequence: u64,
}

impl Author {
    async fn new(cluster: &Cluster) -> Self {
        let rest = cluster.login("admin", "admin123").await;
        let open = json!({"volume": null, "read_only": false, "client": "test"});
        let answer = rest.request("POST", "/fs/v1/sessions").json(&open).send().await.expect("an answer");
        let session = format!("/fs/v1/sessions/{}", answer.json::<Value>().await.expect("JSON")["session"]);
        let answer = rest.request("POST", &format!("{session}/inodes")).send().await.expect("an answer");
        let next_ino = answer.json::<Value>().await.expect("JSON")["first"].as_u64().expect("a number");
        Self { rest, session, next_ino, sequence: 0 }
    }

    /// The request that carries out some mutations as one.
    fn batch(&mut self, mutations: &[Value]) -> reqwest::RequestBuilder {
        self.sequence += 1;
        let batch = json!({"sequence": self.sequence, "mutations": mutations, "held": []});
        self.rest.request("POST", &format!("{}/batches", self.session)).json(&batch)
    }

    fn create(&mut self, parent: u64, name: &str, node: &str) -> (u64, Value) {
        let ino = self.next_ino;
        self.next_ino += 1;
        let create = json!({"parent": parent, "name": name, "ino": ino, "node": node, "mode": 0o755, "by": by(), "time": time()});
        (ino, json!({"create": create}))
    }

    /// The names in a directory with their inodes.
    async fn entries(&self, directory: u64) -> Vec<(String, u64)> {
        let read = json!({"wants": [{"directory": {"ino": directory, "after": null, "limit": 1000}}]});
        let answer = self
            .rest
            .request("POST", &format!("{}/reads", self.session))
            .json(&read)
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status(), 200);
        let reply: Value = answer.json().await.expect("JSON");
        let records = reply["answers"][0]["records"].as_array().expect("a list");
        let entry = |record: &Value| {
            let name = record[0]["entry"][1].as_str()?.to_owned();
            Some((name, record[1]["entry"]["ino"].as_u64()?))
        };
        records.iter().filter_map(entry).collect()
    }
}

fn by() -> Value {
    json!({"uid": 0, "gid": 0})
}

fn time() -> Value {
    json!({"seconds": 1, "nanos": 0})
}

fn rename(from: (u64, &str), to: (u64, &str), mode: &str) -> Value {
    json!({"rename": {"parent": from.0, "name": from.1, "new_parent": to.0, "new_name": to.1, "mode": mode, "by": by(), "time": time()}})
}

/// Sends two requests at once; returns how they ended.
async fn race(one: reqwest::RequestBuilder, other: reqwest::RequestBuilder) -> (u16, u16) {
    let (one, other) = tokio::join!(tokio::spawn(one.send()), tokio::spawn(other.send()));
    let statuses = (
        one.expect("no panic").expect("an answer").status().as_u16(),
        other.expect("no panic").expect("an answer").status().as_u16(),
    );
    assert!(statuses.0 < 500 && statuses.1 < 500, "{statuses:?}");
    statuses
}

async fn done(request: reqwest::RequestBuilder) {
    let answer = request.send().await.expect("an answer");
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap_or_default());
}

fn upload(rest: &Rest, path: &str, content: &str) -> reqwest::RequestBuilder {
    let part = reqwest::multipart::Part::bytes(content.as_bytes().to_vec()).file_name("file");
    let form = reqwest::multipart::Form::new().text("path", path.to_owned()).part("file", part);
    rest.request("POST", "/upload").multipart(form)
}

/// The one file of the volume and its content, if there is one.
async fn only_file(rest: &Rest) -> Option<(String, Vec<u8>)> {
    let page: Value =
        rest.request("GET", "/files").send().await.expect("an answer").json().await.expect("JSON");
    let files = page["files"].as_array().expect("a list");
    assert!(files.len() <= 1, "{page}");
    let id = files.first()?["file_id"].as_str().expect("a text").to_owned();
    let (status, content) = rest.download(&id).await;
    assert_eq!(status, 200);
    Some((id, content))
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_and_deletions_of_one_path_have_one_order() {
    let cluster = Cluster::start();
    let rest = Arc::new(cluster.login("admin", "admin123").await);
    for round in 0..ROUNDS {
        let (one, other) = (format!("one {round}"), format!("other {round}"));
        let statuses = race(upload(&rest, "file", &one), upload(&rest, "file", &other)).await;
        let (id, content) = only_file(&rest).await.expect("one of them has won");
        let winner = match statuses {
            (201, 409) => one,
            (409, 201) => other,
            _ => panic!("two winners or none: {statuses:?}"),
        };
        assert_eq!(content, winner.as_bytes());
        let new = format!("new {round}");
        let delete = rest.request("DELETE", &format!("/files/{id}"));
        match race(delete, upload(&rest, "file", &new)).await {
            (204, 201) => {
                let (id, content) = only_file(&rest).await.expect("what was acknowledged is there");
                assert_eq!(content, new.as_bytes());
                assert_eq!(
                    rest.request("DELETE", &format!("/files/{id}")).send().await.unwrap().status(),
                    204
                );
            }
            (204, 409) => assert_eq!(only_file(&rest).await, None),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_renames_have_one_winner_and_make_no_circle() {
    // Nobody follows the session's events, so its lease must outlive the test.
    let cluster = Cluster::start_with(&["--lease-ms", "600000"]);
    let mut author = Author::new(&cluster).await;
    for _ in 0..ROUNDS {
        // To one name, which only one may take.
        let ((one, create_one), (other, create_other)) =
            (author.create(1, "one", "file"), author.create(1, "other", "file"));
        done(author.batch(&[create_one, create_other])).await;
        let left = author.batch(&[rename((1, "one"), (1, "name"), "no_replace")]);
        let right = author.batch(&[rename((1, "other"), (1, "name"), "no_replace")]);
        let (expected, loser) = match race(left, right).await {
            (200, 409) => (vec![("name".to_owned(), one), ("other".to_owned(), other)], "other"),
            (409, 200) => (vec![("name".to_owned(), other), ("one".to_owned(), one)], "one"),
            statuses => panic!("two winners or none: {statuses:?}"),
        };
        assert_eq!(author.entries(1).await, expected);
        let unlink = |name| json!({"unlink": {"parent": 1, "name": name, "by": by(), "time": time()}});
        done(author.batch(&[unlink("name"), unlink(loser)])).await;

        // Each into the other: the second would cut both off from the root.
        let ((one, create_one), (other, create_other)) =
            (author.create(1, "one", "directory"), author.create(1, "other", "directory"));
        done(author.batch(&[create_one, create_other])).await;
        let left = author.batch(&[rename((1, "one"), (other, "one"), "replace")]);
        let right = author.batch(&[rename((1, "other"), (one, "other"), "replace")]);
        let remove = |parent, name| json!({"remove_directory": {"parent": parent, "name": name, "by": by(), "time": time()}});
        match race(left, right).await {
            (200, 400) | (200, 404) => {
                assert_eq!(author.entries(1).await, [("other".to_owned(), other)]);
                assert_eq!(author.entries(other).await, [("one".to_owned(), one)]);
                done(author.batch(&[remove(other, "one"), remove(1, "other")])).await;
            }
            (400, 200) | (404, 200) => {
                assert_eq!(author.entries(1).await, [("one".to_owned(), one)]);
                assert_eq!(author.entries(one).await, [("other".to_owned(), other)]);
                done(author.batch(&[remove(one, "other"), remove(1, "one")])).await;
            }
            statuses => panic!("two winners or none: {statuses:?}"),
        }
    }
}
