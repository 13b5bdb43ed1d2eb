//! When a host is left out for a while.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// When and for how long hosts are ejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Failures of any kind (5xx, connect, reset) in a row; 0 for never.
    pub(crate) consecutive_5xx: u32,
    /// Gateway failures (502, 503, 504, connect, reset) in a row; 0 for never.
    pub(crate) consecutive_gateway: u32,
    /// How long the first time; the n-th time n times as long.
    pub(crate) base: Duration,
    /// But never longer than this.
    pub(crate) most: Duration,
    /// No more than this many percent are ejected at once.
    pub(crate) max_percent: u32,
    /// One may be ejected even if it is more than that.
    pub(crate) always_one: bool,
}

/// How an exchange with a host ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Well, or at least not with the host's fault.
    Good,
    /// With a 5xx that is not a gateway's.
    ServerError,
    /// With 502, 503, 504, no connection, or a reset.
    GatewayError,
}

impl Outcome {
    pub(crate) fn of_status(status: u16) -> Self {
        match status {
            502..=504 => Self::GatewayError,
            500..=599 => Self::ServerError,
            _ => Self::Good,
        }
    }
}

/// A host's record. Outlives the host's other settings: it belongs to the address.
#[derive(Debug, Default)]
pub(crate) struct Health {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    ejected_until: AtomicU64,
    times: AtomicU32,
}

impl Health {
    /// Whether the host is left out at `now` (milliseconds of the proxy's own clock).
    pub(crate) fn is_ejected(&self, now: u64) -> bool {
        self.ejected_until.load(Ordering::Relaxed) > now
    }

    /// Notes how an exchange ended; returns true when the host ought to be ejected.
    pub(crate) fn note(&self, outcome: Outcome, settings: &Settings) -> bool {
        let count = |counter: &AtomicU32, failed: bool, limit: u32| {
            if !failed {
                // Mostly it is zero already; reading keeps the cache line shared.
                if counter.load(Ordering::Relaxed) != 0 {
                    counter.store(0, Ordering::Relaxed);
                }
                return false;
            }
            counter.fetch_add(1, Ordering::Relaxed) + 1 >= limit && limit > 0
        };
        let any = count(&self.consecutive_5xx, outcome != Outcome::Good, settings.consecutive_5xx);
        let gateway = outcome == Outcome::GatewayError;
        count(&self.consecutive_gateway, gateway, settings.consecutive_gateway) || any
    }

    /// Leaves the host out from `now` on; returns until when.
    pub(crate) fn eject(&self, now: u64, settings: &Settings) -> u64 {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (base, most) = (millis(settings.base), millis(settings.most));
        // A long time of good service forgives.
        let last = self.ejected_until.load(Ordering::Relaxed);
        if last != 0 && now.saturating_sub(last) > most {
            self.times.store(0, Ordering::Relaxed);
        }
        let times = u64::from(self.times.fetch_add(1, Ordering::Relaxed)) + 1;
        self.consecutive_5xx.store(0, Ordering::Relaxed);
        self.consecutive_gateway.store(0, Ordering::Relaxed);
        let until = now.saturating_add(base.saturating_mul(times).min(most.max(base)));
        self.ejected_until.store(until, Ordering::Relaxed);
        until
    }

    #[cfg(test)]
    pub(crate) fn eject_until(&self, until: u64) {
        self.ejected_until.store(until, Ordering::Relaxed);
    }
}

/// Whether one more of `total` hosts may be ejected when `ejected` are.
pub(crate) fn may_eject(ejected: usize, total: usize, settings: &Settings) -> bool {
    (ejected + 1) * 100 <= total * settings.max_percent as usize || (settings.always_one && ejected == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: Settings = Settings {
        consecutive_5xx: 3,
        consecutive_gateway: 3,
        base: Duration::from_secs(10),
        most: Duration::from_secs(300),
        max_percent: 100,
        always_one: false,
    };

    #[test]
    fn three_in_a_row_eject_and_a_good_one_between_does_not() {
        use Outcome::{GatewayError, Good, ServerError};
        let cases: [(&[Outcome], bool); 4] = [
            (&[GatewayError, GatewayError, GatewayError], true),
            (&[ServerError, GatewayError, ServerError], true),
            (&[GatewayError, GatewayError, Good, GatewayError], false),
            (&[GatewayError, GatewayError], false),
        ];
        for (outcomes, expected) in cases {
            let health = Health::default();
            let mut last = false;
            for outcome in outcomes {
                last = health.note(*outcome, &THREE);
            }
            assert_eq!(last, expected, "{outcomes:?}");
        }
    }

    #[test]
    fn each_time_is_longer() {
        let health = Health::default();
        assert_eq!(health.eject(0, &THREE), 10_000);
        assert!(health.is_ejected(9_999) && !health.is_ejected(10_000));
        assert_eq!(health.eject(20_000, &THREE), 40_000);
        assert_eq!(health.eject(1_000_000, &THREE), 1_010_000, "forgiven");
    }

    #[test]
    fn not_more_than_the_share() {
        let most = |max_percent, always_one| Settings { max_percent, always_one, ..THREE };
        assert!(!may_eject(0, 3, &most(10, false)) && may_eject(0, 10, &most(10, false)));
        assert!(may_eject(0, 3, &most(10, true)) && !may_eject(1, 3, &most(10, true)));
        assert!(!may_eject(0, 1, &most(99, false)) && may_eject(0, 2, &most(99, false)), "the last one stays");
        assert!(!may_eject(1, 2, &most(99, false)) && may_eject(1, 2, &most(100, false)));
    }
}
