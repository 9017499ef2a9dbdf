//! Records instead of bytes: what the rest of the daemon reads and writes.

use serde::{Serialize, de::DeserializeOwned};
use tandemfs::Result;

use super::{Guard, Key, Meta, Value, Write, record};

/// The write of a record.
///
/// # Errors
/// Those of [`record::encode`].
pub fn put<T: Serialize + ?Sized>(key: Key, record: &T) -> Result<Write> {
    let value = Some(record::encode(&key, record)?);
    Ok(Write { key, value })
}

/// The removal of a record.
pub fn remove(key: Key) -> Write {
    Write { key, value: None }
}

/// A guard that a record is still as it was read; `None`: that there is still none.
///
/// # Errors
/// Those of [`record::encode`].
pub fn expect<T: Serialize + ?Sized>(key: Key, record: Option<&T>) -> Result<Guard> {
    let value = record.map(|record| record::encode(&key, record)).transpose()?;
    Ok(Guard { key, value })
}

impl Meta {
    /// A record.
    ///
    /// # Errors
    /// `Corrupt`; those of the engine.
    pub async fn get<T: DeserializeOwned>(&self, key: &Key) -> Result<Option<T>> {
        let value = self.get_raw(key).await?;
        value.map(|value| record::decode(key, &value)).transpose()
    }

    /// Records of one type, in the order of their keys' order in `keys`, as they were at one moment.
    ///
    /// # Errors
    /// `Corrupt`; those of the engine.
    pub async fn get_many<T: DeserializeOwned>(&self, keys: &[Key]) -> Result<Vec<Option<T>>> {
        let values = self.get_many_raw(keys).await?;
        let records = keys.iter().zip(values);
        records.map(|(key, value)| value.map(|value| record::decode(key, &value)).transpose()).collect()
    }

    /// The first `limit` records with `from <= key < to`, all of one type.
    ///
    /// # Errors
    /// `Corrupt`; those of the engine.
    pub async fn scan<T: DeserializeOwned>(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Key, T)>> {
        let pairs = self.scan_raw(from, to, limit).await?;
        let decode = |(key, value): (Key, Value)| record::decode(&key, &value).map(|record| (key, record));
        pairs.into_iter().map(decode).collect()
    }

    /// A stored value.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn get_raw(&self, key: &Key) -> Result<Option<Value>> {
        Ok(self.store().get_many(std::slice::from_ref(key)).await?.pop().flatten())
    }

    /// Stored values, as they were at one moment.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn get_many_raw(&self, keys: &[Key]) -> Result<Vec<Option<Value>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        self.store().get_many(keys).await
    }

    /// Stored pairs.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn scan_raw(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        self.store().scan(from, to, limit).await
    }
}
