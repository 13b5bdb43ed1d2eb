use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use stolos_pki::{Authority, CaCerts, Certificate, Secret};
use stolos_plan::{RootFacts, StateFacts};
use stolos_spec::{Mesh, Root};

use crate::Error;

mod exec;
mod rotation;

pub(crate) const CERTIFICATE: &str = "root-cert.pem";
pub(crate) const KEY: &str = "root-key.pem";
const IDENTITY: &str = "id";
const JOURNAL: &str = "journal.jsonl";
/// A journal longer than this is put aside before a new run.
const LONG: u64 = 1 << 20;

/// A mesh's folder on this machine: the root certificate, its key (behind a passphrase when one is given), and the
/// journal. Nothing in it is made before it is needed.
pub struct State {
    folder: PathBuf,
    passphrase: Option<Secret>,
    /// Keys that were opened, by what is on disk: behind a passphrase that takes a moment.
    keys: Mutex<BTreeMap<String, Secret>>,
    /// The signer that was opened last, with the roots it is among.
    opened: Mutex<Option<(Vec<String>, Arc<Authority>)>>,
    /// Whose turn it is to ask a program for a certificate.
    turn: tokio::sync::Mutex<()>,
}

/// The passphrase of the root key: the first line of `file`, else `$STOLOS_PASSPHRASE`, if that is set.
///
/// # Errors
///
/// When the file cannot be read.
pub fn passphrase(file: Option<&Path>) -> Result<Option<Secret>, Error> {
    let text = match file {
        Some(path) => Some(read(path)?),
        None => std::env::var("STOLOS_PASSPHRASE").ok(),
    };
    Ok(text.and_then(|text| text.lines().next().map(str::to_owned)).filter(|t| !t.is_empty()).map(Secret::new))
}

