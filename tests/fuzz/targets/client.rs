//! What a client takes from a daemon over HTTP: the stream of events, problems, values. Nothing hangs, and nothing is endless.
#![no_main]

use std::cell::OnceCell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use libfuzzer_sys::fuzz_target;
use tandemfs::api::fs::Read;
use tandemfs::client::{Client, Credentials};
use tandemfs::id::SessionId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

struct Place {
    runtime: Runtime,
    answer: Arc<Mutex<Vec<u8>>>,
    client: Client,
}

thread_local! {
    static PLACE: OnceCell<Place> = const { OnceCell::new() };
}

/// Answers every request on a connection with what it is told.
async fn serve(mut stream: TcpStream, answer: Arc<Mutex<Vec<u8>>>) {
    let mut head = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut piece).await {
        head.extend_from_slice(&piece[..count]);
        // The only request with a body has it in the same piece.
        if head.windows(4).any(|end| end == b"\r\n\r\n") {
            head.clear();
            let answer = answer.lock().unwrap().clone();
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    }
}

fn place() -> Place {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let answer = Arc::new(Mutex::new(Vec::new()));
    let client = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = Arc::clone(&answer);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&answer)));
            }
        });
        Client::new(&url, Credentials::Token("token".to_owned())).unwrap()
    });
    Place { runtime, answer, client }
}

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    PLACE.with(|held| {
        let place = held.get_or_init(place);
        let status =
            ["200 OK", "404 Not Found", "410 Gone", "503 Service Unavailable"][usize::from(kind / 4 % 4)];
        let media =
            ["application/x-ndjson", "application/problem+json", "application/vnd.msgpack", "text/plain"];
        let media = media[usize::from(kind / 16 % 4)];
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-type: {media}\r\ncontent-length: {}\r\n\r\n", bytes.len());
        *place.answer.lock().unwrap() = [head.as_bytes(), bytes].concat();
        let client = &place.client;
        let work = async {
            match kind % 4 {
                0 => drop(client.read(SessionId(1), &Read { wants: Vec::new() }).await),
                1 => drop(client.status().await),
                2 => drop(client.inodes(SessionId(1)).await),
                _ => {
                    let Ok(mut events) = client.events(SessionId(1)).await else { return };
                    let mut count = 0;
                    while let Some(Ok(_)) = events.next().await {
                        count += 1;
                    }
                    assert!(count <= bytes.len());
                }
            }
        };
        place
            .runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(20), work).await })
            .expect("it hangs");
    });
});
