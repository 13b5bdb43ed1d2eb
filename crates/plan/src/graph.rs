use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Action, Change, ObjectDiff, ObjectKey, Step, StepId};

/// What is to be done, and in what order.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The mesh ID.
    pub mesh: String,
    /// Whether the mesh is to be, or not to be.
    pub purpose: Purpose,
    /// The engine, with its version.
    pub engine: String,
    /// Every cluster that was looked at: those of the mesh in the order of the file, then former ones.
    pub members: Vec<Member>,
    /// In an order in which they could be carried out one by one.
    pub steps: Vec<Step>,
    /// What is touched besides.
    pub blast: Blast,
    /// What a person should know.
    pub notes: Vec<Note>,
    /// What stays although the mesh goes.
    pub leftovers: Vec<Leftover>,
}

impl Plan {
    /// Whether nothing would be written anywhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.iter().all(|step| step.action == Action::Wait)
    }

    /// Whether there is nothing to do and nothing to wait for.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.steps.is_empty()
    }

    /// Counts of steps.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let count = |action| self.steps.iter().filter(|step| step.action == action).count();
        Summary { add: count(Action::Add), change: count(Action::Change), remove: count(Action::Remove) }
    }

    /// Whether anything is taken away, so that a person should be asked.
    #[must_use]
    pub fn destroys(&self) -> bool {
        self.steps.iter().any(|step| step.action == Action::Remove)
    }

    /// The part that takes nothing away: without steps that do, and without what must not happen before those.
    #[must_use]
    pub fn without_removals(mut self) -> Self {
        let mut held = BTreeSet::new();
        self.steps.retain(|step| {
            let holds = step.action == Action::Remove || !step.after.is_disjoint(&held);
            if holds {
                held.insert(step.id.clone());
            }
            !holds
        });
        self
    }

    /// The part that concerns one cluster.
    #[must_use]
    pub fn only(mut self, cluster: &str) -> Self {
        self.steps.retain(|step| step.cluster.as_deref() == Some(cluster));
        let kept: BTreeSet<StepId> = self.steps.iter().map(|step| step.id.clone()).collect();
        self.steps.iter_mut().for_each(|step| step.after.retain(|before| kept.contains(before)));
        self
    }

    /// The document that `plan -o json` prints.
    #[must_use]
    pub fn document(&self) -> Value {
        let step = |step: &Step| {
            let mut line = json!({"id": step.id, "action": step.action, "cluster": step.cluster,
                "because": step.because, "after": step.after, "diff": step.diff});
            let commands = step.change.commands();
            if !commands.is_empty() {
                line["commands"] = json!(commands);
            }
            line
        };
        json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "Plan", "mesh": self.mesh, "purpose": self.purpose,
            "engine": self.engine, "clusters": self.members, "summary": self.summary(),
            "steps": self.steps.iter().map(step).collect::<Vec<_>>(), "blast": self.blast, "notes": self.notes,
            "leftovers": self.leftovers})
    }
}

/// Whether the mesh is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// It is.
    Apply,
    /// It is not.
    Teardown,
}

/// Counts of steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Summary {
    /// `+`
    pub add: usize,
    /// `~`
    pub change: usize,
    /// `-`
    pub remove: usize,
}

/// A cluster that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Its name in the mesh.
    pub name: String,
    /// Its network; `None` for a former cluster.
    pub network: Option<String>,
    /// Its API server.
    pub server: Option<String>,
    /// Its Kubernetes version, if it answered.
    pub version: Option<String>,
    /// Why it could not be looked at, if it could not.
    pub unreachable: Option<String>,
}

/// What a plan touches besides the objects it writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blast {
    /// Services that lose endpoints, as `namespace/name: …`.
    pub endpoints: Vec<String>,
    /// Clusters whose signing certificate is issued anew.
    pub certificates: Vec<String>,
    /// Credentials that stop working.
    pub credentials: Vec<String>,
}

impl Blast {
    /// Whether nothing is touched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && self.certificates.is_empty() && self.credentials.is_empty()
    }
}

/// Something a person should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Note {
    /// Where; `None` for the mesh as a whole.
    pub cluster: Option<String>,
    /// What.
    pub text: String,
}

/// Something that stays although the mesh goes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Leftover {
    /// Where.
    pub cluster: String,
    /// What; `None` for everything.
    pub object: Option<ObjectKey>,
    /// Why.
    pub why: String,
}

/// A step that may turn out to be unnecessary. The graph is drawn over all drafts, so that "after" holds even where
/// the step between two others has nothing to do.
pub(crate) struct Draft {
    pub(crate) id: String,
    pub(crate) cluster: Option<String>,
    pub(crate) after: Vec<String>,
    pub(crate) work: Work,
}

pub(crate) enum Work {
    Nothing,
    Do {
        action: Action,
        change: Change,
        because: String,
        diff: Vec<ObjectDiff>,
    },
    /// Necessary when something it comes after has work.
    Wait {
        change: Change,
        because: String,
        /// Or when it does not hold now.
        needed: bool,
    },
}

/// The drafts that have work, each after the nearest ones that have.
pub(crate) fn ordered(drafts: Vec<Draft>) -> Vec<Step> {
    let index: BTreeMap<String, usize> = drafts.iter().enumerate().map(|(i, d)| (d.id.clone(), i)).collect();
    debug_assert_eq!(index.len(), drafts.len(), "two drafts of one name");
    // What must come before whoever comes after this draft: itself if it has work, else what it comes after.
    let mut nearest: Vec<Option<BTreeSet<usize>>> = drafts.iter().map(|_| None).collect();
    let mut before: Vec<BTreeSet<usize>> = drafts.iter().map(|_| BTreeSet::new()).collect();
    let mut order = Vec::new();
    for start in 0..drafts.len() {
        let mut stack = vec![(start, false)];
        while let Some((at, ready)) = stack.pop() {
            if nearest[at].is_some() {
                continue;
            }
            let parents = || drafts[at].after.iter().filter_map(|id| index.get(id).copied());
            if !ready {
                stack.push((at, true));
                let open: Vec<_> = parents().filter(|p| nearest[*p].is_none()).collect();
                debug_assert!(stack.len() <= drafts.len() * drafts.len() + 2, "steps wait for each other");
                // In reverse, so that the first parent is finished first.
                stack.extend(open.into_iter().rev().filter(|p| *p != at).map(|p| (p, false)));
                continue;
            }
            let above: BTreeSet<usize> = parents().filter_map(|p| nearest[p].clone()).flatten().collect();
            let works = match &drafts[at].work {
                Work::Nothing => false,
                Work::Do { .. } => true,
                Work::Wait { needed, .. } => *needed || !above.is_empty(),
            };
            if works {
                order.push(at);
                before[at] = above;
                nearest[at] = Some([at].into());
            } else {
                nearest[at] = Some(above);
            }
        }
    }
    let ids: Vec<StepId> = drafts.iter().map(|d| StepId(d.id.clone())).collect();
    let mut drafts: Vec<Option<Draft>> = drafts.into_iter().map(Some).collect();
    let step = |at: usize| {
        let Draft { cluster, work, .. } = drafts[at].take()?;
        let after = before[at].iter().map(|b| ids[*b].clone()).collect();
        let (action, change, because, diff) = match work {
            Work::Nothing => return None,
            Work::Do { action, change, because, diff } => (action, change, because, diff),
            Work::Wait { change, because, .. } => (Action::Wait, change, because, vec![]),
        };
        Some(Step { id: ids[at].clone(), action, cluster, change, after, because, diff })
    };
    order.into_iter().filter_map(step).collect()
}
