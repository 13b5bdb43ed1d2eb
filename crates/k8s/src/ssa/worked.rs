//! Cases that Kubernetes' own documents work through.

use serde_json::{Value, json};

use super::*;

fn by(manager: &str) -> Write<'_> {
    Write {
        manager,
        api_version: "apps/v1",
        subresource: "",
        now: "2026-01-01T00:00:00Z",
        shape: Shape::of("apps/v1", "Deployment"),
        status_apart: true,
    }
}

fn updated(live: Option<&Value>, new: &Value, write: &Write<'_>) -> Value {
    let mut object = new.clone();
    update(live, &mut object, write);
    object
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "nginx-deployment"}, "spec": spec})
}

fn owned(object: &Value) -> Vec<String> {
    owners(object).iter().map(|(name, how, fields)| format!("{name} {}: {}", how.as_str(), fields.join(" "))).collect()
}

/// <https://kubernetes.io/docs/reference/using-api/server-side-apply/#transferring-ownership>: a user hands `replicas`
/// over to an autoscaler.
#[test]
fn ownership_is_transferred() {
    let full = |replicas: Option<i64>| {
        let mut spec = json!({"template": {"spec": {"containers": [{"name": "nginx", "image": "nginx:1.14.2"}]}}});
        if let Some(replicas) = replicas {
            spec["replicas"] = replicas.into();
        }
        deployment(spec)
    };
    let live = apply(None, &full(Some(3)), &by("kubectl"), false).unwrap();
    // The autoscaler scales: the field changes hands, and who still applies it is told.
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = json!(5);
    let scaled = updated(Some(&live), &scaled, &Write { subresource: "scale", ..by("hpa") });
    let told = apply(Some(&scaled), &full(Some(3)), &by("kubectl"), false).unwrap_err().to_string();
    let said =
        "Apply failed with 1 conflict: conflict with \"hpa\" with subresource \"scale\" using apps/v1: .spec.replicas";
    assert_eq!(told, said);
    // Who leaves it out gives it up without changing it.
    let handed = apply(Some(&scaled), &full(None), &by("kubectl"), false).unwrap();
    assert_eq!(handed["spec"]["replicas"], 5);
    // The documents' other way: before the autoscaler wrote anything, a second applier shares the field first.
    let shared = apply(Some(&live), &deployment(json!({"replicas": 3})), &by("handover-to-hpa"), false).unwrap();
    let handed = apply(Some(&shared), &full(None), &by("kubectl"), false).unwrap();
    assert_eq!(handed["spec"]["replicas"], 3);
    assert_eq!(owned(&handed)[0], "handover-to-hpa Apply: .spec.replicas");
    // Left out by its only owner, the field goes.
    let gone = apply(Some(&live), &full(None), &by("kubectl"), false).unwrap();
    assert!(gone["spec"].get("replicas").is_none());
}

/// KEP-555, "conflicts": the three ways on: overwrite, give up, share.
#[test]
fn three_ways_out_of_a_conflict() {
    let live = apply(None, &deployment(json!({"replicas": 1, "paused": true})), &by("one"), false).unwrap();
    let wish = deployment(json!({"replicas": 2}));
    assert!(apply(Some(&live), &wish, &by("two"), false).is_err());
    let forced = apply(Some(&live), &wish, &by("two"), true).unwrap();
    assert_eq!(owned(&forced), ["one Apply: .spec.paused", "two Apply: .spec.replicas"]);
    let given_up = apply(Some(&live), &deployment(json!({})), &by("two"), false).unwrap();
    assert_eq!(given_up["spec"], live["spec"]);
    let shared = apply(Some(&live), &deployment(json!({"replicas": 1})), &by("two"), false).unwrap();
    assert_eq!(owned(&shared), ["one Apply: .spec.paused .spec.replicas", "two Apply: .spec.replicas"]);
    // Of two owners neither removes the field alone.
    let left = apply(Some(&shared), &deployment(json!({"paused": true})), &by("one"), false).unwrap();
    assert_eq!(left["spec"]["replicas"], 1);
    let gone = apply(Some(&left), &deployment(json!({})), &by("two"), false).unwrap();
    assert!(gone["spec"].get("replicas").is_none());
    assert_eq!(owned(&gone), ["one Apply: .spec.paused", "two Apply: .spec"]);
}

