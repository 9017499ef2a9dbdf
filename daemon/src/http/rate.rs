//! How many requests a second a user may make: a bucket of tokens for each, kept as the moment at which it is full again.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tandemfs::id::UserId;
use tandemfs::{Error, Result};
use tokio::time::Instant;

/// A bucket holds what is earned in so long.
const BURST: Duration = Duration::from_secs(1);
/// Up to so many users nobody looks for those who can be forgotten.
const FEW_USERS: usize = 1024;

/// The limit, and who is near it.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: u32,
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    full_at: HashMap<UserId, Instant>,
    /// With so many, those that are full again are dropped: they say nothing.
    sweep_at: usize,
}

impl Rate {
    /// So many requests a second for each user; 0 for no limit.
    pub(super) fn new(per_second: u32) -> Self {
        let buckets = Buckets { full_at: HashMap::new(), sweep_at: FEW_USERS };
        Self { per_second, buckets: Mutex::new(buckets) }
    }

    /// Counts a request of a user.
    ///
    /// # Errors
    /// `TooManyRequests`, with when to come back.
    pub(super) fn count(&self, user: UserId) -> Result<()> {
        let Some(cost) = BURST.checked_div(self.per_second) else { return Ok(()) };
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let full_at = buckets.full_at.get(&user).map_or(now, |full_at| now.max(*full_at)) + cost;
        if full_at > now + BURST {
            let most = self.per_second;
            return Err(Error::too_many_requests(format!("a user may make {most} requests a second"))
                .retry_after(BURST.as_secs()));
        }
        if buckets.full_at.len() >= buckets.sweep_at {
            buckets.full_at.retain(|_, full_at| *full_at > now);
            buckets.full_at.shrink_to(FEW_USERS);
            buckets.sweep_at = FEW_USERS.max(2 * buckets.full_at.len());
        }
        buckets.full_at.insert(user, full_at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tandemfs::ErrorKind;
    use tandemfs::id::UserId;
    use tokio::time::advance;

    use super::{FEW_USERS, Rate};

    /// How many of so many requests at once are let through.
    fn taken(rate: &Rate, user: u64, requests: usize) -> usize {
        (0..requests).filter(|_| rate.count(UserId(user)).is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn each_user_has_a_burst_and_then_so_many_a_second() {
        let rate = Rate::new(10);
        assert_eq!(taken(&rate, 1, 100), 10);
        let refused = rate.count(UserId(1)).unwrap_err();
        assert_eq!((refused.kind(), refused.retry_after_s()), (ErrorKind::TooManyRequests, Some(1)));
        assert_eq!(taken(&rate, 2, 100), 10, "another's requests are counted apart");
        advance(Duration::from_millis(300)).await;
        assert_eq!(taken(&rate, 1, 100), 3);
        // What was refused costs nothing, and nobody saves up more than a burst.
        for _ in 0..3 {
            advance(Duration::from_secs(1)).await;
            assert_eq!(taken(&rate, 1, 100), 10);
        }
        advance(Duration::from_secs(3600)).await;
        assert_eq!(taken(&rate, 1, 100), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_and_limits_beyond_what_can_be_counted() {
        assert_eq!(taken(&Rate::new(0), 1, 10_000), 10_000);
        assert_eq!(taken(&Rate::new(u32::MAX), 1, 10_000), 10_000);
        assert_eq!(taken(&Rate::new(1), 1, 10), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn users_that_were_quiet_are_forgotten() {
        let rate = Rate::new(1);
        let kept = || rate.buckets.lock().unwrap().full_at.len();
        let mut user = 0;
        for _ in 0..20 {
            for _ in 0..FEW_USERS {
                user += 1;
                assert_eq!(taken(&rate, user, 2), 1);
            }
            advance(Duration::from_secs(2)).await;
        }
        assert!(kept() <= FEW_USERS, "{} users are kept", kept());
        // Those that are not quiet are not forgotten, however many they are.
        let busy = 10 * FEW_USERS as u64;
        for user in 0..busy {
            assert_eq!(taken(&rate, user, 1), 1);
        }
        for user in 0..busy {
            assert_eq!(taken(&rate, user, 1), 0);
        }
        let capacity = rate.buckets.lock().unwrap().full_at.capacity();
        assert!(capacity < 40 * FEW_USERS, "{capacity}");
    }
}
