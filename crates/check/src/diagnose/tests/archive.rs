//! A check made from an archive says what the check says that the archive was made beside.

use std::collections::BTreeSet;

use super::*;
use crate::bundle::{Bundle, Contents, Gathered, ManifestTold, write};

fn archived(world: &World) -> Bundle {
    let mut archive = Vec::new();
    let contents = Contents {
        mesh: &world.mesh,
        inputs: Vec::new(),
        told: ManifestTold::default(),
        gathered: Gathered { snapshot: world.snapshot.clone(), report: world.report(&options()), pages: Vec::new() },
        extras: Vec::new(),
        made_by: "stolos test".to_owned(),
        folder: "bundle".to_owned(),
        most_objects: 10_000,
        most_bytes: 64 << 20,
    };
    write(contents, &mut archive).unwrap();
    Bundle::open(&archive[..]).unwrap()
}

/// A sample of them, or all with `STOLOS_CORPUS=all`: what is taken out of each takes its time in a debug build.
#[test]
fn causes_are_found_in_an_archive() {
    let every = if std::env::var_os("STOLOS_CORPUS").is_some_and(|v| v == "all") { 1 } else { 4 };
    let mut others = Vec::new();
    for (id, shape, seed) in seeds::SEEDS.iter().step_by(every) {
        let mut world = World::new(shape());
        seed(&mut world);
        let bundle = archived(&world);
        let mut snapshot = bundle.snapshot();
        // Archives are made when they are made; the seeds have a time of their own.
        snapshot.now = world.snapshot.now;
        let here = world.report(&options());
        let there = judge(&world.mesh, &snapshot, &options());
        let ids =
            |report: &CheckReport| report.findings.iter().map(|f| (f.id, f.cluster.clone())).collect::<BTreeSet<_>>();
        if ids(&here) != ids(&there) {
            others.push(format!("{id}: {:#?}\nin the archive: {:#?}", words(&here), words(&there)));
        }
    }
    assert!(others.is_empty(), "{}", others.join("\n"));
}

#[test]
fn a_healthy_mesh_is_healthy_in_an_archive() {
    let world = World::new(Shape::default());
    let bundle = archived(&world);
    assert_eq!(bundle.mesh.clusters, world.mesh.clusters);
    let report = judge(&bundle.mesh, &bundle.snapshot(), &options());
    assert_eq!(report.findings, [], "{:#?}", words(&report));
    let gaps: Vec<_> = report.checks.iter().flat_map(|c| &c.not_measured).collect();
    assert!(gaps.is_empty(), "{gaps:?}");
}
