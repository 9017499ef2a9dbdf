//! Users, passwords, tokens, and the throttle on guessing. Nothing else reads secrets.
//!
//! A token is a JWT from a login, or an API token that a user made. Both carry the user's *generation*, and end when it is
//! raised: by another password, another role, or when the user is disabled.

mod jwt;
mod login;
mod password;
mod record;
mod signing;
mod throttle;
mod token;
mod users;
mod visits;

pub use login::Login;
pub use record::Account;
pub(crate) use throttle::network;
pub use users::{Change, NewUser};
pub use visits::Visit;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use async_trait::async_trait;
use quick_cache::sync::Cache;
use tandemfs::api::users::Role;
use tandemfs::clock::Clock;
use tandemfs::id::{UserId, VolumeId};
use tandemfs::{Error, Result};

use crate::audit::Audit;
use crate::meta::{self, Meta, Write, keys};
use visits::{Pass, Visits};

/// Users and tokens that are kept decoded.
const CACHE_ENTRIES: usize = 16_384;

/// Who is asking, as the request's token told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The user.
    pub user: UserId,
    /// The name.
    pub username: String,
    /// What the user may do.
    pub role: Role,
    /// The home volume.
    pub home: VolumeId,
}

/// What accounts need of the volumes: a home for each user.
#[async_trait]
pub trait Homes: Send + Sync + Debug {
    /// The writes that make a home volume, to be committed with its owner.
    async fn new_home(
        &self,
        owner: UserId,
        quota_bytes: Option<u64>,
        quota_files: Option<u64>,
    ) -> Result<(VolumeId, Vec<Write>)>;

    /// The quota of a home volume: bytes and inodes.
    async fn quota(&self, home: VolumeId) -> Result<(Option<u64>, Option<u64>)>;

    /// Changes the quota of a home volume.
    async fn set_quota(&self, home: VolumeId, bytes: Option<u64>, files: Option<u64>) -> Result<()>;

    /// Removes a home volume and all that is in it, in the background.
    async fn remove(&self, home: VolumeId) -> Result<()>;

    /// Ends the sessions of a user's mounts.
    async fn end_sessions(&self, user: UserId);

    /// Takes all grants of a user on shared volumes away.
    async fn revoke_grants(&self, user: UserId) -> Result<()>;
}

/// What of the settings concerns accounts.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How long a JWT is valid, in seconds.
    pub token_ttl_s: u64,
    /// Password hashes that are computed at once.
    pub max_logins: usize,
    /// Quota of a new home volume, in bytes.
    pub quota_bytes: Option<u64>,
    /// Quota of a new home volume, in inodes.
    pub quota_files: Option<u64>,
    /// The signing keys lie in a file as well. Where the metadata is sealed they do not.
    pub keep_key_file: bool,
}

/// All accounts.
#[derive(Debug)]
pub struct Accounts {
    meta: Meta,
    audit: Arc<Audit>,
    clock: Arc<dyn Clock>,
    homes: Arc<dyn Homes>,
    rules: Rules,
    key_file: PathBuf,
    keys: RwLock<Arc<jwt::Keys>>,
    hasher: password::Hasher,
    throttle: throttle::Throttle,
    users: Cache<UserId, Arc<Account>>,
    tokens: Cache<[u8; 32], Arc<record::ApiToken>>,
    /// Tokens that were logged out, with the second at which they would have expired.
    revoked: Mutex<BTreeMap<String, u64>>,
    visits: Arc<Visits>,
    /// Held by whoever changes users or tokens, and while a cache is filled, so that a cache never holds what was before.
    changing: tokio::sync::Mutex<()>,
}

