//! What the kernel caches of the mount, as far as it can be told to forget it.

use tandemfs::id::Ino;

/// Told by the session what has become wrong. Calls may block while the kernel finishes reads of the inode, so they
/// are made from a thread of their own and never while a request of the kernel is being answered.
pub trait Kernel: Send + Sync + 'static {
    /// Drops an inode's attributes, but not its pages. Answers whether the kernel knows the inode.
    fn drop_attributes(&self, ino: Ino) -> bool;
    /// Drops an inode's attributes, and its pages from `offset` on; `length` 0 means to the end. Answers the same.
    fn drop_pages(&self, ino: Ino, offset: u64, length: u64) -> bool;
    /// Makes the kernel look every name up again before it uses it.
    fn drop_names(&self);
}
