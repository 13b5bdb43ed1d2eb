//! What an object must be, beyond its shape. Pure but for the settings of the server.

mod pod;
mod workload;

use std::collections::HashSet;
use std::net::IpAddr;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, json};
use stolos_k8s::meta;
use stolos_k8s::schema::builtin;

use crate::api::Api;
use crate::cel;
use crate::defaults;
use crate::failure::{Cause, Failure, Result};
use crate::registry::Resource;
use crate::warning;

/// Reads an object as what it claims to be: every field has its type (a boolean label is a 400, as on Kubernetes), and
/// fields that its kind does not have are cut off and named. Of a custom resource that is only its metadata.
///
/// # Errors
///
/// When a field is of another type.
pub(crate) fn read(resource: &Resource, object: &mut Value) -> Result<Vec<String>> {
    let types = builtin::types();
    let read = match types.of_kind(&resource.group, &resource.version, &resource.kind) {
        Some(definition) if resource.custom.is_none() => builtin::read(definition, object),
        _ => builtin::read_metadata(object),
    };
    read.map_err(|error| {
        let (kind, version) = (&resource.kind, &resource.version);
        Failure::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {error}"))
    })
}

/// Reads JSON, and names the fields that are there twice: `duplicate field "spec.replicas"`. The last one counts.
///
/// # Errors
///
/// When it is no JSON.
pub(crate) fn read_json(body: &[u8]) -> serde_json::Result<(Value, Vec<String>)> {
    let mut found = Vec::new();
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = DeserializeSeed::deserialize(Json { path: &Path::Root, found: &mut found }, &mut reader)?;
    reader.end()?;
    Ok((value, found))
}

/// The most that is said of one body, as in Kubernetes.
const MOST_DOUBTS: usize = 100;

enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(up, name) => write!(f, "{up}.{name}"),
            Path::Index(up, index) => write!(f, "{up}[{index}]"),
        }
    }
}

/// Reads any value, and keeps the names of fields that come twice.
struct Json<'a> {
    path: &'a Path<'a>,
    found: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Json<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Json<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        loop {
            let path = Path::Index(self.path, all.len());
            match list.next_element_seed(Json { path: &path, found: self.found })? {
                Some(item) => all.push(item),
                None => return Ok(all.into()),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut all = serde_json::Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let path = Path::Field(self.path, &name);
            if all.contains_key(&name) && self.found.len() < MOST_DOUBTS {
                let said = format!("duplicate field {:?}", path.to_string());
                if !self.found.contains(&said) {
                    self.found.push(said);
                }
            }
            let value = map.next_value_seed(Json { path: &path, found: self.found })?;
            all.insert(name, value);
        }
        Ok(all.into())
    }
}

