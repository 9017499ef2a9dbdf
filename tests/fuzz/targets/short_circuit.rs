//! Both ends of the protocol for short-circuit reads, each with bytes that the other would not send.
#![no_main]

use std::cell::OnceCell;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tandemfs::id::{BlockId, SessionId};
use tandemfs::short_circuit::{Client, Server, listen};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};

struct Place {
    runtime: Runtime,
    name: String,
    listener: UnixListener,
}

thread_local! {
    static PLACE: OnceCell<Place> = const { OnceCell::new() };
}

fn place() -> Place {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let name = format!("tandem-fuzz-{}", std::process::id());
    let listener = runtime.block_on(async { listen(&name) }).unwrap();
    Place { runtime, name, listener }
}

async fn daemon(bytes: &[u8]) {
    let (mut client, server) = UnixStream::pair().unwrap();
    client.write_all(bytes).await.unwrap();
    drop(client);
    let mut server = Server::new(server);
    if let Ok((_, token)) = server.greeted().await {
        assert!(token.len() <= 8192);
        let mut asked = 0;
        while server.asked().await.is_ok() {
            asked += 1;
        }
        assert_eq!(asked, (bytes.len() - 10 - token.len()) / 32);
    }
}

async fn client(place: &Place, bytes: &[u8]) {
    let connect = Client::connect(&place.name, SessionId(1), "token");
    let (client, server) = tokio::join!(connect, place.listener.accept());
    let (mut client, mut server) = (client.unwrap(), server.unwrap().0);
    server.write_all(bytes).await.unwrap();
    server.shutdown().await.unwrap();
    let refused = bytes.iter().take_while(|byte| **byte == 0).count();
    for _ in 0..refused {
        assert!(client.open(&BlockId([1; 32])).await.unwrap().is_none());
    }
    assert!(client.open(&BlockId([1; 32])).await.is_err(), "a file that was not sent");
}

fuzz_target!(|bytes: &[u8]| {
    PLACE.with(|held| {
        let place = held.get_or_init(place);
        let work = async {
            daemon(bytes).await;
            // Each byte is an answer; so many questions fit into the socket's buffer.
            client(place, &bytes[..bytes.len().min(64)]).await;
        };
        place
            .runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(10), work).await })
            .expect("it hangs");
    });
});