impl State {
    /// The state in `folder`, which need not exist.
    #[must_use]
    pub fn at(folder: impl Into<PathBuf>, passphrase: Option<Secret>) -> Self {
        let folder = folder.into();
        Self {
            folder,
            passphrase,
            keys: Mutex::default(),
            opened: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Where a mesh's state is: `flag`, else `$STOLOS_STATE`, else `stolos/<mesh>` in the XDG state folder.
    #[must_use]
    pub fn folder_of(mesh: &str, flag: Option<&Path>) -> PathBuf {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = || std::env::home_dir().unwrap_or_default().join(".local/state");
        flag.map(Path::to_owned)
            .or_else(|| set("STOLOS_STATE"))
            .unwrap_or_else(|| set("XDG_STATE_HOME").unwrap_or_else(home).join("stolos").join(mesh))
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What a plan needs to know. Reads, and writes nothing.
    #[must_use]
    pub fn facts(&self, mesh: &Mesh, now: SystemTime) -> StateFacts {
        let folder = self.folder.display().to_string();
        let certificate = match self.certificate_path(mesh) {
            // A root that is made, or answered by a program, when the first certificate is needed.
            Ok(path) if !path.exists() && !matches!(mesh.trust.root, Root::Files { .. }) => {
                return StateFacts { folder, ..StateFacts::default() };
            }
            Ok(path) => read(&path).map_err(|e| stolos_serve::because(&e)),
            Err(_) => return StateFacts { folder, ..StateFacts::default() },
        };
        let parsed = certificate.and_then(|pem| Certificate::from_pem(&pem).map_err(|e| e.to_string()));
        let parsed = parsed.and_then(|cert| cert.check_time(now).map(|()| cert).map_err(|e| e.to_string()));
        let refused =
            |why: String| StateFacts { folder: folder.clone(), root_refused: Some(why), ..StateFacts::default() };
        let rotation = match self.rotation() {
            Ok(rotation) => rotation,
            Err(error) => return refused(stolos_serve::because(&error)),
        };
        let certificate = match parsed {
            Ok(certificate) if certificate.is_ca() => certificate,
            Ok(certificate) => return refused(format!("`{}` is not a certificate authority", certificate.subject())),
            Err(why) => return refused(why),
        };
        // A key that is not at hand matters only when something must be signed; one that does not fit, always.
        let key = match &mesh.trust.root {
            Root::Exec { .. } => Ok(()),
            _ => self.key(mesh).map(drop),
        };
        if key.is_ok()
            && !matches!(mesh.trust.root, Root::Exec { .. })
            && let Err(Error::Root(why)) = self.authority(mesh, now)
        {
            return refused(why);
        }
        let root = RootFacts { fingerprint: certificate.fingerprint(), not_after: certificate.not_after(), key };
        StateFacts { folder, root: Some(root), root_refused: None, rotation }
    }

    /// The root as a signer, among all roots that a cluster is to trust now: while one is being replaced, that is the one
    /// that signs in this phase. Its key is opened once; behind a passphrase that takes a moment.
    ///
    /// # Errors
    ///
    /// [`Error::Root`] when there is none, or it cannot be used.
    pub fn authority(&self, mesh: &Mesh, now: SystemTime) -> Result<Arc<Authority>, Error> {
        let said = |error: &dyn std::error::Error| stolos_serve::because(error);
        let roots = self.trusted(mesh)?;
        let certificate =
            read(&self.certificate_path(mesh).map_err(Error::Root)?).map_err(|e| Error::Root(said(&e)))?;
        let mut known = vec![certificate.clone()];
        known.extend(roots.iter().map(Certificate::fingerprint));
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, authority)) = opened.as_ref()
            && *of == known
        {
            return Ok(Arc::clone(authority));
        }
        let key = self.key(mesh).map_err(Error::Root)?;
        let authority = Authority::load(&certificate, key.expose(), now).map_err(|e| Error::Root(said(&e)))?;
        let authority = Arc::new(if roots.is_empty() { authority } else { authority.among(roots) });
        *opened = Some((known, Arc::clone(&authority)));
        Ok(authority)
    }

    /// A signing certificate for a cluster, from the root that signs now: the folder's, the user's files', or the one
    /// behind the user's program.
    ///
    /// # Errors
    ///
    /// [`Error::Root`] when the root cannot be used, or the program's answer.
    pub async fn issue(&self, mesh: &Mesh, cluster: &str, now: SystemTime) -> Result<CaCerts, Error> {
        let trust = &mesh.trust;
        if let Root::Exec { command } = &trust.root {
            return self.issue_by(command, mesh, cluster, now).await;
        }
        let root = self.authority(mesh, now)?;
        let validity = trust.intermediates.validity;
        let issued = root.issue_intermediate(cluster, &trust.organization, &trust.domain, validity, now);
        issued.map_err(|error| Error::Root(error.to_string()))
    }

    /// The key of the root that signs now, as PEM, opened.
    fn key(&self, mesh: &Mesh) -> Result<Secret, String> {
        self.key_at(&self.key_path(mesh)?)
    }

    /// A key as PEM, opened.
    pub(crate) fn key_at(&self, path: &Path) -> Result<Secret, String> {
        let said = |error: &dyn std::error::Error| stolos_serve::because(error);
        let text = read(path).map_err(|e| said(&e))?;
        if !stolos_pki::is_encrypted(&text) {
            return Ok(Secret::new(text));
        }
        let passphrase = self.passphrase.as_ref().ok_or("it is behind a passphrase")?;
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = keys.get(&text) {
            return Ok(known.clone());
        }
        let key = stolos_pki::decrypt_key(&text, passphrase).map_err(|e| said(&e))?.to_pem();
        Ok(keys.entry(text).or_insert(key).clone())
    }

    /// Makes a root, unless there is one. Its key is on disk before its certificate: one without the other counts as
    /// none.
    ///
    /// # Errors
    ///
    /// When it cannot be made or written.
    pub fn make_root(&self, organization: &str, validity: Duration, now: SystemTime) -> Result<(), Error> {
        if self.folder.join(CERTIFICATE).exists() {
            return Ok(());
        }
        self.write_root(KEY, CERTIFICATE, organization, validity, now).map(drop)
    }

    /// A new root in two files, the key (behind the passphrase, if there is one) before the certificate.
    pub(crate) fn write_root(
        &self,
        key_file: &str,
        certificate_file: &str,
        organization: &str,
        validity: Duration,
        now: SystemTime,
    ) -> Result<Certificate, Error> {
        let refused = |e: stolos_pki::Error| Error::Root(e.to_string());
        let root = Authority::new_root(organization, validity, now).map_err(refused)?;
        let key = match &self.passphrase {
            None => root.key_pem().expose().to_owned(),
            Some(passphrase) => stolos_pki::encrypt_key(root.key(), passphrase).map_err(refused)?,
        };
        self.write(key_file, &key)?;
        self.write(certificate_file, &root.certificate().pem())?;
        Ok(root.certificate().clone())
    }

    /// Keeps the certificate of a root whose key is somewhere else, unless there is one; whether there was none. Whatever
    /// needs no new signing certificate goes without the key (decision 21).
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn keep_root(&self, certificate: &str) -> Result<bool, Error> {
        if self.folder.join(CERTIFICATE).exists() {
            return Ok(false);
        }
        self.write(CERTIFICATE, certificate).map(|()| true)
    }

    /// This folder's name for itself: who holds a lock under it and is not this process is dead.
    pub(crate) fn identity(&self) -> Result<String, Error> {
        let path = self.folder.join(IDENTITY);
        if let Ok(text) = fs::read_to_string(&path) {
            return Ok(text.trim().to_owned());
        }
        let fresh = uuid::Uuid::new_v4().to_string();
        self.write(IDENTITY, &fresh)?;
        Ok(fresh)
    }

    /// Keeps other runs out of this folder until the file is dropped.
    pub(crate) fn hold(&self) -> Result<File, Error> {
        self.create()?;
        let path = self.folder.join("lock");
        let file = open(&path, OpenOptions::new().create(true).truncate(false).write(true))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => Err(Error::FolderInUse(self.folder.clone())),
            Err(fs::TryLockError::Error(source)) => Err(Error::Folder { what: "lock", path, source }),
        }
    }

