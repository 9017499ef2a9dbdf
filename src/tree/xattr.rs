//! Extended attributes: setxattr(2), removexattr(2), xattr(7).

use super::{Inode, Key, Kind, Outcome, Record, WorkingSet, XATTR_SIZE_MAX, XATTR_TOTAL_MAX, XattrMode};
use crate::clock::Time;
use crate::id::Ino;
use crate::{Error, Result};

/// The longest name, in bytes (xattr(7), XATTR_NAME_MAX).
const NAME_MAX: usize = 255;
/// What anybody may use who may write the file, but only on files and directories.
const USER: &[u8] = b"user.";
/// The namespaces that are kept. Of `system.` there are only access control lists, and to keep one without heeding
/// it would be worse than to refuse it.
const NAMESPACES: [&[u8]; 3] = [USER, b"trusted.", b"security."];

/// Sets an attribute. Works on inodes without links, which may be held open.
///
/// # Errors
/// `OutOfRange` for a name that is empty or too long (ERANGE, as Linux has it); `Invalid` for NUL in it;
/// `Unsupported` for a namespace that is not kept; `ValueTooLarge` (E2BIG); `NotFound`; `NotPermitted` for `user.` on
/// anything but files and directories; `AlreadyExists`, `NoAttribute` by the mode; `NoSpace` for too many in all.
pub(super) fn set_xattr(
    set: &mut WorkingSet,
    ino: Ino,
    name: &[u8],
    value: &[u8],
    mode: XattrMode,
    time: Time,
) -> Outcome<()> {
    check_name(name)?;
    if value.len() > XATTR_SIZE_MAX {
        return Err(Error::value_too_large(format!("{} bytes", value.len())).into());
    }
    let mut inode = set.inode(ino)?;
    check_kind(&inode, name)?;
    let before = size_of(set, &inode, name)?;
    match (mode, before) {
        (XattrMode::Create, Some(_)) => return Err(Error::already_exists("attribute").into()),
        (XattrMode::Replace, None) => return Err(Error::no_attribute("attribute").into()),
        _ => {}
    }
    let size = (name.len() + value.len()) as u64;
    inode.xattr_bytes = without(&inode, before)? + size;
    if inode.xattr_bytes > XATTR_TOTAL_MAX {
        return Err(Error::no_space(format!("{} bytes of attributes", inode.xattr_bytes)).into());
    }
    inode.ctime = time;
    set.put(Key::Xattr(ino, name.to_vec()), Some(Record::Xattr(value.to_vec())));
    set.put_inode(inode);
    Ok(())
}

/// Removes an attribute.
///
/// # Errors
/// As [`set_xattr`] about the name; `NotFound`; `NoAttribute` if there is none.
pub(super) fn remove_xattr(set: &mut WorkingSet, ino: Ino, name: &[u8], time: Time) -> Outcome<()> {
    check_name(name)?;
    let mut inode = set.inode(ino)?;
    check_kind(&inode, name)?;
    let before = size_of(set, &inode, name)?;
    if before.is_none() {
        return Err(Error::no_attribute("attribute").into());
    }
    inode.xattr_bytes = without(&inode, before)?;
    inode.ctime = time;
    set.put(Key::Xattr(ino, name.to_vec()), None);
    set.put_inode(inode);
    Ok(())
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() || name.len() > NAME_MAX {
        return Err(Error::out_of_range("an attribute's name has 1 to 255 bytes"));
    }
    if name.contains(&0) {
        return Err(Error::invalid("NUL in an attribute's name"));
    }
    match NAMESPACES.iter().find_map(|namespace| name.strip_prefix(*namespace)) {
        Some([]) => Err(Error::invalid("an attribute's name is only a namespace")),
        Some(_) => Ok(()),
        None => Err(Error::unsupported("this namespace of attributes")),
    }
}

fn check_kind(inode: &Inode, name: &[u8]) -> Result<()> {
    if name.starts_with(USER) && !matches!(inode.kind, Kind::File | Kind::Directory) {
        return Err(Error::not_permitted("user attributes are for files and directories"));
    }
    Ok(())
}

/// Bytes of an attribute's name and value if it is there. What has none at all need not be asked for.
fn size_of(set: &WorkingSet, inode: &Inode, name: &[u8]) -> Outcome<Option<u64>> {
    if inode.xattr_bytes == 0 {
        return Ok(None);
    }
    match set.get(&Key::Xattr(inode.ino, name.to_vec()))? {
        Some(Record::Xattr(value)) => Ok(Some((name.len() + value.len()) as u64)),
        Some(_) => Err(Error::corrupt(format!("an attribute of inode {}", inode.ino)).into()),
        None => Ok(None),
    }
}

fn without(inode: &Inode, size: Option<u64>) -> Result<u64> {
    inode
        .xattr_bytes
        .checked_sub(size.unwrap_or(0))
        .ok_or_else(|| Error::corrupt(format!("inode {} has more attributes than counted", inode.ino)))
}
