//! The one error of the project: a meaning, the subject it is about, and perhaps a cause.
//!
//! A meaning exists only where a caller would act differently. Beside the enum stand exhaustive tables that
//! give each meaning its wire code, HTTP status, errno and title, so that an error that crosses the network
//! parses back into the same meaning.

use std::fmt;

/// The result of almost everything.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! kinds {
    ($( $(#[$doc:meta])* $kind:ident, $code:literal, $status:literal, $errno:literal, $title:literal, $make:ident; )*) => {
        /// What an error means.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorKind { $( $(#[$doc])* $kind, )* }

        impl ErrorKind {
            /// Every meaning, for tests and documentation.
            pub const ALL: &[Self] = &[$( Self::$kind, )*];

            /// The stable wire code.
            pub const fn code(self) -> &'static str { match self { $( Self::$kind => $code, )* } }
            /// The HTTP status.
            pub const fn http_status(self) -> u16 { match self { $( Self::$kind => $status, )* } }
            /// The errno that a program on a mount sees (Linux numbers, errno(3)).
            pub const fn errno(self) -> i32 { match self { $( Self::$kind => $errno, )* } }
            /// A sentence for people, without the subject.
            pub const fn title(self) -> &'static str { match self { $( Self::$kind => $title, )* } }
            /// The meaning that a wire code stands for.
            pub fn from_code(code: &str) -> Option<Self> {
                match code { $( $code => Some(Self::$kind), )* _ => None }
            }
        }

        impl Error {
            $( #[doc = concat!("An error that means `", $code, "`; the argument is its subject.")]
               pub fn $make(subject: impl Into<String>) -> Self { Self::new(ErrorKind::$kind, subject) } )*
        }
    };
}

// Errno numbers are written out so that this file needs no system header: they are Linux's, asm-generic/errno.h.
kinds! {
    /// There is no such thing, or the caller may not know of it.
    NotFound, "not_found", 404, 2, "No such file, directory or thing", not_found;
    /// The name is taken.
    AlreadyExists, "already_exists", 409, 17, "It exists already", already_exists;
    /// A component of the path is not a directory.
    NotADirectory, "not_a_directory", 409, 20, "Not a directory", not_a_directory;
    /// The call does not work on a directory.
    IsADirectory, "is_a_directory", 409, 21, "Is a directory", is_a_directory;
    /// The directory has entries.
    NotEmpty, "not_empty", 409, 39, "The directory is not empty", not_empty;
    /// The request makes no sense.
    Invalid, "invalid", 400, 22, "Invalid request", invalid;
    /// A name is over 255 bytes or a path over 4096.
    NameTooLong, "name_too_long", 400, 36, "The name is too long", name_too_long;
    /// A body or a file is over its limit.
    TooLarge, "too_large", 413, 27, "Too large", too_large;
    /// The requested range lies outside of the file.
    OutOfRange, "out_of_range", 416, 34, "The range lies outside of the file", out_of_range;
    /// The body's media type is not one of those that the endpoint takes.
    UnsupportedMedia, "unsupported_media", 415, 22, "The media type is not supported", unsupported_media;
    /// Not built, and not planned for this object.
    Unsupported, "unsupported", 501, 95, "Not supported", unsupported;
    /// Who is asking is not known.
    Unauthenticated, "unauthenticated", 401, 13, "Log in first", unauthenticated;
    /// Who is asking is known and may not.
    Forbidden, "forbidden", 403, 13, "Not allowed", forbidden;
    /// The password that every installation begins with, used from another machine.
    DefaultPassword, "default_password", 403, 13, "The first password works from this machine only", default_password;
    /// The path is known, but not with this method.
    MethodNotAllowed, "method_not_allowed", 405, 95, "The method is not allowed here", method_not_allowed;
    /// POSIX forbids it to anybody but the owner or root (EPERM).
    NotPermitted, "not_permitted", 403, 1, "Operation not permitted", not_permitted;
    /// The volume is granted for reading only.
    ReadOnly, "read_only", 403, 30, "The volume is read-only", read_only;
    /// A precondition does not hold any more: what was read has changed.
    Stale, "stale", 412, 116, "It has changed in the meantime", stale;
    /// The session has ended or was fenced; open a new one.
    SessionEnded, "session_ended", 410, 116, "The session has ended", session_ended;
    /// The quota of the volume is used up.
    QuotaExceeded, "quota_exceeded", 507, 122, "The quota is used up", quota_exceeded;
    /// The storage nodes are full.
    NoSpace, "no_space", 507, 28, "No space left", no_space;
    /// Somebody else holds it.
    Busy, "busy", 423, 16, "It is in use", busy;
    /// The file has as many links as it may have.
    TooManyLinks, "too_many_links", 409, 31, "Too many links", too_many_links;
    /// Too many symbolic links, or a directory moved into itself would make a loop.
    Loop, "loop", 409, 40, "Too many levels of symbolic links", symlink_loop;
    /// There is no such extended attribute.
    NoAttribute, "no_attribute", 404, 61, "No such attribute", no_attribute;
    /// The value does not fit.
    ValueTooLarge, "value_too_large", 400, 7, "The value is too large", value_too_large;
    /// Asked too often; wait.
    TooManyRequests, "too_many_requests", 429, 11, "Too many requests", too_many_requests;
    /// The other side was too slow.
    TimedOut, "timed_out", 408, 110, "Timed out", timed_out;
    /// Not possible just now; the same request may work later.
    Unavailable, "unavailable", 503, 5, "Not available at the moment", unavailable;
    /// Stored bytes are not what was stored.
    Corrupt, "corrupt", 500, 5, "The stored data is damaged", corrupt;
    /// Our own fault; the log has more.
    Internal, "internal", 500, 5, "Internal error", internal;
}

impl ErrorKind {
    /// Whether the same request, sent again later, may succeed without anybody changing anything.
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::Unavailable | Self::TooManyRequests | Self::TimedOut)
    }
}

