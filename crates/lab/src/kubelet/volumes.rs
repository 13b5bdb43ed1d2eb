//! A pod's volumes as real files, kept fresh.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, KeyToPath, Pod, Volume};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::env::{About, field, resource};
use crate::cluster::Shared;
use crate::workload::claims;

/// Where every container finds its account's token, unless it mounts something there itself.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The name of that volume on disk; no pod can name a volume so.
const ACCOUNT_VOLUME: &str = "_account";

/// What was written for one pod, and the tokens it has.
#[derive(Default)]
pub(crate) struct Volumes {
    tokens: HashMap<(String, i64), Token>,
    written: HashMap<PathBuf, Vec<u8>>,
}

struct Token {
    text: String,
    renew: Instant,
}

/// Relative path → content.
type Files = BTreeMap<String, Vec<u8>>;

impl Volumes {
    /// Whether anything of the pod's volumes can change after the start.
    pub(crate) fn can_change(pod: &Pod) -> bool {
        pod.spec
            .iter()
            .flat_map(|s| s.volumes.iter().flatten())
            .any(|v| v.secret.is_some() || v.config_map.is_some() || v.projected.is_some() || v.downward_api.is_some())
    }

    /// Writes what is new and removes what is gone; returns when a token wants renewing.
    ///
    /// # Errors
    ///
    /// What is missing, as the kubelet says it; or what the disk or the API server said.
    pub(crate) async fn write(
        &mut self,
        shared: &Shared,
        about: &About<'_>,
        folder: &Path,
    ) -> Result<Option<Instant>, String> {
        let mut wanted: HashMap<PathBuf, Vec<u8>> = HashMap::new();
        for volume in about.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            let place = folder.join("volumes").join(&volume.name);
            if let Some(source) = &volume.persistent_volume_claim {
                claimed(shared, about.pod, &source.claim_name, &place)?;
                continue;
            }
            make(&place).map_err(|e| format!("cannot make volume {}: {e}", volume.name))?;
            for (path, content) in self.files(shared, about, volume).await? {
                wanted.insert(place.join(inside(&path)), content);
            }
        }
        if mounts_account(about.pod) {
            let place = folder.join("volumes").join(ACCOUNT_VOLUME);
            make(&place).map_err(|e| format!("cannot make the account's volume: {e}"))?;
            let token = self.token(shared, about.pod, "", 3607).await?;
            wanted.insert(place.join("token"), token);
            wanted.insert(place.join("ca.crt"), shared.ca.clone().into_bytes());
            wanted.insert(place.join("namespace"), about.pod.namespace().unwrap_or_default().into_bytes());
        }
        for gone in self.written.keys().filter(|path| !wanted.contains_key(*path)) {
            let _ = std::fs::remove_file(gone);
        }
        for (path, content) in &wanted {
            if self.written.get(path) != Some(content) {
                put(path, content).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
            }
        }
        self.written = wanted;
        Ok(self.tokens.values().map(|t| t.renew).min())
    }

    async fn files(&mut self, shared: &Shared, about: &About<'_>, volume: &Volume) -> Result<Files, String> {
        let namespace = about.pod.namespace().unwrap_or_default();
        if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or("");
            return secret(shared, &namespace, name, source.items.as_deref(), source.optional);
        }
        if let Some(source) = &volume.config_map {
            return config_map(shared, &namespace, &source.name, source.items.as_deref(), source.optional);
        }
        if let Some(source) = &volume.downward_api {
            return downward(about, source.items.iter().flatten());
        }
        let Some(projected) = &volume.projected else { return Ok(Files::new()) };
        let mut files = Files::new();
        for source in projected.sources.iter().flatten() {
            if let Some(source) = &source.secret {
                files.extend(secret(shared, &namespace, &source.name, source.items.as_deref(), source.optional)?);
            }
            if let Some(source) = &source.config_map {
                files.extend(config_map(shared, &namespace, &source.name, source.items.as_deref(), source.optional)?);
            }
            if let Some(source) = &source.downward_api {
                files.extend(downward(about, source.items.iter().flatten())?);
            }
            if let Some(source) = &source.service_account_token {
                let audience = source.audience.as_deref().unwrap_or("");
                let token = self.token(shared, about.pod, audience, source.expiration_seconds.unwrap_or(3600)).await?;
                files.insert(source.path.clone(), token);
            }
        }
        Ok(files)
    }

    /// A token for the pod's account, renewed when four fifths of its life are over.
    async fn token(&mut self, shared: &Shared, pod: &Pod, audience: &str, seconds: i64) -> Result<Vec<u8>, String> {
        let key = (audience.to_owned(), seconds);
        if let Some(token) = self.tokens.get(&key).filter(|t| t.renew > Instant::now()) {
            return Ok(token.text.clone().into_bytes());
        }
        let namespace = pod.namespace().unwrap_or_default();
        let named = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref());
        let account = named.unwrap_or("default");
        let mut spec = json!({"expirationSeconds": seconds});
        if !audience.is_empty() {
            spec["audiences"] = json!([audience]);
        }
        if named.is_some() {
            spec["boundObjectRef"] =
                json!({"apiVersion": "v1", "kind": "Pod", "name": pod.name_any(), "uid": pod.uid()});
        }
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        let request = http::Request::post(format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"))
            .header("content-type", "application/json")
            .body(body.to_string().into_bytes())
            .map_err(|e| e.to_string())?;
        let answer: Value = shared
            .client
            .request(request)
            .await
            .map_err(|e| format!("failed to fetch token of service account {namespace}/{account}: {e}"))?;
        let text = answer["status"]["token"].as_str().ok_or("the token request was answered without a token")?;
        let expires = answer["status"]["expirationTimestamp"].as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok());
        let life = expires.map_or(seconds, |at| at.duration_since(jiff::Timestamp::now()).as_secs()).max(1) as u64;
        let renew = Instant::now() + Duration::from_secs(life * 4 / 5);
        self.tokens.insert(key, Token { text: text.to_owned(), renew });
        Ok(text.as_bytes().to_vec())
    }
}

