//! Which resources are served: the built-in kinds and those that CustomResourceDefinitions add.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use serde_json::Value;
use stolos_k8s::kind::{self, ALL_VERBS};

use crate::cel::LazyRules;
use crate::naming;
use crate::rules::Schema;
use crate::usage;

/// The resource of CustomResourceDefinitions.
pub(crate) const CRDS: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// A resource at one served version.
#[derive(Debug)]
pub(crate) struct Resource {
    /// The API group, empty for core.
    pub(crate) group: String,
    /// The version it is asked for in.
    pub(crate) version: String,
    /// The group its objects are stored in: its own, but for `events.k8s.io`.
    pub(crate) stored_group: String,
    /// The version its objects are stored in.
    pub(crate) stored_version: String,
    /// The kind.
    pub(crate) kind: String,
    /// The kind of its lists.
    pub(crate) list_kind: String,
    /// The plural, as in paths.
    pub(crate) plural: String,
    /// The singular.
    pub(crate) singular: String,
    /// Short names.
    pub(crate) short_names: Vec<String>,
    /// Categories.
    pub(crate) categories: Vec<String>,
    /// Whether its objects have namespaces.
    pub(crate) namespaced: bool,
    /// Verbs.
    pub(crate) verbs: Vec<String>,
    /// Subresources.
    pub(crate) subresources: Vec<Subresource>,
    /// Where its objects are stored: `pods`, `deployments.apps`.
    pub(crate) storage: Arc<str>,
    /// Whether `status` is written apart.
    pub(crate) has_status: bool,
    /// Whether `metadata.generation` is kept.
    pub(crate) has_generation: bool,
    /// What its CustomResourceDefinition says, if it has one.
    pub(crate) custom: Option<Custom>,
}

/// Something below an object.
#[derive(Debug, Clone)]
pub(crate) struct Subresource {
    /// The last part of the path.
    pub(crate) name: String,
    /// Group, version and kind of what it takes and gives.
    pub(crate) gvk: (String, String, String),
    /// Verbs.
    pub(crate) verbs: Vec<String>,
}

/// The part of a CustomResourceDefinition that concerns one version.
#[derive(Debug)]
pub(crate) struct Custom {
    /// The structural schema; none for `preserveUnknownFields` at the top.
    pub(crate) schema: Option<Schema>,
    /// The rules in CEL of that schema.
    pub(crate) rules: LazyRules,
    /// `additionalPrinterColumns`.
    pub(crate) columns: Vec<Value>,
    /// `subresources.scale`.
    pub(crate) scale: Option<Value>,
    /// `selectableFields`: paths such as `.spec.color`.
    pub(crate) selectable: Vec<String>,
}

impl Resource {
    /// `v1`, `apps/v1` as asked for.
    #[must_use]
    pub(crate) fn api_version(&self) -> String {
        kind::api_version(&self.group, &self.version)
    }

    /// `v1`, `apps/v1` as stored.
    #[must_use]
    pub(crate) fn stored_api_version(&self) -> String {
        kind::api_version(&self.stored_group, &self.stored_version)
    }

    /// The subresource of that name.
    #[must_use]
    pub(crate) fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|sub| sub.name == name)
    }

    /// Whether objects are kept, not just answered.
    #[must_use]
    pub(crate) fn is_stored(&self) -> bool {
        self.group != usage::GROUP && self.verbs.iter().any(|verb| verb == "get")
    }

    fn built_in(kind: &kind::Kind) -> Self {
        // One kind in two groups, stored once.
        let is_event = (kind.group, kind.plural) == ("events.k8s.io", "events");
        let owned = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
        let subresources = kind.subresources.iter().map(|sub| Subresource {
            name: sub.name.into(),
            gvk: (sub.group.into(), sub.version.into(), sub.kind.into()),
            verbs: owned(sub.verbs),
        });
        Self {
            group: kind.group.into(),
            version: kind.version.into(),
            stored_group: if is_event { "" } else { kind.group }.into(),
            stored_version: kind.version.into(),
            kind: kind.kind.into(),
            list_kind: format!("{}List", kind.kind),
            plural: kind.plural.into(),
            singular: kind.singular.into(),
            short_names: owned(kind.short_names),
            categories: owned(kind.categories),
            namespaced: kind.namespaced,
            verbs: owned(kind.verbs),
            subresources: subresources.collect(),
            storage: if is_event { "events".into() } else { kind.group_resource().into() },
            has_status: kind.has_status(),
            has_generation: kind.has_generation(),
            custom: None,
        }
    }
}

