//! A cluster is taken out of the traffic and comes back, under load.

use std::time::Instant;

use crate::setup_mesh::{self, CONTEXTS, ready_pods};
use crate::traffic::{Sent, Traffic, figures};
use crate::world::{World, finish, say, text};

/// Alone in its network, so that all that comes to it from others comes through its own gateway.
const DRAINED: &str = CONTEXTS[2];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_drained_and_comes_back() {
    let mut world = World::new();
    let file = setup_mesh::lab(&mut world).await;
    world.good(&["apply", "-f", text(&file), "--samples", "--yes"]).await;
    let clusters = world.clusters(&CONTEXTS).await;
    let there = ready_pods(&clusters[2].client, "sample", "helloworld").await;
    let mut traffic = Vec::new();
    for cluster in &clusters[..2] {
        let sleep = ready_pods(&cluster.client, "sample", "sleep").await;
        traffic.push(Traffic::start(&cluster.client, &sleep[0]));
    }
    let from_there = |sent: &Sent| there.contains(&sent.by);
    let serves = |sent: &[Sent]| sent.iter().filter(|s| from_there(s)).count() >= 3;
    for stream in &traffic {
        stream.until("it serves", Instant::now(), serves).await;
    }

    let nowhere = world.run(&["cluster", "drain", "nowhere", "-f", text(&file)]).await.ends_with(1);
    assert!(nowhere.err.contains("there is no cluster `nowhere`") && nowhere.err.contains(DRAINED), "{}", nowhere.err);
    world.run(&["cluster", "drain", DRAINED, "-f", text(&file), "--dry-run"]).await.ends_with(2);

    // Killed after the word and the first credential; the same command goes on.
    let mut killed = world.stolos(["cluster", "drain", DRAINED, "-f", text(&file)]);
    killed.env("STOLOS_CRASH_AT", "write-after:3");
    assert_eq!(finish(killed).await.code, None);
    let run = world.good(&["cluster", "drain", DRAINED, "-f", text(&file), "-o", "json"]).await;
    assert_eq!(run.document()["confirmed"], serde_json::json!([CONTEXTS[0], CONTEXTS[1]]), "{}", run.err);
    let quiet = Instant::now();
    for stream in &traffic {
        stream.more(60).await;
    }
    let after: Vec<Sent> = traffic.iter().flat_map(Traffic::sent).filter(|sent| sent.at > quiet).collect();
    let still: Vec<_> = after.iter().filter(|sent| from_there(sent)).collect();
    assert!(still.is_empty(), "{} of {} requests: {still:?}", still.len(), after.len());

    // A later apply leaves it so, and everybody says so.
    world.good(&["apply", "-f", text(&file), "--samples", "--yes"]).await;
    let plan = world.good(&["plan", "-f", text(&file), "--samples", "-o", "json"]).await.document();
    assert!(plan["notes"].to_string().contains("drained since"), "{plan:#}");
    let status = world.good(&["status", "-f", text(&file)]).await.out;
    assert!(
        status.contains(&format!("{DRAINED}: drained since")) && !status.contains("holds no credential"),
        "{status}"
    );

    let back = Instant::now();
    world.good(&["cluster", "undrain", DRAINED, "-f", text(&file)]).await;
    for stream in &traffic {
        stream.until("it serves again", back, serves).await;
    }
    world.good(&["plan", "-f", text(&file), "--samples"]).await;
    world.proven(&file, 9).await;

    let mut sent = Vec::new();
    for stream in traffic {
        sent.extend(stream.end().await);
    }
    say(&figures("one of three clusters drained and brought back", &sent));
    let failed: Vec<_> = sent.iter().filter(|sent| sent.failed()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}
