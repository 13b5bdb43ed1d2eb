//! Objects as rows, for people: what `kubectl get` prints.

mod built_in;
mod cells;
mod path;

use serde_json::{Value, json};
use stolos_k8s::meta;

use crate::registry::Resource;
use crate::route::metadata_of;

/// How much of an object goes with its row (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

/// A `meta.k8s.io/v1 Table` of objects; the definitions of columns may be left out of all but the first.
#[must_use]
pub(crate) fn render(resource: &Resource, objects: &[&Value], include: Include, definitions: bool) -> Value {
    let now = jiff::Timestamp::now();
    let columns = columns(resource);
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let cells: Vec<Value> = columns.iter().map(|column| column.value(object, now)).collect();
            let mut row = json!({"cells": cells});
            match include {
                Include::None => row["object"] = Value::Null,
                Include::Metadata => row["object"] = metadata_of(object),
                Include::Object => row["object"] = in_version(resource, object),
            }
            if let Some(conditions) = built_in::conditions(resource, object) {
                row["conditions"] = conditions;
            }
            row
        })
        .collect();
    let heads = columns.iter().map(|column| {
        json!({"name": column.name, "type": column.kind, "format": column.format, "description": column.name,
            "priority": column.priority})
    });
    let version = objects.last().map(|object| object["metadata"]["resourceVersion"].clone());
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": version.unwrap_or_default()},
        "columnDefinitions": if definitions { heads.collect() } else { Vec::new() }, "rows": rows})
}

fn in_version(resource: &Resource, object: &Value) -> Value {
    let mut object = object.clone();
    crate::convert::from_stored(resource, &mut object);
    object
}

/// A column: its head, and how its cells are made.
struct Column {
    name: String,
    kind: String,
    format: String,
    priority: i64,
    source: Source,
}

enum Source {
    Built(built_in::Cell),
    /// The value at a path, as its column's type.
    Path(String),
}

impl Column {
    fn built((name, kind, priority, cell): &built_in::Column) -> Self {
        let format = if *name == "Name" { "name" } else { "" };
        let source = Source::Built(*cell);
        Self { name: (*name).into(), kind: (*kind).into(), format: format.into(), priority: *priority, source }
    }

    fn value(&self, object: &Value, now: jiff::Timestamp) -> Value {
        match &self.source {
            Source::Built(cell) => cell(object, now),
            Source::Path(path) => path::look(object, path).map_or(Value::Null, |found| typed(&self.kind, found, now)),
        }
    }
}

/// A found value as a cell of a type. What does not fit is empty.
fn typed(kind: &str, found: &Value, now: jiff::Timestamp) -> Value {
    match (kind, found) {
        ("string", Value::String(_)) | ("boolean", Value::Bool(_)) | ("number", Value::Number(_)) => found.clone(),
        ("string", Value::Null) => Value::Null,
        ("string", other) => json!(other.to_string()),
        ("integer", Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => json!(number),
            #[expect(clippy::cast_possible_truncation, reason = "as Kubernetes does")]
            (None, Some(number)) => json!(number as i64),
            (None, None) => Value::Null,
        },
        ("date", Value::String(at)) => {
            at.parse().map_or_else(|_| json!("<invalid>"), |at| json!(cells::duration(now, at)))
        }
        _ => Value::Null,
    }
}

