//! A mesh as files of a repository, for those whose clusters follow one (GitOps): what `apply` would do to clusters
//! that have nothing, without asking them, and without a secret in it.
//!
//! A tree has a folder for each cluster, and in it one for each *wave*: what can be applied at the same time once the
//! waves before it are there and ready. What is secret is named, never written: an `ExternalSecret`, or a file to be
//! filled in and encrypted with SOPS.

mod argocd;
mod flux;
mod readme;

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde_json::{Value, json};
use stolos_spec::{Engine, Mesh};

use crate::object::MEMBERSHIP;
use crate::operator::Operator;
use crate::release::Release;
use crate::{Blocked, Change, ClusterState, LocalChart, Observed, Plan, Sight, StateFacts, Step, plan};

/// For whom the files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `kubectl apply -f` and `helm`, folder by folder.
    Plain,
    /// A `kustomization.yaml` in each cluster's folder, with charts inflated by `--enable-helm`.
    Kustomize,
    /// An ApplicationSet of Argo CD, and sync waves.
    ArgoCd,
    /// Kustomizations and HelmReleases of Flux.
    Flux,
}

/// How what is secret is stood for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secrets {
    /// By an `ExternalSecret` (external-secrets.io/v1) of this ClusterSecretStore.
    External {
        /// Its name.
        store: String,
    },
    /// By a Secret to be filled in and encrypted with SOPS.
    Sops,
}

/// How a mesh is exported.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// For whom.
    pub format: Format,
    /// What stands for secrets.
    pub secrets: Secrets,
    /// The Kubernetes version of the clusters, such as `v1.34.0`.
    pub kubernetes: String,
    /// The charts in the folder that the mesh file names, if it names one.
    pub charts: Vec<LocalChart>,
    /// The repository that the tree will be in, for Argo CD.
    pub repository: String,
    /// Its branch or tag.
    pub revision: String,
    /// The tree's folder in it, `.` for its root.
    pub path: String,
}

/// The files by their path, and what a person has to do besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Text by path below the tree's folder.
    pub files: BTreeMap<String, String>,
    /// What has to be filled in, or minded.
    pub notes: Vec<String>,
}

/// What stands in the files where the address of another cluster's gateway has to be written.
const MISSING_ADDRESS: &str = "REPLACE-WITH-THE-ADDRESS-OF-THE-PRIMARYS-GATEWAY";

/// The files of `mesh`. `now` is only looked at, never written.
///
/// # Errors
///
/// Every reason why it cannot be built at all.
pub fn export(mesh: &Mesh, options: &ExportOptions, now: SystemTime) -> Result<Export, Blocked> {
    let plan = plan(mesh, &untouched(mesh, &options.kubernetes, options.charts.clone(), now))?;
    let waves = waves(&plan);
    let mut tree = Tree { options, mesh: mesh.name.as_str(), files: BTreeMap::new(), notes: Vec::new() };
    let mut clusters = Vec::new();
    for cluster in &mesh.clusters {
        let steps = plan.steps.iter().zip(&waves).filter(|(s, _)| s.cluster.as_deref() == Some(cluster.name.as_str()));
        clusters.push(tree.cluster(cluster.name.as_str(), &cluster.context, steps));
    }
    tree.notes.extend(plan.notes.iter().map(|note| match &note.cluster {
        Some(cluster) => format!("{cluster}: {}", note.text),
        None => note.text.clone(),
    }));
    match options.format {
        Format::Plain => {}
        Format::Kustomize => clusters.iter().for_each(|cluster| tree.kustomization(cluster)),
        Format::ArgoCd => argocd::files(&mut tree, &clusters),
        Format::Flux => flux::files(&mut tree, &clusters),
    }
    readme::file(&mut tree, &clusters);
    Ok(Export { files: tree.files, notes: tree.notes })
}

/// Clusters in which nothing is.
fn untouched(mesh: &Mesh, kubernetes: &str, charts: Vec<LocalChart>, now: SystemTime) -> Observed {
    let state = |name: &str| {
        let mut state = ClusterState {
            server: format!("https://{name}"),
            version: kubernetes.to_owned(),
            is_lab: mesh.control_plane.engine == Engine::Stolos,
            uid: name.to_owned(),
            ..ClusterState::default()
        };
        state.objects.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}}));
        state
    };
    let clusters = mesh.clusters.iter().map(|c| (c.name.to_string(), Sight::Seen(state(c.name.as_str())))).collect();
    Observed { now, clusters, hub: None, state: StateFacts::default(), charts }
}

