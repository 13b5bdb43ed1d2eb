use serde_json::{Value, json};

use super::*;
use crate::model::{ImageComponent, read};

fn policy(name: &str, namespace: &str, spec: Value) -> OverridePolicy {
    let mut policy = json!({"metadata": {"name": name}, "spec": spec});
    if !namespace.is_empty() {
        policy["metadata"]["namespace"] = namespace.into();
    }
    let (policy, unknown) = read(&policy).unwrap();
    assert_eq!(unknown, []);
    policy
}

fn cluster(name: &str) -> Cluster {
    read(&json!({"metadata": {"name": name, "labels": {"region": "eu"}}, "spec": {}})).unwrap().0
}

fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "shop", "labels": {"a": "1"}},
        "spec": {"replicas": 3, "template": {"spec": {
            "initContainers": [{"name": "first", "image": "r.io/init:1"}],
            "containers": [{"name": "web", "image": "r.io/team/web:1", "command": ["run"], "args": ["-v", "-x", "-v"]},
                {"name": "log", "image": "log@sha256:0123456789012345678901234567890123456789012345678901234567890123"}]}}}})
}

fn one(overriders: Value) -> Value {
    let mut manifest = deployment();
    let policies = [policy("o", "shop", json!({"overrideRules": [{"overriders": overriders}]}))];
    apply(&mut manifest, &cluster("c1"), &policies).unwrap();
    manifest
}

#[test]
fn images_are_changed_in_parts() {
    use ImageComponent::{Registry, Repository, Tag};
    use OverrideOperator::{Add, Remove, Replace};
    let digest = "sha256:0123456789012345678901234567890123456789012345678901234567890123";
    let with = |tag: &str| format!("r.io:5000/team/web{tag}");
    for (image, component, operator, value, expected) in [
        ("r.io/web:1", Registry, Replace, "mirror.example", "mirror.example/web:1".to_owned()),
        ("web:1", Registry, Replace, "mirror.example:5000", "mirror.example:5000/web:1".into()),
        ("r.io/web:1", Registry, Add, ".cn", "r.io.cn/web:1".into()),
        ("r.io/web:1", Registry, Remove, "", "web:1".into()),
        ("r.io:5000/team/web", Repository, Add, "-slim", with("-slim")),
        ("r.io:5000/team/web", Tag, Replace, "v2", with(":v2")),
        ("r.io:5000/team/web:1", Tag, Add, ".2", with(":1.2")),
        ("r.io:5000/team/web:1", Tag, Remove, "", with("")),
        (&with(&format!("@{digest}")), Tag, Replace, "v2", with(":v2")),
        (&with(":v1"), Tag, Replace, digest, with(&format!("@{digest}"))),
        (&with(&format!("@{digest}")), Tag, Remove, "", with("")),
        (&with(&format!(":v1@{digest}")), Repository, Replace, "x/y", format!("r.io:5000/x/y:v1@{digest}")),
        ("web", Tag, Replace, "not a tag!", "web".into()),
    ] {
        let changed = Image::parse(image).changed(component, operator, value);
        assert_eq!(changed.to_string(), expected, "{image} {component:?} {operator:?} {value}");
    }
}

