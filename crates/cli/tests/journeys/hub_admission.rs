//! What a hub takes and what it refuses, as `kubectl apply` says it: policies in the shapes of Karmada's documentation, broken
//! ones, and what is protected.

use std::path::{Path, PathBuf};

use tokio::process::Child;

use crate::hub::up;
use crate::programs;
use crate::world::{Run, World, finish, text};

/// A hub without members.
struct Hub {
    world: World,
    kubectl: PathBuf,
    _process: Child,
}

impl Hub {
    async fn start() -> Option<Self> {
        let kubectl = programs::program("STOLOS_KUBECTL")?;
        let world = World::new();
        let process = up(&world).await;
        Some(Self { world, kubectl, _process: process })
    }

    async fn kubectl(&self, args: &[&str]) -> Run {
        finish(self.world.program(&self.kubectl, ["--kubeconfig", "hub/kubeconfig"].iter().chain(args))).await
    }

    /// What kubectl says of each file of a folder beside the hub's own tests.
    async fn applied(&self, folder: &str) -> Vec<(String, Run)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hub/tests").join(folder);
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let mut all = Vec::new();
        for file in files {
            let name = file.file_stem().unwrap().to_string_lossy().into_owned();
            all.push((name, self.kubectl(&["apply", "--dry-run=server", "-f", text(&file)]).await));
        }
        all
    }
}

