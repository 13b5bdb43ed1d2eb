//! Who is who, and who may do what.

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenReview};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use stolos_apiserver::Server;

use crate::{code, server, with_token};

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

async fn token(server: &Server, spec: Value) -> kube::Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(server.client(), "default");
    let request: TokenRequest = of(json!({"metadata": {}, "spec": spec}));
    let made = accounts.create_token_request("default", &PostParams::default(), &request).await?;
    Ok(made.status.unwrap().token.unwrap_or_default())
}

async fn reviewed(server: &Server, token: &str, audiences: &[&str]) -> bool {
    let reviews: Api<TokenReview> = Api::all(server.client());
    let review: TokenReview = of(json!({"spec": {"token": token, "audiences": audiences}}));
    let status = reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap();
    status.authenticated == Some(true)
}

#[tokio::test]
async fn a_token_is_good_for_its_cluster_and_audience_only() {
    let (here, there) = (server().await, server().await);
    let token = token(&here, json!({"audiences": ["istio-ca"]})).await.unwrap();
    assert!(reviewed(&here, &token, &["istio-ca"]).await);
    assert!(!reviewed(&here, &token, &["other"]).await);
    assert!(!reviewed(&there, &token, &["istio-ca"]).await, "signed by another cluster");
    assert!(!reviewed(&here, "nonsense", &["istio-ca"]).await);
    let maps: Api<ConfigMap> = Api::namespaced(with_token(&here, &token).await, "default");
    assert_eq!(code(maps.list(&ListParams::default()).await), 401, "not a token for the API server");
}

#[tokio::test]
async fn a_token_dies_with_the_pod_it_is_bound_to() {
    let server = server().await;
    let pods: Api<Pod> = Api::namespaced(server.client(), "default");
    let pod: Pod = of(json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}));
    let pod = pods.create(&PostParams::default(), &pod).await.unwrap();
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": pod.metadata.uid});
    let token = token(&server, json!({"audiences": ["a"], "boundObjectRef": bound})).await.unwrap();
    assert!(reviewed(&server, &token, &["a"]).await);
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    assert!(!reviewed(&server, &token, &["a"]).await);
    let wrong = json!({"kind": "Pod", "apiVersion": "v1", "name": "nobody"});
    assert_eq!(
        code(crate::permissions::token(&server, json!({"audiences": ["a"], "boundObjectRef": wrong})).await),
        404
    );
}

