//! How lists and maps are merged and owned: as a whole, by value, or entry by entry with keys.
//!
//! A [`Shape`] stands at one place of an object and says so for that place: for built-in kinds from the table below
//! (Kubernetes' `patchMergeKey` and `listType` marks), for custom resources from their schema, for everything else as
//! Kubernetes does where it knows nothing: lists as a whole, maps entry by entry.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;

use crate::path::Step;
use crate::schema::{self, Schema};

/// A place of an object, and what is known about it.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a>(Known<'a>);

#[derive(Clone, Copy, Debug)]
enum Known<'a> {
    /// Nothing.
    Nothing,
    /// A plain part of a built-in kind: fields of their own, lists as a whole.
    Plain,
    /// A place in a built-in kind.
    BuiltIn(&'static Form),
    /// A whole custom resource.
    Root(&'a Schema),
    /// A part of a custom resource.
    Part(&'a Schema),
}

/// How a list is owned.
#[derive(Clone, Debug, PartialEq)]
pub enum List<'a> {
    /// As a whole.
    Atomic,
    /// Each value for itself.
    Set,
    /// Each entry for itself, told apart by these keys (with the value an absent key has).
    Map(Vec<(&'a str, Option<Value>)>),
}

/// How a strategic merge patch treats a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchList {
    /// The patch's list takes the old one's place.
    Replace,
    /// Values are added.
    Values,
    /// Entries are merged by this key.
    Merge(&'static str),
}

impl<'a> Shape<'a> {
    /// Where nothing is known.
    pub const UNKNOWN: Shape<'static> = Shape(Known::Nothing);

    /// A built-in kind; [`Shape::UNKNOWN`] when there is none of that name.
    pub fn of(api_version: &str, kind: &str) -> Shape<'static> {
        if crate::kind::find_kind(api_version, kind).is_none() {
            return Shape::UNKNOWN;
        }
        match TYPES.get(kind) {
            Some(_) => Shape(Known::BuiltIn(&ROOTS[kind])),
            None => Shape(Known::BuiltIn(&OTHER_ROOT)),
        }
    }

    /// A custom resource with a schema made by [`Schema::root`].
    pub fn of_schema(schema: &'a Schema) -> Shape<'a> {
        Shape(Known::Root(schema))
    }

    /// What is below a field or an entry of a map, and whether it is a field of its own (rather than an entry).
    pub fn field(&self, name: &str) -> (Shape<'a>, bool) {
        match self.0 {
            Known::Nothing => (Shape::UNKNOWN, false),
            Known::Plain => (Shape(Known::Plain), true),
            Known::BuiltIn(form) => match form {
                Form::Struct(kind) => {
                    let known = TYPES.get(kind).and_then(|fields| fields.get(name));
                    (Shape(known.map_or(Known::Plain, Known::BuiltIn)), true)
                }
                _ => (Shape(Known::Plain), true),
            },
            Known::Root(schema) => match name {
                "metadata" => (Shape(Known::BuiltIn(&ROOTS["ObjectMeta"])), true),
                "apiVersion" | "kind" => (Shape(Known::Plain), true),
                _ => part(schema, name),
            },
            Known::Part(schema) if schema.embedded_resource && name == "metadata" => {
                (Shape(Known::BuiltIn(&ROOTS["ObjectMeta"])), true)
            }
            Known::Part(schema) => part(schema, name),
        }
    }

    /// What the entries of a list are.
    pub fn item(&self) -> Shape<'a> {
        match self.0 {
            Known::BuiltIn(Form::Entries { item, .. }) => Shape(ROOTS.get(item).map_or(Known::Plain, Known::BuiltIn)),
            Known::BuiltIn(_) | Known::Plain => Shape(Known::Plain),
            Known::Part(schema) => match &schema.items {
                Some(items) => Shape(Known::Part(items)),
                None => Shape::UNKNOWN,
            },
            Known::Nothing | Known::Root(_) => Shape::UNKNOWN,
        }
    }

    /// How a list at this place is owned.
    pub fn list(&self) -> List<'a> {
        match self.0 {
            Known::BuiltIn(Form::Values) => List::Set,
            Known::BuiltIn(Form::Entries { keys, atomic: false, .. }) => {
                List::Map(keys.iter().map(|key| (key.name, key.default.map(Value::from))).collect())
            }
            Known::Part(schema) => match schema.list_type {
                schema::ListType::Atomic => List::Atomic,
                schema::ListType::Set => List::Set,
                schema::ListType::Map => {
                    let default = |key: &String| schema.items.as_ref()?.properties.get(key)?.default.clone();
                    List::Map(schema.list_map_keys.iter().map(|key| (key.as_str(), default(key))).collect())
                }
            },
            _ => List::Atomic,
        }
    }

    /// Whether an object at this place is owned as a whole.
    pub fn is_atomic(&self) -> bool {
        match self.0 {
            Known::BuiltIn(Form::Atomic) => true,
            Known::BuiltIn(Form::Struct(kind)) => ATOMIC.contains(kind),
            Known::Part(schema) => schema.atomic,
            _ => false,
        }
    }

    /// How a strategic merge patch treats a list at this place.
    pub fn patch_list(&self) -> PatchList {
        match self.0 {
            Known::BuiltIn(Form::Values) => PatchList::Values,
            Known::BuiltIn(Form::Entries { patch: Some(key), .. }) => PatchList::Merge(key),
            _ => PatchList::Replace,
        }
    }
}

impl List<'_> {
    /// The step of an entry, or which key it lacks.
    pub fn step(&self, item: &Value) -> Result<Option<Step>, String> {
        match self {
            List::Atomic => Ok(None),
            List::Set => Ok(Some(Step::value(item))),
            List::Map(keys) => {
                let mut found = BTreeMap::new();
                for (key, default) in keys {
                    let value = item.get(key).filter(|value| !value.is_null()).or(default.as_ref());
                    let value = value.ok_or_else(|| (*key).to_owned())?;
                    found.insert((*key).to_owned(), value.clone());
                }
                Ok(Some(Step::key(&found)))
            }
        }
    }
}

