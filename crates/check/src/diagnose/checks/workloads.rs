//! Proxies of workloads.

use std::collections::BTreeMap;

use serde_json::Value;
use stolos_k8s::{istio, meta};

use crate::diagnose::Severity;
use crate::diagnose::scene::{Judgement, Scene, is_system, some};
use crate::diagnose::snapshot::{instant, is_over, proxy, since};

/// D-36
pub(crate) fn not_injected(scene: &Scene<'_>, judgement: &mut Judgement) {
    for member in &scene.members {
        if !judgement.can_read(member, &["Namespace", "Pod"]) {
            continue;
        }
        let mut without: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        let mut outdated: BTreeMap<&str, Vec<(&Value, &str, &str)>> = BTreeMap::new();
        for pod in member.seen.all("Pod").iter().filter(|p| !is_over(p)) {
            let name = meta::namespace(pod);
            let Some(namespace) = member.namespace(name).filter(|_| !is_system(name)) else { continue };
            let refuses =
                meta::label(pod, istio::INJECT_LABEL).or(meta::annotation(pod, istio::INJECT_LABEL)) == Some("false");
            if refuses || pod["spec"]["hostNetwork"] == true {
                continue;
            }
            let wanted =
                match (meta::label(namespace, istio::INJECTION_LABEL), meta::label(namespace, istio::REVISION_LABEL)) {
                    (Some(istio::INJECTION_ENABLED), _) => None,
                    (None, Some(revision)) => Some(revision),
                    // The namespace does not ask; the pod may.
                    _ if meta::label(pod, istio::INJECT_LABEL) == Some(istio::TRUE) => None,
                    _ => continue,
                };
            judgement.looked();
            if proxy(pod).is_none() {
                without.entry(name).or_default().push(pod);
            } else if let (Some(wanted), Some(has)) = (wanted, meta::annotation(pod, istio::REVISION_ANNOTATION))
                && has != wanted
                // A tag stands for a revision of another name.
                && !member.seen.all("MutatingWebhookConfiguration").iter().any(|w| meta::label(w, istio::TAG_LABEL) == Some(wanted))
            {
                outdated.entry(name).or_default().push((pod, wanted, has));
            }
        }
        for (namespace, pods) in without {
            let labelled = member.namespace(namespace).and_then(since);
            let older = pods
                .iter()
                .any(|p| instant(meta::creation_timestamp(p)).zip(labelled).is_some_and(|(pod, label)| pod < label));
            let why = if older { "; they are older than the namespace's label" } else { "" };
            let seen = format!(
                "pods without a sidecar in namespace {namespace}: {}{why}",
                some(pods.iter().map(|p| meta::name(p)))
            );
            let mend = member.kubectl(&format!("-n {namespace} rollout restart deployment"));
            judgement
                .found(member, seen, mend)
                .object(format!("Pod {namespace}/{}", meta::name(pods[0])))
                .since(since(pods[0]));
        }
        for (namespace, pods) in outdated {
            let (pod, wanted, has) = pods[0];
            let seen = format!(
                "sidecars of revision {has} in a namespace of revision {wanted}: {}",
                some(pods.iter().map(|(p, ..)| meta::name(p)))
            );
            let mend = member.kubectl(&format!("-n {namespace} rollout restart deployment"));
            judgement
                .found(member, seen, mend)
                .object(format!("Pod {namespace}/{}", meta::name(pod)))
                .since(since(pod))
                .severity(Severity::Warning);
        }
    }
}
