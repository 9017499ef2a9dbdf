//! System calls on descriptors that the standard library does not have.
#![expect(unsafe_code, reason = "system calls")]

use std::fs::File;
use std::io;
use std::os::fd::IntoRawFd;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives this thread a table of descriptors of its own. So a daemon or a mount that another thread starts does not first close copies
/// of what this one has open: `close` waits for the very daemon that is to be started.
///
/// What was open before must not be closed by this thread, and what it opens must stay in it.
pub fn of_this_thread() {
    // SAFETY: the threads that call this use no file that another one has opened, and hand none on.
    unsafe { unshare_unsafe(UnshareFlags::FILES) }.expect("a table of descriptors");
}

/// Closes a file and says whether that went well, which dropping it does not.
pub fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor was owned by `file`, which is gone.
    unsafe { rustix::io::try_close(file.into_raw_fd()) }.map_err(io::Error::from)
}
