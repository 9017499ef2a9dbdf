//! Requests and answers: connections, logins, timeouts, problem bodies. The only file that names reqwest.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RANGE, RETRY_AFTER, TRANSFER_ENCODING,
};
use reqwest::multipart::{Form, Part};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use url::Url;

use super::{ByteStream, Credentials};
use crate::api::LAST_EVENT;
use crate::api::fs::LocalSocket;
use crate::api::problem::Problem;
use crate::api::users::{Login, LoginReply};
use crate::{Error, ErrorKind, Result, codec};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request with its answer may take, unless it is a stream.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a stream may stand still.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Idle connections are given up before the daemon does it, whose patience for the next request is 10 s.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(8);
/// Connections that are kept for the next request.
const POOL_SIZE: usize = 64;
/// The largest answer that is taken into memory.
const ANSWER_MAX: usize = 64 << 20;
/// The largest problem body that is read.
const PROBLEM_MAX: usize = 64 << 10;
/// A login is renewed when less than this is left of its life, or a third of it where that is less.
const RENEW_BEFORE: Duration = Duration::from_secs(60);

/// A name and password that the daemon has refused are not sent again for so long: each failure counts against all who log in
/// from this machine, also the user who types the right one.
const REFUSED_PAUSE: Duration = Duration::from_secs(300);

/// The connection to one daemon.
pub(super) struct Transport {
    http: reqwest::Client,
    /// The same over a socket of this machine, as long as it works.
    local: std::sync::Mutex<Option<reqwest::Client>>,
    base: Url,
    url: String,
    credentials: Credentials,
    /// The last login. Held while logging in, so that many requests share one login.
    login: Mutex<LastLogin>,
    /// The most that [`LAST_EVENT`] has said: the youngest session and its last event.
    last_event: std::sync::Mutex<(u64, u64)>,
}

/// What came of the last login.
enum LastLogin {
    /// There was none, or it could not be made.
    None,
    /// This token.
    Token(Token),
    /// The password was refused, and is not sent again before a time.
    Refused(Error, Instant),
}

#[derive(Clone)]
struct Token {
    secret: String,
    renew_at: Instant,
}

