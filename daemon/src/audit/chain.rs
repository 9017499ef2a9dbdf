//! Checks the chain: which entries are missing, which were changed.

use std::path::Path;

use tandemfs::Result;
use tandemfs::api::audit::{AuditCheck, AuditEntry, AuditFault};

use super::files::{self, Head, hash};

/// Faults that are told of one by one.
const FAULTS_MAX: usize = 100;

/// What has been seen so far.
struct Walk {
    check: AuditCheck,
    /// The number and the hash of the line before, if it is known.
    before: Option<(u64, String)>,
}

impl Walk {
    fn fault(&mut self, number: u64, what: impl Into<String>) {
        self.check.whole = false;
        if self.check.faults.len() < FAULTS_MAX {
            self.check.faults.push(AuditFault { number, what: what.into() });
        }
    }

    fn missing(&mut self, first: u64, last: u64, place: &str) {
        let what = if first == last {
            format!("entry {first} is missing{place}")
        } else {
            format!("entries {first} to {last} are missing{place}")
        };
        self.fault(first, what);
    }

    fn line(&mut self, line: &[u8], head: &Head) {
        let expected = self.before.as_ref().map_or(head.first, |(number, _)| number + 1);
        let hash = hash(line);
        self.check.entries += 1;
        let Ok(entry) = serde_json::from_slice::<AuditEntry>(line) else {
            self.fault(expected, format!("entry {expected} was changed: it is not an entry any more"));
            self.before = Some((expected, hash));
            return;
        };
        if entry.number > expected {
            self.missing(expected, entry.number - 1, "");
        } else if entry.number < expected {
            self.fault(entry.number, format!("entry {} stands where {expected} should", entry.number));
        } else if let Some((number, before)) = &self.before
            && *before != entry.previous
        {
            let number = *number;
            let what = format!("entry {number} was changed, or the hash of it that entry {expected} carries");
            self.fault(number, what);
        } else if self.before.is_none() && entry.number == 1 && entry.previous != files::no_hash() {
            self.fault(1, "entry 1 was changed: it carries the hash of a line before it");
        }
        if entry.number == head.number && hash != head.hash {
            self.fault(entry.number, format!("entry {} was changed", entry.number));
        }
        if self.check.first == 0 {
            self.check.first = entry.number;
        }
        self.check.last = entry.number;
        self.before = Some((entry.number, hash));
    }
}

/// Checks all files of a directory against the end that the metadata remembers.
pub(super) fn check(directory: &Path, head: &Head) -> Result<AuditCheck> {
    let check = AuditCheck { entries: 0, first: 0, last: 0, whole: true, faults: Vec::new() };
    let mut walk = Walk { check, before: None };
    for (_, path) in files::list(directory)? {
        let mut bytes = 0;
        for line in files::lines(&path)? {
            let line = line?;
            bytes += line.len() as u64 + 1;
            walk.line(&line, head);
        }
        if std::fs::metadata(&path)?.len() > bytes {
            let next = walk.before.as_ref().map_or(head.first, |(number, _)| number + 1);
            walk.fault(next, format!("{} does not end with a whole line", path.display()));
        }
    }
    if walk.check.last < head.number {
        let from = walk.before.as_ref().map_or(head.first, |(number, _)| number + 1);
        walk.missing(from.min(head.number), head.number, " at the end");
    }
    Ok(walk.check)
}
