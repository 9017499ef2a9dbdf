//! The mount: a volume of TandemFS as a local directory.
//!
//! [`fs`] turns a call of the kernel into a request or an answer from its caches and knows nothing of FUSE;
//! [`adapter`] is the only place that names fuser.

pub mod adapter;
pub mod background;
pub mod client;
pub mod fs;
pub mod options;
pub mod read_ahead;
pub mod tasks;