/// What kubectl said, without where the file is.
fn plain(err: &str) -> String {
    let lines = err.lines().map(|line| match line.split_once("error when creating \"") {
        Some((before, rest)) => {
            let after = rest.split_once("\": ").map_or(rest, |(_, after)| after);
            format!("{before}{after}")
        }
        None => line.to_owned(),
    });
    lines.map(|line| format!("  {line}\n")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_are_taken_or_refused_when_they_are_written() {
    let Some(hub) = Hub::start().await else { return };
    // Some of the policies are for it.
    hub.kubectl(&["create", "namespace", "shop"]).await.ends_with(0);
    // Karmada's shapes are taken; what of them does nothing is told at once.
    let mut told = String::new();
    for (name, run) in hub.applied("policies").await {
        let run = run.ends_with(0);
        if !run.err.is_empty() {
            told += &format!("{name}\n{}", plain(&run.err));
        }
    }
    insta::assert_snapshot!(told, @"
    failover
      Warning: spec.failover.application.statePreservation: reaches the next copy only where the old one goes first; write purgeMode: Directly
    preemption
      Warning: spec.placement.workloadAffinity: the hub takes it and does not act on it yet
    warned-copies
      Warning: spec.placement.clusterTolerations[0]: tolerates nothing: no taint PreferNoSchedule keeps anything away; take it out
      Warning: spec.placement.replicaScheduling.replicaDivisionPreference: is not looked at: every cluster gets all replicas; write replicaSchedulingType: Divided
    warned-overrides
      Warning: spec.resourceSelectors[0].labelSelector: is not looked at beside a name; take one of the two out
      Warning: spec.overrideRules[0].overriders: is empty: nothing is changed; write one, as plaintext
      Warning: spec.overrideRules[1].overriders.imageOverrider[0].value: is neither a tag nor a digest: the image stays as it is; write one, as v2
      Warning: spec.overrideRules[1].overriders.imageOverrider[1].value: is not looked at with operator: remove; take one of the two out
      Warning: spec.overrideRules[1].overriders.argsOverrider[0].value: is empty: nothing is changed; write which words
      Warning: spec.overrideRules[1].overriders.labelsOverrider[0].value: is empty: nothing is changed; write which keys
      Warning: spec.overrideRules[1].overriders.fieldOverrider[0].yaml[0].value: is not looked at with operator: remove; take one of the two out
      Warning: spec.overrideRules[1].overriders.plaintext[0].value: is not looked at with operator: remove; take one of the two out
    warned
      Warning: spec.resourceSelectors[0].labelSelector: is not looked at beside a name; take one of the two out
      Warning: spec.association: is the old name of propagateDeps; write propagateDeps: true
      Warning: spec.schedulerName: is not the hub's; somebody else has to schedule; default-scheduler is the hub's
      Warning: spec.placement.replicaScheduling.weightPreference: is not looked at with Aggregated; write replicaDivisionPreference: Weighted
      Warning: spec.placement.spreadConstraints[0].maxGroups: is 0, which chooses nothing; write how many at most
      Warning: spec.placement.spreadConstraints[1]: is not counted; regions and clusters are counted; here only clusters that have none are left out
    ");
    // And what makes no sense is refused, with where and why.
    let mut refused = String::new();
    for (name, run) in hub.applied("refused").await {
        assert_eq!(run.code, Some(1), "{name}: {}", run.out);
        refused += &format!("{name}\n{}", plain(&run.err));
    }
    insta::assert_snapshot!(refused, @r#"
    elsewhere
      Error from server (Forbidden): admission webhook "policies.hub.stolos.dev" denied the request: spec.resourceSelectors[0].namespace: is other, and the policy is of namespace default; take it out, write the policy in other, or use a cluster-wide one
    failover-without-dependencies
      The PropagationPolicy "failover-without-dependencies" is invalid: 
      * spec: Invalid value: "object": application failover is set, propagateDeps must be true
      * spec.failover.application.gracePeriodSeconds: Invalid value: "object": only takes effect when purgeMode is gracefully
    field-and-label
      The PropagationPolicy "field-and-label" is invalid: spec.placement.spreadConstraints[0]: Invalid value: "object": spreadByLabel should not co-exist with spreadByField
    names-twice
      Error from server (Forbidden): admission webhook "policies.hub.stolos.dev" denied the request: spec.placement.clusterAffinities[1].affinityName: is primary for the second time; give each group its own name
    no-kind
      The PropagationPolicy "no-kind" is invalid: 
      * spec.resourceSelectors[0].kind: Required value
      * <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation
    no-selector
      The PropagationPolicy "no-selector" is invalid: 
      * spec.resourceSelectors: Invalid value: 0: spec.resourceSelectors in body should have at least 1 items
      * <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation
    overflow-without-room
      Error from server (Forbidden): admission webhook "policies.hub.stolos.dev" denied the request: spec.placement.clusterAffinities[0].overflowAffinities: is for divisions that look at room; write replicaSchedulingType: Divided with dynamicWeight: AvailableReplicas or Aggregated
    override-arguments
      Error from server (Forbidden): admission webhook "policies.hub.stolos.dev" denied the request: spec.overrideRules[0].overriders.imageOverrider[0].predicate.path: does not begin with /; write a JSON pointer to the image
      spec.overrideRules[0].overriders.argsOverrider[0].containerName: is empty; name the container
    override-container
      The ClusterOverridePolicy "override-container" is invalid: 
      * spec.overrideRules[0].targetCluster.fieldSelector.matchExpressions[0].key: Unsupported value: "planet": supported values: "provider", "region", "zone"
      * <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation
    override-field
      Error from server (Forbidden): admission webhook "policies.hub.stolos.dev" denied the request: spec.overrideRules[0].overriders.fieldOverrider[0].fieldPath: does not begin with /; write a JSON pointer, as /spec/replicas
      spec.overrideRules[0].overriders.fieldOverrider[0]: has not one of json and yaml; write what the text is: json or yaml
      spec.overrideRules[0].overriders.fieldOverrider[0].json[0].subPath: does not begin with /; write a JSON pointer, as /spec/replicas
    override-old-and-new
      The OverridePolicy "override-old-and-new" is invalid: 
      * spec.targetCluster: Invalid value: "object": overrideRules and targetCluster can't co-exist
      * spec.overriders: Invalid value: "object": overrideRules and overriders can't co-exist
    preempts-everything
      The ClusterPropagationPolicy "preempts-everything" is invalid: spec.resourceSelectors: Invalid value: "object": name cannot be empty if preemption is Always, the empty name may cause unexpected resources preemption
    regions-twice
      The PropagationPolicy "regions-twice" is invalid: 
      * spec.placement.spreadConstraints: Invalid value: "array": multiple region spread constraints are not allowed
      * spec.placement.spreadConstraints[0]: Invalid value: "object": maxGroups lower than minGroups is not allowed
    regions-without-clusters
      The PropagationPolicy "regions-without-clusters" is invalid: spec.placement.spreadConstraints: Invalid value: "array": the cluster spread constraint must be enabled in one of the constraints in case of SpreadByField is enabled
    script-in-no-place
      Error from server (BadRequest): ResourceInterpreterCustomization in version "v1alpha1" cannot be handled as a ResourceInterpreterCustomization: strict decoding error: unknown field "spec.customizations.healthInterpreter"
    script-that-cannot-be-read
      Error from server (Forbidden): admission webhook "interpreters.hub.stolos.dev" denied the request: InterpreterOperation(InterpretHealth) Lua script error: the script cannot be read: luaScript:3: Expected identifier when parsing expression, got 'end'
    state-nowhere
      Error from server (Forbidden): admission webhook "policies.hub.stolos.dev" denied the request: spec.failover.cluster.statePreservation.rules[0].aliasLabelName: is "not a label": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]'); write the key of a label
      spec.failover.cluster.statePreservation.rules[0].jsonPath: is "{.jobID": a brace is not closed; write where it is in the status, as {.jobID}
      spec.failover.cluster.statePreservation.rules[1].jsonPath: has no path in braces; write where it is in the status, as {.jobID}
    suspended-twice
      The PropagationPolicy "suspended-twice" is invalid: spec.suspension: Invalid value: "object": suspension dispatching cannot co-exist with dispatchingOnClusters.clusterNames
    taint-of-all
      Error from server (Forbidden): admission webhook "policies.hub.stolos.dev" denied the request: spec.addOnConditions[0].statusValues: has "Yes"; write True, False or Unknown
      spec.taints[1]: is not-ready:NoExecute for the second time; take one of the two out
    tolerates-for-a-time
      Error from server (Forbidden): admission webhook "policies.hub.stolos.dev" denied the request: spec.placement.clusterTolerations[0].tolerationSeconds: is for effect NoExecute only; take one of the two out
    tolerates-more-than
      Error from server (Forbidden): admission webhook "policies.hub.stolos.dev" denied the request: spec.placement.clusterTolerations[0].operator: is Gt; write Exists or Equal
    two-affinities
      The PropagationPolicy "two-affinities" is invalid: spec.placement: Invalid value: "object": clusterAffinities cannot co-exist with clusterAffinity
    unknown-field
      Error from server (BadRequest): PropagationPolicy in version "v1alpha1" cannot be handled as a PropagationPolicy: strict decoding error: unknown field "spec.placement.clusterAffinity.clusterName"
    unknown-value
      The PropagationPolicy "unknown-value" is invalid: 
      * spec.placement.replicaScheduling.replicaSchedulingType: Unsupported value: "Divide": supported values: "Duplicated", "Divided"
      * <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation
    weight-zero
      The PropagationPolicy "weight-zero" is invalid: 
      * spec.placement.replicaScheduling.weightPreference.staticWeightList[0].weight: Invalid value: 0: spec.placement.replicaScheduling.weightPreference.staticWeightList[0].weight in body should be greater than or equal to 1
      * <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation
    "#);

    // Who does not want to be strict is told all the same, and what of Karmada's there is not is not taken.
    let unknown = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hub/tests/refused/unknown-field.yaml");
    let told = ["apply", "--dry-run=server", "--validate=warn", "-f", text(&unknown)];
    let told = hub.kubectl(&told).await.ends_with(0).err;
    assert!(told.contains(r#"Warning: unknown field "spec.placement.clusterAffinity.clusterName""#), "{told}");
    let quota = "apiVersion: policy.karmada.io/v1alpha1\nkind: FederatedResourceQuota\nmetadata: {name: all}\n";
    let quota = hub.world.write("quota.yaml", quota);
    let refused = hub.kubectl(&["apply", "-f", text(&quota)]).await.ends_with(1).err;
    assert!(refused.contains(r#"no matches for kind "FederatedResourceQuota""#), "{refused}");

    // What is protected stays until somebody says otherwise.
    hub.kubectl(&["create", "configmap", "precious"]).await.ends_with(0);
    let label = "resourcetemplate.karmada.io/deletion-protected";
    hub.kubectl(&["label", "configmap", "precious", &format!("{label}=Always")]).await.ends_with(0);
    let run = hub.kubectl(&["delete", "configmap", "precious"]).await.ends_with(1);
    insta::assert_snapshot!(run.err.trim_end(), @r#"Error from server (Forbidden): admission webhook "deletion.hub.stolos.dev" denied the request: This resource is protected, please make sure to remove the label: resourcetemplate.karmada.io/deletion-protected"#);
    hub.kubectl(&["label", "configmap", "precious", &format!("{label}-")]).await.ends_with(0);
    hub.kubectl(&["delete", "configmap", "precious"]).await.ends_with(0);
}
