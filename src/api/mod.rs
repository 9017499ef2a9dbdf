//! The wire types, used by both ends, so that they cannot drift apart.

pub mod admin;
pub mod audit;
pub mod files;
pub mod fs;
pub mod locks;
pub mod problem;
pub mod users;
pub mod volumes;

/// The header in which both ends name a request, in logs and in problem bodies.
pub const REQUEST_ID: &str = "x-request-id";
/// The header of answers to a session: its number and that of the last event there was for it, as in `12.345`. What is answered shows
/// no change of others that comes after that event, so who carries out events up to it first sees changes in their order.
pub const LAST_EVENT: &str = "tandem-last-event";
