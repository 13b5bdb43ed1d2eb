//! Argo CD: an ApplicationSet that makes an Application of each cluster's folder, and one of each release.

use serde_json::{Value, json};

use super::{Part, Tree, chart_name, repository, without_nulls};

/// `applicationset.yaml`, to be applied where Argo CD runs.
pub(super) fn files(tree: &mut Tree<'_>, parts: &[Part]) {
    let options = tree.options;
    let prefix = if options.path == "." { String::new() } else { format!("{}/", options.path.trim_matches('/')) };
    // Objects come in waves; a wave is tried again until the kinds and the webhooks of a release are there.
    let sync = json!({"automated": {"selfHeal": true, "prune": false}, "syncOptions": ["ServerSideApply=true"],
        "retry": {"limit": 10, "backoff": {"duration": "10s", "factor": 2, "maxDuration": "5m"}}});
    let elements: Vec<_> = parts
        .iter()
        .map(|part| json!({"cluster": part.cluster, "path": format!("{prefix}clusters/{}", part.cluster)}))
        .collect();
    let set = |name: String, elements: Vec<Value>, name_of: &str, spec: Value| {
        json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "ApplicationSet",
            "metadata": {"name": name, "namespace": "argocd"},
            "spec": {"goTemplate": true, "goTemplateOptions": ["missingkey=error"],
                "generators": [{"list": {"elements": elements}}],
                "template": {"metadata": {"name": name_of}, "spec": spec}}})
    };
    let name = tree.mesh;
    let destination = json!({"name": "{{.cluster}}", "namespace": "istio-system"});
    let objects = json!({"project": "default", "destination": destination, "syncPolicy": sync,
        "source": {"repoURL": options.repository, "targetRevision": options.revision, "path": "{{.path}}",
            "directory": {"recurse": true, "exclude": "{*.values.yaml,*.istiooperator.yaml}"}}});
    let mut documents = vec![set(name.to_owned(), elements, &format!("{name}-{{{{.cluster}}}}"), objects)];

    let releases = parts.iter().flat_map(|part| {
        let releases = part.waves.values().flat_map(|wave| &wave.releases);
        releases.map(move |(release, values)| (part, release, values))
    });
    let elements: Vec<_> = releases
        .map(|(part, release, values)| {
            without_nulls(json!({"cluster": part.cluster, "release": release.name, "chart": chart_name(release),
                "repository": repository(release).map(|url| url.trim_start_matches("oci://").to_owned()),
                "version": release.chart.version, "namespace": release.namespace,
                "values": format!("{prefix}clusters/{}/{values}", part.cluster)}))
        })
        .collect();
    if !elements.is_empty() {
        let sources = json!([
            {"repoURL": "{{.repository}}", "chart": "{{.chart}}", "targetRevision": "{{.version}}",
                "helm": {"releaseName": "{{.release}}", "valueFiles": ["$files/{{.values}}"]}},
            {"repoURL": options.repository, "targetRevision": options.revision, "ref": "files"},
        ]);
        // istiod writes its CA into the webhooks that its chart makes.
        let ignored = json!([{"group": "admissionregistration.k8s.io", "kind": "MutatingWebhookConfiguration",
                "jqPathExpressions": [".webhooks[]?.clientConfig.caBundle"]},
            {"group": "admissionregistration.k8s.io", "kind": "ValidatingWebhookConfiguration",
                "jqPathExpressions": [".webhooks[]?.clientConfig.caBundle", ".webhooks[]?.failurePolicy"]}]);
        let spec = json!({"project": "default", "syncPolicy": sync, "sources": sources, "ignoreDifferences": ignored,
            "destination": {"name": "{{.cluster}}", "namespace": "{{.namespace}}"}});
        let name_of = format!("{name}-{{{{.cluster}}}}-{{{{.release}}}}");
        documents.push(set(format!("{name}-releases"), elements, &name_of, spec));
    }
    tree.put("applicationset.yaml".to_owned(), &documents);
}