/// One request that is to be made.
#[derive(Clone)]
pub(super) struct Call {
    method: Method,
    path: Vec<String>,
    query: Vec<(&'static str, String)>,
    range: Option<String>,
    content: Option<(&'static str, Bytes)>,
    compact: bool,
    anonymous: bool,
}

impl Call {
    fn new(method: Method, path: &[&str]) -> Self {
        Self {
            method,
            path: path.iter().map(|&segment| segment.to_owned()).collect(),
            query: Vec::new(),
            range: None,
            content: None,
            compact: false,
            anonymous: false,
        }
    }

    /// `GET` of a path, whose segments are escaped.
    pub(super) fn get(path: &[&str]) -> Self {
        Self::new(Method::GET, path)
    }

    /// `POST`.
    pub(super) fn post(path: &[&str]) -> Self {
        Self::new(Method::POST, path)
    }

    /// `PUT`.
    pub(super) fn put(path: &[&str]) -> Self {
        Self::new(Method::PUT, path)
    }

    /// `PATCH`.
    pub(super) fn patch(path: &[&str]) -> Self {
        Self::new(Method::PATCH, path)
    }

    /// `DELETE`.
    pub(super) fn delete(path: &[&str]) -> Self {
        Self::new(Method::DELETE, path)
    }

    /// Adds a parameter, if there is a value.
    pub(super) fn query(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        self.query.extend(value.map(|value| (name, value.to_string())));
        self
    }

    /// Asks for a part of the body, from one byte to another inclusive; to the end if there is no second one.
    pub(super) fn range(mut self, from: u64, last: Option<u64>) -> Self {
        self.range = Some(format!("bytes={from}-{}", last.map(|last| last.to_string()).unwrap_or_default()));
        self
    }

    /// Sends no token.
    pub(super) fn anonymous(mut self) -> Self {
        self.anonymous = true;
        self
    }

    /// Asks for an answer in the compact encoding.
    pub(super) fn compact(mut self) -> Self {
        self.compact = true;
        self
    }

    /// Sends bytes.
    pub(super) fn bytes(mut self, data: Bytes) -> Self {
        self.content = Some(("application/octet-stream", data));
        self
    }

    /// Sends a value, in JSON or, after [`Call::compact`], in the compact encoding.
    pub(super) fn body<T: Serialize>(mut self, value: &T) -> Result<Self> {
        self.content = Some(if self.compact {
            (codec::MEDIA_TYPE, codec::encode(value)?.into())
        } else {
            let json = serde_json::to_vec(value)
                .map_err(|error| Error::invalid("a request that JSON cannot say").because(error))?;
            ("application/json", json.into())
        });
        Ok(self)
    }
}

impl Transport {
    /// See [`super::Client::with_ca`].
    pub(super) fn new(url: &str, credentials: Credentials, ca: Option<&[u8]>) -> Result<Self> {
        let base = parse_url(url)?;
        // Fails only when a provider is in place already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = builder();
        if is_loopback(&base) {
            builder = builder.no_proxy();
        }
        if let Some(pem) = ca {
            let authorities = reqwest::Certificate::from_pem_bundle(pem)
                .map_err(|error| Error::invalid("the file of certificate authorities").because(error))?;
            if authorities.is_empty() {
                return Err(Error::invalid("no certificate in the file of certificate authorities"));
            }
            builder = builder.tls_certs_only(authorities);
        } else if base.scheme() == "http" {
            // So that a system without certificate authorities can use plain HTTP.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|error| {
            Error::invalid(format!("cannot make a client for {base}: {}", cause_of(&error)))
        })?;
        let url = spelled(&base);
        let login = Mutex::new(LastLogin::None);
        let local = std::sync::Mutex::default();
        Ok(Self { http, local, base, url, credentials, login, last_event: std::sync::Mutex::default() })
    }

    /// From now on requests take the daemon's socket on this machine, if there is one that leads to it.
    pub(super) fn use_socket(&self, socket: Option<&LocalSocket>) {
        let socket = socket.filter(|socket| socket.leads_to(&self.base));
        // A name that begins with a zero byte is one of the abstract name space.
        let client = socket.map(|socket| builder().unix_socket(format!("\0{}", socket.name)).build());
        match client.transpose() {
            Ok(client) => *self.local() = client,
            Err(error) => log::warn!("requests go by way of the network: {}", cause_of(&error)),
        }
    }

    /// Whether requests take the daemon's socket on this machine.
    pub(super) fn is_local(&self) -> bool {
        self.local().is_some()
    }

    fn local(&self) -> std::sync::MutexGuard<'_, Option<reqwest::Client>> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The daemon's URL without a slash at its end.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Makes a request whose answer is a value.
    pub(super) async fn value<T: DeserializeOwned>(&self, call: Call) -> Result<T> {
        let (compact, body) = self
            .within(async {
                let answer = self.send(call).await?;
                let compact = has_type(&answer, codec::MEDIA_TYPE);
                Ok((compact, self.collect(answer, ANSWER_MAX).await?))
            })
            .await?;
        let value = if compact {
            codec::decode(&body)
        } else {
            serde_json::from_slice(&body).map_err(|error| Error::invalid(error.to_string()))
        };
        // It is the daemon's mistake, not an argument of the caller.
        value.map_err(|error| Error::internal(format!("the answer of {} makes no sense: {error}", self.url)))
    }

    /// Makes a request whose answer has no body.
    pub(super) async fn done(&self, call: Call) -> Result<()> {
        self.within(async {
            let answer = self.send(call).await?;
            // Read to the end, so that the connection can be used again.
            self.collect(answer, PROBLEM_MAX).await.map(drop)
        })
        .await
    }

    /// Makes a request whose answer is at most `limit` bytes.
    pub(super) async fn bytes(&self, call: Call, limit: usize) -> Result<Bytes> {
        self.within(async { self.collect(self.send(call).await?, limit).await }).await
    }

    /// Makes a request whose answer comes in pieces: their sum, if the daemon says it, and they themselves.
    pub(super) async fn stream(self: &Arc<Self>, call: Call) -> Result<(Option<u64>, ByteStream)> {
        let answer = self.within(self.send(call)).await?;
        // Without either there is no telling an answer that was cut off from a whole one.
        let length = answer.content_length();
        if length.is_none() && !answer.headers().contains_key(TRANSFER_ENCODING) {
            return Err(self.unavailable("sent an answer of unknown length"));
        }
        let this = Arc::clone(self);
        let pieces = futures::stream::unfold(Some(answer), move |answer| {
            let this = Arc::clone(&this);
            async move {
                let mut answer = answer?;
                match timeout(IDLE_TIMEOUT, answer.chunk()).await {
                    Ok(Ok(Some(piece))) => Some((Ok(piece), Some(answer))),
                    Ok(Ok(None)) => None,
                    Ok(Err(error)) => Some((Err(this.failure(error)), None)),
                    Err(_) => Some((Err(this.unavailable("has stopped in the middle of an answer")), None)),
                }
            }
        });
        Ok((length, Box::pin(pieces)))
    }

    /// Sends a form of text fields and a file. Ends when nothing has moved for a while, however long it takes in all.
    pub(super) async fn upload<T: DeserializeOwned>(
        &self,
        call: Call,
        fields: Vec<(&'static str, String)>,
        name: String,
        length: Option<u64>,
        data: impl Stream<Item = Result<Bytes>> + Send + 'static,
    ) -> Result<T> {
        let moved = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&moved);
        let data = Body::wrap_stream(data.inspect(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        }));
        let file = match length {
            Some(length) => Part::stream_with_length(data, length),
            None => Part::stream(data),
        };
        let form = fields.into_iter().fold(Form::new(), |form, (name, value)| form.text(name, value));
        let token = self.within(self.token(None)).await?;
        let request = self
            .request(&self.http, &call, token.as_deref())?
            .multipart(form.part("file", file.file_name(name)));
        let answer = async {
            let answer = request.send().await.map_err(|error| self.failure(error))?;
            self.checked(answer).await
        };
        let answer = tokio::select! {
            answer = answer => answer?,
            () = stands_still(&moved) => return Err(self.unavailable("takes no more of the data")),
        };
        let body = self.within(self.collect(answer, ANSWER_MAX)).await?;
        serde_json::from_slice(&body)
            .map_err(|error| Error::internal(format!("the answer of {} makes no sense: {error}", self.url)))
    }

