//! The command line of `tandem-mount` and of the mount helper `mount.tandemfs` (mount(8), "external helpers").

use std::path::PathBuf;
use std::time::Duration;

use tandemfs::config::{parse_duration, parse_size};
use tandemfs::name::{Name, split_path};
use tandemfs::{Error, Result};

use crate::fs::atime::{AtimeRule, When};
use crate::fs::ids::{Ids, Map, Squash};

/// What is shown for `--help`.
pub const USAGE: &str = "\
Mounts a TandemFS volume as a directory.

usage: tandem-mount URL DIRECTORY [-o option,option=…] [-f] [-v]
       mount.tandemfs URL DIRECTORY [-sfnv] [-N namespace] [-o options] [-t type]

  -f   stay in the foreground (as mount.tandemfs: check everything and mount nothing)
  -v   say more
  -o   options, separated by commas:
       volume=NAME           a shared volume instead of one's own
       subdir=PATH           a directory of the volume instead of all of it
       credentials=FILE      a file of mode 0600 with `token = \"…\"`, or `username = \"…\"` and `password = \"…\"`
       ca=FILE               trust the authorities in this file (PEM), and no others
       cache_dir=DIRECTORY   where changes that are answered and not sent yet are kept
                             (tandemfs in $XDG_CACHE_HOME, ~/.cache or /var/cache if not given)
       cache_size=SIZE       for blocks that were read from a daemon on another machine, in the same directory and
                             kept across mounts: 1G for a volume if not given, 0 for none
       memory=SIZE           for all buffers and caches together, 96M if not given
       offline_timeout=TIME  how long calls wait for a daemon that is away, 5min if not given
       log=FILE              where to log to in the background
       root_squash, all_squash, no_root_squash, anonuid=N, anongid=N
                             whose changes are stored as those of the user and group N (65534 if not given)
       map_uid=HERE:THERE[:COUNT], map_gid=HERE:THERE[:COUNT]
                             numbers of users and groups on this machine and in the volume; may be repeated
       relatime, strictatime, noatime, nodiratime
                             when reading changes atime (mount(8)): relatime if not given, the last one counts
       ro, sync, noexec, allow_other; suid and dev for root with allow_other
       nolease               send each change before it is answered, also while nobody else uses the volume
       remount               change ro, sync and noexec of what is mounted there

Without credentials= they come from TANDEM_TOKEN, or TANDEM_USER with TANDEM_PASSWORD (each also as …_FILE), or from
`tandem login`. Unmount with `umount DIRECTORY` or `fusermount3 -u DIRECTORY`.
";

/// The least memory that is of use, in bytes.
const MEMORY_MIN: u64 = 32 << 20;
/// And the least cache on disk.
const CACHE_MIN: u64 = 32 << 20;

/// What mount(8) and fstab(5) add for themselves, or what is so anyway.
const IGNORED: &[&str] = &[
    "defaults",
    "rw",
    "async",
    "exec",
    "nosuid",
    "nodev",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    // The kernel's default all the same.
    "norelatime",
    "lazytime",
    "nolazytime",
    "dirsync",
    "default_permissions",
    "loud",
    "silent",
    "iversion",
    "noiversion",
    "mand",
    "nomand",
    // What the kernel shows of a mount, which mount(8) gives back with `remount`.
    "user_id",
    "group_id",
    "max_read",
];
/// What we know.
const KNOWN: &str = "volume=, subdir=, credentials=, ca=, cache_dir=, cache_size=, memory=, offline_timeout=, log=, root_squash, all_squash, no_root_squash, anonuid=, anongid=, map_uid=, map_gid=, relatime, strictatime, noatime, nodiratime, ro, sync, lease, nolease, noexec, allow_other, suid, dev, remount";

/// A command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// The daemon.
    pub url: String,
    /// Where to mount.
    pub directory: PathBuf,
    /// Stay in the foreground.
    pub foreground: bool,
    /// Check and do not mount.
    pub fake: bool,
    /// Say more.
    pub verbose: bool,
    /// The mount namespace to mount in (mount(8), `-N`).
    pub namespace: Option<PathBuf>,
    /// What `-o` says.
    pub options: MountOptions,
}

