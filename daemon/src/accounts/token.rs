//! API tokens: secrets that users make for their programs.

use std::net::IpAddr;
use std::sync::Arc;

use tandemfs::api::users as api;
use tandemfs::clock::Time;
use tandemfs::id::UserId;
use tandemfs::{Error, Result};

use super::record::{Account, ApiToken};
use super::{Accounts, Caller, Pass, login};
use crate::meta::{self, Guard, Write, keys};
use crate::random::random;

/// How a token begins, so that people and scanners of secrets know it.
pub(super) const PREFIX: &str = "tfs_";
/// Tokens of one user.
const TOKENS_MAX: usize = 100;
const NAME_CHARACTERS_MAX: usize = 64;
const DAYS_MAX: u32 = 3650;
const DAY_S: i64 = 86_400;

/// Under what a token is stored. The secret has 256 random bits, so a plain hash is enough.
fn hash(token: &str) -> [u8; 32] {
    blake3::derive_key("tandemfs 2026-01 API token", token.as_bytes())
}

fn describe(token: &ApiToken, username: &str) -> api::Token {
    api::Token {
        token_id: token.id.clone(),
        name: token.name.clone(),
        username: username.to_owned(),
        created: token.created.to_rfc3339(),
        expires: token.expires.map(Time::to_rfc3339),
        last_used: token.last_used.map(Time::to_rfc3339),
    }
}

impl Accounts {
    /// Makes a token for the caller.
    ///
    /// # Errors
    /// `Invalid`; `AlreadyExists` when the caller has one of that name.
    pub async fn create_token(
        &self,
        caller: &Caller,
        new: &api::NewToken,
        from: IpAddr,
    ) -> Result<api::CreatedToken> {
        let characters = new.name.chars().count();
        if characters == 0 || characters > NAME_CHARACTERS_MAX || new.name.chars().any(char::is_control) {
            return Err(Error::invalid(format!(
                "a token's name has 1 to {NAME_CHARACTERS_MAX} printable characters"
            )));
        }
        if new.expires_in_days.is_some_and(|days| !(1..=DAYS_MAX).contains(&days)) {
            return Err(Error::invalid(format!("a token expires after 1 to {DAYS_MAX} days")));
        }
        let secret = format!("{PREFIX}{}", hex::encode(random::<32>()?));
        let hash = hash(&secret);
        let now = self.clock.now();
        let _changing = self.changing.lock().await;
        if self.tokens_of(caller.user).await?.len() >= TOKENS_MAX {
            return Err(Error::invalid(format!("a user has at most {TOKENS_MAX} tokens")));
        }
        let account = self.load(caller.user).await?.ok_or_else(|| Error::not_found("user"))?;
        let token = ApiToken {
            id: hex::encode(random::<8>()?),
            name: new.name.clone(),
            user: caller.user,
            generation: account.generation,
            created: now,
            expires: new
                .expires_in_days
                .map(|days| Time { seconds: now.seconds + i64::from(days) * DAY_S, ..now }),
            last_used: None,
        };
        let index = keys::user_token(caller.user, &new.name);
        let writes = vec![meta::put(index.clone(), &hash)?, meta::put(keys::token(&hash), &token)?];
        self.meta.commit(vec![Guard { key: index, value: None }], writes).await.map_err(|error| {
            if login::is_stale(&error) {
                Error::already_exists(format!("token {:?}", new.name))
            } else {
                error
            }
        })?;
        self.audit.note(&caller.username, "create token", &new.name, Some(from), "ok").await;
        Ok(api::CreatedToken { token: secret, info: describe(&token, &caller.username) })
    }

    /// A user's tokens, by name.
    ///
    /// # Errors
    /// `NotFound` for an unknown user.
    pub async fn list_tokens(&self, username: &str) -> Result<Vec<api::Token>> {
        let account = self.by_name(username).await?.ok_or_else(|| Error::not_found("user"))?;
        let mut tokens = Vec::new();
        for (_, _, token) in self.tokens_of(account.id).await? {
            tokens.push(describe(&token, username));
        }
        Ok(tokens)
    }