/// Puts a claim's folder where the pod looks for the volume.
fn claimed(shared: &Shared, pod: &Pod, claim: &str, place: &Path) -> Result<(), String> {
    if place.symlink_metadata().is_ok() {
        return Ok(());
    }
    let namespace = pod.namespace().unwrap_or_default();
    let found = shared.caches.claims.get(&namespace, claim);
    let found = found.ok_or_else(|| format!("persistentvolumeclaim \"{claim}\" not found"))?;
    let volume = found.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|_| claims::is_bound(&found));
    let volume = volume.ok_or_else(|| format!("PVC {namespace}/{claim} is not bound"))?;
    let folder = claims::folder(shared, volume);
    let put = place.parent().map_or(Ok(()), make).and_then(|()| make(&folder));
    let put = put.and_then(|()| std::os::unix::fs::symlink(&folder, place));
    put.map_err(|error| format!("cannot mount volume {volume}: {error}"))
}

/// Makes a container's root: its mounts as links to the volumes.
pub(crate) fn root(pod: &Pod, container: &Container, folder: &Path) -> io::Result<PathBuf> {
    let root = folder.join(&container.name);
    make(&root.join("tmp"))?;
    let mut mounts: Vec<(String, String, PathBuf)> = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let sub = inside(mount.sub_path.as_deref().unwrap_or(""));
        mounts.push((mount.mount_path.clone(), mount.name.clone(), sub));
    }
    let is_account = |(path, _, _): &(String, String, PathBuf)| inside(path) == inside(ACCOUNT);
    if mounts_account(pod) && !mounts.iter().any(is_account) {
        mounts.push((ACCOUNT.to_owned(), ACCOUNT_VOLUME.to_owned(), PathBuf::new()));
    }
    // Outer mounts first; one inside another would have to be made in somebody's volume, and is left out.
    mounts.sort_by_key(|(path, _, _)| inside(path).components().count());
    for (path, volume, sub) in mounts {
        let link = root.join(inside(&path));
        if link.symlink_metadata().is_ok() {
            continue;
        }
        if let Some(parent) = link.parent() {
            make(parent)?;
        }
        let target = folder.join("volumes").join(&volume).join(&sub);
        if !sub.as_os_str().is_empty() && !target.exists() {
            make(&target)?;
        }
        std::os::unix::fs::symlink(target, &link)?;
    }
    Ok(root)
}

fn mounts_account(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|s| s.automount_service_account_token != Some(false))
}

fn secret(
    shared: &Shared,
    namespace: &str,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
) -> Result<Files, String> {
    match shared.caches.secrets.get(namespace, name) {
        Some(found) => {
            let data = found.data.clone().unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
            select(data.collect(), items, optional).map_err(|key| format!("references non-existent secret key: {key}"))
        }
        None if optional == Some(true) => Ok(Files::new()),
        None => Err(format!("secret \"{name}\" not found")),
    }
}

fn config_map(
    shared: &Shared,
    namespace: &str,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
) -> Result<Files, String> {
    match shared.caches.configmaps.get(namespace, name) {
        Some(found) => {
            let text = found.data.clone().unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes()));
            let binary = found.binary_data.clone().unwrap_or_default().into_iter().map(|(k, v)| (k, v.0));
            select(text.chain(binary).collect(), items, optional)
                .map_err(|key| format!("references non-existent config key: {key}"))
        }
        None if optional == Some(true) => Ok(Files::new()),
        None => Err(format!("configmap \"{name}\" not found")),
    }
}

/// All keys under their names, or the named ones under their paths; the error is a key that is not there.
fn select(mut data: Files, items: Option<&[KeyToPath]>, optional: Option<bool>) -> Result<Files, String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else { return Ok(data) };
    let mut files = Files::new();
    for item in items {
        match data.remove(&item.key) {
            Some(content) => {
                files.insert(item.path.clone(), content);
            }
            None if optional == Some(true) => {}
            None => return Err(item.key.clone()),
        }
    }
    Ok(files)
}

fn downward<'a>(
    about: &About<'_>,
    items: impl Iterator<Item = &'a k8s_openapi::api::core::v1::DownwardAPIVolumeFile>,
) -> Result<Files, String> {
    let mut files = Files::new();
    for item in items {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(selector), _) => field(about, selector)?,
            (None, Some(selector)) => resource(about.pod, None, selector)?,
            (None, None) => continue,
        };
        files.insert(item.path.clone(), text.into_bytes());
    }
    Ok(files)
}

/// A path that stays inside whatever it is joined to.
fn inside(path: &str) -> PathBuf {
    let parts = Path::new(path).components().filter(|part| matches!(part, Component::Normal(_)));
    parts.collect()
}

fn make(folder: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Replaces a file as a whole, so that no reader sees half of it.
fn put(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::io::Write;
    if let Some(parent) = path.parent() {
        make(parent)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = path.with_file_name(name);
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(content)?;
    std::fs::rename(fresh, path)
}
