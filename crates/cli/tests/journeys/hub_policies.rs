//! What a policy's fields do, one after the other: kubectl on the hub, and what the members then have.

use crate::hub::{Hub, MEMBERS, PATIENCE};
use crate::world::{eventually, text};

/// A ConfigMap and its policy, with something more in the policy.
fn config(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{from: hub}}\n---\n\
         apiVersion: policy.karmada.io/v1alpha1\nkind: PropagationPolicy\nmetadata: {{name: {name}}}\nspec:\n  \
         resourceSelectors: [{{apiVersion: v1, kind: ConfigMap, name: {name}}}]\n  \
         placement: {{clusterAffinity: {{clusterNames: [eu]}}}}\n{more}"
    )
}

/// A policy for one ConfigMap; `kind` is `PropagationPolicy` or `ClusterPropagationPolicy`.
fn policy(kind: &str, name: &str, of: &str, to: &str, more: &str) -> String {
    format!(
        "apiVersion: policy.karmada.io/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n  \
         resourceSelectors: [{{apiVersion: v1, kind: ConfigMap, name: {of}}}]\n  \
         placement: {{clusterAffinity: {{clusterNames: {to}}}}}\n{more}"
    )
}

/// A Deployment of one container, with something more in its pods, and a policy that takes along what it needs.
fn needing(name: &str, to: &str, pod: &str, container: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: 1\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    \
         spec:\n      {pod}\n      containers:\n      - {{name: main, image: stefanprodan/podinfo{container}}}\n---\n\
         apiVersion: policy.karmada.io/v1alpha1\nkind: PropagationPolicy\nmetadata: {{name: {name}}}\nspec:\n  \
         propagateDeps: true\n  resourceSelectors: [{{apiVersion: apps/v1, kind: Deployment, name: {name}}}]\n  \
         placement:\n    clusterAffinity: {{clusterNames: {to}}}\n"
    )
}

impl Hub {
    /// A hub whose members are `eu` and `ap`.
    async fn of_two() -> Option<Self> {
        let hub = Self::start().await?;
        for member in ["eu", "ap"] {
            hub.world.good(&["hub", "join", member, "--data", "hub"]).await;
        }
        Some(hub)
    }

    /// Waits until of `eu` and `ap` exactly these have an object.
    async fn only_in(&self, object: &[&str], members: &[&str]) {
        eventually(&format!("{object:?} in {members:?}"), PATIENCE, async || {
            let mut found = Vec::new();
            for member in ["eu", "ap"] {
                let run = self.in_member(member, &[&["get"], object].concat()).await;
                match run.code {
                    Some(0) => found.push(member),
                    _ if run.err.contains("NotFound") => {}
                    _ => return Err(run.err),
                }
            }
            if found == members { Ok(()) } else { Err(format!("it is in {found:?}")) }
        })
        .await;
    }

    /// Waits until what kubectl prints of an object of the hub is this.
    async fn hub_prints(&self, object: &[&str], path: &str, wanted: &str) {
        let path = format!("jsonpath={{{path}}}");
        let args = [&["get"], object, &["-o", &path]].concat();
        eventually(wanted, PATIENCE, async || {
            let run = self.kubectl(&args).await;
            if run.code == Some(0) && run.out == wanted { Ok(()) } else { Err(format!("{}{}", run.out, run.err)) }
        })
        .await;
    }
}

const HOLDER: &str = r".metadata.annotations.propagationpolicy\.karmada\.io/name";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preemption_takes_what_another_policy_has() {
    let Some(hub) = Hub::of_two().await else { return };
    let shared = ["configmap", "shared"];
    hub.kubectl(&["create", "configmap", "shared", "--from-literal=from=hub"]).await.ends_with(0);
    hub.apply("p.yaml", &policy("ClusterPropagationPolicy", "wide", "shared", "[eu]", "")).await;
    hub.only_in(&shared, &["eu"]).await;

    // A better one that takes from nobody waits until the template is free.
    hub.apply("p.yaml", &policy("PropagationPolicy", "patient", "shared", "[eu, ap]", "  priority: 9\n")).await;
    hub.kubectl(&["label", "configmap", "shared", "seen=yes"]).await.ends_with(0);
    hub.prints("eu", &shared, ".metadata.labels.seen", "yes").await;
    hub.only_in(&shared, &["eu"]).await;
    hub.hub_prints(&shared, r".metadata.annotations.clusterpropagationpolicy\.karmada\.io/name", "wide").await;

    // One of the namespace takes it from the whole hub's; only a higher priority takes it from that.
    let takes = "  preemption: Always\n";
    hub.apply("p.yaml", &policy("PropagationPolicy", "taker", "shared", "[ap]", takes)).await;
    hub.only_in(&shared, &["ap"]).await;
    hub.hub_prints(&shared, HOLDER, "taker").await;
    hub.hub_prints(&shared, r".metadata.annotations.clusterpropagationpolicy\.karmada\.io/name", "").await;
    let preempted = "Propagation policy(default/taker) preempted cluster propagation policy(wide) successfully";
    hub.says("ConfigMap", "shared", "PreemptPolicySucceed", preempted).await;
    hub.apply("p.yaml", &policy("PropagationPolicy", "equal", "shared", "[eu]", takes)).await;
    let higher = format!("{takes}  priority: 5\n");
    hub.apply("p.yaml", &policy("PropagationPolicy", "higher", "shared", "[eu]", &higher)).await;
    hub.only_in(&shared, &["eu"]).await;
    hub.hub_prints(&shared, HOLDER, "higher").await;
    let others = hub.world.good(&["why", "configmap/shared", "--data", "hub"]).await.out;
    assert!(
        others.contains("PropagationPolicy default/higher, which selects it by name, and has it already"),
        "{others}"
    );
    assert!(others.contains("not PropagationPolicy default/taker: its priority 0 is lower than 5"), "{others}");
}