fn part<'a>(schema: &'a Schema, name: &str) -> (Shape<'a>, bool) {
    match (schema.properties.get(name), &schema.additional) {
        (Some(below), _) => (Shape(Known::Part(below)), true),
        (None, Some(entry)) => (Shape(Known::Part(entry)), false),
        (None, None) => (Shape::UNKNOWN, false),
    }
}

/// What is at a field of a built-in kind.
#[derive(Clone, Debug)]
enum Form {
    /// A part with fields of its own.
    Struct(&'static str),
    /// Owned as a whole.
    Atomic,
    /// A list of values.
    Values,
    /// A list of entries with keys.
    Entries { item: &'static str, keys: Vec<Key>, patch: Option<&'static str>, atomic: bool },
}

#[derive(Clone, Debug)]
struct Key {
    name: &'static str,
    default: Option<&'static str>,
}

static OTHER_ROOT: Form = Form::Struct("Other");

static TYPES: LazyLock<BTreeMap<&'static str, BTreeMap<&'static str, Form>>> = LazyLock::new(|| read(TABLE));

/// Each type as a place of its own.
static ROOTS: LazyLock<BTreeMap<&'static str, Form>> =
    LazyLock::new(|| TYPES.keys().chain(ATOMIC).map(|name| (*name, Form::Struct(name))).collect());

/// Parts that are owned as a whole.
const ATOMIC: &[&str] = &["Selector", "Reference"];

/// The built-in kinds' lists and maps that are not owned field by field or, for lists, as a whole.
///
/// `field=Type` is a part; `field=!` and a part of type Selector or Reference are owned as a whole; `field={}` is a
/// list of values; `field=[Type:key,key]` is a list of entries, merged by the first key in a patch and told apart by
/// all of them otherwise; `key/TCP` has a default; `~` after it means that a patch replaces it, `!` before it that it
/// is owned as a whole although a patch merges it.
const TABLE: &str = "
ObjectMeta finalizers={} ownerReferences=[Reference:uid] managedFields=!
Condition
Conditions conditions=[Condition:type]

Pod metadata=ObjectMeta spec=PodSpec status=PodStatus
PodTemplate metadata=ObjectMeta template=PodTemplateSpec
PodTemplateSpec metadata=ObjectMeta spec=PodSpec
PodSpec containers=[Container:name] initContainers=[Container:name] ephemeralContainers=[Container:name] volumes=[Volume:name] imagePullSecrets=[Plain:name] hostAliases=[Plain:ip] topologySpreadConstraints=[SpreadConstraint:topologyKey,whenUnsatisfiable] schedulingGates=[Plain:name] resourceClaims=[Plain:name] nodeSelector=! affinity=Affinity resources=Resources
PodStatus conditions=[Condition:type] podIPs=[Plain:ip] resourceClaimStatuses=[Plain:name]
Container ports=[Plain:containerPort,protocol/TCP] env=[EnvVar:name] volumeMounts=[Plain:mountPath] volumeDevices=[Plain:devicePath] resources=Resources
EnvVar valueFrom=EnvVarSource
EnvVarSource fieldRef=Reference resourceFieldRef=Reference configMapKeyRef=Reference secretKeyRef=Reference fileKeyRef=Reference
Resources claims=[Plain:name]~
SpreadConstraint labelSelector=Selector
Volume csi=CsiVolume flexVolume=CsiVolume cephfs=CsiVolume rbd=CsiVolume iscsi=CsiVolume scaleIO=CsiVolume storageos=CsiVolume ephemeral=EphemeralVolume
CsiVolume nodePublishSecretRef=Reference secretRef=Reference
EphemeralVolume volumeClaimTemplate=Claim
Affinity nodeAffinity=NodeAffinity
NodeAffinity requiredDuringSchedulingIgnoredDuringExecution=!
Plain

Namespace metadata=ObjectMeta status=Conditions
Node metadata=ObjectMeta spec=NodeSpec status=NodeStatus
NodeSpec podCIDRs={}
NodeStatus addresses=[Plain:type] conditions=[Condition:type]
Service metadata=ObjectMeta spec=ServiceSpec status=Conditions
ServiceSpec ports=[Plain:port,protocol/TCP] selector=!
ServiceAccount metadata=ObjectMeta secrets=[Plain:name]
Event metadata=ObjectMeta involvedObject=Reference related=Reference regarding=Reference
Claim metadata=ObjectMeta spec=ClaimSpec status=Conditions
PersistentVolumeClaim metadata=ObjectMeta spec=ClaimSpec status=Conditions
ClaimSpec selector=Selector dataSource=Reference
PersistentVolume metadata=ObjectMeta spec=PersistentVolumeSpec
PersistentVolumeSpec claimRef=!
ReplicationController metadata=ObjectMeta spec=ReplicationControllerSpec status=Conditions
ReplicationControllerSpec selector=! template=PodTemplateSpec

Deployment metadata=ObjectMeta spec=WorkloadSpec status=Conditions
ReplicaSet metadata=ObjectMeta spec=WorkloadSpec status=Conditions
StatefulSet metadata=ObjectMeta spec=WorkloadSpec status=Conditions
DaemonSet metadata=ObjectMeta spec=WorkloadSpec status=Conditions
WorkloadSpec selector=Selector template=PodTemplateSpec

Job metadata=ObjectMeta spec=WorkloadSpec status=JobStatus
JobStatus conditions=![Condition:type]
CronJob metadata=ObjectMeta spec=CronJobSpec
CronJobSpec jobTemplate=JobTemplate
JobTemplate metadata=ObjectMeta spec=WorkloadSpec

HorizontalPodAutoscaler metadata=ObjectMeta status=Conditions
PodDisruptionBudget metadata=ObjectMeta spec=PodDisruptionBudgetSpec status=Conditions
PodDisruptionBudgetSpec selector=Selector
EndpointSlice metadata=ObjectMeta

ClusterRoleBinding metadata=ObjectMeta roleRef=Reference
RoleBinding metadata=ObjectMeta roleRef=Reference
MutatingWebhookConfiguration metadata=ObjectMeta webhooks=[Webhook:name]
ValidatingWebhookConfiguration metadata=ObjectMeta webhooks=[Webhook:name]
Webhook matchConditions=[Plain:name] namespaceSelector=Selector objectSelector=Selector
CustomResourceDefinition metadata=ObjectMeta status=CrdStatus
CrdStatus conditions=[Condition:type]~
APIService metadata=ObjectMeta status=ApiServiceStatus
ApiServiceStatus conditions=[Condition:type]
NetworkPolicy metadata=ObjectMeta spec=NetworkPolicySpec
NetworkPolicySpec podSelector=Selector
Other metadata=ObjectMeta
";

fn read(table: &'static str) -> BTreeMap<&'static str, BTreeMap<&'static str, Form>> {
    let lines = table.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap_or("");
            let fields = words.filter_map(|word| word.split_once('=')).map(|(field, form)| (field, read_form(form)));
            (name, fields.collect())
        })
        .collect()
}

