//! Members: their place in the hub, how they are, and their end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::meta;
use tokio::time::Instant;

use super::bind::binding_of;
use super::members::Member;
use super::{Hub, heartbeat};
use crate::evict::health::{self, Seen};
use crate::evict::{taint, tainting};
use crate::member::{self, CREDENTIALS};
use crate::model::{self, Cluster, ClusterTaintPolicy, ResourceModel};
use crate::queue::{Again, Trouble};
use crate::{MANAGER, gate, label, name};

/// How long a member is asked for its place in a mesh.
const MESH: Duration = Duration::from_secs(5);
/// So long a member has its peace after a look.
const SOONEST: Duration = Duration::from_millis(100);
/// The conditions that are decided here.
const CONDITIONS: [&str; 2] = ["Ready", "CompleteAPIEnablements"];
/// Who says it of a member's place and its own taints.
const FROM: &str = "cluster-controller";
/// Who says it of taints that policies add and take away.
pub(super) const FROM_TAINTS: &str = "cluster-taint-policy-controller";
/// How often the end of a member is looked after.
const ENDING: Duration = Duration::from_secs(1);
/// Karmada's words of a member whose agent is silent.
const NO_AGENT: &str = "Cluster status controller stopped posting cluster status.";

/// Looks at one member.
pub(super) async fn look(hub: Arc<Hub>, name: String) -> Result<Again, Trouble> {
    let began = Instant::now();
    let Some(cluster) = hub.own.clusters.get("", &name) else {
        hub.forget(&name);
        return Ok(None);
    };
    let secret = hub.own.secrets.get(CREDENTIALS, &name);
    let way = hub.keep_connected(&name, &cluster, secret.as_deref());
    if meta::deletion_timestamp(&cluster).is_some() {
        // Whether it can still be reached decides what becomes of its Works.
        let (status, _) = observed(&hub, &name, &cluster, way.as_deref()).await;
        hub.put_status(&hub.own.clusters, &cluster, &status).await?;
        let cluster = hub.own.clusters.get("", &name).unwrap_or(cluster);
        return end(&hub, &name, &cluster).await;
    }
    if !meta::finalizers(&cluster).contains(&label::CLUSTER_FINALIZER) {
        let mut finalizers = meta::finalizers(&cluster);
        finalizers.push(label::CLUSTER_FINALIZER);
        let patch =
            json!({"metadata": {"resourceVersion": meta::resource_version(&cluster), "finalizers": finalizers}});
        hub.merge_cluster(&name, &patch).await?;
    }
    execution_space(&hub, &name, &cluster).await?;
    hub.prepare(&name);
    let (mut status, well) = observed(&hub, &name, &cluster, way.as_deref()).await;
    // What has been written to it since is looked at with the next look, and what others have said stays.
    let now = hub.own.clusters.get("", &name).unwrap_or(cluster);
    keep_others(&mut status, &now["status"]);
    hub.put_status(&hub.own.clusters, &now, &status).await?;
    let again = taint(&hub, &name).await?;
    if let Some(member) = way.ok().filter(|_| well) {
        // What it says of its mesh can wait; how it is, cannot.
        match tokio::time::timeout(MESH, super::meshes::look(&hub, &name, &member)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(member = name, %error, "its mesh is not known"),
            Err(_) => tracing::debug!(member = name, "its mesh is not known: no answer in time"),
        }
    }
    // From the beginning: one that answers slowly is not to be unheard for that.
    let asked = hub.patience.status_update_frequency.saturating_sub(began.elapsed()).max(SOONEST);
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
            hub.events.normal(cluster, FROM, "CreateExecutionSpaceSucceed", message);
            Ok(())
        }
        Err(error) if error.is_conflict() => Ok(()),
        Err(error) => {
            let message = format!("Failed to create execution space({space}): {error}");
            hub.events.warning(cluster, FROM, "CreateExecutionSpaceFailed", message);
            Err(error.into())
        }
    }
}

