//! What a volume uses, and the limits of that.

use super::{Outcome, WorkingSet};
use crate::Error;

/// Counts a new inode.
///
/// # Errors
/// `QuotaExceeded`.
pub(super) fn take_inode(set: &mut WorkingSet) -> Outcome<()> {
    let mut usage = set.usage()?;
    usage.inodes += 1;
    if usage.quota_inodes.is_some_and(|quota| usage.inodes > quota) {
        return Err(Error::quota_exceeded("files").into());
    }
    set.put_usage(usage);
    Ok(())
}

/// Counts an inode less.
///
/// # Errors
/// `Corrupt` if none is counted.
pub(super) fn give_inode(set: &mut WorkingSet) -> Outcome<()> {
    let mut usage = set.usage()?;
    usage.inodes = usage.inodes.checked_sub(1).ok_or_else(|| Error::corrupt("more inodes than counted"))?;
    set.put_usage(usage);
    Ok(())
}

/// Counts bytes of extents that came and went. What takes no more than it gives is never refused, also when the
/// quota was lowered below what is used.
///
/// # Errors
/// `QuotaExceeded`.
pub(super) fn change_bytes(set: &mut WorkingSet, added: u64, removed: u64) -> Outcome<()> {
    if added == removed {
        return Ok(());
    }
    let mut usage = set.usage()?;
    usage.bytes = usage
        .bytes
        .checked_add(added)
        .and_then(|bytes| bytes.checked_sub(removed))
        .ok_or_else(|| Error::corrupt("more bytes than counted"))?;
    if added > removed && usage.quota_bytes.is_some_and(|quota| usage.bytes > quota) {
        return Err(Error::quota_exceeded("bytes").into());
    }
    set.put_usage(usage);
    Ok(())
}
