//! The root, and one signing certificate for each cluster.

use std::time::Duration;

use serde_json::{Value, json};
use stolos_pki::{CaCerts, CaFacts, Secret};
use stolos_spec::{Cluster, Root};

use super::{Scene, Sketch, id, remote};
use crate::compare::differences;
use crate::graph::Work;
use crate::object::{CACERTS_SECRET, SYSTEM_NAMESPACE, mesh_of, namespace, ours, secret_text};
use crate::{Action, Change, ClusterState, Condition, ObjectDiff, ObjectKey};

const KEYS: [&str; 4] = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"];

pub(super) fn steps(scene: &Scene<'_>, sketch: &mut Sketch) {
    let elsewhere = scene.mesh.authority_elsewhere().filter(|_| scene.istio);
    if let Some(value) = elsewhere {
        let text = format!(
            "workloads get their certificates from elsewhere ({value}): nothing is issued, and {CACERTS_SECRET} stays as it is"
        );
        sketch.note(None, text);
        for (cluster, state) in &scene.live {
            // One that is there is somebody's all the same; left alone it does no harm.
            sketch.want(cluster.name.as_str(), cacerts_key());
            system_namespace(scene, sketch, cluster, state);
        }
        return;
    }
    rotation(scene, sketch);
    root(scene, sketch);
    for (cluster, state) in &scene.live {
        system_namespace(scene, sketch, cluster, state);
        // A remote's certificates are signed by its primary.
        if cluster.primary().is_none() {
            intermediate(scene, sketch, cluster.name.as_str(), state);
        }
    }
}

/// While the root is being replaced nothing is undone: who is issued a signing certificate gets it from the root that
/// signs now, with both roots (`State::authority`), and everybody else's stays as it is.
fn rotation(scene: &Scene<'_>, sketch: &mut Sketch) {
    if let Some(rotation) = &scene.observed.state.rotation {
        let how = match rotation.phase.is_back() {
            false => "`stolos cert rotate root` goes on with it, `--abort` takes it back",
            true => "`stolos cert rotate root --abort` goes on with taking it back",
        };
        let text = format!("the root is being replaced, phase {} since {}: {how}", rotation.phase, rotation.started_at);
        sketch.note(None, text);
        return;
    }
    for cluster in replaced_elsewhere(scene) {
        let text = format!(
            "its Secret {CACERTS_SECRET} has several roots: the root is being replaced, and not from {}; nothing of that \
             is changed here",
            scene.observed.state.folder
        );
        sketch.note(Some(cluster), text);
    }
}

/// The clusters that trust several roots while this folder knows of no replacement: another folder does.
fn replaced_elsewhere<'a>(scene: &Scene<'a>) -> Vec<&'a str> {
    if scene.observed.state.rotation.is_some() {
        return vec![];
    }
    let several = |state: &ClusterState| {
        let pem = state.objects.get(&cacerts_key()).and_then(|secret| secret_text(secret, KEYS[3]));
        pem.and_then(|pem| stolos_pki::Certificate::all_from_pem(&pem).ok()).is_some_and(|roots| roots.len() > 1)
    };
    scene.live.iter().filter(|(_, state)| several(state)).map(|(cluster, _)| cluster.name.as_str()).collect()
}

fn root(scene: &Scene<'_>, sketch: &mut Sketch) {
    let facts = &scene.observed.state;
    if let Some(why) = &facts.root_refused {
        sketch.problem("root-refused", None, format!("the root certificate cannot be used: {why}"), &[]);
        return;
    }
    if facts.root.is_some() {
        return;
    }
    let built: Vec<String> = scene
        .live
        .iter()
        .filter_map(|(cluster, state)| Some(format!("{}: {}", cluster.name, fingerprint_in(state)?)))
        .collect();
    if !built.is_empty() {
        let text = format!(
            "the state folder {} has no root, but these clusters already have one:\n  {}",
            facts.folder,
            built.join("\n  ")
        );
        sketch.problem("no-root", None, text, &WAYS_TO_A_ROOT);
        return;
    }
    match &scene.mesh.trust.root {
        Root::SelfSigned { validity } => sketch.draft(
            "trust/root".to_owned(),
            None,
            vec![],
            Work::Do {
                action: Action::Add,
                change: Change::MakeRoot {
                    organization: scene.mesh.trust.organization.clone(),
                    validity_seconds: validity.as_secs(),
                },
                because: format!("{} has no root certificate yet", facts.folder),
                diff: vec![],
            },
        ),
        Root::Files { certificate, .. } => {
            let text = format!("the root certificate {} could not be read", certificate.display());
            sketch.problem("root-refused", None, text, &[]);
        }
        // Nothing to be made: the program's first answer brings the root.
        Root::Exec { .. } => {}
    }
}

