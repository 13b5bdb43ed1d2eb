//! The built-in kinds: under which group, version and path each is served, its names, and what can be done with it.

/// One kind of object, as discovery shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The version.
    pub version: &'static str,
    /// The kind, `Pod`.
    pub kind: &'static str,
    /// The resource, `pods`.
    pub plural: &'static str,
    /// The singular resource, `pod`.
    pub singular: &'static str,
    /// Short names, `po`.
    pub short_names: &'static [&'static str],
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// What can be asked below one object.
    pub subresources: &'static [Subresource],
    /// Categories, `all`.
    pub categories: &'static [&'static str],
    /// Verbs in discovery's order.
    pub verbs: &'static [&'static str],
}

/// Something below one object, with its own path and often its own kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// The last part of the path, `status`.
    pub name: &'static str,
    /// The group of what it takes and gives.
    pub group: &'static str,
    /// The version of what it takes and gives.
    pub version: &'static str,
    /// The kind of what it takes and gives.
    pub kind: &'static str,
    /// Verbs in discovery's order.
    pub verbs: &'static [&'static str],
}

impl Kind {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    /// `pods`, `deployments.apps`.
    pub fn group_resource(&self) -> String {
        group_resource(self.group, self.plural)
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }

    /// Whether objects of the kind are kept: reviews are only created, and answered at once.
    pub fn is_stored(&self) -> bool {
        self.has_verb("get")
    }

    /// Whether the verb is allowed.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// Whether `status` is a subresource, and so not written through the object itself.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Whether `metadata.generation` grows when the spec changes.
    pub fn has_generation(&self) -> bool {
        GENERATIONS.contains(&(self.group, self.kind))
    }

    /// Where a client finds the objects: `/api/v1/namespaces/sample/pods`.
    pub fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        path(self.group, self.version, self.plural, namespace.filter(|_| self.namespaced), name)
    }
}

/// Every built-in kind.
pub fn all() -> &'static [Kind] {
    KINDS
}

/// The built-in kind served at this group, version and resource.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.group == group && kind.version == version && kind.plural == plural)
}

/// The built-in kind with this `apiVersion` and `kind`.
pub fn find_kind(api_version: &str, kind: &str) -> Option<&'static Kind> {
    let (group, version) = split_api_version(api_version);
    KINDS.iter().find(|known| known.group == group && known.version == version && known.kind == kind)
}

/// `v1` or `apps/v1`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Group and version of an `apiVersion`.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// `pods` or `deployments.apps`.
pub fn group_resource(group: &str, plural: &str) -> String {
    if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") }
}

/// The path of a collection or of one object.
pub fn path(group: &str, version: &str, plural: &str, namespace: Option<&str>, name: Option<&str>) -> String {
    let mut path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    if let Some(namespace) = namespace {
        path.push_str("/namespaces/");
        path.push_str(namespace);
    }
    path.push('/');
    path.push_str(plural);
    if let Some(name) = name {
        path.push('/');
        path.push_str(name);
    }
    path
}

/// The verbs of most kinds.
pub const ALL_VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// The verbs of Services before deletecollection was added, and of namespaces.
const NO_COLLECTION: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const GET: &[&str] = &["get"];
const READ_WRITE: &[&str] = &["get", "patch", "update"];
const CONNECT: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

const ALL: &[&str] = &["all"];
const NONE: &[&str] = &[];

/// A subresource with the kind of its parent.
const fn same(
    name: &'static str,
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource { name, group, version, kind, verbs }
}

const fn status(group: &'static str, version: &'static str, kind: &'static str) -> Subresource {
    same("status", group, version, kind, READ_WRITE)
}

const SCALE: Subresource = same("scale", "autoscaling", "v1", "Scale", READ_WRITE);

macro_rules! kinds {
    ($($group:literal / $version:literal $kind:literal $plural:literal $singular:literal $short:expr, $scope:ident, $subs:expr, $categories:expr, $verbs:expr;)*) => {
        const KINDS: &[Kind] = &[$(Kind {
            group: $group,
            version: $version,
            kind: $kind,
            plural: $plural,
            singular: $singular,
            short_names: $short,
            namespaced: kinds!(@$scope),
            subresources: $subs,
            categories: $categories,
            verbs: $verbs,
        }),*];
    };
    (@namespaced) => { true };
    (@cluster) => { false };
}