    /// Sends a request, with a new login if the one at hand is refused.
    async fn send(&self, call: Call) -> Result<Response> {
        let token = if call.anonymous { None } else { self.token(None).await? };
        match self.attempt(&call, token.as_deref()).await {
            Err(error)
                if error.kind() == ErrorKind::Unauthenticated
                    && token.is_some()
                    && matches!(self.credentials, Credentials::Password { .. }) =>
            {
                let token = self.token(token.as_deref()).await?;
                self.attempt(&call, token.as_deref()).await
            }
            answer => answer,
        }
    }

    async fn attempt(&self, call: &Call, token: Option<&str>) -> Result<Response> {
        let local = self.local().clone();
        let mut answer = self.exchange(local.as_ref().unwrap_or(&self.http), call, token).await?;
        if local.is_some() && answer.as_ref().is_err_and(reqwest::Error::is_connect) {
            // The daemon that had the socket is gone. There may be another at the address, which tells of its own.
            *self.local() = None;
            answer = self.exchange(&self.http, call, token).await?;
        }
        let answer = answer.map_err(|error| self.failure(error))?;
        self.note_event(&answer);
        self.checked(answer).await
    }

    async fn exchange(
        &self,
        http: &reqwest::Client,
        call: &Call,
        token: Option<&str>,
    ) -> Result<reqwest::Result<Response>> {
        let mut request = self.request(http, call, token)?;
        if let Some((media_type, data)) = &call.content {
            request = request.header(CONTENT_TYPE, *media_type).body(data.clone());
        }
        Ok(request.send().await)
    }

    fn note_event(&self, answer: &Response) {
        let said = answer.headers().get(LAST_EVENT).and_then(|value| {
            let (session, number) = value.to_str().ok()?.split_once('.')?;
            Some((session.parse().ok()?, number.parse().ok()?))
        });
        if let Some(said) = said {
            let mut last = self.last_event.lock().unwrap_or_else(PoisonError::into_inner);
            // Sessions are numbered in their order, and so are the events of each for all its life.
            *last = said.max(*last);
        }
    }

    /// The youngest session that was answered, and the last event that there was for it then.
    pub(super) fn last_event(&self) -> (u64, u64) {
        *self.last_event.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(&self, http: &reqwest::Client, call: &Call, token: Option<&str>) -> Result<RequestBuilder> {
        // These would name another path.
        if let Some(segment) = call.path.iter().find(|segment| matches!(segment.as_str(), "" | "." | "..")) {
            return Err(Error::invalid(format!("{segment:?} is not a name")));
        }
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(&call.path);
        }
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        let accept = if call.compact { codec::MEDIA_TYPE } else { "application/json" };
        let mut request = http.request(call.method.clone(), url).header(ACCEPT, accept);
        if let Some(range) = &call.range {
            request = request.header(RANGE, range);
        }
        if let Some(token) = token {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| Error::invalid("a token is made of printable characters"))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        Ok(request)
    }

    /// The token to send; `refused` is one that does not work any more.
    pub(super) async fn token(&self, refused: Option<&str>) -> Result<Option<String>> {
        let (username, password) = match &self.credentials {
            Credentials::None => return Ok(None),
            Credentials::Token(token) => return Ok(Some(token.clone())),
            Credentials::Password { username, password } => (username.clone(), password.clone()),
        };
        let mut login = self.login.lock().await;
        match &*login {
            LastLogin::Token(token)
                if refused != Some(token.secret.as_str()) && Instant::now() < token.renew_at =>
            {
                return Ok(Some(token.secret.clone()));
            }
            LastLogin::Refused(error, until) if Instant::now() < *until => return Err(error.duplicate()),
            _ => {}
        }
        let call = Call::post(&["login"]).anonymous().body(&Login { username, password })?;
        let answer = self.attempt(&call, None).await.inspect_err(|error| {
            if error.kind() == ErrorKind::Unauthenticated {
                *login = LastLogin::Refused(error.duplicate(), Instant::now() + REFUSED_PAUSE);
            }
        })?;
        let body = self.collect(answer, PROBLEM_MAX).await?;
        let reply: LoginReply = serde_json::from_slice(&body).map_err(|error| {
            Error::internal(format!("the answer of {} makes no sense: {error}", self.url))
        })?;
        let life = Duration::from_secs(reply.expires_in.min(86_400));
        let renew_at = Instant::now() + (life - RENEW_BEFORE.min(life / 3));
        *login = LastLogin::Token(Token { secret: reply.token.clone(), renew_at });
        Ok(Some(reply.token))
    }

