//! A container's environment, and the fields of a pod that it may name.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};
use kube::ResourceExt;

use crate::cluster::Shared;

/// What a pod knows of itself beyond its object.
pub(crate) struct About<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) ip: String,
    pub(crate) host_ip: String,
}

/// The environment of `container`.
///
/// # Errors
///
/// The name of a required key or object that is not there.
pub(crate) fn environment(
    shared: &Shared,
    about: &About<'_>,
    container: &Container,
) -> Result<BTreeMap<String, String>, String> {
    let api = shared.subnet.api_server();
    let mut env = BTreeMap::from([
        ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("HOSTNAME".to_owned(), about.pod.name_any()),
        ("HOME".to_owned(), "/".to_owned()),
        ("KUBERNETES_SERVICE_HOST".to_owned(), api.ip().to_string()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), api.port().to_string()),
        ("KUBERNETES_SERVICE_PORT_HTTPS".to_owned(), api.port().to_string()),
    ]);
    let namespace = about.pod.namespace().unwrap_or_default();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or("");
        if let Some(map) = &source.config_map_ref {
            match shared.caches.configmaps.get(&namespace, &map.name) {
                Some(found) => {
                    let data = found.data.clone().unwrap_or_default();
                    env.extend(data.into_iter().map(|(k, v)| (format!("{prefix}{k}"), v)));
                }
                None if map.optional == Some(true) => {}
                None => return Err(format!("configmap \"{}\" not found", map.name)),
            }
        }
        if let Some(secret) = &source.secret_ref {
            match shared.caches.secrets.get(&namespace, &secret.name) {
                Some(found) => {
                    let data = found.data.clone().unwrap_or_default();
                    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                    env.extend(data.into_iter().map(|(k, v)| (format!("{prefix}{k}"), text(v.0))));
                }
                None if secret.optional == Some(true) => {}
                None => return Err(format!("secret \"{}\" not found", secret.name)),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => Some(expand(value, &env)),
            (None, None) => Some(String::new()),
            (None, Some(from)) => {
                if let Some(selector) = &from.field_ref {
                    Some(field(about, selector)?)
                } else if let Some(selector) = &from.resource_field_ref {
                    Some(resource(about.pod, Some(container), selector)?)
                } else if let Some(key) = &from.config_map_key_ref {
                    let found = shared.caches.configmaps.get(&namespace, &key.name);
                    let value = found.and_then(|map| map.data.as_ref()?.get(&key.key).cloned());
                    if value.is_none() && key.optional != Some(true) {
                        return Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", key.key, key.name));
                    }
                    value
                } else if let Some(key) = &from.secret_key_ref {
                    let found = shared.caches.secrets.get(&namespace, &key.name);
                    let value = found.and_then(|secret| {
                        Some(String::from_utf8_lossy(&secret.data.as_ref()?.get(&key.key)?.0).into_owned())
                    });
                    if value.is_none() && key.optional != Some(true) {
                        return Err(format!("couldn't find key {} in Secret {namespace}/{}", key.key, key.name));
                    }
                    value
                } else {
                    None
                }
            }
        };
        if let Some(value) = value {
            env.insert(variable.name.clone(), value);
        }
    }
    Ok(env)
}

/// `$(NAME)` for what is known, `$$` for a dollar; anything else stands.
pub(crate) fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out += &rest[..at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match env.get(name) {
                Some(value) => out += value,
                None => out += &format!("$({name})"),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

/// A field of the pod.
pub(crate) fn field(about: &About<'_>, selector: &ObjectFieldSelector) -> Result<String, String> {
    let pod = about.pod;
    let path = selector.field_path.as_str();
    let keyed = |prefix: &str, map: &BTreeMap<String, String>| {
        let key = path.strip_prefix(prefix)?.strip_suffix("']")?;
        Some(map.get(key).cloned().unwrap_or_default())
    };
    let spec = pod.spec.as_ref();
    Ok(match path {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace().unwrap_or_default(),
        "metadata.uid" => pod.uid().unwrap_or_default(),
        "metadata.labels" => lines(pod.labels()),
        "metadata.annotations" => lines(pod.annotations()),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => {
            spec.and_then(|s| s.service_account_name.clone()).unwrap_or_else(|| "default".to_owned())
        }
        "status.podIP" | "status.podIPs" => about.ip.clone(),
        "status.hostIP" | "status.hostIPs" => about.host_ip.clone(),
        _ => keyed("metadata.labels['", pod.labels())
            .or_else(|| keyed("metadata.annotations['", pod.annotations()))
            .ok_or_else(|| format!("unsupported fieldPath: {path}"))?,
    })
}

/// `key="value"` lines, as the downward API writes maps.
fn lines(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<_> = map.iter().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    lines.join("\n")
}

fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out += "\\\"",
            '\\' => out += "\\\\",
            '\n' => out += "\\n",
            '\t' => out += "\\t",
            '\r' => out += "\\r",
            c => out.push(c),
        }
    }
    out + "\""
}

