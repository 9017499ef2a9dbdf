//! Dropping what the kernel has cached.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{Session, Version};
use rustix::io::Errno;
use tandemfs::id::Ino;

use super::Adapter;
use super::convert::Numbers;
use crate::fs::kernel::Kernel;

/// From this version of the protocol on names can be dropped without a lock (Linux 6.16).
const EPOCHS: Version = Version(7, 44);
/// FUSE_NOTIFY_INVAL_INODE and FUSE_NOTIFY_INC_EPOCH of linux/fuse.h.
const NOTIFY_INVAL_INODE: i32 = 2;
const NOTIFY_INC_EPOCH: i32 = 8;

/// Whether the kernel has epochs, which is known from its first message on.
#[derive(Clone, Debug, Default)]
pub(super) struct Epochs(Arc<AtomicBool>);

impl Epochs {
    /// The kernel speaks this version of the protocol.
    pub(super) fn learn(&self, version: Version) {
        self.0.store(version >= EPOCHS, Ordering::Relaxed);
    }

    pub(super) fn exist(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The kernel's side of a mount. It writes notifications itself: fuser's `Notifier` does not say whether the kernel knows
/// an inode, and does not know of epochs.
pub(super) struct FuseKernel {
    device: OwnedFd,
    epochs: Epochs,
    numbers: Numbers,
}

impl FuseKernel {
    pub(super) fn new(session: &Session<Adapter>, epochs: Epochs, numbers: Numbers) -> io::Result<Self> {
        let device = session.as_fd().try_clone_to_owned()?;
        Ok(Self { device, epochs, numbers })
    }

    /// Sends a notification (`struct fuse_out_header` without a request's number, and a body). Answers whether the
    /// kernel knows what it is about.
    fn notify(&self, code: i32, body: &[u8]) -> bool {
        let length = size_of::<u32>() + size_of::<i32>() + size_of::<u64>() + body.len();
        let mut message = Vec::with_capacity(length);
        message.extend((length as u32).to_ne_bytes());
        message.extend(code.to_ne_bytes());
        message.extend(0_u64.to_ne_bytes());
        message.extend(body);
        match rustix::io::write(&self.device, &message) {
            Ok(_) => true,
            Err(Errno::NOENT) => false,
            Err(error) => {
                // After an unmount there is nobody left to tell.
                log::debug!("notification {code}: {error}");
                true
            }
        }
    }

    /// `struct fuse_notify_inval_inode_out`; a negative offset means the attributes alone.
    fn drop_inode(&self, ino: Ino, offset: i64, length: i64) -> bool {
        let number = self.numbers.to_kernel(ino).0;
        let body = [number.to_ne_bytes(), offset.to_ne_bytes(), length.to_ne_bytes()];
        self.notify(NOTIFY_INVAL_INODE, body.as_flattened())
    }
}

impl Kernel for FuseKernel {
    fn drop_attributes(&self, ino: Ino) -> bool {
        self.drop_inode(ino, -1, 0)
    }

    fn drop_pages(&self, ino: Ino, offset: u64, length: u64) -> bool {
        let most = i64::MAX as u64;
        self.drop_inode(ino, offset.min(most) as i64, length.min(most) as i64)
    }

    fn drop_names(&self) {
        if self.epochs.exist() {
            self.notify(NOTIFY_INC_EPOCH, &[]);
        }
    }
}
