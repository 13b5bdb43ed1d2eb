//! Says on the objects themselves what of them is not acted on: a condition `Reconciled=False, NotSupported` and a
//! Warning event, once per object and generation (decision 29).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use serde_json::json;
use stolos_k8s::istio;
use stolos_serve::Stop;

use crate::Config;
use crate::policy::Finding;
use crate::root_cert::MANAGER;
use crate::state::State;

/// How long one write may take.
const WRITE: Duration = Duration::from_secs(10);
/// How soon a failed one is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Reports until `stop`.
pub(crate) async fn report(client: Client, config: Config, state: State, stop: Stop) {
    let reporting = async {
        let mut worlds = state.worlds.clone();
        let mut said = BTreeMap::<String, (i64, String, Finding)>::new();
        let mut unread = BTreeSet::new();
        loop {
            let findings = std::sync::Arc::clone(&worlds.borrow_and_update().policies).findings.clone();
            let mut failed = false;
            for finding in &findings {
                let message = finding.message();
                let same =
                    said.get(&finding.uid).is_some_and(|(at, have, _)| (*at, have) == (finding.generation, &message));
                if same {
                    continue;
                }
                tracing::warn!(
                    kind = finding.kind,
                    namespace = finding.namespace,
                    name = finding.name,
                    "{}",
                    finding.message()
                );
                match tell(&client, &config, finding).await {
                    Ok(()) => _ = said.insert(finding.uid.clone(), (finding.generation, message, finding.clone())),
                    Err(error) => {
                        failed = true;
                        tracing::debug!(error, "cannot report what is not supported, trying again");
                    }
                }
            }
            let gone: Vec<_> =
                said.keys().filter(|uid| findings.iter().all(|finding| finding.uid != **uid)).cloned().collect();
            for uid in gone {
                // It has been mended, or is gone altogether.
                let Some((_, _, finding)) = said.remove(&uid) else { continue };
                if let Err(error) = condition(&client, &finding, None).await {
                    tracing::debug!(error, "cannot take a report back");
                }
            }
            for key in &state.reports.borrow().unread {
                if unread.insert(key.clone()) {
                    tracing::warn!(key, "the mesh configuration has a key that is not acted on");
                }
            }
            tokio::select! {
                changed = worlds.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if failed => {}
            }
        }
    };
    tokio::select! {
        () = reporting => {}
        () = stop.asked() => {}
    }
}

async fn tell(client: &Client, config: &Config, finding: &Finding) -> Result<(), String> {
    let Some(kind) = istio::kind(&finding.kind) else { return Ok(()) };
    let now = jiff::Timestamp::now();
    let reference = ObjectReference {
        api_version: Some(kind.api_version()),
        kind: Some(finding.kind.clone()),
        namespace: Some(finding.namespace.clone()),
        name: Some(finding.name.clone()),
        uid: Some(finding.uid.clone()),
        ..ObjectReference::default()
    };
    let event = Event {
        metadata: ObjectMeta {
            // The same generation is reported under the same name, also after a restart.
            name: Some(format!("{}.{}.{}", finding.name, finding.uid.get(..8).unwrap_or("0"), finding.generation)),
            namespace: Some(finding.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: reference,
        reason: Some("NotSupported".to_owned()),
        message: Some(finding.message()),
        type_: Some("Warning".to_owned()),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        reporting_component: Some("stolos-control".to_owned()),
        reporting_instance: Some(config.pod.clone()),
        source: Some(k8s_openapi::api::core::v1::EventSource {
            component: Some("stolos-control".to_owned()),
            ..Default::default()
        }),
        ..Event::default()
    };
    let events = Api::<Event>::namespaced(client.clone(), &finding.namespace);
    match bounded(events.create(&PostParams::default(), &event)).await {
        Ok(_) => {}
        Err(Failed::Api(409)) => {}
        Err(error) => return Err(error.to_string()),
    }
    condition(client, finding, Some(finding.message())).await
}

/// Sets the object's condition: what is not supported, or that all of it is.
async fn condition(client: &Client, finding: &Finding, trouble: Option<String>) -> Result<(), String> {
    let Some(kind) = istio::kind(&finding.kind) else { return Ok(()) };
    let gvk = GroupVersionKind::gvk(kind.group, kind.version(), kind.kind);
    let resource = ApiResource::from_gvk_with_plural(&gvk, kind.plural);
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), &finding.namespace, &resource);
    let (status, reason) = if trouble.is_some() { ("False", "NotSupported") } else { ("True", "Supported") };
    let status = json!({"status": {"conditions": [{
        "type": "Reconciled", "status": status, "reason": reason, "message": trouble.unwrap_or_default(),
        "lastTransitionTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    }]}});
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    match bounded(api.patch_status(&finding.name, &params, &Patch::Merge(&status))).await {
        // Gone in the meantime, or a kind without a status.
        Ok(_) | Err(Failed::Api(404 | 405)) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

enum Failed {
    Api(u16),
    Other(String),
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Api(code) => write!(f, "answer {code}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

async fn bounded<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failed> {
    match tokio::time::timeout(WRITE, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(Failed::Api(status.code)),
        Ok(Err(error)) => Err(Failed::Other(error.to_string())),
        Err(_) => Err(Failed::Other("no answer".to_owned())),
    }
}
