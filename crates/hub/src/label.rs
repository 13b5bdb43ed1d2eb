//! Labels, annotations, finalizers and taints that the hub puts on objects: Karmada's (v1.18.2).

/// On namespaces the hub makes: `true`.
pub const SYSTEM: &str = "karmada.io/system";
/// On a member's object: `true` says that the hub may change and delete it.
pub const MANAGED: &str = "karmada.io/managed";

/// Which PropagationPolicy claims a template; on the policy itself its own.
pub const POLICY_ID: &str = "propagationpolicy.karmada.io/permanent-id";
/// Annotation: the claiming policy's namespace.
pub const POLICY_NAMESPACE: &str = "propagationpolicy.karmada.io/namespace";
/// Annotation: the claiming policy's name.
pub const POLICY_NAME: &str = "propagationpolicy.karmada.io/name";
/// Which ClusterPropagationPolicy claims a template; on the policy itself its own.
pub const CLUSTER_POLICY_ID: &str = "clusterpropagationpolicy.karmada.io/permanent-id";
/// Annotation: the claiming cluster policy's name.
pub const CLUSTER_POLICY_NAME: &str = "clusterpropagationpolicy.karmada.io/name";

/// Links a ResourceBinding with its Works.
pub const BINDING_ID: &str = "resourcebinding.karmada.io/permanent-id";
/// Annotation: the binding's namespace.
pub const BINDING_NAMESPACE: &str = "resourcebinding.karmada.io/namespace";
/// Annotation: the binding's name.
pub const BINDING_NAME: &str = "resourcebinding.karmada.io/name";
/// Links a ClusterResourceBinding with its Works.
pub const CLUSTER_BINDING_ID: &str = "clusterresourcebinding.karmada.io/permanent-id";
/// Annotation: the cluster binding's name.
pub const CLUSTER_BINDING_NAME: &str = "clusterresourcebinding.karmada.io/name";

/// Links a Work with the member's object.
pub const WORK_ID: &str = "work.karmada.io/permanent-id";
/// Annotation on a member's object: the Work's namespace.
pub const WORK_NAMESPACE: &str = "work.karmada.io/namespace";
/// Annotation on a member's object: the Work's name.
pub const WORK_NAME: &str = "work.karmada.io/name";
/// Annotation on a template or a Work: `overwrite` or `abort`.
pub const CONFLICT: &str = "work.karmada.io/conflict-resolution";

/// Annotation: the template's UID.
pub const TEMPLATE_UID: &str = "resourcetemplate.karmada.io/uid";
/// Annotation: the template's generation.
pub const TEMPLATE_GENERATION: &str = "resourcetemplate.karmada.io/generation";
/// Annotation: the labels that the hub owns, sorted, with commas.
pub const MANAGED_LABELS: &str = "resourcetemplate.karmada.io/managed-labels";
/// Annotation: the annotations that the hub owns, sorted, with commas.
pub const MANAGED_ANNOTATIONS: &str = "resourcetemplate.karmada.io/managed-annotations";
/// On a template: `true` lets members keep their number of replicas (an autoscaler's).
pub const RETAIN_REPLICAS: &str = "resourcetemplate.karmada.io/retain-replicas";
/// On a template: `Always` forbids to delete it.
pub const DELETION_PROTECTED: &str = "resourcetemplate.karmada.io/deletion-protected";
/// On a template: somebody else takes care of it.
pub const CLAIMED_BY: &str = "resourcetemplate.karmada.io/claimed-by";
/// On a namespace: `true` keeps it from members.
pub const SKIP_AUTO_PROPAGATION: &str = "namespace.karmada.io/skip-auto-propagation";

/// Annotation on a binding: the placement it was scheduled by, as JSON.
pub const APPLIED_PLACEMENT: &str = "policy.karmada.io/applied-placement";
/// Annotation on a Work: which ClusterOverridePolicies changed it, as JSON.
pub const APPLIED_CLUSTER_OVERRIDES: &str = "policy.karmada.io/applied-cluster-overrides";
/// Annotation on a Work: which OverridePolicies changed it, as JSON.
pub const APPLIED_OVERRIDES: &str = "policy.karmada.io/applied-overrides";
/// Annotation on a binding: what the workload needs, as JSON.
pub const DEPENDENCIES: &str = "resourcebinding.karmada.io/dependencies";