fn read_form(form: &'static str) -> Form {
    match form {
        "!" => return Form::Atomic,
        "{}" => return Form::Values,
        _ => {}
    }
    let (atomic, form) = match form.strip_prefix('!') {
        Some(form) => (true, form),
        None => (false, form),
    };
    let Some(form) = form.strip_prefix('[') else { return Form::Struct(form) };
    let (entry, end) = form.split_once(']').unwrap_or((form, ""));
    let (item, keys) = entry.split_once(':').unwrap_or((entry, ""));
    let keys: Vec<Key> = keys
        .split(',')
        .map(|key| match key.split_once('/') {
            Some((name, default)) => Key { name, default: Some(default) },
            None => Key { name: key, default: None },
        })
        .collect();
    let patch = if end == "~" { None } else { keys.first().map(|key| key.name) };
    Form::Entries { item, keys, patch, atomic }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at<'a>(root: Shape<'a>, path: &str) -> Shape<'a> {
        path.split('.').fold(root, |shape, step| if step == "*" { shape.item() } else { shape.field(step).0 })
    }

    #[test]
    fn the_table_names_only_types_it_has_and_kinds_there_are() {
        for (name, fields) in TYPES.iter() {
            for (field, form) in fields {
                if let Form::Struct(kind) | Form::Entries { item: kind, .. } = form {
                    assert!(TYPES.contains_key(kind) || ATOMIC.contains(kind), "{name}.{field}: {kind}");
                }
            }
        }
        for kind in crate::kind::all() {
            assert!(matches!(Shape::of(&kind.api_version(), kind.kind).0, Known::BuiltIn(_)));
        }
    }

    #[test]
    fn built_in_lists_are_known() {
        let deployment = Shape::of("apps/v1", "Deployment");
        let ports = at(deployment, "spec.template.spec.containers.*.ports");
        let protocol = ("protocol", Some(json!("TCP")));
        assert_eq!(ports.list(), List::Map(vec![("containerPort", None), protocol.clone()]));
        assert_eq!(ports.patch_list(), PatchList::Merge("containerPort"));
        assert_eq!(at(Shape::of("v1", "Service"), "spec.ports").list(), List::Map(vec![("port", None), protocol]));
        assert_eq!(at(deployment, "metadata.finalizers").list(), List::Set);
        assert!(at(deployment, "spec.selector").is_atomic());
        assert!(at(deployment, "metadata.ownerReferences.*").is_atomic());
        let tolerations = at(deployment, "spec.template.spec.tolerations");
        assert_eq!((tolerations.list(), tolerations.patch_list()), (List::Atomic, PatchList::Replace));
        let conditions = at(Shape::of("batch/v1", "Job"), "status.conditions");
        assert_eq!((conditions.list(), conditions.patch_list()), (List::Atomic, PatchList::Merge("type")));
        let secret = at(deployment, "spec.template.spec.containers.*.env.*.valueFrom.secretKeyRef");
        assert!(secret.is_atomic());
        assert_eq!(
            ports.list().step(&json!({"containerPort": 80})),
            Ok(Some(Step::key(&BTreeMap::from([
                ("containerPort".into(), json!(80)),
                ("protocol".into(), json!("TCP"))
            ]))))
        );
        assert_eq!(ports.list().step(&json!({})), Err("containerPort".into()));
    }

    #[test]
    fn a_schemas_lists_are_known() {
        let schema = crate::schema::tests::widget();
        let widget = Shape::of_schema(&schema);
        assert_eq!(at(widget, "spec.parts").list(), List::Map(vec![("id", None)]));
        assert_eq!(at(widget, "spec.tags").list(), List::Set);
        assert!(at(widget, "spec.limits").is_atomic());
        assert_eq!(at(widget, "metadata.finalizers").list(), List::Set);
        assert!(!at(widget, "spec").field("labels").0.field("a").1, "entries of maps are no fields");
        assert_eq!(at(Shape::UNKNOWN, "spec.list").list(), List::Atomic);
    }
}
