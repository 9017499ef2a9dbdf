//! Between the kernel and [`crate::fs`]: unpack, call, reply. The only place that names fuser.

mod calls;
mod convert;
mod kernel;
mod mount;
mod signals;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyXattr,
};
use tandemfs::Result;
use tandemfs::id::Ino;
use tokio::runtime::Handle;

use crate::fs::locks::Locked;
use crate::fs::{Fs, Stat};
use crate::tasks;
use convert::{Numbers, errno};
use kernel::Epochs;

pub use mount::{Mount, MountSettings, Unmounter};

/// What is valid until the kernel is told otherwise.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// What is valid for this call only.
const NOW: Duration = Duration::ZERO;

/// The file system as fuser wants it: `calls.rs` has its methods, this file how they are run and answered.
#[derive(Clone)]
struct Adapter {
    fs: Arc<Fs>,
    runtime: Handle,
    epochs: Epochs,
    numbers: Numbers,
}

impl Adapter {
    /// Answers the kernel's calls with `fs`, on a runtime.
    fn new(fs: Arc<Fs>, runtime: Handle) -> Self {
        let numbers = Numbers::new(fs.root());
        Self { fs, runtime, epochs: Epochs::default(), numbers }
    }

    fn fs(&self) -> Arc<Fs> {
        Arc::clone(&self.fs)
    }

    /// What a call on an inode needs.
    fn on(&self, ino: INodeNo) -> (Arc<Fs>, Ino) {
        (self.fs(), self.numbers.of_kernel(ino))
    }

    /// What a call on a name needs.
    fn at(&self, parent: INodeNo, name: &OsStr) -> (Arc<Fs>, Ino, Vec<u8>) {
        (self.fs(), self.numbers.of_kernel(parent), name.as_bytes().to_vec())
    }

    /// How long the kernel may keep a name.
    fn names(&self) -> Duration {
        if self.epochs.exist() { FOREVER } else { NOW }
    }

    /// Runs a call: what the caches can answer right here, all else in a task.
    fn run(&self, call: impl Future<Output = ()> + Send + 'static) {
        tasks::run(&self.runtime, call);
    }

    fn entry(&self, reply: ReplyEntry, call: impl Future<Output = Result<Stat>> + Send + 'static) {
        let (fs, names, numbers) = (self.fs(), self.names(), self.numbers);
        self.run(async move {
            match call.await {
                Ok(stat) => {
                    let stat = fs.tell(stat);
                    let attributes = numbers.attributes(&stat);
                    reply.entry_with_ttls(&keep(&stat), &names, &attributes, Generation(0));
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn attributes(&self, reply: ReplyAttr, call: impl Future<Output = Result<Stat>> + Send + 'static) {
        let numbers = self.numbers;
        self.run(async move {
            match call.await {
                Ok(stat) => reply.attr(&keep(&stat), &numbers.attributes(&stat)),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn opened(
        &self,
        reply: ReplyOpen,
        call: impl Future<Output = Result<(u64, FopenFlags)>> + Send + 'static,
    ) {
        self.run(async move {
            match call.await {
                Ok((handle, flags)) => reply.opened(FileHandle(handle), flags),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn data<T: AsRef<[u8]>>(&self, reply: ReplyData, call: impl Future<Output = Result<T>> + Send + 'static) {
        self.run(async move {
            match call.await {
                Ok(data) => reply.data(data.as_ref()),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn empty(&self, reply: ReplyEmpty, call: impl Future<Output = Result<()>> + Send + 'static) {
        self.run(async move {
            match call.await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    /// Answers what sets or releases a lock, having waited for it or not.
    fn locked(
        &self,
        reply: ReplyEmpty,
        waited: bool,
        call: impl Future<Output = Result<Locked>> + Send + 'static,
    ) {
        self.run(async move {
            match call.await {
                Ok(Locked::Granted) => reply.ok(),
                Ok(Locked::Held) => reply.error(if waited { Errno::EINTR } else { Errno::EAGAIN }),
                Ok(Locked::Deadlock) => reply.error(Errno::from_i32(libc::EDEADLK)),
                Ok(Locked::Full) => reply.error(Errno::from_i32(libc::ENOLCK)),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn xattr(
        &self,
        reply: ReplyXattr,
        size: u32,
        call: impl Future<Output = Result<Vec<u8>>> + Send + 'static,
    ) {
        self.run(async move {
            match call.await {
                Ok(value) if size == 0 => reply.size(value.len() as u32),
                Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
                Ok(value) => reply.data(&value),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }
}

/// How long the kernel may keep attributes.
fn keep(stat: &Stat) -> Duration {
    if stat.keep { FOREVER } else { NOW }
}