/// What `-o` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// A shared volume.
    pub volume: Option<String>,
    /// The directory of the volume to mount; empty for all of it.
    pub subdir: Vec<Name>,
    /// A file with credentials.
    pub credentials: Option<PathBuf>,
    /// The certificate authorities to trust, instead of the system's.
    pub ca: Option<PathBuf>,
    /// Where what is answered and not sent yet is kept.
    pub cache_directory: Option<PathBuf>,
    /// The most bytes of blocks that are cached there; 0 for none.
    pub cache_size: u64,
    /// Bytes for all buffers and caches.
    pub memory: usize,
    /// How long calls wait for a daemon that is away.
    pub offline_timeout: Duration,
    /// Where to log to.
    pub log: Option<PathBuf>,
    /// Nothing is changed.
    pub read_only: bool,
    /// Every write is durable when it returns.
    pub sync: bool,
    /// Changes are answered before they are sent while nobody else uses the volume.
    pub lease: bool,
    /// Nothing is executed.
    pub no_exec: bool,
    /// Other users may use the mount.
    pub allow_other: bool,
    /// Set-user-id counts.
    pub suid: bool,
    /// Device files work.
    pub dev: bool,
    /// Change the flags of what is mounted there already.
    pub remount: bool,
    /// How owners are translated.
    pub ids: Ids,
    /// When reading changes atime.
    pub atime: AtimeRule,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            volume: None,
            subdir: Vec::new(),
            credentials: None,
            ca: None,
            cache_directory: None,
            cache_size: 1 << 30,
            memory: 96 << 20,
            offline_timeout: Duration::from_secs(300),
            log: None,
            read_only: false,
            sync: false,
            lease: true,
            no_exec: false,
            allow_other: false,
            suid: false,
            dev: false,
            remount: false,
            ids: Ids::default(),
            atime: AtimeRule::default(),
        }
    }
}

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To mount.
    Mount(Box<CommandLine>),
    /// For [`USAGE`].
    Help,
    /// For the version.
    Version,
}

/// Reads a command line without its first word. `helper`: as mount(8) calls it.
///
/// # Errors
/// `Invalid`, with a sentence.
pub fn parse(arguments: impl IntoIterator<Item = String>, helper: bool) -> Result<Asked> {
    let mut arguments = arguments.into_iter();
    let mut places = Vec::new();
    let (mut fake, mut foreground, mut verbose, mut sloppy, mut read_only) =
        (false, false, false, false, false);
    let (mut texts, mut namespace) = (Vec::new(), None);
    while let Some(argument) = arguments.next() {
        let mut value =
            |letter| arguments.next().ok_or_else(|| Error::invalid(format!("-{letter} needs a value")));
        match argument.as_str() {
            "--help" | "-h" => return Ok(Asked::Help),
            "--version" | "-V" => return Ok(Asked::Version),
            "-o" => texts.push(value('o')?),
            "-N" if helper => namespace = Some(PathBuf::from(value('N')?)),
            "-t" if helper => drop(value('t')?),
            text if text.starts_with("-o") => texts.push(text[2..].to_owned()),
            text if text.starts_with('-') && text.len() > 1 => {
                for letter in text[1..].chars() {
                    match letter {
                        'f' if helper => fake = true,
                        'f' => foreground = true,
                        'v' => verbose = true,
                        's' if helper => sloppy = true,
                        'n' if helper => (),
                        'r' => read_only = true,
                        'w' => (),
                        _ => return Err(Error::invalid(format!("unknown option {text}; see --help"))),
                    }
                }
            }
            _ => places.push(argument),
        }
    }
    let Ok([url, directory]) = <[String; 2]>::try_from(places) else {
        return Err(Error::invalid("a URL and a directory are needed; see --help"));
    };
    let mut options = MountOptions { read_only, ..MountOptions::default() };
    for text in texts.iter().flat_map(|text| text.split(',')).filter(|text| !text.is_empty()) {
        match parse_option(text, &mut options)? {
            true => (),
            false if sloppy => log::debug!("ignoring the unknown option {text}"),
            false => {
                let name = text.split('=').next().unwrap_or(text);
                return Err(Error::invalid(format!("unknown mount option {name:?}; known are {KNOWN}")));
            }
        }
    }
    if (options.suid || options.dev) && !options.allow_other {
        return Err(Error::invalid("suid and dev are of use with allow_other only"));
    }
    let directory = PathBuf::from(directory);
    let line = CommandLine { url, directory, foreground, fake, verbose, namespace, options };
    Ok(Asked::Mount(Box::new(line)))
}

