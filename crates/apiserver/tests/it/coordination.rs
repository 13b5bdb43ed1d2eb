//! What programs of a cluster tell each other: who leads (Leases), and what happened (Events).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::api::events::v1::Event as NewEvent;
use kube::api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::runtime::events::{EventType, Recorder, Reporter};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::{code, https, server};

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// One attempt at leading, as client-go's leaderelection makes it: read, judge by one's own clock, write with the
/// revision that was read. Gives back whether it leads now.
async fn try_to_lead(
    leases: &Api<Lease>,
    me: &str,
    seen: &mut Option<(String, tokio::time::Instant)>,
    life: Duration,
) -> bool {
    let now = || serde_json::to_value(k8s_openapi::jiff::Timestamp::now().to_string()).unwrap();
    let spec = |transitions: i32| json!({"holderIdentity": me, "leaseDurationSeconds": 1, "acquireTime": now(), "renewTime": now(), "leaseTransitions": transitions});
    let Some(found) = leases.get_opt("leader").await.unwrap() else {
        let lease: Lease = of(json!({"metadata": {"name": "leader"}, "spec": spec(0)}));
        return leases.create(&PostParams::default(), &lease).await.is_ok();
    };
    let version = found.resource_version().unwrap();
    if seen.as_ref().is_none_or(|(known, _)| *known != version) {
        *seen = Some((version.clone(), tokio::time::Instant::now()));
    }
    let old = found.spec.unwrap_or_default();
    let mine = old.holder_identity.as_deref() == Some(me);
    let free = old.holder_identity.as_deref().unwrap_or_default().is_empty();
    let fresh = seen.as_ref().is_some_and(|(_, at)| at.elapsed() < life);
    if !mine && !free && fresh {
        return false;
    }
    let transitions = old.lease_transitions.unwrap_or(0) + i32::from(!mine);
    let lease: Lease =
        of(json!({"metadata": {"name": "leader", "resourceVersion": version}, "spec": spec(transitions)}));
    match leases.replace("leader", &PostParams::default(), &lease).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) => {
            assert_eq!(status.code, 409, "somebody was faster: {}", status.message);
            false
        }
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_contenders_one_leads_at_any_time() {
    let server = server().await;
    let life = Duration::from_secs(2);
    let leading = Arc::new(AtomicUsize::new(0));
    let contend = |me: &'static str, terms: usize| {
        let (leading, server) = (Arc::clone(&leading), &server);
        async move {
            let leases: Api<Lease> = Api::namespaced(https(server).await, "default");
            let mut seen = None;
            let mut led = 0;
            while led < terms {
                if !try_to_lead(&leases, me, &mut seen, life).await {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
                led += 1;
                assert_eq!(leading.fetch_add(1, Ordering::SeqCst), 0, "two lead at once");
                for _ in 0..3 {
                    tokio::time::sleep(Duration::from_millis(30)).await;
                    assert!(try_to_lead(&leases, me, &mut seen, life).await, "who renews in time is not overtaken");
                }
                leading.fetch_sub(1, Ordering::SeqCst);
                // Every other term ends in silence, as if killed; else the lease is given back.
                if led % 2 == 0 {
                    let free = Patch::Merge(json!({"spec": {"holderIdentity": ""}}));
                    leases.patch("leader", &PatchParams::default(), &free).await.unwrap();
                }
                tokio::time::sleep(life + Duration::from_millis(50)).await;
            }
        }
    };
    let both = futures::future::join(contend("one", 3), contend("two", 3));
    tokio::time::timeout(Duration::from_secs(120), both).await.unwrap();
    let leases: Api<Lease> = Api::namespaced(server.client(), "default");
    let spec = leases.get("leader").await.unwrap().spec.unwrap();
    assert!(spec.lease_transitions.unwrap() >= 1);
    server.stop().await;
}

