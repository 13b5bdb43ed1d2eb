//! How a cluster becomes a member whose agent runs in it: what its pod is made of, and the token that lets it in.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use stolos_cluster::Cluster;
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::meta;

use super::join::{Joining, PULL, credential, enter, identity, may_join, owner, role};
use crate::kinds::clusters;
use crate::{Error, gate};

/// The namespace of an agent's pod.
pub const AGENT_NAMESPACE: &str = "stolos-agent";
/// Its Deployment, its account, and the Secret with its address, its token and its certificate.
pub const AGENT: &str = "stolos-agent";
/// How long the token is good for: its pod comes within that, or the next to install it brings another.
const TOKEN: Duration = Duration::from_secs(3600);
/// The field manager of what is in the member.
const INSTALLER: &str = "stolos-hub-join";

/// Makes a cluster a member that dials the hub, with an agent in a pod of its own. The same again renews all of it, and
/// takes up what an earlier try has left half done.
///
/// # Flow
///
/// 1. In the member: the hub's accounts, as for any other; their tokens go into the hub from here, so that the agent needs none.
/// 2. In the hub: the Cluster, and a token that lets in one agent of this member alone.
/// 3. In the member: namespace, account, role, the Secret with the token, the Deployment. All of it belongs to the hub's role
///    there, so that it goes with that when the member leaves.
///
/// # Errors
///
/// When the hub takes no agents in, the name cannot be or is taken, or either refuses or does not answer.
pub async fn install(hub: &kube::Client, member: &Cluster, joining: &Joining, image: &str) -> Result<(), Error> {
    let name = joining.name.as_str();
    let notice = gate::notice(hub).await?;
    let notice = notice.ok_or_else(|| {
        Error::Agents("this hub takes no agents in: `stolos hub up --agents ADDRESS` does".to_owned())
    })?;
    may_join(hub, name, &identity(&member.client).await?).await?;
    enter(hub, joining, &credential(member, name).await?, PULL).await?;
    let token = gate::token::create(hub, TOKEN, name).await?;
    let roles = Resource::named("rbac.authorization.k8s.io/v1", "ClusterRole")?;
    let whole = objects::get(&member.client, &roles, None, &role(name)).await?;
    let whole = whole.ok_or_else(|| Error::Agents(format!("the hub's role in {name} is gone again")))?;
    let owner = owner("rbac.authorization.k8s.io/v1", "ClusterRole", &whole);
    for object in pod((name, image), &owner, &notice, token.expose()) {
        let resource = Resource::of(&object)?;
        objects::apply(&member.client, &resource, &object, INSTALLER, true).await?;
    }
    Ok(())
}