    /// The answer, if it is a success; the error that it carries, if not.
    async fn checked(&self, answer: Response) -> Result<Response> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let retry_after =
            answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let is_problem = has_type(&answer, crate::api::problem::MEDIA_TYPE);
        let body = self.collect(answer, PROBLEM_MAX).await.unwrap_or_default();
        let error = match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) if is_problem && ErrorKind::from_code(&problem.code).is_some() => {
                Error::from(problem)
            }
            _ => Error::new(kind_of(status), format!("{} answered {status}", self.url)),
        };
        Err(match (error.retry_after_s(), retry_after) {
            (None, Some(seconds)) => error.retry_after(seconds),
            _ => error,
        })
    }

    async fn collect(&self, mut answer: Response, limit: usize) -> Result<Bytes> {
        if answer.content_length().is_some_and(|length| length > limit as u64) {
            return Err(Error::too_large(format!("the answer of {}", self.url)));
        }
        // The length is the daemon's word, but not above the limit; without it, the body grows as it comes.
        let length = answer.content_length().and_then(|length| usize::try_from(length).ok());
        let mut body = BytesMut::with_capacity(length.unwrap_or(0));
        while let Some(piece) = answer.chunk().await.map_err(|error| self.failure(error))? {
            if body.len() + piece.len() > limit {
                return Err(Error::too_large(format!("the answer of {}", self.url)));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.freeze())
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let silent = || Error::timed_out(format!("{} does not answer", self.url));
        timeout(REQUEST_TIMEOUT, work).await.unwrap_or_else(|_| Err(silent()))
    }

    fn unavailable(&self, what: &str) -> Error {
        Error::unavailable(format!("{} {what}", self.url))
    }

    /// What a failed exchange means. The sender of a body may itself have failed: then its error is the one.
    fn failure(&self, error: reqwest::Error) -> Error {
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            if let Some(own) = cause.downcast_ref::<Error>() {
                return own.duplicate();
            }
            source = cause.source();
        }
        let what = if error.is_connect() {
            format!("cannot be reached ({})", cause_of(&error))
        } else if error.is_timeout() {
            "does not answer".to_owned()
        } else {
            format!("broke the connection ({})", cause_of(&error))
        };
        self.unavailable(&what).because(error)
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("url", &self.url)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("tandemfs/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .http1_only()
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(30))
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .pool_max_idle_per_host(POOL_SIZE)
}

/// Returns once a counter has not changed for the idle time.
async fn stands_still(counter: &AtomicU64) {
    let mut last = counter.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(IDLE_TIMEOUT).await;
        let now = counter.load(Ordering::Relaxed);
        if now == last {
            return;
        }
        last = now;
    }
}

/// The innermost cause, which is the one that tells people something.
fn cause_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

fn has_type(answer: &Response, media_type: &str) -> bool {
    let value = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(media_type)
}

/// The meaning of a status that comes without a problem body, from something between us and the daemon.
fn kind_of(status: StatusCode) -> ErrorKind {
    match status.as_u16() {
        401 => ErrorKind::Unauthenticated,
        403 => ErrorKind::Forbidden,
        404 => ErrorKind::NotFound,
        408 => ErrorKind::TimedOut,
        413 => ErrorKind::TooLarge,
        415 => ErrorKind::UnsupportedMedia,
        416 => ErrorKind::OutOfRange,
        429 => ErrorKind::TooManyRequests,
        400..500 => ErrorKind::Invalid,
        500 => ErrorKind::Internal,
        501 => ErrorKind::Unsupported,
        507 => ErrorKind::NoSpace,
        _ => ErrorKind::Unavailable,
    }
}

/// See [`super::normal_url`].
pub(super) fn normal_url(url: &str) -> Result<String> {
    parse_url(url).map(|url| spelled(&url))
}

fn spelled(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

fn parse_url(text: &str) -> Result<Url> {
    let url = Url::parse(text).map_err(|error| Error::invalid(format!("{text:?} is not a URL: {error}")))?;
    let plain = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() || !plain {
        return Err(Error::invalid(
            "the daemon's URL is http:// or https://, a host, and perhaps a port and a path",
        ));
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}