/// The status as it should be by what the member says now, or by why it cannot be asked; and whether it says that it is well.
async fn observed(hub: &Arc<Hub>, name: &str, cluster: &Value, way: Result<&Member, &String>) -> (Value, bool) {
    let mut status = cluster["status"].clone();
    let member = match way {
        Ok(member) => member,
        Err(why) => {
            let before = condition(&status, "Ready").and_then(|ready| ready["status"].as_str());
            // Of one that is new the credential may be on its way.
            if hub.believes(name, Seen::NotReady, before.or(Some(Seen::Ready.status()))) {
                let seen = Seen::NotReady.status();
                set_condition(&mut status, "Ready", seen, "StatusCollectionFailed", why);
            }
            return (status, false);
        }
    };
    let asked = Instant::now();
    let seen = member::observe(&member.client).await;
    let is_pulled = cluster["spec"]["syncMode"] == "Pull";
    if seen.health.ready {
        hub.answered().insert(name.to_owned(), asked);
        if is_pulled && let Err(error) = heartbeat::renew(hub, cluster).await {
            tracing::debug!(member = name, %error, "its Lease is not renewed");
        }
    }
    // Of a member that dials out nothing is known when its agent is silent (karmada.md 20).
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
        return (status, false);
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
    let (Ok(nodes), Ok(pods)) = (Resource::named("v1", "Node"), Resource::named("v1", "Pod")) else {
        return (status, true);
    };
    if let (Some(nodes), Some(pods)) =
        tokio::join!(member.mirror(&nodes, None, quiet), member.mirror(&pods, None, quiet))
    {
        let models: Vec<ResourceModel> =
            serde_json::from_value(cluster["spec"]["resourceModels"].clone()).unwrap_or_default();
        let (nodes, resources) = member::summary(&nodes.list(), &pods.list(), &models);
        status["nodeSummary"] = nodes;
        status["resourceSummary"] = resources;
    }
    (status, true)
}

/// A condition of a status, by its type.
pub(super) fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// Whether a member's `Ready` condition is true.
pub(super) fn is_ready(cluster: &Value) -> bool {
    condition(&cluster["status"], "Ready").is_some_and(|ready| ready["status"] == "True")
}

/// Sets a condition in a status, also in one that is not there yet; its time changes only with its status.
pub(super) fn set_condition(status: &mut Value, kind: &str, value: &str, reason: &str, message: &str) {
    let before = condition(status, kind);
    let since = before.filter(|c| c["status"] == value).map(|c| c["lastTransitionTime"].clone());
    let since = since.unwrap_or_else(|| super::write::now().into());
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

/// Puts back what others have said of a member while it was asked.
fn keep_others(status: &mut Value, now: &Value) {
    let of = |status: &Value| status["conditions"].as_array().cloned().unwrap_or_default();
    let is_ours = |condition: &Value| CONDITIONS.iter().any(|ours| condition["type"] == *ours);
    let others = of(now).into_iter().filter(|condition| !is_ours(condition));
    let all: Vec<Value> = of(status).into_iter().filter(is_ours).chain(others).collect();
    if !all.is_empty() {
        status["conditions"] = all.into();
    }
}

/// Keeps new workloads away from a member that is not ready, and after some time sends away what is there (Karmada's cluster
/// controller); when to look again.
async fn taint(hub: &Hub, name: &str) -> Result<Again, Trouble> {
    let Some(cluster) = hub.own.clusters.get("", name) else { return Ok(None) };
    let (read, _) = model::read::<Cluster>(&cluster)?;
    let ready = read.status.conditions.iter().find(|condition| condition.type_ == "Ready");
    let (after, again) = taint::wanted(&read.spec.taints, ready, jiff::Timestamp::now(), &hub.patience);
    let all = hub.taint_policies();
    let acting: Vec<ClusterTaintPolicy> =
        all.iter().filter(|policy| super::policies::tainted_by(policy, &all).is_empty()).cloned().collect();
    let own = after.len();
    let after = tainting::by_policies(&read, after, &acting, jiff::Timestamp::now());
    let from = if after.len() == own { FROM } else { FROM_TAINTS };
    if after == read.spec.taints {
        return Ok(again);
    }
    let said: Vec<String> = after.iter().map(|taint| format!("{}:{:?}", taint.key, taint.effect)).collect();
    let taints = if after.is_empty() { Value::Null } else { serde_json::to_value(after)? };
    let patch = json!({"metadata": {"resourceVersion": meta::resource_version(&cluster)}, "spec": {"taints": taints}});
    if let Err(error) = hub.merge_cluster(name, &patch).await {
        // Somebody else has written it since: it is looked at again.
        if !error.is_conflict() {
            hub.events.warning(&cluster, from, "TaintClusterFailed", format!("Its taints cannot be written: {error}"));
        }
        return Err(error.into());
    }
    let said = if said.is_empty() { "none".to_owned() } else { said.join(", ") };
    hub.events.normal(&cluster, from, "TaintClusterSucceed", format!("Its taints are: {said}."));
    Ok(again)
}

/// A member leaves: its Works go, and with them what they brought, if it can still be reached; then its namespace, and
/// at last the Cluster itself.
async fn end(hub: &Hub, name: &str, cluster: &Value) -> Result<Again, Trouble> {
    if !meta::finalizers(cluster).contains(&label::CLUSTER_FINALIZER) {
        return Ok(None);
    }
    let space = name::execution_namespace(name);
    let namespaces = Resource::named("v1", "Namespace")?;
    match objects::delete(&hub.client, &namespaces, None, &space, None).await {
        Ok(false) => {}
        Ok(true) => return Ok(Some(ENDING)),
        Err(error) => {
            let message = format!("Failed to remove execution space({space}): {error}");
            hub.events.warning(cluster, FROM, "RemoveExecutionSpaceFailed", message);
            return Err(error.into());
        }
    }
    // Whoever takes out a member that dials in cannot reach it, and soon the hub cannot either.
    if member::is_pull(cluster) && meta::annotation(cluster, label::ACCOUNT_LEFT).is_none() {
        let left = match hub.member(name) {
            Some(member) => member::dismiss(&member.client, name).await.unwrap_or_default(),
            None => "the hub has no credential of it".to_owned(),
        };
        let patch = json!({"metadata": {"annotations": {label::ACCOUNT_LEFT: left}}});
        return match hub.merge_cluster(name, &patch).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            Err(_) => Ok(None),
            Ok(_) => {
                // Who waits for its end looks now and then, and is to see this.
                tokio::time::sleep(ENDING).await;
                Ok(Some(Duration::ZERO))
            }
        };
    }
    // Nobody comes in by a token that was made for it.
    crate::gate::token::forget(&hub.client, name).await?;
    let message = format!("Removed execution space({space}) of cluster({name}).");
    hub.events.normal(cluster, FROM, "RemoveExecutionSpaceSucceed", message);
    hub.let_go(&hub.own.clusters, cluster, label::CLUSTER_FINALIZER).await?;
    Ok(None)
}

