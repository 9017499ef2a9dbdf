//! Shared volumes: who may use which, and how admins make, change and remove them.
//!
//! Grants are kept in memory as well, since every request of a session asks for one.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};
use tandemfs::api::files::Storage;
use tandemfs::api::users::Role;
use tandemfs::api::volumes as api;
use tandemfs::api::volumes::Access;
use tandemfs::clock::Time;
use tandemfs::id::{UserId, VolumeId};
use tandemfs::name::check_plain;
use tandemfs::{Error, ErrorKind, Result};

use super::orphans::locked;
use super::{PAGE, Volumes, key_after};
use crate::accounts::Caller;
use crate::meta::{self, Meta, keys, record};

/// Shared volumes in all.
const VOLUMES_MAX: usize = 10_000;
/// Grants in all.
const GRANTS_MAX: usize = 100_000;

/// What is known of the shared volumes.
#[derive(Debug, Default)]
pub(super) struct Shares {
    known: Mutex<Known>,
    /// Held by whoever changes one.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    by_name: BTreeMap<String, Share>,
    names: BTreeMap<VolumeId, String>,
    /// How many grants there are.
    grants: usize,
}

#[derive(Debug)]
struct Share {
    id: VolumeId,
    created: Time,
    grants: BTreeMap<UserId, Access>,
}

/// A shared volume as one caller sees it.
#[derive(Debug)]
struct Seen {
    id: VolumeId,
    name: String,
    created: Time,
    access: Option<Access>,
}

impl Share {
    /// What an admin sees, or who has a grant; nothing for others.
    fn seen_by(&self, caller: &Caller, name: &str) -> Option<Seen> {
        let access = self.grants.get(&caller.user).copied();
        let seen = Seen { id: self.id, name: name.to_owned(), created: self.created, access };
        (caller.role == Role::Admin || access.is_some()).then_some(seen)
    }
}

/// The same answer for what is not there and for what the caller may not know of.
fn no_such_volume() -> Error {
    Error::not_found("volume")
}

/// Some of a volume's grants, and the cursor of the next ones.
pub(crate) type Grants = (Vec<(UserId, Access)>, Option<String>);

fn checked(limit: u32) -> Result<usize> {
    let limit = usize::try_from(limit).unwrap_or(0);
    if !(1..=PAGE).contains(&limit) {
        return Err(Error::invalid(format!("limit is 1 to {PAGE}")));
    }
    Ok(limit)
}

impl Known {
    fn add(&mut self, name: String, share: Share) {
        self.names.insert(share.id, name.clone());
        self.grants += share.grants.len();
        self.by_name.insert(name, share);
    }

    fn remove(&mut self, name: &str) {
        if let Some(share) = self.by_name.remove(name) {
            self.names.remove(&share.id);
            self.grants -= share.grants.len();
        }
    }

    fn of(&self, id: VolumeId) -> Option<&Share> {
        self.by_name.get(self.names.get(&id)?)
    }

    fn set_grant(&mut self, name: &str, user: UserId, access: Option<Access>) {
        let Some(share) = self.by_name.get_mut(name) else { return };
        let before = match access {
            Some(access) => share.grants.insert(user, access),
            None => share.grants.remove(&user),
        };
        self.grants = self.grants + usize::from(access.is_some()) - usize::from(before.is_some());
    }
}

impl Shares {
    /// Reads the grants of the shared volumes among `volumes`.
    pub(super) async fn open(meta: &Meta, volumes: &[record::Volume]) -> Result<Self> {
        let mut known = Known::default();
        for volume in volumes.iter().filter(|volume| !volume.removed) {
            let Some(name) = volume.name.clone() else { continue };
            let mut grants = BTreeMap::new();
            let (mut from, to) = keys::all_grants(volume.id);
            loop {
                let page: Vec<(meta::Key, Access)> = meta.scan(&from, &to, PAGE).await?;
                let Some((last, _)) = page.last() else { break };
                from = key_after(last);
                for (key, access) in page {
                    let user =
                        keys::grantee(&key).ok_or_else(|| Error::corrupt("the key of a grant is damaged"))?;
                    grants.insert(user, access);
                }
            }
            known.add(name, Share { id: volume.id, created: volume.created, grants });
        }
        Ok(Self { known: Mutex::new(known), changing: tokio::sync::Mutex::default() })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        locked(&self.known)
    }

    /// Looks at a shared volume.
    fn look<T>(&self, name: &str, look: impl FnOnce(&Share) -> T) -> Result<T> {
        self.known().by_name.get(name).map(look).ok_or_else(no_such_volume)
    }
}

