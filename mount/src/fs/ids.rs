//! Owners: the numbers that users and groups have on this machine and those that the volume stores.
//!
//! The kernel checks permissions with the machine's numbers, so what it is told and what it says is translated here, and the
//! volume and the daemon never see them. Names as in exports(5) and mount(8), `X-mount.idmap`.

use tandemfs::tree::{Credentials, Inode};
use tandemfs::{Error, Result};

/// What stands for everybody who has no number of his own, if nothing else was said: `nobody`.
const NOBODY: u32 = 65_534;
/// Attributes that hold numbers of users and groups (acl(5)).
const ACL_NAMES: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
/// The layout of such an attribute, `linux/posix_acl_xattr.h`: a version, then entries of tag, permissions and number.
const ACL_VERSION: u32 = 2;
const ACL_ENTRY: usize = 8;
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

/// Whose changes are stored as the anonymous user's and group's (exports(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Squash {
    /// Nobody's.
    #[default]
    None,
    /// Those of user and group 0.
    Root,
    /// Everybody's.
    All,
}

/// How numbers are translated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Who is squashed.
    pub squash: Squash,
    /// The anonymous user, in the volume's numbers.
    pub anonymous_user: u32,
    /// The anonymous group, in the volume's numbers.
    pub anonymous_group: u32,
    /// Users.
    pub users: Map,
    /// Groups.
    pub groups: Map,
}

impl Default for Ids {
    fn default() -> Self {
        Self {
            squash: Squash::None,
            anonymous_user: NOBODY,
            anonymous_group: NOBODY,
            users: Map::default(),
            groups: Map::default(),
        }
    }
}

/// Numbers of the machine and those of the volume that they stand for. A number that no range names stands for itself, unless a
/// range gives it away: so no two numbers are ever taken for one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map(Vec<Range>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    machine: u32,
    volume: u32,
    count: u32,
}

/// Where `id` lies in `count` numbers from `first` on.
fn offset(id: u32, first: u32, count: u32) -> Option<u32> {
    id.checked_sub(first).filter(|offset| *offset < count)
}

impl Map {
    /// Adds a range, as `MACHINE:VOLUME` or `MACHINE:VOLUME:COUNT`.
    ///
    /// # Errors
    /// `Invalid` for what is none, and for one that overlaps another.
    pub fn add(&mut self, text: &str) -> Result<()> {
        let invalid = |why: &str| Error::invalid(format!("{text:?}: {why}"));
        let numbers = text.split(':').map(str::parse).collect::<Result<Vec<u32>, _>>();
        let (machine, volume, count) = match numbers.as_deref() {
            Ok([machine, volume]) => (*machine, *volume, 1),
            Ok([machine, volume, count]) if *count > 0 => (*machine, *volume, *count),
            _ => return Err(invalid("MACHINE:VOLUME or MACHINE:VOLUME:COUNT is needed")),
        };
        // The last number, 2^32-1, is none (chown(2)).
        if machine.checked_add(count).is_none() || volume.checked_add(count).is_none() {
            return Err(invalid("there are no such numbers"));
        }
        let overlaps = |a: u32, b: u32, of_b: u32| a < b + of_b && b < a + count;
        if self.0.iter().any(|range| {
            overlaps(machine, range.machine, range.count) || overlaps(volume, range.volume, range.count)
        }) {
            return Err(invalid("it names a number twice"));
        }
        self.0.push(Range { machine, volume, count });
        Ok(())
    }

    fn to_volume(&self, id: u32) -> Option<u32> {
        let named = |range: &Range| Some(range.volume + offset(id, range.machine, range.count)?);
        let given_away = |range: &Range| offset(id, range.volume, range.count).is_some();
        self.0.iter().find_map(named).or_else(|| (!self.0.iter().any(given_away)).then_some(id))
    }

    fn to_machine(&self, id: u32) -> Option<u32> {
        let named = |range: &Range| Some(range.machine + offset(id, range.volume, range.count)?);
        let given_away = |range: &Range| offset(id, range.machine, range.count).is_some();
        self.0.iter().find_map(named).or_else(|| (!self.0.iter().any(given_away)).then_some(id))
    }
}

impl Ids {
    fn stored(&self, map: &Map, anonymous: u32, id: u32) -> u32 {
        match self.squash {
            Squash::All => anonymous,
            Squash::Root if id == 0 => anonymous,
            Squash::Root | Squash::None => map.to_volume(id).unwrap_or(anonymous),
        }
    }

    fn stored_user(&self, id: u32) -> u32 {
        self.stored(&self.users, self.anonymous_user, id)
    }