/// For each step, how many writes must be done and ready before it. A wait is no wave of its own.
fn waves(plan: &Plan) -> Vec<usize> {
    let mut done: BTreeMap<&crate::StepId, usize> = BTreeMap::new();
    let mut waves = Vec::new();
    for step in &plan.steps {
        let first = step.after.iter().filter_map(|id| done.get(id)).copied().max().unwrap_or(0);
        let writes = !matches!(step.change, Change::Wait { .. } | Change::MakeRoot { .. });
        done.insert(&step.id, if writes { first + 1 } else { first });
        waves.push(first);
    }
    waves
}

/// One cluster's part of the tree.
struct Part {
    cluster: String,
    context: String,
    /// Waves in order, each with what is in it.
    waves: BTreeMap<usize, Wave>,
}

/// What can be applied at the same time.
#[derive(Default)]
struct Wave {
    /// Paths below the cluster's folder.
    files: BTreeSet<String>,
    /// Releases of Helm, with the path of their values.
    releases: Vec<(Release, String)>,
    /// What `istioctl` installs, with the path of its document.
    operators: Vec<(Operator, String)>,
}

struct Tree<'a> {
    options: &'a ExportOptions,
    mesh: &'a str,
    files: BTreeMap<String, String>,
    notes: Vec<String>,
}

