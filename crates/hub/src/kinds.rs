//! The kinds that the hub itself works with: Karmada's, as its API server has them.

use stolos_cluster::objects::Resource;

const POLICY: &str = "policy.karmada.io/v1alpha1";
const WORK: &str = "work.karmada.io/v1alpha2";

/// Member clusters.
#[must_use]
pub fn clusters() -> Resource {
    of("cluster.karmada.io/v1alpha1", "Cluster", "clusters", false)
}

/// What members are to hold.
#[must_use]
pub fn works() -> Resource {
    of("work.karmada.io/v1alpha1", "Work", "works", true)
}

/// Which templates go where, in their namespace.
#[must_use]
pub fn policies() -> Resource {
    of(POLICY, "PropagationPolicy", "propagationpolicies", true)
}

/// The same in all namespaces and in none.
#[must_use]
pub fn cluster_policies() -> Resource {
    of(POLICY, "ClusterPropagationPolicy", "clusterpropagationpolicies", false)
}

/// What is changed for some members, in a namespace.
#[must_use]
pub fn overrides() -> Resource {
    of(POLICY, "OverridePolicy", "overridepolicies", true)
}

/// The same in all namespaces and in none.
#[must_use]
pub fn cluster_overrides() -> Resource {
    of(POLICY, "ClusterOverridePolicy", "clusteroverridepolicies", false)
}

/// Which members are tainted by their conditions.
#[must_use]
pub fn taint_policies() -> Resource {
    of(POLICY, "ClusterTaintPolicy", "clustertaintpolicies", false)
}

/// Where templates in namespaces go.
#[must_use]
pub fn bindings() -> Resource {
    of(WORK, "ResourceBinding", "resourcebindings", true)
}

/// Where templates without a namespace go.
#[must_use]
pub fn cluster_bindings() -> Resource {
    of(WORK, "ClusterResourceBinding", "clusterresourcebindings", false)
}

/// Who asks that workloads are divided afresh.
#[must_use]
pub fn rebalancers() -> Resource {
    of("apps.karmada.io/v1alpha1", "WorkloadRebalancer", "workloadrebalancers", false)
}

/// How kinds are interpreted.
#[must_use]
pub fn customizations() -> Resource {
    const PLURAL: &str = "resourceinterpretercustomizations";
    of("config.karmada.io/v1alpha1", "ResourceInterpreterCustomization", PLURAL, false)
}

fn of(api_version: &str, kind: &str, plural: &str, namespaced: bool) -> Resource {
    Resource { api_version: api_version.to_owned(), kind: kind.to_owned(), plural: plural.to_owned(), namespaced }
}
