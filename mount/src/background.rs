//! Going to the background: the program starts itself again, waits until that one says that it has mounted, and
//! passes on its exit status otherwise. No fork, because a process with threads must not.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Says that a process is the one in the background.
const VARIABLE: &str = "TANDEM_MOUNT_BACKGROUND";
/// What it prints when it has mounted.
const MOUNTED: &str = "mounted";

/// Whether this process is the one in the background.
pub fn is_background() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Starts the program again in the background and waits until it has mounted. Answers the exit status; what went
/// wrong has been printed.
///
/// # Errors
/// The system's.
pub fn start() -> io::Result<u8> {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("tandem-mount"));
    let mut child = Command::new(std::env::current_exe()?)
        .arg0(name)
        .args(arguments)
        .env(VARIABLE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line)?;
    }
    if line.trim_end() == MOUNTED {
        return Ok(0);
    }
    let status = child.wait()?;
    // 32 is mount(8)'s "mount failure", for one that was killed.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(32))
}

/// Tells the process in front that the mount answers, and lets go of its terminal.
///
/// # Errors
/// The system's.
pub fn detach(log: Option<&Path>) -> io::Result<()> {
    // It fails for a leader of a process group, who need not do it.
    let _already_leader = rustix::process::setsid();
    std::env::set_current_dir("/")?;
    let mut stdout = io::stdout();
    writeln!(stdout, "{MOUNTED}")?;
    stdout.flush()?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    match log {
        Some(path) => rustix::stdio::dup2_stderr(OpenOptions::new().append(true).create(true).open(path)?)?,
        None => rustix::stdio::dup2_stderr(&null)?,
    }
    Ok(())
}