    fn stored_group(&self, id: u32) -> u32 {
        self.stored(&self.groups, self.anonymous_group, id)
    }

    fn seen_user(&self, id: u32) -> u32 {
        self.users.to_machine(id).unwrap_or(NOBODY)
    }

    fn seen_group(&self, id: u32) -> u32 {
        self.groups.to_machine(id).unwrap_or(NOBODY)
    }

    /// As whom the volume knows who is calling.
    pub fn acting(&self, by: Credentials) -> Credentials {
        Credentials { uid: self.stored_user(by.uid), gid: self.stored_group(by.gid) }
    }

    /// The user to store for one that was named, by chown(2) or in an access control list.
    ///
    /// # Errors
    /// `NotPermitted` for one that the volume would not know from others.
    pub fn user(&self, id: u32) -> Result<u32> {
        let stored = self.stored_user(id);
        distinct(id, stored, self.seen_user(stored))
    }

    /// As [`Ids::user`] for a group.
    ///
    /// # Errors
    /// As [`Ids::user`].
    pub fn group(&self, id: u32) -> Result<u32> {
        let stored = self.stored_group(id);
        distinct(id, stored, self.seen_group(stored))
    }

    /// Shows an inode's owner in the machine's numbers.
    pub fn show(&self, inode: &mut Inode) {
        (inode.uid, inode.gid) = (self.seen_user(inode.uid), self.seen_group(inode.gid));
    }

    /// The value to store of an extended attribute.
    ///
    /// # Errors
    /// Of an access control list: `Invalid` when it is none; as [`Ids::user`].
    pub fn attribute(&self, name: &[u8], value: &[u8]) -> Result<Vec<u8>> {
        if !self.translates(name) {
            return Ok(value.to_vec());
        }
        translate_acl(value, |id| self.user(id), |id| self.group(id))
    }

    /// The value to show of an extended attribute.
    ///
    /// # Errors
    /// `Invalid` for an access control list that is none.
    pub fn shown_attribute(&self, name: &[u8], value: Vec<u8>) -> Result<Vec<u8>> {
        if !self.translates(name) {
            return Ok(value);
        }
        translate_acl(&value, |id| Ok(self.seen_user(id)), |id| Ok(self.seen_group(id)))
    }

    fn translates(&self, name: &[u8]) -> bool {
        ACL_NAMES.contains(&name) && *self != Self::default()
    }
}

/// A number may be given to something only if it will be shown again.
fn distinct(asked: u32, stored: u32, seen: u32) -> Result<u32> {
    if seen != asked {
        return Err(Error::not_permitted(format!("the volume has no number for {asked} (mount options)")));
    }
    Ok(stored)
}

fn translate_acl(
    value: &[u8],
    user: impl Fn(u32) -> Result<u32>,
    group: impl Fn(u32) -> Result<u32>,
) -> Result<Vec<u8>> {
    let invalid = || Error::invalid("no access control list");
    let (version, entries) = value.split_first_chunk().ok_or_else(invalid)?;
    let (entries, rest) = entries.as_chunks::<ACL_ENTRY>();
    if u32::from_le_bytes(*version) != ACL_VERSION || !rest.is_empty() {
        return Err(invalid());
    }
    let mut translated = version.to_vec();
    for entry in entries {
        let [tag @ .., _, _, a, b, c, d] = *entry;
        let id = u32::from_le_bytes([a, b, c, d]);
        let id = match u16::from_le_bytes(tag) {
            ACL_USER => user(id)?,
            ACL_GROUP => group(id)?,
            _ => id,
        };
        translated.extend(&entry[..4]);
        translated.extend(id.to_le_bytes());
    }
    Ok(translated)
}

#[cfg(test)]
mod tests {
    use super::{Ids, Map, NOBODY, Squash, translate_acl};
    use tandemfs::tree::Credentials;
    use tandemfs::{ErrorKind, Result};

    fn map(ranges: &[&str]) -> Map {
        let mut map = Map::default();
        ranges.iter().try_for_each(|range| map.add(range)).unwrap();
        map
    }

    fn acting(ids: &Ids, uid: u32, gid: u32) -> (u32, u32) {
        let by = ids.acting(Credentials { uid, gid });
        (by.uid, by.gid)
    }

    #[test]
    fn ranges_are_read_and_may_not_overlap() {
        for bad in ["", "1", "1:2:3:4", "a:1", "-1:1", "1:2:0", "4294967295:1", "1:4294967290:6", "1: 2"] {
            assert!(Map::default().add(bad).is_err(), "{bad}");
        }
        let mut ranges = map(&["1000:5000:10", "0:1"]);
        for bad in ["1009:1", "999:7000:2", "1:5009", "2:4999:2", "0:9", "7:1"] {
            assert!(ranges.add(bad).is_err(), "{bad}");
        }
        ranges.add("1010:5010").unwrap();
        assert_eq!(ranges.to_volume(1009), Some(5009));
        assert_eq!(ranges.to_machine(5010), Some(1010));
        assert_eq!(ranges.to_machine(1), Some(0));
    }

