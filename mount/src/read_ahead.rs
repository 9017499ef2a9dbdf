//! How far the kernel reads ahead in files of a mount.
//!
//! FUSE can ask for less than the kernel's own 128 KiB at INIT, not for more; more is set where sysfs has it
//! (`/sys/class/bdi`, Documentation/ABI/testing/sysfs-class-bdi). With a whole chunk ahead, several requests of 1 MiB are
//! under way at once, and a cold sequential read takes two thirds of the time.

use std::{fs, io};

use tandemfs::tree::CHUNK_SIZE;

/// Has the kernel read one chunk ahead on a device (`st_dev`). Needs root.
///
/// # Errors
/// Those of writing the setting.
pub fn raise(device: u64) -> io::Result<()> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), (CHUNK_SIZE / 1024).to_string())
}
