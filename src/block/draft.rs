//! The data of a block on its way into an object.

use bytes::Bytes;

use super::{ALIGNED_MIN, DATA_MAX, HEADER_MAX, header, object_len};
use crate::id::{BlockId, VolumeId};
use crate::pages::Pages;
use crate::{Error, Result};

/// Collects the data of a block as it comes. Much of it lies where it will lie in the object, so that it is not copied again.
#[derive(Debug, Default)]
pub struct Draft {
    /// While it is little.
    small: Vec<u8>,
    /// From [`ALIGNED_MIN`] on, behind room for the longest header.
    pages: Option<Pages>,
    length: usize,
}

impl Draft {
    /// Of data that is there already.
    ///
    /// # Errors
    /// As [`Draft::push`].
    pub fn of(data: &[u8]) -> Result<Self> {
        let mut draft = Self::with_length(data.len())?;
        draft.push(data)?;
        Ok(draft)
    }

    /// For so many bytes, as far as is known.
    ///
    /// # Errors
    /// `TooLarge` for more than [`DATA_MAX`]; `Unavailable` without memory.
    pub fn with_length(length: usize) -> Result<Self> {
        check(length)?;
        let pages = if length < ALIGNED_MIN { None } else { Some(Pages::take()?) };
        Ok(Self { small: Vec::new(), pages, length: 0 })
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// `TooLarge` for more than [`DATA_MAX`] in all; `Unavailable` without memory.
    pub fn push(&mut self, data: &[u8]) -> Result<()> {
        let end = self.length + data.len();
        check(end)?;
        if self.pages.is_none() && end >= ALIGNED_MIN {
            let mut pages = Pages::take()?;
            pages[HEADER_MAX..HEADER_MAX + self.length].copy_from_slice(&self.small);
            self.small = Vec::new();
            self.pages = Some(pages);
        }
        match &mut self.pages {
            Some(pages) => pages[HEADER_MAX + self.length..HEADER_MAX + end].copy_from_slice(data),
            None => self.small.extend_from_slice(data),
        }
        self.length = end;
        Ok(())
    }

    /// What has come.
    pub fn data(&self) -> &[u8] {
        match &self.pages {
            Some(pages) => &pages[HEADER_MAX..HEADER_MAX + self.length],
            None => &self.small,
        }
    }

    /// Makes the object. One of [`ALIGNED_MIN`] bytes and more lies in [`Pages`].
    pub fn encode(mut self, volume: VolumeId, id: &BlockId) -> Bytes {
        if self.length < ALIGNED_MIN {
            let mut object = header(volume, id, self.data());
            object.extend_from_slice(self.data());
            return object.into();
        }
        let header = header(volume, id, self.data());
        let Some(mut pages) = self.pages.take() else { return Bytes::new() };
        let start = HEADER_MAX - header.len();
        let end = start + object_len(self.length as u32) as usize;
        pages[start..HEADER_MAX].copy_from_slice(&header);
        pages[HEADER_MAX + self.length..end].fill(0);
        Bytes::from_owner(pages).slice(start..end)
    }
}

fn check(length: usize) -> Result<()> {
    if length > DATA_MAX { Err(Error::too_large(format!("a block of {length} bytes"))) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::{ALIGNED_MIN, DATA_MAX, Draft};
    use crate::block::{decode, encode};
    use crate::id::{BlockId, VolumeId};

    #[test]
    fn pieces_become_the_object_of_the_whole() {
        let (volume, id) = (VolumeId(3), BlockId([5; 32]));
        let data: Vec<u8> =
            (0..DATA_MAX as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for length in [0, 1, ALIGNED_MIN - 1, ALIGNED_MIN, ALIGNED_MIN + 1, DATA_MAX] {
            let data = &data[..length];
            for known in [0, length] {
                let mut draft = Draft::with_length(known).unwrap();
                data.chunks(100_000).for_each(|piece| draft.push(piece).unwrap());
                assert!(draft.data() == data);
                let object = draft.encode(volume, &id);
                assert!(object == encode(volume, &id, data).unwrap(), "{length}");
                assert!(decode(&id, object).unwrap() == data);
            }
        }
        let mut full = Draft::of(&data).unwrap();
        assert!(full.push(&[1]).is_err() && full.data() == data);
        assert!(Draft::with_length(DATA_MAX + 1).is_err());
    }
}
