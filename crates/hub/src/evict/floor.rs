//! How many replicas stay good whatever moves: what people said, else all of them.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stolos_k8s::meta;

use crate::label::MIN_AVAILABLE;
use crate::model::LabelSelector;

/// How many replicas of a workload must stay good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// So many.
    pub least: i64,
    /// Who says so.
    pub by: By,
}

/// Who says how many must stay good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum By {
    /// Nobody: all that are wanted.
    Default,
    /// Annotation `stolos.dev/min-available` of the template or of its policy.
    Annotation,
    /// A PodDisruptionBudget of the hub that selects the workload's pods.
    Budget(String),
}

impl Floor {
    /// Where nobody says anything: no good replica goes before another one is there for it.
    #[must_use]
    pub fn of_all(wanted: i64) -> Self {
        Self { least: wanted.max(0), by: By::Default }
    }

    /// The floor of a workload of which `wanted` replicas are wanted: the template's annotation, else the policy's, else the
    /// strictest budget that selects its pods, else all. It is one at least, so that a last good copy stays, and never more
    /// than is wanted: whoever scales down means it.
    ///
    /// # Errors
    ///
    /// When an annotation cannot be read; then it is all.
    pub fn of(template: &Value, policy: Option<&str>, budgets: &[&Value], wanted: i64) -> Result<Self, (Self, String)> {
        let least = |said: i64| said.clamp(1.min(wanted), wanted.max(0));
        if let Some(said) = meta::annotation(template, MIN_AVAILABLE).or(policy) {
            return match amount(&Value::String(said.to_owned()), wanted) {
                Some(said) => Ok(Self { least: least(said), by: By::Annotation }),
                None => Err((
                    Self::of_all(wanted),
                    format!(
                        "{MIN_AVAILABLE} is `{said}`; write a number of replicas, as `2`, or a part of them, as `50%`"
                    ),
                )),
            };
        }
        let strictest = budgets.iter().filter_map(|budget| {
            let spec = &budget["spec"];
            let said = match (amount(&spec["maxUnavailable"], wanted), amount(&spec["minAvailable"], wanted)) {
                (Some(most), _) => wanted - most,
                (None, Some(said)) => said,
                (None, None) => return None,
            };
            Some(Self { least: least(said), by: By::Budget(meta::name(budget).to_owned()) })
        });
        Ok(strictest.max_by_key(|floor| floor.least).unwrap_or_else(|| Self::of_all(wanted)))
    }

    /// Whether somebody said it, so that it holds even where the policy wants the old copy gone first.
    #[must_use]
    pub fn is_said(&self) -> bool {
        self.by != By::Default
    }
}

/// The disruption budgets that select a workload's pods (`policy/v1`: an empty selector selects all of the namespace).
pub fn budgets_of<'a>(template: &Value, budgets: impl IntoIterator<Item = &'a Value>) -> Vec<&'a Value> {
    let labels: std::collections::BTreeMap<String, String> =
        template.pointer("/spec/template").map(meta::labels).unwrap_or_default();
    let selects = |budget: &&Value| {
        let selector = budget.pointer("/spec/selector").filter(|selector| !selector.is_null());
        meta::namespace(budget) == meta::namespace(template)
            && selector
                .and_then(|selector| serde_json::from_value::<LabelSelector>(selector.clone()).ok())
                .is_some_and(|selector| selector.matches(&labels))
    };
    budgets.into_iter().filter(selects).collect()
}

/// A number, or a part of `all` in percent, rounded up as the disruption controller does (Kubernetes 1.33).
fn amount(said: &Value, all: i64) -> Option<i64> {
    if let Some(number) = said.as_i64() {
        return (number >= 0).then_some(number);
    }
    let text = said.as_str()?.trim();
    match text.strip_suffix('%') {
        Some(percent) => {
            let percent: i64 = percent.parse().ok().filter(|percent| (0..=100).contains(percent))?;
            Some((percent * all + 99) / 100)
        }
        None => text.parse().ok().filter(|number| *number >= 0),
    }
}
