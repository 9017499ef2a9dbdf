//! Short-circuit reads: a client on the daemon's machine is handed a block's object as an open file and reads that by itself, which
//! saves the way of the bytes through the daemon and a socket. What cannot be had so is asked for over HTTP, as ever.
//!
//! Both ends of the protocol. It is spoken on a Unix socket in the abstract name space (unix(7)), which, like TCP on loopback,
//! whoever lives in the same network namespace can reach. A session's grant tells the socket's name, and a connection begins like
//! every request, with a session and a token:
//!
//! | who | sends |
//! | --- | --- |
//! | client, once | the session (8 bytes, big-endian), the length of the token (2 bytes), the token |
//! | client, for each block | its id (32 bytes) |
//! | daemon, in answer | 1 and a file descriptor (`SCM_RIGHTS`), or 0: not so; ask over HTTP |

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as unix, SocketAddr};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};

use crate::id::{BlockId, SessionId};

/// The longest token, in bytes.
const TOKEN_MAX: u16 = 8192;
const NO: u8 = 0;
const FILE: u8 = 1;

fn address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(name)
}

/// Takes connections under a name.
///
/// # Errors
/// Those of bind(2).
pub fn listen(name: &str) -> io::Result<UnixListener> {
    let listener = unix::UnixListener::bind_addr(&address(name)?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// A client's connection.
#[derive(Debug)]
pub struct Client(UnixStream);

impl Client {
    /// Connects, for a session.
    ///
    /// # Errors
    /// Those of connect(2).
    pub async fn connect(name: &str, session: SessionId, token: &str) -> io::Result<Self> {
        let length = u16::try_from(token.len()).map_err(|_| ErrorKind::InvalidInput)?;
        // Does not wait: a listener on this machine takes it in at once, or its queue is full.
        let stream = unix::UnixStream::connect_addr(&address(name)?)?;
        stream.set_nonblocking(true)?;
        let mut stream = UnixStream::from_std(stream)?;
        let mut greeting = Vec::with_capacity(10 + token.len());
        greeting.extend(session.0.to_be_bytes());
        greeting.extend(length.to_be_bytes());
        greeting.extend(token.as_bytes());
        stream.write_all(&greeting).await?;
        Ok(Self(stream))
    }

    /// Asks for a block's object as a file. It is as it lies on the node: to be checked. `None`: it cannot be had so.
    ///
    /// # Errors
    /// Those of the socket. The connection is of no use after one, nor after this was given up on.
    pub async fn open(&mut self, block: &BlockId) -> io::Result<Option<File>> {
        self.0.write_all(&block.0).await?;
        self.0.async_io(Interest::READABLE, || receive(&self.0)).await
    }
}

fn receive(stream: &UnixStream) -> io::Result<Option<File>> {
    let mut answer = [NO];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message =
        recvmsg(stream, &mut [IoSliceMut::new(&mut answer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut files = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => files.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let file = files.next().map(File::from);
    match (message.bytes, answer, file) {
        (1, [FILE], Some(file)) => Ok(Some(file)),
        (1, [NO], None) => Ok(None),
        (0, ..) => Err(ErrorKind::UnexpectedEof.into()),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

/// The daemon's end of a connection.
#[derive(Debug)]
pub struct Server(UnixStream);

impl Server {
    /// Of an accepted connection.
    pub fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// Takes the greeting: the session and the token.
    ///
    /// # Errors
    /// Those of the socket; `InvalidData`.
    pub async fn greeted(&mut self) -> io::Result<(SessionId, String)> {
        let session = SessionId(self.0.read_u64().await?);
        let length = self.0.read_u16().await?;
        if length > TOKEN_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut token = vec![0; usize::from(length)];
        self.0.read_exact(&mut token).await?;
        Ok((session, String::from_utf8(token).map_err(|_| ErrorKind::InvalidData)?))
    }

    /// The next block that is asked for.
    ///
    /// # Errors
    /// Those of the socket; `UnexpectedEof` when the client is gone.
    pub async fn asked(&mut self) -> io::Result<BlockId> {
        let mut id = [0; 32];
        self.0.read_exact(&mut id).await?;
        Ok(BlockId(id))
    }

    /// Answers.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn answer(&mut self, file: Option<File>) -> io::Result<()> {
        let Some(file) = file else { return self.0.write_all(&[NO]).await };
        self.0
            .async_io(Interest::WRITABLE, || {
                let files = [file.as_fd()];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !control.push(SendAncillaryMessage::ScmRights(&files)) {
                    return Err(ErrorKind::OutOfMemory.into());
                }
                sendmsg(&self.0, &[IoSlice::new(&[FILE])], &mut control, SendFlags::NOSIGNAL)?;
                Ok(())
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::{Client, Server, UnixStream, listen};
    use crate::id::{BlockId, SessionId};
    use std::io::{ErrorKind, Read, Seek, Write};
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn a_file_is_handed_over() {
        let name = format!("tandemfs-test-{}", std::process::id());
        let listener = listen(&name).unwrap();
        assert_eq!(listen(&name).unwrap_err().kind(), ErrorKind::AddrInUse);
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut server = Server::new(stream);
            assert_eq!(server.greeted().await.unwrap(), (SessionId(7), "secret".to_owned()));
            assert_eq!(server.asked().await.unwrap(), BlockId([1; 32]));
            server.answer(None).await.unwrap();
            assert_eq!(server.asked().await.unwrap(), BlockId([2; 32]));
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(b"object").unwrap();
            file.rewind().unwrap();
            server.answer(Some(file)).await.unwrap();
            server.asked().await.unwrap_err().kind()
        });
        let mut client = Client::connect(&name, SessionId(7), "secret").await.unwrap();
        assert!(client.open(&BlockId([1; 32])).await.unwrap().is_none());
        let mut file = client.open(&BlockId([2; 32])).await.unwrap().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "object");
        drop(client);
        assert_eq!(server.await.unwrap(), ErrorKind::UnexpectedEof);
        assert_eq!(
            Client::connect(&name, SessionId(7), "").await.unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
    }

    #[tokio::test]
    async fn nonsense_is_refused() {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(&[0xff; 40]).await.unwrap();
        assert_eq!(Server::new(server).greeted().await.unwrap_err().kind(), ErrorKind::InvalidData);
        for answer in [[1], [2]] {
            // A file that does not come, an answer that there is not.
            let (mut server, client) = UnixStream::pair().unwrap();
            server.write_all(&answer).await.unwrap();
            let error = Client(client).open(&BlockId([0; 32])).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
        }
        let (server, client) = UnixStream::pair().unwrap();
        drop(server);
        Client(client).open(&BlockId([0; 32])).await.unwrap_err();
    }
}