impl Volumes {
    /// What the caller may do on a volume at this moment. A role opens none: an admin needs a grant like everybody.
    pub(crate) fn access(&self, caller: &Caller, id: VolumeId) -> Option<Access> {
        if id == caller.home {
            return Some(Access::Write);
        }
        self.shares.known().of(id)?.grants.get(&caller.user).copied()
    }

    /// The number of a shared volume that the caller may use.
    ///
    /// # Errors
    /// `NotFound`, also for one that the caller may not know of.
    pub(crate) fn shared_id(&self, caller: &Caller, name: &str) -> Result<VolumeId> {
        let id = |share: &Share| share.grants.contains_key(&caller.user).then_some(share.id);
        self.shares.look(name, id)?.ok_or_else(no_such_volume)
    }

    /// Makes a shared volume that nobody may use yet.
    ///
    /// # Errors
    /// `Invalid`; `AlreadyExists`; `TooManyRequests` when there are too many.
    pub async fn create_shared(&self, caller: &Caller, new: &api::NewVolume) -> Result<api::Volume> {
        check_plain("volume", &new.name)?;
        let _changing = self.shares.changing.lock().await;
        {
            let known = self.shares.known();
            if known.by_name.contains_key(&new.name) {
                return Err(Error::already_exists(format!("volume {}", new.name)));
            }
            if known.by_name.len() >= VOLUMES_MAX {
                return Err(Error::too_many_requests(format!("there are {VOLUMES_MAX} shared volumes")));
            }
        }
        let (volume, writes) =
            self.new_volume(None, Some(new.name.clone()), new.quota_bytes, new.quota_files).await?;
        self.shared.meta.commit(Vec::new(), writes).await?;
        let share = Share { id: volume.id, created: volume.created, grants: BTreeMap::new() };
        self.shares.known().add(new.name.clone(), share);
        self.shared_volume(caller, &new.name).await
    }

