//! A lab's folder: who holds it, what was claimed, and the files others read.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::address::Subnet;
use crate::{Error, LabCluster};

/// What a lab must know to come back where it was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) version: u32,
    pub(crate) name: String,
    /// Address blocks, as claimed.
    pub(crate) blocks: Vec<u8>,
    pub(crate) clusters: Vec<Placed>,
    /// Whether its clusters hold what was recorded elsewhere, and run nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) recorded: bool,
}

/// A cluster and its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Placed {
    #[serde(flatten)]
    pub(crate) cluster: LabCluster,
    pub(crate) subnet: Subnet,
}

/// A lab's folder, held by this process.
pub(crate) struct Folder {
    path: PathBuf,
    /// Holds the lock as long as it is open.
    _lock: File,
}

impl Folder {
    /// Makes the folder if need be, and takes it.
    pub(crate) fn hold(path: &Path) -> Result<Self, Error> {
        let failed = |attempt, path: &Path| {
            let path = path.to_owned();
            move |source| Error::State { attempt, path, source }
        };
        make(path).map_err(failed("make the folder", path))?;
        let path = path.canonicalize().map_err(failed("find the folder", path))?;
        let name = path.join("lab.lock");
        let mut options = File::options();
        let opened = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&name);
        let mut lock = opened.map_err(failed("open", &name))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = lock.read_to_string(&mut pid);
                return Err(Error::Running { state: path, pid: pid.trim().to_owned() });
            }
            Err(error) => return Err(failed("lock", &name)(error.into())),
        }
        let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        written.map_err(failed("write", &name))?;
        Ok(Self { path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the last lab in this folder left, if there was one.
    pub(crate) fn record(&self) -> Result<Option<Record>, Error> {
        let path = self.path.join("lab.json");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::State { attempt: "read", path, source }),
        };
        serde_json::from_slice(&text).map(Some).map_err(|e| Error::Corrupt { path, problem: e.to_string() })
    }

    pub(crate) fn set_record(&self, record: &Record) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(record).unwrap_or_default();
        put(&self.path.join("lab.json"), &text)
    }
}

/// Replaces a file as a whole, durably, readable by its owner alone.
pub(crate) fn put(path: &Path, content: &[u8]) -> Result<(), Error> {
    let write = || {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let fresh = path.with_file_name(name);
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    };
    write().map_err(|source| Error::State { attempt: "write", path: path.to_owned(), source })
}

pub(crate) fn make(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_holder_and_remembers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/lab");
        let held = Folder::hold(&path).unwrap();
        assert_eq!(held.record().unwrap(), None);
        let second = Folder::hold(&path).err().unwrap().to_string();
        assert!(second.contains("is running already") && second.contains(&std::process::id().to_string()), "{second}");
        let record = Record { version: 1, name: "x".into(), blocks: vec![9], clusters: Vec::new(), recorded: false };
        held.set_record(&record).unwrap();
        drop(held);
        assert_eq!(Folder::hold(&path).unwrap().record().unwrap(), Some(record));
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(std::fs::metadata(path.join("lab.json")).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
