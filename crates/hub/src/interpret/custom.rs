//! What the hub was told of kinds: the scripts of ResourceInterpreterCustomizations, and those that come with it.
//!
//! The first who knows answers (Karmada v1.18.2): a customization, then a script of a well-known kind of others, then
//! what is known of the native kinds.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stolos_k8s::meta;

use super::script::{self, Given, ScriptError};
use super::{Dependency, Replicas};
use crate::model::{
    AggregatedStatusItem, Component, Customization, CustomizationRules, CustomizationTarget, Health, LuaRule,
    ReplicaRequirements, read,
};

/// Scripts for kinds of others, in Karmada's form, and the further kinds that each is for.
const WELL_KNOWN: [(&str, &[(&str, &str)]); 13] = [
    (include_str!("../../interpreters/cloneset.yaml"), &[]),
    (include_str!("../../interpreters/kruise-statefulset.yaml"), &[]),
    (include_str!("../../interpreters/kruise-daemonset.yaml"), &[]),
    (include_str!("../../interpreters/broadcastjob.yaml"), &[]),
    (include_str!("../../interpreters/sidecarset.yaml"), &[]),
    (include_str!("../../interpreters/workflow.yaml"), &[]),
    (include_str!("../../interpreters/volcano-job.yaml"), &[]),
    (include_str!("../../interpreters/flinkdeployment.yaml"), &[]),
    (include_str!("../../interpreters/flux.yaml"), &FLUX),
    (include_str!("../../interpreters/kyverno.yaml"), &[("kyverno.io/v1", "Policy")]),
    (include_str!("../../interpreters/raycluster.yaml"), &[]),
    (include_str!("../../interpreters/sparkapplication.yaml"), &[]),
    (include_str!("../../interpreters/kubeflow.yaml"), &KUBEFLOW),
];
const FLUX: [(&str, &str); 12] = [
    ("helm.toolkit.fluxcd.io/v2beta1", "HelmRelease"),
    ("helm.toolkit.fluxcd.io/v2beta2", "HelmRelease"),
    ("kustomize.toolkit.fluxcd.io/v1", "Kustomization"),
    ("source.toolkit.fluxcd.io/v1", "GitRepository"),
    ("source.toolkit.fluxcd.io/v1", "Bucket"),
    ("source.toolkit.fluxcd.io/v1beta2", "Bucket"),
    ("source.toolkit.fluxcd.io/v1", "HelmChart"),
    ("source.toolkit.fluxcd.io/v1beta2", "HelmChart"),
    ("source.toolkit.fluxcd.io/v1", "HelmRepository"),
    ("source.toolkit.fluxcd.io/v1beta2", "HelmRepository"),
    ("source.toolkit.fluxcd.io/v1", "OCIRepository"),
    ("source.toolkit.fluxcd.io/v1beta2", "OCIRepository"),
];
const KUBEFLOW: [(&str, &str); 5] = [
    ("kubeflow.org/v1", "TFJob"),
    ("kubeflow.org/v1", "XGBoostJob"),
    ("kubeflow.org/v1", "PaddleJob"),
    ("kubeflow.org/v1", "MPIJob"),
    ("kubeflow.org/v2beta1", "MPIJob"),
];

/// A question that a script can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// What a member's object keeps.
    Retain,
    /// How many replicas, and what one needs.
    InterpretReplica,
    /// Several pod templates, each with its replicas.
    InterpretComponent,
    /// A member's share.
    ReviseReplica,
    /// What of a status is kept.
    InterpretStatus,
    /// The template's own status.
    AggregateStatus,
    /// Whether a member's object is well.
    InterpretHealth,
    /// What else it needs.
    InterpretDependency,
}

impl Operation {
    /// All, in Karmada's order.
    pub const ALL: [Self; 8] = [
        Self::Retain,
        Self::InterpretReplica,
        Self::InterpretComponent,
        Self::ReviseReplica,
        Self::InterpretStatus,
        Self::AggregateStatus,
        Self::InterpretHealth,
        Self::InterpretDependency,
    ];

