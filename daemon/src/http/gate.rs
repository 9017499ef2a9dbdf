//! The gate: how many connections there may be, in all and from one place, for how long one may stand still, and how one ends.

use std::collections::HashMap;
use std::future::{Future, Ready, ready};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum_server::accept::Accept;
use rustix::process::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Sleep, timeout};

use crate::accounts::network;
use crate::settings::Settings;

/// For so long what still comes on a connection is thrown away after the daemon has ended its own side.
const LINGER: Duration = Duration::from_secs(5);

/// Whoever comes by a Unix socket counts as coming from this machine.
pub(super) const HERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Lets only so many connections in, and sets them up.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    taken: Arc<Mutex<Taken>>,
    max: usize,
    max_per_address: usize,
    stall: Duration,
}

/// Connections by where they come from.
#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_network: HashMap<IpAddr, usize>,
}

/// A connection's place. Dropping it frees the place.
#[derive(Debug)]
struct Place {
    taken: Arc<Mutex<Taken>>,
    network: IpAddr,
}

impl Gate {
    pub(super) fn new(settings: &Settings) -> Self {
        // The other half of the file descriptors is for what the connections ask for.
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let max = settings.max_connections.min(usize::try_from(descriptors / 2).unwrap_or(usize::MAX));
        if max < settings.max_connections {
            log::warn!(
                "{descriptors} file descriptors allow only {max} connections at once (max_connections)"
            );
        }
        Self {
            taken: Arc::default(),
            max,
            max_per_address: settings.max_connections_per_address,
            stall: Duration::from_secs(settings.idle_timeout_s),
        }
    }

    fn enter(&self, address: IpAddr) -> Option<Place> {
        let network = network(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let here = taken.by_network.get(&network).copied().unwrap_or(0);
        if here >= self.max_per_address || taken.all >= self.max {
            return None;
        }
        taken.all += 1;
        taken.by_network.insert(network, here + 1);
        Some(Place { taken: Arc::clone(&self.taken), network })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        match taken.by_network.get_mut(&self.network) {
            Some(here) if *here > 1 => *here -= 1,
            _ => drop(taken.by_network.remove(&self.network)),
        }
    }
}

/// What connections are made of.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sized + 'static {
    /// Where it comes from.
    fn address(&self) -> io::Result<IpAddr>;

    /// Another one of the same connection.
    fn again(&self) -> io::Result<Self>;
}

impl Stream for TcpStream {
    fn address(&self) -> io::Result<IpAddr> {
        self.set_nodelay(true)?;
        Ok(self.peer_addr()?.ip())
    }

    fn again(&self) -> io::Result<Self> {
        Self::from_std(self.as_fd().try_clone_to_owned()?.into())
    }
}

impl Stream for UnixStream {
    fn address(&self) -> io::Result<IpAddr> {
        Ok(HERE.ip())
    }

    fn again(&self) -> io::Result<Self> {
        Self::from_std(self.as_fd().try_clone_to_owned()?.into())
    }
}

impl<I: Stream, S: Send + 'static> Accept<I, S> for Gate {
    type Stream = Connection<I>;
    type Service = S;
    type Future = Ready<io::Result<(Connection<I>, S)>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let place = stream
            .address()
            .and_then(|address| self.enter(address).ok_or_else(|| io::ErrorKind::ConnectionRefused.into()));
        ready(place.map(|place| {
            let place = Arc::new(place);
            (Connection { stream, stall: self.stall, stalled: None, lingers: false, place }, service)
        }))
    }
}

/// A connection that ends when the other side takes nothing of an answer for too long.
pub(super) struct Connection<I> {
    stream: I,
    stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    lingers: bool,
    place: Arc<Place>,
}

impl<I: Stream> Connection<I> {
    fn bounded<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stall = self.stall;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Keeps the connection for a while after its last answer. One that is closed with bytes unread is reset, and a client that is
    /// still sending may lose the answer with it (RFC 9112, section 9.6).
    fn linger(&mut self) -> io::Result<()> {
        let stream = self.stream.again()?;
        let place = Arc::clone(&self.place);
        tokio::spawn(async move {
            let _late = timeout(LINGER, throw_away(stream)).await;
            drop(place);
        });
        Ok(())
    }
}

async fn throw_away(mut stream: impl Stream) -> io::Result<u64> {
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
}

impl<I: Stream> AsyncRead for Connection<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<I: Stream> AsyncWrite for Connection<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.bounded(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, buffers);
        self.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        if !self.lingers {
            self.lingers = true;
            self.linger()?;
        }
        Poll::Ready(Ok(()))
    }
}
