use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::path::tests::any_json;

const THEN: &str = "2026-01-01T00:00:00Z";
const NOW: &str = "2026-01-02T00:00:00Z";

fn by(manager: &str) -> Write<'_> {
    Write {
        manager,
        api_version: "apps/v1",
        subresource: "",
        now: NOW,
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
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "namespace": "b"}, "spec": spec})
}

fn containers(containers: Value) -> Value {
    deployment(json!({"template": {"spec": {"containers": containers}}}))
}

fn no_books(mut object: Value) -> Value {
    meta::metadata_mut(&mut object).remove("managedFields");
    object
}

#[test]
fn the_first_apply_owns_what_it_says() {
    let config = containers(json!([{"name": "x", "image": "1", "ports": [{"containerPort": 80}], "args": ["a"]}]));
    let object = apply(None, &config, &by("me"), false).unwrap();
    assert_eq!(no_books(object.clone()), config);
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([{
            "manager": "me", "operation": "Apply", "apiVersion": "apps/v1", "time": NOW, "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"x\"}": {
                ".": {}, "f:args": {}, "f:image": {}, "f:name": {},
                "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}}}
        }])
    );
}

#[test]
fn applying_again_changes_nothing_not_even_times() {
    let config = containers(json!([{"name": "x", "image": "1"}]));
    let first = apply(None, &config, &Write { now: THEN, ..by("me") }, false).unwrap();
    assert_eq!(apply(Some(&first), &config, &by("me"), false).unwrap(), first);
}

#[test]
fn what_is_not_wanted_any_more_goes_unless_others_want_it() {
    let both = deployment(json!({"replicas": 1, "paused": true, "minReadySeconds": 5}));
    let object = apply(None, &both, &by("me"), false).unwrap();
    let object = apply(Some(&object), &deployment(json!({"paused": true})), &by("you"), false).unwrap();
    let object = apply(Some(&object), &deployment(json!({"replicas": 1})), &by("me"), false).unwrap();
    assert_eq!(no_books(object), deployment(json!({"replicas": 1, "paused": true})));

    let object =
        apply(None, &containers(json!([{"name": "x"}, {"name": "y", "image": "1"}])), &by("me"), false).unwrap();
    let object = apply(Some(&object), &containers(json!([{"name": "x"}])), &by("me"), false).unwrap();
    assert_eq!(no_books(object), containers(json!([{"name": "x"}])));

    let labels = |labels: Value| json!({"metadata": {"name": "a", "labels": labels}});
    let object = apply(None, &labels(json!({"a": "1"})), &by("me"), false).unwrap();
    let object = apply(Some(&object), &labels(json!({"b": "2"})), &by("you"), false).unwrap();
    let object = apply(Some(&object), &json!({"metadata": {"name": "a"}}), &by("me"), false).unwrap();
    assert_eq!(no_books(object), labels(json!({"b": "2"})));
}

#[test]
fn conflicts_are_said_as_kubectl_prints_them() {
    let object = updated(None, &deployment(json!({"replicas": 1, "paused": false})), &by("x"));
    let one = apply(Some(&object), &deployment(json!({"replicas": 2})), &by("me"), false).unwrap_err();
    assert_eq!(one.to_string(), "Apply failed with 1 conflict: conflict with \"x\" using apps/v1: .spec.replicas");
    let status = one.to_status();
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    assert_eq!(status.details.unwrap().causes[0].message, "conflict with \"x\" using apps/v1");
    let two = apply(Some(&object), &deployment(json!({"replicas": 2, "paused": true})), &by("me"), false).unwrap_err();
    assert_eq!(
        two.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"x\" using apps/v1:\n- .spec.paused\n- .spec.replicas"
    );
    let applied = apply(None, &containers(json!([{"name": "c", "image": "1"}])), &by("y"), false).unwrap();
    let config = containers(json!([{"name": "c", "image": "2"}]));
    let error = apply(Some(&applied), &config, &by("me"), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"y\": .spec.template.spec.containers[name=\"c\"].image"
    );
    // The same value is no conflict but shared.
    let same = apply(Some(&object), &deployment(json!({"replicas": 1})), &by("me"), false).unwrap();
    assert_eq!(same["metadata"]["managedFields"].as_array().unwrap().len(), 2);
    // With force the field changes hands.
    let forced = apply(Some(&object), &deployment(json!({"replicas": 2})), &by("me"), true).unwrap();
    assert_eq!(forced["spec"]["replicas"], 2);
    let owners = owners(&forced);
    assert_eq!(owners[0], ("me".into(), Operation::Apply, vec![".spec.replicas".into()]));
    assert_eq!(owners[1], ("x".into(), Operation::Update, vec![".spec.paused".into()]));
}

