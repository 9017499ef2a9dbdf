//! What is stored of accounts.

use serde::{Deserialize, Serialize};
use tandemfs::api::users::Role;
use tandemfs::clock::Time;
use tandemfs::id::{UserId, VolumeId};

/// A user.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The number, never used twice.
    pub id: UserId,
    /// The name; it never changes.
    pub username: String,
    /// What the user may do.
    pub role: Role,
    /// Cannot log in.
    pub disabled: bool,
    /// When it was made.
    pub created: Time,
    /// The hash of the password, as a PHC string.
    pub password: String,
    /// The password is the one that every installation begins with.
    pub default_password: bool,
    /// The home volume.
    pub home: VolumeId,
    /// Tokens carry it and end when it is raised.
    pub generation: u64,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account")
            .field("id", &self.id)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// An API token, stored under the hash of its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ApiToken {
    /// Names the token to people; no part of the secret.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// Whose it is.
    pub user: UserId,
    /// The user's generation when it was made.
    pub generation: u64,
    /// When it was made.
    pub created: Time,
    /// When it expires; `None` for never.
    pub expires: Option<Time>,
    /// When it was last used, to the minute.
    pub last_used: Option<Time>,
}

/// Failed logins of one account from one address, or of one address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failures {
    /// When they happened, in milliseconds since 1970, the oldest first.
    pub times_ms: Vec<i64>,
}