/// A container's limit or request, in units of the divisor, rounded up.
pub(crate) fn resource(
    pod: &Pod,
    container: Option<&Container>,
    selector: &ResourceFieldSelector,
) -> Result<String, String> {
    let named = selector.container_name.as_deref();
    let of = pod.spec.iter().flat_map(|s| &s.containers).find(|c| Some(c.name.as_str()) == named);
    let resources = of.or(container).and_then(|c| c.resources.clone()).unwrap_or_default();
    let (map, name) = match selector.resource.split_once('.') {
        Some(("limits", name)) => (resources.limits, name),
        Some(("requests", name)) => (resources.requests, name),
        _ => return Err(format!("unsupported resource: {}", selector.resource)),
    };
    // Without a limit it is what the node has.
    let node = if name == "cpu" {
        "2"
    } else if name == "memory" {
        "4Gi"
    } else {
        "0"
    };
    let value = map.and_then(|m| m.get(name).map(|q| q.0.clone())).unwrap_or_else(|| node.to_owned());
    let divisor = selector.divisor.as_ref().map(|q| quantity(&q.0)).filter(|d| *d > 0.0).unwrap_or(1.0);
    Ok(format!("{}", (quantity(&value) / divisor).ceil() as i64))
}

fn quantity(text: &str) -> f64 {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '-').unwrap_or(text.len());
    let number: f64 = text[..end].parse().unwrap_or(0.0);
    let factor = match &text[end..] {
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0_f64.powi(4),
        _ => 1.0,
    };
    number * factor
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "1", "b/c": "x\"y"}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}}}]},
        }))
        .unwrap()
    }

    #[test]
    fn fields() {
        let pod = pod();
        let about = About { pod: &pod, ip: "127.9.2.1".into(), host_ip: "127.9.1.1".into() };
        let table = [
            ("metadata.name", Ok("p")),
            ("metadata.labels", Ok("a=\"1\"\nb/c=\"x\\\"y\"")),
            ("metadata.labels['b/c']", Ok("x\"y")),
            ("metadata.annotations['none']", Ok("")),
            ("spec.serviceAccountName", Ok("default")),
            ("status.podIP", Ok("127.9.2.1")),
            ("status.phase", Err("unsupported fieldPath: status.phase".to_owned())),
        ];
        for (path, expected) in table {
            let selector = ObjectFieldSelector { field_path: path.to_owned(), ..Default::default() };
            assert_eq!(field(&about, &selector), expected.map(str::to_owned), "{path}");
        }
    }

    #[test]
    fn resources_and_expansion() {
        let pod = pod();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let get = |name: &str, divisor: Option<&str>| {
            let selector = ResourceFieldSelector {
                resource: name.to_owned(),
                divisor: divisor.map(|d| k8s_openapi::apimachinery::pkg::api::resource::Quantity(d.to_owned())),
                container_name: None,
            };
            resource(&pod, Some(container), &selector).unwrap()
        };
        assert_eq!(
            [
                get("limits.cpu", None),
                get("limits.cpu", Some("1m")),
                get("limits.memory", Some("1Mi")),
                get("requests.cpu", None)
            ],
            ["2", "1500", "64", "2"]
        );
        let env = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        assert_eq!(expand("$(A) $(B) $$(A) $A $", &env), "1 $(B) $(A) $A $");
    }
}