impl Tree<'_> {
    fn put(&mut self, path: String, documents: &[Value]) {
        let text: Vec<String> = documents.iter().map(yaml).collect();
        self.files.insert(path, text.join("---\n"));
    }

    fn cluster<'s>(
        &mut self,
        cluster: &str,
        context: &str,
        steps: impl Iterator<Item = (&'s Step, &'s usize)>,
    ) -> Part {
        let mut by_wave: BTreeMap<usize, Vec<Change>> = BTreeMap::new();
        for (step, wave) in steps {
            let change = match &step.change {
                Change::WithAddress { of, service, .. } => {
                    let note = format!(
                        "{cluster}: write the external address of Service {service} of {of} where it says {MISSING_ADDRESS}"
                    );
                    if !self.notes.contains(&note) {
                        self.notes.push(note);
                    }
                    step.change.with_address(MISSING_ADDRESS)
                }
                change => change.clone(),
            };
            by_wave.entry(*wave).or_default().push(change);
        }
        // Waits leave gaps.
        let mut part = Part { cluster: cluster.to_owned(), context: context.to_owned(), waves: BTreeMap::new() };
        for changes in by_wave.into_values() {
            let number = part.waves.len();
            let mut wave = Wave::default();
            changes.iter().for_each(|change| self.change(cluster, number, change, &mut wave));
            if !(wave.files.is_empty() && wave.releases.is_empty() && wave.operators.is_empty()) {
                part.waves.insert(number, wave);
            }
        }
        part
    }

    fn change(&mut self, cluster: &str, number: usize, change: &Change, wave: &mut Wave) {
        match change {
            // What `apply` remembers of clusters it has seen cannot be said of clusters that nobody asked.
            Change::Write { objects } => {
                for object in objects.iter().filter(|object| object["metadata"]["name"] != MEMBERSHIP) {
                    self.object(cluster, number, object.clone(), wave);
                }
            }
            Change::IssueIntermediate { secret, .. } => {
                let keys = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"];
                self.secret(cluster, number, secret, &keys, wave);
            }
            Change::Link { read, secret, .. } => self.secret(cluster, number, secret, &[read], wave),
            Change::Install { release, .. } => {
                let path = format!("{number:02}/{}.values.yaml", release.name);
                self.put(format!("clusters/{cluster}/{path}"), std::slice::from_ref(&release.values));
                wave.releases.push((release.clone(), path));
            }
            Change::Operate { operator, .. } => {
                let path = format!("{number:02}/{}.istiooperator.yaml", operator.name);
                self.put(format!("clusters/{cluster}/{path}"), std::slice::from_ref(&operator.document));
                wave.operators.push((operator.clone(), path));
            }
            Change::WithAddress { change, .. } => self.change(cluster, number, change, wave),
            // Nothing is there that could go, and who carries this out waits by itself.
            _ => {}
        }
    }

    fn object(&mut self, cluster: &str, number: usize, mut object: Value, wave: &mut Wave) {
        if self.options.format == Format::ArgoCd {
            object["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"] = number.to_string().into();
        }
        let of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, name) = (of(&object["kind"]).to_lowercase(), of(&object["metadata"]["name"]));
        let namespace = object["metadata"]["namespace"].as_str().filter(|n| *n != "istio-system");
        let namespace = namespace.map(|namespace| format!("{namespace}.")).unwrap_or_default();
        // A colon is no part of a file's name everywhere.
        let path = format!("{number:02}/{kind}-{namespace}{}.yaml", name.replace(':', "-"));
        self.put(format!("clusters/{cluster}/{path}"), &[object]);
        wave.files.insert(path);
    }

    /// What stands for a Secret with these keys.
    fn secret(&mut self, cluster: &str, number: usize, secret: &Value, keys: &[&str], wave: &mut Wave) {
        let metadata = &secret["metadata"];
        let name = metadata["name"].as_str().unwrap_or_default();
        match &self.options.secrets {
            Secrets::External { store } => {
                let place = format!("{}/{cluster}/{name}", self.mesh);
                self.notes.push(format!("{cluster}: {store} has to know {place} with {}", keys.join(", ")));
                let data =
                    keys.iter().map(|key| json!({"secretKey": key, "remoteRef": {"key": place, "property": key}}));
                let object = json!({
                    "apiVersion": "external-secrets.io/v1", "kind": "ExternalSecret",
                    "metadata": {"name": name, "namespace": metadata["namespace"], "labels": metadata["labels"]},
                    "spec": {
                        "refreshInterval": "1h",
                        "secretStoreRef": {"kind": "ClusterSecretStore", "name": store},
                        "target": {"name": name, "creationPolicy": "Owner", "template": {
                            "type": secret["type"].as_str().unwrap_or("Opaque"), "mergePolicy": "Replace",
                            "metadata": {"labels": metadata["labels"], "annotations": metadata["annotations"]},
                            "data": keys.iter().map(|key| {
                                let value = format!("{{{{ index . {} }}}}", Value::from(*key));
                                ((*key).to_owned(), Value::from(value))
                            }).collect::<serde_json::Map<_, _>>(),
                        }},
                        "data": data.collect::<Vec<_>>(),
                    },
                });
                self.object(cluster, number, without_nulls(object), wave);
            }
            Secrets::Sops => {
                let path = format!("{number:02}/{name}.sops.yaml");
                let whole = format!("clusters/{cluster}/{path}");
                self.notes.push(format!("{cluster}: fill in {whole}, then `sops --encrypt --in-place {whole}`"));
                let mut secret = secret.clone();
                let values = keys.iter().map(|key| ((*key).to_owned(), Value::from("REPLACE")));
                secret["stringData"] = values.collect::<serde_json::Map<_, _>>().into();
                if let Some(fields) = secret.as_object_mut() {
                    fields.remove("data");
                }
                self.put(whole, &[secret]);
                wave.files.insert(path);
                let rules = json!({"creation_rules": [{"path_regex": r"\.sops\.yaml$",
                    "encrypted_regex": "^(data|stringData)$"}]});
                self.put(".sops.yaml".to_owned(), &[rules]);
            }
        }
    }

    /// All of a cluster for kustomize. It sorts by kind; what a controller has to make ready first it cannot wait for.
    fn kustomization(&mut self, part: &Part) {
        let resources: Vec<_> = part.waves.values().flat_map(|wave| &wave.files).collect();
        let charts: Vec<_> = part
            .waves
            .values()
            .flat_map(|wave| &wave.releases)
            .map(|(release, values)| {
                json!({"name": chart_name(release), "repo": repository(release), "version": release.chart.version,
                "releaseName": release.name, "namespace": release.namespace, "includeCRDs": true, "valuesFile": values})
            })
            .collect();
        let mut object = json!({"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": resources});
        if !charts.is_empty() {
            object["helmCharts"] = charts.into();
        }
        self.put(format!("clusters/{}/kustomization.yaml", part.cluster), &[without_nulls(object)]);
    }
}

/// A chart's name, wherever it is.
fn chart_name(release: &Release) -> &str {
    release.chart.reference.rsplit('/').next().unwrap_or_default()
}

/// Where a chart is, as kustomize, Argo CD and Flux are told: a repository of charts, or what stands before a chart's
/// name in a registry.
fn repository(release: &Release) -> Option<String> {
    let registry = || release.chart.reference.rsplit_once('/').map(|(registry, _)| registry.to_owned());
    release.chart.repository.clone().or_else(registry)
}

fn without_nulls(mut value: Value) -> Value {
    stolos_k8s::meta::remove_nulls(&mut value);
    value
}

fn yaml(value: &Value) -> String {
    // Any JSON is YAML; this is only for the eye.
    let text = serde_saphyr::to_string(value).unwrap_or_else(|_| format!("{value:#}"));
    if text.ends_with('\n') { text } else { text + "\n" }
}

#[cfg(test)]
mod tests;
