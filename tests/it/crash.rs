//! faults.md K1 and K5: the daemon killed under a mixed load, with a mount that rides it out.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::cluster::{Cluster, noise};

const KILLS: u64 = 20;

/// What was acknowledged as durable: name, seed, length.
type Acknowledged = Arc<Mutex<Vec<(String, u64, usize)>>>;

/// Writes, syncs and renames files in a mount until told to stop. Any error is a failure: the mount must ride it out.
pub fn write_files(directory: PathBuf, stop: Arc<AtomicBool>, done: Acknowledged) {
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let length = [17, 4096, 70_000, 300_000][number as usize % 4];
        let temporary = directory.join(format!("t{number}"));
        let mut file = File::create(&temporary).expect("create");
        file.write_all(&noise(number, length)).expect("write");
        file.sync_all().expect("fsync");
        drop(file);
        let name = format!("w{number}");
        fs::rename(&temporary, directory.join(&name)).expect("rename");
        File::open(&directory).and_then(|directory| directory.sync_all()).expect("fsync of the directory");
        done.lock().expect("the list").push((name, number, length));
        if number % 3 == 2 {
            // Remove an older one; from here on it may or may not be there.
            let name = format!("w{}", number - 1);
            done.lock().expect("the list").retain(|(other, _, _)| *other != name);
            fs::remove_file(directory.join(&name)).expect("unlink");
        }
    }
}

/// Uploads files over REST until told to stop; only a 201 counts.
fn upload_files(cluster_url: String, stop: Arc<AtomicBool>, done: Acknowledged) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        let http = super::cluster::reqwest_client();
        let mut token = String::new();
        for number in 0_u64.. {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            if token.is_empty() {
                let body = serde_json::json!({"username": "admin", "password": "admin123"});
                if let Ok(answer) = http.post(format!("{cluster_url}/login")).json(&body).send().await
                    && let Ok(reply) = answer.json::<serde_json::Value>().await
                {
                    token = reply["token"].as_str().unwrap_or_default().to_owned();
                }
                if token.is_empty() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            }
            let length = [100, 5000, 200_000][number as usize % 3];
            let name = format!("u{number}");
            let form = reqwest::multipart::Form::new()
                .text("path", format!("up/{name}"))
                .part("file", reqwest::multipart::Part::bytes(noise(number, length)).file_name("x"));
            match http.post(format!("{cluster_url}/upload")).bearer_auth(&token).multipart(form).send().await
            {
                Ok(answer) if answer.status() == 201 => {
                    done.lock().expect("the list").push((name, number, length));
                }
                Ok(answer) if answer.status().is_server_error() || answer.status() == 401 => token.clear(),
                Ok(answer) => panic!("upload answered {}", answer.status()),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
}

fn verify(directory: &std::path::Path, list: &[(String, u64, usize)]) {
    for (name, seed, length) in list {
        let content =
            fs::read(directory.join(name)).unwrap_or_else(|error| panic!("{name} was acknowledged: {error}"));
        assert!(content == noise(*seed, *length), "{name} has other bytes than were acknowledged");
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_daemon_is_killed() {
    let mut cluster = Cluster::start();
    let mount = cluster.mount("m");
    fs::create_dir(mount.path().join("up")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (written, uploaded) = (Acknowledged::default(), Acknowledged::default());
    let writer = {
        let (path, stop, done) = (mount.path().to_owned(), stop.clone(), written.clone());
        thread::spawn(move || write_files(path, stop, done))
    };
    let uploader = {
        let (url, stop, done) = (cluster.url().to_owned(), stop.clone(), uploaded.clone());
        thread::spawn(move || upload_files(url, stop, done))
    };
    let mut slowest = Duration::ZERO;
    for kill in 0..KILLS {
        thread::sleep(Duration::from_millis(150 + kill * 37 % 400));
        cluster.kill();
        // A clock of the test's own: how long until the daemon listens again.
        #[expect(clippy::disallowed_methods, reason = "a test measures real time")]
        let begin = std::time::Instant::now();
        cluster.launch();
        slowest = slowest.max(begin.elapsed());
    }
    thread::sleep(Duration::from_millis(500));
    stop.store(true, Ordering::SeqCst);
    writer.join().expect("the mount rode out every kill");
    uploader.join().expect("the uploader saw only what may happen");
    println!(
        "slowest start {slowest:?}, {} written, {} uploaded",
        written.lock().unwrap().len(),
        uploaded.lock().unwrap().len()
    );
    assert!(written.lock().unwrap().len() > 20, "there was hardly any load");
    assert!(!uploaded.lock().unwrap().is_empty(), "there was no upload");

    verify(mount.path(), &written.lock().unwrap());
    mount.unmount();
    let mount = cluster.mount("again");
    verify(mount.path(), &written.lock().unwrap());
    verify(&mount.path().join("up"), &uploaded.lock().unwrap());
    mount.unmount();
    super::damage::nodes_hold_what_is_claimed(&mut cluster);
}