/// Takes one option in; answers whether it is known.
fn parse_option(text: &str, options: &mut MountOptions) -> Result<bool> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    let needed = || match value {
        Some(value) if !value.is_empty() => Ok(value),
        _ => Err(Error::invalid(format!("{name}= needs a value"))),
    };
    let when = options.atime.when;
    match (name, value) {
        ("volume", _) => options.volume = Some(needed()?.to_owned()),
        ("subdir", _) => {
            options.subdir = split_path(needed()?)
                .map_err(|error| Error::invalid(format!("subdir=: {}", error.subject())))?;
        }
        ("credentials", _) => options.credentials = Some(needed()?.into()),
        ("ca", _) => options.ca = Some(needed()?.into()),
        ("log", _) => options.log = Some(needed()?.into()),
        ("memory", _) => {
            let bytes = parse_size(needed()?)?;
            if bytes < MEMORY_MIN {
                return Err(Error::invalid("memory= must be 32M at least"));
            }
            options.memory = usize::try_from(bytes).map_err(|_| Error::invalid("memory= is too large"))?;
        }
        ("offline_timeout", _) => options.offline_timeout = parse_duration(needed()?)?,
        ("password" | "pass" | "token", _) => {
            return Err(Error::invalid("secrets are not taken from the command line; use credentials=FILE"));
        }
        ("ro", None) => options.read_only = true,
        ("rw", None) => options.read_only = false,
        ("sync", None) => options.sync = true,
        ("lease", None) => options.lease = true,
        ("nolease", None) => options.lease = false,
        ("noexec", None) => options.no_exec = true,
        ("allow_other", None) => options.allow_other = true,
        ("suid", None) => options.suid = true,
        ("dev", None) => options.dev = true,
        ("remount", None) => options.remount = true,
        ("relatime", None) => options.atime.when = When::Relative,
        ("strictatime", None) => options.atime.when = When::Always,
        ("noatime", None) => options.atime.when = When::Never,
        // These take back the one of their name.
        ("atime", None) if when == When::Never => options.atime.when = When::Relative,
        ("nostrictatime", None) if when == When::Always => options.atime.when = When::Relative,
        ("atime" | "nostrictatime", None) => (),
        ("nodiratime", None) => options.atime.not_directories = true,
        ("diratime", None) => options.atime.not_directories = false,
        ("no_root_squash", None) => options.ids.squash = Squash::None,
        ("root_squash", None) => options.ids.squash = Squash::Root,
        ("all_squash", None) => options.ids.squash = Squash::All,
        ("anonuid", _) => options.ids.anonymous_user = number(name, needed()?)?,
        ("anongid", _) => options.ids.anonymous_group = number(name, needed()?)?,
        ("map_uid", _) => add_range(name, needed()?, &mut options.ids.users)?,
        ("map_gid", _) => add_range(name, needed()?, &mut options.ids.groups)?,
        ("cache_dir", _) => {
            let path = PathBuf::from(needed()?);
            if !path.is_absolute() {
                return Err(Error::invalid("cache_dir= takes an absolute path"));
            }
            options.cache_directory = Some(path);
        }
        ("cache_size", _) => {
            options.cache_size = parse_size(needed()?)?;
            if (1..CACHE_MIN).contains(&options.cache_size) {
                return Err(Error::invalid("cache_size= must be 0 or 32M at least"));
            }
        }
        ("comment", _) => (),
        _ => {
            return Ok(name.starts_with("x-") || name.starts_with("X-") || IGNORED.contains(&name));
        }
    }
    Ok(true)
}

/// The number of a user or group; the last one is none (chown(2)).
fn number(name: &str, value: &str) -> Result<u32> {
    let number = value.parse().ok().filter(|number| *number != u32::MAX);
    number.ok_or_else(|| Error::invalid(format!("{name}= needs a number")))
}

fn add_range(name: &str, value: &str, map: &mut Map) -> Result<()> {
    map.add(value).map_err(|error| Error::invalid(format!("{name}=: {}", error.subject())))
}

