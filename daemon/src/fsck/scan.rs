//! A range of rows, read page by page: what is checked may be larger than memory.

use std::collections::VecDeque;
use tandemfs::Result;

use crate::meta::{Key, MetaStore, Value};

/// Rows that are read at once.
pub(crate) const PAGE: usize = 512;

/// A place in a range of rows.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    store: &'a dyn MetaStore,
    from: Key,
    to: Key,
    page: VecDeque<(Key, Value)>,
    is_last: bool,
}

impl<'a> Cursor<'a> {
    /// At the first of the rows with `from <= key < to`.
    pub(crate) fn new(store: &'a dyn MetaStore, from: Key, to: Key) -> Self {
        Self { store, from, to, page: VecDeque::new(), is_last: false }
    }

    /// The row that is the next.
    ///
    /// # Errors
    /// Those of the engine.
    pub(crate) async fn peek(&mut self) -> Result<Option<&(Key, Value)>> {
        if self.page.is_empty() && !self.is_last {
            let page = self.store.scan(&self.from, &self.to, PAGE).await?;
            self.is_last = page.len() < PAGE;
            if let Some((last, _)) = page.last() {
                self.from.clone_from(last);
                self.from.push(0); // the next possible key
            }
            self.page = page.into();
        }
        Ok(self.page.front())
    }

    /// Takes the next row.
    ///
    /// # Errors
    /// Those of the engine.
    pub(crate) async fn next(&mut self) -> Result<Option<(Key, Value)>> {
        self.peek().await?;
        Ok(self.page.pop_front())
    }

    /// Takes the next row if its key begins so.
    ///
    /// # Errors
    /// Those of the engine.
    pub(crate) async fn next_of(&mut self, prefix: &[u8]) -> Result<Option<(Key, Value)>> {
        match self.peek().await? {
            Some((key, _)) if key.starts_with(prefix) => self.next().await,
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Cursor, PAGE};
    use crate::meta::memory::MemoryStore;
    use crate::meta::{MetaStore, Write};

    #[tokio::test]
    async fn every_row_of_the_range_comes_once_and_in_order() {
        let store = MemoryStore::new();
        let key = |number: u32| [&b"k"[..], &number.to_be_bytes()].concat();
        let rows = 3 * PAGE as u32;
        let write = |number| Write { key: key(number), value: Some(vec![1]) };
        store.commit(Vec::new(), (0..rows).map(write).collect()).await.unwrap();
        let mut cursor = Cursor::new(&store, key(5), key(rows - 5));
        assert_eq!(cursor.next_of(&key(6)).await.unwrap(), None);
        for number in 5..rows - 5 {
            assert_eq!(cursor.peek().await.unwrap().unwrap().0, key(number));
            assert_eq!(cursor.next_of(&key(number)).await.unwrap().unwrap().0, key(number));
        }
        assert_eq!(cursor.next().await.unwrap(), None);
    }
}
