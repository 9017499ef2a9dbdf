//! Names that are looked up one by one and are not known: from some on, the rest of their directory comes with the answer.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tandemfs::api::fs::DIRECTORY_PAGE_MAX;
use tandemfs::id::Ino;
use tandemfs::name::Name;
use tandemfs::tree::Want;

/// Directories that are kept in mind.
const DIRECTORIES_MAX: usize = 64;
/// Names come along after so many that were missed.
const MISSES: u32 = 2;
/// A directory comes whole when one name of so many was missed; one that has more than so many names never does.
const SHARE: u64 = 64;
const WHOLE_MAX: u64 = 65_536;
/// So many names come along at first.
const WINDOW: u32 = 32;
/// After so many windows in which the next name was not, nothing comes along for so many misses.
const WRONG_MAX: u32 = 3;
const REST: u32 = 64;

/// What was missed lately, by directory.
#[derive(Debug, Default)]
pub(super) struct Misses(Mutex<Vec<Miss>>);

#[derive(Debug)]
struct Miss {
    directory: Ino,
    count: u32,
    /// The last name that has come along.
    end: Option<Name>,
    window: u32,
    /// Windows in a row in which the next name was not.
    wrong: u32,
}

impl Misses {
    fn lock(&self) -> MutexGuard<'_, Vec<Miss>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name is not known, of a directory of so many entries if that is known. Answers what had better be asked for with it: the directory from
    /// its first name on, of which all is to be read, or the names from this one on.
    pub(super) fn note(&self, directory: Ino, entries: Option<u64>, name: &Name) -> Option<Want> {
        let mut misses = self.lock();
        let mut miss = match misses.iter().position(|miss| miss.directory == directory) {
            Some(at) => misses.remove(at),
            None => Miss { directory, count: 0, end: None, window: WINDOW, wrong: 0 },
        };
        miss.count = miss.count.saturating_add(1);
        let is_small =
            entries.is_some_and(|entries| entries <= WHOLE_MAX && u64::from(miss.count) * SHARE >= entries);
        let want = if miss.count < MISSES {
            None
        } else if is_small {
            // Should it change too much to be kept, it is not read again before as many are missed again.
            miss.count = 0;
            Some(Want::Directory { ino: directory, after: None, limit: DIRECTORY_PAGE_MAX })
        } else if miss.wrong >= WRONG_MAX {
            miss.wrong = if miss.wrong < REST { miss.wrong + 1 } else { 0 };
            None
        } else {
            let after = miss.end.clone().filter(|end| end < name);
            // Who goes back goes on from there, or does not go on.
            miss.wrong += u32::from(after.is_none() && miss.end.is_some());
            let after = after.unwrap_or_else(|| name.clone());
            Some(Want::Directory { ino: directory, after: Some(after), limit: miss.window })
        };
        if misses.len() >= DIRECTORIES_MAX {
            misses.remove(0);
        }
        misses.push(miss);
        want
    }

    /// The names after one have come along, up to `end`. `found` says whether the name that was missed is among them; `None`: it is the one
    /// after which they come.
    pub(super) fn came(&self, directory: Ino, end: Option<Name>, found: Option<bool>) {
        let mut misses = self.lock();
        let Some(miss) = misses.iter_mut().find(|miss| miss.directory == directory) else { return };
        match found {
            Some(true) => (miss.window, miss.wrong) = ((miss.window * 2).min(DIRECTORY_PAGE_MAX), 0),
            Some(false) => (miss.window, miss.wrong) = (WINDOW, miss.wrong + 1),
            None => miss.window = WINDOW,
        }
        miss.end = end;
    }
}

#[cfg(test)]
mod tests {
    use super::{DIRECTORIES_MAX, Misses, REST, WINDOW};
    use tandemfs::api::fs::DIRECTORY_PAGE_MAX;
    use tandemfs::id::Ino;
    use tandemfs::name::Name;
    use tandemfs::tree::Want;

    const DIRECTORY: Ino = Ino(2);

    fn name(number: u32) -> Name {
        Name::new(format!("{number:05}")).unwrap()
    }

    fn want(after: Option<u32>, limit: u32) -> Option<Want> {
        Some(Want::Directory { ino: DIRECTORY, after: after.map(name), limit })
    }

    #[test]
    fn a_small_directory_comes_whole_and_a_large_one_when_much_of_it_was_missed() {
        let misses = Misses::default();
        assert_eq!(misses.note(DIRECTORY, Some(100), &name(1)), None);
        assert_eq!(misses.note(DIRECTORY, Some(100), &name(9)), want(None, DIRECTORY_PAGE_MAX));
        assert_eq!(misses.note(DIRECTORY, Some(100), &name(10)), None, "not for each name");
        let misses = Misses::default();
        let whole =
            (0..100).find(|_| misses.note(DIRECTORY, Some(2000), &name(7)) == want(None, DIRECTORY_PAGE_MAX));
        assert_eq!(whole, Some(31));
        let of_many = |entries| {
            let misses = Misses::default();
            (0..2000)
                .find(|_| misses.note(DIRECTORY, Some(entries), &name(7)) == want(None, DIRECTORY_PAGE_MAX))
        };
        assert_eq!((of_many(65_536), of_many(65_537)), (Some(1023), None));
    }

    #[test]
    fn in_a_large_directory_the_names_that_follow_come_along_for_who_uses_them() {
        let misses = Misses::default();
        assert_eq!(misses.note(DIRECTORY, None, &name(0)), None);
        assert_eq!(misses.note(DIRECTORY, None, &name(1)), want(Some(1), WINDOW));
        misses.came(DIRECTORY, Some(name(33)), None);
        assert_eq!(misses.note(DIRECTORY, None, &name(34)), want(Some(33), WINDOW));
        misses.came(DIRECTORY, Some(name(65)), Some(true));
        assert_eq!(misses.note(DIRECTORY, None, &name(66)), want(Some(65), 2 * WINDOW));
        misses.came(DIRECTORY, Some(name(129)), Some(true));
        for (number, found) in [(900, Some(false)), (700, None), (5, None)] {
            assert!(misses.note(DIRECTORY, None, &name(number)).is_some());
            misses.came(DIRECTORY, Some(name(number + 1)), found);
        }
        let next = (0..).find(|_| misses.note(DIRECTORY, None, &name(3)).is_some());
        assert!(next.is_some_and(|rest| rest >= REST - 5), "{next:?}");
    }

    #[test]
    fn it_is_bounded() {
        let misses = Misses::default();
        (0..1000).for_each(|number| drop(misses.note(Ino(number), None, &name(0))));
        assert_eq!(misses.lock().len(), DIRECTORIES_MAX);
        misses.came(Ino(1), None, None);
    }
}