/// <https://kubernetes.io/docs/reference/using-api/server-side-apply/#clearing-managedfields> and what is no clearing.
#[test]
fn books_are_closed_by_one_empty_entry_only() {
    let live = apply(None, &deployment(json!({"replicas": 1})), &by("one"), false).unwrap();
    let with = |books: Value| {
        let mut new = live.clone();
        new["metadata"]["managedFields"] = books;
        new["spec"]["paused"] = json!(true);
        owned(&updated(Some(&live), &new, &by("two")))
    };
    let both = ["one Apply: .spec.replicas", "two Update: .spec.paused"];
    for books in [
        json!([]),
        Value::Null,
        json!([{"manager": "x", "operation": "Steal", "fieldsV1": {}}]),
        json!([{"manager": "x", "operation": "Apply", "fieldsType": "FieldsV2", "fieldsV1": {}}]),
        json!([{"manager": "x", "operation": "Apply", "fieldsV1": "f:spec"}]),
    ] {
        assert_eq!(with(books.clone()), both, "{books}");
    }
    assert_eq!(with(json!([{}])), [""; 0]);
    // Books that can be read are believed: that is how kubectl moves from one way of applying to the other.
    let moved = json!([{"manager": "kubectl", "operation": "Apply", "apiVersion": "apps/v1", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:spec": {"f:replicas": {}}}}]);
    assert_eq!(with(moved), ["kubectl Apply: .spec.replicas", "two Update: .spec.paused"]);
}

/// <https://kubernetes.io/docs/reference/using-api/server-side-apply/#upgrading-from-client-side-apply-to-server-side-apply>
#[test]
fn kubectl_moves_from_client_side_apply_without_conflicts() {
    let config = deployment(json!({"replicas": 3, "paused": false}));
    let mut first = config.clone();
    meta::set_annotation(&mut first, LAST_APPLIED, &config.to_string());
    let live = updated(None, &first, &by("kubectl-client-side-apply"));
    let wish = deployment(json!({"replicas": 4, "paused": true}));
    // Anybody else is in conflict with it.
    assert!(apply(Some(&live), &wish, &by("me"), false).is_err());
    let moved = apply(Some(&live), &wish, &by("kubectl"), false).unwrap();
    assert_eq!((&moved["spec"]["replicas"], &moved["spec"]["paused"]), (&json!(4), &json!(true)));
    let noted: Value = serde_json::from_str(meta::annotation(&moved, LAST_APPLIED).unwrap()).unwrap();
    assert_eq!(noted["spec"], wish["spec"], "the annotation is kept true");
    // What somebody else changed since is a conflict for kubectl too.
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = json!(9);
    let scaled = updated(Some(&live), &scaled, &by("hpa"));
    let told = apply(Some(&scaled), &wish, &by("kubectl"), false).unwrap_err().to_string();
    assert_eq!(told, "Apply failed with 1 conflict: conflict with \"hpa\" using apps/v1: .spec.replicas");
}

/// The table of <https://kubernetes.io/docs/reference/using-api/server-side-apply/#merge-strategy>: lists of entries with
/// keys, of values, and whole ones; what two appliers make of each.
#[test]
fn lists_merge_by_their_type() {
    let pod = |spec: Value| deployment(json!({"template": {"spec": spec}}));
    let cases = [
        (
            // Keys: each its own entries; a nested list with a defaulted key.
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 1}]}]}),
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 1, "protocol": "UDP"}]}, {"name": "b"}]}),
            Some(
                json!({"containers": [{"name": "a", "ports": [{"containerPort": 1}, {"containerPort": 1, "protocol": "UDP"}]}, {"name": "b"}]}),
            ),
        ),
        (
            // Whole lists belong to one.
            json!({"containers": [{"name": "a", "args": ["x"]}]}),
            json!({"containers": [{"name": "a", "args": ["x", "y"]}]}),
            None,
        ),
        (
            // Maps: each its own keys.
            json!({"nodeSelector": {"a": "1"}}),
            json!({"nodeSelector": {"a": "2"}}),
            None,
        ),
        (json!({"tolerations": [{"key": "a"}]}), json!({"tolerations": [{"key": "b"}]}), None),
    ];
    for (one, other, expected) in cases {
        let live = apply(None, &pod(one.clone()), &by("one"), false).unwrap();
        let made = apply(Some(&live), &pod(other.clone()), &by("other"), false);
        match expected {
            None => assert!(made.is_err(), "{one} and {other}"),
            Some(expected) => {
                let made = made.unwrap();
                assert_eq!(made["spec"]["template"]["spec"], expected);
                // And each takes away what is only his.
                let left = apply(Some(&made), &pod(json!({})), &by("other"), false).unwrap();
                assert_eq!(left["spec"], pod(one)["spec"]);
            }
        }
    }
    let finalizers = |list: Value| json!({"metadata": {"name": "a", "finalizers": list}});
    let live = apply(None, &finalizers(json!(["x", "y"])), &by("one"), false).unwrap();
    let live = apply(Some(&live), &finalizers(json!(["y", "z"])), &by("other"), false).unwrap();
    assert_eq!(live["metadata"]["finalizers"], json!(["x", "y", "z"]));
    let live = apply(Some(&live), &finalizers(json!([])), &by("one"), false).unwrap();
    assert_eq!(live["metadata"]["finalizers"], json!(["y", "z"]));
}
