//! Answers to wants: the state of one moment, once it is on stable storage.

use tandemfs::api::fs::{Answer, CHUNKS_PAGE_MAX, DIRECTORY_PAGE_MAX, READ_WANTS_MAX, ReadReply};
use tandemfs::id::{Ino, SessionId};
use tandemfs::tree::{Key, Outcome, Record, Usage, Want, WorkingSet};
use tandemfs::{Error, Result};
use tokio::sync::MutexGuard;

use super::delegations::{RECALLS_MAX, busy};
use super::load::Page;
use super::volume::{State, Volume};
use crate::sessions::audience::InTheWay;

/// How often a read is begun again because a commit that it had seen failed.
const FAILURES_MAX: usize = 8;
/// Records in one answer, over all its wants; what comes after is answered as incomplete.
const RECORDS_MAX: usize = 16_384;

/// How often a read was begun again.
#[derive(Default)]
struct Tries {
    failures: usize,
    recalls: usize,
}

impl Volume {
    /// Answers wants, as `author` may see it.
    ///
    /// # Errors
    /// `Invalid` for too many; `Unavailable`.
    pub(crate) async fn read(&self, author: Option<SessionId>, wants: &[Want]) -> Result<ReadReply> {
        if wants.len() > READ_WANTS_MAX {
            return Err(Error::invalid(format!("more than {READ_WANTS_MAX} wants")));
        }
        let mut tries = Tries::default();
        self.returned_by_before(author).await;
        loop {
            let state = self.lock_live().await?;
            // In one look, so that each is found in the cache below.
            let singles: Vec<Key> = wants.iter().filter_map(single_of).collect();
            if singles.len() > 1 {
                self.records(&state, &singles).await?;
            }
            let mut answers = Vec::with_capacity(wants.len());
            let mut room = RECORDS_MAX;
            for want in wants {
                let answer = self.answer(&state, want, room).await?;
                room = room.saturating_sub(answer.records.len()).max(1);
                answers.push(answer);
            }
            let chunks = wants.iter().filter_map(|want| match want {
                Want::Chunks { ino, from, .. } => Some((Key::Chunk(*ino, *from), None)),
                _ => None,
            });
            let chunks: Vec<_> = chunks.collect();
            let seen = answers.iter().flat_map(|answer| &answer.records).chain(&chunks);
            let in_the_way = self.in_the_way(author, seen.map(|(key, record)| (key, record)));
            let version = state.version;
            if self.may_be_seen(state, in_the_way, &mut tries).await? {
                // What is not there any more shows in the inode of what it was in.
                let whole: Vec<Key> = wants.iter().filter_map(whole_of).map(Key::Inode).collect();
                let keys = answers.iter().flat_map(|answer| &answer.records).map(|(key, _)| key);
                self.settled(author, version, keys.chain(&whole)).await;
                return Ok(ReadReply { version, answers });
            }
        }
    }

    /// What a rule says of the state of one moment.
    ///
    /// # Errors
    /// Those of the rule; `Unavailable`.
    pub(super) async fn query<T>(&self, rule: impl Fn(&WorkingSet) -> Outcome<T>) -> Result<T> {
        let mut tries = Tries::default();
        self.returned_by_before(None).await;
        loop {
            let state = self.lock_live().await?;
            let mut set = WorkingSet::new();
            let found = self.run(&state, &mut set, |set| rule(set)).await;
            let in_the_way = self.in_the_way(None, set.loaded().iter());
            let version = state.version;
            if self.may_be_seen(state, in_the_way, &mut tries).await? {
                self.settled(None, version, set.loaded().keys()).await;
                return found;
            }
        }
    }

    /// The volume's version and what is used in it. No session is waited for: each may be waiting to be resumed, which asks for this, and
    /// nobody relies on how much is used.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable`.
    pub(crate) async fn usage(&self) -> Result<(u64, Usage)> {
        loop {
            let state = self.lock_live().await?;
            let record = self.record(&state, &Key::Usage).await?;
            let (moment, version) = (self.moment(&state), state.version);
            drop(state);
            if self.durable(moment).await {
                return match record {
                    Some(Record::Usage(usage)) => Ok((version, usage)),
                    _ => Err(Error::corrupt(format!("volume {} has no record of what is used", self.id))),
                };
            }
        }
    }

