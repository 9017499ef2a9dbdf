//! Serving: listening, TLS, the protocol's limits, and stopping.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::{Extension, Router};
use axum_server::tls_rustls::RustlsAcceptor;
use axum_server::{Address, Handle, Server};
use tandemfs::api::fs::LocalSocket;
use tandemfs::{Error, Result};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::gate::{Gate, HERE};
use super::tls::Certificate;
use crate::daemon::App;
use crate::settings::Settings;

/// The most bytes of a request's head.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// The most headers of a request.
const HEADERS_MAX: usize = 100;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 100;
/// Requests under way have so long to end when the daemon stops.
const STOP_GRACE: Duration = Duration::from_secs(7);

/// A server at work.
#[derive(Debug)]
pub struct Serving {
    /// Where it is reached.
    pub url: String,
    /// Its address.
    pub address: SocketAddr,
    handle: Handle<SocketAddr>,
    reload: Arc<Notify>,
    task: JoinHandle<io::Result<()>>,
    local: Option<Local>,
}

/// The server on a Unix socket.
#[derive(Debug)]
struct Local {
    handle: Handle<UnixAddr>,
    task: JoinHandle<io::Result<()>>,
}

impl Serving {
    /// Has the files of the certificate read anew at once, if there is one.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// Takes no more connections, lets requests under way end, and returns when all are closed or after a while.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn stop(self) -> Result<()> {
        self.handle.graceful_shutdown(Some(STOP_GRACE));
        let mut tasks = vec![self.task];
        if let Some(local) = self.local {
            local.handle.graceful_shutdown(Some(STOP_GRACE));
            tasks.push(local.task);
        }
        for task in tasks {
            task.await.map_err(|error| Error::internal("the server").because(error))??;
        }
        Ok(())
    }
}

/// Gives a server the limits of the protocol.
fn limited<A: Address>(mut server: Server<A>, settings: &Settings) -> Server<A> {
    let header_timeout = Duration::from_secs(settings.header_timeout_s);
    server
        .http_builder()
        .http1()
        .header_read_timeout(header_timeout)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    server
        .http_builder()
        .http2()
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32);
    server.first_request_timeout(header_timeout)
}

/// Begins to serve on a Unix socket as well, of which sessions are told. Whoever has encryption turned on wants it everywhere.
fn serve_local(app: &App, router: &Router, gate: &Gate, address: SocketAddr) -> Result<Option<Local>> {
    if app.settings.tls_cert.is_some() {
        return Ok(None);
    }
    let name = format!("tandemfs-http-{}", hex::encode(rand::random::<[u8; 16]>()));
    let listener = UnixListener::bind_addr(&UnixAddr::from_abstract_name(&name)?)?;
    let handle = Handle::new();
    let server = axum_server::from_unix(listener)?.handle(handle.clone());
    let server = limited(server, &app.settings).acceptor(gate.clone());
    let router = router.clone().layer(Extension(ConnectInfo(HERE)));
    let task = tokio::spawn(server.serve(router.into_make_service()));
    app.sessions.offer_local(LocalSocket { address, name });
    Ok(Some(Local { handle, task }))
}

/// Refuses what would show passwords and data to a network: plain HTTP, or the well-known password, on an address that others
/// can reach.
///
/// # Errors
/// `Invalid`, with what to do about it.
async fn check_exposure(app: &App) -> Result<()> {
    let settings = &app.settings;
    let default_password = app.accounts.has_default_password().await?;
    if default_password {
        log::warn!(
            "the user admin still has the password that every installation begins with; change it: tandem passwd"
        );
    }
    if settings.listen.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    if default_password {
        return Err(Error::invalid(format!(
            "{} can be reached from other machines, and the user admin still has the password that every installation \
             begins with: change it first, or give another at the first start (TANDEM_ADMIN_PASSWORD_FILE)",
            settings.listen
        )));
    }
    if settings.tls_cert.is_none() {
        if !settings.insecure {
            return Err(Error::invalid(format!(
                "{} can be reached from other machines, and plain HTTP shows them passwords and data: \
                 give --tls-cert and --tls-key, or --insecure if the network is trusted",
                settings.listen
            )));
        }
        log::warn!(
            "serving plain HTTP on {}: everybody on the way can read passwords and data",
            settings.listen
        );
    }
    Ok(())
}

/// Begins to serve.
///
/// # Errors
/// `Invalid` for what would show passwords and data to a network; those of the listener and of the TLS files.
pub async fn serve(app: App, listener: TcpListener) -> Result<Serving> {
    check_exposure(&app).await?;
    let address = listener.local_addr()?;
    let settings = app.settings.clone();
    let stopping = app.stopping.clone();
    let handle = Handle::new();
    let gate = Gate::new(&settings);
    let router = super::router(app.clone());
    let local = serve_local(&app, &router, &gate, address).unwrap_or_else(|error| {
        log::warn!("mounts on this machine come by way of TCP: {error}");
        None
    });
    let make_service = router.into_make_service_with_connect_info::<SocketAddr>();
    let server = axum_server::from_tcp(listener)?.handle(handle.clone());
    let server = limited(server, &settings).acceptor(gate.clone());
    let header_timeout = Duration::from_secs(settings.header_timeout_s);
    let reload = Arc::new(Notify::new());
    let (scheme, task) = match Certificate::load(&settings).await? {
        Some(certificate) => {
            let acceptor =
                RustlsAcceptor::new(certificate.config()).handshake_timeout(header_timeout).acceptor(gate);
            let interval = Duration::from_secs(settings.tls_check_interval_s);
            tokio::spawn(certificate.follow(interval, Arc::clone(&reload), stopping));
            ("https", tokio::spawn(server.acceptor(acceptor).serve(make_service)))
        }
        None => ("http", tokio::spawn(server.serve(make_service))),
    };
    Ok(Serving { url: format!("{scheme}://{address}"), address, handle, reload, task, local })
}