#[tokio::test]
async fn roles_allow_and_everything_else_is_forbidden() {
    let server = server().await;
    let admin = server.client();
    let token = token(&server, json!({"audiences": []})).await.unwrap();
    let client = with_token(&server, &token).await;
    let (maps, secrets): (Api<ConfigMap>, Api<Secret>) =
        (Api::namespaced(client.clone(), "default"), Api::namespaced(client.clone(), "default"));
    assert_eq!(code(maps.list(&ListParams::default()).await), 403);

    let role: Role = of(json!({"metadata": {"name": "r"}, "rules": [
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]},
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["create"]}]}));
    let binding: RoleBinding = of(json!({"metadata": {"name": "r"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}]}));
    Api::namespaced(admin.clone(), "default").create(&PostParams::default(), &role).await.unwrap();
    Api::namespaced(admin.clone(), "default").create(&PostParams::default(), &binding).await.unwrap();
    assert!(maps.list(&ListParams::default()).await.is_ok());
    assert_eq!(code(maps.delete("kube-root-ca.crt", &DeleteParams::default()).await.map(|_| ())), 403);
    assert_eq!(code(secrets.list(&ListParams::default()).await), 403);
    let elsewhere: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    assert_eq!(code(elsewhere.list(&ListParams::default()).await), 403);

    let roles: Api<Role> = Api::namespaced(client.clone(), "default");
    let more = |resource: &str| -> Role {
        of(json!({"metadata": {"name": resource}, "rules": [
            {"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]}))
    };
    roles.create(&PostParams::default(), &more("configmaps")).await.unwrap();
    assert_eq!(code(roles.create(&PostParams::default(), &more("secrets")).await), 403, "nobody gives what they lack");
    let all: Api<ClusterRole> = Api::all(admin.clone());
    assert!(all.get("cluster-admin").await.is_ok());

    // What is remembered of roles, bindings and tokens is no older than they are.
    let (roles, bindings): (Api<Role>, Api<RoleBinding>) =
        (Api::namespaced(admin.clone(), "default"), Api::namespaced(admin.clone(), "default"));
    let listed = async || code(maps.list(&ListParams::default()).await);
    let role = |verb: &str| {
        let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": [verb]}]);
        Patch::Merge(json!({"rules": rules}))
    };
    roles.patch("r", &PatchParams::default(), &role("get")).await.unwrap();
    assert_eq!(listed().await, 403);
    roles.patch("r", &PatchParams::default(), &role("list")).await.unwrap();
    assert!(maps.list(&ListParams::default()).await.is_ok());
    bindings.delete("r", &DeleteParams::default()).await.unwrap();
    assert_eq!(listed().await, 403);
    let accounts: Api<ServiceAccount> = Api::namespaced(admin, "default");
    accounts.delete("default", &DeleteParams::default()).await.unwrap();
    assert_eq!(listed().await, 401);
}

#[tokio::test]
async fn strangers_may_look_at_the_version_and_nothing_else() {
    let server = server().await;
    let mut kubeconfig = server.kubeconfig("test");
    kubeconfig["users"][0]["user"] = json!({});
    let kubeconfig: kube::config::Kubeconfig = of(kubeconfig);
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    let client = kube::Client::try_from(config).unwrap();
    assert_eq!(client.apiserver_version().await.unwrap().git_version, "v1.34.0+stolos");
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    assert_eq!(code(maps.list(&ListParams::default()).await), 403);
    let bad = with_token(&server, "nonsense").await;
    let maps: Api<ConfigMap> = Api::namespaced(bad, "default");
    assert_eq!(code(maps.list(&ListParams::default()).await), 401);
}

/// A service account of its own with a cluster role of its own, and a client that shows its token.
async fn account(server: &Server, name: &str, rules: Value) -> kube::Client {
    let admin = server.client();
    let made: ServiceAccount = of(json!({"metadata": {"name": name}}));
    Api::<ServiceAccount>::namespaced(admin.clone(), "default").create(&PostParams::default(), &made).await.unwrap();
    let role: ClusterRole = of(json!({"metadata": {"name": name}, "rules": rules}));
    Api::<ClusterRole>::all(admin.clone()).create(&PostParams::default(), &role).await.unwrap();
    let binding: ClusterRoleBinding = of(json!({"metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "default"}]}));
    Api::<ClusterRoleBinding>::all(admin.clone()).create(&PostParams::default(), &binding).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(admin, "default");
    let request: TokenRequest = of(json!({"metadata": {}, "spec": {"audiences": []}}));
    let token = accounts.create_token_request(name, &PostParams::default(), &request).await.unwrap();
    with_token(server, &token.status.unwrap().token.unwrap_or_default()).await
}

fn rule(group: &str, resource: &str, verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": [resource], "verbs": verbs})
}

#[tokio::test]
async fn a_role_that_gathers_follows_what_it_selects() {
    let server = server().await;
    let roles: Api<ClusterRole> = Api::all(server.client());
    let rules_of = |name: &'static str| {
        let roles = roles.clone();
        async move { serde_json::to_string(&roles.get(name).await.unwrap().rules).unwrap() }
    };
    assert!(rules_of("admin").await.contains("rolebindings"), "whole from the start");
    let gathering: ClusterRole = of(json!({"metadata": {"name": "g"}, "rules": [],
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"into": "g"}}]}}));
    roles.create(&PostParams::default(), &gathering).await.unwrap();
    let part: ClusterRole = of(
        json!({"metadata": {"name": "p", "labels": {"into": "g", "rbac.authorization.k8s.io/aggregate-to-view": "true"}},
            "rules": [rule("example.com", "things", &["get"])]}),
    );
    roles.create(&PostParams::default(), &part).await.unwrap();
    for name in ["g", "view", "edit", "admin"] {
        crate::eventually(name, || async { rules_of(name).await.contains("example.com") }).await;
    }
    roles.delete("p", &DeleteParams::default()).await.unwrap();
    for name in ["g", "view", "edit", "admin"] {
        crate::eventually(name, || async { !rules_of(name).await.contains("example.com") }).await;
    }
}

#[tokio::test]
async fn nobody_gives_away_what_they_lack() {
    let server = server().await;
    let rbac = "rbac.authorization.k8s.io";
    let client = account(
        &server,
        "giver",
        json!([
            rule("", "configmaps", &["get"]),
            rule(rbac, "clusterroles", &["create", "update", "get"]),
            rule(rbac, "rolebindings", &["create"])
        ]),
    )
    .await;
    let roles: Api<ClusterRole> = Api::all(client.clone());
    let role = |name: &str, resource: &str| -> ClusterRole {
        of(json!({"metadata": {"name": name}, "rules": [rule("", resource, &["get"])]}))
    };
    let mut mine = roles.create(&PostParams::default(), &role("mine", "configmaps")).await.unwrap();
    let refused = roles.create(&PostParams::default(), &role("more", "secrets")).await.unwrap_err().to_string();
    assert!(refused.contains(r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}"#), "{refused}");
    mine.metadata.labels = Some([("a".into(), "b".into())].into());
    let mut mine = roles.replace("mine", &PostParams::default(), &mine).await.unwrap();
    mine.aggregation_rule = Some(of(json!({"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]})));
    assert_eq!(code(roles.replace("mine", &PostParams::default(), &mine).await), 403, "it may gather anything");

    let bindings: Api<RoleBinding> = Api::namespaced(client, "default");
    let binding = |role: &str| -> RoleBinding {
        of(json!({"metadata": {"name": role},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "apiGroup": rbac, "name": "jane"}]}))
    };
    assert!(bindings.create(&PostParams::default(), &binding("mine")).await.is_ok());
    assert_eq!(code(bindings.create(&PostParams::default(), &binding("view")).await), 403);
    assert_eq!(code(bindings.create(&PostParams::default(), &binding("nobody")).await), 404);
    // Who may `bind` a role or `escalate` needs not hold what is in it.
    let admin: Api<ClusterRole> = Api::all(server.client());
    let mut giver = admin.get("giver").await.unwrap();
    giver.rules.as_mut().unwrap().push(of(json!({"apiGroups": [rbac], "resources": ["clusterroles"],
        "resourceNames": ["view"], "verbs": ["bind"]})));
    giver.rules.as_mut().unwrap().push(of(rule(rbac, "clusterroles", &["escalate"])));
    admin.replace("giver", &PostParams::default(), &giver).await.unwrap();
    assert!(bindings.create(&PostParams::default(), &binding("view")).await.is_ok());
    assert_eq!(code(bindings.create(&PostParams::default(), &binding("edit")).await), 403);
    assert!(roles.create(&PostParams::default(), &role("more", "secrets")).await.is_ok());
}

#[tokio::test]
async fn acting_for_somebody_needs_a_permission_for_each_part() {
    let server = server().await;
    let named = |resource: &str, group: &str, name: &str| json!({"apiGroups": [group], "resources": [resource], "resourceNames": [name], "verbs": ["impersonate"]});
    let client = account(
        &server,
        "actor",
        json!([
            named("users", "", "jane"),
            named("groups", "", "people"),
            named("uids", "authentication.k8s.io", "7"),
            named("userextras/scopes", "authentication.k8s.io", "read")
        ]),
    )
    .await;
    let whoami = |headers: &[(&'static str, &'static str)]| {
        let mut request = http::Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let client = client.clone();
        async move { client.request::<Value>(request.body(br#"{"kind":"SelfSubjectReview"}"#.to_vec()).unwrap()).await }
    };
    let jane = whoami(&[
        ("impersonate-user", "jane"),
        ("impersonate-group", "people"),
        ("impersonate-uid", "7"),
        ("impersonate-extra-scopes", "read"),
    ]);
    assert_eq!(
        jane.await.unwrap()["status"]["userInfo"],
        json!({"username": "jane", "uid": "7", "groups": ["people", "system:authenticated"], "extra": {"scopes": ["read"]}})
    );
    for (expected, headers) in [
        (403, [("impersonate-user", "joe"), ("impersonate-group", "people")]),
        (403, [("impersonate-user", "jane"), ("impersonate-group", "system:masters")]),
        (403, [("impersonate-user", "jane"), ("impersonate-uid", "8")]),
        (403, [("impersonate-user", "jane"), ("impersonate-extra-scopes", "write")]),
        (400, [("impersonate-uid", "7"), ("impersonate-group", "people")]),
    ] {
        assert_eq!(code(whoami(&headers).await), expected, "{headers:?}");
    }
}

#[tokio::test]
async fn reviews_say_who_may_what_and_why() {
    let server = server().await;
    let client = account(&server, "asker", json!([rule("", "pods", &["list"])])).await;
    let ask = |kind: &'static str, path: &'static str, spec: Value| {
        let body = json!({"kind": kind, "apiVersion": "authorization.k8s.io/v1", "spec": spec}).to_string();
        let request = http::Request::post(path).header("content-type", "application/json").body(body.into_bytes());
        let (client, admin) = (client.clone(), server.client());
        async move {
            let client = if kind.starts_with("Self") { client } else { admin };
            client.request::<Value>(request.unwrap()).await.map(|review| review["status"].clone())
        }
    };
    let own = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let pods = |verb: &str| json!({"resourceAttributes": {"verb": verb, "resource": "pods", "namespace": "default"}});
    let yes = ask("SelfSubjectAccessReview", own, pods("list")).await.unwrap();
    let why = r#"RBAC: allowed by ClusterRoleBinding "asker" of ClusterRole "asker" to ServiceAccount "asker/default""#;
    assert_eq!(yes, json!({"allowed": true, "reason": why}));
    assert_eq!(ask("SelfSubjectAccessReview", own, pods("delete")).await.unwrap(), json!({"allowed": false}));
    assert_eq!(code(ask("SelfSubjectAccessReview", own, json!({})).await), 422);
    let of_all = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let of_jane = json!({"user": "jane", "groups": ["system:masters"],
        "nonResourceAttributes": {"verb": "get", "path": "/metrics"}});
    assert_eq!(ask("SubjectAccessReview", of_all, of_jane).await.unwrap()["allowed"], true);
    assert_eq!(code(ask("SubjectAccessReview", of_all, pods("list")).await), 422, "of nobody");
    let local = "/apis/authorization.k8s.io/v1/namespaces/kube-system/localsubjectaccessreviews";
    let mut of_asker = pods("list");
    of_asker["user"] = json!("system:serviceaccount:default:asker");
    assert_eq!(code(ask("LocalSubjectAccessReview", local, of_asker.clone()).await), 400, "another namespace");
    of_asker["resourceAttributes"]["namespace"] = json!("kube-system");
    assert_eq!(ask("LocalSubjectAccessReview", local, of_asker).await.unwrap()["allowed"], true);
    let rules = ask(
        "SelfSubjectRulesReview",
        "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
        json!({"namespace": "default"}),
    );
    let rules = rules.await.unwrap();
    assert!(rules["resourceRules"].as_array().unwrap().contains(&rule("", "pods", &["list"])), "{rules}");
    assert_eq!(rules["incomplete"], false);
}

#[tokio::test]
async fn a_name_in_the_field_selector_is_a_name() {
    let server = server().await;
    let client = account(
        &server,
        "named",
        json!([{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["kube-root-ca.crt"], "verbs": ["list", "watch"]}]),
    )
    .await;
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    let by = |selector: &str| ListParams::default().fields(selector);
    assert_eq!(maps.list(&by("metadata.name=kube-root-ca.crt")).await.unwrap().items.len(), 1);
    for selector in ["", "metadata.name=other", "metadata.name!=kube-root-ca.crt"] {
        assert_eq!(code(maps.list(&by(selector)).await), 403, "{selector:?}");
    }
}
