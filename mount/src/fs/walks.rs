//! Where programs go through a directory in the order of its names (as `find`, `grep -r`, `cp -r`, `tar` and `git status` do), and how far
//! ahead of them is to be read.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tandemfs::id::Ino;
use tandemfs::name::Name;

/// Directories in which somebody is under way. The one that was left alone the longest is forgotten first.
const WALKS_MAX: usize = 64;
/// After so many steps in a row somebody is taken to go on.
const STEPS: u32 = 2;

/// The walks of one mount: of one kind of step.
#[derive(Debug)]
pub(super) struct Walks {
    walks: Mutex<Vec<Walk>>,
    most: usize,
}

/// A directory in which somebody is under way.
#[derive(Debug)]
struct Walk {
    directory: Ino,
    /// What that one lies in.
    parent: Ino,
    /// The last name that somebody came to.
    last: Name,
    /// How many steps were taken in a row.
    steps: u32,
    /// The last name up to which has been read ahead.
    ahead: Option<Name>,
    /// When somebody comes to this name, it is time to read further.
    mark: Option<Name>,
    /// Somebody is reading ahead, or has come to the end of the directory.
    is_settled: bool,
}

/// What to read ahead: so many names after one of a directory. Whoever is given it says with [`Walks::reached`] how far it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) directory: Ino,
    pub(super) after: Name,
    pub(super) count: usize,
}

impl Walks {
    /// Nothing is known. At most `most` names are read ahead at once.
    pub(super) fn new(most: usize) -> Self {
        Self { walks: Mutex::default(), most }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Walk>> {
        self.walks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody has come to a name of a directory, which lies in `parent`. `follows` says whether the name comes soon after another one.
    /// Answers what is to be read ahead now, if anything.
    pub(super) fn step(
        &self,
        parent: Ino,
        directory: Ino,
        name: &Name,
        follows: impl FnOnce(&Name) -> bool,
    ) -> Option<Stretch> {
        let mut walks = self.lock();
        let mut walk = match walks.iter().position(|walk| walk.directory == directory) {
            Some(at) => walks.remove(at),
            None => {
                // Who has gone through its neighbours, or comes from above, goes on in the same way.
                let before = walks.iter().rfind(|walk| walk.parent == parent || walk.directory == parent);
                let steps = before.map_or(0, |walk| walk.steps.saturating_sub(1));
                let (last, ahead, mark) = (name.clone(), None, None);
                Walk { directory, parent, last, steps, ahead, mark, is_settled: false }
            }
        };
        if *name > walk.last && follows(&walk.last) {
            walk.steps = walk.steps.saturating_add(1);
        } else if *name != walk.last {
            (walk.steps, walk.ahead, walk.mark, walk.is_settled) = (0, None, None, false);
        }
        walk.last = name.clone();
        let is_due =
            !walk.is_settled && walk.steps >= STEPS && walk.mark.as_ref().is_none_or(|mark| name >= mark);
        let stretch = is_due.then(|| {
            walk.is_settled = true;
            let after = walk.ahead.iter().chain([name]).max().cloned();
            let count = 2usize.saturating_pow(walk.steps.saturating_add(1)).min(self.most);
            Stretch { directory, after: after.unwrap_or_else(|| name.clone()), count }
        });
        if walks.len() >= WALKS_MAX {
            walks.remove(0);
        }
        walks.push(walk);
        stretch
    }

    /// These names of a stretch are being read ahead, in their order; `complete`: there are no others in the directory.
    pub(super) fn reached(&self, directory: Ino, names: &[Name], complete: bool) {
        let mut walks = self.lock();
        let Some(walk) = walks.iter_mut().find(|walk| walk.directory == directory) else { return };
        walk.is_settled = complete;
        if let (Some(middle), Some(last)) = (names.get(names.len() / 2), names.last()) {
            walk.mark = Some(middle.clone());
            walk.ahead = Some(last.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Stretch, WALKS_MAX, Walks};
    use tandemfs::id::Ino;
    use tandemfs::name::Name;

    const ROOT: Ino = Ino(1);
    const DIRECTORY: Ino = Ino(2);

    fn name(number: u32) -> Name {
        Name::new(format!("{number:05}")).unwrap()
    }

    fn step(walks: &Walks, number: u32) -> Option<Stretch> {
        walks.step(ROOT, DIRECTORY, &name(number), |_| true)
    }

    fn stretch(after: u32, count: usize) -> Stretch {
        Stretch { directory: DIRECTORY, after: name(after), count }
    }

    #[test]
    fn who_goes_on_is_read_ahead_of_further_and_further_up_to_a_limit() {
        let walks = Walks::new(12);
        assert_eq!((step(&walks, 0), step(&walks, 1)), (None, None));
        assert_eq!(step(&walks, 2), Some(stretch(2, 8)));
        assert_eq!(step(&walks, 3), None, "it is under way");
        walks.reached(DIRECTORY, &(3..11).map(name).collect::<Vec<_>>(), false);
        assert_eq!((4..7).find_map(|number| step(&walks, number)), None);
        assert_eq!(step(&walks, 7), Some(stretch(10, 12)), "half of it is used up");
        walks.reached(DIRECTORY, &(11..14).map(name).collect::<Vec<_>>(), true);
        assert_eq!((8..20).find_map(|number| step(&walks, number)), None, "there is no more");
        assert_eq!(step(&walks, 0), None, "it begins anew");
        assert_eq!((step(&walks, 1), step(&walks, 2)), (None, Some(stretch(2, 8))));
    }

    #[test]
    fn who_jumps_about_is_not_read_ahead_of() {
        let walks = Walks::new(64);
        for number in [5, 500, 3, 700, 1, 9, 2, 800] {
            assert_eq!(walks.step(ROOT, DIRECTORY, &name(number), |_| false), None);
        }
        assert_eq!((0..9).find_map(|_| step(&walks, 7)), None, "the same one again");
    }

    #[test]
    fn the_next_directory_goes_on_as_its_neighbour() {
        let walks = Walks::new(64);
        (0..4).for_each(|number| drop(step(&walks, number)));
        let beside = walks.step(ROOT, Ino(3), &name(0), |_| true);
        assert_eq!(beside, Some(Stretch { directory: Ino(3), after: name(0), count: 8 }));
        let below = walks.step(DIRECTORY, Ino(4), &name(0), |_| true);
        assert!(below.is_some());
        assert_eq!(walks.step(Ino(99), Ino(5), &name(0), |_| true), None, "elsewhere nothing is known");
    }

    #[test]
    fn it_is_bounded() {
        let walks = Walks::new(8);
        (0..1000).for_each(|number| drop(walks.step(ROOT, Ino(number), &name(1), |_| true)));
        assert_eq!(walks.lock().len(), WALKS_MAX);
        walks.reached(Ino(1), &[name(1)], false);
    }
}
