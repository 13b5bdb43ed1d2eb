use std::ffi::OsString;
use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig as File};

use crate::Error;

/// Kubeconfig files, read.
///
/// Which ones: `--kubeconfig`, else the one the mesh file names, else every file of `$KUBECONFIG`, else
/// `~/.kube/config`, as kubectl does. A lab's is never found by itself.
#[derive(Clone, Debug)]
pub struct Kubeconfig {
    files: Vec<PathBuf>,
    merged: File,
}

impl Kubeconfig {
    /// Reads the files by the order above.
    ///
    /// # Errors
    ///
    /// When none exists, or one that was named cannot be read.
    pub fn find(flag: Option<&Path>, own: Option<&Path>) -> Result<Self, Error> {
        Self::find_in(flag, own, std::env::var_os("KUBECONFIG"), std::env::home_dir())
    }

    fn find_in(
        flag: Option<&Path>,
        own: Option<&Path>,
        variable: Option<OsString>,
        home: Option<PathBuf>,
    ) -> Result<Self, Error> {
        if let Some(named) = flag.or(own) {
            return Self::read(vec![named.to_owned()]);
        }
        // kubectl skips files of $KUBECONFIG that do not exist, as long as one does.
        let looked: Vec<PathBuf> = match variable.filter(|v| !v.is_empty()) {
            Some(list) => std::env::split_paths(&list).filter(|p| !p.as_os_str().is_empty()).collect(),
            None => home.map(|home| home.join(".kube/config")).into_iter().collect(),
        };
        let files: Vec<PathBuf> = looked.iter().filter(|p| p.exists()).cloned().collect();
        if files.is_empty() {
            return Err(Error::NoKubeconfig { looked });
        }
        Self::read(files)
    }

    fn read(files: Vec<PathBuf>) -> Result<Self, Error> {
        let mut merged: Option<File> = None;
        for path in &files {
            let failed = |source| Error::ReadKubeconfig { path: path.clone(), source: Box::new(source) };
            let file = File::read_from(path).map_err(failed)?;
            merged = Some(match merged {
                None => file,
                Some(earlier) => earlier.merge(file).map_err(failed)?,
            });
        }
        Ok(Self { files, merged: merged.unwrap_or_default() })
    }

    /// The files that were read.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The contexts there are, in file order.
    #[must_use]
    pub fn contexts(&self) -> Vec<&str> {
        self.merged.contexts.iter().map(|c| c.name.as_str()).collect()
    }

    /// The context that kubectl would use.
    #[must_use]
    pub fn current_context(&self) -> Option<&str> {
        self.merged.current_context.as_deref()
    }

    /// What is needed to reach the cluster behind `context`.
    ///
    /// # Errors
    ///
    /// When there is no such context, or it names what does not exist.
    pub async fn context(&self, context: &str) -> Result<kube::Config, Error> {
        if !self.contexts().contains(&context) {
            return Err(Error::NoContext {
                context: context.to_owned(),
                files: self.files.clone(),
                have: self.contexts().into_iter().map(ToOwned::to_owned).collect(),
            });
        }
        let options = KubeConfigOptions { context: Some(context.to_owned()), ..Default::default() };
        kube::Config::from_custom_kubeconfig(self.merged.clone(), &options)
            .await
            .map_err(|source| Error::Context { context: context.to_owned(), source: Box::new(source) })
    }
}

