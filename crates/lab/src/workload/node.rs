//! The cluster's node and its heartbeat.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use super::{Trouble, is_code};
use crate::cluster::Shared;

/// Rarer than a real kubelet's ten seconds: every beat is a durable write, and a hundred clusters share one disk.
const HEARTBEAT: Duration = Duration::from_secs(100);

pub(super) async fn run(shared: Arc<Shared>) {
    let mut delay = Duration::from_millis(50);
    loop {
        let wait = match register(&shared).await {
            Ok(()) => {
                delay = Duration::from_millis(50);
                HEARTBEAT
            }
            Err(error) => {
                tracing::debug!(cluster = %shared.name, %error, "cannot register the node, trying again");
                delay = (delay * 2).min(Duration::from_secs(5));
                delay
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shared.stop.asked() => return,
        }
    }
}

async fn register(shared: &Shared) -> Result<(), Trouble> {
    let now = jiff::Timestamp::now();
    let stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let api: Api<Node> = Api::all(shared.client.clone());
    let labels = shared.node_labels();
    let exists = api.get_opt(&shared.node).await?;
    let current = exists.as_ref().is_some_and(|node| {
        let known = node.metadata.labels.clone().unwrap_or_default();
        let ready = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
        labels.iter().all(|(k, v)| known.get(k) == Some(v))
            && ready.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
    });
    if !current {
        if exists.is_none() {
            let node: Node = serde_json::from_value(json!({"metadata": {"name": shared.node, "labels": labels}}))?;
            match api.create(&PostParams::default(), &node).await {
                Err(error) if !is_code(&error, 409) => return Err(error.into()),
                _ => {}
            }
        } else {
            let patch = json!({"metadata": {"labels": labels}});
            api.patch(&shared.node, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        let version = env!("CARGO_PKG_VERSION");
        let room = json!({"cpu": "2", "memory": "4Gi", "pods": crate::address::Subnet::PODS.to_string()});
        let condition = |kind: &str, status: &str, reason: &str, message: &str| {
            json!({"type": kind, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": stamp, "lastTransitionTime": stamp})
        };
        let status = json!({"status": {
            "addresses": [{"type": "InternalIP", "address": shared.subnet.node(0)}, {"type": "Hostname", "address": shared.node}],
            "capacity": room, "allocatable": room,
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                condition("Ready", "True", "KubeletReady", "the lab runs this node's pods in its own process"),
            ],
            "nodeInfo": {
                "architecture": std::env::consts::ARCH, "operatingSystem": "linux", "osImage": "Stolos lab",
                "containerRuntimeVersion": format!("stolos-lab://{version}"), "kubeletVersion": "v1.34.0+stolos",
                "kubeProxyVersion": "v1.34.0+stolos", "kernelVersion": "", "machineID": "", "systemUUID": "", "bootID": "",
            },
        }});
        api.patch_status(&shared.node, &PatchParams::default(), &Patch::Merge(status)).await?;
    }
    let api: Api<Lease> = Api::namespaced(shared.client.clone(), "kube-node-lease");
    let renew = now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
    let spec = json!({"holderIdentity": shared.node, "renewTime": renew,
        "leaseDurationSeconds": 3 * HEARTBEAT.as_secs()});
    let patched = api.patch(&shared.node, &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await;
    match patched {
        Ok(_) => Ok(()),
        Err(error) if is_code(&error, 404) => {
            let lease: Lease = serde_json::from_value(
                json!({"metadata": {"name": shared.node, "namespace": "kube-node-lease"}, "spec": spec}),
            )?;
            api.create(&PostParams::default(), &lease).await?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
