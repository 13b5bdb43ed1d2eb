//! What is served, described in OpenAPI v3 (a document per group and version) and v2 (one document, in JSON and in the
//! protobuf that kubectl up to 1.23 needs for `explain` and validation).
//!
//! Both are written from one set of schemas: those of [`builtin`](stolos_k8s::schema::builtin) for built-in kinds, and
//! those of CustomResourceDefinitions as they are at the moment of asking. Documents are put together for each request
//! and not kept: clients ask once and remember by hash (KEP-2896), and nobody who never asks pays with memory.

mod custom;
mod paths;
mod protobuf;
mod v2;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Response, header};
use serde_json::{Value, json};
use sha2::Digest as _;
use stolos_k8s::kind;
use stolos_k8s::schema::builtin;

use crate::api::Api;
use crate::discovery::VERSION;
use crate::failure::{Failure, Result};
use crate::registry::{CRDS, Resource, Table};
use crate::route::{self, Body, Query};

/// How OpenAPI v2 in protobuf is asked for; newer clients write the first `@` as a dot.
const PROTOBUF: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
];

/// Types that the documents name, whatever kinds they are about.
const COMMON: [&str; 5] = ["DeleteOptions", "ListMeta", "Patch", "Status", "WatchEvent"];

/// The version of OpenAPI a document is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    V2,
    V3,
}

