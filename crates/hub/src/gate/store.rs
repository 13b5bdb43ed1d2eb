//! Where an agent keeps its key and its certificate: in a folder, or, in a pod, in a Secret of its own.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use stolos_cluster::objects::{self, Resource};
use stolos_pki::{Certificate, Secret};

use crate::Error;

/// Key and certificates in one file, so that they are of one piece at any moment.
const OWN: &str = "agent.pem";
const ROOT: &str = "hub-ca.crt";
/// The field manager of what an agent writes into its Secret.
const AGENT: &str = "stolos-agent";

/// Where it is.
#[derive(Clone)]
pub enum Store {
    /// A folder (0700, its files 0600).
    Folder(PathBuf),
    /// A Secret that is there.
    Secret {
        /// Of the cluster that it is in.
        client: kube::Client,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl Store {
    /// Why something of it could not be used.
    pub(super) fn failed(&self, why: impl ToString) -> Error {
        let place = match self {
            Self::Folder(folder) => folder.display().to_string(),
            Self::Secret { namespace, name, .. } => format!("Secret {namespace}/{name}"),
        };
        Error::Agents(format!("could not use what is kept in {place}: {}", why.to_string()))
    }

    pub(super) fn prepare(&self) -> Result<(), Error> {
        use std::os::unix::fs::DirBuilderExt as _;
        let Self::Folder(folder) = self else { return Ok(()) };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| self.failed(error))
    }

    /// Key with certificates, and the hub's authority.
    pub(super) async fn read(&self) -> Result<Option<(Secret, String)>, Error> {
        match self {
            Self::Folder(folder) => {
                let read = |name: &str| match std::fs::read_to_string(folder.join(name)) {
                    Ok(text) => Ok(Some(Secret::new(text))),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(self.failed(error)),
                };
                let (own, root) = (read(OWN)?, read(ROOT)?);
                Ok(own.zip(root).map(|(own, root)| (own, root.expose().to_owned())))
            }
            Self::Secret { .. } => {
                let found = self.secret().await?;
                let (own, root) = (text(&found, OWN), text(&found, ROOT));
                Ok(own.zip(root).map(|(own, root)| (Secret::new(own), root)))
            }
        }
    }

    pub(super) async fn write(&self, own: &Secret, root: &str) -> Result<(), Error> {
        match self {
            Self::Folder(folder) => {
                for (name, text) in [(ROOT, root), (OWN, own.expose())] {
                    write(&folder.join(name), text).map_err(|error| self.failed(error))?;
                }
                Ok(())
            }
            Self::Secret { .. } => {
                let data = |text: &str| BASE64_STANDARD.encode(text);
                self.patch(&json!({"data": {OWN: data(own.expose()), ROOT: data(root)}})).await
            }
        }
    }

    /// Removes what would be used at the next start.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub async fn forget(&self) -> Result<(), Error> {
        match self {
            Self::Folder(folder) => match std::fs::remove_file(folder.join(OWN)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed(error)),
                _ => Ok(()),
            },
            Self::Secret { .. } => self.patch(&json!({"data": {OWN: null}})).await,
        }
    }

    /// The Secret; nothing while there is none, or where this is a folder.
    pub(super) async fn secret(&self) -> Result<Value, Error> {
        let Self::Secret { client, namespace, name } = self else { return Ok(Value::Null) };
        let found = objects::get(client, &Resource::named("v1", "Secret")?, Some(namespace), name).await?;
        Ok(found.unwrap_or_default())
    }

    async fn patch(&self, patch: &Value) -> Result<(), Error> {
        let Self::Secret { client, namespace, name } = self else { return Ok(()) };
        let place = (Some(namespace.as_str()), name.as_str());
        objects::merge(client, &Resource::named("v1", "Secret")?, place, patch, false, AGENT).await?;
        Ok(())
    }
}

/// The certificate that an agent keeps in a Secret.
pub(crate) fn kept(secret: &Value) -> Option<Certificate> {
    Certificate::all_from_pem(&text(secret, OWN)?).ok()?.into_iter().next()
}

/// A text in a Secret.
pub(super) fn text(secret: &Value, key: &str) -> Option<String> {
    let data = BASE64_STANDARD.decode(secret["data"][key].as_str()?).ok()?;
    String::from_utf8(data).ok().filter(|text| !text.is_empty())
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let fresh = path.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)
}