#[test]
fn other_writes_take_what_they_change() {
    let write = Write { now: THEN, ..by("kubectl") };
    let created =
        updated(None, &deployment(json!({"replicas": 1, "template": {"metadata": {"labels": {"a": "1"}}}})), &write);
    assert_eq!(
        created["metadata"]["managedFields"][0]["fieldsV1"],
        json!({"f:spec": {"f:replicas": {}, "f:template": {".": {}, "f:metadata": {".": {}, "f:labels": {".": {}, "f:a": {}}}}}})
    );
    // A write that changes nothing keeps times.
    assert_eq!(updated(Some(&created), &no_books(created.clone()), &by("kubectl")), created);
    assert_eq!(updated(Some(&created), &no_books(created.clone()), &by("other")), created);
    // Somebody else scales.
    let mut scaled = created.clone();
    scaled["spec"]["replicas"] = json!(3);
    let scaled = updated(Some(&created), &scaled, &Write { subresource: "scale", ..by("hpa") });
    let books = scaled["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(books.len(), 2);
    assert_eq!(books[1]["subresource"], "scale");
    assert_eq!(books[1]["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    assert!(books[0]["fieldsV1"]["f:spec"].get("f:replicas").is_none());
    // One empty entry forgets everybody.
    let mut reset = created.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    assert!(updated(Some(&created), &reset, &by("kubectl"))["metadata"].get("managedFields").is_none());
}

#[test]
fn status_is_kept_apart() {
    let mut config = deployment(json!({"replicas": 1}));
    config["status"] = json!({"replicas": 7});
    let object = apply(None, &config, &by("me"), false).unwrap();
    assert!(object.get("status").is_none());
    let status = Write { subresource: "status", ..by("controller") };
    let object = apply(Some(&object), &config, &status, false).unwrap();
    assert_eq!((&object["status"]["replicas"], &object["spec"]["replicas"]), (&json!(7), &json!(1)));
    let books = object["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(
        books.iter().find(|entry| entry["manager"] == "controller").unwrap()["fieldsV1"],
        json!({"f:status": {"f:replicas": {}}})
    );
}

#[test]
fn an_object_nobody_kept_books_of_belongs_to_before_the_first_apply() {
    let live = deployment(json!({"replicas": 1}));
    assert_eq!(updated(Some(&live), &live, &by("x")), live);
    let error = apply(Some(&live), &deployment(json!({"replicas": 2})), &by("me"), false).unwrap_err();
    assert!(error.to_string().contains("\"before-first-apply\" using apps/v1: .spec.replicas"), "{error}");
}

#[test]
fn lists_without_what_tells_entries_apart_are_refused() {
    let error = apply(None, &containers(json!([{"image": "1"}])), &by("me"), false).unwrap_err();
    assert_eq!(error.to_status().code, 400);
    insta::assert_snapshot!(error.to_string(), @r#".spec.template.spec.containers[0]: associative list with keys has an element that omits key field "name" (and doesn't have default value)"#);
    let error = apply(None, &containers(json!([{"name": "a"}, {"name": "a"}])), &by("me"), false).unwrap_err();
    insta::assert_snapshot!(error.to_string(), @r#".spec.template.spec.containers: duplicate entries for key [name="a"]"#);
    let books = json!({"metadata": {"managedFields": [{"manager": "x"}]}});
    assert!(apply(None, &books, &by("me"), false).is_err());
}

#[test]
fn entries_keep_their_order() {
    let live = apply(None, &containers(json!([{"name": "a"}, {"name": "b"}])), &by("me"), false).unwrap();
    let live = apply(Some(&live), &containers(json!([{"name": "sidecar"}])), &by("injector"), false).unwrap();
    let live = apply(Some(&live), &containers(json!([{"name": "b"}, {"name": "c"}, {"name": "a"}])), &by("me"), false);
    let live = live.unwrap();
    let names: Vec<_> = live["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["b", "c", "a", "sidecar"]);
}

#[test]
fn many_writers_become_ancient() {
    let mut object = deployment(json!({}));
    for index in 0..30 {
        let mut next = object.clone();
        meta::set_label(&mut next, &format!("l{index}"), "1");
        let (manager, now) = (format!("m{index}"), format!("2026-01-01T00:00:{index:02}Z"));
        let live = (index > 0).then_some(&object);
        object = updated(live, &next, &Write { now: &now, ..by(&manager) });
    }
    let owners = owners(&object);
    assert_eq!(owners.len(), 10);
    assert_eq!(owners[0].0, "ancient-changes");
    let labels: usize =
        owners.iter().map(|(_, _, fields)| fields.iter().filter(|field| field.contains("labels.")).count()).sum();
    assert_eq!(labels, 30);
}

#[test]
fn custom_resources_follow_their_schema() {
    let schema = crate::schema::tests::widget();
    let write = Write { shape: Shape::of_schema(&schema), api_version: "a.io/v1", ..by("me") };
    let widget = |spec: Value| json!({"metadata": {"name": "w"}, "spec": spec});
    let config = widget(json!({"tags": ["a"], "parts": [{"id": "1"}], "limits": {"x": 1}, "open": {"list": [1, 2]}}));
    let object = apply(None, &config, &write, false).unwrap();
    let other = widget(json!({"tags": ["b"], "parts": [{"id": "2"}], "open": {"more": {"deep": 1}}}));
    let object = apply(Some(&object), &other, &Write { manager: "you", ..write }, false).unwrap();
    assert_eq!(object["spec"]["tags"], json!(["a", "b"]));
    assert_eq!(object["spec"]["parts"], json!([{"id": "1"}, {"id": "2"}]));
    for taken in [json!({"limits": {"y": 1}}), json!({"open": {"list": [1]}})] {
        assert!(apply(Some(&object), &widget(taken), &Write { manager: "you", ..write }, false).is_err());
    }
    insta::assert_snapshot!(owners(&object).iter().map(|(name, _, fields)| format!("{name}: {}", fields.join(" "))).collect::<Vec<_>>().join("\n"), @r#"
    me: .spec.limits .spec.open.list .spec.parts[id="1"] .spec.parts[id="1"].id .spec.tags[="a"]
    you: .spec.open.more .spec.open.more.deep .spec.parts[id="2"] .spec.parts[id="2"].id .spec.tags[="b"]
    "#);
}

/// A part of a Deployment: some scalars, labels, containers with ports and environment, a set and an atomic list.
fn any_config() -> impl Strategy<Value = Value> {
    let name = || "[ab]";
    let env = prop::collection::btree_map(name(), "[xy]", 0..2)
        .prop_map(|env| env.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect::<Value>());
    let container = (prop::option::of("[12]"), env, prop::option::of(prop::collection::vec("[pq]", 0..3)))
        .prop_map(|(image, env, args)| json!({"image": image, "env": env, "args": args}));
    let containers = prop::collection::btree_map(name(), container, 0..3).prop_map(|containers| {
        let entries = containers.into_iter().map(|(name, mut container)| {
            container["name"] = name.into();
            container
        });
        entries.collect::<Value>()
    });
    let labels = prop::collection::btree_map(name(), "[xy]", 0..3);
    let finalizers = prop::collection::btree_set("[fg]", 0..2);
    (prop::option::of(0..3), containers, labels, finalizers).prop_map(|(replicas, containers, labels, finalizers)| {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "a", "labels": labels, "finalizers": finalizers},
            "spec": {"replicas": replicas, "selector": {"matchLabels": labels},
                "template": {"spec": {"containers": containers}}}
        })
    })
}

proptest! {
    #[test]
    fn applying_is_idempotent(config in any_config(), others in prop::collection::vec(any_config(), 0..3)) {
        let mut live = None;
        for (index, other) in others.iter().enumerate() {
            live = Some(apply(live.as_ref(), other, &by(&format!("m{index}")), true).unwrap());
        }
        let first = apply(live.as_ref(), &config, &by("me"), true).unwrap();
        let later = Write { now: "2027-01-01T00:00:00Z", ..by("me") };
        prop_assert_eq!(apply(Some(&first), &config, &later, false).unwrap(), first);
    }

    #[test]
    fn what_is_applied_is_there_and_owned(before in any_config(), config in any_config()) {
        let live = updated(None, &before, &by("x"));
        let object = apply(Some(&live), &config, &by("me"), true).unwrap();
        let wanted = own_part(&config, &by("me"));
        prop_assert_eq!(&merge::merge(Some(&object), &wanted, by("me").shape), &object);
        let mine = Managers::of(Some(&object));
        prop_assert_eq!(mine.fields(&ManagerId::applier(&by("me"))).unwrap_or_default().into_owned(),
            strip(field_set(&wanted, by("me").shape).unwrap()));
    }

    #[test]
    fn managers_of_different_fields_never_conflict(one in any_config(), other in any_config()) {
        // The same shapes under other names share no field.
        let mut other = other;
        let spec = other["spec"].take();
        let pods = |containers: &mut Value| {
            for container in containers.as_array_mut().into_iter().flatten() {
                container["name"] = format!("other-{}", container["name"].as_str().unwrap_or("")).into();
            }
        };
        let mut theirs = spec["template"]["spec"]["containers"].clone();
        pods(&mut theirs);
        let other = json!({"metadata": {"name": "a", "annotations": {"x": "1"}},
            "spec": {"paused": true, "template": {"spec": {"containers": theirs}}}});
        let live = apply(None, &one, &by("one"), false).unwrap();
        let live = apply(Some(&live), &other, &by("other"), false).unwrap();
        let again = apply(Some(&live), &one, &by("one"), false).unwrap();
        prop_assert_eq!(&again, &live);
        // And when one goes, the other's fields stay.
        let left = apply(Some(&live), &json!({"metadata": {"name": "a"}}), &by("one"), false).unwrap();
        let wanted = own_part(&other, &by("other"));
        prop_assert_eq!(&merge::merge(Some(&left), &wanted, by("other").shape), &left);
    }

    #[test]
    fn an_update_that_changes_nothing_changes_no_books(before in any_config()) {
        let live = updated(None, &before, &Write { now: THEN, ..by("x") });
        prop_assert_eq!(updated(Some(&live), &live, &by("y")), live);
    }

    #[test]
    fn books_that_are_kept_say_what_books_that_are_read_say(
        before in prop::collection::vec(any_config(), 1..4), after in any_config(), who in 0..4,
    ) {
        let mut live = None;
        for (index, object) in before.iter().enumerate() {
            live = Some(match index % 2 {
                0 => updated(live.as_ref(), object, &Write { now: THEN, ..by(&format!("m{index}")) }),
                _ => apply(live.as_ref(), object, &by(&format!("m{index}")), true).unwrap(),
            });
        }
        let live = live.unwrap();
        let me = format!("m{who}");
        let mut kept = after.clone();
        kept["metadata"]["managedFields"] = live["metadata"]["managedFields"].clone();
        let mut read = kept.clone();
        // In another order it is not what was kept, although it says the same.
        if let Some(entries) = read["metadata"]["managedFields"].as_array_mut() {
            entries.reverse();
            entries.push(json!({"manager": "nobody", "operation": "Update", "fieldsV1": {}}));
        }
        prop_assert_eq!(updated(Some(&live), &kept, &by(&me)), updated(Some(&live), &read, &by(&me)));
        prop_assert_eq!(updated(Some(&live), &kept, &by(&me)), updated(Some(&live), &after, &by(&me)));
    }

    #[test]
    fn any_json_is_applied_or_refused(live in any_json(), config in any_json(), books in any_json()) {
        for shape in [Shape::UNKNOWN, Shape::of("apps/v1", "Deployment"), Shape::of("v1", "Pod")] {
            let write = Write { shape, ..by("me") };
            let mut live = live.clone();
            meta::metadata_mut(&mut live).insert("managedFields".into(), json!([{"manager": "x", "operation": "Apply", "fieldsV1": books}, books]));
            for force in [true, false] {
                if let Ok(object) = apply(Some(&live), &config, &write, force) {
                    let again = apply(Some(&object), &config, &write, true);
                    prop_assert_eq!(again, Ok(object));
                }
            }
            updated(Some(&live), &config, &write);
            updated(None, &config, &write);
        }
    }
}
