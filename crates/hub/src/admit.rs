//! What a policy becomes when it is written, and which ones are refused (Karmada v1.18.2's webhooks).

mod overriding;
mod review;
mod tainting;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use stolos_k8s::meta;

use crate::divide::Algorithm;
use crate::evict::state::path_problem;
use crate::label;
use crate::model::{
    ClusterAffinity, Division, DynamicWeight, LabelOperator, LabelSelector, Placement, Preemption, Problem,
    PropagationPolicy, PropagationSpec, PurgeMode, ResourceSelector, SchedulingType, SpreadField, StatePreservation,
    TaintEffect, TolerationOperator,
};

pub use overriding::{default_override, override_problems, override_warnings};
pub use review::{Others, Verdict, customization_problem, judge, review};
pub use tainting::{taint_problems, taint_warnings};

/// Fills in what a PropagationPolicy or ClusterPropagationPolicy leaves open, as the API server's defaults and Karmada's
/// webhook do. `id` is the permanent id of a policy that has none yet.
pub fn default(policy: &mut Value, id: &str) {
    let home = meta::namespace(policy).to_owned();
    let (key, finalizer) = match home.as_str() {
        "" => (label::CLUSTER_POLICY_ID, label::CLUSTER_POLICY_FINALIZER),
        _ => (label::POLICY_ID, label::POLICY_FINALIZER),
    };
    if meta::label(policy, key).is_none_or(str::is_empty) {
        meta::set_label(policy, key, id);
    }
    if !meta::finalizers(policy).contains(&finalizer) && meta::deletion_timestamp(policy).is_none() {
        let finalizers = meta::metadata_mut(policy).entry("finalizers").or_insert(json!([]));
        if let Some(finalizers) = finalizers.as_array_mut() {
            finalizers.push(finalizer.into());
        }
    }
    let Some(spec) = policy.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for (field, value) in [
        ("priority", json!(0)),
        ("preemption", json!("Never")),
        ("conflictResolution", json!("Abort")),
        ("schedulerName", json!(label::DEFAULT_SCHEDULER)),
    ] {
        spec.entry(field).or_insert(value);
    }
    let mut imports = false;
    for selector in items(spec.get_mut("resourceSelectors")) {
        imports |= selector["kind"] == "ServiceImport";
        fill_namespace(selector, &home);
    }
    if imports {
        spec.insert("propagateDeps".to_owned(), json!(true));
    }
    if let Some(application) = spec.get_mut("failover").and_then(|failover| failover.get_mut("application")) {
        fill(application, "purgeMode", json!("Gracefully"));
        if ["Gracefully", "Graciously"].map(Value::from).contains(&application["purgeMode"]) {
            fill(application, "gracePeriodSeconds", json!(600));
        }
    }
    let Some(placement) = spec.get_mut("placement") else { return };
    for constraint in items(placement.get_mut("spreadConstraints")) {
        let empty = |field: &str| constraint.get(field).is_none_or(|value| *value == "" || value.is_null());
        if empty("spreadByField") && empty("spreadByLabel") {
            constraint["spreadByField"] = json!("cluster");
        }
        if constraint.get("minGroups").is_none_or(|least| *least == 0 || least.is_null()) {
            constraint["minGroups"] = json!(1);
        }
    }
    if let Some(scheduling) = placement.get_mut("replicaScheduling").filter(|scheduling| scheduling.is_object()) {
        fill(scheduling, "replicaSchedulingType", json!("Duplicated"));
        if scheduling["replicaSchedulingType"] == "Divided" {
            fill(scheduling, "replicaDivisionPreference", json!("Weighted"));
        }
    }
}

/// The objects of a list.
fn items(list: Option<&mut Value>) -> impl Iterator<Item = &mut Value> {
    list.and_then(Value::as_array_mut).into_iter().flatten().filter(|item| item.is_object())
}

/// Sets a field that is absent.
fn fill(object: &mut Value, field: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        let found = object.entry(field).or_insert(Value::Null);
        if found.is_null() {
            *found = value;
        }
    }
}

/// A selector of a namespaced policy is for the policy's namespace.
fn fill_namespace(selector: &mut Value, home: &str) {
    if !home.is_empty() && selector.get("namespace").is_none_or(|namespace| *namespace == "" || namespace.is_null()) {
        selector["namespace"] = home.into();
    }
}

