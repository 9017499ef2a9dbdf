//! Histories of calls of four clients on three mounts, with pauses, deaths of mounts and restarts of the daemon, are linearizable
//! (docs/semantics.md, "Histories").
//!
//! `HISTORIES_CALLS` sets how many calls there are, `HISTORIES_SEED` which; the order in which they come to overlap is the machine's.

mod checker;
mod client;
mod descriptors;
mod drive;
mod examples;
mod history;
mod models;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use checker::{Kernel, Model, check};
use drive::{Handles, Seen, Stage, now};
use history::Objects;
use tempfile::TempDir;

/// Calls, if not set otherwise.
const CALLS: u64 = 6_000;
/// So many calls are made on the same objects and then checked.
const ROUND: u64 = 20_000;
/// So much of a window is shown; all of it is in the file.
const SHOWN: usize = 60;

#[test]
#[ignore = "beside other tests a mount may not answer within its lease of two seconds, and fail calls that no fault explains"]
fn files_that_are_closed_or_synced() {
    run(Handles::Synced);
}

#[test]
#[ignore = "beside other tests a mount may not answer within its lease of two seconds, and fail calls that no fault explains"]
fn descriptors_that_are_kept_open() {
    run(Handles::Kept);
}

/// What was checked and found.
struct Report {
    calls: usize,
    unknown: usize,
    objects: usize,
    violations: usize,
    /// Histories that only a known fault of the kernel explains.
    of_kernel: usize,
    /// Where histories that are not right are kept, with the logs.
    directory: PathBuf,
}

impl Report {
    /// Checks each object of one kind, and shows what cannot be explained.
    fn check<M: Model + Default>(&mut self, seed: u64, faults: &[String], objects: &Objects<M>) {
        for (name, operations) in objects {
            self.calls += operations.len();
            self.unknown += operations.iter().filter(|operation| operation.answer.is_none()).count();
            self.objects += 1;
            let Err(violation) = check(&M::default(), operations, Kernel::Right) else { continue };
            if check(&M::default(), operations, Kernel::Faulty).is_ok() {
                self.of_kernel += 1;
                continue;
            }
            self.violations += 1;
            let mut operations: Vec<_> = operations.iter().collect();
            operations.sort_by_key(|operation| operation.start);
            let lines = operations.iter().map(ToString::to_string).chain(faults.iter().cloned());
            let file = self.directory.join(format!("{seed}-{name}"));
            fs::write(&file, lines.collect::<Vec<_>>().join("\n") + "\n").expect("the history is kept");
            println!("\n{name} is not linearizable; all of it is in {}", file.display());
            println!("with no call under way it was one of {:?}, then:", violation.before);
            for operation in violation.window.iter().skip(violation.window.len().saturating_sub(SHOWN)) {
                println!("  {operation}");
            }
        }
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn run(handles: Handles) {
    let (calls, first) = (setting("HISTORIES_CALLS", CALLS), setting("HISTORIES_SEED", 1));
    let begin = now();
    let directory = TempDir::with_prefix("tandem-histories-").expect("a directory").keep();
    let mut report = Report { calls: 0, unknown: 0, objects: 0, violations: 0, of_kernel: 0, directory };
    let mut checking = Duration::ZERO;
    let mut stage = Stage::new(handles);
    for (seed, start) in (first..).zip((0..calls).step_by(ROUND as usize)) {
        let Seen { histories, faults, surprises } = stage.drive(seed, ROUND.min(calls - start), handles);
        let checked = now();
        report.check(seed, &faults, &histories.registers);
        report.check(seed, &faults, &histories.directories);
        report.check(seed, &faults, &histories.logs);
        report.check(seed, &faults, &histories.locks);
        report.check(seed, &faults, &histories.counters);
        checking += checked.elapsed();
        for surprise in &surprises {
            println!("nothing explains that this failed: {surprise}");
        }
        report.violations += surprises.len();
        let Report { calls, unknown, objects, violations, of_kernel, .. } = report;
        let (faults, seconds) = (stage.faults, begin.elapsed().as_secs());
        println!(
            "{calls} calls, {} faults ({} short pauses, {} long pauses, {} deaths, {} restarts), {unknown} unknown outcomes, \
             {objects} objects, {violations} violations, {of_kernel} of the kernel alone, {seconds} seconds ({} to check)",
            faults.all(),
            faults.pauses,
            faults.long_pauses,
            faults.deaths,
            faults.restarts,
            checking.as_secs(),
        );
    }
    if report.violations > 0 {
        stage.keep_logs(&report.directory);
        panic!("{} violations, see {}", report.violations, report.directory.display());
    }
    fs::remove_dir(&report.directory).expect("nothing was kept");
    stage.end();
}