    /// Karmada's name of it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Retain => "Retain",
            Self::InterpretReplica => "InterpretReplica",
            Self::InterpretComponent => "InterpretComponent",
            Self::ReviseReplica => "ReviseReplica",
            Self::InterpretStatus => "InterpretStatus",
            Self::AggregateStatus => "AggregateStatus",
            Self::InterpretHealth => "InterpretHealth",
            Self::InterpretDependency => "InterpretDependency",
        }
    }

    /// The function that a script must have.
    #[must_use]
    pub fn function(self) -> &'static str {
        match self {
            Self::Retain => "Retain",
            Self::InterpretReplica => "GetReplicas",
            Self::InterpretComponent => "GetComponents",
            Self::ReviseReplica => "ReviseReplica",
            Self::InterpretStatus => "ReflectStatus",
            Self::AggregateStatus => "AggregateStatus",
            Self::InterpretHealth => "InterpretHealth",
            Self::InterpretDependency => "GetDependencies",
        }
    }

    /// The field of a customization that holds the script.
    #[must_use]
    pub fn field(self) -> &'static str {
        match self {
            Self::Retain => "retention",
            Self::InterpretReplica => "replicaResource",
            Self::InterpretComponent => "componentResource",
            Self::ReviseReplica => "replicaRevision",
            Self::InterpretStatus => "statusReflection",
            Self::AggregateStatus => "statusAggregation",
            Self::InterpretHealth => "healthInterpretation",
            Self::InterpretDependency => "dependencyInterpretation",
        }
    }

    /// The script of a customization, if it has one.
    #[must_use]
    pub fn script(self, rules: &CustomizationRules) -> Option<&str> {
        let rule: &Option<LuaRule> = match self {
            Self::Retain => &rules.retention,
            Self::InterpretReplica => &rules.replica_resource,
            Self::InterpretComponent => &rules.component_resource,
            Self::ReviseReplica => &rules.replica_revision,
            Self::InterpretStatus => &rules.status_reflection,
            Self::AggregateStatus => &rules.status_aggregation,
            Self::InterpretHealth => &rules.health_interpretation,
            Self::InterpretDependency => &rules.dependency_interpretation,
        };
        rule.as_ref().map(|rule| rule.lua_script.as_str()).filter(|script| !script.is_empty())
    }
}

/// The scripts for one question about one kind: one, but for dependencies, which may come from several.
type Scripts = HashMap<Operation, Vec<String>>;

/// All that is known of kinds.
#[derive(Debug)]
pub struct Interpreters(HashMap<CustomizationTarget, Scripts>);

/// The scripts that come with the hub.
static COMES_WITH: LazyLock<Arc<Interpreters>> = LazyLock::new(|| Arc::new(Interpreters::new(&[])));

fn well_known() -> impl Iterator<Item = Customization> {
    WELL_KNOWN.iter().flat_map(|(text, more)| {
        // A test holds that each can be read.
        let read: Option<Customization> = serde_saphyr::from_str(text).ok();
        let more = read.clone().into_iter().flat_map(|read| {
            more.iter().map(move |(api_version, kind)| {
                let mut of_kind = read.clone();
                of_kind.spec.target =
                    CustomizationTarget { api_version: (*api_version).to_owned(), kind: (*kind).to_owned() };
                of_kind
            })
        });
        read.clone().into_iter().chain(more)
    })
}

impl Interpreters {
    /// With these customizations. Where two have a script for the same question, the first by name has the word, and
    /// dependencies come from all.
    #[must_use]
    pub fn new(customizations: &[Customization]) -> Self {
        let mut sorted: Vec<&Customization> = customizations.iter().collect();
        sorted.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
        let mut all = Self(HashMap::new());
        for customization in sorted {
            all.add(customization, |known, operation| known.is_none() || operation == Operation::InterpretDependency);
        }
        for customization in well_known() {
            all.add(&customization, |known, _| known.is_none());
        }
        all
    }

    /// With none but those that come with the hub.
    #[must_use]
    pub fn well_known() -> Arc<Self> {
        Arc::clone(&COMES_WITH)
    }

    fn add(&mut self, customization: &Customization, takes: impl Fn(Option<&Vec<String>>, Operation) -> bool) {
        let of_kind = self.0.entry(customization.spec.target.clone()).or_default();
        for operation in Operation::ALL {
            if let Some(script) = operation.script(&customization.spec.customizations)
                && takes(of_kind.get(&operation), operation)
            {
                of_kind.entry(operation).or_default().push(script.to_owned());
            }
        }
    }

    fn scripts(&self, object: &Value, operation: Operation) -> &[String] {
        let target = CustomizationTarget {
            api_version: meta::api_version(object).to_owned(),
            kind: meta::kind(object).to_owned(),
        };
        self.0.get(&target).and_then(|scripts| scripts.get(&operation)).map_or(&[], Vec::as_slice)
    }

