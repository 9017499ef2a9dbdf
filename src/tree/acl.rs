//! POSIX access control lists (acl(5)): the form that the kernel gives them in attributes, and what they and the
//! permission bits do to each other.

use super::{Inode, Kind};
use crate::{Error, Result};

/// The attribute with the list that decides about access.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute with the list that what is made in a directory begins with.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// `POSIX_ACL_XATTR_VERSION`, little-endian.
const VERSION: [u8; 4] = 2u32.to_le_bytes();
/// Bytes of an entry: tag, permissions, user or group.
const ENTRY: usize = 8;
/// Kinds of entries (`ACL_USER_OBJ` …), in the order in which they must come.
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u32,
    id: u32,
}

/// A list that is valid: an owner, a group and others once each, users and groups in order, and a mask where there are any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

impl Acl {
    /// Reads the value of an attribute. `None` is an empty list, which stands for none.
    ///
    /// # Errors
    /// `Invalid` (`posix_acl_from_xattr`, `posix_acl_valid`).
    pub(super) fn parse(value: &[u8]) -> Result<Option<Self>> {
        let invalid = || Error::invalid("this is no access control list");
        let entries = value.strip_prefix(&VERSION).ok_or_else(invalid)?;
        if entries.len() % ENTRY != 0 {
            return Err(invalid());
        }
        let entries = entries.chunks_exact(ENTRY).map(|entry| Entry {
            tag: u16::from_le_bytes([entry[0], entry[1]]),
            permissions: u32::from(u16::from_le_bytes([entry[2], entry[3]])),
            id: u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]),
        });
        let acl = Self(entries.collect());
        match acl.0.is_empty() {
            true => Ok(None),
            false if acl.is_valid() => Ok(Some(acl)),
            false => Err(invalid()),
        }
    }

    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let names_somebody = count(USER) + count(GROUP) > 0;
        let tags = [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER];
        self.0.iter().all(|entry| tags.contains(&entry.tag) && entry.permissions <= 7)
            && self.0.windows(2).all(|pair| pair[0].tag <= pair[1].tag)
            && [USER_OBJ, GROUP_OBJ, OTHER].into_iter().all(|tag| count(tag) == 1)
            && (count(MASK) == 1 || count(MASK) == 0 && !names_somebody)
    }

    /// The value of an attribute.
    pub(super) fn to_value(&self) -> Vec<u8> {
        let mut value = VERSION.to_vec();
        for entry in &self.0 {
            value.extend(entry.tag.to_le_bytes());
            value.extend((entry.permissions as u16).to_le_bytes());
            value.extend(entry.id.to_le_bytes());
        }
        value
    }

    /// Whether it says more than permission bits can.
    pub(super) fn is_extended(&self) -> bool {
        self.0.len() > 3
    }

    /// The entry that stands for the bits of the group: the mask, where there is one.
    fn group_tag(&self) -> u16 {
        if self.0.iter().any(|entry| entry.tag == MASK) { MASK } else { GROUP_OBJ }
    }

    /// The permission bits that it amounts to.
    pub(super) fn mode(&self) -> u32 {
        let of = |tag| self.0.iter().find(|entry| entry.tag == tag).map_or(0, |entry| entry.permissions);
        of(USER_OBJ) << 6 | of(self.group_tag()) << 3 | of(OTHER)
    }

    /// What chmod(2) makes of it.
    pub(super) fn set_mode(&mut self, mode: u32) {
        let group_tag = self.group_tag();
        for entry in &mut self.0 {
            match entry.tag {
                USER_OBJ => entry.permissions = mode >> 6 & 7,
                OTHER => entry.permissions = mode & 7,
                tag if tag == group_tag => entry.permissions = mode >> 3 & 7,
                _ => {}
            }
        }
    }
}

/// The list of a new object and its mode, from the default list of its directory and the mode that was asked for, which
/// only takes permissions away (`posix_acl_create`).
pub(super) fn inherit(default: &Acl, mode: u32) -> (Acl, u32) {
    let mut acl = default.clone();
    let granted = mode & acl.mode();
    acl.set_mode(granted);
    (acl, mode & !0o777 | granted)
}

/// Refuses a list where there can be none: on symbolic links, and a default one on anything but directories.
///
/// # Errors
/// `Unsupported`, `Invalid`.
pub(super) fn check_kind(inode: &Inode, name: &[u8]) -> Result<()> {
    if inode.kind == Kind::Symlink {
        return Err(Error::unsupported("access control on symbolic links"));
    }
    if name == DEFAULT && !inode.is_directory() {
        return Err(Error::invalid("only directories have a default access control list"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Acl, inherit};

    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = vec![2, 0, 0, 0];
        for (tag, permissions, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    const NOBODY: u32 = u32::MAX;

    /// `user::rwx,user:100:rw-,group::r-x,mask::rwx,other::r--`
    fn extended() -> Vec<u8> {
        value(&[(1, 7, NOBODY), (2, 6, 100), (4, 5, NOBODY), (16, 7, NOBODY), (32, 4, NOBODY)])
    }

    #[test]
    fn lists_are_read_and_written() {
        let acl = Acl::parse(&extended()).unwrap().unwrap();
        assert_eq!(acl.to_value(), extended());
        assert_eq!((acl.mode(), acl.is_extended()), (0o774, true));
        let minimal =
            Acl::parse(&value(&[(1, 6, NOBODY), (4, 4, NOBODY), (32, 0, NOBODY)])).unwrap().unwrap();
        assert_eq!((minimal.mode(), minimal.is_extended()), (0o640, false));
        assert_eq!(Acl::parse(&[2, 0, 0, 0]).unwrap(), None);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let (user, group, other) = ((1, 6, NOBODY), (4, 4, NOBODY), (32, 0, NOBODY));
        for broken in [
            vec![],
            vec![1, 0, 0, 0],
            extended()[..20].to_vec(),
            value(&[user, group]),
            value(&[group, user, other]),
            value(&[user, user, group, other]),
            value(&[user, (2, 6, 100), group, other]),
            value(&[user, group, (16, 8, NOBODY), other]),
            value(&[user, group, (64, 0, NOBODY), other]),
        ] {
            assert!(Acl::parse(&broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn the_mode_stands_for_owner_mask_and_others() {
        let mut acl = Acl::parse(&extended()).unwrap().unwrap();
        acl.set_mode(0o640);
        assert_eq!(acl.mode(), 0o640);
        assert_eq!((acl.0[1].permissions, acl.0[2].permissions, acl.0[3].permissions), (6, 5, 4));
        let (acl, mode) = inherit(&Acl::parse(&extended()).unwrap().unwrap(), 0o2666);
        assert_eq!((acl.mode(), mode), (0o664, 0o2664));
        let (acl, _) = inherit(
            &Acl::parse(&value(&[(1, 7, NOBODY), (4, 5, NOBODY), (32, 5, NOBODY)])).unwrap().unwrap(),
            0o666,
        );
        assert_eq!(acl.mode(), 0o644);
    }
}
