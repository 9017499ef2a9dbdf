//! When reading changes atime, by the options of mount(8).

use tandemfs::clock::Time;
use tandemfs::tree::Inode;

/// An atime is renewed when it is so old (mount(8), relatime), in seconds.
const DAY: i64 = 24 * 3600;

/// Which reads count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// The first one after a change, and one a day (`relatime`).
    #[default]
    Relative,
    /// All of them (`strictatime`).
    Always,
    /// None (`noatime`).
    Never,
}

/// The rule of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AtimeRule {
    /// Which reads count.
    pub when: When,
    /// Those of directories do not (`nodiratime`).
    pub not_directories: bool,
}

impl AtimeRule {
    /// Whether a read at `now` of what has these attributes changes atime. As the kernel does it for its own file systems
    /// (`relatime_need_update`).
    pub fn counts(self, inode: &Inode, now: Time) -> bool {
        if self.not_directories && inode.is_directory() {
            return false;
        }
        match self.when {
            When::Never => false,
            When::Always => true,
            When::Relative => {
                let day_old = now.seconds.saturating_sub(inode.atime.seconds) >= DAY;
                inode.atime <= inode.mtime || inode.atime <= inode.ctime || day_old
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AtimeRule, DAY, When};
    use tandemfs::clock::Time;
    use tandemfs::id::Ino;
    use tandemfs::tree::{Inode, Kind, new_root};

    fn inode(kind: Kind, atime: i64, mtime: i64, ctime: i64) -> Inode {
        let at = |seconds| Time { seconds, nanos: 5 };
        let root = new_root(at(0), 0, 0);
        Inode { ino: Ino(2), kind, atime: at(atime), mtime: at(mtime), ctime: at(ctime), ..root }
    }

    #[test]
    fn relatime_is_the_first_read_after_a_change_and_one_a_day() {
        let rule = AtimeRule::default();
        for (atime, mtime, ctime, now, counts) in [
            (100, 100, 100, 101, true),
            (100, 101, 50, 102, true),
            (100, 50, 101, 102, true),
            (100, 50, 100, 102, true),
            (101, 100, 100, 102, false),
            (101, 100, 100, 101 + DAY - 1, false),
            (101, 100, 100, 101 + DAY, true),
            (i64::MIN, i64::MIN + 1, 0, i64::MAX, true),
            (i64::MAX, 0, 0, i64::MIN, false),
        ] {
            for kind in [Kind::File, Kind::Directory, Kind::Symlink] {
                let inode = inode(kind, atime, mtime, ctime);
                assert_eq!(
                    rule.counts(&inode, Time { seconds: now, nanos: 5 }),
                    counts,
                    "{inode:?} at {now}"
                );
            }
        }
    }

    #[test]
    fn the_other_rules_are_all_or_nothing() {
        let now = Time { seconds: 200, nanos: 0 };
        let (fresh, stale) = ((150, 100, 100), (50, 100, 100));
        for (when, not_directories, file, directory) in [
            (When::Always, false, true, true),
            (When::Always, true, true, false),
            (When::Never, false, false, false),
            (When::Never, true, false, false),
        ] {
            let rule = AtimeRule { when, not_directories };
            for (atime, mtime, ctime) in [fresh, stale] {
                assert_eq!(rule.counts(&inode(Kind::File, atime, mtime, ctime), now), file, "{rule:?}");
                assert_eq!(
                    rule.counts(&inode(Kind::Directory, atime, mtime, ctime), now),
                    directory,
                    "{rule:?}"
                );
            }
        }
        let rule = AtimeRule { when: When::Relative, not_directories: true };
        assert!(rule.counts(&inode(Kind::File, 50, 100, 100), now));
        assert!(!rule.counts(&inode(Kind::Directory, 50, 100, 100), now));
    }
}