    /// A page of the shared volumes that the caller may know of, in the order of their names, those after `cursor`: all for an
    /// admin, else those that are granted.
    ///
    /// # Errors
    /// `Invalid` for a bad limit.
    pub async fn list_shared(
        &self,
        caller: &Caller,
        limit: u32,
        cursor: Option<&str>,
    ) -> Result<api::VolumePage> {
        let limit = checked(limit)?;
        let mut found: Vec<Seen> = {
            let known = self.shares.known();
            let from = cursor.map_or(Bound::Unbounded, Bound::Excluded);
            let after = known.by_name.range::<str, _>((from, Bound::Unbounded));
            after.filter_map(|(name, share)| share.seen_by(caller, name)).take(limit + 1).collect()
        };
        let more = found.len() > limit;
        found.truncate(limit);
        let next_cursor = found.last().filter(|_| more).map(|seen| seen.name.clone());
        let mut volumes = Vec::new();
        for seen in found {
            match self.describe(seen).await {
                Ok(volume) => volumes.push(volume),
                // It was removed meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(api::VolumePage { volumes, next_cursor })
    }

    /// A shared volume.
    ///
    /// # Errors
    /// `NotFound`, also for one that the caller may not know of.
    pub async fn shared_volume(&self, caller: &Caller, name: &str) -> Result<api::Volume> {
        let seen = self.shares.look(name, |share| share.seen_by(caller, name))?;
        self.describe(seen.ok_or_else(no_such_volume)?).await
    }

    async fn describe(&self, seen: Seen) -> Result<api::Volume> {
        Ok(api::Volume {
            volume_id: seen.id,
            name: seen.name,
            access: seen.access,
            created: seen.created.to_rfc3339(),
            storage: self.storage_of(seen.id).await?,
        })
    }

    /// Changes a shared volume's quota. What is used already stays, also beyond it.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable`.
    pub async fn change_shared(
        &self,
        caller: &Caller,
        name: &str,
        change: &api::ChangeVolume,
    ) -> Result<api::Volume> {
        let _changing = self.shares.changing.lock().await;
        let id = self.shares.look(name, |share| share.id)?;
        let before = self.usage(id).await?;
        let (bytes, files) =
            (change.quota_bytes.or(before.quota_bytes), change.quota_files.or(before.quota_inodes));
        self.set_quota(id, bytes, files).await?;
        self.shared_volume(caller, name).await
    }

    /// Removes a shared volume with all that is in it, its grants and sessions at once, its data in the background.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable`.
    pub async fn delete_shared(self: &Arc<Self>, name: &str) -> Result<()> {
        let _changing = self.shares.changing.lock().await;
        let (id, grants) = self.shares.look(name, |share| {
            let grants = share.grants.keys().map(|user| meta::remove(keys::grant(share.id, *user)));
            (share.id, grants.collect())
        })?;
        self.remove_with(id, grants).await?;
        self.shares.known().remove(name);
        Ok(())
    }

    /// Grants a user a volume, or changes what the user may do there. More than before counts for sessions that are opened from then
    /// on; less ends the user's sessions.
    ///
    /// # Errors
    /// `NotFound`; `TooManyRequests` when there are too many grants.
    pub async fn grant(&self, name: &str, user: UserId, access: Access) -> Result<()> {
        let _changing = self.shares.changing.lock().await;
        let (id, before) = self.shares.look(name, |share| (share.id, share.grants.get(&user).copied()))?;
        if before.is_none() && self.shares.known().grants >= GRANTS_MAX {
            return Err(Error::too_many_requests(format!("there are {GRANTS_MAX} grants")));
        }
        let write = meta::put(keys::grant(id, user), &access)?;
        self.shared.meta.commit(Vec::new(), vec![write]).await?;
        self.shares.known().set_grant(name, user, Some(access));
        if before.is_some_and(|before| access < before) {
            self.end_sessions_of(id, user).await?;
        }
        Ok(())
    }

    /// Takes a grant away and ends the user's sessions on the volume: nothing that they have begun is committed once this
    /// returns.
    ///
    /// # Errors
    /// `NotFound`, also when there is no such grant.
    pub async fn revoke(&self, name: &str, user: UserId) -> Result<()> {
        let _changing = self.shares.changing.lock().await;
        let granted = |share: &Share| share.grants.contains_key(&user).then_some(share.id);
        let id = self.shares.look(name, granted)?.ok_or_else(|| Error::not_found("grant"))?;
        self.take_grant(name, id, user).await
    }

    /// Takes all grants of a user away who is being deleted.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn revoke_all(&self, user: UserId) -> Result<()> {
        let _changing = self.shares.changing.lock().await;
        let granted: Vec<(String, VolumeId)> = {
            let known = self.shares.known();
            let granted = known.by_name.iter().filter(|(_, share)| share.grants.contains_key(&user));
            granted.map(|(name, share)| (name.clone(), share.id)).collect()
        };
        for (name, id) in granted {
            self.take_grant(&name, id, user).await?;
        }
        Ok(())
    }

    async fn take_grant(&self, name: &str, id: VolumeId, user: UserId) -> Result<()> {
        self.shared.meta.commit(Vec::new(), vec![meta::remove(keys::grant(id, user))]).await?;
        self.shares.known().set_grant(name, user, None);
        self.end_sessions_of(id, user).await
    }

    async fn end_sessions_of(&self, id: VolumeId, user: UserId) -> Result<()> {
        self.shared.audience.end_user_on(id, user);
        // A batch that found its session alive has been submitted by now.
        drop(self.volume(id).await?.lock().await);
        Ok(())
    }

    /// A page of a volume's grants in the order of the users' numbers, and the cursor of the next page.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a bad limit or cursor.
    pub(crate) fn grants(&self, name: &str, limit: u32, cursor: Option<&str>) -> Result<Grants> {
        let limit = checked(limit)?;
        let after = cursor.map(str::parse::<UserId>).transpose()?;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut page: Vec<_> = self.shares.look(name, |share| {
            let after = share.grants.range((from, Bound::Unbounded)).take(limit + 1);
            after.map(|(user, access)| (*user, *access)).collect()
        })?;
        let more = page.len() > limit;
        page.truncate(limit);
        let next = page.last().filter(|_| more).map(|(user, _)| user.to_string());
        Ok((page, next))
    }

    /// What a volume uses and may use.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable`.
    pub(super) async fn storage_of(&self, id: VolumeId) -> Result<Storage> {
        let usage = self.usage(id).await?;
        let room = self.shared.replicator.room().await;
        let free = room.free_bytes / u64::from(self.settings.replicas.max(1));
        let left = usage.quota_bytes.map_or(free, |quota| quota.saturating_sub(usage.bytes).min(free));
        Ok(Storage {
            used_bytes: usage.bytes,
            quota_bytes: usage.quota_bytes,
            available_bytes: left,
            files: usage.inodes,
            quota_files: usage.quota_inodes,
        })
    }
}