const WAYS_TO_A_ROOT: [&str; 2] = [
    "name the folder that the mesh was built from: `--state DIR` or $STOLOS_STATE",
    "copy that mesh's root-cert.pem and root-key.pem into this folder",
];

/// The namespace with its network, and in a remote with the name of who leads there. One that somebody else made gets
/// these and nothing more, so that it is never ours to delete.
fn system_namespace(scene: &Scene<'_>, sketch: &mut Sketch, member: &Cluster, state: &ClusterState) {
    let (cluster, network) = (member.name.as_str(), member.network.as_str());
    let key = ObjectKey::new("v1", "Namespace", None, SYSTEM_NAMESPACE);
    let live = state.objects.get(&key);
    let mut wanted = namespace(SYSTEM_NAMESPACE);
    if live.is_none_or(|live| mesh_of(live).is_some()) {
        wanted = ours(scene.mesh_name(), wanted);
    }
    wanted["metadata"]["labels"]["topology.istio.io/network"] = network.into();
    if let Some(primary) = member.primary() {
        wanted["metadata"]["annotations"][remote::LEADERS] = primary.as_str().into();
        let before = live.and_then(|live| live["metadata"]["annotations"][remote::LEADERS].as_str());
        if let Some(before) = before.filter(|before| *before != primary.as_str()) {
            let text = format!(
                "its primary changes from {before} to {primary}: proxies that run stay connected to {before} as long as it \
                 serves them, or until they are restarted"
            );
            sketch.note(Some(cluster), text);
        }
    }
    let before = live.and_then(|live| live["metadata"]["labels"]["topology.istio.io/network"].as_str());
    if let Some(before) = before.filter(|before| *before != network) {
        sketch.note(
            Some(cluster),
            format!(
                "its network changes from {before} to {network}: pods that are injected keep the old one until they are \
                 restarted"
            ),
        );
    }
    let mut after = vec![];
    if let Some(live) = live
        && live["metadata"]["deletionTimestamp"].is_string()
    {
        let gone = id("trust", cluster, "namespace-gone");
        sketch.wait(cluster, state, gone.clone(), vec![], vec![Condition::Gone { object: key.clone() }]);
        after.push(gone);
        let mut without = state.clone();
        without.objects.remove(&key);
        sketch.write(cluster, &without, id("trust", cluster, "namespace"), after, vec![wanted]);
        return;
    }
    sketch.write(cluster, state, id("trust", cluster, "namespace"), after, vec![wanted]);
}

/// Issued once. Issued anew only when its end is near; never because it could be.
fn intermediate(scene: &Scene<'_>, sketch: &mut Sketch, cluster: &str, state: &ClusterState) {
    let trust = &scene.mesh.trust;
    let key = cacerts_key();
    let secret = ours(
        scene.mesh_name(),
        json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": CACERTS_SECRET, "namespace": SYSTEM_NAMESPACE, "labels": {}}}),
    );
    sketch.want(cluster, key.clone());
    let live = state.objects.get(&key);
    let verdict = live.map(|live| judge(scene, live));
    let (action, because) = match verdict {
        None => (Action::Add, format!("{key} does not exist")),
        Some(Verdict::Good) => return,
        Some(Verdict::Renew(why)) => (Action::Change, why),
        Some(Verdict::Wrong { id, text, ways }) => return sketch.problem(id, Some(cluster), text, ways),
    };
    if let Some(live) = live
        && mesh_of(live) != Some(scene.mesh_name())
    {
        let text = format!("{key} was not made by Stolos and {because}");
        return sketch.problem("foreign", Some(cluster), text, &["renew it where it came from, or delete it"]);
    }
    if let Some(other) = replaced_elsewhere(scene).first() {
        let text = format!(
            "a signing certificate is needed ({because}), while the root is being replaced ({other} trusts several) by \
             somebody with another state folder than {}: one of this folder's root would undo that",
            scene.observed.state.folder
        );
        let ways = ["run from the folder where `stolos cert rotate root --status` knows of it: `--state DIR`"];
        return sketch.problem("root-rotation", Some(cluster), text, &ways);
    }
    if let Some(Err(why)) = scene.observed.state.root.as_ref().map(|root| &root.key) {
        let text = format!("a signing certificate is needed ({because}), and the root's key cannot be used: {why}");
        return sketch.problem(
            "root-key",
            Some(cluster),
            text,
            &["give the passphrase in $STOLOS_PASSPHRASE, or bring the key back"],
        );
    }
    if action == Action::Change {
        sketch
            .blast
            .certificates
            .push(format!("{cluster}: the signing certificate; its workloads follow at their next renewal"));
    }
    let fields = live.map(|live| differences(&secret, live)).unwrap_or_default();
    let fields = fields.into_iter().filter(|f| !f.path.starts_with("data")).collect();
    let change = Change::IssueIntermediate {
        organization: trust.organization.clone(),
        trust_domain: trust.domain.clone(),
        validity_seconds: trust.intermediates.validity.as_secs(),
        secret,
    };
    let diff = vec![ObjectDiff { object: key, action, fields }];
    let mut after = namespace_first(cluster);
    after.push("trust/root".to_owned());
    sketch.draft(id("trust", cluster, "cacerts"), Some(cluster), after, Work::Do { action, change, because, diff });
}