/// What a policy is refused for.
#[must_use]
pub fn problems(policy: &PropagationPolicy) -> Vec<Problem> {
    let spec = &policy.spec;
    let mut found = Vec::new();
    let mut refuse = |path: &str, what: &str, instead: &str| found.push(Problem::new(path, what, instead));
    if spec.resource_selectors.is_empty() {
        refuse("spec.resourceSelectors", "is empty", "say which templates: apiVersion, kind, and a name or labels");
    }
    if spec.preemption == Preemption::Always
        && let Some(at) = spec.resource_selectors.iter().position(|selector| selector.name.is_empty())
    {
        refuse(
            &format!("spec.resourceSelectors[{at}].name"),
            "is empty, and preemption is Always",
            "name the template, or write preemption: Never",
        );
    }
    if let Some(suspension) = &spec.suspension
        && suspension.dispatching == Some(true)
        && suspension.dispatching_on_clusters.is_some()
    {
        refuse(
            "spec.suspension",
            "has both dispatching and dispatchingOnClusters",
            "keep one: all clusters, or those that are named",
        );
    }
    if let Some(priority) = &spec.schedule_priority {
        if priority.priority_class_source != "KubePriorityClass" {
            let what = format!("is {:?}", priority.priority_class_source);
            refuse("spec.schedulePriority.priorityClassSource", &what, "write KubePriorityClass");
        }
        if priority.priority_class_name.is_empty() {
            refuse("spec.schedulePriority.priorityClassName", "is empty", "name a PriorityClass of the hub");
        }
    }
    if spec.suspension.as_ref().is_some_and(|suspension| suspension.scheduling.is_some()) {
        refuse("spec.suspension.scheduling", "is a field of bindings", "take it out");
    }
    if let Some(application) = spec.failover.as_ref().and_then(|failover| failover.application.as_ref()) {
        if !spec.propagate_deps {
            refuse("spec.propagateDeps", "is false, and failover.application is given", "write propagateDeps: true");
        }
        if application.decision_conditions.toleration_seconds.is_some_and(|seconds| seconds < 0) {
            refuse(
                "spec.failover.application.decisionConditions.tolerationSeconds",
                "is less than 0",
                "write how long a workload may be unhealthy, in seconds",
            );
        }
        let path = "spec.failover.application.gracePeriodSeconds";
        let graceful = application.purge_mode.unwrap_or_default() == PurgeMode::Gracefully;
        match application.grace_period_seconds {
            Some(_) if !graceful => refuse(path, "is for purgeMode: Gracefully only", "take one of the two out"),
            Some(seconds) if seconds <= 0 => {
                refuse(path, "is not greater than 0", "write seconds, or take it out for 600")
            }
            _ => {}
        }
    }
    for (path, rules, _) in preserved(spec) {
        state_problems(rules, &path, &mut found);
    }
    for (at, selector) in spec.resource_selectors.iter().enumerate() {
        selector_problems(selector, &policy.metadata.namespace, &format!("spec.resourceSelectors[{at}]"), &mut found);
    }
    placement_problems(&spec.placement, &mut found);
    found
}

/// What of copies' status the next ones get, by whom, and how the old ones go.
fn preserved(spec: &PropagationSpec) -> Vec<(String, &StatePreservation, Option<PurgeMode>)> {
    let Some(failover) = &spec.failover else { return Vec::new() };
    let application = failover.application.as_ref().map(|it| ("application", &it.state_preservation, it.purge_mode));
    let cluster = failover.cluster.as_ref().map(|it| ("cluster", &it.state_preservation, it.purge_mode));
    let all = [application, cluster].into_iter().flatten();
    all.filter_map(|(of, rules, mode)| Some((format!("spec.failover.{of}.statePreservation"), rules.as_ref()?, mode)))
        .collect()
}

