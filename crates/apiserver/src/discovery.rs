//! What is served where: discovery in both forms, version, OpenAPI.

use std::sync::Arc;

use http::{HeaderMap, Response, header};
use serde_json::{Value, json};

use crate::api::Api;
use crate::extension::Place;
use crate::failure::{Failure, Result};
use crate::openapi;
use crate::registry::{Resource, Table};
use crate::route::{self, Body, Query};

/// The version of Kubernetes whose API is spoken.
pub(crate) const VERSION: &str = "v1.34.0+stolos";

/// Answers a path that is no resource.
///
/// # Errors
///
/// When there is nothing at that path.
pub(crate) fn answer(api: &Arc<Api>, path: &str, query: &Query, headers: &HeaderMap) -> Result<Response<Body>> {
    let table = api.registry.table();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let value = match parts.as_slice() {
        [""] => paths(&table),
        ["version"] => version(api),
        ["openid", "v1", "jwks"] => {
            return Ok(route::respond(200, "application/jwk-set+json", api.keys.jwks.to_string()));
        }
        [".well-known", "openid-configuration"] => json!({
            "issuer": api.settings.issuer,
            "jwks_uri": format!("{}/openid/v1/jwks", api.settings.issuer),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        }),
        ["openapi", "v2"] => return openapi::v2(api, headers),
        ["openapi", "v3"] => return Ok(openapi::v3_index(api)),
        ["openapi", "v3", rest @ ..] => return openapi::v3(api, rest, query, headers),
        ["api"] => match aggregated(headers) {
            Some(version) => return Ok(aggregate(api, &table, version, true, headers)),
            None => json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
        },
        ["apis"] => match aggregated(headers) {
            Some(version) => return Ok(aggregate(api, &table, version, false, headers)),
            None => {
                let groups = table.groups.keys().filter(|g| !g.is_empty()).map(|g| group(&table, g, false));
                json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups.collect::<Vec<_>>()})
            }
        },
        ["api", version] => resources(api, &table, "", version)?,
        ["apis", name] if table.groups.contains_key(*name) => group(&table, name, true),
        ["apis", name, version] => resources(api, &table, name, version)?,
        _ => return Err(Failure::no_such_path()),
    };
    Ok(route::json_value(200, &value))
}

fn version(api: &Api) -> Value {
    json!({
        "major": "1", "minor": "34", "gitVersion": VERSION, "gitCommit": "", "gitTreeState": api.settings.version_suffix,
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other }),
    })
}

fn paths(table: &Table) -> Value {
    let mut paths = vec!["/api".to_owned(), "/api/v1".into(), "/apis".into()];
    for (group, versions) in table.groups.iter().filter(|(group, _)| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    let rest = ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"];
    paths.extend(rest.map(str::to_owned));
    json!({"paths": paths})
}

fn group(table: &Table, name: &str, alone: bool) -> Value {
    let versions = &table.groups[name];
    let version = |v: &String| json!({"groupVersion": format!("{name}/{v}"), "version": v});
    let mut group = json!({
        "name": name,
        "versions": versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(version),
    });
    if alone {
        group["kind"] = json!("APIGroup");
        group["apiVersion"] = json!("v1");
    }
    group
}

fn resources(api: &Api, table: &Table, group: &str, version: &str) -> Result<Value> {
    let found = table.of_version(group, version);
    if found.is_empty() {
        return Err(Failure::no_such_path());
    }
    let mut resources = Vec::new();
    for resource in found {
        let mut entry = json!({"name": resource.plural, "singularName": resource.singular,
            "namespaced": resource.namespaced, "kind": resource.kind, "verbs": resource.verbs});
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        resources.push(entry);
        for sub in &resource.subresources {
            let (group, version, kind) = &sub.gvk;
            let mut entry = json!({"name": format!("{}/{}", resource.plural, sub.name), "singularName": "",
                "namespaced": resource.namespaced, "kind": kind, "verbs": sub.verbs});
            if (group, version) != (&resource.group, &resource.version) {
                entry["group"] = json!(group);
                entry["version"] = json!(version);
            }
            resources.push(entry);
        }
        for (place, _) in api.extensions().iter().filter(|(place, _)| place.is_of(&resource)) {
            resources.push(json!({"name": format!("{}/{}", resource.plural, place.sub), "singularName": "",
                "namespaced": resource.namespaced, "kind": place.kind, "verbs": Place::VERBS}));
        }
    }
    let api_version = stolos_k8s::kind::api_version(group, version);
    Ok(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": resources}))
}

/// The version of aggregated discovery that a client accepts, if it does.
fn aggregated(headers: &HeaderMap) -> Option<&'static str> {
    let accept = headers.get(header::ACCEPT)?.to_str().ok()?;
    accept.split(',').find_map(|offer| {
        let has = |what: &str| offer.split(';').any(|part| part.trim() == what);
        if !has("as=APIGroupDiscoveryList") || !has("application/json") {
            return None;
        }
        if has("v=v2") {
            Some("v2")
        } else if has("v=v2beta1") {
            Some("v2beta1")
        } else {
            None
        }
    })
}

fn aggregate(api: &Api, table: &Table, version: &'static str, core: bool, headers: &HeaderMap) -> Response<Body> {
    let groups = table.groups.iter().filter(|(group, _)| group.is_empty() == core);
    let items: Vec<Value> = groups
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let found = table.of_version(group, version);
                    let resources: Vec<Value> =
                        found.iter().map(|resource| aggregate_resource(api, resource)).collect();
                    json!({"version": version, "freshness": "Current", "resources": resources})
                })
                .collect();
            let mut metadata = json!({"creationTimestamp": null});
            if !group.is_empty() {
                metadata["name"] = json!(group);
            }
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items});
    let media = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    let list = list.to_string();
    let tag = openapi::hex(&[&list]);
    let response = openapi::not_modified(headers, &tag);
    response.unwrap_or_else(|| openapi::tagged(route::respond(200, &media, list), &tag))
}

fn aggregate_resource(api: &Api, resource: &Arc<Resource>) -> Value {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut subresources: Vec<Value> = resource
        .subresources
        .iter()
        .map(|sub| {
            let (group, version, name) = &sub.gvk;
            json!({"subresource": sub.name, "responseKind": kind(group, version, name), "verbs": sub.verbs})
        })
        .collect();
    for (place, _) in api.extensions().iter().filter(|(place, _)| place.is_of(resource)) {
        let answered = kind(&place.group, &place.version, &place.kind);
        subresources.push(json!({"subresource": place.sub, "responseKind": answered, "verbs": Place::VERBS}));
    }
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": kind(&resource.group, &resource.version, &resource.kind),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    for (field, list) in [("shortNames", &resource.short_names), ("categories", &resource.categories)] {
        if !list.is_empty() {
            entry[field] = json!(list);
        }
    }
    if !subresources.is_empty() {
        entry["subresources"] = json!(subresources);
    }
    entry
}