impl Accounts {
    /// Opens the accounts; at the first start, makes the first admin, with `first_password` or the well-known one.
    ///
    /// # Errors
    /// Those of the metadata, and of the file with the signing keys.
    pub async fn open(
        meta: Meta,
        audit: Arc<Audit>,
        homes: Arc<dyn Homes>,
        clock: Arc<dyn Clock>,
        rules: Rules,
        key_file: &Path,
        first_password: Option<&str>,
    ) -> Result<Self> {
        let accounts = Self {
            throttle: throttle::Throttle::open(meta.clone(), Arc::clone(&clock)).await?,
            keys: RwLock::new(Arc::new(Self::open_keys(&meta, &audit, key_file, rules.keep_key_file).await?)),
            key_file: key_file.to_owned(),
            hasher: password::Hasher::new(rules.max_logins)?,
            users: Cache::new(CACHE_ENTRIES),
            tokens: Cache::new(CACHE_ENTRIES),
            revoked: Mutex::default(),
            visits: Arc::default(),
            changing: tokio::sync::Mutex::default(),
            meta,
            audit,
            clock,
            homes,
            rules,
        };
        accounts.load_revoked().await?;
        accounts.make_first_admin(first_password).await?;
        Ok(accounts)
    }

    /// Whose token it is, and the request as one that ends with the token.
    ///
    /// # Errors
    /// `Unauthenticated` for any token that does not count, with the same words for each.
    pub async fn authenticate(&self, token: &str) -> Result<(Caller, Visit)> {
        loop {
            let endings = self.visits.endings();
            let found = if token.starts_with(token::PREFIX) {
                self.owner_of_token(token).await?
            } else {
                self.owner_of_jwt(token).await?
            };
            let (account, pass) = found
                .filter(|(account, _)| !account.disabled)
                .ok_or_else(|| Error::unauthenticated("the token is not valid, or not any more"))?;
            if let Some(visit) = self.visits.enter(endings, pass) {
                let caller = Caller {
                    user: account.id,
                    username: account.username.clone(),
                    role: account.role,
                    home: account.home,
                };
                return Ok((caller, visit));
            }
        }
    }

    /// Whether some user's password is still the well-known one.
    ///
    /// # Errors
    /// Those of the metadata.
    pub async fn has_default_password(&self) -> Result<bool> {
        let admin = self.by_name(users::FIRST_ADMIN).await?;
        Ok(admin.is_some_and(|admin| admin.default_password && !admin.disabled))
    }

    fn now_s(&self) -> u64 {
        u64::try_from(self.clock.now().seconds).unwrap_or(0)
    }

    /// A user by number.
    async fn by_id(&self, id: UserId) -> Result<Option<Arc<Account>>> {
        if let Some(account) = self.users.get(&id) {
            return Ok(Some(account));
        }
        let _changing = self.changing.lock().await;
        self.load(id).await
    }

    /// As [`Self::by_id`], for who holds the lock.
    async fn load(&self, id: UserId) -> Result<Option<Arc<Account>>> {
        let account = self.meta.get::<Account>(&keys::user(id)).await?.map(Arc::new);
        if let Some(account) = &account {
            self.users.insert(id, Arc::clone(account));
        }
        Ok(account)
    }

    /// A user by name.
    async fn by_name(&self, name: &str) -> Result<Option<Arc<Account>>> {
        match self.meta.get::<UserId>(&keys::user_name(name)).await? {
            Some(id) => self.by_id(id).await,
            None => Ok(None),
        }
    }

    /// Commits a change of a user; the caller holds the lock and has loaded `before` under it.
    async fn replace(
        &self,
        before: &Account,
        after: Account,
        mut writes: Vec<Write>,
    ) -> Result<Arc<Account>> {
        let key = keys::user(before.id);
        let guard = meta::expect(key.clone(), Some(before))?;
        writes.push(meta::put(key, &after)?);
        // Whatever comes of the commit, the next one to ask reads what is stored.
        self.users.remove(&before.id);
        self.meta.commit(vec![guard], writes).await?;
        let after = Arc::new(after);
        self.users.insert(after.id, Arc::clone(&after));
        Ok(after)
    }
}

#[cfg(test)]
mod tests;