/// Everything wrong with an object; nothing if it may be stored.
#[must_use]
pub(crate) fn check(api: &Api, resource: &Resource, before: Option<&Value>, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    check_metadata(resource, before, object, &mut causes);
    if let Some(custom) = &resource.custom {
        let known = causes.len();
        if let Some(schema) = &custom.schema {
            causes.extend(schema.validate(object));
        }
        if let Some(rules) = custom.rules.get() {
            if causes.len() > known {
                // Rules count on the types that the schema declares.
                let message = "some validation rules were not checked because the object was invalid; correct the \
                               existing errors to complete validation";
                causes.push(Cause::invalid("<nil>", &Value::Null, message));
            } else {
                let verdict = rules.judge(object, before);
                causes.extend(verdict.causes);
                verdict.warnings.into_iter().for_each(warning::add);
            }
        }
        return causes;
    }
    let spec = &object["spec"];
    match &*resource.storage {
        "pods" => {
            pod::check_spec("spec", spec, &mut causes);
            if let Some(before) = before {
                check_pod_update(before, object, &mut causes);
            }
        }
        "deployments.apps" | "replicasets.apps" | "statefulsets.apps" | "daemonsets.apps" => {
            workload::check(resource, before, spec, &mut causes);
        }
        "replicationcontrollers" => workload::check_replication(spec, &mut causes),
        "jobs.batch" => workload::check_job("spec", before.map(|before| &before["spec"]), spec, &mut causes),
        "cronjobs.batch" => workload::check_cron_job(spec, &mut causes),
        "poddisruptionbudgets.policy" => workload::check_budget(spec, &mut causes),
        "horizontalpodautoscalers.autoscaling" => workload::check_scaler(spec, &mut causes),
        "ingresses.networking.k8s.io" => workload::check_ingress(spec, &mut causes),
        "clusterroles.rbac.authorization.k8s.io" | "roles.rbac.authorization.k8s.io" => {
            check_rules(resource.namespaced, object, &mut causes);
        }
        "services" => check_service(before, spec, &mut causes),
        "endpoints" if !api.settings.allow_loopback_endpoints => {
            for subset in object["subsets"].as_array().into_iter().flatten() {
                for address in subset["addresses"].as_array().into_iter().flatten() {
                    check_endpoint("subsets[0].addresses[0].ip", &address["ip"], &mut causes);
                }
            }
        }
        "endpointslices.discovery.k8s.io" => {
            check_endpoint_slice(api.settings.allow_loopback_endpoints, before, object, &mut causes);
        }
        "secrets" => check_secret(before, object, &mut causes),
        "configmaps" => {
            check_keys(object, &mut causes);
            check_immutable_data(before, object, &mut causes);
        }
        "customresourcedefinitions.apiextensions.k8s.io" => check_crd(before, object, &mut causes),
        "clusterrolebindings.rbac.authorization.k8s.io" | "rolebindings.rbac.authorization.k8s.io" => {
            if before.is_some_and(|before| before["roleRef"] != object["roleRef"]) {
                causes.push(Cause::invalid("roleRef", &object["roleRef"], "cannot change roleRef"));
            }
            if object["roleRef"]["name"].as_str().unwrap_or_default().is_empty() {
                causes.push(Cause::required("roleRef.name", ""));
            }
        }
        "mutatingwebhookconfigurations.admissionregistration.k8s.io"
        | "validatingwebhookconfigurations.admissionregistration.k8s.io" => check_webhooks(object, &mut causes),
        storage => check_small(storage, before, object, &mut causes),
    }
    causes
}

/// The most bytes of all annotations of an object.
const MOST_ANNOTATIONS: usize = 256 << 10;

fn check_metadata(resource: &Resource, before: Option<&Value>, object: &Value, causes: &mut Vec<Cause>) {
    let name = meta::name(object);
    if before.is_none() {
        for message in meta::check_name(&resource.group, &resource.kind, name) {
            causes.push(Cause::invalid("metadata.name", &json!(name), &message));
        }
    }
    for (key, value) in object["metadata"]["labels"].as_object().into_iter().flatten() {
        for message in meta::check_qualified_name(key) {
            causes.push(Cause::invalid("metadata.labels", &json!(key), &message));
        }
        let value = value.as_str().unwrap_or_default();
        for message in meta::check_label_value(value) {
            causes.push(Cause::invalid("metadata.labels", &json!(value), &message));
        }
    }
    for key in object["metadata"]["annotations"].as_object().into_iter().flatten().map(|(key, _)| key) {
        for message in meta::check_qualified_name(&key.to_lowercase()) {
            causes.push(Cause::invalid("metadata.annotations", &json!(key), &message));
        }
    }
    let annotations = object["metadata"]["annotations"].as_object().into_iter().flatten();
    if annotations.map(|(key, value)| key.len() + text(value).len()).sum::<usize>() > MOST_ANNOTATIONS {
        let field = "metadata.annotations";
        causes.push(Cause::from(stolos_k8s::FieldError::too_long(field, MOST_ANNOTATIONS as u64)));
    }
    for (index, owner) in object["metadata"]["ownerReferences"].as_array().into_iter().flatten().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                causes.push(Cause::required(format!("metadata.ownerReferences[{index}].{field}"), ""));
            }
        }
    }
    check_managed_fields(&object["metadata"]["managedFields"], causes);
    if let Some(before) = before
        && meta::deletion_timestamp(before).is_some()
    {
        let known = meta::finalizers(before);
        for added in meta::finalizers(object).into_iter().filter(|f| !known.contains(f)) {
            let message =
                format!("no new finalizers can be added if the object is being deleted, found new finalizer {added:?}");
            causes.push(Cause::forbidden("metadata.finalizers", &message));
        }
    }
}

