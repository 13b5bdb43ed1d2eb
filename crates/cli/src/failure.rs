//! Why a command could not do what it was asked, as a short letter: what we wanted, what is in the way, what to do.

use std::error::Error;
use std::fmt;

use crate::exit::Exit;

/// A command's end, with the reason and the advice kept apart.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What was wanted, then what was in the way, from the outside in.
    chain: Vec<String>,
    hints: Vec<String>,
    exit: Exit,
    /// Whether the text is a letter already (a file's problems), printed as it is.
    whole: bool,
}

impl Failure {
    /// A failure that nothing else caused.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { chain: vec![what.into()], hints: Vec::new(), exit: Exit::Error, whole: false }
    }

    /// Somebody pressed Ctrl-C before it was done.
    pub(crate) fn interrupted() -> Self {
        Self { exit: Exit::Interrupted, ..Self::new("interrupted") }
    }

    /// What a chain of errors says, each part once.
    pub(crate) fn caused(error: &(dyn Error + 'static)) -> Self {
        let mut chain: Vec<String> = Vec::new();
        let mut next = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            // Many libraries repeat their cause in their own text.
            if !chain.iter().any(|earlier| earlier.contains(&text)) {
                chain.push(text);
            }
            next = error.source();
        }
        Self { chain, hints: Vec::new(), exit: Exit::Error, whole: false }
    }

    /// Puts what was wanted before what was in the way.
    pub(crate) fn while_doing(mut self, what: impl Into<String>) -> Self {
        self.chain.insert(0, what.into());
        self
    }

    /// Adds what was in the way.
    pub(crate) fn because(mut self, why: impl Into<String>) -> Self {
        self.chain.push(why.into());
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    pub(crate) fn exit_with(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }
}

/// What a library said, without its own names for its own layers.
pub(crate) fn plainly(text: &str) -> String {
    let mut text = text.to_owned();
    for layer in ["ServiceError: ", "client error (Connect): ", "HyperError: "] {
        text = text.replace(layer, "");
    }
    text
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.whole {
            return f.write_str(&self.chain.concat());
        }
        for (depth, text) in self.chain.iter().enumerate() {
            let text = plainly(text.trim_end()).replace('\n', "\n  ");
            if depth == 0 { write!(f, "error: {text}")? } else { write!(f, "\n  {text}")? }
        }
        for hint in &self.hints {
            write!(f, "\nhint: {}", hint.replace('\n', "\n  "))?;
        }
        Ok(())
    }
}

impl From<stolos_spec::Problems> for Failure {
    fn from(problems: stolos_spec::Problems) -> Self {
        let many = match problems.len() {
            0 | 1 => String::new(),
            count => format!("\n\n{count} problems; nothing was touched"),
        };
        Self { whole: true, ..Self::new(format!("{problems}{many}")) }
    }
}

impl From<stolos_cluster::Error> for Failure {
    fn from(error: stolos_cluster::Error) -> Self {
        use stolos_cluster::Error as E;
        let failure = Self::caused(&error);
        match &error {
            E::NoKubeconfig { looked } => {
                let looked: Vec<_> = looked.iter().map(|p| format!("`{}`", p.display())).collect();
                let looked = if looked.is_empty() { "nowhere".to_owned() } else { looked.join(", ") };
                failure
                    .hint(format!("looked at {looked}; name one with `--kubeconfig FILE` or `export KUBECONFIG=FILE`"))
                    .hint("no clusters at hand? `stolos lab up -f FILE` makes those a mesh file names")
            }
            E::NoContext { have, .. } => match have.as_slice() {
                [] => failure.hint("there are no contexts in it; name another file with `--kubeconfig FILE`"),
                some => failure
                    .hint(format!("there is {}", some.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", "))),
            },
            E::NoAnswer { .. } => failure.exit_with(Exit::TimedOut),
            _ => failure,
        }
    }
}

impl From<stolos_hub::Error> for Failure {
    fn from(error: stolos_hub::Error) -> Self {
        use stolos_hub::Error as E;
        match error {
            E::Cluster(error) => error.into(),
            E::NotYet { .. } => Self::caused(&error).exit_with(Exit::TimedOut),
            _ => Self::caused(&error),
        }
    }
}

impl From<stolos_apply::Error> for Failure {
    fn from(error: stolos_apply::Error) -> Self {
        use stolos_apply::Error as E;
        match error {
            E::Blocked(blocked) => blocked.into(),
            E::Locked { .. } => Self::caused(&error).hint("wait until they are done, or until the Lease expires"),
            E::FolderInUse(_) => {
                Self::caused(&error).hint("wait until it is done, or use another folder with `--state DIR`")
            }
            E::NoProgram { .. } | E::OldProgram { .. } | E::Program { .. } => Self::caused(&error)
                .hint(
                    "https://helm.sh/docs/intro/install and https://istio.io/latest/docs/setup/getting-started say how to get them; \
                     `STOLOS_HELM` and `STOLOS_ISTIOCTL` name one that is not in PATH",
                )
                .hint("nothing was touched; `stolos plan` needs no program"),
            E::Changed { .. } => Self::caused(&error).hint("`stolos plan` shows what it would be now"),
            _ => Self::caused(&error),
        }
    }
}

impl From<stolos_check::Error> for Failure {
    fn from(error: stolos_check::Error) -> Self {
        use stolos_check::Error as E;
        match &error {
            E::Interrupted => Self::interrupted(),
            E::ProbeNotReady { cluster, .. } => Self::caused(&error).exit_with(Exit::TimedOut).hint(format!(
                "`stolos status` says what is wrong with `{cluster}`; `--keep` leaves the probe's pods for a look"
            )),
            _ => Self::caused(&error),
        }
    }
}

impl From<stolos_lab::Error> for Failure {
    fn from(error: stolos_lab::Error) -> Self {
        use stolos_lab::Error as E;
        match &error {
            E::Running { state, .. } => {
                Self::caused(&error).hint(format!("`stolos lab down --state {}` ends it", state.display()))
            }
            E::NotRunning { .. } => Self::caused(&error).hint("`stolos lab up -f FILE --detach` starts one"),
            _ => Self::caused(&error),
        }
    }
}

impl From<stolos_plan::Blocked> for Failure {
    fn from(blocked: stolos_plan::Blocked) -> Self {
        let mut failure = Self::new("nothing can be changed as things stand");
        for problem in &blocked.problems {
            let place = problem.cluster.as_ref().map(|c| format!("`{c}`: ")).unwrap_or_default();
            failure.chain.push(format!("{place}{} [{}]", problem.text, problem.id));
            failure.hints.extend(problem.ways.iter().cloned());
        }
        if let Some(first) = blocked.problems.first() {
            failure.hints.push(format!("`stolos explain {}` says more", first.id));
        }
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("could not join `oslo`")]
    struct Outer(#[source] Inner);
    #[derive(Debug, thiserror::Error)]
    #[error("connection refused")]
    struct Inner;

    #[test]
    fn a_failure_is_a_short_letter() {
        let failure = Failure::caused(&Outer(Inner)).hint("try `stolos status`");
        insta::assert_snapshot!(failure, @r#"
        error: could not join `oslo`
          connection refused
        hint: try `stolos status`
        "#);
    }
}
