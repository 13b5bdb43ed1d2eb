//! A recorded world: objects as they were read from other clusters, in storage before anything starts.
//!
//! Nothing runs in it: no kubelet, no scheduler, no controller, none of the API server's own either. A pod that was running
//! is an object that says so. What was recorded keeps its UIDs, times and status, which no API would take; therefore it goes
//! to storage directly.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use stolos_apiserver::store::{Change, Key, Log, Store as _};
use stolos_k8s::meta;

use crate::Error;

/// Objects of clusters by the clusters' names.
pub type Recorded = Arc<BTreeMap<String, Vec<Value>>>;

/// Puts `objects` into the storage of an API server that has not started yet. One that holds objects already is left as
/// it is.
pub(crate) fn put(cluster: &str, folder: &Path, objects: &[Value]) -> Result<(), Error> {
    let failed = |reason: String| Error::Cluster { cluster: cluster.to_owned(), part: "the recorded objects", reason };
    crate::state::make(folder).map_err(|e| failed(e.to_string()))?;
    let mut log = Log::open(folder).map_err(|e| failed(e.to_string()))?;
    if !log.load().map_err(|e| failed(e.to_string()))?.objects.is_empty() {
        return Ok(());
    }
    let mut changes = BTreeMap::new();
    for object in objects {
        let Some(key) = key(object) else { continue };
        let place = (key.resource.to_string(), key.namespace.clone(), key.name.clone());
        changes.insert(place, (key, stored(object)));
    }
    // Revision 1 is nobody's.
    let changes: Vec<_> = changes
        .into_values()
        .zip(2..)
        .map(|((key, value), revision)| Change { key, revision, value: Some(value.to_string().into()) })
        .collect();
    for some in changes.chunks(512) {
        log.append(some).map_err(|e| failed(e.to_string()))?;
    }
    Ok(())
}

/// Where the API server keeps an object; `None` for what it makes itself, and for what is none.
fn key(object: &Value) -> Option<Key> {
    let (api_version, kind) = (object["apiVersion"].as_str()?, object["kind"].as_str()?);
    let (namespace, name) = (meta::namespace(object), meta::name(object));
    let of_the_server = matches!(kind, "Service" | "Endpoints" | "EndpointSlice") && namespace == "default";
    if name.is_empty() || kind == "ServiceCIDR" || (of_the_server && name == "kubernetes") {
        return None;
    }
    let plural = match stolos_k8s::kind::find_kind(api_version, kind) {
        Some(known) => known.plural.to_owned(),
        None => {
            let lower = kind.to_lowercase();
            match lower.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'o'])) {
                Some(stem) => format!("{stem}ies"),
                None => format!("{lower}s"),
            }
        }
    };
    let resource = match api_version.split_once('/') {
        Some((group, _)) => format!("{plural}.{group}"),
        None => plural,
    };
    Some(Key { resource: resource.into(), namespace: namespace.to_owned(), name: name.to_owned() })
}

/// An object as it is stored. What stands for a secret in it stays, unless the object would be none with it.
fn stored(object: &Value) -> Value {
    let mut object = object.clone();
    meta::metadata_mut(&mut object).remove("resourceVersion");
    if object["kind"] != "Secret" {
        return object;
    }
    let of_type = object["type"].as_str().unwrap_or_default().to_owned();
    for (key, value) in object.get_mut("data").and_then(Value::as_object_mut).into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        let stand_in = match (of_type.as_str(), key.as_str()) {
            ("kubernetes.io/dockerconfigjson", ".dockerconfigjson") => Some(json!({"auths": {}}).to_string()),
            ("kubernetes.io/dockercfg", ".dockercfg") => Some("{}".to_owned()),
            _ => STANDARD.decode(text).is_err().then(|| text.to_owned()),
        };
        if let Some(stand_in) = stand_in {
            *value = STANDARD.encode(stand_in).into();
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_have_their_places() {
        let place = |api_version: &str, kind: &str, namespace: &str, name: &str| {
            let object =
                json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": namespace}});
            key(&object).map(|key| format!("{}/{}/{}", key.resource, key.namespace, key.name))
        };
        for (object, expected) in [
            (("v1", "Pod", "shop", "web-0"), Some("pods/shop/web-0")),
            (("apps/v1", "Deployment", "shop", "web"), Some("deployments.apps/shop/web")),
            (
                ("networking.istio.io/v1", "Gateway", "istio-system", "g"),
                Some("gateways.networking.istio.io/istio-system/g"),
            ),
            (
                ("gateway.networking.k8s.io/v1", "Gateway", "shop", "g"),
                Some("gateways.gateway.networking.k8s.io/shop/g"),
            ),
            (
                ("networking.istio.io/v1", "ServiceEntry", "shop", "s"),
                Some("serviceentries.networking.istio.io/shop/s"),
            ),
            (("v1", "Service", "default", "kubernetes"), None),
            (("networking.k8s.io/v1", "ServiceCIDR", "", "kubernetes"), None),
            (("v1", "Pod", "shop", ""), None),
        ] {
            let (api_version, kind, namespace, name) = object;
            assert_eq!(place(api_version, kind, namespace, name).as_deref(), expected, "{object:?}");
        }
    }

    #[test]
    fn secrets_stay_secrets() {
        let secret = |of_type: &str, data: Value| {
            stored(&json!({"kind": "Secret", "type": of_type, "data": data}))["data"].clone()
        };
        let mark = STANDARD.encode("redacted-token-9-0123456789ab");
        assert_eq!(secret("Opaque", json!({"token": mark})), json!({"token": mark}));
        assert_eq!(secret("Opaque", json!({"x": "redacted-x"})), json!({"x": STANDARD.encode("redacted-x")}));
        let docker = secret("kubernetes.io/dockerconfigjson", json!({".dockerconfigjson": mark}));
        assert_eq!(docker[".dockerconfigjson"], STANDARD.encode(r#"{"auths":{}}"#));
    }
}
