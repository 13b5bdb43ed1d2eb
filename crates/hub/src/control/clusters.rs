//! Members: their place in the hub, how they are, and their end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::meta;
use tokio::time::Instant;

use super::Hub;
use super::members::Member;
use crate::evict::health::{self, Seen};
use crate::evict::taint;
use crate::member::{self, CREDENTIALS};
use crate::model::{self, Cluster};
use crate::queue::{Again, Trouble};
use crate::{MANAGER, label, name};

/// How often the end of a member is looked after.
const ENDING: Duration = Duration::from_secs(1);
/// Karmada's words of a member whose agent is silent.
const NO_AGENT: &str = "Cluster status controller stopped posting cluster status.";

/// Looks at one member.
pub(super) async fn look(hub: Arc<Hub>, name: String) -> Result<Again, Trouble> {
    let Some(cluster) = hub.own.clusters.get("", &name) else {
        hub.forget(&name);
        return Ok(None);
    };
    let secret = hub.own.secrets.get(CREDENTIALS, &name);
    hub.keep_connected(&name, &cluster, secret.as_deref())?;
    if meta::deletion_timestamp(&cluster).is_some() {
        // Whether it can still be reached decides what becomes of its Works.
        if let Some(member) = hub.member(&name) {
            let status = observed(&hub, &name, &cluster, &member).await;
            hub.put_status(&hub.own.clusters, &cluster, &status).await?;
        }
        let cluster = hub.own.clusters.get("", &name).unwrap_or(cluster);
        return end(&hub, &name, &cluster).await;
    }
    if !meta::finalizers(&cluster).contains(&label::CLUSTER_FINALIZER) {
        let mut finalizers = meta::finalizers(&cluster);
        finalizers.push(label::CLUSTER_FINALIZER);
        let patch =
            json!({"metadata": {"resourceVersion": meta::resource_version(&cluster), "finalizers": finalizers}});
        hub.merge(&hub.own.clusters, &(String::new(), name.clone()), &patch, false).await?;
    }
    execution_space(&hub, &name, &cluster).await?;
    hub.prepare(&name);
    let Some(member) = hub.member(&name) else { return Ok(None) };
    let status = observed(&hub, &name, &cluster, &member).await;
    // What has been written to it since is looked at with the next look.
    let now = hub.own.clusters.get("", &name).unwrap_or(cluster);
    hub.put_status(&hub.own.clusters, &now, &status).await?;
    let again = taint(&hub, &name).await?;
    if is_ready(&now) {
        super::meshes::look(&hub, &name, &member).await?;
    }
    let asked = hub.patience.status_update_frequency;
    Ok(Some(again.map_or(asked, |again| again.min(asked))))
}

