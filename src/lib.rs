//! The shared library of TandemFS: everything that the daemon, the mount and the command agree on.
//!
//! Start with [`tree`] (the POSIX rules over a working set of records) and [`api`] (the wire types).
//! Nothing here names axum, fuser or SQL.

pub mod api;
pub mod block;
pub mod client;
pub mod clock;
pub mod codec;
pub mod config;
pub mod credentials;
pub mod error;
pub mod id;
pub mod locks;
pub mod name;
pub mod pages;
pub mod short_circuit;
pub mod tree;

pub use error::{Error, ErrorKind, Result};
