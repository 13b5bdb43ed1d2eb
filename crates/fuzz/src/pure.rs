//! Parsers that need nothing but the bytes.

use serde_json::Value;
use stolos_k8s::{FieldSelector, LabelSelector, lists::Shape, patch, path::FieldSet};
use stolos_xds::Any;
use stolos_xds::message::{CLUSTER, ENDPOINT, LISTENER, ROUTE};

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// Label and field selectors as query parameters and as JSON; what is understood means the same when written again.
pub(crate) fn selector(bytes: &[u8]) {
    let text = text(bytes);
    let labels = [("app", "a"), ("tier", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    if let Ok(selector) = LabelSelector::parse(&text) {
        let again = LabelSelector::parse(&selector.to_string());
        assert_eq!(again.ok().map(|s| s.matches(&labels)), Some(selector.matches(&labels)), "{text}");
    }
    if let Ok(selector) = FieldSelector::parse(&text) {
        let _ = selector.matches(|field| field.to_owned());
    }
    if let Ok(value) = serde_json::from_str::<Value>(&text) {
        let _ = LabelSelector::from_value(&value).map(|selector| selector.matches(&labels));
    }
}

/// An object, a zero byte, a patch of any form for it.
pub(crate) fn patch(bytes: &[u8]) {
    let mut halves = bytes.splitn(2, |byte| *byte == 0);
    let (object, change) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
    let (Ok(object), Ok(change)) = (serde_json::from_slice::<Value>(object), serde_json::from_slice::<Value>(change))
    else {
        return;
    };
    let _ = patch::json(&object, &change);
    let merged = patch::merge(&object, &change);
    assert_eq!(patch::merge(&merged, &change), merged, "a merge patch is idempotent (RFC 7396)");
    for (version, kind) in [("v1", "Pod"), ("apps/v1", "Deployment"), ("v1", "Service"), ("example.com/v1", "Thing")] {
        let _ = patch::strategic(&object, &change, Shape::of(version, kind));
    }
}

/// `managedFields` as clients may send them.
pub(crate) fn field_set(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    let set = FieldSet::decode(&value);
    assert_eq!(FieldSet::decode(&set.encode()), set);
    let _ = set.paths();
}

/// Every kind of file that describes a mesh.
pub(crate) fn mesh_file(bytes: &[u8]) {
    let file = stolos_spec::SourceText::new("mesh.yaml", text(bytes));
    let _ = stolos_spec::recognise(&file);
    match stolos_spec::read(&file, None) {
        Ok(reading) => drop(stolos_spec::mesh_yaml(&reading.mesh)),
        Err(problems) => drop(problems.to_string()),
    }
    let topology = stolos_spec::SourceText::new("topology.yaml", "mesh_id: m\ncontexts:\n  a: {network: n}\n");
    let _ = stolos_spec::read(&topology, Some(&file));
}

/// A kubeconfig inside a remote secret.
pub(crate) fn kubeconfig(bytes: &[u8]) {
    let _ = futures::executor::block_on(stolos_cluster::from_kubeconfig_text(&text(bytes)));
}

/// Certificates, keys and requests as files and Secrets hold them.
pub(crate) fn certificate(bytes: &[u8]) {
    let _ = stolos_pki::Certificate::from_der(bytes.to_vec().into());
    let _ = stolos_pki::Certificate::from_pem(&text(bytes));
    let _ = stolos_pki::SpiffeId::parse(&text(bytes));
}

/// The first bytes of a connection to a proxy.
pub(crate) fn beginning(bytes: &[u8]) {
    stolos_proxy::fuzz::beginning(bytes);
}

/// Requests to a proxy over HTTP/1.1; the first byte is how they are cut up.
pub(crate) fn http(bytes: &[u8]) {
    stolos_proxy::fuzz::http(bytes);
}

/// Questions and answers about names.
pub(crate) fn dns(bytes: &[u8]) {
    stolos_proxy::fuzz::dns(bytes);
}

/// A discovery resource: the first byte chooses its type.
pub(crate) fn xds(bytes: &[u8]) {
    let Some((which, rest)) = bytes.split_first() else { return };
    let type_url = [CLUSTER, ENDPOINT, LISTENER, ROUTE][usize::from(*which) % 4];
    let resource = Any { type_url: type_url.to_owned(), value: rest.to_vec() };
    let _ = stolos_proxy::check(type_url, &resource);
}
