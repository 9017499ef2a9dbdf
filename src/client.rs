//! The typed client of the daemon's HTTP API, one method for each endpoint; used by the command and the mount.
//!
//! It does not retry: what may be repeated, and for how long, is known by those who call it. Only a request that is
//! refused because a login has expired is sent once more, after a new login. Only `transport` names reqwest.

mod accounts;
mod admin;
mod files;
mod fs;
mod transport;
mod volumes;

#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;

use tokio::sync::Mutex;

use crate::id::SessionId;
use crate::{Error, Result, short_circuit};
use transport::Transport;

pub use files::{Download, Upload};

/// A body as it comes in or goes out, in pieces.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

/// Who the client is to the daemon.
#[derive(Clone)]
pub enum Credentials {
    /// Nobody: good for what needs no login.
    None,
    /// A token, sent as it is.
    Token(String),
    /// Logs in by itself, and again before the login expires or when it is refused.
    Password {
        /// The user's name.
        username: String,
        /// The user's password.
        password: String,
    },
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Token(_) => f.write_str("Token(secret)"),
            Self::Password { username, .. } => {
                f.debug_struct("Password").field("username", username).finish_non_exhaustive()
            }
        }
    }
}

/// A client of one daemon. Clones share their connections and their login.
///
/// A daemon that cannot be reached gives `Unavailable`, which [`is_refused`] tells from others of that kind; one that does not answer in
/// time gives `TimedOut`. All other errors are the daemon's own.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Arc<Transport>,
    short_circuit: Arc<Mutex<Option<ShortCircuit>>>,
}

/// The connection for short-circuit reads.
#[derive(Debug)]
struct ShortCircuit {
    socket: String,
    session: SessionId,
    connection: short_circuit::Client,
}

impl Client {
    /// A client of the daemon at `url`. For `https` the system's certificate authorities are trusted.
    ///
    /// # Errors
    /// `Invalid` when the URL is not one of `http` or `https` with a host, or holds a user, a query or a fragment.
    pub fn new(url: &str, credentials: Credentials) -> Result<Self> {
        Self::with_ca(url, credentials, None)
    }

    /// The same; trusts for `https` only the certificate authorities in `ca` (PEM), if given.
    ///
    /// # Errors
    /// As [`Client::new`], and `Invalid` when `ca` is not PEM.
    pub fn with_ca(url: &str, credentials: Credentials, ca: Option<&[u8]>) -> Result<Self> {
        let transport = Arc::new(Transport::new(url, credentials, ca)?);
        Ok(Self { transport, short_circuit: Arc::default() })
    }

    /// The daemon's URL, in one spelling: without a slash at its end.
    pub fn url(&self) -> &str {
        self.transport.url()
    }
}

/// A daemon's URL in the one spelling by which credentials are kept: small letters in the host, no default port, no slash at the
/// end.
///
/// # Errors
/// As [`Client::new`].
pub fn normal_url(url: &str) -> Result<String> {
    transport::normal_url(url)
}

/// Whether an error says that nobody listens at the address, rather than that an answer did not come.
pub fn is_refused(error: &Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return true;
        }
        source = cause.source();
    }
    false
}
