//! Shared volumes, and who may use them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::files::Storage;
use crate::id::VolumeId;

/// What a grant allows. The greater allows all that the lesser does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Read.
    Read,
    /// Read and change.
    Write,
}

/// `POST /v1/volumes`, for admins.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVolume {
    /// 1 to 64 of `a-z 0-9 . _ -`, the first a letter or a digit.
    #[schema(pattern = "^[a-z0-9][a-z0-9._-]{0,63}$")]
    pub name: String,
    /// Bytes that it may take; no limit if not given.
    pub quota_bytes: Option<u64>,
    /// Inodes that it may have; no limit if not given.
    pub quota_files: Option<u64>,
}

/// `PATCH /v1/volumes/<name>`, for admins. What is not given stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeVolume {
    /// Another quota; `"none"` cannot be said here, 0 allows nothing.
    pub quota_bytes: Option<u64>,
    /// Another quota.
    pub quota_files: Option<u64>,
}

/// A shared volume, as admins see it and those who have a grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// The number, never used twice.
    #[schema(value_type = u64)]
    pub volume_id: VolumeId,
    /// The name.
    pub name: String,
    /// What the caller is granted; null for an admin without a grant.
    pub access: Option<Access>,
    /// When it was made.
    pub created: String,
    /// What it uses and may use.
    #[serde(flatten)]
    pub storage: Storage,
}

/// A page of volumes, by name.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumePage {
    /// The volumes.
    pub volumes: Vec<Volume>,
    /// Give it as `cursor` to get the next page; null at the end.
    pub next_cursor: Option<String>,
}

/// `PUT /v1/volumes/<name>/grants/<username>`, for admins.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewGrant {
    /// What the user may do.
    pub access: Access,
}

/// What a user may do on a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Grant {
    /// The user.
    pub username: String,
    /// What the user may do.
    pub access: Access,
}

/// A page of a volume's grants, by the users' numbers.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GrantPage {
    /// The grants.
    pub grants: Vec<Grant>,
    /// Give it as `cursor` to get the next page; null at the end.
    pub next_cursor: Option<String>,
}
