use super::*;
use serde_json::json;

fn judged(schema: &Value, object: &Value, before: Option<&Value>) -> Vec<String> {
    let verdict = Rules::compile(schema).unwrap().judge(object, before);
    let causes = verdict.causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message));
    causes.chain(verdict.warnings.iter().map(|warning| format!("warning: {warning}"))).collect()
}

/// The worked examples of <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#validation-rules>.
#[test]
fn rules_of_the_documentation() {
    let spec = json!({"type": "object", "properties": {
        "replicas": {"type": "integer"}, "minReplicas": {"type": "integer"}, "maxReplicas": {"type": "integer"},
        "health": {"type": "object", "additionalProperties": {"type": "string"}},
        "widgets": {"type": "array", "items": {"type": "object", "properties": {"key": {"type": "string"}, "foo": {"type": "integer"}}}},
        "created": {"type": "string", "format": "date-time"}, "ttl": {"type": "string", "format": "duration"},
        "my_field": {"type": "string"}, "a-b": {"type": "string"}, "namespace": {"type": "string"},
        "port": {"x-kubernetes-int-or-string": true},
        "set1": {"type": "array", "items": {"type": "string"}}, "quantity": {"type": "string"},
    }});
    let object = json!({"replicas": 5, "minReplicas": 1, "maxReplicas": 3, "health": {"ok": "yes", "a-b": "c"},
        "widgets": [{"key": "x", "foo": 1}, {"key": "y", "foo": 20}], "created": "2024-01-02T03:04:05Z", "ttl": "90m",
        "my_field": "m", "a-b": "dash", "namespace": "ns", "port": "http", "set1": ["a", "b"], "quantity": "1500m"});
    let cases = [
        ("self.minReplicas <= self.replicas && self.replicas <= self.maxReplicas", false),
        ("'ok' in self.health", true),
        ("self.health['a-b'] == 'c'", true),
        ("self.widgets.exists(w, w.key == 'x' && w.foo < 10)", true),
        ("self.widgets.all(w, w.foo < 10)", false),
        ("self.widgets.map(w, w.foo).sum() == 21", true),
        ("self.widgets.filter(w, w.foo > 10).size() == 1", true),
        ("has(self.missing)", false),
        ("!has(self.expired) || self.created + self.ttl < self.expired", true),
        ("self.created + self.ttl > timestamp('2024-01-02T04:00:00Z')", true),
        ("self.my_field == 'm' && self.a__dash__b == 'dash' && self.__namespace__ == 'ns'", true),
        ("type(self.port) == string ? self.port == 'http' : self.port > 0", true),
        ("type(self.replicas) == int", true),
        ("sets.contains(self.set1, ['a'])", true),
        ("quantity(self.quantity).isGreaterThan(quantity('1'))", true),
        ("self.set1.isSorted() && 'HTTP' == self.port.upperAscii()", true),
        ("self.?missing.x.orValue('x') == 'x'", true),
        ("self.?port.optMap(p, p + '!').orValue('') == 'http!'", true),
        ("self.?health.ok.orValue('') == 'yes' && !self.?missing.x.hasValue()", true),
        ("cel.bind(n, self.replicas * 2, n + n == 20)", true),
        ("self.replicas == 5 ? true : false", true),
        ("self.port.matches('^[a-z]+$') && url('https://a:80/b').getPort() == '80'", true),
        ("double(self.replicas) / 2.0 > 2.4", true),
        ("!format.dns1123Label().validate(self.my_field).hasValue()", true),
        ("ip('10.0.0.1').family() == 4 && cidr('10.0.0.0/8').containsIP('10.1.2.3')", true),
    ];
    for (rule, holds) in cases {
        let mut schema = spec.clone();
        schema["x-kubernetes-validations"] = json!([{"rule": rule}]);
        let expected: Vec<String> =
            if holds { Vec::new() } else { vec![format!(": Invalid value: \"object\": failed rule: {rule}")] };
        let mut declared = schema.clone();
        declared["properties"]["missing"] = json!({"type": "object", "properties": {"x": {"type": "string"}}});
        declared["properties"]["expired"] = json!({"type": "string", "format": "date-time"});
        assert_eq!(judged(&declared, &object, None), expected, "{rule}");
    }
}