    /// Whether a script answers a question about an object.
    #[must_use]
    pub fn has(&self, object: &Value, operation: Operation) -> bool {
        !self.scripts(object, operation).is_empty()
    }

    /// Whether any script is for an object's kind.
    #[must_use]
    pub fn has_any(&self, object: &Value) -> bool {
        Operation::ALL.iter().any(|operation| self.has(object, *operation))
    }

    /// Whether any script names dependencies, of whatever kinds.
    #[must_use]
    pub fn names_dependencies(&self) -> bool {
        self.0.values().any(|scripts| scripts.contains_key(&Operation::InterpretDependency))
    }

    /// The replicas of a workload; nothing for other kinds.
    ///
    /// # Errors
    ///
    /// When the script fails, or does not return a number and what one replica needs.
    pub fn replicas(&self, template: &Value) -> Result<Option<Replicas>, ScriptError> {
        let Some(script) = self.scripts(template, Operation::InterpretReplica).first() else {
            return Ok(super::replicas(template));
        };
        let [count, needs] = call(script, Operation::InterpretReplica, &[template], &[])?;
        let Given::Number(count) = count else {
            return Err(ScriptError::Result(format!("result type {} is not number", count.kind())));
        };
        let requirements = match needs {
            Given::Nil => None,
            needs => Some(table(needs, "requires").and_then(|needs| typed::<ReplicaRequirements>(needs, "requires"))?),
        };
        // As Go makes an int32 of a float64.
        #[allow(clippy::cast_possible_truncation)]
        let count = i64::from(count as i32).max(0);
        Ok(Some(Replicas { count, requirements: requirements.filter(|r| *r != ReplicaRequirements::default()) }))
    }

