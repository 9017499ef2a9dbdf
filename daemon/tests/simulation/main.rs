//! A deterministic simulation of the engine: placement, replication, garbage collection, sessions and recovery, with clock,
//! randomness, disks and network in the hands of a seed (faults.md S1 to S3).
//!
//! A seed is a world: nodes, an engine and clients that outlive the daemon, and several lives of it, each on a runtime of its own
//! whose time is virtual. A crash is the end of a runtime. `SIMULATION_SEEDS` says how many seeds to run,
//! `SIMULATION_SEED` runs one and prints its last events.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::map_entry, reason = "parts of a test")]

mod cache;
mod chaos;
mod client;
mod daemon;
mod delegations;
mod engine;
mod history;
mod listener;
mod node;
mod people;
mod random;
mod recount;
mod run;
mod trace;
mod work;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use run::{PANIC, run};

/// How many seeds are run when nothing else is said.
const SEEDS: u64 = 1000;

/// Seeds that have found something once.
const FOUND: &[u64] = &[9, 34, 185, 608];

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Has panics of any task known to the run that it belongs to.
fn catch_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANIC.with(|panic| {
            panic.borrow_mut().get_or_insert_with(|| info.to_string());
        });
        before(info);
    }));
}

/// Runs seeds on all processors, until one fails.
fn run_all(seeds: &[u64]) -> Result<u64, String> {
    catch_panics();
    let next = AtomicU64::new(0);
    let events = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let failure = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !failed.load(Ordering::SeqCst)
                    && let Some(seed) = seeds.get(next.fetch_add(1, Ordering::SeqCst) as usize)
                {
                    let outcome = run(*seed);
                    events.fetch_add(outcome.digest.1, Ordering::SeqCst);
                    if let Some(text) = outcome.failure {
                        failed.store(true, Ordering::SeqCst);
                        let ran = next.load(Ordering::SeqCst);
                        failure.lock().unwrap().get_or_insert(format!("{text}after {ran} seeds"));
                    }
                }
            });
        }
    });
    match failure.into_inner().unwrap() {
        Some(failure) => Err(failure),
        None => Ok(events.into_inner()),
    }
}

#[test]
fn no_promise_is_broken() {
    let seeds: Vec<u64> = match number("SIMULATION_SEED") {
        Some(seed) => vec![seed],
        None => FOUND.iter().copied().chain(0..number("SIMULATION_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    match run_all(&seeds) {
        Ok(events) => {
            println!("{} seeds, {events} events", seeds.len());
            // A simulation in which nothing happens proves nothing.
            assert!(events > 100 * seeds.len() as u64, "only {events} events");
        }
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn a_seed_repeats_itself() {
    for seed in 0..8 {
        let (first, second) = (run(seed), run(seed));
        assert!(first.failure.is_none(), "{:?}", first.failure);
        assert_eq!(first.digest, second.digest, "seed {seed}");
    }
}