#[test]
fn messages_reasons_and_paths() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
    "properties": {"x": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string",
        "x-kubernetes-validations": [{"rule": "self != ''", "reason": "FieldValueRequired", "message": "no empty tag"}]}}},
    "x-kubernetes-validations": [
        {"rule": "self.x < 10", "message": "too large"},
        {"rule": "self.x < 10", "messageExpression": "'x is ' + string(self.x)", "message": "not seen"},
        {"rule": "self.x < 10", "messageExpression": "self.x > 0 ? '' : 'y'", "message": "the plain one"},
        {"rule": "self.x < 10", "fieldPath": ".x", "reason": "FieldValueForbidden", "message": "may not"},
        {"rule": "self.x < 10", "fieldPath": ".x", "reason": "FieldValueDuplicate"},
        {"rule": "self.nothing == 1", "message": "there is nothing"},
    ]}}});
    let said = judged(&schema, &json!({"spec": {"x": 11, "tags": ["a", ""]}}), None);
    insta::assert_snapshot!(said.join("\n"), @r#"
    spec: Invalid value: "object": too large
    spec: Invalid value: "object": x is 11
    spec: Invalid value: "object": the plain one
    spec.x: Forbidden: may not
    spec.x: Duplicate value: "object"
    spec: Invalid value: "object": no such key: nothing evaluating rule: there is nothing
    spec.tags[1]: Required value: no empty tag
    "#);
}

/// KEP-2876, "transition rules", and KEP-4008, ratcheting.
#[test]
fn rules_that_know_the_old_value() {
    let fixed = json!([{"rule": "self == oldSelf", "message": "is immutable"}]);
    let first = json!([{"rule": "oldSelf.hasValue() || self == 'a'", "optionalOldSelf": true, "message": "begins as a"},
        {"rule": "oldSelf.orValue('z') != 'end'", "optionalOldSelf": true, "message": "is over"}]);
    let schema = json!({"type": "object", "properties": {
        "fixed": {"type": "string", "x-kubernetes-validations": fixed},
        "first": {"type": "string", "x-kubernetes-validations": first},
        "plain": {"type": "integer", "x-kubernetes-validations": [{"rule": "self < 10"}]},
        "keyed": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {
            "type": "object", "properties": {"name": {"type": "string"}, "v": {"type": "integer", "x-kubernetes-validations":
                [{"rule": "self >= oldSelf", "message": "only grows"}]}}}},
    }});
    let none: Vec<String> = Vec::new();
    assert_eq!(judged(&schema, &json!({"fixed": "x", "first": "a"}), None), none);
    assert_eq!(judged(&schema, &json!({"first": "b"}), None), ["first: Invalid value: \"string\": begins as a"]);
    assert_eq!(judged(&schema, &json!({"first": "b"}), Some(&json!({"first": "a"}))), none);
    let over = judged(&schema, &json!({"first": "b"}), Some(&json!({"first": "end"})));
    assert_eq!(over, ["first: Invalid value: \"string\": is over"]);
    let changed = judged(&schema, &json!({"fixed": "y"}), Some(&json!({"fixed": "x"})));
    assert_eq!(changed, ["fixed: Invalid value: \"string\": is immutable"]);
    // What was wrong before and does not change only warns; what changes has to be right.
    let old = json!({"plain": 11});
    let warned = judged(&schema, &json!({"plain": 11, "fixed": "new"}), Some(&old));
    assert_eq!(warned, ["warning: plain: Invalid value: \"integer\": failed rule: self < 10"]);
    let wrong = judged(&schema, &json!({"plain": 12}), Some(&old));
    assert_eq!(wrong, ["plain: Invalid value: \"integer\": failed rule: self < 10"]);
    // Entries are found again by their keys, not by their places.
    let old = json!({"keyed": [{"name": "a", "v": 1}, {"name": "b", "v": 9}]});
    assert_eq!(judged(&schema, &json!({"keyed": [{"name": "b", "v": 9}, {"name": "c", "v": 0}]}), Some(&old)), none);
    let shrunk = judged(&schema, &json!({"keyed": [{"name": "b", "v": 8}]}), Some(&old));
    assert_eq!(shrunk, ["keyed[0].v: Invalid value: \"integer\": only grows"]);
}

