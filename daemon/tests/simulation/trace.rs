//! What happened, for whoever has to understand a seed that failed, and the first violation of a promise.

use std::collections::VecDeque;
use std::fmt::Arguments;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;
use tokio::time::Instant;

/// How many of the last events are kept.
const KEPT: usize = 160;

/// The events of one run.
#[derive(Debug, Default)]
pub struct Trace {
    inner: Mutex<Inner>,
    violated: AtomicBool,
    /// Rings at the first violation.
    pub alarm: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    last: VecDeque<String>,
    digest: blake3::Hasher,
    events: u64,
    incarnation: u32,
    began: Option<Instant>,
    violation: Option<String>,
}

impl Trace {
    /// From now on events belong to this incarnation, and tell their time from here.
    pub fn begin(&self, incarnation: u32) {
        let mut inner = self.inner.lock().unwrap();
        inner.incarnation = incarnation;
        inner.began = Some(Instant::now());
    }

    /// The incarnation is over: time stands still.
    pub fn end(&self) {
        self.inner.lock().unwrap().began = None;
    }

    /// Writes an event down.
    pub fn note(&self, event: Arguments<'_>) {
        let mut inner = self.inner.lock().unwrap();
        let at = inner.began.map_or(0, |began| began.elapsed().as_millis());
        let line = format!("{}:{at:06} {event}", inner.incarnation);
        inner.digest.update(line.as_bytes());
        inner.events += 1;
        if inner.last.len() == KEPT {
            inner.last.pop_front();
        }
        if std::env::var_os("SIMULATION_TRACE").is_some() {
            eprintln!("{line}");
        }
        inner.last.push_back(line);
    }

    /// A promise was broken. Only the first time counts: what comes after may follow from it.
    pub fn violate(&self, what: Arguments<'_>) {
        self.note(format_args!("VIOLATION {what}"));
        self.inner.lock().unwrap().violation.get_or_insert_with(|| what.to_string());
        self.violated.store(true, Ordering::SeqCst);
        self.alarm.notify_waiters();
    }

    /// Whether a promise was broken.
    pub fn is_violated(&self) -> bool {
        self.violated.load(Ordering::SeqCst)
    }

    /// The first violation.
    pub fn violation(&self) -> Option<String> {
        self.inner.lock().unwrap().violation.clone()
    }

    /// A hash of all events, and how many there were.
    pub fn digest(&self) -> (String, u64) {
        let inner = self.inner.lock().unwrap();
        (inner.digest.finalize().to_hex().to_string(), inner.events)
    }

    /// The last events, one a line.
    pub fn last(&self) -> String {
        let inner = self.inner.lock().unwrap();
        inner.last.iter().map(|line| format!("  {line}\n")).collect()
    }
}

/// Writes an event of a world down.
macro_rules! note {
    ($trace:expr, $($text:tt)*) => { $trace.note(format_args!($($text)*)) };
}

/// Writes down that a promise was broken.
macro_rules! violate {
    ($trace:expr, $($text:tt)*) => { $trace.violate(format_args!($($text)*)) };
}

pub(crate) use {note, violate};
