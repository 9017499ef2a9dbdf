//! Parsing that all programs share: sizes, durations, files with secrets, and where a user's settings lie.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Error, Result};

/// The largest file with a secret that is read, in bytes.
const SECRET_MAX: u64 = 64 << 10;

/// Reads a number of bytes: digits, then nothing, or one of `K M G T P E` for powers of 1024 (`KiB` … as well), or
/// `KB` … for powers of 1000. Letters may be small.
///
/// # Errors
/// `Invalid` for anything else, and for what is over 2^64 - 1.
pub fn parse_size(text: &str) -> Result<u64> {
    let bad = || Error::invalid(format!("{text:?} is not a size such as 500M or 10G"));
    let (number, unit) = split_number(text).ok_or_else(bad)?;
    let unit = unit.to_ascii_uppercase();
    let (prefix, base) = match unit.as_str() {
        "" | "B" => return Ok(number),
        unit => match (unit.strip_suffix("IB"), unit.strip_suffix('B')) {
            (Some(prefix), _) => (prefix, 1024_u64),
            (None, Some(prefix)) => (prefix, 1000),
            (None, None) => (unit, 1024),
        },
    };
    let power = match prefix {
        "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        "P" => 5,
        "E" => 6,
        _ => return Err(bad()),
    };
    base.checked_pow(power).and_then(|unit| number.checked_mul(unit)).ok_or_else(bad)
}

/// Reads a duration: digits, then `ms`, `s`, `m` or `min`, `h`, `d`; without a unit they are seconds.
///
/// # Errors
/// `Invalid` for anything else, and for what is over 2^64 - 1 milliseconds.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let bad = || Error::invalid(format!("{text:?} is not a duration such as 30s or 5min"));
    let (number, unit) = split_number(text).ok_or_else(bad)?;
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        "d" => 24 * 60 * 60 * 1000,
        _ => return Err(bad()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(bad)
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_start()))
}

/// Reads a file that holds a secret: text without the line's end after it.
///
/// # Errors
/// `Forbidden` when others than its owner may read or change it, `Invalid` when it is not a regular file, is too large or is
/// not text, else as the file system says.
pub fn read_secret(path: &Path) -> Result<String> {
    let about = |error: std::io::Error| named(path, &error).because(error);
    // Asked of the open file, so that it is this very file that is judged and read.
    let file = File::open(path).map_err(about)?;
    let metadata = file.metadata().map_err(about)?;
    if !metadata.is_file() {
        return Err(Error::invalid(format!("{} is not a regular file", path.display())));
    }
    if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o7777;
        return Err(Error::forbidden(format!(
            "{} has mode {mode:04o}, so others may see the secret in it; run chmod 600 on it",
            path.display()
        )));
    }
    let mut secret = String::new();
    file.take(SECRET_MAX + 1).read_to_string(&mut secret).map_err(about)?;
    if secret.len() as u64 > SECRET_MAX {
        return Err(Error::invalid(format!("{} is too large for a secret", path.display())));
    }
    Ok(without_line_end(secret))
}

/// Takes one line's end off.
pub fn without_line_end(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

/// Writes a file that holds a secret, mode 0600: whole or not at all, and on stable storage when this returns. Makes its
/// directory, mode 0700, where there is none.
///
/// # Errors
/// As the file system says.
pub fn write_secret(path: &Path, secret: &[u8]) -> Result<()> {
    let about = |error: std::io::Error| named(path, &error).because(error);
    let directory = match path.parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(about)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{:016x}", rand::random::<u64>()));
    let temporary = PathBuf::from(temporary);
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(secret)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        about(error)
    })
}

/// Removes what [`write_secret`] has left beside a file when it was cut off. For those who know that nobody else writes it now.
///
/// # Errors
/// As the file system says.
pub fn remove_drafts(path: &Path) -> Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let about = |error: std::io::Error| named(directory, &error).because(error);
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        result => result.map_err(about)?,
    };
    for entry in entries {
        let entry = entry.map_err(about)?;
        let found = entry.file_name();
        let end = found.as_encoded_bytes().strip_prefix(name.as_encoded_bytes());
        let is_draft = |end: &[u8]| match end {
            [b'.', digits @ ..] => {
                digits.len() == 16 && digits.iter().all(|digit| b"0123456789abcdef".contains(digit))
            }
            _ => false,
        };
        if end.is_some_and(is_draft) {
            std::fs::remove_file(entry.path()).map_err(about)?;
        }
    }
    Ok(())
}