impl Style {
    fn reference(self, name: &str) -> Value {
        match self {
            Self::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Self::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

/// Answers `/openapi/v2`.
///
/// # Errors
///
/// When the client accepts no form of it.
pub(crate) fn v2(api: &Api, headers: &HeaderMap) -> Result<Response<Body>> {
    let in_protobuf = accepts_protobuf(headers)?;
    let table = api.registry.table();
    let all: Vec<_> = versions(&table).map(|(group, version)| hash(api, &table, group, version)).collect();
    let tag = hex(&[&all.concat(), if in_protobuf { "protobuf" } else { "json" }]);
    if let Some(known) = not_modified(headers, &tag) {
        return Ok(known);
    }
    let response = if in_protobuf {
        route::respond(200, PROTOBUF[1], v2::document(api, &table, protobuf::Writer::default()))
    } else {
        route::respond(200, "application/json", v2::document(api, &table, v2::Json::default()))
    };
    Ok(tagged(response, &tag))
}

/// Answers `/openapi/v3`: where the documents are.
pub(crate) fn v3_index(api: &Api) -> Response<Body> {
    let table = api.registry.table();
    let paths: serde_json::Map<_, _> = versions(&table)
        .map(|(group, version)| {
            let path = path_of(group, version);
            let url = format!("/openapi/v3/{path}?hash={}", hash(api, &table, group, version));
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    route::json_value(200, &json!({"paths": paths}))
}

/// Answers `/openapi/v3/…`: one group and version.
///
/// # Errors
///
/// When it is not served, or the client does not accept JSON.
pub(crate) fn v3(api: &Api, path: &[&str], query: &Query, headers: &HeaderMap) -> Result<Response<Body>> {
    let (group, version) = match path {
        ["api", version] => ("", *version),
        ["apis", group, version] => (*group, *version),
        _ => return Err(Failure::no_such_path()),
    };
    let table = api.registry.table();
    let resources = table.of_version(group, version);
    if resources.is_empty() {
        return Err(Failure::no_such_path());
    }
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
    let json = |offer: &str| matches!(media(offer), "application/json" | "application/*" | "*/*");
    if !accept.split(',').any(json) {
        return Err(Failure::not_acceptable());
    }
    let tag = hash(api, &table, group, version);
    let forever = match query.get("hash") {
        Some(wanted) if wanted != tag => {
            // What the client knows is out of date: this is what there is now.
            let url = format!("/openapi/v3/{}?hash={tag}", path_of(group, version));
            let mut response = route::respond(301, "text/plain", "");
            response.headers_mut().insert(header::LOCATION, value(&url));
            return Ok(response);
        }
        wanted => wanted.is_some(),
    };
    let mut response = match not_modified(headers, &tag) {
        Some(known) => known,
        None => tagged(route::respond(200, "application/json", v3_document(api, &resources, group, version)), &tag),
    };
    if forever {
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        let in_a_year = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(365 * 24);
        let expires = in_a_year.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        response.headers_mut().insert(header::EXPIRES, value(&expires));
    }
    Ok(response)
}

fn v3_document(api: &Api, resources: &[Arc<Resource>], group: &str, version: &str) -> String {
    let mut out = format!(r#"{{"openapi":"3.0.0","info":{{"title":"Kubernetes","version":"{VERSION}"}},"paths":{{"#);
    let mut first = true;
    let mut member = |out: &mut String, name: &str, text: &str| {
        let comma = if std::mem::take(&mut first) { "" } else { "," };
        let _ = write!(out, "{comma}{}:{text}", Value::from(name));
    };
    for resource in resources {
        for (path, item) in paths::of(resource, Style::V3) {
            member(&mut out, &path, &item.to_string());
        }
    }
    out.push_str(r#"},"components":{"schemas":{"#);
    let mut first = true;
    let mut member = |out: &mut String, name: &str, text: &str| {
        let comma = if std::mem::take(&mut first) { "" } else { "," };
        let _ = write!(out, "{comma}{}:{text}", Value::from(name));
    };
    let named = named(resources);
    for (name, text) in builtin::definitions().filter(|(name, _)| named.contains(name.as_str())) {
        member(&mut out, &name, &text);
    }
    for resource in resources {
        for (name, schema) in described_here(api, resource, group, version) {
            member(&mut out, &name, &schema.to_string());
        }
    }
    out.push_str("}}}");
    out
}

/// The schemas of a resource that Kubernetes' own description does not have.
fn described_here(api: &Api, resource: &Resource, group: &str, version: &str) -> Vec<(String, Value)> {
    if resource.custom.is_none() && builtin::types().of_kind(group, version, &resource.kind).is_some() {
        return Vec::new();
    }
    let crd = api.state.get(CRDS, "", &resource.storage).filter(|_| resource.custom.is_some());
    custom::schemas(resource, crd.as_ref().map(|crd| &*crd.value))
}

/// The names of Kubernetes' own schemas that these resources are made of.
fn named(resources: &[Arc<Resource>]) -> BTreeSet<Box<str>> {
    let types = builtin::types();
    let mut names = BTreeSet::new();
    for name in COMMON {
        types.closure(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}"), &mut names);
    }
    types.closure(builtin::OBJECT_META, &mut names);
    for resource in resources {
        let own = (&resource.group, &resource.version, &resource.kind);
        let below = resource.subresources.iter().map(|sub| (&sub.gvk.0, &sub.gvk.1, &sub.gvk.2));
        for (group, version, kind) in std::iter::once(own).chain(below) {
            if resource.custom.is_some() && group == &resource.group {
                continue;
            }
            for kind in [kind.clone(), format!("{kind}List")] {
                if let Some(found) = types.of_kind(group, version, &kind) {
                    types.closure(&found.name, &mut names);
                }
            }
        }
    }
    names
}

/// The name of the schema of a kind, as the documents have it.
fn schema_name(group: &str, version: &str, kind: &str) -> String {
    match builtin::types().of_kind(group, version, kind) {
        Some(found) => found.name.to_string(),
        None => {
            let group: Vec<&str> = if group.is_empty() { vec!["core"] } else { group.rsplit('.').collect() };
            format!("{}.{version}.{kind}", group.join("."))
        }
    }
}

fn versions(table: &Table) -> impl Iterator<Item = (&str, &str)> {
    // What pods use has no schema of ours.
    let groups = table.groups.iter().filter(|(group, _)| *group != crate::usage::GROUP);
    groups.flat_map(|(group, versions)| versions.iter().map(move |v| (group.as_str(), v.as_str())))
}

fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{}", kind::api_version(group, version)) }
}

/// A hash of everything that a document is made from, without making it.
fn hash(api: &Api, table: &Table, group: &str, version: &str) -> String {
    let mut parts = vec![builtin::RELEASE.to_owned(), env!("CARGO_PKG_VERSION").to_owned(), path_of(group, version)];
    for resource in table.of_version(group, version) {
        let subs: Vec<_> = resource.subresources.iter().map(|sub| &sub.name).collect();
        parts.push(format!("{} {} {:?} {subs:?}", resource.plural, resource.kind, resource.verbs));
        if resource.custom.is_some()
            && let Some(crd) = api.state.get(CRDS, "", &resource.storage)
        {
            let metadata = &crd.value["metadata"];
            parts.push(format!("{} {}", metadata["uid"], metadata["generation"]));
        }
    }
    hex(&parts.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The hash of some texts, in capitals as Kubernetes writes it.
pub(crate) fn hex(parts: &[&str]) -> String {
    let mut hash = sha2::Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02X}")).collect()
}

/// The answer to a client that has what it asks for.
pub(crate) fn not_modified(headers: &HeaderMap, tag: &str) -> Option<Response<Body>> {
    let known = headers.get(header::IF_NONE_MATCH)?.to_str().ok()?;
    let same = |one: &str| one == "*" || one.trim_start_matches("W/").trim_matches('"') == tag;
    known.split(',').map(str::trim).any(same).then(|| {
        let mut response = Response::new(route::full(""));
        *response.status_mut() = http::StatusCode::NOT_MODIFIED;
        tagged(response, tag)
    })
}

/// An answer with its tag.
pub(crate) fn tagged(mut response: Response<Body>, tag: &str) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(header::ETAG, value(&format!("\"{tag}\"")));
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn accepts_protobuf(headers: &HeaderMap) -> Result<bool> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
    let choice = accept.split(',').find_map(|offer| match media(offer) {
        "application/json" | "application/*" | "*/*" => Some(false),
        other => PROTOBUF.contains(&other).then_some(true),
    });
    choice.ok_or_else(Failure::not_acceptable)
}

fn media(offer: &str) -> &str {
    offer.split(';').next().unwrap_or_default().trim()
}
