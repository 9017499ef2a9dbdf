//! The cache of decoded records, bounded in bytes over all volumes.

use quick_cache::{Equivalent, OptionsBuilder, Weighter, sync};
use std::hash::{BuildHasherDefault, DefaultHasher};
use tandemfs::id::VolumeId;
use tandemfs::tree::{Key, Record};

/// Which life of which volume's memory a record belongs to: a volume that drops what it has in memory goes on under the
/// next number, and what is left of the life before ages out.
pub(super) type Life = (VolumeId, u64);

/// A record in the cache, or the knowledge that there is none.
type Known = Option<Record>;

#[derive(Clone, Debug)]
struct Weigh;

impl Weighter<(Life, Key), Known> for Weigh {
    fn weight(&self, (_, key): &(Life, Key), record: &Known) -> u64 {
        let name = match key {
            Key::Entry(_, name) | Key::Link(_, _, name) => name.as_bytes().len(),
            Key::Xattr(_, name) => name.len(),
            _ => 0,
        };
        let body = match record {
            Some(Record::Inode(_)) => 320,
            Some(Record::Chunk(chunk)) => chunk.0.len() * 48,
            Some(Record::Xattr(value)) => value.len(),
            _ => 0,
        };
        // What a slot of the cache takes beside what the key and the record point to.
        (160 + name + body) as u64
    }
}

type Hash = BuildHasherDefault<DefaultHasher>;

/// See the module.
#[derive(Debug)]
pub(super) struct RecordCache(sync::Cache<(Life, Key), Known, Weigh, Hash>);

/// A key that is not owned, for looking up without a copy.
#[derive(Hash)]
struct Lookup<'a>(Life, &'a Key);

impl Equivalent<(Life, Key)> for Lookup<'_> {
    fn equivalent(&self, (life, key): &(Life, Key)) -> bool {
        self.0 == *life && self.1 == key
    }
}

impl RecordCache {
    /// A cache of at most so many bytes.
    pub(super) fn new(bytes: u64) -> Self {
        // A fixed hash and number of shards, so that a simulation repeats itself.
        let items = usize::try_from(bytes / 320).unwrap_or(usize::MAX).max(1);
        let options =
            OptionsBuilder::new().estimated_items_capacity(items).weight_capacity(bytes).shards(4).build();
        Self(match options {
            Ok(options) => sync::Cache::with_options(options, Weigh, Hash::default(), Default::default()),
            Err(_) => sync::Cache::with(items, bytes, Weigh, Hash::default(), Default::default()),
        })
    }

    /// What is known of a record.
    pub(super) fn get(&self, life: Life, key: &Key) -> Option<Known> {
        self.0.get(&Lookup(life, key))
    }

    /// Remembers a record.
    pub(super) fn put(&self, life: Life, key: Key, record: Known) {
        self.0.insert((life, key), record);
    }
}
