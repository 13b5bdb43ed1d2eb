//! The root, made before any cluster is looked at.

use std::path::Path;
use std::time::{Duration, SystemTime};

use stolos_apply::State;

use crate::failure::Failure;
use crate::screen::Screen;

/// Ten years, as `setup-mesh.sh` made it.
const VALIDITY: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// Makes the root of a mesh in its state folder, if there is none; whether there was anything to do.
pub(crate) fn prepare(folder: &Path, organization: &str, dry_run: bool, screen: &Screen) -> Result<bool, Failure> {
    let certificate = folder.join("root-cert.pem");
    let there = certificate.exists();
    let state = State::at(folder, stolos_apply::passphrase(None)?);
    if !there && !dry_run {
        state.make_root(organization, VALIDITY, SystemTime::now())?;
    }
    let verb = match (there, dry_run) {
        (true, _) => "kept ",
        (false, true) => "would make",
        (false, false) => "made ",
    };
    screen.line(format!("{verb} {} (the root, with its key beside it)", certificate.display()));
    Ok(!there)
}

/// The organization of the root in a state folder: what a mesh is signed as whose file has no place to say it.
pub(crate) fn organization(folder: &Path) -> Option<String> {
    let pem = std::fs::read_to_string(folder.join("root-cert.pem")).ok()?;
    let root = stolos_pki::Certificate::from_pem(&pem).ok()?;
    let organization = root.subject().split("O=").nth(1)?.split(", CN=").next()?;
    Some(organization.trim_end_matches(", ").to_owned()).filter(|o| !o.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_organization_of_a_root_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(organization(folder.path()), None);
        let screen = Screen::new(crate::screen::Color::Never, true);
        prepare(folder.path(), "Example, Inc.", false, &screen).unwrap();
        assert_eq!(organization(folder.path()).as_deref(), Some("Example, Inc."));
    }
}
