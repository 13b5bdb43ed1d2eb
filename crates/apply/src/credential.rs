//! Credentials for one cluster, given to somebody by hand: what `generate-kubeconfig.sh` and `create-secret.sh` did, with
//! an account of its own for each, the least rights that do, an end, and a way to take it back at once.
//!
//! The rights are those of a control plane that reads another cluster (multi-cluster contract B.5). Secrets are not among
//! them unless they are asked for: whoever reads all Secrets of a cluster is its administrator, one token further.

use http::Request;
use serde::Serialize;
use serde_json::{Value, json};
use stolos_cluster::objects::{self, Resource};
use stolos_cluster::{Cluster, Error};
use stolos_plan::{CREDENTIAL_LABEL, MANAGER, MESH_LABEL, SYSTEM_NAMESPACE, is_owned, ours, token_life};

use crate::observe::authority;

/// When a credential ends, as its account says.
const EXPIRES: &str = "stolos.dev/expires";
const RBAC: &str = "rbac.authorization.k8s.io/v1";

/// A credential that somebody asked for.
#[derive(Clone, Copy, Debug)]
pub struct CredentialRequest<'a> {
    /// What it is called; asking again for the same renews it.
    pub name: &'a str,
    /// How long it is to live, in seconds.
    pub seconds: u64,
    /// Whether it may read Secrets as well.
    pub secrets: bool,
}

/// A credential, made.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The token.
    pub token: stolos_pki::Secret,
    /// The certificate authority of the address that the cluster is reached by, as PEM.
    pub authority: String,
    /// When it ends, as the API server says it (RFC 3339).
    pub expires: String,
    /// For how long it was granted, in seconds, where the token says it.
    pub granted: Option<u64>,
}

/// A credential that is out there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Given {
    /// The cluster that it is for.
    pub cluster: String,
    /// What it is called.
    pub name: String,
    /// When it was first given.
    pub created: Option<String>,
    /// When it ends.
    pub expires: Option<String>,
    /// Whether it reads Secrets.
    pub reads_secrets: bool,
}

/// Makes the account, or finds it again, and asks for a token of it.
///
/// # Errors
///
/// When the cluster refuses or does not answer.
pub async fn create(mesh: &str, cluster: &Cluster, asked: CredentialRequest<'_>) -> Result<Issued, Error> {
    let namespaces = Resource::named("v1", "Namespace")?;
    if objects::get(&cluster.client, &namespaces, None, SYSTEM_NAMESPACE).await?.is_none() {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE, "labels": {}}});
        put(cluster, &ours(mesh, namespace)).await?;
    }
    let istio = !is_lab(cluster).await?;
    let account = account(asked.name);
    for object in objects_of(mesh, asked, istio, None) {
        put(cluster, &object).await?;
    }
    let answer = token(cluster, (SYSTEM_NAMESPACE, &account), asked.seconds, None).await?;
    let token = answer["status"]["token"].as_str().unwrap_or_default().to_owned();
    let expires = answer["status"]["expirationTimestamp"].as_str().unwrap_or_default().to_owned();
    let [account, ..] = objects_of(mesh, asked, istio, Some(&expires));
    put(cluster, &account).await?;
    let granted = token_life(&token);
    Ok(Issued { token: stolos_pki::Secret::new(token), authority: authority(cluster), expires, granted })
}

/// The credentials that were given for a cluster.
///
/// # Errors
///
/// When the cluster refuses or does not answer.
pub async fn list(mesh: &str, cluster: &Cluster) -> Result<Vec<Given>, Error> {
    let labels = format!("{CREDENTIAL_LABEL},{MESH_LABEL}={mesh}");
    let accounts = Resource::named("v1", "ServiceAccount")?;
    let accounts = objects::list(&cluster.client, &accounts, Some(SYSTEM_NAMESPACE), Some(&labels)).await?;
    let roles = objects::list(&cluster.client, &Resource::named(RBAC, "ClusterRole")?, None, Some(&labels)).await?;
    let given = accounts.iter().map(|account| {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let metadata = &account["metadata"];
        let role = roles.iter().find(|role| role["metadata"]["name"] == metadata["name"]);
        Given {
            cluster: cluster.name.clone(),
            name: text(&metadata["labels"][CREDENTIAL_LABEL]).unwrap_or_default(),
            created: text(&metadata["creationTimestamp"]),
            expires: text(&metadata["annotations"][EXPIRES]),
            reads_secrets: role.is_some_and(|role| role["rules"].to_string().contains("\"secrets\"")),
        }
    });
    Ok(given.collect())
}

/// Takes a credential back: its tokens are worth nothing from now on. Whether there was one.
///
/// # Errors
///
/// When the cluster refuses or does not answer.
pub async fn revoke(mesh: &str, cluster: &Cluster, name: &str) -> Result<bool, Error> {
    let name = account(name);
    let mut found = false;
    // The account first: that is what the tokens are of. What a revocation that was cut short has left goes, too.
    for (version, kind, namespace) in [
        ("v1", "ServiceAccount", Some(SYSTEM_NAMESPACE)),
        (RBAC, "ClusterRoleBinding", None),
        (RBAC, "ClusterRole", None),
    ] {
        let resource = Resource::named(version, kind)?;
        let there = objects::get(&cluster.client, &resource, namespace, &name).await?;
        if there.is_some_and(|object| is_owned(mesh, &object)) {
            found |= objects::delete(&cluster.client, &resource, namespace, &name, None).await?;
        }
    }
    Ok(found)
}

