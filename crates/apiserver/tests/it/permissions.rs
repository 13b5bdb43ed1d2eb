//! Who is who, and who may do what.

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenReview};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, Role, RoleBinding};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
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
    let all: Api<ClusterRole> = Api::all(admin);
    assert!(all.get("cluster-admin").await.is_ok());
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
