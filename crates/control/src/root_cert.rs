//! Publishes the roots where workloads look for them, and where the API server does.
//!
//! * ConfigMap `istio-ca-root-cert` in every namespace but a few; what others change in it is put back. Beside the roots
//!   it has the fingerprint of the signing certificate, so that agents renew as soon as another one signs.
//! * `caBundle` of this control plane's webhooks.
//!
//! That is done in the own cluster, and in every remote one whose system namespace says in its annotation
//! `topology.istio.io/controlPlaneClusters` that this control plane leads there, if it is told to serve others
//! (`EXTERNAL_ISTIOD`): contract B.7, as istiod does it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher;
use serde_json::json;
use stolos_k8s::istio;
use stolos_serve::Stop;

use crate::Config;
use crate::sign::Trust;
use crate::state::State;

/// Our name on the fields we write.
pub(crate) const MANAGER: &str = "stolos-control";
/// The key, beside Istio's `root-cert.pem`, under which workloads find who signs.
const SIGNER_KEY: &str = "ca-cert.sha256";
/// How often everything is looked at again, whatever has been seen.
const AGAIN: Duration = Duration::from_secs(30);
/// How soon after something failed, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How long one write may take.
const WRITE: Duration = Duration::from_secs(10);

/// Publishes until `stop`.
pub(crate) async fn publish(client: Client, config: Config, state: State, trust: Arc<Trust>, stop: Stop) {
    let publisher = Publisher { config, state, trust };
    tokio::select! {
        () = publisher.publish_in(&client, &publisher.config.cluster) => {}
        () = publisher.lead(), if publisher.config.external => {}
        () = stop.asked() => {}
    }
}

/// The roots, and the fingerprint of who signs.
type Published = (String, String);

struct Publisher {
    config: Config,
    state: State,
    trust: Arc<Trust>,
}

impl Publisher {
    async fn publish_in(&self, client: &Client, cluster: &str) {
        tokio::select! {
            () = config_maps(client, cluster, &self.state, &self.trust) => {}
            () = webhooks(client, &self.config, &self.trust) => {}
        }
    }

    /// Publishes in the remote clusters that want it of this control plane. Each is followed for itself; a new
    /// credential begins anew.
    async fn lead(&self) {
        let mut clients = self.state.clients.clone();
        loop {
            let now = Arc::clone(&clients.borrow_and_update());
            let following = now.iter().map(|(id, (_, client))| self.follow(client, id));
            tokio::select! {
                // None of them ends by itself, and there may be none.
                changed = clients.changed() => if changed.is_err() { return },
                never = async { futures::future::join_all(following).await; std::future::pending().await } => never,
            }
        }
    }

