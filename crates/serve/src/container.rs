use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Net, Output, Programs};

/// What a container's process is given, in a real container and in the lab alike.
#[derive(Clone)]
pub struct Container {
    /// Its network; the only source of sockets.
    pub net: Arc<dyn Net>,
    /// Where its file system starts: `/` in a real container, the pod's folder in the lab.
    pub root: PathBuf,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Its arguments, without the program.
    pub args: Vec<String>,
    /// Its log.
    pub output: Output,
    /// The way to programs that are not ours; `None` where there are none.
    pub programs: Option<Arc<dyn Programs>>,
}

impl Container {
    /// The place of an absolute container path, such as `/etc/cacerts/ca-cert.pem`.
    #[must_use]
    pub fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let path = absolute.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// An environment variable that is set and not empty.
    #[must_use]
    pub fn var(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}
