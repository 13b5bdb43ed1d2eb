//! What the folder remembers of a root that is being replaced: the new root, and the phase.
//!
//! The phase is on disk before anything of it is done, so whoever runs again goes on where the last one was killed.

use std::fs;
use std::time::{Duration, SystemTime};

use stolos_pki::{Authority, Certificate};
use stolos_plan::rotation::{Phase, Roots, Rotation};
use stolos_spec::{Mesh, Root};

use super::{State, read};
use crate::{Error, crash};

/// The new root.
pub(crate) const CERTIFICATE: &str = "next-root-cert.pem";
/// Its key.
pub(crate) const KEY: &str = "next-root-key.pem";
/// The root that was replaced last, without a key: for people who wonder.
const RETIRED: &str = "retired-root-cert.pem";
const ROTATION: &str = "rotation.json";

impl State {
    /// The replacement of the root that is under way, if one is.
    ///
    /// # Errors
    ///
    /// When it cannot be read: then nobody may go on as if there were none.
    pub fn rotation(&self) -> Result<Option<Rotation>, Error> {
        let path = self.folder.join(ROTATION);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Folder { what: "read", path, source }),
        };
        let read = serde_json::from_str(&text);
        read.map(Some).map_err(|error| Error::Rotation(format!("{} cannot be read: {error}", path.display())))
    }

    /// Whether the new root is the one that signs.
    pub(super) fn new_signs(&self) -> bool {
        self.rotation().ok().flatten().is_some_and(|rotation| rotation.phase.new_signs())
    }

    /// All roots that a cluster is to trust now, while one is being replaced; else none, which means the signer alone.
    pub(super) fn trusted(&self, mesh: &Mesh) -> Result<Vec<Certificate>, Error> {
        let Some(rotation) = self.rotation()? else { return Ok(vec![]) };
        let Roots { old, new } = self.roots(mesh)?;
        Ok(match rotation.phase {
            Phase::Distribute | Phase::Reissue | Phase::Restore => vec![old, new],
            Phase::Retire => vec![new],
            Phase::Withdraw => vec![old],
        })
    }

    /// The old root and the new one.
    ///
    /// # Errors
    ///
    /// When one of them cannot be read.
    pub fn roots(&self, mesh: &Mesh) -> Result<Roots, Error> {
        if !matches!(mesh.trust.root, Root::SelfSigned { .. }) {
            return Err(Error::Rotation("only a root that Stolos made itself is replaced by Stolos".to_owned()));
        }
        let certificate = |name: &str| {
            let pem = read(&self.folder.join(name))?;
            Certificate::from_pem(&pem).map_err(|error| Error::Root(error.to_string()))
        };
        Ok(Roots { old: certificate(super::CERTIFICATE)?, new: certificate(CERTIFICATE)? })
    }

    /// One of the two roots as a signer, whatever the phase.
    pub(crate) fn signer(&self, new: bool, now: SystemTime) -> Result<Authority, Error> {
        let (key, certificate) = if new { (KEY, CERTIFICATE) } else { (super::KEY, super::CERTIFICATE) };
        let certificate = read(&self.folder.join(certificate))?;
        let key = self.key_at(&self.folder.join(key)).map_err(Error::Root)?;
        Authority::load(&certificate, key.expose(), now).map_err(|error| Error::Root(error.to_string()))
    }

    /// Makes the new root and remembers that its distribution has begun.
    pub(crate) fn begin_rotation(
        &self,
        organization: &str,
        validity: Duration,
        now: SystemTime,
    ) -> Result<Rotation, Error> {
        let old = read(&self.folder.join(super::CERTIFICATE))?;
        let old = Certificate::from_pem(&old).map_err(|error| Error::Root(error.to_string()))?;
        crash::pass(crash::Point::Phase);
        let new = self.write_root(KEY, CERTIFICATE, organization, validity, now)?;
        let rotation = Rotation {
            phase: Phase::Distribute,
            from: old.fingerprint(),
            to: new.fingerprint(),
            started_at: jiff::Timestamp::try_from(now).map(|at| format!("{at:.0}")).unwrap_or_default(),
        };
        self.remember_rotation(&rotation)?;
        Ok(rotation)
    }

    /// Remembers a phase.
    pub(crate) fn remember_rotation(&self, rotation: &Rotation) -> Result<(), Error> {
        crash::pass(crash::Point::Phase);
        let text = serde_json::to_string_pretty(rotation).map_err(|error| Error::Rotation(error.to_string()))?;
        self.write(ROTATION, &text)?;
        crash::pass(crash::Point::Phase);
        Ok(())
    }

    /// The new root is the root. Until the last line a run that is killed is in phase `retire` still, in which the new
    /// root's own files count; the steps may be done twice.
    pub(crate) fn finish_rotation(&self) -> Result<(), Error> {
        let path = |name: &str| self.folder.join(name);
        let old = read(&path(super::CERTIFICATE))?;
        let (key, certificate) = (read(&path(KEY))?, read(&path(CERTIFICATE))?);
        if old != certificate {
            self.write(RETIRED, &old)?;
        }
        crash::pass(crash::Point::Phase);
        self.write(super::KEY, &key)?;
        crash::pass(crash::Point::Phase);
        self.write(super::CERTIFICATE, &certificate)?;
        self.forget_rotation()
    }

    /// There is no rotation any more, and of the new root's own files nothing is left.
    pub(crate) fn forget_rotation(&self) -> Result<(), Error> {
        crash::pass(crash::Point::Phase);
        for name in [ROTATION, KEY, CERTIFICATE] {
            let path = self.folder.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::Folder { what: "remove", path, source: error });
                }
                _ => {}
            }
            crash::pass(crash::Point::Phase);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use stolos_pki::Secret;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    /// At every phase the folder says who signs, and whom a cluster that joins now is to trust.
    #[test]
    fn a_folder_knows_who_signs_in_every_phase() {
        let folder = tempfile::tempdir().unwrap();
        let mesh = crate::run::tests::mesh(&["a"]);
        let now = SystemTime::now();
        let open = || State::at(folder.path(), Some(Secret::new("open sesame".into())));
        open().make_root("example.com", 10 * DAY, now).unwrap();
        let mut rotation = open().begin_rotation("example.com", 10 * DAY, now).unwrap();
        assert!(read(&folder.path().join(KEY)).unwrap().contains("ENCRYPTED PRIVATE KEY"));
        let seen = |state: &State| {
            let signer = state.authority(&mesh, now).unwrap();
            let fingerprint = signer.certificate().fingerprint();
            assert_eq!(state.facts(&mesh, now).root.unwrap().fingerprint, fingerprint);
            (fingerprint, signer.roots().iter().map(Certificate::fingerprint).collect::<Vec<_>>())
        };
        let (old, new) = (rotation.from.clone(), rotation.to.clone());
        let both = vec![old.clone(), new.clone()];
        // One state for all: nothing of an earlier phase is kept.
        let state = open();
        for (phase, signer, roots) in [
            (Phase::Distribute, &old, both.clone()),
            (Phase::Reissue, &new, both.clone()),
            (Phase::Restore, &old, both),
            (Phase::Withdraw, &old, vec![old.clone()]),
            (Phase::Retire, &new, vec![new.clone()]),
        ] {
            rotation.phase = phase;
            state.remember_rotation(&rotation).unwrap();
            assert_eq!(seen(&state), (signer.clone(), roots), "{phase}");
        }
        state.finish_rotation().unwrap();
        assert_eq!(seen(&state), (new.clone(), vec![new.clone()]));
        assert_eq!(seen(&open()), (new.clone(), vec![new]));
        assert_eq!(open().rotation().unwrap(), None);
        assert!(!folder.path().join(KEY).exists());
    }
}
