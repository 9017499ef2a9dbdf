//! Hands objects to clients on this machine as open files (`tandemfs::short_circuit`).

use std::sync::Arc;
use std::time::Duration;

use tandemfs::Result;
use tandemfs::short_circuit::{Server, listen};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::daemon::App;
use crate::metrics::COUNTERS;

/// Connections at once. Who finds no place reads over HTTP.
const CONNECTIONS_MAX: usize = 256;
/// How long a greeting may take.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// Begins to serve, until the daemon stops. Sessions are told the socket's name, which nobody can guess: so nobody else can have
/// taken it, to be sent their tokens.
pub fn serve(app: &App) {
    let name = format!("tandemfs-{}", hex::encode(rand::random::<[u8; 16]>()));
    match listen(&name) {
        Ok(listener) => {
            app.sessions.offer_short_circuit(name);
            tokio::spawn(accept(Arc::clone(app), listener));
        }
        Err(error) => log::warn!("no short-circuit reads: {error}"),
    }
}

async fn accept(app: App, listener: UnixListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = app.stopping.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                    let app = Arc::clone(&app);
                    tokio::spawn(async move {
                        let stopping = app.stopping.clone();
                        tokio::select! {
                            ended = answer(&app, stream) => log::debug!("a short circuit ended: {ended:?}"),
                            () = stopping.cancelled() => {}
                        }
                        drop(place);
                    });
                }
            }
            Err(error) => {
                // Out of file descriptors, perhaps: it will pass.
                log::warn!("short-circuit reads: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Answers a connection, until the client is gone, its token is ended or has expired, or its session is ended.
async fn answer(app: &App, stream: UnixStream) -> Result<()> {
    let mut server = Server::new(stream);
    let Ok(greeting) = timeout(GREETING_TIMEOUT, server.greeted()).await else { return Ok(()) };
    let (session, token) = greeting?;
    let (_, visit) = app.accounts.authenticate(&token).await?;
    let mut cut = std::pin::pin!(visit.cut());
    loop {
        let block = tokio::select! {
            block = server.asked() => block?,
            () = &mut cut => return Ok(()),
        };
        // Each is a request of its own, to be refused when the token has expired.
        let (caller, _visit) = app.accounts.authenticate(&token).await?;
        let file = app.sessions.block_file(&caller, session, block).await?;
        if file.is_some() {
            COUNTERS.short_circuits.inc();
        }
        server.answer(file).await?;
    }
}
