//! Flux: for each cluster a Kustomization per wave, each after the one before it, with HelmReleases inside.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Part, Secrets, Tree, chart_name, repository, without_nulls};

/// `flux/<cluster>.yaml` to be applied in each cluster, beside a GitRepository `flux-system` as `flux bootstrap` makes it.
pub(super) fn files(tree: &mut Tree<'_>, parts: &[Part]) {
    let prefix = match tree.options.path.trim_matches('/') {
        "." | "" => ".".to_owned(),
        path => format!("./{path}"),
    };
    for part in parts {
        let cluster = &part.cluster;
        let mut repositories: BTreeMap<String, Value> = BTreeMap::new();
        for (number, wave) in &part.waves {
            let mut resources: Vec<_> = wave.files.iter().map(|path| below(path).to_owned()).collect();
            for (release, _) in &wave.releases {
                let Some(url) = repository(release) else { continue };
                let name = format!("{}-charts", tree.mesh);
                let name = if repositories.is_empty() || repositories.contains_key(&url) {
                    name
                } else {
                    format!("{name}-{}", repositories.len())
                };
                let kind = if url.starts_with("oci://") { json!("oci") } else { Value::Null };
                repositories.entry(url.clone()).or_insert_with(|| {
                    without_nulls(json!({"apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "HelmRepository",
                        "metadata": {"name": name, "namespace": "flux-system"},
                        "spec": {"interval": "1h", "type": kind, "url": url}}))
                });
                let object = without_nulls(json!({
                    "apiVersion": "helm.toolkit.fluxcd.io/v2", "kind": "HelmRelease",
                    "metadata": {"name": release.name, "namespace": "flux-system"},
                    "spec": {"interval": "10m", "releaseName": release.name, "targetNamespace": release.namespace,
                        "storageNamespace": release.namespace,
                        "chart": {"spec": {"chart": chart_name(release), "version": release.chart.version,
                            "sourceRef": {"kind": "HelmRepository", "name": name}}},
                        "values": release.values},
                }));
                let file = format!("{}.helmrelease.yaml", release.name);
                tree.put(format!("clusters/{cluster}/{number:02}/{file}"), &[object]);
                tree.files.remove(&format!("clusters/{cluster}/{number:02}/{}.values.yaml", release.name));
                resources.push(file);
            }
            let kustomization = json!({"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
                "resources": resources});
            tree.put(format!("clusters/{cluster}/{number:02}/kustomization.yaml"), &[kustomization]);
        }
        let name = |number: usize| format!("{}-{number:02}", tree.mesh);
        let mut documents: Vec<Value> = repositories.into_values().collect();
        let mut before: Option<usize> = None;
        for number in part.waves.keys() {
            let mut object = json!({
                "apiVersion": "kustomize.toolkit.fluxcd.io/v1", "kind": "Kustomization",
                "metadata": {"name": name(*number), "namespace": "flux-system"},
                "spec": {"interval": "10m", "retryInterval": "1m", "timeout": "5m", "prune": false, "wait": true,
                    "path": format!("{prefix}/clusters/{cluster}/{number:02}"),
                    "sourceRef": {"kind": "GitRepository", "name": "flux-system"}},
            });
            if let Some(before) = before {
                object["spec"]["dependsOn"] = json!([{"name": name(before)}]);
            }
            if tree.options.secrets == Secrets::Sops {
                object["spec"]["decryption"] = json!({"provider": "sops", "secretRef": {"name": "sops-keys"}});
            }
            documents.push(object);
            before = Some(*number);
        }
        tree.put(format!("flux/{cluster}.yaml"), &documents);
    }
}

/// A path below its wave's folder.
fn below(path: &str) -> &str {
    path.split_once('/').map_or(path, |(_, file)| file)
}