fn account(name: &str) -> String {
    format!("stolos-credential-{name}")
}

/// The account, its role, and what ties them.
fn objects_of(mesh: &str, asked: CredentialRequest<'_>, istio: bool, expires: Option<&str>) -> [Value; 3] {
    let name = account(asked.name);
    let own = |mut object: Value| {
        object["metadata"]["labels"][CREDENTIAL_LABEL] = asked.name.into();
        ours(mesh, object)
    };
    let mut account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": SYSTEM_NAMESPACE}});
    if let Some(expires) = expires {
        account["metadata"]["annotations"][EXPIRES] = expires.into();
    }
    [
        own(account),
        own(json!({"apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": name},
            "rules": rules(istio, asked.secrets)})),
        own(json!({"apiVersion": RBAC, "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": SYSTEM_NAMESPACE}]})),
    ]
}

fn rules(istio: bool, secrets: bool) -> Value {
    let read = |groups: &[&str], resources: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": ["get", "list", "watch"]});
    let mut core = vec!["namespaces", "services", "pods", "nodes"];
    let mut rules = Vec::new();
    if istio {
        core.extend(["endpoints", "replicationcontrollers", "configmaps"]);
        let kinds = ["config", "security", "networking", "authentication", "rbac", "telemetry", "extensions"]
            .map(|group| format!("{group}.istio.io"));
        rules.push(read(&kinds.each_ref().map(String::as_str), &["*"]));
        rules.push(read(&["gateway.networking.k8s.io"], &["*"]));
        rules.push(read(&["apiextensions.k8s.io"], &["customresourcedefinitions"]));
        rules.push(read(&["multicluster.x-k8s.io"], &["serviceexports", "serviceimports"]));
        rules.push(read(&["apps"], &["replicasets"]));
        for (group, resource) in
            [("authentication.k8s.io", "tokenreviews"), ("authorization.k8s.io", "subjectaccessreviews")]
        {
            rules.push(json!({"apiGroups": [group], "resources": [resource], "verbs": ["create"]}));
        }
    }
    if secrets {
        core.push("secrets");
    }
    rules.insert(0, read(&[""], &core));
    rules.insert(1, read(&["discovery.k8s.io"], &["endpointslices"]));
    Value::Array(rules)
}

async fn is_lab(cluster: &Cluster) -> Result<bool, Error> {
    let version: Value = request(cluster, "read the version", Request::get("/version").body(vec![])).await?;
    Ok(version["gitTreeState"] == "stolos-lab")
}

async fn put(cluster: &Cluster, object: &Value) -> Result<(), Error> {
    objects::apply(&cluster.client, &Resource::of(object)?, object, MANAGER, true).await.map(drop)
}

/// A token of an account, for the API server itself; its life ends with `bound`, where that names an object.
pub(crate) async fn token(
    cluster: &Cluster,
    (namespace, account): (&str, &str),
    seconds: u64,
    bound: Option<&Value>,
) -> Result<Value, Error> {
    let mut body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": [], "expirationSeconds": seconds}});
    if let Some(bound) = bound {
        body["spec"]["boundObjectRef"] = bound.clone();
    }
    let path = stolos_k8s::kind::path("", "v1", "serviceaccounts", Some(namespace), Some(account));
    let asking = Request::post(format!("{path}/token")).header("content-type", "application/json");
    let what = format!("request a token of {namespace}/{account}");
    request(cluster, &what, asking.body(body.to_string().into_bytes())).await
}

async fn request(cluster: &Cluster, what: &str, request: http::Result<Request<Vec<u8>>>) -> Result<Value, Error> {
    let failed = |source| Error::Request { what: what.to_owned(), source: Box::new(source) };
    let request = request.map_err(|e| failed(kube::Error::HttpError(e)))?;
    let after = objects::ANSWER;
    let answer = tokio::time::timeout(after, cluster.client.request::<Value>(request)).await;
    answer.map_err(|_| Error::NoAnswer { what: what.to_owned(), after })?.map_err(failed)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;

    use super::*;

    #[test]
    fn no_secret_is_read_unless_asked_for() {
        for istio in [false, true] {
            assert!(!rules(istio, false).to_string().contains("secrets"), "{istio}");
            assert!(rules(istio, true).to_string().contains("\"secrets\""), "{istio}");
            let verbs = rules(istio, true).to_string();
            for verb in ["update", "patch", "delete", "\"*\",\"verbs\""] {
                assert!(!verbs.contains(verb), "{verb}");
            }
        }
    }

    #[test]
    fn a_tokens_life_is_what_it_says() {
        let token = format!("head.{}.sign", BASE64_URL_SAFE_NO_PAD.encode(r#"{"iat": 100, "exp": 3700}"#));
        assert_eq!((token_life(&token), token_life("no token")), (Some(3600), None));
    }
}
