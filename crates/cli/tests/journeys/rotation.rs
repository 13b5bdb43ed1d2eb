//! The root of a mesh is replaced under load: nobody notices, whoever kills it, and wherever it is taken back.
//!
//! Usually it is killed at a few places. `STOLOS_ROTATION=all` kills it at every boundary of a phase and takes it back
//! from every phase before retirement, and goes on until 100,000 requests were sent; that takes a quarter of an hour.

use std::path::Path;
use std::time::Instant;

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use stolos_cluster::Cluster;
use stolos_pki::Certificate;

use crate::setup_mesh::{self, CONTEXTS, ready_pods};
use crate::traffic::{Sent, Traffic, figures};
use crate::world::{Run, World, finish, say, text};

const MESH: &str = "mymeshname";
/// Requests of the long form.
const MANY: usize = 100_000;
/// Streams of requests from each cluster, in the long form.
const STREAMS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_is_replaced_under_load() {
    let all = match std::env::var("STOLOS_ROTATION").unwrap_or_default().as_str() {
        "" => false,
        "all" => true,
        other => panic!("STOLOS_ROTATION={other}: it is `all` or not set"),
    };
    let mut world = World::new();
    let file = setup_mesh::lab(&mut world).await;
    world.good(&["apply", "-f", text(&file), "--samples", "--yes"]).await;
    let clusters = world.clusters(&CONTEXTS).await;
    let began = Instant::now();
    let mut traffic = Vec::new();
    for cluster in &clusters {
        let sleep = ready_pods(&cluster.client, "sample", "sleep").await;
        for _ in 0..if all { STREAMS } else { 1 } {
            traffic.push(Traffic::start(&cluster.client, &sleep[0]));
        }
    }
    for stream in &traffic {
        stream.more(10).await;
    }
    let mut sight = Sight { world: &world, file: &file, clusters: &clusters, kills: 0, forward: 0, back: 0 };

    // Taken back: from where a run was killed, by a run that is killed itself in the long form.
    let places = if all { (2..=6).collect() } else { vec![4] };
    for place in places {
        // In the long form one of the ways back is itself killed everywhere.
        let kills = match (all, place) {
            (true, 5) => (1..=8).map(Some).collect(),
            (true, _) => vec![None],
            (false, _) => vec![Some(3)],
        };
        for kill in kills {
            sight.taken_back(place, kill).await;
        }
    }
    world.proven(&file, 9).await;

    // Run to the end, each time killed at another place and run again.
    let phases = if all { (1..=13).map(|n| vec![format!("phase:{n}")]).collect() } else { Vec::new() };
    let writes: Vec<_> = if all {
        (2..=10).map(|n| vec![format!("write-{}:{n}", if n % 2 == 0 { "before" } else { "after" })]).collect()
    } else {
        // In one go: before distribution is on disk, in the middle of reissuing, with half a new root in its place.
        vec![["phase:3", "write-after:6", "phase:4"].map(str::to_owned).to_vec()]
    };
    for kills in [phases, writes].concat() {
        sight.run_to_the_end(&kills).await;
    }
    while all && traffic.iter().map(|stream| stream.sent().len()).sum::<usize>() < MANY {
        sight.run_to_the_end(&[]).await;
    }
    world.proven(&file, 9).await;
    world.good(&["plan", "-f", text(&file), "--samples"]).await;

    let mut sent: Vec<Sent> = Vec::new();
    for stream in traffic {
        stream.more(10).await;
        sent.extend(stream.end().await);
    }
    let Sight { kills, forward, back, .. } = sight;
    say(&figures(
        &format!(
            "the root replaced {forward} times, taken back {back} times, killed {kills} times, in {:.0} s",
            began.elapsed().as_secs_f64()
        ),
        &sent,
    ));
    let failed: Vec<_> = sent.iter().filter(|sent| sent.failed()).collect();
    assert!(failed.is_empty(), "{} of {} requests failed: {failed:?}", failed.len(), sent.len());
    assert!(!all || sent.len() >= MANY, "{} requests", sent.len());
}

struct Sight<'a> {
    world: &'a World,
    file: &'a Path,
    clusters: &'a [Cluster],
    kills: usize,
    forward: usize,
    back: usize,
}

