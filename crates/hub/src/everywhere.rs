//! One question to many members at once, and their answers as one table.
//!
//! Members are asked side by side through the hub's [`proxy`](crate::proxy), each for as long as is waited and no
//! longer: one that is away costs nobody else anything. What kinds there are is asked of each, as no two need have the same.

mod kind;
mod table;

use std::fmt::Write as _;
use std::time::Duration;

use http::header::ACCEPT;
use http_body_util::{BodyExt as _, Limited};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use stolos_cluster::objects;
use stolos_k8s::meta;
use stolos_serve::because;

use crate::kinds::clusters;
use crate::{Error, label};

pub use table::{Table, merge};

/// What stays as it is in a part of a path or query.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Both versions of the one document that says all kinds (Kubernetes 1.26 and later); what is older answers as it always did.
const KINDS: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
    application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
/// The largest answer of one member that is read, in bytes: some ten thousand pods.
const LARGEST: usize = 256 << 20;
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Kinds as people write them: `pods`, `po`, `Deployment`, `deployments.apps`, `pods,services`, `all`.
    pub kinds: String,
    /// Of this name; all if there is none.
    pub name: Option<String>,
    /// In this namespace; in all if there is none.
    pub namespace: Option<String>,
    /// A label selector.
    pub labels: Option<String>,
    /// A field selector.
    pub fields: Option<String>,
    /// Whether tables are wanted, instead of the objects themselves.
    pub as_table: bool,
}

/// What one member has of one kind.
#[derive(Clone, Debug)]
pub struct Found {
    /// The kind as its API calls it: `pods`, `deployments.apps`.
    pub resource: String,
    /// What one object of it is called, for `-o name`.
    pub singular: String,
    /// The table, or the list.
    pub answer: Value,
}

/// The answer of one member.
#[derive(Debug)]
pub struct Answer {
    /// The member.
    pub cluster: String,
    /// What it has, or why that is not known.
    pub found: Result<Vec<Found>, String>,
}

/// The members of a hub: those that are named, or all. Of those that are named no other is asked for, so that a role for
/// them is enough, also one that lets somebody ask them and not read their Clusters: the hub says of those what there is.
///
/// # Errors
///
/// When the hub cannot be asked, or has no cluster of a name.
pub async fn members(hub: &kube::Client, named: &[String]) -> Result<Vec<String>, Error> {
    if named.is_empty() {
        let all = objects::list(hub, &clusters(), None, None).await?;
        let mut all: Vec<String> = all.iter().map(|cluster| meta::name(cluster).to_owned()).collect();
        all.sort();
        return Ok(all);
    }
    let looking = named.iter().map(|name| async move {
        match objects::get(hub, &clusters(), None, name).await {
            Ok(None) => Err(Error::NoCluster(name.clone())),
            Err(error) if !error.is_forbidden() => Err(error.into()),
            _ => Ok(name.clone()),
        }
    });
    futures::future::try_join_all(looking).await
}

/// Asks members side by side, in their order. None takes longer than `patience`.
pub async fn ask(hub: &kube::Client, members: &[String], question: &Question, patience: Duration) -> Vec<Answer> {
    let asking = members.iter().map(|cluster| async move {
        let found = tokio::time::timeout(patience, ask_one(hub, cluster, question)).await;
        let found = found.unwrap_or_else(|_| Err(format!("no answer in {} s", patience.as_secs_f32())));
        let found = found.map_err(|why| table::harmless(&why));
        Answer { cluster: cluster.clone(), found }
    });
    futures::future::join_all(asking).await
}

async fn ask_one(hub: &kube::Client, cluster: &str, question: &Question) -> Result<Vec<Found>, String> {
    let kinds = kinds(hub, cluster).await?;
    let wanted = kind::choose(&kinds, &question.kinds)?;
    let mut found = Vec::new();
    for kind in wanted {
        let path = format!("{}{}", proxy(cluster), kind.path(question));
        match get(hub, &path, if question.as_table { TABLE } else { "application/json" }).await? {
            (200, answer) => {
                let (resource, singular) = (kind.qualified(), kind.singular.clone());
                found.push(Found { resource, singular, answer });
            }
            // Of `all`, what may not be seen or is not served is not shown; what was named is answered for.
            (403..=405, _) if kind.by_category => {}
            (code, answer) => {
                let message = answer["message"].as_str().map(str::to_owned);
                return Err(message.unwrap_or_else(|| format!("it answered {code}")));
            }
        }
    }
    Ok(found)
}