    /// Entries of a directory from the name `from` on, which need not be one, with their inodes.
    pub(super) async fn entries_from(&self, ino: Ino, from: &[u8], limit: usize) -> Result<Answer> {
        let mut tries = Tries::default();
        self.returned_by_before(None).await;
        loop {
            let state = self.lock_live().await?;
            let page = self.entries(&state, ino, from, limit).await?;
            let answer = self.with_inodes(&state, page).await?;
            let in_the_way = self.in_the_way(None, answer.records.iter().map(|(key, record)| (key, record)));
            let version = state.version;
            if self.may_be_seen(state, in_the_way, &mut tries).await? {
                let keys = answer.records.iter().map(|(key, _)| key);
                self.settled(None, version, keys.chain([&Key::Inode(ino)])).await;
                return Ok(answer);
            }
        }
    }

    /// Waits until what was found under the lock is on stable storage. `false`: it never will be, or files are in the way, which have
    /// been recalled; it is to be looked at again.
    async fn may_be_seen(
        &self,
        state: MutexGuard<'_, State>,
        in_the_way: Option<InTheWay>,
        tries: &mut Tries,
    ) -> Result<bool> {
        let moment = self.moment(&state);
        drop(state);
        let (count, most, error) = match in_the_way {
            Some(in_the_way) => {
                self.recall(in_the_way).await;
                (&mut tries.recalls, RECALLS_MAX, busy())
            }
            None if self.durable(moment).await => return Ok(true),
            None => (&mut tries.failures, FAILURES_MAX, Error::unavailable("changes fail again and again")),
        };
        *count += 1;
        if *count < most { Ok(false) } else { Err(error) }
    }

    async fn answer(&self, state: &State, want: &Want, room: usize) -> Result<Answer> {
        let whole = |records| Answer { records, complete: true };
        Ok(match want {
            Want::Record(key) => whole(vec![(key.clone(), self.record(state, key).await?)]),
            Want::Lookup { parent, name } => {
                let key = Key::Entry(*parent, name.clone());
                let entry = self.record(state, &key).await?;
                let mut records = vec![(key, entry)];
                if let Some((_, Some(Record::Entry(entry)))) = records.first() {
                    let inode = Key::Inode(entry.ino);
                    let record = self.record(state, &inode).await?;
                    records.push((inode, record));
                }
                whole(records)
            }
            Want::Directory { ino, after, limit } => {
                let limit = (*limit).clamp(1, DIRECTORY_PAGE_MAX) as usize;
                let from = after.as_ref().map(|name| super::load::after(name.as_bytes())).unwrap_or_default();
                let page = self.entries(state, *ino, &from, limit.min(room)).await?;
                self.with_inodes(state, page).await?
            }
            Want::Chunks { ino, from, to } => {
                let limit = usize::try_from(CHUNKS_PAGE_MAX).unwrap_or(usize::MAX).min(room);
                let page = self.chunks(state, *ino, *from, *to, limit).await?;
                let records = page.records.into_iter().map(|(key, record)| (key, Some(record)));
                Answer { records: records.collect(), complete: page.complete }
            }
            Want::Xattrs(_) | Want::Links(_) => {
                let mut set = WorkingSet::new();
                let keys = self
                    .run(state, &mut set, |set| {
                        let keys = set.range(want)?;
                        keys.into_iter()
                            .map(|key| Ok((key.clone(), set.get(&key)?.cloned())))
                            .collect::<Outcome<_>>()
                    })
                    .await?;
                whole(keys)
            }
        })
    }

    async fn with_inodes(&self, state: &State, page: Page) -> Result<Answer> {
        let inodes: Vec<Key> = page
            .records
            .iter()
            .filter_map(|(_, record)| match record {
                Record::Entry(entry) => Some(Key::Inode(entry.ino)),
                _ => None,
            })
            .collect();
        let found = self.records(state, &inodes).await?;
        let entries = page.records.into_iter().map(|(key, record)| (key, Some(record)));
        let with_inodes =
            entries.zip(inodes.into_iter().zip(found)).flat_map(|(entry, inode)| [entry, inode]);
        Ok(Answer { records: with_inodes.collect(), complete: page.complete })
    }
}

/// The record that is all that a want asks for.
fn single_of(want: &Want) -> Option<Key> {
    match want {
        Want::Record(key) => Some(key.clone()),
        Want::Chunks { ino, from, to } if to.checked_sub(*from) == Some(1) => Some(Key::Chunk(*ino, *from)),
        _ => None,
    }
}

/// The inode of which a want asks for all that there is of a kind.
fn whole_of(want: &Want) -> Option<Ino> {
    match want {
        Want::Directory { ino, .. } | Want::Chunks { ino, .. } | Want::Xattrs(ino) | Want::Links(ino) => {
            Some(*ino)
        }
        Want::Record(_) | Want::Lookup { .. } => None,
    }
}