/// Where the user's settings for TandemFS lie: `$XDG_CONFIG_HOME/tandemfs`, or `$HOME/.config/tandemfs` (XDG Base
/// Directory Specification: a value that is not an absolute path counts nothing).
///
/// # Errors
/// `Invalid` when neither variable is usable.
pub fn config_directory() -> Result<PathBuf> {
    directory_from(|name| std::env::var_os(name).map(PathBuf::from), ("XDG_CONFIG_HOME", ".config"))
}

/// Where a mount keeps what it has not sent yet: `$XDG_CACHE_HOME/tandemfs`, `$HOME/.cache/tandemfs`, or for who has no home (a service, a mount
/// at boot) `/var/cache/tandemfs`.
pub fn cache_directory() -> PathBuf {
    directory_from(|name| std::env::var_os(name).map(PathBuf::from), ("XDG_CACHE_HOME", ".cache"))
        .unwrap_or_else(|_| PathBuf::from("/var/cache/tandemfs"))
}

fn directory_from(
    variable: impl Fn(&str) -> Option<PathBuf>,
    (of_kind, below_home): (&str, &str),
) -> Result<PathBuf> {
    let absolute = |name| variable(name).filter(|path| path.is_absolute());
    absolute(of_kind)
        .or_else(|| Some(absolute("HOME")?.join(below_home)))
        .map(|directory| directory.join("tandemfs"))
        .ok_or_else(|| Error::invalid(format!("neither {of_kind} nor HOME is an absolute path")))
}

/// A file system's error that says which file it is about.
fn named(path: &Path, error: &std::io::Error) -> Error {
    use std::io::ErrorKind as Io;
    match error.kind() {
        Io::NotFound => Error::not_found(path.display().to_string()),
        Io::PermissionDenied => Error::forbidden(path.display().to_string()),
        Io::InvalidData => Error::invalid(format!("{} is not text", path.display())),
        Io::StorageFull | Io::QuotaExceeded => Error::no_space(path.display().to_string()),
        _ => Error::unavailable(format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::{directory_from, parse_duration, parse_size, read_secret, remove_drafts, write_secret};
    use crate::ErrorKind;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("10G", 10 << 30),
            ("1k", 1024),
            ("3 MiB", 3 << 20),
            ("2MB", 2_000_000),
            ("18446744073709551615", u64::MAX),
            ("15E", 15 << 60),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "10X", "16E", "18446744073709551616", "1 0", "1GG", "１"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, millis) in
            [("250ms", 250), ("30", 30_000), ("30s", 30_000), ("5min", 300_000), ("2h", 7_200_000)]
        {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "s", "-1s", "5 fortnights", "18446744073709551615d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn secrets_are_kept_from_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/secret");
        write_secret(&path, b"first").unwrap();
        write_secret(&path, b"second\n").unwrap();
        assert_eq!(read_secret(&path).unwrap(), "second");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "no temporary file is left"
        );
        for mode in [0o640, 0o604, 0o620, 0o660] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_secret(&path).unwrap_err().kind(), ErrorKind::Forbidden, "{mode:o}");
        }
        assert_eq!(read_secret(Path::new("/dev/null")).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(read_secret(&directory.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn what_was_cut_off_is_removed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        remove_drafts(&directory.path().join("none/secret")).unwrap();
        write_secret(&path, b"whole").unwrap();
        let others =
            ["secret.old", "secret.0123456789ABCDEF", "secret.0123456789abcdef0", "other.0123456789abcdef"];
        for name in others.iter().chain(&["secret.0123456789abcdef", "secret.fedcba9876543210"]) {
            std::fs::write(directory.path().join(name), b"half").unwrap();
        }
        remove_drafts(&path).unwrap();
        assert_eq!(read_secret(&path).unwrap(), "whole");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1 + others.len());
    }

    #[test]
    fn the_directory_of_settings() {
        let with = |pairs: &[(&str, &str)]| {
            let pairs: Vec<(String, PathBuf)> =
                pairs.iter().map(|(name, value)| ((*name).into(), value.into())).collect();
            let variable =
                move |name: &str| pairs.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone());
            directory_from(variable, ("XDG_CONFIG_HOME", ".config"))
        };
        assert_eq!(with(&[("XDG_CONFIG_HOME", "/x"), ("HOME", "/h")]).unwrap(), Path::new("/x/tandemfs"));
        assert_eq!(
            with(&[("XDG_CONFIG_HOME", "x"), ("HOME", "/h")]).unwrap(),
            Path::new("/h/.config/tandemfs")
        );
        assert!(with(&[]).is_err());
    }
}