kinds! {
    ""/"v1" "Namespace" "namespaces" "namespace" &["ns"], cluster,
        &[same("finalize", "", "v1", "Namespace", &["update"]), status("", "v1", "Namespace")], NONE, NO_COLLECTION;
    ""/"v1" "Node" "nodes" "node" &["no"], cluster,
        &[same("proxy", "", "v1", "NodeProxyOptions", PROXY), status("", "v1", "Node")], NONE, ALL_VERBS;
    ""/"v1" "Pod" "pods" "pod" &["po"], namespaced, &[
        same("attach", "", "v1", "PodAttachOptions", CONNECT),
        same("binding", "", "v1", "Binding", CREATE),
        same("ephemeralcontainers", "", "v1", "Pod", READ_WRITE),
        same("eviction", "policy", "v1", "Eviction", CREATE),
        same("exec", "", "v1", "PodExecOptions", CONNECT),
        same("log", "", "v1", "Pod", GET),
        same("portforward", "", "v1", "PodPortForwardOptions", CONNECT),
        same("proxy", "", "v1", "PodProxyOptions", PROXY),
        same("resize", "", "v1", "Pod", READ_WRITE),
        status("", "v1", "Pod"),
    ], ALL, ALL_VERBS;
    ""/"v1" "Service" "services" "service" &["svc"], namespaced,
        &[same("proxy", "", "v1", "ServiceProxyOptions", PROXY), status("", "v1", "Service")], ALL, ALL_VERBS;
    ""/"v1" "Endpoints" "endpoints" "endpoints" &["ep"], namespaced, &[], NONE, ALL_VERBS;
    ""/"v1" "Secret" "secrets" "secret" &[], namespaced, &[], NONE, ALL_VERBS;
    ""/"v1" "ConfigMap" "configmaps" "configmap" &["cm"], namespaced, &[], NONE, ALL_VERBS;
    ""/"v1" "ServiceAccount" "serviceaccounts" "serviceaccount" &["sa"], namespaced,
        &[same("token", "authentication.k8s.io", "v1", "TokenRequest", CREATE)], NONE, ALL_VERBS;
    ""/"v1" "Event" "events" "event" &["ev"], namespaced, &[], NONE, ALL_VERBS;
    ""/"v1" "PersistentVolume" "persistentvolumes" "persistentvolume" &["pv"], cluster,
        &[status("", "v1", "PersistentVolume")], NONE, ALL_VERBS;
    ""/"v1" "PersistentVolumeClaim" "persistentvolumeclaims" "persistentvolumeclaim" &["pvc"], namespaced,
        &[status("", "v1", "PersistentVolumeClaim")], NONE, ALL_VERBS;
    ""/"v1" "LimitRange" "limitranges" "limitrange" &["limits"], namespaced, &[], NONE, ALL_VERBS;
    ""/"v1" "ResourceQuota" "resourcequotas" "resourcequota" &["quota"], namespaced,
        &[status("", "v1", "ResourceQuota")], NONE, ALL_VERBS;
    ""/"v1" "ReplicationController" "replicationcontrollers" "replicationcontroller" &["rc"], namespaced,
        &[SCALE, status("", "v1", "ReplicationController")], ALL, ALL_VERBS;
    ""/"v1" "PodTemplate" "podtemplates" "podtemplate" &[], namespaced, &[], NONE, ALL_VERBS;

    "apps"/"v1" "Deployment" "deployments" "deployment" &["deploy"], namespaced,
        &[SCALE, status("apps", "v1", "Deployment")], ALL, ALL_VERBS;
    "apps"/"v1" "ReplicaSet" "replicasets" "replicaset" &["rs"], namespaced,
        &[SCALE, status("apps", "v1", "ReplicaSet")], ALL, ALL_VERBS;
    "apps"/"v1" "StatefulSet" "statefulsets" "statefulset" &["sts"], namespaced,
        &[SCALE, status("apps", "v1", "StatefulSet")], ALL, ALL_VERBS;
    "apps"/"v1" "DaemonSet" "daemonsets" "daemonset" &["ds"], namespaced,
        &[status("apps", "v1", "DaemonSet")], ALL, ALL_VERBS;
    "apps"/"v1" "ControllerRevision" "controllerrevisions" "controllerrevision" &[], namespaced, &[], NONE, ALL_VERBS;

    "batch"/"v1" "Job" "jobs" "job" &[], namespaced, &[status("batch", "v1", "Job")], ALL, ALL_VERBS;
    "batch"/"v1" "CronJob" "cronjobs" "cronjob" &["cj"], namespaced, &[status("batch", "v1", "CronJob")], ALL,
        ALL_VERBS;

    "autoscaling"/"v2" "HorizontalPodAutoscaler" "horizontalpodautoscalers" "horizontalpodautoscaler" &["hpa"],
        namespaced, &[status("autoscaling", "v2", "HorizontalPodAutoscaler")], ALL, ALL_VERBS;
    "policy"/"v1" "PodDisruptionBudget" "poddisruptionbudgets" "poddisruptionbudget" &["pdb"], namespaced,
        &[status("policy", "v1", "PodDisruptionBudget")], NONE, ALL_VERBS;
    "discovery.k8s.io"/"v1" "EndpointSlice" "endpointslices" "endpointslice" &[], namespaced, &[], NONE, ALL_VERBS;
    "coordination.k8s.io"/"v1" "Lease" "leases" "lease" &[], namespaced, &[], NONE, ALL_VERBS;

    "rbac.authorization.k8s.io"/"v1" "ClusterRole" "clusterroles" "clusterrole" &[], cluster, &[], NONE, ALL_VERBS;
    "rbac.authorization.k8s.io"/"v1" "ClusterRoleBinding" "clusterrolebindings" "clusterrolebinding" &[], cluster,
        &[], NONE, ALL_VERBS;
    "rbac.authorization.k8s.io"/"v1" "Role" "roles" "role" &[], namespaced, &[], NONE, ALL_VERBS;
    "rbac.authorization.k8s.io"/"v1" "RoleBinding" "rolebindings" "rolebinding" &[], namespaced, &[], NONE, ALL_VERBS;

    "admissionregistration.k8s.io"/"v1" "MutatingWebhookConfiguration" "mutatingwebhookconfigurations"
        "mutatingwebhookconfiguration" &[], cluster, &[], &["api-extensions"], ALL_VERBS;
    "admissionregistration.k8s.io"/"v1" "ValidatingWebhookConfiguration" "validatingwebhookconfigurations"
        "validatingwebhookconfiguration" &[], cluster, &[], &["api-extensions"], ALL_VERBS;
    "apiextensions.k8s.io"/"v1" "CustomResourceDefinition" "customresourcedefinitions" "customresourcedefinition"
        &["crd", "crds"], cluster, &[status("apiextensions.k8s.io", "v1", "CustomResourceDefinition")],
        &["api-extensions"], ALL_VERBS;
    "apiregistration.k8s.io"/"v1" "APIService" "apiservices" "apiservice" &[], cluster,
        &[status("apiregistration.k8s.io", "v1", "APIService")], &["api-extensions"], ALL_VERBS;

    "networking.k8s.io"/"v1" "Ingress" "ingresses" "ingress" &["ing"], namespaced,
        &[status("networking.k8s.io", "v1", "Ingress")], NONE, ALL_VERBS;
    "networking.k8s.io"/"v1" "IngressClass" "ingressclasses" "ingressclass" &[], cluster, &[], NONE, ALL_VERBS;
    "networking.k8s.io"/"v1" "NetworkPolicy" "networkpolicies" "networkpolicy" &["netpol"], namespaced, &[], NONE,
        ALL_VERBS;
    "storage.k8s.io"/"v1" "StorageClass" "storageclasses" "storageclass" &["sc"], cluster, &[], NONE, ALL_VERBS;
    "scheduling.k8s.io"/"v1" "PriorityClass" "priorityclasses" "priorityclass" &["pc"], cluster, &[], NONE, ALL_VERBS;
    "events.k8s.io"/"v1" "Event" "events" "event" &["ev"], namespaced, &[], NONE, ALL_VERBS;

    "authentication.k8s.io"/"v1" "TokenReview" "tokenreviews" "tokenreview" &[], cluster, &[], NONE, CREATE;
    "authentication.k8s.io"/"v1" "SelfSubjectReview" "selfsubjectreviews" "selfsubjectreview" &[], cluster, &[], NONE,
        CREATE;
    "authorization.k8s.io"/"v1" "SubjectAccessReview" "subjectaccessreviews" "subjectaccessreview" &[], cluster, &[],
        NONE, CREATE;
    "authorization.k8s.io"/"v1" "SelfSubjectAccessReview" "selfsubjectaccessreviews" "selfsubjectaccessreview" &[],
        cluster, &[], NONE, CREATE;
    "authorization.k8s.io"/"v1" "SelfSubjectRulesReview" "selfsubjectrulesreviews" "selfsubjectrulesreview" &[],
        cluster, &[], NONE, CREATE;
    "authorization.k8s.io"/"v1" "LocalSubjectAccessReview" "localsubjectaccessreviews" "localsubjectaccessreview"
        &[], namespaced, &[], NONE, CREATE;
}

