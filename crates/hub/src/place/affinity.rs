//! Whether a cluster is meant, and whether its taints matter.

use crate::model::{
    Cluster, ClusterAffinity, FieldOperator, Requirement, Taint, TaintEffect, Toleration, TolerationOperator,
};

/// Whether a cluster is meant.
#[must_use]
pub fn matches(affinity: &ClusterAffinity, cluster: &Cluster) -> bool {
    mismatch(affinity, cluster).is_none()
}

/// Why a cluster is not meant.
pub(super) fn mismatch(affinity: &ClusterAffinity, cluster: &Cluster) -> Option<String> {
    let name = &cluster.metadata.name;
    if affinity.excluded.contains(name) {
        return Some("exclude names it".to_owned());
    }
    if affinity.label_selector.as_ref().is_some_and(|selector| !selector.matches(&cluster.metadata.labels)) {
        return Some("its labels are not those of labelSelector".to_owned());
    }
    let fields = affinity.field_selector.iter().flat_map(|selector| &selector.match_expressions);
    for Requirement { key, operator, values } in fields {
        let found: Vec<&str> = match key.as_str() {
            "provider" => vec![cluster.spec.provider.as_str()],
            "region" => vec![cluster.spec.region.as_str()],
            "zone" => cluster.spec.all_zones().collect(),
            _ => Vec::new(),
        };
        let listed = found.iter().any(|found| !found.is_empty() && values.iter().any(|value| value == found));
        if listed != (*operator == FieldOperator::In) {
            let found = if found.concat().is_empty() { "none".to_owned() } else { found.join(", ") };
            return Some(format!("its {key} is {found}"));
        }
    }
    (!affinity.clusters.is_empty() && !affinity.clusters.contains(name))
        .then(|| "clusterNames does not name it".to_owned())
}

/// Whether a toleration is for a taint.
#[must_use]
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    toleration.effect.is_none_or(|effect| effect == taint.effect)
        && (toleration.key.is_empty() || toleration.key == taint.key)
        && match toleration.operator {
            TolerationOperator::Exists => true,
            TolerationOperator::Equal => toleration.value == taint.value,
            TolerationOperator::Lt | TolerationOperator::Gt => false,
        }
}

/// The first taint that keeps new workloads away.
pub(super) fn untolerated<'a>(cluster: &'a Cluster, tolerations: &[Toleration]) -> Option<&'a Taint> {
    let keeps_away = |taint: &&Taint| taint.effect != TaintEffect::PreferNoSchedule;
    let tolerated = |taint: &Taint| tolerations.iter().any(|toleration| tolerates(toleration, taint));
    cluster.spec.taints.iter().filter(keeps_away).find(|taint| !tolerated(taint))
}

/// `key=value:effect`, as Kubernetes writes taints.
pub(super) fn written(taint: &Taint) -> String {
    let Taint { key, value, effect, .. } = taint;
    match value.as_str() {
        "" => format!("{key}:{effect:?}"),
        value => format!("{key}={value}:{effect:?}"),
    }
}
