//! Who uses a volume, as far as the daemon is asked: a session that does so by itself for a while may have all of it, although others
//! are mounted. Those have to drop all that they have cached first, so it is given to who makes changes, and not when others
//! have come back soon again and again.

use std::time::Duration;

use tandemfs::id::SessionId;
use tokio::time::Instant;

/// So many batches a session must have sent since others were there: for a few it is not worth what the others lose.
const BATCHES: u32 = 32;
/// The longest time for which others must be quiet.
const QUIET_MAX: Duration = Duration::from_secs(64);
/// Who comes back before so many of these times have passed has come back soon.
const SOON: u32 = 8;

/// What a session asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// To see something, or locks.
    Look,
    /// A batch.
    Change,
}

/// The use of one volume.
#[derive(Clone, Debug)]
pub(super) struct Activity {
    /// How long others must have been quiet at least, and now.
    least: Duration,
    quiet: Duration,
    /// Who has asked last, when, and how many batches it has sent since anybody else asked.
    session: Option<SessionId>,
    last: Option<Instant>,
    batches: u32,
    /// When somebody else has asked last.
    others: Option<Instant>,
    /// When the volume was given to that session while others were mounted.
    given: Option<Instant>,
}

impl Activity {
    pub(super) fn new(least: Duration) -> Self {
        Self { least, quiet: least, session: None, last: None, batches: 0, others: None, given: None }
    }

    /// A session has asked for something.
    pub(super) fn used(&mut self, session: SessionId, what: Use, now: Instant) {
        if self.session != Some(session) {
            if let Some(given) = self.given.take() {
                self.quiet = if now - given < self.quiet * SOON { self.quiet * 2 } else { self.quiet / 2 };
                self.quiet = self.quiet.clamp(self.least, QUIET_MAX.max(self.least));
            }
            (self.session, self.others, self.batches) = (Some(session), self.last, 0);
        }
        self.last = Some(now);
        if what == Use::Change {
            self.batches = self.batches.saturating_add(1);
        }
    }

    /// Whether a session may have the volume, while others are mounted.
    pub(super) fn lets_have(&self, session: SessionId, now: Instant) -> bool {
        let quiet = self.others.is_none_or(|others| now - others >= self.quiet);
        let is_worth_it = self.batches >= BATCHES || self.least.is_zero();
        self.session == Some(session) && quiet && is_worth_it
    }

    /// It was given to who has asked last.
    pub(super) fn given(&mut self, now: Instant) {
        self.given = Some(now);
    }

    /// A session is there no more, so it is none of the others.
    pub(super) fn ended(&mut self, session: SessionId) {
        if self.session == Some(session) {
            (self.session, self.last, self.given) = (None, self.others, None);
        }
    }

    /// It was not given after all, and is not before there are as many batches again.
    pub(super) fn not_given(&mut self) {
        (self.batches, self.given) = (0, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: SessionId = SessionId(1);
    const TWO: SessionId = SessionId(2);
    const THREE: SessionId = SessionId(3);
    const SECOND: Duration = Duration::from_secs(1);

    fn changes(activity: &mut Activity, session: SessionId, now: Instant) {
        for _ in 0..BATCHES {
            activity.used(session, Use::Change, now);
        }
    }

    #[test]
    fn who_makes_changes_may_have_it_once_the_others_are_quiet() {
        let (mut activity, start) = (Activity::new(SECOND), Instant::now());
        activity.used(TWO, Use::Look, start);
        changes(&mut activity, ONE, start);
        assert!(!activity.lets_have(ONE, start + SECOND / 2), "the other was there just now");
        assert!(activity.lets_have(ONE, start + SECOND));
        assert!(!activity.lets_have(TWO, start + SECOND));
        activity.used(ONE, Use::Look, start + SECOND);
        assert!(activity.lets_have(ONE, start + SECOND), "looking does not begin it anew");
        activity.used(TWO, Use::Look, start + SECOND);
        activity.used(ONE, Use::Change, start + SECOND);
        assert!(!activity.lets_have(ONE, start + 9 * SECOND), "a few changes are not worth it");
        changes(&mut activity, ONE, start + SECOND);
        assert!(!activity.lets_have(ONE, start + SECOND));
        assert!(activity.lets_have(ONE, start + 2 * SECOND));
        activity.not_given();
        assert!(!activity.lets_have(ONE, start + 2 * SECOND));
    }

    #[test]
    fn who_has_ended_is_none_of_the_others() {
        let (mut activity, start) = (Activity::new(SECOND), Instant::now());
        activity.used(TWO, Use::Look, start);
        changes(&mut activity, ONE, start);
        activity.given(start + SECOND);
        activity.ended(ONE);
        changes(&mut activity, THREE, start + SECOND);
        assert!(activity.lets_have(THREE, start + SECOND));
        activity.used(TWO, Use::Look, start + SECOND);
        activity.ended(ONE);
        changes(&mut activity, THREE, start + SECOND);
        assert!(!activity.lets_have(THREE, start + SECOND), "the other one is there");
    }

    #[test]
    fn where_others_come_back_soon_it_is_given_less_often() {
        let (mut activity, mut now) = (Activity::new(SECOND), Instant::now());
        let mut round = |held: Duration| {
            let begun = now;
            changes(&mut activity, ONE, now);
            while !activity.lets_have(ONE, now) {
                now += SECOND / 4;
            }
            activity.given(now);
            let waited = now - begun;
            now += held;
            activity.used(TWO, Use::Look, now);
            waited
        };
        let waits: Vec<Duration> = (0..9).map(|_| round(SECOND)).collect();
        assert_eq!(waits[1..6], [2, 4, 8, 16, 32].map(Duration::from_secs));
        assert_eq!(waits[6..], [64; 3].map(Duration::from_secs));
        let waits: Vec<Duration> = (0..9).map(|_| round(1000 * SECOND)).collect();
        assert_eq!(waits[1..4], [32, 16, 8].map(Duration::from_secs));
        assert_eq!(waits[8], SECOND);
    }

    #[test]
    fn without_a_time_it_is_given_at_once() {
        let (mut activity, now) = (Activity::new(Duration::ZERO), Instant::now());
        activity.used(TWO, Use::Look, now);
        assert!(!activity.lets_have(ONE, now));
        activity.used(ONE, Use::Change, now);
        assert!(activity.lets_have(ONE, now));
    }
}
