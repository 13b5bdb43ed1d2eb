//! An upgrade as people read it.

use std::fmt::Write as _;

use super::{Upgrade, Way};

impl Upgrade {
    /// What is to be done, phase by phase, with marks where it is done.
    #[must_use]
    pub fn text(&self) -> String {
        let said = |(revision, version): &(String, String)| format!("{revision} ({version})");
        let from: Vec<_> = self.from.iter().map(said).collect();
        let mut text = match self.way {
            Way::Forward if from.is_empty() => format!("Everything is at {}\n", said(&self.to)),
            Way::Forward => format!("Upgrade from {} to {}\n", from.join(", "), said(&self.to)),
            Way::Back => format!("Back from {} to {}\n", from.join(", "), said(&self.to)),
        };
        for stage in self.phases.iter().filter(|stage| !stage.tasks.is_empty()) {
            let _ = writeln!(text, "\n{}: {}", stage.phase, stage.phase.purpose(self.way));
            for task in &stage.tasks {
                let mark = if task.done { '✓' } else { '~' };
                let subject = match stage.phase {
                    super::Phase::Namespaces => format!("{}: ", task.subject),
                    _ => String::new(),
                };
                let _ = writeln!(text, "  {mark} {}  {subject}{}", task.cluster, task.what);
                for why in &task.by_hand {
                    let _ = writeln!(text, "    ! {why}");
                }
            }
        }
        if !self.notes.is_empty() {
            text.push('\n');
            self.notes.iter().for_each(|note| _ = writeln!(text, "Note: {note}"));
        }
        text
    }
}
