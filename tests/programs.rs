//! Programs of others that tests run beside ours; `.ci/programs` brings them. Included by the tests that need one.

use std::io::Write as _;
use std::path::PathBuf;

/// The program that an environment variable names. Where it names none, the test says that it did not run, or fails if
/// `STOLOS_REQUIRE_PROGRAMS=1`.
pub(crate) fn program(variable: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from);
    if found.is_none() {
        let text = format!("NOT RUN: {variable} names no program (.ci/programs brings it)");
        let required = std::env::var("STOLOS_REQUIRE_PROGRAMS").is_ok_and(|required| required == "1");
        assert!(!required, "{text}, and STOLOS_REQUIRE_PROGRAMS=1");
        // Straight to the terminal: what a passing test prints is captured.
        let _ = writeln!(std::io::stderr(), "\n*** {text} ***\n");
    }
    found
}
