//! Time, injected: nothing else in the project asks the system what time it is.

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use utoipa::ToSchema;

/// A point in time: seconds since 1970 (negative before it) and nanoseconds, as in `struct timespec`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
pub struct Time {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

impl Time {
    /// From the standard library's type.
    pub fn from_system(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self {
                seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                nanos: after.subsec_nanos(),
            },
            Err(error) => {
                let before = error.duration();
                let seconds = -i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                match before.subsec_nanos() {
                    0 => Self { seconds, nanos: 0 },
                    nanos => Self { seconds: seconds - 1, nanos: 1_000_000_000 - nanos },
                }
            }
        }
    }

    /// To the standard library's type; saturates at what that can hold.
    pub fn to_system(self) -> SystemTime {
        let nanos = Duration::from_nanos(u64::from(self.nanos));
        let whole = Duration::from_secs(self.seconds.unsigned_abs());
        let base =
            if self.seconds >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
        base.and_then(|base| base.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
    }

    /// Milliseconds since 1970, saturating.
    pub fn as_millis(self) -> i64 {
        self.seconds.saturating_mul(1000).saturating_add(i64::from(self.nanos / 1_000_000))
    }

    /// From milliseconds since 1970.
    pub fn from_millis(millis: i64) -> Self {
        let nanos = u32::try_from(millis.rem_euclid(1000)).unwrap_or(0) * 1_000_000;
        Self { seconds: millis.div_euclid(1000), nanos }
    }

    /// Reads RFC 3339, with any offset; `None` for anything else.
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        let stamp: jiff::Timestamp = text.parse().ok()?;
        let nanos = stamp.as_nanosecond();
        let seconds = i64::try_from(nanos.div_euclid(1_000_000_000)).ok()?;
        Some(Self { seconds, nanos: u32::try_from(nanos.rem_euclid(1_000_000_000)).ok()? })
    }

    /// RFC 3339 in UTC with nanoseconds, as the API writes times; what is outside of the years that it can
    /// write is clamped.
    pub fn to_rfc3339(self) -> String {
        let nanos = i32::try_from(self.nanos).unwrap_or(0);
        let stamp = jiff::Timestamp::new(self.seconds, nanos).unwrap_or(if self.seconds < 0 {
            jiff::Timestamp::MIN
        } else {
            jiff::Timestamp::MAX
        });
        format!("{stamp:.9}")
    }
}

/// Where the time comes from. Leases and timeouts do not use it: they use tokio's monotonic clock.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// The time of day.
    fn now(&self) -> Time;
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the system")]
    fn now(&self) -> Time {
        Time::from_system(SystemTime::now())
    }
}

/// A clock that a test or a simulation moves by hand.
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<AtomicI64>);

impl ManualClock {
    /// A clock that stands at `millis` after 1970.
    pub fn at(millis: i64) -> Self {
        Self(Arc::new(AtomicI64::new(millis)))
    }

    /// Moves the clock; negative moves it back.
    pub fn advance(&self, millis: i64) {
        self.0.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Time {
        Time::from_millis(self.0.load(Ordering::SeqCst))
    }
}
