//! Running other people's programs.

use std::path::Path;
use std::process::{Command, Output};

/// Runs a bash script in a directory and returns what it printed; panics with all of its output when it fails.
#[track_caller]
pub fn sh(directory: &Path, script: &str) -> String {
    let output = try_sh(directory, script);
    assert!(
        output.status.success(),
        "{}\nin {} ended with {}\n--- stdout\n{}\n--- stderr\n{}",
        script,
        directory.display(),
        output.status,
        tail(&output.stdout),
        tail(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The same, but a failure is an answer.
pub fn try_sh(directory: &Path, script: &str) -> Output {
    Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(directory)
        .env("LC_ALL", "C.UTF-8")
        .output()
        .expect("bash starts")
}

fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let skip = text.chars().count().saturating_sub(4000);
    text.chars().skip(skip).collect()
}
