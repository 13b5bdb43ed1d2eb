//! The roles and bindings every cluster starts with, as Kubernetes' own bootstrap policy has them.

use serde_json::{Value, json};
use stolos_k8s::meta;

use super::access::{CLUSTER_BINDINGS, CLUSTER_ROLES};
use super::aggregate;

const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "delete", "deletecollection", "patch", "update"];
const ALL: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn paths(urls: &[&str]) -> Value {
    json!({"nonResourceURLs": urls, "verbs": ["get"]})
}

fn view() -> Vec<Value> {
    let core = [
        "configmaps",
        "endpoints",
        "persistentvolumeclaims",
        "persistentvolumeclaims/status",
        "pods",
        "replicationcontrollers",
        "replicationcontrollers/scale",
        "serviceaccounts",
        "services",
        "services/status",
    ];
    let more = [
        "bindings",
        "events",
        "limitranges",
        "namespaces/status",
        "pods/log",
        "pods/status",
        "replicationcontrollers/status",
        "resourcequotas",
        "resourcequotas/status",
    ];
    let apps = [
        "controllerrevisions",
        "daemonsets",
        "daemonsets/status",
        "deployments",
        "deployments/scale",
        "deployments/status",
        "replicasets",
        "replicasets/scale",
        "replicasets/status",
        "statefulsets",
        "statefulsets/scale",
        "statefulsets/status",
    ];
    vec![
        rule(&[""], &core, &READ),
        rule(&[""], &more, &READ),
        rule(&[""], &["namespaces"], &READ),
        rule(&["discovery.k8s.io"], &["endpointslices"], &READ),
        rule(&["apps"], &apps, &READ),
        rule(&["autoscaling"], &["horizontalpodautoscalers", "horizontalpodautoscalers/status"], &READ),
        rule(&["batch"], &["cronjobs", "cronjobs/status", "jobs", "jobs/status"], &READ),
        rule(&["policy"], &["poddisruptionbudgets", "poddisruptionbudgets/status"], &READ),
        rule(&["networking.k8s.io"], &["ingresses", "ingresses/status", "networkpolicies"], &READ),
    ]
}

fn edit() -> Vec<Value> {
    let reach = ["pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"];
    let pods = ["pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy"];
    let core = [
        "configmaps",
        "events",
        "persistentvolumeclaims",
        "replicationcontrollers",
        "replicationcontrollers/scale",
        "secrets",
        "serviceaccounts",
        "services",
        "services/proxy",
    ];
    let apps = [
        "daemonsets",
        "deployments",
        "deployments/rollback",
        "deployments/scale",
        "replicasets",
        "replicasets/scale",
        "statefulsets",
        "statefulsets/scale",
    ];
    vec![
        rule(&[""], &reach, &READ),
        rule(&[""], &["serviceaccounts"], &["impersonate"]),
        rule(&[""], &pods, &WRITE),
        rule(&[""], &["pods/eviction"], &["create"]),
        rule(&[""], &core, &WRITE),
        rule(&[""], &["serviceaccounts/token"], &["create"]),
        rule(&["apps"], &apps, &WRITE),
        rule(&["autoscaling"], &["horizontalpodautoscalers"], &WRITE),
        rule(&["batch"], &["cronjobs", "jobs"], &WRITE),
        rule(&["policy"], &["poddisruptionbudgets"], &WRITE),
        rule(&["networking.k8s.io"], &["ingresses", "networkpolicies"], &WRITE),
        rule(&["coordination.k8s.io"], &["leases"], &ALL),
    ]
}

fn admin() -> Vec<Value> {
    vec![
        rule(&["authorization.k8s.io"], &["localsubjectaccessreviews"], &["create"]),
        rule(&["rbac.authorization.k8s.io"], &["rolebindings", "roles"], &ALL),
    ]
}

/// A role, with the labels that say into which others it goes.
fn role(name: &str, rules: Vec<Value>, goes_into: &[&str]) -> Value {
    let mut labels = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
    for role in goes_into {
        labels[format!("rbac.authorization.k8s.io/aggregate-to-{role}")] = json!("true");
    }
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": name, "labels": labels, "annotations": {AUTOUPDATE: "true"}}, "rules": rules})
}

/// A role that is what others put into it.
fn gathering(name: &str, goes_into: &[&str]) -> Value {
    let mut role = role(name, Vec::new(), goes_into);
    let label = format!("rbac.authorization.k8s.io/aggregate-to-{name}");
    role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
    role
}

