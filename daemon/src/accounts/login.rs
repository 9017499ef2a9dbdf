//! Logins, logouts, and changes of one's own password.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};

use tandemfs::id::UserId;
use tandemfs::{Error, ErrorKind, Result};

use super::record::Account;
use super::{Accounts, Caller, Pass, password, users};
use crate::audit::outcome;
use crate::meta::{self, keys};
use crate::metrics::{COUNTERS, WithResult};

/// The most logouts that are read at start; each is forgotten when its token would have expired.
const REVOKED_MAX: usize = 1_000_000;
/// Under this name all tries at names that nobody can have are counted.
const NO_NAME: &str = "?";

/// What a login gives.
#[derive(Debug)]
pub struct Login {
    /// The JWT.
    pub token: String,
    /// Seconds for which it is valid.
    pub expires_in: u64,
    /// Whose it is.
    pub account: Arc<Account>,
}

impl Accounts {
    /// Logs in. An unknown name, a wrong password and a disabled user get the same answer, after the same work.
    ///
    /// # Errors
    /// `Unauthenticated`; `TooManyRequests` after too many failures; `DefaultPassword` for the well-known password from
    /// another machine; `Invalid` for an overlong password; `Unavailable` when too many log in at once.
    pub async fn login(&self, username: &str, password: &str, from: IpAddr) -> Result<Login> {
        let result = self.try_login(username, password, from).await;
        COUNTERS.logins.get_or_create(&WithResult { result: outcome(&result) }).inc();
        // A try that was not let through tells nothing beyond those that used up what was allowed, and there is no bound to how
        // many of them somebody can make: they are counted, not listed.
        if !result.as_ref().is_err_and(|error| error.kind().is_retryable()) {
            self.audit.note(username, "login", "", Some(from), outcome(&result)).await;
        }
        result
    }

    async fn try_login(&self, username: &str, password: &str, from: IpAddr) -> Result<Login> {
        password::check_length(password)?;
        let account = match users::check_name(username) {
            Ok(()) => self.by_name(username).await?,
            Err(_) => None,
        };
        let known = account.as_ref().filter(|account| !account.disabled);
        let name = if users::check_name(username).is_ok() { username } else { NO_NAME };
        if !self.is_password(name, known, password, from).await? {
            return Err(Error::unauthenticated("the name or the password is wrong"));
        }
        let account = account.ok_or_else(|| Error::unauthenticated("the name or the password is wrong"))?;
        if account.default_password && !from.to_canonical().is_loopback() {
            return Err(Error::default_password("change it on the daemon's machine first"));
        }
        let account = self.strengthen(account, password).await?;
        let ttl = self.rules.token_ttl_s;
        let (token, _) = self.keys().sign(account.id.0, account.generation, self.now_s(), ttl)?;
        Ok(Login { token, expires_in: ttl, account })
    }

    /// Whether a password is the account's, for whoever the throttle lets try.
    async fn is_password(
        &self,
        name: &str,
        account: Option<&Arc<Account>>,
        password: &str,
        from: IpAddr,
    ) -> Result<bool> {
        // Tries are counted only once they have a place, so that those who wait do not stand for failures.
        let place = self.hasher.place().await?;
        let attempt = self.throttle.begin(name, from)?;
        let right =
            self.hasher.verify(&place, password, account.map(|account| account.password.as_str())).await?;
        drop(place);
        if right {
            attempt.succeeded().await?;
        } else {
            attempt.failed().await?;
        }
        Ok(right)
    }

    /// Makes the hash anew if it was made with weaker parameters than those in force.
    async fn strengthen(&self, account: Arc<Account>, password: &str) -> Result<Arc<Account>> {
        if !self.hasher.is_weaker(&account.password) {
            return Ok(account);
        }
        let hash = self.hasher.hash(password).await?;
        let _changing = self.changing.lock().await;
        match self.load(account.id).await? {
            Some(before) if before.password == account.password => {
                self.replace(&before, Account { password: hash, ..(*before).clone() }, Vec::new()).await
            }
            _ => Ok(account),
        }
    }

