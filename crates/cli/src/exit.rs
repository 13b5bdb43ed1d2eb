//! How a command ends.

use std::process::ExitCode;

/// The exit codes, the same for every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: all is as it should be.
    Good,
    /// 1: it could not be done.
    Error,
    /// 2: there are changes or findings (plan, check, verify, dry runs; what a teardown leaves).
    Findings,
    /// 3: a wait came to its end.
    TimedOut,
    /// 4: some clusters yes, others no.
    Partial,
    /// What a program in a pod ended with.
    Program(u8),
    /// 130: somebody pressed Ctrl-C.
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Good => 0,
            Exit::Error => 1,
            Exit::Findings => 2,
            Exit::TimedOut => 3,
            Exit::Partial => 4,
            Exit::Program(code) => code,
            Exit::Interrupted => 130,
        })
    }
}
