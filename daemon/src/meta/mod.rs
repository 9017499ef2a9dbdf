//! Metadata: an ordered key-value store with three verbs, and what the daemon needs on top of it.
//!
//! No rule is written per engine: an engine knows nothing of what the keys mean.

#[cfg(test)]
pub(crate) mod contract;
pub mod faulty;
pub mod keys;
pub mod memory;
mod queue;
pub mod record;
pub mod sqlite;
mod typed;

pub use queue::{Meta, Ticket};
pub use typed::{expect, put, remove};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use tandemfs::Result;
use tandemfs::id::NodeId;

/// A key; keys are ordered by their bytes.
pub type Key = Vec<u8>;
/// A value.
pub type Value = Vec<u8>;

/// A key and the value that it must still have when a commit happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Which key.
    pub key: Key,
    /// The value that it must have; `None`: it must not be there.
    pub value: Option<Value>,
}

/// One write of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// Which key.
    #[serde(with = "serde_bytes")]
    pub key: Key,
    /// Its new value; `None` removes it.
    #[serde(with = "serde_bytes")]
    pub value: Option<Value>,
}

/// An engine for metadata.
///
/// A commit that returned is seen by every later call; one that failed has changed nothing. Calls may run concurrently; commits are
/// serializable. What the daemon commits to has it on stable storage then; the engine inside the journal may lose the last commits in a
/// power cut, the newest first.
#[async_trait]
pub trait MetaStore: Send + Sync + Debug {
    /// The values of `keys`, in their order.
    async fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Value>>>;

    /// The first `limit` pairs with `from <= key < to`, in the order of their keys.
    async fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>>;

    /// Checks that every guard holds and does all writes (the later of two to one key wins), or does nothing.
    ///
    /// # Errors
    /// `Stale` when a guard does not hold; `NoSpace`; `Unavailable` when the engine cannot be reached or written.
    async fn commit(&self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<()>;

    /// The nodes that a commit is on when it returns; none for an engine that keeps it alone.
    fn copies(&self) -> Vec<NodeId> {
        Vec::new()
    }

    /// Leaves nothing of values that were replaced or removed before, as far as that is in its hands: for once, when a secret must not lie
    /// around any more. It may write anew all that there is.
    async fn forget(&self) -> Result<()> {
        Ok(())
    }
}
