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