/// The roles and bindings every cluster starts with, each with the resource it is stored as.
#[must_use]
pub(crate) fn bootstrap() -> Vec<(&'static str, Value)> {
    let info = ["/healthz", "/livez", "/readyz", "/version", "/version/"];
    let discovery = ["/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*"];
    let issuer = [
        "/.well-known/openid-configuration",
        "/.well-known/openid-configuration/",
        "/openid/v1/jwks",
        "/openid/v1/jwks/",
    ];
    let discovery: Vec<&str> = info.iter().chain(&discovery).copied().collect();
    let probes = ["/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/metrics/slis", "/readyz", "/readyz/*"];
    let mut roles = vec![
        role(
            "cluster-admin",
            vec![rule(&["*"], &["*"], &["*"]), json!({"nonResourceURLs": ["*"], "verbs": ["*"]})],
            &[],
        ),
        role("system:aggregate-to-admin", admin(), &["admin"]),
        role("system:aggregate-to-edit", edit(), &["edit"]),
        role("system:aggregate-to-view", view(), &["view"]),
        gathering("view", &["edit"]),
        gathering("edit", &["admin"]),
        gathering("admin", &[]),
        role("system:discovery", vec![paths(&discovery)], &[]),
        role("system:public-info-viewer", vec![paths(&info)], &[]),
        role("system:monitoring", vec![paths(&probes)], &[]),
        role("system:service-account-issuer-discovery", vec![paths(&issuer)], &[]),
        role(
            "system:basic-user",
            vec![
                rule(&["authorization.k8s.io"], &["selfsubjectaccessreviews", "selfsubjectrulesreviews"], &["create"]),
                rule(&["authentication.k8s.io"], &["selfsubjectreviews"], &["create"]),
            ],
            &[],
        ),
        role(
            "system:auth-delegator",
            vec![
                rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
                rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
            ],
            &[],
        ),
    ];
    // In the order above one is whole before another gathers it.
    for index in 0..roles.len() {
        if let Some(rules) = aggregate::gathered(&roles[index], roles.iter()) {
            roles[index]["rules"] = rules;
        }
    }
    let bindings: [(&str, &[&str]); 6] = [
        ("cluster-admin", &["system:masters"]),
        ("system:discovery", &["system:authenticated"]),
        ("system:basic-user", &["system:authenticated"]),
        ("system:public-info-viewer", &["system:authenticated", "system:unauthenticated"]),
        ("system:monitoring", &["system:monitoring"]),
        ("system:service-account-issuer-discovery", &["system:serviceaccounts"]),
    ];
    let bindings = bindings.into_iter().map(|(name, groups)| {
        let subject = |group: &&str| json!({"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": group});
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
                "annotations": {AUTOUPDATE: "true"}},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": groups.iter().map(subject).collect::<Vec<_>>()});
        (CLUSTER_BINDINGS, binding)
    });
    roles.into_iter().map(|role| (CLUSTER_ROLES, role)).chain(bindings).collect()
}

/// What a role that is there already must become at a start, if anything: what the server's default has and it lacks,
/// unless it says that it wants to be left alone.
#[must_use]
pub(crate) fn reconcile(resource: &str, there: &Value, wanted: &Value) -> Option<Value> {
    let left_alone = meta::annotation(there, AUTOUPDATE) == Some("false");
    if resource != CLUSTER_ROLES || left_alone {
        return None;
    }
    let mut new = there.clone();
    if there["aggregationRule"].is_null() && wanted["aggregationRule"].is_object() {
        new["aggregationRule"] = wanted["aggregationRule"].clone();
    }
    for (key, value) in wanted["metadata"]["labels"].as_object().into_iter().flatten() {
        new["metadata"]["labels"][key] = value.clone();
    }
    // The rules of one that gathers are gathered.
    if new["aggregationRule"].is_null() {
        if new["rules"].is_null() {
            new["rules"] = json!([]);
        }
        let rules = new["rules"].as_array_mut()?;
        for rule in wanted["rules"].as_array().into_iter().flatten() {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    (new != *there).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Value {
        bootstrap().into_iter().find(|(_, object)| meta::name(object) == name).unwrap().1
    }

    #[test]
    fn who_may_edit_may_view_and_who_is_admin_may_edit() {
        let rules = |name: &str| of(name)["rules"].as_array().unwrap().clone();
        let (view, edit, admin) = (rules("view"), rules("edit"), rules("admin"));
        assert!(view.iter().all(|rule| edit.contains(rule)) && edit.iter().all(|rule| admin.contains(rule)));
        assert!(view.len() < edit.len() && edit.len() < admin.len());
        let secrets = |rules: &[Value]| rules.iter().any(|rule| rule.to_string().contains("\"secrets\""));
        assert!(!secrets(&view) && secrets(&edit));
    }

    #[test]
    fn a_role_of_an_older_server_gets_what_it_lacks() {
        let wanted = of("system:discovery");
        assert_eq!(reconcile(CLUSTER_ROLES, &wanted, &wanted), None);
        let mut old = wanted.clone();
        old["rules"] = json!([{"nonResourceURLs": ["/mine"], "verbs": ["get"]}]);
        let new = reconcile(CLUSTER_ROLES, &old, &wanted).unwrap();
        assert_eq!(new["rules"].as_array().unwrap().len(), 2);
        old["metadata"]["annotations"][AUTOUPDATE] = json!("false");
        assert_eq!(reconcile(CLUSTER_ROLES, &old, &wanted), None);
    }
}
