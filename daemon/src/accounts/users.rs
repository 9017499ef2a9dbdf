//! Making, changing and removing users.

use std::net::IpAddr;
use std::sync::Arc;

use tandemfs::api::users as api;
use tandemfs::api::users::Role;
use tandemfs::id::UserId;
use tandemfs::{Error, Result};

use super::record::Account;
use super::{Accounts, Caller, login, password};
use crate::audit::{self, outcome};
use crate::meta::{self, Guard, keys};

/// The name of the first admin.
pub(super) const FIRST_ADMIN: &str = "admin";
/// The password that the first admin has when nobody gave another. It can be had in no other way.
const DEFAULT_PASSWORD: &str = "admin123";
const PAGE_MAX: usize = 1000;

/// A user who is to be made.
#[derive(Clone)]
pub struct NewUser {
    /// The name.
    pub username: String,
    /// The password.
    pub password: String,
    /// What the user may do.
    pub role: Role,
    /// Bytes that the home volume may take; the default if `None`.
    pub quota_bytes: Option<u64>,
    /// Inodes that the home volume may have; the default if `None`.
    pub quota_files: Option<u64>,
}

impl std::fmt::Debug for NewUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewUser").field("username", &self.username).finish_non_exhaustive()
    }
}

/// A change of a user by an admin.
pub type Change = api::ChangeUser;

/// Checks a user name.
///
/// # Errors
/// `Invalid`.
pub(super) fn check_name(name: &str) -> Result<()> {
    tandemfs::name::check_plain("user", name)
}