#[test]
fn wrong_rules_are_found_when_a_definition_is_made() {
    let rule = |rule: Value| {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
                "x": {"type": "integer"}, "s": {"type": "string", "maxLength": 10},
                "list": {"type": "array", "maxItems": 10, "items": {"type": "object", "properties": {"v": {"type": "integer"}}}}},
            "x-kubernetes-validations": [rule]}}});
        let said = check(&schema, "schema");
        let said: Vec<_> = said.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        said.join("; ").replace("schema.properties[spec].x-kubernetes-validations[0].", "")
    };
    let good = [
        json!({"rule": "self.x > 0"}),
        json!({"rule": "self.list.all(e, has(e.v) && e.v > self.x)", "fieldPath": ".list"}),
        json!({"rule": "self.x >= oldSelf.x", "optionalOldSelf": false}),
        json!({"rule": "self.list.exists_one(e, e.v == 1)", "reason": "FieldValueInvalid", "message": "m", "messageExpression": "'a' + self.s"}),
    ];
    for good in good {
        assert_eq!(rule(good.clone()), "", "{good}");
    }
    let bad = [
        json!({"rule": " "}),
        json!({"rule": "self.y > 0"}),
        json!({"rule": "self.x.y > 0"}),
        json!({"rule": "self.list.all(e, e.w > 0)"}),
        json!({"rule": "this.x > 0"}),
        json!({"rule": "self.x.sortBy(1)"}),
        json!({"rule": "self.x"}),
        json!({"rule": "self.x\n > 0"}),
        json!({"rule": "true", "message": "a\nb"}),
        json!({"rule": "true", "message": ""}),
        json!({"rule": "true", "reason": "Because"}),
        json!({"rule": "true", "fieldPath": ".z"}),
        json!({"rule": "true", "fieldPath": "x"}),
        json!({"rule": "true", "optionalOldSelf": true}),
        json!({"rule": "true", "messageExpression": "self.x"}),
        json!({"rule": "true", "messageExpression": "self.nothing"}),
    ];
    let said: Vec<String> = bad.iter().map(|bad| rule(bad.clone())).collect();
    insta::assert_snapshot!(said.join("\n"), @r#"
    rule: Required value: rule is not specified
    rule: Invalid value: "self.y > 0": compilation failed: undefined field 'y'
    rule: Invalid value: "self.x.y > 0": compilation failed: type 'integer' does not support field selection
    rule: Invalid value: "self.list.all(e, e.w > 0)": compilation failed: undefined field 'w'
    rule: Invalid value: "this.x > 0": compilation failed: undeclared reference to 'this' (in container '')
    rule: Invalid value: "self.x.sortBy(1)": compilation failed: undeclared reference to 'sortBy' (in container '')
    rule: Invalid value: "self.x": must evaluate to a bool
    message: Required value: message must be specified if rule contains line breaks
    message: Invalid value: "a\nb": message must not contain line breaks
    message: Invalid value: "": message must be non-empty if specified
    reason: Unsupported value: "Because": supported values: "FieldValueRequired", "FieldValueForbidden", "FieldValueInvalid", "FieldValueDuplicate"
    fieldPath: Invalid value: ".z": fieldPath must be a valid path: does not refer to a valid field
    fieldPath: Invalid value: "x": fieldPath must be a valid path: expected . or ['
    optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule
    messageExpression: Invalid value: "self.x": must evaluate to a string
    messageExpression: Invalid value: "self.nothing": compilation failed: undefined field 'nothing'
    "#);
    assert!(rule(json!({"rule": "self.x >"})).starts_with("rule: Invalid value: \"self.x >\": compilation failed: "));
    let unbound = json!({"type": "array", "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]},
        "x-kubernetes-validations": [{"rule": "self.all(a, self.all(b, self.all(c, a + b + c != '')))"}]});
    let said: Vec<_> =
        check(&unbound, "s").iter().map(|cause| format!("{}: {:.60}", cause.field, cause.message)).collect();
    insta::assert_snapshot!(said.join("\n"), @r#"
    s.x-kubernetes-validations[0].rule: Forbidden: estimated rule cost exceeds budget (try simplifyi
    s.items.x-kubernetes-validations[0].rule: Forbidden: estimated rule cost exceeds budget (try simplifyi
    s.items.x-kubernetes-validations[0].rule: Invalid value: "self == oldSelf": oldSelf cannot be used on
    "#);
}

#[test]
fn cost_is_bounded_before_it_is_spent() {
    let any = |rule: &str| {
        json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"}}, "s": {"type": "string"}},
            "x-kubernetes-validations": [{"rule": rule, "message": "m"}]})
    };
    let list: Vec<u64> = (0..2000).collect();
    let object = json!({"l": list, "s": "x".repeat(1000)});
    let none: Vec<String> = Vec::new();
    assert_eq!(judged(&any("self.l.all(a, a >= 0)"), &object, None), none);
    let grow = (0..40).fold("size(v40) > 0".to_owned(), |inner, at| {
        format!("cel.bind(v{}, v{} + v{}, {inner})", 40 - at, 39 - at, 39 - at)
    });
    let grow = format!("cel.bind(v0, self.s, {grow})");
    for rule in [
        "self.l.all(a, self.l.all(b, a + b >= 0))",
        "lists.range(1000000000).size() > 1",
        "lists.range(self.l[5]).size() > 1",
        &grow,
    ] {
        let at = std::time::Instant::now();
        let said = judged(&any(rule), &object, None);
        assert_eq!(said, [": Invalid value: \"object\": call cost exceeds limit for rule: m"], "{rule:.60}");
        assert!(at.elapsed() < std::time::Duration::from_secs(20), "{rule:.60}");
    }
}

#[test]
fn texts_that_nest_without_end_are_refused() {
    let deep = 1000;
    for text in [
        format!("{}true{}", "(".repeat(deep), ")".repeat(deep)),
        format!("self{}", ".a".repeat(deep)),
        format!("{}1", "1+".repeat(deep)),
        format!("{}1", "true?1:".repeat(400)),
        "[".repeat(deep),
        "a".repeat(20_000),
    ] {
        assert!(Expression::compile(&text).is_err(), "{text:.20}");
    }
    // And what is just let through can be evaluated.
    let text = format!("{}1 > 0", "1+".repeat(80));
    assert_eq!(Expression::compile(&text).unwrap().holds(&[]), Ok(true));
}

#[test]
fn conditions() {
    let object = json!({"metadata": {"namespace": "a", "labels": {"x/y": "z"}}});
    let holds =
        |text: &str| Expression::compile(text).unwrap().holds(&[("object", &object), ("oldObject", &Value::Null)]);
    assert_eq!(holds("object.metadata.labels['x/y'] == 'z' && oldObject == null"), Ok(true));
    assert_eq!(holds("object.metadata.namespace == 'a'"), Ok(true));
    assert_eq!(holds("object.spec.x == 1"), Err("no such key: spec".into()));
    assert_eq!(holds("1"), Err("must evaluate to bool".into()));
    let check = |text: &str| Expression::compile(text).unwrap().check_condition(&["object"]);
    assert_eq!(check("object.a.b.c == 1"), None);
    assert!(check("authorizer.group('').check('x').allowed()").is_some());
}