/// Where a member is in the hub's API.
#[must_use]
pub fn proxy(cluster: &str) -> String {
    format!("/apis/cluster.karmada.io/v1alpha1/clusters/{}/proxy", encoded(cluster))
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

/// All kinds of a member.
async fn kinds(hub: &kube::Client, cluster: &str) -> Result<Vec<kind::Kind>, String> {
    let root = proxy(cluster);
    let mut all = Vec::new();
    for part in ["/api", "/apis"] {
        let document = good(get(hub, &format!("{root}{part}"), KINDS).await?)?;
        if document["kind"] == "APIGroupDiscoveryList" {
            all.extend(kind::of_aggregated(&document));
            continue;
        }
        for version in kind::versions(&document) {
            let list = get(hub, &format!("{root}{part}/{version}"), "application/json").await?;
            // A group whose server is away hides no other.
            if list.0 == 200 {
                all.extend(kind::of_list(&list.1));
            }
        }
    }
    Ok(all)
}

fn good((code, answer): (u16, Value)) -> Result<Value, String> {
    match code {
        200 => Ok(answer),
        code => Err(answer["message"].as_str().map_or_else(|| format!("it answered {code}"), str::to_owned)),
    }
}

/// The code and the document of a page.
async fn get(hub: &kube::Client, path: &str, accept: &str) -> Result<(u16, Value), String> {
    let request = http::Request::get(path).header(ACCEPT, accept).body(kube::client::Body::empty());
    let response = hub.send(request.map_err(|error| error.to_string())?).await.map_err(|error| because(&error))?;
    let code = response.status().as_u16();
    let body =
        Limited::new(response.into_body(), LARGEST).collect().await.map_err(|error| because(&*error))?.to_bytes();
    match serde_json::from_slice(&body) {
        Ok(document) => Ok((code, document)),
        Err(_) if code != 200 => Ok((code, json!({}))),
        Err(error) => Err(format!("its answer cannot be read: {error}")),
    }
}

/// All objects of all members as one `List`; each says where it is from, as those of Karmada's search do (v1.18.2).
#[must_use]
pub fn list(answers: &[Answer]) -> Value {
    let mut items = Vec::new();
    for (cluster, found) in answers.iter().filter_map(|answer| Some((&answer.cluster, answer.found.as_ref().ok()?))) {
        for found in found {
            let list = &found.answer;
            let kind = list["kind"].as_str().and_then(|kind| kind.strip_suffix("List"));
            let all = list["items"].as_array().map_or(std::slice::from_ref(list), Vec::as_slice);
            for item in all {
                let mut item = item.clone();
                if item["kind"].is_null() {
                    item["apiVersion"] = list["apiVersion"].clone();
                    item["kind"] = kind.into();
                }
                item["metadata"]["annotations"][label::FROM_CLUSTER] = cluster.as_str().into();
                items.push(item);
            }
        }
    }
    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items})
}

/// A line for each object: its member, and what kubectl calls it.
#[must_use]
pub fn names(answers: &[Answer]) -> String {
    let mut text = String::new();
    for (cluster, found) in answers.iter().filter_map(|answer| Some((&answer.cluster, answer.found.as_ref().ok()?))) {
        for found in found {
            let (resource, group) = found.resource.split_once('.').map_or((found.resource.as_str(), ""), |parts| parts);
            let called = if found.singular.is_empty() { resource } else { &found.singular };
            let called = if group.is_empty() { called.to_owned() } else { format!("{called}.{group}") };
            for row in found.answer["rows"].as_array().into_iter().flatten() {
                let _ = writeln!(text, "{cluster} {called}/{}", table::harmless(meta::name(&row["object"])));
            }
        }
    }
    text
}