    /// The pod templates of a workload that has several; nothing for other kinds.
    ///
    /// # Errors
    ///
    /// When the script fails, or does not return a list of components.
    pub fn components(&self, template: &Value) -> Result<Option<Vec<Component>>, ScriptError> {
        let operation = Operation::InterpretComponent;
        let Some(script) = self.scripts(template, operation).first() else { return Ok(None) };
        let [found, _] = call(script, operation, &[template], &[])?;
        list(found, "components")?
            .into_iter()
            .map(|component| typed(component, "component"))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// Sets a member's share.
    ///
    /// # Errors
    ///
    /// When the script fails, or does not return an object.
    pub fn revise(&self, manifest: &mut Value, replicas: i64) -> Result<(), ScriptError> {
        let operation = Operation::ReviseReplica;
        let Some(script) = self.scripts(manifest, operation).first() else {
            super::revise(manifest, replicas);
            return Ok(());
        };
        let [revised, _] = call(script, operation, &[manifest, &json!(replicas)], &[manifest])?;
        *manifest = table(revised, "requires")?;
        Ok(())
    }

    /// What to write over a member's object, as [`super::merge`] with the script in place of what is known.
    ///
    /// # Errors
    ///
    /// When the script fails, or does not return an object.
    pub fn merge(&self, wanted: &Value, observed: &Value) -> Result<Value, ScriptError> {
        let operation = Operation::Retain;
        let Some(script) = self.scripts(wanted, operation).first() else { return Ok(super::merge(wanted, observed)) };
        let wanted = super::retain::books(wanted, observed);
        let [retained, _] = call(script, operation, &[&wanted, observed], &[&wanted, observed])?;
        table(retained, "requires")
    }

    /// What of an object's status is kept.
    ///
    /// # Errors
    ///
    /// When the script fails, or does not return a table.
    pub fn reflect(&self, object: &Value) -> Result<Option<Value>, ScriptError> {
        let operation = Operation::InterpretStatus;
        let Some(script) = self.scripts(object, operation).first() else { return Ok(super::reflect(object)) };
        let status = object.get("status").unwrap_or(&Value::Null);
        let [status, _] = call(script, operation, &[object], &[status])?;
        table(status, "status").map(Some)
    }

    /// Whether a member's object is well.
    ///
    /// # Errors
    ///
    /// When the script fails, or does not return true or false.
    pub fn health(&self, object: &Value) -> Result<Health, ScriptError> {
        let operation = Operation::InterpretHealth;
        let Some(script) = self.scripts(object, operation).first() else { return Ok(super::health(object)) };
        match call(script, operation, &[object], &[])? {
            [Given::Bool(true), _] => Ok(Health::Healthy),
            [Given::Bool(false), _] => Ok(Health::Unhealthy),
            [other, _] => Err(ScriptError::Result(format!("result type {} is not bool", other.kind()))),
        }
    }

    /// The status of a template, made from what members say; nothing where it has none.
    ///
    /// # Errors
    ///
    /// When the script fails, or does not return an object.
    pub fn aggregate(&self, template: &Value, items: &[AggregatedStatusItem]) -> Result<Option<Value>, ScriptError> {
        let operation = Operation::AggregateStatus;
        let Some(script) = self.scripts(template, operation).first() else {
            return Ok(super::aggregate(template, items));
        };
        let said: Vec<&AggregatedStatusItem> = items.iter().filter(|item| item.status.is_some()).collect();
        let said = serde_json::to_value(said).map_err(|error| ScriptError::Result(error.to_string()))?;
        let made_from: Vec<&Value> = std::iter::once(template).chain(said.as_array().into_iter().flatten()).collect();
        let [whole, _] = call(script, operation, &[template, &said], &made_from)?;
        Ok(table(whole, "status")?.get_mut("status").map(Value::take))
    }

    /// What else a template needs, in its own namespace.
    ///
    /// # Errors
    ///
    /// When a script fails, or names something without kind or name.
    pub fn dependencies(&self, template: &Value) -> Result<Vec<Dependency>, ScriptError> {
        let operation = Operation::InterpretDependency;
        let scripts = self.scripts(template, operation);
        if scripts.is_empty() {
            return Ok(super::dependencies(template));
        }
        let mut needed: BTreeSet<String> = BTreeSet::new();
        let mut all = Vec::new();
        for script in scripts {
            let [found, _] = call(script, operation, &[template], &[])?;
            for (at, found) in list(found, "dependencies")?.into_iter().enumerate() {
                let dependency = typed::<Dependency>(found, "dependency")?;
                let missing = [("apiVersion", &dependency.api_version), ("kind", &dependency.kind)];
                if let Some((field, _)) = missing.into_iter().find(|(_, value)| value.is_empty()) {
                    return Err(ScriptError::Result(format!("dependencies[{at}].{field}: missing required {field}")));
                }
                if dependency.name.is_empty() && dependency.label_selector.is_none() {
                    let text = "dependency can not leave name and labelSelector all empty";
                    return Err(ScriptError::Result(format!("dependencies[{at}]: {text}")));
                }
                // What is in another namespace is not brought along (Karmada v1.18.2).
                let here = dependency.namespace == meta::namespace(template);
                if here && needed.insert(serde_json::to_string(&dependency).unwrap_or_default()) {
                    all.push(dependency);
                }
            }
        }
        let key =
            |one: &Dependency| (one.api_version.clone(), one.kind.clone(), one.namespace.clone(), one.name.clone());
        all.sort_by_key(key);
        Ok(all)
    }
}

fn call(
    script: &str,
    operation: Operation,
    arguments: &[&Value],
    made_from: &[&Value],
) -> Result<[Given; 2], ScriptError> {
    script::call(script, operation.function(), arguments, made_from)
}

fn table(given: Given, what: &str) -> Result<Value, ScriptError> {
    match given {
        Given::Table(value) => Ok(value),
        other => Err(ScriptError::Result(format!("expect the returned {what} type is table but got {}", other.kind()))),
    }
}

/// A list, of which an empty one is as good as an empty map.
fn list(given: Given, what: &str) -> Result<Vec<Value>, ScriptError> {
    match table(given, what)? {
        Value::Array(items) => Ok(items),
        Value::Object(fields) if fields.is_empty() => Ok(Vec::new()),
        _ => Err(ScriptError::Result(format!("expect the returned {what} type is a list but got an object"))),
    }
}

/// What a script returned as a type. Fields that the hub does not know are left out, as Karmada does.
fn typed<T: DeserializeOwned>(value: Value, what: &str) -> Result<T, ScriptError> {
    match read::<T>(&value) {
        Ok((value, unknown)) => {
            for problem in unknown {
                tracing::debug!(%problem, what, "a script returns a field that is not known");
            }
            Ok(value)
        }
        Err(problem) => Err(ScriptError::Result(format!("the returned {what} cannot be read: {problem}"))),
    }
}

#[cfg(test)]
mod tests;