/// The kubeconfig in a remote secret.
///
/// # Errors
///
/// When it cannot be read, or asks its reader to run a program, use an authentication plugin or open a file: what
/// istiod refuses as well (Istio 1.14 and later, `PILOT_INSECURE_MULTICLUSTER_KUBECONFIG_OPTIONS`).
pub async fn from_kubeconfig_text(text: &str) -> Result<kube::Config, Error> {
    let file = File::from_yaml(text).map_err(|e| Error::Refused(e.to_string()))?;
    for user in file.auth_infos.iter().filter_map(|u| u.auth_info.as_ref()) {
        let why = if user.exec.is_some() {
            "it runs a program (`exec`)"
        } else if user.auth_provider.is_some() {
            "it uses an authentication plugin (`auth-provider`)"
        } else if user.token_file.is_some() {
            "it points to a file (`tokenFile`)"
        } else if user.client_certificate.is_some() {
            "it points to a file (`client-certificate`)"
        } else if user.client_key.is_some() {
            "it points to a file (`client-key`)"
        } else {
            continue;
        };
        return Err(Error::Refused(why.to_owned()));
    }
    if file.clusters.iter().filter_map(|c| c.cluster.as_ref()).any(|c| c.certificate_authority.is_some()) {
        return Err(Error::Refused("it points to a file (`certificate-authority`)".to_owned()));
    }
    kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(|e| Error::Refused(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &Path, name: &str, context: &str) -> PathBuf {
        let path = folder.join(name);
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: {context}, cluster: {{server: 'https://127.16.0.1:6443'}}}}]\n\
             contexts: [{{name: {context}, context: {{cluster: {context}, user: {context}}}}}]\n\
             users: [{{name: {context}, user: {{token: secret}}}}]\ncurrent-context: {context}\n"
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    #[tokio::test]
    async fn the_order_is_flag_file_variable_home() {
        let folder = tempfile::tempdir().unwrap();
        let [flag, own, a, b] = ["flag", "own", "a", "b"].map(|n| file(folder.path(), n, n));
        let home = folder.path().join("home");
        std::fs::create_dir_all(home.join(".kube")).unwrap();
        file(&home.join(".kube"), "config", "home");
        let both = std::env::join_paths([&a, &folder.path().join("missing"), &b]).unwrap();

        let found = |flag: Option<&Path>, own: Option<&Path>, variable: Option<OsString>| {
            Kubeconfig::find_in(flag, own, variable, Some(home.clone())).unwrap()
        };
        assert_eq!(found(Some(&flag), Some(&own), Some(both.clone())).contexts(), ["flag"]);
        assert_eq!(found(None, Some(&own), Some(both.clone())).contexts(), ["own"]);
        assert_eq!(found(None, None, Some(both)).contexts(), ["a", "b"]);
        assert_eq!(found(None, None, None).contexts(), ["home"]);

        let missing = found(Some(&flag), None, None).context("nope").await.unwrap_err();
        assert_eq!(missing.to_string(), format!("no context `nope` in {}", flag.display()));
    }

    #[tokio::test]
    async fn a_remote_kubeconfig_may_not_run_or_open_anything() {
        for (user, why) in [
            ("{exec: {command: aws, apiVersion: client.authentication.k8s.io/v1}}", "it runs a program (`exec`)"),
            ("{tokenFile: /etc/passwd}", "it points to a file (`tokenFile`)"),
            ("{client-key: /etc/key}", "it points to a file (`client-key`)"),
        ] {
            let text = format!(
                "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: 'https://127.0.0.1'}}}}]\n\
                 contexts: [{{name: c, context: {{cluster: c, user: c}}}}]\nusers: [{{name: c, user: {user}}}]\ncurrent-context: c\n"
            );
            let refused = from_kubeconfig_text(&text).await.unwrap_err();
            assert_eq!(refused.to_string(), format!("the kubeconfig is refused: {why}"));
        }
    }

    mod whatever_it_is_it_does_not_panic {
        use super::*;
        use proptest::prelude::*;

        /// Texts that are YAML now and then: pieces of kubeconfigs in any order, and anything in between.
        fn pieces() -> impl Strategy<Value = String> {
            let piece = prop_oneof![
                Just("apiVersion: v1\nkind: Config\n".to_owned()),
                Just(
                    "clusters: [{name: c, cluster: {server: 'https://h', certificate-authority-data: '####'}}]\n"
                        .to_owned()
                ),
                Just("contexts:\n- {name: c, context: {cluster: c, user: nobody}}\n".to_owned()),
                Just("current-context: c\n".to_owned()),
                Just("users:\n- name: c\n  user: {token: 7}\n".to_owned()),
                "\\PC{0,40}",
            ];
            proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
        }

        proptest! {
            #[test]
            fn in_a_remote_secret(text in pieces()) {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                let _ = runtime.block_on(from_kubeconfig_text(&text));
            }

            #[test]
            fn in_a_file(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in pieces()) {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("config");
                for content in [bytes.as_slice(), text.as_bytes()] {
                    std::fs::write(&path, content).unwrap();
                    if let Ok(found) = Kubeconfig::find(Some(&path), None) {
                        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                        let _ = runtime.block_on(found.context("c"));
                    }
                }
            }
        }
    }
}
