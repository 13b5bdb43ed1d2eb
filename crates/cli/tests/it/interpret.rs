use crate::Desk;

const CUSTOMIZATION: &str = r#"
apiVersion: config.karmada.io/v1alpha1
kind: ResourceInterpreterCustomization
metadata: {name: cache}
spec:
  target: {apiVersion: shop.example/v1, kind: Cache}
  customizations:
    retention:
      luaScript: |
        function Retain(desiredObj, observedObj)
          desiredObj.spec.password = observedObj.spec.password
          return desiredObj
        end
    replicaResource:
      luaScript: |
        local kube = require("kube")
        function GetReplicas(desiredObj)
          return desiredObj.spec.size, {resourceRequest = {memory = kube.resourceAdd(desiredObj.spec.memory, "16Mi")}}
        end
    componentResource:
      luaScript: |
        function GetComponents(desiredObj)
          return {{name = "node", replicas = desiredObj.spec.size}, {name = "guard", replicas = 1}}
        end
    replicaRevision:
      luaScript: |
        function ReviseReplica(desiredObj, desiredReplica)
          desiredObj.spec.size = desiredReplica
          return desiredObj
        end
    statusReflection:
      luaScript: |
        function ReflectStatus(observedObj)
          return {ready = observedObj.status.ready}
        end
    statusAggregation:
      luaScript: |
        function AggregateStatus(desiredObj, statusItems)
          desiredObj.status = {ready = 0}
          for i = 1, #statusItems do
            desiredObj.status.ready = desiredObj.status.ready + statusItems[i].status.ready
          end
          return desiredObj
        end
    healthInterpretation:
      luaScript: |
        function InterpretHealth(observedObj)
          return observedObj.status.ready == observedObj.spec.size
        end
    dependencyInterpretation:
      luaScript: |
        function GetDependencies(desiredObj)
          return {{apiVersion = "v1", kind = "Secret", name = desiredObj.metadata.name, namespace = "shop"}}
        end
"#;

const DESIRED: &str = "{apiVersion: shop.example/v1, kind: Cache, metadata: {name: fast, namespace: shop}, spec: {size: 3, memory: 48Mi, zones: []}}";
const OBSERVED: &str = "{apiVersion: shop.example/v1, kind: Cache, metadata: {name: fast, namespace: shop, resourceVersion: '7'}, spec: {size: 1, password: abc}, status: {ready: 1, noise: 2}}";
const ITEMS: &str = "
clusterName: eu
status: {ready: 1}
---
clusterName: ap
status: {ready: 2}
";

fn desk() -> Desk {
    let desk = Desk::new();
    for (name, text) in
        [("ric.yaml", CUSTOMIZATION), ("desired.yaml", DESIRED), ("observed.yaml", OBSERVED), ("items.yaml", ITEMS)]
    {
        desk.write(name, text);
    }
    desk
}