#[test]
fn each_overrider_changes_its_part() {
    let image = one(json!({"imageOverrider": [{"component": "Registry", "operator": "replace", "value": "m.io"}]}));
    assert_eq!(image.pointer("/spec/template/spec/containers/0/image"), Some(&json!("m.io/team/web:1")));
    assert_eq!(image.pointer("/spec/template/spec/initContainers/0/image"), Some(&json!("r.io/init:1")));
    let first = json!({"component": "Tag", "operator": "replace", "value": "2",
        "predicate": {"path": "/spec/template/spec/initContainers/0/image"}});
    assert_eq!(
        one(json!({"imageOverrider": [first]})).pointer("/spec/template/spec/initContainers/0/image"),
        Some(&json!("r.io/init:2"))
    );

    let words = one(json!({
        "commandOverrider": [{"containerName": "web", "operator": "add", "value": ["fast"]},
            {"containerName": "log", "operator": "add", "value": ["tail"]},
            {"containerName": "nobody", "operator": "add", "value": ["x"]}],
        "argsOverrider": [{"containerName": "web", "operator": "remove", "value": ["-v", "-q"]}]}));
    assert_eq!(words.pointer("/spec/template/spec/containers/0/command"), Some(&json!(["run", "fast"])));
    assert_eq!(words.pointer("/spec/template/spec/containers/0/args"), Some(&json!(["-x"])));
    assert_eq!(words.pointer("/spec/template/spec/containers/1/command"), Some(&json!(["tail"])));

    let keys = one(json!({
        "labelsOverrider": [{"operator": "add", "value": {"b": "2"}}, {"operator": "replace", "value": {"a": "9", "c": "9"}}],
        "annotationsOverrider": [{"operator": "add", "value": {"x": "1", "y": "1"}}, {"operator": "remove", "value": {"x": "", "z": ""}}]}));
    assert_eq!(keys["metadata"]["labels"], json!({"a": "9", "b": "2"}));
    assert_eq!(keys["metadata"]["annotations"], json!({"y": "1"}));
    assert_eq!(
        one(json!({"annotationsOverrider": [{"operator": "remove", "value": {"x": ""}}]}))["metadata"]
            .get("annotations"),
        None
    );

    let plain = one(json!({"plaintext": [{"path": "/spec/replicas", "operator": "replace", "value": 9},
        {"path": "/spec/paused", "operator": "add", "value": true}, {"path": "/metadata/labels/a", "operator": "remove"}]}));
    assert_eq!((&plain["spec"]["replicas"], &plain["spec"]["paused"]), (&json!(9), &json!(true)));
    assert_eq!(plain["metadata"]["labels"], json!({}));
}

/// What the last of them has written is there, in whatever order they stand.
#[test]
fn overriders_of_a_rule_are_applied_in_karmadas_order() {
    let image = "/spec/template/spec/containers/0/image";
    let all = one(json!({
        "plaintext": [{"path": "/metadata/labels/a", "operator": "replace", "value": "plain"},
            {"path": "/metadata/annotations/conf", "operator": "add", "value": "{\"last\":true}"},
            {"path": "/spec/template/spec/containers/0/args/0", "operator": "replace", "value": "first"}],
        "fieldOverrider": [{"fieldPath": "/metadata/annotations/conf",
            "json": [{"subPath": "/field", "operator": "add", "value": 1}]}],
        "annotationsOverrider": [{"operator": "add", "value": {"conf": "{}", "kept": "{}"}}],
        "labelsOverrider": [{"operator": "add", "value": {"a": "label", "b": "label"}}],
        "argsOverrider": [{"containerName": "web", "operator": "add", "value": ["--more"]}],
        "imageOverrider": [{"component": "Tag", "operator": "replace", "value": "2"},
            {"component": "Tag", "operator": "add", "value": ".1"}]}));
    assert_eq!(all["metadata"]["labels"], json!({"a": "plain", "b": "label"}));
    // The text that the field overrider changes is the annotation's, which it finds; plaintext writes over both.
    assert_eq!(all["metadata"]["annotations"], json!({"conf": "{\"last\":true}", "kept": "{}"}));
    assert_eq!(all.pointer(image), Some(&json!("r.io/team/web:2.1")));
    let args = all.pointer("/spec/template/spec/containers/0/args").unwrap().as_array().unwrap();
    assert_eq!((&args[0], args.last().unwrap()), (&json!("first"), &json!("--more")));
}

#[test]
fn text_inside_a_string_is_changed() {
    let mut config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "shop"},
        "data": {"a.json": "{\"port\": 80, \"old\": 1}", "b.yaml": "port: 80\nhosts:\n- a\n"}});
    let spec = json!({"overrideRules": [{"overriders": {"fieldOverrider": [
        {"fieldPath": "/data/a.json", "json": [{"subPath": "/port", "operator": "replace", "value": 90},
            {"subPath": "/old", "operator": "remove"}]},
        {"fieldPath": "/data/b.yaml", "yaml": [{"subPath": "/hosts/-", "operator": "add", "value": "b"}]}]}}]});
    apply(&mut config, &cluster("c1"), &[policy("o", "shop", spec)]).unwrap();
    assert_eq!(config["data"]["a.json"], json!("{\"port\":90}"));
    let yaml: Value = serde_saphyr::from_str(config["data"]["b.yaml"].as_str().unwrap()).unwrap();
    assert_eq!(yaml, json!({"port": 80, "hosts": ["a", "b"]}));
}