/// `who` and `image` of every override say who was last.
fn overriding(kind: &str, to: &str, who: &str, more: &str) -> String {
    format!(
        "apiVersion: policy.karmada.io/v1alpha1\nkind: {kind}\nmetadata: {{name: web}}\nspec:\n  \
         resourceSelectors: [{{apiVersion: apps/v1, kind: Deployment, name: web}}]\n  overrideRules:\n  \
         - targetCluster: {{clusterNames: {to}}}\n    overriders:\n      \
         labelsOverrider: [{{operator: add, value: {{who: {who}}}}}]\n{more}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overrides_make_each_copy_its_own() {
    let Some(hub) = Hub::of_two().await else { return };
    let web = ["deployment", "web"];
    hub.apply("web.yaml", &needing("web", "[eu, ap]", "terminationGracePeriodSeconds: 0", "")).await;
    hub.only_in(&web, &["eu", "ap"]).await;
    // The whole hub's first, then the namespace's: later ones win.
    let environment = "      annotationsOverrider: [{operator: add, value: {zone: all}}]\n";
    hub.apply("o.yaml", &overriding("ClusterOverridePolicy", "[eu, ap]", "hub", environment)).await;
    let mirror = "      imageOverrider: [{component: Registry, operator: replace, value: docker.io/stefanprodan}]\n      \
                  argsOverrider: [{containerName: main, operator: add, value: [--port=9898]}]\n";
    hub.apply("o.yaml", &overriding("OverridePolicy", "[ap]", "namespace", mirror)).await;
    hub.prints("eu", &web, ".metadata.labels.who", "hub").await;
    hub.prints("ap", &web, ".metadata.labels.who", "namespace").await;
    hub.prints("ap", &web, ".metadata.annotations.zone", "all").await;
    let container = ".spec.template.spec.containers[0]";
    hub.prints("ap", &web, &format!("{container}.image"), "docker.io/stefanprodan/podinfo").await;
    hub.prints("ap", &web, &format!("{container}.args[0]"), "--port=9898").await;
    hub.prints("eu", &web, &format!("{container}.image"), "stefanprodan/podinfo").await;
    hub.prints("ap", &web, ".status.readyReplicas", "1").await;
    // The template is as it was written, and each Work says what was done to it.
    hub.hub_prints(&web, ".metadata.labels.who", "").await;
    let works = ["works", "-n", "karmada-es-ap", "-o"];
    let works = hub.kubectl(&[&["get"], &works[..], &["json"]].concat()).await.out;
    for applied in ["policy.karmada.io/applied-cluster-overrides", "policy.karmada.io/applied-overrides"] {
        assert!(works.contains(applied), "{applied} is not in {works}");
    }
    // What is taken back is as the template says.
    hub.kubectl(&["delete", "op", "web"]).await.ends_with(0);
    hub.prints("ap", &web, ".metadata.labels.who", "hub").await;
    hub.prints("ap", &web, &format!("{container}.image"), "stefanprodan/podinfo").await;
    hub.prints("ap", &web, &format!("{container}.args"), "").await;

    // Text inside a string; and of a rule's overriders plaintext is the last, wherever it stands.
    let text = r#"{from: hub, app.yaml: "host: db\nport: 80\n"}"#;
    hub.apply("settings.yaml", &config("settings", "").replacen("{from: hub}", text, 1)).await;
    let overriders = "apiVersion: policy.karmada.io/v1alpha1\nkind: OverridePolicy\nmetadata: {name: settings}\nspec:\n  \
                      resourceSelectors: [{apiVersion: v1, kind: ConfigMap, name: settings}]\n  overrideRules:\n  \
                      - targetCluster: {clusterNames: [eu]}\n    overriders:\n      \
                      plaintext: [{path: /metadata/labels/who, operator: replace, value: plaintext}]\n      \
                      fieldOverrider: [{fieldPath: /data/app.yaml, \
                      yaml: [{subPath: /port, operator: replace, value: 8080}]}]\n      \
                      labelsOverrider: [{operator: add, value: {who: labels}}]\n";
    hub.apply("settings-override.yaml", overriders).await;
    let settings = ["configmap", "settings"];
    hub.prints("eu", &settings, r".data.app\.yaml", "host: db\nport: 8080\n").await;
    hub.prints("eu", &settings, ".metadata.labels.who", "plaintext").await;
}

/// Every part of a placement, by what members then have: labels and fields of Clusters, names left out, taints, groups in
/// their order, regions, and as few clusters as hold it all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_part_of_a_placement_chooses() {
    let Some(hub) = Hub::start().await else { return };
    for (member, region, provider, zone, labels) in [
        ("eu", "europe", "blue", "e1", "tier=gold"),
        ("ap", "asia", "red", "a1", "tier=gold"),
        ("us", "europe", "blue", "e2", "tier=basic"),
    ] {
        let join = ["hub", "join", member, "--data", "hub", "--region", region, "--provider", provider];
        hub.world.good(&[&join[..], &["--zone", zone, "--labels", labels]].concat()).await;
    }
    // What each of them says of itself.
    let wide = hub.kubectl(&["get", "clusters", "-o", "wide"]).await.ends_with(0).out;
    let eu = wide.lines().find(|line| line.starts_with("eu")).unwrap_or_default();
    assert!(["[\"e1\"]", "europe", "blue"].iter().all(|said| eu.contains(said)), "{wide}");
    eventually("what eu has", PATIENCE, async || {
        let eu = hub.kubectl(&["get", "cluster", "eu", "-o", "json"]).await.ends_with(0).document();
        let status = &eu["status"];
        let (nodes, room) = (&status["nodeSummary"], &status["resourceSummary"]["allocatable"]);
        let serves = |version: &str| {
            status["apiEnablements"].as_array().into_iter().flatten().any(|known| known["groupVersion"] == version)
        };
        let well = nodes["readyNum"].as_i64() > Some(0) && nodes["readyNum"] == nodes["totalNum"];
        let said = ["cpu", "memory", "pods"].iter().all(|what| !room[*what].is_null());
        if well && said && serves("apps/v1") && serves("v1") { Ok(()) } else { Err(status.to_string()) }
    })
    .await;

    let taint = r#"{"spec":{"taints":[{"key":"maintenance","effect":"NoSchedule"}]}}"#;
    hub.kubectl(&["patch", "cluster", "us", "--type=merge", "-p", taint]).await.ends_with(0);
    let cases = [
        ("labels", "clusterAffinity: {labelSelector: {matchLabels: {tier: gold}}}", vec!["eu", "ap"]),
        (
            "fields",
            "clusterAffinity: {fieldSelector: {matchExpressions: [{key: provider, operator: In, values: [blue]}, \
             {key: zone, operator: NotIn, values: [e2]}]}}",
            vec!["eu"],
        ),
        ("tainted", "clusterAffinity: {}", vec!["eu", "ap"]),
        (
            "left-out",
            "clusterAffinity: {exclude: [eu]}, clusterTolerations: [{key: maintenance, operator: Exists}]",
            vec!["ap", "us"],
        ),
        (
            "regions",
            "clusterTolerations: [{operator: Exists}], spreadConstraints: [{spreadByField: region, minGroups: 2, \
             maxGroups: 2}, {spreadByField: cluster, minGroups: 2, maxGroups: 2}]",
            vec!["eu", "ap"],
        ),
        (
            "groups",
            "clusterAffinities: [{affinityName: first, clusterNames: [us]}, {affinityName: second, clusterNames: [ap]}]",
            vec!["ap"],
        ),
    ];
    for (name, placement, _) in &cases {
        let both = config(name, "").replacen(
            "placement: {clusterAffinity: {clusterNames: [eu]}}",
            &format!("placement: {{{placement}}}"),
            1,
        );
        hub.apply(&format!("{name}.yaml"), &both).await;
    }
    for (name, _, wanted) in &cases {
        eventually(name, PATIENCE, async || {
            let mut found = Vec::new();
            for member in MEMBERS {
                let run = hub.in_member(member, &["get", "configmap", name]).await;
                found.extend((run.code == Some(0)).then_some(member));
            }
            if found == *wanted { Ok(()) } else { Err(format!("it is in {found:?}, not in {wanted:?}")) }
        })
        .await;
    }
    hub.hub_prints(&["rb", "groups-configmap"], ".status.schedulerObservingAffinityName", "second").await;

    // As few as hold it: one.
    let together = divided(4, "[eu, ap, us]", "{}").replacen("Weighted", "Aggregated", 1);
    let together = together.replacen("      weightPreference: {}\n", "", 1);
    hub.apply("web.yaml", &together).await;
    eventually("all in one", PATIENCE, async || {
        let found = hub.replicas("web").await;
        if found.values().copied().eq([(4, 4)]) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_workload_needs_goes_along_for_as_long_as_somebody_needs_it() {
    let Some(hub) = Hub::of_two().await else { return };
    hub.kubectl(&["create", "secret", "generic", "shared", "--from-literal=key=secret"]).await.ends_with(0);
    hub.kubectl(&["create", "serviceaccount", "runner"]).await.ends_with(0);
    let secret = ", env: [{name: KEY, valueFrom: {secretKeyRef: {name: shared, key: key}}}]";
    hub.apply("web.yaml", &needing("web", "[eu]", "serviceAccountName: runner", secret)).await;
    let deps = "propagateDeps: true";
    let overwrites = needing("api", "[ap]", "terminationGracePeriodSeconds: 0", secret);
    hub.apply("api.yaml", &overwrites.replacen(deps, &format!("{deps}\n  conflictResolution: Overwrite"), 1)).await;
    hub.only_in(&["secret", "shared"], &["eu", "ap"]).await;
    hub.says("ResourceBinding", "shared-secret", "DependencyPolicyConflict", "Overwrite and true win").await;
    hub.only_in(&["serviceaccount", "runner"], &["eu"]).await;
    let along = "Sync schedule result to dependencies succeed.";
    hub.says("Deployment", "web", "SyncScheduleResultToDependenciesSucceed", along).await;
    hub.prints("eu", &["deployment", "web"], ".status.readyReplicas", "1").await;
    hub.prints("ap", &["deployment", "api"], ".status.readyReplicas", "1").await;

    // It follows who needs it, and goes with the last of them.
    hub.apply("api.yaml", &needing("api", "[eu]", "terminationGracePeriodSeconds: 0", secret)).await;
    hub.only_in(&["secret", "shared"], &["eu"]).await;
    hub.kubectl(&["delete", "deployment", "web"]).await.ends_with(0);
    hub.only_in(&["serviceaccount", "runner"], &[]).await;
    hub.only_in(&["secret", "shared"], &["eu"]).await;
    hub.kubectl(&["delete", "deployment", "api"]).await.ends_with(0);
    hub.only_in(&["secret", "shared"], &[]).await;
    hub.kubectl(&["get", "secret", "shared"]).await.ends_with(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_suspended_waits_and_is_resumed() {
    let Some(hub) = Hub::of_two().await else { return };
    // Before the first time.
    hub.apply("held.yaml", &config("held", "  suspension: {dispatching: true}\n")).await;
    hub.work_says("held", "Dispatching", "\"False\"").await;
    hub.in_member("eu", &["get", "configmap", "held"]).await.ends_with(1);
    hub.apply("held.yaml", &config("held", "")).await;
    hub.prints("eu", &["configmap", "held"], ".data.from", "hub").await;

    // What is there stays as it is, in those that are named.
    let to_both = |more: &str| policy("PropagationPolicy", "held", "held", "[eu, ap]", more);
    hub.apply("p.yaml", &to_both("  suspension: {dispatchingOnClusters: {clusterNames: [eu]}}\n")).await;
    hub.work_says("held", "Dispatching", "\"False\"").await;
    hub.kubectl(&["label", "configmap", "held", "edit=one"]).await.ends_with(0);
    hub.prints("ap", &["configmap", "held"], ".metadata.labels.edit", "one").await;
    hub.in_member("eu", &["delete", "configmap", "held"]).await.ends_with(0);
    hub.kubectl(&["label", "configmap", "held", "edit=two", "--overwrite"]).await.ends_with(0);
    hub.prints("ap", &["configmap", "held"], ".metadata.labels.edit", "two").await;
    hub.in_member("eu", &["get", "configmap", "held"]).await.ends_with(1);
    hub.apply("p.yaml", &to_both("")).await;
    hub.prints("eu", &["configmap", "held"], ".metadata.labels.edit", "two").await;

    // A binding that is not to be scheduled keeps its shares, whatever the template says.
    let divided = "    replicaScheduling: {replicaSchedulingType: Divided, replicaDivisionPreference: Weighted}\n";
    let web = needing("web", "[eu, ap]", "terminationGracePeriodSeconds: 0", "");
    hub.apply("web.yaml", &(web + divided)).await;
    hub.kubectl(&["scale", "deployment/web", "--replicas=2"]).await.ends_with(0);
    hub.runs("web", &[("eu", 1), ("ap", 1)]).await;
    let suspend = |scheduling: bool| format!(r#"{{"spec":{{"suspension":{{"scheduling":{scheduling}}}}}}}"#);
    hub.kubectl(&["patch", "rb", "web-deployment", "--type=merge", "-p", &suspend(true)]).await.ends_with(0);
    hub.kubectl(&["scale", "deployment/web", "--replicas=6"]).await.ends_with(0);
    hub.hub_prints(&["rb", "web-deployment"], ".spec.replicas", "6").await;
    hub.hub_prints(&["rb", "web-deployment"], ".spec.clusters[*].replicas", "1 1").await;
    hub.runs("web", &[("eu", 1), ("ap", 1)]).await;
    hub.kubectl(&["patch", "rb", "web-deployment", "--type=merge", "-p", &suspend(false)]).await.ends_with(0);
    hub.runs("web", &[("eu", 3), ("ap", 3)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lazy_policys_edits_wait_for_the_template() {
    let Some(hub) = Hub::of_two().await else { return };
    let lazy = "  activationPreference: Lazy\n";
    hub.apply("lazy.yaml", &config("lazy", lazy)).await;
    hub.prints("eu", &["configmap", "lazy"], ".data.from", "hub").await;
    // An eager one that is edited after it is carried out meanwhile.
    hub.apply("eager.yaml", &config("eager", "")).await;
    hub.only_in(&["configmap", "eager"], &["eu"]).await;
    hub.apply("p.yaml", &policy("PropagationPolicy", "lazy", "lazy", "[ap]", lazy)).await;
    hub.apply("p.yaml", &policy("PropagationPolicy", "eager", "eager", "[ap]", "")).await;
    hub.only_in(&["configmap", "eager"], &["ap"]).await;
    hub.only_in(&["configmap", "lazy"], &["eu"]).await;
    hub.kubectl(&["label", "configmap", "lazy", "now=yes"]).await.ends_with(0);
    hub.prints("ap", &["configmap", "lazy"], ".metadata.labels.now", "yes").await;
    hub.only_in(&["configmap", "lazy"], &["ap"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_somebody_elses_is_left_alone_unless_the_policy_says_otherwise() {
    let Some(hub) = Hub::of_two().await else { return };
    for name in ["taken", "given"] {
        hub.in_member("eu", &["create", "configmap", name, "--from-literal=from=member"]).await.ends_with(0);
    }
    hub.apply("taken.yaml", &config("taken", "")).await;
    hub.work_says("taken", "Applied", "already exists in the cluster eu and is not managed").await;
    hub.prints("eu", &["configmap", "taken"], ".data.from", "member").await;
    // Nor is it deleted with the template.
    hub.kubectl(&["delete", "configmap", "taken"]).await.ends_with(0);
    eventually("no Work", PATIENCE, async || {
        let works = hub.kubectl(&["get", "works", "-n", "karmada-es-eu", "-o", "name"]).await.out;
        if works.contains("taken") { Err(works) } else { Ok(()) }
    })
    .await;
    hub.prints("eu", &["configmap", "taken"], ".data.from", "member").await;
    hub.apply("taken.yaml", &config("taken", "  conflictResolution: Overwrite\n")).await;
    hub.prints("eu", &["configmap", "taken"], ".data.from", "hub").await;
    // The template's own word goes before the policy's.
    let word = "metadata: {name: given, annotations: {work.karmada.io/conflict-resolution: overwrite}}";
    hub.apply("given.yaml", &config("given", "").replacen("metadata: {name: given}", word, 1)).await;
    hub.prints("eu", &["configmap", "given"], ".data.from", "hub").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_preserved_stays_when_its_template_goes() {
    let Some(hub) = Hub::of_two().await else { return };
    hub.apply("kept.yaml", &config("kept", "  preserveResourcesOnDeletion: true\n")).await;
    hub.apply("gone.yaml", &config("gone", "")).await;
    let kept = ["configmap", "kept"];
    hub.prints("eu", &kept, r".metadata.labels.karmada\.io/managed", "true").await;
    hub.only_in(&["configmap", "gone"], &["eu"]).await;
    let pod = "volumes: [{name: settings, configMap: {name: needed}}]";
    let needing = needing("needs", "[eu]", pod, "")
        .replace("propagateDeps: true", "propagateDeps: true\n  preserveResourcesOnDeletion: true");
    let needed = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: needed}\n---\n".to_owned();
    hub.apply("needs.yaml", &(needed + &needing)).await;
    hub.only_in(&["configmap", "needed"], &["eu"]).await;
    hub.kubectl(&["delete", "deployment", "needs"]).await.ends_with(0);
    hub.kubectl(&["delete", "configmap", "kept", "gone"]).await.ends_with(0);
    hub.only_in(&["configmap", "gone"], &[]).await;
    // Nothing of the hub's is on it, and nobody looks after it any more.
    hub.prints("eu", &kept, r".metadata.labels.karmada\.io/managed", "").await;
    // What it needs stays with a workload that stays.
    hub.prints("eu", &["deployment", "needs"], r".metadata.labels.karmada\.io/managed", "").await;
    hub.prints("eu", &["configmap", "needed"], r".metadata.labels.karmada\.io/managed", "").await;
    let annotations =
        hub.in_member("eu", &["get", "configmap", "kept", "-o", "jsonpath={.metadata.annotations}"]).await.out;
    assert!(!annotations.contains("karmada.io"), "{annotations}");
    let edit = r#"{"data":{"from":"member"}}"#;
    hub.in_member("eu", &["patch", "configmap", "kept", "--type=merge", "-p", edit]).await.ends_with(0);
    hub.prints("eu", &kept, ".data.from", "member").await;
}

/// Where nothing fits, nothing is deleted: what runs stays as it is and is still looked after, and it is said why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fits_nowhere_stays_where_it_is() {
    let Some(hub) = Hub::of_two().await else { return };
    let to = |clusters: &str| needing("web", clusters, "terminationGracePeriodSeconds: 0", "");
    hub.apply("web.yaml", &to("[eu]")).await;
    hub.runs("web", &[("eu", 1)]).await;
    hub.apply("web.yaml", &to("[mars]")).await;
    let why = "0/2 clusters are available: 2 cluster(s) did not match the placement cluster affinity constraint.";
    hub.says("Deployment", "web", "ScheduleBindingFailed", why).await;
    let reason = ".status.conditions[?(@.type=='Scheduled')].reason";
    hub.hub_prints(&["rb", "web-deployment"], reason, "NoClusterFit").await;
    hub.kubectl(&["label", "deployment", "web", "seen=yes"]).await.ends_with(0);
    hub.prints("eu", &["deployment", "web"], ".metadata.labels.seen", "yes").await;
    hub.runs("web", &[("eu", 1)]).await;
    let said = hub.world.good(&["why", "deployment/web", "--data", "hub"]).await.out;
    assert!(said.contains(why), "{said}");
    hub.apply("web.yaml", &to("[ap]")).await;
    hub.runs("web", &[("ap", 1)]).await;
    hub.hub_prints(&["rb", "web-deployment"], reason, "Success").await;

    // What is larger than all that there is goes nowhere, and says so.
    let large = "podinfo, resources: {requests: {cpu: '4000'}}";
    let big = divided(2, "[eu, ap]", "{dynamicWeight: AvailableReplicas}").replace("web", "big");
    hub.apply("big.yaml", &big.replacen("podinfo", large, 1)).await;
    let why = "Clusters available replicas 0 are not enough to schedule.";
    hub.says("Deployment", "big", "ScheduleBindingFailed", why).await;
    hub.hub_prints(&["rb", "big-deployment"], reason, "Unschedulable").await;
    assert!(hub.replicas("big").await.is_empty());
}

/// What one group has no room for goes to the next, by what pods ask for and nodes have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_overflows_in_order() {
    let Some(hub) = Hub::of_two().await else { return };
    let milli = async |of: &str| {
        let path = format!("jsonpath={{.status.resourceSummary.{of}.cpu}}");
        let cpu = hub.kubectl(&["get", "cluster", "eu", "-o", &path]).await.ends_with(0).out;
        let milli = cpu.strip_suffix('m').map(str::parse).unwrap_or_else(|| cpu.parse::<i64>().map(|all| all * 1000));
        milli.map_err(|_| cpu)
    };
    let all = eventually("what eu has", PATIENCE, async || milli("allocatable").await).await;
    // Two of it fit into a cluster.
    let pod = format!("podinfo, resources: {{requests: {{cpu: {}m}}}}", all * 2 / 5);
    let groups = "clusterAffinities:\n    - {affinityName: near, clusterNames: [eu], \
                  overflowAffinities: [{affinityName: burst, clusterNames: [ap]}]}";
    let of = |replicas: i64| {
        let one = divided(replicas, "[eu]", "{dynamicWeight: AvailableReplicas}").replacen("podinfo", &pod, 1);
        one.replacen("clusterAffinity: {clusterNames: [eu]}", groups, 1)
    };
    hub.apply("web.yaml", &of(2)).await;
    hub.runs("web", &[("eu", 2)]).await;
    // The hub counts by what the member said last, some seconds ago.
    eventually("it is known that eu is full", PATIENCE, async || {
        let taken = milli("allocated").await?;
        if taken >= all * 4 / 5 - 2 { Ok(()) } else { Err(format!("{taken} of {all}")) }
    })
    .await;
    hub.apply("web.yaml", &of(3)).await;
    hub.runs("web", &[("eu", 2), ("ap", 1)]).await;
    hub.hub_prints(&["rb", "web-deployment"], ".status.schedulerObservingAffinityName", "near").await;
    // It comes back from the last of them.
    hub.apply("web.yaml", &of(2)).await;
    hub.runs("web", &[("eu", 2)]).await;
}

/// Of a Job the work is divided, and not only how much of it is done at once; and its end is told of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jobs_work_is_divided() {
    let Some(hub) = Hub::of_two().await else { return };
    let job = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: sums}\nspec:\n  completions: 6\n  parallelism: 2\n  \
               template:\n    spec:\n      restartPolicy: Never\n      containers:\n      \
               - {name: sum, image: busybox, command: [sh, -c, 'echo 4']}\n---\n\
               apiVersion: policy.karmada.io/v1alpha1\nkind: PropagationPolicy\nmetadata: {name: sums}\nspec:\n  \
               resourceSelectors: [{apiVersion: batch/v1, kind: Job, name: sums}]\n  placement:\n    \
               clusterAffinity: {clusterNames: [eu, ap]}\n    \
               replicaScheduling: {replicaSchedulingType: Divided, replicaDivisionPreference: Weighted}\n";
    hub.apply("job.yaml", job).await;
    for member in ["eu", "ap"] {
        hub.prints(member, &["job", "sums"], ".spec['completions','parallelism']", "3 1").await;
    }
    hub.hub_prints(&["job", "sums"], ".status.succeeded", "6").await;
    hub.hub_prints(&["job", "sums"], ".status.conditions[?(@.type=='Complete')].status", "True").await;
}

/// A definition, which has no namespace, and an object of the kind that it makes.
const GADGETS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gadgets.shop.example}
spec:
  group: shop.example
  scope: Namespaced
  names: {kind: Gadget, listKind: GadgetList, plural: gadgets, singular: gadget}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {size: {type: integer}}}}}}
---
apiVersion: policy.karmada.io/v1alpha1
kind: ClusterPropagationPolicy
metadata: {name: wide}
spec:
  resourceSelectors:
  - {apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, name: gadgets.shop.example}
  - {apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, labelSelector: {matchLabels: {team: shop}}}
  placement: {clusterAffinity: {clusterNames: [eu]}}
---
apiVersion: policy.karmada.io/v1alpha1
kind: ClusterOverridePolicy
metadata: {name: wide}
spec:
  resourceSelectors: [{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole}]
  overrideRules:
  - overriders: {annotationsOverrider: [{operator: add, value: {from: hub}}]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: shopper, labels: {team: shop}}
rules: [{apiGroups: [shop.example], resources: [gadgets], verbs: [get]}]
";

/// What has no namespace goes where a cluster-wide policy says; and objects of a definition follow it, where its members have
/// it by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_namespace_goes_by_cluster_wide_policies() {
    let Some(hub) = Hub::of_two().await else { return };
    hub.apply("gadgets.yaml", GADGETS).await;
    hub.only_in(&["clusterrole", "shopper"], &["eu"]).await;
    hub.prints("eu", &["clusterrole", "shopper"], ".metadata.annotations.from", "hub").await;
    hub.prints("eu", &["clusterrole", "shopper"], ".rules[0].resources[0]", "gadgets").await;
    hub.only_in(&["crd", "gadgets.shop.example"], &["eu"]).await;
    let bindings = hub.kubectl(&["get", "crb", "-o", "name"]).await.ends_with(0).out;
    for name in ["gadgets.shop.example-customresourcedefinition", "shopper-clusterrole"] {
        assert!(bindings.contains(name), "{bindings}");
    }

    let gadget = "apiVersion: shop.example/v1\nkind: Gadget\nmetadata: {name: one}\nspec: {size: 7}\n---\n".to_owned();
    let to_both = policy("PropagationPolicy", "gadgets", "one", "[eu, ap]", "");
    let to_both = to_both.replacen("apiVersion: v1, kind: ConfigMap", "apiVersion: shop.example/v1, kind: Gadget", 1);
    hub.apply("gadget.yaml", &(gadget + &to_both)).await;
    // The other has no such kind, and so it is none of its candidates.
    hub.prints("eu", &["gadget", "one"], ".spec.size", "7").await;
    hub.hub_prints(&["rb", "one-gadget"], ".spec.clusters[*].name", "eu").await;
    let why = hub.world.good(&["why", "gadget/one", "--data", "hub"]).await.out;
    assert!(why.contains("ap  left out: "), "{why}");
    hub.kubectl(&["delete", "gadget", "one"]).await.ends_with(0);
    hub.kubectl(&["delete", "clusterrole", "shopper"]).await.ends_with(0);
    hub.only_in(&["clusterrole", "shopper"], &[]).await;
    eventually("no gadget in eu", PATIENCE, async || {
        let left = hub.in_member("eu", &["get", "gadgets", "-o", "name"]).await.ends_with(0).out;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

/// Namespaces of the hub are in every member, but for those that say that they stay; one that ends takes all along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_come_and_go_with_what_is_in_them() {
    let Some(hub) = Hub::of_two().await else { return };
    let both = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: shop}}\n---\n\
                apiVersion: v1\nkind: Namespace\nmetadata: {name: here, labels: \
                {namespace.karmada.io/skip-auto-propagation: 'true'}}\n";
    hub.apply("namespaces.yaml", both).await;
    let settings =
        config("settings", "").replace("metadata: {name: settings}", "metadata: {name: settings, namespace: shop}");
    hub.apply("settings.yaml", &settings).await;
    hub.only_in(&["namespace", "shop"], &["eu", "ap"]).await;
    hub.only_in(&["configmap", "settings", "-n", "shop"], &["eu"]).await;
    hub.prints("ap", &["namespace", "shop"], ".metadata.labels.team", "shop").await;
    hub.only_in(&["namespace", "here"], &[]).await;

    // Who joins later gets it, too.
    hub.world.good(&["hub", "join", "us", "--data", "hub"]).await;
    hub.prints("us", &["namespace", "shop"], ".metadata.labels.team", "shop").await;

    hub.kubectl(&["delete", "namespace", "shop", "--timeout=60s"]).await.ends_with(0);
    hub.only_in(&["namespace", "shop"], &[]).await;
    for name in ["default", "kube-system"] {
        hub.only_in(&["namespace", name], &["eu", "ap"]).await;
    }
    eventually("no Work of it", PATIENCE, async || {
        let works = hub.kubectl(&["get", "works", "-A", "-o", "name"]).await.ends_with(0).out;
        if works.is_empty() { Ok(()) } else { Err(works) }
    })
    .await;
}

/// A binding or a Work that somebody deletes is made again while its template is there. A Work's end takes nothing away that
/// is wanted; a binding's does, as in Karmada.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bookkeeping_that_somebody_deletes_is_made_again() {
    let Some(hub) = Hub::of_two().await else { return };
    hub.apply("web.yaml", &needing("web", "[eu]", "terminationGracePeriodSeconds: 0", "")).await;
    hub.runs("web", &[("eu", 1)]).await;
    let id = async |kind: &str, of: &[&str]| {
        let list = hub.kubectl(&[&["get", kind], of, &["-o", "jsonpath={.items[*].metadata.uid}"]].concat()).await;
        list.ends_with(0).out
    };
    let in_eu = ["-n", "karmada-es-eu"];
    for (kind, of) in [("works", &in_eu[..]), ("rb", &[])] {
        let before = id(kind, of).await;
        assert!(!before.is_empty());
        hub.kubectl(&[&["delete", kind, "--all", "--wait=false"], of].concat()).await.ends_with(0);
        eventually("it is made again", PATIENCE, async || {
            hub.replicas_not_below("web", if kind == "rb" { 0 } else { 1 }).await;
            let now = id(kind, of).await;
            let again = !now.is_empty() && now.split(' ').all(|one| !before.contains(one));
            if again { Ok(()) } else { Err(format!("{before} {now}")) }
        })
        .await;
        hub.kubectl(&["label", "deployment", "web", &format!("after={kind}"), "--overwrite"]).await.ends_with(0);
        hub.prints("eu", &["deployment", "web"], ".metadata.labels.after", kind).await;
        hub.runs("web", &[("eu", 1)]).await;
    }
}

/// What an autoscaler of the member decides, and what its API server filled in, is no edit that is put back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_member_decides_for_itself_is_kept() {
    let Some(hub) = Hub::of_two().await else { return };
    let named = "kind: Deployment\nmetadata: {name: web";
    let scaled = needing("web", "[eu]", "terminationGracePeriodSeconds: 0", "");
    let scaled =
        scaled.replacen(named, &format!("{named}, labels: {{resourcetemplate.karmada.io/retain-replicas: 'true'}}"), 1);
    hub.apply("web.yaml", &scaled).await;
    let service = policy("PropagationPolicy", "front", "front", "[eu]", "").replace("ConfigMap", "Service");
    hub.apply("front.yaml", &service).await;
    hub.kubectl(&["create", "service", "nodeport", "front", "--tcp=80"]).await.ends_with(0);
    hub.prints("eu", &["deployment", "web"], ".status.readyReplicas", "1").await;
    hub.only_in(&["service", "front"], &["eu"]).await;
    let address = ["get", "service", "front", "-o", "jsonpath={.spec.clusterIP} {.spec.ports[0].nodePort}"];
    let address_of = async || hub.in_member("eu", &address).await.ends_with(0).out;
    let before = address_of().await;

    hub.in_member("eu", &["scale", "deployment/web", "--replicas=3"]).await.ends_with(0);
    hub.in_member("eu", &["label", "deployment", "web", "karmada.io/managed-"]).await.ends_with(0);
    // Both are written again, for the label and for the annotation.
    hub.prints("eu", &["deployment", "web"], r".metadata.labels.karmada\.io/managed", "true").await;
    for object in ["deployment/web", "service/front"] {
        hub.kubectl(&["annotate", object, "again=yes"]).await.ends_with(0);
    }
    hub.prints("eu", &["deployment", "web"], ".metadata.annotations.again", "yes").await;
    hub.prints("eu", &["service", "front"], ".metadata.annotations.again", "yes").await;
    hub.prints("eu", &["deployment", "web"], ".status.readyReplicas", "3").await;
    assert_eq!(address_of().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_priority_class_ranks_what_a_policy_places() {
    let Some(hub) = Hub::of_two().await else { return };
    let class = "  schedulePriority: {priorityClassSource: KubePriorityClass, priorityClassName: high}\n";
    hub.apply("ranked.yaml", &config("ranked", class)).await;
    let missing = "Apply policy(default/ranked) failed: there is no PriorityClass high in the hub";
    hub.says("ConfigMap", "ranked", "ApplyPolicyFailed", missing).await;
    hub.kubectl(&["create", "priorityclass", "high", "--value=1000"]).await.ends_with(0);
    hub.hub_prints(&["rb", "ranked-configmap"], ".spec.schedulePriority.priority", "1000").await;
    hub.only_in(&["configmap", "ranked"], &["eu"]).await;
    let why = hub.world.good(&["why", "configmap/ranked", "--data", "hub"]).await.out;
    assert!(why.contains("priority 1000: scheduled, and moved, before what has a lower one"), "{why}");
}

/// A Deployment that is divided among these.
fn divided(replicas: i64, to: &str, how: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      \
         containers:\n      - {{name: main, image: stefanprodan/podinfo}}\n---\n\
         apiVersion: policy.karmada.io/v1alpha1\nkind: PropagationPolicy\nmetadata: {{name: web}}\nspec:\n  \
         resourceSelectors: [{{apiVersion: apps/v1, kind: Deployment, name: web}}]\n  placement:\n    \
         clusterAffinity: {{clusterNames: {to}}}\n    replicaScheduling:\n      replicaSchedulingType: Divided\n      \
         replicaDivisionPreference: Weighted\n      weightPreference: {how}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebalancer_divides_afresh_what_runs() {
    let Some(hub) = Hub::of_two().await else { return };
    let by_room = "{dynamicWeight: AvailableReplicas}";
    hub.apply("web.yaml", &divided(4, "[eu]", by_room)).await;
    hub.runs("web", &[("eu", 4)]).await;
    // A cluster more moves nothing.
    hub.apply("web.yaml", &divided(4, "[eu, ap]", by_room)).await;
    hub.hub_prints(&["rb", "web-deployment"], ".spec.placement.clusterAffinity.clusterNames", r#"["eu","ap"]"#).await;
    hub.hub_prints(&["rb", "web-deployment"], ".spec.clusters", r#"[{"name":"eu","replicas":4}]"#).await;

    let rebalancer = "apiVersion: apps.karmada.io/v1alpha1\nkind: WorkloadRebalancer\nmetadata: {name: once}\nspec:\n  \
                      workloads:\n  - {apiVersion: apps/v1, kind: Deployment, namespace: default, name: web}\n  \
                      - {apiVersion: apps/v1, kind: Deployment, namespace: default, name: nothing}\n";
    hub.apply("once.yaml", rebalancer).await;
    eventually("web in both", PATIENCE, async || {
        let found = hub.replicas_not_below("web", 4).await;
        let ready: i64 = found.values().map(|(_, ready)| ready).sum();
        let settled = found.values().all(|(wanted, ready)| wanted == ready && *wanted > 0);
        if found.len() == 2 && ready == 4 && settled { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    let once = ["workloadrebalancer", "once"];
    hub.hub_prints(&once, ".status.observedWorkloads[*].result", "Failed Successful").await;
    hub.hub_prints(&once, ".status.observedWorkloads[0].reason", "ReferencedBindingNotFound").await;
    // It goes by itself when it is told to.
    let short = "{\"spec\":{\"ttlSecondsAfterFinished\":0}}";
    hub.kubectl(&["patch", once[0], once[1], "--type=merge", "-p", short]).await.ends_with(0);
    eventually("no rebalancer", PATIENCE, async || {
        let left = hub.kubectl(&["get", "workloadrebalancers", "-o", "name"]).await.ends_with(0).out;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_divides_as_v1_2_did_when_it_is_told_to() {
    let Some(hub) = Hub::start_with(&["--division", "v1.2"]).await else { return };
    for member in MEMBERS {
        hub.world.good(&["hub", "join", member, "--data", "hub"]).await;
    }
    let weights = "{staticWeightList: [{targetCluster: {clusterNames: [eu]}, weight: 2}, \
                   {targetCluster: {clusterNames: [ap, us]}, weight: 1}]}";
    hub.apply("web.yaml", &divided(7, "[eu, ap, us]", weights)).await;
    // The newest would give 3, 2 and 2.
    hub.runs("web", &[("eu", 4), ("ap", 2), ("us", 1)]).await;
    let why = hub.world.good(&["why", "deployment/web", "--data", "hub", "-o", "json"]).await.out;
    assert!(why.contains(r#""algorithm": "v1.2""#), "{why}");
    let ranked = hub.world.write("ranked.yaml", &config("ranked", "  priority: 5\n"));
    let told = hub.kubectl(&["apply", "-f", text(&ranked)]).await.ends_with(0).err;
    assert!(told.contains("Warning: spec.priority: is not looked at: v1.2"), "{told}");
    let lost = hub.world.good(&["hub", "simulate", "--lose", "us", "--data", "hub"]).await.out;
    assert!(lost.contains("default/web"), "{lost}");
}