    /// Revokes a token of a user.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn revoke_token(&self, caller: &Caller, username: &str, id: &str, from: IpAddr) -> Result<()> {
        let account = self.by_name(username).await?.ok_or_else(|| Error::not_found("token"))?;
        let _changing = self.changing.lock().await;
        let found = self.tokens_of(account.id).await?.into_iter().find(|(_, _, token)| token.id == id);
        let (index, hash, token) = found.ok_or_else(|| Error::not_found("token"))?;
        self.tokens.remove(&hash);
        self.meta.commit(Vec::new(), vec![meta::remove(index), meta::remove(keys::token(&hash))]).await?;
        self.visits.end(|pass| pass.token == token.id);
        let object = format!("{username}/{}", token.name);
        self.audit.note(&caller.username, "revoke token", &object, Some(from), "ok").await;
        Ok(())
    }

    /// Revokes a token by its secret.
    pub(super) async fn revoke_secret(&self, secret: &str) -> Result<()> {
        let hash = hash(secret);
        let _changing = self.changing.lock().await;
        if let Some(token) = self.meta.get::<ApiToken>(&keys::token(&hash)).await? {
            self.tokens.remove(&hash);
            let index = keys::user_token(token.user, &token.name);
            self.meta.commit(Vec::new(), vec![meta::remove(index), meta::remove(keys::token(&hash))]).await?;
            self.visits.end(|pass| pass.token == token.id);
        }
        Ok(())
    }

    /// The user of an API token that counts.
    pub(super) async fn owner_of_token(&self, secret: &str) -> Result<Option<(Arc<Account>, Pass)>> {
        let hash = hash(secret);
        let token = match self.tokens.get(&hash) {
            Some(token) => token,
            None => {
                let _changing = self.changing.lock().await;
                let Some(token) = self.meta.get::<ApiToken>(&keys::token(&hash)).await? else {
                    return Ok(None);
                };
                let token = Arc::new(token);
                self.tokens.insert(hash, Arc::clone(&token));
                token
            }
        };
        let now = self.clock.now();
        if token.expires.is_some_and(|expires| expires <= now) {
            return Ok(None);
        }
        let account = self.by_id(token.user).await?.filter(|account| account.generation == token.generation);
        if account.as_ref().is_some_and(|account| !account.disabled) {
            self.note_use(&hash, &token, now).await;
        }
        Ok(account.map(|account| (account, Pass { user: token.user, token: token.id.clone(), key: None })))
    }

    /// Keeps when a token was last used, to the minute. That this cannot be stored keeps nobody from using it.
    async fn note_use(&self, hash: &[u8; 32], token: &ApiToken, now: Time) {
        let minute = Time { seconds: now.seconds - now.seconds.rem_euclid(60), nanos: 0 };
        if token.last_used.is_some_and(|used| used >= minute) {
            return;
        }
        let _changing = self.changing.lock().await;
        let key = keys::token(hash);
        let Ok(Some(before)) = self.meta.get::<ApiToken>(&key).await else { return };
        if before.last_used.is_some_and(|used| used >= minute) {
            return;
        }
        let after = Arc::new(ApiToken { last_used: Some(minute), ..before });
        self.tokens.insert(*hash, Arc::clone(&after));
        if let Ok(write) = meta::put(key, &*after)
            && let Err(error) = self.meta.commit(Vec::new(), vec![write]).await
        {
            log::warn!("the last use of a token was not stored: {error}");
        }
    }

    /// The writes that remove all of a user's API tokens; the caller holds the lock.
    pub(super) async fn end_tokens(&self, user: UserId) -> Result<Vec<Write>> {
        let mut writes = Vec::new();
        for (index, hash, _) in self.tokens_of(user).await? {
            self.tokens.remove(&hash);
            writes.extend([meta::remove(index), meta::remove(keys::token(&hash))]);
        }
        Ok(writes)
    }

    async fn tokens_of(&self, user: UserId) -> Result<Vec<(meta::Key, [u8; 32], ApiToken)>> {
        let from = keys::user_token(user, "");
        let index = self.meta.scan::<[u8; 32]>(&from, &keys::end_of(&from), TOKENS_MAX).await?;
        let names: Vec<_> = index.iter().map(|(_, hash)| keys::token(hash)).collect();
        let tokens = self.meta.get_many::<ApiToken>(&names).await?;
        Ok(index
            .into_iter()
            .zip(tokens)
            .filter_map(|((key, hash), token)| Some((key, hash, token?)))
            .collect())
    }
}