impl Hub {
    /// A member has changed: itself, and all that depends on what it is and whether it is ready.
    pub(super) fn cluster_changed(&self, before: Option<&Arc<Value>>, now: Option<&Arc<Value>>) {
        let Some(cluster) = now.or(before) else { return };
        self.queues.clusters.add(meta::name(cluster).to_owned());
        let over = before.is_some_and(|before| now.is_none_or(|now| gate::epoch(before) != gate::epoch(now)));
        if let Some(relay) = self.ways.relay.as_ref().filter(|_| over) {
            relay.forget(meta::name(cluster));
        }
        let mesh = |cluster: &Arc<Value>| meta::annotation(cluster, crate::mesh::MESH).map(str::to_owned);
        if before.and_then(mesh) != now.and_then(mesh) {
            for binding in self.own.bindings.keys() {
                self.queues.depend.add(binding);
            }
        }
        let facts = |cluster: &Value| {
            let enabled = !cluster["status"]["apiEnablements"].is_null();
            json!([
                cluster["spec"],
                cluster["metadata"]["labels"],
                cluster["metadata"]["deletionTimestamp"],
                is_ready(cluster),
                enabled
            ])
        };
        if before.map(|b| facts(b)) == now.map(|n| facts(n)) {
            return;
        }
        self.queues.impersonate.add(meta::name(cluster).to_owned());
        for bindings in self.own.all_bindings() {
            for binding in bindings.keys() {
                self.queues.schedule.add(binding);
            }
        }
        self.look_at_evictions();
        self.retry_works(meta::name(cluster));
        if meta::deletion_timestamp(cluster).is_some() {
            // What leaves with it may have to wait, and its binding says for what.
            let works = self.own.works.of_namespace(&name::execution_namespace(meta::name(cluster)));
            for binding in works.iter().filter_map(|work| binding_of(work)) {
                self.queues.bind.add(binding);
            }
        }
    }

    /// Connects a member, or connects it anew if it is reached in another way now. Why it cannot be reached at all where
    /// it cannot: then there is none.
    fn keep_connected(&self, name: &str, cluster: &Value, secret: Option<&Value>) -> Result<Arc<Member>, String> {
        if let Some(member) = self.member(name).filter(|member| member.is_of(cluster, secret)) {
            return Ok(member);
        }
        let connected = secret.ok_or_else(|| "the hub has no credential of it".to_owned()).and_then(|secret| {
            let connected = Member::connect(cluster, secret, &self.ways, &self.stop, &self.tasks);
            connected.map_err(|error| format!("the hub cannot reach it: {error}"))
        });
        match connected {
            Ok(member) => self.put_member(name, member),
            Err(why) => {
                self.forget_member(name);
                return Err(why);
            }
        }
        self.member(name).ok_or_else(|| "the hub stops".to_owned())
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
