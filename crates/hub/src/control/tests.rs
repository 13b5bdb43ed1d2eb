//! Looks of the hub at API servers that are served, one after the other and none by themselves.

use std::sync::Arc;

use serde_json::{Value, json};
use stolos_apiserver::{Builder, Server};
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::meta;
use stolos_serve::{HostNet, Stop};
use tokio_util::task::TaskTracker;

use super::members::Member;
use super::{Hub, bind};
use crate::event::Recorder;
use crate::member::Ways;
use crate::{MANAGER, install, label, place};

/// A client of an API that nobody serves.
pub(super) fn nobodys() -> kube::Client {
    kube::Client::try_from(kube::Config::new("http://127.0.0.1:9".parse().unwrap())).unwrap()
}

impl Hub {
    /// One of which nothing runs: its mirrors know what they are told.
    pub(super) fn at_rest(client: kube::Client) -> Arc<Self> {
        let ways = Ways { net: Arc::new(HostNet::default()), relay: None };
        let how = (crate::evict::Settings::default(), place::Settings::default());
        Self::new(client.into(), ways, how, Recorder::new().0, Stop::new(), TaskTracker::new())
    }
}

/// A hub with a member `eu`, in which a Work has left a Deployment `web` behind, and the binding of that, which goes.
struct Left {
    hub: Arc<Hub>,
    member: Server,
    of_hub: Server,
}

impl Left {
    async fn start(binding_says: Value) -> Self {
        let (of_hub, member) = (Builder::new().start().await.unwrap(), Builder::new().start().await.unwrap());
        install::install(&of_hub.client()).await.unwrap();
        let hub = Hub::at_rest(of_hub.client());
        let mut spec = json!({"resource": {"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "default",
            "name": "web", "uid": "1"}});
        spec.as_object_mut().unwrap().extend(binding_says.as_object().unwrap().clone());
        let binding = json!({"apiVersion": "work.karmada.io/v1alpha2", "kind": "ResourceBinding",
            "metadata": {"namespace": "default", "name": "web-deployment", "finalizers": [label::BINDING_FINALIZER],
                "annotations": {label::LEFT_BEHIND: "{\"eu\": 4, \"gone\": 4}"}},
            "spec": spec});
        let resource = &hub.own.bindings.resource;
        let made = objects::create(&hub.client, resource, &binding, MANAGER).await.unwrap();
        let (place, uid) = (Some("default"), Some(meta::uid(&made)));
        objects::delete(&hub.client, resource, place, "web-deployment", uid).await.unwrap();
        let left = Self { hub, member, of_hub };
        left.hub.own.bindings.wrote(&Arc::new(left.binding().await.unwrap()));
        let copy = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"namespace": "default", "name": "web", "labels": {"app": "web", label::MANAGED: "true"},
                "annotations": {label::WORK_NAMESPACE: "karmada-es-eu", label::WORK_NAME: "web-56d6c779bb"}},
            "spec": {"replicas": 4, "selector": {"matchLabels": {"app": "web"}}, "template": {
                "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": "web"}]}}}});
        objects::create(&left.member.client(), &Self::deployments(), &copy, MANAGER).await.unwrap();
        left.eu("True");
        left
    }

    fn deployments() -> Resource {
        Resource::named("apps/v1", "Deployment").unwrap()
    }

    /// The member is reached, and says so of itself.
    fn eu(&self, ready: &str) {
        self.hub.own.clusters.wrote(&Arc::new(json!({"apiVersion": "cluster.karmada.io/v1alpha1", "kind": "Cluster",
            "metadata": {"name": "eu", "resourceVersion": if ready == "True" { "1" } else { "2" }},
            "spec": {"syncMode": "Push"}, "status": {"conditions": [{"type": "Ready", "status": ready}]}})));
        self.hub.put_member("eu", Member::over(self.member.client(), &self.hub.stop, &self.hub.tasks));
    }

    async fn binding(&self) -> Option<Value> {
        let resource = &self.hub.own.bindings.resource;
        objects::get(&self.of_hub.client(), resource, Some("default"), "web-deployment").await.unwrap()
    }

    async fn copy(&self) -> Option<Value> {
        objects::get(&self.member.client(), &Self::deployments(), Some("default"), "web").await.unwrap()
    }

    async fn look(&self) -> Result<(), String> {
        let key = ("default".to_owned(), "web-deployment".to_owned());
        bind::look(Arc::clone(&self.hub), key).await.map(drop).map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn what_a_work_has_let_go_of_goes_before_its_binding() {
    let left = Left::start(json!({})).await;
    left.look().await.unwrap();
    assert_eq!((left.copy().await, left.binding().await), (None, None));
}

#[tokio::test]
async fn what_a_work_has_let_go_of_is_freed_where_it_is_to_be_kept() {
    let left = Left::start(json!({"preserveResourcesOnDeletion": true})).await;
    left.look().await.unwrap();
    let copy = left.copy().await.unwrap();
    assert_eq!((meta::label(&copy, label::MANAGED), meta::annotation(&copy, label::WORK_NAME)), (None, None));
    assert_eq!((meta::label(&copy, "app"), left.binding().await), (Some("web"), None));
}

#[tokio::test]
async fn a_binding_waits_for_a_member_that_is_not_ready() {
    let left = Left::start(json!({})).await;
    left.eu("False");
    let why = left.look().await.unwrap_err();
    assert_eq!(why, "eu is not ready: what a Work has left behind there cannot be taken back yet");
    assert!(left.copy().await.is_some() && left.binding().await.is_some());
}
