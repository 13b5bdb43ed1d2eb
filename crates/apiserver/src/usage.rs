//! What nodes and pods use, in the words of the resource metrics API (`metrics.k8s.io/v1beta1`): what `kubectl top` asks.
//!
//! The figures are the [`PodRuntime`](crate::runtime::PodRuntime)'s. Where it measures nothing the group is not served.

use std::sync::Arc;

use http::Response;
use serde_json::{Value, json};
use stolos_k8s::selector::LabelSelector;

use crate::api::Api;
use crate::failure::{Failure, Result};
use crate::registry::Resource;
use crate::route::{self, Ask, Body, Form};
use crate::runtime::{Measured, Usage};
use crate::table;

/// The group.
pub(crate) const GROUP: &str = "metrics.k8s.io";
const VERSION: &str = "v1beta1";

/// The resources of the group.
pub(crate) fn resources() -> [Resource; 2] {
    [("NodeMetrics", "nodes", false), ("PodMetrics", "pods", true)].map(|(kind, plural, namespaced)| Resource {
        group: GROUP.into(),
        version: VERSION.into(),
        stored_group: GROUP.into(),
        stored_version: VERSION.into(),
        kind: kind.into(),
        list_kind: format!("{kind}List"),
        plural: plural.into(),
        singular: String::new(),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced,
        verbs: ["get", "list"].map(str::to_owned).into(),
        subresources: Vec::new(),
        storage: format!("{plural}.{GROUP}").into(),
        has_status: false,
        has_generation: false,
        custom: None,
    })
}

/// Answers a request for a resource of the group.
///
/// # Errors
///
/// When there is no such node or pod, or the verb is not get or list.
pub(crate) fn answer(api: &Arc<Api>, ask: &Ask) -> Result<Response<Body>> {
    if !matches!(ask.verb, "get" | "list") || !ask.target.sub.is_empty() {
        return Err(Failure::method_not_allowed());
    }
    let measured = api.runtime().and_then(|runtime| runtime.usage()).unwrap_or_default();
    let selector = LabelSelector::parse(ask.query.get("labelSelector").unwrap_or_default())
        .map_err(|error| Failure::bad_request(error.to_string()))?;
    let all = if ask.resource.namespaced { pods(api, &measured) } else { nodes(api, &measured) };
    let in_namespace = |object: &Value| {
        ask.target.namespace.is_empty() || object["metadata"]["namespace"] == ask.target.namespace.as_str()
    };
    let mut found: Vec<Value> =
        all.into_iter().filter(|object| in_namespace(object) && selector.matches_object(object)).collect();
    if ask.verb == "get" {
        found.retain(|object| object["metadata"]["name"] == ask.target.name.as_str());
        let Some(object) = found.pop() else {
            return Err(Failure::not_found(&ask.resource.storage, &ask.target.name));
        };
        return Ok(match ask.form()? {
            Form::Table(include) => route::json_value(200, &table::render(&ask.resource, &[&object], include, true)),
            _ => route::json_value(200, &object),
        });
    }
    if let Form::Table(include) = ask.form()? {
        let found: Vec<&Value> = found.iter().collect();
        return Ok(route::json_value(200, &table::render(&ask.resource, &found, include, true)));
    }
    let list = json!({"kind": ask.resource.list_kind, "apiVersion": ask.resource.api_version(), "metadata": {},
        "items": found});
    Ok(route::json_value(200, &list))
}

fn nodes(api: &Api, measured: &Measured) -> Vec<Value> {
    let of = |(name, usage): &(String, Usage)| {
        let labels = api.state.get("nodes", "", name)?.value["metadata"]["labels"].clone();
        let mut object = head("NodeMetrics", measured, json!({"name": name, "labels": labels}));
        object["usage"] = amounts(usage);
        Some(object)
    };
    measured.nodes.iter().filter_map(of).collect()
}

fn pods(api: &Api, measured: &Measured) -> Vec<Value> {
    let of = |pod: &crate::runtime::PodUsage| {
        let labels = api.state.get("pods", &pod.namespace, &pod.pod)?.value["metadata"]["labels"].clone();
        let metadata = json!({"name": pod.pod, "namespace": pod.namespace, "labels": labels});
        let mut object = head("PodMetrics", measured, metadata);
        let containers = pod.containers.iter().map(|(name, usage)| json!({"name": name, "usage": amounts(usage)}));
        object["containers"] = containers.collect();
        Some(object)
    };
    measured.pods.iter().filter_map(of).collect()
}

fn head(kind: &str, measured: &Measured, mut metadata: Value) -> Value {
    let at = crate::verb::seconds(measured.at);
    metadata["creationTimestamp"] = json!(at);
    let window = format!("{:.3}s", measured.window.as_secs_f64());
    json!({"kind": kind, "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": metadata, "timestamp": at,
        "window": window})
}

fn amounts(usage: &Usage) -> Value {
    let mut amounts = json!({"cpu": format!("{}n", usage.cpu_nanocores)});
    if let Some(bytes) = usage.memory_bytes {
        amounts["memory"] = json!(format!("{}Ki", bytes / 1024));
    }
    amounts
}