fn state_problems(rules: &StatePreservation, path: &str, found: &mut Vec<Problem>) {
    for (at, rule) in rules.rules.iter().enumerate() {
        let path = format!("{path}.rules[{at}]");
        if let Some(why) = meta::check_qualified_name(&rule.alias_label_name).into_iter().next() {
            let what = format!("is {:?}: {why}", rule.alias_label_name);
            found.push(Problem::new(format!("{path}.aliasLabelName"), what, "write the key of a label"));
        }
        if let Some(what) = path_problem(&rule.json_path) {
            let instead = "write where it is in the status, as {.jobID}";
            found.push(Problem::new(format!("{path}.jsonPath"), what, instead));
        }
    }
}

fn selector_problems(selector: &ResourceSelector, home: &str, path: &str, found: &mut Vec<Problem>) {
    for (field, value, example) in
        [("apiVersion", &selector.api_version, "apps/v1"), ("kind", &selector.kind, "Deployment")]
    {
        if value.is_empty() {
            found.push(Problem::new(format!("{path}.{field}"), "is empty", format!("write one, as {example}")));
        }
    }
    let other = &selector.namespace;
    if !home.is_empty() && !other.is_empty() && other != home {
        found.push(Problem::new(
            format!("{path}.namespace"),
            format!("is {other}, and the policy is of namespace {home}"),
            format!("take it out, write the policy in {other}, or use a cluster-wide one"),
        ));
    }
    if let Some(labels) = &selector.label_selector {
        label_problems(labels, &format!("{path}.labelSelector"), found);
    }
}

fn label_problems(selector: &LabelSelector, path: &str, found: &mut Vec<Problem>) {
    for (at, requirement) in selector.match_expressions.iter().enumerate() {
        let wants = matches!(requirement.operator, LabelOperator::In | LabelOperator::NotIn);
        if wants == requirement.values.is_empty() {
            let what = if wants { "is empty, and the operator compares with it" } else { "is for In and NotIn only" };
            found.push(Problem::new(
                format!("{path}.matchExpressions[{at}].values"),
                what,
                if wants { "write what the label may be" } else { "take it out" },
            ));
        }
    }
}

fn affinity_problems(affinity: &ClusterAffinity, path: &str, found: &mut Vec<Problem>) {
    if let Some(labels) = &affinity.label_selector {
        label_problems(labels, &format!("{path}.labelSelector"), found);
    }
    let fields = affinity.field_selector.iter().flat_map(|selector| &selector.match_expressions);
    for (at, requirement) in fields.enumerate() {
        let path = format!("{path}.fieldSelector.matchExpressions[{at}]");
        if !["provider", "region", "zone"].contains(&requirement.key.as_str()) {
            let what = format!("is {:?}", requirement.key);
            found.push(Problem::new(format!("{path}.key"), what, "write provider, region or zone"));
        }
        if requirement.values.is_empty() {
            found.push(Problem::new(format!("{path}.values"), "is empty", "write what the field may be"));
        }
    }
}

