//! The audit log: who did what, in a chain of hashes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One entry, which is one line of the log, with its fields in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditEntry {
    /// Entries are numbered from 1 without a gap.
    pub number: u64,
    /// When, in UTC.
    pub time: String,
    /// Who: the user's name, as it was given; `tandemd` for the daemon itself.
    pub who: String,
    /// What was asked for.
    pub what: String,
    /// To what.
    pub object: String,
    /// The client's address; null for the daemon itself.
    pub from: Option<String>,
    /// `ok`, or the code of the error.
    pub result: String,
    /// The id of the request.
    pub request: String,
    /// The SHA-256 of the line before, without its line end, in hexadecimal; zeros for the first line.
    pub previous: String,
}

/// A page of the log, the newest entry first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    /// The entries.
    pub entries: Vec<AuditEntry>,
    /// Give it as `cursor` to get older ones; null at the end.
    pub next_cursor: Option<String>,
}

/// What a check of the whole chain has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditCheck {
    /// Entries that are there.
    pub entries: u64,
    /// The number of the oldest entry that is kept; 0 without any.
    pub first: u64,
    /// The number of the newest entry; 0 without any.
    pub last: u64,
    /// Nothing is missing and nothing was changed.
    pub whole: bool,
    /// What is wrong, in the order of the entries, the first hundred.
    pub faults: Vec<AuditFault>,
}

/// Something that is wrong with the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditFault {
    /// The number of the entry.
    pub number: u64,
    /// What is wrong with it.
    pub what: String,
}