    #[test]
    fn no_two_numbers_are_taken_for_one() {
        for ranges in [&[][..], &["1:2"], &["1:2", "2:1"], &["0:10:5", "6:2"], &["3:4:3"]] {
            let map = map(ranges);
            let mut stored: Vec<u32> = (0..30).filter_map(|id| map.to_volume(id)).collect();
            let count = stored.len();
            stored.sort_unstable();
            stored.dedup();
            assert_eq!(stored.len(), count, "{ranges:?}");
            for id in 0..30 {
                let back = |there| map.to_machine(there) == Some(id);
                assert!(map.to_volume(id).is_none_or(back), "{ranges:?}: {id}");
                let forth = |here| map.to_volume(here) == Some(id);
                assert!(map.to_machine(id).is_none_or(forth), "{ranges:?}: {id}");
            }
        }
        // Whose number was given away is nobody, in both directions.
        let ids = Ids { users: map(&["1000:1001"]), ..Ids::default() };
        assert_eq!((ids.stored_user(1000), ids.stored_user(1001)), (1001, NOBODY));
        assert_eq!((ids.seen_user(1001), ids.seen_user(1000)), (1000, NOBODY));
        assert_eq!((ids.stored_user(7), ids.seen_user(7), ids.stored_group(1000)), (7, 7, 1000));
    }

    #[test]
    fn squashing_stores_the_anonymous_owner_and_refuses_to_give_things_to_others() {
        let ids = Ids { squash: Squash::Root, anonymous_user: 99, ..Ids::default() };
        assert_eq!(acting(&ids, 0, 0), (99, NOBODY));
        assert_eq!(acting(&ids, 1000, 0), (1000, NOBODY));
        assert_eq!((ids.user(1000).unwrap(), ids.group(5).unwrap()), (1000, 5));
        assert_eq!(ids.user(0).unwrap_err().kind(), ErrorKind::NotPermitted);
        assert_eq!((ids.seen_user(0), ids.seen_user(99)), (0, 99), "what root has is shown");

        // One person with another number on each machine.
        let ids = Ids {
            squash: Squash::All,
            anonymous_user: 5000,
            anonymous_group: 5000,
            users: map(&["1000:5000"]),
            groups: map(&["100:5000"]),
        };
        assert_eq!((acting(&ids, 1000, 100), acting(&ids, 0, 7)), ((5000, 5000), (5000, 5000)));
        assert_eq!((ids.seen_user(5000), ids.seen_group(5000), ids.seen_user(42)), (1000, 100, 42));
        assert_eq!((ids.user(1000).unwrap(), ids.group(100).unwrap()), (5000, 5000));
        assert!(ids.user(42).is_err() && ids.group(1000).is_err());
    }

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    #[test]
    fn access_control_lists_are_translated_in_both_directions() {
        let ids = Ids { users: map(&["1000:5000"]), groups: map(&["1000:6000"]), ..Ids::default() };
        let none = u32::MAX;
        let here = acl(&[
            (1, 7, none),
            (2, 6, 1000),
            (2, 4, 7),
            (4, 5, none),
            (8, 1, 1000),
            (16, 7, none),
            (32, 0, none),
        ]);
        let there = acl(&[
            (1, 7, none),
            (2, 6, 5000),
            (2, 4, 7),
            (4, 5, none),
            (8, 1, 6000),
            (16, 7, none),
            (32, 0, none),
        ]);
        let name = b"system.posix_acl_default";
        assert_eq!(ids.attribute(name, &here).unwrap(), there);
        assert_eq!(ids.shown_attribute(name, there).unwrap(), here);
        let refused = ids.attribute(name, &acl(&[(2, 6, 5000)])).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotPermitted);
        assert_eq!(ids.shown_attribute(name, acl(&[(2, 6, 1000)])).unwrap(), acl(&[(2, 6, NOBODY)]));
        assert_eq!(ids.attribute(b"user.x", b"y").unwrap(), b"y");
        let same = |id: u32| -> Result<u32> { Ok(id) };
        for bad in [&b""[..], b"\x02\0\0", b"\x03\0\0\0", b"\x02\0\0\0\x01", &here[..11]] {
            assert_eq!(translate_acl(bad, same, same).unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
    }
}