/// Annotation on a template or a policy: how many replicas stay ready whatever moves, as `2` or `50%`. Stolos' own.
pub const MIN_AVAILABLE: &str = "stolos.dev/min-available";

/// Annotation on a binding: in which clusters the workload has failed, as JSON. Stolos' own.
pub const FAILED_IN: &str = "stolos.dev/failed-in";

/// Annotation on a Work: the labels that its copy has from the one before it, as JSON. Stolos' own.
pub const PRESERVED: &str = "stolos.dev/preserved-labels";

/// Annotation on a Work: the fewest replicas that it has asked for since its member last said something. Stolos' own.
pub const LEAST_ASKED: &str = "stolos.dev/least-asked";
/// Annotation on a member's object that has replicas: which generation of its Work it was written for. What was sent for an
/// older one and is still on its way finds another revision then and changes nothing. Stolos' own.
pub const WORK_GENERATION: &str = "stolos.dev/work-generation";
/// Annotation on a binding: the clusters where a Work has let go of its object because the binding wanted it there again, with
/// how many replicas it asked for, until another Work has taken the object over. Stolos' own.
pub const LEFT_BEHIND: &str = "stolos.dev/left-behind";
/// Condition: whether something is waited for before a copy becomes smaller, at a binding and at its Works. Karmada has none
/// such.
pub const SETTLED: &str = "Settled";

/// Annotation on a Cluster: which certificates of its agents are good, where that is not its UID: those before were ended
/// by hand. Stolos' own.
pub const AGENTS_EPOCH: &str = "stolos.dev/agents-epoch";
/// Annotation on a one-time token: the member that it lets agents of in, and no other. Stolos' own.
pub const TOKEN_MEMBER: &str = "stolos.dev/member";

/// Finalizer on Cluster.
pub const CLUSTER_FINALIZER: &str = "karmada.io/cluster-controller";
/// Finalizer on Work.
pub const WORK_FINALIZER: &str = "karmada.io/execution-controller";
/// Finalizer on ResourceBinding.
pub const BINDING_FINALIZER: &str = "karmada.io/binding-controller";
/// Finalizer on ClusterResourceBinding.
pub const CLUSTER_BINDING_FINALIZER: &str = "karmada.io/cluster-resource-binding-controller";
/// Finalizer on PropagationPolicy.
pub const POLICY_FINALIZER: &str = "karmada.io/propagation-policy-controller";
/// Finalizer on ClusterPropagationPolicy.
pub const CLUSTER_POLICY_FINALIZER: &str = "karmada.io/cluster-propagation-policy-controller";
/// Finalizer on a binding whose workload brings what it needs.
pub const DEPENDENCIES_FINALIZER: &str = "karmada.io/binding-dependencies-distributor";

/// Taint: somebody keeps workloads away.
pub const UNSCHEDULABLE: &str = "cluster.karmada.io/unschedulable";
/// Taint: the cluster says it is not ready.
pub const NOT_READY: &str = "cluster.karmada.io/not-ready";
/// Taint: the cluster says nothing.
pub const UNREACHABLE: &str = "cluster.karmada.io/unreachable";

/// The scheduler that policies name when they name none.
pub const DEFAULT_SCHEDULER: &str = "default-scheduler";

/// Says of an object which member it was read from (Karmada v1.18.2, `clusterv1alpha1.CacheSourceAnnotationKey`).
pub const FROM_CLUSTER: &str = "resource.karmada.io/cached-from-cluster";

/// The condition of a Cluster that says whether an agent is connected, of those whose agents dial the hub. Karmada has none
/// such: there, agents leave no connection behind that could be seen.
pub const AGENTS: &str = "AgentConnected";

/// On a Cluster that dials in and leaves: why the hub's account is still there; nothing when it is gone.
pub(crate) const ACCOUNT_LEFT: &str = "hub.stolos.dev/account-left";
