//! What `check` found, as people read it: grouped, with a mark before every line, then what to do first.

use stolos_check::diagnose::{CheckReport, CheckResult, Finding, Group, Outcome, Severity};

use crate::screen::{Screen, Tone, count};

/// Every cause that was looked for by group; with `all` also those that this mesh cannot have.
pub(crate) fn check(screen: &Screen, report: &CheckReport, all: bool) -> String {
    let mut text = String::new();
    for cluster in report.clusters.iter().filter(|c| c.unreachable.is_some()) {
        let why = cluster.unreachable.as_deref().unwrap_or_default();
        text += &format!(
            "{} {} did not answer: {}\n",
            screen.data_tone(Tone::Bad, "×"),
            cluster.name,
            crate::failure::plainly(why)
        );
    }
    for group in Group::ALL {
        let checks: Vec<_> =
            report.checks.iter().filter(|c| c.group == group && (all || c.result != Outcome::NotApplicable)).collect();
        if checks.is_empty() {
            continue;
        }
        let title = group.title();
        let heading = format!("{title}\n{}", "-".repeat(title.len()));
        if !text.is_empty() {
            text.push('\n');
        }
        text += &format!("{}\n", screen.data_tone(Tone::Strong, &heading));
        for check in checks {
            text += &one(screen, report, check);
        }
    }
    text + &closing(screen, report)
}

fn one(screen: &Screen, report: &CheckReport, check: &CheckResult) -> String {
    match check.result {
        Outcome::Healthy => format!("{} {} {}\n", screen.data_tone(Tone::Good, "√"), check.id, check.healthy),
        Outcome::NotApplicable => {
            format!("{} {} {}: not in this mesh\n", screen.data_tone(Tone::Dim, "-"), check.id, check.healthy)
        }
        Outcome::NotMeasured => {
            let mut text =
                format!("{} {} not measured: {}\n", screen.data_tone(Tone::Warn, "?"), check.id, check.healthy);
            text += &gaps(screen, report, check);
            text
        }
        Outcome::Found => {
            let found: Vec<_> = report.findings.iter().filter(|f| f.id == check.id).collect();
            let worst = found.iter().map(|f| f.severity).min().unwrap_or(Severity::Info);
            let mut text = format!("{} {} {}\n", mark(screen, worst), check.id, check.title);
            for finding in found {
                text += &lines(finding);
            }
            text += &gaps(screen, report, check);
            text
        }
    }
}

fn mark(screen: &Screen, severity: Severity) -> String {
    match severity {
        Severity::Error => screen.data_tone(Tone::Bad, "×"),
        Severity::Warning => screen.data_tone(Tone::Warn, "‼"),
        Severity::Info => screen.data_tone(Tone::Dim, "i"),
    }
}

fn lines(finding: &Finding) -> String {
    let place: Vec<_> = finding.cluster.iter().chain(&finding.object).map(String::as_str).collect();
    let mut text = format!("    {}: {}\n", place.join(", "), crate::failure::plainly(&finding.seen));
    if let Some(since) = &finding.since {
        text += &format!("      since: {since}\n");
    }
    if let Some(follows) = finding.follows {
        text += &format!("      follows from {follows}\n");
    }
    text + &format!("      to mend: {}\n", finding.mend)
}

/// What could not be measured, as long as it is worth reading. That a cluster did not answer is said once, at the top.
fn gaps(screen: &Screen, report: &CheckReport, check: &CheckResult) -> String {
    const MANY: usize = 3;
    let answered = |name: &Option<String>| {
        report.clusters.iter().all(|c| c.unreachable.is_none() || Some(&c.name) != name.as_ref())
    };
    let gaps: Vec<_> = check.not_measured.iter().filter(|gap| answered(&gap.cluster)).collect();
    let mut text = String::new();
    for gap in gaps.iter().take(MANY) {
        let place = gap.cluster.as_ref().map(|c| format!("{c}: ")).unwrap_or_default();
        let line = format!("    not measured: {place}{}", crate::failure::plainly(&gap.why));
        text += &format!("{}\n", screen.data_tone(Tone::Dim, &line));
    }
    if let Some(more) = gaps.len().checked_sub(MANY).filter(|more| *more > 0) {
        text += &format!("{}\n", screen.data_tone(Tone::Dim, &format!("    and {more} more")));
    }
    text
}

fn closing(screen: &Screen, report: &CheckReport) -> String {
    let summary = report.summary;
    let not_measured = match summary.not_measured {
        0 => String::new(),
        some => format!("; {} not measured", count(some, "cause")),
    };
    let time = std::time::Duration::from_millis(report.duration_ms).as_secs_f64();
    let Some(first) = report.findings.iter().find(|f| f.severity != Severity::Info) else {
        let tone = if summary.not_measured == 0 { Tone::Good } else { Tone::Warn };
        let notes = if summary.infos > 0 { format!("; {}", count(summary.infos, "note")) } else { String::new() };
        let line = format!("no cause of failure found: {} excluded{not_measured}{notes}; {time:.1} s", summary.healthy);
        return format!("\n{}\n", screen.data_tone(tone, &line));
    };
    let line = format!(
        "{} and {}{not_measured}; {time:.1} s",
        count(summary.errors, "error"),
        count(summary.warnings, "warning")
    );
    let place = first.cluster.as_ref().map(|c| format!(" in {c}")).unwrap_or_default();
    format!(
        "\n{}\n\nBegin with {}{place}: {}\n  {}\n  {}\n  `stolos explain {}` says more\n",
        screen.data_tone(Tone::Bad, &line),
        first.id,
        first.title,
        first.why,
        first.mend,
        first.id
    )
}
