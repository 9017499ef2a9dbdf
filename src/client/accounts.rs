//! Logins, users and tokens.

use super::Client;
use super::transport::Call;
use crate::Result;
use crate::api::users::{
    ChangePassword, ChangeUser, CreatedToken, Login, LoginReply, NewToken, Register, SigningKeyList,
    TokenList, User, UserPage,
};

/// Each method's errors are the daemon's, or `Unavailable` when it could not be asked.
#[expect(clippy::missing_errors_doc, reason = "said once, above")]
impl Client {
    /// Exchanges a password for a short-lived token.
    pub async fn login(&self, login: &Login) -> Result<LoginReply> {
        self.transport.value(Call::post(&["login"]).anonymous().body(login)?).await
    }

    /// Who the caller is.
    pub async fn me(&self) -> Result<User> {
        self.transport.value(Call::get(&["v1", "me"])).await
    }

    /// Changes the caller's password, which ends all tokens.
    pub async fn change_password(&self, change: &ChangePassword) -> Result<()> {
        self.transport.done(Call::post(&["v1", "me", "password"]).body(change)?).await
    }

    /// Makes a user (admins).
    pub async fn register(&self, user: &Register) -> Result<User> {
        self.transport.value(Call::post(&["register"]).body(user)?).await
    }

    /// A page of the users (admins).
    pub async fn list_users(&self, cursor: Option<&str>) -> Result<UserPage> {
        self.transport
            .value(Call::get(&["v1", "users"]).query("limit", Some(1000)).query("cursor", cursor))
            .await
    }

    /// Changes a user (admins).
    pub async fn change_user(&self, username: &str, change: &ChangeUser) -> Result<User> {
        self.transport.value(Call::patch(&["v1", "users", username]).body(change)?).await
    }

    /// Removes a user with all that is in the home volume (admins).
    pub async fn delete_user(&self, username: &str) -> Result<()> {
        self.transport.done(Call::delete(&["v1", "users", username])).await
    }

    /// Makes a long-lived token for the caller.
    pub async fn create_token(&self, token: &NewToken) -> Result<CreatedToken> {
        self.transport.value(Call::post(&["v1", "tokens"]).body(token)?).await
    }

    /// The keys that sign the tokens of logins (admins).
    pub async fn signing_keys(&self) -> Result<SigningKeyList> {
        self.transport.value(Call::get(&["v1", "keys"])).await
    }

    /// Has a new key sign from now on (admins).
    pub async fn rotate_signing_keys(&self) -> Result<SigningKeyList> {
        self.transport.value(Call::post(&["v1", "keys"])).await
    }

    /// Drops a key, and so ends all tokens that it has signed (admins).
    pub async fn drop_signing_key(&self, key_id: &str) -> Result<()> {
        self.transport.done(Call::delete(&["v1", "keys", key_id])).await
    }

    /// The caller's tokens, or another user's (admins).
    pub async fn list_tokens(&self, user: Option<&str>) -> Result<TokenList> {
        self.transport.value(Call::get(&["v1", "tokens"]).query("user", user)).await
    }

    /// Ends a token of the caller, or of another user (admins).
    pub async fn revoke_token(&self, token_id: &str, user: Option<&str>) -> Result<()> {
        self.transport.done(Call::delete(&["v1", "tokens", token_id]).query("user", user)).await
    }
}