    /// The journal, ready for a note.
    pub(crate) fn journal(&self) -> Result<File, Error> {
        self.create()?;
        let path = self.folder.join(JOURNAL);
        if fs::metadata(&path).is_ok_and(|found| found.len() > LONG) {
            let aside = self.folder.join(format!("{JOURNAL}.old"));
            fs::rename(&path, aside).map_err(|source| Error::Folder {
                what: "put aside",
                path: path.clone(),
                source,
            })?;
        }
        open(&path, OpenOptions::new().create(true).append(true))
    }

    fn certificate_path(&self, mesh: &Mesh) -> Result<PathBuf, String> {
        match &mesh.trust.root {
            Root::SelfSigned { .. } if self.new_signs() => Ok(self.folder.join(rotation::CERTIFICATE)),
            Root::SelfSigned { .. } => Ok(self.folder.join(CERTIFICATE)),
            Root::Files { certificate, .. } => Ok(certificate.clone()),
            // What the program answered first: every later answer must lead there as well.
            Root::Exec { .. } => Ok(self.folder.join(CERTIFICATE)),
        }
    }

    fn key_path(&self, mesh: &Mesh) -> Result<PathBuf, String> {
        match &mesh.trust.root {
            Root::SelfSigned { .. } if self.new_signs() => Ok(self.folder.join(rotation::KEY)),
            Root::SelfSigned { .. } => Ok(self.folder.join(KEY)),
            Root::Files { key, .. } => Ok(key.clone()),
            Root::Exec { .. } => Err("the root's key is behind a program".to_owned()),
        }
    }

    /// A file for a program to read, which only its owner may; whoever asks for it removes it again.
    pub(crate) fn note(&self, name: &str, text: &str) -> Result<PathBuf, Error> {
        self.write(name, text)?;
        Ok(self.folder.join(name))
    }

    /// Whole or not at all, and on disk when it returns.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        self.create()?;
        let path = self.folder.join(name);
        let fresh = self.folder.join(format!(".{name}.new"));
        let failed = |source| Error::Folder { what: "write", path: path.clone(), source };
        let mut file = open(&fresh, OpenOptions::new().create(true).truncate(true).write(true))?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&fresh, &path).map_err(failed)?;
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }

    fn create(&self) -> Result<(), Error> {
        let failed = |source| Error::Folder { what: "create", path: self.folder.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(failed)?;
        // A folder that was there before (made by `mkdir`) is narrowed: the root key will lie in it.
        fs::set_permissions(&self.folder, fs::Permissions::from_mode(0o700)).map_err(failed)
    }
}

