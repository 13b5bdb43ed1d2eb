//! The report as other programs read it.

use serde_json::{Value, json};

use super::{CAUSES, CheckReport, Outcome, Severity};

/// As test results: one case for each cause; what was not measured is skipped, never passed.
#[must_use]
pub fn junit(report: &CheckReport) -> String {
    let escape = |text: &str| {
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
        // XML 1.0 has no other control characters.
        text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect::<String>()
    };
    let (mut cases, mut failures, mut skipped) = (String::new(), 0, 0);
    for check in &report.checks {
        let name = escape(&format!("{} {}", check.id, check.healthy));
        let class = escape(check.group.title());
        let inside = match check.result {
            Outcome::Healthy => String::new(),
            Outcome::NotApplicable => {
                skipped += 1;
                "<skipped message=\"this mesh cannot have it\"/>".to_owned()
            }
            Outcome::NotMeasured => {
                skipped += 1;
                let why: Vec<_> = check.not_measured.iter().map(|g| g.why.as_str()).collect();
                format!("<skipped message=\"not measured: {}\"/>", escape(&why.join("; ")))
            }
            Outcome::Found => {
                let of = report.findings.iter().filter(|f| f.id == check.id);
                let lines: Vec<_> = of
                    .clone()
                    .map(|f| format!("{}: {} ({})", f.cluster.as_deref().unwrap_or("mesh"), f.seen, f.mend))
                    .collect();
                // What is no fault fails no build.
                if of.clone().all(|f| f.severity == Severity::Info) {
                    format!("<system-out>{}</system-out>", escape(&lines.join("\n")))
                } else {
                    failures += 1;
                    format!("<failure message=\"{}\">{}</failure>", escape(check.title), escape(&lines.join("\n")))
                }
            }
        };
        cases += &format!("  <testcase classname=\"{class}\" name=\"{name}\">{inside}</testcase>\n");
    }
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"stolos check {}\" tests=\"{}\" failures=\"{failures}\" skipped=\"{skipped}\" time=\"{:.3}\">\n{cases}</testsuite>\n",
        escape(&report.mesh),
        report.checks.len(),
        std::time::Duration::from_millis(report.duration_ms).as_secs_f64(),
    )
}

/// As SARIF 2.1.0, for code scanning. `file` is the mesh file: findings have no line of their own in it.
#[must_use]
pub fn sarif(report: &CheckReport, file: &str) -> Value {
    let level = |severity| match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "note",
    };
    let rules = CAUSES.iter().map(|c| {
        json!({
            "id": c.id, "name": c.title,
            "shortDescription": {"text": c.title},
            "fullDescription": {"text": c.why},
            "help": {"text": format!("{}\n\n{}\n\n{}", c.shows, c.why, c.mend)},
            "defaultConfiguration": {"level": level(c.severity)},
        })
    });
    let results = report.findings.iter().map(|f| {
        let place = f.cluster.as_deref().unwrap_or(&report.mesh);
        let name = f.object.as_ref().map_or(place.to_owned(), |object| format!("{place}/{object}"));
        json!({
            "ruleId": f.id,
            "ruleIndex": CAUSES.iter().position(|c| c.id == f.id),
            "level": level(f.severity),
            "message": {"text": format!("{}: {}. To mend: {}", place, f.seen, f.mend)},
            "locations": [{
                "physicalLocation": {"artifactLocation": {"uri": file}},
                "logicalLocations": [{"fullyQualifiedName": name, "kind": "resource"}],
            }],
            "partialFingerprints": {"stolos/v1": name.clone() + " " + f.id},
        })
    });
    let notes = report.checks.iter().filter(|c| c.result == Outcome::NotMeasured).map(|c| {
        let why: Vec<_> = c.not_measured.iter().map(|g| g.why.as_str()).collect();
        json!({"descriptor": {"id": c.id}, "level": "warning", "message": {"text": format!("not measured: {}", why.join("; "))}})
    });
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "stolos", "version": env!("CARGO_PKG_VERSION"), "rules": rules.collect::<Vec<_>>()}},
            "invocations": [{"executionSuccessful": true, "toolConfigurationNotifications": notes.collect::<Vec<_>>()}],
            "results": results.collect::<Vec<_>>(),
        }],
    })
}