fn namespace_first(cluster: &str) -> Vec<String> {
    vec![id("trust", cluster, "namespace")]
}

enum Verdict {
    Good,
    Renew(String),
    Wrong { id: &'static str, text: String, ways: &'static [&'static str] },
}

fn judge(scene: &Scene<'_>, live: &Value) -> Verdict {
    let now = scene.observed.now;
    let Some(certs) = ca_certs(live) else {
        return Verdict::Wrong {
            id: "cacerts-incomplete",
            text: format!("Secret {SYSTEM_NAMESPACE}/{CACERTS_SECRET} lacks some of {}", KEYS.join(", ")),
            ways: &["complete it, or delete it to have it issued"],
        };
    };
    let facts = match certs.check(now) {
        Ok(facts) => facts,
        Err(stolos_pki::Refused::Expired { subject, .. }) => return Verdict::Renew(format!("`{subject}` has expired")),
        Err(why) => {
            return Verdict::Wrong {
                id: "cacerts-refused",
                text: format!("Secret {SYSTEM_NAMESPACE}/{CACERTS_SECRET} cannot be used: {why}"),
                ways: &["delete it to have it issued anew"],
            };
        }
    };
    if let Some(root) = &scene.observed.state.root
        && facts.roots.iter().all(|r| r.fingerprint() != root.fingerprint)
    {
        let theirs: Vec<_> = facts.roots.iter().map(stolos_pki::Certificate::fingerprint).collect();
        return Verdict::Wrong {
            id: "other-root",
            text: format!(
                "it trusts another root than the state folder {}:\n  here   {}\n  folder {}",
                scene.observed.state.folder,
                theirs.join(", "),
                root.fingerprint
            ),
            ways: &WAYS_TO_A_ROOT,
        };
    }
    renewal(&facts, scene).map_or(Verdict::Good, Verdict::Renew)
}

/// A reason to renew, if the end is nearer than the file allows. A certificate that lives less than twice that is
/// renewed at half its life instead, or it would be renewed by every run.
fn renewal(facts: &CaFacts, scene: &Scene<'_>) -> Option<String> {
    let end = facts.signing.not_after();
    let life = end.duration_since(facts.signing.not_before()).unwrap_or_default();
    let left = end.duration_since(scene.observed.now).unwrap_or_default();
    let before = scene.mesh.trust.intermediates.renew_before.min(life / 2);
    let days = |d: Duration| d.as_secs() / 86_400;
    (left < before)
        .then(|| format!("the signing certificate ends in {} days (renewed {} days before)", days(left), days(before)))
}

fn cacerts_key() -> ObjectKey {
    ObjectKey::new("v1", "Secret", Some(SYSTEM_NAMESPACE), CACERTS_SECRET)
}

fn ca_certs(secret: &Value) -> Option<CaCerts> {
    Some(CaCerts {
        ca_cert: secret_text(secret, KEYS[0])?,
        ca_key: Secret::new(secret_text(secret, KEYS[1])?),
        cert_chain: secret_text(secret, KEYS[2])?,
        root_cert: secret_text(secret, KEYS[3])?,
    })
}

/// The fingerprint of the root that a cluster already has.
fn fingerprint_in(state: &ClusterState) -> Option<String> {
    let pem = secret_text(state.objects.get(&cacerts_key())?, KEYS[3])?;
    Some(stolos_pki::Certificate::from_pem(&pem).ok()?.fingerprint())
}
