//! A folder of a command's own.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// A folder below the system's temporary one, for its owner only; removed with this value unless it is to be kept.
pub(crate) struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    pub(crate) fn temporary(name: &str, keep: bool) -> Result<Self, Failure> {
        let base = std::env::temp_dir();
        // Process numbers come around again, and a killed process leaves its folder.
        for attempt in 0..1000 {
            let path = base.join(format!("{name}-{}-{attempt}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path, keep }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(
                        Failure::caused(&error).while_doing(format!("could not make a folder in {}", base.display()))
                    );
                }
            }
        }
        Err(Failure::new(format!("could not make a folder in {}", base.display())))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
