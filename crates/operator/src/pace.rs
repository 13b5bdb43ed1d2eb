//! When the next round is due. No clock: how long to wait is a value.

use std::time::Duration;

use rand::RngExt as _;

/// However often it failed, it is tried again after this long.
const SLOWEST: Duration = Duration::from_secs(600);

/// The pace of a loop: steady while all is fine, ever slower while it fails, never in step with other replicas.
#[derive(Debug)]
pub(crate) struct Pace {
    steady: Duration,
    failures: u32,
}

impl Pace {
    pub(crate) fn new(steady: Duration) -> Self {
        Self { steady, failures: 0 }
    }

    pub(crate) fn fine(&mut self) {
        self.failures = 0;
    }

    pub(crate) fn failed(&mut self) {
        self.failures += 1;
    }

    /// How long to wait now, within a tenth.
    pub(crate) fn next(&self) -> Duration {
        self.about().mul_f64(rand::rng().random_range(0.9..1.1))
    }

    fn about(&self) -> Duration {
        // The first failure is tried again soon, since most pass by themselves.
        let first = self.steady.min(Duration::from_secs(5));
        match self.failures {
            0 => self.steady,
            failures => first.saturating_mul(1 << (failures - 1).min(16)).min(SLOWEST.max(self.steady)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_slows_down_while_it_fails_and_not_for_ever() {
        let mut pace = Pace::new(Duration::from_secs(60));
        let mut waits = vec![pace.about().as_secs()];
        for _ in 0..9 {
            pace.failed();
            waits.push(pace.about().as_secs());
        }
        pace.fine();
        waits.push(pace.about().as_secs());
        assert_eq!(waits, [60, 5, 10, 20, 40, 80, 160, 320, 600, 600, 60]);
        let waits: Vec<_> = (0..100).map(|_| pace.next()).collect();
        assert!(waits.iter().all(|wait| (54.0..=66.0).contains(&wait.as_secs_f64())), "{waits:?}");
        assert!(waits.windows(2).any(|pair| pair[0] != pair[1]), "{waits:?}");
    }
}
