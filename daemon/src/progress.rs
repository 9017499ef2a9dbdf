//! How far something is that takes long, for people who wait for it: a line in the log every few seconds, none for what is done before.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

/// How often a line is written.
const INTERVAL: Duration = Duration::from_secs(3);

/// Something that is under way, step by step.
#[derive(Debug)]
pub struct Progress {
    what: String,
    total: u64,
    done: u64,
    /// When the next line is to be written. It stays from step to step, so that many short ones are told of as well.
    due: Instant,
}

impl Progress {
    /// Something that begins with this step, as of [`Progress::next`].
    pub fn new(what: impl Into<String>, total: u64) -> Self {
        Self { what: what.into(), total, done: 0, due: Instant::now() + INTERVAL }
    }

    /// The next step. `what` goes on after `1,000 of 2,000 `: what is counted, and what is done with it. A total of 0 is not known.
    pub fn next(&mut self, what: impl Into<String>, total: u64) {
        *self = Self { what: what.into(), total, done: 0, due: self.due };
    }

    /// So many more are done.
    pub fn add(&mut self, count: u64) {
        if let Some(line) = self.line(count, Instant::now()) {
            log::info!("{line}");
        }
    }

    /// Waits for something that is a part of this step, and may take longer than a line.
    pub async fn wait<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout_at(self.due, work.as_mut()).await {
                Ok(result) => return result,
                Err(_) => self.add(0),
            }
        }
    }

    /// A step that cannot be counted: the lines say for how long it has been waited for.
    pub async fn during<T>(&mut self, what: &str, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout_at(self.due, work.as_mut()).await {
                Ok(result) => return result,
                Err(_) => log::info!("{what}, for {} s", begun.elapsed().as_secs()),
            }
            self.due = Instant::now() + INTERVAL;
        }
    }

    /// The line to be written at this time, if it is time.
    fn line(&mut self, count: u64, now: Instant) -> Option<String> {
        self.done = self.done.saturating_add(count);
        if now < self.due {
            return None;
        }
        self.due = now + INTERVAL;
        let (done, what) = (grouped(self.done), &self.what);
        // More than there were when it began: how many there are now is not known.
        Some(if self.total < self.done {
            format!("{done} {what}")
        } else {
            format!("{done} of {} {what}", grouped(self.total))
        })
    }
}

/// A number with commas.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{INTERVAL, Progress, grouped};
    use std::time::Duration;
    use tokio::time::Instant;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_line_is_due_every_three_seconds_and_none_before() {
        let begun = Instant::now();
        let mut progress = Progress::new("rows are checked", 1_000_000);
        assert_eq!(progress.line(5, begun), None);
        assert_eq!(progress.line(5, begun + INTERVAL - SECOND), None);
        let line = progress.line(1990, begun + INTERVAL).unwrap();
        assert_eq!(line, "2,000 of 1,000,000 rows are checked");
        // The next one is due as long after this one, however late that was.
        assert_eq!(progress.line(1, begun + 2 * INTERVAL - SECOND), None);
        let line = progress.line(997_999, begun + 3 * INTERVAL).unwrap();
        assert_eq!(line, "1,000,000 of 1,000,000 rows are checked");
        assert_eq!(progress.line(0, begun + 4 * INTERVAL - SECOND), None);
        assert_eq!(progress.line(1, begun + 4 * INTERVAL).unwrap(), "1,000,001 rows are checked");
    }

    #[tokio::test(start_paused = true)]
    async fn short_steps_share_a_line() {
        let begun = Instant::now();
        let mut progress = Progress::new("rows are read", 100);
        assert_eq!(progress.line(100, begun + 2 * SECOND), None);
        progress.next("rows are compared", 0);
        assert_eq!(progress.line(70, begun + INTERVAL).unwrap(), "70 rows are compared");
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_counted_is_waited_for() {
        let begun = Instant::now();
        let mut progress = Progress::new("rows are read", 100);
        let work = async {
            tokio::time::sleep(10 * SECOND).await;
            7
        };
        assert_eq!(progress.during("the work goes on", work).await, 7);
        assert_eq!(begun.elapsed(), 10 * SECOND);
        // The last line was written after 9 seconds.
        assert_eq!(progress.due, begun + 12 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_part_of_a_step_is_waited_for() {
        let begun = Instant::now();
        let mut progress = Progress::new("rows are read", 100);
        progress.add(40);
        progress.wait(tokio::time::sleep(10 * SECOND)).await;
        // As above, and what is done stays so.
        assert_eq!(progress.due, begun + 12 * SECOND);
        assert_eq!(progress.line(60, begun + 12 * SECOND).unwrap(), "100 of 100 rows are read");
    }

    #[test]
    fn numbers_have_commas() {
        let texts = [0, 999, 1000, 12_345, 999_999, 1_000_000, u64::MAX].map(grouped);
        let wanted = ["0", "999", "1,000", "12,345", "999,999", "1,000,000", "18,446,744,073,709,551,615"];
        assert_eq!(texts, wanted);
    }
}