    /// Looks at the remote cluster's system namespace, and publishes as long as it names this control plane.
    async fn follow(&self, client: &Client, cluster: &str) {
        let only = watcher::Config::default().fields(&format!("metadata.name={}", self.config.namespace));
        let mut watch = std::pin::pin!(watcher(Api::<Namespace>::all(client.clone()), only));
        let mut pause = RETRY.0;
        let mut leads = false;
        loop {
            let event = tokio::select! {
                event = watch.next() => event,
                () = self.publish_in(client, cluster), if leads => continue,
            };
            match event {
                None => return,
                Some(Ok(event)) => {
                    pause = RETRY.0;
                    let now = match &event {
                        watcher::Event::Apply(namespace) | watcher::Event::InitApply(namespace) => {
                            let annotations = namespace.metadata.annotations.as_ref();
                            let named = annotations.and_then(|all| all.get(istio::CONTROL_PLANE_CLUSTERS_ANNOTATION));
                            named.is_some_and(|named| is_led_by(named, &self.config.cluster))
                        }
                        watcher::Event::Delete(_) => false,
                        watcher::Event::Init | watcher::Event::InitDone => leads,
                    };
                    if now != leads {
                        tracing::info!(cluster, leads = now, "the trust bundle of a remote cluster");
                    }
                    leads = now;
                }
                Some(Err(error)) => {
                    tracing::debug!(cluster, %error, "cannot watch a remote system namespace, trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY.1);
                }
            }
        }
    }
}

/// Whether the annotation's value, cluster IDs with commas between them or `*`, names `cluster`.
fn is_led_by(named: &str, cluster: &str) -> bool {
    named.split(',').map(str::trim).any(|name| name == "*" || name == cluster)
}

async fn config_maps(client: &Client, cluster: &str, state: &State, trust: &Trust) {
    let mut worlds = state.worlds.clone();
    let only = watcher::Config::default().fields(&format!("metadata.name={}", istio::ROOT_CONFIG_MAP));
    let mut watch = std::pin::pin!(watcher(Api::<ConfigMap>::all(client.clone()), only));
    let mut have = BTreeMap::<String, Published>::new();
    let mut listing = None::<BTreeMap<String, Published>>;
    let mut listed = false;
    let mut refused = BTreeSet::new();
    let mut pause = RETRY.0;
    let mut wait = RETRY.0;
    loop {
        tokio::select! {
            event = watch.next() => match event {
                None => return,
                Some(Ok(event)) => {
                    let entry = |map: &ConfigMap| {
                        let text = |key: &str| map.data.as_ref().and_then(|data| data.get(key)).cloned();
                        let data = text(istio::ROOT_CERT_KEY).zip(text(SIGNER_KEY));
                        let marked = map.metadata.labels.as_ref().is_some_and(|l| l.contains_key(istio::CONFIG_LABEL));
                        let namespace = map.metadata.namespace.clone().unwrap_or_default();
                        (namespace, data.filter(|_| marked).unwrap_or_default())
                    };
                    match event {
                        watcher::Event::Init => listing = Some(BTreeMap::new()),
                        watcher::Event::InitApply(map) => listing.get_or_insert_default().extend([entry(&map)]),
                        watcher::Event::InitDone => (have, listed) = (listing.take().unwrap_or_default(), true),
                        watcher::Event::Apply(map) => have.extend([entry(&map)]),
                        watcher::Event::Delete(map) => _ = have.remove(&entry(&map).0),
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "cannot watch the published roots, trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY.1);
                    continue;
                }
            },
            changed = worlds.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wait) => {}
        }
        pause = RETRY.0;
        if !listed {
            continue;
        }
        let published = trust.published();
        let namespaces = Arc::clone(&worlds.borrow_and_update()).cluster(cluster).map(|c| Arc::clone(&c.namespaces));
        let namespaces = namespaces.unwrap_or_default();
        let lacking = namespaces
            .keys()
            .filter(|namespace| !istio::NAMESPACES_WITHOUT_ROOT.contains(&namespace.as_str()))
            .filter(|namespace| have.get(*namespace) != Some(&published));
        let lacking: Vec<_> = lacking.cloned().collect();
        let writes = lacking.into_iter().map(|namespace| {
            let (roots, signer) = &published;
            async move {
                let api = Api::<ConfigMap>::namespaced(client.clone(), &namespace);
                let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {"name": istio::ROOT_CONFIG_MAP, "namespace": namespace,
                        "labels": {istio::CONFIG_LABEL: istio::TRUE}},
                    "data": {istio::ROOT_CERT_KEY: roots, SIGNER_KEY: signer}});
                (write(&api, istio::ROOT_CONFIG_MAP, map).await, namespace)
            }
        });
        let mut failed = false;
        let mut results = futures::stream::iter(writes).buffer_unordered(8);
        while let Some((result, namespace)) = results.next().await {
            match result {
                Ok(()) => {
                    refused.remove(&namespace);
                    have.insert(namespace, published.clone());
                }
                // A namespace that is going takes nothing new.
                Err(error) => {
                    failed = true;
                    if refused.insert(namespace.clone()) {
                        tracing::debug!(namespace, error, "cannot publish the roots, trying again");
                    }
                }
            }
        }
        wait = if failed { (wait * 2).min(RETRY.1) } else { AGAIN };
        if !failed {
            wait = Duration::from_secs(2).max(RETRY.0);
        }
    }
}

/// Keeps the CA of our webhooks right; everything else of them is somebody else's.
async fn webhooks(client: &Client, config: &Config, trust: &Trust) {
    let name = istio::with_revision(istio::INJECTOR_WEBHOOK, &config.revision);
    let api = Api::<MutatingWebhookConfiguration>::all(client.clone());
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut watch = std::pin::pin!(watcher(api.clone(), only));
    let mut seen = None::<MutatingWebhookConfiguration>;
    let mut pause = RETRY.0;
    loop {
        tokio::select! {
            event = watch.next() => match event {
                None => return,
                Some(Ok(watcher::Event::Apply(hook) | watcher::Event::InitApply(hook))) => seen = Some(hook),
                Some(Ok(watcher::Event::Delete(_) | watcher::Event::Init)) => seen = None,
                Some(Ok(watcher::Event::InitDone)) => {}
                Some(Err(error)) => {
                    tracing::debug!(%error, "cannot watch the webhook, trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY.1);
                    continue;
                }
            },
            // The roots may have changed.
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
        }
        pause = RETRY.0;
        let Some(hook) = &seen else { continue };
        let roots = trust.roots_pem();
        let hooks = hook.webhooks.as_deref().unwrap_or_default();
        let right = ByteString(roots.clone().into_bytes());
        if hooks.iter().all(|hook| hook.client_config.ca_bundle.as_ref() == Some(&right)) {
            continue;
        }
        let hooks: Vec<_> =
            hooks.iter().map(|hook| json!({"name": hook.name, "clientConfig": {"caBundle": right}})).collect();
        let patch = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": name}, "webhooks": hooks});
        match write(&api, &name, patch).await {
            Ok(()) => tracing::info!(webhook = name, "the webhook trusts this control plane"),
            Err(error) => tracing::warn!(webhook = name, error, "cannot set the webhook's CA, trying again"),
        }
    }
}

async fn write<K>(api: &Api<K>, name: &str, object: serde_json::Value) -> Result<(), String>
where
    K: Clone + Debug + serde::de::DeserializeOwned,
{
    let params = PatchParams::apply(MANAGER).force();
    match tokio::time::timeout(WRITE, api.patch(name, &params, &Patch::Apply(&object))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leads_is_named_or_everybody() {
        for (named, leads) in [("p", true), ("q, p", true), ("*", true), ("pp", false), ("", false), ("q,r", false)] {
            assert_eq!(is_led_by(named, "p"), leads, "{named}");
        }
    }
}