/// A meaning, its subject (a path, an id, a sentence), and perhaps a cause for the log.
pub struct Error {
    kind: ErrorKind,
    subject: String,
    retry_after_s: Option<u64>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of a meaning about a subject.
    pub fn new(kind: ErrorKind, subject: impl Into<String>) -> Self {
        Self { kind, subject: subject.into(), retry_after_s: None, source: None }
    }

    /// Keeps the cause for the log. It is never sent to a client.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says after how many seconds it is worth trying again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// What it means.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What it is about.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Seconds to wait before another try, if the other side said so.
    pub fn retry_after_s(&self) -> Option<u64> {
        self.retry_after_s
    }

    /// The errno that a program on a mount sees.
    pub fn errno(&self) -> i32 {
        self.kind.errno()
    }

    /// A copy for another waiter; the cause stays with the original.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self {
            kind: self.kind,
            subject: self.subject.clone(),
            retry_after_s: self.retry_after_s,
            source: None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.subject.is_empty() {
            f.write_str(self.kind.title())
        } else {
            write!(f, "{}: {}", self.kind.title(), self.subject)
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({:?})", self.kind.code(), self.subject)?;
        if let Some(source) = &self.source {
            write!(f, " because {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind() {
            Io::NotFound => ErrorKind::NotFound,
            Io::AlreadyExists => ErrorKind::AlreadyExists,
            Io::PermissionDenied => ErrorKind::Forbidden,
            Io::StorageFull | Io::QuotaExceeded => ErrorKind::NoSpace,
            Io::TimedOut => ErrorKind::TimedOut,
            _ => ErrorKind::Unavailable,
        };
        Self::new(kind, error.to_string()).because(error)
    }
}

#[cfg(test)]
mod tests {
    use super::ErrorKind;

    #[test]
    fn every_code_parses_back_and_every_status_is_an_error() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_code(kind.code()), Some(*kind));
            assert!((400..600).contains(&kind.http_status()), "{kind:?}");
            assert!(kind.errno() > 0, "{kind:?}");
        }
        assert_eq!(ErrorKind::from_code("no such code"), None);
    }
}