/// Books that a client sends have to be books; `[{}]` closes them.
fn check_managed_fields(entries: &Value, causes: &mut Vec<Cause>) {
    let entries = entries.as_array().map(Vec::as_slice).unwrap_or_default();
    if entries.len() == 1 && entries[0] == json!({}) {
        return;
    }
    for (index, entry) in entries.iter().enumerate() {
        let at = format!("metadata.managedFields[{index}]");
        if !matches!(entry["operation"].as_str(), Some("Apply" | "Update")) {
            let given = json!(entry["operation"].as_str().unwrap_or_default());
            causes.push(Cause::invalid(format!("{at}.operation"), &given, "must be `Apply` or `Update`"));
        }
        if !matches!(entry["fieldsType"].as_str(), None | Some("" | "FieldsV1")) {
            causes.push(Cause::invalid(format!("{at}.fieldsType"), &entry["fieldsType"], "must be `FieldsV1`"));
        }
        for (field, most) in [("manager", 128), ("subresource", 256)] {
            if entry[field].as_str().is_some_and(|text| text.len() > most) {
                let message = format!("Too long: may not be more than {most} bytes");
                causes.push(Cause { field: format!("{at}.{field}"), reason: "FieldValueTooLong".into(), message });
            }
        }
    }
}

/// Of a pod's spec only images, the deadline, tolerations and the node (once) may change.
fn check_pod_update(before: &Value, object: &Value, causes: &mut Vec<Cause>) {
    let essence = |pod: &Value| {
        let mut spec = pod["spec"].clone();
        for list in ["containers", "initContainers"] {
            for container in defaults::items(&mut spec, &format!("/{list}")) {
                if let Some(map) = container.as_object_mut() {
                    map.remove("image");
                    map.remove("resources");
                }
            }
        }
        if let Some(map) = spec.as_object_mut() {
            let free = [
                "activeDeadlineSeconds",
                "tolerations",
                "ephemeralContainers",
                "schedulingGates",
                "terminationGracePeriodSeconds",
            ];
            map.retain(|key, value| !free.contains(&key.as_str()) && !value.is_null());
        }
        spec
    };
    let (mut old, new) = (essence(before), essence(object));
    if old["nodeName"].as_str().unwrap_or_default().is_empty()
        && let Some(node) = new.get("nodeName")
    {
        old["nodeName"] = node.clone();
    }
    if let Some(map) = old.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
    if old != new {
        causes.push(Cause::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`, `spec.initContainers[*].image`, \
             `spec.activeDeadlineSeconds`, `spec.tolerations` (only additions to existing tolerations), \
             `spec.terminationGracePeriodSeconds`",
        ));
    }
}

fn check_service(before: Option<&Value>, spec: &Value, causes: &mut Vec<Cause>) {
    let kind = text(&spec["type"]);
    choice("spec.type".into(), &spec["type"], &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], causes);
    choice("spec.sessionAffinity".into(), &spec["sessionAffinity"], &["ClientIP", "None"], causes);
    for field in ["externalTrafficPolicy", "internalTrafficPolicy"] {
        if !spec[field].is_null() {
            choice(format!("spec.{field}"), &spec[field], &["Cluster", "Local"], causes);
        }
    }
    if kind == "ExternalName" {
        if text(&spec["externalName"]).is_empty() {
            causes.push(Cause::required("spec.externalName", ""));
        }
        for message in meta::check_subdomain(text(&spec["externalName"]).trim_end_matches('.')) {
            causes.push(Cause::invalid("spec.externalName", &spec["externalName"], &message));
        }
    }
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    if ports.is_empty() && kind != "ExternalName" && spec["clusterIP"] != "None" {
        causes.push(Cause::required("spec.ports", ""));
    }
    let (mut names, mut numbers, mut nodes) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (index, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{index}]");
        let name = text(&port["name"]);
        if name.is_empty() {
            if ports.len() > 1 {
                causes.push(Cause::required(format!("{at}.name"), ""));
            }
        } else {
            for message in meta::check_label(name) {
                causes.push(Cause::invalid(format!("{at}.name"), &port["name"], &message));
            }
            if !names.insert(name) {
                causes.push(duplicate(format!("{at}.name"), &port["name"]));
            }
        }
        port_number(format!("{at}.port"), &port["port"], causes);
        choice(format!("{at}.protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"], causes);
        if port["targetPort"].is_number() {
            port_number(format!("{at}.targetPort"), &port["targetPort"], causes);
        }
        let (number, protocol) = (port["port"].as_i64(), text(&port["protocol"]));
        if !numbers.insert((number, protocol)) {
            causes.push(duplicate(at.clone(), &json!({"port": number, "protocol": protocol})));
        }
        if let Some(node) = port["nodePort"].as_i64().filter(|node| *node != 0) {
            if matches!(kind, "ClusterIP" | "ExternalName") {
                let message = format!("may not be used when `type` is '{kind}'");
                causes.push(Cause::forbidden(format!("{at}.nodePort"), &message));
            } else if !nodes.insert((node, protocol)) {
                causes.push(duplicate(format!("{at}.nodePort"), &port["nodePort"]));
            }
        }
    }
    if let Some(before) = before {
        let old = before["spec"]["clusterIP"].as_str().unwrap_or_default();
        let new = spec["clusterIP"].as_str().unwrap_or_default();
        let external = kind == "ExternalName" || before["spec"]["type"] == "ExternalName";
        if !old.is_empty() && !new.is_empty() && old != new && !external {
            causes.push(Cause::invalid("spec.clusterIPs[0]", &json!([new]), "may not change once set"));
        }
    }
}

/// The entries of a list, none where it is not there.
fn items(value: &Value) -> std::slice::Iter<'_, Value> {
    value.as_array().map_or([].iter(), |list| list.iter())
}

/// A text, empty where there is none.
fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A field that must be one of some words.
fn choice(at: String, value: &Value, choices: &[&str], causes: &mut Vec<Cause>) {
    match text(value) {
        "" => causes.push(Cause::required(at, "")),
        given if choices.contains(&given) => {}
        _ => {
            let choices: Vec<Value> = choices.iter().map(|choice| json!(choice)).collect();
            causes.push(Cause::from(stolos_k8s::FieldError::not_supported(at, value.clone(), &choices)));
        }
    }
}

fn port_number(at: String, value: &Value, causes: &mut Vec<Cause>) {
    if !value.as_i64().is_some_and(|port| (1..=65535).contains(&port)) {
        let shown = if value.is_null() { json!(0) } else { value.clone() };
        causes.push(Cause::invalid(at, &shown, "must be between 1 and 65535, inclusive"));
    }
}

fn duplicate(at: impl Into<String>, value: &Value) -> Cause {
    Cause { field: at.into(), reason: "FieldValueDuplicate".into(), message: format!("Duplicate value: {value}") }
}

fn not_found(at: impl Into<String>, value: &Value) -> Cause {
    Cause { field: at.into(), reason: "FieldValueNotFound".into(), message: format!("Not found: {value}") }
}

/// Keys of ConfigMaps and Secrets, and how much they hold.
fn check_keys(object: &Value, causes: &mut Vec<Cause>) {
    /// Of a ConfigMap or Secret.
    const MOST: usize = 1 << 20;
    let mut size = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in object[field].as_object().into_iter().flatten() {
            let plain = object["kind"] == "ConfigMap" && field == "data";
            size += if plain { text(value).len() } else { text(value).len() / 4 * 3 };
            let at = format!("{field}[{key}]");
            if key.len() > 253 {
                causes.push(Cause::invalid(at.clone(), &json!(key), "must be no more than 253 characters"));
            }
            if key.is_empty() || !key.bytes().all(|l| l.is_ascii_alphanumeric() || b"-_.".contains(&l)) {
                let message = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
                               'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is \
                               '[-._a-zA-Z0-9]+')";
                causes.push(Cause::invalid(at, &json!(key), message));
            } else if matches!(key.as_str(), "." | "..") {
                causes.push(Cause::invalid(at, &json!(key), &format!("must not be '{key}'")));
            }
        }
    }
    if size > MOST {
        let field = if object["kind"] == "Secret" { "data" } else { "[]" };
        causes.push(Cause::from(stolos_k8s::FieldError::too_long(field, MOST as u64)));
    }
}

/// Rules of roles.
fn check_rules(namespaced: bool, object: &Value, causes: &mut Vec<Cause>) {
    for (index, rule) in items(&object["rules"]).enumerate() {
        let at = format!("rules[{index}]");
        let none = |field: &str| items(&rule[field]).len() == 0;
        if none("verbs") {
            causes.push(Cause::required(format!("{at}.verbs"), "verbs must contain at least one value"));
        }
        if !none("nonResourceURLs") {
            if namespaced {
                let message = "namespaced rules cannot apply to non-resource URLs";
                causes.push(Cause::invalid(format!("{at}.nonResourceURLs"), &rule["nonResourceURLs"], message));
            }
            if !none("apiGroups") || !none("resources") || !none("resourceNames") {
                let message = "rules cannot apply to both regular resources and non-resource URLs";
                causes.push(Cause::invalid(format!("{at}.nonResourceURLs"), &rule["nonResourceURLs"], message));
            }
            continue;
        }
        if none("apiGroups") {
            causes
                .push(Cause::required(format!("{at}.apiGroups"), "resource rules must supply at least one api group"));
        }
        if none("resources") {
            causes.push(Cause::required(format!("{at}.resources"), "resource rules must supply at least one resource"));
        }
    }
}

/// Kinds of which only a few fields must be right, or must stay as they were.
fn check_small(storage: &str, before: Option<&Value>, object: &Value, causes: &mut Vec<Cause>) {
    let mut needs = |field: &str, pointer: &str, detail: &str| {
        let found = object.pointer(pointer).unwrap_or(&Value::Null);
        let empty = match found {
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            other => other.is_null(),
        };
        if empty {
            causes.push(Cause::required(field, detail));
        }
    };
    match storage {
        "persistentvolumeclaims" => {
            needs("spec.accessModes", "/spec/accessModes", "at least 1 access mode is required");
            needs("spec.resources[storage]", "/spec/resources/requests/storage", "");
        }
        "persistentvolumes" => {
            needs("spec.capacity", "/spec/capacity", "");
            needs("spec.accessModes", "/spec/accessModes", "");
        }
        "storageclasses.storage.k8s.io" => needs("provisioner", "/provisioner", ""),
        "ingressclasses.networking.k8s.io" => needs("spec.controller", "/spec/controller", ""),
        _ => {}
    }
    let Some(before) = before else { return };
    let mut stays = |fields: &[&str], words: &dyn Fn(&str) -> String| {
        for field in fields {
            if before[*field] != object[*field] {
                causes.push(Cause::forbidden(*field, &words(field)));
            }
        }
    };
    match storage {
        "storageclasses.storage.k8s.io" => {
            stays(&["parameters", "provisioner", "reclaimPolicy"], &|field| {
                format!("updates to {field} are forbidden.")
            });
        }
        "priorityclasses.scheduling.k8s.io" => {
            stays(&["value", "preemptionPolicy"], &|_| "may not be changed in an update.".into());
        }
        _ => {}
    }
}

fn check_endpoint(at: &str, ip: &Value, causes: &mut Vec<Cause>) {
    let Ok(parsed) = ip.as_str().unwrap_or_default().parse::<IpAddr>() else {
        causes.push(Cause::invalid(at, ip, "must be a valid IP address"));
        return;
    };
    if parsed.is_loopback() {
        causes.push(Cause::invalid(at, ip, "may not be in the loopback range (127.0.0.0/8, ::1/128)"));
    }
    if parsed.is_unspecified() {
        causes.push(Cause::invalid(at, ip, "may not be unspecified (0.0.0.0 or ::)"));
    }
}

fn check_endpoint_slice(loopback: bool, before: Option<&Value>, object: &Value, causes: &mut Vec<Cause>) {
    let kind = object["addressType"].as_str().unwrap_or_default();
    if !matches!(kind, "IPv4" | "IPv6" | "FQDN") {
        causes.push(Cause::required("addressType", ""));
    }
    if before.is_some_and(|before| before["addressType"] != object["addressType"]) {
        causes.push(Cause::invalid("addressType", &object["addressType"], "field is immutable"));
    }
    for (index, endpoint) in object["endpoints"].as_array().into_iter().flatten().enumerate() {
        let addresses = endpoint["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
        if addresses.is_empty() {
            causes.push(Cause::required(format!("endpoints[{index}].addresses"), "must contain at least 1 address"));
        }
        if kind != "FQDN" && !loopback {
            for (at, address) in addresses.iter().enumerate() {
                check_endpoint(&format!("endpoints[{index}].addresses[{at}]"), address, causes);
            }
        }
    }
}

fn check_secret(before: Option<&Value>, object: &Value, causes: &mut Vec<Cause>) {
    check_keys(object, causes);
    check_immutable_data(before, object, causes);
    if before.is_some_and(|before| before["type"] != object["type"]) {
        causes.push(Cause::invalid("type", &object["type"], "field is immutable"));
    }
    if object["type"] == "kubernetes.io/service-account-token"
        && object["metadata"]["annotations"]["kubernetes.io/service-account.name"]
            .as_str()
            .unwrap_or_default()
            .is_empty()
    {
        causes.push(Cause::required("metadata.annotations[kubernetes.io/service-account.name]", ""));
    }
    if object["type"] == "kubernetes.io/tls" {
        for key in ["tls.crt", "tls.key"] {
            if object["data"][key].is_null() {
                causes.push(Cause::required(format!("data[{key}]"), ""));
            }
        }
    }
    use base64::Engine as _;
    for (key, value) in object["data"].as_object().into_iter().flatten() {
        if base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or_default()).is_err() {
            causes.push(Cause::invalid(format!("data[{key}]"), &json!("<not shown>"), "illegal base64 data"));
        }
    }
}

fn check_immutable_data(before: Option<&Value>, object: &Value, causes: &mut Vec<Cause>) {
    let Some(before) = before.filter(|before| before["immutable"] == true) else { return };
    if object["immutable"] != true {
        causes.push(Cause::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for field in ["data", "binaryData"] {
        if before[field] != object[field] {
            causes.push(Cause::forbidden(field, "field is immutable when `immutable` is set"));
        }
    }
}

fn check_crd(before: Option<&Value>, object: &Value, causes: &mut Vec<Cause>) {
    causes.extend(stolos_k8s::schema::validate_crd(object).into_iter().map(Cause::from));
    // Rules that were let in stay in, and a write of the status does not compile them again.
    if before.is_none_or(|before| before["spec"]["versions"] != object["spec"]["versions"]) {
        for (index, version) in object["spec"]["versions"].as_array().into_iter().flatten().enumerate() {
            let at = format!("spec.versions[{index}].schema.openAPIV3Schema");
            causes.extend(cel::check(&version["schema"]["openAPIV3Schema"], &at));
        }
    }
    if object["spec"]["conversion"]["strategy"] == "Webhook" {
        let message = "only None is supported by this server";
        causes.push(Cause::invalid("spec.conversion.strategy", &json!("Webhook"), message));
    }
}

/// Conditions in CEL (KEP-3716): named, and over what a webhook is asked.
fn check_conditions(conditions: &Value, at: &str, causes: &mut Vec<Cause>) {
    let conditions = conditions.as_array().map(Vec::as_slice).unwrap_or_default();
    if conditions.len() > 64 {
        let message = format!("Too many: {}: must have at most 64 items", conditions.len());
        causes.push(Cause { field: at.to_owned(), reason: "FieldValueTooMany".into(), message });
        return;
    }
    let mut names = std::collections::HashSet::new();
    for (index, condition) in conditions.iter().enumerate() {
        let at = format!("{at}[{index}]");
        let name = condition["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            causes.push(Cause::required(format!("{at}.name"), ""));
        } else if !meta::check_qualified_name(name).is_empty() {
            let message = meta::check_qualified_name(name).join(", ");
            causes.push(Cause::invalid(format!("{at}.name"), &condition["name"], &message));
        } else if !names.insert(name) {
            let message = format!("Duplicate value: {name:?}");
            causes.push(Cause { field: format!("{at}.name"), reason: "FieldValueDuplicate".into(), message });
        }
        let text = condition["expression"].as_str().unwrap_or_default();
        if text.trim().is_empty() {
            causes.push(Cause::required(format!("{at}.expression"), ""));
            continue;
        }
        let checked =
            cel::Expression::compile(text).map(|made| made.check_condition(&["object", "oldObject", "request"]));
        if let Err(problem) | Ok(Some(problem)) = checked {
            causes.push(Cause::invalid(format!("{at}.expression"), &condition["expression"], &problem));
        }
    }
}

fn check_webhooks(object: &Value, causes: &mut Vec<Cause>) {
    let mut names = std::collections::HashSet::new();
    for (index, webhook) in object["webhooks"].as_array().into_iter().flatten().enumerate() {
        let at = format!("webhooks[{index}]");
        let name = webhook["name"].as_str().unwrap_or_default();
        if name.split('.').count() < 3 {
            let message = "should be a domain with at least three segments separated by dots";
            causes.push(Cause::invalid(format!("{at}.name"), &json!(name), message));
        }
        if !names.insert(name) {
            causes.push(Cause {
                field: format!("{at}.name"),
                reason: "FieldValueDuplicate".into(),
                message: format!("Duplicate value: {name:?}"),
            });
        }
        let choices: [(&str, &[&str]); 4] = [
            ("sideEffects", &["None", "NoneOnDryRun"]),
            ("failurePolicy", &["Fail", "Ignore"]),
            ("matchPolicy", &["Equivalent", "Exact"]),
            ("reinvocationPolicy", &["IfNeeded", "Never"]),
        ];
        for (field, choices) in choices {
            let shown = choices.iter().map(|choice| format!("{choice:?}")).collect::<Vec<_>>().join(", ");
            match webhook[field].as_str() {
                None if field == "sideEffects" => {
                    let message = format!("must specify one of {}", choices.join(", "));
                    causes.push(Cause::required(format!("{at}.{field}"), &message));
                }
                None => {}
                Some(given) if choices.contains(&given) => {}
                Some(given) => causes.push(Cause {
                    field: format!("{at}.{field}"),
                    reason: "FieldValueNotSupported".into(),
                    message: format!("Unsupported value: {given:?}: supported values: {shown}"),
                }),
            }
        }
        for (number, rule) in webhook["rules"].as_array().into_iter().flatten().enumerate() {
            for field in ["operations", "apiGroups", "apiVersions", "resources"] {
                let list = rule[field].as_array().map(Vec::as_slice).unwrap_or_default();
                let at = format!("{at}.rules[{number}].{field}");
                if list.is_empty() {
                    causes.push(Cause::required(at, ""));
                } else if list.len() > 1 && list.contains(&json!("*")) {
                    let message = "if '*' is present, must not specify other values";
                    causes.push(Cause::invalid(at, &rule[field], message));
                }
            }
        }
        check_conditions(&webhook["matchConditions"], &format!("{at}.matchConditions"), causes);
        let versions = webhook["admissionReviewVersions"].as_array().map(Vec::as_slice).unwrap_or_default();
        if !versions.contains(&json!("v1")) {
            causes.push(Cause::invalid(
                format!("{at}.admissionReviewVersions"),
                &webhook["admissionReviewVersions"],
                "must include at least one of v1",
            ));
        }
        if !webhook["timeoutSeconds"].as_i64().is_some_and(|n| (1..=30).contains(&n)) {
            let at = format!("{at}.timeoutSeconds");
            causes.push(Cause::invalid(at, &webhook["timeoutSeconds"], "must be between 1 and 30 seconds"));
        }
        let client = &webhook["clientConfig"];
        if client["service"].is_object() == client["url"].is_string() {
            causes.push(Cause::required(format!("{at}.clientConfig"), "exactly one of url or service is required"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_cut_off_and_named() {
        let table = crate::registry::Registry::new([]).table();
        let deployments = table.find("apps", "v1", "deployments").unwrap();
        let known = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "labels": {"x.y/z": "1"}},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}}, "livenessProbe": {"httpGet": {"port": "x"}}}],
            "volumes": [{"name": "v", "emptyDir": {}}], "securityContext": {}}}}, "status": {}});
        let mut object = known.clone();
        assert_eq!(read(deployments, &mut object).unwrap(), Vec::<String>::new());
        object["spec"]["replcas"] = json!(3);
        object["spec"]["template"]["spec"]["containers"][0]["imag"] = json!("i");
        let unknown = read(deployments, &mut object).unwrap();
        assert_eq!(unknown, ["spec.replcas", "spec.template.spec.containers[0].imag"]);
        assert_eq!(object, known);
        object["spec"]["replicas"] = json!("three");
        assert_eq!(read(deployments, &mut object).unwrap_err().code, 400);
    }

    #[test]
    fn fields_that_come_twice_are_named() {
        let body =
            br#"{"spec": {"a": [{"x": 1}, {"x": 1, "x": {"y": 1, "y": 2}}], "b": 1, "b": 2, "b": 3}, "spec": {}}"#;
        let (_, said) = read_json(body).unwrap();
        assert_eq!(
            said,
            [
                "duplicate field \"spec.a[1].x\"",
                "duplicate field \"spec.a[1].x.y\"",
                "duplicate field \"spec.b\"",
                "duplicate field \"spec\""
            ]
        );
        for wrong in [&b"k8s\0 no JSON"[..], br#"{"a": 1, "a": "#, b"{} {}"] {
            assert!(read_json(wrong).is_err());
        }
    }

    #[test]
    fn a_pod_that_only_loses_a_finalizer_is_not_changed() {
        let table = crate::registry::Registry::new([]).table();
        let pods = table.find("", "v1", "pods").unwrap();
        let mut before = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
        crate::defaults::fill(pods, &mut before);
        let mut after = before.clone();
        crate::defaults::fill(pods, &mut after);
        assert_eq!(before, after);
        let mut causes = Vec::new();
        check_pod_update(&before, &after, &mut causes);
        assert_eq!(causes, []);
        after["spec"]["nodeName"] = json!("n");
        check_pod_update(&before, &after, &mut causes);
        assert_eq!(causes, [], "a node may be given once");
        before["spec"]["nodeName"] = json!("m");
        check_pod_update(&before, &after, &mut causes);
        assert_eq!(causes.len(), 1);
    }
}
