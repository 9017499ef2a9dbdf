//! Entity tags, preconditions and ranges (RFC 9110, sections 8.8.3, 13 and 14).

use std::ops::Range;
use tandemfs::tree::Inode;
use tandemfs::{Error, Result};

/// The strong entity tag of a file's content.
pub fn etag(inode: &Inode) -> String {
    format!("\"{:x}-{:x}\"", inode.ino.0, inode.content)
}

/// The preconditions of a request, as they were sent.
#[derive(Clone, Debug, Default)]
pub struct Preconditions {
    /// `If-Match`.
    pub if_match: Option<String>,
    /// `If-None-Match`.
    pub if_none_match: Option<String>,
}

impl Preconditions {
    /// Checks the preconditions of a change against the tag of what is there, if something is.
    ///
    /// # Errors
    /// `Stale` when one does not hold.
    pub fn check(&self, etag: Option<&str>) -> Result<()> {
        let failed =
            self.if_match.as_ref().is_some_and(|tags| !etag.is_some_and(|etag| lists(tags, etag, false)));
        if failed || self.is_not_modified(etag) {
            return Err(Error::stale("a precondition does not hold"));
        }
        Ok(())
    }

    /// Whether `If-None-Match` says that the client has what is there.
    pub fn is_not_modified(&self, etag: Option<&str>) -> bool {
        let Some(tags) = &self.if_none_match else { return false };
        etag.is_some_and(|etag| lists(tags, etag, true))
    }

    /// As [`Preconditions::check`], for a read, where `If-None-Match` is not an error.
    ///
    /// # Errors
    /// `Stale` when `If-Match` does not hold.
    pub fn check_read(&self, etag: &str) -> Result<()> {
        Self { if_none_match: None, ..self.clone() }.check(Some(etag))
    }
}

/// Whether a list of tags has one; a weak one matches only in a weak comparison.
fn lists(tags: &str, etag: &str, weak: bool) -> bool {
    tags.trim() == "*"
        || tags.split(',').map(str::trim).any(|tag| {
            let tag = if weak { tag.strip_prefix("W/").unwrap_or(tag) } else { tag };
            tag == etag
        })
}

/// What a `Range` asks of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeAnswer {
    /// The whole file: nothing, several ranges, another unit, or nonsense was asked for.
    Whole,
    /// A part.
    Part(Range<u64>),
    /// What does not lie in the file.
    Unsatisfiable,
}

/// Reads `Range` with `If-Range` for a file of `size` bytes.
pub fn range_of(range: Option<&str>, if_range: Option<&str>, etag: &str, size: u64) -> RangeAnswer {
    let asked = range.filter(|_| if_range.is_none_or(|tag| tag.trim() == etag));
    let Some((first, last)) = asked.and_then(parse) else {
        return RangeAnswer::Whole;
    };
    let part = match (first, last) {
        (None, Some(count)) => size.saturating_sub(count)..size,
        (Some(first), last) => first..last.map_or(size, |last| last.saturating_add(1)).min(size),
        (None, None) => return RangeAnswer::Whole,
    };
    if part.is_empty() { RangeAnswer::Unsatisfiable } else { RangeAnswer::Part(part) }
}

/// `bytes=first-last`, `bytes=first-`, `bytes=-count`.
fn parse(range: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (unit, spec) = range.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = spec.trim().split_once('-')?;
    let number = |text: &str| match text {
        "" => Some(None),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(Some(digits.parse().unwrap_or(u64::MAX)))
        }
        _ => None,
    };
    let (first, last) = (number(first)?, number(last)?);
    match (first, last) {
        (Some(first), Some(last)) if last < first => None,
        parsed => Some(parsed),
    }
}

#[cfg(test)]
mod tests {
    use super::{Preconditions, RangeAnswer, range_of};

    #[test]
    fn ranges_are_read() {
        let whole = RangeAnswer::Whole;
        for (range, answer) in [
            ("bytes=0-0", RangeAnswer::Part(0..1)),
            ("bytes=2-", RangeAnswer::Part(2..10)),
            ("bytes=-3", RangeAnswer::Part(7..10)),
            ("bytes=-30", RangeAnswer::Part(0..10)),
            ("bytes=5-99999999999999999999999", RangeAnswer::Part(5..10)),
            ("bytes=10-", RangeAnswer::Unsatisfiable),
            ("bytes=-0", RangeAnswer::Unsatisfiable),
            ("bytes=3-2", whole.clone()),
            ("bytes=0-1,3-4", whole.clone()),
            ("bytes=-", whole.clone()),
            ("bytes=+1-2", whole.clone()),
            ("lines=1-2", whole.clone()),
            ("nonsense", whole.clone()),
        ] {
            assert_eq!(range_of(Some(range), None, "\"a\"", 10), answer, "{range}");
        }
        assert_eq!(range_of(Some("bytes=0-0"), None, "\"a\"", 0), RangeAnswer::Unsatisfiable);
        assert_eq!(range_of(Some("bytes=0-0"), Some("\"a\""), "\"a\"", 9), RangeAnswer::Part(0..1));
        assert_eq!(range_of(Some("bytes=0-0"), Some("\"b\""), "\"a\"", 9), whole);
        assert_eq!(range_of(Some("bytes=0-0"), Some("W/\"a\""), "\"a\"", 9), whole);
    }

    #[test]
    fn preconditions_compare_tags() {
        let of = |if_match: Option<&str>, if_none_match: Option<&str>| Preconditions {
            if_match: if_match.map(str::to_owned),
            if_none_match: if_none_match.map(str::to_owned),
        };
        assert!(of(None, None).check(Some("\"a\"")).is_ok());
        assert!(of(Some("\"b\", \"a\""), None).check(Some("\"a\"")).is_ok());
        assert!(of(Some("W/\"a\""), None).check(Some("\"a\"")).is_err());
        assert!(of(Some("*"), None).check(Some("\"a\"")).is_ok());
        assert!(of(Some("*"), None).check(None).is_err());
        assert!(of(None, Some("*")).check(None).is_ok());
        assert!(of(None, Some("*")).check(Some("\"a\"")).is_err());
        assert!(of(None, Some("W/\"a\"")).is_not_modified(Some("\"a\"")));
    }
}
