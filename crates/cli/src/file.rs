//! Writing a person's file: it is there as it was, or whole.

use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::failure::Failure;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eyes {
    /// Whom the process lets (umask).
    All,
    /// Its owner alone (0600).
    Owner,
}

/// Writes `text` beside `path` and moves it there, over what may be there.
pub(crate) fn replace(path: &Path, text: &str, eyes: Eyes) -> Result<(), Failure> {
    let fresh = path.with_file_name(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()));
    let mode = if eyes == Eyes::Owner { 0o600 } else { 0o666 };
    let writing = || -> io::Result<()> {
        // A run that was killed may have left one, with other rights.
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&fresh, path)
    };
    writing().map_err(|error| Failure::caused(&error).while_doing(format!("could not write {}", path.display())))
}