fn placement_problems(placement: &Placement, found: &mut Vec<Problem>) {
    let path = "spec.placement";
    if placement.cluster_affinity.is_some() && !placement.cluster_affinities.is_empty() {
        found.push(Problem::new(
            format!("{path}.clusterAffinities"),
            "stands beside clusterAffinity",
            "keep one of the two",
        ));
    }
    if let Some(affinity) = &placement.cluster_affinity {
        affinity_problems(affinity, &format!("{path}.clusterAffinity"), found);
    }
    let scheduling = placement.replica_scheduling.as_ref();
    let divided = scheduling.filter(|scheduling| scheduling.scheduling == SchedulingType::Divided);
    let by_room = divided.is_some_and(|scheduling| {
        let dynamic = scheduling.weights.as_ref().and_then(|weights| weights.dynamic);
        scheduling.division == Some(Division::Aggregated) || dynamic == Some(DynamicWeight::AvailableReplicas)
    });
    let mut names = BTreeSet::new();
    for (at, term) in placement.cluster_affinities.iter().enumerate() {
        let path = format!("{path}.clusterAffinities[{at}]");
        let tiers = term.overflow.iter().enumerate();
        let tiers =
            tiers.map(|(tier, group)| (format!("{path}.overflowAffinities[{tier}]"), &group.name, &group.affinity));
        for (path, name, affinity) in std::iter::once((path.clone(), &term.name, &term.affinity)).chain(tiers) {
            affinity_problems(affinity, &path, found);
            if name.is_empty() {
                found.push(Problem::new(format!("{path}.affinityName"), "is empty", "give each group a name"));
            } else if !names.insert(name) {
                let what = format!("is {name} for the second time");
                found.push(Problem::new(format!("{path}.affinityName"), what, "give each group its own name"));
            }
        }
        if !term.overflow.is_empty() && !by_room {
            found.push(Problem::new(
                format!("{path}.overflowAffinities"),
                "is for divisions that look at room",
                "write replicaSchedulingType: Divided with dynamicWeight: AvailableReplicas or Aggregated",
            ));
        }
    }
    for (at, toleration) in placement.cluster_tolerations.iter().enumerate() {
        let path = format!("{path}.clusterTolerations[{at}]");
        let exists = toleration.operator == TolerationOperator::Exists;
        if matches!(toleration.operator, TolerationOperator::Lt | TolerationOperator::Gt) {
            let what = format!("is {:?}", toleration.operator);
            found.push(Problem::new(format!("{path}.operator"), what, "write Exists or Equal"));
        } else if exists && !toleration.value.is_empty() {
            found.push(Problem::new(format!("{path}.value"), "is for operator Equal only", "take it out"));
        } else if toleration.toleration_seconds.is_some()
            && matches!(toleration.effect, Some(TaintEffect::NoSchedule | TaintEffect::PreferNoSchedule))
        {
            found.push(Problem::new(
                format!("{path}.tolerationSeconds"),
                "is for effect NoExecute only",
                "take one of the two out",
            ));
        } else if toleration.key.is_empty() && !exists {
            found.push(Problem::new(
                format!("{path}.key"),
                "is empty",
                "write a taint's key, or operator: Exists for all",
            ));
        }
    }
    spread_problems(placement, found);
    let weights = scheduling.and_then(|scheduling| scheduling.weights.as_ref());
    for (at, rule) in weights.iter().flat_map(|weights| &weights.fixed).enumerate() {
        let path = format!("{path}.replicaScheduling.weightPreference.staticWeightList[{at}]");
        affinity_problems(&rule.target_cluster, &format!("{path}.targetCluster"), found);
        if rule.weight < 1 {
            let what = format!("is {}", rule.weight);
            let instead = "write 1 or more; a cluster that no rule means gets nothing";
            found.push(Problem::new(format!("{path}.weight"), what, instead));
        }
    }
}

fn spread_problems(placement: &Placement, found: &mut Vec<Problem>) {
    let path = "spec.placement.spreadConstraints";
    let constraints = &placement.spread_constraints;
    let by_field = |field| constraints.iter().any(|constraint| constraint.spread_by_field == Some(field));
    let mut fields = BTreeSet::new();
    for (at, constraint) in constraints.iter().enumerate() {
        let path = format!("{path}[{at}]");
        let (least, most) = (constraint.min_groups, constraint.max_groups);
        if constraint.spread_by_field.is_some() && !constraint.spread_by_label.is_empty() {
            found.push(Problem::new(&path, "has both spreadByField and spreadByLabel", "keep spreadByField"));
        }
        for (field, value) in [("minGroups", least), ("maxGroups", most)] {
            if value < 0 {
                found.push(Problem::new(format!("{path}.{field}"), format!("is {value}"), "write a number from 1"));
            }
        }
        if most > 0 && most < least {
            let what = format!("is {most}, and minGroups is {least}");
            found.push(Problem::new(format!("{path}.maxGroups"), what, "write as many or more"));
        }
        if let Some(field) = constraint.spread_by_field.filter(|field| !fields.insert(*field)) {
            let what = format!("is {field:?} for the second time").to_lowercase();
            found.push(Problem::new(format!("{path}.spreadByField"), what, "one constraint for each field"));
        }
    }
    if !fields.is_empty() && !by_field(SpreadField::Cluster) {
        found.push(Problem::new(
            path,
            "counts something, but no clusters",
            "add spreadByField: cluster with minGroups and maxGroups",
        ));
    }
}

/// What of selectors nobody looks at.
fn selector_warnings(selectors: &[ResourceSelector]) -> Vec<Problem> {
    let both = selectors.iter().enumerate().filter(|(_, it)| !it.name.is_empty() && it.label_selector.is_some());
    let warn = |(at, _)| {
        let path = format!("spec.resourceSelectors[{at}].labelSelector");
        Problem::new(path, "is not looked at beside a name", "take one of the two out")
    };
    both.map(warn).collect()
}

