//! So many in a second and no more, without a clock of its own.

use std::time::Duration;

/// Lets one through, and the next when its time has come (Karmada's `--resource-eviction-rate`).
#[derive(Clone, Debug)]
pub struct Rate {
    every: Option<Duration>,
    next: Duration,
}

impl Rate {
    /// So many in a second; 0: none at all.
    #[must_use]
    pub fn new(per_second: f64) -> Self {
        let every = (per_second > 0.0).then(|| Duration::try_from_secs_f64(1.0 / per_second).unwrap_or(Duration::MAX));
        Self { every, next: Duration::ZERO }
    }

    /// Takes one at `now`, counted from any beginning.
    ///
    /// # Errors
    ///
    /// How long to wait, if it is too early.
    pub fn take(&mut self, now: Duration) -> Result<(), Duration> {
        let Some(every) = self.every else { return Err(Duration::from_secs(3600)) };
        if now < self.next {
            return Err(self.next - now);
        }
        self.next = now.saturating_add(every);
        Ok(())
    }
}