/// Every served resource by group, version and plural.
#[derive(Debug, Default, Clone)]
pub(crate) struct Table {
    /// By plural, so that one is found without making a key: few plurals are in two groups or versions.
    resources: HashMap<String, Vec<Arc<Resource>>>,
    /// Groups in discovery order, each with its versions, the preferred one first.
    pub(crate) groups: BTreeMap<String, Vec<String>>,
}

impl Table {
    /// The resource at a path.
    #[must_use]
    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.resources.get(plural)?.iter().find(|found| found.group == group && found.version == version)
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values().flatten()
    }

    /// The resource with that kind.
    #[must_use]
    pub(crate) fn find_kind(&self, api_version: &str, kind: &str) -> Option<&Arc<Resource>> {
        let (group, version) = kind::split_api_version(api_version);
        self.all().find(|r| r.group == group && r.version == version && r.kind == kind)
    }

    /// Some served version of a stored resource such as `deployments.apps`.
    #[must_use]
    pub(crate) fn find_stored(&self, storage: &str) -> Option<&Arc<Resource>> {
        self.all().find(|r| &*r.storage == storage && r.group == r.stored_group)
    }

    /// The other versions (and groups) that the same objects are served in.
    #[must_use]
    pub(crate) fn equivalents(&self, resource: &Resource) -> Vec<Arc<Resource>> {
        let same = |other: &&Arc<Resource>| {
            other.storage == resource.storage && (&other.group, &other.version) != (&resource.group, &resource.version)
        };
        let mut found: Vec<_> = self.all().filter(same).cloned().collect();
        found.sort_by(|a, b| (&a.group, &a.version).cmp(&(&b.group, &b.version)));
        found
    }

    /// The resources of a group and version, by name.
    #[must_use]
    pub(crate) fn of_version(&self, group: &str, version: &str) -> Vec<Arc<Resource>> {
        let mut found: Vec<_> = self.all().filter(|r| r.group == group && r.version == version).cloned().collect();
        found.sort_by(|a, b| a.plural.cmp(&b.plural));
        found
    }

    /// One entry per stored resource, by name.
    #[must_use]
    pub(crate) fn stored(&self) -> Vec<Arc<Resource>> {
        let mut found: BTreeMap<&str, &Arc<Resource>> = BTreeMap::new();
        for resource in self.all().filter(|r| r.is_stored() && r.group == r.stored_group) {
            found.insert(&resource.storage, resource);
        }
        found.into_values().cloned().collect()
    }

    fn add(&mut self, resource: Resource) {
        let versions = self.groups.entry(resource.group.clone()).or_default();
        if !versions.contains(&resource.version) {
            versions.push(resource.version.clone());
            versions.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
        }
        let same = self.resources.entry(resource.plural.clone()).or_default();
        same.retain(|other| (&other.group, &other.version) != (&resource.group, &resource.version));
        same.push(Arc::new(resource));
    }
}

/// The table of now. Readers take a snapshot.
#[derive(Debug)]
pub(crate) struct Registry {
    table: RwLock<Arc<Table>>,
    /// Whether what pods use is served.
    measured: AtomicBool,
}

impl Registry {
    /// The built-in kinds and the given CustomResourceDefinitions.
    #[must_use]
    pub(crate) fn new<'a>(crds: impl IntoIterator<Item = &'a Value>) -> Self {
        Self { table: RwLock::new(Arc::new(table(crds))), measured: AtomicBool::new(false) }
    }

    /// The table of now.
    #[must_use]
    pub(crate) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Serves exactly these CustomResourceDefinitions from now on.
    pub(crate) fn replace<'a>(&self, crds: impl IntoIterator<Item = &'a Value>) {
        let mut table = table(crds);
        // Under the lock, so that a change of `measured` is not lost between.
        let mut current = self.table.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.measured.load(Ordering::Acquire) {
            usage::resources().into_iter().for_each(|resource| table.add(resource));
        }
        *current = Arc::new(table);
    }

    /// From now on serves what pods use, or does not.
    pub(crate) fn measure(&self, measured: bool) {
        let mut current = self.table.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.measured.swap(measured, Ordering::AcqRel) == measured {
            return;
        }
        let mut table = Table::clone(&current);
        if measured {
            usage::resources().into_iter().for_each(|resource| table.add(resource));
        } else {
            table.resources.values_mut().for_each(|same| same.retain(|resource| resource.group != usage::GROUP));
            table.groups.remove(usage::GROUP);
        }
        *current = Arc::new(table);
    }
}

