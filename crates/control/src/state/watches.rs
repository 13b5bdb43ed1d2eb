//! Watches, in tasks of their own: what they see goes, already reduced, to the writer.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::{core::v1 as core, discovery::v1::EndpointSlice};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;
use stolos_k8s::istio;
use stolos_serve::{Net, Stop};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::{CONFIG, Event, SECRETS, Seen};
use crate::Config;
use crate::policy::Object;
use crate::registry::{self, Change, Key};

/// The first pause after a watch has failed, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How long one question for a gateway's addresses may take.
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);

/// Starts watches, which send what they see to the writer.
#[derive(Clone)]
pub(super) struct Watches {
    pub(super) events: mpsc::Sender<Event>,
    pub(super) net: Arc<dyn Net>,
    pub(super) stop: Stop,
    pub(super) tasks: TaskTracker,
    pub(super) domain: String,
}

impl Watches {
    /// The own cluster's configuration: Istio's kinds, remote secrets, the mesh's settings.
    pub(super) fn config(&self, client: &Client, config: &Config) {
        for kind in istio::KINDS {
            let gvk = GroupVersionKind::gvk(kind.group, kind.version(), kind.kind);
            let resource = ApiResource::from_gvk_with_plural(&gvk, kind.plural);
            let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
            let name = kind.kind;
            let emit = move |change| Event::Objects { kind: name, change };
            let fail = move |error| Event::Trouble(name, error);
            self.follow(api, watcher::Config::default(), move |o| object(name, o), emit, fail, &self.stop);
        }
        let labels = format!("{}={}", istio::MULTI_CLUSTER_LABEL, istio::TRUE);
        let api = Api::<core::Secret>::namespaced(client.clone(), &config.namespace);
        let read = |secret: core::Secret| {
            let key = (secret.metadata.namespace?, secret.metadata.name?);
            let data = secret.data.unwrap_or_default().into_iter().map(|(id, config)| (id, config.0));
            let text = secret.string_data.unwrap_or_default().into_iter();
            Some((key, data.chain(text.map(|(id, config)| (id, config.into_bytes()))).collect()))
        };
        let fail = |error| Event::Trouble(SECRETS, error);
        self.follow(api, watcher::Config::default().labels(&labels), read, Event::Secrets, fail, &self.stop);
        type Emit = fn(Change<BTreeMap<String, String>>) -> Event;
        let named: [(String, Emit); 2] = [
            (istio::with_revision(istio::MESH_CONFIG_MAP, &config.revision), Event::Config),
            (istio::with_revision(istio::INJECTOR_CONFIG_MAP, &config.revision), Event::Values),
        ];
        for (name, emit) in named {
            let api = Api::<core::ConfigMap>::namespaced(client.clone(), &config.namespace);
            let read = |map: core::ConfigMap| {
                Some(((map.metadata.namespace?, map.metadata.name?), map.data.unwrap_or_default()))
            };
            let fail = |error| Event::Trouble(CONFIG, error);
            let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
            self.follow(api, only, read, emit, fail, &self.stop);
        }
    }

    /// Reads a remote secret's kubeconfig and watches the cluster it leads to.
    pub(super) fn remote(&self, id: Arc<str>, generation: u64, kubeconfig: Vec<u8>, stop: &Stop) {
        let (watches, stop) = (self.clone(), stop.clone());
        self.tasks.spawn(async move {
            let client = async {
                let text = String::from_utf8(kubeconfig).map_err(|_| "the kubeconfig is not text".to_owned())?;
                let config = stolos_cluster::from_kubeconfig_text(&text).await.map_err(|e| e.to_string())?;
                stolos_cluster::client(config, Arc::clone(&watches.net)).map_err(|e| e.to_string())
            };
            match client.await {
                Ok(client) => {
                    let seen = Box::new(Seen::Client(client.clone()));
                    let told = Event::Cluster { id: Arc::clone(&id), generation, seen };
                    if watches.events.send(told).await.is_ok() {
                        watches.cluster(&client, id, generation, &stop);
                    }
                }
                Err(error) => {
                    let _ = watches
                        .events
                        .send(Event::Cluster { id, generation, seen: Box::new(Seen::Refused(error)) })
                        .await;
                }
            }
        });
    }

