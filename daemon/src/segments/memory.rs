//! Segments in memory, for tests and simulation.

use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tandemfs::{Error, Result};

use super::{Segment, SegmentStore};

/// Segments in a map. Clones share it, so what one "daemon" left is there for the next.
#[derive(Clone, Debug, Default)]
pub struct MemorySegments(Arc<Mutex<BTreeMap<u64, Vec<u8>>>>);

impl MemorySegments {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is stored, for who wants to damage it.
    pub fn segments(&self) -> MutexGuard<'_, BTreeMap<u64, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl SegmentStore for MemorySegments {
    async fn append(&self, number: u64, at: u64, bytes: Bytes) -> Result<()> {
        let mut segments = self.segments();
        match segments.get_mut(&number) {
            Some(_) if at == 0 => Err(Error::already_exists(format!("segment {number}"))),
            None if at == 0 => {
                segments.insert(number, bytes.to_vec());
                Ok(())
            }
            Some(segment) if segment.len() as u64 == at => {
                segment.extend_from_slice(&bytes);
                Ok(())
            }
            _ => Err(Error::stale(format!("segment {number} does not end at {at}"))),
        }
    }

    async fn read(&self, number: u64, range: Range<u64>) -> Result<Bytes> {
        let segments = self.segments();
        let segment = segments.get(&number).ok_or_else(|| Error::not_found(format!("segment {number}")))?;
        let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(segment.len());
        let (from, to) = (place(range.start), place(range.end));
        Ok(Bytes::copy_from_slice(segment.get(from..to).unwrap_or_default()))
    }

    async fn list(&self) -> Result<Vec<Segment>> {
        let list =
            |(number, segment): (&u64, &Vec<u8>)| Segment { number: *number, size: segment.len() as u64 };
        Ok(self.segments().iter().map(list).collect())
    }

    async fn delete(&self, number: u64) -> Result<()> {
        self.segments().remove(&number);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn keeps_the_contract() {
        super::super::contract::all(&super::MemorySegments::new()).await;
    }
}