pub(crate) fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Folder { what: "read", path: path.to_owned(), source })
}

fn open(path: &Path, options: &mut OpenOptions) -> Result<File, Error> {
    let opened: io::Result<File> = options.mode(0o600).open(path);
    opened.map_err(|source| Error::Folder { what: "open", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_root_is_made_once_and_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("state");
        let now = SystemTime::now();
        let state = State::at(&folder, None);
        let mesh = crate::run::tests::mesh(&["a"]);
        assert_eq!(state.facts(&mesh, now).root, None);
        assert!(!folder.exists(), "looking makes nothing");
        state.make_root("example.com", 10 * DAY, now).unwrap();
        let made = State::at(&folder, None).facts(&mesh, now).root.unwrap();
        assert_eq!(made.key, Ok(()));
        state.make_root("example.com", 10 * DAY, now).unwrap();
        assert_eq!(State::at(&folder, None).facts(&mesh, now).root.unwrap(), made);
        assert_eq!((mode(&folder), mode(&folder.join(KEY)), mode(&folder.join(CERTIFICATE))), (0o700, 0o600, 0o600));
    }

    #[test]
    fn a_key_behind_a_passphrase_needs_it() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let mesh = crate::run::tests::mesh(&["a"]);
        let with = |passphrase: Option<&str>| State::at(folder.path(), passphrase.map(|p| Secret::new(p.to_owned())));
        with(Some("open sesame")).make_root("example.com", 10 * DAY, now).unwrap();
        assert!(fs::read_to_string(folder.path().join(KEY)).unwrap().contains("ENCRYPTED PRIVATE KEY"));
        let key = |passphrase| with(passphrase).facts(&mesh, now).root.unwrap().key;
        assert_eq!(key(Some("open sesame")), Ok(()));
        assert!(key(None).unwrap_err().contains("it is behind a passphrase"));
        assert!(key(Some("guess")).unwrap_err().contains("does not open"));
    }

    #[test]
    fn a_root_of_the_users_own_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let [one, other] = [0, 1].map(|_| Authority::new_root("theirs", 10 * DAY, now).unwrap());
        let path = |name: &str| folder.path().join(name);
        fs::write(path("cert.pem"), one.certificate().pem()).unwrap();
        fs::write(path("key.pem"), one.key_pem().expose()).unwrap();
        fs::write(path("other.pem"), other.key_pem().expose()).unwrap();
        let leaf = one.sign_server(&["a".into()], &[], None, DAY, now).unwrap();
        fs::write(path("leaf.pem"), leaf.chain_pem()).unwrap();
        let facts = |certificate: &str, key: &str, now| {
            let mut mesh = crate::run::tests::mesh(&["a"]);
            mesh.trust.root = Root::Files { certificate: path(certificate), key: path(key) };
            State::at(path("state"), None).facts(&mesh, now)
        };
        let fine = facts("cert.pem", "key.pem", now);
        assert_eq!((fine.root.unwrap().key, fine.root_refused), (Ok(()), None));
        let refused = |facts: StateFacts| facts.root_refused.unwrap();
        assert!(refused(facts("cert.pem", "other.pem", now)).contains("the private key is not the key of"));
        assert!(refused(facts("cert.pem", "key.pem", now + 11 * DAY)).contains("has expired"));
        assert!(refused(facts("leaf.pem", "key.pem", now)).contains("is not a certificate authority"));
        assert!(refused(facts("nowhere.pem", "key.pem", now)).contains("could not read"));
        assert!(facts("cert.pem", "nowhere.pem", now).root.unwrap().key.is_err());
    }

    #[test]
    fn one_run_at_a_time_uses_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (State::at(folder.path(), None), State::at(folder.path(), None));
        let held = one.hold().unwrap();
        assert!(matches!(other.hold(), Err(Error::FolderInUse(_))));
        drop(held);
        other.hold().unwrap();
        assert_eq!(one.identity().unwrap(), other.identity().unwrap());
    }
}