/// What of an accepted policy does nothing, or not what it seems to.
#[must_use]
pub fn warnings(policy: &PropagationPolicy, algorithm: Algorithm) -> Vec<Problem> {
    let spec = &policy.spec;
    let placement = &spec.placement;
    let mut found = selector_warnings(&spec.resource_selectors);
    let mut warn = |path: &str, what: &str, instead: &str| found.push(Problem::new(path, what, instead));
    if algorithm == Algorithm::V1_2 && spec.priority != 0 {
        let instead = "give it a name that comes earlier; with preemption: Always it counts";
        warn("spec.priority", "is not looked at: v1.2, by which this hub decides, takes the first name", instead);
    }
    if spec.association {
        warn("spec.association", "is the old name of propagateDeps", "write propagateDeps: true");
    }
    if !spec.scheduler_name.is_empty() && spec.scheduler_name != label::DEFAULT_SCHEDULER {
        warn("spec.schedulerName", "is not the hub's", "somebody else has to schedule; default-scheduler is the hub's");
    }
    let not_built = "the hub takes it and does not act on it yet";
    if placement.workload_affinity.is_some() {
        warn("spec.placement.workloadAffinity", not_built, "");
    }
    for (path, _, mode) in preserved(spec) {
        if mode != Some(PurgeMode::Directly) {
            warn(&path, "reaches the next copy only where the old one goes first", "write purgeMode: Directly");
        }
    }
    for (at, toleration) in placement.cluster_tolerations.iter().enumerate() {
        if toleration.effect == Some(TaintEffect::PreferNoSchedule) {
            let path = format!("spec.placement.clusterTolerations[{at}]");
            warn(&path, "tolerates nothing: no taint PreferNoSchedule keeps anything away", "take it out");
        }
    }
    let scheduling = placement.replica_scheduling.as_ref();
    if scheduling.is_some_and(|it| it.scheduling == SchedulingType::Duplicated && it.division.is_some()) {
        let path = "spec.placement.replicaScheduling.replicaDivisionPreference";
        warn(path, "is not looked at: every cluster gets all replicas", "write replicaSchedulingType: Divided");
    }
    let weights = scheduling.and_then(|scheduling| scheduling.weights.as_ref());
    if let (Some(scheduling), Some(weights)) = (scheduling, weights) {
        let path = "spec.placement.replicaScheduling.weightPreference";
        if scheduling.scheduling == SchedulingType::Duplicated {
            warn(path, "is not looked at: every cluster gets all replicas", "write replicaSchedulingType: Divided");
        } else if scheduling.division == Some(Division::Aggregated) {
            warn(path, "is not looked at with Aggregated", "write replicaDivisionPreference: Weighted");
        } else if weights.dynamic.is_some() && !weights.fixed.is_empty() {
            warn(
                &format!("{path}.staticWeightList"),
                "is not looked at beside dynamicWeight",
                "take one of the two out",
            );
        }
    }
    let fixed = scheduling.is_some_and(|scheduling| {
        scheduling.scheduling == SchedulingType::Divided
            && scheduling.division != Some(Division::Aggregated)
            && scheduling.weights.as_ref().is_none_or(|weights| weights.dynamic.is_none())
    });
    for (at, constraint) in placement.spread_constraints.iter().enumerate() {
        let path = format!("spec.placement.spreadConstraints[{at}]");
        if fixed {
            warn(&path, "is not looked at: static weights are for all candidates", "use dynamicWeight, or take it out");
        } else if !constraint.spread_by_label.is_empty() {
            warn(&format!("{path}.spreadByLabel"), "nothing is spread by labels", "write spreadByField");
        } else if matches!(constraint.spread_by_field, Some(SpreadField::Zone | SpreadField::Provider)) {
            let instead = "regions and clusters are counted; here only clusters that have none are left out";
            warn(&path, "is not counted", instead);
        } else if constraint.max_groups == 0 {
            warn(&format!("{path}.maxGroups"), "is 0, which chooses nothing", "write how many at most");
        }
    }
    found
}

#[cfg(test)]
mod tests;
