//! The cluster's node and its heartbeat.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use super::{Trouble, claims, is_code};
use crate::cluster::Shared;

/// Rarer than a real kubelet's ten seconds: every beat is a durable write, and a hundred clusters share one disk.
const HEARTBEAT: Duration = Duration::from_secs(100);

pub(super) async fn run(shared: Arc<Shared>) {
    let mut delay = Duration::from_millis(50);
    let mut has_class = false;
    loop {
        let class = async { if has_class { Ok(()) } else { claims::make_class(&shared).await } };
        // One commit for both.
        let (registered, class) = tokio::join!(register(&shared), class);
        has_class = class.is_ok();
        let wait = match registered.and(class) {
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
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let memory = first_number("/proc/meminfo").map_or_else(|| "4Gi".to_owned(), |kib| format!("{kib}Ki"));
        let room = json!({"cpu": cores.to_string(), "memory": memory,
            "pods": crate::address::Subnet::PODS.to_string()});
        let condition = |kind: &str, status: &str, reason: &str, message: &str| {
            json!({"type": kind, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": stamp, "lastTransitionTime": stamp})
        };
        let status = json!({"status": {
            "addresses": [{"type": "InternalIP", "address": shared.subnet.node(0)}, {"type": "Hostname", "address": shared.node},
                {"type": "ExternalIP", "address": shared.subnet.node_outside()}],
            "capacity": room, "allocatable": room,
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                condition("Ready", "True", "KubeletReady", "the lab runs this node's pods in its own process"),
            ],
            // What is in the catalogue is on the node already; it is part of this program and takes no room.
            "images": shared.catalogue.names().map(|name| json!({"names": [name]})).collect::<Vec<_>>(),
            "nodeInfo": {
                "architecture": crate::cluster::architecture(), "operatingSystem": "linux", "osImage": "Stolos lab",
                "containerRuntimeVersion": format!("stolos-lab://{version}"), "kubeletVersion": "v1.34.0+stolos",
                "kubeProxyVersion": "v1.34.0+stolos", "machineID": "", "systemUUID": "",
                "kernelVersion": line("/proc/sys/kernel/osrelease"), "bootID": line("/proc/sys/kernel/random/boot_id"),
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

/// A file of one line; empty where there is none.
fn line(path: &str) -> String {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// The first number in a file: in `/proc/meminfo` the memory there is, in KiB.
fn first_number(path: &str) -> Option<u64> {
    line(path).split_whitespace().find_map(|word| word.parse().ok())
}