fn table<'a>(crds: impl IntoIterator<Item = &'a Value>) -> Table {
    let mut table = Table::default();
    for kind in kind::all() {
        table.add(Resource::built_in(kind));
    }
    for crd in crds {
        for resource in custom(crd) {
            table.add(resource);
        }
    }
    table
}

/// The served versions of a CustomResourceDefinition.
fn custom(crd: &Value) -> Vec<Resource> {
    if !naming::is_established(crd) {
        return Vec::new();
    }
    let spec = &crd["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let texts = |value: &Value| value.as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    // Those that it has, not those that it asks for.
    let names = Some(&crd["status"]["acceptedNames"]).filter(|names| names.is_object()).unwrap_or(&spec["names"]);
    let group = text(&spec["group"]);
    let (plural, kind) = (text(&names["plural"]), text(&names["kind"]));
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(stored) = versions.iter().find(|v| v["storage"] == true) else { return Vec::new() };
    let terminating = crd["metadata"]["deletionTimestamp"].is_string();
    let mut verbs: Vec<String> = ALL_VERBS.iter().map(|&v| v.to_owned()).collect();
    if terminating {
        verbs.retain(|verb| verb != "create");
    }
    let served = versions.iter().filter(|v| v["served"] == true);
    served
        .map(|version| {
            let name = text(&version["name"]);
            let gvk = (group.clone(), name.clone(), kind.clone());
            let read_write: Vec<String> = ["get", "patch", "update"].map(str::to_owned).into();
            let mut subresources = Vec::new();
            let has_status = version["subresources"]["status"].is_object();
            if has_status {
                subresources.push(Subresource { name: "status".into(), gvk, verbs: read_write.clone() });
            }
            let scale = version["subresources"]["scale"].as_object().map(|s| Value::Object(s.clone()));
            if scale.is_some() {
                let gvk = ("autoscaling".into(), "v1".into(), "Scale".into());
                subresources.push(Subresource { name: "scale".into(), gvk, verbs: read_write });
            }
            let schema = version["schema"].get("openAPIV3Schema").and_then(Schema::read);
            let selectable = version["selectableFields"].as_array().into_iter().flatten();
            Resource {
                group: group.clone(),
                version: name,
                stored_group: group.clone(),
                stored_version: text(&stored["name"]),
                kind: kind.clone(),
                list_kind: names["listKind"].as_str().map_or_else(|| format!("{kind}List"), str::to_owned),
                plural: plural.clone(),
                singular: names["singular"].as_str().map_or_else(|| kind.to_lowercase(), str::to_owned),
                short_names: texts(&names["shortNames"]),
                categories: texts(&names["categories"]),
                namespaced: spec["scope"] == "Namespaced",
                verbs: verbs.clone(),
                subresources,
                storage: kind::group_resource(&group, &plural).into(),
                has_status,
                has_generation: true,
                custom: Some(Custom {
                    schema,
                    rules: LazyRules::new(&version["schema"]["openAPIV3Schema"]),
                    columns: version["additionalPrinterColumns"].as_array().cloned().unwrap_or_default(),
                    scale,
                    selectable: selectable.map(|f| text(&f["jsonPath"])).collect(),
                }),
            }
        })
        .collect()
}

/// Kubernetes' order of versions: v2 > v1 > v1beta2 > v1beta1 > v1alpha3 > anything else.
fn version_rank(version: &str) -> (u8, u32, u8, u32, std::cmp::Reverse<String>) {
    let other = (0, 0, 0, 0, std::cmp::Reverse(version.to_owned()));
    let Some(rest) = version.strip_prefix('v') else { return other };
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let Ok(major) = rest[..digits].parse() else { return other };
    let rest = &rest[digits..];
    let (stage, minor) = if let Some(n) = rest.strip_prefix("beta") {
        (2, n)
    } else if let Some(n) = rest.strip_prefix("alpha") {
        (1, n)
    } else if rest.is_empty() {
        (3, "0")
    } else {
        return other;
    };
    let Ok(minor) = minor.parse() else { return other };
    (stage, major, 0, minor, std::cmp::Reverse(String::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_kubernetes_orders_them() {
        let mut versions = ["v1alpha3", "foo", "v1", "v1beta1", "v2", "v1beta2", "v11"];
        versions.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
        assert_eq!(versions, ["v11", "v2", "v1", "v1beta2", "v1beta1", "v1alpha3", "foo"]);
    }
}
