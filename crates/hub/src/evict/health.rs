//! When a member's word about itself is believed: a change must have held for a while (Karmada v1.18.2).

use std::time::Duration;

use super::Settings;

/// What a member was seen to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is ready.
    Ready,
    /// It says that it is not, or nobody answers.
    NotReady,
    /// Its agent says nothing.
    Silent,
}

impl Seen {
    /// As the condition `Ready` says it.
    #[must_use]
    pub fn status(self) -> &'static str {
        match self {
            Self::Ready => "True",
            Self::NotReady => "False",
            Self::Silent => "Unknown",
        }
    }
}

/// How much later than it is to be asked again a member may have been asked, and still counts as heard.
const LATE: Duration = Duration::from_secs(5);

/// Whether what a member has may be counted on: so long ago it was asked whether it is well, and said yes. A hub that has just
/// begun to lead, and one that is late, have asked nobody, whatever the store says.
#[must_use]
pub fn heard(answered: Option<Duration>, settings: &Settings) -> bool {
    answered.is_some_and(|ago| ago <= settings.status_update_frequency + LATE)
}

/// Whether the condition becomes what was seen. `before` is the condition's status, `since` for how long something else than
/// it has been seen.
#[must_use]
pub fn believed(before: Option<&str>, seen: Seen, since: Duration, settings: &Settings) -> bool {
    let patience = match (before, seen) {
        (None, _) => Duration::ZERO,
        (Some(before), seen) if before == seen.status() => Duration::ZERO,
        (_, Seen::Ready) => settings.success_threshold,
        // From one trouble to another.
        (Some(before), _) if before != "True" => Duration::ZERO,
        (_, Seen::NotReady) => settings.failure_threshold,
        (_, Seen::Silent) => settings.monitor_grace_period,
    };
    since >= patience
}