    /// Changes the caller's own password and ends all of the caller's tokens.
    ///
    /// # Errors
    /// `Forbidden` when `current` is wrong; `Invalid` when the new one may not be had; `TooManyRequests`.
    pub async fn change_password(
        &self,
        caller: &Caller,
        current: &str,
        new: &str,
        from: IpAddr,
    ) -> Result<()> {
        let result = self.try_change_password(caller, current, new, from).await;
        let name = &caller.username;
        self.audit.note(name, "change password", name, Some(from), outcome(&result)).await;
        result
    }

    async fn try_change_password(
        &self,
        caller: &Caller,
        current: &str,
        new: &str,
        from: IpAddr,
    ) -> Result<()> {
        password::check_length(current)?;
        let account = self.by_id(caller.user).await?;
        if !self.is_password(&caller.username, account.as_ref(), current, from).await? {
            return Err(Error::forbidden("the current password is wrong"));
        }
        password::check_new(&caller.username, new)?;
        let hash = self.hasher.hash(new).await?;
        {
            let _changing = self.changing.lock().await;
            let before = self.load(caller.user).await?.ok_or_else(|| Error::not_found("user"))?;
            let after = Account {
                password: hash,
                default_password: false,
                generation: before.generation + 1,
                ..(*before).clone()
            };
            let writes = self.end_tokens(before.id).await?;
            self.replace(&before, after, writes).await?;
        }
        self.visits.end(|pass| pass.user == caller.user);
        self.homes.end_sessions(caller.user).await;
        Ok(())
    }

    /// The user of a JWT that counts.
    pub(super) async fn owner_of_jwt(&self, token: &str) -> Result<Option<(Arc<Account>, Pass)>> {
        let keys = self.keys();
        let Some(claims) = keys.verify(token, self.now_s(), self.rules.token_ttl_s) else {
            return Ok(None);
        };
        if self.revoked().contains_key(&claims.jti) {
            return Ok(None);
        }
        let Ok(id) = claims.sub.parse::<UserId>() else { return Ok(None) };
        let account = self.by_id(id).await?.filter(|account| account.generation == claims.ver);
        Ok(account.map(|account| {
            (account, Pass { user: id, token: claims.jti, key: keys.key_of(token).map(str::to_owned) })
        }))
    }

    /// Ends a JWT, or revokes an API token.
    ///
    /// # Errors
    /// Those of the metadata.
    pub async fn logout(&self, caller: &Caller, token: &str, from: IpAddr) -> Result<()> {
        if token.starts_with(super::token::PREFIX) {
            self.revoke_secret(token).await?;
        } else if let Some(claims) = self.keys().verify(token, self.now_s(), self.rules.token_ttl_s) {
            let write = meta::put(keys::revoked(claims.exp, &claims.jti), &())?;
            self.meta.commit(Vec::new(), vec![write]).await?;
            let now = self.now_s();
            {
                let mut revoked = self.revoked();
                revoked.retain(|_, expires| *expires > now);
                revoked.insert(claims.jti.clone(), claims.exp);
            }
            self.visits.end(|pass| pass.token == claims.jti);
        }
        self.audit.note(&caller.username, "logout", "", Some(from), "ok").await;
        Ok(())
    }

    fn revoked(&self) -> std::sync::MutexGuard<'_, std::collections::BTreeMap<String, u64>> {
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the logouts that still matter, and removes the others.
    pub(super) async fn load_revoked(&self) -> Result<()> {
        let (from, to) = keys::revoked_range();
        let now = self.now_s();
        let mut old = Vec::new();
        for (key, ()) in self.meta.scan::<()>(&from, &to, REVOKED_MAX).await? {
            match keys::parse_revoked(&key) {
                Some((expires, jti)) if expires > now => {
                    self.revoked().insert(jti, expires);
                }
                _ => old.push(meta::remove(key)),
            }
        }
        if old.is_empty() { Ok(()) } else { self.meta.commit(Vec::new(), old).await }
    }
}

/// Whether an error says that somebody else was first.
pub(super) fn is_stale(error: &Error) -> bool {
    error.kind() == ErrorKind::Stale
}
