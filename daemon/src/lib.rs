//! `tandemd`: the REST API, users, metadata, and the replication engine.
//!
//! Dependencies point one way: `http -> volumes -> {meta, replicate -> blocks}`; the `journal` is an engine for `meta` on
//! `segments`; `accounts` and `sessions` stand beside
//! `volumes`; `work` holds the background workers.

pub mod accounts;
pub mod allocator;
pub mod audit;
pub mod blocks;
pub mod daemon;
pub mod fsck;
pub mod http;
pub mod journal;
pub mod meta;
pub mod metrics;
pub mod options;
pub mod progress;
mod random;
pub mod replicate;
pub mod restore;
pub mod seal;
pub mod segments;
pub mod sessions;
pub mod settings;
pub mod short_circuit;
pub mod volumes;
mod watch;
pub mod work;
