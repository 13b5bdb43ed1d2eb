//! Causes seeded in snapshots: from a healthy mesh, one thing is changed, and the check must name that first. All sixty,
//! also those that no lab can have; and healthy meshes of many shapes, of which nothing may be said.

mod archive;
mod healthy;
mod seeds;

use proptest::prelude::*;

use self::healthy::{Shape, World};
use super::*;

fn options() -> CheckOptions {
    CheckOptions { apply: "stolos apply -f mesh.yaml".to_owned(), ..CheckOptions::default() }
}

fn words(report: &CheckReport) -> Vec<String> {
    let place = |f: &Finding| f.cluster.clone().unwrap_or_default();
    report.findings.iter().map(|f| format!("{} {} {:?} {}", f.id, place(f), f.object, f.seen)).collect()
}

/// Every cause, seeded alone, is named first; what is said beside it is said to follow from it.
#[test]
fn every_cause_is_named_first() {
    let (mut named, mut said, mut right, mut missed) = (0, 0, 0, Vec::new());
    for (id, shape, seed) in seeds::SEEDS {
        let mut world = World::new(shape());
        seed(&mut world);
        let report = world.report(&options());
        match report.findings.first() {
            Some(first) if first.id == *id => named += 1,
            _ => missed.push(format!("{id}: {:#?}", words(&report))),
        }
        said += report.findings.len();
        let belongs = |f: &&Finding| f.id == *id || f.follows.is_some();
        right += report.findings.iter().filter(belongs).count();
        for finding in report.findings.iter().filter(|f| !belongs(f)) {
            missed.push(format!("{id}: also {} {}", finding.id, finding.seen));
        }
        // What is said is worth reading.
        for finding in &report.findings {
            assert!(!finding.mend.is_empty() && !finding.seen.is_empty() && !finding.why.is_empty());
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
    assert_eq!((named, right), (seeds::SEEDS.len(), said));
    let seeded: std::collections::BTreeSet<_> = seeds::SEEDS.iter().map(|(id, ..)| *id).collect();
    let unseeded: Vec<_> = CAUSES.iter().map(|c| c.id).filter(|id| !seeded.contains(id)).collect();
    assert!(unseeded.is_empty(), "nothing seeds {unseeded:?}");
}

fn shapes() -> impl Strategy<Value = Shape> {
    (
        prop::collection::vec(0..3usize, 1..6),
        any::<bool>(),
        prop::sample::select(vec!["1.26.4", "1.28.0", "1.30.3"]),
        prop::collection::vec(any::<bool>(), 10),
        1..4usize,
    )
        .prop_map(|(networks, lab, version, coins, services)| Shape {
            networks,
            lab,
            version,
            tls_form: coins[0],
            hostnames: coins[1] && !lab,
            external_ips: coins[2],
            node_port: coins[3],
            aliases: coins[4],
            revision: coins[5] && !lab,
            two_roots: coins[6],
            remote: coins[7] && !lab,
            private_gateways: coins[8],
            local_services: coins[9],
            services,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// A hundred healthy meshes: real and lab, one network and several, of every way to have a gateway.
    #[test]
    fn nothing_is_said_of_a_healthy_mesh(shape in shapes()) {
        let world = World::new(shape);
        let report = world.report(&options());
        prop_assert!(report.findings.is_empty(), "{:#?}", words(&report));
        prop_assert_eq!(report.verdict, CheckVerdict::Pass);
        let before = world.report(&CheckOptions { before: true, ..options() });
        prop_assert!(before.findings.is_empty(), "{:#?}", words(&before));
    }
}

/// What was not measured is never shown as healthy.
#[test]
fn what_was_not_read_is_not_healthy() {
    let mut world = World::new(Shape::default());
    let healthy = world.report(&options());
    assert_eq!(healthy.summary.not_measured, 0, "{:#?}", healthy.checks);
    for kind in ["Secret", "Service", "Pod", "ConfigMap", "Namespace"] {
        let mut world = World::new(Shape::default());
        let why = "forbidden".to_owned();
        world.seen("c1").objects.insert(kind.to_owned(), snapshot::Datum::Unread { why });
        let report = world.report(&options());
        assert!(report.summary.not_measured > 0, "{kind}");
        let told = report.checks.iter().flat_map(|c| &c.not_measured).filter(|g| g.cluster.as_deref() == Some("c1"));
        assert!(told.count() > 0, "{kind}");
    }
    // A cluster that did not answer takes every cause with it.
    world.snapshot.clusters.insert("c2".to_owned(), snapshot::Datum::Unread { why: "connection refused".to_owned() });
    let report = world.report(&options());
    assert_eq!(report.summary.healthy, 0);
    assert!(report.checks.iter().all(|c| c.result != Outcome::Healthy && !c.not_measured.is_empty()));
    assert_eq!(report.clusters[1].unreachable.as_deref(), Some("connection refused"));
}

#[test]
fn only_and_skip_choose() {
    let world = World::new(Shape::default());
    let ids = |only: &[&str], skip: &[&str], before| {
        let list = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        let report = world.report(&CheckOptions { only: list(only), skip: list(skip), before, ..options() });
        report.checks.iter().map(|c| c.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(&["d-05", "D-08"], &[], false), ["D-05", "D-08"]);
    assert_eq!(ids(&["D-05", "D-08"], &["D-08"], false), ["D-05"]);
    assert_eq!(ids(&[], &[], false).len(), 60);
    let before = ids(&[], &[], true);
    assert!(before.contains(&"D-28") && !before.contains(&"D-18"));
}

/// A second look forgives what came and went.
#[test]
fn what_changes_by_itself_is_seen_twice() {
    let mut world = World::new(Shape::default());
    seeds::seed("D-25")(&mut world);
    let (sick, healthy) = (world.report(&options()), World::new(Shape::default()).report(&options()));
    assert_eq!(sick.clone().confirmed_by(&healthy).findings, []);
    assert_eq!(sick.clone().confirmed_by(&sick).findings.len(), sick.findings.len());
    let mut world = World::new(Shape::default());
    seeds::seed("D-18")(&mut world);
    let lasting = world.report(&options());
    assert_eq!(lasting.clone().confirmed_by(&healthy).findings[0].id, "D-18", "objects do not come and go");
}

#[test]
fn other_programs_read_it() {
    let mut world = World::new(Shape::default());
    seeds::seed("D-07")(&mut world);
    world
        .seen("c2")
        .objects
        .insert("Secret".to_owned(), snapshot::Datum::Unread { why: "for\u{1}bidden <&>".to_owned() });
    let report = world.report(&options());
    let xml = junit(&report);
    assert!(
        xml.contains("<failure message=\"the network&apos;s") || xml.contains("<failure message=\"the network's"),
        "{xml}"
    );
    assert!(xml.contains("not measured: could not read objects of kind Secret: forbidden &lt;&amp;&gt;"), "{xml}");
    assert_eq!(xml.matches("<testcase").count(), 60);
    let sarif = sarif(&report, "mesh.yaml");
    let run = &sarif["runs"][0];
    assert_eq!(run["tool"]["driver"]["rules"].as_array().map(Vec::len), Some(60));
    assert_eq!(run["results"][0]["ruleId"], "D-07");
    let index = usize::try_from(run["results"][0]["ruleIndex"].as_u64().unwrap()).unwrap();
    assert_eq!(run["tool"]["driver"]["rules"][index]["id"], "D-07");
    assert_eq!(run["results"][0]["level"], "error");
}

/// docs/check.md lists every cause as the code has it.
#[test]
fn the_page_is_true() {
    let page = include_str!("../../../../docs/check.md");
    let mut expected = String::new();
    for group in Group::ALL {
        expected += &format!(
            "\n### {}\n\n| id | severity | cause | in a healthy mesh | before | in the lab |\n|---|---|---|---|---|---|\n",
            group.title()
        );
        for cause in CAUSES.iter().filter(|c| c.group == group) {
            let severity = match cause.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Info => "note",
            };
            let lab = seeds::NOT_IN_A_LAB.iter().find(|(id, _)| *id == cause.id).map_or("yes", |(_, why)| why);
            let before = if cause.before { "yes" } else { "" };
            expected +=
                &format!("| {} | {severity} | {} | {} | {before} | {lab} |\n", cause.id, cause.title, cause.healthy);
        }
    }
    let (_, table) = page.split_once("<!-- causes -->\n").unwrap_or_default();
    let (table, _) = table.split_once("<!-- end -->").unwrap_or_default();
    assert!(table == expected, "docs/check.md should say between its marks:\n{expected}");
}
