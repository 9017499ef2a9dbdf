//! How a command ends.

use std::process::ExitCode;

use tandemfs::{Error, ErrorKind};

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line makes no sense.
    Usage(String),
    /// It was tried.
    Failed(Error),
    /// It was tried with several things, and the errors are printed: this is the first one's code.
    Printed(u8),
    /// Nobody reads the output any more: no reason to complain.
    ClosedPipe,
    /// Ctrl-C, where there was something to clean up.
    Interrupted,
}

/// The result of a command.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Failure {
    /// The exit code, as `--help` documents it.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Failed(error) => code_of(error.kind()),
            Self::Printed(code) => *code,
            Self::ClosedPipe => 0,
            // As a shell reports a program that SIGINT has ended.
            Self::Interrupted => 130,
        }
    }

    /// Says on standard error what is to be said.
    pub(crate) fn report(&self) {
        match self {
            Self::Usage(text) => complain(text),
            Self::Failed(error) if error.kind() == ErrorKind::Unauthenticated => {
                complain(&format!("{error} (tandem login)"));
            }
            Self::Failed(error) => complain(&error.to_string()),
            Self::Printed(_) | Self::ClosedPipe | Self::Interrupted => {}
        }
    }

    /// Ends the process's work.
    pub(crate) fn exit(&self) -> ExitCode {
        self.report();
        ExitCode::from(self.code())
    }
}

/// One sentence on standard error.
pub(crate) fn complain(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "tandem: {}", super::output::escape(text));
}

/// Goes on with the others when one of several fails.
#[derive(Default)]
pub(crate) struct Several(Option<u8>);

impl Several {
    /// Takes one's outcome.
    pub(crate) fn note(&mut self, outcome: Outcome) -> Outcome {
        match outcome {
            Err(Failure::ClosedPipe) => Err(Failure::ClosedPipe),
            Err(failure) => {
                failure.report();
                self.0.get_or_insert(failure.code());
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// The outcome of all.
    pub(crate) fn finish(self) -> Outcome {
        self.0.map_or(Ok(()), |code| Err(Failure::Printed(code)))
    }
}

fn code_of(kind: ErrorKind) -> u8 {
    match kind.http_status() {
        401 | 403 => 3,
        404 => 4,
        408 | 429 | 503 => 5,
        507 => 6,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::{Failure, Several};
    use tandemfs::Error;

    #[test]
    fn codes_are_those_of_the_manual() {
        for (error, code) in [
            (Error::unauthenticated(""), 3),
            (Error::forbidden(""), 3),
            (Error::not_found(""), 4),
            (Error::unavailable(""), 5),
            (Error::quota_exceeded(""), 6),
            (Error::no_space(""), 6),
            (Error::already_exists(""), 1),
        ] {
            assert_eq!(Failure::from(error).code(), code);
        }
    }

    #[test]
    fn the_first_of_several_decides() {
        let mut several = Several::default();
        several.note(Ok(())).unwrap();
        several.note(Err(Failure::Printed(4))).unwrap();
        several.note(Err(Failure::Printed(1))).unwrap();
        assert_eq!(several.finish().unwrap_err().code(), 4);
    }
}
