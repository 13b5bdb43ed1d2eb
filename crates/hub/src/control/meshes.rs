//! Which mesh members are in: what they say themselves, kept on their Clusters, where placement finds it.

use std::sync::Arc;

use serde_json::{Value, json};
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::meta;

use super::Hub;
use super::members::Member;
use crate::mesh;
use crate::model::{Cluster, TargetCluster};
use crate::queue::Trouble;

/// What `stolos apply` leaves in every cluster of a mesh.
const MEMBERSHIP: (&str, &str) = ("istio-system", "stolos-mesh");

/// Looks at one member that is ready.
pub(super) async fn look(hub: &Hub, name: &str, member: &Member) -> Result<(), Trouble> {
    let maps = Resource::named("v1", "ConfigMap")?;
    let membership = objects::get(&member.client, &maps, Some(MEMBERSHIP.0), MEMBERSHIP.1).await?;
    let pods = Resource::named("v1", "Pod")?;
    let Some(pods) = member.mirror(&pods, None, || Box::new(|_, _| {})).await else { return Ok(()) };
    let gateways: Vec<bool> = (pods.list().iter())
        .filter(|pod| meta::label(pod, "istio") == Some("eastwestgateway"))
        .map(|pod| {
            let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        })
        .collect();
    let seen = mesh::seen(membership.as_ref(), &gateways);
    let Some(cluster) = hub.own.clusters.get("", name) else { return Ok(()) };
    let mut patch = json!({});
    for key in [mesh::MESH, mesh::GATEWAY] {
        let wanted = seen.get(key).map(String::as_str);
        if meta::annotation(&cluster, key) != wanted {
            patch[key] = wanted.into();
        }
    }
    if mesh::is_over(&cluster, jiff::Timestamp::now()) {
        tracing::info!(name, "what was measured from it is too old: its distances count no more");
        (patch[mesh::LATENCY], patch[mesh::MEASURED]) = (Value::Null, Value::Null);
    }
    if patch != json!({}) {
        let patch = json!({"metadata": {"annotations": patch}});
        hub.merge_cluster(name, &patch).await?;
    }
    Ok(())
}

impl Hub {
    /// The Services that lead to a workload, and the members that are to have them besides where their policies put them.
    pub(super) fn company(&self, binding: &Value, workload: &Value) -> (Vec<Arc<Value>>, Value) {
        let nobody = (Vec::new(), Value::Null);
        if workload["spec"]["template"]["metadata"]["labels"].is_null() {
            return nobody;
        }
        let placed: Vec<TargetCluster> =
            serde_json::from_value(binding["spec"]["clusters"].clone()).unwrap_or_default();
        let going = |cluster: &Value| meta::deletion_timestamp(cluster).is_some();
        let clusters: Vec<Arc<Cluster>> = (self.own.clusters.list().iter())
            .filter(|cluster| meta::annotation(cluster, mesh::MESH).is_some() && !going(cluster))
            .filter_map(|cluster| self.cluster(cluster))
            .collect();
        let company = mesh::company(&placed, &clusters);
        let Some(services) = self.mirror_of("v1", "Service").filter(|_| !company.is_empty()) else { return nobody };
        let services = services.of_namespace(meta::namespace(workload)).into_iter();
        let leading = services.filter(|it| meta::deletion_timestamp(it).is_none() && mesh::leads_to(it, workload));
        (leading.collect(), company.into_iter().map(|name| json!({"name": name})).collect())
    }

    /// A Service has changed: the workloads that it leads to, or led to, are looked at.
    pub(super) fn tell_led_to(&self, service: &Value, own: Option<&Value>) {
        let namespace = meta::namespace(service);
        let required = own.into_iter().flat_map(|own| own["spec"]["requiredBy"].as_array()).flatten();
        for by in required.filter_map(|by| by["name"].as_str()) {
            self.queues.depend.add((namespace.to_owned(), by.to_owned()));
        }
        if !self.own.clusters.list().iter().any(|cluster| meta::annotation(cluster, mesh::MESH).is_some()) {
            return;
        }
        for binding in self.bindings_of(namespace).of_namespace(namespace) {
            let workload = self.template(&super::template::TemplateKey::of_binding(&binding));
            if workload.is_some_and(|(_, workload)| mesh::leads_to(service, &workload)) {
                self.queues.depend.add(crate::mirror::key(&binding));
            }
        }
    }
}
