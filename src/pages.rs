//! Buffers for large objects, in huge pages.
//!
//! A disk that is written without copies takes the memory as the kernel has it: in a few long runs where it lies in huge pages, in
//! a thousand requests for 4 KiB where it does not, which is several times slower (`docs/decisions/0004-huge-pages.md`).

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use memmap2::{Advice, MmapMut};

use crate::block::{DATA_MAX, HEADER_MAX};
use crate::{Error, Result};

/// The size of a huge page. Where it is another one, the memory is what it would be without all this.
const HUGE: usize = 2 << 20;
/// So many buffers are kept for those who come next.
const IDLE_MAX: usize = 8;

static IDLE: Mutex<Vec<MmapMut>> = Mutex::new(Vec::new());

/// Room for the longest header, and behind it for the data of the largest block, in huge pages where the system has some. What is in it at
/// first is of no meaning: zeros, or what somebody has left there.
#[derive(Debug)]
pub struct Pages {
    /// Taken out when this is dropped.
    map: Option<MmapMut>,
    /// Where the room for the header begins, so that what follows it begins at a huge page.
    start: usize,
}

impl Pages {
    /// One that is idle, or a new one.
    ///
    /// # Errors
    /// `Unavailable` when the system has no memory.
    pub fn take() -> Result<Self> {
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let is_new = idle.is_none();
        let map = match idle {
            Some(map) => map,
            None => MmapMut::map_anon(HEADER_MAX + HUGE + DATA_MAX).map_err(Error::from)?,
        };
        let start =
            (map.as_ptr() as usize + HEADER_MAX).next_multiple_of(HUGE) - HEADER_MAX - map.as_ptr() as usize;
        // A kernel without huge pages refuses; the memory is as good otherwise.
        if is_new && let Err(error) = map.advise_range(Advice::HugePage, start + HEADER_MAX, DATA_MAX) {
            log::debug!("no huge pages: {error}");
        }
        Ok(Self { map: Some(map), start })
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let map = self.map.as_deref().unwrap_or_default();
        map.get(self.start..self.start + HEADER_MAX + DATA_MAX).unwrap_or_default()
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        let map = self.map.as_deref_mut().unwrap_or_default();
        map.get_mut(self.start..self.start + HEADER_MAX + DATA_MAX).unwrap_or_default()
    }
}

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.extend(self.map.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DATA_MAX, HEADER_MAX, HUGE, IDLE, IDLE_MAX, Pages};

    #[test]
    fn they_lie_where_a_disk_wants_them_and_few_are_kept() {
        let mut all: Vec<Pages> = (0..2 * IDLE_MAX).map(|_| Pages::take().unwrap()).collect();
        for (number, pages) in all.iter_mut().enumerate() {
            assert_eq!(pages.len(), HEADER_MAX + DATA_MAX);
            assert!(pages[HEADER_MAX..].as_ptr().addr().is_multiple_of(HUGE));
            pages.fill(number as u8);
        }
        for (number, pages) in all.iter().enumerate() {
            assert!(pages.iter().all(|byte| *byte == number as u8), "each has memory of its own");
        }
        drop(all);
        assert!(IDLE.lock().unwrap().len() <= IDLE_MAX);
    }
}