#[cfg(test)]
mod tests {
    use super::{Asked, AtimeRule, CommandLine, Ids, MountOptions, Name, Squash, When, parse};
    use std::path::PathBuf;
    use std::time::Duration;

    fn read(text: &str, helper: bool) -> tandemfs::Result<CommandLine> {
        match parse(text.split(' ').map(str::to_owned), helper)? {
            Asked::Mount(line) => Ok(*line),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_command_line_is_read() {
        let line = read(
            "http://a /b -o ro,memory=64M,cache_size=2G,volume=x,subdir=/s/t/ -oallow_other,offline_timeout=3s -f",
            false,
        )
        .unwrap();
        let options = MountOptions {
            volume: Some("x".into()),
            subdir: vec![Name::new("s").unwrap(), Name::new("t").unwrap()],
            memory: 64 << 20,
            cache_size: 2 << 30,
            offline_timeout: Duration::from_secs(3),
            read_only: true,
            allow_other: true,
            ..MountOptions::default()
        };
        assert_eq!(line.options, options);
        assert!(line.foreground && !line.fake);
        assert_eq!((line.url.as_str(), line.directory), ("http://a", PathBuf::from("/b")));
    }

    #[test]
    fn owners_are_translated_as_the_options_say() {
        let line = read(
            "http://a /b -o all_squash,anonuid=5,anongid=6,map_uid=1000:5,map_uid=0:7,map_gid=1:6:1",
            false,
        );
        let mut ids = Ids { squash: Squash::All, anonymous_user: 5, anonymous_group: 6, ..Ids::default() };
        for range in ["1000:5", "0:7"] {
            ids.users.add(range).unwrap();
        }
        ids.groups.add("1:6").unwrap();
        assert_eq!(line.unwrap().options.ids, ids);
        assert_eq!(read("http://a /b -o rw", false).unwrap().options.ids, Ids::default());
    }

    #[test]
    fn the_last_word_on_atime_counts() {
        let rule = |options: &str| read(&format!("http://a /b -o rw,{options}"), true).unwrap().options.atime;
        for (options, when) in [
            ("relatime", When::Relative),
            ("noatime", When::Never),
            ("strictatime", When::Always),
            ("noatime,strictatime", When::Always),
            ("strictatime,noatime", When::Never),
            ("noatime,relatime", When::Relative),
            ("noatime,atime", When::Relative),
            ("strictatime,atime,norelatime", When::Always),
            ("strictatime,nostrictatime", When::Relative),
            ("noatime,nostrictatime", When::Never),
        ] {
            assert_eq!(rule(options), AtimeRule { when, not_directories: false }, "{options}");
        }
        assert_eq!(rule("nodiratime"), AtimeRule { when: When::Relative, not_directories: true });
        assert_eq!(rule("nodiratime,diratime"), AtimeRule::default());
    }

    #[test]
    fn the_helper_takes_what_mount_gives_it() {
        let line = read(
            "http://a /b -sfnv -N /proc/5/ns/mnt -t tandemfs -o rw,noauto,user,_netdev,nofail,x-a.b=c,odd=1",
            true,
        );
        let line = line.unwrap();
        assert_eq!(line.namespace, Some(PathBuf::from("/proc/5/ns/mnt")));
        assert!(line.fake && line.verbose && !line.foreground);
        assert_eq!(line.options, MountOptions::default());
    }

    #[test]
    fn what_is_wrong_is_refused_with_a_sentence() {
        for (line, word) in [
            ("http://a", "directory"),
            ("http://a /b -o odd", "volume="),
            ("http://a /b -o memory=1M", "32M"),
            ("http://a /b -o credentials=", "credentials="),
            ("http://a /b -o password=x", "command line"),
            ("http://a /b -o suid", "allow_other"),
            ("http://a /b -o cache_dir=c", "absolute"),
            ("http://a /b -o cache_size=1M", "32M"),
            ("http://a /b -o cache_size=much", "size"),
            ("http://a /b -o subdir=a/../b", "subdir="),
            ("http://a /b -o anonuid=nobody", "anonuid="),
            ("http://a /b -o anongid=4294967295", "anongid="),
            ("http://a /b -o map_uid=1000", "map_uid="),
            ("http://a /b -o map_gid=1:2,map_gid=1:3", "map_gid="),
            ("http://a /b -x", "-x"),
        ] {
            let error = read(line, false).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