fn columns(resource: &Resource) -> Vec<Column> {
    let name: built_in::Column = ("Name", "string", 0, |object, _| json!(meta::name(object)));
    let Some(custom) = &resource.custom else {
        return built_in::columns(&resource.storage, &name).iter().map(Column::built).collect();
    };
    let mut columns = vec![Column::built(&name)];
    if custom.columns.is_empty() {
        columns.push(Column::built(&("Age", "date", 0, cells::age)));
    }
    columns.extend(custom.columns.iter().map(|column| {
        let text = |field: &str| column[field].as_str().unwrap_or_default().to_owned();
        let priority = column["priority"].as_i64().unwrap_or(0);
        let source = Source::Path(text("jsonPath"));
        Column { name: text("name"), kind: text("type"), format: text("format"), priority, source }
    }));
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn custom_columns_have_the_types_they_say() {
        let now = jiff::Timestamp::from_second(1_000_000_000).unwrap();
        let cases = [
            ("string", json!("a"), json!("a")),
            ("string", json!(["a", "b"]), json!("[\"a\",\"b\"]")),
            ("string", json!(true), json!("true")),
            ("integer", json!(3), json!(3)),
            ("integer", json!(3.7), json!(3)),
            ("integer", json!("3"), Value::Null),
            ("number", json!(1.5), json!(1.5)),
            ("boolean", json!("true"), Value::Null),
            ("date", json!("2001-09-09T01:45:40Z"), json!("60s")),
            ("date", json!("soon"), json!("<invalid>")),
        ];
        for (kind, found, cell) in cases {
            assert_eq!(typed(kind, &found, now), cell, "{kind} {found}");
        }
    }

    #[test]
    fn every_kind_has_its_columns() {
        let table = crate::registry::Registry::new([]).table();
        let mut said = Vec::new();
        for resource in table.stored() {
            let rendered = render(&resource, &[&json!({"metadata": {"name": "a"}})], Include::None, true);
            let columns = rendered["columnDefinitions"].as_array().unwrap();
            assert_eq!(columns.len(), rendered["rows"][0]["cells"].as_array().unwrap().len());
            let shown = columns.iter().map(|column| {
                let wide = if column["priority"] == 0 { "" } else { "+" };
                format!("{wide}{}", column["name"].as_str().unwrap())
            });
            said.push(format!("{}: {}", resource.storage, shown.collect::<Vec<_>>().join(", ")));
        }
        insta::assert_snapshot!(said.join("\n"), @r#"
        apiservices.apiregistration.k8s.io: Name, Service, Available, Age
        clusterrolebindings.rbac.authorization.k8s.io: Name, Role, Age, +Users, +Groups, +ServiceAccounts
        clusterroles.rbac.authorization.k8s.io: Name, Created At
        configmaps: Name, Data, Age
        controllerrevisions.apps: Name, Controller, Revision, Age
        cronjobs.batch: Name, Schedule, Timezone, Suspend, Active, Last Schedule, Age, +Containers, +Images, +Selector
        customresourcedefinitions.apiextensions.k8s.io: Name, Created At
        daemonsets.apps: Name, Desired, Current, Ready, Up-to-date, Available, Node Selector, Age, +Containers, +Images, +Selector
        deployments.apps: Name, Ready, Up-to-date, Available, Age, +Containers, +Images, +Selector
        endpoints: Name, Endpoints, Age
        endpointslices.discovery.k8s.io: Name, AddressType, Ports, Endpoints, Age
        events: Last Seen, Type, Reason, Object, +Subobject, +Source, Message, +First Seen, +Count, +Name
        horizontalpodautoscalers.autoscaling: Name, Reference, Targets, MinPods, MaxPods, Replicas, Age
        ingressclasses.networking.k8s.io: Name, Controller, Parameters, Age
        ingresses.networking.k8s.io: Name, Class, Hosts, Address, Ports, Age
        jobs.batch: Name, Status, Completions, Duration, Age, +Containers, +Images, +Selector
        leases.coordination.k8s.io: Name, Holder, Age
        limitranges: Name, Created At
        mutatingwebhookconfigurations.admissionregistration.k8s.io: Name, Webhooks, Age
        namespaces: Name, Status, Age
        networkpolicies.networking.k8s.io: Name, Pod-Selector, Age
        nodes: Name, Status, Roles, Age, Version, +Internal-IP, +External-IP, +OS-Image, +Kernel-Version, +Container-Runtime
        persistentvolumeclaims: Name, Status, Volume, Capacity, Access Modes, StorageClass, VolumeAttributesClass, Age, +VolumeMode
        persistentvolumes: Name, Capacity, Access Modes, Reclaim Policy, Status, Claim, StorageClass, VolumeAttributesClass, Reason, Age, +VolumeMode
        poddisruptionbudgets.policy: Name, Min Available, Max Unavailable, Allowed Disruptions, Age
        pods: Name, Ready, Status, Restarts, Age, +IP, +Node, +Nominated Node, +Readiness Gates
        podtemplates: Name, Containers, Images, Pod Labels
        priorityclasses.scheduling.k8s.io: Name, Value, Global-Default, Age, PreemptionPolicy
        replicasets.apps: Name, Desired, Current, Ready, Age, +Containers, +Images, +Selector
        replicationcontrollers: Name, Desired, Current, Ready, Age, +Containers, +Images, +Selector
        resourcequotas: Name, Request, Limit, Age
        rolebindings.rbac.authorization.k8s.io: Name, Role, Age, +Users, +Groups, +ServiceAccounts
        roles.rbac.authorization.k8s.io: Name, Created At
        secrets: Name, Type, Data, Age
        serviceaccounts: Name, Secrets, Age
        services: Name, Type, Cluster-IP, External-IP, Port(s), Age, +Selector
        statefulsets.apps: Name, Ready, Age, +Containers, +Images
        storageclasses.storage.k8s.io: Name, Provisioner, ReclaimPolicy, VolumeBindingMode, AllowVolumeExpansion, Age
        validatingwebhookconfigurations.admissionregistration.k8s.io: Name, Webhooks, Age
        "#);
    }
}
