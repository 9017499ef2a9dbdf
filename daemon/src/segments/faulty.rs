//! A store of segments that fails when a test says so.

use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tandemfs::{Error, Result};

use super::{Segment, SegmentStore};

/// How it fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Not at all.
    #[default]
    None,
    /// Every call fails at once.
    Offline,
    /// No call returns.
    Hanging,
    /// Appends take so long, and come to their end also when nobody waits for them any more.
    Slow(Duration),
    /// Appends say that there is no room.
    Full,
    /// The next append writes only so many bytes, says that it failed, and the node is offline after that.
    Torn(usize),
    /// The next append writes everything, says that it failed, and the node is offline after that.
    AnswerLost,
}

/// Passes calls on to another store, with faults.
#[derive(Clone, Debug)]
pub(crate) struct FaultySegments {
    inner: Arc<dyn SegmentStore>,
    fault: Arc<Mutex<Fault>>,
}

impl FaultySegments {
    /// `inner`, without a fault.
    pub(crate) fn new(inner: Arc<dyn SegmentStore>) -> Self {
        Self { inner, fault: Arc::default() }
    }

    fn fault(&self) -> MutexGuard<'_, Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on it behaves so.
    pub(crate) fn set(&self, fault: Fault) {
        *self.fault() = fault;
    }

    async fn check(&self) -> Result<()> {
        let fault = *self.fault();
        match fault {
            Fault::Offline => Err(Error::unavailable("a fault was asked for")),
            Fault::Hanging => {
                tokio::time::sleep(Duration::from_secs(1_000_000)).await;
                Err(Error::timed_out("a fault was asked for"))
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl SegmentStore for FaultySegments {
    async fn append(&self, number: u64, at: u64, bytes: Bytes) -> Result<()> {
        self.check().await?;
        let fault = *self.fault();
        let length = match fault {
            Fault::Slow(time) => {
                let inner = self.inner.clone();
                let append = async move {
                    tokio::time::sleep(time).await;
                    inner.append(number, at, bytes).await
                };
                let done = tokio::spawn(append).await;
                return done.unwrap_or_else(|error| Err(Error::internal("an append").because(error)));
            }
            Fault::Full => return Err(Error::no_space("a fault was asked for")),
            Fault::Torn(length) => length.min(bytes.len()),
            Fault::AnswerLost => bytes.len(),
            _ => return self.inner.append(number, at, bytes).await,
        };
        self.inner.append(number, at, bytes.slice(..length)).await?;
        self.set(Fault::Offline);
        Err(Error::unavailable("a fault was asked for"))
    }

    async fn read(&self, number: u64, range: Range<u64>) -> Result<Bytes> {
        self.check().await?;
        self.inner.read(number, range).await
    }

    async fn list(&self) -> Result<Vec<Segment>> {
        self.check().await?;
        self.inner.list().await
    }

    async fn delete(&self, number: u64) -> Result<()> {
        self.check().await?;
        self.inner.delete(number).await
    }
}

#[cfg(test)]
mod tests {
    use super::{Arc, FaultySegments};
    use crate::segments::{contract, memory::MemorySegments};

    #[tokio::test]
    async fn keeps_the_contract_without_faults() {
        contract::all(&FaultySegments::new(Arc::new(MemorySegments::new()))).await;
    }
}