impl Sight<'_> {
    /// Runs the rotation, to be killed at a point; whether it was, or ended before.
    async fn rotate(&mut self, flags: &[&str], kill: Option<&str>) -> (bool, Run) {
        let base = ["cert", "rotate", "root", "-f", text(self.file), "--yes"];
        let mut command = self.world.stolos([&base, flags].concat());
        if let Some(kill) = kill {
            command.env("STOLOS_CRASH_AT", kill);
        }
        let run = finish(command).await;
        let killed = run.code.is_none();
        assert!(killed || run.code == Some(0), "{kill:?} {flags:?}: {:?}\n{}\n{}", run.code, run.out, run.err);
        self.kills += usize::from(killed);
        (killed, run)
    }

    /// What the state folder and all clusters agree on; none when they do not.
    async fn root(&self) -> Option<String> {
        let folder = std::fs::read_to_string(self.world.state(MESH).join("root-cert.pem")).unwrap();
        let root = Certificate::from_pem(&folder).unwrap().fingerprint();
        for cluster in self.clusters {
            let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), "istio-system");
            let data = secrets.get("cacerts").await.unwrap().data.unwrap();
            let pem = String::from_utf8(data["root-cert.pem"].0.clone()).unwrap();
            let roots: Vec<_> = Certificate::all_from_pem(&pem).unwrap().iter().map(Certificate::fingerprint).collect();
            if roots != [root.clone()] {
                return None;
            }
        }
        Some(root)
    }

    /// Whether the folder says that a rotation is under way, and then plan says so and touches nothing of it.
    async fn is_under_way(&self) -> bool {
        let status =
            self.world.good(&["cert", "rotate", "root", "-f", text(self.file), "--status", "-o", "json"]).await;
        let under_way = status.document()["underWay"] == true;
        if under_way {
            let plan = self.world.run(&["plan", "-f", text(self.file), "--samples", "-o", "json"]).await.document();
            assert!(plan.to_string().contains("the root is being replaced, phase "), "{plan:#}");
            let steps = plan["steps"].as_array().unwrap();
            assert!(steps.iter().all(|step| step["action"] == "wait"), "{plan:#}");
        }
        under_way
    }

    /// Killed at this boundary of a phase, then taken back.
    async fn taken_back(&mut self, place: usize, kill: Option<usize>) {
        let before = self.root().await.expect("one root everywhere");
        let (killed, _) = self.rotate(&[], Some(&format!("phase:{place}"))).await;
        assert!(killed, "phase:{place}");
        if !self.is_under_way().await {
            return;
        }
        if let Some(kill) = kill {
            let (killed, _) = self.rotate(&["--abort"], Some(&format!("phase:{kill}"))).await;
            assert!(killed, "--abort phase:{kill}");
        }
        if self.is_under_way().await {
            self.rotate(&["--abort"], None).await;
        }
        assert!(!self.is_under_way().await);
        assert_eq!(self.root().await, Some(before), "back to the old root");
        self.back += 1;
    }

    /// Killed at each of these in turn, then run to the end: there is a new root, and it is the only one.
    async fn run_to_the_end(&mut self, kills: &[String]) {
        let before = self.root().await.expect("one root everywhere");
        for kill in kills {
            let (killed, _) = self.rotate(&[], Some(kill)).await;
            // Some points lie behind the end of what is left; whether the root is a new one is seen below.
            if !killed || !self.is_under_way().await {
                break;
            }
        }
        let mut now = self.root().await;
        if self.is_under_way().await || now.as_ref() == Some(&before) {
            self.rotate(&[], None).await;
            now = self.root().await;
        }
        let now = now.expect("one root everywhere");
        assert_ne!(now, before, "a new root");
        assert!(!self.is_under_way().await);
        self.forward += 1;
    }
}

/// What is no replacement is refused with a reason, and nothing is touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_replaced_is_said() {
    let mut world = World::new();
    let file = setup_mesh::lab(&mut world).await;
    let refused = |run: Run| run.ends_with(1).err;
    let rotate = ["cert", "rotate", "root", "-f", text(&file)];
    let nobody = refused(world.run(&rotate).await);
    assert!(nobody.contains("nobody can be asked") && nobody.contains("--yes"), "{nobody}");
    world.run(&[&rotate[..], &["--dry-run"]].concat()).await.ends_with(2);
    let early = refused(world.run(&[&rotate[..], &["--yes"]].concat()).await);
    assert!(early.contains("root-cert.pem"), "{early}");
    let back = refused(world.run(&[&rotate[..], &["--abort"]].concat()).await);
    assert!(back.contains("no replacement of the root is under way"), "{back}");

    // A mesh of which a cluster does not answer is none to replace the root of.
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    world.good(&["lab", "fault", "kill", CONTEXTS[2], "-f", text(&file)]).await;
    let run = world.run(&[&rotate[..], &["--yes", "--timeout", "2"]].concat()).await;
    assert!(run.code == Some(1) && run.err.contains(CONTEXTS[2]), "{:?}\n{}", run.code, run.err);
    assert!(!world.state(MESH).join("rotation.json").exists());
}

/// Envoy as every sidecar and every gateway: its secrets are read from its own dump, and a gateway that only passes TLS
/// on has none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_under_envoy_is_replaced() {
    let Some(envoy) = crate::programs::program("STOLOS_ENVOY") else { return };
    let mut world = World::new();
    let mesh = "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {name: rooted}\nspec:\n  \
                samples: [helloworld, sleep]\n  clusters:\n  - {name: east, network: east}\n  - {name: west, network: west}\n";
    let file = world.write("mesh.yaml", mesh);
    world.up_with(&file, &["--envoy", text(&envoy), "--envoy-for", "all"]).await;
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    let fingerprint = || {
        let pem = std::fs::read_to_string(world.state("rooted").join("root-cert.pem")).unwrap();
        Certificate::from_pem(&pem).unwrap().fingerprint()
    };
    let before = fingerprint();
    let run = world.good(&["cert", "rotate", "root", "-f", text(&file), "--yes", "--timeout", "120"]).await;
    assert_ne!(fingerprint(), before, "{}\n{}", run.out, run.err);
    world.proven(&file, 4).await;
    world.good(&["plan", "-f", text(&file)]).await;
}
