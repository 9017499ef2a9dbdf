//! Dropping what the kernel has cached.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{Notifier, Session, Version};
use tandemfs::id::Ino;

use super::Adapter;
use super::convert::Numbers;
use crate::fs::kernel::Kernel;

/// From this version of the protocol on names can be dropped without a lock (Linux 6.16).
const EPOCHS: Version = Version(7, 44);
/// FUSE_NOTIFY_INC_EPOCH of linux/fuse.h.
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

/// The kernel's side of a mount.
pub(super) struct FuseKernel {
    notifier: Notifier,
    device: OwnedFd,
    epochs: Epochs,
    numbers: Numbers,
}

impl FuseKernel {
    pub(super) fn new(session: &Session<Adapter>, epochs: Epochs, numbers: Numbers) -> io::Result<Self> {
        let device = session.as_fd().try_clone_to_owned()?;
        Ok(Self { notifier: session.notifier(), device, epochs, numbers })
    }

    fn log(what: &str, result: io::Result<()>) {
        if let Err(error) = result {
            // After an unmount there is nobody left to tell.
            log::debug!("{what}: {error}");
        }
    }
}

impl Kernel for FuseKernel {
    fn drop_attributes(&self, ino: Ino) {
        Self::log("dropping attributes", self.notifier.inval_inode(self.numbers.to_kernel(ino), -1, 0));
    }

    fn drop_pages(&self, ino: Ino, offset: u64, length: u64) {
        let (offset, length) = (offset.min(i64::MAX as u64) as i64, length.min(i64::MAX as u64) as i64);
        let result = self.notifier.inval_inode(self.numbers.to_kernel(ino), offset, length);
        Self::log("dropping pages", result);
    }

    fn drop_names(&self) {
        if !self.epochs.exist() {
            return;
        }
        // struct fuse_out_header: length, code of the notification, 0.
        let mut message = [0; 16];
        message[..4].copy_from_slice(&16_u32.to_ne_bytes());
        message[4..8].copy_from_slice(&NOTIFY_INC_EPOCH.to_ne_bytes());
        let written = self.device.try_clone().and_then(|device| File::from(device).write_all(&message));
        Self::log("dropping names", written);
    }
}