    /// The kinds that discovery needs of every cluster.
    pub(super) fn cluster(&self, client: &Client, id: Arc<str>, generation: u64, stop: &Stop) {
        macro_rules! follow {
            ($kind:ty, $config:expr, $read:expr, $seen:expr) => {{
                let (to, from) = (Arc::clone(&id), Arc::clone(&id));
                let emit =
                    move |change| Event::Cluster { id: Arc::clone(&to), generation, seen: Box::new($seen(change)) };
                let fail = move |error| Event::Cluster {
                    id: Arc::clone(&from),
                    generation,
                    seen: Box::new(Seen::Failed(error)),
                };
                self.follow(Api::<$kind>::all(client.clone()), $config, $read, emit, fail, stop);
            }};
        }
        let all = watcher::Config::default;
        let domain = self.domain.clone();
        follow!(core::Namespace, all(), registry::namespace, Seen::Namespaces);
        follow!(core::Node, all(), registry::node, Seen::Nodes);
        follow!(core::Service, all(), move |o| registry::service(o, &domain), Seen::Services);
        follow!(EndpointSlice, all(), registry::slice, Seen::Slices);
        follow!(core::Pod, all().fields("status.phase!=Failed"), registry::pod, Seen::Pods);
    }

    pub(super) fn resolve(&self, host: String) {
        let watches = self.clone();
        self.tasks.spawn(async move {
            let found = tokio::time::timeout(RESOLVE_WITHIN, watches.net.resolve(&host)).await;
            let addresses = match found {
                Ok(Ok(addresses)) => Some(addresses),
                Ok(Err(error)) => {
                    tracing::warn!(host, %error, "cannot resolve a gateway's address");
                    None
                }
                Err(_) => None,
            };
            let _ = watches.events.send(Event::Resolved(host, addresses)).await;
        });
    }

    /// One watch, for ever: lists, follows, and begins again after failures, ever slower.
    fn follow<K, F>(
        &self,
        api: Api<K>,
        config: watcher::Config,
        read: impl Fn(K) -> Option<(Key, F)> + Send + Sync + 'static,
        emit: impl Fn(Change<F>) -> Event + Send + Sync + 'static,
        fail: impl Fn(String) -> Event + Send + Sync + 'static,
        stop: &Stop,
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        F: Send + 'static,
    {
        let (events, stop) = (self.events.clone(), stop.clone());
        self.tasks.spawn(async move {
            let following = async {
                let mut stream = std::pin::pin!(watcher(api, config));
                let mut listing = BTreeMap::new();
                let mut pause = RETRY.0;
                while let Some(event) = stream.next().await {
                    let change = match event {
                        Ok(watcher::Event::Init) => {
                            listing.clear();
                            continue;
                        }
                        Ok(watcher::Event::InitApply(object)) => {
                            listing.extend(read(object));
                            continue;
                        }
                        Ok(watcher::Event::InitDone) => Change::All(std::mem::take(&mut listing)),
                        Ok(watcher::Event::Apply(object)) => {
                            let key = (object.namespace().unwrap_or_default(), object.name_any());
                            read(object).map_or(Change::Gone(key), |(key, fact)| Change::Set(key, fact))
                        }
                        Ok(watcher::Event::Delete(object)) => {
                            Change::Gone((object.namespace().unwrap_or_default(), object.name_any()))
                        }
                        Err(error) => {
                            // A kind that the cluster does not have has no objects.
                            let missing = is_missing(&error).then(|| emit(Change::All(BTreeMap::new())));
                            for event in missing.into_iter().chain([fail(error.to_string())]) {
                                if events.send(event).await.is_err() {
                                    return;
                                }
                            }
                            tokio::time::sleep(pause).await;
                            pause = (pause * 2).min(RETRY.1);
                            continue;
                        }
                    };
                    pause = RETRY.0;
                    if events.send(emit(change)).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = following => {}
                () = stop.asked() => {}
            }
        });
    }
}

fn is_missing(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(kube::Error::Api(status))
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))) = error
    else {
        return false;
    };
    status.code == 404
}

fn object(kind: &str, object: DynamicObject) -> Option<(Key, Object)> {
    let metadata = object.metadata;
    let (namespace, name) = (metadata.namespace?, metadata.name?);
    let read = Object {
        kind: kind.to_owned(),
        namespace: namespace.clone(),
        name: name.clone(),
        uid: metadata.uid.unwrap_or_default(),
        generation: metadata.generation.unwrap_or_default(),
        created: metadata.creation_timestamp.map_or(0, |time| time.0.as_second()),
        spec: object.data.get("spec").cloned().unwrap_or(Value::Null),
    };
    Some(((namespace, name), read))
}
