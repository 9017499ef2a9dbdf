//! What is read: records, and what is found under names and in directories.

use tandemfs::api::fs::{Answer, Read, ReadReply};
use tandemfs::id::{Ino, SessionId};
use tandemfs::name::Name;
use tandemfs::tree::{Key, Record, Want};

use super::sessions::lease_end;
use super::{Daemon, State};

/// How many entries a page of a directory has, few enough to need several.
const PAGE: usize = 7;

impl State {
    fn range(&self, want: &Want) -> Vec<(Key, Option<Record>)> {
        let covered = self.records.iter().filter(|(key, _)| want.covers(key));
        covered.map(|(key, record)| (key.clone(), Some(record.clone()))).collect()
    }

    fn lookup(&self, parent: Ino, name: &Name) -> Vec<(Key, Option<Record>)> {
        let key = Key::Entry(parent, name.clone());
        let entry = self.records.get(&key).cloned();
        let inode = match &entry {
            Some(Record::Entry(entry)) => {
                Some((Key::Inode(entry.ino), self.records.get(&Key::Inode(entry.ino)).cloned()))
            }
            _ => None,
        };
        std::iter::once((key, entry)).chain(inode).collect()
    }

    pub(super) fn answer(&self, want: &Want) -> Answer {
        let (records, complete) = match want {
            Want::Record(key) => (vec![(key.clone(), self.records.get(key).cloned())], true),
            Want::Lookup { parent, name } => (self.lookup(*parent, name), true),
            Want::Directory { ino, after, .. } => {
                let after = after.as_ref();
                let mut entries = self.records.iter().filter_map(|(key, record)| match (key, record) {
                    (Key::Entry(parent, name), Record::Entry(_))
                        if parent == ino && after.is_none_or(|after| name > after) =>
                    {
                        Some(name.clone())
                    }
                    _ => None,
                });
                let page: Vec<_> = entries.by_ref().take(PAGE).collect();
                (page.iter().flat_map(|name| self.lookup(*ino, name)).collect(), entries.next().is_none())
            }
            range => (self.range(range), true),
        };
        Answer { records, complete }
    }
}

impl Daemon {
    /// Waits until nobody else has a file that is asked for.
    pub(super) async fn answers(&self, session: SessionId, read: &Read) -> ReadReply {
        let end = lease_end();
        loop {
            let acknowledged = self.acknowledged.notified();
            tokio::pin!(acknowledged);
            acknowledged.as_mut().enable();
            {
                let mut state = self.state.lock().unwrap();
                let answers: Vec<Answer> = read.wants.iter().map(|want| state.answer(want)).collect();
                let chunks = read.wants.iter().filter_map(|want| match want {
                    Want::Chunks { ino, .. } => Some((Key::Chunk(*ino, 0), None)),
                    _ => None,
                });
                let chunks: Vec<_> = chunks.collect();
                let seen = answers.iter().flat_map(|answer| &answer.records).chain(&chunks);
                if state.may_see(session, seen.map(|(key, record)| (key, record))) {
                    return ReadReply { version: state.version, answers };
                }
            }
            self.returned(session, end, acknowledged).await;
        }
    }
}
