//! A link between a mount and the daemon that can be cut.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Forwards connections. While it is cut nothing passes in either direction and nobody is told, as when a cable is pulled; what was
/// sent meanwhile arrives once it is whole again, as TCP has it.
pub struct Link {
    url: String,
    is_cut: Arc<AtomicBool>,
}

impl Link {
    /// A link to a daemon at `http://ADDRESS`. It lasts as long as the test's process.
    pub fn to(url: &str) -> Self {
        let daemon = url.strip_prefix("http://").expect("a URL without TLS").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let is_cut = Arc::new(AtomicBool::new(false));
        let link = Self { url, is_cut: Arc::clone(&is_cut) };
        thread::spawn(move || {
            for here in listener.incoming().map_while(Result::ok) {
                wait_whole(&is_cut);
                let Ok(there) = TcpStream::connect(&daemon) else { continue };
                let (Ok(here_too), Ok(there_too)) = (here.try_clone(), there.try_clone()) else { continue };
                for (from, to) in [(here, there_too), (there, here_too)] {
                    let is_cut = Arc::clone(&is_cut);
                    thread::spawn(move || forward(from, to, &is_cut));
                }
            }
        });
        link
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
    }

    pub fn mend(&self) {
        self.is_cut.store(false, Ordering::SeqCst);
    }
}

fn wait_whole(is_cut: &AtomicBool) {
    while is_cut.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(5));
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, is_cut: &AtomicBool) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut buffer).unwrap_or(0);
        wait_whole(is_cut);
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // Either end may be gone already.
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