#[tokio::test]
async fn of_many_who_saw_the_same_lease_one_writes() {
    let server = server().await;
    let leases: Api<Lease> = Api::namespaced(server.client(), "default");
    let made = leases.create(&PostParams::default(), &of(json!({"metadata": {"name": "leader"}}))).await.unwrap();
    let attempts = (0..20).map(|n| {
        let (leases, version) = (leases.clone(), made.resource_version());
        async move {
            let lease = json!({"metadata": {"name": "leader", "resourceVersion": version}, "spec": {"holderIdentity": format!("c{n}")}});
            leases.replace("leader", &PostParams::default(), &of(lease)).await
        }
    });
    let (won, lost): (Vec<_>, Vec<_>) = futures::future::join_all(attempts).await.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    assert!(lost.into_iter().all(|result| code(result) == 409));
}

/// Events of `v1` and `events.k8s.io/v1` are one storage: each is read, listed, selected and watched as the other.
#[tokio::test]
async fn an_event_of_one_group_is_one_of_the_other() {
    let server = server().await;
    let client = https(&server).await;
    let old: Api<Event> = Api::namespaced(client.clone(), "default");
    let new: Api<NewEvent> = Api::namespaced(client.clone(), "default");
    let from = old.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let event = json!({"metadata": {"name": "old"}, "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Started", "message": "it runs", "type": "Normal", "count": 3, "source": {"component": "kubelet", "host": "n"},
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:01:00Z"});
    old.create(&PostParams::default(), &of(event)).await.unwrap();
    let seen = new.get("old").await.unwrap();
    assert_eq!((seen.note.as_deref(), seen.reason.as_deref()), (Some("it runs"), Some("Started")));
    assert_eq!(seen.regarding.unwrap().name.as_deref(), Some("p"));
    assert_eq!((seen.deprecated_count, seen.deprecated_source.unwrap().host.as_deref()), (Some(3), Some("n")));
    assert!(seen.deprecated_first_timestamp.is_some() && seen.deprecated_last_timestamp.is_some());

    // kube-rs' recorder writes the new group; `kubectl get events` reads the old one.
    let reporter = Reporter { controller: "test".into(), instance: Some("test-1".into()) };
    let about = of(json!({"apiVersion": "v1", "kind": "Pod", "name": "q", "namespace": "default"}));
    let said = kube::runtime::events::Event {
        type_: EventType::Warning,
        reason: "Failed".into(),
        note: Some("it does not".into()),
        action: "Starting".into(),
        secondary: None,
    };
    let recorder = Recorder::new(client.clone(), reporter);
    recorder.publish(&said, &about).await.unwrap();
    recorder.publish(&said, &about).await.unwrap();
    let chosen = ListParams::default().fields("involvedObject.name=q,type=Warning");
    let found = old.list(&chosen).await.unwrap().items;
    assert_eq!(found.len(), 1);
    let seen = &found[0];
    assert_eq!((seen.message.as_deref(), seen.reporting_component.as_deref()), (Some("it does not"), Some("test")));
    assert_eq!((seen.action.as_deref(), seen.involved_object.name.as_deref()), (Some("Starting"), Some("q")));
    assert_eq!(
        seen.series.as_ref().and_then(|series| series.count),
        Some(2),
        "the second time is counted, not written anew"
    );
    let by_new_name = ListParams::default().fields("regarding.name=q");
    assert_eq!(new.list(&by_new_name).await.unwrap().items.len(), 1);

    use futures::TryStreamExt as _;
    let watch = new.watch(&WatchParams::default(), &from).await.unwrap();
    futures::pin_mut!(watch);
    match tokio::time::timeout(Duration::from_secs(5), watch.try_next()).await.unwrap().unwrap() {
        Some(WatchEvent::Added(event)) => {
            assert_eq!((event.name_any().as_str(), event.note.as_deref()), ("old", Some("it runs")))
        }
        other => panic!("{other:?}"),
    }
    // A patch through one is seen through the other.
    new.patch("old", &PatchParams::default(), &Patch::Merge(json!({"note": "it ran"}))).await.unwrap();
    assert_eq!(old.get("old").await.unwrap().message.as_deref(), Some("it ran"));
}