#[test]
fn every_script_can_be_tried() {
    let desk = desk();
    let shown: Vec<String> = [
        "Retain --desired desired.yaml --observed observed.yaml",
        "InterpretReplica --desired desired.yaml",
        "interpretcomponent --desired-file desired.yaml",
        "ReviseReplica --desired desired.yaml --desired-replica 2",
        "InterpretStatus --observed observed.yaml",
        "AggregateStatus --desired desired.yaml --status-file items.yaml",
        "InterpretHealth --observed-file observed.yaml",
        "InterpretDependency --desired desired.yaml",
    ]
    .iter()
    .map(|asked| {
        let run = desk.run("hub interpret -f ric.yaml --operation".split(' ').chain(asked.split(' ')));
        assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{asked}: {}", run.err);
        format!("$ {asked}\n{}", run.out)
    })
    .collect();
    insta::assert_snapshot!(shown.join(""), @r#"
    $ Retain --desired desired.yaml --observed observed.yaml
    ---
    # [1/1] retained:
    apiVersion: shop.example/v1
    kind: Cache
    metadata:
      name: fast
      namespace: shop
      resourceVersion: "7"
    spec:
      memory: 48Mi
      password: abc
      size: 3
      zones: []
    $ InterpretReplica --desired desired.yaml
    ---
    # [1/2] replica:
    3
    ---
    # [2/2] requires:
    resourceRequest:
      memory: 64Mi
    $ interpretcomponent --desired-file desired.yaml
    ---
    # [1/1] components:
    - name: node
      replicas: 3
    - name: guard
      replicas: 1
    $ ReviseReplica --desired desired.yaml --desired-replica 2
    ---
    # [1/1] revised:
    apiVersion: shop.example/v1
    kind: Cache
    metadata:
      name: fast
      namespace: shop
    spec:
      memory: 48Mi
      size: 2
      zones: []
    $ InterpretStatus --observed observed.yaml
    ---
    # [1/1] status:
    ready: 1
    $ AggregateStatus --desired desired.yaml --status-file items.yaml
    ---
    # [1/1] aggregatedStatus:
    apiVersion: shop.example/v1
    kind: Cache
    metadata:
      name: fast
      namespace: shop
    spec:
      memory: 48Mi
      size: 3
      zones: []
    status:
      ready: 3
    $ InterpretHealth --observed-file observed.yaml
    ---
    # [1/1] healthy:
    true
    $ InterpretDependency --desired desired.yaml
    ---
    # [1/1] dependencies:
    - apiVersion: v1
      kind: Secret
      name: fast
      namespace: shop
    "#);
}

#[test]
fn a_check_reads_every_script() {
    let desk = desk();
    let broken = CUSTOMIZATION
        .replace("return desiredObj.spec.size, {", "return desiredObj.spec.size, }")
        .replace("name: cache", "name: broken");
    desk.write("both.yaml", &format!("{CUSTOMIZATION}---{broken}"));
    insta::assert_snapshot!(desk.run(["hub", "interpret", "-f", "both.yaml", "--check"]).shown(), @"
    exit 1
    --- stdout
    -----------------------------------
    SOURCE: cache
    TARGET: shop.example/v1 Cache
    RULERS:
        Retain:              PASS
        InterpretReplica:    PASS
        InterpretComponent:  PASS
        ReviseReplica:       PASS
        InterpretStatus:     PASS
        AggregateStatus:     PASS
        InterpretHealth:     PASS
        InterpretDependency: PASS
    -----------------------------------
    SOURCE: broken
    TARGET: shop.example/v1 Cache
    RULERS:
        Retain:              PASS
        InterpretReplica:    ERROR: the script cannot be read: luaScript:3: Expected identifier when parsing expression, got '}'
        InterpretComponent:  PASS
        ReviseReplica:       PASS
        InterpretStatus:     PASS
        AggregateStatus:     PASS
        InterpretHealth:     PASS
        InterpretDependency: PASS
    --- stderr
    ");
}

#[test]
fn what_cannot_be_tried_is_said() {
    let desk = desk();
    desk.write("job.yaml", "{apiVersion: batch/v1, kind: Job, metadata: {name: j}}");
    desk.write("unknown.yaml", &CUSTOMIZATION.replace("retention:", "retentoin:"));
    let shown: Vec<String> = [
        "-f ric.yaml --operation InterpretHealth",
        "-f ric.yaml --operation Retain --desired desired.yaml",
        "-f ric.yaml --operation InterpretHealth --desired desired.yaml --observed observed.yaml",
        "-f ric.yaml --operation InterpretHealth --desired desired.yaml",
        "-f ric.yaml --operation InterpretReplica --desired job.yaml",
        "-f job.yaml --operation InterpretReplica --desired job.yaml",
        "-f unknown.yaml --check",
    ]
    .iter()
    .map(|asked| {
        let run = desk.run("hub interpret".split(' ').chain(asked.split(' ')));
        assert_eq!((run.code, run.out.as_str()), (Some(1), ""), "{asked}: {}", run.out);
        format!("$ {asked}\n{}", run.err)
    })
    .collect();
    insta::assert_snapshot!(shown.join(""), @r#"
    $ -f ric.yaml --operation InterpretHealth
    error: InterpretHealth is asked about an object, and there is none
    hint: `--desired-file FILE` names the object of the hub, `--observed-file FILE` that of a member
    $ -f ric.yaml --operation Retain --desired desired.yaml
    error: Retain is asked about the member's object, and there is none
    hint: `--desired-file FILE` names the object of the hub, `--observed-file FILE` that of a member
    $ -f ric.yaml --operation InterpretHealth --desired desired.yaml --observed observed.yaml
    error: InterpretHealth is asked about one object, and there are two
    hint: leave out `--desired-file` or `--observed-file`
    $ -f ric.yaml --operation InterpretHealth --desired desired.yaml
    error: could not execute InterpretHealth
      luaScript:2: attempt to index nil with 'ready'
    $ -f ric.yaml --operation InterpretReplica --desired job.yaml
    error: no script answers InterpretReplica for batch/v1 Job
    hint: write one in spec.customizations.replicaResource.luaScript, with that target
    $ -f job.yaml --operation InterpretReplica --desired job.yaml
    error: job.yaml: not a ResourceInterpreterCustomization, got "Job"
    $ -f unknown.yaml --check
    error: unknown.yaml: spec.customizations.retentoin: the hub knows no such field; did you mean retention?
    "#);
}
