//! Users, logins and tokens.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::UserId;

/// What a user may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything, but not read other users' files.
    Admin,
    /// Use the own home volume and what is granted.
    #[default]
    User,
}

/// `POST /login`.
#[derive(Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// The user's name.
    pub username: String,
    /// The password, at most 1024 bytes.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

/// The answer to a login.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct LoginReply {
    /// A JWT for `Authorization: Bearer`.
    pub token: String,
    /// Always `Bearer`.
    pub token_type: String,
    /// Seconds until the token expires.
    pub expires_in: u64,
    /// Whose it is.
    pub user: LoginUser,
}

/// Whose token it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoginUser {
    /// The name.
    pub username: String,
    /// The role.
    pub role: Role,
}

/// `POST /register`.
#[derive(Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// 1 to 64 of `a-z 0-9 . _ -`, the first a letter or a digit.
    #[schema(pattern = "^[a-z0-9][a-z0-9._-]{0,63}$")]
    pub username: String,
    /// 8 to 1024 bytes, not one of the most common ones.
    #[schema(min_length = 8, max_length = 1024)]
    pub password: String,
    /// `user` if not given.
    #[serde(default)]
    pub role: Role,
    /// Bytes that the home volume may take; the daemon's default if not given.
    pub quota_bytes: Option<u64>,
    /// Inodes that the home volume may have; the daemon's default if not given.
    pub quota_files: Option<u64>,
}

/// A user, as admins see it and as users see themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct User {
    /// The number, never used twice.
    #[schema(value_type = u64)]
    pub user_id: UserId,
    /// The name.
    pub username: String,
    /// The role.
    pub role: Role,
    /// A disabled user cannot log in, and tokens do not work.
    pub disabled: bool,
    /// When it was made.
    pub created: String,
    /// Bytes that the home volume may take; null for no limit.
    pub quota_bytes: Option<u64>,
    /// Inodes that the home volume may have; null for no limit.
    pub quota_files: Option<u64>,
}

/// A page of users, by name.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UserPage {
    /// The users.
    pub users: Vec<User>,
    /// Give it as `cursor` to get the next page; null at the end.
    pub next_cursor: Option<String>,
}

/// `PATCH /v1/users/<name>`, for admins. What is not given stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeUser {
    /// Another role; ends the user's tokens.
    pub role: Option<Role>,
    /// Disabled or not.
    pub disabled: Option<bool>,
    /// Another quota; `"none"` cannot be said here, 0 allows nothing.
    pub quota_bytes: Option<u64>,
    /// Another quota.
    pub quota_files: Option<u64>,
    /// A new password, chosen by the admin; ends the user's tokens.
    pub password: Option<String>,
}

/// `POST /v1/me/password`.
#[derive(Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePassword {
    /// The password in force.
    pub current: String,
    /// The one that replaces it.
    pub new: String,
}

/// `POST /v1/tokens`.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// What it is for, 1 to 64 characters; the user's own, and unique among them.
    pub name: String,
    /// Days after which it expires, 1 to 3650; never if not given.
    pub expires_in_days: Option<u32>,
}

/// A token, as it is listed: without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Names the token when it is revoked.
    pub token_id: String,
    /// What it is for.
    pub name: String,
    /// Whose it is.
    pub username: String,
    /// When it was made.
    pub created: String,
    /// When it expires; null for never.
    pub expires: Option<String>,
    /// When it was last used, to the minute; null for never.
    pub last_used: Option<String>,
}

/// The answer to `POST /v1/tokens`: the only time that the secret is shown.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    /// The token for `Authorization: Bearer`.
    pub token: String,
    /// What will be listed.
    #[serde(flatten)]
    pub info: Token,
}

/// A key that signs the tokens of logins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SigningKey {
    /// Names the key, no part of it.
    pub key_id: String,
    /// Since when another one signs; null for the one that does.
    pub replaced: Option<String>,
}

/// The keys that count: the one that signs, and those before it whose tokens have not all expired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SigningKeyList {
    /// The keys, the one that signs first.
    pub keys: Vec<SigningKey>,
}

/// All tokens of a user.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TokenList {
    /// The tokens, by name.
    pub tokens: Vec<Token>,
}