#[test]
fn policies_are_applied_in_order_and_the_last_wins() {
    let sets = |value: &str, selector: Value, clusters: Value| {
        let mut spec = json!({"overrideRules": [{"targetCluster": {"clusterNames": clusters},
            "overriders": {"labelsOverrider": [{"operator": "add", "value": {"who": value, value: "x"}}]}}]});
        if !selector.is_null() {
            spec["resourceSelectors"] = json!([selector]);
        }
        spec
    };
    let by_name = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"});
    let by_kind = json!({"apiVersion": "apps/v1", "kind": "Deployment"});
    let policies = [
        policy("a", "shop", sets("ns-name", by_name.clone(), json!([]))),
        policy("b", "shop", sets("ns-kind", by_kind.clone(), json!(["c1"]))),
        policy("z", "", sets("wide-name", by_name.clone(), json!([]))),
        policy("y", "", sets("wide-all", Value::Null, json!([]))),
        policy("x", "", sets("elsewhere", by_name, json!(["c2"]))),
        policy("w", "other", sets("other-namespace", by_kind, json!([]))),
    ];
    let mut manifest = deployment();
    let applied = apply(&mut manifest, &cluster("c1"), &policies).unwrap();
    assert_eq!(
        manifest["metadata"]["labels"],
        json!({"a": "1", "who": "ns-name", "ns-name": "x", "ns-kind": "x", "wide-name": "x", "wide-all": "x"})
    );
    let names = |applied: &[Applied]| applied.iter().map(|one| one.policy_name.clone()).collect::<String>();
    assert_eq!((names(&applied.cluster), names(&applied.namespaced)), ("yz".to_owned(), "ba".to_owned()));
    let annotations = applied.annotations();
    assert_eq!(annotations[0].0, "policy.karmada.io/applied-cluster-overrides");
    insta::assert_snapshot!(annotations[1].1, @r#"[{"policyName":"b","overriders":{"labelsOverrider":[{"operator":"add","value":{"ns-kind":"x","who":"ns-kind"}}]}},{"policyName":"a","overriders":{"labelsOverrider":[{"operator":"add","value":{"ns-name":"x","who":"ns-name"}}]}}]"#);
    let nothing = apply(&mut manifest, &cluster("c1"), &policies[5..]).unwrap();
    assert_eq!(nothing.annotations(), []);
    // The old form of one rule.
    let old = policy(
        "old",
        "shop",
        json!({"targetCluster": {"labelSelector": {"matchLabels": {"region": "eu"}}},
        "overriders": {"plaintext": [{"path": "/spec/replicas", "operator": "replace", "value": 1}]}}),
    );
    apply(&mut manifest, &cluster("c1"), &[old]).unwrap();
    assert_eq!(manifest["spec"]["replicas"], 1);
}

#[test]
fn what_cannot_be_applied_changes_nothing_and_is_told() {
    let refused: Vec<String> = [
        json!({"labelsOverrider": [{"operator": "add", "value": {"half": "done"}}],
            "plaintext": [{"path": "/spec/nothing", "operator": "remove"}]}),
        json!({"imageOverrider": [{"component": "Tag", "operator": "remove", "predicate": {"path": "/spec/image"}}]}),
        json!({"fieldOverrider": [{"fieldPath": "/spec/replicas", "json": [{"subPath": "/a", "operator": "remove"}]}]}),
        json!({"fieldOverrider": [{"fieldPath": "/metadata/name", "json": [{"subPath": "/a", "operator": "remove"}]}]}),
    ]
    .into_iter()
    .map(|overriders| {
        let mut manifest = deployment();
        let policies = [policy("o", "shop", json!({"overrideRules": [{"overriders": overriders}]}))];
        let error = apply(&mut manifest, &cluster("c1"), &policies).unwrap_err();
        assert_eq!(manifest, deployment());
        error.to_string()
    })
    .collect();
    insta::assert_snapshot!(refused.join("\n"), @"
        cannot apply OverridePolicy shop/o to Deployment web: plaintext: operation '/0' failed at path '/spec/nothing': path is invalid
        cannot apply OverridePolicy shop/o to Deployment web: /spec/image: there is no such field
        cannot apply OverridePolicy shop/o to Deployment web: /spec/replicas: it is not a text
        cannot apply OverridePolicy shop/o to Deployment web: /metadata/name: it is not JSON: expected value at line 1 column 1
        ");
}
