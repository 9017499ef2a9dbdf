//! Extended attributes: setxattr(2), removexattr(2), xattr(7).

use super::acl::{self, ACCESS, Acl, DEFAULT};
use super::{
    Credentials, Inode, Key, Kind, Outcome, Record, WorkingSet, XATTR_SIZE_MAX, XATTR_TOTAL_MAX, XattrMode,
    mode,
};
use crate::clock::Time;
use crate::id::Ino;
use crate::{Error, Result};

/// The longest name, in bytes (xattr(7), XATTR_NAME_MAX).
const NAME_MAX: usize = 255;
/// What anybody may use who may write the file, but only on files and directories.
const USER: &[u8] = b"user.";
/// The namespaces that are kept; of `system.` there are access control lists beside.
const NAMESPACES: [&[u8]; 3] = [USER, b"trusted.", b"security."];

/// Sets an attribute. Works on inodes without links, which may be held open. An access control list changes the mode
/// as well, and one that says no more than the mode is not kept.
///
/// # Errors
/// `OutOfRange` for a name that is empty or too long (ERANGE, as Linux has it); `Invalid` for NUL in it;
/// `Unsupported` for a namespace that is not kept; `ValueTooLarge` (E2BIG); `NotFound`; `NotPermitted` for `user.` on
/// anything but files and directories; `AlreadyExists`, `NoAttribute` by the mode; `NoSpace` for too many in all;
/// `Invalid` for what is no access control list.
pub(super) fn set_xattr(
    set: &mut WorkingSet,
    ino: Ino,
    (name, value): (&[u8], &[u8]),
    mode: XattrMode,
    by: Credentials,
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
    inode.ctime = time;
    inode.xattr_bytes = without(&inode, before)?;
    if !is_acl(name) || says_more_than_the_mode(&mut inode, name, value, by)? {
        store(set, &mut inode, name, value.to_vec())?;
    } else if before.is_some() {
        set.put(Key::Xattr(ino, name.to_vec()), None);
    }
    set.put_inode(inode);
    Ok(())
}

/// Gives an inode an attribute that it does not have.
///
/// # Errors
/// `NoSpace`.
fn store(set: &mut WorkingSet, inode: &mut Inode, name: &[u8], value: Vec<u8>) -> Result<()> {
    inode.xattr_bytes += (name.len() + value.len()) as u64;
    if inode.xattr_bytes > XATTR_TOTAL_MAX {
        return Err(Error::no_space(format!("{} bytes of attributes", inode.xattr_bytes)));
    }
    set.put(Key::Xattr(inode.ino, name.to_vec()), Some(Record::Xattr(value)));
    Ok(())
}

fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

/// Takes over the mode that an access control list stands for; somebody outside of the group takes set-group-ID away
/// with it (`posix_acl_update_mode` in Linux). Answers whether there is more to it.
fn says_more_than_the_mode(inode: &mut Inode, name: &[u8], value: &[u8], by: Credentials) -> Result<bool> {
    let acl = Acl::parse(value)?;
    if name == DEFAULT {
        return Ok(acl.is_some());
    }
    let Some(acl) = acl else { return Ok(false) };
    inode.mode = inode.mode & !0o777 | acl.mode();
    if !mode::is_member(by, inode.gid) {
        inode.mode &= !mode::SET_GID;
    }
    Ok(acl.is_extended())
}

/// An access control list of an inode.
///
/// # Errors
/// `Missing`, `Corrupt`.
fn acl_of(set: &WorkingSet, inode: &Inode, name: &[u8]) -> Outcome<Option<Acl>> {
    if inode.xattr_bytes == 0 {
        return Ok(None);
    }
    match set.get(&Key::Xattr(inode.ino, name.to_vec()))? {
        Some(Record::Xattr(value)) => Ok(Acl::parse(value)?),
        Some(_) => Err(Error::corrupt(format!("an attribute of inode {}", inode.ino)).into()),
        None => Ok(None),
    }
}

/// Has the access control list of an inode, if it has one, follow a new mode.
pub(super) fn follow_mode(set: &mut WorkingSet, inode: &Inode) -> Outcome<()> {
    if let Some(mut acl) = acl_of(set, inode, ACCESS)? {
        acl.set_mode(inode.mode);
        set.put(Key::Xattr(inode.ino, ACCESS.to_vec()), Some(Record::Xattr(acl.to_value())));
    }
    Ok(())
}

/// Gives something new what the default access control list of its directory, if there is one, says (acl(5)).
pub(super) fn inherit(set: &mut WorkingSet, parent: &Inode, inode: &mut Inode) -> Outcome<()> {
    if inode.kind == Kind::Symlink {
        return Ok(());
    }
    let Some(default) = acl_of(set, parent, DEFAULT)? else { return Ok(()) };
    let (acl, mode) = acl::inherit(&default, inode.mode);
    inode.mode = mode;
    if acl.is_extended() {
        store(set, inode, ACCESS, acl.to_value())?;
    }
    if inode.is_directory() {
        store(set, inode, DEFAULT, default.to_value())?;
    }
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
    if is_acl(name) {
        return Ok(());
    }
    match NAMESPACES.iter().find_map(|namespace| name.strip_prefix(*namespace)) {
        Some([]) => Err(Error::invalid("an attribute's name is only a namespace")),
        Some(_) => Ok(()),
        None => Err(Error::unsupported("this namespace of attributes")),
    }
}

fn check_kind(inode: &Inode, name: &[u8]) -> Result<()> {
    if is_acl(name) {
        return acl::check_kind(inode, name);
    }
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
