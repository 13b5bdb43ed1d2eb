//! A plan as people read it.

use std::fmt::Write as _;

use crate::release::hidden;
use crate::{Action, Change, Plan, Purpose, Step};

/// How a plan is printed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Show {
    /// With ANSI colours.
    pub color: bool,
    /// Every object of every step, not only those that change.
    pub objects: bool,
}

impl Show {
    /// The plan as text.
    #[must_use]
    pub fn text(self, plan: &Plan) -> String {
        let mut out = String::new();
        self.head(plan, &mut out);
        if plan.is_empty() {
            out.push_str(match plan.purpose {
                Purpose::Apply => "No changes: the clusters match the mesh.\n",
                Purpose::Teardown => "No changes: nothing of the mesh is left.\n",
            });
        }
        self.group(plan, None, "state folder", &mut out);
        for member in &plan.members {
            self.group(plan, Some(&member.name), &member.name, &mut out);
        }
        self.consequences(plan, &mut out);
        if !plan.is_empty() {
            let sum = plan.summary();
            let _ = writeln!(out, "Plan: {} to add, {} to change, {} to remove.", sum.add, sum.change, sum.remove);
        }
        out
    }

    fn head(self, plan: &Plan, out: &mut String) {
        let _ = writeln!(out, "Mesh {}, engine {}", self.bold(&plan.mesh), plan.engine);
        let width = plan.members.iter().map(|m| m.name.len()).max().unwrap_or_default();
        for member in &plan.members {
            let server = member.server.as_deref().unwrap_or("unknown address");
            let tail = match (&member.unreachable, &member.network, &member.version) {
                (Some(why), ..) => format!("not reachable: {why}"),
                (None, None, _) => "no longer in the mesh file".to_owned(),
                (None, Some(network), version) => {
                    format!("{network}, Kubernetes {}", version.as_deref().unwrap_or("unknown"))
                }
            };
            let _ = writeln!(out, "  {:width$}  {server}  {tail}", member.name);
        }
        out.push('\n');
    }

    fn group(self, plan: &Plan, cluster: Option<&str>, title: &str, out: &mut String) {
        // Waits are of interest when there is nothing else, or when everything is asked for.
        let waits = self.objects || plan.is_empty();
        let of_interest = |step: &&Step| step.cluster.as_deref() == cluster && (waits || step.action != Action::Wait);
        let steps: Vec<&Step> = plan.steps.iter().filter(of_interest).collect();
        if steps.is_empty() {
            return;
        }
        let _ = writeln!(out, "{}", self.bold(title));
        let width = steps.iter().map(|s| s.id.as_str().chars().count()).max().unwrap_or_default();
        for step in steps {
            let line = format!("{} {:width$}  {}", step.action.symbol(), step.id, step.because);
            let _ = writeln!(out, "  {}", self.paint(step.action, &line));
            for command in step.change.commands() {
                // The rest is the same for all.
                let command = match command.split_once(" --namespace") {
                    Some((telling, _)) if !self.objects => format!("{telling} …"),
                    _ => command,
                };
                let _ = writeln!(out, "      {}", self.escape("2", &format!("$ {command}")));
            }
            let given = match step.change.inner() {
                Change::Install { release, .. } => Some(&release.values),
                Change::Operate { operator, .. } => Some(&operator.document["spec"]),
                _ => None,
            };
            if let Some(given) = given.filter(|_| self.objects) {
                let values = serde_json::to_string_pretty(&hidden(given)).unwrap_or_default();
                for line in values.lines() {
                    let _ = writeln!(out, "        {line}");
                }
            }
            for diff in &step.diff {
                let one = step.diff.len() == 1 && diff.fields.is_empty();
                if !one && (self.objects || diff.action != Action::Add || step.action == Action::Change) {
                    let _ = writeln!(
                        out,
                        "      {}",
                        self.paint(diff.action, &format!("{} {}", diff.action.symbol(), diff.object))
                    );
                }
                for field in &diff.fields {
                    let side = |side: &Option<String>| side.clone().unwrap_or_else(|| "(absent)".to_owned());
                    let _ = writeln!(out, "          {}: {} → {}", field.path, side(&field.from), side(&field.to));
                }
            }
        }
        out.push('\n');
    }

    fn consequences(self, plan: &Plan, out: &mut String) {
        let mut list = |title: &str, lines: Vec<String>| {
            if lines.is_empty() {
                return;
            }
            let _ = writeln!(out, "{}", self.bold(title));
            for line in lines {
                let _ = writeln!(out, "  {line}");
            }
            out.push('\n');
        };
        list("Services that lose endpoints", plan.blast.endpoints.clone());
        list("Certificates issued anew", plan.blast.certificates.clone());
        list("Credentials revoked", plan.blast.credentials.clone());
        let stays = plan.leftovers.iter().map(|left| match &left.object {
            Some(object) => format!("{}: {object}: {}", left.cluster, left.why),
            None => format!("{}: {}", left.cluster, left.why),
        });
        list("What stays", stays.collect());
        let notes = plan.notes.iter().map(|note| match &note.cluster {
            Some(cluster) => format!("{cluster}: {}", note.text),
            None => note.text.clone(),
        });
        list("Notes", notes.collect());
    }

    fn paint(self, action: Action, text: &str) -> String {
        let code = match action {
            Action::Add => "32",
            Action::Change => "33",
            Action::Remove => "31",
            Action::Wait => "2",
        };
        self.escape(code, text)
    }

    fn bold(self, text: &str) -> String {
        self.escape("1", text)
    }

    fn escape(self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