impl Accounts {
    /// Makes the first admin, if there is no user yet. Of several daemons that start at once, one does it.
    pub(super) async fn make_first_admin(&self, given: Option<&str>) -> Result<()> {
        let from = keys::user(UserId(0));
        if !self.meta.scan_raw(&from, &keys::end_of(&from[..1]), 1).await?.is_empty() {
            return Ok(());
        }
        if let Some(password) = given {
            password::check_new(FIRST_ADMIN, password)?;
        }
        let new = NewUser {
            username: FIRST_ADMIN.to_owned(),
            password: given.unwrap_or(DEFAULT_PASSWORD).to_owned(),
            role: Role::Admin,
            quota_bytes: None,
            quota_files: None,
        };
        match self.insert(&new, given.is_none()).await {
            Ok(_) => {
                self.audit.note(audit::DAEMON, "create user", FIRST_ADMIN, None, "ok").await;
                Ok(())
            }
            Err(error) if login::is_stale(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes a user and the user's home volume.
    ///
    /// # Errors
    /// `Invalid`; `AlreadyExists`.
    pub async fn create(&self, caller: &Caller, new: &NewUser, from: IpAddr) -> Result<api::User> {
        let result = self.try_create(new).await;
        self.audit.note(&caller.username, "create user", &new.username, Some(from), outcome(&result)).await;
        self.describe(&*result?).await
    }

    async fn try_create(&self, new: &NewUser) -> Result<Arc<Account>> {
        check_name(&new.username)?;
        password::check_new(&new.username, &new.password)?;
        let taken = || Error::already_exists(format!("user {}", new.username));
        if self.by_name(&new.username).await?.is_some() {
            return Err(taken());
        }
        self.insert(new, false).await.map_err(|error| if login::is_stale(&error) { taken() } else { error })
    }

    /// `Stale` when the name is taken.
    async fn insert(&self, new: &NewUser, default_password: bool) -> Result<Arc<Account>> {
        let hash = self.hasher.hash(&new.password).await?;
        let id = UserId(self.meta.next_numbers("user", 1).await?);
        let quota_bytes = new.quota_bytes.or(self.rules.quota_bytes);
        let quota_files = new.quota_files.or(self.rules.quota_files);
        let (home, mut writes) = self.homes.new_home(id, quota_bytes, quota_files).await?;
        let account = Account {
            id,
            username: new.username.clone(),
            role: new.role,
            disabled: false,
            created: self.clock.now(),
            password: hash,
            default_password,
            home,
            generation: 1,
        };
        let name = keys::user_name(&new.username);
        writes.push(meta::put(name.clone(), &id)?);
        writes.push(meta::put(keys::user(id), &account)?);
        self.meta.commit(vec![Guard { key: name, value: None }], writes).await?;
        Ok(Arc::new(account))
    }

    /// A user by name.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn user(&self, username: &str) -> Result<api::User> {
        let account = self.by_name(username).await?.ok_or_else(|| Error::not_found("user"))?;
        self.describe(&account).await
    }

    /// The name of a user.
    ///
    /// # Errors
    /// Those of the metadata.
    pub async fn username(&self, id: UserId) -> Result<Option<String>> {
        Ok(self.by_id(id).await?.map(|account| account.username.clone()))
    }

    /// How many users there are.
    ///
    /// # Errors
    /// Those of the metadata.
    pub async fn count(&self) -> Result<u64> {
        let mut from = keys::user_name("");
        let to = keys::end_of(&from);
        let mut count = 0;
        loop {
            let page = self.meta.scan_raw(&from, &to, PAGE_MAX).await?;
            count += page.len() as u64;
            match page.into_iter().nth(PAGE_MAX - 1) {
                Some((last, _)) => from = after(last),
                None => return Ok(count),
            }
        }
    }

    /// A page of users in the order of their names, those after `cursor`.
    ///
    /// # Errors
    /// `Invalid` for a bad limit.
    pub async fn list(&self, limit: u32, cursor: Option<&str>) -> Result<api::UserPage> {
        let limit = usize::try_from(limit).unwrap_or(0);
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(Error::invalid(format!("limit is 1 to {PAGE_MAX}")));
        }
        let from = match cursor {
            Some(name) => after(keys::user_name(name)),
            None => keys::user_name(""),
        };
        let to = keys::end_of(&keys::user_name(""));
        let names = self.meta.scan::<UserId>(&from, &to, limit + 1).await?;
        let more = names.len() > limit;
        let mut users = Vec::new();
        for (_, id) in names.into_iter().take(limit) {
            if let Some(account) = self.by_id(id).await? {
                users.push(self.describe(&account).await?);
            }
        }
        let next_cursor = users.last().filter(|_| more).map(|user| user.username.clone());
        Ok(api::UserPage { users, next_cursor })
    }

    async fn describe(&self, account: &Account) -> Result<api::User> {
        let (quota_bytes, quota_files) = self.homes.quota(account.home).await?;
        Ok(api::User {
            user_id: account.id,
            username: account.username.clone(),
            role: account.role,
            disabled: account.disabled,
            created: account.created.to_rfc3339(),
            quota_bytes,
            quota_files,
        })
    }

    /// Changes a user. Another role or password, and disabling, end all of the user's tokens.
    ///
    /// # Errors
    /// `NotFound`; `Invalid`; `Forbidden` for what would leave no admin.
    pub async fn change(
        &self,
        caller: &Caller,
        username: &str,
        change: &Change,
        from: IpAddr,
    ) -> Result<api::User> {
        let result = self.try_change(username, change).await;
        let mut what = vec!["change user"];
        what.extend(change.role.map(|_| "role"));
        what.extend(change.disabled.map(|_| "disabled"));
        what.extend(change.quota_bytes.or(change.quota_files).map(|_| "quota"));
        what.extend(change.password.as_ref().map(|_| "password"));
        self.audit.note(&caller.username, &what.join(" "), username, Some(from), outcome(&result)).await;
        self.describe(&*result?).await
    }

    async fn try_change(&self, username: &str, change: &Change) -> Result<Arc<Account>> {
        let account = self.by_name(username).await?.ok_or_else(|| Error::not_found("user"))?;
        let hash = match &change.password {
            Some(password) => {
                password::check_new(username, password)?;
                Some(self.hasher.hash(password).await?)
            }
            None => None,
        };
        let changing = self.changing.lock().await;
        let before = self.load(account.id).await?.ok_or_else(|| Error::not_found("user"))?;
        let role = change.role.unwrap_or(before.role);
        let disabled = change.disabled.unwrap_or(before.disabled);
        let loses_admin = before.role == Role::Admin && !before.disabled && (role != Role::Admin || disabled);
        if loses_admin && !self.has_other_admin(before.id).await? {
            return Err(Error::forbidden("this is the last admin"));
        }
        let ends = role != before.role || hash.is_some() || (disabled && !before.disabled);
        let ends_sessions = hash.is_some() || (disabled && !before.disabled);
        let after = Account {
            role,
            disabled,
            default_password: before.default_password && hash.is_none(),
            password: hash.unwrap_or_else(|| before.password.clone()),
            generation: before.generation + u64::from(ends),
            ..(*before).clone()
        };
        let mut account = Arc::clone(&before);
        if after != *before {
            let writes = if ends { self.end_tokens(before.id).await? } else { Vec::new() };
            account = self.replace(&before, after, writes).await?;
        }
        drop(changing);
        if ends {
            self.visits.end(|pass| pass.user == before.id);
        }
        if ends_sessions {
            self.homes.end_sessions(account.id).await;
        }
        if change.quota_bytes.is_some() || change.quota_files.is_some() {
            let (bytes, files) = self.homes.quota(account.home).await?;
            self.homes
                .set_quota(account.home, change.quota_bytes.or(bytes), change.quota_files.or(files))
                .await?;
        }
        Ok(account)
    }

    async fn has_other_admin(&self, than: UserId) -> Result<bool> {
        let mut from = keys::user(UserId(0));
        let to = keys::end_of(&from[..1]);
        loop {
            let page = self.meta.scan::<Account>(&from, &to, PAGE_MAX).await?;
            if page.iter().any(|(_, user)| user.id != than && user.role == Role::Admin && !user.disabled) {
                return Ok(true);
            }
            match page.into_iter().nth(PAGE_MAX - 1) {
                Some((last, _)) => from = after(last),
                None => return Ok(false),
            }
        }
    }

    /// Removes a user, the user's tokens and sessions at once, and the home volume in the background.
    ///
    /// # Errors
    /// `NotFound`; `Forbidden` for the last admin.
    pub async fn delete(&self, caller: &Caller, username: &str, from: IpAddr) -> Result<()> {
        let result = self.try_delete(username).await;
        self.audit.note(&caller.username, "delete user", username, Some(from), outcome(&result)).await;
        result
    }

    async fn try_delete(&self, username: &str) -> Result<()> {
        let account = self.by_name(username).await?.ok_or_else(|| Error::not_found("user"))?;
        let before = {
            let _changing = self.changing.lock().await;
            let before = self.load(account.id).await?.ok_or_else(|| Error::not_found("user"))?;
            if before.role == Role::Admin && !before.disabled && !self.has_other_admin(before.id).await? {
                return Err(Error::forbidden("this is the last admin"));
            }
            let key = keys::user(before.id);
            let guard = meta::expect(key.clone(), Some(&*before))?;
            let mut writes = self.end_tokens(before.id).await?;
            writes.extend([meta::remove(keys::user_name(username)), meta::remove(key)]);
            self.users.remove(&before.id);
            self.meta.commit(vec![guard], writes).await?;
            before
        };
        self.visits.end(|pass| pass.user == before.id);
        self.homes.end_sessions(before.id).await;
        self.homes.remove(before.home).await?;
        self.homes.revoke_grants(before.id).await
    }
}

/// The first key after another.
fn after(mut key: meta::Key) -> meta::Key {
    key.push(0);
    key
}