/// Waits until the agent that [`install`] brought has been let in and has kept what it got.
///
/// # Errors
///
/// When it has not after `patience`, or either side cannot be asked.
pub async fn registered(hub: &kube::Client, member: &Cluster, name: &str, patience: Duration) -> Result<(), Error> {
    let cluster = objects::get(hub, &clusters(), None, name).await?;
    let cluster = cluster.ok_or_else(|| Error::NoCluster(name.to_owned()))?;
    let (of, secrets) = (format!(".{}", gate::epoch(&cluster)), Resource::named("v1", "Secret")?);
    let waiting = async {
        loop {
            let secret = objects::get(&member.client, &secrets, Some(AGENT_NAMESPACE), AGENT).await?;
            let own = secret.and_then(|secret| gate::kept(&secret));
            if own.is_some_and(|own| own.uris().iter().any(|uri| uri.ends_with(&of))) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let late = || Error::NotYet {
        what: format!("let the agent of {name} in"),
        after: patience,
        left: format!("its pod has not registered: `kubectl -n {AGENT_NAMESPACE} get pods`, and its log, say why"),
    };
    tokio::time::timeout(patience, waiting).await.unwrap_or_else(|_| Err(late()))
}

/// Removes the agent that [`install`] brought, of a member that the hub dials from now on.
///
/// # Errors
///
/// When the member refuses or does not answer.
pub async fn uninstall(member: &Cluster) -> Result<(), Error> {
    let namespaces = Resource::named("v1", "Namespace")?;
    let found = objects::get(&member.client, &namespaces, None, AGENT_NAMESPACE).await?;
    let ours = found.filter(|found| meta::label(found, "app.kubernetes.io/managed-by") == Some("stolos"));
    if let Some(found) = ours {
        objects::delete(&member.client, &namespaces, None, AGENT_NAMESPACE, Some(meta::uid(&found))).await?;
    }
    Ok(())
}

/// What is in the member, in the order in which it can be made.
fn pod((name, image): (&str, &str), owner: &Value, notice: &gate::Notice, token: &str) -> Vec<Value> {
    const RBAC: &str = "rbac.authorization.k8s.io/v1";
    let labels = json!({"app.kubernetes.io/name": AGENT, "app.kubernetes.io/managed-by": "stolos"});
    let object = |api_version: &str, kind: &str, namespaced: bool, rest: Value| {
        let mut object = rest;
        object["apiVersion"] = api_version.into();
        object["kind"] = kind.into();
        object["metadata"] = json!({"name": AGENT, "labels": labels, "ownerReferences": [owner]});
        if namespaced {
            object["metadata"]["namespace"] = AGENT_NAMESPACE.into();
        }
        object
    };
    let data = |text: &str| BASE64_STANDARD.encode(text);
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    vec![
        object("v1", "Namespace", false, json!({})),
        object("v1", "ServiceAccount", true, json!({})),
        // Its own Secret, and nothing else: what passes through it bears the hub's credentials, not its own.
        object(
            RBAC,
            "Role",
            true,
            json!({"rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": [AGENT], "verbs": ["get", "patch"]}]}),
        ),
        object(
            RBAC,
            "RoleBinding",
            true,
            json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": AGENT},
                "subjects": [{"kind": "ServiceAccount", "name": AGENT, "namespace": AGENT_NAMESPACE}]}),
        ),
        object(
            "v1",
            "Secret",
            true,
            json!({"type": "Opaque",
                "data": {"hub": data(&notice.address), "authority": data(&notice.authority), "token": data(token)}}),
        ),
        object(
            "apps/v1",
            "Deployment",
            true,
            json!({"spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app.kubernetes.io/name": AGENT}},
                "template": {
                    "metadata": {"labels": {"app.kubernetes.io/name": AGENT, "sidecar.istio.io/inject": "false"}},
                    "spec": {
                        "serviceAccountName": AGENT,
                        "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
                            "seccompProfile": {"type": "RuntimeDefault"}},
                        "containers": [{
                            "name": "agent",
                            "image": image,
                            "imagePullPolicy": "IfNotPresent",
                            "args": ["agent", name, "--in-cluster"],
                            "env": [{"name": "POD_NAMESPACE", "valueFrom": field("metadata.namespace")}],
                            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
                            "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                                "capabilities": {"drop": ["ALL"]}},
                        }],
                    },
                },
            }}),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_pod_may_do_nothing_but_keep_its_own_certificate() {
        let notice = gate::Notice { address: "hub.example.com:8443".into(), authority: "sha256:aa".into() };
        let owner = json!({"kind": "ClusterRole", "name": "r", "uid": "u"});
        let all = pod(("eu", "stolos:1"), &owner, &notice, "abcdef.0123456789abcdef");
        let lines: Vec<_> =
            all.iter().map(|o| format!("{} {}", o["kind"], meta::namespace(o)).replace('"', "")).collect();
        assert_eq!(
            lines,
            [
                "Namespace ",
                "ServiceAccount stolos-agent",
                "Role stolos-agent",
                "RoleBinding stolos-agent",
                "Secret stolos-agent",
                "Deployment stolos-agent"
            ]
        );
        assert!(all.iter().all(|object| object["metadata"]["ownerReferences"][0]["uid"] == "u"));
        assert_eq!(
            all[2]["rules"],
            json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["stolos-agent"], "verbs": ["get", "patch"]}])
        );
        let pod = all[5].to_string();
        assert!(!pod.contains("abcdef.0123"), "the token is in the Secret alone");
    }
}