/// Kinds whose `metadata.generation` Kubernetes keeps.
const GENERATIONS: &[(&str, &str)] = &[
    ("", "Pod"),
    ("", "ReplicationController"),
    ("apps", "Deployment"),
    ("apps", "ReplicaSet"),
    ("apps", "StatefulSet"),
    ("apps", "DaemonSet"),
    ("batch", "Job"),
    ("batch", "CronJob"),
    ("autoscaling", "HorizontalPodAutoscaler"),
    ("policy", "PodDisruptionBudget"),
    ("discovery.k8s.io", "EndpointSlice"),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
    ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ("networking.k8s.io", "Ingress"),
    ("networking.k8s.io", "IngressClass"),
    ("networking.k8s.io", "NetworkPolicy"),
    ("scheduling.k8s.io", "PriorityClass"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_kind_is_found_by_both_its_names_and_only_once() {
        let mut seen = BTreeSet::new();
        for kind in all() {
            assert!(seen.insert((kind.group, kind.version, kind.plural)), "{} twice", kind.plural);
            assert_eq!(find(kind.group, kind.version, kind.plural), Some(kind));
            assert_eq!(find_kind(&kind.api_version(), kind.kind), Some(kind));
            assert_eq!(kind.singular, kind.kind.to_lowercase());
            assert!(kind.verbs.is_sorted(), "{}", kind.kind);
            assert!(kind.subresources.is_sorted_by_key(|sub| sub.name), "{}", kind.kind);
        }
        for (group, kind) in GENERATIONS {
            assert!(KINDS.iter().any(|known| known.group == *group && known.kind == *kind), "{kind}");
        }
    }

    #[test]
    fn paths_are_kubernetes_own() {
        let pods = find("", "v1", "pods").unwrap();
        assert_eq!(pods.path(Some("sample"), Some("a")), "/api/v1/namespaces/sample/pods/a");
        assert_eq!(pods.path(None, None), "/api/v1/pods");
        let deployments = find("apps", "v1", "deployments").unwrap();
        assert_eq!(deployments.path(Some("sample"), None), "/apis/apps/v1/namespaces/sample/deployments");
        assert_eq!(deployments.group_resource(), "deployments.apps");
        let nodes = find("", "v1", "nodes").unwrap();
        assert_eq!(nodes.path(Some("ignored"), Some("n")), "/api/v1/nodes/n");
        assert!(!find("authentication.k8s.io", "v1", "tokenreviews").unwrap().is_stored());
        assert_eq!(pods.subresource("eviction").unwrap().group, "policy");
        assert!(find("", "v1", "nothing").is_none());
    }
}