/// The namespace that its Works are in.
async fn execution_space(hub: &Hub, name: &str, cluster: &Value) -> Result<(), Trouble> {
    let space = name::execution_namespace(name);
    let namespaces = Resource::named("v1", "Namespace")?;
    let object = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": space, "labels": {label::SYSTEM: "true"}}});
    match objects::create(&hub.client, &namespaces, &object, MANAGER).await {
        Ok(_) => {
            let message = format!("Created execution space({space}) for cluster({name}).");
            hub.events.normal(cluster, "cluster-controller", "CreateExecutionSpaceSucceed", message);
            Ok(())
        }
        Err(error) if error.is_conflict() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The status as it should be by what the member says now.
async fn observed(hub: &Arc<Hub>, name: &str, cluster: &Value, member: &Member) -> Value {
    let asked = Instant::now();
    let seen = member::observe(&member.client).await;
    if seen.health.ready {
        hub.answered().insert(name.to_owned(), asked);
    }
    let mut status = cluster["status"].clone();
    if status.is_null() {
        status = json!({});
    }
    // Of a member that dials out nothing is known when its agent is silent (karmada.md 20).
    let is_pulled = cluster["spec"]["syncMode"] == "Pull";
    let (saw, reason, message) = match seen.health.ready {
        true => (Seen::Ready, seen.health.reason, seen.health.message),
        false if is_pulled && !seen.health.reached() => (Seen::Silent, "ClusterStatusUnknown", NO_AGENT),
        false => (Seen::NotReady, seen.health.reason, seen.health.message),
    };
    let before = condition(&status, "Ready").and_then(|ready| ready["status"].as_str()).map(str::to_owned);
    if hub.believes(name, saw, before.as_deref()) {
        set_condition(&mut status, "Ready", saw.status(), reason, message);
    }
    if !seen.health.ready {
        return status;
    }
    if let Some(version) = seen.version {
        status["kubernetesVersion"] = version.into();
    }
    match member::enablements(&member.client).await {
        Some(all) if !all.is_empty() => {
            status["apiEnablements"] = all.into();
            set_condition(
                &mut status,
                "CompleteAPIEnablements",
                "True",
                "Complete",
                "might be able to deploy all API resources",
            );
        }
        _ if status["apiEnablements"].is_null() => {
            set_condition(&mut status, "CompleteAPIEnablements", "False", "Empty", "cannot list any API resource");
        }
        _ => {}
    }
    let quiet = || -> Box<crate::mirror::Changed> { Box::new(|_, _| {}) };
    let (Ok(nodes), Ok(pods)) = (Resource::named("v1", "Node"), Resource::named("v1", "Pod")) else { return status };
    if let (Some(nodes), Some(pods)) =
        tokio::join!(member.mirror(&nodes, None, quiet), member.mirror(&pods, None, quiet))
    {
        let (nodes, resources) = member::summary(&nodes.list(), &pods.list());
        status["nodeSummary"] = nodes;
        status["resourceSummary"] = resources;
    }
    status
}

/// A condition of a status, by its type.
pub(super) fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// Whether a member's `Ready` condition is true.
pub(super) fn is_ready(cluster: &Value) -> bool {
    condition(&cluster["status"], "Ready").is_some_and(|ready| ready["status"] == "True")
}

/// Sets a condition; its time changes only with its status.
pub(super) fn set_condition(status: &mut Value, kind: &str, value: &str, reason: &str, message: &str) {
    let before = condition(status, kind);
    let since = before.filter(|c| c["status"] == value).map(|c| c["lastTransitionTime"].clone());
    let since = since.unwrap_or_else(|| super::now().into());
    let now = json!({"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": since});
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    match conditions.iter_mut().find(|condition| condition["type"] == kind) {
        Some(condition) => *condition = now,
        None => conditions.push(now),
    }
}

/// Keeps new workloads away from a member that is not ready, and after some time sends away what is there (Karmada's cluster
/// controller); when to look again.
async fn taint(hub: &Hub, name: &str) -> Result<Again, Trouble> {
    let Some(cluster) = hub.own.clusters.get("", name) else { return Ok(None) };
    let (read, _) = model::read::<Cluster>(&cluster)?;
    let ready = read.status.conditions.iter().find(|condition| condition.type_ == "Ready");
    let (after, again) = taint::wanted(&read.spec.taints, ready, jiff::Timestamp::now(), &hub.patience);
    if after == read.spec.taints {
        return Ok(again);
    }
    let said: Vec<String> = after.iter().map(|taint| format!("{}:{:?}", taint.key, taint.effect)).collect();
    let taints = if after.is_empty() { Value::Null } else { serde_json::to_value(after)? };
    let patch = json!({"metadata": {"resourceVersion": meta::resource_version(&cluster)}, "spec": {"taints": taints}});
    hub.merge(&hub.own.clusters, &(String::new(), name.to_owned()), &patch, false).await?;
    let said = if said.is_empty() { "none".to_owned() } else { said.join(", ") };
    hub.events.normal(&cluster, "cluster-controller", "TaintClusterSucceed", format!("Its taints are: {said}."));
    Ok(again)
}

/// A member leaves: its Works go, and with them what they brought, if it can still be reached; then its namespace, and
/// at last the Cluster itself.
async fn end(hub: &Hub, name: &str, cluster: &Value) -> Result<Again, Trouble> {
    let finalizers = meta::finalizers(cluster);
    if !finalizers.contains(&label::CLUSTER_FINALIZER) {
        return Ok(None);
    }
    let space = name::execution_namespace(name);
    let namespaces = Resource::named("v1", "Namespace")?;
    if objects::delete(&hub.client, &namespaces, None, &space, None).await? {
        return Ok(Some(ENDING));
    }
    // Whoever takes out a member that dials in cannot reach it, and soon the hub cannot either.
    if member::is_pull(cluster) && meta::annotation(cluster, label::ACCOUNT_LEFT).is_none() {
        let left = match hub.member(name) {
            Some(member) => member::dismiss(&member.client, name).await.unwrap_or_default(),
            None => "the hub has no credential of it".to_owned(),
        };
        let patch = json!({"metadata": {"annotations": {label::ACCOUNT_LEFT: left}}});
        return match hub.merge(&hub.own.clusters, &(String::new(), name.to_owned()), &patch, false).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            Err(_) => Ok(None),
            Ok(_) => {
                // Who waits for its end looks now and then, and is to see this.
                tokio::time::sleep(ENDING).await;
                Ok(Some(Duration::ZERO))
            }
        };
    }
    let left: Vec<_> = finalizers.into_iter().filter(|f| *f != label::CLUSTER_FINALIZER).collect();
    let patch = json!({"metadata": {"resourceVersion": meta::resource_version(cluster), "finalizers": left}});
    match hub.merge(&hub.own.clusters, &(String::new(), name.to_owned()), &patch, false).await {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(None),
    }
}

impl Hub {
    /// Connects a member, or connects it anew if it is reached in another way now.
    fn keep_connected(&self, name: &str, cluster: &Value, secret: Option<&Value>) -> Result<(), Trouble> {
        if self.member(name).is_some_and(|member| member.is_of(cluster, secret)) {
            return Ok(());
        }
        let Some(secret) = secret else {
            self.forget_member(name);
            return Ok(());
        };
        let member = Member::connect(cluster, secret, &self.ways, &self.stop, &self.tasks)?;
        self.put_member(name, member);
        Ok(())
    }

    /// Whether what was seen of a member has held for long enough to be believed.
    fn believes(&self, name: &str, seen: Seen, before: Option<&str>) -> bool {
        let mut doubts = self.doubts();
        if before == Some(seen.status()) {
            doubts.remove(name);
            return true;
        }
        let now = Instant::now();
        let since = *doubts.entry(name.to_owned()).or_insert(now);
        let believed = health::believed(before, seen, now.duration_since(since), &self.patience);
        if believed {
            doubts.remove(name);
        }
        believed
    }
}
